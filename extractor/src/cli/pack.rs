use std::io::{self, Write};
use std::path::PathBuf;

use clap::ValueEnum;
use segpack_formats::codec::{Codec, Coding};
use segpack_manifests::documents::{PackSummary, Plan};
use segpack_manifests::layout::Selection;

use super::scan::Tolerate;
use super::terminal::{bytes, counted, grouped, table};
use super::{Context, resume_advice};
use crate::steps::pack::{PackSettings, pack, plan};
use crate::steps::{Exit, StepError, default_jobs};

/// Pack a checkpoint into per-expert segments with a manifest
///
/// Nothing is written unless the checkpoint is complete. An interrupted run leaves everything
/// unfinished in PACK/.partial, and --resume goes on from there.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack pack ./Qwen3-Omni-30B-A3B-Instruct -o omni.segpack
  segpack pack Qwen/Qwen3-Omni-30B-A3B-Instruct -o omni.segpack --resume
  segpack pack ./model -o thinker.segpack --include thinker --codec bf16-rans
  segpack pack ./model -o model.segpack --dry-run")]
pub struct Args {
    /// A checkpoint folder, a .safetensors file, or a repo id (OWNER/NAME[@REVISION]) in the local
    /// hub cache
    #[arg(value_name = "CKPT")]
    checkpoint: PathBuf,
    /// The pack folder to write
    #[arg(long, short, value_name = "PACK")]
    output: PathBuf,
    /// Print the plan and write nothing
    #[arg(long, conflicts_with_all = ["resume", "force"])]
    dry_run: bool,
    /// How segments are coded
    #[arg(long, value_name = "CODEC", default_value = "raw")]
    codec: CodecName,
    #[command(flatten)]
    level: CodecArgs,
    /// Pack only these components and those below them (thinker, talker.text, ...); may be repeated
    #[arg(long, value_name = "COMPONENT")]
    include: Vec<String>,
    /// Leave these components behind; may be repeated
    #[arg(long, value_name = "COMPONENT")]
    exclude: Vec<String>,
    /// Threads [default: one per core, at most 16]
    #[arg(long, short, value_name = "N", value_parser = jobs)]
    jobs: Option<usize>,
    /// Go on where an interrupted run stopped
    #[arg(long, conflicts_with = "force")]
    resume: bool,
    /// Replace an existing pack (and nothing else); the old one is removed first
    #[arg(long)]
    force: bool,
    /// Do not digest the source shards: faster, but they are not compared with the hub's digests
    #[arg(long)]
    no_source_digests: bool,
    /// Do not record where the checkpoint came from
    #[arg(long)]
    no_provenance: bool,
    /// Do not write SHA256SUMS
    #[arg(long)]
    no_sums: bool,
    /// Print one JSON document: the summary, or with --dry-run the plan
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tolerate: Tolerate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CodecName {
    /// The tensors' own bytes; packs are plain safetensors files
    Raw,
    /// zstd in independently decodable chunks
    Zstd,
    /// bf16 weights a third smaller; decodes with any zstd
    #[value(name = "bf16-zstd")]
    Bf16Zstd,
    /// bf16 weights a third smaller, decoded faster than a drive delivers: for keeping and shipping
    #[value(name = "bf16-rans")]
    Bf16Rans,
}

/// Settings of codecs.
#[derive(Debug, clap::Args)]
pub struct CodecArgs {
    /// Level of the zstd codec, 1 to 22; higher is smaller and slower [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=22))]
    level: Option<i32>,
}

impl CodecArgs {
    /// A codec with these settings.
    pub fn coding(&self, name: CodecName) -> Result<Coding, StepError> {
        let codec = match name {
            CodecName::Raw => Codec::Raw,
            CodecName::Zstd => Codec::Zstd,
            CodecName::Bf16Zstd => Codec::Bf16Zstd,
            CodecName::Bf16Rans => Codec::Bf16Rans,
        };
        if codec != Codec::Zstd && self.level.is_some() {
            return Err(StepError::Usage(format!(
                "--level needs --codec zstd: {codec} has no levels"
            )));
        }
        Ok(Coding::of(codec, self.level))
    }
}

/// Parses a number of threads.
pub fn jobs(text: &str) -> Result<usize, String> {
    const MOST: usize = 1024;
    text.parse()
        .ok()
        .filter(|n| (1..=MOST).contains(n))
        .ok_or_else(|| format!("{text:?} is not 1 to {MOST}"))
}

impl Args {
    fn settings(&self) -> Result<PackSettings, StepError> {
        Ok(PackSettings {
            selection: Selection {
                include: self.include.clone(),
                exclude: self.exclude.clone(),
            },
            coding: self.level.coding(self.codec)?,
            jobs: self.jobs.unwrap_or_else(default_jobs),
            resume: self.resume,
            force: self.force,
            source_digests: !self.no_source_digests,
            sums: !self.no_sums,
            provenance: !self.no_provenance,
            scan: self.tolerate.options(),
        })
    }
}

pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let settings = args.settings()?;
    if args.dry_run {
        let plan = plan(&args.checkpoint, &settings)?.plan;
        if args.json {
            context.terminal.document(&plan)?;
        } else {
            context.terminal.stdout(|out| print_plan(&plan, out))?;
        }
        return Ok(Exit::Ok);
    }
    let packed = pack(
        &args.checkpoint,
        &args.output,
        &settings,
        context.stop,
        &context.progress,
    );
    let summary = packed.map_err(|e| resume_advice(e, &args.output))?;
    if args.json {
        context.terminal.document(&summary)?;
    } else {
        let place = args.output.display().to_string();
        context
            .terminal
            .stdout(|out| print_summary(&summary, &place, context, out))?;
    }
    Ok(Exit::Ok)
}

