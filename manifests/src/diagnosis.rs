//! What a long list of findings comes from, said once: an adapter in the place of a model, names of
//! another family, experts that were pruned, layers that nothing announces.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::documents::{Finding, FindingKind, InventoryTensor};
use crate::families::{Family, PartialConfig, TextFacts};
use crate::names::{Component, Part, Role};

/// What PEFT puts in front of the names of the model that it wraps.
const WRAPPED: &str = "base_model.model.";

/// The matrices of an adapter.
const ADAPTER: [&str; 4] = [
    ".lora_A.",
    ".lora_B.",
    ".lora_embedding_A",
    ".lora_embedding_B",
];

/// How many findings are listed as they are, whatever they have in common.
const FEW: usize = 3;

/// Weights that are not those of a model, but what PEFT makes of one.
pub(crate) fn adapter(tensors: &[InventoryTensor]) -> Option<Finding> {
    let is_part = |t: &&InventoryTensor| ADAPTER.iter().any(|part| t.name.contains(part));
    let parts = tensors.iter().filter(is_part).count();
    let all = tensors.len();
    if let Some(first) = tensors.iter().find(is_part) {
        let finding = Finding::new(FindingKind::Adapter).tensor(&first.name);
        let finding = finding.seen(format!(
            "{parts} of {all} tensors are parts of an adapter (lora_A, lora_B)"
        ));
        return Some(finding.wanted("a model that the adapter is merged into"));
    }
    let first = tensors.first()?;
    let wrapped = tensors.iter().all(|t| t.name.starts_with(WRAPPED));
    let finding = Finding::new(FindingKind::Adapter).tensor(&first.name);
    let finding = finding.seen(format!(
        "all names begin with {WRAPPED}, as PEFT wraps a model"
    ));
    wrapped.then(|| finding.wanted("the names of the model itself"))
}

/// The finding that the names are of another family than the configuration's, where its rules name
/// less than half of them.
pub(crate) fn other_names(family: Family, tensors: &[InventoryTensor]) -> Option<Finding> {
    let is_unnamed = |t: &&InventoryTensor| t.component == Component::Unclassified;
    let unnamed = tensors.iter().filter(is_unnamed).count();
    if let Some(inner) = names_of_inner_model(family, tensors) {
        return Some(inner);
    }
    if 2 * unnamed <= tensors.len() {
        return None;
    }
    let other = Family::guess(tensors.iter().map(|t| t.name.as_str()))?;
    let names = tensors.iter().map(|t| t.name.as_str());
    let mut named = names.filter(|name| other.classify(name).is_some());
    let first = named.next()?;
    let count = 1 + named.count();
    let finding = Finding::new(FindingKind::OtherNames).tensor(first);
    let finding = finding.seen(format!(
        "{count} of {} names are those of {other}; config.json describes {family}",
        tensors.len()
    ));
    Some(finding.wanted(format!(
        "a configuration of {other}, or the names of {family}"
    )))
}

/// The finding that the names are those inside the model: its decoder was saved alone, by its own
/// class, which has no head.
fn names_of_inner_model(family: Family, tensors: &[InventoryTensor]) -> Option<Finding> {
    let outer = |name: &str| {
        let inner = name.strip_prefix(LANGUAGE_MODEL).unwrap_or(name);
        format!("{MODEL}{inner}")
    };
    let is_inner = |t: &&InventoryTensor| {
        t.component == Component::Unclassified && family.classify(&outer(&t.name)).is_some()
    };
    // a name of the whole model beside them is another fault
    if tensors.iter().any(|t| t.name.starts_with(MODEL)) {
        return None;
    }
    let mut inner = tensors.iter().filter(is_inner);
    let first = inner.next()?;
    let count = 1 + inner.count();
    let unnamed = tensors
        .iter()
        .filter(|t| t.component == Component::Unclassified);
    if count < unnamed.count() {
        return None;
    }
    let finding = Finding::new(FindingKind::OtherNames).tensor(&first.name);
    let finding = finding.seen(format!(
        "{count} of {} names are those of {family} without {MODEL:?}: a decoder that was saved without its head",
        tensors.len()
    ));
    Some(finding.wanted(format!(
        "{:?} and the head, as the class of the whole model saves them",
        outer(&first.name)
    )))
}

/// What the decoder's names begin with in a model with a head.
const MODEL: &str = "model.";
/// What they begin with in a model without one that has towers, too.
const LANGUAGE_MODEL: &str = "language_model.";

/// Whether [`other_names`] says it better.
pub(crate) fn is_of_names(finding: &Finding) -> bool {
    let kind = finding.kind;
    kind.is_incompleteness() || kind == FindingKind::UnclassifiedTensor
}

/// A configuration that has as many experts as the routers have rows, where that is another number,
/// and the finding that says so. Whether it explains anything is for the caller to see.
pub(crate) fn other_experts(
    family: Family,
    config: &Value,
    tensors: &[InventoryTensor],
) -> Option<(Value, Finding)> {
    let facts = family.text_facts(config).ok()?;
    let routers = tensors.iter().filter(|t| is_router(t, &facts));
    let rows: BTreeSet<u64> = routers.filter_map(|t| t.shape.first().copied()).collect();
    let experts = rows.first().copied().filter(|_| rows.len() == 1)?;
    let stated = u64::from(facts.experts);
    if experts == stated || experts == 0 {
        return None;
    }
    let mut other = config.clone();
    let keys = set_experts(&mut other, stated, experts);
    let facts = family.text_facts(&other).ok()?;
    if u64::from(facts.experts) != experts {
        return None;
    }
    let why = match experts < stated {
        true => ": the others were pruned, it seems",
        false => "",
    };
    let finding = Finding::new(FindingKind::OtherSizes).file("config.json");
    let finding = finding.seen(format!(
        "{} {stated}, but the routers choose from {experts} experts{why}",
        keys.join(", ")
    ));
    Some((other, finding.wanted(format!("{experts}"))))
}

