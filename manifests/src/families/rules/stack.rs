//! How one tensor holds the matrices of all experts of a layer.

use super::pattern::{Numbers, Pattern, Placeholder};
use crate::families::config::MAX_COUNT;
use crate::families::expected::Slice;
use crate::names::{Classification, Component, Role};

/// How one expert's matrix lies in the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orientation {
    /// `[out, in]`, as a Linear stores it: `[experts, out, in]` in all.
    OutIn,
    /// `[in, out]`, transposed against a Linear: `[experts, in, out]` in all.
    InOut,
}

/// How several matrices share the output axis of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Join {
    /// One after the other, in equal shares.
    Concatenated,
    /// Output 0 of each, then output 1 of each, and so on.
    Interleaved,
}

/// How an expert's part of a stacked tensor lies there, in the layout that the family's own class
/// writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackLayout {
    /// `[in, out]`.
    pub is_transposed: bool,
    /// Outputs of gate and up alternate; else all of the gate come first.
    pub is_interleaved: bool,
}

/// A tensor that stacks the matrices of a layer's experts.
///
/// A tensor of a pack is one byte range of its source, so a stack is taken apart as far as its
/// layout keeps ranges whole:
///
/// * Experts along the first axis: one expert is one range. Along another axis it is not, and the
///   stack stays whole.
/// * `[experts, out, in]` with concatenated parts: every part is a range of its own.
/// * Interleaved parts, or several parts of `[experts, in, out]`: the parts of an expert stay
///   together as one tensor, which [`fused`](Self::fused) names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stack {
    expert_axis: usize,
    parts: &'static [Role],
    join: Join,
    orientation: Orientation,
    fused: Option<(&'static str, Role)>,
    each: &'static [&'static str],
    rows: bool,
}

impl Stack {
    /// Experts along the first axis, each `[out, in]`, these roles concatenated along the outputs.
    pub(crate) const fn of(parts: &'static [Role]) -> Self {
        Self {
            expert_axis: 0,
            parts,
            join: Join::Concatenated,
            orientation: Orientation::OutIn,
            fused: None,
            each: &[],
            rows: false,
        }
    }

    /// Outputs of the parts alternate.
    pub(crate) const fn interleaved(mut self) -> Self {
        self.join = Join::Interleaved;
        self
    }

    /// Each matrix is `[in, out]`.
    pub(crate) const fn transposed(mut self) -> Self {
        self.orientation = Orientation::InOut;
        self
    }

    /// What the parts of one expert are called, where no row stores them one by one.
    pub(crate) const fn each(mut self, patterns: &'static [&'static str]) -> Self {
        self.each = patterns;
        self
    }

    /// One matrix `[experts x rows, columns]`, the rows of each expert one after the other.
    pub(crate) const fn along_rows(mut self) -> Self {
        self.rows = true;
        self
    }

    /// Experts along this axis, counted from 0.
    #[cfg(test)]
    pub(crate) const fn expert_axis(mut self, axis: usize) -> Self {
        self.expert_axis = axis;
        self
    }

    /// What the parts of one expert are called together, and their role, where they stay together.
    pub(crate) const fn fused(mut self, pattern: &'static str, role: Role) -> Self {
        self.fused = Some((pattern, role));
        self
    }

    /// Whether each part of an expert is a byte range of its own.
    fn separates_parts(&self) -> bool {
        let along_rows = self.join == Join::Concatenated && self.orientation == Orientation::OutIn;
        self.parts.len() == 1 || along_rows
    }

    /// The tensors that an expert's share is cut into, given the pattern of each role's own row.
    pub(super) fn cuts(
        &self,
        prefix: &'static str,
        pattern_of: impl Fn(Role) -> Option<&'static str>,
    ) -> Vec<Cut> {
        let cut = |pattern, role| Cut {
            role,
            pattern: Pattern::parse(prefix, pattern),
        };
        if self.expert_axis != 0 {
            return Vec::new();
        }
        if self.separates_parts() {
            let named = |(number, role): (usize, &Role)| {
                let own = self.each.get(number).copied();
                Some(cut(own.or_else(|| pattern_of(*role))?, *role))
            };
            return self.parts.iter().enumerate().filter_map(named).collect();
        }
        self.fused
            .iter()
            .map(|(pattern, role)| cut(*pattern, *role))
            .collect()
    }

    /// How an expert's part of it lies there.
    pub(super) fn layout(&self) -> StackLayout {
        StackLayout {
            is_transposed: self.orientation == Orientation::InOut,
            is_interleaved: self.join == Join::Interleaved,
        }
    }

    /// Number of matrices that share the output axis.
    pub(super) fn parts(&self) -> u64 {
        self.parts.len() as u64
    }

    /// The output axis of the whole tensor.
    pub(super) fn output_axis(&self) -> usize {
        match self.orientation {
            Orientation::OutIn => 1,
            Orientation::InOut => 2,
        }
    }
}

