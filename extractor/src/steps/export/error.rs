//! Why nothing is exported.

use std::path::PathBuf;

use segpack_formats::gguf::GgufError;
use segpack_formats::numeric::Dtype;
use segpack_formats::safetensors::HeaderError;
use segpack_manifests::ModelError;
use segpack_manifests::documents::ExportTarget;
use segpack_manifests::families::{ConfigError, FamilyName, UnknownFamily};
use segpack_runtime_min::processing::text::TokenizerError;
#[cfg(feature = "run")]
use segpack_runtime_min::processing::text::chat_template::ChatTemplateError;

use super::written::WrittenTensor;

/// An error of any kind, as a cause.
pub(super) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A setting that some targets do not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportOption {
    /// `max_shard_size`.
    MaxShardSize,
    /// `expert_parallel`.
    ExpertParallel,
    /// `names`.
    Names,
    /// `quantize`.
    Quantize,
    /// `tokenizer_pre`.
    TokenizerPre,
    /// An importance matrix.
    Importance,
    /// The encoders.
    Mmproj,
}

impl ExportOption {
    /// Whether the setting means something for a target.
    pub fn applies_to(self, target: ExportTarget) -> bool {
        match self {
            Self::MaxShardSize => match target {
                ExportTarget::Hf | ExportTarget::Qwen3Moe | ExportTarget::Gguf => true,
                ExportTarget::Safetensors | ExportTarget::Npy => false,
            },
            Self::ExpertParallel => matches!(target, ExportTarget::Hf | ExportTarget::Qwen3Moe),
            Self::Names => matches!(target, ExportTarget::Safetensors | ExportTarget::Npy),
            Self::Quantize | Self::TokenizerPre | Self::Importance | Self::Mmproj => {
                target == ExportTarget::Gguf
            }
        }
    }
}

impl std::fmt::Display for ExportOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::MaxShardSize => "a maximum shard size",
            Self::ExpertParallel => "a share of the experts",
            Self::Names => "a choice of tensors by name",
            Self::Quantize => "a dtype of quantized blocks",
            Self::TokenizerPre => "the name of a pre-tokenizer",
            Self::Importance => "an importance matrix",
            Self::Mmproj => "a file of the encoders",
        })
    }
}

