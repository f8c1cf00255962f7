//! `run --imatrix-out`.

use std::path::Path;

use super::Args;
use crate::cli::Context;
use crate::cli::error::CliError;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::run::{ImatrixOptions, ImatrixSummary, record_imatrix};

/// Records an importance matrix and says of how much.
pub(super) fn run(args: &Args, file: &Path, context: &Context) -> Result<Exit, CliError> {
    let mut options = ImatrixOptions::new(args.read_prompt(context.stop)?, file.to_owned());
    options.session = args.session()?;
    options.chunk = args.imatrix_chunk.get();
    options.dataset = dataset(args);
    let pack = args.reading.open(&args.pack, context)?;
    let summary = record_imatrix(&pack, &options, context.stop, context.progress)?;
    if !context.quiet {
        context.terminal.text(&summary_line(&summary, file))?;
    }
    Ok(Exit::Ok)
}

/// What the matrix calls the text.
fn dataset(args: &Args) -> String {
    match &args.messages {
        Some(file) => file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into(),
        None if args.prompt.is_some() || args.prompt_ids.is_some() => "prompt".to_owned(),
        None => super::STDIN.to_owned(),
    }
}

fn summary_line(summary: &ImatrixSummary, file: &Path) -> String {
    let counted = |n: usize, what: &str| text::counted(n as u64, what);
    let ImatrixSummary {
        tokens,
        chunks,
        tensors,
        expert_matrices,
        unreached,
    } = *summary;
    let unreached = match unreached {
        0 => String::new(),
        _ => format!(
            "; no token reached {unreached} of the experts' {expert_matrices} matrices, whose columns \
             count alike"
        ),
    };
    format!(
        "{}: {} in {}, {}{unreached}\n",
        file.display(),
        counted(tokens, "token"),
        counted(chunks, "chunk"),
        counted(tensors, "tensor"),
    )
}
