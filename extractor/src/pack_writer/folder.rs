//! The pack folder that `pack` and `repack` write: opened, continued, completed, wherever the bytes
//! come from.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{CancelToken, InputFile, READ_BYTES};
use segpack_formats::pack::WrittenPack;
use segpack_manifests::documents::{Finding, GENERATOR, Manifest, PackSummary};
use segpack_manifests::folder::{MANIFEST, PACKS, PARTIAL, SOURCE, SUMS};
use segpack_manifests::{Pack, PackError};

use super::Done;
use crate::output::{
    Before, JOURNAL, Journal, LOCK, OutputFolder, Record, check_space, look, refuse_busy,
    remove_all,
};
use crate::steps::{Exit, StepError};
use crate::work::Progress;
use crate::work::run_tasks;

/// How a pack folder is written.
pub struct Target<'a> {
    /// Threads.
    pub jobs: usize,
    /// Go on where an interrupted run stopped.
    pub resume: bool,
    /// Replace an existing pack.
    pub force: bool,
    /// When to stop.
    pub stop: &'a CancelToken,
    /// Who hears how far it is.
    pub progress: &'a dyn Progress,
}

impl Target<'_> {
    /// Opens the output folder, which will hold the `listed` files and take `needed` bytes.
    ///
    /// # Errors
    /// `Refused` where the folder holds something else, or something unfinished without `resume`.
    pub fn open(
        &self,
        out: &Path,
        listed: &BTreeSet<String>,
        needed: u64,
    ) -> Result<OutputFolder, StepError> {
        let refuse = |what: &str| Err(StepError::Refused(format!("{} {what}", out.display())));
        refuse_busy(out)?;
        match look(out)? {
            Before::Nothing => OutputFolder::open(out),
            Before::Unfinished | Before::Occupied if self.force => replace(out, listed, needed),
            Before::Unfinished => {
                check_ours(out, listed)?;
                if self.resume {
                    return OutputFolder::open(out);
                }
                refuse("holds an unfinished pack: --resume goes on with it, --force starts anew")
            }
            Before::Occupied if out.join(MANIFEST).exists() => {
                refuse("exists and holds a pack: --force replaces it")
            }
            Before::Occupied => refuse("exists and is not empty: choose another place"),
        }
    }

    /// Starts or continues the journal of the run with this fingerprint; finished packs that are
    /// still intact count as done, and the last number returned is how many they are.
    ///
    /// # Errors
    /// `Refused` where the folder holds an unfinished run with another fingerprint.
    pub fn open_journal(
        &self,
        output: &OutputFolder,
        fingerprint: Sha256,
    ) -> Result<(Journal, Done, u64), StepError> {
        let path = output.control(JOURNAL);
        let begun = Record::Begun { fingerprint };
        let records = if self.resume {
            Journal::read(&path)
        } else {
            Vec::new()
        };
        if records.first().is_some_and(|first| *first != begun) {
            return Err(StepError::Refused(format!(
                "{} holds an unfinished pack of another source, or with other options (the source may have changed \
                 since): give the same ones, or start anew with --force",
                output.path().display()
            )));
        }
        output.clear_unfinished()?;
        let intact = self.check_finished(output, &records)?;
        let kept: Vec<Record> = std::iter::once(begun).chain(intact).collect();
        let journal = Journal::begin(&path, &kept)?;
        let mut done = Done::default();
        kept.into_iter().for_each(|record| done.add(record));
        let resumed = done.packs() as u64;
        Ok((journal, done, resumed))
    }

    /// Re-reads every pack that a journal calls finished. One that is not what it says is done
    /// again.
    fn check_finished(
        &self,
        output: &OutputFolder,
        records: &[Record],
    ) -> Result<Vec<Record>, StepError> {
        let bytes = records
            .iter()
            .map(|r| {
                if let Record::Pack { written, .. } = r {
                    written.length
                } else {
                    0
                }
            })
            .sum();
        if bytes > 0 {
            self.progress.start("checking finished packs", bytes);
        }
        let damaged = std::sync::Mutex::new(BTreeSet::new());
        let check = |buffer: &mut Vec<u8>, record: &Record| {
            let Record::Pack { path, written, .. } = record else {
                return Ok(());
            };
            if !self.is_intact(&output.path().join(path), written, buffer)? {
                self.progress.note(&format!(
                    "{path} is not what the journal says; writing it again"
                ));
                damaged
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .insert(path.clone());
            }
            Ok(())
        };
        run_tasks(self.jobs, records, || Ok(vec![0; READ_BYTES]), check)?;
        if bytes > 0 {
            self.progress.finish();
        }
        let damaged = damaged
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let keep = |r: &&Record| match r {
            Record::Begun { .. } => false,
            Record::Pack { path, .. } => !damaged.contains(path),
            Record::Shard { .. } => true,
        };
        Ok(records.iter().filter(keep).cloned().collect())
    }

    fn is_intact(
        &self,
        path: &Path,
        written: &WrittenPack,
        buffer: &mut [u8],
    ) -> Result<bool, StepError> {
        let Ok(input) = InputFile::open(path) else {
            return Ok(false);
        };
        if input.length() != written.length {
            return Ok(false);
        }
        let mut sha256 = Sha256Hasher::default();
        input.for_each_piece(0..written.length, buffer, self.stop, |piece| {
            sha256.update(piece);
            self.progress.advance(piece.len() as u64);
            Ok::<_, StepError>(())
        })?;
        Ok(sha256.finish() == written.sha256)
    }
}

