//! Experts in a fixed number of reused slots; the least recently used one makes room.

use std::collections::HashMap;

/// The raw bytes of one expert's segment.
pub type Slot = Vec<u8>;

/// Layer and expert.
type Key = (u32, u32);

/// What the cache did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Experts that were there when needed.
    pub hits: u64,
    /// Experts that had to be loaded.
    pub misses: u64,
    /// Loaded experts that made room for others.
    pub evictions: u64,
}

/// A set of slots, keyed by layer and expert.
#[derive(Debug)]
pub struct ExpertCache {
    slots: Vec<Slot>,
    free: Vec<usize>,
    held: HashMap<Key, (usize, u64)>,
    most: usize,
    clock: u64,
    stats: CacheStats,
}

impl ExpertCache {
    /// A cache of at most `most` slots (at least one). Memory is taken when a slot is first used.
    pub fn new(most: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            held: HashMap::new(),
            most: most.max(1),
            clock: 0,
            stats: CacheStats::default(),
        }
    }

    /// What it did so far.
    pub fn stats(&self) -> CacheStats {
        self.stats
    }

    /// Whether an expert is there.
    pub fn holds(&self, layer: u32, expert: u32) -> bool {
        self.held.contains_key(&(layer, expert))
    }

    /// The expert's bytes; where they are not there, `load` fills a slot. A failed load leaves the slot free.
    ///
    /// # Errors
    /// Whatever `load` returns.
    pub fn get<E>(
        &mut self,
        layer: u32,
        expert: u32,
        load: impl FnOnce(&mut Slot) -> Result<(), E>,
    ) -> Result<&Slot, E> {
        self.clock += 1;
        let key = (layer, expert);
        if let Some((slot, used)) = self.held.get_mut(&key) {
            *used = self.clock;
            self.stats.hits += 1;
            return Ok(&self.slots[*slot]);
        }
        self.stats.misses += 1;
        let slot = self.room();
        if let Err(e) = load(&mut self.slots[slot]) {
            self.free.push(slot);
            return Err(e);
        }
        self.held.insert(key, (slot, self.clock));
        Ok(&self.slots[slot])
    }

    fn room(&mut self) -> usize {
        if let Some(slot) = self.free.pop() {
            return slot;
        }
        if self.slots.len() < self.most {
            self.slots.push(Slot::new());
            return self.slots.len() - 1;
        }
        let oldest =
            self.held.iter().min_by_key(|(_, (_, used))| *used).map(|(key, (slot, _))| (*key, *slot));
        match oldest {
            Some((key, slot)) => {
                self.held.remove(&key);
                self.stats.evictions += 1;
                slot
            }
            // every slot is held or free, and there is at least one
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(cache: &mut ExpertCache, layer: u32, expert: u32) -> Vec<u8> {
        let load = |slot: &mut Slot| {
            slot.clear();
            slot.extend(format!("{layer}.{expert}").bytes());
            Ok::<_, ()>(())
        };
        cache.get(layer, expert, load).unwrap().clone()
    }

    #[test]
    fn the_right_expert_comes_whatever_was_evicted() {
        for most in 1..6 {
            let (mut cache, mut state) = (ExpertCache::new(most), 1_u32);
            for _ in 0..500 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let (layer, expert) = (state >> 30, (state >> 20) % 3);
                assert_eq!(get(&mut cache, layer, expert), format!("{layer}.{expert}").into_bytes());
                assert!(cache.slots.len() <= most);
            }
        }
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let mut cache = ExpertCache::new(2);
        get(&mut cache, 0, 1);
        get(&mut cache, 0, 2);
        get(&mut cache, 0, 1);
        get(&mut cache, 0, 3);
        assert!(cache.holds(0, 1) && !cache.holds(0, 2) && cache.holds(0, 3));
        assert_eq!(cache.stats(), CacheStats { hits: 1, misses: 3, evictions: 1 });
    }

    #[test]
    fn a_failed_load_is_not_remembered() {
        let mut cache = ExpertCache::new(1);
        get(&mut cache, 0, 1);
        assert_eq!(cache.get(0, 2, |_| Err("broken")), Err("broken"));
        assert!(!cache.holds(0, 2) && !cache.holds(0, 1));
        assert_eq!(get(&mut cache, 0, 1), b"0.1");
    }
}
