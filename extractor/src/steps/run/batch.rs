//! Many prompts through one model.

use std::ops::ControlFlow;

use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::documents::{BatchSummary, GENERATOR, PromptResult};
use segpack_runtime_min::session::{
    BatchOutcome, BatchPrompt, BatchSink, BatchText, GenerationSettings, Session, SessionError,
    SessionOptions,
};
use segpack_runtime_min::weights::Residency;

use super::PhaseProgress;
use super::prompts::{FilePrompt, PromptsOptions, read};
use super::summary::{costs, layer_experts, peak_rss, run_end, text_experts};
use crate::steps::StepError;
use crate::work::Progress;

/// Who gets the result of each prompt, in their order; what it returns as an error ends the run.
pub type ResultListener<'a> = dyn FnMut(&PromptResult) -> Result<(), StepError> + Send + 'a;

/// Continues the prompts of a file: as many at a time as the memory budget has room for. Each text is
/// the same as if it were made alone.
///
/// # Errors
/// A line that is no prompt, before anything is computed; a pack that cannot be run or is damaged;
/// too little memory; whatever `listener` returns.
pub fn run_prompts(
    pack: &Pack,
    prompts: &PromptsOptions,
    (options, settings): (&SessionOptions, &GenerationSettings),
    stop: &CancelToken,
    progress: &dyn Progress,
    listener: &mut ResultListener<'_>,
) -> Result<BatchSummary, StepError> {
    let session = Session::open_cancellable(pack, options, stop)?;
    let text = session.text()?;
    let read = session.install(|| read(prompts, &text, settings))?;
    let all: Vec<BatchPrompt> = read.iter().map(|one| one.prompt.clone()).collect();
    let mut results = Results {
        prompts: &read,
        restricted: options.experts.is_some(),
        listener,
        failure: None,
    };
    let progress = PhaseProgress(progress);
    let outcome = session.generate_batch(&text, &all, &progress, &mut results);
    if let Some(failure) = results.failure {
        return Err(failure);
    }
    match outcome {
        Ok(outcome) => Ok(summary(&session, &read, outcome)),
        Err(SessionError::InBatch { number, source }) => {
            let line = read.get(number).map_or(0, |one| one.line);
            Err(prompts.refused(line, *source).into())
        }
        Err(e) => Err(e.into()),
    }
}

/// Makes documents of texts.
struct Results<'r, 'l> {
    prompts: &'r [FilePrompt],
    /// Whether routers may choose among some experts only.
    restricted: bool,
    listener: &'r mut ResultListener<'l>,
    failure: Option<StepError>,
}

impl BatchSink for Results<'_, '_> {
    fn text(&mut self, number: usize, text: BatchText) -> ControlFlow<()> {
        let Some(prompt) = self.prompts.get(number) else {
            return ControlFlow::Break(());
        };
        let result = PromptResult {
            line: prompt.line as u64,
            id: prompt.id.clone(),
            prompt_tokens: prompt.prompt.ids.len() as u64,
            ids: text.ids,
            text: text.text,
            stop_reason: run_end(text.stop_reason),
            stop_string: text.stop_string,
            restricted: self.restricted,
        };
        self.failure = (self.listener)(&result).err();
        match self.failure {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        }
    }
}

fn summary(session: &Session<'_>, prompts: &[FilePrompt], outcome: BatchOutcome) -> BatchSummary {
    let stats = &outcome.stats;
    let generated = usize::try_from(outcome.generated_tokens).unwrap_or(usize::MAX);
    BatchSummary {
        format_version: BatchSummary::VERSION,
        generator: GENERATOR.to_owned(),
        device: session.device_name(),
        prompts: prompts.len() as u64,
        prompt_tokens: outcome.prompt_tokens,
        generated_tokens: outcome.generated_tokens,
        passes: outcome.passes,
        most_sequences: outcome.most_sequences,
        seconds: outcome.time.as_secs_f64(),
        notes: outcome.notes.iter().map(ToString::to_string).collect(),
        bytes_read: stats.bytes_read,
        expert_hits: stats.cache.hits,
        expert_misses: stats.cache.misses,
        expert_slots: outcome.budget.slots,
        dense_resident: outcome.budget.residency == Residency::Resident,
        peak_rss: peak_rss(),
        // each of them is behind what is read for it
        costs: costs(stats, 0, generated.saturating_add(1)),
        experts: layer_experts(stats, text_experts(session)),
        restricted_experts: outcome.restricted_experts,
    }
}
