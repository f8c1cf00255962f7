//! A trace as a reference.

use std::ops::Range;

use segpack_manifests::Pack;
use segpack_manifests::documents::{Finding, FindingKind, Quantity};
use segpack_runtime_min::trace::{Place, Ranked, RecordedFile, Trace, TracePrompt};

use super::Sequence;
use super::compare::{Reference, ReferenceStep};
use crate::steps::StepError;

/// The recorded tokens but the last, which nothing follows, are fed whatever the model would
/// choose.
pub(super) fn sequence(prompt: &TracePrompt) -> Sequence {
    let fed = prompt.generated.len().saturating_sub(1);
    Sequence {
        prompt: prompt.input_ids.clone(),
        forced: prompt.generated[..fed].to_vec(),
        generated: prompt.generated.len(),
        bf16_stable: prompt.bf16_stable,
    }
}

/// Compares the files that a trace was recorded from with those that were packed.
pub(super) fn compare_checkpoint(trace: &Trace, pack: &Pack) -> Vec<Finding> {
    let mut findings: Vec<Finding> = trace
        .checkpoint()
        .iter()
        .filter_map(|(file, recorded)| compare_file(pack, file, recorded))
        .collect();
    let unidentified = |what: &str| Finding::new(FindingKind::UnidentifiedTrace).seen(what);
    let files = trace.checkpoint().iter();
    let weights: Vec<_> = files
        .filter(|(file, _)| file.ends_with(".safetensors"))
        .collect();
    if weights.is_empty() {
        findings.push(unidentified(
            "the trace does not say which weights it was recorded from",
        ));
    } else if !weights
        .iter()
        .any(|(file, recorded)| recorded.sha256.is_some() && digest(pack, file).is_some())
    {
        findings.push(unidentified(
            "the trace or the pack has no digests of weight files; lengths were compared",
        ));
    }
    findings
}

fn digest(pack: &Pack, file: &str) -> Option<segpack_formats::digest::Sha256> {
    pack.manifest()
        .source_files
        .iter()
        .find(|f| f.path == file)?
        .sha256
}

fn compare_file(pack: &Pack, file: &str, recorded: &RecordedFile) -> Option<Finding> {
    let foreign = Finding::new(FindingKind::ForeignTrace).file(file);
    let Some(packed) = pack.manifest().source_files.iter().find(|f| f.path == file) else {
        return Some(foreign.seen("the trace was recorded with this file, which was not packed"));
    };
    if packed.length != recorded.size {
        let foreign = foreign.seen(format!(
            "{} bytes where the trace was recorded",
            recorded.size
        ));
        return Some(foreign.wanted(format!("{} bytes, as packed", packed.length)));
    }
    match (recorded.sha256, packed.sha256) {
        (Some(seen), Some(wanted)) if seen != wanted => {
            let foreign = foreign.seen(format!("SHA-256 {seen} where the trace was recorded"));
            Some(foreign.wanted(format!("{wanted}, as packed")))
        }
        _ => None,
    }
}

/// One prompt of a trace.
pub(super) struct RecordedPrompt<'a> {
    trace: &'a Trace,
    number: usize,
    prompt: &'a TracePrompt,
}

impl<'a> RecordedPrompt<'a> {
    pub(super) fn new(trace: &'a Trace, number: usize) -> Self {
        Self {
            trace,
            number,
            prompt: &trace.prompts()[number],
        }
    }

    fn tokens(&self) -> usize {
        self.prompt.input_ids.len()
    }

    /// Columns of a tensor; 0 where it was not recorded.
    fn columns(&self, name: &str) -> usize {
        let columns = self
            .trace
            .shape(self.number, name)
            .and_then(|shape| shape.get(1).copied());
        usize::try_from(columns.unwrap_or(0)).unwrap_or(usize::MAX)
    }

    /// The generation step that follows a position, if one was recorded.
    fn step_after(&self, position: usize) -> Option<usize> {
        (position + 1)
            .checked_sub(self.tokens())
            .filter(|step| *step < self.prompt.generated.len())
    }
}

