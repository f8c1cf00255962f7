//! Files that are read whole, up to a size.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::{FormatError, Result};

/// The contents of a file that has at most `limit` bytes. A regular file with more is not read at
/// all, of a pipe one byte more than that.
///
/// # Errors
/// `Io`; `TooLarge`.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(FormatError::io("read", path))?;
    let metadata = file.metadata().map_err(FormatError::io("read", path))?;
    let length = if metadata.is_file() {
        metadata.len()
    } else {
        0
    };
    if length > limit {
        return Err(too_large(path, length, limit));
    }
    read_up_to(file, limit)
        .map_err(FormatError::io("read", path))?
        .map_err(|length| too_large(path, length, limit))
}

fn too_large(path: &Path, length: u64, limit: u64) -> FormatError {
    FormatError::TooLarge {
        path: path.to_owned(),
        length,
        limit,
    }
}

/// All that `from` gives, if it is at most `limit` bytes; else how many were read.
///
/// # Errors
/// As those of `from`.
pub fn read_up_to(from: impl Read, limit: u64) -> std::io::Result<Result<Vec<u8>, u64>> {
    let mut bytes = Vec::new();
    from.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    let length = bytes.len() as u64;
    Ok(if length > limit {
        Err(length)
    } else {
        Ok(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [7; 10]).unwrap();
        assert_eq!(read_limited(&path, 10).unwrap(), [7; 10]);
        let error = read_limited(&path, 9).unwrap_err().to_string();
        assert!(error.ends_with("file: has 10 bytes; at most 9 are read of such a file"));
        // a file that is nothing but a length is not read
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        assert!(
            read_limited(&path, 1 << 20)
                .unwrap_err()
                .to_string()
                .contains("1099511627776")
        );
        assert!(read_limited(folder.path(), 10).is_err());
        assert_eq!(read_up_to(std::io::repeat(1), 5).unwrap(), Err(6));
    }
}
