//! Keys and values of the sequences that a decoder runs.

use std::collections::BTreeMap;

use crate::error::RunError;
use crate::models::decoder::SequenceId;

/// The cached keys (normed and rotated) and values of one layer, `[positions, kv_heads × head_dim]`
/// each.
#[derive(Debug, Default)]
pub(super) struct KeysValues {
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

impl KeysValues {
    /// Room for so many values, taken before anything is computed.
    fn reserved(values: usize) -> Result<Self, RunError> {
        let mut cache = Self::default();
        for part in [&mut cache.keys, &mut cache.values] {
            part.try_reserve_exact(values)
                .map_err(|e| RunError::OutOfMemory {
                    bytes: (values as u64).saturating_mul(4),
                    source: std::io::Error::other(e),
                })?;
        }
        Ok(cache)
    }
}

/// One sequence.
#[derive(Debug)]
struct Sequence {
    /// Positions that there is room for.
    reserved: usize,
    layers: Vec<KeysValues>,
}

/// All sequences that are open. They share a number of positions, which was counted into the memory
/// budget.
#[derive(Debug)]
pub(super) struct Sequences {
    layers: usize,
    /// Values of a position's keys, and of its values.
    width: usize,
    /// Positions that are not reserved.
    free: usize,
    next: SequenceId,
    open: BTreeMap<SequenceId, Sequence>,
}

impl Sequences {
    /// None is open yet.
    pub(super) fn new(layers: usize, width: usize, positions: usize) -> Self {
        Self {
            layers,
            width,
            free: positions,
            next: SequenceId::WHOLE,
            open: BTreeMap::new(),
        }
    }

    /// Opens a sequence with room for so many positions.
    ///
    /// # Errors
    /// `TooLong` where fewer are free; `OutOfMemory`.
    pub(super) fn open(&mut self, positions: usize) -> Result<SequenceId, RunError> {
        if positions > self.free {
            return Err(RunError::TooLong {
                wanted: positions,
                reserved: self.free,
            });
        }
        let values = positions.saturating_mul(self.width);
        let layers = (0..self.layers).map(|_| KeysValues::reserved(values));
        let layers = layers.collect::<Result<_, _>>()?;
        let id = self.next;
        self.next = id.next();
        self.free -= positions;
        let reserved = positions;
        self.open.insert(id, Sequence { reserved, layers });
        Ok(id)
    }

    /// Gives the memory and the positions of a sequence back.
    pub(super) fn close(&mut self, id: SequenceId) {
        if let Some(sequence) = self.open.remove(&id) {
            self.free += sequence.reserved;
        }
    }

    /// Positions of a sequence, and those that it has room for; `None` where it is not open.
    pub(super) fn positions(&self, id: SequenceId) -> Option<[usize; 2]> {
        let sequence = self.open.get(&id)?;
        let keys = sequence.layers.first().map_or(0, |kv| kv.keys.len());
        Some([keys / self.width.max(1), sequence.reserved])
    }

    /// Forgets the positions of a sequence from this one on.
    pub(super) fn truncate(&mut self, id: SequenceId, positions: usize) {
        let values = positions.saturating_mul(self.width);
        let layers = self.open.get_mut(&id).map(|sequence| &mut sequence.layers);
        for kv in layers.into_iter().flatten() {
            kv.keys.truncate(values);
            kv.values.truncate(values);
        }
    }

    /// Keys and values of a layer.
    ///
    /// # Errors
    /// `Internal` where the sequence is not open.
    pub(super) fn layer(
        &mut self,
        id: SequenceId,
        layer: usize,
    ) -> Result<&mut KeysValues, RunError> {
        let sequence = self.open.get_mut(&id);
        let layer = sequence.and_then(|sequence| sequence.layers.get_mut(layer));
        layer.ok_or(RunError::Internal("no such sequence, or layer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_shared_and_given_back() {
        let mut sequences = Sequences::new(2, 3, 10);
        let first = sequences.open(6).unwrap();
        let error = sequences.open(5).unwrap_err();
        assert!(matches!(
            error,
            RunError::TooLong {
                wanted: 5,
                reserved: 4
            }
        ));
        let second = sequences.open(4).unwrap();
        assert_ne!(first, second);
        sequences.close(first);
        let third = sequences.open(6).unwrap();
        assert!(third != first && third != second, "no number comes twice");
        assert_eq!(sequences.positions(first), None);
        assert!(sequences.layer(first, 0).is_err());
    }

    #[test]
    fn a_sequence_grows_and_is_cut_by_itself() {
        let mut sequences = Sequences::new(1, 2, 8);
        let [one, other] = [4, 4].map(|n| sequences.open(n).unwrap());
        for (id, values) in [(one, 6), (other, 2)] {
            let kv = sequences.layer(id, 0).unwrap();
            kv.keys.resize(values, 1.0);
            kv.values.resize(values, 1.0);
        }
        sequences.truncate(one, 2);
        assert_eq!(sequences.positions(one), Some([2, 4]));
        assert_eq!(sequences.positions(other), Some([1, 4]));
    }
}
