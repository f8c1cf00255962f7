//! Codes in a `.npy` file.

use std::path::Path;

use segpack_formats::io::{read_limited, to_usize};
use segpack_formats::npy::NpyHeader;

use super::VocodeError;
use crate::steps::StepError;

/// The largest file that is read: more than a week of speech of 16 codes of 8 bytes.
const MAX_BYTES: u64 = 1 << 30;

/// Reads one value of an array.
type Decode = fn(&[u8]) -> i128;

/// The codes of a file, `[frames, groups]`. It holds `[groups, frames]`, as the official class has
/// it, or `[frames, groups]`, with or without a 1 in front; a square is the former.
pub(super) fn read(path: &Path, groups: usize) -> Result<Vec<u32>, StepError> {
    let bytes = read_limited(path, MAX_BYTES)?;
    let header = NpyHeader::parse(&bytes).map_err(|what| StepError::malformed(path, what))?;
    let Some((width, decode)) = decoder(&header.descr) else {
        let (path, descr) = (path.to_owned(), header.descr);
        return Err(VocodeError::Dtype { path, descr }.into());
    };
    let wrong_shape = || VocodeError::Shape {
        path: path.to_owned(),
        shape: header.shape.clone(),
        groups,
    };
    let sides = match header.shape[..] {
        [rows, columns] | [1, rows, columns] => [rows, columns].map(to_usize),
        _ => return Err(wrong_shape().into()),
    };
    let frames = match sides {
        [rows, columns] if rows == groups => columns,
        [rows, columns] if columns == groups => rows,
        _ => return Err(wrong_shape().into()),
    };
    let data = bytes.get(to_usize(header.data_start)..).unwrap_or_default();
    let wanted = frames
        .checked_mul(groups)
        .and_then(|n| n.checked_mul(width));
    if wanted != Some(data.len()) {
        let what = format!(
            "holds {} bytes of data, which is not what shape {:?} of {:?} takes",
            data.len(),
            header.shape,
            header.descr
        );
        return Err(StepError::malformed(path, what));
    }
    // in memory the values of a row lie next to each other, or those of a column
    let is_by_group = (sides[0] == groups) != header.fortran_order;
    let mut codes = Vec::with_capacity(frames * groups);
    for frame in 0..frames {
        for group in 0..groups {
            let at = match is_by_group {
                true => group * frames + frame,
                false => frame * groups + group,
            };
            let value = decode(&data[at * width..][..width]);
            let code = u32::try_from(value).map_err(|_| VocodeError::Value {
                path: path.to_owned(),
                value: value.to_string(),
                group,
                frame,
            })?;
            codes.push(code);
        }
    }
    Ok(codes)
}

/// Bytes of a value of a dtype of whole numbers, and how it is read.
fn decoder(descr: &str) -> Option<(usize, Decode)> {
    Some(match descr {
        "|u1" => (1, |b| u8::from_le_bytes(array(b)).into()),
        "|i1" => (1, |b| i8::from_le_bytes(array(b)).into()),
        "<u2" => (2, |b| u16::from_le_bytes(array(b)).into()),
        "<i2" => (2, |b| i16::from_le_bytes(array(b)).into()),
        "<u4" => (4, |b| u32::from_le_bytes(array(b)).into()),
        "<i4" => (4, |b| i32::from_le_bytes(array(b)).into()),
        "<u8" => (8, |b| u64::from_le_bytes(array(b)).into()),
        "<i8" => (8, |b| i64::from_le_bytes(array(b)).into()),
        _ => return None,
    })
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}
