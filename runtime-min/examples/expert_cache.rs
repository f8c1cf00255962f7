//! Which expert should make room: hit rates of the cache beside the least recently used rule, on
//! made-up routings of a model of 48 layers of 128 experts, 8 for a token: `cargo run --release -p
//! segpack-runtime-min --example expert_cache`.
//!
//! Real routings lie between the extremes: each layer has favourites (Zipf), and a token tends to
//! go where the one before went (reuse). A prompt visits nearly every expert of a layer before the
//! text begins. A token uses 384 experts, which is 6.25 % of all.

use std::collections::{BTreeMap, HashMap};

use segpack_runtime_min::weights::{ExpertCache, ExpertKey};

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

/// A rule for who makes room.
trait Cache {
    /// A pass uses these experts of a layer; how many of them were there.
    fn visit(&mut self, layer: u32, experts: &[u32]) -> usize;
}

impl Cache for ExpertCache<()> {
    fn visit(&mut self, layer: u32, experts: &[u32]) -> usize {
        ExpertCache::visit(self, layer, experts);
        let mut there = 0;
        for expert in experts {
            let key = (layer, *expert);
            if self.touch(key) {
                there += 1;
            } else if self
                .take(|(l, e)| l == layer && experts.contains(&e))
                .is_some()
                || self.take(|_| false).is_some()
            {
                self.put(key, ());
            }
        }
        there
    }
}

/// The expert makes room whose last use is longest ago.
#[derive(Default)]
struct LeastRecentlyUsed {
    slots: usize,
    clock: u64,
    used: HashMap<ExpertKey, u64>,
    order: BTreeMap<u64, ExpertKey>,
}

impl Cache for LeastRecentlyUsed {
    fn visit(&mut self, layer: u32, experts: &[u32]) -> usize {
        let mut there = 0;
        for key in experts.iter().map(|expert| (layer, *expert)) {
            self.clock += 1;
            if let Some(before) = self.used.insert(key, self.clock) {
                self.order.remove(&before);
                there += 1;
            } else if self.used.len() > self.slots
                && let Some((_, oldest)) = self.order.pop_first()
            {
                self.used.remove(&oldest);
            }
            self.order.insert(self.clock, key);
        }
        there
    }
}

/// The hit rate of the text after the prompt.
fn hit_rate(routing: &Routing, cache: &mut dyn Cache) -> f64 {
    let (sums, mut noise) = (weights(routing.skew), Noise(7));
    let mut last = vec![Vec::new(); LAYERS as usize];
    for layer in 0..LAYERS {
        let mut visited = vec![false; EXPERTS as usize];
        for _ in 0..PROMPT {
            let chosen = choose(routing, &sums, &mut noise, &last[layer as usize], 0, layer);
            chosen.iter().for_each(|e| visited[*e as usize] = true);
            last[layer as usize] = chosen;
        }
        let visited: Vec<u32> = (0..EXPERTS).filter(|e| visited[*e as usize]).collect();
        cache.visit(layer, &visited);
    }
    let mut hits = 0;
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
            hits += cache.visit(layer, &chosen);
            last[layer as usize] = chosen;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let rate = hits as f64 / (TOKENS * LAYERS as usize * BEST) as f64;
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
    println!(
        "{:<30} {:>6} {:>8} {:>8}",
        "routing", "slots", "LRU", "cache"
    );
    for routing in &routings {
        for percent in [3, 6, 10, 25, 50] {
            let slots = (LAYERS * EXPERTS * percent / 100) as usize;
            let mut least_recently_used = LeastRecentlyUsed {
                slots,
                ..LeastRecentlyUsed::default()
            };
            let lru = 100.0 * hit_rate(routing, &mut least_recently_used);
            let cache = 100.0 * hit_rate(routing, &mut ExpertCache::new(vec![(); slots]));
            println!(
                "{:<30} {percent:>4} % {lru:>6.1} % {cache:>6.1} %",
                routing.name
            );
        }
    }
}
