//! The pack folder that `pack` and `repack` write: opened, continued, completed, wherever the bytes
//! come from.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use segpack_formats::FormatError;
use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{EntryKind, InputFile, READ_BYTES, entry_kind};
use segpack_formats::pack::WrittenPack;
use segpack_manifests::documents::{Finding, GENERATOR, Manifest, PackSummary, PartManifest};
use segpack_manifests::folder::{
    MANIFEST, OpenOptions, PACKS, PART, PARTIAL, SIGNATURE, SOURCE, SUMS,
};
use segpack_manifests::{NotAPack, Pack, PackError};

use super::{Done, PackWriterError};
use crate::output::{
    Before, Elsewhere, JOURNAL, Journal, JournalRead, Leave, OutputError, OutputFolder, Record,
    inspect, recover, refuse_busy, refuse_only_copy,
};
use crate::work::{Job, into_inner, lock, run_tasks};

/// What the user is told before a pack is removed so that another one has space.
pub(crate) const IN_PLACE: &str =
    "the old pack is removed before the new one is written: if this run fails, neither is there";

/// How a pack folder is written.
pub(crate) struct Target<'a> {
    /// Go on where an interrupted run stopped.
    pub resume: bool,
    /// Replace an existing pack.
    pub force: bool,
    /// Remove the pack that is replaced before the new one is written.
    pub in_place: bool,
    /// Remove the source as it is packed.
    pub consume: bool,
    /// Where finished packs go, if they do not stay in the folder.
    pub elsewhere: Option<&'a dyn Elsewhere>,
    /// The threads, when to stop, and the progress.
    pub job: Job<'a>,
}

