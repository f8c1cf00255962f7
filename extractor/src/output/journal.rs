//! What an unfinished `pack` has finished so far, so that `--resume` need not do it again.
//!
//! One JSON line each: the run that wrote it, what is finished, and a checksum of both. A line that
//! was cut off or damaged does not count, and what it said is done again; lines before and behind it
//! count.
//!
//! A run that removes its source as it goes cannot do anything again, so it keeps the journal twice:
//! a line that is whole in one of them counts.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use segpack_formats::FormatError;
use segpack_formats::digest::{Blake3, Sha256};
use segpack_formats::io::{InputFile, create_beneath, rename_beneath, sync_data, sync_folder};
use segpack_formats::pack::WrittenPack;
use segpack_manifests::documents::{Finding, Midstate};
use segpack_manifests::folder::PARTIAL;
use serde::{Deserialize, Serialize};

use super::OutputError;
use crate::work::lock;

/// Name of the journal in `.partial`.
pub(crate) const JOURNAL: &str = "journal.jsonl";

/// Name of the second journal, of a run that removes its source.
const SECOND: &str = "consumed.jsonl";

/// What a line of the journal says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    /// The run has begun.
    Begun,
    /// A pack is written and has its name.
    Pack {
        /// Its path.
        path: String,
        /// What was written.
        written: WrittenPack,
        /// Remarks on its values.
        warnings: Vec<Finding>,
    },
    /// A source shard was digested.
    Shard {
        /// Its path in the checkpoint.
        path: String,
        /// What its bytes are.
        digests: ShardDigests,
    },
    /// A source shard is about to be removed: all its bytes are in finished packs, or kept.
    Removed {
        /// Its path in the checkpoint.
        path: String,
        /// Bytes that it has.
        length: u64,
        /// Digest of its header, which is kept in the pack folder.
        header: Sha256,
        /// What the hub says of it.
        hub_sha256: Option<Sha256>,
        /// What identified it.
        state: String,
        /// Where those of its bytes are that are in no finished pack yet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kept: Option<KeptRanges>,
    },
    /// The copy of a shard of a server is not needed any more: all its bytes are in finished packs,
    /// or kept. It can be fetched again.
    Passed {
        /// Its path in the checkpoint.
        path: String,
        /// Where those of its bytes are that are in no finished pack yet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kept: Option<KeptRanges>,
    },
}

/// Ranges of a source shard that were copied into a file, one after another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptRanges {
    /// The file, relative to the output folder.
    pub file: String,
    /// First and one-past-last byte of each in the shard.
    pub ranges: Vec<(u64, u64)>,
}

impl Record {
    /// What it is of. A run says one thing of each.
    fn subject(&self) -> (u8, &str) {
        match self {
            Self::Begun => (0, ""),
            Self::Pack { path, .. } => (1, path),
            Self::Shard { path, .. } => (2, path),
            Self::Removed { path, .. } => (3, path),
            Self::Passed { path, .. } => (4, path),
        }
    }
}

/// Digests of a source shard, all from one read of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardDigests {
    /// Of all its bytes.
    pub sha256: Sha256,
    /// States on the way to it.
    pub midstates: Vec<Midstate>,
    /// Of those tensors that the plan takes from it, in the order of their bytes; tensors without
    /// bytes are left out.
    pub tensors: Vec<Sha256>,
}

/// What an earlier run wrote.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct JournalRead {
    /// The fingerprint of the run: of the plan, the options and the state of the source. `None`
    /// where no line is whole.
    pub run: Option<Sha256>,
    /// What is finished.
    pub records: Vec<Record>,
    /// Lines that do not count: cut off, damaged, or of an older version of the journal.
    pub dropped: usize,
}

/// A line, without its checksum.
#[derive(Deserialize)]
struct Line {
    run: Sha256,
    record: Record,
}

/// What separates a line's content from its checksum: the BLAKE3 of all before it.
const CHECKSUM: &[u8] = b",\"blake3\":\"";
/// What follows the checksum.
const LINE_END: &[u8] = b"\"}\n";

