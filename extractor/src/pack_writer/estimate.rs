//! How long coded packs will be, from a sample of the bytes that go into them.
//!
//! Tensors of one kind (component, role, part, dtype) code alike, so each kind is sampled by itself:
//! chunks as the writer would cut them, spread evenly over all its layers and experts, coded as the
//! writer would code them. Kinds whose chunks differ most are sampled again, until the error to be
//! expected of the sum is small or the sample is large. A small checkpoint is coded whole.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use segpack_formats::FormatError;
use segpack_formats::codec::{
    ChunkEncoder, Coding, PREFIX_BYTES, RAW_CHUNK_BYTES, TABLE_ENTRY_BYTES, chunk_lengths,
};
use segpack_formats::io::to_usize;
use segpack_formats::numeric::Dtype;
use segpack_formats::pack::ALIGNMENT;
use segpack_manifests::documents::{PlannedPack, PlannedSegment, PlannedTensor};
use segpack_manifests::names::{Component, Part, Role};

use super::memory_of;
use crate::work::{Job, jobs_within_memory, run_tasks};

/// Reads bytes of a planned tensor, counted from its first.
pub(crate) type ReadTensor<'a> =
    dyn Fn(&PlannedTensor, Range<u64>, &mut [u8]) -> Result<(), FormatError> + Sync + 'a;

/// Raw bytes of a sample.
#[derive(Debug, Clone, Copy)]
struct SampleSize {
    /// Of the first one. What has no more is coded whole.
    first: u64,
    /// Of all together; exceeded by the last one.
    max_bytes: u64,
}

const SAMPLE_SIZE: SampleSize = SampleSize {
    first: 192 << 20,
    max_bytes: 2 << 30,
};
/// Chunks of a kind in the first sample, at least, where it is this part of all bytes: fewer might
/// miss what makes its chunks differ.
const MIN_CHUNKS: usize = 24;
const LARGE_PART: u64 = 100;
/// The same for a kind that is less.
const MIN_CHUNKS_OF_SMALL: usize = 4;
/// The standard error of the sum at which the sample is large enough: a quarter of what is promised.
const WANTED_ERROR: f64 = 0.005;

/// What coding packs will come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Estimate {
    /// Lengths of the packs' files, in their order.
    pub packs: Vec<u64>,
    /// Raw bytes that were coded to find out.
    pub sampled: u64,
    /// Whether that was all of them, so that the lengths are exact.
    pub exact: bool,
}

/// Tensors that code alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    component: Component,
    role: Role,
    part: Part,
    dtype: Dtype,
}

/// One chunk that the writer would write.
struct Chunk<'a> {
    tensor: &'a PlannedTensor,
    range: Range<u64>,
    /// Coded bytes; [`UNKNOWN`] where it was not coded.
    coded: AtomicU64,
}

const UNKNOWN: u64 = u64::MAX;

impl<'a> Chunk<'a> {
    fn new(tensor: &'a PlannedTensor, range: Range<u64>) -> Self {
        Self {
            tensor,
            range,
            coded: AtomicU64::new(UNKNOWN),
        }
    }

