//! Entries of a list by name, without the names: those are in the list.

use std::hash::BuildHasher;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

/// Where the entries of a list are, by name: a number for each, a fortieth of what a map with the
/// names of a large model takes.
#[derive(Debug, Clone)]
pub(crate) struct NameIndex {
    numbers: HashTable<usize>,
    hasher: DefaultHashBuilder,
    /// An entry whose name an earlier one has, behind that one.
    duplicates: Vec<(usize, usize)>,
}

impl NameIndex {
    /// Of equal names the first is found.
    pub(crate) fn of<T>(list: &[T], name: impl Fn(&T) -> &str) -> Self {
        let hasher = DefaultHashBuilder::default();
        let hash = |number: &usize| hasher.hash_one(name(&list[*number]));
        let mut numbers = HashTable::with_capacity(list.len());
        let mut duplicates = Vec::new();
        for (number, entry) in list.iter().enumerate() {
            let is_it = |other: &usize| name(&list[*other]) == name(entry);
            match numbers.entry(hash(&number), is_it, hash) {
                Entry::Occupied(first) => duplicates.push((*first.get(), number)),
                Entry::Vacant(place) => drop(place.insert(number)),
            }
        }
        Self {
            numbers,
            hasher,
            duplicates,
        }
    }

    /// Every entry whose name an earlier one has, behind the first of that name, in the order of the
    /// list.
    pub(crate) fn duplicates(&self) -> &[(usize, usize)] {
        &self.duplicates
    }

    /// The number of the entry of this name in the list that it was made of.
    pub(crate) fn find<T>(
        &self,
        list: &[T],
        name_of: impl Fn(&T) -> &str,
        name: &str,
    ) -> Option<usize> {
        let is_it = |number: &usize| list.get(*number).is_some_and(|t| name_of(t) == name);
        let hash = self.hasher.hash_one(name);
        self.numbers.find(hash, is_it).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_and_no_other() {
        let list: Vec<String> = (0..1000).map(|n| format!("layers.{n}.weight")).collect();
        let index = NameIndex::of(&list, String::as_str);
        for (number, name) in list.iter().enumerate() {
            assert_eq!(index.find(&list, String::as_str, name), Some(number));
        }
        assert!(index.duplicates().is_empty());
        let twice = NameIndex::of(&["a", "b", "a", "c", "a"], |name| name);
        assert_eq!(twice.duplicates(), [(0, 2), (0, 4)]);
        for other in ["", "layers", "layers.1000.weight"] {
            assert_eq!(index.find(&list, String::as_str, other), None, "{other:?}");
        }
    }
}