/// The line that says this.
fn encode(run: Sha256, record: &Record) -> io::Result<Vec<u8>> {
    let record = serde_json::to_string(record)?;
    let mut line = format!("{{\"run\":\"{run}\",\"record\":{record}").into_bytes();
    let checksum = Blake3::of(&line);
    line.extend_from_slice(CHECKSUM);
    line.extend_from_slice(checksum.to_string().as_bytes());
    line.extend_from_slice(LINE_END);
    Ok(line)
}

/// What a line says; `None` where it is not as it was written.
fn decode(line: &[u8]) -> Option<Line> {
    let rest = line.strip_suffix(LINE_END)?;
    let (rest, checksum) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
    let content = rest.strip_suffix(CHECKSUM)?;
    if Blake3::of(content).to_string().as_bytes() != checksum {
        return None;
    }
    let mut json = content.to_vec();
    json.push(b'}');
    serde_json::from_slice(&json).ok()
}

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    /// One, or two with the same lines, and their paths.
    files: Mutex<Vec<(File, PathBuf)>>,
    run: Sha256,
}

impl Journal {
    /// Reads what an earlier run wrote; nothing where there is no journal.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn read(path: &Path) -> Result<JournalRead, OutputError> {
        let mut read = Self::read_one(path)?;
        let second = Self::read_one(&path.with_file_name(SECOND))?;
        if second.run.is_none() || read.run.is_some_and(|run| second.run != Some(run)) {
            return Ok(read);
        }
        read.run = second.run;
        // each may have lines that the other has lost
        read.dropped = read.dropped.min(second.dropped);
        for record in second.records {
            let subject = record.subject();
            if !read.records.iter().any(|r| r.subject() == subject) {
                read.records.push(record);
            }
        }
        Ok(read)
    }

    /// Whether an unfinished run in a folder has removed some of its source, so that what it wrote
    /// is the only copy.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn is_only_copy(out: &Path) -> Result<bool, OutputError> {
        let read = Self::read(&out.join(PARTIAL).join(JOURNAL))?;
        let mut records = read.records.iter();
        Ok(records.any(|r| matches!(r, Record::Removed { .. })))
    }

    fn read_one(path: &Path) -> Result<JournalRead, OutputError> {
        let (folder, name) = place(path);
        let input = match InputFile::open_beneath(folder, name) {
            // a file in the place of the folder is for those to refuse who write there
            Err(FormatError::Io { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(JournalRead::default());
            }
            input => input?,
        };
        let text = input.read_range(0..input.length())?;
        let mut read = JournalRead::default();
        for line in text.split_inclusive(|b| *b == b'\n').map(decode) {
            match line {
                Some(line) if read.run.is_none_or(|run| run == line.run) => {
                    read.run = Some(line.run);
                    read.records.push(line.record);
                }
                _ => read.dropped += 1,
            }
        }
        Ok(read)
    }

    /// Starts the journal of a run, which holds these records; where `twice`, it is kept twice.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn begin(
        path: &Path,
        run: Sha256,
        records: &[Record],
        twice: bool,
    ) -> Result<Self, OutputError> {
        let second = path.with_file_name(SECOND);
        let names = [path, &second].into_iter().take(1 + usize::from(twice));
        let mut files = Vec::new();
        for path in names {
            let file = write_new(path, run, records)?;
            files.push((file, path.to_owned()));
        }
        Ok(Self {
            files: Mutex::new(files),
            run,
        })
    }

    /// Adds a record and makes it durable.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn add(&self, record: &Record) -> Result<(), OutputError> {
        for (file, path) in &mut *lock(&self.files) {
            write_line(file, path, self.run, record)?;
            sync_data(file, path)?;
        }
        Ok(())
    }
}

