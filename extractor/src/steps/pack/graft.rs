//! `graft`: a fine-tuned thinker in the place of the original one, everything else as it was.
//!
//! The merged checkpoint has the shards, headers and other files of the whole model; the bytes of the
//! thinker's tensors come from elsewhere. Packing it is a run of `update` into a new folder: packs
//! whose tensors stay the same are taken over as they are.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use segpack_formats::codec::Codec;
use segpack_formats::digest::Sha256;
use segpack_formats::io::ReadAt;
use segpack_formats::numeric::Dtype;
use segpack_formats::safetensors::Shard;
use segpack_manifests::documents::{
    Finding, FindingKind, GENERATOR, Graft, GraftReport, GraftSource, Manifest, Severity, SideFile,
    SourceFile, SourceFileKind, TensorEntry, VerifyMode,
};
use segpack_manifests::families::Family;
use segpack_manifests::folder::{MANIFEST, SOURCE, max_source_bytes};
use segpack_manifests::layout;
use segpack_manifests::names::Component;
use segpack_manifests::{Pack, PackModel, PackReader};
use serde_json::Value;

use super::update::{build, settings_of};
use super::write::planned_files;
use super::{PackSettings, Planned, plan};
use crate::output::{Leave, refuse_holding, refuse_inside};
use crate::pack_writer::{Target, close};
use crate::source::{AssembledShard, Bytes, Checkpoint, CheckpointShard, Extra, Piece};
use crate::steps::StepError;
use crate::steps::contents::Contents;
use crate::steps::scan::{ScanOptions, take_inventory};
use crate::steps::verify::{VerifySettings, verify};
use crate::work::Job;

/// What the names of a thinker begin with in the whole model.
const PREFIX: &str = "thinker.";

/// Files that say how texts become numbers; the result has those of the whole model.
const TEXT_FILES: [&str; 6] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
];

/// A tensor of the thinker, and where its bytes are.
struct Donor {
    dtype: Dtype,
    shape: Vec<u64>,
    bytes: Bytes,
}

/// The thinker that is put in.
struct Thinker {
    /// Its tensors by the names that they have in the whole model.
    tensors: HashMap<String, Donor>,
    config: Value,
    family: Family,
    source: GraftSource,
    /// Digests of its [`TEXT_FILES`].
    files: HashMap<&'static str, Sha256>,
    /// The shards of a checkpoint, which nobody may change meanwhile.
    watched: Vec<Arc<dyn ReadAt>>,
}

/// Writes into `out` the model of the pack `onto` with another thinker: that of a pack or of a
/// checkpoint.
///
/// # Errors
/// `Findings` where one of them is damaged, or where names, dtypes, shapes or numbers of the two
/// thinkers differ; `Format` where they are no such models; as `pack` otherwise. After an error
/// nothing is left.
pub(crate) fn graft(
    thinker: &Path,
    onto: &Pack,
    out: &Path,
    force: bool,
    job: Job<'_>,
) -> Result<GraftReport, StepError> {
    refuse_inside(out, onto.folder())?;
    refuse_inside(out, thinker)?;
    refuse_holding(out, &[onto.folder().to_owned(), thinker.to_owned()])?;
    let settings = PackSettings {
        resume: false,
        force,
        provenance: false,
        ..settings_of(onto.manifest(), ScanOptions::default(), job.threads)
    };
    let model =
        PackModel::read(onto).map_err(|e| StepError::malformed(onto.folder(), e.to_string()))?;
    check_whole(onto, &model)?;
    refuse_damaged(onto.folder(), job)?;
    let donor = Thinker::open(thinker, &settings, job)?;
    let warnings = compare_models(onto, &model, &donor)?;
    compare_tensors(onto.manifest(), &donor, thinker)?;
    let planned = planned(onto, &donor, &settings)?;

    let listed = planned_files(&planned);
    let target = Target {
        resume: false,
        force,
        in_place: false,
        consume: false,
        elsewhere: None,
        job,
    };
    let output = target.open(out, &listed, &|_| Ok(()))?;
    let done = build(&output, onto, &planned, &settings, job);
    let (summary, new) = close(output, done, |_: &StepError| Leave::Nothing)?;
    Ok(report(
        onto,
        &donor,
        &new,
        summary.manifest_sha256,
        warnings,
    ))
}

