//! A liar who knows the format: changes what a raw pack says and holds, and makes every digest,
//! length and count right again, so that the pack agrees with itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use segpack_formats::digest::{Blake3, Sha256};
use segpack_formats::pack::{PackTensor, SegmentSpec, raw_header};
use segpack_formats::safetensors::ShardHeader;
use segpack_manifests::documents::Manifest;
use serde_json::{Value, json};

use super::checkpoint::header;
use super::damage::{list, manifest};
use super::tiny::{INDEX, write_file};

/// A raw pack in memory.
pub struct Liar {
    pack: PathBuf,
    /// The manifest.
    pub document: Value,
    /// The bytes of each tensor, by the name that it had at first.
    bytes: BTreeMap<String, Vec<u8>>,
}

/// One tensor of a kept header.
#[derive(Debug, Clone)]
pub struct Listed {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<u64>,
    pub length: u64,
}

impl Liar {
    /// Reads a pack of codec `raw`.
    pub fn open(pack: &Path) -> Self {
        let document = manifest(pack);
        let mut bytes = BTreeMap::new();
        for tensor in document["tensors"].as_array().expect("tensors") {
            let segment = document["segments"].as_array().expect("segments");
            let segment = segment.iter().find(|s| s["id"] == tensor["segment"]);
            let segment = segment.expect("a segment");
            let file = fs::read(pack.join(segment["pack"].as_str().expect("a path")));
            let start = number(&segment["offset"]) + number(&tensor["offset"]);
            let end = start + number(&tensor["length"]);
            let content = file.expect("read")[start as usize..end as usize].to_vec();
            bytes.insert(name_of(tensor), content);
        }
        Self {
            pack: pack.to_owned(),
            document,
            bytes,
        }
    }

    pub fn entries(&mut self, key: &str) -> &mut Vec<Value> {
        list(&mut self.document, key)
    }

    /// The first tensor whose name holds this.
    pub fn tensor(&mut self, part: &str) -> &mut Value {
        let named = |t: &&mut Value| name_of(t).contains(part);
        let mut all = self.entries("tensors").iter_mut();
        all.find(named)
            .unwrap_or_else(|| panic!("no tensor {part}"))
    }

    /// Takes tensors out of the manifest and the packs.
    pub fn drop_tensors(&mut self, part: &str) {
        let before = self.entries("tensors").len();
        self.entries("tensors")
            .retain(|t| !name_of(t).contains(part));
        assert!(self.entries("tensors").len() < before, "no tensor {part}");
    }

    /// Renames a tensor; its bytes stay.
    pub fn rename(&mut self, from: &str, to: &str) {
        let tensor = self.tensor(from);
        let before = name_of(tensor);
        tensor["name"] = json!(to);
        let bytes = self.bytes.remove(&before).expect("its bytes");
        self.bytes.insert(to.to_owned(), bytes);
    }

    /// Swaps a key of two tensors.
    pub fn swap(&mut self, key: &str, first: &str, second: &str) {
        let one = self.tensor(first)[key].clone();
        let other = std::mem::replace(&mut self.tensor(second)[key], one);
        self.tensor(first)[key] = other;
    }

    /// Changes a kept file of the checkpoint that is JSON.
    pub fn edit_kept(&self, path: &str, edit: impl FnOnce(&mut Value)) {
        let file = self.pack.join("source").join(path);
        let mut json = serde_json::from_slice(&fs::read(&file).expect("read")).expect("JSON");
        edit(&mut json);
        write_file(&file, format!("{json:#}\n").as_bytes());
    }

    /// Takes a file of the checkpoint away.
    pub fn drop_kept(&mut self, path: &str) {
        let files = self.entries("source_files");
        let at = files
            .iter()
            .position(|f| f["path"] == path)
            .expect("it is there");
        let stored = files.remove(at)["stored_as"].clone();
        fs::remove_file(self.pack.join(stored.as_str().expect("a path"))).expect("remove");
    }

    /// Keeps a file of the checkpoint under another name.
    pub fn keep_as(&mut self, path: &str, stored_as: &str) {
        let pack = self.pack.clone();
        let mut files = self.entries("source_files").iter_mut();
        let file = files.find(|f| f["path"] == path).expect("it is there");
        let before = pack.join(file["stored_as"].as_str().expect("a path"));
        fs::rename(before, pack.join(stored_as)).expect("rename");
        file["stored_as"] = json!(stored_as);
    }

