//! Against one decoder of symphonia's that compares the digest itself, and against the samples that
//! were written.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "test data is small"
)]

use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::sync::Arc;

use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::AudioDecoderOptions;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;

use super::*;
use crate::processing::audio::decode::decode_at_most;
use crate::processing::audio::{decode, decode_until, resample};
use crate::processing::media::testing::fixture;
use crate::session::on_threads;

const RATE: u32 = 16_000;

fn open(bytes: &[u8]) -> Box<dyn FormatReader> {
    let source = Box::new(Cursor::new(bytes.to_vec()));
    let stream = MediaSourceStream::new(source, MediaSourceStreamOptions::default());
    let (format, metadata) = (FormatOptions::default(), MetadataOptions::default());
    let probe = symphonia::default::get_probe();
    probe.probe(&Hint::new(), stream, format, metadata).unwrap()
}

fn decode_bytes(bytes: &[u8], threads: usize) -> Result<Vec<f32>, AudioError> {
    let source = Box::new(Cursor::new(bytes.to_vec()));
    on_threads(threads, || decode(source, RATE)).unwrap()
}

/// What one decoder makes of a file that can be opened.
fn by_one_decoder(bytes: &[u8]) -> Result<Vec<f32>, AudioError> {
    let decoded = catch_unwind(|| by_one_decoder_unguarded(bytes));
    decoded.unwrap_or(Err(AudioError::Decoder))
}

fn by_one_decoder_unguarded(bytes: &[u8]) -> Result<Vec<f32>, AudioError> {
    let mut format = open(bytes);
    let track = format.default_track(TrackType::Audio).unwrap().clone();
    let Some(CodecParameters::Audio(parameters)) = &track.codec_params else {
        panic!("no sound");
    };
    let options = AudioDecoderOptions::default().verify(true);
    let registry = symphonia::default::get_codecs();
    let mut decoder = registry.make_audio_decoder(parameters, &options).unwrap();
    let (mut mono, mut interleaved) = (Vec::new(), Vec::<f32>::new());
    while let Ok(Some(packet)) = format.next_packet() {
        let frame = mono.len() as u64;
        let damaged = |source| AudioError::Damaged { frame, source };
        let samples = decoder.decode(&packet).map_err(damaged)?;
        samples.copy_to_vec_interleaved(&mut interleaved);
        let frames = interleaved.chunks(samples.num_planes());
        mono.extend(frames.map(|frame| frame.iter().sum::<f32>() / frame.len() as f32));
    }
    let (frames, promised) = (mono.len() as u64, track.num_frames.unwrap_or(0));
    if frames < promised {
        return Err(AudioError::Truncated { frames, promised });
    }
    if decoder.finalize().verify_ok == Some(false) {
        return Err(AudioError::Digest);
    }
    Ok(resample(mono, parameters.sample_rate.unwrap(), RATE))
}

/// Compares with one decoder at 1, 2 and 3 threads, and gives what both say.
#[track_caller]
fn check(case: &str, bytes: &[u8]) -> Result<Vec<f32>, String> {
    let wanted = by_one_decoder(bytes).map_err(|e| format!("{e:?}"));
    for threads in 1..=3 {
        let seen = decode_bytes(bytes, threads).map_err(|e| format!("{e:?}"));
        assert!(
            seen == wanted,
            "{case}, {threads} threads: {:?}",
            (seen.err(), wanted.err())
        );
    }
    wanted
}

/// A stream whose frames hold their samples as they are.
#[derive(Clone)]
struct Stream {
    rate: u32,
    bits: u32,
    /// Samples of each channel in a frame; the last frame has the rest.
    block: usize,
    channels: Vec<Vec<i32>>,
    digest: bool,
}