    fn raw(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn coded(&self) -> Option<u64> {
        let coded = self.coded.load(Ordering::Relaxed);
        (coded != UNKNOWN).then_some(coded)
    }

    /// Raw and coded bytes, where it was coded.
    #[expect(clippy::cast_precision_loss, reason = "far less than 2^53 bytes")]
    fn lengths(&self) -> Option<(f64, f64)> {
        Some((self.raw() as f64, self.coded()? as f64))
    }
}

/// Estimates the lengths of packs that are coded in this way.
///
/// # Errors
/// Whatever `read` returns; `Interrupted`.
pub(crate) fn estimate(
    packs: &[&PlannedPack],
    coding: Coding,
    read: &ReadTensor<'_>,
    job: Job<'_>,
) -> Result<Estimate, FormatError> {
    estimate_from(SAMPLE_SIZE, packs, coding, read, job)
}

fn estimate_from(
    size: SampleSize,
    packs: &[&PlannedPack],
    coding: Coding,
    read: &ReadTensor<'_>,
    job: Job<'_>,
) -> Result<Estimate, FormatError> {
    let mut chunks = Vec::new();
    let mut tensors = Vec::new();
    let mut kinds: BTreeMap<Kind, Vec<Range<usize>>> = BTreeMap::new();
    for (pack, tensor) in packs.iter().flat_map(|pack| tensors_of(pack)) {
        let kind = Kind {
            component: pack.component,
            role: tensor.role,
            part: tensor.part,
            dtype: tensor.dtype,
        };
        let begin = chunks.len();
        chunks.extend(chunk_ranges(tensor).map(|range| Chunk::new(tensor, range)));
        tensors.push(begin..chunks.len());
        kinds.entry(kind).or_default().push(begin..chunks.len());
    }
    let mut strata: Vec<Stratum<'_, '_>> = kinds
        .values()
        .map(|tensors| Stratum::new(&chunks, tensors))
        .collect();
    let sampled = sample(size, &mut strata, coding, read, job)?;
    let mut lengths = lengths_of(&chunks, &tensors, &strata).into_iter();
    Ok(Estimate {
        packs: packs
            .iter()
            .map(|pack| pack_length(pack, &mut lengths))
            .collect(),
        sampled,
        exact: chunks.iter().all(|chunk| chunk.coded().is_some()),
    })
}

/// The coded lengths of all chunks. One that was not coded is taken to be like those of its tensor
/// that were, or else like those of its kind.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "estimates of less than 2^53 bytes"
)]
fn lengths_of(
    chunks: &[Chunk<'_>],
    tensors: &[Range<usize>],
    strata: &[Stratum<'_, '_>],
) -> Vec<u64> {
    let mut ratios = vec![1.0; chunks.len()];
    for stratum in strata {
        let ratio = stratum.ratio();
        stratum.members.iter().for_each(|i| ratios[*i] = ratio);
    }
    for tensor in tensors {
        let own = ratio_of(chunks[tensor.clone()].iter().filter_map(Chunk::lengths));
        if let Some(own) = own {
            ratios[tensor.clone()].fill(own);
        }
    }
    let guess = |(chunk, ratio): (&Chunk<'_>, f64)| (chunk.raw() as f64 * ratio).round() as u64;
    let pairs = chunks.iter().zip(ratios);
    pairs
        .map(|pair| pair.0.coded().unwrap_or_else(|| guess(pair)))
        .collect()
}

/// Coded bytes for each raw byte, where there are any.
fn ratio_of(chunks: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (raw, coded) = chunks.fold((0.0, 0.0), |(r, c), (raw, coded)| (r + raw, c + coded));
    (raw > 0.0).then(|| coded / raw)
}

fn tensors_of(pack: &PlannedPack) -> impl Iterator<Item = (&PlannedPack, &PlannedTensor)> {
    let tensors = pack.segments.iter().flat_map(|s| &s.tensors);
    tensors.map(move |tensor| (pack, tensor))
}

fn chunk_ranges(tensor: &PlannedTensor) -> impl Iterator<Item = Range<u64>> {
    let mut start = 0;
    chunk_lengths(tensor.source.length).map(move |length| {
        let range = start..start + length;
        start = range.end;
        range
    })
}

/// The length of a pack whose chunks, in order, have these lengths.
fn pack_length(pack: &PlannedPack, lengths: &mut impl Iterator<Item = u64>) -> u64 {
    let segments = pack.segments.iter();
    let stored: u64 = segments.map(|s| segment_length(s, lengths)).sum();
    pack.data_offset + stored
}

/// As the writer does it: a table, the chunks, padding; or raw where that is no longer.
fn segment_length(segment: &PlannedSegment, lengths: &mut impl Iterator<Item = u64>) -> u64 {
    let chunks = segment.tensors.iter().flat_map(chunk_ranges).count();
    let coded: u64 = lengths.take(chunks).sum();
    let table = PREFIX_BYTES + chunks as u64 * TABLE_ENTRY_BYTES;
    let padded = (table + coded).next_multiple_of(ALIGNMENT);
    padded.min(segment.raw_length)
}

/// The chunks of one kind.
struct Stratum<'c, 'a> {
    chunks: &'c [Chunk<'a>],
    /// Their numbers, in the order in which they are sampled.
    members: Vec<usize>,
    raw: u64,
    /// How many of the members are in the sample.
    taken: usize,
}

impl<'c, 'a> Stratum<'c, 'a> {
    /// The kind of these chunks: those of each tensor by themselves.
    fn new(chunks: &'c [Chunk<'a>], tensors: &[Range<usize>]) -> Self {
        let members = sampling_order(tensors);
        Self {
            raw: members.iter().map(|i| chunks[*i].raw()).sum(),
            chunks,
            members,
            taken: 0,
        }
    }

    /// Takes more members into the sample.
    fn take(&mut self, count: usize) -> &[usize] {
        let begin = self.taken;
        self.taken = self.members.len().min(begin.saturating_add(count));
        &self.members[begin..self.taken]
    }

    fn sampled(&self) -> impl Iterator<Item = (f64, f64)> {
        let taken = &self.members[..self.taken];
        taken.iter().filter_map(|i| self.chunks[*i].lengths())
    }

    /// Coded bytes for each raw byte.
    fn ratio(&self) -> f64 {
        ratio_of(self.sampled()).unwrap_or(1.0)
    }

    /// The variance to be expected of the estimated bytes of all its chunks.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn variance(&self) -> f64 {
        let (n, total, ratio) = (self.taken as f64, self.members.len() as f64, self.ratio());
        if self.taken == self.members.len() || self.taken < 2 {
            return 0.0;
        }
        let squares: f64 = self
            .sampled()
            .map(|(raw, coded)| (coded - ratio * raw).powi(2))
            .sum();
        let mean_raw = self.sampled().map(|(raw, _)| raw).sum::<f64>() / n;
        let relative = squares / (n - 1.0) / (mean_raw * mean_raw);
        (self.raw as f64).powi(2) * relative / n * (1.0 - n / total)
    }
}

