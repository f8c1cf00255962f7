//! The audit of a checkpoint: what its headers hold against what its `config.json` calls for.
//!
//! Pure: it sees names, dtypes and shapes, and reads no file. Whatever is wrong becomes a
//! [`Finding`].

use std::collections::{BTreeMap, HashMap, HashSet};

use segpack_formats::numeric::Dtype;
use segpack_formats::safetensors::{self, ShardIndex};
use serde_json::Value;

use crate::diagnosis;
use crate::documents::{
    ClassCount, Finding, FindingKind, InventoryCounts, InventoryTensor, RoleCount, Severity,
};
use crate::families::{self, Expected, ExpectedDtype, Family, Presence};
use crate::name_index::NameIndex;
use crate::names::{Class, Classification, Component, Part};
use crate::quantization::{Quantization, StoredParts};

/// The tensors of one weight file, as its header lists them.
#[derive(Debug, Clone, Copy)]
pub struct ShardTensors<'a> {
    /// Path relative to the checkpoint.
    pub path: &'a str,
    /// All tensors of the header.
    pub tensors: &'a [safetensors::TensorInfo],
}

/// A checkpoint as its headers, its index and its configuration describe it.
#[derive(Debug, Clone, Default)]
pub struct Described<'a> {
    /// `config.json`.
    pub config: Option<&'a Value>,
    /// `model.safetensors.index.json`.
    pub index: Option<&'a ShardIndex>,
    /// The weight files that could be read.
    pub shards: Vec<ShardTensors<'a>>,
    /// Whether a weight file is missing or could not be read; its own finding says why.
    pub shards_missing: bool,
    /// Whether this is one weight file beside the index of several.
    pub one_of_several: bool,
    /// The family whose names it has, where somebody says so.
    pub family: Option<Family>,
}

/// What the audit tolerates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditOptions {
    /// Whether an unknown family and tensors that no rule names are no error.
    pub allow_unclassified: bool,
    /// Whether it is no error that nothing says which tensors there have to be.
    pub allow_unaudited: bool,
}

impl AuditOptions {
    /// The strict audit.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether an unknown family and tensors that no rule names are no error.
    #[must_use]
    pub fn allow_unclassified(mut self, allow: bool) -> Self {
        self.allow_unclassified = allow;
        self
    }

    /// Sets whether it is no error that nothing says which tensors there have to be.
    #[must_use]
    pub fn allow_unaudited(mut self, allow: bool) -> Self {
        self.allow_unaudited = allow;
        self
    }

    /// Whether a model that this build does not know is no error.
    fn allows_unknown(self) -> bool {
        self.allow_unclassified || self.allow_unaudited
    }
}

/// What the audit found.
#[derive(Debug, Clone, PartialEq)]
pub struct Audit {
    /// The family, where `config.json` (or, without one, the names) tells.
    pub family: Option<Family>,
    /// Whether every tensor that `config.json` calls for was looked for.
    pub complete: bool,
    /// Sums.
    pub counts: InventoryCounts,
    /// Sums by component and class.
    pub classes: Vec<ClassCount>,
    /// Sums by component and role.
    pub roles: Vec<RoleCount>,
    /// All tensors, by shard and place.
    pub tensors: Vec<InventoryTensor>,
    /// All that is wrong, unsorted.
    pub findings: Vec<Finding>,
}

/// Classifies every tensor of a checkpoint and compares names, shapes and dtypes with what
/// `config.json` calls for.
#[must_use]
pub fn audit(checkpoint: &Described<'_>, options: AuditOptions) -> Audit {
    let names = checkpoint.shards.iter().flat_map(|s| s.tensors);
    let by_itself = || family_of(checkpoint.config, names.map(|t| t.name.as_str()));
    let family = checkpoint.family.or_else(by_itself);
    let listed = Listed {
        config: checkpoint.config,
        index: checkpoint.index,
        shards: checkpoint.shards.iter().map(|s| s.path).collect(),
        shards_missing: checkpoint.shards_missing,
        one_of_several: checkpoint.one_of_several,
    };
    audit_listed(&listed, family, list_tensors(checkpoint, family), options)
}

/// [`Described`], the tensors of all shards in one list of their own.
#[derive(Default)]
pub(crate) struct Listed<'a> {
    pub config: Option<&'a Value>,
    pub index: Option<&'a ShardIndex>,
    /// The shards' paths; a tensor's `shard` is a number of this list.
    pub shards: Vec<&'a str>,
    pub shards_missing: bool,
    pub one_of_several: bool,
}

