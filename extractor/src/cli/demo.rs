use std::fs;
use std::path::PathBuf;

use super::Context;
use crate::render::text;
use crate::steps::demo::demo;
use crate::steps::{Exit, StepError};

/// Show it all on a tiny checkpoint built into the program
///
/// Scans, packs, verifies, damages one bit, finds it, unpacks and compares, runs the model from its
/// pack, and validates it against a trace of the official one, in a temporary folder.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack demo
  segpack demo --keep demo        leaves checkpoint, packs and restored files there to look at")]
pub struct Args {
    /// Work in this new folder and keep it
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Print one JSON document (schemas/demo-report.schema.json)
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let temporary = tempfile::tempdir()?;
    let folder = match &args.keep {
        Some(folder) => {
            fs::create_dir(folder).map_err(StepError::io("create", folder))?;
            folder.clone()
        }
        None => temporary.path().to_owned(),
    };
    let report = demo(&folder, context.stop, &mut |step| {
        if args.json {
            return Ok(());
        }
        let shown = context.terminal.text(&text::demo_step(step));
        shown.map_err(|e| {
            e.downcast()
                .unwrap_or_else(|other| StepError::Refused(other.to_string()))
        })
    })?;
    let verdict = if report.ok {
        "Everything came out as it had to.\n"
    } else {
        ""
    };
    context
        .terminal
        .document(&report, args.json, |_| verdict.to_owned())?;
    Ok(Exit::of(report.ok))
}
