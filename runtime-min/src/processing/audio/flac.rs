//! FLAC, decoded by all threads of the current pool.
//!
//! No frame of FLAC depends on another one, and symphonia's decoder keeps nothing between packets
//! but the digest of the samples. So three batches of packets are worked on at the same time: the
//! packets of one are read and their checksums compared, those of the one before are decoded, each
//! decoder taking a share, and the samples of the one before that are hashed and resampled. The
//! result and the errors are those of a single decoder: of what fails, the first packet counts.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rayon::prelude::*;
use segpack_formats::io::CancelToken;
use symphonia::core::audio::conv::FromSample;
use symphonia::core::audio::{Audio, GenericAudioBufferRef};
use symphonia::core::checksum::Md5;
use symphonia::core::codecs::audio::well_known::CODEC_ID_FLAC;
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, VerificationCheck};
use symphonia::core::errors::{Error, unsupported_error};
use symphonia::core::formats::FormatReader;
use symphonia::core::formats::well_known::FORMAT_ID_FLAC;
use symphonia::core::io::Monitor;
use symphonia::core::packet::Packet;

use super::AudioError;
use super::clip::{Clip, mean};
use super::codec::{next_packet, open_decoder};

/// Samples of all channels that fill a batch, for each thread; its last packet may be beyond. In
/// larger batches threads wait for each other less often, smaller ones stay in caches.
const BATCH_SAMPLES: usize = 1 << 17;
/// Bytes that fill a batch; its last packet may be beyond.
const BATCH_BYTES: usize = 1 << 21;
/// Packets that fill a batch.
const BATCH_PACKETS: usize = 1 << 10;
/// Shares of a batch for each thread: the more, the less is waited for the last one.
const SHARES: usize = 8;
/// Threads that make batches larger. More of them would only wait for what is done in order.
const MAX_THREADS: usize = 4;
/// Channels of FLAC.
const MAX_CHANNELS: usize = 8;

/// Whether a track is FLAC in its own container. Frames whose header contradicts that of the stream
/// are not passed on there, so that channels and bits per sample never change.
pub(super) fn is_native(format: &dyn FormatReader, parameters: &AudioCodecParameters) -> bool {
    format.format_info().format == FORMAT_ID_FLAC && parameters.codec == CODEC_ID_FLAC
}

/// Decodes a track. Gives whether its samples have the MD5 digest that the file records; `None`: it
/// records none.
pub(super) fn decode_track(
    format: &mut dyn FormatReader,
    parameters: &AudioCodecParameters,
    track: u32,
    clip: &mut Clip,
    cancel: &CancelToken,
) -> Result<Option<bool>, AudioError> {
    let threads = rayon::current_num_threads().clamp(1, MAX_THREADS);
    let mut decoders = open_decoders(parameters, threads)?;
    let layout = Layout::of(decoders[0].codec_params());
    let mut batches: [Batch; 3] = std::array::from_fn(|_| Batch::new(decoders.len()));
    let mut reader = Reader {
        format,
        track,
        channels: layout.channels,
        batch_samples: BATCH_SAMPLES * threads,
        cancel,
        is_over: false,
    };
    let mut samples = Samples {
        clip,
        layout,
        md5: Md5::default(),
    };
    loop {
        // a batch is `next`, then `current`, then `done`
        let [next, current, done] = &mut batches;
        let work = || samples.take_and_decode(done, current, &mut decoders);
        let (taken, ()) = rayon::join(work, || reader.fill(next));
        if cancel.is_cancelled() {
            return Err(AudioError::Stopped);
        }
        taken?;
        if let Some(failure) = done.take_failure() {
            return Err(failure.after(samples.clip));
        }
        if done.is_last {
            return Ok(samples.has_digest());
        }
        batches.rotate_right(1);
    }
}

/// A decoder for each share of a batch; one thread has no use for several.
fn open_decoders(
    parameters: &AudioCodecParameters,
    threads: usize,
) -> Result<Vec<Box<dyn AudioDecoder>>, AudioError> {
    let shares = if threads == 1 { 1 } else { SHARES * threads };
    // the digest is of all samples in order, which no decoder sees
    let open = |_| open_decoder(parameters, false);
    (0..shares).map(open).collect()
}

/// Why there is nothing in the place of a packet or its samples.
enum Failure {
    Error(Error),
    /// Reader or decoder could not cope with the bytes.
    Panic,
}

impl Failure {
    /// The error, where the clip has the samples before.
    fn after(self, clip: &Clip) -> AudioError {
        match self {
            Self::Error(error) => clip.damaged(error),
            Self::Panic => AudioError::Decoder,
        }
    }
}

/// Makes a panic a failure with its place among the packets, as errors have. What panicked is not
/// used again.
fn guarded<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(Failure::Error),
        Err(_) => Err(Failure::Panic),
    }
}