/// What the thinker's names begin with in the whole model.
const THINKER: &str = "thinker.";

/// A configuration of the thinker alone, where it was saved by its own class and lies beside that of the
/// whole model, and the finding that says so. Whether it explains anything is for the caller to see.
pub(crate) fn thinker_alone(
    family: Family,
    config: &Value,
    tensors: &[InventoryTensor],
) -> Option<(Value, Finding)> {
    let components: BTreeSet<Component> = tensors.iter().map(|t| t.component).collect();
    let PartialConfig::ThinkerOnly(other) = family.partial_config(config, &components) else {
        return None;
    };
    // beside the names of the whole model nobody knows whether its other parts are lost
    if tensors.iter().any(|t| t.name.starts_with(THINKER)) {
        return None;
    }
    let first = tensors.first()?;
    let finding = Finding::new(FindingKind::OtherNames).tensor(&first.name);
    let finding = finding.seen(format!(
        "all names are those of a thinker that was saved alone, without {THINKER:?}; config.json \
         describes the whole model"
    ));
    let wanted = "a configuration of the thinker: config.json with \"enable_audio_output\": false, \
                  or its thinker_config";
    Some((other, finding.wanted(wanted)))
}

/// Whether it is a router of the text decoder's own layers.
fn is_router(tensor: &InventoryTensor, facts: &TextFacts) -> bool {
    let of_text = matches!(tensor.component, Component::Text | Component::ThinkerText);
    let is_weight = tensor.role == Role::Router && tensor.part == Part::Weight;
    of_text && is_weight && tensor.layer.is_some_and(|layer| layer < facts.layers)
}

/// Keys that count routed experts.
const EXPERTS: [&str; 5] = [
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_routed_experts",
];

/// Objects of a configuration that describe the text decoder or its experts.
const SECTIONS: [&str; 3] = ["text_config", "thinker_config", "ffn_config"];

/// Replaces `stated` experts by `experts`, wherever the text decoder is described; returns the keys.
fn set_experts(config: &mut Value, stated: u64, experts: u64) -> Vec<String> {
    let Some(keys) = config.as_object_mut() else {
        return Vec::new();
    };
    let mut set = Vec::new();
    for key in EXPERTS {
        if let Some(value) = keys.get_mut(key).filter(|v| v.as_u64() == Some(stated)) {
            *value = experts.into();
            set.push(key.to_owned());
        }
    }
    for section in SECTIONS {
        if let Some(section) = keys.get_mut(section) {
            set.extend(set_experts(section, stated, experts));
        }
    }
    set
}

/// Keys that count layers which predict later tokens.
const LATER: [&str; 3] = [
    "num_nextn_predict_layers",
    "mtp_num_hidden_layers",
    "num_mtp_modules",
];

/// Whether a tensor is of a layer that predicts a later token: beyond the layers of the model, or
/// with a name of its own.
fn is_later(component: Component, layer: Option<u32>, facts: &TextFacts) -> bool {
    let beyond = layer.is_some_and(|layer| layer >= facts.layers);
    component == Component::TextMtp || (component == Component::Text && beyond)
}

/// Says once of many tensors that nothing announces the layers which they are of.
pub(crate) fn unannounced(family: Family, config: &Value, findings: &mut Vec<Finding>) {
    let Ok(facts) = family.text_facts(config) else {
        return;
    };
    let is_of_later = |f: &Finding| {
        let what = f.tensor.as_deref().and_then(|name| family.classify(name));
        let later = what.is_some_and(|w| is_later(w.component, w.layer, &facts));
        f.kind == FindingKind::ExtraTensor && later
    };
    let count = findings.iter().filter(|f| is_of_later(f)).count();
    let Some(first) = findings
        .iter()
        .position(is_of_later)
        .filter(|_| count > FEW)
    else {
        return;
    };
    let printed = findings[first].clone().seen(format!(
        "{count} tensors of layers that predict later tokens, which config.json does not announce"
    ));
    findings.retain(|f| !is_of_later(f));
    findings.push(printed.wanted(format!("{} in config.json, or none of them", LATER[0])));
}

/// The finding that a configuration announces layers which predict later tokens, and that none of
/// them is stored: the model is whole without them.
pub(crate) fn not_stored(
    family: Family,
    config: &Value,
    tensors: &[InventoryTensor],
) -> Option<Finding> {
    let facts = family.text_facts(config).ok()?;
    if tensors
        .iter()
        .any(|t| is_later(t.component, t.layer, &facts))
    {
        return None;
    }
    let (key, count) = announced(config)?;
    let names = [
        "mtp.fc.weight".to_owned(),
        format!("model.layers.{}.eh_proj.weight", facts.layers),
    ];
    // of other families the published checkpoints have none
    names.iter().find(|name| family.classify(name).is_some())?;
    let finding = Finding::new(FindingKind::LaterLayersNotStored).file("config.json");
    Some(finding.seen(format!(
        "{key} is {count}, but no layer that predicts later tokens is stored; the model is whole \
         without"
    )))
}

/// The first such key that is not zero.
fn announced(config: &Value) -> Option<(&'static str, u64)> {
    let places = [Some(config), config.get("text_config")];
    let mut places = places.into_iter().flatten();
    places.find_map(|place| {
        let count = |key: &'static str| Some((key, place.get(key)?.as_u64()?));
        LATER.into_iter().filter_map(count).find(|(_, n)| *n > 0)
    })
}
