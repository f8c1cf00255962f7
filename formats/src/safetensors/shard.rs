//! A shard file: its header and positioned reads of its tensors.

use std::path::Path;

use super::header::{HeaderError, LENGTH_FIELD, ShardHeader, TensorEntry};
use crate::io::InputFile;
use crate::{FormatError, Result};

/// An open shard whose header has been checked.
#[derive(Debug)]
pub struct Shard {
    /// The file.
    pub input: InputFile,
    /// Its tensors.
    pub header: ShardHeader,
}

impl Shard {
    /// Opens a shard and reads its header, nothing else.
    ///
    /// # Errors
    /// `Io`, or `Malformed` with the reason; a git-lfs pointer or a web page in a shard's place is
    /// called that.
    pub fn open(path: &Path) -> Result<Self> {
        let input = InputFile::open(path)?;
        let header = read_header(&input)?;
        Ok(Self { input, header })
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.header.tensors.iter().find(|t| t.name == name)
    }
}

fn read_header(input: &InputFile) -> Result<ShardHeader> {
    let path = input.path();
    let first = input.read_range(0..input.length().min(64))?;
    let refuse = |e: HeaderError| match impostor(&first) {
        Some(what) => FormatError::malformed(path, what),
        None => FormatError::malformed(path, e.to_string()),
    };
    let length = ShardHeader::parse_length(&first, input.length()).map_err(&refuse)?;
    let json = input.read_range(LENGTH_FIELD..LENGTH_FIELD + length)?;
    ShardHeader::parse(&json, input.length()).map_err(&refuse)
}

/// What is commonly found where a shard should be.
fn impostor(first: &[u8]) -> Option<&'static str> {
    let text = String::from_utf8_lossy(first)
        .trim_start()
        .to_ascii_lowercase();
    if text.starts_with("version https://git-lfs") {
        return Some("is a git-lfs pointer, not the weights; fetch them with `git lfs pull`");
    }
    if text.starts_with("<!doctype") || text.starts_with("<html") {
        return Some("is a web page, not the weights; download the file again");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        match Shard::open(&path) {
            Ok(shard) => format!("{:?}", shard.header),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn impostors_are_called_by_name() {
        assert!(
            open(b"version https://git-lfs.github.com/spec/v1\noid sha256:00")
                .contains("git-lfs pointer")
        );
        assert!(open(b"<!DOCTYPE html><html><body>404</body></html>").contains("web page"));
        assert!(open(b"").contains("has 0 bytes"));
    }

    #[test]
    fn a_missing_file_keeps_its_cause_out_of_the_message() {
        use std::error::Error;
        let error = Shard::open(Path::new("/no/such.safetensors")).unwrap_err();
        assert_eq!(error.to_string(), "cannot open /no/such.safetensors");
        assert!(error.source().unwrap().to_string().contains("No such file"));
    }
}