/// [`audit`] of tensors that [`list_tensor`] has classified, by shard and place. The index is
/// looked into before anything is made of the configuration.
pub(crate) fn audit_listed(
    checkpoint: &Listed<'_>,
    family: Option<Family>,
    tensors: Vec<InventoryTensor>,
    options: AuditOptions,
) -> Audit {
    let mut findings = Vec::new();
    if let (None, Some(config), false) = (family, checkpoint.config, options.allows_unknown()) {
        findings.push(unknown_family(config));
    }
    let present = NameIndex::of(&tensors, |t| &t.name);
    check_index(checkpoint, &tensors, &present, &mut findings);
    let adapter = diagnosis::adapter(&tensors).filter(|_| !options.allows_unknown());
    let is_adapter = adapter.is_some();
    let complete = match adapter {
        Some(finding) => {
            findings.push(finding);
            false
        }
        None => {
            let named = (&tensors[..], &present);
            check_complete(checkpoint, family, named, options, &mut findings)
        }
    };
    // of an unknown family no rule names anything: one finding says so
    let is_unknown = family.is_none() && checkpoint.config.is_some();
    let may_be_unclassified = is_adapter
        || is_unknown
        || options.allow_unclassified
        || (options.allow_unaudited && !complete);
    if !may_be_unclassified {
        report_unclassified(checkpoint, &tensors, &mut findings);
        if let Some(finding) = family.and_then(|f| diagnosis::other_names(f, &tensors)) {
            findings.retain(|f| !diagnosis::is_of_names(f));
            findings.push(finding);
        }
    }
    if !options.allow_unaudited {
        findings.iter_mut().for_each(refuse_unaudited);
    }
    Audit {
        family,
        complete,
        counts: count(&tensors),
        classes: count_classes(&tensors),
        roles: count_roles(&tensors),
        tensors,
        findings,
    }
}

/// Makes it an error that completeness is not known: nothing said is not all well.
pub fn refuse_unaudited(finding: &mut Finding) {
    if finding.kind == FindingKind::NotAudited {
        finding.severity = Severity::Error;
        let wanted = || "an audit of its completeness".to_owned();
        finding.wanted.get_or_insert_with(wanted);
    }
}

/// By `config.json`; without one, by the names of the tensors.
pub(crate) fn family_of<'a>(
    config: Option<&Value>,
    names: impl Iterator<Item = &'a str>,
) -> Option<Family> {
    match config {
        Some(config) => Family::of_config(config),
        None => Family::guess(names),
    }
}

/// What a configuration has under a key, as JSON.
fn stated(config: &Value, key: &str) -> String {
    let value = config.get(key);
    value.map_or("nothing".to_owned(), Value::to_string)
}

fn unknown_family(config: &Value) -> Finding {
    Finding::new(FindingKind::UnknownFamily)
        .file("config.json")
        .seen(format!(
            "model_type {}, architectures {}",
            stated(config, "model_type"),
            stated(config, "architectures")
        ))
        .wanted("a model_type or an architecture that this version knows")
}

fn list_tensors(checkpoint: &Described<'_>, family: Option<Family>) -> Vec<InventoryTensor> {
    let count = checkpoint.shards.iter().map(|s| s.tensors.len()).sum();
    let mut tensors = Vec::with_capacity(count);
    for (shard, contents) in checkpoint.shards.iter().enumerate() {
        let listed = contents.tensors.iter().cloned();
        tensors.extend(listed.map(|t| list_tensor(t, shard, Classifier::of(family))));
    }
    tensors
}

/// What says what tensors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Classifier {
    /// The rules of a family.
    Rules(Family),
    /// A guess at which belong to experts.
    Guess,
    /// Nothing: packs of models of unknown families were made so before there was a guess.
    Nothing,
}

impl Classifier {
    pub(crate) fn of(family: Option<Family>) -> Self {
        family.map_or(Self::Guess, Self::Rules)
    }

    fn classify(self, name: &str) -> Classification {
        let unclassified = Classification::UNCLASSIFIED;
        match self {
            Self::Rules(family) => family.classify(name).unwrap_or(unclassified),
            Self::Guess => families::guess::classify(name),
            Self::Nothing => unclassified,
        }
    }
}

