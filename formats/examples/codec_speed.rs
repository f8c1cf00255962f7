//! What each codec makes of the tensors of a shard: ratio, and GB/s (10^9 raw bytes) of encoding
//! and decoding.
//!
//! `codec_speed SHARD [--match TEXT] [--passes N] [--threads N] [--limit BYTES] [--all]` prints one
//! JSON line for each codec (with `--all` for each set of instructions too). `expert_ms` is what
//! decoding the first three tensors into a reused slot takes. `tests/bench/codec` runs this beside
//! other programs.

#![expect(
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "a measurement that fails says so"
)]

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use segpack_formats::codec::{
    Chunk, ChunkDecoder, ChunkEncoder, Codec, Coding, Simd, chunk_lengths,
};
use segpack_formats::safetensors::{Dtype, Shard};

struct Arguments {
    shard: PathBuf,
    passes: usize,
    threads: usize,
    limit: usize,
    wanted: String,
    all: bool,
}

/// Tensors of an expert: gate, up and down.
const EXPERT_TENSORS: usize = 3;
/// Chunks that a thread decodes before it comes back to the first one's place: what a slot of an
/// expert takes.
const RING_CHUNKS: usize = 5;

fn arguments() -> Arguments {
    let mut all = std::env::args().skip(1);
    let mut found = Arguments {
        shard: PathBuf::new(),
        passes: 5,
        threads: 1,
        limit: 1 << 28,
        wanted: String::new(),
        all: false,
    };
    while let Some(argument) = all.next() {
        let mut number = || {
            all.next()
                .and_then(|n| n.parse().ok())
                .expect("a number after the option")
        };
        match argument.as_str() {
            "--all" => found.all = true,
            "--match" => found.wanted = all.next().expect("a part of a name"),
            "--passes" => found.passes = number(),
            "--threads" => found.threads = number(),
            "--limit" => found.limit = number(),
            shard => found.shard = shard.into(),
        }
    }
    found
}

/// The shard's first tensors, up to the limit.
fn tensors(arguments: &Arguments) -> Vec<(Dtype, Vec<u8>)> {
    let shard = Shard::open(&arguments.shard).expect("a safetensors file");
    let (mut all, mut bytes) = (Vec::new(), 0);
    for t in shard
        .header
        .tensors
        .iter()
        .filter(|t| t.name.contains(&arguments.wanted))
    {
        let raw = shard
            .input
            .read_range(t.offset..t.offset + t.length)
            .expect("the tensor's bytes");
        bytes += raw.len();
        all.push((t.dtype, raw));
        if bytes >= arguments.limit {
            break;
        }
    }
    all
}

/// A chunk's raw bytes, how it is coded, and its stored bytes.
struct Coded<'a> {
    dtype: Dtype,
    raw: &'a [u8],
    chunk: Chunk,
    stored: Vec<u8>,
}

fn chunks(tensors: &[(Dtype, Vec<u8>)]) -> Vec<(Dtype, &[u8])> {
    let mut all = Vec::new();
    for (dtype, raw) in tensors {
        let mut rest = &raw[..];
        for length in chunk_lengths(raw.len() as u64) {
            let (chunk, later) = rest.split_at(length as usize);
            all.push((*dtype, chunk));
            rest = later;
        }
    }
    all
}

/// Median of the seconds that `run` takes.
fn median(passes: usize, mut run: impl FnMut()) -> f64 {
    let mut seconds: Vec<f64> = (0..passes)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[passes / 2]
}

/// One thread's.
struct Worker {
    decoder: ChunkDecoder,
    buffers: Vec<Vec<u8>>,
}

impl Worker {
    fn new(simd: Simd, most: usize) -> Self {
        let decoder = ChunkDecoder::with_simd(simd).expect("a decoder");
        Self {
            decoder,
            buffers: vec![vec![0; most]; RING_CHUNKS],
        }
    }

