//! Files that are moved to a folder which stays, one after the other.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use segpack_formats::io::{EntryKind, entry_kind, rename_beneath, sync_folder};

use super::OutputError;
use super::walk::files_below;

/// The files below a folder in the order in which they are moved: what speaks of others comes after
/// them. Whoever sees the index, the configuration or the first part sees all the rest.
///
/// # Errors
/// `Link`; `Io`.
pub(super) fn in_order(folder: &Path) -> Result<Vec<String>, OutputError> {
    let mut files = files_below(folder)?;
    files.sort_by(|a, b| (speaks_of_others(a), a).cmp(&(speaks_of_others(b), b)));
    Ok(files)
}

/// What is moved last: files that say that others are there.
fn speaks_of_others(path: &str) -> u8 {
    match path {
        "config.json" => 3,
        path if path.ends_with(".index.json") => 2,
        // a file in parts is opened by the first one
        path if path.contains("-00001-of-") => 1,
        _ => 0,
    }
}

/// Moves the files that have not been moved yet. Of a set that is replaced, the file that speaks of
/// the others goes aside first: nobody sees old and new ones together.
///
/// # Errors
/// `Link`; `Io`.
pub(super) fn carry_out(
    (room, new): (&Path, &str),
    aside: (&Path, &str),
    base: &Path,
    files: &[String],
) -> Result<(), OutputError> {
    let is_left = |file: &String| entry_kind(&room.join(new).join(file));
    if let [_, .., last] = files {
        let there = entry_kind(&base.join(last))?;
        if is_left(last)?.is_some() && there == Some(EntryKind::File) {
            rename_beneath((base, last), aside)?;
        }
    }
    let mut folders = BTreeSet::from([base.to_owned()]);
    for file in files {
        if is_left(file)?.is_some() {
            rename_beneath((room, &format!("{new}/{file}")), (base, file))?;
        }
        folders.extend(folders_of(base, file));
    }
    // the deepest first: a new folder is durable once the one that holds it is
    for folder in folders.iter().rev() {
        sync_folder(folder)?;
    }
    Ok(())
}

/// The folders below `base` that a file lies in.
fn folders_of(base: &Path, file: &str) -> Vec<PathBuf> {
    let path = base.join(file);
    let above = path.ancestors().skip(1);
    above
        .take_while(|a| a.starts_with(base))
        .map(Path::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn weights_are_moved_before_what_speaks_of_them() {
        let folder = tempfile::tempdir().unwrap();
        for file in [
            "config.json",
            "model.safetensors.index.json",
            "tokenizer.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ] {
            fs::write(folder.path().join(file), b"").unwrap();
        }
        let files = in_order(folder.path()).unwrap();
        assert_eq!(
            files[2..],
            [
                "model-00001-of-00002.safetensors",
                "model.safetensors.index.json",
                "config.json"
            ]
        );
    }
}
