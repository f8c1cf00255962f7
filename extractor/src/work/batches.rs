//! What is digested side by side.

use std::cmp::Reverse;

use segpack_formats::digest::LANES;

/// Groups items of about one length, longest first: digests side by side are taken faster than one
/// by one. A batch has at most [`LANES`] items, more than two only up to `max_bytes` bytes, and none
/// less than half as long as its first. Items of one length stay in their order, so that a batch
/// reads one stretch of a file.
pub(crate) fn batches<T>(
    mut items: Vec<T>,
    max_bytes: u64,
    length: impl Fn(&T) -> u64,
) -> Vec<Vec<T>> {
    items.sort_by_key(|item| Reverse(length(item))); // stable
    let mut batches: Vec<Vec<T>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let more = length(&item);
        match batches.last_mut() {
            Some(open)
                if open.len() < LANES
                    && (open.len() < 2 || bytes + more <= max_bytes)
                    && more >= length(&open[0]) / 2 =>
            {
                bytes += more;
                open.push(item);
            }
            _ => {
                bytes = more;
                batches.push(vec![item]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lengths: &[u64], max_bytes: u64) -> Vec<Vec<u64>> {
        batches(lengths.to_vec(), max_bytes, |length| *length)
    }

    #[test]
    fn a_batch_is_bounded_in_number_bytes_and_unlikeness() {
        assert!(of(&[], 100).is_empty());
        assert_eq!(
            of(&[3, 9, 5, 4], 100),
            [vec![9, 5, 4], vec![3]],
            "half of 9 is 4"
        );
        assert_eq!(
            of(&[40, 40, 30, 30], 100),
            [vec![40, 40], vec![30, 30]],
            "100 bytes at most"
        );
        assert_eq!(
            of(&[400, 300, 250, 60, 40], 100),
            [vec![400, 300], vec![250], vec![60, 40]],
            "but for two"
        );
        assert_eq!(of(&[0, 0], 100), [[0, 0]]);
        let many = of(&[1; 2 * LANES + 1], 100);
        assert_eq!(
            many.iter().map(Vec::len).collect::<Vec<_>>(),
            [LANES, LANES, 1]
        );
    }

    #[test]
    fn items_of_one_length_keep_their_order() {
        let items: Vec<(u64, usize)> = (0..100).map(|i| (5 + i as u64 % 2, i)).collect();
        let ordered = batches(items, 1000, |i| i.0)
            .concat()
            .into_iter()
            .map(|i| i.1);
        assert!(
            ordered.eq((0..100)
                .filter(|i| i % 2 == 1)
                .chain((0..100).filter(|i| i % 2 == 0)))
        );
    }
}
