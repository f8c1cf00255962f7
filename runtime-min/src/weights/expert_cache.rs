//! Experts in a fixed number of reused slots, and which of them makes room.
//!
//! A forward pass visits the layers in turn. Where a pass uses more experts than there are slots,
//! evicting the least recently used expert evicts each one shortly before it is needed again: no
//! expert is ever found. So uses are counted in visits of an expert's own layer, not in time.
//!
//! * Each expert has a history: one bit for each visit of its layer, the latest the highest, set
//!   where the expert was used. The expert with the lowest history is evicted. So those go first
//!   that the latest visit of their layer did not use, the longest unused before the others.
//! * Of equal histories, the expert goes whose layer was visited last: its next visit is the
//!   farthest away. The layer that is being visited comes after all others, since what it used may
//!   still be computed.

use std::cmp::Reverse;
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

/// A set of slots, keyed by layer and expert. A slot is taken out to be filled and put back when it
/// is.
#[derive(Debug)]
pub struct ExpertCache<S> {
    free: Vec<S>,
    held: HashMap<ExpertKey, S>,
    layers: BTreeMap<u32, Layer>,
    /// Visits of all layers.
    visits: u64,
    stats: CacheStats,
}

/// The experts of a layer.
#[derive(Debug, Default)]
struct Layer {
    /// The number of its latest visit, of those of all layers.
    visited: u64,
    /// By expert, also of those that are not held.
    histories: HashMap<u32, u64>,
    /// The experts that are held, the lowest history first.
    held: Vec<u32>,
}

impl Layer {
    fn history(&self, expert: u32) -> u64 {
        self.histories.get(&expert).copied().unwrap_or(0)
    }

    fn visit(&mut self, number: u64, used: &[u32]) {
        self.visited = number;
        self.histories
            .values_mut()
            .for_each(|history| *history >>= 1);
        for expert in used {
            *self.histories.entry(*expert).or_default() |= 1 << 63;
        }
        let histories = &self.histories;
        self.held
            .sort_by_key(|expert| histories.get(expert).copied().unwrap_or(0));
    }

    fn hold(&mut self, expert: u32) {
        let history = self.history(expert);
        let at = self.held.partition_point(|e| self.history(*e) < history);
        self.held.insert(at, expert);
    }
}