/// Packets that are decoded together, and their samples.
struct Batch {
    packets: Vec<Packet>,
    /// What comes in place of one more packet.
    failure: Option<Failure>,
    /// Whether the packets end here.
    is_last: bool,
    /// One for each decoder.
    shares: Vec<Share>,
}

impl Batch {
    fn new(shares: usize) -> Self {
        Self {
            packets: Vec::new(),
            failure: None,
            is_last: false,
            shares: (0..shares).map(|_| Share::default()).collect(),
        }
    }

    /// Decodes the packets and lets them go.
    fn decode(&mut self, decoders: &mut [Box<dyn AudioDecoder>], layout: &Layout) {
        let usual = BATCH_SAMPLES / decoders.len().min(SHARES);
        self.shares.iter_mut().for_each(|share| share.clear(usual));
        let packets = self.packets.len().div_ceil(decoders.len()).max(1);
        let shares = self.packets.par_chunks(packets).zip(&mut self.shares);
        // without a maximum, one thread would take several shares at once
        let shares = shares.zip(decoders).with_max_len(1);
        shares.for_each(|((packets, share), decoder)| share.decode(packets, decoder, layout));
        self.packets.clear();
    }

    fn take_failure(&mut self) -> Option<Failure> {
        let mut shares = self.shares.iter_mut();
        let failure = shares.find_map(|share| share.failure.take());
        failure.or_else(|| self.failure.take())
    }
}

/// The samples of successive packets.
#[derive(Default)]
struct Share {
    /// The mean of the channels.
    mono: Vec<f32>,
    /// What the digest is of; empty where the file records none.
    bytes: Vec<u8>,
    /// What comes in place of the samples of one more packet.
    failure: Option<Failure>,
}

impl Share {
    /// Forgets the samples, and gives memory back where there were many more than usual.
    fn clear(&mut self, usual: usize) {
        self.mono.clear();
        self.mono.shrink_to(2 * usual);
        self.bytes.clear();
        self.bytes.shrink_to(8 * usual);
        self.failure = None;
    }

    fn decode(&mut self, packets: &[Packet], decoder: &mut Box<dyn AudioDecoder>, layout: &Layout) {
        for packet in packets {
            if let Err(failure) = guarded(|| self.push(packet, decoder.as_mut(), layout)) {
                self.failure = Some(failure);
                return;
            }
        }
    }

    fn push(
        &mut self,
        packet: &Packet,
        decoder: &mut dyn AudioDecoder,
        layout: &Layout,
    ) -> Result<(), Error> {
        let GenericAudioBufferRef::S32(samples) = decoder.decode(packet)? else {
            return unsupported_error("flac: samples are not integers of 32 bits");
        };
        let mut channels = [&[][..]; MAX_CHANNELS];
        channels
            .iter_mut()
            .zip(samples.iter_planes())
            .for_each(|(to, plane)| *to = plane);
        let channels = &channels[..samples.num_planes().min(MAX_CHANNELS)];
        push_mono(channels, &mut self.mono);
        if layout.digest.is_some() {
            layout.push_bytes(channels, &mut self.bytes);
        }
        Ok(())
    }
}

/// Appends the mean of the channels, of integers that take up 32 bits.
fn push_mono(channels: &[&[i32]], mono: &mut Vec<f32>) {
    match channels {
        [] => {}
        [one] => mono.extend(one.iter().map(|sample| f32::from_sample(*sample))),
        [left, right] => {
            let pairs = left.iter().zip(*right);
            mono.extend(pairs.map(|(l, r)| (f32::from_sample(*l) + f32::from_sample(*r)) / 2.0));
        }
        [first, ..] => mono.extend((0..first.len()).map(|n| mean_at(channels, n))),
    }
}

/// The mean of the channels at one time.
fn mean_at(channels: &[&[i32]], place: usize) -> f32 {
    let mut frame = [0.0; MAX_CHANNELS];
    let samples = channels
        .iter()
        .map(|channel| f32::from_sample(channel[place]));
    frame
        .iter_mut()
        .zip(samples)
        .for_each(|(to, sample)| *to = sample);
    mean(&frame[..channels.len()])
}

/// What all samples of a stream have in common.
struct Layout {
    rate: u32,
    channels: usize,
    /// Bits that samples have; those that a decoder gives have as many zeros below as 32 need.
    bits: u32,
    /// The digest that the file records.
    digest: Option<[u8; 16]>,
}

impl Layout {
    /// Of an opened decoder, which knows all of it.
    fn of(parameters: &AudioCodecParameters) -> Self {
        let channels = parameters.channels.as_ref();
        let digest = match parameters.verification_check {
            Some(VerificationCheck::Md5(digest)) => Some(digest),
            _ => None,
        };
        Self {
            rate: parameters.sample_rate.unwrap_or(0),
            channels: channels.map_or(0, |channels| channels.count()),
            bits: parameters.bits_per_sample.unwrap_or(32).clamp(1, 32),
            digest,
        }
    }