/// A tensor of a header, as the family's rules classify it.
pub(crate) fn list_tensor(
    stored: safetensors::TensorInfo,
    shard: usize,
    classifier: Classifier,
) -> InventoryTensor {
    let Classification {
        component,
        role,
        part,
        layer,
        expert,
    } = classifier.classify(&stored.name);
    InventoryTensor {
        name: stored.name,
        dtype: stored.dtype,
        shape: stored.shape,
        shard,
        offset: stored.offset,
        length: stored.length,
        component,
        role,
        part,
        layer,
        expert,
    }
}

/// The index against the headers, both ways.
fn check_index(
    checkpoint: &Listed<'_>,
    tensors: &[InventoryTensor],
    present: &NameIndex,
    findings: &mut Vec<Finding>,
) {
    let again = report_duplicates(checkpoint, tensors, present, findings);
    let Some(index) = checkpoint.index else {
        return;
    };
    let opened = opened(checkpoint);
    let shard_of = |number: usize| checkpoint.shards[tensors[number].shard];
    // of a name in several shards, the last of them
    let find = |name: &str| {
        let number = present.find(tensors, |t| &t.name, name)?;
        Some(again.get(&number).copied().unwrap_or(number))
    };
    let mut listed = 0;
    for (name, file) in &index.weight_map {
        let holder = find(name).map(shard_of);
        listed += usize::from(holder.is_some());
        if holder != Some(&**file) && opened.contains(&**file) {
            findings.push(not_in_shard(name, file, holder));
        }
    }
    // where every one was found, the names of 200,000 tensors need no second search
    let is_all_listed = listed + present.duplicates().len() == tensors.len();
    for tensor in tensors.iter().filter(|_| !is_all_listed) {
        let is_last = find(&tensor.name).is_some_and(|last| std::ptr::eq(&tensors[last], tensor));
        if is_last && !index.weight_map.contains_key(&tensor.name) {
            let finding = Finding::new(FindingKind::NotInIndex).tensor(&tensor.name);
            let finding = finding.file(checkpoint.shards[tensor.shard]);
            findings.push(finding.seen("the index does not name it"));
        }
    }
    let all_opened = index.shards().iter().all(|file| opened.contains(file));
    if all_opened {
        findings.extend(wrong_total_size(tensors, index));
    }
}

/// A name in two shards is a finding. Returns for each first tensor of such a name the last one.
fn report_duplicates(
    checkpoint: &Listed<'_>,
    tensors: &[InventoryTensor],
    present: &NameIndex,
    findings: &mut Vec<Finding>,
) -> HashMap<usize, usize> {
    let mut last: HashMap<usize, usize> = HashMap::new();
    for &(first, again) in present.duplicates() {
        let before = last.insert(first, again).unwrap_or(first);
        let shard = |number: usize| checkpoint.shards[tensors[number].shard];
        let tensor = &tensors[again];
        let finding = Finding::new(FindingKind::DuplicateTensor).tensor(&tensor.name);
        let finding = finding.file(shard(again));
        let finding = finding.seen(format!("is in {} too", shard(before)));
        findings.push(finding.wanted("one of them"));
    }
    last
}

fn opened<'a>(checkpoint: &Listed<'a>) -> HashSet<&'a str> {
    checkpoint.shards.iter().copied().collect()
}

fn not_in_shard(name: &str, file: &str, holder: Option<&str>) -> Finding {
    let seen = match holder {
        Some(other) => format!("it is in {other}"),
        None => "no shard holds it".to_owned(),
    };
    Finding::new(FindingKind::NotInShard)
        .tensor(name)
        .file(file)
        .seen(seen)
        .wanted("it there, as the index says")
}

fn wrong_total_size(tensors: &[InventoryTensor], index: &ShardIndex) -> Option<Finding> {
    let bytes: u64 = tensors.iter().map(|t| t.length).sum();
    let total = index.total_size.filter(|total| *total != bytes)?;
    let finding = Finding::new(FindingKind::WrongTotalSize).file("model.safetensors.index.json");
    let finding = finding.seen(format!("metadata.total_size is {total}"));
    Some(finding.wanted(format!("{bytes}, the sum of all tensors")))
}