impl Stream {
    /// Noise of so many frames and a half.
    fn noise(channels: usize, bits: u32, block: usize, frames: usize) -> Self {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let length = frames * block + block / 2;
        let channel = |_| {
            (0..length)
                .map(|_| random(&mut state) >> (32 - bits))
                .collect()
        };
        Self {
            rate: RATE,
            bits,
            block,
            channels: (0..channels).map(channel).collect(),
            digest: true,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes_with(|_, _| {})
    }

    /// The file, whose frames `change` may change but for their checksum.
    fn bytes_with(&self, change: impl Fn(usize, &mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = self.header();
        for number in 0..self.channels[0].len().div_ceil(self.block) {
            let mut frame = self.frame(number);
            change(number, &mut frame);
            end_frame(&mut frame);
            bytes.extend(frame);
        }
        bytes
    }

    /// Everything before the frames: a stream information block.
    fn header(&self) -> Vec<u8> {
        let mut bits = Bits::default();
        bits.push(u64::from(u32::from_be_bytes(*b"fLaC")), 32);
        bits.push(0x80, 8); // the last block, of kind 0
        bits.push(34, 24);
        bits.push(self.block as u64, 16);
        bits.push(self.block as u64, 16);
        bits.push(0, 48); // bytes of frames: unknown
        bits.push(u64::from(self.rate), 20);
        bits.push(self.channels.len() as u64 - 1, 3);
        bits.push(u64::from(self.bits) - 1, 5);
        bits.push(self.channels[0].len() as u64, 36);
        let mut bytes = bits.bytes;
        bytes.extend(if self.digest { self.md5() } else { [0; 16] });
        bytes
    }

    fn md5(&self) -> [u8; 16] {
        let mut md5 = Md5::default();
        for n in 0..self.channels[0].len() {
            for channel in &self.channels {
                let sample = channel[n].to_le_bytes();
                md5.process_buf_bytes(&sample[..self.bits.div_ceil(8) as usize]);
            }
        }
        md5.md5()
    }

    /// A frame without its checksum.
    fn frame(&self, number: usize) -> Vec<u8> {
        let samples = self.block * number..self.channels[0].len().min(self.block * (number + 1));
        let mut bits = Bits::default();
        bits.push(0xfff8, 16);
        bits.push(0x7, 4); // samples: 16 bits below
        bits.push(0, 4); // rate: that of the stream
        bits.push(self.channels.len() as u64 - 1, 4);
        bits.push(0, 4); // bits per sample: those of the stream
        let number = char::from_u32(number as u32).unwrap();
        let coded = number.encode_utf8(&mut [0; 4]).to_owned();
        coded.bytes().for_each(|byte| bits.push(byte.into(), 8));
        bits.push(samples.len() as u64 - 1, 16);
        bits.push(u64::from(crc(&bits.bytes, 8, 0x07)), 8);
        for channel in &self.channels {
            bits.push(0x02, 8); // samples as they are
            for sample in &channel[samples.clone()] {
                bits.push(*sample as u64, self.bits);
            }
        }
        bits.bytes
    }

    /// The mean of the channels, from −1 to 1.
    fn mono(&self) -> Vec<f32> {
        let scale = (1u64 << (self.bits - 1)) as f64 * self.channels.len() as f64;
        let sum = |n| self.channels.iter().map(|c| i64::from(c[n])).sum::<i64>() as f64;
        (0..self.channels[0].len())
            .map(|n| (sum(n) / scale) as f32)
            .collect()
    }
}

/// Appends the checksum of a frame.
fn end_frame(frame: &mut Vec<u8>) {
    frame.extend((crc(frame, 16, 0x8005) as u16).to_be_bytes());
}

/// A checksum that begins with 0 and takes the highest bits first.
fn crc(bytes: &[u8], width: u32, polynomial: u32) -> u32 {
    let bit = |crc: u32| {
        (crc << 1)
            ^ if crc >> 31 == 1 {
                polynomial << (32 - width)
            } else {
                0
            }
    };
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ (u32::from(*byte) << 24), |crc, _| bit(crc));
    bytes.iter().fold(0, byte) >> (32 - width)
}

/// Bits from the highest to the lowest.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: u32,
}

