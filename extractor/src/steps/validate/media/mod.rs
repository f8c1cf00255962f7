//! Compares a pack with a trace of a prompt with audio, images or videos, stage by stage. Each stage
//! gets what the reference had before it, so that a fault in one does not hide one in the next.

mod against;
mod pictures;
mod recorded;
mod stages;

use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    Finding, FindingKind, Quantity, ReferenceKind, Stage, StageRow, ValidateReport, Verdict,
};
use segpack_manifests::families::MediaFacts;
use segpack_runtime_min::models::omni::{self, EncodedMedia, Layout};
use segpack_runtime_min::processing::MediaFeatures;
use segpack_runtime_min::session::{Logits, MediaInputs, Model, Reservation, Session};
use segpack_runtime_min::tensor::Compute;
use segpack_runtime_min::trace::MediaTrace;
use segpack_runtime_min::{RunError, Unsuitable};

pub(super) use self::against::against_direct;
use self::recorded::RecordedMedia;
pub(super) use self::recorded::compare_checkpoint;
use self::stages::EncoderStages;
pub(super) use self::stages::{Allowed, Stages};
use super::compare::{Comparer, Reference, Tally};
use super::custody;
use super::{Sequence, ValidateSettings, empty_report, judge, tolerance};
use crate::steps::StepError;
use crate::work::Progress;

/// Difference that is allowed of what an encoder gives, and of merged embeddings.
const ROWS: f64 = 5e-5;
/// Difference that is allowed inside an encoder.
const LAYERS: f64 = 1e-4;
/// Difference that is allowed of a logit, of a decoder of few layers: three-dimensional positions
/// and added rows make it differ more than text does.
const LOGITS: f64 = 5e-4;

/// Compares all stages.
pub(super) fn against_media(
    pack: &Pack,
    trace: &MediaTrace,
    settings: &ValidateSettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<ValidateReport, StepError> {
    let mut report = empty_report(pack, ReferenceKind::Trace, trace.path(), trace.compute())?;
    report.level = trace.level().map(ToOwned::to_owned);
    let is_judged = trace.compute() == Compute::F32;
    report.tolerance = is_judged.then(|| f64::max(LOGITS, tolerance(report.layers)));
    if settings.digests {
        custody::check(&mut report, trace.exported_from(), pack, || {
            recorded::compare_checkpoint(trace.checkpoint(), pack)
        });
        if report.verdict == Verdict::Foreign {
            return Ok(report);
        }
    }
    let mut options = settings.session.clone();
    options.compute = trace.compute();
    let session = Session::open_cancellable(pack, &options, stop)?;
    let run = MediaRun {
        trace,
        session: &session,
        excused: report.tolerance.unwrap_or_else(|| tolerance(report.layers)),
        is_judged,
        progress,
    };
    let mut stages = Stages::default();
    let sequence = run.sequence();
    let tally = run.compare(&sequence, &mut stages)?;
    report.stages = stages.into_rows();
    report_stages(&mut report.findings, &report.stages);
    let mut report = judge(report, &tally, &[sequence]);
    // embeddings have a stage of their own
    let is_embedding = |quantity: &Quantity| *quantity == Quantity::Embedding;
    report.values.retain(|row| !is_embedding(&row.quantity));
    report
        .not_compared
        .retain(|what| what != Quantity::Embedding.text());
    report.first_wrong = report
        .first_wrong
        .filter(|first| !is_embedding(&first.quantity));
    Ok(report)
}

/// What is out of its gate, first things first.
pub(super) fn report_stages(findings: &mut Vec<Finding>, stages: &[StageRow]) {
    for row in stages.iter().filter(|row| !row.ok) {
        let number = row
            .number
            .map_or(String::new(), |number| format!(" {number}"));
        let by = match (row.not_finite, row.max_abs) {
            (0, 0.0) => "have another number of values".to_owned(),
            (0, by) => format!("differ by up to {by:.3e}, {:.3e} on average", row.mean_abs),
            (count, _) => format!("have {count} values that are not finite"),
        };
        let finding = Finding::new(FindingKind::DiffersFromReference)
            .seen(format!("{}{number} {by}", row.stage.text()));
        let wanted = match (row.max_allowed, row.mean_allowed) {
            (Some(max), Some(mean)) => format!("at most {max:.1e}, {mean:.1e} on average"),
            (Some(0.0), None) => "the same".to_owned(),
            (Some(max), None) => format!("at most {max:.1e}"),
            (None, _) => "finite values".to_owned(),
        };
        findings.push(finding.wanted(wanted));
    }
}

/// A run that is compared.
struct MediaRun<'a> {
    trace: &'a MediaTrace,
    session: &'a Session<'a>,
    /// Gap of the reference's up to which a token that differs does not count.
    excused: f64,
    is_judged: bool,
    progress: &'a dyn Progress,
}

