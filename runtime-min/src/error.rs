//! Why a model cannot be run.

mod experts;
mod media;
mod speech;
mod vocoder;

use std::fmt;
use std::io;

use segpack_formats::FormatError;
use segpack_manifests::ModelError;
use segpack_manifests::families::UnknownFamily;

#[cfg(feature = "cuda")]
use crate::devices::cuda::CudaError;

pub use self::experts::ExpertChoiceError;
pub use self::media::MediaError;
pub use self::speech::SpeechError;
pub use self::vocoder::VocoderError;

/// Why a model cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The pack cannot be read, or is damaged.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The numbers of the model cannot be used, or manifest and `config.json` disagree.
    #[error("the pack cannot be run")]
    Model(#[source] ModelError),
    /// The pack does not hold what this model needs, or the model is of a kind that is not run.
    #[error("the pack cannot be run")]
    Unsuitable(#[from] Unsuitable),
    /// The memory budget is too small.
    #[error(
        "memory budget of {} is too small for this model and prompt; the minimum is {}",
        Size(*.memory), Size(*.minimum)
    )]
    Memory {
        /// The budget, in bytes.
        memory: u64,
        /// The smallest budget that works, in bytes.
        minimum: u64,
    },
    /// The budget of the GPU's memory is too small.
    #[error(
        "GPU memory budget of {} is too small for this model and prompt; the minimum is {}",
        Size(*.memory), Size(*.minimum)
    )]
    DeviceMemory {
        /// The budget, in bytes.
        memory: u64,
        /// The smallest budget that works, in bytes.
        minimum: u64,
    },
    /// A GPU cannot be used, or failed.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The system does not give the memory.
    #[error("cannot allocate {}", Size(*.bytes))]
    OutOfMemory {
        /// Bytes to allocate.
        bytes: u64,
        /// What the system says.
        source: io::Error,
    },
    /// Threads cannot be started.
    #[error("cannot start {threads} threads")]
    Threads {
        /// Threads to start.
        threads: usize,
        /// Why not.
        source: io::Error,
    },
    /// Routers cannot be restricted to the experts that were chosen.
    #[error(transparent)]
    ExpertChoice(#[from] ExpertChoiceError),
    /// A token id that the embedding does not have.
    #[error(
        "token id {id} is not in the embedding, which has {rows} rows: is this the model's own tokenizer?"
    )]
    TokenId {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        rows: u64,
    },
    /// The prompt and the tokens to generate are more than was reserved.
    #[error("{wanted} positions are needed, {reserved} were reserved")]
    TooLong {
        /// Positions needed.
        wanted: usize,
        /// Positions reserved.
        reserved: usize,
    },
    /// Audio, images or videos do not fit the prompt or the model.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// Codes cannot be made sound.
    #[error(transparent)]
    Vocoder(#[from] VocoderError),
    /// A text cannot be spoken.
    #[error(transparent)]
    Speech(#[from] SpeechError),
    /// The program contradicts itself.
    #[error("internal error: {0}; please report it")]
    Internal(&'static str),
}

/// What a pack lacks, or has in another form than can be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsuitable {
    /// The model's family is not known.
    #[error(transparent)]
    Family(UnknownFamily),
    /// The manifest describes no text decoder.
    #[error("its manifest describes no text decoder")]
    NoTextDecoder,
    /// A tensor of a role or a part that this build does not know.
    #[error("tensor {tensor:?} is the {part} of a {role}, which this build does not know")]
    UnknownWord {
        /// The tensor.
        tensor: String,
        /// Its part.
        part: String,
        /// Its role.
        role: String,
    },
    /// A tensor of a quantized weight.
    #[error("tensor {tensor:?} is the {part} of a {role}; quantized weights are not run")]
    Part {
        /// The tensor.
        tensor: String,
        /// Its part.
        part: String,
        /// Its role.
        role: String,
    },
    /// Another kind of rotary embedding.
    #[error("rope_type {seen:?} is not implemented, only \"default\"")]
    RopeType {
        /// `rope_type` of the config.
        seen: String,
    },
    /// A tensor of a dtype that is not computed with.
    #[error("tensor {tensor:?} is {dtype}; BF16, F16 and F32 can be run")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: String,
    },
    /// A weight is missing.
    #[error("{owner} has no {role}")]
    Missing {
        /// What should have it: "the model", "layer 3", "expert 5 of layer 3".
        owner: String,
        /// The weight's role.
        role: String,
    },
    /// A component that is needed is not there.
    #[error("it has no {component}")]
    NoComponent {
        /// The component.
        component: String,
    },
    /// The model takes text alone.
    #[error("its model takes text alone: there is no encoder for {medium}")]
    TextOnly {
        /// "audio", "images" or "videos".
        medium: &'static str,
    },
    /// A tensor is missing.
    #[error("{component} has no tensor {tensor:?}, which the config calls for")]
    MissingTensor {
        /// The component.
        component: String,
        /// Its name in the component.
        tensor: String,
    },
    /// A tensor of another shape than the config gives.
    #[error("tensor {tensor:?} has shape {seen:?}, wanted {wanted:?} from the config")]
    TensorShape {
        /// The tensor.
        tensor: String,
        /// Its shape.
        seen: Vec<u64>,
        /// The config's shape.
        wanted: Vec<u64>,
    },
    /// Experts are missing, or there are too many.
    #[error("layer {layer} has {seen} experts, wanted {wanted}")]
    ExpertCount {
        /// The layer.
        layer: usize,
        /// Experts in the pack.
        seen: usize,
        /// Experts that the config gives.
        wanted: usize,
    },
    /// A weight of another shape than the config gives.
    #[error("{what} has shape {seen:?}, wanted {wanted:?} from the config")]
    Shape {
        /// The weight.
        what: String,
        /// Its shape.
        seen: [usize; 2],
        /// The config's shape.
        wanted: [usize; 2],
    },
    /// A tensor that the model has no use for: leaving it out may change what is computed.
    #[error("tensor {tensor:?} is the {role} of {owner}, which the config does not call for")]
    Surplus {
        /// The tensor.
        tensor: String,
        /// Its role.
        role: String,
        /// What it would belong to: "the model", "layer 3", "expert 5 of layer 3".
        owner: String,
    },
    /// A layer has experts and should have a dense MLP, or the reverse.
    #[error("layer {layer} has {}", if *.wanted { "a dense MLP; the config gives it experts" } else { "experts; the config gives it a dense MLP" })]
    LayerKind {
        /// The layer.
        layer: usize,
        /// Whether it has experts by the config.
        wanted: bool,
    },
    /// A bias that the config does not have, or has and the pack has not.
    #[error("{what} {}", if *.wanted { "has no bias; the config gives one" } else { "has a bias; the config gives none" })]
    Bias {
        /// The linear layer.
        what: String,
        /// Whether the config gives it a bias.
        wanted: bool,
    },
    /// The matrices of an expert are not in one segment.
    #[error("tensor {tensor:?} is in segment {segment:?}, its expert's gate in {wanted:?}")]
    ExpertApart {
        /// The tensor.
        tensor: String,
        /// Its segment.
        segment: String,
        /// The segment of the expert's gate.
        wanted: String,
    },
    /// The CPU can run it, the GPU kernels cannot.
    #[error(transparent)]
    Gpu(#[from] GpuLimit),
}

/// What the kernels of the GPU cannot run; the CPU can.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuLimit {
    /// A family's operation that no kernel computes.
    #[error("the GPU kernels do not compute what the decoder wants: {what}")]
    Operation {
        /// The operation.
        what: &'static str,
    },
    /// Attention heads are too wide.
    #[error("head_dim is {seen}; the GPU kernels take at most {max}")]
    HeadWidth {
        /// Width of a head.
        seen: usize,
        /// The widest head that can be run.
        max: usize,
    },
    /// A layer has too many experts.
    #[error("a layer has {seen} experts; the GPU kernels take at most {max}")]
    Experts {
        /// Experts of a layer.
        seen: u32,
        /// The most that can be run.
        max: u32,
    },
    /// The experts of a layer are of several dtypes.
    #[error("expert {expert} of layer {layer} has another dtype than the layer's first")]
    MixedDtypes {
        /// The layer.
        layer: u32,
        /// The expert.
        expert: u32,
    },
}

