use std::path::PathBuf;

use segpack_manifests::documents::VerifyMode;

use super::Context;
use super::args::Jobs;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::verify::{Subset, VerifySettings, verify};

/// Check a pack against its manifest, or against a checkpoint
///
/// Reports everything that is wrong, not the first thing. By default every stored byte is hashed
/// once and every tensor's SHA-256 compared.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack verify omni.segpack
  segpack verify omni.segpack --quick                files, lengths, headers, SHA256SUMS; reads no weights
  segpack verify omni.segpack --subset 3/7           one seventh of it, a day's share of a week
  segpack verify omni.segpack --against ./Qwen3-Omni-30B-A3B-Instruct
  segpack verify omni.segpack --json | jq .findings")]
pub struct Args {
    /// The pack folder
    #[arg(value_name = "PACK")]
    pack: PathBuf,
    /// Structure only: files, lengths, headers and the text of SHA256SUMS; no digest of a weight
    #[arg(long, conflicts_with_all = ["sums", "subset"])]
    quick: bool,
    /// Also the SHA-256 of every file as a whole, and the BLAKE3 of raw segments
    #[arg(long)]
    sums: bool,
    /// Also compare tensor by tensor and file by file with this checkpoint
    #[arg(long, value_name = "CKPT")]
    against: Option<PathBuf>,
    /// Only part K of N, counted from 1; the N parts together cover everything once
    #[arg(long, value_name = "K/N")]
    subset: Option<Subset>,
    #[command(flatten)]
    jobs: Jobs,
    /// Print one JSON document (schemas/verify-report.schema.json)
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let settings = VerifySettings {
        mode: match (args.quick, args.sums) {
            (true, _) => VerifyMode::Quick,
            (_, true) => VerifyMode::Sums,
            _ => VerifyMode::Full,
        },
        subset: args.subset,
        against: args.against,
        jobs: args.jobs.count(),
    };
    let report = verify(&args.pack, &settings, context.stop, &context.progress)?;
    let place = args.pack.display().to_string();
    context
        .terminal
        .document(&report, args.json, |r| text::verify(r, &place))?;
    Ok(Exit::of(report.ok))
}
