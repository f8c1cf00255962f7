//! What an unfinished `pack` has finished so far, one JSON line each, so that `--resume` need not
//! do it again.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256;
use segpack_formats::pack::WrittenPack;
use segpack_manifests::documents::Finding;
use serde::{Deserialize, Serialize};

use super::OutputError;

/// Name of the journal in `.partial`.
pub(crate) const JOURNAL: &str = "journal.jsonl";

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    /// The first line: digest of the plan, the options and the state of the source.
    Begun {
        /// That digest.
        fingerprint: Sha256,
    },
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
        /// Its digest.
        sha256: Sha256,
    },
}

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    file: Mutex<File>,
    path: PathBuf,
}

impl Journal {
    /// Reads the records of an earlier run; none where there is no journal. A line that was cut off
    /// ends them: what it would have said is done again.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn read(path: &Path) -> Result<Vec<Record>, OutputError> {
        let text = match std::fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text.map_err(FormatError::io("read", path))?,
        };
        let lines = text
            .split_inclusive(|b| *b == b'\n')
            .filter(|line| line.ends_with(b"\n"));
        Ok(lines
            .map_while(|line| serde_json::from_slice(line).ok())
            .collect())
    }

    /// Starts a journal that holds these records.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn begin(path: &Path, records: &[Record]) -> Result<Self, OutputError> {
        let new = path.with_extension("new");
        let file = File::create(&new).map_err(FormatError::io("create", &new))?;
        let journal = Self {
            file: Mutex::new(file),
            path: path.to_owned(),
        };
        records.iter().try_for_each(|record| journal.add(record))?;
        // the old journal counts until the new one is whole
        std::fs::rename(&new, path).map_err(FormatError::io("rename", &new))?;
        Ok(journal)
    }

    /// Adds a record and makes it durable.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn add(&self, record: &Record) -> Result<(), OutputError> {
        let mut line = serde_json::to_vec(record)
            .map_err(|e| FormatError::io("write", &self.path)(e.into()))?;
        line.push(b'\n');
        let mut file = self
            .file
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        file.write_all(&line)
            .and_then(|()| file.sync_data())
            .map_err(FormatError::io("write", &self.path))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_off_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(JOURNAL);
        let record = |n: u8| Record::Shard {
            path: format!("shard {n}"),
            sha256: Sha256([n; 32]),
        };
        let journal = Journal::begin(&path, &[record(1)]).unwrap();
        journal.add(&record(2)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(Journal::read(&path).unwrap(), [record(1), record(2)]);
        let first = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
        for cut in first..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(Journal::read(&path).unwrap(), [record(1)], "cut at {cut}");
        }
        let none = Journal::read(&folder.path().join("none")).unwrap();
        assert_eq!(none, []);
    }
}
