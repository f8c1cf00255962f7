use std::fs;
use std::path::PathBuf;

use super::Context;
use crate::steps::demo::demo;
use crate::steps::{Exit, StepError};

/// Show it all on a tiny checkpoint built into the program
///
/// Scans, packs, verifies, damages one bit, finds it, unpacks and compares, in a temporary folder.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack demo
  segpack demo --keep demo        leaves checkpoint, packs and restored files there to look at")]
pub struct Args {
    /// Work in this new folder and keep it
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Print one JSON document
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
        let mark = if step.ok { "ok " } else { "NOT OK" };
        let line = format!("$ {}\n  {mark} {}", step.command, step.outcome);
        context.terminal.line(line).map_err(|e| match e.downcast() {
            Ok(step) => step,
            Err(other) => StepError::Refused(other.to_string()),
        })
    })?;
    if args.json {
        context.terminal.document(&report)?;
    } else if report.ok {
        context.terminal.line("\nEverything came out as it had to.")?;
    }
    Ok(if report.ok { Exit::Ok } else { Exit::Damaged })
}
