//! The kernels: PTX, stored compressed.

use std::sync::OnceLock;

use segpack_formats::codec::decompress;

use super::error::CudaError;

/// The kernels for every architecture from Ampere on, compiled by `build/build_ptx.py`: one zstd
/// frame.
const COMPRESSED: &[u8] = include_bytes!("../ptx/kernels.ptx.zst");

/// The text of the kernels. It is decompressed at the first use.
pub(in crate::devices::cuda) fn ptx() -> Result<&'static str, CudaError> {
    static TEXT: OnceLock<String> = OnceLock::new();
    if let Some(text) = TEXT.get() {
        return Ok(text);
    }
    let bytes = decompress(COMPRESSED).map_err(CudaError::Kernels)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(TEXT.get_or_init(|| text))
}

/// The size of a parameter in bytes, from its line of PTX.
fn parameter_bytes(line: &str) -> Option<usize> {
    let words = line.trim().trim_end_matches(',').strip_prefix(".param ")?;
    match words.split(' ').next()? {
        ".u64" => Some(8),
        ".u32" | ".f32" => Some(4),
        // .align 8 .b8 name[96]
        _ => words.rsplit_once('[')?.1.trim_end_matches(']').parse().ok(),
    }
}

/// The kernels of a PTX text, and the sizes of their parameters in bytes.
pub(in crate::devices::cuda) fn entries(ptx: &str) -> impl Iterator<Item = (&str, Vec<usize>)> {
    ptx.split(".entry ").skip(1).filter_map(|entry| {
        let (name, rest) = entry.split_once('(')?;
        let (parameters, _) = rest.split_once(')')?;
        Some((
            name.trim(),
            parameters.lines().filter_map(parameter_bytes).collect(),
        ))
    })
}