/// The pack that a thinker is put into has to hold the whole of a model that speaks.
fn check_whole(onto: &Pack, model: &PackModel) -> Result<(), StepError> {
    let manifest = onto.manifest();
    if !manifest.excluded.is_empty() {
        let what = "lacks components of its checkpoint: a thinker is put into a whole model";
        return Err(StepError::malformed(onto.folder(), what));
    }
    let of_thinker = |t: &&TensorEntry| is_thinker(t.component);
    let has_both = manifest.tensors.iter().any(|t| !of_thinker(&t))
        && manifest
            .tensors
            .iter()
            .filter(of_thinker)
            .all(|t| t.name.starts_with(PREFIX));
    if !has_both || model.config().is_none() {
        let what = "is no model with a thinker and a talker: nothing of it would stay";
        return Err(StepError::malformed(onto.folder(), what));
    }
    Ok(())
}

fn is_thinker(component: Component) -> bool {
    [
        Component::ThinkerText,
        Component::ThinkerAudio,
        Component::ThinkerVision,
    ]
    .contains(&component)
}

/// What stays or is put in has to be what its manifest says.
fn refuse_damaged(folder: &Path, job: Job<'_>) -> Result<(), StepError> {
    let settings = VerifySettings::new(VerifyMode::Full, job.threads);
    let report = verify(folder, &settings, job.stop, job.progress)?;
    if report.ok {
        return Ok(());
    }
    let what = format!("{}: damaged; nothing was written", folder.display());
    let findings = report.findings;
    Err(StepError::Findings { what, findings })
}

impl Thinker {
    fn open(path: &Path, settings: &PackSettings, job: Job<'_>) -> Result<Self, StepError> {
        // what was given for the whole model is not for the thinker
        let own_settings = PackSettings {
            scan: ScanOptions::default(),
            ..settings.clone()
        };
        let opened = match Contents::is_pack(path) {
            true => Self::of_pack(path, job)?,
            false => Self::of_checkpoint(path, &own_settings, job)?,
        };
        match opened {
            Some(thinker) => Ok(thinker),
            None => Err(StepError::malformed(
                path,
                "holds no thinker of a known model",
            )),
        }
    }

    fn of_pack(path: &Path, job: Job<'_>) -> Result<Option<Self>, StepError> {
        refuse_damaged(path, job)?;
        let pack = Pack::open(path)?;
        let model =
            PackModel::read(&pack).map_err(|e| StepError::malformed(path, e.to_string()))?;
        let manifest = pack.manifest();
        let family = manifest.model.family.and_then(|name| name.family());
        let (Some(family), Some(config)) = (family, model.config()) else {
            return Ok(None);
        };
        let reader = PackReader::new(&pack);
        let mut tensors = HashMap::new();
        for t in manifest.tensors.iter().filter(|t| is_thinker(t.component)) {
            let donor = Donor {
                dtype: t.dtype,
                shape: t.shape.clone(),
                bytes: bytes_of(&reader, t)?,
            };
            tensors.insert(whole_name(&t.name), donor);
        }
        let files = manifest.source_files.iter().filter_map(|f| {
            let name = TEXT_FILES.into_iter().find(|name| f.path == *name)?;
            Some((name, f.sha256?))
        });
        Ok(Some(Self {
            tensors,
            config: config.clone(),
            family,
            source: GraftSource {
                manifest_sha256: Some(pack.manifest_sha256()),
                provenance: manifest.provenance.clone(),
            },
            files: files.collect(),
            watched: Vec::new(),
        }))
    }

