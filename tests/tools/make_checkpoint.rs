//! Writes a checkpoint of the shape of Qwen3-Omni-30B-A3B: the whole of it as sparse files, or
//! full-width subsets with noise in them, for benchmarks.

#![allow(missing_docs, dead_code, unreachable_pub, clippy::expect_used)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bits of random numbers"
)]

#[path = "../support/checkpoint.rs"]
mod checkpoint;

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Parser, ValueEnum};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fill {
    None,
    Pattern,
}

#[derive(Parser)]
#[command(about, name = "make_checkpoint")]
struct Arguments {
    /// The folder to write.
    out: PathBuf,
    /// Decoder layers of the thinker (and of the talker, where --talker-layers is not given).
    #[arg(long)]
    layers: Option<u64>,
    /// Decoder layers of the talker.
    #[arg(long)]
    talker_layers: Option<u64>,
    /// Blocks of the audio and of the vision tower.
    #[arg(long, value_parser = clap::value_parser!(u64).range(3..))]
    tower_layers: Option<u64>,
    /// No talker, no code2wav: the shape of Thinking and Captioner.
    #[arg(long)]
    thinker_only: bool,
    /// What tensors hold: nothing (sparse files) or noise with the statistics of real weights.
    #[arg(long, value_enum, default_value = "none")]
    fill: Fill,
    /// Seed of the noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Tensor bytes of a shard, where layers are left out.
    #[arg(long, default_value_t = checkpoint::SHARD_LIMIT)]
    limit: u64,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    let options = checkpoint::Options {
        layers: arguments.layers,
        talker_layers: arguments.talker_layers.or(arguments.layers),
        tower_layers: arguments.tower_layers,
        thinker_only: arguments.thinker_only,
        noise: (arguments.fill == Fill::Pattern).then_some(arguments.seed),
        limit: arguments.limit,
    };
    let start = Instant::now();
    let totals = checkpoint::write(&arguments.out, &options)?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{} tensors, {} shards, {} bytes, {seconds:.1} s",
        totals.tensors, totals.shards, totals.bytes
    );
    Ok(())
}
