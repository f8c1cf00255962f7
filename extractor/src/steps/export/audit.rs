//! What an export will write against what it should: every chosen tensor once, and for a model the
//! tensors that its configuration requires. The check of the written files then holds them against
//! this plan.

use std::collections::{BTreeMap, BTreeSet};

use segpack_formats::safetensors::{self, Dtype};
use segpack_manifests::Pack;
use segpack_manifests::audit::{AuditOptions, Described, ShardTensors, audit};
use segpack_manifests::documents::{ExportTarget, Finding, FindingKind, Severity, TensorEntry};
use segpack_manifests::families::Family;
use segpack_manifests::names::Component;
use segpack_manifests::quantization::{self, ANNOUNCEMENTS};
use serde_json::Value;

use super::arrangement::Every;
use super::expert_parallel::Share;
use super::hf::CONFIG;
use super::plan::{Content, ExportPlan, NewTensorPlan, PlannedFile};
use super::source::source_json;
use super::{ExportSettings, chosen, selected};
use crate::steps::StepError;

/// Refuses a plan that leaves something out, has it twice, or is not the model that its
/// configuration describes.
///
/// # Errors
/// `Findings`.
pub(super) fn audit_plan(
    pack: &Pack,
    settings: &ExportSettings,
    plan: &ExportPlan<'_>,
) -> Result<(), StepError> {
    let wanted = wanted(pack, settings)?;
    let mut findings = not_once(&wanted.tensors, &plan.files);
    if matches!(settings.target, ExportTarget::Hf | ExportTarget::Qwen3Moe)
        && let Some(config) = written_config(pack, &plan.files)?
    {
        findings.extend(not_the_model(
            &config,
            &plan.files,
            &wanted,
            settings.target,
        ));
    }
    if findings.is_empty() {
        return Ok(());
    }
    Finding::sort(&mut findings);
    let what = format!(
        "{}: what would be written is not what was asked for; nothing was exported",
        pack.folder().display()
    );
    Err(StepError::Findings { what, findings })
}

/// What an export of these settings consists of.
struct Wanted<'a> {
    components: BTreeSet<Component>,
    tensors: Vec<&'a TensorEntry>,
    share: Share,
}

fn wanted<'a>(pack: &'a Pack, settings: &ExportSettings) -> Result<Wanted<'a>, StepError> {
    let mut components = selected(pack, settings)?;
    let tensors = match settings.target {
        ExportTarget::Safetensors | ExportTarget::Npy => chosen(pack, settings)?,
        ExportTarget::Hf => of_components(pack, &components),
        ExportTarget::Qwen3Moe | ExportTarget::Gguf => {
            let is_wanted = |c: Component| settings.mmproj.is_some_and(|of| of.has(c));
            components
                .retain(|c| matches!(c, Component::Text | Component::ThinkerText) || is_wanted(*c));
            of_components(pack, &components)
        }
    };
    let share = Share::of(&tensors, settings)?;
    Ok(Wanted {
        components,
        tensors: share.of_tensors(tensors),
        share,
    })
}

fn of_components<'a>(pack: &'a Pack, components: &BTreeSet<Component>) -> Vec<&'a TensorEntry> {
    let tensors = pack.manifest().tensors.iter();
    tensors
        .filter(|t| components.contains(&t.component))
        .collect()
}

/// How often each share of a tensor is written: `every[n]` of the rows n, n + step and so on, where
/// `every` has `step` numbers.
#[derive(Default)]
struct Times {
    wanted: u32,
    every: Vec<u32>,
}

impl Times {
    /// One more time of these rows.
    fn add(&mut self, taken: Every) {
        if self.every.len() < taken.step {
            // what was counted in larger shares counts for each of the smaller
            let had = std::mem::take(&mut self.every);
            let of = |n: usize| had.get(n % had.len().max(1)).copied().unwrap_or_default();
            self.every = (0..taken.step).map(of).collect();
        }
        let mine = self.every.iter_mut().skip(taken.first);
        mine.step_by(taken.step).for_each(|times| *times += 1);
    }

