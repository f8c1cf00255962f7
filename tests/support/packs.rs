//! Packs of the tiny checkpoints: made once per checkpoint and options, then copied for each test.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::cli::run;
use super::folders::{contents, temp, write_contents};
use super::tiny::{tiny_full, tiny_omni, tiny_text};

/// Paths below a pack's folder, with their bytes.
type Files = BTreeMap<String, Vec<u8>>;

/// A checkpoint, and the options of `pack`.
type Key = (PathBuf, Vec<String>);

/// Packs a checkpoint into a folder that is made, or replaced where it is a pack. What is tested is
/// not packing itself: the files of a tiny checkpoint's pack are those of an earlier test.
pub fn pack_into(checkpoint: &Path, out: &Path, options: &[&str]) {
    if ![tiny_full(), tiny_omni(), tiny_text()].contains(&checkpoint.to_owned()) {
        pack(checkpoint, out, options);
        return;
    }
    if out.exists() {
        fs::remove_dir_all(out).expect("remove the pack before");
    }
    write_contents(out, made_once(checkpoint, options));
}

fn made_once(checkpoint: &Path, options: &[&str]) -> &'static Files {
    static MADE: Mutex<BTreeMap<Key, &'static OnceLock<Files>>> = Mutex::new(BTreeMap::new());
    let options_owned = options.iter().map(|&option| option.to_owned()).collect();
    let key = (checkpoint.to_owned(), options_owned);
    let slot = {
        // a test that failed while it held the lock left the map whole
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        *made.entry(key).or_insert_with(|| Box::leak(Box::default()))
    };
    slot.get_or_init(|| {
        let folder = temp();
        let out = folder.path().join("pack");
        pack(checkpoint, &out, options);
        contents(&out)
    })
}

fn pack(checkpoint: &Path, out: &Path, options: &[&str]) {
    let mut arguments: Vec<OsString> = vec!["pack".into(), checkpoint.into()];
    arguments.extend(["-o".into(), out.into(), "-q".into(), "--force".into()]);
    arguments.extend(options.iter().map(OsString::from));
    run(&arguments).ok();
}