    /// Adds a file of the checkpoint that has the bytes of another.
    pub fn copy_kept(&mut self, path: &str, to: &str) {
        let files = self.entries("source_files");
        let mut copy = files.iter().find(|f| f["path"] == path).cloned();
        let copy = copy.as_mut().expect("it is there");
        (copy["path"], copy["stored_as"]) = (json!(to), json!(format!("source/{to}")));
        files.push(copy.clone());
        files.sort_by_key(|f| f["path"].as_str().expect("a path").to_owned());
        let source = self.pack.join("source");
        fs::copy(source.join(path), source.join(to)).expect("copy");
    }

    /// Adds spaces after the kept header of a shard, which its own length does not count.
    pub fn pad_header(&mut self, shard: &str) {
        let mut files = self.entries("source_files").iter_mut();
        let file = files.find(|f| f["path"] == shard).expect("it is there");
        file["length"] = json!(number(&file["length"]) + 8);
        let stored = file["stored_as"].as_str().expect("a path").to_owned();
        for tensor in self.entries("tensors") {
            let source = &mut tensor["source"];
            if source["file"] == shard {
                source["offset"] = json!(number(&source["offset"]) + 8);
            }
        }
        let stored = self.pack.join(stored);
        let mut bytes = fs::read(&stored).expect("read");
        bytes.extend(b"        ");
        write_file(&stored, &bytes);
    }

    /// Changes the kept headers of all shards, and everything that depends on them.
    pub fn edit_headers(&mut self, edit: impl Fn(&mut Vec<Listed>)) {
        let shards: Vec<Value> = self.entries("source_files").clone();
        for shard in shards.iter().filter(|f| f["kind"] == "shard") {
            let file = self.pack.join(shard["stored_as"].as_str().expect("a path"));
            let bytes = fs::read(&file).expect("read");
            let parsed = ShardHeader::parse(&bytes[8..], number(&shard["length"]));
            let mut tensors: Vec<Listed> = parsed
                .expect("a header")
                .tensors
                .into_iter()
                .map(listed)
                .collect();
            edit(&mut tensors);
            let rows = tensors
                .iter()
                .map(|t| (&t.name[..], &t.dtype[..], &t.shape[..], t.length));
            let text = header(rows);
            let mut at = text.len() as u64;
            for t in &tensors {
                self.place(shard["path"].as_str().expect("a path"), t, at);
                at += t.length;
            }
            write_file(&file, &text);
            let mut files = self.entries("source_files").iter_mut();
            let entry = files
                .find(|f| f["path"] == shard["path"])
                .expect("its entry");
            entry["length"] = json!(at);
            entry["sha256"] = json!(Sha256::of(&text).to_string()); // nobody can tell
        }
    }

    /// Where a whole tensor lies in its shard now.
    fn place(&mut self, shard: &str, listed: &Listed, at: u64) {
        for tensor in self.entries("tensors") {
            let source = &mut tensor["source"];
            if source["file"] == shard && source["tensor"] == listed.name {
                source["offset"] = json!(at);
                source["length"] = json!(listed.length);
            }
        }
    }

    /// Makes the index name what the kept headers hold.
    pub fn fit_index(&mut self) {
        let mut map = serde_json::Map::new();
        let mut total = 0;
        let shards: Vec<Value> = self.entries("source_files").clone();
        for shard in shards.iter().filter(|f| f["kind"] == "shard") {
            let file = self.pack.join(shard["stored_as"].as_str().expect("a path"));
            let bytes = fs::read(&file).expect("read");
            let parsed = ShardHeader::parse(&bytes[8..], number(&shard["length"]));
            for t in parsed.expect("a header").tensors {
                total += t.length;
                map.insert(t.name, shard["path"].clone());
            }
        }
        self.edit_kept(INDEX, |index| {
            *index = json!({"metadata": {"total_size": total}, "weight_map": map});
        });
    }

    /// Writes it all: packs and their headers, every length, digest and count.
    pub fn seal(mut self) {
        self.forget_what_is_empty();
        self.write_packs();
        self.measure_sources();
        let packs = self.document["packs"].as_array().expect("packs").clone();
        for file in fs::read_dir(self.pack.join("packs")).expect("list") {
            let file = file.expect("list").path();
            let listed = |p: &Value| self.pack.join(p["path"].as_str().expect("a path")) == file;
            if !packs.iter().any(listed) {
                fs::remove_file(file).expect("remove");
            }
        }
        // counts follow from the rest; a document that does not parse is sealed as it is
        if let Ok(parsed) = serde_json::from_value::<Manifest>(self.document.clone()) {
            self.document["counts"] = serde_json::to_value(parsed.count()).expect("counts");
        }
        let text = format!("{}\n", self.document);
        write_file(&self.pack.join("manifest.json"), text.as_bytes());
        if let Ok(parsed) = serde_json::from_value::<Manifest>(self.document.clone()) {
            let sums = parsed.sums_text(Sha256::of(text.as_bytes()));
            write_file(&self.pack.join("SHA256SUMS"), sums.as_bytes());
        }
    }

