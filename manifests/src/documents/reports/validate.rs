//! What `validate` says in the end.

use segpack_formats::digest::Sha256;
use serde::{Deserialize, Serialize};

use crate::documents::{Finding, FormatVersion};

macro_rules! quantities {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// An intermediate result of the forward pass. The order is that of the calculation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(rename_all = "snake_case")]
        pub enum Quantity { $($(#[$doc])* $name,)* }

        impl Quantity {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name in words.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

quantities! {
    /// After the embedding lookup.
    Embedding = "embedding",
    /// After o_proj, before the residual add.
    AttentionOutput = "attention output",
    /// Before the softmax.
    RouterLogits = "router logits",
    /// Softmax over all experts.
    RouterProbabilities = "router probabilities",
    /// What multiplies the outputs of the chosen experts; compared where the same experts are
    /// chosen.
    ExpertWeights = "expert weights",
    /// Of the experts or the dense MLP, before the residual add.
    MlpOutput = "MoE/MLP output",
    /// The residual stream after the layer.
    HiddenState = "hidden state",
    /// After the final norm.
    FinalNorm = "final norm",
    /// Of every position of the prompts, and of the tokens after them.
    Logits = "logits",
    /// Natural logarithms of the probabilities of the reference's best tokens, where it has no
    /// logits.
    LogProbabilities = "log-probabilities",
}

macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A choice that two implementations make alike or not.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(rename_all = "snake_case")]
        pub enum Choice { $($(#[$doc])* $name,)* }

        impl Choice {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name in words.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

choices! {
    /// The set of experts of a token in a layer.
    ExpertSets = "expert sets",
    /// The best token at every position of the prompts.
    TopTokens = "top-1 tokens",
    /// The next token at every step of the generation, each after the recorded tokens before it.
    GreedyTokens = "greedy tokens",
    /// The reference's best tokens at a position, in their order, where it has no logits.
    TokenRanks = "token ranks",
}

/// What the pack was compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReferenceKind {
    /// A trace of another implementation, such as the official one.
    Trace,
    /// A direct calculation from the shards of a checkpoint.
    Checkpoint,
}

/// The precision of the activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32 throughout; the strict gate.
    Float32,
    /// Rounded where the official bf16 code rounds.
    Bfloat16,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything that is judged is inside the gate.
    Inside,
    /// Something that is judged is outside.
    Outside,
    /// The trace is of another checkpoint; nothing was run.
    Foreign,
    /// Nothing of the trace can be judged: bf16, and no prompt is marked `bf16_stable`; or
    /// log-probabilities of another precision than f32, and no tolerance was given.
    NotJudged,
}

/// One quantity of one layer, over all prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ValueRow {
    /// Which quantity.
    pub quantity: Quantity,
    /// Layer, where it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Values compared.
    pub values: u64,
    /// Values that are NaN or infinite here or there, and not the same; they are in no other
    /// number.
    pub not_finite: u64,
    /// Greatest absolute difference.
    pub max_abs: f64,
    /// Mean absolute difference.
    pub mean_abs: f64,
    /// Greatest absolute difference, relative to the RMS of the reference's values; none where
    /// those are all 0.
    pub relative: Option<f64>,
    /// Cosine of the angle between the two; none where one of them is all 0.
    pub cosine: Option<f64>,
    /// Prompt and position of the greatest difference, counted from 0.
    pub worst: Option<[u64; 2]>,
    /// Whether the difference is more than rounding explains. A diagnosis: the gate looks at the
    /// logits.
    pub wrong: bool,
}

/// One kind of choice (of one layer, where layers make it), over all prompts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChoiceRow {
    /// Which choice.
    pub choice: Choice,
    /// Layer, where it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Choices compared.
    pub compared: u64,
    /// Those that are the same.
    pub equal: u64,
    /// Those that differ, but where the reference's own gap is so small that rounding may decide.
    pub excused: u64,
    /// Prompt and position of the first that differs and is not excused.
    pub first: Option<[u64; 2]>,
}

/// One prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PromptRow {
    /// Tokens of the prompt.
    pub tokens: u64,
    /// Generated tokens that were compared.
    pub generated: u64,
    /// Whether the official bf16 code agrees with itself on it; bf16 is judged where it does.
    pub bf16_stable: bool,
    /// Greatest absolute difference of logits, or of log-probabilities where the reference has
    /// nothing else.
    pub max_abs_logits: f64,
    /// Positions whose best token differs, unexcused.
    pub top_tokens_differ: u64,
    /// Generated tokens that differ, unexcused.
    pub greedy_tokens_differ: u64,
    /// Expert sets that differ, unexcused.
    pub expert_sets_differ: u64,
}

/// Where a calculation first departs from the reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FirstWrong {
    /// Which quantity.
    pub quantity: Quantity,
    /// Layer, where it belongs to one.
    pub layer: Option<u32>,
    /// Greatest absolute difference, relative to the RMS of the reference's values.
    pub relative: Option<f64>,
}

/// How a model that runs from its pack compares with a reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ValidateReport {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// What wrote it.
    pub generator: String,
    /// SHA-256 of `manifest.json`: the pack's identity.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub manifest_sha256: Sha256,
    /// What it was compared with.
    pub reference: ReferenceKind,
    /// File name of the trace, or folder name of the checkpoint.
    pub reference_name: String,
    /// How much of it was recorded, as the trace says: `full`, `router`, `logits`.
    pub level: Option<String>,
    /// What the reference computed in, in its own words, where it has log-probabilities and no
    /// logits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_dtype: Option<String>,
    /// The precision of the activations, as the trace has it; `float32` where that has
    /// log-probabilities and no logits.
    pub compute: Precision,
    /// Decoder layers.
    pub layers: u32,
    /// Most that a logit may differ, or a log-probability where the reference has nothing else;
    /// none under bf16, where logits are not judged, and for log-probabilities of other precisions
    /// that nobody gave a tolerance for.
    pub tolerance: Option<f64>,
    /// How it ended.
    pub verdict: Verdict,
    /// True where no finding is an error.
    pub ok: bool,
    /// Every prompt.
    pub prompts: Vec<PromptRow>,
    /// Every quantity of every layer, in the order of the calculation.
    pub values: Vec<ValueRow>,
    /// Every choice of every layer.
    pub choices: Vec<ChoiceRow>,
    /// Where it first goes wrong.
    pub first_wrong: Option<FirstWrong>,
    /// What the reference does not have, and so was not compared.
    pub not_compared: Vec<String>,
    /// What is outside the gate, and other things worth a look.
    pub findings: Vec<Finding>,
}
