//! The report of `validate`.

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
    /// Output of `o_proj`, before the residual add.
    AttentionOutput = "attention output",
    /// Router outputs, before the softmax.
    RouterLogits = "router logits",
    /// Softmax over all experts.
    RouterProbabilities = "router probabilities",
    /// The factors of the chosen experts' outputs; compared where the same experts are chosen.
    ExpertWeights = "expert weights",
    /// Output of the experts or the dense MLP, before the residual add.
    MlpOutput = "MoE/MLP output",
    /// The residual stream after the layer.
    HiddenState = "hidden state",
    /// After the final norm.
    FinalNorm = "final norm",
    /// Logits at every position of the prompts and of the tokens after them.
    Logits = "logits",
    /// Natural logarithms of the probabilities of the reference's most likely tokens, if it has no
    /// logits.
    LogProbabilities = "log-probabilities",
}

macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A choice that two implementations may make differently.
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
    /// The most likely token at every position of the prompts.
    TopTokens = "top-1 tokens",
    /// The next token at every step of the generation, each after the recorded tokens before it.
    GreedyTokens = "greedy tokens",
    /// The order of the reference's most likely tokens at a position, if it has no logits.
    TokenRanks = "token ranks",
}

macro_rules! stages {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A stage between a media file and the decoder, each fed with what the reference had before
        /// it. The order is that of the calculation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(rename_all = "snake_case")]
        pub enum Stage { $($(#[$doc])* $name,)* }

        impl Stage {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name in words.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

stages! {
    /// Frames of each clip.
    AudioLengths = "audio frames",
    /// Samples to log-mel spectrogram.
    AudioFeatures = "audio features",
    /// Decoded picture to resized picture.
    ImageResized = "resized images",
    /// Resized picture to patches.
    ImagePixels = "image patches",
    /// Decoded frames to resized frames.
    VideoResized = "resized videos",
    /// Resized frames to patches.
    VideoPixels = "video patches",
    /// Spectrogram to what enters the encoder's first layer.
    AudioInput = "audio encoder input",
    /// After a layer of the audio encoder.
    AudioLayer = "audio encoder layers",
    /// What takes the place of audio placeholders.
    AudioRows = "audio rows",
    /// Patches to what enters the encoder's first block.
    ImageInput = "image encoder input",
    /// After a block of the vision encoder.
    ImageLayer = "image encoder blocks",
    /// What is added after the decoder's first layers.
    ImageDeepstack = "image deepstack rows",
    /// What takes the place of image placeholders.
    ImageRows = "image rows",
    /// Patches to what enters the encoder's first block.
    VideoInput = "video encoder input",
    /// After a block of the vision encoder.
    VideoLayer = "video encoder blocks",
    /// What is added after the decoder's first layers.
    VideoDeepstack = "video deepstack rows",
    /// What takes the place of video placeholders.
    VideoRows = "video rows",
    /// Time, height and width of every token.
    Positions = "positions",
    /// What is added to the numbers of the tokens that follow.
    RopeDelta = "rope delta",
    /// Embeddings with the placeholders replaced.
    Embeddings = "merged embeddings",
    /// Greedy text of the thinker, from the prompt on.
    SpeechText = "thinker text",
    /// Ids of the talker's prompt.
    TalkerIds = "talker ids",
    /// Positions of the talker's prompt.
    TalkerPositions = "talker positions",
    /// What is added to the number of a frame behind the talker's prompt.
    TalkerRopeDelta = "talker position offset",
    /// Rows of the talker's prompt.
    TalkerEmbeds = "talker embeddings",
    /// The text that is added to each frame.
    TalkerTrailing = "talker trailing text",
    /// Outputs of the talker's layers.
    TalkerLayers = "talker layers",
    /// Router probabilities of the talker's layers.
    TalkerRouters = "talker router probabilities",
    /// Experts that the talker's tokens go to.
    TalkerExperts = "talker experts",
    /// What the sigmoids of the talker's shared experts are of.
    TalkerSharedGates = "talker shared expert gates",
    /// Logits of first codes.
    TalkerLogits = "talker logits",
    /// Scores of first codes that are possible.
    TalkerScores = "talker scores",
    /// Which first codes are impossible.
    TalkerSuppressed = "talker suppressed codes",
    /// What residual codes are predicted from.
    TalkerHidden = "talker states",
    /// Inputs of the talker after each frame.
    TalkerNext = "talker inputs",
    /// Logits of residual codes.
    PredictorLogits = "code predictor logits",
    /// All codes, each chosen after the recorded ones.
    ForcedCodes = "codes after recorded codes",
    /// First codes from the prompt on, with the one that becomes no frame.
    SpeechTokens = "first codes",
    /// All codes from the prompt on.
    SpeechCodes = "codes",
    /// Stages of the vocoder, up to the sound before it is clamped.
    VocoderStages = "vocoder stages",
    /// Sound of recorded codes.
    Wave = "sound of recorded codes",
    /// Its noise: the root of the mean square of the difference, relative to that of the sound.
    WaveNoise = "its relative noise",
    /// Sound from the prompt on.
    SpeechWave = "sound",
    /// Its noise.
    SpeechNoise = "relative noise",
}

/// One stage (of one layer, clip, image or video, where it belongs to one).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct StageRow {
    /// Which stage.
    pub stage: Stage,
    /// Number of the layer, deepstack feature, clip, image or video, if it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// Values compared.
    pub values: u64,
    /// Values that are not equal.
    pub unequal: u64,
    /// Values that are NaN or infinite on either side; the other figures leave them out.
    pub not_finite: u64,
    /// Maximum absolute difference.
    pub max_abs: f64,
    /// Mean absolute difference.
    pub mean_abs: f64,
    /// Maximum absolute difference allowed. `null` where nothing is judged.
    pub max_allowed: Option<f64>,
    /// Mean absolute difference allowed, if that is judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_allowed: Option<f64>,
    /// Whether it is within what is allowed, or nothing is judged.
    pub ok: bool,
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
    /// What a server generated when it was asked.
    Server,
}

/// The precision of the activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32 throughout; all criteria apply.
    Float32,
    /// Rounded where the official bf16 code rounds.
    Bfloat16,
}

/// The verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything that is judged is within tolerance.
    Inside,
    /// Something that is judged is out of tolerance.
    Outside,
    /// The trace belongs to another checkpoint; nothing was run.
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
    /// Layer, if it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Values compared.
    pub values: u64,
    /// Values that are NaN or infinite on either side and differ; the other figures leave them out.
    pub not_finite: u64,
    /// Maximum absolute difference.
    pub max_abs: f64,
    /// Mean absolute difference.
    pub mean_abs: f64,
    /// Maximum absolute difference, relative to the RMS of the reference's values; `null` if those
    /// are all 0.
    pub relative: Option<f64>,
    /// Cosine similarity; `null` if one side is all 0.
    pub cosine: Option<f64>,
    /// Prompt and position of the maximum difference, counted from 0.
    pub worst: Option<[u64; 2]>,
    /// Whether the difference is larger than rounding explains. Diagnostic only: the verdict
    /// depends on the logits.
    pub wrong: bool,
}

/// One kind of choice (of one layer, where layers make it), over all prompts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChoiceRow {
    /// Which choice.
    pub choice: Choice,
    /// Layer, if it belongs to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Choices compared.
    pub compared: u64,
    /// Choices that are equal.
    pub equal: u64,
    /// Choices that differ where the reference's own gap is so small that rounding may decide.
    pub excused: u64,
    /// Prompt and position of the first choice that differs and is not excused.
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
    /// Whether the official bf16 code agrees with itself on this prompt; only then is bf16 judged.
    pub bf16_stable: bool,
    /// Maximum absolute difference of logits, or of log-probabilities if the reference has only
    /// those.
    pub max_abs_logits: f64,
    /// Positions whose most likely token differs and is not excused.
    pub top_tokens_differ: u64,
    /// Generated tokens that differ and are not excused.
    pub greedy_tokens_differ: u64,
    /// Expert sets that differ and are not excused.
    pub expert_sets_differ: u64,
}

/// Where the calculation first differs from the reference by more than rounding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FirstWrong {
    /// Which quantity.
    pub quantity: Quantity,
    /// Layer, if it belongs to one.
    pub layer: Option<u32>,
    /// Maximum absolute difference, relative to the RMS of the reference's values.
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
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// SHA-256 of `manifest.json`: the pack's identity.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::HexDigest")
    )]
    pub manifest_sha256: Sha256,
    /// What it was compared with.
    pub reference: ReferenceKind,
    /// File name of the trace, folder name of the checkpoint, or address of the server.
    pub reference_name: String,
    /// Whether the trace was recorded from an export of this very pack.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_of_export: bool,
    /// Level of detail of the trace: `full`, `router` or `logits`.
    pub level: Option<String>,
    /// Dtype that the reference computed in, as it names it, if it has log-probabilities and no
    /// logits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_dtype: Option<String>,
    /// The precision of the activations, as in the trace; `float32` if the trace has
    /// log-probabilities and no logits.
    pub compute: Precision,
    /// Decoder layers.
    pub layers: u32,
    /// Maximum difference allowed of a logit, or of a log-probability if the reference has only
    /// those. `null` for bf16, where logits are not judged, and for log-probabilities of other
    /// precisions without `--tolerance`.
    pub tolerance: Option<f64>,
    /// The verdict.
    pub verdict: Verdict,
    /// Whether no finding is an error.
    pub ok: bool,
    /// Every prompt.
    pub prompts: Vec<PromptRow>,
    /// What comes before the decoder, of a reference with audio, images or videos, in the order of
    /// the calculation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageRow>,
    /// Every quantity of every layer, in the order of the calculation.
    pub values: Vec<ValueRow>,
    /// Every choice of every layer.
    pub choices: Vec<ChoiceRow>,
    /// Where it first differs by more than rounding.
    pub first_wrong: Option<FirstWrong>,
    /// What was not compared because the reference does not contain it.
    pub not_compared: Vec<String>,
    /// What is out of tolerance, and warnings.
    pub findings: Vec<Finding>,
}
