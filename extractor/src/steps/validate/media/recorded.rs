//! A trace of media as a reference.

use std::collections::BTreeMap;
use std::ops::Range;

use segpack_formats::digest::Sha256;
use segpack_manifests::Pack;
use segpack_manifests::documents::{Finding, FindingKind, Quantity, Stage};
use segpack_manifests::folder::source_file;
use segpack_runtime_min::processing::audio;
use segpack_runtime_min::processing::media::{AudioSettings, VisualSettings};
use segpack_runtime_min::trace::{MediaTrace, Normalization};

use super::MediaRun;
use super::stages::{Allowed, Stages};
use crate::steps::StepError;
use crate::steps::validate::ValidateError;
use crate::steps::validate::compare::{Reference, ReferenceStep};

/// Differences that are allowed of a log-mel spectrogram: a value, and the mean of all.
const FEATURES: [f64; 2] = [3e-4, 3e-6];

/// Compares the files that a trace was recorded from with those that were packed.
pub(in crate::steps::validate) fn compare_checkpoint(
    checkpoint: &BTreeMap<String, Sha256>,
    pack: &Pack,
) -> Vec<Finding> {
    let files = &pack.manifest().source_files;
    let mut findings = Vec::new();
    let mut compared = 0;
    for (file, recorded) in checkpoint {
        let foreign = Finding::new(FindingKind::ForeignTrace).file(file);
        let Some(packed) = files.iter().find(|f| f.path == *file) else {
            findings
                .push(foreign.seen("the trace was recorded with this file, which was not packed"));
            continue;
        };
        match packed.sha256 {
            Some(wanted) if wanted != *recorded => {
                let foreign =
                    foreign.seen(format!("SHA-256 {recorded} where the trace was recorded"));
                findings.push(foreign.wanted(format!("{wanted}, as packed")));
            }
            Some(_) if file.ends_with(".safetensors") => compared += 1,
            _ => {}
        }
    }
    if compared == 0 && findings.is_empty() {
        let what = "the trace does not say which weights it was recorded from";
        findings.push(Finding::new(FindingKind::UnidentifiedTrace).seen(what));
    }
    findings
}

/// How patches are normalised that were recorded as 8-bit numbers.
pub(super) fn normalization(
    pack: &Pack,
    trace: &MediaTrace,
) -> Result<Option<Normalization>, StepError> {
    let is_needed = ["image.patches", "video.patches"]
        .iter()
        .any(|name| trace.shape(name).is_some());
    if !is_needed {
        return Ok(None);
    }
    let settings = VisualSettings::load(&|name: &str| source_file(pack, name));
    let settings = settings.map_err(|source| ValidateError::Processor { source })?;
    Ok(Some(Normalization {
        mean: settings.mean,
        std: settings.std,
    }))
}

/// Compares what comes before the encoders.
pub(super) fn processing(run: &MediaRun<'_>, stages: &mut Stages) -> Result<(), StepError> {
    let pack = run.session.pack();
    let Some(lengths) = run.trace.integers("audio.lengths")? else {
        return Ok(());
    };
    // samples of all clips, or of none: they are padded to the longest
    let mut clips = Vec::new();
    for clip in 0..lengths.len() {
        match run.trace.floats(&format!("audio.samples.{clip}"))? {
            Some(samples) => clips.push(samples),
            None => return Ok(()),
        }
    }
    let settings = AudioSettings::load(&|name: &str| source_file(pack, name));
    let settings = settings.map_err(|source| ValidateError::Processor { source })?;
    let features = run.session.install(|| audio::features(&clips, &settings));
    let features = features.map_err(|source| ValidateError::Audio { source })?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "compared as the other stages are"
    )]
    let [seen, wanted]: [Vec<f32>; 2] = [
        features.lengths.iter().map(|n| *n as f32).collect(),
        lengths.iter().map(|n| *n as f32).collect(),
    ];
    let exact = Allowed::max(Some(0.0));
    stages.compare(Stage::AudioLengths, None, &seen, &wanted, exact);
    if let Some(wanted) = run.trace.floats("audio.features")? {
        let [max, mean] = FEATURES;
        let allowed = run.allowed(max).with_mean(mean);
        stages.compare(
            Stage::AudioFeatures,
            None,
            &features.values,
            &wanted,
            allowed,
        );
    }
    Ok(())
}