fn report_unclassified(
    checkpoint: &Listed<'_>,
    tensors: &[InventoryTensor],
    findings: &mut Vec<Finding>,
) {
    for t in tensors
        .iter()
        .filter(|t| t.component == Component::Unclassified)
    {
        let finding = Finding::new(FindingKind::UnclassifiedTensor).tensor(&t.name);
        let finding = finding.file(checkpoint.shards[t.shard]);
        let finding = finding.seen("no rule of the family names it");
        findings.push(finding.wanted("a known name"));
    }
}

/// Compares what there is with what `config.json` calls for. Returns whether that was possible.
fn check_complete(
    checkpoint: &Listed<'_>,
    family: Option<Family>,
    (tensors, present): (&[InventoryTensor], &NameIndex),
    options: AuditOptions,
    findings: &mut Vec<Finding>,
) -> bool {
    if checkpoint.one_of_several {
        findings.push(one_of_several(checkpoint));
        return false;
    }
    let (Some(family), Some(config)) = (family, checkpoint.config) else {
        findings.push(not_audited(checkpoint));
        return false;
    };
    let unread = Unread::of(checkpoint);
    let compare = |config: &Value| {
        let compared = Compared {
            checkpoint,
            tensors,
            present,
            wanted: vec![false; tensors.len()],
            unread: &unread,
            has_dtypes: false,
            findings: Vec::new(),
        };
        compare_expected(family, config, compared, options)
    };
    let (mut found, complete) = match compare(config) {
        Ok(found) => (explained(found, family, config, tensors, &compare), true),
        Err(found) => (found, false),
    };
    diagnosis::unannounced(family, config, &mut found);
    found.extend(diagnosis::not_stored(family, config, tensors));
    findings.extend(found);
    complete
}

/// Compares the tensors with what a configuration calls for.
type Comparison<'a> = dyn Fn(&Value) -> Result<Vec<Finding>, Vec<Finding>> + 'a;

/// The findings, or, where another number of experts explains nearly all of them, or that the thinker
/// was saved alone, that and what is left.
fn explained(
    found: Vec<Finding>,
    family: Family,
    config: &Value,
    tensors: &[InventoryTensor],
    compare: &Comparison<'_>,
) -> Vec<Finding> {
    /// One in so many may be left.
    const NEARLY_ALL: usize = 4;
    let losses = |found: &[Finding]| found.iter().filter(|f| f.kind.is_incompleteness()).count();
    let before = losses(&found);
    if before == 0 {
        return found;
    }
    let others = [
        diagnosis::other_experts(family, config, tensors),
        diagnosis::thinker_alone(family, config, tensors),
    ];
    for (config, finding) in others.into_iter().flatten() {
        if let Ok(mut left) = compare(&config)
            && NEARLY_ALL * losses(&left) <= before
        {
            left.push(finding);
            return left;
        }
    }
    found
}

/// Compares every tensor that the configuration calls for, quantised where it says so, with dtypes.
///
/// # Errors
/// What is wrong with the configuration, where it does not say which tensors those are.
fn compare_expected(
    family: Family,
    config: &Value,
    mut compared: Compared<'_>,
    options: AuditOptions,
) -> Result<Vec<Finding>, Vec<Finding>> {
    let dtype = families::expected_dtype(config);
    let quantization = Quantization::of_config(config);
    let (present, unread, tensors) = (compared.present, compared.unread, compared.tensors);
    let dtype_of = |name: &str| {
        let number = present.find(tensors, |t| &t.name, name)?;
        Some(tensors[number].dtype)
    };
    let stored = match &quantization {
        Ok(Some(_)) => StoredParts::of(tensors.iter().map(|t| (t.name.as_str(), t.role))),
        _ => StoredParts::default(),
    };
    let is_present =
        |name: &str| present.find(tensors, |t| &t.name, name).is_some() || unread.names(name);
    let stated = dtype.as_ref().ok().copied().flatten();
    let scheme = quantization.as_ref().ok().and_then(Option::as_ref);
    let parts = |expected: Expected| match scheme {
        Some(scheme) => scheme.tensors_of(expected, &dtype_of, &stored),
        None => vec![expected],
    };
    let mut compare =
        |expected: Expected| compared.compare_all(&parts(with_dtype(expected, stated)));
    let listed = family.for_each_expected(config, &is_present, &mut compare);
    listed.map_err(|e| vec![bad_config(&e)])?;
    // numbers that no tensor fixes
    let facts = family.text_facts(config).err();
    let mut found: Vec<Finding> = facts.iter().chain(&dtype.err()).map(bad_config).collect();
    match quantization {
        Ok(_) => {
            found.extend(compared.finish());
            Ok(found)
        }
        // it is packed as it is, like tensors that no rule names
        Err(e) if options.allows_unknown() => {
            let seen = format!("{e}: whether tensors are missing is unknown");
            found.push(Finding::new(FindingKind::NotAudited).seen(seen));
            Err(found)
        }
        Err(e) => {
            found.push(bad_config(&e));
            Err(found)
        }
    }
}