impl<S> ExpertCache<S> {
    /// A cache of these slots.
    pub fn new(slots: Vec<S>) -> Self {
        Self {
            free: slots,
            held: HashMap::new(),
            layers: BTreeMap::new(),
            visits: 0,
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

    /// A forward pass has come to this layer, and uses these experts, each named once.
    pub fn visit(&mut self, layer: u32, used: &[u32]) {
        self.visits += 1;
        self.layers
            .entry(layer)
            .or_default()
            .visit(self.visits, used);
    }

    /// Whether the expert is there, which is counted as a hit or a miss.
    pub fn touch(&mut self, key: ExpertKey) -> bool {
        let there = self.held.contains_key(&key);
        match there {
            true => self.stats.hits += 1,
            false => self.stats.misses += 1,
        }
        there
    }

    /// The expert's slot, if it is there.
    pub fn get(&self, key: ExpertKey) -> Option<&S> {
        self.held.get(&key)
    }

    /// The slots that hold an expert, in no order.
    pub fn held(&self) -> impl Iterator<Item = &S> {
        self.held.values()
    }

    /// Takes a slot out, evicting where none is free; `None` where all others are to be kept.
    pub fn take(&mut self, keep: impl Fn(ExpertKey) -> bool) -> Option<S> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let key = self.next_to_go(keep)?;
        self.stats.evictions += 1;
        self.remove(key)
    }

    fn next_to_go(&self, keep: impl Fn(ExpertKey) -> bool) -> Option<ExpertKey> {
        let of_layer = |(number, layer): (&u32, &Layer)| {
            let mut held = layer.held.iter().copied();
            let expert = held.find(|expert| !keep((*number, *expert)))?;
            let is_visited_now = layer.visited == self.visits;
            let rank = (
                layer.history(expert),
                is_visited_now,
                Reverse(layer.visited),
            );
            Some((rank, (*number, expert)))
        };
        let firsts = self.layers.iter().filter_map(of_layer);
        firsts.min().map(|(_, key)| key)
    }

    fn remove(&mut self, key: ExpertKey) -> Option<S> {
        if let Some(layer) = self.layers.get_mut(&key.0) {
            layer.held.retain(|expert| *expert != key.1);
        }
        self.held.remove(&key)
    }

    /// Puts a slot back that now holds this expert.
    pub fn put(&mut self, key: ExpertKey, slot: S) {
        match self.held.insert(key, slot) {
            Some(old) => self.free.push(old),
            None => self.layers.entry(key.0).or_default().hold(key.1),
        }
    }

    /// Puts a slot back that holds nothing of use.
    pub fn put_empty(&mut self, slot: S) {
        self.free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes a layer: the experts that were there before.
    fn compute(cache: &mut ExpertCache<String>, layer: u32, experts: &[u32]) -> Vec<u32> {
        cache.visit(layer, experts);
        let there = |expert: &u32| cache.get((layer, *expert)).is_some();
        let hits = experts.iter().copied().filter(there).collect();
        for expert in experts {
            if !cache.touch((layer, *expert)) {
                let is_used = |(l, e)| l == layer && experts.contains(&e);
                let mut slot = cache.take(is_used).unwrap();
                slot.clear();
                slot.push_str(&format!("{layer}.{expert}"));
                cache.put((layer, *expert), slot);
            }
            assert_eq!(
                cache.get((layer, *expert)).unwrap(),
                &format!("{layer}.{expert}")
            );
        }
        hits
    }

    fn cache(slots: usize) -> ExpertCache<String> {
        ExpertCache::new(vec![String::new(); slots])
    }

    #[test]
    fn the_right_expert_comes_whatever_was_evicted() {
        for slots in 2..9 {
            let (mut cache, mut state) = (cache(slots), 1_u32);
            for _ in 0..500 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let (layer, expert) = (state >> 30, (state >> 20) % 3);
                compute(&mut cache, layer, &[expert, expert + 1]);
                assert_eq!(cache.slots(), slots);
                let held: usize = cache.layers.values().map(|l| l.held.len()).sum();
                assert_eq!(held, cache.held.len());
            }
        }
    }

    /// Hits of passes that use the same experts, two in each of four layers.
    fn hits_of_equal_passes(slots: usize) -> Vec<usize> {
        let mut cache = cache(slots);
        let mut pass = || (0..4).map(|l| compute(&mut cache, l, &[5, 7]).len()).sum();
        (0..5).map(|_| pass()).collect()
    }

    #[test]
    fn fewer_slots_than_a_pass_uses_find_what_they_can() {
        // the least recently used rule finds none below eight slots; one layer's two experts need
        // room whatever is kept
        assert_eq!(hits_of_equal_passes(8), [0, 8, 8, 8, 8]);
        assert_eq!(hits_of_equal_passes(6), [0, 4, 4, 4, 4]);
        assert_eq!(hits_of_equal_passes(4), [0, 2, 2, 2, 2]);
        assert_eq!(hits_of_equal_passes(2), [0, 0, 0, 0, 0]);
    }

    #[test]
    fn what_its_layer_did_not_use_goes_first_the_longest_unused_before_others() {
        let mut cache = cache(4);
        for (layer, experts) in [(0, [1, 2]), (1, [1, 2]), (0, [2, 3])] {
            compute(&mut cache, layer, &experts);
        }
        // expert 1 of layer 0 made room for 3
        assert!(cache.get((0, 1)).is_none() && cache.get((1, 1)).is_some());
        compute(&mut cache, 1, &[2, 3]);
        assert!(cache.get((1, 1)).is_none() && cache.get((0, 2)).is_some());
    }

    #[test]
    fn of_equal_histories_the_layer_that_was_visited_last_makes_room() {
        let mut cache = cache(3);
        for layer in 0..3 {
            compute(&mut cache, layer, &[0]);
        }
        compute(&mut cache, 3, &[0]);
        assert!(cache.get((2, 0)).is_none(), "visited before layer 3");
        assert!(cache.get((0, 0)).is_some() && cache.get((1, 0)).is_some());
    }

    #[test]
    fn an_expert_that_comes_back_has_its_history() {
        let mut cache = cache(2);
        for experts in [[1], [1], [2], [3], [1], [4]] {
            compute(&mut cache, 0, &experts);
        }
        // of the visits before: 1 was used by the fifth, 3 by the fourth
        assert!(cache.get((0, 1)).is_some() && cache.get((0, 4)).is_some());
        compute(&mut cache, 0, &[3]);
        assert!(cache.get((0, 1)).is_none());
    }

    #[test]
    fn what_is_to_be_kept_stays() {
        let mut cache = cache(2);
        compute(&mut cache, 0, &[1]);
        compute(&mut cache, 0, &[2]);
        assert!(cache.take(|_| true).is_none());
        let slot = cache.take(|key| key == (0, 1)).unwrap();
        assert_eq!(slot, "0.2");
        cache.put_empty(slot);
        assert!(cache.get((0, 1)).is_some() && cache.slots() == 2);
        assert_eq!(cache.free(), 1);
        compute(&mut cache, 0, &[1, 2]);
        let stats = CacheStats {
            hits: 1,
            misses: 3,
            evictions: 1,
        };
        assert_eq!(cache.stats(), stats);
    }
}
