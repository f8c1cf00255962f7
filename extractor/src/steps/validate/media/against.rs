//! The encoders of a pack, compared with a direct calculation from the shards of a checkpoint.

use segpack_formats::io::to_usize;
use segpack_manifests::Pack;
use segpack_manifests::families::{AudioTowerFacts, MediaFacts};
use segpack_manifests::names::Component;
use segpack_runtime_min::processing::{AudioFeatures, MediaFeatures, VisualFeatures};
use segpack_runtime_min::session::Session;

use super::stages::{EncoderStages, StageReference, Stages};
use crate::steps::StepError;
use crate::steps::validate::direct::{Calculation, Direct};

/// Frames of the clip: a whole chunk, and a part of one.
const FRAMES: usize = 130;
/// Squares of patches of the image, along height and width.
const SQUARES: [usize; 2] = [2, 3];

/// Compares both encoders, as far as they were packed.
pub(in crate::steps::validate) fn against_direct(
    session: &Session<'_>,
    direct: &Direct<'_>,
    stages: &mut Stages,
) -> Result<(), StepError> {
    let Some(facts) = session.media_facts()? else {
        return Ok(());
    };
    let pack = session.pack();
    if let (Some(tower), Some(ids)) = (&facts.audio, &facts.tokens.audio)
        && has(pack, Component::ThinkerAudio)
    {
        let features = clip(tower);
        let found = direct.audio(tower, &features)?;
        let mut media = MediaFeatures::default();
        media.audio = features;
        let tokens = segpack_runtime_min::processing::audio_tokens(FRAMES);
        compare(session, &vec![ids.row; tokens], &media, &found, stages)?;
    }
    if has(pack, facts.vision.names.component) {
        let features = picture(&facts);
        let found = direct.pictures(&facts, &features)?;
        let mut media = MediaFeatures::default();
        media.images = features;
        let tokens = SQUARES.iter().product();
        compare(
            session,
            &vec![facts.tokens.image; tokens],
            &media,
            &found,
            stages,
        )?;
    }
    Ok(())
}

fn has(pack: &Pack, component: Component) -> bool {
    let mut tensors = pack.manifest().tensors.iter();
    tensors.any(|tensor| tensor.component == component)
}

fn compare(
    session: &Session<'_>,
    prompt: &[u32],
    media: &MediaFeatures,
    found: &Calculation,
    stages: &mut Stages,
) -> Result<(), StepError> {
    let mut observers = EncoderStages::new(found, true);
    session.encode(prompt, media, &mut observers)?;
    observers.into_stages(stages)
}

impl StageReference for Calculation {
    fn floats(&self, name: &str) -> Result<Option<Vec<f32>>, StepError> {
        let found = self.iter().find(|(found, _)| found == name);
        Ok(found.map(|(_, values)| values.clone()))
    }

    /// What two calculations in f32 differ by grows with the values.
    fn scale(&self, wanted: &[f32]) -> f64 {
        let squares: f64 = wanted.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        #[expect(clippy::cast_precision_loss, reason = "a count of values")]
        let mean = squares / wanted.len().max(1) as f64;
        mean.sqrt().max(1.0)
    }
}

/// Values between -1 and 1, always the same.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap_or(0)) / 32768.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn clip(facts: &AudioTowerFacts) -> AudioFeatures {
    let mel_bins = to_usize(facts.mel_bins);
    AudioFeatures {
        mel_bins,
        values: noise(mel_bins * FRAMES),
        lengths: vec![FRAMES],
    }
}

fn picture(facts: &MediaFacts) -> VisualFeatures {
    let v = &facts.vision;
    let patch_width = to_usize(v.channels * v.patch_frames * v.patch_side * v.patch_side);
    let [height, width] = SQUARES.map(|squares| squares * to_usize(v.merge));
    VisualFeatures {
        patch_width,
        values: noise(height * width * patch_width),
        grids: vec![[1, height, width]],
    }
}