impl Bits {
    /// Appends the lowest bits of a number.
    fn push(&mut self, number: u64, bits: u32) {
        for bit in (0..bits).rev() {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let last = self.bytes.len() - 1;
            self.bytes[last] |= ((number >> bit & 1) as u8) << (7 - self.used % 8);
            self.used += 1;
        }
    }
}

/// 32 bits (xorshift).
fn random(state: &mut u64) -> i32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 32) as i32
}

#[test]
fn files_of_other_encoders_give_the_samples_of_one_decoder() {
    for file in ["speech_22k.flac", "stereo_24bit.flac"] {
        let bytes = std::fs::read(fixture(&format!("media/{file}"))).unwrap();
        assert!(!check(file, &bytes).unwrap().is_empty());
    }
}

/// Channels, bits per sample, samples and number of frames; the longest take several batches.
#[test]
fn samples_are_those_that_were_written() {
    for (channels, bits, block, frames) in [
        (1, 16, 4096, 300),
        (2, 16, 4096, 50),
        (2, 24, 1000, 500),
        (1, 8, 17, 2500),
        (2, 8, 16, 300),
        (2, 12, 192, 30),
        (3, 20, 500, 10),
        (4, 16, 4608, 12),
        (1, 32, 1024, 3),
        (2, 32, 1024, 3),
        (8, 16, 65_535, 3),
    ] {
        let case = format!("{channels} channels of {bits} bits, {frames} frames of {block}");
        let stream = Stream::noise(channels, bits, block, frames);
        let samples = check(&case, &stream.bytes()).unwrap();
        // of 32 bits are more than a mean in float32 keeps
        match bits {
            32 => assert_eq!(samples.len(), stream.mono().len()),
            _ => assert!(samples == stream.mono(), "{case}"),
        }
    }
}

#[test]
fn flac_in_ogg_is_decoded_and_its_digest_compared() {
    let native = std::fs::read(fixture("media/stereo_24bit.flac")).unwrap();
    let mut ogg = std::fs::read(fixture("media/stereo_24bit.oga")).unwrap();
    assert!(decode_bytes(&ogg, 2).unwrap() == decode_bytes(&native, 2).unwrap());
    // the first page: its header, and one packet of 51 bytes, at whose end the digest is
    ogg[78] ^= 1;
    ogg[22..26].fill(0);
    let checksum = crc(&ogg[..79], 32, 0x04c1_1db7);
    ogg[22..26].copy_from_slice(&checksum.to_le_bytes());
    let error = decode_bytes(&ogg, 2).unwrap_err();
    assert!(matches!(error, AudioError::Digest), "{error:?}");
}

#[test]
fn another_digest_is_an_error_and_none_is_none() {
    let mut stream = Stream::noise(2, 16, 1152, 5);
    let whole = stream.bytes();
    let mut other_digest = whole.clone();
    other_digest[30] ^= 1;
    assert_eq!(check("digest", &other_digest).unwrap_err(), "Digest");
    let other_sample = stream.bytes_with(|n, frame| frame[2000] ^= u8::from(n == 3));
    assert_eq!(check("sample", &other_sample).unwrap_err(), "Digest");
    // what is missing is said first
    let cut = &other_digest[..other_digest.len() - 5000];
    let error = check("cut", cut).unwrap_err();
    assert_eq!(error, "Truncated { frames: 4608, promised: 6336 }");
    stream.digest = false;
    assert!(check("none", &stream.bytes()).unwrap() == check("whole", &whole).unwrap());
}

/// A kind of subframe that is reserved.
fn spoil(frame: &mut [u8]) {
    frame[8] = 0x04;
}

/// Left and difference, which has 33 bits: that is beyond the decoder.
fn overload(frame: &mut [u8]) {
    frame[3] = 0x80;
    frame[7] = crc(&frame[..7], 8, 0x07) as u8;
}

