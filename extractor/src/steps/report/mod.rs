//! `report`: everything that is known of one or two packs or checkpoints, as one document.

mod card;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256;
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    Completeness, DiffKind, Document, GENERATOR, ReportData, ReportDecoder, ReportGroup,
    ReportSubject, ReportValues, TensorValues, ValidateReport, VerifyMode, VerifyReport,
};
use segpack_manifests::families::{Family, FamilyName};
use segpack_manifests::names::Component;
use serde::de::DeserializeOwned;

pub(crate) use card::model_card;

use super::StepError;
use super::contents::{Contents, Tensor};
use super::diff::{DiffSettings, diff};
use super::documents::read_document;
use super::info::info;
use super::verify::{VerifySettings, verify_open};
use crate::source::Checkpoint;
use crate::work::Job;

/// A report of `verify --values` of 200,000 tensors has some 60 MB.
const MAX_DOCUMENT_BYTES: u64 = 512 << 20;
/// Hex digits of a tensor's SHA-256: enough to find it by, and a page of 28,010 stays small.
const DIGITS: usize = 12;

/// Documents of other commands that a page may show, with the files that hold them.
#[derive(Debug, Default)]
pub(crate) struct GivenReports<'a> {
    /// Of `verify --json`.
    pub verification: Option<&'a Path>,
    /// Of `validate --json`.
    pub validation: Option<&'a Path>,
    /// Of `run --experts-report`.
    pub experts: Option<&'a Path>,
}

/// Reads a document that another command wrote.
///
/// # Errors
/// As [`read_document`].
fn given<D: Document + DeserializeOwned>(path: &Path) -> Result<D, FormatError> {
    let wrong = format!("is no {} of segpack", D::NAME);
    read_document(path, MAX_DOCUMENT_BYTES, &wrong)
}

/// What a page shows of these, each with the name that the user gave it.
///
/// # Errors
/// Where one cannot be read; `Malformed` where a report is about another pack.
pub(crate) fn report(
    subjects: &[(String, Contents)],
    given: &GivenReports<'_>,
    job: Job<'_>,
) -> Result<ReportData, StepError> {
    // first: what cannot be used is better told before the work than after it
    let experts = given.experts.map(self::given).transpose()?;
    let validation: Option<ValidateReport> = given.validation.map(self::given).transpose()?;
    let verification: Option<VerifyReport> = given.verification.map(self::given).transpose()?;
    if let Some((path, report)) = given.validation.zip(validation.as_ref()) {
        about(subjects, path, Some(report.manifest_sha256))?;
    }
    let mut shown = Vec::new();
    for (name, contents) in subjects {
        shown.push(subject(name, contents, job)?);
    }
    let differences = match subjects {
        [(_, a), (_, b)] => Some(diff(a, b, DiffSettings::default(), job)?),
        _ => None,
    };
    let mut data = ReportData {
        format_version: ReportData::VERSION,
        generator: GENERATOR.to_owned(),
        subjects: shown,
        diff: differences,
        verification,
        validation,
        experts,
    };
    if let Some((path, report)) = given.verification.zip(data.verification.as_mut()) {
        let number = about(subjects, path, report.manifest_sha256)?;
        let values = report.values.take();
        add_values(
            &mut data.subjects[number],
            values.iter().flat_map(|v| &v.tensors),
        );
    }
    Ok(data)
}

/// The number of the pack that a report is about.
fn about(
    subjects: &[(String, Contents)],
    path: &Path,
    manifest: Option<Sha256>,
) -> Result<usize, FormatError> {
    let identity = |contents: &Contents| contents.pack().map(Pack::manifest_sha256);
    let is_it =
        |(_, contents): &(String, Contents)| manifest.is_some() && identity(contents) == manifest;
    subjects.iter().position(is_it).ok_or_else(|| {
        let seen = manifest.map_or("no pack".to_owned(), |m| {
            format!("the pack whose manifest.json has SHA-256 {m}")
        });
        FormatError::malformed(
            path,
            format!("is a report about {seen}, which is not among those to show"),
        )
    })
}

