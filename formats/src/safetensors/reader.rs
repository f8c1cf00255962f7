//! A shard file: its header and positioned reads of its tensors.

use std::path::Path;
use std::sync::Arc;

use super::error::HeaderError;
use super::header::{LENGTH_FIELD, ShardHeader, TensorInfo};
use crate::io::{InputFile, ReadAt};
use crate::{FormatError, Result};

/// An open shard whose header has been checked.
#[derive(Debug)]
pub struct Shard {
    /// Where its bytes come from.
    pub input: Arc<dyn ReadAt>,
    /// Its tensors.
    pub header: ShardHeader,
}

impl Shard {
    /// Opens a local file as [`open_from`](Self::open_from) does.
    ///
    /// # Errors
    /// As [`InputFile::open`] and [`open_from`](Self::open_from).
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_from(Arc::new(InputFile::open(path)?))
    }

    /// Reads the header, nothing else.
    ///
    /// # Errors
    /// `Io`, `Changed`, or `Malformed` with the reason; a git-lfs pointer or a web page
    /// in place of a shard is called that.
    pub fn open_from(input: Arc<dyn ReadAt>) -> Result<Self> {
        let header = read_header(&*input)?;
        Ok(Self { input, header })
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensors.iter().find(|t| t.name == name)
    }
}

fn read_header(input: &dyn ReadAt) -> Result<ShardHeader> {
    let first = input.read_range(0..input.length().min(64))?;
    let parsed = parse_header(input, &first)?;
    parsed.map_err(|source| match impostor(&first) {
        // a better reason, where the file is something else altogether
        Some(what) => FormatError::malformed(input.name(), what),
        None => FormatError::Header {
            path: input.name().to_owned(),
            source,
        },
    })
}

/// Reads and parses the header; `first` is the file's first bytes.
fn parse_header(input: &dyn ReadAt, first: &[u8]) -> Result<Result<ShardHeader, HeaderError>> {
    let length = match ShardHeader::parse_length(first, input.length()) {
        Ok(length) => length,
        Err(e) => return Ok(Err(e)),
    };
    let json = input.read_range(LENGTH_FIELD..LENGTH_FIELD + length)?;
    Ok(ShardHeader::parse(&json, input.length()))
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
    use std::ops::Range;

    use super::*;
    use crate::error::chain;
    use crate::io::{MemoryFile, Stamp};

    fn open(bytes: &[u8]) -> String {
        match Shard::open_from(Arc::new(MemoryFile::new(
            "model.safetensors",
            bytes.to_vec(),
        ))) {
            Ok(shard) => format!("{:?}", shard.header),
            Err(e) => chain(&e),
        }
    }

    /// One tensor, `t`, of four bytes.
    fn shard_bytes() -> Vec<u8> {
        let json = br#"{"t":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
        [&(json.len() as u64).to_le_bytes(), &json[..], &[1, 2, 3, 4]].concat()
    }

    /// Bytes behind an address that says they have another length.
    #[derive(Debug)]
    struct Liar {
        bytes: MemoryFile,
        length: u64,
    }

    impl ReadAt for Liar {
        fn name(&self) -> &Path {
            Path::new("https://example.org/model.safetensors")
        }

        fn stamp(&self) -> Stamp {
            Stamp {
                tag: Some("\"v1\"".to_owned()),
                ..Stamp::of_length(self.length)
            }
        }

        fn read_at(&self, to: &mut [u8], offset: u64) -> Result<()> {
            let end = offset + to.len() as u64;
            let cut = |_| FormatError::ends_early(self.name(), end, self.length);
            self.bytes.read_at(to, offset).map_err(cut)
        }

        fn check_unchanged(&self) -> Result<()> {
            let what = "its entity tag is \"v2\" now, it was \"v1\"";
            Err(FormatError::changed(self.name(), what))
        }
    }

    fn liar(length: impl Fn(u64) -> u64) -> Arc<Liar> {
        let bytes = shard_bytes();
        let length = length(bytes.len() as u64);
        Arc::new(Liar {
            bytes: MemoryFile::new("unseen", bytes),
            length,
        })
    }

    #[test]
    fn a_shard_is_read_from_wherever_its_bytes_are() {
        let shard = Shard::open_from(Arc::new(MemoryFile::new("m", shard_bytes()))).unwrap();
        let t = shard.tensor("t").unwrap();
        let range: Range<u64> = t.offset..t.offset + t.length;
        assert_eq!(shard.input.read_range(range.clone()).unwrap(), [1, 2, 3, 4]);
        let mut seen = Vec::new();
        let (mut buffer, cancel) = ([0; 3], crate::io::CancelToken::default());
        shard
            .input
            .for_each_piece(range, &mut buffer, &cancel, |piece| {
                seen.push(piece.to_vec());
                Ok::<_, FormatError>(())
            })
            .unwrap();
        assert_eq!(seen, [vec![1, 2, 3], vec![4]]);
    }

    #[test]
    fn a_source_that_lies_about_its_length_is_an_error_that_names_it() {
        let shorter = chain(&Shard::open_from(liar(|length| length - 1)).unwrap_err());
        assert!(
            shorter.contains("https://example.org/model.safetensors: "),
            "{shorter}"
        );
        assert!(
            shorter.contains("the file has only 3: it is cut off"),
            "{shorter}"
        );
        let longer = chain(&Shard::open_from(liar(|length| length + 9)).unwrap_err());
        assert!(
            longer.contains("9 bytes follow the last tensor"),
            "{longer}"
        );
    }

    #[test]
    fn a_source_that_shrinks_is_an_error_at_the_read_that_misses_bytes() {
        let whole = shard_bytes();
        let length = whole.len() as u64;
        // the header is still there, the last byte of the data is not
        let cut = MemoryFile::new("unseen", whole[..whole.len() - 1].to_vec());
        let shard = Shard::open_from(Arc::new(Liar { bytes: cut, length })).unwrap();
        let t = shard.tensor("t").unwrap();
        let error = shard
            .input
            .read_range(t.offset..t.offset + 4)
            .unwrap_err()
            .to_string();
        let wanted = format!("ends before byte {length}; it had {length} bytes");
        assert!(error.contains(&wanted), "{error}");
        let error = shard.input.check_unchanged().unwrap_err().to_string();
        assert!(error.contains("entity tag is \"v2\" now"), "{error}");
        let beyond = shard
            .input
            .read_range(0..length + 1)
            .unwrap_err()
            .to_string();
        assert!(
            beyond.contains(&format!("ends before byte {}", length + 1)),
            "{beyond}"
        );
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