fn name(quantity: Quantity, layer: usize) -> String {
    match quantity {
        Quantity::Embedding => "embed".to_owned(),
        Quantity::AttentionOutput => format!("layer.{layer}.attn_out"),
        Quantity::RouterLogits => format!("layer.{layer}.router_logits"),
        Quantity::RouterProbabilities => format!("layer.{layer}.router_probs"),
        Quantity::ExpertWeights => format!("layer.{layer}.topk_weights"),
        Quantity::MlpOutput => format!("layer.{layer}.mlp_out"),
        Quantity::HiddenState => format!("layer.{layer}.hidden"),
        Quantity::FinalNorm => "norm".to_owned(),
        Quantity::Logits => "logits".to_owned(),
        Quantity::LogProbabilities => "top_logprobs".to_owned(),
    }
}

impl Reference for RecordedPrompt<'_> {
    fn floats(
        &self,
        quantity: Quantity,
        layer: usize,
        rows: Range<usize>,
        columns: usize,
    ) -> Result<Option<Vec<f32>>, StepError> {
        if rows.end <= self.tokens() {
            let (name, shape) = (name(quantity, layer), [self.tokens(), columns]);
            return Ok(self.trace.floats(self.number, &name, &shape, rows)?);
        }
        match self.step_after(rows.start) {
            // only with --gen-logits
            Some(step) if quantity == Quantity::Logits => {
                let shape = [self.prompt.generated.len(), columns];
                Ok(self
                    .trace
                    .floats(self.number, "gen.logits", &shape, step..step + 1)?)
            }
            _ => Ok(None),
        }
    }

    fn experts(
        &self,
        layer: usize,
        rows: Range<usize>,
    ) -> Result<Option<Vec<Vec<u32>>>, StepError> {
        let tokens = self.tokens();
        let (name, first, count) = if rows.end <= tokens {
            (format!("layer.{layer}.topk_ids"), 0, tokens)
        } else {
            (
                format!("gen.layer.{layer}.topk_ids"),
                tokens,
                self.prompt.generated.len().saturating_sub(1),
            )
        };
        let best = self.columns(&name);
        let ids = self.trace.ids(
            self.number,
            &name,
            &[count, best],
            rows.start - first..rows.end - first,
        )?;
        Ok(ids
            .filter(|_| best > 0)
            .map(|ids| ids.chunks_exact(best).map(<[u32]>::to_vec).collect()))
    }

    fn step(&self, position: usize) -> Result<Option<ReferenceStep>, StepError> {
        let Some(step) = self.step_after(position) else {
            return Ok(None);
        };
        if self.trace.has_log_probabilities() {
            return Ok(Some(ReferenceStep {
                token: self.prompt.generated[step],
                top: Vec::new(),
            }));
        }
        let shape = [self.prompt.generated.len(), self.columns("gen.top_ids")];
        let row = step..step + 1;
        let ids = self
            .trace
            .ids(self.number, "gen.top_ids", &shape, row.clone())?
            .unwrap_or_default();
        let logits = self
            .trace
            .floats(self.number, "gen.top_logits", &shape, row)?
            .unwrap_or_default();
        let top = ids.into_iter().zip(logits).collect();
        Ok(Some(ReferenceStep {
            token: self.prompt.generated[step],
            top,
        }))
    }

    fn ranked(&self, position: usize) -> Result<Option<Vec<Ranked>>, StepError> {
        if !self.trace.has_log_probabilities() {
            return Ok(None);
        }
        Ok(Some(match self.step_after(position) {
            Some(step) => self.trace.ranked(self.number, Place::Step(step))?,
            None if position + 1 < self.tokens() => {
                self.trace.ranked(self.number, Place::Prompt(position))?
            }
            None => Vec::new(),
        }))
    }

    fn router_margin(&self) -> Option<f64> {
        self.prompt.min_router_margin
    }
}
