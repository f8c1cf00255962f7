use std::path::PathBuf;
use std::{env, fs};

use super::Context;
use super::args::{OUTPUT, output_path};
use super::error::CliError;
use crate::render::text;
use crate::steps::demo::demo;
use crate::steps::{Exit, StepError};

/// Try the main commands on a tiny checkpoint built into the program
///
/// In a temporary folder: scans, packs and verifies the checkpoint, flips one bit and finds it,
/// unpacks and compares the files, runs the model from its pack, validates it against a trace of the
/// official model, and speaks.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack demo
  segpack demo --keep demo   # keeps the checkpoint, the packs and the restored files")]
pub(super) struct Args {
    /// Create this folder, work in it and keep it
    #[arg(long, value_name = "DIR", value_parser = output_path(), help_heading = OUTPUT)]
    keep: Option<PathBuf>,
    /// Print the report as JSON (schemas/demo-report.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let temporary = tempfile::tempdir().map_err(StepError::io("create", env::temp_dir()))?;
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
        context.terminal.text(&text::demo_step(step))
    })?;
    let verdict = match (report.ok, &args.keep) {
        (false, _) => String::new(),
        (true, None) => "All checks passed.\n".to_owned(),
        (true, Some(folder)) => {
            let answer = folder.join("answer.wav");
            let spoken = match answer.exists() {
                true => format!(" The spoken answer is {}.", answer.display()),
                false => String::new(), // built without what speaks
            };
            format!("All checks passed.{spoken}\n")
        }
    };
    context
        .terminal
        .document(&report, args.json, |_| verdict.clone())?;
    Ok(Exit::of(report.ok))
}
