use serde::Serialize;

use super::Context;
use super::args::{INPUT, OUTPUT, PackArg};
use super::error::CliError;
use crate::render::text;
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
pub(super) struct Args {
    #[command(flatten)]
    pack: PackArg,
    /// List only names that match one of these patterns (`*` also matches dots)
    #[arg(value_name = "GLOB")]
    globs: Vec<String>,
    /// List tensors instead of segments
    #[arg(long, help_heading = INPUT)]
    tensors: bool,
    /// Print one JSON object per line, as in the manifest
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let pack = args.pack.open()?;
    if args.tensors {
        list(
            &find_tensors(&pack, &args.globs)?,
            text::tensor,
            args.json,
            context,
        )?;
    } else {
        list(
            &find_segments(&pack, &args.globs)?,
            text::segment,
            args.json,
            context,
        )?;
    }
    Ok(Exit::Ok)
}

/// One line for each entry: as the manifest has it where `json`, otherwise as `render` has it.
fn list<T: Serialize>(
    entries: &[&T],
    render: fn(&T) -> String,
    json: bool,
    context: &Context,
) -> Result<(), StepError> {
    context.terminal.stdout(|out| {
        for entry in entries {
            if json {
                serde_json::to_writer(&mut *out, entry)?;
                writeln!(out)?;
            } else {
                writeln!(out, "{}", render(entry))?;
            }
        }
        Ok(())
    })
}