impl MediaRun<'_> {
    /// The prompt, and the recorded tokens after it but the last.
    fn sequence(&self) -> Sequence {
        let generated = self.trace.generated();
        let fed = generated.len().saturating_sub(1);
        Sequence {
            prompt: self.trace.ids().to_vec(),
            forced: generated[..fed].to_vec(),
            generated: generated.len(),
            bf16_stable: false,
        }
    }

    /// What the prompt has first.
    fn medium(&self) -> &'static str {
        let has = |name: &str| self.trace.shape(name).is_some();
        match () {
            () if has("audio.features") => "audio",
            () if has("image.grid") => "images",
            () => "videos",
        }
    }

    fn allowed(&self, max: f64) -> Allowed {
        Allowed::max(self.is_judged.then_some(max))
    }

    fn compare(&self, sequence: &Sequence, stages: &mut Stages) -> Result<Tally, StepError> {
        let Some(facts) = self.session.media_facts()? else {
            let medium = self.medium();
            return Err(RunError::from(Unsuitable::TextOnly { medium }).into());
        };
        let features = self
            .trace
            .features(recorded::normalization(self.session.pack(), self.trace)?)?;
        // whether the model takes such media comes before how they are processed
        let layout = omni::layout(&facts, self.trace.ids(), &features)?;
        self.progress.note("processing");
        recorded::processing(self, stages)?;
        for (kind, wanted) in pictures::KINDS
            .into_iter()
            .zip([&features.images, &features.videos])
        {
            pictures::compare(self, kind, wanted, stages)?;
        }
        self.progress.note("encoders");
        let mut observers = EncoderStages::new(self.trace, self.is_judged);
        let own = self
            .session
            .encode(self.trace.ids(), &features, &mut observers)?;
        observers.into_stages(stages)?;
        self.positions(&layout, stages)?;
        let recorded = self.recorded_rows(&facts, layout, &features)?;
        let inputs = recorded.unwrap_or(own);
        self.progress.note("decoder");
        self.decoder(sequence, &inputs, stages)
    }

    /// Positions are compared to the last bit.
    fn positions(&self, layout: &Layout, stages: &mut Stages) -> Result<(), StepError> {
        let axes = (0..3).flat_map(|axis| layout.positions.iter().map(move |place| place[axis]));
        let seen: Vec<f32> = axes.collect();
        let exact = Allowed::max(Some(0.0));
        if let Some(wanted) = self.trace.floats("position_ids")? {
            stages.compare(Stage::Positions, None, &seen, &wanted, exact);
        }
        if let Some(wanted) = self.trace.floats("rope_delta")? {
            stages.compare(
                Stage::RopeDelta,
                None,
                &[layout.rope_delta()],
                &wanted,
                exact,
            );
        }
        Ok(())
    }

    /// The rows that the reference's encoders gave, where all of them were recorded: a fault in our
    /// own is not to show in the decoder.
    fn recorded_rows(
        &self,
        facts: &MediaFacts,
        layout: Layout,
        features: &MediaFeatures,
    ) -> Result<Option<MediaInputs>, StepError> {
        let features_of = [&features.images, &features.videos].map(|f| f.grids.len());
        let mut encoded = EncodedMedia::default();
        if !features.audio.lengths.is_empty() {
            let Some(rows) = self.trace.floats("audio.out")? else {
                return Ok(None);
            };
            encoded.audio = rows;
        }
        let visual = [&mut encoded.images, &mut encoded.videos];
        for ((kind, count), to) in ["image", "video"].iter().zip(features_of).zip(visual) {
            if count == 0 {
                continue;
            }
            let Some(rows) = self.trace.floats(&format!("{kind}.out"))? else {
                return Ok(None);
            };
            to.rows = rows;
            for k in 0..facts.vision.deepstack.len() {
                let Some(rows) = self.trace.floats(&format!("{kind}.deepstack.{k}"))? else {
                    return Ok(None);
                };
                to.deepstack.push(rows);
            }
        }
        Ok(Some(omni::merge(facts, self.trace.ids(), layout, encoded)?))
    }

    /// The prompt in one forward pass, then the recorded tokens one by one.
    fn decoder(
        &self,
        sequence: &Sequence,
        inputs: &MediaInputs,
        stages: &mut Stages,
    ) -> Result<Tally, StepError> {
        let reservation = Reservation {
            positions: sequence.prompt.len() + sequence.forced.len(),
            longest_pass: sequence.prompt.len(),
        };
        let reference = RecordedMedia::new(self.trace);
        let embedded = reference.floats(Quantity::Embedding, 0, 0..sequence.prompt.len(), 1)?;
        let allowed = self.allowed(ROWS);
        self.session
            .with_model_beside(reservation, inputs.bytes(), |model| {
                let facts = model.facts().clone();
                let mut tally = Tally::default();
                let mut seen = Vec::new();
                let mut comparer = Comparer {
                    reference: &reference,
                    facts: &facts,
                    tally: &mut tally,
                    prompt: 0,
                    tokens: sequence.prompt.len(),
                    position: 0,
                    tolerance: self.excused,
                    failure: None,
                    embedded: Some(&mut seen),
                };
                prompt(&mut comparer, model, &sequence.prompt, inputs)?;
                for id in &sequence.forced {
                    comparer.forward(model, &[*id])?;
                }
                if let Some(wanted) = &embedded {
                    stages.compare(Stage::Embeddings, None, &seen, wanted, allowed);
                }
                Ok(tally)
            })
    }
}

fn prompt(
    comparer: &mut Comparer<'_>,
    model: &mut Model<'_>,
    ids: &[u32],
    inputs: &MediaInputs,
) -> Result<(), StepError> {
    let logits = model.forward_media(ids, inputs, Logits::All, comparer)?;
    comparer.embedded = None;
    comparer.compare_logits(&logits, ids.len())
}