    fn forget_what_is_empty(&mut self) {
        let has = |all: &[Value], key: &str, what: &Value| all.iter().any(|e| e[key] == *what);
        let tensors = self.entries("tensors").clone();
        self.entries("segments")
            .retain(|s| has(&tensors, "segment", &s["id"]));
        let segments = self.entries("segments").clone();
        self.entries("packs")
            .retain(|p| has(&segments, "pack", &p["path"]));
    }

    fn write_packs(&mut self) {
        let (mut tensors, mut segments) = (Vec::new(), Vec::new());
        for pack in &mut self.document["packs"].as_array().expect("packs").clone() {
            let all = self.document["segments"].as_array().expect("segments");
            let own = all.iter().filter(|s| s["pack"] == pack["path"]);
            let own: Vec<Value> = own.cloned().collect();
            let held: Vec<Vec<Value>> = own.iter().map(|s| self.held(s)).collect();
            let specs: Vec<SegmentSpec> = own.iter().zip(&held).map(spec).collect();
            let mut bytes = raw_header(&specs);
            pack["data_offset"] = json!(bytes.len());
            for (mut segment, held) in own.into_iter().zip(held) {
                let start = bytes.len();
                for mut tensor in held {
                    let content = &self.bytes[&name_of(&tensor)];
                    tensor["offset"] = json!(bytes.len() - start);
                    tensor["length"] = json!(content.len());
                    tensor["sha256"] = json!(Sha256::of(content).to_string());
                    bytes.extend(content);
                    tensors.push(tensor);
                }
                segment["offset"] = json!(start);
                segment["raw_length"] = json!(bytes.len() - start);
                segment["stored_length"] = json!(bytes.len() - start);
                segment["blake3"] = json!(Blake3::of(&bytes[start..]).to_string());
                segments.push(segment);
            }
            pack["length"] = json!(bytes.len());
            pack["sha256"] = json!(Sha256::of(&bytes).to_string());
            write_file(
                &self.pack.join(pack["path"].as_str().expect("a path")),
                &bytes,
            );
            let mut entries = list(&mut self.document, "packs").iter_mut();
            *entries.find(|p| p["path"] == pack["path"]).expect("it") = pack.clone();
        }
        self.document["tensors"] = json!(tensors);
        self.document["segments"] = json!(segments);
    }

    fn held(&self, segment: &Value) -> Vec<Value> {
        let tensors = self.document["tensors"].as_array().expect("tensors");
        let own = tensors.iter().filter(|t| t["segment"] == segment["id"]);
        own.cloned().collect()
    }

    /// Lengths and digests of kept files; what is packed of no shard is excluded.
    fn measure_sources(&mut self) {
        let tensors = self.entries("tensors").clone();
        let pack = self.pack.clone();
        for file in self.entries("source_files") {
            let stored = fs::read(pack.join(file["stored_as"].as_str().expect("a path")));
            let stored = stored.expect("read");
            let digest = json!(Sha256::of(&stored).to_string());
            file["stored_length"] = json!(stored.len());
            file["stored_sha256"] = digest.clone();
            if file["kind"] == "file" {
                file["length"] = json!(stored.len());
                file["sha256"] = digest;
                continue;
            }
            let own = tensors
                .iter()
                .filter(|t| t["source"]["file"] == file["path"]);
            let packed: u64 = own.map(|t| number(&t["source"]["length"])).sum();
            let data = number(&file["length"]) - stored.len() as u64;
            file["excluded_bytes"] = json!(data.saturating_sub(packed));
        }
    }
}

fn listed(t: segpack_formats::safetensors::TensorInfo) -> Listed {
    Listed {
        name: t.name,
        dtype: t.dtype.to_string(),
        shape: t.shape,
        length: t.length,
    }
}

fn spec((segment, tensors): (&Value, &Vec<Value>)) -> SegmentSpec {
    let tensors = tensors.iter().map(|t| PackTensor {
        name: name_of(t),
        dtype: t["dtype"]
            .as_str()
            .expect("a dtype")
            .parse()
            .expect("known"),
        shape: serde_json::from_value(t["shape"].clone()).expect("a shape"),
        length: number(&t["length"]),
    });
    SegmentSpec {
        id: segment["id"].as_str().expect("an id").to_owned(),
        tensors: tensors.collect(),
    }
}

pub fn name_of(tensor: &Value) -> String {
    tensor["name"].as_str().expect("a name").to_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}
