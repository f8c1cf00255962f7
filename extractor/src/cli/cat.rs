use std::io::{self, BufWriter, IsTerminal, Write};
use std::ops::Range;

use super::Context;
use super::args::{INPUT, PackArg};
use super::error::CliError;
use crate::steps::Exit;
use crate::steps::cat::{cat, parse_rows};

/// Write the decoded bytes of tensors or segments to standard output
///
/// The bytes are those of the checkpoint: little-endian, last dimension fastest. The SHA-256 of
/// each tensor is compared while it is written; damage ends the output with exit status 3.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack cat omni.segpack thinker.model.layers.5.mlp.experts.17.down_proj.weight | sha256sum
  segpack cat omni.segpack thinker.text.layers.5.experts.17 > expert.bin   # gate, up, down
  segpack cat omni.segpack thinker.model.embed_tokens.weight --rows 785..786 | xxd | head")]
pub(super) struct Args {
    #[command(flatten)]
    pack: PackArg,
    /// Names of tensors or segments, or of stacked tensors of the checkpoint
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Write only rows A to B-1 of the first dimension; their digest cannot be compared
    #[arg(long, value_name = "A..B", value_parser = parse_rows, help_heading = INPUT)]
    rows: Option<Range<u64>>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    if io::stdout().is_terminal() {
        return Err(CliError::BinaryToTerminal);
    }
    let pack = args.pack.open()?;
    let mut out = BufWriter::with_capacity(0, io::stdout().lock()); // pieces are large already
    cat(
        &pack,
        &args.names,
        args.rows.as_ref(),
        &mut out,
        context.stop,
    )?;
    out.flush().map_err(CliError::stdout)?;
    Ok(Exit::Ok)
}
