//! From a pack to tokens: loads weights on demand within a memory budget, runs the text decoder of
//! Qwen3-MoE and Qwen3-Omni-MoE models on the CPU or a GPU, tokenizes, generates, records traces.
//! Never writes packs, knows no command lines.
//!
//! # Open a pack, give a prompt, get tokens
//!
//! A [`session::Session`] is an open pack, a device, threads and a memory budget.
//!
//! ```
//! # #[cfg(feature = "text")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::ops::ControlFlow;
//!
//! use segpack_manifests::Pack;
//! use segpack_runtime_min::processing::{Chat, Prompt};
//! use segpack_runtime_min::session::{
//!     GenerationSettings, MemoryLimit, Session, SessionOptions, Token,
//! };
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tiny.segpack");
//! let pack = Pack::open(folder.as_ref())?;
//! let mut options = SessionOptions::default(); // the CPU, exact, every digest checked
//! options.memory = MemoryLimit::Bytes(2_000_000_000);
//! let session = Session::open(&pack, &options)?;
//!
//! // a text, token ids, or a chat through the checkpoint's own template
//! let text = session.text()?;
//! let prompt = text.tokenize(&Prompt::from(Chat::turn(Some("Be brief."), "Hi, is the user on?")))?;
//! let mut settings = GenerationSettings::default(); // greedy
//! settings.max_new_tokens = 12;
//! let generation = session.generate(&text, &prompt.ids, &settings, &mut |token: &Token<'_>| {
//!     print!("{}", token.text);
//!     ControlFlow::Continue(())
//! })?;
//! println!("{} bytes of weights were read", generation.stats.bytes_read);
//! # assert!(!generation.ids.is_empty());
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "text"))]
//! # fn main() {}
//! ```
//!
//! # Record a trace, read a trace
//!
//! A trace holds what a model computed on the way, in the format of the script that records the
//! official implementation: see [`trace`].
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use std::collections::BTreeMap;
//! # use std::ops::ControlFlow;
//! # use segpack_manifests::Pack;
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tiny.segpack");
//! use segpack_runtime_min::session::{GenerationSettings, Hooks, Session, SessionOptions, Token};
//! use segpack_runtime_min::trace::{RecordedFile, Trace};
//!
//! let pack = Pack::open(folder.as_ref())?;
//! let session = Session::open(&pack, &SessionOptions::default())?;
//! let mut recorder = session.recorder()?;
//! let mut ignore = |_: &Token<'_>| ControlFlow::Continue(());
//! let mut hooks = Hooks::new(&mut ignore);
//! hooks.recorder = Some(&mut recorder);
//! let mut settings = GenerationSettings::default();
//! settings.max_new_tokens = 2;
//! session.generate_observed(&session.text()?, &[5, 9, 200], &settings, hooks)?;
//! let path = std::env::temp_dir().join(format!("segpack-{}.safetensors", std::process::id()));
//! recorder.write(&path, serde_json::Map::new(), &RecordedFile::all_of(pack.manifest()))?;
//!
//! let trace = Trace::open(&path)?;
//! let shape = trace.shape(0, "logits").ok_or("no logits")?;
//! assert_eq!((trace.prompts()[0].input_ids.len(), shape[0]), (3, 3));
//! # std::fs::remove_file(&path)?;
//! # std::fs::remove_file(path.with_extension("json"))?;
//! # Ok(())
//! # }
//! ```
//!
//! # Modules
//!
//! * [`session`]: the front door.
//! * [`processing`], [`generate`]: from text to tokens and back, the generation loop, samplers.
//! * [`trace`]: what a forward pass computed, written and read.
//! * [`models`]: the forward passes.
//! * [`devices`]: where they run: the CPU, an NVIDIA GPU.
//! * [`weights`]: loaded, checked, cached within a budget.
//! * [`tensor`], [`ops`]: matrices, and the operations that models are written in.
//!
//! # Features
//!
//! All are on by default. `cuda`: NVIDIA GPUs; the driver is loaded when it is needed, nothing of
//! CUDA is needed to build. `text`: texts and chats as prompts and text as output; without it both
//! are token ids, and the crate is without tokenizers and templates. `image` and `video`: files to
//! what vision encoders take; videos in containers are decoded by the programs `ffmpeg` and
//! `ffprobe`, which are looked for when they are needed.

pub mod devices;
mod error;
pub mod generate;
pub mod guide;
mod kernels;
pub mod models;
pub mod ops;
pub mod processing;
#[cfg(test)]
mod samples;
pub mod session;
pub mod tensor;
pub mod trace;
pub mod weights;

pub use error::{
    ExpertChoiceError, GpuLimit, MediaError, RunError, SpeechError, Unsuitable, VocoderError,
};
pub use kernels::{CPU_VARIABLE, Kernels, UnknownKernels, limits};
pub use models::decoder::{LinearInput, Observer, Routing, Unobserved};
