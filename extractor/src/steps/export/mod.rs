//! `export`: the files that other runtimes read, from raw and coded packs, in a stream and in
//! bounded memory.
//!
//! A target turns the manifest into a plan: which files, which tensors in them, and from which
//! tensors of the pack, in which dtype. Writing, checking and moving into place are the same for
//! all.

mod arrangement;
mod audit;
mod check;
mod check_share;
mod destination;
mod error;
mod expert_parallel;
#[cfg(feature = "run")]
mod gguf;
mod hf;
mod index;
mod npy;
mod origin;
mod plan;
mod produce;
#[cfg(feature = "run")]
mod qwen3_moe;
mod safetensors;
mod source;
mod write;
mod written;

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use segpack_formats::gguf::ImportanceMatrix;
use segpack_formats::io::CancelToken;
use segpack_formats::numeric::FloatDtype;
use segpack_manifests::documents::{ExportSummary, ExportTarget, GENERATOR, TensorEntry};
use segpack_manifests::layout::PlanError;
use segpack_manifests::names::Component;
use segpack_manifests::{Pack, PackModel, PackReader};

use super::StepError;
use super::derivation::refuse_underived;
use super::unpack::globs;
use crate::output::refuse_overlap;
use crate::work::Progress;
use audit::audit_plan;
pub(crate) use check_share::check_share;
pub use error::{Difference, ExportError, ExportOption, GgufExportError};
#[cfg(feature = "run")]
pub(crate) use gguf::{LlamaMatrix, llama_matrices};
use plan::ExportPlan;
use produce::{Producer, Worker};
use write::{Exporter, length_of, refuse_twice};

/// How to export.
#[derive(Debug, Clone)]
pub(crate) struct ExportSettings {
    /// The output format.
    pub target: ExportTarget,
    /// Prefixes of components to take; empty: all that the target can express.
    pub components: Vec<String>,
    /// Globs of tensor names to take; empty: all.
    pub names: Vec<String>,
    /// What floating-point tensors become; `None`: they stay as they are.
    pub dtype: Option<FloatDtype>,
    /// Blocks of quantized values that floating-point tensors become.
    pub quantize: Option<Quantization>,
    /// How much the columns of tensors count when their values are quantized.
    pub importance: Option<Importance>,
    /// llama.cpp's name of the pre-tokenizer, or "none" to leave the tokenizer out; `None`: it is
    /// derived from the tokenizer.
    pub tokenizer_pre: Option<String>,
    /// Encoders to write, too, beside a text decoder that takes what they give.
    pub mmproj: Option<Encoders>,
    /// Bytes of tensors that a file of the output holds at most, unless one tensor alone has more.
    pub max_shard_size: Option<u64>,
    /// The share of the experts to take.
    pub expert_parallel: Option<ExpertParallel>,
    /// Read back what was written and compare it with the pack.
    pub check: bool,
    /// Go on where an interrupted run stopped, and complete an output that lacks files.
    pub resume: bool,
    /// Replace an export.
    pub force: bool,
    /// Threads.
    pub jobs: usize,
}

/// The mixes of ggml's blocks, by the names of llama.cpp's file types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quantization {
    /// Q4_0: 4.5 bits a value.
    Q4_0,
    /// Q5_0: 5.5 bits a value.
    Q5_0,
    /// Q4_K, some tensors Q5_K.
    Q4KS,
    /// Q4_K, some tensors Q6_K.
    Q4KM,
    /// Q5_K.
    Q5KS,
    /// Q5_K, some tensors Q6_K.
    Q5KM,
    /// Q6_K.
    Q6K,
    /// Q8_0.
    Q8_0,
}

/// Encoders of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoders {
    /// Of images and of audio.
    Both,
    /// Of images.
    Image,
    /// Of audio.
    Audio,
}

impl Encoders {
    /// Whether that of images is among them.
    pub(crate) fn has_image(self) -> bool {
        self != Self::Audio
    }

    /// Whether that of audio is among them.
    pub(crate) fn has_audio(self) -> bool {
        self != Self::Image
    }

    /// Whether a component is one of them.
    fn has(self, component: Component) -> bool {
        self.has_image() && component == Component::ThinkerVision
            || self.has_audio() && component == Component::ThinkerAudio
    }
}