/// A batch has 32 frames for each thread.
#[test]
fn the_first_frame_that_fails_is_the_error() {
    let stream = Stream::noise(2, 32, 2048, 120);
    let panics = match cfg!(debug_assertions) {
        true => "Decoder",
        false => "Digest",
    };
    for (first, then, wanted) in [
        (0, 1, "Damaged { frame: 0,"),
        (1, 2, "Damaged { frame: 2048,"),
        (31, 32, "Damaged { frame: 63488,"),
        (40, 41, "Damaged { frame: 81920,"),
        (59, 100, "Damaged { frame: 120832,"),
        (119, 120, "Damaged { frame: 243712,"),
    ] {
        let bytes = stream.bytes_with(|n, frame| match n {
            n if n == first => spoil(frame),
            n if n == then => overload(frame),
            _ => {}
        });
        let error = check("damaged", &bytes).unwrap_err();
        assert!(error.starts_with(wanted), "{error}");
        let bytes = stream.bytes_with(|n, frame| match n {
            n if n == first => overload(frame),
            n if n == then && cfg!(debug_assertions) => spoil(frame),
            _ => {}
        });
        assert_eq!(check("panics", &bytes).unwrap_err(), panics);
    }
}

#[test]
fn damage_between_frames_is_what_it_is_to_one_decoder() {
    for file in ["speech_22k.flac", "stereo_24bit.flac"] {
        let whole = std::fs::read(fixture(&format!("media/{file}"))).unwrap();
        for place in (100..whole.len()).step_by(whole.len() / 20) {
            let mut bytes = whole.clone();
            bytes[place] ^= 0x10;
            let _ = check(&format!("{file}, byte {place}"), &bytes);
            let error = check(file, &whole[..whole.len() - place]).unwrap_err();
            assert!(error.starts_with("Truncated"), "{error}");
        }
    }
}

/// Bytes, and what comes after them.
struct Source {
    bytes: Cursor<Vec<u8>>,
    then: Then,
}

enum Then {
    /// The same bytes for ever.
    Repeat(Cursor<Vec<u8>>),
    /// The same, and after so many reads something else happens.
    Cancel(Cursor<Vec<u8>>, usize, Arc<CancelToken>),
    Fail,
    Panic,
}

impl Read for Source {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let read = self.bytes.read(to)?;
        if read > 0 {
            return Ok(read);
        }
        match &mut self.then {
            Then::Repeat(frame) => read_again(frame, to),
            Then::Cancel(frame, reads, cancel) => {
                *reads = reads.saturating_sub(1);
                if *reads == 0 {
                    cancel.cancel();
                }
                read_again(frame, to)
            }
            Then::Fail => Err(io::Error::from_raw_os_error(5)),
            Then::Panic => panic!("beyond the reader"),
        }
    }
}

fn read_again(frame: &mut Cursor<Vec<u8>>, to: &mut [u8]) -> io::Result<usize> {
    if frame.position() == frame.get_ref().len() as u64 {
        frame.set_position(0);
    }
    frame.read(to)
}

