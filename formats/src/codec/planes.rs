//! Values taken apart into byte planes: every value is rotated left by one bit, which brings the
//! sign down and the whole exponent of bf16 and f32 into the uppermost byte; then the planes follow
//! one another, lowest bytes first. A plane is stored as it is or as one zstd frame.

#![expect(
    clippy::cast_possible_truncation,
    reason = "bytes are taken apart; lengths are those of one chunk"
)]

use super::simd::{Kind, Simd};

/// Width (u8) and three zeros.
const HEAD_BYTES: usize = 4;
/// Stored length of a plane (u32).
const LENGTH_BYTES: usize = 4;

/// Appends the planes of `raw`, coded by `code` (which says whether it did), and what is left of a
/// value at its end.
pub(super) fn encode<E>(
    raw: &[u8],
    width: usize,
    plane: &mut Vec<u8>,
    out: &mut Vec<u8>,
    mut code: impl FnMut(usize, &[u8], &mut Vec<u8>) -> Result<bool, E>,
) -> Result<(), E> {
    let count = raw.len() / width;
    out.extend([width as u8, 0, 0, 0]);
    let lengths_at = out.len();
    out.resize(lengths_at + width * LENGTH_BYTES, 0);
    for number in 0..width {
        plane.clear();
        let shift = 8 * number;
        match width {
            1 => plane.extend(raw.iter().map(|b| b.rotate_left(1))),
            2 => plane.extend(
                raw.as_chunks()
                    .0
                    .iter()
                    .map(|v| (u16::from_le_bytes(*v).rotate_left(1) >> shift) as u8),
            ),
            4 => plane.extend(
                raw.as_chunks()
                    .0
                    .iter()
                    .map(|v| (u32::from_le_bytes(*v).rotate_left(1) >> shift) as u8),
            ),
            _ => plane.extend(
                raw.as_chunks()
                    .0
                    .iter()
                    .map(|v| (u64::from_le_bytes(*v).rotate_left(1) >> shift) as u8),
            ),
        }
        let start = out.len();
        if !code(number, plane, out)? || out.len() - start >= count {
            out.truncate(start);
            out.extend_from_slice(plane);
        }
        let length = ((out.len() - start) as u32).to_le_bytes();
        out[lengths_at + number * LENGTH_BYTES..][..LENGTH_BYTES].copy_from_slice(&length);
    }
    out.extend_from_slice(&raw[count * width..]);
    Ok(())
}

/// Where the planes of a chunk lie.
#[derive(Debug)]
struct Parsed<'a> {
    planes: Vec<&'a [u8]>,
    rest: &'a [u8],
}

fn parse(stored: &[u8], raw_length: usize) -> Result<Parsed<'_>, String> {
    let Some((&[width, 0, 0, 0], mut after)) = stored.split_first_chunk::<HEAD_BYTES>() else {
        return Err("planes: no width with three zeros behind it".to_owned());
    };
    if ![1, 2, 4, 8].contains(&width) {
        return Err(format!(
            "planes: values of {width} bytes; wanted 1, 2, 4 or 8"
        ));
    }
    let width = usize::from(width);
    let Some((lengths, mut later)) = after.split_at_checked(width * LENGTH_BYTES) else {
        return Err(format!(
            "planes: {} bytes end among the lengths",
            stored.len()
        ));
    };
    let count = raw_length / width;
    let mut planes = Vec::with_capacity(width);
    for (number, length) in lengths.as_chunks().0.iter().enumerate() {
        let length = u32::from_le_bytes(*length) as usize;
        let found = later.split_at_checked(length).filter(|_| length <= count);
        let Some((plane, rest)) = found else {
            return Err(format!(
                "plane {number}: {length} bytes of {} for {count} values",
                later.len()
            ));
        };
        planes.push(plane);
        later = rest;
    }
    after = later;
    if after.len() != raw_length % width {
        return Err(format!(
            "{} bytes after the planes, wanted {}",
            after.len(),
            raw_length % width
        ));
    }
    Ok(Parsed {
        planes,
        rest: after,
    })
}

