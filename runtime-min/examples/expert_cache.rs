//! Which expert should make room: hit rates of the two policies of the cache, on made-up routings
//! of a model of 48 layers of 128 experts, 8 for a token: `cargo run --release -p
//! segpack-runtime-min --example expert_cache`.
//!
//! Real routings lie between the extremes: each layer has favourites (Zipf), and a token tends to
//! go where the one before went (reuse). A prompt visits nearly every expert of a layer before the
//! text begins.

use segpack_runtime_min::weights::{Eviction, ExpertCache};

const LAYERS: u32 = 48;
const EXPERTS: u32 = 128;
const BEST: usize = 8;
const PROMPT: usize = 200;
const TOKENS: usize = 500;

struct Noise(u64);

impl Noise {
    /// Uniform in [0, 1).
    fn next(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(self.0 >> 33).unwrap_or(0)) / f64::from(1_u32 << 31)
    }
}

/// How experts are chosen.
struct Routing {
    name: &'static str,
    /// The n-th favourite of a layer is chosen as often as n^-skew says.
    skew: f64,
    /// Share of choices that repeat one of the token before.
    reuse: f64,
    /// Tokens after which every layer has other favourites.
    drift: usize,
}

fn weights(skew: f64) -> Vec<f64> {
    let each = (1..=EXPERTS).map(|n| f64::from(n).powf(-skew));
    let mut sum = 0.0;
    each.map(|w| {
        sum += w;
        sum
    })
    .collect()
}

fn choose(
    routing: &Routing,
    sums: &[f64],
    noise: &mut Noise,
    before: &[u32],
    epoch: usize,
    layer: u32,
) -> Vec<u32> {
    let mut chosen: Vec<u32> = Vec::new();
    while chosen.len() < BEST {
        let expert = if !before.is_empty() && noise.next() < routing.reuse {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an index"
            )]
            let i = (noise.next() * 8.0) as usize;
            before[i.min(BEST - 1)]
        } else {
            let place = noise.next() * sums.last().copied().unwrap_or(1.0);
            let rank = u32::try_from(sums.partition_point(|s| *s < place)).unwrap_or(0);
            // another order of favourites in every layer and epoch
            let shift = layer * 37 + u32::try_from(epoch).unwrap_or(0) * 53;
            (rank * 29 + shift) % EXPERTS
        };
        if !chosen.contains(&expert) {
            chosen.push(expert);
        }
    }
    chosen
}

/// The hit rate of the text after the prompt.
fn hit_rate(routing: &Routing, eviction: Eviction, slots: usize) -> f64 {
    let (sums, mut noise) = (weights(routing.skew), Noise(7));
    let mut cache = ExpertCache::new(vec![(); slots], eviction);
    let mut last = vec![Vec::new(); LAYERS as usize];
    let visit = |cache: &mut ExpertCache<()>, layer: u32, expert: u32| {
        let key = (layer, expert);
        if !cache.touch(key) && cache.take(|_| false).is_some() {
            cache.put(key, ());
        }
    };
    for layer in 0..LAYERS {
        let mut visited = vec![false; EXPERTS as usize];
        for _ in 0..PROMPT {
            let chosen = choose(routing, &sums, &mut noise, &last[layer as usize], 0, layer);
            chosen.iter().for_each(|e| visited[*e as usize] = true);
            last[layer as usize] = chosen;
        }
        (0..EXPERTS)
            .filter(|e| visited[*e as usize])
            .for_each(|e| visit(&mut cache, layer, e));
    }
    let before = cache.stats();
    for token in 0..TOKENS {
        for layer in 0..LAYERS {
            let epoch = token / routing.drift;
            let mut chosen = choose(
                routing,
                &sums,
                &mut noise,
                &last[layer as usize],
                epoch,
                layer,
            );
            chosen.sort_unstable();
            chosen.iter().for_each(|e| visit(&mut cache, layer, *e));
            last[layer as usize] = chosen;
        }
    }
    let (hits, misses) = (
        cache.stats().hits - before.hits,
        cache.stats().misses - before.misses,
    );
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let rate = hits as f64 / (hits + misses) as f64;
    rate
}

fn main() {
    let routings = [
        Routing {
            name: "even",
            skew: 0.0,
            reuse: 0.0,
            drift: usize::MAX,
        },
        Routing {
            name: "even, reuse 30 %",
            skew: 0.0,
            reuse: 0.3,
            drift: usize::MAX,
        },
        Routing {
            name: "favourites",
            skew: 0.8,
            reuse: 0.0,
            drift: usize::MAX,
        },
        Routing {
            name: "favourites, reuse 30 %",
            skew: 0.8,
            reuse: 0.3,
            drift: usize::MAX,
        },
        Routing {
            name: "the same, changing every 100",
            skew: 0.8,
            reuse: 0.3,
            drift: 100,
        },
    ];
    println!("{:<30} {:>6} {:>8} {:>8}", "routing", "slots", "LRU", "LFU");
    for routing in &routings {
        for percent in [10, 25, 50] {
            let slots = (LAYERS * EXPERTS * percent / 100) as usize;
            let rate = |eviction| 100.0 * hit_rate(routing, eviction, slots);
            let (lru, lfu) = (
                rate(Eviction::LeastRecentlyUsed),
                rate(Eviction::LeastFrequentlyUsed),
            );
            println!(
                "{:<30} {percent:>4} % {lru:>6.1} % {lfu:>6.1} %",
                routing.name
            );
        }
    }
}
