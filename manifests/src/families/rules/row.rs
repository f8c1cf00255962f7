//! One rule: what a tensor is called, what it is, when it exists and how large it is.

use std::ops::Range;

use super::pattern::Placeholder;
use super::stack::Stack;
use crate::names::{Part, Role};

/// The sizes of one block of a model, read from its configuration.
pub(crate) trait Dims {
    /// The numbers that a placeholder runs through.
    fn range(&self, placeholder: Placeholder) -> Range<u32>;
}

/// A shape, given a block's sizes and the numbers of the name, in the order of its placeholders.
pub(crate) type ShapeOf<D> = fn(&D, &[u32]) -> Vec<u64>;

/// One rule: a name pattern (whole dot-separated words may be placeholders such as `{layer}`), the
/// role and part, the shape, and, where it is not always there, the condition.
pub(crate) struct Row<D> {
    pub(super) pattern: &'static str,
    pub(super) role: Role,
    pub(super) part: Part,
    pub(super) shape: ShapeOf<D>,
    /// Another shape that some publishers give it.
    pub(super) or_shape: Option<ShapeOf<D>>,
    /// Sees the first number of the name only, so that a whole layer is skipped at once.
    pub(super) when: fn(&D, u32) -> bool,
    pub(super) optional: fn(&D) -> bool,
    /// How the tensor stacks the matrices of a layer's experts, where it does.
    pub(super) stack: Option<Stack>,
    /// Whether it may be F32 where the others are not.
    pub(super) precise: bool,
}

/// A rule for a weight that is always there; the methods narrow it.
pub(crate) const fn row<D>(pattern: &'static str, role: Role, shape: ShapeOf<D>) -> Row<D> {
    Row {
        pattern,
        role,
        part: Part::Weight,
        shape,
        or_shape: None,
        when: |_, _| true,
        optional: |_| false,
        stack: None,
        precise: false,
    }
}

/// A rule for the bias of a weight.
pub(crate) const fn bias<D>(pattern: &'static str, role: Role, shape: ShapeOf<D>) -> Row<D> {
    let mut bias = row(pattern, role, shape);
    bias.part = Part::Bias;
    bias
}

impl<D> Row<D> {
    pub(crate) const fn when(mut self, condition: fn(&D, u32) -> bool) -> Self {
        self.when = condition;
        self
    }

    pub(crate) const fn optional(mut self, condition: fn(&D) -> bool) -> Self {
        self.optional = condition;
        self
    }

    pub(crate) const fn part(mut self, part: Part) -> Self {
        self.part = part;
        self
    }

    pub(crate) const fn or_shape(mut self, shape: ShapeOf<D>) -> Self {
        self.or_shape = Some(shape);
        self
    }

    /// Publishers keep what is small and delicate in F32, each as it likes: norms, routers, the
    /// numbers of state spaces.
    pub(crate) const fn precise_by_role(mut self) -> Self {
        self.precise = matches!(
            self.role,
            Role::InputNorm
                | Role::PostAttentionNorm
                | Role::FinalNorm
                | Role::QNorm
                | Role::KNorm
                | Role::QANorm
                | Role::KvANorm
                | Role::Router
                | Role::RouterBias
                | Role::Rotary
                | Role::LinearAttention
                | Role::Indexer
                | Role::AttentionSink
                | Role::SharedExpertRouter
                | Role::Mtp
        );
        self
    }

    pub(crate) const fn stack(mut self, stack: Stack) -> Self {
        self.stack = Some(stack);
        self
    }
}