/// Decodes planes into `raw`; `expand` decodes a frame into exactly as many bytes as it is given.
/// `scratch` is reused and grows to at most the length of `raw`.
pub(super) fn decode(
    simd: Simd,
    stored: &[u8],
    raw: &mut [u8],
    scratch: &mut Vec<u8>,
    mut expand: impl FnMut(&[u8], &mut [u8]) -> Result<(), String>,
) -> Result<(), String> {
    let Parsed { planes, rest } = parse(stored, raw.len())?;
    let width = planes.len();
    let count = raw.len() / width;
    let coded = planes.iter().filter(|p| p.len() != count).count();
    if scratch.len() < coded * count {
        scratch.resize(coded * count, 0);
    }
    // a chunk of no values has no planes to expand
    let mut buffers = scratch.chunks_exact_mut(count.max(1));
    let mut expanded: Vec<&[u8]> = Vec::with_capacity(width);
    for (number, plane) in planes.into_iter().enumerate() {
        if plane.len() == count {
            expanded.push(plane);
            continue;
        }
        let Some(to) = buffers.next() else {
            return Err(format!("plane {number} has no buffer"));
        };
        expand(plane, to).map_err(|why| format!("plane {number}: {why}"))?;
        expanded.push(to);
    }
    let (values, end) = raw.split_at_mut(count * width);
    merge(simd, &expanded, values);
    end.copy_from_slice(rest);
    Ok(())
}

/// Puts the planes of whole values together.
fn merge(simd: Simd, planes: &[&[u8]], values: &mut [u8]) {
    match simd.0 {
        Kind::Scalar => merge_any(planes, values),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => x86::merge_avx2(simd, planes, values),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => x86::merge_avx512(simd, planes, values),
        // the caller has NEON already
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => merge_any(planes, values),
    }
}

/// Loops that the compiler turns into vector instructions, those of its caller.
#[inline(always)]
fn merge_any(planes: &[&[u8]], values: &mut [u8]) {
    match planes {
        [a] => values
            .iter_mut()
            .zip(*a)
            .for_each(|(v, a)| *v = a.rotate_right(1)),
        [a, b] => {
            let values = values.as_chunks_mut().0;
            for ((value, a), b) in values.iter_mut().zip(*a).zip(*b) {
                *value = u16::from_le_bytes([*a, *b]).rotate_right(1).to_le_bytes();
            }
        }
        [a, b, c, d] => {
            let values = values.as_chunks_mut().0;
            for ((((value, a), b), c), d) in values.iter_mut().zip(*a).zip(*b).zip(*c).zip(*d) {
                *value = u32::from_le_bytes([*a, *b, *c, *d])
                    .rotate_right(1)
                    .to_le_bytes();
            }
        }
        _ => {
            for (i, value) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let mut bytes = [0; 8];
                bytes
                    .iter_mut()
                    .zip(planes)
                    .for_each(|(b, plane)| *b = plane[i]);
                *value = u64::from_le_bytes(bytes).rotate_right(1).to_le_bytes();
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![expect(unsafe_code, reason = "calls that need processor features")]

    use super::{Kind, Simd, merge_any};

    pub(super) fn merge_avx2(simd: Simd, planes: &[&[u8]], values: &mut [u8]) {
        assert_eq!(simd.0, Kind::Avx2);
        // SAFETY: a `Simd` of this kind is only made where the processor has all features of the
        // function
        unsafe { avx2(planes, values) }
    }

    pub(super) fn merge_avx512(simd: Simd, planes: &[&[u8]], values: &mut [u8]) {
        assert_eq!(simd.0, Kind::Avx512);
        // SAFETY: a `Simd` of this kind is only made where the processor has all features of the
        // function
        unsafe { avx512(planes, values) }
    }

    #[target_feature(enable = "avx2")]
    fn avx2(planes: &[&[u8]], values: &mut [u8]) {
        merge_any(planes, values);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")]
    fn avx512(planes: &[&[u8]], values: &mut [u8]) {
        merge_any(planes, values);
    }
}