    /// A checkpoint has to be complete, as to be packed.
    fn of_checkpoint(
        path: &Path,
        settings: &PackSettings,
        job: Job<'_>,
    ) -> Result<Option<Self>, StepError> {
        let Planned {
            checkpoint,
            inventory,
            plan,
            ..
        } = plan(path, settings, job)?;
        let family = inventory.family.and_then(|name| name.family());
        let (Some(family), Some(config)) = (family, checkpoint.config.clone()) else {
            return Ok(None);
        };
        let inputs: HashMap<&str, &Arc<dyn ReadAt>> = checkpoint
            .shards
            .iter()
            .map(|s| (s.path.as_str(), &s.shard.input))
            .collect();
        let mut tensors = HashMap::new();
        for pack in plan.packs.iter().filter(|p| is_thinker(p.component)) {
            for t in pack.segments.iter().flat_map(|s| &s.tensors) {
                let Some(input) = inputs.get(t.source.file.as_str()) else {
                    continue; // compared with what is wanted, it is missed
                };
                let donor = Donor {
                    dtype: t.dtype,
                    shape: t.shape.clone(),
                    bytes: Bytes::Plain {
                        input: Arc::clone(input),
                        at: t.source.offset,
                    },
                };
                tensors.insert(whole_name(&t.name), donor);
            }
        }
        let mut files = HashMap::new();
        for name in TEXT_FILES {
            if checkpoint.files.iter().any(|f| f.path == name) {
                let input = checkpoint.open_file_at(name)?;
                let length = input.length().min(max_source_bytes(name));
                files.insert(name, Sha256::of(&input.read_range(0..length)?));
            }
        }
        Ok(Some(Self {
            tensors,
            config,
            family,
            source: GraftSource {
                manifest_sha256: None,
                provenance: Some(checkpoint.provenance.clone()),
            },
            files,
            watched: inputs.into_values().map(Arc::clone).collect(),
        }))
    }
}

/// The name in the whole model of a thinker's tensor.
fn whole_name(name: &str) -> String {
    match name.starts_with(PREFIX) {
        true => name.to_owned(),
        false => format!("{PREFIX}{name}"),
    }
}

/// Where the bytes of a packed tensor lie.
fn bytes_of(reader: &PackReader<'_>, tensor: &TensorEntry) -> Result<Bytes, StepError> {
    let segment = reader.pack().segment(&tensor.segment).ok_or_else(|| {
        let what = format!("segment {} is not listed", tensor.segment);
        StepError::malformed(&reader.pack().path(MANIFEST), what)
    })?;
    let input: Arc<dyn ReadAt> = reader.open(&segment.pack)?;
    Ok(match segment.codec {
        Codec::Raw => Bytes::Plain {
            input,
            at: segment.offset + tensor.offset,
        },
        Codec::Zstd | Codec::Bf16Zstd | Codec::Bf16Rans => Bytes::Coded {
            input,
            segment: segment.stored(),
            at: tensor.offset,
        },
    })
}

/// The numbers of both thinkers have to be the same: what is put in is computed as `config.json` of
/// the whole says. Returns what else differs.
fn compare_models(
    onto: &Pack,
    model: &PackModel,
    donor: &Thinker,
) -> Result<Vec<Finding>, StepError> {
    let family = onto.manifest().model.family.and_then(|name| name.family());
    let (Some(family), Some(config)) = (family, model.config()) else {
        return Err(StepError::malformed(onto.folder(), "is of no known family"));
    };
    let [own, other] = [(family, config), (donor.family, &donor.config)].map(numbers);
    let mut findings = Vec::new();
    for ((what, wanted), (_, seen)) in own?.into_iter().zip(other?) {
        if seen != wanted {
            let finding = Finding::new(FindingKind::DiffersFromCheckpoint).file("config.json");
            let finding = finding.seen(format!("{what} {seen} of the thinker"));
            findings.push(finding.wanted(format!("{wanted}, as in the whole model")));
        }
    }
    if !findings.is_empty() {
        return Err(StepError::Findings {
            what: "the thinker is not one of this model; nothing was written".to_owned(),
            findings,
        });
    }
    let files = onto.manifest().source_files.iter();
    Ok(files
        .filter_map(|file| differing_text_file(file, donor))
        .collect())
}

