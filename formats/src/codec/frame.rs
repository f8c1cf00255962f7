//! One zstd frame on its own, outside of packs.

use crate::{FormatError, Result};

/// Decompresses one zstd frame (RFC 8878) whole. Only for frames of known origin: the length of
/// what comes out is the frame's own.
///
/// # Errors
/// `Coded` where it is no zstd frame, or a damaged one.
pub fn decompress(frame: &[u8]) -> Result<Vec<u8>> {
    zstd::stream::decode_all(frame).map_err(|e| FormatError::coded(format!("zstd frame: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_and_a_damaged_one_is_an_error() {
        let text = "kernels, ".repeat(1000);
        let frame = zstd::stream::encode_all(text.as_bytes(), 3).unwrap();
        assert_eq!(decompress(&frame).unwrap(), text.as_bytes());
        assert!(decompress(&frame[..frame.len() - 1]).is_err());
        assert!(decompress(b"no frame").is_err());
    }
}
