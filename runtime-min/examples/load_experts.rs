//! How long one expert takes to come into a reused slot, from a cold page cache and from a warm
//! one, checked and not: `cargo run --release -p segpack-runtime-min --example load_experts --
//! PACK…`. Packs of several codecs are measured in turns.

use std::time::Instant;

use segpack_formats::io::{CancelToken, InputFile};
use segpack_manifests::Pack;
use segpack_manifests::PackReader;
use segpack_manifests::documents::SegmentEntry;
use segpack_runtime_min::weights::{Arena, Block};
use segpack_runtime_min::weights::{ChecksumPolicy, Load, Loader, buffer_len};

/// Experts of each figure.
const EXPERTS: usize = 60;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let packs: Result<Vec<Pack>, _> = std::env::args()
        .skip(1)
        .map(|p| Pack::open(p.as_ref()))
        .collect();
    let packs = packs?;
    println!(
        "{:<10} {:<6} {:<8} {:>8} {:>8}",
        "codec", "cache", "digests", "ms", "GB/s raw"
    );
    for cold in [true, false] {
        for check in [ChecksumPolicy::Always, ChecksumPolicy::Never] {
            // in turns, so that a noisy machine is noisy for all
            let mut times: Vec<Vec<f64>> = vec![Vec::new(); packs.len()];
            for turn in 0..3 {
                for (pack, times) in packs.iter().zip(&mut times) {
                    times.extend(measure(pack, check, cold, turn)?);
                }
            }
            for (pack, mut times) in packs.iter().zip(times) {
                times.sort_by(f64::total_cmp);
                let median = times[times.len() / 2];
                let expert = experts(pack)[0];
                #[expect(clippy::cast_precision_loss, reason = "a rate")]
                let rate = expert.raw_length as f64 / median / 1e9;
                let (cache, digests) = (
                    if cold { "cold" } else { "warm" },
                    if check == ChecksumPolicy::Always {
                        "checked"
                    } else {
                        "not"
                    },
                );
                println!(
                    "{:<10} {cache:<6} {digests:<8} {:>8.2} {rate:>8.2}",
                    expert.codec.name(),
                    median * 1e3
                );
            }
        }
    }
    Ok(())
}

fn experts(pack: &Pack) -> Vec<&SegmentEntry> {
    pack.manifest()
        .segments
        .iter()
        .filter(|s| s.id.contains(".experts."))
        .collect()
}

fn measure(
    pack: &Pack,
    check: ChecksumPolicy,
    cold: bool,
    turn: usize,
) -> Result<Vec<f64>, Failure> {
    let source = PackReader::new(pack);
    let (loader, stop) = (Loader::new(&source, check)?, CancelToken::default());
    let experts = experts(pack);
    let room = experts
        .iter()
        .map(|s| buffer_len(s))
        .max()
        .ok_or("the pack has no experts")?;
    let room = usize::try_from(room)?;
    let mut slot: Block = Arena::new(room)?.take(room)?;
    let mut load =
        |segment: &SegmentEntry| loader.load(&mut [Load::plain(segment, &mut slot)], &stop);
    load(experts[0])?; // the first touch of the slot
    let mut times = Vec::new();
    for i in 0..EXPERTS / 3 {
        let segment = experts[(turn * EXPERTS + i * 7 + 1) % experts.len()];
        let file = InputFile::open(&pack.path(&segment.pack))?;
        if cold {
            file.forget();
        } else {
            file.read_range(segment.offset..segment.offset + segment.stored_length)?;
        }
        let began = Instant::now();
        load(segment)?;
        times.push(began.elapsed().as_secs_f64());
    }
    Ok(times)
}
