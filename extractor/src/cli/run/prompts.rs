//! `run --prompts`: JSON lines in, JSON lines out.

use std::io::{self, Write};
use std::path::Path;

use segpack_manifests::documents::PromptResult;

use super::{Args, read_text};
use crate::cli::Context;
use crate::cli::error::CliError;
use crate::render::text;
use crate::steps::run::{PromptsOptions, run_prompts};
use crate::steps::{Exit, StepError};

/// Continues the prompts of a file. Each line of standard output is whole as soon as it is there.
pub(super) fn run(args: &Args, file: &Path, context: &Context) -> Result<Exit, CliError> {
    let pack = args.reading.open(&args.pack, context)?;
    let (name, text) = read_text(file, context.stop)?;
    let mut prompts = PromptsOptions::new(name, text);
    prompts.folder = file.parent().map(Path::to_owned).unwrap_or_default();
    prompts.fetch = args.fetcher(context)?;
    prompts.chat = args.chat;
    prompts.system.clone_from(&args.system);
    prompts.enable_thinking = args.enable_thinking;
    let (session, generation) = (args.session()?, args.generation());
    let mut tell = |result: &PromptResult| write_line(result).map_err(StepError::Stdout);
    let summary = run_prompts(
        &pack,
        &prompts,
        (&session, &generation),
        context.stop,
        context.progress,
        &mut tell,
    )?;
    if args.json {
        write_line(&summary).map_err(CliError::stdout)?;
    }
    let mut figures = text::restricted(&summary.restricted_experts);
    if !context.quiet {
        figures += &text::batch(&summary);
    }
    // nobody is left to tell where standard error is closed
    let _ = io::stderr().write_all(figures.as_bytes());
    Ok(Exit::Ok)
}

fn write_line(document: &impl serde::Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, document)?;
    writeln!(out)?;
    out.flush()
}
