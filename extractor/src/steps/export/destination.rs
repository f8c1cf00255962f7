//! Where an export goes: a folder, one file, or the files that it is split into.

use std::collections::HashSet;
use std::path::Path;

use segpack_formats::digest::Sha256;
use segpack_formats::io::InputFile;
use segpack_formats::safetensors::Shard;
use segpack_manifests::Pack;
use segpack_manifests::documents::ExportTarget;

use super::ExportSettings;
use super::expert_parallel::EXPERT_PARALLEL;
use super::hf::INDEX;
use super::plan::{Content, ExportPlan};
use crate::output::{OutputError, OutputFolder, Shape, Staging};

/// Opens the folder in which an export is built.
///
/// # Errors
/// Where something is at its place that may not be replaced, or something unfinished that nobody
/// asked to go on with; `Busy`; `Io`.
pub(super) fn open(
    pack: &Pack,
    out: &Path,
    plan: &ExportPlan<'_>,
    settings: &ExportSettings,
) -> Result<OutputFolder, OutputError> {
    let names: Vec<String> = plan.files.iter().map(|f| f.path.clone()).collect();
    let ours = Ours::new(pack, out, plan, settings.target);
    let shape = match settings.target {
        ExportTarget::Safetensors | ExportTarget::Gguf => Shape::Files(&names),
        ExportTarget::Hf | ExportTarget::Qwen3Moe | ExportTarget::Npy => Shape::Folder,
    };
    let staging = Staging {
        out,
        shape,
        resume: settings.resume,
        force: settings.force,
        run: fingerprint(pack, settings.target, plan),
        is_ours: &|file| ours.has(file),
    };
    staging.open()
}

/// Identifies the pack and every file that is written, up to the bytes of its tensors: an unfinished
/// run goes on only with the same.
fn fingerprint(pack: &Pack, target: ExportTarget, plan: &ExportPlan<'_>) -> Sha256 {
    let mut text = format!("export {} {target}\n", pack.manifest_sha256());
    for file in &plan.files {
        let about = match &file.content {
            Content::Tensors(tensors) => Sha256::of(&tensors.head),
            Content::Bytes(bytes) => Sha256::of(bytes),
            Content::Copy(listed) => listed.stored_sha256,
        };
        text.push_str(&format!("{about} {} {:?}\n", file.length(), file.path));
    }
    Sha256::of(text.as_bytes())
}

/// What an export of the pack may have written: nothing else is replaced.
struct Ours<'a> {
    target: ExportTarget,
    out: &'a Path,
    /// Files of the plan and of the checkpoint.
    listed: HashSet<&'a str>,
}

impl<'a> Ours<'a> {
    fn new(pack: &'a Pack, out: &'a Path, plan: &'a ExportPlan<'_>, target: ExportTarget) -> Self {
        let planned = plan.files.iter().map(|f| f.path.as_str());
        let source = pack.manifest().source_files.iter().map(|f| &*f.path);
        Self {
            target,
            out,
            listed: planned.chain(source).collect(),
        }
    }

    fn has(&self, file: &str) -> bool {
        match self.target {
            ExportTarget::Hf | ExportTarget::Qwen3Moe => {
                self.listed.contains(file) || is_of_a_checkpoint(file)
            }
            ExportTarget::Npy => file.ends_with(".npy"),
            ExportTarget::Safetensors => self
                .open(file)
                .is_some_and(|input| Shard::open_from(std::sync::Arc::new(input)).is_ok()),
            ExportTarget::Gguf => self
                .open(file)
                .is_some_and(|input| input.read_range(0..4).is_ok_and(|magic| magic == b"GGUF")),
        }
    }

    /// A file beside the output.
    fn open(&self, name: &str) -> Option<InputFile> {
        let folder = self.out.parent().filter(|p| *p != Path::new(""));
        InputFile::open_beneath(folder.unwrap_or(Path::new(".")), name).ok()
    }
}

/// What exports of other components, types or sizes have beside the files of the checkpoint.
fn is_of_a_checkpoint(file: &str) -> bool {
    const OTHERS: [&str; 6] = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        INDEX,
        EXPERT_PARALLEL,
    ];
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let numbers = file
        .strip_prefix("model-")
        .and_then(|rest| rest.strip_suffix(".safetensors"))
        .and_then(|rest| rest.split_once("-of-"));
    OTHERS.contains(&file) || numbers.is_some_and(|(number, count)| digits(number) && digits(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_of_any_number_are_ours() {
        for file in [
            "model.safetensors",
            "model-00002-of-00017.safetensors",
            "config.json",
            INDEX,
        ] {
            assert!(is_of_a_checkpoint(file), "{file}");
        }
        for file in [
            "model-2-of-17.safetensors",
            "model-00002-of-00017.safetensors.bak",
            "thesis.txt",
            "sub/config.json",
        ] {
            assert!(!is_of_a_checkpoint(file), "{file}");
        }
    }
}
