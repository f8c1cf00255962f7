//! Checkpoints of a hub, of web servers and of object stores: read by ranges, packed while they arrive, whatever the
//! network does.

#![cfg(all(target_os = "linux", feature = "remote"))]

#[cfg(feature = "run")]
mod media;
mod packing;
mod packs;
mod proxies;
mod reading;
mod stopping;
mod stores;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::cli::Run;
use crate::support::folders::temp;
use crate::support::hub::{Faults, Hub, REPO};
use crate::support::packs::pack_into;
use crate::support::tiny::{Qwen3Moe, Tiny};

/// A checkpoint of three shards of some 800 kB, a server that has it, and room for packs.
struct Scene {
    folder: TempDir,
    hub: Hub,
}

impl Scene {
    fn with(faults: Faults) -> Self {
        let folder = temp();
        let checkpoint = checkpoint(&folder.path().join("checkpoint"));
        let hub = Hub::of(&checkpoint, faults);
        Self { folder, hub }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The pack of the local checkpoint.
    fn local_pack(&self, options: &[&str]) -> PathBuf {
        let pack = self.at("local.segpack");
        pack_into(&self.at("checkpoint"), &pack, options);
        pack
    }

    fn run(&self, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> Run {
        let arguments = arguments.iter().map(|a| OsString::from(a.as_ref()));
        Run::of(self.hub.program().args(arguments))
    }
}

/// Writes a checkpoint of three shards of some 800 kB.
fn checkpoint(folder: &Path) -> PathBuf {
    let size = Qwen3Moe {
        layers: 3,
        experts: 4,
        hidden: 256,
        width: 128,
        shards: 3,
    };
    Tiny::qwen3_moe(size).write(folder)
}

/// The address of the repository.
fn place() -> String {
    format!("hf://{REPO}")
}

/// The only thing that differs between two JSON documents may be where things come from.
fn without_provenance(run: &Run) -> serde_json::Value {
    let mut json = run.json();
    json["provenance"] = serde_json::Value::Null;
    for shard in json["shards"].as_array_mut().into_iter().flatten() {
        shard["hub_sha256"] = serde_json::Value::Null;
    }
    json
}
