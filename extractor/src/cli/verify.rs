use std::io::{self, Write};
use std::path::PathBuf;

use segpack_manifests::documents::{VerifyMode, VerifyReport};

use super::Context;
use super::pack::jobs;
use super::terminal::{bytes, counted};
use crate::steps::verify::{Subset, VerifySettings, verify};
use crate::steps::{Exit, default_jobs};

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
    /// Threads [default: one per core, at most 16]
    #[arg(long, short, value_name = "N", value_parser = jobs)]
    jobs: Option<usize>,
    /// Print one JSON document (schemas/verify-report.schema.json)
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let mode = match (args.quick, args.sums) {
        (true, _) => VerifyMode::Quick,
        (_, true) => VerifyMode::Sums,
        _ => VerifyMode::Full,
    };
    let settings = VerifySettings {
        mode,
        subset: args.subset,
        against: args.against,
        jobs: args.jobs.unwrap_or_else(default_jobs),
    };
    let report = verify(&args.pack, &settings, context.stop, &context.progress)?;
    let place = args.pack.display().to_string();
    context
        .terminal
        .report(&report, report.ok, args.json, |out| {
            print(&report, &place, context, out)
        })
}

fn print(
    report: &VerifyReport,
    place: &str,
    context: &Context,
    out: &mut dyn Write,
) -> io::Result<()> {
    let c = &report.checked;
    let what = match report.mode {
        VerifyMode::Quick => format!("structure of {}", counted(c.packs, "pack")),
        _ => format!(
            "{}, {}, {} and {} of source/, {}",
            counted(c.packs, "pack"),
            counted(c.segments, "segment"),
            counted(c.tensors, "tensor"),
            counted(c.files, "file"),
            bytes(c.bytes)
        ),
    };
    let part = report
        .subset
        .map_or(String::new(), |[k, n]| format!(" (part {k} of {n})"));
    let verdict = match (report.ok, report.against) {
        (true, false) => "ok".to_owned(),
        (true, true) if report.mode == VerifyMode::Quick => {
            "ok; the manifest equals the checkpoint (weights of the pack not read)".to_owned()
        }
        (true, true) => "ok, and equal to the checkpoint".to_owned(),
        (false, _) => format!(
            "NOT ok: {}",
            counted(report.findings.len() as u64, "finding")
        ),
    };
    let line = format_args!("{place}: {verdict}; checked {what}{part}");
    context.terminal.verdict(&report.findings, line, out)?;
    match report.manifest_sha256 {
        Some(sha256) => writeln!(out, "manifest SHA-256 {sha256}"),
        None => Ok(()),
    }
}
