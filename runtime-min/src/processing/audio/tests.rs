//! Against official traces, with the gates of `features` and `samples` there.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "test data is small"
)]

use std::fs::File;
use std::io::Cursor;

use segpack_formats::io::CancelToken;

use super::*;
use crate::processing::AudioFeatures;
use crate::processing::media::AudioSettings;
use crate::processing::media::testing::{MediaTrace, fixture, fixture_files};

const RATE: u32 = 16_000;

fn settings() -> AudioSettings {
    AudioSettings::load(&fixture_files("tiny-omni")).unwrap()
}

fn decode_file(file: &str) -> Vec<f32> {
    decode(Box::new(File::open(fixture(file)).unwrap()), RATE).unwrap()
}

fn decode_bytes(bytes: &[u8]) -> Result<Vec<f32>, AudioError> {
    decode(Box::new(Cursor::new(bytes.to_vec())), RATE)
}

/// The clips of a trace and the files they are of.
fn clips(trace: &MediaTrace) -> Vec<(String, Vec<f32>)> {
    let files = trace.document["audio"].as_array().unwrap().iter();
    let file = |(n, entry): (usize, &serde_json::Value)| {
        let file = entry["file"].as_str().unwrap().to_owned();
        let samples = trace.floats(&format!("mm.audio.samples.{n}"));
        let samples = samples.unwrap_or_else(|| decode_file(&file));
        (file, samples)
    };
    files.enumerate().map(file).collect()
}

/// Signal to noise, in dB; infinite where there is no difference.
fn snr(seen: &[f32], wanted: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let signal: f64 = wanted.iter().map(|w| square(*w)).sum();
    let noise: f64 = seen.iter().zip(wanted).map(|(s, w)| square(s - w)).sum();
    10.0 * (signal / noise).log10()
}

#[track_caller]
fn check_features(case: &str, seen: &AudioFeatures, trace: &MediaTrace) {
    let lengths = trace.integers("mm.audio.lengths").unwrap();
    let seen_lengths: Vec<i64> = seen.lengths.iter().map(|n| *n as i64).collect();
    assert_eq!(seen_lengths, lengths, "{case}");
    let wanted = trace.floats("mm.audio.features").unwrap();
    assert_eq!((seen.mel_bins, seen.values.len()), (128, wanted.len()));
    let differences = seen.values.iter().zip(&wanted).map(|(s, w)| (s - w).abs());
    let max = differences.clone().fold(0.0, f32::max);
    let mean = differences.map(f64::from).sum::<f64>() / wanted.len() as f64;
    assert!(max <= 3e-4 && mean <= 3e-6, "{case}: {max:e} {mean:e}");
}

#[test]
fn features_are_those_of_the_official_extractor() {
    let cases = ["one", "short", "batch", "window", "lossy"].map(|case| format!("audio-{case}"));
    for case in cases
        .into_iter()
        .chain(["readme-image", "mixed"].map(str::to_owned))
    {
        let trace = MediaTrace::open(&case);
        let clips: Vec<Vec<f32>> = clips(&trace)
            .into_iter()
            .map(|(_, samples)| samples)
            .collect();
        check_features(&case, &features(&clips, &settings()).unwrap(), &trace);
    }
}

#[test]
fn samples_are_those_of_librosa() {
    let mut compared = 0;
    for case in [
        "audio-one",
        "audio-short",
        "audio-batch",
        "readme-image",
        "audio-lossy",
    ] {
        let trace = MediaTrace::open(case);
        for (n, (file, _)) in clips(&trace).into_iter().enumerate() {
            let wanted = trace.floats(&format!("mm.audio.samples.{n}")).unwrap();
            let seen = decode_file(&file);
            assert_eq!(seen.len(), wanted.len(), "{file}");
            let snr = snr(&seen, &wanted);
            let gate = match file.rsplit_once('.').unwrap().1 {
                _ if file.contains("16k") => f64::INFINITY,
                "mp3" | "ogg" => 40.0, // decoders differ; reported, not judged
                _ => 60.0,
            };
            assert!(snr >= gate, "{file}: {snr} dB");
            compared += 1;
        }
    }
    assert_eq!(compared, 9);
}

#[test]
fn frames_are_counted_as_the_extractor_counts_them() {
    assert_eq!(valid_frames(481, 481, 160), 3);
    assert_eq!(valid_frames(481, 1000, 160), 4);
    assert_eq!(
        (valid_frames(0, 1000, 160), valid_frames(1, 1000, 160)),
        (0, 1)
    );
}