pub fn print_plan(plan: &Plan, out: &mut dyn Write) -> io::Result<()> {
    let rows = plan.packs.iter().map(|p| {
        let tensors = p.segments.iter().map(|s| s.tensors.len() as u64).sum();
        vec![
            p.path.clone(),
            grouped(p.segments.len() as u64),
            grouped(tensors),
            grouped(p.length),
        ]
    });
    let at_most = if plan.codec == Codec::Raw {
        "bytes"
    } else {
        "bytes at most"
    };
    writeln!(
        out,
        "{}",
        table(1, &["pack", "segments", "tensors", at_most], rows.collect())
    )?;
    let length = plan.packs.iter().map(|p| p.length).sum();
    writeln!(
        out,
        "\n{}, {} ({})",
        counted(plan.packs.len() as u64, "pack"),
        bytes(length),
        plan.codec
    )?;
    for e in &plan.excluded {
        writeln!(
            out,
            "left behind: {}, {}, {}",
            e.component,
            counted(e.tensors, "tensor"),
            bytes(e.bytes)
        )?;
    }
    for l in &plan.left_out {
        writeln!(out, "not packed: {} ({})", l.path, l.why)?;
    }
    Ok(())
}

pub fn print_summary(
    summary: &PackSummary,
    place: &str,
    context: &Context,
    out: &mut dyn Write,
) -> io::Result<()> {
    let s = summary;
    writeln!(
        out,
        "{place}: {}, {}, {}; {} of tensors in {}",
        counted(s.packs, "pack"),
        counted(s.segments, "segment"),
        counted(s.tensors, "tensor"),
        bytes(s.tensor_bytes),
        bytes(s.stored_bytes)
    )?;
    if s.resumed_packs > 0 {
        writeln!(
            out,
            "{} were finished before",
            counted(s.resumed_packs, "pack")
        )?;
    }
    if s.hub_digests_compared > 0 {
        writeln!(
            out,
            "{} equal the hub's own SHA-256",
            counted(s.hub_digests_compared, "source file")
        )?;
    }
    match &s.known {
        Some(k) if k.identical => writeln!(
            out,
            "the source is {} @ {}, byte for byte",
            k.repo, k.revision
        )?,
        Some(k) => {
            let but = if k.differs.is_empty() {
                ""
            } else {
                ", but differs:"
            };
            writeln!(out, "the source resembles {} @ {}{but}", k.repo, k.revision)?;
            k.differs.iter().try_for_each(|d| writeln!(out, "  {d}"))?;
            if !k.not_compared.is_empty() {
                writeln!(
                    out,
                    "  {} not digested, so not compared",
                    counted(k.not_compared.len() as u64, "shard")
                )?;
            }
        }
        None => {}
    }
    context.terminal.findings(&s.warnings, out)?;
    writeln!(out, "manifest SHA-256 {}", s.manifest_sha256)
}