impl Target<'_> {
    /// Opens the output folder, which will hold the `listed` files. Before a pack is removed in
    /// place, `check_space` says whether the new one fits, given the bytes that this frees.
    ///
    /// # Errors
    /// Where the folder holds something else, or something unfinished without `resume`.
    pub(crate) fn open(
        &self,
        out: &Path,
        listed: &BTreeSet<String>,
        check_space: &dyn Fn(u64) -> Result<(), OutputError>,
    ) -> Result<OutputFolder, PackWriterError> {
        refuse_busy(out)?;
        if !self.resume {
            refuse_only_copy(out)?;
        }
        recover(out, self.resume)?;
        let folder = out.to_owned();
        match inspect(out)? {
            Before::Nothing => Ok(OutputFolder::open(out)?),
            Before::Unfinished | Before::Occupied if self.force => {
                check_ours(out, listed)?;
                // without a manifest there is nothing whole to lose
                if self.in_place || !is_finished(out) {
                    return replace_in_place(out, check_space);
                }
                let output = OutputFolder::replace(out, self.resume)?;
                if self.resume {
                    check_ours(output.path(), listed)?;
                }
                Ok(output)
            }
            Before::Unfinished => {
                check_ours(out, listed)?;
                if self.resume {
                    return Ok(OutputFolder::go_on(out)?);
                }
                Err(PackWriterError::Unfinished { folder })
            }
            Before::Occupied if is_finished(out) => Err(PackWriterError::HoldsPack { folder }),
            Before::Occupied => Err(OutputError::NotEmpty { path: folder }.into()),
        }
    }

    /// Starts or continues the journal of the run with this fingerprint; finished packs that are
    /// still intact count as done, and the last number returned is how many they are.
    ///
    /// # Errors
    /// `OtherRun` where the folder holds an unfinished run with another fingerprint.
    pub(crate) fn open_journal(
        &self,
        output: &OutputFolder,
        fingerprint: Sha256,
    ) -> Result<(Journal, Done, u64), PackWriterError> {
        let path = output.control(JOURNAL);
        let read = if self.resume {
            Journal::read(&path)?
        } else {
            JournalRead::default()
        };
        if read.run.is_some_and(|run| run != fingerprint) {
            return Err(PackWriterError::OtherRun {
                folder: output.path().to_owned(),
            });
        }
        self.report_dropped(read.dropped);
        output.clear_unfinished()?;
        let intact = self.check_finished(output, &read.records)?;
        let kept: Vec<Record> = std::iter::once(Record::Begun).chain(intact).collect();
        let has_removed = kept.iter().any(|r| matches!(r, Record::Removed { .. }));
        let twice = self.consume || has_removed;
        let journal = Journal::begin(&path, fingerprint, &kept, twice)?;
        let mut done = Done::default();
        kept.into_iter().for_each(|record| done.add(record));
        let resumed = done.packs() as u64;
        Ok((journal, done, resumed))
    }

    fn report_dropped(&self, lines: usize) {
        if lines > 0 {
            let lines = match lines {
                1 => "1 line".to_owned(),
                n => format!("{n} lines"),
            };
            self.job.progress.note(&format!(
                "{JOURNAL}: {lines} cut off, damaged or of an older version; what they said is \
                 done again"
            ));
        }
    }

    /// Re-reads every pack that a journal calls finished. One that is not what it says is done
    /// again.
    fn check_finished(
        &self,
        output: &OutputFolder,
        records: &[Record],
    ) -> Result<Vec<Record>, PackWriterError> {
        let bytes = records.iter().map(finished_bytes).sum();
        if bytes > 0 {
            self.job.progress.start("checking finished packs", bytes);
        }
        let damaged = Mutex::new(BTreeSet::new());
        run_tasks(
            self.job.threads,
            records,
            || Ok(vec![0; READ_BYTES]),
            |buffer, record| self.check_record(output, record, buffer, &damaged),
        )?;
        if bytes > 0 {
            self.job.progress.finish();
        }
        let damaged = into_inner(damaged);
        let mut kept = records.to_vec();
        kept.retain(|record| match record {
            Record::Begun => false,
            Record::Pack { path, .. } => !damaged.contains(path),
            Record::Shard { .. } | Record::Removed { .. } | Record::Passed { .. } => true,
        });
        Ok(kept)
    }

    /// Adds the pack of a record to `damaged` where it is not what the record says.
    fn check_record(
        &self,
        output: &OutputFolder,
        record: &Record,
        buffer: &mut [u8],
        damaged: &Mutex<BTreeSet<String>>,
    ) -> Result<(), PackWriterError> {
        let Record::Pack { path, written, .. } = record else {
            return Ok(());
        };
        let is_intact = match self.elsewhere {
            Some(elsewhere) => elsewhere.has(path, written.length),
            None => self.is_intact(output.path(), path, written, buffer)?,
        };
        if !is_intact {
            self.job.progress.note(&format!(
                "{path} is not what the journal says; writing it again"
            ));
            lock(damaged).insert(path.clone());
        }
        Ok(())
    }

    fn is_intact(
        &self,
        out: &Path,
        path: &str,
        written: &WrittenPack,
        buffer: &mut [u8],
    ) -> Result<bool, PackWriterError> {
        // one that cannot be opened is written again, and writing it says why it cannot
        let Ok(input) = InputFile::open_beneath(out, path) else {
            return Ok(false);
        };
        if input.length() != written.length {
            return Ok(false);
        }
        let mut sha256 = Sha256Hasher::default();
        let read = input.for_each_piece(0..written.length, buffer, self.job.stop, |piece| {
            sha256.update(piece);
            self.job.progress.advance(piece.len() as u64);
            Ok::<_, FormatError>(())
        });
        match read {
            Ok(()) => Ok(sha256.finish() == written.sha256),
            // what the drive cannot give back is as good as not written
            Err(FormatError::Io { .. } | FormatError::Changed { .. }) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

/// Bytes of the pack that a record calls finished.
fn finished_bytes(record: &Record) -> u64 {
    match record {
        Record::Pack { written, .. } => written.length,
        Record::Begun | Record::Shard { .. } | Record::Removed { .. } | Record::Passed { .. } => 0,
    }
}

/// Whether a folder holds a finished pack, or a finished part of one.
fn is_finished(out: &Path) -> bool {
    out.join(MANIFEST).exists() || out.join(PART).exists()
}

/// Refuses a folder that holds anything but a pack, finished or not; `listed` files may be there.
///
/// # Errors
/// `ForeignEntry`, `ForeignFile`, `NotAPack` with the first thing that does not belong there; `Io`.
pub(crate) fn check_ours(out: &Path, listed: &BTreeSet<String>) -> Result<(), PackWriterError> {
    let folder = || out.to_owned();
    for entry in fs::read_dir(out).map_err(FormatError::io("list", out))? {
        let name = entry.map_err(FormatError::io("list", out))?.file_name();
        let name = name.to_string_lossy().into_owned();
        if ![MANIFEST, PART, SUMS, SIGNATURE, PACKS, SOURCE, PARTIAL].contains(&name.as_str()) {
            let folder = folder();
            return Err(PackWriterError::ForeignEntry { folder, name });
        }
    }
    // what the run that left this, and the pack that was there before, wrote
    let read = Journal::read(&out.join(PARTIAL).join(JOURNAL))?;
    // a run that was killed at once has left nothing in it
    let begun = fs::symlink_metadata(out.join(PARTIAL)).is_ok_and(|m| m.is_dir());
    let mut listed = listed.clone();
    listed.extend(read.records.into_iter().filter_map(|r| match r {
        Record::Pack { path, .. } => Some(path),
        Record::Begun | Record::Shard { .. } | Record::Removed { .. } | Record::Passed { .. } => {
            None
        }
    }));
    let opened = match OpenOptions::new().check_sums(false).open(out) {
        Err(PackError::NotAPack {
            why: NotAPack::Part,
            ..
        }) => Pack::open_part(out).map(|(pack, _)| pack),
        opened => opened,
    };
    match opened {
        Ok(pack) => listed.extend(pack.manifest().files().iter().map(|f| f.0.to_owned())),
        Err(PackError::Format(e)) => return Err(OutputError::from(e).into()),
        Err(_) if begun => {}
        Err(source) => {
            let folder = folder();
            return Err(PackWriterError::NotAPack { folder, source });
        }
    }
    match files_below(out, &[PACKS, SOURCE])?
        .into_iter()
        .find(|file| !listed.contains(file))
    {
        Some(file) => Err(PackWriterError::ForeignFile {
            folder: folder(),
            file,
        }),
        None => Ok(()),
    }
}

/// Removes a pack and begins in its place, where the new one will fit. The lock is held from before
/// the removal on.
fn replace_in_place(
    out: &Path,
    check_space: &dyn Fn(u64) -> Result<(), OutputError>,
) -> Result<OutputFolder, PackWriterError> {
    let old = files_below(out, &[PACKS, SOURCE])?;
    let mut freed = 0;
    for file in &old {
        let path = out.join(file);
        freed += fs::symlink_metadata(&path)
            .map_err(FormatError::io("inspect", &path))?
            .len();
    }
    check_space(freed)?;
    let output = OutputFolder::open(out)?;
    // the manifest first, so that what is left does not look complete
    // the signature is of what was there
    for name in [MANIFEST, PART, SUMS, SIGNATURE, PACKS, SOURCE] {
        output.remove(name)?;
    }
    output.remove(&format!("{PARTIAL}/{JOURNAL}"))?;
    Ok(output)
}

/// The system's own reason: a walk's error repeats it.
fn not_listed(folder: &Path, error: walkdir::Error) -> PackWriterError {
    let path = error.path().unwrap_or(folder).to_owned();
    let source = error
        .into_io_error()
        .unwrap_or_else(|| std::io::Error::other("a link leads back to a folder above it"));
    PackWriterError::List {
        folder: path,
        source,
    }
}

fn files_below(root: &Path, folders: &[&str]) -> Result<Vec<String>, PackWriterError> {
    let mut files = Vec::new();
    for folder in folders.iter().map(|f| root.join(f)) {
        match entry_kind(&folder)? {
            None => continue,
            // the walk would follow it
            Some(EntryKind::Link) => return Err(OutputError::Link { path: folder }.into()),
            Some(_) => {}
        }
        for entry in walkdir::WalkDir::new(&folder) {
            let entry = entry.map_err(|e| not_listed(&folder, e))?;
            if entry.file_type().is_symlink() {
                let path = entry.into_path();
                return Err(OutputError::Link { path }.into());
            }
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
pub(crate) fn write_documents(
    output: &OutputFolder,
    manifest: &Manifest,
) -> Result<Sha256, PackWriterError> {
    let (documents, sha256) = documents(manifest)?;
    for (name, bytes) in documents {
        output.write_small(name, |to| to.write_all(&bytes))?;
    }
    Ok(sha256)
}

/// A document of a pack: its path and its bytes.
pub(crate) type Document = (&'static str, Vec<u8>);

/// `SHA256SUMS`, if it is wanted, and the manifest, in the order in which they are written; and the
/// digest of the manifest.
///
/// # Errors
/// `Io`.
pub(crate) fn documents(manifest: &Manifest) -> Result<(Vec<Document>, Sha256), PackWriterError> {
    let mut json = Vec::new();
    manifest
        .write(&mut json)
        .map_err(FormatError::io("write", MANIFEST))?;
    let sha256 = Sha256::of(&json);
    let sums = manifest.options.sums.then(|| manifest.sums_text(sha256));
    let sums = sums.map(|text| (SUMS, text.into_bytes()));
    let documents = sums.into_iter().chain([(MANIFEST, json)]).collect();
    Ok((documents, sha256))
}

/// Ends a run whose files went elsewhere: after success nothing of it is left here.
///
/// # Errors
/// That of the run.
pub(crate) fn close_empty<T, E>(output: OutputFolder, done: Result<T, E>) -> Result<T, E> {
    let path = output.path().to_owned();
    if done.is_ok() {
        output.abandon(&[PACKS, SOURCE]);
        let _ = fs::remove_dir(path); // where an earlier run made it
    }
    done
}

/// The same for a part: `SHA256SUMS`, then `part.json`.
///
/// # Errors
/// `Io`.
pub(crate) fn write_part_documents(
    output: &OutputFolder,
    part: &PartManifest,
) -> Result<Sha256, PackWriterError> {
    let mut json = Vec::new();
    part.write(&mut json)
        .map_err(FormatError::io("write", PART))?;
    let sha256 = Sha256::of(&json);
    let text = part.sums_text(sha256);
    output.write_small(SUMS, |to| to.write_all(text.as_bytes()))?;
    output.write_small(PART, |to| to.write_all(&json))?;
    Ok(sha256)
}

/// Ends a run: after success nothing unfinished is left, after an error what `leave` says.
///
/// # Errors
/// That of the run, or `Io`.
pub(crate) fn close<T, E: From<OutputError>>(
    output: OutputFolder,
    done: Result<T, E>,
    leave: impl FnOnce(&E) -> Leave,
) -> Result<T, E> {
    match done.as_ref().map_err(leave) {
        Ok(_) => output.finish()?,
        Err(Leave::Nothing) => output.abandon(&[PACKS, SOURCE, SUMS]),
        Err(Leave::Before) => output.abandon_if_new(),
        Err(Leave::Unfinished) => {}
    }
    done
}

/// The summary of a run that wrote, or found, this manifest.
pub(crate) fn summarise(
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
        removed_shards: 0,
        part: None,
        joined_parts: None,
        packed_from: None,
        uploaded_to: None,
        warnings,
    }
}
