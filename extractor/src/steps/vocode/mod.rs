//! `vocode`: sound of recorded codes.

mod codes;
mod error;
mod sound;

use std::io::Write;
use std::path::Path;

use segpack_formats::io::{CancelToken, PendingFile};
use segpack_manifests::Pack;
use segpack_manifests::documents::{GENERATOR, VocodeSummary};
use segpack_runtime_min::models::code2wav::Chunks;
use segpack_runtime_min::session::{Session, SessionOptions};

use super::StepError;
pub use error::VocodeError;
pub(crate) use sound::{Sound, SoundFormat, Written};

/// How codes become sound.
#[derive(Debug, Clone, Default)]
pub(crate) struct VocodeSettings {
    /// What the vocoder may use.
    pub session: SessionOptions,
    /// How speech is cut.
    pub chunks: Chunks,
    /// How samples are written.
    pub format: SoundFormat,
}

/// Writes the sound of the codes in a `.npy` file to a file, which appears whole or not at all.
///
/// # Errors
/// Codes that are not the model's, a pack without a vocoder or with damage, too little memory; a file
/// that cannot be written.
pub(crate) fn vocode(
    pack: &Pack,
    codes: &Path,
    out: &Path,
    settings: &VocodeSettings,
    stop: &CancelToken,
) -> Result<VocodeSummary, StepError> {
    let file = PendingFile::create(out)?;
    let session = Session::open_cancellable(pack, &settings.session, stop)?;
    let vocoder = session.vocoder(0)?;
    let codes = codes::read(codes, vocoder.groups())?;
    let sound = Sound {
        session: &session,
        vocoder: &vocoder,
        codes: &codes,
        settings,
    };
    let written = publish(&sound, file)?;
    Ok(summary(pack, &sound, written))
}

/// Writes the sound to a file, which appears whole or not at all.
///
/// # Errors
/// As [`vocode`].
pub(crate) fn publish(sound: &Sound<'_, '_>, file: PendingFile) -> Result<Written, StepError> {
    let mut failure = None;
    let mut written = Written::default();
    let published = file.publish(|out| {
        written = sound::write(sound, out, &mut failure)?;
        Ok(())
    });
    if let Some(failure) = failure {
        return Err(failure);
    }
    published?;
    Ok(written)
}

/// Writes the sound to a stream while it is decoded.
///
/// # Errors
/// As [`vocode`]; `Stdout` where the stream was closed or failed.
pub(crate) fn send(sound: &Sound<'_, '_>, out: &mut dyn Write) -> Result<Written, StepError> {
    let mut failure = None;
    let written = sound::write(sound, out, &mut failure);
    match failure {
        Some(failure) => Err(failure),
        None => written.map_err(StepError::Stdout),
    }
}

/// Writes the sound to a stream while it is decoded.
///
/// # Errors
/// As [`vocode`]; `Stdout` where the stream was closed or failed.
pub(crate) fn stream(
    pack: &Pack,
    codes: &Path,
    out: &mut dyn Write,
    settings: &VocodeSettings,
    stop: &CancelToken,
) -> Result<VocodeSummary, StepError> {
    let session = Session::open_cancellable(pack, &settings.session, stop)?;
    let vocoder = session.vocoder(0)?;
    let codes = codes::read(codes, vocoder.groups())?;
    let sound = Sound {
        session: &session,
        vocoder: &vocoder,
        codes: &codes,
        settings,
    };
    let written = send(&sound, out)?;
    Ok(summary(pack, &sound, written))
}

fn summary(pack: &Pack, sound: &Sound<'_, '_>, written: Written) -> VocodeSummary {
    let groups = sound.vocoder.groups();
    VocodeSummary {
        format_version: VocodeSummary::VERSION,
        generator: GENERATOR.to_owned(),
        manifest_sha256: pack.manifest_sha256(),
        frames: (sound.codes.len() / groups) as u64,
        groups: groups as u64,
        samples: written.samples,
        sample_rate: sound.vocoder.sample_rate(),
        gapless: sound.settings.chunks.gapless,
        clipped: written.clipped,
        peak: written.is_finite.then_some(written.peak),
    }
}