    fn decode(&mut self, share: &[Coded<'_>], checked: bool) {
        for (i, c) in share.iter().enumerate() {
            let to = &mut self.buffers[i % RING_CHUNKS][..c.raw.len()];
            let decoded = if checked {
                self.decoder.decode(&c.chunk, &c.stored, to)
            } else {
                self.decoder.decode_unchecked(&c.chunk, &c.stored, to)
            };
            decoded.expect("what was coded just now");
            black_box(&to);
        }
    }
}

/// Every thread decodes its share into reused buffers of its own, as an expert is loaded.
fn decode_all(coded: &[Coded<'_>], workers: &mut [Worker], checked: bool) {
    let shares = coded.chunks(coded.len().div_ceil(workers.len()).max(1));
    match workers {
        [only] => only.decode(coded, checked),
        many => std::thread::scope(|scope| {
            for (worker, share) in many.iter_mut().zip(shares) {
                scope.spawn(move || worker.decode(share, checked));
            }
        }),
    }
}

fn main() {
    let arguments = arguments();
    let tensors = tensors(&arguments);
    let chunks = chunks(&tensors);
    let sets = if arguments.all {
        Simd::available()
    } else {
        vec![Simd::best()]
    };
    for codec in Codec::ALL.into_iter().filter(|c| *c != Codec::Raw) {
        for simd in &sets {
            measure(&arguments, codec, *simd, &tensors, &chunks);
        }
    }
}

fn measure(
    arguments: &Arguments,
    codec: Codec,
    simd: Simd,
    tensors: &[(Dtype, Vec<u8>)],
    chunks: &[(Dtype, &[u8])],
) {
    let bytes: usize = chunks.iter().map(|(_, raw)| raw.len()).sum();
    let most = chunks.iter().map(|(_, raw)| raw.len()).max().unwrap_or(0);
    let mut encoder = ChunkEncoder::with_simd(Coding::of(codec, None), simd).expect("an encoder");
    let mut encode = |dtype: Dtype, raw: &[u8]| {
        black_box(
            encoder
                .encode(dtype, raw, 0, 0)
                .expect("an encoder that works"),
        );
    };
    let encoding = median(arguments.passes, || {
        chunks.iter().for_each(|(dtype, raw)| encode(*dtype, raw));
    });
    let mut encoder = ChunkEncoder::with_simd(Coding::of(codec, None), simd).expect("an encoder");
    let coded: Vec<Coded<'_>> = chunks
        .iter()
        .map(|(dtype, raw)| {
            let (chunk, stored) = encoder
                .encode(*dtype, raw, 0, 0)
                .expect("an encoder that works");
            Coded {
                dtype: *dtype,
                raw,
                chunk,
                stored: stored.to_vec(),
            }
        })
        .collect();
    let mut checking = ChunkDecoder::with_simd(simd).expect("a decoder");
    for c in &coded {
        let mut back = vec![0; c.raw.len()];
        checking
            .decode(&c.chunk, &c.stored, &mut back)
            .expect("what was coded just now");
        assert!(back == c.raw, "{codec} {simd:?} {}", c.dtype);
    }
    let mut workers: Vec<Worker> = (0..arguments.threads)
        .map(|_| Worker::new(simd, most))
        .collect();
    let checked = median(arguments.passes, || decode_all(&coded, &mut workers, true));
    let unchecked = median(arguments.passes, || decode_all(&coded, &mut workers, false));
    let of_expert = tensors
        .iter()
        .take(EXPERT_TENSORS)
        .map(|(_, raw)| chunk_lengths(raw.len() as u64).count())
        .sum();
    let expert = &coded[..of_expert];
    let expert_seconds = median(20 * arguments.passes, || {
        decode_all(expert, &mut workers, false);
    });
    let stored: usize = coded.iter().map(|c| c.stored.len()).sum();
    let rate = |seconds: f64| bytes as f64 / seconds / 1e9;
    println!(
        "{{\"codec\":\"{codec}\",\"simd\":\"{simd:?}\",\"threads\":{},\"bytes\":{bytes},\"ratio\":{:.5},\
         \"encode\":{:.3},\"decode\":{:.3},\"decode_checked\":{:.3},\"expert_ms\":{:.3}}}",
        arguments.threads,
        stored as f64 / bytes as f64,
        rate(encoding),
        rate(unchecked),
        rate(checked),
        expert_seconds * 1e3,
    );
}
