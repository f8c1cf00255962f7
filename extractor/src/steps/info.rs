//! `info`: what a pack is, from its manifest alone, and what a receipt says of its verification.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use segpack_manifests::documents::{
    Counts, GENERATOR, InfoComponent, InfoReport, InfoVerified, Manifest, SourceFileKind,
};
use segpack_manifests::names::Component;
use segpack_manifests::{Pack, PackError};

use super::StepError;
use super::receipt::{read_receipt, since};

/// What there is to say of a pack. `receipt` is a file that `verify` wrote.
///
/// # Errors
/// Where the folder is no pack, or the receipt is none.
pub fn info(pack: &Pack, receipt: Option<&Path>) -> Result<InfoReport, StepError> {
    let manifest = pack.manifest();
    let verified = receipt.map(|path| verified(pack, path)).transpose()?;
    let stored_bytes = manifest.packs.iter().map(|p| p.length).sum();
    let shards = count(manifest, SourceFileKind::Shard);
    Ok(InfoReport {
        format_version: InfoReport::VERSION,
        generator: GENERATOR.to_owned(),
        manifest_sha256: pack.manifest_sha256(),
        manifest_version: manifest.format_version,
        written_by: manifest.generator.clone(),
        model: manifest.model.clone(),
        options: manifest.options.clone(),
        provenance: manifest.provenance.clone(),
        known: manifest.known.clone(),
        counts: manifest.counts,
        stored_bytes,
        ratio: ratio(stored_bytes, &manifest.counts),
        source_bytes: manifest.source_files.iter().map(|f| f.stored_length).sum(),
        shards,
        files: manifest.source_files.len() as u64 - shards,
        not_restorable: manifest
            .source_files
            .iter()
            .filter(|f| f.excluded_bytes > 0)
            .count() as u64,
        components: components(manifest),
        excluded: manifest.excluded.clone(),
        verified,
    })
}

fn verified(pack: &Pack, path: &Path) -> Result<InfoVerified, PackError> {
    let receipt = read_receipt(path)?;
    let (since, changed) = since(pack, &receipt);
    Ok(InfoVerified {
        receipt,
        since,
        changed,
    })
}

/// Bytes of the pack files, headers included, for each byte of tensors; 1 where there is none.
#[expect(clippy::cast_precision_loss, reason = "a ratio")]
fn ratio(stored: u64, counts: &Counts) -> f64 {
    if counts.tensor_bytes == 0 {
        return 1.0;
    }
    stored as f64 / counts.tensor_bytes as f64
}

fn count(manifest: &Manifest, kind: SourceFileKind) -> u64 {
    let files = manifest.source_files.iter();
    files.filter(|f| f.kind == kind).count() as u64
}

/// The components in the order of their packs.
fn components(manifest: &Manifest) -> Vec<InfoComponent> {
    let mut order: Vec<Component> = Vec::new();
    let mut rows: HashMap<Component, InfoComponent> = HashMap::new();
    for pack in &manifest.packs {
        let row = rows.entry(pack.component).or_insert_with(|| {
            order.push(pack.component);
            empty(pack.component)
        });
        row.packs += 1;
        row.stored_bytes += pack.length;
    }
    // for each layer of a component, its experts: sorted and without repetition at the end
    let mut layers: HashMap<Component, BTreeMap<u32, Vec<u32>>> = HashMap::new();
    for tensor in &manifest.tensors {
        let Some(row) = rows.get_mut(&tensor.component) else {
            continue; // a pack has one component; a manifest that says otherwise is verify's
        };
        row.tensors += 1;
        row.parameters = row.parameters.saturating_add(tensor.values());
        row.bytes = row.bytes.saturating_add(tensor.length);
        if let Some(layer) = tensor.layer {
            let experts = layers.entry(tensor.component).or_default();
            experts.entry(layer).or_default().extend(tensor.expert);
        }
    }
    for (component, layers) in layers {
        if let Some(row) = rows.get_mut(&component) {
            add_layers(row, layers);
        }
    }
    order.iter().filter_map(|c| rows.remove(c)).collect()
}

fn add_layers(row: &mut InfoComponent, layers: BTreeMap<u32, Vec<u32>>) {
    row.layers = layers.len() as u64;
    for mut experts in layers.into_values().filter(|e| !e.is_empty()) {
        experts.sort_unstable();
        experts.dedup();
        let n = experts.len() as u64;
        row.moe_layers += 1;
        row.min_experts = Some(row.min_experts.map_or(n, |min| min.min(n)));
        row.max_experts = Some(row.max_experts.map_or(n, |max| max.max(n)));
    }
}

fn empty(component: Component) -> InfoComponent {
    InfoComponent {
        component,
        packs: 0,
        layers: 0,
        moe_layers: 0,
        min_experts: None,
        max_experts: None,
        tensors: 0,
        parameters: 0,
        bytes: 0,
        stored_bytes: 0,
    }
}
