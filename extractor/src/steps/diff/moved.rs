//! How much the values of a tensor moved: both sides are read in windows of as many values.

use segpack_formats::FormatError;
use segpack_formats::io::CancelToken;
use segpack_formats::numeric::{Dtype, append_values, has_values};
use segpack_manifests::documents::DiffMoved;

use crate::steps::contents::{Cursor, Tensor};

/// Values that are compared at a time: a multiple of eight, so that they are whole bytes in every
/// dtype, and enough that a chunk of a coded segment is rarely decoded twice.
const WINDOW_VALUES: u64 = 1 << 20;

/// What one thread takes for two windows, in bytes, with their values as F64.
pub(super) const WINDOW_MEMORY: u64 = 2 * WINDOW_VALUES * (8 + 8) + (16 << 20);

/// Sums over the pairs of values so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moving {
    values: u64,
    changed: u64,
    not_finite: u64,
    max_abs: f64,
    differences: f64,
    squares: f64,
}

impl Moving {
    /// A pair of values.
    fn add(&mut self, a: f64, b: f64) {
        self.values += 1;
        if !(a.is_finite() && b.is_finite()) {
            self.not_finite += 1;
            self.changed += u64::from(a.to_bits() != b.to_bits());
            return;
        }
        let difference = b - a;
        self.changed += u64::from(difference != 0.0);
        self.max_abs = self.max_abs.max(difference.abs());
        self.differences += difference * difference;
        self.squares += a * a;
    }

    /// What was seen of other tensors, too.
    pub(super) fn join(&mut self, other: &Self) {
        self.values += other.values;
        self.changed += other.changed;
        self.not_finite += other.not_finite;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.differences += other.differences;
        self.squares += other.squares;
    }

    /// What to report.
    pub(super) fn moved(&self) -> DiffMoved {
        let relative = match (self.differences > 0.0, self.squares > 0.0) {
            (false, _) => Some(0.0),
            (true, true) => Some((self.differences / self.squares).sqrt()),
            (true, false) => None,
        };
        DiffMoved {
            values: self.values,
            changed: self.changed,
            not_finite: self.not_finite,
            max_abs: self.max_abs,
            relative_rms: relative,
        }
    }
}

/// Whether the values of two tensors can be compared: as many of both, in dtypes whose values are
/// known.
pub(super) fn are_comparable(a: &Tensor, b: &Tensor) -> bool {
    let parts = |t: &Tensor| t.dtype == Dtype::C64;
    a.shape == b.shape && has_values(a.dtype) && has_values(b.dtype) && parts(a) == parts(b)
}

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(super) struct Windows {
    bytes: Vec<u8>,
    a: Vec<f64>,
    b: Vec<f64>,
}

/// Compares the values of two tensors of one shape.
///
/// # Errors
/// Where one of them cannot be read.
pub(super) fn compare(
    (a, from_a): (&Tensor, &mut Cursor<'_>),
    (b, from_b): (&Tensor, &mut Cursor<'_>),
    windows: &mut Windows,
    stop: &CancelToken,
    progress: impl Fn(u64),
) -> Result<Moving, FormatError> {
    let mut moving = Moving::default();
    let count = a.length * 8 / a.dtype.bitsize() as u64;
    let mut done = 0;
    while done < count {
        let values = done..count.min(done + WINDOW_VALUES);
        read(a, from_a, &values, &mut windows.bytes, &mut windows.a, stop)?;
        read(b, from_b, &values, &mut windows.bytes, &mut windows.b, stop)?;
        let pairs = windows.a.iter().zip(&windows.b);
        pairs.for_each(|(a, b)| moving.add(*a, *b));
        let bits = a.dtype.bitsize() + b.dtype.bitsize();
        progress((values.end - values.start) * bits as u64 / 8);
        done = values.end;
    }
    Ok(moving)
}

fn read(
    tensor: &Tensor,
    cursor: &mut Cursor<'_>,
    values: &std::ops::Range<u64>,
    bytes: &mut Vec<u8>,
    to: &mut Vec<f64>,
    stop: &CancelToken,
) -> Result<(), FormatError> {
    let bits = tensor.dtype.bitsize() as u64;
    let range = values.start * bits / 8..values.end * bits / 8;
    bytes.clear();
    cursor.read(tensor, range, stop, |piece| {
        bytes.extend_from_slice(piece);
        Ok::<_, FormatError>(())
    })?;
    to.clear();
    append_values(tensor.dtype, bytes, to);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moving(pairs: &[(f64, f64)]) -> Moving {
        let mut moving = Moving::default();
        pairs.iter().for_each(|(a, b)| moving.add(*a, *b));
        moving
    }

    #[test]
    fn values_move_by_their_largest_and_their_mean_square_difference() {
        let moved = moving(&[(3.0, 3.0), (4.0, 1.0), (0.0, -0.0)]).moved();
        assert_eq!((moved.values, moved.changed, moved.max_abs), (3, 1, 3.0));
        assert_eq!(moved.relative_rms, Some(0.6));
        let from_zero = moving(&[(0.0, 1.0)]).moved();
        assert_eq!(from_zero.relative_rms, None);
        assert_eq!(moving(&[(0.0, 0.0)]).moved().relative_rms, Some(0.0));
    }

    #[test]
    fn what_is_not_finite_is_counted_and_left_out_of_the_sums() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        let moved = moving(&[(nan, nan), (inf, inf), (1.0, nan), (-inf, inf), (1.0, 2.0)]).moved();
        assert_eq!((moved.not_finite, moved.changed), (4, 3));
        assert_eq!((moved.max_abs, moved.relative_rms), (1.0, Some(1.0)));
    }

    #[test]
    fn sums_of_parts_are_those_of_the_whole() {
        let pairs: Vec<(f64, f64)> = (0..100_u8)
            .map(|i| (f64::from(i), f64::from(i / 2)))
            .collect();
        let mut joined = moving(&pairs[..50]);
        joined.join(&moving(&pairs[50..]));
        assert_eq!(joined.moved().changed, moving(&pairs).moved().changed);
        assert_eq!(joined.moved().max_abs, moving(&pairs).moved().max_abs);
    }
}
