//! Traces that are compared stage by stage, and what is changed in them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::tiny::{Tensor, shard_bytes, tensors_of};

/// The report of a comparison that ends with this exit status.
pub fn validate(pack: &Path, trace: &Path, more: &[&str], status: i32) -> Value {
    let mut arguments: Vec<_> = ["validate", "--json", "-q", "--reference"]
        .map(Into::into)
        .to_vec();
    arguments.extend([trace.as_os_str().to_owned(), pack.as_os_str().to_owned()]);
    arguments.extend(more.iter().map(Into::into));
    crate::support::cli::run(&arguments).exits(status).json()
}

/// The stages that are out of their gate.
pub fn wrong_stages(report: &Value) -> Vec<String> {
    let stages = report["stages"].as_array().unwrap().iter();
    let wrong = stages.filter(|row| row["ok"] == false);
    let mut names: Vec<String> = wrong
        .map(|row| row["stage"].as_str().unwrap().to_owned())
        .collect();
    names.dedup();
    names
}

/// A trace with other tensors, or another description.
pub fn bent(
    source: &Path,
    folder: &Path,
    bend: impl FnOnce(&mut Vec<Tensor>, &mut Value),
) -> PathBuf {
    let mut tensors = tensors_of(&fs::read(source).unwrap());
    let document = fs::read(source.with_extension("json")).unwrap();
    let mut document = serde_json::from_slice(&document).unwrap();
    bend(&mut tensors, &mut document);
    let path = folder.join("bent.safetensors");
    fs::write(&path, shard_bytes(&tensors)).unwrap();
    fs::write(path.with_extension("json"), document.to_string()).unwrap();
    path
}