impl From<ModelError> for RunError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::File(e) => e.into(),
            ModelError::Family(e) => Unsuitable::Family(e).into(),
            ModelError::NoTextDecoder => Unsuitable::NoTextDecoder.into(),
            other => Self::Model(other),
        }
    }
}

impl From<GpuLimit> for RunError {
    fn from(limit: GpuLimit) -> Self {
        Self::Unsuitable(limit.into())
    }
}

/// Bytes for people: decimal units, one decimal place.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] = [
            (1_000_000_000_000, "TB"),
            (1_000_000_000, "GB"),
            (1_000_000, "MB"),
            (1000, "kB"),
        ];
        match UNITS.iter().find(|(unit, _)| self.0 >= *unit) {
            #[expect(clippy::cast_precision_loss, reason = "shown with one decimal place")]
            Some((unit, name)) => write!(f, "{:.1} {name}", self.0 as f64 / *unit as f64),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_that_is_too_small_is_told_in_units() {
        let error = RunError::Memory {
            memory: 1_000_000,
            minimum: 67_266_232,
        };
        assert_eq!(
            error.to_string(),
            "memory budget of 1.0 MB is too small for this model and prompt; the minimum is 67.3 MB"
        );
        let sizes = [999, 1000, 12_345_678_901, 3_000_000_000_000];
        assert_eq!(
            sizes.map(|n| Size(n).to_string()),
            ["999 bytes", "1.0 kB", "12.3 GB", "3.0 TB"]
        );
    }
}