/// Writes a journal in the place of an older one, which counts until the new one is whole.
fn write_new(path: &Path, run: Sha256, records: &[Record]) -> Result<File, OutputError> {
    let new = path.with_extension("new");
    let (folder, name) = place(path);
    let (_, new_name) = place(&new);
    let mut file = create_beneath(folder, new_name)?;
    for record in records {
        write_line(&mut file, &new, run, record)?;
    }
    sync_data(&file, &new)?;
    rename_beneath((folder, new_name), (folder, name))?;
    sync_folder(folder)?;
    Ok(file)
}

fn write_line(
    file: &mut File,
    path: &Path,
    run: Sha256,
    record: &Record,
) -> Result<(), OutputError> {
    let line = encode(run, record).map_err(FormatError::io("write", path))?;
    file.write_all(&line)
        .map_err(FormatError::io("write", path))?;
    Ok(())
}

/// The folder and the name of a journal.
fn place(path: &Path) -> (&Path, &str) {
    let name = path.file_name().and_then(std::ffi::OsStr::to_str);
    (
        path.parent().unwrap_or(Path::new(".")),
        name.unwrap_or(JOURNAL),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Sha256 = Sha256([9; 32]);

    fn record(n: u8) -> Record {
        Record::Shard {
            path: format!("shard {n}"),
            digests: ShardDigests {
                sha256: Sha256([n; 32]),
                midstates: Vec::new(),
                tensors: vec![Sha256([n + 1; 32])],
            },
        }
    }

    /// A journal of three records, its path and its bytes.
    fn three() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(JOURNAL);
        let journal = Journal::begin(&path, RUN, &[Record::Begun, record(1)], false).unwrap();
        journal.add(&record(2)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        (folder, path, whole)
    }

    fn read(path: &Path, bytes: &[u8]) -> JournalRead {
        std::fs::write(path, bytes).unwrap();
        Journal::read(path).unwrap()
    }

    #[test]
    fn a_line_that_was_cut_off_does_not_count() {
        let (_folder, path, whole) = three();
        let all = read(&path, &whole);
        assert_eq!(all.run, Some(RUN));
        assert_eq!(all.records, [Record::Begun, record(1), record(2)]);
        let before = whole[..whole.len() - 1].iter().rposition(|b| *b == b'\n');
        let last = before.unwrap() + 1;
        for cut in last..whole.len() {
            let read = read(&path, &whole[..cut]);
            assert_eq!(read.records, [Record::Begun, record(1)], "cut at {cut}");
            assert_eq!(read.dropped, usize::from(cut > last));
        }
        let none = Journal::read(&path.with_file_name("none")).unwrap();
        assert_eq!(none, JournalRead::default());
    }

    #[test]
    fn a_damaged_line_does_not_count_and_the_others_do() {
        let (_folder, path, whole) = three();
        let all = [Record::Begun, record(1), record(2)];
        for at in 0..whole.len() {
            for bit in [0, 5] {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                let read = read(&path, &bytes);
                let line = whole[..at].iter().filter(|b| **b == b'\n').count();
                // a line break that is gone takes the line behind it along
                let lost = if whole[at] == b'\n' { 2 } else { 1 };
                let mut wanted = all.to_vec();
                wanted.drain(line..(line + lost).min(all.len()));
                assert_eq!(read.records, wanted, "bit {bit} of byte {at}");
                assert!(read.dropped > 0);
            }
        }
    }

    #[test]
    fn a_journal_without_checksums_or_with_lines_of_another_run_is_not_believed() {
        let (_folder, path, whole) = three();
        let old = "{\"begun\":{\"fingerprint\":\"00\"}}\n{\"shard\":{\"path\":\"a\"}}\n";
        let found = read(&path, old.as_bytes());
        assert_eq!(
            (found.run, found.records.len(), found.dropped),
            (None, 0, 2)
        );
        let other = encode(Sha256([8; 32]), &record(3)).unwrap();
        let found = read(&path, &[whole, other].concat());
        assert_eq!((found.records.len(), found.dropped), (3, 1));
    }
}