fn subject(name: &str, contents: &Contents, job: Job<'_>) -> Result<ReportSubject, StepError> {
    let groups = groups(contents)?;
    let mut shown = match contents {
        Contents::Pack(pack) => of_pack(pack, job)?,
        Contents::Checkpoint(opened) => {
            let (checkpoint, inventory) = &**opened;
            ReportSubject {
                kind: DiffKind::Checkpoint,
                family: inventory.family,
                provenance: Some(inventory.provenance.clone()),
                published: inventory.published.clone(),
                completeness: inventory.completeness,
                findings: inventory.findings.clone(),
                decoder: decoder_of(checkpoint, inventory.family),
                ..empty()
            }
        }
    };
    name.clone_into(&mut shown.name);
    if let Some(decoder) = &mut shown.decoder {
        decoder.component = decoder_component(&groups).unwrap_or(decoder.component);
    }
    shown.groups = groups;
    Ok(shown)
}

fn empty() -> ReportSubject {
    ReportSubject {
        name: String::new(),
        kind: DiffKind::Pack,
        info: None,
        family: None,
        provenance: None,
        published: None,
        completeness: Completeness::NotKnown,
        findings: Vec::new(),
        decoder: None,
        segments: Vec::new(),
        groups: Vec::new(),
    }
}

/// A pack is verified as far as that needs no weights.
fn of_pack(pack: &Pack, job: Job<'_>) -> Result<ReportSubject, StepError> {
    let mut settings = VerifySettings::new(VerifyMode::Quick, job.threads);
    settings.allow_unaudited = true;
    let checked = verify_open(pack, &settings, job.stop, job.progress)?;
    let manifest = pack.manifest();
    let facts = manifest.model.text.facts();
    Ok(ReportSubject {
        kind: DiffKind::Pack,
        info: Some(info(pack, None)?),
        family: manifest.model.family,
        provenance: manifest.provenance.clone(),
        completeness: checked.completeness,
        findings: checked.findings,
        decoder: facts.map(|t| ReportDecoder {
            component: Component::Text,
            layers: t.moe_layers,
            experts: t.experts,
            experts_per_token: t.experts_per_token,
        }),
        segments: manifest
            .segments
            .iter()
            .map(|s| [s.raw_length, s.stored_length])
            .collect(),
        ..empty()
    })
}

fn decoder_of(checkpoint: &Checkpoint, family: Option<FamilyName>) -> Option<ReportDecoder> {
    let config = checkpoint.config.as_ref()?;
    let family: Family = family?.family()?;
    let facts = family.text_facts(config).ok()?;
    Some(ReportDecoder {
        component: Component::Text,
        layers: facts.moe_layers,
        experts: facts.experts,
        experts_per_token: facts.experts_per_token,
    })
}

/// The decoder that `text_facts` speaks of.
fn decoder_component(groups: &[ReportGroup]) -> Option<Component> {
    let has = |c: &Component| {
        groups
            .iter()
            .any(|g| g.component == *c && g.expert_at.is_some())
    };
    [Component::ThinkerText, Component::Text]
        .into_iter()
        .find(has)
}

/// What tensors of a group have in common.
type Key = (String, Component, String, String, String, Vec<u64>);

/// Tensors by pattern, in the order of their names.
fn groups(contents: &Contents) -> Result<Vec<ReportGroup>, StepError> {
    let packed: HashMap<&str, (usize, String)> = contents.pack().map(places).unwrap_or_default();
    let mut groups: BTreeMap<Key, ReportGroup> = BTreeMap::new();
    for (name, tensor) in &contents.tensors()? {
        let (pattern, numbers) = pattern_of(name);
        let c = tensor.classification;
        let key = (
            pattern.clone(),
            c.component,
            c.role.to_string(),
            c.part.to_string(),
            tensor.dtype.to_string(),
            tensor.shape.clone(),
        );
        let group = groups
            .entry(key)
            .or_insert_with(|| group_of(pattern, &numbers, tensor));
        group.count += 1;
        for (column, number) in group.numbers.iter_mut().zip(&numbers) {
            column.push(*number);
        }
        if let Some((segment, digest)) = packed.get(name.as_str()) {
            group.segments.push(*segment);
            group.sha256.push(digest.clone());
        }
    }
    Ok(groups.into_values().collect())
}