/// Why nothing is exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A setting means nothing for the target.
    #[error("{option} does not apply to the target {target}")]
    Option {
        /// The setting.
        option: ExportOption,
        /// The target.
        target: ExportTarget,
    },
    /// The target is not written as one stream, from its first byte to its last.
    #[error("the target {target} cannot go to standard output")]
    NotAStream {
        /// The target.
        target: ExportTarget,
    },
    /// No tensor matches the globs.
    #[error("no tensor of the pack matches {}", globs.join(" "))]
    NoMatch {
        /// The globs.
        globs: Vec<String>,
    },
    /// Two files of the output would have one path.
    #[error("two files of the export would be {path:?}")]
    SamePath {
        /// The path.
        path: String,
    },
    /// The pack does not hold the text decoder.
    #[error("the pack has no text decoder, which the target {target} is made of")]
    NoTextDecoder {
        /// The target.
        target: ExportTarget,
    },
    /// The selected components leave out the text decoder.
    #[error(
        "the selected components leave out the text decoder, which the target {target} is made of"
    )]
    NotSelected {
        /// The target.
        target: ExportTarget,
    },
    /// The model computes something else than what the target describes.
    #[error(
        "the target {target} is for models that compute as Qwen3-MoE does, and {family} does not"
    )]
    OtherArchitecture {
        /// The target.
        target: ExportTarget,
        /// The model's family.
        family: FamilyName,
    },
    /// The model is of a family that this build does not know.
    #[error(transparent)]
    Family(UnknownFamily),
    /// The numbers of the model cannot be used, or manifest and `config.json` disagree.
    #[error("the pack cannot be exported")]
    Model(#[source] ModelError),
    /// The pack holds no `config.json`.
    #[error("the pack has no config.json to describe the model")]
    NoConfig,
    /// The configuration of the checkpoint lacks something.
    #[error("the model's configuration cannot be used")]
    Config(#[source] ConfigError),
    /// A file of the checkpoint is not what its name promises.
    #[error("{file} cannot be read")]
    SourceFile {
        /// The file, relative to the checkpoint.
        file: String,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// A document of the export cannot be encoded.
    #[error("{file} cannot be encoded")]
    Document {
        /// The document.
        file: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// What is selected has no experts to share.
    #[error("the selected components have no experts to share among ranks")]
    NoExperts,
    /// There are more ranks than experts.
    #[error("{component} has {count} experts, too few for {ranks} ranks")]
    TooFewExperts {
        /// The component.
        component: String,
        /// Its experts.
        count: u32,
        /// The ranks.
        ranks: u32,
    },
    /// The shard of a stacked tensor is not in the manifest.
    #[error("the pack does not list shard {file}")]
    NoSuchShard {
        /// The shard.
        file: String,
    },
    /// The header of a shard does not name a stacked tensor.
    #[error("shard {file} has no tensor {tensor:?}, which the pack names")]
    NoSuchStack {
        /// The shard.
        file: String,
        /// The stacked tensor.
        tensor: String,
    },
    /// The parts of a tensor do not make its shape.
    #[error("tensor {tensor:?}: its {parts} parts do not make shape {shape:?} of {dtype}")]
    Parts {
        /// The tensor of the output.
        tensor: String,
        /// Tensors of the pack that it is made of.
        parts: usize,
        /// Its shape, outermost dimension first.
        shape: Vec<u64>,
        /// Its element type, as the output's format names it.
        dtype: String,
    },
    /// A tensor would be a file that cannot be.
    #[error("tensor {tensor:?} has a name that no file can have: {why}")]
    FileName {
        /// The tensor.
        tensor: String,
        /// What is wrong with its name.
        why: &'static str,
    },
    /// numpy has no dtype for a tensor.
    #[error("tensor {tensor:?} is {dtype}, which fills no whole bytes: numpy cannot hold it")]
    Numpy {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
    },
    /// A tensor cannot become what the target wants.
    #[error("tensor {tensor:?} is {from}, which cannot become {to}")]
    NoConversion {
        /// The tensor of the pack.
        tensor: String,
        /// Its dtype.
        from: Dtype,
        /// What it would become.
        to: String,
    },
    /// A value of a tensor cannot be represented in the wanted dtype.
    #[error("tensor {tensor:?} cannot be converted")]
    Value {
        /// The tensor of the output.
        tensor: String,
        /// Which value, and why.
        #[source]
        source: Cause,
    },
    /// The header of a safetensors file cannot be made.
    #[error("the header of a safetensors file cannot be made")]
    Header(#[source] HeaderError),
    /// The header of a GGUF file cannot be made.
    #[error("the header of a GGUF file cannot be made")]
    GgufHeader(#[source] GgufError),
    /// The tokenizer of the checkpoint cannot be read.
    #[error("the tokenizer cannot be exported")]
    Tokenizer(#[source] TokenizerError),
    /// The chat template of the checkpoint cannot be read.
    #[cfg(feature = "run")]
    #[error("the chat template cannot be exported")]
    Template(#[source] ChatTemplateError),
    /// The target needs a tokenizer, which this build has none of.
    #[error("cannot export {target}: built without the feature `run`")]
    WithoutRun {
        /// The target.
        target: ExportTarget,
    },
    /// llama.cpp cannot express the model.
    #[error(transparent)]
    Gguf(#[from] GgufExportError),
    /// A written file is not what it should be.
    #[error("{}, read back, {difference}", path.display())]
    ReadBack {
        /// The file.
        path: PathBuf,
        /// How it differs.
        difference: Box<Difference>,
    },
}

impl ExportError {
    /// A value of a tensor cannot be represented in the wanted dtype.
    pub(super) fn value(tensor: &str, source: Cause) -> Self {
        Self::Value {
            tensor: tensor.to_owned(),
            source,
        }
    }
}

/// How a file that was written and read back differs from what was planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// Its length.
    #[error("has {seen} bytes, not {wanted}")]
    Length {
        /// Bytes that it has.
        seen: u64,
        /// Bytes that were planned.
        wanted: u64,
    },
    /// Its digest.
    #[error("has another SHA-256 than what was written")]
    Digest,
    /// The bytes before its first tensor.
    #[error("does not begin with the metadata that was written")]
    Metadata,
    /// The number of its tensors.
    #[error("has {seen} tensors, not {wanted}")]
    Tensors {
        /// Tensors that it has.
        seen: usize,
        /// Tensors that were planned.
        wanted: usize,
    },
    /// An entry of its index.
    #[error("has {seen:?} in place of {wanted:?}")]
    Entry {
        /// The entry.
        seen: WrittenTensor,
        /// What was planned.
        wanted: WrittenTensor,
    },
    /// The digest of a tensor's bytes.
    #[error("has SHA-256 {seen} at bytes {start}..{end} (tensor {tensor:?}), not {wanted}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// Its first byte in the file.
        start: u64,
        /// The byte behind its last.
        end: u64,
        /// The digest of what is there.
        seen: segpack_formats::digest::Sha256,
        /// The digest in the manifest.
        wanted: segpack_formats::digest::Sha256,
    },
    /// A converted value.
    #[error("is wrong at bytes {start}.. (tensor {tensor:?}): {what}")]
    Value {
        /// The tensor.
        tensor: String,
        /// The first byte in the file of the piece that is wrong.
        start: u64,
        /// Which value of the piece, and what is wrong with it.
        what: String,
    },
    /// Its end.
    #[error("ends before its last tensor does")]
    TooShort,
}

/// Why llama.cpp cannot express what a pack holds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufExportError {
    /// The output has another ending.
    #[error("{name:?} does not end in .gguf")]
    Name {
        /// The file name.
        name: String,
    },
    /// An importance matrix that is of no use here.
    #[error("the importance matrix is of no use: {why}")]
    Importance {
        /// Why.
        why: String,
    },
    /// A number of `generation_config.json` that is none, or that the format cannot hold.
    #[error("generation_config.json: {key} is {seen}, wanted a number of 32 bits")]
    Sampling {
        /// The key.
        key: String,
        /// The JSON value.
        seen: String,
    },
    /// The encoders are wanted of a model without.
    #[error("the model has no encoders of images and audio that llama.cpp takes: {family}")]
    NoEncoders {
        /// The family.
        family: FamilyName,
    },
    /// The pack does not hold an encoder.
    #[error("the pack has no {lacks}: was it left out?")]
    NoTowers {
        /// The component.
        lacks: &'static str,
    },
    /// The processor's numbers are not there.
    #[error("{file} has no numbers {key:?}, which llama.cpp needs for images")]
    Preprocessor {
        /// The file of the checkpoint.
        file: &'static str,
        /// Its key.
        key: &'static str,
    },
    /// The model's family is not written.
    #[error(
        "the target gguf is for Qwen3-MoE, Qwen2-MoE, Mixtral, OLMoE, GLM-4.5 and gpt-oss, not for {family}"
    )]
    Family {
        /// The family.
        family: FamilyName,
    },
    /// Values that are quantised already would be quantised again.
    #[error(
        "the experts are MXFP4 already: quantising them again loses more than it saves, and llama.cpp's quantizer refuses it"
    )]
    Requantized,
    /// Quantised values without their scales.
    #[error("tensor {tensor:?} has no scales beside it: were they left out?")]
    NoScale {
        /// The tensor.
        tensor: String,
    },
    /// A setting of the model that llama.cpp does not know.
    #[error("llama.cpp's {architecture} {what}")]
    Setting {
        /// The architecture in llama.cpp.
        architecture: &'static str,
        /// What llama.cpp computes, and what the model does instead.
        what: String,
    },
    /// Two tensors are one and the same part of the model.
    #[error("{first:?} and {second:?} are both {role} of one layer or expert")]
    Twice {
        /// A tensor.
        first: String,
        /// Another.
        second: String,
        /// What both are.
        role: String,
    },
    /// A tensor that is a part of a weight that llama.cpp does not know.
    #[error(
        "tensor {tensor:?} is the {part} of a quantised weight, which is not written as {architecture} of llama.cpp"
    )]
    Part {
        /// The architecture in llama.cpp.
        architecture: &'static str,
        /// The tensor.
        tensor: String,
        /// What it is of its weight.
        part: String,
    },
    /// A tensor of the model is not in the pack.
    #[error("the pack has no {role}{}{}: was it left out?", of_layer(*layer), of_expert(*expert))]
    Missing {
        /// What it is.
        role: String,
        /// Its layer.
        layer: Option<u32>,
        /// Its expert.
        expert: Option<u32>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor {tensor:?} has shape {seen:?}, wanted {wanted:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape, outermost dimension first.
        seen: Vec<u64>,
        /// That of the configuration.
        wanted: Vec<u64>,
    },
    /// A tensor that llama.cpp has no name for.
    #[error("llama.cpp's {architecture} has no tensor {tensor:?} ({role})")]
    NoSuchTensor {
        /// The architecture in llama.cpp.
        architecture: &'static str,
        /// The tensor.
        tensor: String,
        /// What it is.
        role: String,
    },
    /// The maximum file size gives too many files.
    #[error(
        "the maximum shard size gives {files} files of {tensors} tensors; a GGUF model has at most {max}"
    )]
    TooManyFiles {
        /// Files that there would be.
        files: usize,
        /// Tensors in all.
        tensors: usize,
        /// The greatest number of files.
        max: usize,
    },
    /// The tokenizer splits text by rules that have no known name in llama.cpp.
    #[error(
        "the tokenizer does not split text as those do whose name in llama.cpp is known (Qwen2's, and \
         those of OLMoE, GLM-4.5 and gpt-oss): {seen}"
    )]
    PreTokenizer {
        /// Its rules, cut short.
        seen: String,
    },
    /// The tokenizer's vocabulary is not one of bytes: SentencePiece's.
    #[error(
        "the tokenizer does not make characters of bytes, and vocabularies of other kinds are not written: {seen}"
    )]
    NotByteLevel {
        /// Its rules, cut short.
        seen: String,
    },
    /// The SentencePiece vocabulary cannot be used.
    #[error("tokenizer.model {why}")]
    SentencePiece {
        /// What is wrong with it.
        why: String,
    },
    /// A special token that llama.cpp is told of is not in the tokenizer.
    #[error("the tokenizer has no special token {token:?}, which llama.cpp is told of")]
    SpecialToken {
        /// The token.
        token: &'static str,
    },
    /// The tokenizer has a step that may add tokens to a text.
    #[error("the tokenizer has a post-processor {kind:?}, which may add tokens to a text")]
    PostProcessor {
        /// The step.
        kind: String,
    },
    /// A merge of the tokenizer is malformed.
    #[error("the tokenizer has a merge that is not a pair")]
    Merge,
}

fn of_layer(layer: Option<u32>) -> String {
    layer.map_or_else(String::new, |layer| format!(" of layer {layer}"))
}

fn of_expert(expert: Option<u32>) -> String {
    expert.map_or_else(String::new, |expert| format!(", expert {expert}"))
}
