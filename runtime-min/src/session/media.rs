//! Prompts with audio, images and videos: encoded on the CPU, then given to the decoder, wherever it
//! runs.

use segpack_manifests::PackModel;
use segpack_manifests::families::MediaFacts;

use super::device::OpenDevice;
use super::{Session, SessionError};
use crate::error::{MediaError, RunError, Unsuitable};
use crate::models::audio_encoder::AudioEncoder;
use crate::models::decoder::MediaInputs;
use crate::models::encoder::{EncoderContext, EncoderObserver, EncoderSettings};
use crate::models::omni::{self, EncodedMedia};
use crate::models::vision_encoder::VisionEncoder;
use crate::ops::CpuOps;
use crate::processing::{AudioFeatures, MediaFeatures, VisualFeatures};
use crate::trace::TraceRecorder;

/// Hears of what the encoders compute.
pub trait MediaObserver {
    /// The encoder of audio.
    fn audio(&mut self) -> &mut dyn EncoderObserver;
    /// The encoder of pictures, while it encodes images.
    fn images(&mut self) -> &mut dyn EncoderObserver;
    /// The encoder of pictures, while it encodes videos.
    fn videos(&mut self) -> &mut dyn EncoderObserver;
}

/// Observes nothing.
impl MediaObserver for () {
    fn audio(&mut self) -> &mut dyn EncoderObserver {
        self
    }

    fn images(&mut self) -> &mut dyn EncoderObserver {
        self
    }

    fn videos(&mut self) -> &mut dyn EncoderObserver {
        self
    }
}

/// A trace has the stages of all encoders.
impl MediaObserver for TraceRecorder {
    fn audio(&mut self) -> &mut dyn EncoderObserver {
        let [audio, _, _] = self.encoders();
        audio
    }

    fn images(&mut self) -> &mut dyn EncoderObserver {
        let [_, images, _] = self.encoders();
        images
    }

    fn videos(&mut self) -> &mut dyn EncoderObserver {
        let [_, _, videos] = self.encoders();
        videos
    }
}

impl Session<'_> {
    /// What the model wants to know of media: `None` where it takes text alone.
    ///
    /// # Errors
    /// `Run` where `config.json` cannot be used.
    pub fn media_facts(&self) -> Result<Option<MediaFacts>, SessionError> {
        let model = PackModel::read(self.pack).map_err(RunError::from)?;
        Ok(model.media().map_err(RunError::from)?)
    }

    /// What the decoder takes for a prompt with media: the encoders are run, their memory is given
    /// back. Placeholders and features are compared before any weight is read.
    ///
    /// # Errors
    /// `Run`: the model takes text alone, the features do not fit the prompt or the model, the memory
    /// budget is too small, or the pack is damaged.
    pub fn encode(
        &self,
        prompt: &[u32],
        media: &MediaFeatures,
        observer: &mut (dyn MediaObserver + Send),
    ) -> Result<MediaInputs, SessionError> {
        let facts = self.facts_for(media)?;
        let layout = omni::layout(&facts, prompt, media)?;
        let encoded = self.install(|| self.run_encoders(&facts, media, observer))?;
        Ok(omni::merge(&facts, prompt, layout, encoded)?)
    }

    fn facts_for(&self, media: &MediaFeatures) -> Result<MediaFacts, SessionError> {
        let medium = match media {
            media if !media.audio.lengths.is_empty() => "audio",
            media if !media.images.grids.is_empty() => "images",
            _ => "videos",
        };
        let facts = self.media_facts()?;
        Ok(facts.ok_or_else(|| RunError::from(Unsuitable::TextOnly { medium }))?)
    }

    fn run_encoders(
        &self,
        facts: &MediaFacts,
        media: &MediaFeatures,
        observer: &mut dyn MediaObserver,
    ) -> Result<EncodedMedia, SessionError> {
        let ops = self.encoder_ops()?;
        let mut encoded = EncodedMedia::default();
        if !media.audio.lengths.is_empty() {
            let context = self.encoder_context(media, &encoded);
            let Some(audio) = &facts.audio else {
                let error = MediaError::ImagesAlone { medium: "audio" };
                return Err(RunError::from(error).into());
            };
            let encoder = AudioEncoder::new(context, audio)?;
            encoded.audio = encoder.encode(&ops, &media.audio, observer.audio())?;
        }
        if media.images.grids.is_empty() && media.videos.grids.is_empty() {
            return Ok(encoded);
        }
        let context = self.encoder_context(media, &encoded);
        let encoder = VisionEncoder::new(context, &facts.vision)?;
        let mut observe = |number, stage, values: &[f32]| match number {
            0 => observer.images().stage(stage, values),
            _ => observer.videos().stage(stage, values),
        };
        match encoder.encode_each(&ops, [&media.images, &media.videos], &mut observe) {
            Ok([images, videos]) => {
                (encoded.images, encoded.videos) = (images, videos);
                return Ok(encoded);
            }
            // one after the other takes less memory; each loads the weights
            Err(RunError::Memory { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        encoded.images = encoder.encode(&ops, &media.images, observer.images())?;
        let context = self.encoder_context(media, &encoded);
        let encoder = VisionEncoder::new(context, &facts.vision)?;
        encoded.videos = encoder.encode(&ops, &media.videos, observer.videos())?;
        Ok(encoded)
    }

    /// Encoders run on the CPU, whatever the decoder runs on.
    pub(super) fn encoder_ops(&self) -> Result<CpuOps, SessionError> {
        Ok(match &self.device {
            OpenDevice::Cpu(ops) => *ops,
            #[cfg(feature = "cuda")]
            OpenDevice::Cuda(_) => CpuOps::from_environment(self.options.compute)?,
        })
    }

    fn encoder_context(&self, media: &MediaFeatures, encoded: &EncodedMedia) -> EncoderContext<'_> {
        EncoderContext {
            source: &self.reader,
            settings: EncoderSettings {
                memory: self.memory,
                check: self.options.check,
                taken: bytes(media).saturating_add(encoded.bytes()),
            },
            stop: self.cancel,
        }
    }
}

/// Bytes that features hold.
pub(super) fn bytes(media: &MediaFeatures) -> u64 {
    let audio = |f: &AudioFeatures| f.values.len();
    let visual = |f: &VisualFeatures| f.values.len();
    4 * (audio(&media.audio) + visual(&media.images) + visual(&media.videos)) as u64
}
