//! Options that several commands share, and the parsers of their values.

mod codec;
#[cfg(feature = "run")]
mod experts;
mod jobs;
#[cfg(feature = "run")]
mod media;
#[cfg(feature = "run")]
mod model;
mod pack;
mod reading;
#[cfg(feature = "run")]
mod sampling;
mod segment_cache;
#[cfg(all(feature = "run", feature = "remote"))]
mod server;
mod signer;
mod sizes;
mod tolerate;
pub(super) mod values;
#[cfg(feature = "run")]
mod voice;

pub(super) use codec::{CodecArgs, CodecName};
#[cfg(feature = "run")]
pub(super) use experts::ExpertArgs;
pub(super) use jobs::Jobs;
#[cfg(feature = "run")]
pub(super) use media::MediaArgs;
#[cfg(feature = "run")]
pub(super) use model::{CheckName, ComputeName, CpuResources, ModelArgs, PlacementArgs, Resources};
pub(super) use pack::{Identity, PackArg, identity};
pub(super) use reading::ReadingArgs;
#[cfg(feature = "run")]
pub(super) use sampling::SamplingArgs;
use segment_cache::SegmentCacheArgs;
#[cfg(all(feature = "run", feature = "remote"))]
pub(super) use server::ServerArgs;
pub(super) use signer::{SIGNER_OPTION, SignerArgs};
pub(super) use sizes::SizeArgs;
pub(super) use tolerate::{AllowUnaudited, Tolerate};
pub(super) use values::{connections, output_path, rate};
#[cfg(feature = "run")]
pub(super) use voice::{SoundArgs, VoiceArgs, is_to_stdout};

/// Headings of options in the help, in the order in which they appear there.
pub(super) const INPUT: &str = "Input";
pub(super) const SIGNATURE: &str = "Signature";
#[cfg(feature = "run")]
pub(super) const MEDIA: &str = "Audio, images and videos";
#[cfg(any(feature = "serve", all(feature = "run", feature = "remote")))]
pub(super) const SERVER: &str = "Server";
pub(super) const SAMPLING: &str = "Sampling";
pub(super) const MEASUREMENT: &str = "Measurement";
pub(super) const DEVICE: &str = "Device and memory";
pub(super) const PERFORMANCE: &str = "Performance";
pub(super) const OUTPUT: &str = "Output";
pub(super) const GLOBAL: &str = "Global";