/// An importance matrix, and the name of its file.
#[derive(Debug, Clone)]
pub(crate) struct Importance {
    /// Name of the file, without folders.
    pub file: String,
    /// What it holds.
    pub matrix: ImportanceMatrix,
}

impl Importance {
    /// Reads an importance matrix in either of llama.cpp's formats.
    ///
    /// # Errors
    /// Where it cannot be read, or is none.
    pub(crate) fn read(path: &Path) -> Result<Self, StepError> {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self {
            file: file.into_owned(),
            matrix: ImportanceMatrix::read(path)?,
        })
    }
}

/// One rank of several that share the experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExpertParallel {
    /// Which, counted from 0.
    pub rank: u32,
    /// Of how many.
    pub ranks: u32,
}

impl fmt::Display for ExpertParallel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.ranks)
    }
}

/// What one shard holds at most by default, in bytes: `max_shard_size` of transformers 4.
const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

impl ExportSettings {
    fn shard_bytes(&self) -> u64 {
        self.max_shard_size.unwrap_or(DEFAULT_SHARD_BYTES)
    }

    /// Options that mean nothing for the target are refused, never ignored.
    fn check(&self) -> Result<(), ExportError> {
        let target = self.target;
        let given = [
            (ExportOption::MaxShardSize, self.max_shard_size.is_some()),
            (ExportOption::ExpertParallel, self.expert_parallel.is_some()),
            (ExportOption::Names, !self.names.is_empty()),
            (ExportOption::Quantize, self.quantize.is_some()),
            (ExportOption::TokenizerPre, self.tokenizer_pre.is_some()),
            (ExportOption::Importance, self.importance.is_some()),
            (ExportOption::Mmproj, self.mmproj.is_some()),
        ];
        for (option, given) in given {
            if given && !option.applies_to(target) {
                return Err(ExportError::Option { option, target });
            }
        }
        Ok(())
    }
}

/// Exports a pack into `out`: a folder, or for `safetensors` and `gguf` a file.
///
/// # Errors
/// `Findings` where the pack is damaged, `Export` where the target cannot express what it holds or
/// what was written is not what should have been, `Output` where the output exists or does not fit.
/// No file has its name then. After other errors than damage `resume` goes on.
pub(crate) fn export(
    pack: &Pack,
    out: &Path,
    settings: &ExportSettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<ExportSummary, StepError> {
    settings.check()?;
    refuse_underived(pack, "nothing was exported")?;
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let plan = plan_of(pack, settings, &name)?;
    audit_plan(pack, settings, &plan)?;
    refuse_twice(&plan.files)?;
    refuse_overlap(out, pack)?;
    let output = destination::open(pack, out, &plan, settings)?;
    let weights = PackReader::new(pack);
    let producer = Producer {
        weights: &weights,
        // the check compares the same digests with what was written
        digest_kept: !settings.check,
        threads: settings.jobs.div_ceil(plan.files.len().max(1)),
        stop,
        progress,
    };
    let exporter = Exporter {
        producer: &producer,
        output: &output,
        check: settings.check,
        resumed: AtomicU64::new(0),
    };
    let written = exporter.all(&plan.files, settings.jobs);
    let resumed = exporter.resumed.into_inner();
    output.close(written.and_then(|()| Ok(stop.check()?)), StepError::leave)?;
    Ok(summary(pack, settings, plan, resumed))
}

/// Writes one safetensors file of the chosen tensors to `to`, in a stream. Every tensor is compared
/// with its digest.
///
/// # Errors
/// As [`export`]; damage that is found midway says that what was written is wrong. `Stdout`.
pub(crate) fn stream(
    pack: &Pack,
    to: &mut dyn Write,
    settings: &ExportSettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<(), StepError> {
    settings.check()?;
    refuse_underived(pack, "nothing was exported")?;
    if settings.target != ExportTarget::Safetensors {
        let target = settings.target;
        return Err(ExportError::NotAStream { target }.into());
    }
    let plan = plan_of(pack, settings, "standard output")?;
    audit_plan(pack, settings, &plan)?;
    let weights = PackReader::new(pack);
    let producer = Producer {
        weights: &weights,
        digest_kept: true,
        threads: settings.jobs,
        stop,
        progress,
    };
    let mut worker = Worker::new(&weights)?;
    progress.start("exporting", length_of(&plan.files));
    let written = plan.files.iter().try_for_each(|file| {
        producer.produce(file, &mut worker, &mut |piece| {
            to.write_all(piece).map_err(StepError::Stdout)
        })
    });
    progress.finish();
    written.map_err(|e| match e {
        StepError::Findings { findings, .. } => {
            let what = format!(
                "{}: damaged; the bytes written are wrong",
                pack.folder().display()
            );
            StepError::Findings { what, findings }
        }
        other => other,
    })
}

/// `name` is that of the output, where it is one file.
fn plan_of<'a>(
    pack: &'a Pack,
    settings: &'a ExportSettings,
    name: &str,
) -> Result<ExportPlan<'a>, StepError> {
    // also where no number is needed: a pack that contradicts itself is not handed on
    let model = PackModel::read(pack).map_err(ExportError::Model)?;
    match settings.target {
        ExportTarget::Hf => hf::hf(pack, &model, settings),
        #[cfg(feature = "run")]
        ExportTarget::Qwen3Moe => qwen3_moe::qwen3_moe(pack, &model, settings),
        #[cfg(feature = "run")]
        ExportTarget::Gguf => gguf::gguf(pack, &model, settings, name),
        #[cfg(not(feature = "run"))]
        target @ (ExportTarget::Qwen3Moe | ExportTarget::Gguf) => {
            Err(ExportError::WithoutRun { target }.into())
        }
        ExportTarget::Safetensors => {
            let chosen = chosen(pack, settings)?;
            Ok(safetensors::safetensors(pack, &chosen, settings, name)?)
        }
        ExportTarget::Npy => Ok(npy::npy(&chosen(pack, settings)?, settings)?),
    }
}