/// Refuses a folder that holds anything but a pack, finished or not; `listed` files may be there.
///
/// # Errors
/// `Refused`, with the first foreign file.
pub fn check_ours(out: &Path, listed: &BTreeSet<String>) -> Result<(), StepError> {
    let foreign = |what: String| {
        let what = format!(
            "{}: only a pack may be continued or replaced, but {what}",
            out.display()
        );
        Err(StepError::Refused(format!(
            "{what}; choose another place, or remove it yourself"
        )))
    };
    for entry in fs::read_dir(out).map_err(StepError::io("list", out))? {
        let name = entry
            .map_err(StepError::io("list", out))?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if ![MANIFEST, SUMS, PACKS, SOURCE, PARTIAL].contains(&name.as_str()) {
            return foreign(format!("the folder holds {name:?} too"));
        }
    }
    let records = Journal::read(&out.join(PARTIAL).join(JOURNAL));
    let begun = matches!(records.first(), Some(Record::Begun { .. }))
        || out.join(PARTIAL).join(LOCK).exists();
    let mut listed = listed.clone();
    listed.extend(records.into_iter().filter_map(|r| match r {
        Record::Pack { path, .. } => Some(path),
        _ => None,
    }));
    match Pack::open(out) {
        Ok(pack) => listed.extend(pack.manifest().files().iter().map(|f| f.0.to_owned())),
        Err(PackError::Format(e)) => return Err(e.into()),
        Err(_) if begun => {}
        Err(e) => return foreign(e.to_string()),
    }
    match files_below(out, &[PACKS, SOURCE])?
        .into_iter()
        .find(|file| !listed.contains(file))
    {
        Some(file) => foreign(format!(
            "it holds {file:?}, which this pack will not have (another source's, or your own)"
        )),
        None => Ok(()),
    }
}

/// `--force`: removes a pack, but only where the folder holds nothing else and the new one will
/// fit. The lock is held from before the removal on.
fn replace(out: &Path, listed: &BTreeSet<String>, needed: u64) -> Result<OutputFolder, StepError> {
    check_ours(out, listed)?;
    let old = files_below(out, &[PACKS, SOURCE])?;
    let freed = old
        .iter()
        .filter_map(|f| fs::metadata(out.join(f)).ok())
        .map(|m| m.len())
        .sum();
    check_space(out, needed, freed)?;
    let output = OutputFolder::open(out)?;
    // the manifest first, so that what is left does not look complete
    for name in [MANIFEST, SUMS, PACKS, SOURCE] {
        remove_all(&out.join(name))?;
    }
    remove_all(&output.control(JOURNAL))?;
    Ok(output)
}

fn files_below(root: &Path, folders: &[&str]) -> Result<Vec<String>, StepError> {
    let mut files = Vec::new();
    for folder in folders.iter().map(|f| root.join(f)).filter(|f| f.exists()) {
        for entry in walkdir::WalkDir::new(&folder) {
            let entry = entry.map_err(|e| StepError::Refused(e.to_string()))?;
            if !entry.file_type().is_dir() {
                let below = entry.path().strip_prefix(root).unwrap_or(entry.path());
                files.push(below.to_string_lossy().into_owned());
            }
        }
    }
    Ok(files)
}

/// Writes `SHA256SUMS`, then the manifest: its presence means "complete". Returns the manifest's
/// digest.
///
/// # Errors
/// `Io`.
pub fn write_documents(output: &OutputFolder, manifest: &Manifest) -> Result<Sha256, StepError> {
    let mut json = Vec::new();
    manifest
        .write(&mut json)
        .map_err(StepError::io("write", MANIFEST))?;
    let manifest_sha256 = Sha256::of(&json);
    if manifest.options.sums {
        let text = manifest.sums_text(manifest_sha256);
        output.write_small(SUMS, |to| to.write_all(text.as_bytes()))?;
    }
    output.write_small(MANIFEST, |to| to.write_all(&json))?;
    Ok(manifest_sha256)
}

/// Ends a run: after success nothing unfinished is left; after an error in the input nothing at
/// all; after any other, what `resume` needs.
///
/// # Errors
/// That of the run, or `Io`.
pub fn close<T>(output: OutputFolder, done: Result<T, StepError>) -> Result<T, StepError> {
    match done {
        Ok(_) => output.finish()?,
        Err(ref e) if e.exit() == Exit::Damaged => output.abandon(&[PACKS, SOURCE, SUMS]),
        Err(StepError::Refused(_)) => output.abandon_if_new(),
        Err(_) => {}
    }
    done
}

/// What a run that wrote, or found, this manifest has to say.
pub fn summarise(
    manifest: &Manifest,
    manifest_sha256: Sha256,
    resumed_packs: u64,
    hub_digests_compared: u64,
    warnings: Vec<Finding>,
) -> PackSummary {
    PackSummary {
        format_version: PackSummary::VERSION,
        generator: GENERATOR.to_owned(),
        manifest_sha256,
        packs: manifest.counts.packs,
        resumed_packs,
        segments: manifest.counts.segments,
        tensors: manifest.counts.tensors,
        tensor_bytes: manifest.counts.tensor_bytes,
        stored_bytes: manifest.packs.iter().map(|p| p.length).sum(),
        known: manifest.known.clone(),
        hub_digests_compared,
        warnings,
    }
}
