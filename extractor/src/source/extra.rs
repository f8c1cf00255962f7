//! Weight files that lie in a checkpoint's folder and that its index does not name: a second copy in
//! another format, an adapter, what an interrupted download left.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use segpack_formats::safetensors::Shard;
use segpack_manifests::documents::{Finding, FindingKind, LeftOut, Severity};

use super::store::Store;

/// What to do with weight files that the index does not name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Extra {
    /// Each is an error: somebody has to say what they are.
    #[default]
    Refuse,
    /// They are stored byte for byte, as files, and restored with the rest.
    Keep,
    /// They are left out, which the pack records.
    Leave,
}

/// Files with these endings hold weights; none may be left out silently.
const WEIGHT_ENDINGS: [&str; 10] = [
    ".safetensors",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".npz",
    ".incomplete",
];

/// How many files are named one by one.
const MAX_NAMED: usize = 4;

/// Whether a file holds weights by its name.
pub(crate) fn is_weight_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let begins = ["pytorch_model", "model", "consolidated"].map(|b| name.starts_with(b));
    let torch = begins.contains(&true) && name.ends_with(".bin");
    torch || WEIGHT_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Says of a file why it is not in the pack.
pub(super) fn left_out(path: &str) -> LeftOut {
    LeftOut {
        path: path.to_owned(),
        why: "weights that the index does not name".to_owned(),
    }
}

/// A finding for each folder of such files, and for each kind of name at the top: which they are, how
/// large, and whether they look like the checkpoint's tensors once more. `lengths` are the bytes of
/// the checkpoint's own tensors.
pub(super) fn findings(
    store: &Store,
    extra: &[String],
    lengths: &[u64],
    what: Extra,
    has_index: bool,
) -> Vec<Finding> {
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for path in extra {
        groups.entry(group_of(path)).or_default().push(path);
    }
    let groups = groups.values();
    groups
        .map(|files| {
            let size = Size::of(store, files);
            let whose = match has_index {
                true => "weights that the index does not name",
                false => "weights beside the checkpoint's own",
            };
            let seen = format!("{whose}{}{}{}", others(files), size, size.compare(lengths));
            let finding = Finding::new(FindingKind::UnlistedShard).file(files[0]);
            decided(finding.seen(seen), what)
        })
        .collect()
}

/// The finding as it is once somebody has decided what to do about it.
fn decided(mut finding: Finding, what: Extra) -> Finding {
    let done = match what {
        Extra::Refuse => {
            return finding.wanted("a decision to keep them as files or to leave them");
        }
        Extra::Keep => "kept as they are",
        Extra::Leave => "left out",
    };
    finding.severity = Severity::Warning;
    let seen = finding.seen.take().unwrap_or_default();
    finding.seen(format!("{seen}: {done}"))
}

/// Files of one folder belong together, and files at the top whose names differ in numbers alone.
fn group_of(path: &str) -> String {
    match path.split_once('/') {
        Some((folder, _)) => format!("{folder}/"),
        None => {
            let mut name = path.replace(|c: char| c.is_ascii_digit(), "0");
            while name.contains("00") {
                name = name.replace("00", "0");
            }
            name
        }
    }
}

/// The other files of a group, in words.
fn others(files: &[&str]) -> String {
    match files {
        [] | [_] => String::new(),
        [_, others @ ..] if files.len() <= MAX_NAMED => format!(", with {}", others.join(", ")),
        [_, .., last] => format!(" ({} files, the last {last})", files.len()),
    }
}

/// How large such files are.
struct Size {
    /// Bytes of the files.
    bytes: u64,
    /// Bytes of each tensor, where all of them are safetensors with a readable header.
    tensors: Option<Vec<u64>>,
}

impl Size {
    fn of(store: &Store, files: &[&str]) -> Self {
        // a file that cannot be looked into is reported where it is read
        let lengths = files.iter().filter_map(|file| store.length(file).ok());
        // headers on a server are not fetched for this
        let full = || files.iter().map(|file| Some(store.folder()?.join(file)));
        Self {
            bytes: lengths.sum(),
            tensors: full()
                .map(|file| tensors_of(&file?))
                .collect::<Option<Vec<_>>>()
                .map(|tensors| tensors.concat()),
        }
    }

    /// Whether tensors of these sizes are the checkpoint's own once more.
    fn compare(&self, lengths: &[u64]) -> String {
        let own: u64 = lengths.iter().sum();
        let Some(tensors) = self.tensors.as_ref().filter(|t| !t.is_empty()) else {
            return match is_about(self.bytes, own) {
                true => "; they are about as large as the checkpoint: a second copy of the same \
                         weights, it seems"
                    .to_owned(),
                false => String::new(),
            };
        };
        let same = in_common(tensors, lengths);
        let all = tensors.len();
        let verdict = match 10 * same >= 9 * all || is_about(tensors.iter().sum(), own) {
            true => ": a second copy of the same weights, it seems",
            false => "",
        };
        match same {
            0 => String::new(),
            n if n == all => format!("; each has the size of one of the checkpoint's{verdict}"),
            n => format!("; {n} of them have the size of one of the checkpoint's{verdict}"),
        }
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, ", {} bytes", self.bytes)?;
        match &self.tensors {
            Some(tensors) if tensors.len() == 1 => f.write_str(" in 1 tensor"),
            Some(tensors) => write!(f, " in {} tensors", tensors.len()),
            None => Ok(()),
        }
    }
}

/// The bytes of each tensor of a safetensors file.
fn tensors_of(file: &Path) -> Option<Vec<u64>> {
    let is_safetensors = file.extension().is_some_and(|e| e == "safetensors");
    let shard = is_safetensors.then(|| Shard::open(file).ok()).flatten()?;
    Some(shard.header.tensors.iter().map(|t| t.length).collect())
}

/// How many of these sizes are among those, each taken once.
fn in_common(sizes: &[u64], among: &[u64]) -> usize {
    let mut left: HashMap<u64, usize> = HashMap::new();
    for size in among {
        *left.entry(*size).or_default() += 1;
    }
    let mut take = |size: &u64| match left.get_mut(size) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    };
    sizes.iter().filter(|size| take(size)).count()
}

/// Within one part in 50.
fn is_about(bytes: u64, wanted: u64) -> bool {
    wanted > 0 && bytes.abs_diff(wanted) <= wanted / 50
}
