//! Compares sound, stage by stage, with that of recorded codes.

use segpack_formats::FormatError;
use segpack_manifests::documents::Stage;
use segpack_runtime_min::models::code2wav::{Chunks, VocoderObserver, WaveStage};
use segpack_runtime_min::session::{Codes, Session, SessionError};
use segpack_runtime_min::trace::MediaTrace;

use super::media::{Allowed, Stages};
use crate::steps::StepError;

/// Difference of a stage that is allowed, in standard deviations of the stage.
const STAGES: f64 = 1e-3;
/// Difference of a sample that is allowed.
const SAMPLES: f64 = 3e-4;
/// Noise that is allowed: 92 dB below the sound.
const NOISE: f64 = 2.511_886_431_509_58e-5;

/// Which rows of the report, and what is judged.
#[derive(Clone, Copy)]
pub(super) struct WaveRows {
    pub(super) number: Option<u32>,
    pub(super) is_judged: bool,
    /// Sound, and its noise.
    pub(super) stages: [Stage; 2],
}

impl WaveRows {
    /// Of recorded codes.
    pub(super) fn of_recorded(number: usize, is_judged: bool) -> Self {
        Self {
            number: u32::try_from(number).ok(),
            is_judged,
            stages: [Stage::Wave, Stage::WaveNoise],
        }
    }

    fn allowed(self, max: f64) -> Allowed {
        Allowed::max(self.is_judged.then_some(max))
    }

    /// Compares sound: its length, its samples, its noise.
    pub(super) fn compare(self, seen: &[f32], wanted: &[f32], stages: &mut Stages) {
        let [sound, noise] = self.stages;
        stages.compare(sound, self.number, seen, wanted, self.allowed(SAMPLES));
        let relative = [relative_noise(seen, wanted)];
        stages.compare(noise, self.number, &relative, &[0.0], self.allowed(NOISE));
    }
}

/// Compares all that a trace holds of the sound of its codes. Generated answers are decoded in
/// chunks, given codes as one piece.
pub(super) fn of_recorded_codes(
    session: &Session<'_>,
    (trace, is_generated): (&MediaTrace, bool),
    rows: WaveRows,
    stages: &mut Stages,
) -> Result<(), StepError> {
    let Some(wanted) = trace.floats("wave")? else {
        return Ok(());
    };
    let codes = recorded_codes(trace)?;
    let codes = codes.by_frame();
    let chunks = match is_generated {
        true => Chunks::default(),
        false => Chunks::whole(),
    };
    let mut kept = Kept::default();
    rows.compare(&decode(session, codes, chunks, &mut kept)?, &wanted, stages);
    kept.compare(trace, rows, stages)?;
    for (name, chunks) in chunked(trace) {
        let wanted = trace.floats(&name)?.unwrap_or_default();
        rows.compare(&decode(session, codes, chunks, &mut ())?, &wanted, stages);
    }
    Ok(())
}

/// Sound of codes, `[frames, groups]`, as samples in [-1, 1].
pub(super) fn decode(
    session: &Session<'_>,
    codes: &[u32],
    chunks: Chunks,
    observer: &mut (dyn VocoderObserver + Send),
) -> Result<Vec<f32>, SessionError> {
    let vocoder = session.vocoder(0)?;
    let mut wave = Vec::new();
    session.vocode(&vocoder, codes, chunks, observer, &mut |more| {
        wave.extend_from_slice(more);
        Ok::<(), SessionError>(())
    })?;
    Ok(wave)
}

/// The codes of a trace.
pub(super) fn recorded_codes(trace: &MediaTrace) -> Result<Codes, StepError> {
    let shape = trace.shape("codes").unwrap_or_default();
    let rows = trace.token_ids("codes")?.unwrap_or_default();
    let codes = match shape[..] {
        [groups, _] => Codes::from_rows(groups, &rows).ok(),
        _ => None,
    };
    let what = "has no codes of groups and frames";
    Ok(codes.ok_or_else(|| FormatError::malformed(trace.path(), what))?)
}

