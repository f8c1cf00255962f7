//! A pack as a bill of materials: CycloneDX 1.6 with a machine-learning model
//! (<https://cyclonedx.org/docs/1.6/json/>). It holds no times and no random numbers: of one pack,
//! it is always the same bytes.

use std::fmt::Display;

use segpack_manifests::documents::{Manifest, ModelCard, Provenance};
use serde_json::{Map, Value, json};

/// The bill of materials of the pack whose manifest this is.
pub(crate) fn bill_of_materials(manifest: &Manifest, identity: &str, card: &ModelCard) -> Value {
    let mut model = Map::new();
    model.insert("type".to_owned(), json!("machine-learning-model"));
    model.insert("bom-ref".to_owned(), json!(MODEL));
    model.insert("name".to_owned(), json!(name(manifest)));
    if let Some(revision) = origin(manifest).and_then(|o| o.revision.as_ref()) {
        model.insert("version".to_owned(), json!(revision));
    }
    model.insert("hashes".to_owned(), hashes(&identity));
    let licenses = licenses(card);
    if !licenses.is_empty() {
        model.insert("licenses".to_owned(), Value::Array(licenses));
    }
    let ancestors: Vec<Value> = card.base_model.all().iter().map(|m| ancestor(m)).collect();
    if !ancestors.is_empty() {
        model.insert("pedigree".to_owned(), json!({ "ancestors": ancestors }));
    }
    if let Some(url) = origin(manifest).and_then(url) {
        let reference = json!({ "type": "distribution", "url": url });
        model.insert("externalReferences".to_owned(), json!([reference]));
    }
    model.insert("modelCard".to_owned(), model_card(manifest, card));
    model.insert("properties".to_owned(), Value::Array(properties(manifest)));
    let files = files(manifest);
    let references: Vec<&Value> = files.iter().map(|f| &f["bom-ref"]).collect();
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": format!("urn:uuid:{}", uuid(identity)),
        "version": 1,
        "metadata": { "tools": { "components": [tool()] }, "component": model },
        "dependencies": [{ "ref": MODEL, "dependsOn": references }],
        "components": files,
    })
}

/// What other parts of the document call the model.
const MODEL: &str = "model";

fn origin(manifest: &Manifest) -> Option<&Provenance> {
    manifest.provenance.as_ref()
}

/// The repository that it came from, else its family.
fn name(manifest: &Manifest) -> String {
    let repo = origin(manifest).and_then(|o| o.repo.clone());
    let family = manifest.model.family.map(|f| f.to_string());
    repo.or(family)
        .unwrap_or_else(|| "unknown model".to_owned())
}

fn url(origin: &Provenance) -> Option<String> {
    let repo = origin.repo.as_ref()?;
    let tree = origin.revision.as_ref().map(|r| format!("/tree/{r}"));
    Some(format!(
        "https://huggingface.co/{repo}{}",
        tree.unwrap_or_default()
    ))
}

fn hashes(digest: &dyn Display) -> Value {
    json!([{ "alg": "SHA-256", "content": digest.to_string() }])
}

/// Licences that SPDX has by their identifiers, others by name.
fn licenses(card: &ModelCard) -> Vec<Value> {
    let one = |license: &String| {
        let mut known = Map::new();
        let is_it = |l: &&spdx::License| l.name.eq_ignore_ascii_case(license);
        match spdx::identifiers::LICENSES.iter().find(is_it) {
            Some(listed) => known.insert("id".to_owned(), json!(listed.name)),
            None => {
                let name = card.license_name.as_ref().filter(|_| license == "other");
                known.insert("name".to_owned(), json!(name.unwrap_or(license)))
            }
        };
        let is_url = |link: &&String| link.starts_with("https://") || link.starts_with("http://");
        if let Some(link) = card.license_link.as_ref().filter(is_url) {
            known.insert("url".to_owned(), json!(link));
        }
        json!({ "license": known })
    };
    card.license.all().iter().map(one).collect()
}

fn ancestor(repo: &str) -> Value {
    json!({ "type": "machine-learning-model", "name": repo })
}

fn model_card(manifest: &Manifest, card: &ModelCard) -> Value {
    let mut parameters = Map::new();
    if let Some(task) = &card.pipeline_tag {
        parameters.insert("task".to_owned(), json!(task));
    }
    parameters.insert("architectureFamily".to_owned(), json!("mixture of experts"));
    if let Some(family) = manifest.model.family {
        parameters.insert("modelArchitecture".to_owned(), json!(family.to_string()));
    }
    json!({ "modelParameters": parameters })
}

fn property(name: &str, value: &dyn ToString) -> Value {
    json!({ "name": format!("segpack:{name}"), "value": value.to_string() })
}

fn properties(manifest: &Manifest) -> Vec<Value> {
    let counts = &manifest.counts;
    vec![
        property("manifest_version", &manifest.format_version),
        property("written_by", &manifest.generator),
        property("codec", &manifest.options.codec),
        property("packs", &manifest.packs.len()),
        property("tensors", &counts.tensors),
        property("parameters", &counts.parameters),
        property("tensor_bytes", &counts.tensor_bytes),
    ]
}

fn tool() -> Value {
    json!({ "type": "application", "name": "segpack", "version": env!("CARGO_PKG_VERSION") })
}

/// Pack files, and the files of the checkpoint that the pack gives back.
fn files(manifest: &Manifest) -> Vec<Value> {
    let packs = manifest.packs.iter().map(|pack| {
        let properties = [
            property("component", &pack.component),
            property("length", &pack.length),
        ];
        file(&pack.path, &pack.sha256, &properties)
    });
    let sources = manifest.source_files.iter().filter_map(|source| {
        // of shards that were not digested nothing vouches for the whole
        let digest = source.sha256?;
        let properties = [
            property("restores", &source.path),
            property("length", &source.length),
        ];
        Some(file(
            &format!("checkpoint:{}", source.path),
            &digest,
            &properties,
        ))
    });
    packs.chain(sources).collect()
}

fn file(name: &str, digest: &dyn Display, properties: &[Value]) -> Value {
    json!({
        "type": "file",
        "bom-ref": name,
        "name": name,
        "hashes": hashes(digest),
        "properties": properties,
    })
}

/// A UUID of version 8 (RFC 9562) of the first digits of a digest, with 122 bits of it.
fn uuid(digest: &str) -> String {
    let digits = digest.chars().take(32).enumerate();
    let of = |(place, digit): (usize, char)| match (place, digit) {
        (12, _) => '8',
        (16, '0' | '4' | '8' | 'c') => '8',
        (16, '1' | '5' | '9' | 'd') => '9',
        (16, '2' | '6' | 'a' | 'e') => 'a',
        (16, _) => 'b',
        (_, digit) => digit,
    };
    let mut uuid: String = digits.map(of).collect();
    for place in [20, 16, 12, 8] {
        uuid.insert(place.min(uuid.len()), '-');
    }
    uuid
}
