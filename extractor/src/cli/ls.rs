use std::io::{self, Write};
use std::path::PathBuf;

use segpack_manifests::Pack;
use serde::Serialize;

use super::Context;
use crate::steps::cat::{find_segments, find_tensors};
use crate::steps::{Exit, StepError};

/// List the segments or tensors of a pack, one per line
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack ls omni.segpack
  segpack ls omni.segpack 'thinker.text.layers.5.*'
  segpack ls omni.segpack --tensors '*.mlp.gate.weight'
  segpack ls omni.segpack --tensors --json | jq -r 'select(.role == \"router\") | .sha256'")]
pub struct Args {
    /// The pack folder
    #[arg(value_name = "PACK")]
    pack: PathBuf,
    /// Only names that match one of these (`*` crosses dots)
    #[arg(value_name = "GLOB")]
    globs: Vec<String>,
    /// List tensors instead of segments
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object per line, as in the manifest
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let pack = Pack::open(&args.pack).map_err(StepError::from)?;
    if args.tensors {
        let tensors = find_tensors(&pack, &args.globs)?;
        context.terminal.stdout(|out| {
            tensors.iter().try_for_each(|t| {
                line(out, args.json, t, || {
                    let shape = t
                        .shape
                        .iter()
                        .map(u64::to_string)
                        .collect::<Vec<_>>()
                        .join("x");
                    format!(
                        "{:>12}  {:<5} {shape:<14} {}",
                        t.length,
                        t.dtype.to_string(),
                        t.name
                    )
                })
            })
        })?;
    } else {
        let segments = find_segments(&pack, &args.globs)?;
        context.terminal.stdout(|out| {
            segments.iter().try_for_each(|s| {
                line(out, args.json, s, || {
                    format!("{:>12}  {:<5} {}", s.stored_length, s.codec.name(), s.id)
                })
            })
        })?;
    }
    Ok(Exit::Ok)
}

fn line(
    out: &mut dyn Write,
    json: bool,
    entry: &impl Serialize,
    text: impl FnOnce() -> String,
) -> io::Result<()> {
    if json {
        serde_json::to_writer(&mut *out, entry)?;
        writeln!(out)
    } else {
        writeln!(out, "{}", text())
    }
}
