//! Traces: what a model computed for some prompts, in the format of the reference script
//! (`make_reference.py record`).
//!
//! One `.safetensors` file and one `.json` file beside it. `pNN.` is the prompt number; T = prompt
//! length, H = hidden, V = vocabulary, E = experts, K = experts per token, N = generated tokens;
//! `act` is the dtype of the activations.
//!
//! ```text
//! pNN.input_ids              [T]     I64    pNN.layer.L.router_logits  [T,E]   act
//! pNN.embed                  [T,H]   act    pNN.layer.L.router_probs   [T,E]   F32
//! pNN.layer.L.attn_out       [T,H]   act    pNN.layer.L.topk_ids       [T,K]   I64
//! pNN.layer.L.mlp_out        [T,H]   act    pNN.layer.L.topk_weights   [T,K]   act
//! pNN.layer.L.hidden         [T,H]   act    pNN.gen.ids                [N]     I64
//! pNN.norm                   [T,H]   act    pNN.gen.top_ids            [N,10]  I64
//! pNN.logits                 [T,V]   act    pNN.gen.top_logits         [N,10]  F32
//! pNN.position_ids           [3,T]   I64    pNN.gen.layer.L.topk_ids   [N-1,K] I64
//! ```
//!
//! A trace of a prompt with audio, images or videos has one prompt, whose tensors begin with `mm.`
//! instead of `pNN.`, and is read by [`MediaTrace`]: `record-mm` and `make_media_reference.py` of the
//! same scripts write it. Positions are floats there, as those of videos may be fractions.
//!
//! A server tells less: its tokens, and the log-probabilities of the best few. A trace recorded
//! from one has `"values": "log_probabilities"` under `settings`, and in place of all the rest
//!
//! ```text
//! pNN.input_ids              [T]     I64    pNN.gen.ids                [N]     I64
//! pNN.gen.top_ids            [N,R]   I64    pNN.gen.top_logprobs       [N,R]   F32
//! pNN.prompt.top_ids         [T-1,R] I64    pNN.prompt.top_logprobs    [T-1,R] F32
//! ```
//!
//! R is as many as the server lists (`gen.` and `prompt.` each their own); rows are natural
//! logarithms, best first. Row i of `prompt.` is what follows token i of the prompt, row i of
//! `gen.` is what `gen.ids[i]` was chosen from. An id of -1 beside a number is a token that the
//! server did not identify; NaN ends a row that is shorter than R. Both pairs may be absent.
//! `settings.dtype` is then what the server computed in, in its own words (`float32`, `bfloat16`,
//! `q8_0`).

mod encoders;
mod media;
mod read;
mod record;
mod server;
mod speech;
mod tensor;

use std::collections::BTreeMap;

use segpack_formats::digest::Sha256;
use segpack_manifests::documents::Manifest;
use serde::{Deserialize, Serialize};

pub use self::media::{FEATURES_FORMAT, MEDIA_FORMAT, MediaTrace, Normalization};
pub use self::read::{Trace, TracePrompt};
pub use self::record::{TraceFiles, TraceRecorder};
pub use self::server::{Place, Ranked};
pub use self::speech::{SPEECH_FORMAT, SpeechCase, SpeechTrace, WAVE_FORMAT, WaveCase};

/// What the reference script calls this format.
pub const TRACE_FORMAT: &str = "qwen3-omni-thinker-trace-1";

/// The setting of a trace whose routers could choose among some experts only: it is none of the model.
pub const RESTRICTED: &str = "restricted_experts";

/// What is wrong with a trace that has [`RESTRICTED`] where the model is to be judged.
const NOT_THE_MODEL: &str =
    "was recorded with routers restricted to some experts: it is none of the model";

/// A file of the checkpoint that a trace was recorded from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedFile {
    /// Bytes.
    pub size: u64,
    /// Its digest. `None`: the file was too large for the script to digest.
    pub sha256: Option<Sha256>,
}

impl RecordedFile {
    /// The files of the checkpoint that was packed, by name.
    pub fn all_of(manifest: &Manifest) -> BTreeMap<String, Self> {
        let files = manifest.source_files.iter();
        files
            .map(|f| {
                (
                    f.path.clone(),
                    Self {
                        size: f.length,
                        sha256: f.sha256,
                    },
                )
            })
            .collect()
    }
}

fn tensor_name(prompt: usize, name: &str) -> String {
    format!("p{prompt:02}.{name}")
}