/// The order in which chunks are sampled: one of each tensor, then a second of each, and so on; the
/// tensors, and the chunks of each, in an order that is spread evenly wherever it ends.
fn sampling_order(tensors: &[Range<usize>]) -> Vec<usize> {
    let chunks: Vec<Vec<usize>> = spread(tensors.len())
        .into_iter()
        .map(|t| {
            spread(tensors[t].len())
                .into_iter()
                .map(|i| tensors[t].start + i)
                .collect()
        })
        .collect();
    let longest = chunks.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest)
        .flat_map(|round| chunks.iter().filter_map(move |c| c.get(round).copied()))
        .collect()
}

/// The numbers below `count`, in an order of which every beginning is spread evenly over them.
fn spread(count: usize) -> Vec<usize> {
    /// The golden ratio's fraction, in units of 2^-64: its multiples fill an interval evenly, in any
    /// number, and keep step with no period of layers or experts.
    const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut order = Vec::with_capacity(count);
    let mut is_taken = vec![false; count];
    for n in 0..count as u64 {
        let wide = u128::from(n.wrapping_mul(STRIDE)) * count as u128;
        let mut at = usize::try_from(wide >> 64).unwrap_or(0);
        while is_taken[at] {
            at = (at + 1) % count;
        }
        is_taken[at] = true;
        order.push(at);
    }
    order
}

/// Codes a sample of every kind; returns its raw bytes.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn sample(
    size: SampleSize,
    strata: &mut [Stratum<'_, '_>],
    coding: Coding,
    read: &ReadTensor<'_>,
    job: Job<'_>,
) -> Result<u64, FormatError> {
    let total: u64 = strata.iter().map(|s| s.raw).sum();
    let mut sampled = 0;
    let mut counts: Vec<usize> = strata.iter().map(|s| first_count(size, s, total)).collect();
    loop {
        let mut chosen = Vec::new();
        for (stratum, count) in strata.iter_mut().zip(&counts) {
            let chunks = stratum.chunks;
            chosen.extend(stratum.take(*count).iter().map(|i| &chunks[*i]));
        }
        code(&chosen, coding, read, job)?;
        sampled += chosen.iter().map(|c| c.raw()).sum::<u64>();
        let estimated: f64 = strata.iter().map(|s| s.raw as f64 * s.ratio()).sum();
        let variances: Vec<f64> = strata.iter().map(Stratum::variance).collect();
        let variance: f64 = variances.iter().sum();
        if variance.sqrt() <= WANTED_ERROR * estimated || sampled >= size.max_bytes {
            return Ok(sampled);
        }
        // of those that the error comes from, half as many again
        let large = variance / (2 * strata.len()) as f64;
        let more = strata.iter().zip(variances);
        counts = more
            .map(|(s, v)| if v > large { s.taken.div_ceil(2) } else { 0 })
            .collect();
    }
}

/// Chunks of a kind in the first sample: its share of the bytes, or all where they are few.
fn first_count(size: SampleSize, stratum: &Stratum<'_, '_>, total: u64) -> usize {
    if total <= size.first {
        return stratum.members.len();
    }
    let share = u128::from(size.first) * u128::from(stratum.raw) / u128::from(total.max(1));
    let chunks = u64::try_from(share).unwrap_or(u64::MAX) / RAW_CHUNK_BYTES;
    let min_chunks = if stratum.raw >= total / LARGE_PART {
        MIN_CHUNKS
    } else {
        MIN_CHUNKS_OF_SMALL
    };
    to_usize(chunks).max(min_chunks)
}

