use std::cmp::Reverse;

use clap::ValueEnum;
use segpack_manifests::documents::{SegmentEntry, TensorEntry};
use serde::Serialize;

use super::Context;
use super::args::{INPUT, OUTPUT, PackArg, SizeArgs};
use super::error::CliError;
use crate::render::text::{self, Sizes, Total};
use crate::steps::cat::{find_segments, find_tensors};
use crate::steps::{Exit, StepError};

/// List the segments or tensors of a pack, one per line
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack ls omni.segpack
  segpack ls omni.segpack 'thinker.text.layers.5.*' --sum
  segpack ls omni.segpack --tensors '*.mlp.gate.weight'
  segpack ls omni.segpack --sort size | head
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
    /// Order of the lines
    #[arg(long, value_name = "BY", default_value = "pack", help_heading = OUTPUT)]
    sort: Sort,
    /// Reverse the order
    #[arg(long, short, help_heading = OUTPUT)]
    reverse: bool,
    /// End with a line of sums
    #[arg(long, help_heading = OUTPUT)]
    sum: bool,
    #[command(flatten)]
    sizes: SizeArgs,
    /// Print one JSON object per line, as in the manifest
    #[arg(long, conflicts_with = "sum", help_heading = OUTPUT)]
    json: bool,
}

/// What lines are ordered by; those that are equal stay in the order of the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// By pack and place in it
    Pack,
    /// By name; numbers in names by their value
    Name,
    /// The largest first: stored bytes of segments, bytes of tensors
    Size,
    /// By layer, then expert
    Layer,
}

/// What is listed.
trait Entry: Serialize {
    fn name(&self) -> &str;
    fn size(&self) -> u64;
    fn raw_size(&self) -> u64;
    fn place(&self) -> (Option<u32>, Option<u32>);
    fn line(&self, sizes: Sizes) -> String;
}

impl Entry for TensorEntry {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.length
    }

    fn raw_size(&self) -> u64 {
        self.length
    }

    fn place(&self) -> (Option<u32>, Option<u32>) {
        (self.layer, self.expert)
    }

    fn line(&self, sizes: Sizes) -> String {
        text::tensor(self, sizes)
    }
}

impl Entry for SegmentEntry {
    fn name(&self) -> &str {
        &self.id
    }

    fn size(&self) -> u64 {
        self.stored_length
    }

    fn raw_size(&self) -> u64 {
        self.raw_length
    }

    fn place(&self) -> (Option<u32>, Option<u32>) {
        (
            number_after(&self.id, "layers"),
            number_after(&self.id, "experts"),
        )
    }

    fn line(&self, sizes: Sizes) -> String {
        text::segment(self, sizes)
    }
}

/// The number that follows a word of a segment's id.
fn number_after(id: &str, word: &str) -> Option<u32> {
    let mut words = id.split('.').skip_while(|w| *w != word);
    words.nth(1)?.parse().ok()
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let pack = args.pack.open(context)?;
    if args.tensors {
        list(find_tensors(&pack, &args.globs)?, args, context)?;
    } else {
        list(find_segments(&pack, &args.globs)?, args, context)?;
    }
    Ok(Exit::Ok)
}

/// One line for each entry: as the manifest has it with `--json`, otherwise as text.
fn list<T: Entry>(mut entries: Vec<&T>, args: &Args, context: &Context) -> Result<(), StepError> {
    match args.sort {
        Sort::Pack => {}
        Sort::Name => entries.sort_by(|a, b| natural(a.name()).cmp(natural(b.name()))),
        Sort::Size => entries.sort_by_key(|entry| Reverse(entry.size())),
        Sort::Layer => entries.sort_by_key(|entry| entry.place()),
    }
    if args.reverse {
        entries.reverse();
    }
    let sizes = args.sizes.sizes();
    context.terminal.stdout(|out| {
        for entry in &entries {
            if args.json {
                serde_json::to_writer(&mut *out, entry)?;
                writeln!(out)?;
            } else {
                writeln!(out, "{}", entry.line(sizes))?;
            }
        }
        if args.sum {
            let total = Total {
                count: entries.len() as u64,
                stored: entries.iter().map(|e| e.size()).sum(),
                raw: entries.iter().map(|e| e.raw_size()).sum(),
            };
            let what = if args.tensors { "tensor" } else { "segment" };
            writeln!(out, "{}", text::total(total, what, sizes))?;
        }
        Ok(())
    })
}

/// A part of a name, numbers before text where both could stand.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Word<'a> {
    Number(u128, &'a str),
    Text(&'a str),
}

/// The parts of a name between its dots: `layers.10` comes after `layers.9`.
fn natural(name: &str) -> impl Iterator<Item = Word<'_>> {
    name.split('.').map(|word| match word.parse() {
        Ok(number) => Word::Number(number, word),
        Err(_) => Word::Text(word),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_sort_by_their_value() {
        let mut names = [
            "layers.10.a",
            "layers.9.b",
            "layers.9.a",
            "embed",
            "layers.x",
        ];
        names.sort_by(|a, b| natural(a).cmp(natural(b)));
        assert_eq!(
            names,
            [
                "embed",
                "layers.9.a",
                "layers.9.b",
                "layers.10.a",
                "layers.x"
            ]
        );
        assert_eq!(number_after("text.layers.5.experts.17", "layers"), Some(5));
        assert_eq!(
            number_after("text.layers.5.experts.17", "experts"),
            Some(17)
        );
        assert_eq!(number_after("text.layers.5.attention", "experts"), None);
        assert_eq!(number_after("text.layers", "layers"), None);
    }
}