/// One tensor that every expert of a stack has.
#[derive(Debug)]
pub(super) struct Cut {
    role: Role,
    pattern: Pattern,
}

/// A stack as the rules of a family describe it, ready to be applied to a tensor.
#[derive(Debug)]
pub(super) struct Cutting {
    pub(super) component: Component,
    pub(super) stack: Stack,
    pub(super) cuts: Vec<Cut>,
}

/// A tensor that is to be taken apart.
pub(super) struct Whole<'a> {
    pub(super) name: String,
    /// What its slices' names end with beside those of the stack's.
    pub(super) suffix: &'a str,
    pub(super) classification: Classification,
    pub(super) shape: &'a [u64],
    pub(super) dtype_bits: u64,
}

impl Cutting {
    /// The tensors of the experts, in the order of their bytes. A stack that cannot be taken apart
    /// is one slice, the whole.
    ///
    /// # Errors
    /// What would have been possible, in words.
    pub(super) fn slices(
        &self,
        whole: &Whole<'_>,
        numbers: &Numbers,
        experts: &dyn Fn() -> Option<u64>,
    ) -> Result<Vec<Slice>, String> {
        let Whole {
            shape, dtype_bits, ..
        } = *whole;
        let part = whole.classification.part;
        if self.cuts.is_empty() {
            return self.whole(whole);
        }
        let unrolled;
        let shape = match self.stack.rows {
            true => {
                unrolled = unroll(shape, experts())?;
                &unrolled
            }
            false => shape,
        };
        let dimensions = if part.is_weight() { 3..=3 } else { 1..=4 };
        if !dimensions.contains(&shape.len()) {
            return Err("three dimensions".to_owned());
        }
        let experts = shape[0];
        let count = u32::try_from(experts)
            .ok()
            .filter(|n| u64::from(*n) <= MAX_COUNT);
        let count = count.ok_or_else(|| format!("at most {MAX_COUNT} experts"))?;
        if part.is_weight() {
            self.check_shares(shape)?;
        }
        let mut shape = shape[1..].to_vec();
        if let (Some(outputs), 2..) = (shape.first_mut(), self.cuts.len()) {
            *outputs /= self.cuts.len() as u64;
        }
        let length = bytes_of(&shape, dtype_bits);
        let in_all = (self.cuts.len() as u64).checked_mul(experts);
        let fits = length.and_then(|length| length.checked_mul(in_all?));
        let (Some(length), Some(_)) = (length, fits) else {
            return Err("matrices of whole bytes, fewer than 2^64 in all".to_owned());
        };
        let mut slices = Vec::with_capacity(count as usize * self.cuts.len());
        for expert in 0..count {
            let numbers = numbers.with(Placeholder::Expert, expert);
            for cut in &self.cuts {
                slices.push(Slice {
                    name: cut.pattern.name_with(&numbers) + whole.suffix,
                    shape: shape.to_vec(),
                    classification: numbers.classification(self.component, cut.role, part),
                    offset: slices.len() as u64 * length,
                    length,
                });
            }
        }
        Ok(slices)
    }

    /// All parts have equal shares of the output axis, whether they are cut apart or not.
    fn check_shares(&self, shape: &[u64]) -> Result<(), String> {
        let parts = self.stack.parts();
        let axis = self.stack.output_axis();
        let outputs = shape.get(axis).copied().unwrap_or_default();
        if outputs % parts == 0 {
            return Ok(());
        }
        let axis = if axis == 1 { "second" } else { "third" };
        Err(format!(
            "a {axis} dimension that {parts} matrices share equally"
        ))
    }

    fn whole(&self, whole: &Whole<'_>) -> Result<Vec<Slice>, String> {
        let length = bytes_of(whole.shape, whole.dtype_bits);
        let length = length.ok_or("whole bytes, fewer than 2^64 in all".to_owned())?;
        Ok(vec![Slice {
            name: whole.name.clone(),
            shape: whole.shape.to_vec(),
            classification: whole.classification,
            offset: 0,
            length,
        }])
    }
}

/// The shape of a stack along the rows of one matrix, with the experts as an axis of their own.
fn unroll(shape: &[u64], experts: Option<u64>) -> Result<[u64; 3], String> {
    let &[rows, columns] = shape else {
        return Err("two dimensions".to_owned());
    };
    let experts = experts.filter(|experts| *experts > 0 && rows % experts == 0);
    let experts = experts.ok_or("rows that the experts of the layer's router share equally")?;
    Ok([experts, rows / experts, columns])
}

/// Bytes of a tensor; `None` where they are not whole or overflow.
fn bytes_of(shape: &[u64], dtype_bits: u64) -> Option<u64> {
    let mut sides = shape.iter();
    let bits = sides.try_fold(dtype_bits, |bits, &side| bits.checked_mul(side))?;
    (bits % 8 == 0).then_some(bits / 8)
}
