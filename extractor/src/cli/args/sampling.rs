use std::num::NonZeroUsize;

use segpack_runtime_min::generate::{DraftLookup, SamplingOptions};

use super::SAMPLING;
use super::values::{draft_length, stop_string};

/// How tokens are chosen, and what ends a text.
#[derive(Debug, clap::Args)]
pub(crate) struct SamplingArgs {
    /// Always take the most likely token (the default)
    #[arg(
        long,
        conflicts_with_all = ["temperature", "top_k", "top_p", "seed"],
        help_heading = SAMPLING
    )]
    greedy: bool,
    /// Sample, with logits divided by this temperature
    #[arg(long, value_name = "T", allow_negative_numbers = true, help_heading = SAMPLING)]
    temperature: Option<f64>,
    /// Sample from the K most likely tokens
    #[arg(long, value_name = "K", help_heading = SAMPLING)]
    top_k: Option<usize>,
    /// Sample from the smallest set of tokens with a total probability of at least P
    #[arg(long, value_name = "P", allow_negative_numbers = true, help_heading = SAMPLING)]
    top_p: Option<f64>,
    /// Seed of the random number generator [default: 0]
    #[arg(long, value_name = "N", help_heading = SAMPLING)]
    seed: Option<u64>,
    /// End the text before this string; repeatable
    #[arg(long, value_name = "TEXT", value_parser = stop_string, help_heading = SAMPLING)]
    pub stop: Vec<String>,
    /// Guess up to N tokens from what followed the same words before, and check them in one forward
    /// pass: the same text, faster where it quotes itself or the prompt; on the CPU alone
    #[arg(long, value_name = "N", value_parser = draft_length, help_heading = SAMPLING)]
    pub draft_lookup: Option<NonZeroUsize>,
}

impl SamplingArgs {
    /// Random sampling, where one of its options is there; `None`: greedy.
    pub(crate) fn options(&self) -> Option<SamplingOptions> {
        let is_random = self.temperature.is_some()
            || self.top_k.is_some()
            || self.top_p.is_some()
            || self.seed.is_some();
        let mut sampling =
            SamplingOptions::new(self.temperature.unwrap_or(1.0), self.seed.unwrap_or(0));
        (sampling.top_k, sampling.top_p) = (self.top_k, self.top_p);
        is_random.then_some(sampling)
    }

    /// How drafts are made, where they are wanted.
    pub(crate) fn drafts(&self) -> Option<DraftLookup> {
        self.draft_lookup.map(DraftLookup::new)
    }
}