    /// Appends what a digest of FLAC is of: the channels in turns, in little-endian order, each
    /// sample in as many whole bytes as it needs.
    fn push_bytes(&self, channels: &[&[i32]], to: &mut Vec<u8>) {
        match self.bits.div_ceil(8) {
            1 => push_interleaved::<1>(channels, 32 - self.bits, to),
            2 => push_interleaved::<2>(channels, 32 - self.bits, to),
            3 => push_interleaved::<3>(channels, 32 - self.bits, to),
            _ => push_interleaved::<4>(channels, 32 - self.bits, to),
        }
    }
}

/// Appends the channels in turns, each sample moved down by `shift` bits and in `BYTES` bytes.
fn push_interleaved<const BYTES: usize>(channels: &[&[i32]], shift: u32, to: &mut Vec<u8>) {
    let begin = to.len();
    let samples: usize = channels.iter().map(|channel| channel.len()).sum();
    to.resize(begin + samples * BYTES, 0);
    let slots = to[begin..].as_chunks_mut::<BYTES>().0;
    // the processor takes several frames at once where it knows the number of channels
    if let [left, right] = channels {
        let frames = slots.as_chunks_mut::<2>().0;
        for ((frame, left), right) in frames.iter_mut().zip(*left).zip(*right) {
            *frame = [low_bytes(left >> shift), low_bytes(right >> shift)];
        }
        return;
    }
    for (number, channel) in channels.iter().enumerate() {
        let slots = slots.iter_mut().skip(number).step_by(channels.len());
        slots
            .zip(*channel)
            .for_each(|(slot, sample)| *slot = low_bytes(sample >> shift));
    }
}

fn low_bytes<const BYTES: usize>(sample: i32) -> [u8; BYTES] {
    let bytes = sample.to_le_bytes();
    std::array::from_fn(|n| bytes[n])
}

/// Reads packets.
struct Reader<'r> {
    format: &'r mut dyn FormatReader,
    track: u32,
    channels: usize,
    batch_samples: usize,
    cancel: &'r CancelToken,
    /// Whether nothing is to be read any more.
    is_over: bool,
}

impl Reader<'_> {
    /// Replaces the packets of a batch by the next ones.
    fn fill(&mut self, batch: &mut Batch) {
        batch.packets.clear();
        let (mut samples, mut bytes) = (0, 0);
        while samples < self.batch_samples
            && bytes < BATCH_BYTES
            && batch.packets.len() < BATCH_PACKETS
        {
            if self.is_over || self.cancel.is_cancelled() {
                return;
            }
            match guarded(|| next_packet(self.format)) {
                Ok(Some(packet)) if packet.track_id != self.track => {}
                Ok(Some(packet)) => {
                    // a frame has 1 to 65,535 samples for each channel: packets without any do not exist
                    let frames = usize::try_from(packet.dur.get()).unwrap_or(self.batch_samples);
                    samples += self.channels.saturating_mul(frames);
                    bytes += packet.data.len();
                    batch.packets.push(packet);
                }
                end => {
                    self.is_over = true;
                    batch.is_last = true;
                    batch.failure = end.err();
                }
            }
        }
    }
}

/// Takes samples in their order.
struct Samples<'s> {
    clip: &'s mut Clip,
    layout: Layout,
    /// Of the samples until now.
    md5: Md5,
}

impl Samples<'_> {
    /// Takes the samples of one batch while another one is decoded.
    fn take_and_decode(
        &mut self,
        done: &Batch,
        current: &mut Batch,
        decoders: &mut [Box<dyn AudioDecoder>],
    ) -> Result<(), AudioError> {
        let Self { clip, layout, md5 } = self;
        let shape = (layout.rate, layout.channels);
        let work = || hash_and_decode(md5, done, current, decoders, layout);
        let (pushed, ()) = rayon::join(|| push_samples(clip, shape, done), work);
        pushed
    }

    /// Whether the samples have the digest that the file records.
    fn has_digest(&self) -> Option<bool> {
        self.layout.digest.map(|digest| digest == self.md5.md5())
    }
}

/// Adds the samples of one batch to the digest while another one is decoded.
fn hash_and_decode(
    md5: &mut Md5,
    done: &Batch,
    current: &mut Batch,
    decoders: &mut [Box<dyn AudioDecoder>],
    layout: &Layout,
) {
    let hash = || hash_samples(md5, done);
    rayon::join(hash, || current.decode(decoders, layout));
}

fn hash_samples(md5: &mut Md5, done: &Batch) {
    for share in &done.shares {
        md5.process_buf_bytes(&share.bytes);
    }
}

/// Passes on the samples before the first failure.
fn push_samples(clip: &mut Clip, shape: (u32, usize), done: &Batch) -> Result<(), AudioError> {
    for share in &done.shares {
        clip.push_mono(&share.mono, shape)?;
        if share.failure.is_some() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
