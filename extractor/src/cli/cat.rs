use std::io::{self, BufWriter, IsTerminal, Write};
use std::ops::Range;

use super::Context;
use super::args::{INPUT, PackArg, ReadingArgs};
use super::error::CliError;
use crate::steps::Exit;
use crate::steps::cat::{are_files, cat, parse_rows};

/// Write the bytes of tensors, segments or files of the checkpoint to standard output
///
/// The bytes are those of the checkpoint: little-endian, last dimension fastest. The SHA-256 of
/// each tensor and file is compared while it is written; damage ends the output with exit status 3.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack cat omni.segpack thinker.model.layers.5.mlp.experts.17.down_proj.weight | sha256sum
  segpack cat omni.segpack thinker.text.layers.5.experts.17 > expert.bin   # gate, up, down
  segpack cat omni.segpack config.json
  segpack cat omni.segpack thinker.model.embed_tokens.weight --rows 785..786 | xxd | head")]
pub(super) struct Args {
    #[command(flatten)]
    pack: PackArg,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Names of tensors, segments, stacked tensors of the checkpoint, or files beside its shards;
    /// looked for in this order (./NAME is always a file)
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Write only rows A to B-1 of the first dimension; their digest cannot be compared
    #[arg(long, value_name = "A..B", value_parser = parse_rows, help_heading = INPUT)]
    rows: Option<Range<u64>>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    args.reading.refuse_unchecked(args.rows.is_some(), "rows")?;
    let pack = args.reading.open(&args.pack, context)?;
    let (names, rows, stop) = (&args.names, args.rows.as_ref(), context.stop);
    let mut out = BufWriter::with_capacity(0, io::stdout().lock()); // pieces are large already
    if io::stdout().is_terminal() {
        if !are_files(&pack, names)? {
            return Err(CliError::BinaryToTerminal);
        }
        let mut text = TextOnly {
            to: &mut out,
            is_binary: false,
        };
        let written = cat(&pack, names, rows, &mut text, stop);
        if text.is_binary {
            return Err(CliError::BinaryToTerminal);
        }
        written?;
    } else {
        cat(&pack, names, rows, &mut out, stop)?;
    }
    out.flush().map_err(CliError::stdout)?;
    Ok(Exit::Ok)
}

/// Refuses to write what a terminal would obey instead of showing.
struct TextOnly<W> {
    to: W,
    is_binary: bool,
}

impl<W: Write> Write for TextOnly<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let shown = |b: &u8| !b.is_ascii_control() || matches!(b, b'\n' | b'\r' | b'\t');
        if bytes.iter().all(shown) {
            return self.to.write(bytes);
        }
        self.is_binary = true;
        Err(io::ErrorKind::InvalidData.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the bytes pass as text.
    fn written(bytes: &[u8]) -> bool {
        let mut text = TextOnly {
            to: Vec::new(),
            is_binary: false,
        };
        let ok = text.write_all(bytes).is_ok();
        assert_eq!(ok, !text.is_binary);
        ok
    }

    #[test]
    fn what_a_terminal_obeys_is_not_text() {
        assert!(written("{\n\t\"a\": \"ü\"\r\n}".as_bytes()));
        for bad in [&b"\x1b[31m"[..], b"\0", b"a\x7f", b"\x08"] {
            assert!(!written(bad), "{bad:?}");
        }
    }
}