fn group_of(pattern: String, numbers: &[u32], tensor: &Tensor) -> ReportGroup {
    let c = tensor.classification;
    let (layer_at, expert_at) = places_of(numbers, c.layer, c.expert);
    ReportGroup {
        pattern,
        component: c.component,
        role: c.role,
        part: c.part,
        unit: c.role.segment_group().to_owned(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        bytes: tensor.length,
        count: 0,
        numbers: vec![Vec::new(); numbers.len()],
        layer_at,
        expert_at,
        segments: Vec::new(),
        sha256: Vec::new(),
        values: None,
    }
}

/// For each tensor of a pack, the number of its segment and the first digits of its SHA-256.
fn places(pack: &Pack) -> HashMap<&str, (usize, String)> {
    let manifest = pack.manifest();
    let segments = manifest.segments.iter().enumerate();
    let numbers: HashMap<&str, usize> = segments.map(|(i, s)| (s.id.as_str(), i)).collect();
    let tensors = manifest.tensors.iter().filter_map(|t| {
        let digest: String = t.sha256.to_string().chars().take(DIGITS).collect();
        Some((t.name.as_str(), (*numbers.get(t.segment.as_str())?, digest)))
    });
    tensors.collect()
}

/// A name with `{}` for each word that is a number, and these numbers.
fn pattern_of(name: &str) -> (String, Vec<u32>) {
    let mut numbers = Vec::new();
    let mut words = Vec::new();
    for word in name.split('.') {
        match number_of(word) {
            Some(number) => {
                numbers.push(number);
                words.push("{}");
            }
            None => words.push(word),
        }
    }
    (words.join("."), numbers)
}

/// Only what is written back as it was.
fn number_of(word: &str) -> Option<u32> {
    let number: u32 = word.parse().ok()?;
    (number.to_string() == word).then_some(number)
}

/// Which numbers of a name are its layer and its expert: the word before the expert's is `experts`
/// or the like, so of equal numbers the layer's comes first.
fn places_of(
    numbers: &[u32],
    layer: Option<u32>,
    expert: Option<u32>,
) -> (Option<usize>, Option<usize>) {
    let at = |wanted: Option<u32>, from: usize| {
        let wanted = wanted?;
        (from..numbers.len()).find(|i| numbers[*i] == wanted)
    };
    let layer_at = at(layer, 0);
    let expert_at = at(expert, layer_at.map_or(0, |i| i + 1));
    (layer_at, expert_at)
}

/// Puts values beside the tensors that they are of.
fn add_values<'v>(subject: &mut ReportSubject, values: impl Iterator<Item = &'v TensorValues>) {
    let by_name: HashMap<&str, &TensorValues> = values.map(|v| (v.name.as_str(), v)).collect();
    if by_name.is_empty() {
        return;
    }
    for group in &mut subject.groups {
        let mut columns = ReportValues::default();
        for i in 0..group.count {
            let values = by_name.get(name_of(group, i).as_str());
            let rms = values.and_then(|v| Some(v.mean?.hypot(v.std?)));
            let max = values.and_then(|v| Some(v.min?.abs().max(v.max?.abs())));
            columns.rms.push(rms.map(rounded));
            columns.max_abs.push(max.map(rounded));
            let of_peers = values.and_then(|v| v.of_peers);
            columns.of_peers.push(of_peers.map(rounded));
            columns
                .not_finite
                .push(values.map_or(0, |v| v.nan + v.infinite));
        }
        group.values = Some(columns);
    }
}

/// The name of the tensor of this number.
fn name_of(group: &ReportGroup, i: usize) -> String {
    let mut numbers = group.numbers.iter().filter_map(|column| column.get(i));
    let words = group.pattern.split('.').map(|word| match word {
        "{}" => numbers.next().map(u32::to_string).unwrap_or_default(),
        _ => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(".")
}

/// Three significant digits.
fn rounded(value: f64) -> f64 {
    format!("{value:.2e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_names_are_told_from_words() {
        let name = "model.layers.3.mlp.experts.3.w1.007.weight";
        let (pattern, numbers) = pattern_of(name);
        assert_eq!(pattern, "model.layers.{}.mlp.experts.{}.w1.007.weight");
        assert_eq!(numbers, [3, 3]);
        assert_eq!(places_of(&numbers, Some(3), Some(3)), (Some(0), Some(1)));
        assert_eq!(places_of(&numbers, Some(3), None), (Some(0), None));
    }

    #[test]
    fn values_keep_three_digits() {
        assert_eq!(
            [0.0, 0.021_349, -1234.5, 1e-30].map(rounded),
            [0.0, 0.0213, -1230.0, 1e-30]
        );
    }
}