fn summary(
    pack: &Pack,
    settings: &ExportSettings,
    plan: ExportPlan<'_>,
    resumed_files: u64,
) -> ExportSummary {
    ExportSummary {
        format_version: ExportSummary::VERSION,
        generator: GENERATOR.to_owned(),
        manifest_sha256: pack.manifest_sha256(),
        target: settings.target,
        files: plan.files.len() as u64,
        resumed_files,
        tensors: plan.files.iter().map(|f| f.tensors().len() as u64).sum(),
        bytes: length_of(&plan.files),
        checked: settings.check,
        notes: plan.notes,
    }
}

/// The components that a pack holds.
fn present(pack: &Pack) -> BTreeSet<Component> {
    pack.manifest().packs.iter().map(|p| p.component).collect()
}

/// The components that the settings select.
fn selected(pack: &Pack, settings: &ExportSettings) -> Result<BTreeSet<Component>, StepError> {
    let present = present(pack);
    for prefix in &settings.components {
        if !present.iter().any(|c| c.is_below(prefix)) {
            let has: Vec<&str> = present.iter().map(|c| c.as_str()).collect();
            return Err(PlanError::NoSuchComponent {
                prefix: prefix.clone(),
                has: has.join(", "),
            }
            .into());
        }
    }
    let prefixes = &settings.components;
    let mut selected = present;
    selected.retain(|c| prefixes.is_empty() || prefixes.iter().any(|p| c.is_below(p)));
    Ok(selected)
}

/// The tensors of the selected components whose names match, in the order of the pack.
fn chosen<'a>(
    pack: &'a Pack,
    settings: &ExportSettings,
) -> Result<Vec<&'a TensorEntry>, StepError> {
    let components = selected(pack, settings)?;
    let set = globs(&settings.names)?;
    let named = |t: &TensorEntry| settings.names.is_empty() || set.is_match(&t.name);
    let tensors = pack.manifest().tensors.iter();
    let chosen: Vec<_> = tensors
        .filter(|t| components.contains(&t.component) && named(t))
        .collect();
    if chosen.is_empty() {
        return Err(ExportError::NoMatch {
            globs: settings.names.clone(),
        }
        .into());
    }
    Ok(chosen)
}