/// The same, now that the configuration says what its weights are.
fn with_dtype(mut expected: Expected, stated: Option<Dtype>) -> Expected {
    if let Some(dtype) = stated {
        expected.dtype = expected.dtype.stated(dtype);
    }
    expected
}

fn bad_config(error: &families::ConfigError) -> Finding {
    Finding::new(FindingKind::BadConfig)
        .file("config.json")
        .seen(error)
}

fn not_audited(checkpoint: &Listed<'_>) -> Finding {
    let why = match checkpoint.config {
        None => "there is no config.json",
        Some(_) => "the family is unknown (experts are grouped by a guess at their names)",
    };
    let seen = format!("{why}: whether tensors are missing is unknown");
    Finding::new(FindingKind::NotAudited).seen(seen)
}

/// The other shards are missed by design, so there is no audit; `pack` refuses that, with this
/// reason.
fn one_of_several(checkpoint: &Listed<'_>) -> Finding {
    let mut finding = Finding::new(FindingKind::NotAudited);
    finding.file = checkpoint.shards.first().map(|&path| path.to_owned());
    let finding = finding.seen("is one shard of several (an index lies beside it)");
    finding.wanted("the folder")
}

/// The tensors of shards that could not be opened: whether they are there is unknown, and the
/// shard's finding says why.
enum Unread<'a> {
    /// Those that the index places there.
    Placed(HashSet<&'a str>),
    /// Any: a shard could not be opened, and no index says what it holds.
    Any,
}

impl<'a> Unread<'a> {
    fn of(checkpoint: &Listed<'a>) -> Self {
        let Some(index) = checkpoint.index else {
            return match checkpoint.shards_missing {
                true => Self::Any,
                false => Self::Placed(HashSet::new()),
            };
        };
        let opened = opened(checkpoint);
        if index.shards().iter().all(|file| opened.contains(file)) {
            return Self::Placed(HashSet::new());
        }
        let placed = index.weight_map.iter();
        let unopened = placed.filter(|(_, file)| !opened.contains(&***file));
        Self::Placed(unopened.map(|(name, _)| name.as_str()).collect())
    }

    /// Whether the index places this tensor in one.
    fn names(&self, name: &str) -> bool {
        matches!(self, Self::Placed(names) if names.contains(name))
    }

    fn may_hold(&self, name: &str) -> bool {
        matches!(self, Self::Any) || self.names(name)
    }
}

/// A checkpoint's tensors by name, while those that it has to have are compared with them.
struct Compared<'a> {
    checkpoint: &'a Listed<'a>,
    tensors: &'a [InventoryTensor],
    present: &'a NameIndex,
    /// Which of the tensors were called for.
    wanted: Vec<bool>,
    unread: &'a Unread<'a>,
    /// Whether any tensor has to be of a certain dtype.
    has_dtypes: bool,
    findings: Vec<Finding>,
}