/// What a decoder and its towers compute with, in words.
fn numbers((family, config): (Family, &Value)) -> Result<Vec<(&'static str, String)>, StepError> {
    let of = |e: segpack_manifests::families::ConfigError| {
        StepError::malformed(Path::new("config.json"), e.to_string())
    };
    let facts = family.text_facts(config).map_err(of)?;
    let settings = family.text_settings(config, &facts).map_err(of)?;
    let media = family.media_facts(config).map_err(of)?;
    Ok(vec![
        ("sizes", format!("{facts:?}")),
        ("settings", format!("{settings:?}")),
        ("encoders", format!("{media:?}")),
    ])
}

fn differing_text_file(file: &SourceFile, donor: &Thinker) -> Option<Finding> {
    let seen = donor.files.get(file.path.as_str())?;
    if Some(*seen) == file.sha256 {
        return None;
    }
    let mut finding = Finding::new(FindingKind::DiffersFromCheckpoint).file(&file.path);
    finding.severity = Severity::Warning; // it may be meant: the whole model's stays
    let finding = finding.seen(format!("SHA-256 {seen} beside the thinker"));
    Some(finding.wanted("that of the whole model, which the result has"))
}

/// Every tensor of the thinker under its name, with its dtype and shape, and no other.
fn compare_tensors(whole: &Manifest, donor: &Thinker, path: &Path) -> Result<(), StepError> {
    let mut findings = Vec::new();
    let mut wanted = BTreeSet::new();
    for t in whole.tensors.iter().filter(|t| is_thinker(t.component)) {
        wanted.insert(t.name.as_str());
        let about = |kind| Finding::new(kind).tensor(&t.name);
        match donor.tensors.get(&t.name) {
            None => {
                let seen = "the thinker has no such tensor";
                findings.push(about(FindingKind::MissingTensor).seen(seen));
            }
            Some(other) if (other.dtype, &other.shape) != (t.dtype, &t.shape) => {
                let finding = about(FindingKind::MisshapedTensor);
                let finding = finding.seen(format!("{} {:?}", other.dtype, other.shape));
                let wanted = format!("{} {:?}, as in the whole model", t.dtype, t.shape);
                findings.push(finding.wanted(wanted));
            }
            Some(_) => {}
        }
    }
    let mut others: Vec<&String> = donor.tensors.keys().collect();
    others.retain(|name| !wanted.contains(name.as_str()));
    others.sort();
    findings.extend(others.into_iter().map(|name| {
        let finding = Finding::new(FindingKind::ExtraTensor).tensor(name);
        finding.seen("the whole model has no such tensor")
    }));
    if findings.is_empty() {
        return Ok(());
    }
    let what = format!(
        "{}: no thinker of this model; nothing was written",
        path.display()
    );
    Err(StepError::Findings { what, findings })
}

/// The merged checkpoint and the plan for it.
fn planned(onto: &Pack, donor: &Thinker, settings: &PackSettings) -> Result<Planned, StepError> {
    let mut checkpoint = merged(onto, donor)?;
    let tolerated = ScanOptions {
        extra: Extra::Keep,
        ..settings.scan.clone()
    };
    if let Some(config) = &tolerated.config {
        checkpoint.replace_config(config.clone());
    }
    let inventory = take_inventory(&checkpoint, &tolerated);
    if Finding::any_error(&inventory.findings) {
        let findings = inventory.findings;
        let what = "the merged model: nothing was written".to_owned();
        return Err(StepError::Findings { what, findings });
    }
    let plan = layout::plan(&inventory, &settings.selection, settings.coding.codec())?;
    let graft = Graft {
        thinker: donor.source.clone(),
        onto: GraftSource {
            manifest_sha256: Some(onto.manifest_sha256()),
            provenance: onto.manifest().provenance.clone(),
        },
    };
    Ok(Planned {
        checkpoint,
        inventory,
        plan,
        graft: Some(graft),
    })
}

