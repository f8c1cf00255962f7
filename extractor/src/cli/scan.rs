use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::ValueEnum;
use segpack_manifests::documents::{Finding, Inventory};

use super::Context;
use super::terminal::{counted, grouped, table};
use crate::steps::Exit;
use crate::steps::scan::{ScanOptions, scan};

/// Show what a checkpoint holds, and whether it is complete
///
/// Reads headers and config.json only. Classifies every tensor, derives from config.json every
/// tensor that the architecture needs, and names each one that is missing, extra or misshaped.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack scan ./Qwen3-Omni-30B-A3B-Instruct
  segpack scan Qwen/Qwen3-Omni-30B-A3B-Instruct      from the local hub cache
  segpack scan model --json | jq '.classes[] | select(.class == \"norms\")'")]
pub struct Args {
    /// A checkpoint folder, a .safetensors file, or a repo id (OWNER/NAME[@REVISION]) in the local
    /// hub cache
    #[arg(value_name = "CKPT")]
    checkpoint: PathBuf,
    /// Print one JSON document (schemas/inventory.schema.json)
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tolerate: Tolerate,
}

/// What to do with things that do not belong.
#[derive(Debug, clap::Args)]
pub struct Tolerate {
    /// What to do with weight files that the index does not name
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    extra: Extra,
    /// Accept tensors that no rule names; they are packed on their own
    #[arg(long)]
    allow_unclassified: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Extra {
    /// They are errors
    Refuse,
    /// They are stored verbatim
    Keep,
}

impl Tolerate {
    pub fn options(&self) -> ScanOptions {
        ScanOptions {
            keep_extra: self.extra == Extra::Keep,
            allow_unclassified: self.allow_unclassified,
        }
    }
}

pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let (checkpoint, inventory) = scan(&args.checkpoint, args.tolerate.options())?;
    let (root, ok) = (
        checkpoint.root.display().to_string(),
        !Finding::any_error(&inventory.findings),
    );
    context.terminal.report(&inventory, ok, args.json, |out| {
        print(&inventory, &root, context, out)
    })
}

fn print(
    inventory: &Inventory,
    root: &str,
    context: &Context,
    out: &mut dyn Write,
) -> io::Result<()> {
    let family = inventory
        .family
        .map_or("unknown family".to_owned(), |f| f.to_string());
    write!(
        out,
        "{root}: {family}, {}",
        counted(inventory.shards.len() as u64, "shard")
    )?;
    if let Some(repo) = &inventory.provenance.repo {
        write!(out, ", {repo}")?;
    }
    if let Some(revision) = &inventory.provenance.revision {
        write!(out, " @ {revision}")?;
    }
    writeln!(out, "\n")?;
    print_table(inventory, out)?;
    let counts = &inventory.counts;
    writeln!(out)?;
    writeln!(out, "{} stored tensors", grouped(counts.stored_tensors))?;
    writeln!(
        out,
        "{} logical parameters, once each layer's experts are stacked (gate and up, down)",
        grouped(counts.logical_parameters)
    )?;
    let verdict = match (inventory.audited, Finding::any_error(&inventory.findings)) {
        (true, false) => "complete: every tensor that config.json demands is there, with its shape",
        (false, false) => "not audited: whether tensors are missing is unknown",
        (_, true) => "NOT usable as it is:",
    };
    writeln!(out, "{verdict}")?;
    context.terminal.findings(&inventory.findings, out)
}

/// Rows by component and class, then sums by model part.
fn print_table(inventory: &Inventory, out: &mut dyn Write) -> io::Result<()> {
    let row = |name: &str, class: &str, [tensors, parameters, bytes]: [u64; 3]| {
        vec![
            name.to_owned(),
            class.to_owned(),
            grouped(tensors),
            grouped(parameters),
            grouped(bytes),
        ]
    };
    let mut rows = Vec::new();
    let mut parts: BTreeMap<&str, [u64; 3]> = BTreeMap::new();
    for c in &inventory.classes {
        rows.push(row(
            c.component.as_str(),
            &c.class.to_string(),
            [c.tensors, c.parameters, c.bytes],
        ));
        let part = c.component.as_str().split('.').next().unwrap_or_default();
        let sum = parts.entry(part).or_default();
        *sum = [sum[0] + c.tensors, sum[1] + c.parameters, sum[2] + c.bytes];
    }
    rows.push(vec![String::new(); 5]);
    rows.extend(
        parts
            .into_iter()
            .rev()
            .map(|(part, sum)| row(part, "all", sum)),
    );
    let counts = &inventory.counts;
    rows.push(row(
        "total",
        "all",
        [
            counts.stored_tensors,
            counts.parameters,
            counts.tensor_bytes,
        ],
    ));
    writeln!(
        out,
        "{}",
        table(
            2,
            &["component", "class", "tensors", "parameters", "bytes"],
            rows
        )
    )
}