impl Compared<'_> {
    fn compare_all(&mut self, expected: &[Expected]) {
        for e in expected {
            self.compare(e);
        }
    }

    fn compare(&mut self, e: &Expected) {
        self.has_dtypes |= !matches!(e.dtype, ExpectedDtype::Any | ExpectedDtype::AnyOrF32);
        let tensors = self.tensors;
        match self.present.find(tensors, |t| &t.name, &e.name) {
            Some(number) => {
                self.wanted[number] = true;
                self.compare_one(e, &tensors[number]);
            }
            None => {
                let missing = self.missing(e);
                self.findings.extend(missing);
            }
        }
    }

    /// Everything that differs, tensors that nothing called for among it.
    fn finish(mut self) -> Vec<Finding> {
        for (number, t) in self.tensors.iter().enumerate() {
            if self.wanted[number] || t.component == Component::Unclassified {
                continue;
            }
            let is_other = self.present.find(self.tensors, |t| &t.name, &t.name) != Some(number);
            if is_other {
                continue;
            }
            let seen = match t.part {
                Part::Weight | Part::Bias => {
                    "the architecture that config.json describes has no such tensor".to_owned()
                }
                part => format!("config.json describes no quantised weight with this {part}"),
            };
            let finding = self.about(FindingKind::ExtraTensor, t).seen(seen);
            self.findings.push(finding);
        }
        if !self.has_dtypes {
            self.findings.extend(mixed_dtypes(self.tensors));
        }
        self.findings
    }

    fn about(&self, kind: FindingKind, tensor: &InventoryTensor) -> Finding {
        let file = self.checkpoint.shards[tensor.shard];
        Finding::new(kind).tensor(&tensor.name).file(file)
    }

    fn missing(&self, e: &Expected) -> Option<Finding> {
        if e.presence == Presence::Optional || self.unread.may_hold(&e.name) {
            return None;
        }
        let finding = Finding::new(FindingKind::MissingTensor).tensor(&e.name);
        let finding = finding.seen("not in the checkpoint");
        let wanted = match e.classification.part {
            Part::Weight | Part::Bias => format!("shape {:?}", e.shape),
            part => format!("the {part} of a quantised weight, shape {:?}", e.shape),
        };
        Some(finding.wanted(wanted))
    }

    fn compare_one(&mut self, e: &Expected, tensor: &InventoryTensor) {
        if !e.allows_shape(&tensor.shape) {
            let finding = self.about(FindingKind::MisshapedTensor, tensor);
            let finding = finding.seen(format!("shape {:?}", tensor.shape));
            self.findings.push(finding.wanted(format!("{:?}", e.shape)));
        }
        if !e.dtype.allows(tensor.dtype) {
            let finding = self.about(FindingKind::WrongDtype, tensor);
            let finding = finding.seen(tensor.dtype);
            let wanted = format!("{}, as config.json says", e.dtype);
            self.findings.push(finding.wanted(wanted));
        }
    }
}

/// Where `config.json` names no dtype, several dtypes are worth a look.
fn mixed_dtypes(tensors: &[InventoryTensor]) -> Option<Finding> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for t in tensors {
        *counts.entry(t.dtype.to_string()).or_default() += 1;
    }
    if counts.len() < 2 {
        return None;
    }
    let seen = format!("tensors of several dtypes: {counts:?}");
    let mut finding = Finding::new(FindingKind::WrongDtype).seen(seen);
    finding.severity = Severity::Warning; // config.json names no dtype to hold them against
    Some(finding)
}

fn count(tensors: &[InventoryTensor]) -> InventoryCounts {
    let what: Vec<Classification> = tensors
        .iter()
        .map(InventoryTensor::classification)
        .collect();
    InventoryCounts {
        stored_tensors: tensors.len() as u64,
        logical_parameters: families::logical_parameter_count(&what) as u64,
        parameters: tensors.iter().map(InventoryTensor::values).sum(),
        tensor_bytes: tensors.iter().map(|t| t.length).sum(),
    }
}

fn count_classes(tensors: &[InventoryTensor]) -> Vec<ClassCount> {
    let counted = count_by(tensors, |t| Class::of(t.component, t.role)).into_iter();
    counted
        .map(
            |((component, class), [tensors, parameters, bytes])| ClassCount {
                component,
                class,
                tensors,
                parameters,
                bytes,
            },
        )
        .collect()
}

fn count_roles(tensors: &[InventoryTensor]) -> Vec<RoleCount> {
    let counted = count_by(tensors, |t| t.role).into_iter();
    counted
        .map(
            |((component, role), [tensors, parameters, bytes])| RoleCount {
                component,
                role,
                tensors,
                parameters,
                bytes,
            },
        )
        .collect()
}

/// Tensors, values and bytes of each component and key.
fn count_by<K: Ord>(
    tensors: &[InventoryTensor],
    key: impl Fn(&InventoryTensor) -> K,
) -> BTreeMap<(Component, K), [u64; 3]> {
    let mut sums: BTreeMap<(Component, K), [u64; 3]> = BTreeMap::new();
    for t in tensors {
        let sum = sums.entry((t.component, key(t))).or_default();
        *sum = [sum[0] + 1, sum[1] + t.values(), sum[2] + t.length];
    }
    sums
}