/// `[rows, columns]` as `[columns, rows]`.
fn transposed<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    let places = (0..columns).flat_map(|c| (0..rows).map(move |r| r * columns + c));
    places.map(|place| values[place]).collect()
}

/// The chunks that were recorded: `chunked.FRAMES_CONTEXT`.
fn chunked(trace: &MediaTrace) -> Vec<(String, Chunks)> {
    let of = |name: &str| {
        let (frames, context) = name.strip_prefix("chunked.")?.split_once('_')?;
        let mut chunks = Chunks::default();
        (chunks.frames, chunks.context) = (frames.parse().ok()?, context.parse().ok()?);
        Some((name.to_owned(), chunks))
    };
    trace.names().filter_map(of).collect()
}

/// The root of the mean square of the difference, relative to that of the reference: 0 where nothing
/// differs.
fn relative_noise(seen: &[f32], wanted: &[f32]) -> f32 {
    let square = |x: f64| x * x;
    let pairs = seen.iter().zip(wanted);
    let noise: f64 = pairs
        .map(|(seen, wanted)| square(f64::from(*seen) - f64::from(*wanted)))
        .sum();
    let power: f64 = wanted.iter().map(|x| square(f64::from(*x))).sum();
    #[expect(clippy::cast_possible_truncation, reason = "shown with two digits")]
    match noise == 0.0 {
        true => 0.0,
        false => (noise / power).sqrt() as f32,
    }
}

/// Rows of all stages.
#[derive(Default)]
struct Kept(Vec<(WaveStage, usize, Vec<f32>)>);

impl VocoderObserver for Kept {
    fn stage(&mut self, stage: WaveStage, rows: &[f32], width: usize) {
        match self.0.iter_mut().find(|(known, _, _)| *known == stage) {
            Some((_, _, values)) => values.extend_from_slice(rows),
            None => self.0.push((stage, width, rows.to_vec())),
        }
    }
}

impl Kept {
    /// Traces hold the stages of the first chunk.
    fn compare(
        &self,
        trace: &MediaTrace,
        rows: WaveRows,
        stages: &mut Stages,
    ) -> Result<(), StepError> {
        for (stage, width, seen) in &self.0 {
            let (name, is_by_channel) = name_of(*stage);
            let Some(mut wanted) = trace.floats(&name)? else {
                continue;
            };
            if is_by_channel {
                wanted = transposed(&wanted, *width, wanted.len() / width);
            }
            let seen = &seen[..wanted.len().min(seen.len())];
            let allowed = rows.allowed(STAGES * deviation(&wanted));
            stages.compare(Stage::VocoderStages, rows.number, seen, &wanted, allowed);
        }
        Ok(())
    }
}

/// A stage's tensor, and whether it is `[channels, time]`.
fn name_of(stage: WaveStage) -> (String, bool) {
    match stage {
        WaveStage::Embed => ("wav.embed".to_owned(), false),
        WaveStage::Layer(n) => (format!("wav.layer.{n}"), false),
        WaveStage::Norm => ("wav.norm".to_owned(), false),
        WaveStage::UpConv(n) => (format!("wav.up.{n}.conv"), true),
        WaveStage::Up(n) => (format!("wav.up.{n}"), true),
        WaveStage::First => ("wav.dec.0".to_owned(), true),
        WaveStage::Transposed(n) => (format!("wav.dec.{n}.tconv"), true),
        WaveStage::Block(n) => (format!("wav.dec.{n}"), true),
        WaveStage::Raw => ("wav.raw".to_owned(), false),
    }
}

/// Standard deviation.
fn deviation(values: &[f32]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count of values")]
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
    let squares = values.iter().map(|x| (f64::from(*x) - mean).powi(2));
    (squares.sum::<f64>() / count).sqrt()
}
