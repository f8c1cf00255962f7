//! What a forward pass shows of itself, for traces and comparisons.

/// Gets intermediate results, all f32 and row-major, one row per token. Every method does nothing
/// by default.
pub trait Observer {
    /// Whether it does anything with the values. If not, values that would have to be copied from a
    /// device are left out: the slices are empty.
    fn observes(&self) -> bool {
        true
    }
    /// `[tokens, hidden]` after the embedding lookup.
    fn embed(&mut self, _: &[f32]) {}
    /// `[tokens, hidden]` after o_proj, before the residual add.
    fn attention(&mut self, _layer: usize, _: &[f32]) {}
    /// `[tokens, hidden]` of the experts or the dense MLP, before the residual add.
    fn mlp(&mut self, _layer: usize, _: &[f32]) {}
    /// `[tokens, hidden]` after the layer.
    fn hidden(&mut self, _layer: usize, _: &[f32]) {}
    /// The router of a layer with experts.
    fn router(&mut self, _layer: usize, _: &Routing) {}
    /// The shared expert of a layer: `[tokens]` before the sigmoid, empty where it has none;
    /// `[tokens, hidden]` before it is multiplied by that.
    fn shared_expert(&mut self, _layer: usize, _gate: &[f32], _out: &[f32]) {}
    /// `[tokens, hidden]` after the final norm.
    fn norm(&mut self, _: &[f32]) {}
    /// Rows that linear layers are multiplied with, each of so many columns, some rows at a time: what
    /// an importance matrix is made of. The CPU alone shows them, and of sequences that run alone.
    fn linear_input(&mut self, _layer: usize, _of: LinearInput, _columns: usize, _: &[f32]) {}
}

/// Which linear layers of a decoder layer are multiplied with the same values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinearInput {
    /// Queries, keys and values.
    Attention,
    /// The output projection of the attention.
    AttentionOutput,
    /// Gate and up of a dense MLP, the router, and gate, up and router of a shared expert.
    Mlp,
    /// Down of a dense MLP.
    MlpDown,
    /// Gate and up of an expert: the tokens that the router sends to it.
    Expert(u32),
    /// Down of an expert.
    ExpertDown(u32),
    /// Down of a shared expert.
    SharedExpertDown,
}

/// Observes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn observes(&self) -> bool {
        false
    }
}

/// Which experts the tokens of a forward pass go to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Routing {
    /// `[tokens, experts]`, before softmax or sigmoid.
    pub logits: Vec<f32>,
    /// `[tokens, experts]`, softmax over all experts, or sigmoid, in f32.
    pub probabilities: Vec<f32>,
    /// `[tokens, experts_per_token]`, that with the highest score first, the lower id on ties.
    pub ids: Vec<u32>,
    /// `[tokens, experts_per_token]`, what multiplies each expert's output.
    pub weights: Vec<f32>,
}
