//! Sound, written while more of it is decoded.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use segpack_formats::FormatError;
use segpack_formats::wav::{self, SampleFormat};
use segpack_runtime_min::models::code2wav::Vocoder;
use segpack_runtime_min::session::{Session, SessionError};

use super::{VocodeError, VocodeSettings};
use crate::steps::StepError;

/// Pieces of sound that wait to be written, at most.
const WAITING: usize = 16;

/// How sound is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum SoundFormat {
    /// WAV of 16-bit integers.
    #[default]
    Pcm16,
    /// WAV of 32-bit floats.
    Float32,
    /// 16-bit integers without a header.
    S16le,
}

impl SoundFormat {
    fn samples(self) -> SampleFormat {
        match self {
            Self::Pcm16 | Self::S16le => SampleFormat::Pcm16,
            Self::Float32 => SampleFormat::Float32,
        }
    }
}

/// What is to be written.
pub(crate) struct Sound<'a, 's> {
    pub(crate) session: &'a Session<'s>,
    pub(crate) vocoder: &'a Vocoder<'a>,
    /// `[frames, groups]`
    pub(crate) codes: &'a [u32],
    pub(crate) settings: &'a VocodeSettings,
}

/// What was written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written {
    pub(crate) samples: u64,
    pub(crate) clipped: u64,
    pub(crate) peak: f32,
    pub(crate) is_finite: bool,
}

impl Default for Written {
    fn default() -> Self {
        Self {
            samples: 0,
            clipped: 0,
            peak: 0.0,
            is_finite: true,
        }
    }
}

impl Written {
    fn add(&mut self, wave: &[f32]) {
        self.samples += wave.len() as u64;
        for x in wave {
            self.clipped += u64::from(x.abs() >= 1.0);
            self.peak = self.peak.max(x.abs());
            self.is_finite &= x.is_finite();
        }
    }
}

/// Why decoding ended early.
enum Ended {
    Failed(SessionError),
    /// Nobody takes the sound any more.
    Closed,
}

impl From<SessionError> for Ended {
    fn from(error: SessionError) -> Self {
        Self::Failed(error)
    }
}

/// Writes header and sound: a thread decodes, this one writes. What ends the decoding is left in
/// `failure`, and then an error is returned, too.
pub(super) fn write(
    sound: &Sound<'_, '_>,
    out: &mut dyn Write,
    failure: &mut Option<StepError>,
) -> io::Result<Written> {
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(WAITING);
        let decoder = thread::Builder::new().spawn_scoped(scope, move || decode(sound, &sender));
        let decoder = match decoder {
            Ok(decoder) => decoder,
            Err(error) => return Err(fail(failure, FormatError::Thread(error).into())),
        };
        let written = receive(sound, &receiver, out, failure);
        drop(receiver);
        match decoder.join() {
            Ok(Ok(())) | Ok(Err(Ended::Closed)) => written,
            Ok(Err(Ended::Failed(error))) => Err(fail(failure, error.into())),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn fail(failure: &mut Option<StepError>, error: StepError) -> io::Error {
    *failure = Some(error);
    io::ErrorKind::Other.into()
}

fn decode(sound: &Sound<'_, '_>, sender: &SyncSender<Vec<f32>>) -> Result<(), Ended> {
    let mut send = |wave: &[f32]| sender.send(wave.to_vec()).map_err(|_| Ended::Closed);
    let Sound {
        session,
        vocoder,
        codes,
        settings,
    } = sound;
    session.vocode(vocoder, codes, settings.chunks, &mut (), &mut send)
}

/// Nothing is written before the first sound is there, so that codes that are refused leave nothing.
fn receive(
    sound: &Sound<'_, '_>,
    receiver: &Receiver<Vec<f32>>,
    out: &mut dyn Write,
    failure: &mut Option<StepError>,
) -> io::Result<Written> {
    let (vocoder, settings) = (sound.vocoder, sound.settings);
    let format = settings.format.samples();
    let frames = sound.codes.len() / vocoder.groups();
    let samples = vocoder.samples(frames, settings.chunks) as u64;
    let mut bytes = Vec::new();
    if settings.format != SoundFormat::S16le {
        match wav::header(format, vocoder.sample_rate(), Some(samples)) {
            Some(header) => bytes = header,
            None => return Err(fail(failure, VocodeError::TooLong { samples }.into())),
        }
    }
    let mut written = Written::default();
    for wave in receiver {
        written.add(&wave);
        format.encode(&wave, &mut bytes);
        out.write_all(&bytes)?;
        out.flush()?;
        bytes.clear();
    }
    Ok(written)
}
