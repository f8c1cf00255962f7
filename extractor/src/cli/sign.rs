use std::path::PathBuf;

use super::Context;
use super::args::{INPUT, Jobs, OUTPUT, output_path};
use super::error::CliError;
use crate::render::text;
use crate::source::local_pack;
use crate::steps::sign::{SignSettings, sign, sign_files};
use crate::steps::{Exit, StepError};

/// Sign a pack as OpenSSF's model signing does
///
/// The pack is verified first, every byte of it; what is damaged is not signed. The signature
/// (ECDSA on P-256, P-384 or P-521) covers the manifest and thereby every file. `segpack verify
/// --signature --public-key KEY` and `model_signing verify key` of OpenSSF's own tool check it; with
/// --certificate, `segpack verify --signature --certificate-chain ROOTS` and `model_signing verify
/// certificate`. Keyless signatures are made by that tool, `model_signing sign sigstore`, and checked
/// by `segpack verify`, too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  openssl ecparam -name prime256v1 -genkey -noout -out key.pem
  openssl ec -in key.pem -pubout -out key.pub
  segpack sign omni.segpack --key key.pem
  segpack verify omni.segpack --signature --public-key key.pub
  segpack sign omni.segpack --key key.pem --certificate me.pem --certificate-chain above.pem
  segpack verify omni.segpack --signature --certificate-chain root.pem")]
pub(super) struct Args {
    /// Pack folder
    #[arg(value_name = "PACK")]
    pack: PathBuf,
    /// Sign all files of a folder that is no pack, such as those of a release, as they are now;
    /// `model_signing verify key` checks such a signature, `segpack verify` only those of packs
    #[arg(long, help_heading = INPUT)]
    files: bool,
    /// Private key: PKCS#8 or SEC1 as PEM, not encrypted
    #[arg(long, value_name = "FILE", help_heading = INPUT)]
    key: PathBuf,
    /// The key's certificate, as PEM: the signature names its owner, and whoever trusts the root
    /// above it needs no key
    #[arg(long, value_name = "FILE", help_heading = INPUT)]
    certificate: Option<PathBuf>,
    /// Certificates between that and its root, as PEM, in their order
    #[arg(long, value_name = "FILE", requires = "certificate", help_heading = INPUT)]
    certificate_chain: Option<PathBuf>,
    #[command(flatten)]
    jobs: Jobs,
    /// File to write, by default model.sig in the pack
    #[arg(long, short, value_name = "FILE", value_parser = output_path(), help_heading = OUTPUT)]
    output: Option<PathBuf>,
    /// Replace an existing signature
    #[arg(long, help_heading = OUTPUT)]
    force: bool,
    /// Print the summary as JSON (schemas/sign-summary.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let job = context.job_of(args.jobs.count());
    let settings = SignSettings {
        key: args.key.clone(),
        certificate: args.certificate.clone(),
        intermediates: args.certificate_chain.clone(),
        to: args.output.clone(),
        force: args.force,
    };
    let why = "a pack is signed where it lies, and nothing is written to a server";
    let folder = local_pack(&args.pack, why).map_err(StepError::from)?;
    let summary = match args.files {
        true => sign_files(folder, &settings, context.stop)?,
        false => sign(folder, &settings, job)?,
    };
    let place = args.pack.display().to_string();
    context
        .terminal
        .document(&summary, args.json, |s| text::sign(s, &place))?;
    Ok(Exit::Ok)
}
