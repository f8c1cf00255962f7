//! Parts: the tensors that one weight consists of.

use super::word::words;

words! {
    /// Which tensor of a weight this is: the values, or something beside them that shares their
    /// role, layer and expert. In documents `weight` is left out.
    Part, display as_str {
        /// The weight itself: every tensor that is nothing below.
        Weight = "weight",
        /// Added to the product with the weight.
        Bias = "bias",
        /// What quantised values are multiplied by.
        Scale = "scale",
        /// What the scales of blocks are multiplied by.
        GlobalScale = "global_scale",
        /// What the activations are divided by.
        InputScale = "input_scale",
        /// The values that codes stand for.
        Codebook = "codebook",
        /// What quantised scales are multiplied by.
        NestedScale = "nested_scale",
        /// The values that quantised scales stand for.
        NestedCodebook = "nested_codebook",
        /// Settings of the quantisation of this weight.
        State = "state",
        /// What is subtracted from quantised values before they are scaled.
        ZeroPoint = "zero_point",
        /// The group of each column, where groups are not contiguous.
        GroupIndex = "group_index",
        /// Quantised values, several to a byte, where they are not called the weight.
        Blocks = "blocks",
        /// The shape that packed values stand for.
        Shape = "shape",
    }
}

impl Part {
    /// Whether it is the weight itself, which documents do not mention.
    #[must_use]
    pub fn is_weight(&self) -> bool {
        *self == Self::Weight
    }

    pub(crate) const fn weight() -> Self {
        Self::Weight
    }
}
