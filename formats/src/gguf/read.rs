//! Reading a header that nobody vouches for.

use std::io::{self, Read};

use super::cursor::Cursor;
use super::error::{GgufError, wrong};
use super::header::{
    Header, MAGIC, TensorInfo, TensorType, VERSION, alignment, check_keys, check_names,
    checked_length, data_end, padded_end,
};
use super::value::{Field, Value};
use crate::io::{ReadAt, to_usize};
use crate::{FormatError, Result as FormatResult};

/// Bytes of the shortest metadata entry: a key of one byte, a type, a value of one byte.
const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Bytes of the shortest tensor entry: a name of one byte, one side, type and offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// Reads and checks the header of a GGUF file.
///
/// # Errors
/// `Malformed` names the key, tensor or byte; `Io` and `Changed` as reading does.
pub fn read_header(input: &dyn ReadAt) -> FormatResult<Header> {
    let mut file = FileReader {
        input,
        at: 0,
        failed: None,
    };
    let header = Header::read(
        &mut io::BufReader::with_capacity(64 << 10, &mut file),
        input.length(),
    );
    match (file.failed, header) {
        (Some(error), _) => Err(error),
        (None, header) => header.map_err(|source| FormatError::Gguf {
            path: input.name().to_owned(),
            source,
        }),
    }
}

/// Keeps the typed error that `io::Read` cannot return.
struct FileReader<'a> {
    input: &'a dyn ReadAt,
    at: u64,
    failed: Option<FormatError>,
}

impl Read for FileReader<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let left = to_usize(self.input.length().saturating_sub(self.at));
        let piece = to.len().min(left);
        self.input.read_at(&mut to[..piece], self.at).map_err(|e| {
            self.failed = Some(e);
            io::Error::other("the file could not be read")
        })?;
        self.at += piece as u64;
        Ok(piece)
    }
}

impl Header {
    /// Parses a header from the file's first bytes and checks it against the length of the whole
    /// file.
    ///
    /// # Errors
    /// Everything that the format forbids, named: magic, version, counts and lengths that the file
    /// cannot hold, keys and names given twice, types that segpack does not know, shapes without a
    /// length, offsets with holes, a file that ends before its last tensor or goes on behind its
    /// padding.
    pub fn read(from: &mut dyn Read, file_length: u64) -> Result<Self, GgufError> {
        let mut cursor = Cursor::new(from, file_length);
        let (tensors, entries) = cursor.counts()?;
        let metadata: Vec<_> = (0..entries)
            .map(|n| cursor.entry(n))
            .collect::<Result<_, _>>()?;
        check_keys(&metadata)?;
        let alignment = alignment(&metadata)?;
        let tensors: Vec<_> = (0..tensors)
            .map(|n| cursor.tensor(n))
            .collect::<Result<_, _>>()?;
        check_names(&tensors)?;
        check_offsets(&tensors, alignment)?;
        let data_start = cursor.at().next_multiple_of(alignment);
        let padding = cursor.bytes(data_start - cursor.at())?;
        if padding.iter().any(|b| *b != 0) {
            return wrong(format!("the padding before byte {data_start} is not zero"));
        }
        let header = Self {
            metadata,
            tensors,
            data_start,
            alignment,
        };
        check_length(&header, file_length)?;
        Ok(header)
    }
}

impl Cursor<'_> {
    fn counts(&mut self) -> Result<(u64, u64), GgufError> {
        let magic: [u8; 4] = self.take()?;
        if magic != MAGIC {
            let seen = String::from_utf8_lossy(&magic).into_owned();
            return wrong(format!(
                "begins with {seen:?}; a GGUF file begins with \"GGUF\""
            ));
        }
        let version = u32::read(self)?;
        if version != VERSION {
            return wrong(format!(
                "is GGUF version {version}; this build reads version {VERSION}"
            ));
        }
        let (tensors, entries) = (u64::read(self)?, u64::read(self)?);
        let possible = |count: u64, min: u64| count <= self.remaining() / min;
        if !possible(tensors, MIN_TENSOR_BYTES) || !possible(entries, MIN_ENTRY_BYTES) {
            let left = self.remaining();
            return wrong(format!(
                "says {tensors} tensors and {entries} metadata entries (bytes 8 and 16), more than the {left} bytes behind can list"
            ));
        }
        Ok((tensors, entries))
    }

    fn entry(&mut self, number: u64) -> Result<(String, Value), GgufError> {
        let key = String::read(self).map_err(|e| GgufError::Key {
            number,
            source: Box::new(e),
        })?;
        let kind = u32::read(self)?;
        match Value::read(kind, self) {
            Ok(value) => Ok((key, value)),
            Err(e) => Err(GgufError::Value {
                key,
                source: Box::new(e),
            }),
        }
    }

    fn tensor(&mut self, number: u64) -> Result<TensorInfo, GgufError> {
        let name = String::read(self).map_err(|e| GgufError::Name {
            number,
            source: Box::new(e),
        })?;
        let dimensions = u32::read(self)?;
        if dimensions > 4 {
            return wrong(format!(
                "tensor {name:?} has {dimensions} dimensions, wanted 1 to 4"
            ));
        }
        let mut shape: Vec<u64> = (0..dimensions)
            .map(|_| u64::read(self))
            .collect::<Result<_, _>>()?;
        shape.reverse();
        let kind = u32::read(self)?;
        let Some(kind) = TensorType::of_number(kind) else {
            return wrong(format!(
                "tensor {name:?} has type {kind}; this build reads F32 (0), F16 (1), Q8_0 (8) and BF16 (30)"
            ));
        };
        let length = checked_length(&name, kind, &shape)?;
        Ok(TensorInfo {
            name,
            kind,
            shape,
            offset: u64::read(self)?,
            length,
        })
    }
}

fn check_offsets(tensors: &[TensorInfo], alignment: u64) -> Result<(), GgufError> {
    let mut wanted = 0;
    for TensorInfo {
        name,
        offset,
        length,
        ..
    } in tensors
    {
        if *offset != wanted {
            return wrong(format!(
                "tensor {name:?} is at offset {offset} of the data, wanted {wanted}"
            ));
        }
        wanted = padded_end(*offset, *length, alignment)?;
    }
    Ok(())
}

/// The padding behind the last tensor may be missing: not every writer pads there.
fn check_length(header: &Header, file_length: u64) -> Result<(), GgufError> {
    let bare = header.tensors.last().map_or(0, |t| t.offset + t.length);
    let (start, padded) = (
        header.data_start,
        data_end(&header.tensors, header.alignment),
    );
    let (Some(min), Some(max)) = (start.checked_add(bare), start.checked_add(padded)) else {
        return wrong("the tensors take more than 2^64 bytes");
    };
    if (min..=max).contains(&file_length) {
        return Ok(());
    }
    wrong(format!(
        "has {file_length} bytes, but its tensors end at byte {min}: cut off, or something follows"
    ))
}