impl Seek for Source {
    fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl MediaSource for Source {
    fn is_seekable(&self) -> bool {
        false
    }

    fn byte_len(&self) -> Option<u64> {
        None
    }
}

fn decode_source(bytes: Vec<u8>, then: Then, cancel: &CancelToken) -> AudioError {
    let bytes = Cursor::new(bytes);
    let source = Box::new(Source { bytes, then });
    let decoded = on_threads(2, || decode_at_most(source, RATE, 20, cancel));
    decoded.unwrap().unwrap_err()
}

#[test]
fn a_reader_that_fails_comes_after_the_frames_before_it() {
    let stream = Stream::noise(2, 16, 2048, 80);
    let cancel = CancelToken::default();
    let cut = |mut bytes: Vec<u8>| {
        bytes.truncate(bytes.len() * 3 / 4);
        bytes
    };
    let error = decode_source(cut(stream.bytes()), Then::Fail, &cancel);
    assert!(
        matches!(&error, AudioError::Read(e) if e.raw_os_error() == Some(5)),
        "{error:?}"
    );
    let error = decode_source(cut(stream.bytes()), Then::Panic, &cancel);
    assert!(matches!(error, AudioError::Decoder), "{error:?}");
    for then in [Then::Fail, Then::Panic] {
        let damaged = stream.bytes_with(|n, frame| {
            if n == 57 {
                spoil(frame);
            }
        });
        let error = decode_source(cut(damaged), then, &cancel);
        let frame = 57 * 2048;
        assert!(
            matches!(error, AudioError::Damaged { frame: f, .. } if f == frame),
            "{error:?}"
        );
    }
}

/// A stream without an end: what is before its first frame, and the frame, which has number 0.
fn endless(channels: usize, block: usize, padding: usize) -> (Vec<u8>, Vec<u8>) {
    let stream = Stream::noise(channels, 8, block, 1);
    let mut header = stream.header();
    header[22..26].fill(0); // number of samples: unknown
    let mut frame = stream.frame(0);
    frame.resize(frame.len() + padding, 0);
    end_frame(&mut frame);
    (header, frame)
}

#[test]
fn an_endless_stream_ends_at_the_limit_or_where_it_is_interrupted() {
    for (channels, block) in [(1, 16), (8, 65_535)] {
        let (header, frame) = endless(channels, block, 0);
        let frame = Cursor::new(frame);
        let cancel = Arc::new(CancelToken::default());
        let error = decode_source(header.clone(), Then::Repeat(frame.clone()), &cancel);
        assert!(matches!(error, AudioError::TooLong), "{error:?}");
        let then = Then::Cancel(frame, 5, cancel.clone());
        let error = decode_source(header, then, &cancel);
        assert!(matches!(error, AudioError::Stopped), "{error:?}");
    }
    let cancel = CancelToken::default();
    cancel.cancel();
    let whole = Box::new(Cursor::new(Stream::noise(1, 16, 1000, 1).bytes()));
    let error = decode_until(whole, RATE, &cancel).unwrap_err();
    assert!(matches!(error, AudioError::Stopped), "{error:?}");
}

/// Frames of few samples, of most samples, and of few samples in many bytes.
#[test]
fn a_batch_is_bounded_by_packets_samples_and_bytes() {
    for (channels, block, padding, packets) in [
        (1, 16, 0, BATCH_PACKETS),
        (8, 65_535, 0, 1),
        (2, 4096, 0, 16),
        (1, 16, 300_000, 7),
    ] {
        let (bytes, frame) = endless(channels, block, padding);
        let (bytes, then) = (Cursor::new(bytes), Then::Repeat(Cursor::new(frame)));
        let stream = MediaSourceStream::new(
            Box::new(Source { bytes, then }),
            MediaSourceStreamOptions::default(),
        );
        let (options, metadata) = (FormatOptions::default(), MetadataOptions::default());
        let probe = symphonia::default::get_probe();
        let mut format = probe
            .probe(&Hint::new(), stream, options, metadata)
            .unwrap();
        let cancel = CancelToken::default();
        let mut reader = Reader {
            format: format.as_mut(),
            track: 0,
            channels,
            batch_samples: BATCH_SAMPLES,
            cancel: &cancel,
            is_over: false,
        };
        let mut batch = Batch::new(1);
        reader.fill(&mut batch);
        assert_eq!(batch.packets.len(), packets);
    }
}

#[test]
fn memory_of_an_unusual_batch_is_not_kept() {
    let mut share = Share {
        mono: vec![0.0; 2 * BATCH_SAMPLES],
        bytes: vec![0; 8 * BATCH_SAMPLES],
        failure: Some(Failure::Panic),
    };
    share.clear(BATCH_SAMPLES / 4);
    assert!(share.mono.is_empty() && share.bytes.is_empty() && share.failure.is_none());
    assert!(share.mono.capacity() <= BATCH_SAMPLES / 2);
    assert!(share.bytes.capacity() <= 2 * BATCH_SAMPLES);
}
