use std::path::{Path, PathBuf};

use segpack_manifests::Pack;
use segpack_manifests::documents::{ReceiptFile, VerifyMode};

use super::Context;
use super::args::{
    AllowUnaudited, INPUT, Jobs, OUTPUT, PackArg, SIGNATURE, SIGNER_OPTION, SignerArgs, output_path,
};
use super::error::CliError;
use super::hints::{of_findings, of_findings_of_part};
use crate::render::text;
use crate::steps::receipt::{check_receipt_path, files_now, receipt, write_receipt};
use crate::steps::verify::{Subset, VerifySettings, verify_at};
use crate::steps::{Exit, StepError};

/// Check a pack against its manifest or against a checkpoint
///
/// Reports all problems, not only the first. By default every stored byte is hashed once, and the
/// SHA-256 of every tensor is compared.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack verify omni.segpack
  segpack verify omni.segpack --quick        # files, lengths, headers; reads no weights
  segpack verify omni.segpack --subset 3/7   # one seventh, a day's share of a week
  segpack verify omni.segpack --against ./Qwen3-Omni-30B-A3B-Instruct
  segpack verify omni.segpack --values       # NaN, outliers, rows of zeros, copies
  segpack verify omni.segpack --signature --public-key key.pub
  segpack verify omni.segpack --signature --certificate-chain roots.pem
  segpack verify omni.segpack --signature --trusted-root trusted_root.json \\
    --identity me@example.org --issuer https://accounts.example.org
  segpack verify omni.segpack --json | jq .findings")]
pub(super) struct Args {
    #[command(flatten)]
    pack: PackArg,
    /// Also compare every tensor and file with this checkpoint, which may be on a server
    #[arg(long, value_name = "CKPT", help_heading = INPUT)]
    against: Option<PathBuf>,
    /// Check only the structure: files, lengths, headers and the text of SHA256SUMS, no digest of
    /// weights
    #[arg(long, conflicts_with_all = ["sums", "subset"], help_heading = INPUT)]
    quick: bool,
    /// Also check the SHA-256 of every file as a whole and the BLAKE3 of raw segments
    #[arg(long, help_heading = INPUT)]
    sums: bool,
    /// Also take statistics of the values, and warn of what no trained tensor looks like: values far
    /// beyond those of like tensors, rows of zeros, copies, NaN
    #[arg(long, conflicts_with = "quick", help_heading = INPUT)]
    values: bool,
    /// Do not prove that the original shards can be restored: faster, but only the digest of each
    /// tensor is compared
    #[arg(long, help_heading = INPUT)]
    no_restorable: bool,
    /// Also check the signature, model.sig in the pack or FILE, as OpenSSF's model signing has it
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        requires = SIGNER_OPTION,
        help_heading = SIGNATURE
    )]
    signature: Option<Option<PathBuf>>,
    #[command(flatten)]
    signer: SignerArgs,
    /// Check only part K of N, counted from 1; the N parts together cover everything once
    #[arg(long, value_name = "K/N", help_heading = INPUT)]
    subset: Option<Subset>,
    #[command(flatten)]
    unaudited: AllowUnaudited,
    #[command(flatten)]
    jobs: Jobs,
    /// Record what was verified, and when, in this file outside the pack, for `segpack info`
    #[arg(long, value_name = "FILE", value_parser = output_path(), help_heading = OUTPUT)]
    receipt: Option<PathBuf>,
    /// Print the report as JSON (schemas/verify-report.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

/// Why there is no receipt of a pack on a server.
pub(super) const NO_RECEIPT: &str = "a receipt says by the times of files whether they are still those that were verified, and a server's are not known";

pub(super) fn run(args: Args, context: &Context) -> Result<Exit, CliError> {
    let settings = VerifySettings {
        mode: match (args.quick, args.sums) {
            (true, _) => VerifyMode::Quick,
            (_, true) => VerifyMode::Sums,
            _ => VerifyMode::Full,
        },
        manifest_sha256: args.pack.wanted()?,
        signature: args.signer.signature(args.signature.as_ref()),
        subset: args.subset,
        restorable: !args.no_restorable,
        values: args.values,
        against: args.against,
        allow_unaudited: args.unaudited.allow_unaudited,
        jobs: args.jobs.count(),
    };
    let before = match &args.receipt {
        Some(path) => files_before(path, args.pack.local(NO_RECEIPT)?)?,
        None => Vec::new(),
    };
    let files = args.pack.find(context)?.files();
    let report = verify_at(files, &settings, context.stop, context.progress)?;
    // before the document: nothing follows that
    if let Some(path) = &args.receipt {
        write_receipt(path, &receipt(&report, before))?;
    }
    let place = args.pack.place();
    context
        .terminal
        .document(&report, args.json, |r| text::verify(r, &place))?;
    let hint = match report.part {
        Some(_) => of_findings_of_part(&report.findings),
        None => of_findings(&report.findings),
    };
    context.terminal.hint(hint);
    Ok(Exit::of(report.ok))
}

/// The files that a receipt speaks of: those that there are before the first is read.
fn files_before(receipt: &Path, folder: &Path) -> Result<Vec<ReceiptFile>, StepError> {
    check_receipt_path(receipt, folder)?;
    // a pack that cannot be opened is the report's first finding
    Ok(Pack::open(folder).map_or_else(|_| Vec::new(), |pack| files_now(&pack)))
}