/// The shards of the whole model with the thinker's bytes in them, and its other files.
fn merged(onto: &Pack, donor: &Thinker) -> Result<Checkpoint, StepError> {
    let manifest = onto.manifest();
    let reader = PackReader::new(onto);
    let mut tensors: HashMap<&str, Vec<&TensorEntry>> = HashMap::new();
    for t in &manifest.tensors {
        tensors.entry(&t.source.file).or_default().push(t);
    }
    let (mut shards, mut files) = (Vec::new(), Vec::new());
    for file in &manifest.source_files {
        match file.kind {
            SourceFileKind::Shard => {
                let of_shard = tensors.remove(file.path.as_str()).unwrap_or_default();
                shards.push(merged_shard(file, &of_shard, &reader, donor)?);
            }
            SourceFileKind::File => files.push(SideFile {
                path: file.path.clone(),
                length: file.length,
                hub_sha256: None,
            }),
        }
    }
    let root: PathBuf = onto.path(SOURCE);
    let mut checkpoint = Checkpoint::assembled(&root, shards, files);
    checkpoint.left_out = manifest.left_out.clone();
    Ok(checkpoint)
}

fn merged_shard(
    file: &SourceFile,
    tensors: &[&TensorEntry],
    reader: &PackReader<'_>,
    donor: &Thinker,
) -> Result<CheckpointShard, StepError> {
    let mut pieces = Vec::with_capacity(tensors.len());
    for t in tensors {
        let start = t.source.offset;
        let bytes = match donor.tensors.get(&t.name) {
            Some(donor) => donor.bytes.clone(),
            None => bytes_of(reader, t)?,
        };
        pieces.push(Piece {
            range: start..start + t.source.length,
            bytes,
        });
    }
    // verified before
    let kept = reader.open(&file.stored_as)?;
    let header = kept.read_range(0..kept.length())?;
    let path = reader.pack().path(&file.stored_as);
    let shard = AssembledShard::new(path, header, pieces, file.length, donor.watched.clone())?;
    let shard = Shard::open_from(Arc::new(shard))?;
    Ok(CheckpointShard::of_input(&file.path, shard))
}

fn report(
    onto: &Pack,
    donor: &Thinker,
    new: &Manifest,
    manifest_sha256: Sha256,
    warnings: Vec<Finding>,
) -> GraftReport {
    let before = onto.manifest();
    let digests: HashMap<&str, Sha256> = before
        .packs
        .iter()
        .map(|p| (p.path.as_str(), p.sha256))
        .collect();
    let (kept, written): (Vec<_>, Vec<_>) = new
        .packs
        .iter()
        .partition(|p| digests.get(p.path.as_str()) == Some(&p.sha256));
    let changed = new.tensors.iter().filter(|t| {
        let old = onto.tensor(&t.name);
        old.is_none_or(|old| old.sha256 != t.sha256)
    });
    GraftReport {
        format_version: GraftReport::VERSION,
        generator: GENERATOR.to_owned(),
        manifest_sha256,
        thinker_sha256: donor.source.manifest_sha256,
        onto_sha256: onto.manifest_sha256(),
        thinker_tensors: donor.tensors.len() as u64,
        changed_tensors: changed.count() as u64,
        kept_packs: kept.len() as u64,
        written_packs: written.into_iter().map(|p| p.path.clone()).collect(),
        warnings,
    }
}