    /// The fewest times and the most that a value is written.
    fn seen(&self) -> (u32, u32) {
        let every = self.every.iter().copied();
        let least = every.clone().min().unwrap_or_default();
        (least, every.max().unwrap_or_default())
    }
}

/// Tensors of the pack that are not written, written twice, or written though nobody chose them.
fn not_once(wanted: &[&TensorEntry], files: &[PlannedFile<'_>]) -> Vec<Finding> {
    let mut times: BTreeMap<&str, Times> = BTreeMap::new();
    for tensor in wanted {
        times.entry(&tensor.name).or_default().wanted += 1;
    }
    let placed = files.iter().flat_map(PlannedFile::tensors);
    for part in placed.flat_map(|placed| &placed.tensor.parts) {
        for tensor in std::iter::once(part.source).chain(part.beside) {
            let of_tensor = times.entry(&tensor.name).or_default();
            of_tensor.add(part.arrangement.taken());
        }
    }
    times.into_iter().filter_map(wrong_times).collect()
}

/// A finding where a tensor, or a share of it, is written less or more often than it was chosen.
fn wrong_times((name, times): (&str, Times)) -> Option<Finding> {
    let (least, most) = times.seen();
    let wanted = times.wanted;
    let (kind, seen) = if least < wanted {
        (FindingKind::MissingTensor, least)
    } else if most > wanted {
        (FindingKind::ExtraTensor, most)
    } else {
        return None;
    };
    let finding = Finding::new(kind).tensor(name);
    let finding = finding.seen(format!("would be written {seen} times"));
    Some(finding.wanted(format!("{wanted}, as chosen")))
}

/// The configuration that will lie beside the weights.
fn written_config(pack: &Pack, files: &[PlannedFile<'_>]) -> Result<Option<Value>, StepError> {
    let Some(mut config) = written_json(pack, files, CONFIG)? else {
        return Ok(None);
    };
    for file in ANNOUNCEMENTS {
        // a file that is no JSON announces nothing; one that cannot be read fails when it is copied
        let contents = written_json(pack, files, file).ok().flatten();
        if let Some(contents) = contents {
            quantization::announce(&mut config, file, &contents);
        }
    }
    Ok(Some(config))
}

fn written_json(
    pack: &Pack,
    files: &[PlannedFile<'_>],
    path: &str,
) -> Result<Option<Value>, StepError> {
    match files.iter().find(|f| f.path == path).map(|f| &f.content) {
        Some(Content::Bytes(bytes)) => Ok(serde_json::from_slice(bytes).ok()),
        Some(Content::Copy(_)) => source_json(pack, path),
        Some(Content::Tensors(_)) | None => Ok(None),
    }
}

/// The written tensors against those that the written configuration requires, but for components
/// and experts that were not chosen.
fn not_the_model(
    config: &Value,
    files: &[PlannedFile<'_>],
    wanted: &Wanted<'_>,
    target: ExportTarget,
) -> Vec<Finding> {
    let listed: Vec<(&str, Vec<safetensors::TensorInfo>)> = files
        .iter()
        .map(|file| {
            let tensors = file.tensors().iter().filter_map(|p| entry(&p.tensor));
            (file.path.as_str(), tensors.collect())
        })
        .collect();
    let shards = listed
        .iter()
        .map(|(path, tensors)| ShardTensors { path, tensors })
        .collect();
    let described = Described {
        config: Some(config),
        shards,
        ..Described::default()
    };
    let tolerated = AuditOptions::new()
        .allow_unclassified(true)
        .allow_unaudited(true);
    let family = Family::of_config(config);
    let found = audit(&described, tolerated).findings.into_iter();
    found
        .filter(|f| f.severity == Severity::Error)
        .filter(|f| f.kind != FindingKind::MissingTensor || is_chosen(f, family, wanted, target))
        .collect()
}

/// Whether what a finding is about was to be exported; so is what no rule of the family names.
fn is_chosen(
    finding: &Finding,
    family: Option<Family>,
    wanted: &Wanted<'_>,
    target: ExportTarget,
) -> bool {
    let name = finding.tensor.as_deref().unwrap_or_default();
    let Some(what) = family.and_then(|family| family.classify(name)) else {
        return true;
    };
    // in a checkpoint of its own, the text decoder is the component `text`
    let component = match target {
        ExportTarget::Qwen3Moe => wanted.components.first().copied(),
        _ => Some(what.component),
    };
    let component = component.filter(|c| wanted.components.contains(c));
    component.is_some_and(|c| wanted.share.holds(c, what.expert))
}

/// A tensor as a header of the output will list it.
fn entry(tensor: &NewTensorPlan<'_>) -> Option<safetensors::TensorInfo> {
    let dtype: Dtype = tensor.dtype.parse().ok()?;
    Some(safetensors::TensorInfo {
        name: tensor.name.clone(),
        dtype,
        shape: tensor.shape.clone(),
        offset: 0,
        length: tensor.length(),
    })
}

#[cfg(test)]
mod tests {
    use segpack_manifests::documents::ExportTarget;

    use super::super::check::tests::tiny;
    use super::super::plan::{ExportPlan, Placed, TensorFile};
    use super::super::{ExportSettings, plan_of};
    use super::*;

    fn settings(target: ExportTarget) -> ExportSettings {
        ExportSettings {
            target,
            components: Vec::new(),
            names: Vec::new(),
            dtype: None,
            quantize: None,
            importance: None,
            mmproj: None,
            tokenizer_pre: Some("none".to_owned()).filter(|_| target == ExportTarget::Gguf),
            max_shard_size: None,
            expert_parallel: None,
            check: true,
            resume: false,
            force: false,
            jobs: 1,
        }
    }

    /// What the audit says of a plan in which something was changed.
    fn spoiled(
        pack: &Pack,
        target: ExportTarget,
        spoil: impl Fn(&mut Vec<Placed<'_>>),
    ) -> Result<(), Vec<FindingKind>> {
        let settings = settings(target);
        let mut plan: ExportPlan<'_> = plan_of(pack, &settings, "out.gguf").unwrap();
        let longest = plan.files.iter_mut().max_by_key(|f| f.tensors().len());
        if let Some(Content::Tensors(TensorFile { tensors, .. })) =
            longest.map(|file| &mut file.content)
        {
            spoil(tensors);
        }
        match audit_plan(pack, &settings, &plan) {
            Ok(()) => Ok(()),
            Err(StepError::Findings { findings, .. }) => {
                Err(findings.into_iter().map(|f| f.kind).collect())
            }
            Err(e) => panic!("{e}"),
        }
    }

    fn rename_last(tensors: &mut Vec<Placed<'_>>) {
        if let Some(last) = tensors.last_mut() {
            last.tensor.name = last.tensor.name.replace("layers.0", "layers.9");
            last.tensor.name = last.tensor.name.replace("layers.1", "layers.9");
        }
        tensors[0].tensor.shape.push(1);
    }

    #[test]
    fn what_is_left_out_or_changed_is_named() {
        let (_folder, pack) = tiny();
        let targets = [
            ExportTarget::Hf,
            ExportTarget::Qwen3Moe,
            ExportTarget::Gguf,
            ExportTarget::Safetensors,
            ExportTarget::Npy,
        ];
        for target in targets {
            assert_eq!(spoiled(&pack, target, |_| ()), Ok(()), "{target}");
            let missing = spoiled(&pack, target, |tensors| drop(tensors.pop())).unwrap_err();
            assert!(missing.contains(&FindingKind::MissingTensor), "{target}");
        }
        for target in [ExportTarget::Hf, ExportTarget::Qwen3Moe] {
            let found = spoiled(&pack, target, rename_last).unwrap_err();
            assert!(found.contains(&FindingKind::MisshapedTensor), "{target}");
        }
    }
}
