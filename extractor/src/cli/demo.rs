use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use segpack_manifests::documents::DemoStep;

use super::Context;
use super::validate::print_tables;
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
        let shown = context.terminal.stdout(|out| show(step, out));
        shown.map_err(|e| {
            e.downcast()
                .unwrap_or_else(|other| StepError::Refused(other.to_string()))
        })
    })?;
    if args.json {
        context.terminal.document(&report)?;
    } else if report.ok {
        context.terminal.line("Everything came out as it had to.")?;
    }
    Ok(if report.ok { Exit::Ok } else { Exit::Damaged })
}

fn show(step: &DemoStep, out: &mut dyn Write) -> io::Result<()> {
    let mark = if step.ok { "ok " } else { "NOT OK" };
    writeln!(out, "$ {}\n  {mark} {}", step.command, step.outcome)?;
    match &step.validation {
        Some(report) => {
            writeln!(out)?;
            print_tables(report, out)
        }
        None => Ok(()),
    }
}
