//! Differences of stages, and what is allowed of each.

use segpack_manifests::documents::{Stage, StageRow};
use segpack_runtime_min::models::encoder::{EncoderObserver, EncoderStage};
use segpack_runtime_min::session::MediaObserver;
use segpack_runtime_min::trace::MediaTrace;

use super::{LAYERS, ROWS};
use crate::steps::StepError;

/// What is allowed.
#[derive(Debug, Clone, Copy)]
pub(in crate::steps::validate) struct Allowed {
    max: Option<f64>,
    mean: Option<f64>,
}

impl Allowed {
    /// A maximum difference; nothing is judged where there is none.
    pub(in crate::steps::validate) fn max(max: Option<f64>) -> Self {
        Self { max, mean: None }
    }

    /// A mean difference besides.
    pub(super) fn with_mean(self, mean: f64) -> Self {
        Self {
            mean: self.max.map(|_| mean),
            ..self
        }
    }
}

/// The rows of the report.
#[derive(Debug, Default)]
pub(in crate::steps::validate) struct Stages {
    rows: Vec<StageRow>,
}

impl Stages {
    /// In the order of the calculation.
    pub(in crate::steps::validate) fn into_rows(mut self) -> Vec<StageRow> {
        self.rows.sort_by_key(|row| (row.stage, row.number));
        self.rows
    }

    /// Compares values. Another number of them is never within what is allowed.
    pub(in crate::steps::validate) fn compare(
        &mut self,
        stage: Stage,
        number: Option<u32>,
        seen: &[f32],
        wanted: &[f32],
        allowed: Allowed,
    ) {
        let count = seen.len().min(wanted.len());
        let (mut unequal, mut not_finite) = (seen.len().max(wanted.len()) - count, 0);
        let (mut max_abs, mut sum) = (0.0, 0.0);
        for (seen, wanted) in seen.iter().zip(wanted) {
            if !(seen.is_finite() && wanted.is_finite()) {
                not_finite += 1; // also where both are: nothing was compared
                continue;
            }
            let difference = (f64::from(*seen) - f64::from(*wanted)).abs();
            unequal += usize::from(difference > 0.0);
            max_abs = f64::max(max_abs, difference);
            sum += difference;
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of values")]
        let mean_abs = sum / count.max(1) as f64;
        let is_within = allowed.max.is_none_or(|max| max_abs <= max)
            && allowed.mean.is_none_or(|mean| mean_abs <= mean);
        self.rows.push(StageRow {
            stage,
            number,
            values: count as u64,
            unequal: unequal as u64,
            not_finite,
            max_abs,
            mean_abs,
            max_allowed: allowed.max,
            mean_allowed: allowed.mean,
            ok: is_within && not_finite == 0 && seen.len() == wanted.len(),
        });
    }
}

/// Which encoder, and what it encodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Audio,
    Image,
    Video,
}

impl Kind {
    /// The stage, its number and the tensor of the trace.
    fn of(self, stage: EncoderStage) -> (Stage, Option<usize>, String) {
        let (kind, input) = match self {
            Self::Audio => ("audio", "conv"),
            Self::Image => ("image", "embed"),
            Self::Video => ("video", "embed"),
        };
        let [first, layer, deepstack, rows] = match self {
            Self::Audio => [
                Stage::AudioInput,
                Stage::AudioLayer,
                Stage::AudioRows,
                Stage::AudioRows,
            ],
            Self::Image => [
                Stage::ImageInput,
                Stage::ImageLayer,
                Stage::ImageDeepstack,
                Stage::ImageRows,
            ],
            Self::Video => [
                Stage::VideoInput,
                Stage::VideoLayer,
                Stage::VideoDeepstack,
                Stage::VideoRows,
            ],
        };
        match stage {
            EncoderStage::Input => (first, None, format!("{kind}.{input}")),
            EncoderStage::Block(n) => (layer, Some(n), format!("{kind}.layer.{n}")),
            EncoderStage::Deepstack(k) => (deepstack, Some(k), format!("{kind}.deepstack.{k}")),
            EncoderStage::Output => (rows, None, format!("{kind}.out")),
        }
    }
}

/// What encoders are compared with.
pub(super) trait StageReference: Sync {
    /// A tensor by the name that a trace has for it; `None`: it is not there.
    fn floats(&self, name: &str) -> Result<Option<Vec<f32>>, StepError>;

    /// What gates are multiplied by for these values.
    fn scale(&self, _wanted: &[f32]) -> f64 {
        1.0
    }
}

impl StageReference for MediaTrace {
    fn floats(&self, name: &str) -> Result<Option<Vec<f32>>, StepError> {
        Ok(MediaTrace::floats(self, name)?)
    }
}

/// Compares what one encoder computes.
struct Encoder<'t> {
    reference: &'t dyn StageReference,
    kind: Kind,
    is_judged: bool,
    stages: Stages,
    /// What went wrong with the reference; an observer cannot fail.
    failure: Option<StepError>,
}

impl EncoderObserver for Encoder<'_> {
    fn stage(&mut self, stage: EncoderStage, values: &[f32]) {
        let (row, number, name) = self.kind.of(stage);
        let gate = match stage {
            EncoderStage::Input | EncoderStage::Block(_) => LAYERS,
            EncoderStage::Deepstack(_) | EncoderStage::Output => ROWS,
        };
        match self.reference.floats(&name) {
            Ok(None) => {}
            Ok(Some(wanted)) => {
                let number = number.and_then(|n| u32::try_from(n).ok());
                let gate = gate * self.reference.scale(&wanted);
                let allowed = Allowed::max(self.is_judged.then_some(gate));
                self.stages.compare(row, number, values, &wanted, allowed);
            }
            Err(e) => self.failure = self.failure.take().or(Some(e)),
        }
    }
}

/// Compares what all encoders compute.
pub(super) struct EncoderStages<'t>([Encoder<'t>; 3]);

impl<'t> EncoderStages<'t> {
    pub(super) fn new(reference: &'t dyn StageReference, is_judged: bool) -> Self {
        Self([Kind::Audio, Kind::Image, Kind::Video].map(|kind| Encoder {
            reference,
            kind,
            is_judged,
            stages: Stages::default(),
            failure: None,
        }))
    }

    /// Adds what was compared.
    pub(super) fn into_stages(self, to: &mut Stages) -> Result<(), StepError> {
        for encoder in self.0 {
            if let Some(failure) = encoder.failure {
                return Err(failure);
            }
            to.rows.extend(encoder.stages.rows);
        }
        Ok(())
    }
}

impl MediaObserver for EncoderStages<'_> {
    fn audio(&mut self) -> &mut dyn EncoderObserver {
        &mut self.0[0]
    }

    fn images(&mut self) -> &mut dyn EncoderObserver {
        &mut self.0[1]
    }

    fn videos(&mut self) -> &mut dyn EncoderObserver {
        &mut self.0[2]
    }
}