#[test]
fn short_clips_are_refused_only_where_they_cannot_be_mirrored() {
    let settings = settings();
    let lengths = |clips: &[usize]| {
        let clips: Vec<Vec<f32>> = clips.iter().map(|n| vec![0.1; *n]).collect();
        features(&clips, &settings).map(|f| f.lengths)
    };
    assert_eq!(lengths(&[]).unwrap(), [0; 0]);
    assert_eq!(lengths(&[201]).unwrap(), [1]);
    assert_eq!(lengths(&[201, 0, 160, 161]).unwrap(), [1, 0, 1, 1]);
    let message = |clips| lengths(clips).unwrap_err().to_string();
    assert_eq!(
        message(&[200]),
        "it has 200 samples at the model's rate: the longest clip of a prompt needs at least 201"
    );
    assert!(message(&[0, 5]).starts_with("the longest of 2 clips has 5 samples"));
}

#[test]
fn silence_has_one_value() {
    let features = features(&[vec![0.0; 4000]], &settings()).unwrap();
    assert!(features.values.iter().all(|value| *value == -1.5));
}

/// 0.03 s: 480 samples.
#[test]
fn a_clip_of_three_frames_is_processed() {
    let bytes = std::fs::read(fixture("media/speech_s16_16k.wav")).unwrap();
    let samples = decode_bytes(&wav(1, RATE, 16, 1, &bytes[1000..1000 + 960])).unwrap();
    assert_eq!(samples.len(), 480);
    assert_eq!(features(&[samples], &settings()).unwrap().lengths, [3]);
}

/// A WAV file of this format: 1 for integers, 3 for floating point.
fn wav(channels: u16, rate: u32, bits: u16, format: u16, data: &[u8]) -> Vec<u8> {
    wav_header(channels, rate, bits, format, channels * bits / 8, data)
}

/// The same with any number of bytes for a sample of all channels.
fn wav_header(
    channels: u16,
    rate: u32,
    bits: u16,
    format: u16,
    frame: u16,
    data: &[u8],
) -> Vec<u8> {
    let mut bytes = b"RIFF".to_vec();
    bytes.extend((36 + data.len() as u32).to_le_bytes());
    bytes.extend(b"WAVEfmt ");
    bytes.extend(16u32.to_le_bytes());
    bytes.extend(format.to_le_bytes());
    bytes.extend(channels.to_le_bytes());
    bytes.extend(rate.to_le_bytes());
    bytes.extend((rate.wrapping_mul(u32::from(frame))).to_le_bytes());
    bytes.extend(frame.to_le_bytes());
    bytes.extend(bits.to_le_bytes());
    bytes.extend(b"data");
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn integers_are_divided_by_a_power_of_two_and_floats_kept() {
    let read = |bits, format, data: &[u8]| decode_bytes(&wav(1, RATE, bits, format, data)).unwrap();
    assert_eq!(read(8, 1, &[0, 128, 255]), [-1.0, 0.0, 127.0 / 128.0]);
    assert_eq!(read(16, 1, &[0, 128, 255, 127]), [-1.0, 32767.0 / 32768.0]);
    assert_eq!(
        read(24, 1, &[0, 0, 128, 1, 0, 0]),
        [-1.0, 1.0 / 8_388_608.0]
    );
    let large = i32::MAX.to_le_bytes();
    assert_eq!(read(32, 1, &large), [1.0]);
    let floats: Vec<u8> = [1.5f32, -0.1]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    assert_eq!(read(32, 3, &floats), [1.5, -0.1]);
    let doubles: Vec<u8> = [0.1f64].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(read(64, 3, &doubles), [0.1]);
}

#[test]
fn channels_are_averaged() {
    let data: Vec<u8> = [16384i16, -8192, 3]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let stereo = decode_bytes(&wav(2, RATE, 16, 1, &data[..4])).unwrap();
    assert_eq!(stereo, [0.125]);
    let three = decode_bytes(&wav(3, RATE, 16, 1, &data)).unwrap();
    assert_eq!(three, [(0.5 - 0.25 + 3.0 / 32768.0) / 3.0]);
    let many = decode_bytes(&wav(16, RATE, 16, 1, &[0, 32].repeat(16))).unwrap();
    assert_eq!(many, [0.25]);
}

#[test]
fn what_cannot_be_samples_is_an_error_that_says_why() {
    let nan = f32::NAN.to_le_bytes();
    let data = [0u8; 64];
    let speech = std::fs::read(fixture("media/speech_s16_16k.wav")).unwrap();
    let mut flac = std::fs::read(fixture("media/speech_22k.flac")).unwrap();
    let cut_flac = flac[..flac.len() / 2].to_vec();
    flac[10_000] ^= 1;
    let mut opus = ogg_page(0, b"OpusHead\x01\x01\0\0\x80\xbb\0\0\0\0\0");
    opus.extend(ogg_page(1, b"OpusTags\x01\0\0\0x\0\0\0\0"));
    opus.extend(ogg_page(2, &[0xf8, 0xff, 0xfe]));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"".to_vec(), "not an audio file"),
        (b"hello, world".repeat(100), "not an audio file"),
        (wav(1, RATE, 32, 3, &nan), "sample 0 is not a finite number"),
        (wav(1, 999, 16, 1, &data), "it has 999 samples per second"),
        (
            wav(1, 4_000_000_000, 16, 1, &data),
            "it has 4000000000 samples per second",
        ),
        (
            speech[..20_000].to_vec(),
            "truncated or damaged: 9978 of the 18080 samples",
        ),
        (cut_flac, "truncated"),
        (flac, "damaged"),
        (opus, "convert it to FLAC or WAV"),
    ];
    for (bytes, wanted) in cases {
        let error = decode_bytes(&bytes).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error} / {wanted}");
    }
    let zero = decode_bytes(&wav(0, RATE, 16, 1, &data)).unwrap_err();
    assert!(
        matches!(zero, AudioError::Container(_) | AudioError::Channels { .. }),
        "{zero}"
    );
    // 39,681 channels, whose bytes do not fit the header's field
    let many = decode_bytes(&wav_header(0x9b01, RATE, 16, 1, 32, &data)).unwrap_err();
    assert!(!matches!(many, AudioError::Read(_)), "{many}");
    let no_samples = decode_bytes(&wav(1, RATE, 16, 1, &[])).unwrap();
    assert!(no_samples.is_empty());
}

