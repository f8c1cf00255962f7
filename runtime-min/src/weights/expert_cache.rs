//! Experts in a fixed number of reused slots; the least recently used one is evicted.

use std::collections::{BTreeMap, HashMap};

/// Layer and expert.
pub type ExpertKey = (u32, u32);

/// What the cache did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Experts that were there when needed.
    pub hits: u64,
    /// Experts that had to be loaded.
    pub misses: u64,
    /// Loaded experts that were evicted.
    pub evictions: u64,
}

/// Which expert is evicted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Eviction {
    /// The one whose last use is longest ago.
    #[default]
    LeastRecentlyUsed,
    /// The one that was used least often, evicted ones remembered; of several, the one whose last
    /// use is longest ago.
    LeastFrequentlyUsed,
}

/// A set of slots, keyed by layer and expert. A slot is taken out to be filled and put back when it
/// is.
#[derive(Debug)]
pub struct ExpertCache<S> {
    eviction: Eviction,
    free: Vec<S>,
    held: HashMap<ExpertKey, (S, (u64, u64))>,
    /// The next to go first.
    order: BTreeMap<(u64, u64), ExpertKey>,
    uses: HashMap<ExpertKey, u64>,
    clock: u64,
    stats: CacheStats,
}

impl<S> ExpertCache<S> {
    /// A cache of these slots.
    pub fn new(slots: Vec<S>, eviction: Eviction) -> Self {
        Self {
            eviction,
            free: slots,
            held: HashMap::new(),
            order: BTreeMap::new(),
            uses: HashMap::new(),
            clock: 0,
            stats: CacheStats::default(),
        }
    }

    /// What it did so far.
    pub fn stats(&self) -> CacheStats {
        self.stats
    }

    /// Slots, those that are taken out not counted.
    pub fn slots(&self) -> usize {
        self.free.len() + self.held.len()
    }

    /// Slots that hold nothing.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Counts a use; whether the expert is there.
    pub fn touch(&mut self, key: ExpertKey) -> bool {
        self.clock += 1;
        let rank = self.rank(key);
        let Some((_, held)) = self.held.get_mut(&key) else {
            self.stats.misses += 1;
            return false;
        };
        self.order.remove(held);
        *held = rank;
        self.order.insert(rank, key);
        self.stats.hits += 1;
        true
    }

    fn rank(&mut self, key: ExpertKey) -> (u64, u64) {
        match self.eviction {
            Eviction::LeastRecentlyUsed => (0, self.clock),
            Eviction::LeastFrequentlyUsed => {
                let uses = self.uses.entry(key).or_default();
                *uses += 1;
                (*uses, self.clock)
            }
        }
    }

    /// The expert's slot, if it is there.
    pub fn get(&self, key: ExpertKey) -> Option<&S> {
        self.held.get(&key).map(|(slot, _)| slot)
    }

    /// The slots that hold an expert, in no order.
    pub fn held(&self) -> impl Iterator<Item = &S> {
        self.held.values().map(|(slot, _)| slot)
    }

    /// Takes a slot out, evicting where none is free; `None` where all others are to be kept.
    pub fn take(&mut self, keep: impl Fn(ExpertKey) -> bool) -> Option<S> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let (rank, key) = self
            .order
            .iter()
            .find(|(_, key)| !keep(**key))
            .map(|(r, k)| (*r, *k))?;
        self.order.remove(&rank);
        self.stats.evictions += 1;
        self.held.remove(&key).map(|(slot, _)| slot)
    }

    /// Puts a slot back that now holds this expert.
    pub fn put(&mut self, key: ExpertKey, slot: S) {
        self.clock += 1;
        let rank = match self.eviction {
            Eviction::LeastRecentlyUsed => (0, self.clock),
            Eviction::LeastFrequentlyUsed => {
                (self.uses.get(&key).copied().unwrap_or(0), self.clock)
            }
        };
        if let Some((old, rank)) = self.held.insert(key, (slot, rank)) {
            self.order.remove(&rank);
            self.free.push(old);
        }
        self.order.insert(rank, key);
    }

    /// Puts a slot back that holds nothing of use.
    pub fn put_empty(&mut self, slot: S) {
        self.free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(cache: &mut ExpertCache<String>, layer: u32, expert: u32) -> String {
        let key = (layer, expert);
        if !cache.touch(key) {
            let mut slot = cache.take(|_| false).unwrap();
            slot.clear();
            slot.push_str(&format!("{layer}.{expert}"));
            cache.put(key, slot);
        }
        cache.get(key).unwrap().clone()
    }

    fn cache(slots: usize, eviction: Eviction) -> ExpertCache<String> {
        ExpertCache::new(vec![String::new(); slots], eviction)
    }

    #[test]
    fn the_right_expert_comes_whatever_was_evicted() {
        for eviction in [Eviction::LeastRecentlyUsed, Eviction::LeastFrequentlyUsed] {
            for slots in 1..6 {
                let (mut cache, mut state) = (cache(slots, eviction), 1_u32);
                for _ in 0..500 {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let (layer, expert) = (state >> 30, (state >> 20) % 3);
                    assert_eq!(get(&mut cache, layer, expert), format!("{layer}.{expert}"));
                    assert_eq!(cache.slots(), slots);
                    assert_eq!(cache.order.len(), cache.held.len());
                }
            }
        }
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let mut cache = cache(2, Eviction::LeastRecentlyUsed);
        for expert in [1, 2, 1, 3] {
            get(&mut cache, 0, expert);
        }
        assert!(
            cache.get((0, 1)).is_some()
                && cache.get((0, 2)).is_none()
                && cache.get((0, 3)).is_some()
        );
        assert_eq!(
            cache.stats(),
            CacheStats {
                hits: 1,
                misses: 3,
                evictions: 1
            }
        );
    }

    #[test]
    fn the_least_frequently_used_makes_room() {
        let mut cache = cache(2, Eviction::LeastFrequentlyUsed);
        for expert in [1, 1, 2, 3, 3] {
            get(&mut cache, 0, expert);
        }
        assert!(cache.get((0, 1)).is_some() && cache.get((0, 2)).is_none());
        get(&mut cache, 0, 2);
        assert!(cache.get((0, 1)).is_none(), "used twice, longest ago");
    }

    #[test]
    fn what_is_to_be_kept_stays() {
        let mut cache = cache(2, Eviction::LeastRecentlyUsed);
        get(&mut cache, 0, 1);
        get(&mut cache, 0, 2);
        assert!(cache.take(|_| true).is_none());
        let slot = cache.take(|key| key == (0, 1)).unwrap();
        assert_eq!(slot, "0.2");
        cache.put_empty(slot);
        assert!(cache.get((0, 1)).is_some() && cache.slots() == 2);
    }
}