/// The decoder's part of a trace.
pub(super) struct RecordedMedia<'t> {
    trace: &'t MediaTrace,
}

impl<'t> RecordedMedia<'t> {
    pub(super) fn new(trace: &'t MediaTrace) -> Self {
        Self { trace }
    }

    fn tokens(&self) -> usize {
        self.trace.ids().len()
    }

    /// Rows of a tensor that has them for the last of the prompt's tokens, or for all.
    fn rows(&self, name: &str, rows: Range<usize>) -> Result<Option<Vec<f32>>, StepError> {
        let Some(shape) = self.trace.shape(name) else {
            return Ok(None);
        };
        let [count, _] = shape[..] else {
            return Ok(None);
        };
        let Some(first) = self.tokens().checked_sub(count) else {
            return Ok(None);
        };
        let within = rows
            .start
            .checked_sub(first)
            .zip(rows.end.checked_sub(first));
        let Some((start, end)) = within else {
            return Ok(None);
        };
        Ok(self.trace.float_rows(name, start..end)?)
    }
}

impl Reference for RecordedMedia<'_> {
    fn floats(
        &self,
        quantity: Quantity,
        layer: usize,
        rows: Range<usize>,
        columns: usize,
    ) -> Result<Option<Vec<f32>>, StepError> {
        if rows.end > self.tokens() {
            return Ok(None); // of the tokens after the prompt only the ids are recorded
        }
        let name = match quantity {
            Quantity::Embedding => "embeds".to_owned(),
            Quantity::RouterLogits => format!("layer.{layer}.router_logits"),
            Quantity::HiddenState => format!("layer.{layer}.hidden"),
            Quantity::FinalNorm => "norm".to_owned(),
            Quantity::Logits if self.trace.shape("logits").is_none() => "logits_tail".to_owned(),
            Quantity::Logits => "logits".to_owned(),
            Quantity::AttentionOutput
            | Quantity::RouterProbabilities
            | Quantity::ExpertWeights
            | Quantity::MlpOutput
            | Quantity::LogProbabilities => return Ok(None),
        };
        let count = rows.len() * columns;
        let values = self.rows(&name, rows)?;
        if let Some(values) = &values
            && quantity != Quantity::Embedding
            && values.len() != count
        {
            return Err(ValidateError::TraceShape {
                trace: self.trace.path().to_owned(),
                tensor: format!("mm.{name}"),
                wanted: columns,
            }
            .into());
        }
        Ok(values)
    }

    fn experts(
        &self,
        layer: usize,
        rows: Range<usize>,
    ) -> Result<Option<Vec<Vec<u32>>>, StepError> {
        let name = format!("layer.{layer}.topk_ids");
        let (Some(shape), true) = (self.trace.shape(&name), rows.end <= self.tokens()) else {
            return Ok(None);
        };
        let (Some(ids), [_, best]) = (self.trace.token_ids(&name)?, &shape[..]) else {
            return Ok(None);
        };
        let best = (*best).max(1);
        let ids = ids.get(rows.start * best..rows.end * best);
        Ok(ids.map(|ids| ids.chunks_exact(best).map(<[u32]>::to_vec).collect()))
    }

    fn step(&self, position: usize) -> Result<Option<ReferenceStep>, StepError> {
        let step = (position + 1).checked_sub(self.tokens());
        let token = step.and_then(|step| self.trace.generated().get(step));
        Ok(token.map(|token| ReferenceStep {
            token: *token,
            top: Vec::new(),
        }))
    }

    fn router_margin(&self) -> Option<f64> {
        self.trace.min_router_margin()
    }
}