/// A page with one packet of a stream.
fn ogg_page(number: u8, packet: &[u8]) -> Vec<u8> {
    let mut page = b"OggS\0".to_vec();
    page.push(if number == 0 { 2 } else { 0 });
    page.extend([0; 8]);
    page.extend([
        1,
        0,
        0,
        0,
        number,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        1,
        packet.len() as u8,
    ]);
    page.extend(packet);
    let crc = page.iter().fold(0u32, |crc, byte| {
        (0..8).fold(crc ^ (u32::from(*byte) << 24), |crc, _| {
            (crc << 1) ^ if crc >> 31 == 1 { 0x04c1_1db7 } else { 0 }
        })
    });
    page[22..26].copy_from_slice(&crc.to_le_bytes());
    page
}

/// A stream that never ends: WAV of unknown length, then silence.
struct Endless(Cursor<Vec<u8>>);

impl std::io::Read for Endless {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(to)? {
            0 => {
                to.fill(0);
                Ok(to.len())
            }
            n => Ok(n),
        }
    }
}

impl std::io::Seek for Endless {
    fn seek(&mut self, _: std::io::SeekFrom) -> std::io::Result<u64> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

impl AudioSource for Endless {
    fn is_seekable(&self) -> bool {
        false
    }

    fn byte_len(&self) -> Option<u64> {
        None
    }
}

#[test]
fn an_endless_stream_ends_at_the_limit() {
    let mut header = wav(1, 44_100, 8, 1, &[]);
    let length = header.len() - 4;
    header[4..8].fill(0xff);
    header[length..].fill(0xff);
    let source = Box::new(Endless(Cursor::new(header)));
    let error = decode::decode_at_most(source, RATE, 20, &CancelToken::default()).unwrap_err();
    assert!(matches!(error, AudioError::TooLong), "{error}");
}

/// However long a file is: nothing of it is decoded, and no spectrogram is made, after that.
#[test]
fn an_interruption_ends_the_decoder_and_the_spectrogram() {
    let cancel = CancelToken::default();
    cancel.cancel();
    let mut header = wav(1, 44_100, 8, 1, &[]);
    let length = header.len() - 4;
    header[4..8].fill(0xff);
    header[length..].fill(0xff);
    let source = Box::new(Endless(Cursor::new(header)));
    let error = decode_until(source, RATE, &cancel).unwrap_err();
    assert!(matches!(error, AudioError::Stopped), "{error}");
    let clips = [vec![0.0; 100_000]];
    let error = features_until(&clips, &settings(), &cancel).unwrap_err();
    assert!(matches!(error, AudioError::Stopped), "{error}");
}

/// A number below `below` (xorshift).
fn random(state: &mut u64, below: usize) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state % below as u64) as usize
}

/// Truncations and flips of every kind of file that is decoded: an error or samples, no panic.
#[test]
fn hostile_bytes_do_not_panic() {
    let files = [
        "media/chirp_48k_stereo.ogg",
        "media/speech_24k.mp3",
        "media/speech_22k.flac",
        "media/blip_50ms_16k.wav",
        "media/wide_av.mp4",
    ];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below| random(&mut state, below);
    for file in files {
        let whole = std::fs::read(fixture(file)).unwrap();
        for round in 0..60 {
            let mut bytes = whole.clone();
            match round % 3 {
                0 => bytes.truncate(random(whole.len())),
                1 => {
                    (0..1 + random(8)).for_each(|_| bytes[random(whole.len())] = random(256) as u8);
                }
                _ => {
                    let header = whole.len().min(400);
                    (0..1 + random(4)).for_each(|_| bytes[random(header)] = random(256) as u8);
                }
            }
            if let Ok(samples) = decode_bytes(&bytes) {
                let _ = features(&[samples], &settings());
            }
        }
    }
}