/// Codes chunks and keeps their lengths.
fn code(
    chunks: &[&Chunk<'_>],
    coding: Coding,
    read: &ReadTensor<'_>,
    job: Job<'_>,
) -> Result<(), FormatError> {
    job.progress
        .start("estimating", chunks.iter().map(|c| c.raw()).sum());
    let jobs = jobs_within_memory(job.threads, memory_of(coding));
    let coder = || {
        Ok((
            ChunkEncoder::new(coding)?,
            vec![0; to_usize(RAW_CHUNK_BYTES)],
        ))
    };
    let done = run_tasks(jobs, chunks, coder, |(encoder, buffer), chunk| {
        job.stop.check()?;
        let raw = &mut buffer[..to_usize(chunk.raw())];
        read(chunk.tensor, chunk.range.clone(), raw)?;
        let (_, coded) = encoder.encode(chunk.tensor.dtype, raw, 0, 0)?;
        chunk.coded.store(coded.len() as u64, Ordering::Relaxed);
        job.progress.advance(chunk.raw());
        Ok(())
    });
    job.progress.finish();
    done
}

#[cfg(test)]
mod tests {
    use segpack_formats::io::CancelToken;
    use serde_json::json;

    use super::*;
    use crate::work::Silent;

    const EXPERT: u64 = 256 << 10;

    /// One pack of experts, an expert and a segment each.
    fn plan(experts: u64, dtype: &str) -> PlannedPack {
        let width = dtype.parse::<Dtype>().unwrap().byte_width().unwrap();
        let segments = (0..experts).map(|e| {
            let source = json!({
                "file": "shard", "tensor": e.to_string(), "offset": e * EXPERT, "length": EXPERT
            });
            let tensor = json!({
                "name": e.to_string(), "dtype": dtype, "shape": [EXPERT / width as u64],
                "role": "expert_gate", "expert": e, "source": source
            });
            json!({"id": format!("e{e}"), "raw_length": EXPERT, "tensors": [tensor]})
        });
        serde_json::from_value(json!({
            "path": "packs/x", "component": "text", "data_offset": 4096, "length": 0,
            "segments": segments.collect::<Vec<_>>()
        }))
        .unwrap()
    }

    /// Values of a bell curve, as weights are; their width depends on the expert, and those of
    /// each fourth have one exponent.
    fn weights(
        tensor: &PlannedTensor,
        range: Range<u64>,
        to: &mut [u8],
    ) -> Result<(), FormatError> {
        let expert = u64::from(tensor.expert.unwrap());
        let mut state = expert << 40 | range.start;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as f32 / (1_u64 << 31) as f32
        };
        let width = 0.01 * (1 << (expert / 24)) as f32;
        for pair in to.chunks_exact_mut(2) {
            let bell: f32 = if expert % 4 == 3 {
                1.0 + random()
            } else {
                (0..6).map(|_| random() - 0.5).sum()
            };
            pair.copy_from_slice(&((bell * width).to_bits() >> 16).to_le_bytes()[..2]);
        }
        Ok(())
    }

    fn estimate_of(size: SampleSize, pack: &PlannedPack) -> Estimate {
        let job = Job {
            threads: 2,
            stop: &CancelToken::default(),
            progress: &Silent,
        };
        estimate_from(size, &[pack], Coding::Bf16Rans, &weights, job).unwrap()
    }

    #[test]
    fn a_sample_of_uneven_experts_is_within_two_percent() {
        let pack = plan(96, "BF16");
        let whole = SampleSize {
            first: u64::MAX,
            max_bytes: u64::MAX,
        };
        let exact = estimate_of(whole, &pack);
        assert!(exact.exact && exact.sampled == 96 * EXPERT, "{exact:?}");
        let some = SampleSize {
            first: 1,
            max_bytes: 12 << 20,
        };
        let guess = estimate_of(some, &pack);
        assert!(!guess.exact && guess.sampled < exact.sampled, "{guess:?}");
        let difference = guess.packs[0].abs_diff(exact.packs[0]);
        assert!(difference * 50 < exact.packs[0], "{guess:?} {exact:?}");
        assert!(exact.packs[0] < 96 * EXPERT * 7 / 10, "{exact:?}");
    }

    #[test]
    fn samples_are_spread_and_never_repeated() {
        // two tensors of four chunks and one of one
        let order = sampling_order(&[0..4, 4..5, 5..9]);
        let tensors: Vec<_> = order
            .iter()
            .map(|i| (*i >= 4) as u8 + (*i >= 5) as u8)
            .collect();
        assert_eq!(tensors[..3].iter().sum::<u8>(), 3, "{order:?}");
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..9).collect::<Vec<_>>());
        for count in [1, 2, 7, 100] {
            let first = spread(count);
            let low = first[..count / 2]
                .iter()
                .filter(|i| **i < count / 2)
                .count();
            assert!(low.abs_diff(count / 4) <= 1, "{first:?}");
        }
    }
}
