//! The documents of segpack and the knowledge behind them: which tensors a model consists of, which
//! segment of which pack holds each, and what commands report. It knows nothing of command lines,
//! progress bars or inference.
//!
//! # Reading a tensor from a pack
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use segpack_manifests::{Pack, PackReader};
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../runtime-min/tests/tiny.segpack");
//! let pack = Pack::open(folder.as_ref())?;
//! let name = "thinker.model.layers.0.self_attn.q_proj.weight";
//! let tensor = pack.tensor(name).ok_or("the pack has no such tensor")?;
//!
//! // decoded, whatever the codec, and compared with its SHA-256
//! let bytes = PackReader::new(&pack).tensor_bytes(tensor)?;
//! println!("{name}: {} {:?}, {} bytes", tensor.dtype, tensor.shape, bytes.len());
//! # assert_eq!(bytes.len() as u64, tensor.length);
//! # Ok(())
//! # }
//! ```
//!
//! A [`PackCursor`] reads ranges of tensors and segments in pieces. The manifest itself, with every
//! tensor's component, role, layer and expert, is [`Pack::manifest`].
//!
//! # Auditing a checkpoint
//!
//! The audit is pure: it compares names, shapes and dtypes with what `config.json` requires, and
//! names everything that is missing, unexpected or misshaped.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use segpack_formats::safetensors::Shard;
//! use segpack_manifests::audit::{AuditOptions, Described, ShardTensors, audit};
//!
//! # let checkpoint = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../extractor/demo/tiny-full"));
//! let config = serde_json::from_slice(&std::fs::read(checkpoint.join("config.json"))?)?;
//! let shard = Shard::open(&checkpoint.join("model-00001-of-00004.safetensors"))?;
//!
//! let described = Described {
//!     config: Some(&config),
//!     shards: vec![ShardTensors {
//!         path: "model-00001-of-00004.safetensors",
//!         tensors: &shard.header.tensors,
//!     }],
//!     ..Described::default()
//! };
//! let audit = audit(&described, AuditOptions::new());
//! for finding in &audit.findings {
//!     println!("{finding}"); // one of four shards: the others' tensors are missing
//! }
//! # assert!(audit.complete && audit.findings.iter().any(|f| f.to_string().starts_with("missing")));
//! # Ok(())
//! # }
//! ```
//!
//! # Modules
//!
//! * [`names`]: components, roles, parts and classes of tensors; an open vocabulary.
//! * [`families`]: one file of rules per model family; from `config.json` they derive every tensor
//!   that must exist.
//! * [`quantization`]: which tensors a quantised weight has.
//! * [`audit`]: a checkpoint's headers against its configuration.
//! * [`mod@derive`]: the manifest that follows from what a pack keeps of its checkpoint, compared with
//!   the one that is there.
//! * [`layout`]: which tensor goes into which segment of which pack.
//! * [`documents`]: inventory, plan, manifest and reports, as serde types; `schemas/` is generated
//!   from them.
//! * [`folder`]: a pack folder, opened for reading.
//! * [`registry`]: published checkpoints with their digests.

pub mod audit;
pub mod derive;
mod diagnosis;
pub mod documents;
pub mod families;
pub mod folder;
pub mod json;
pub mod layout;
mod name_index;
pub mod names;
pub mod quantization;
pub mod registry;
pub mod shares;

pub use folder::{ModelError, NotAPack, Pack, PackCursor, PackError, PackModel, PackReader};
