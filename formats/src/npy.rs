//! The header of a `.npy` file, written and read strictly.
//!
//! Format: numpy's `numpy.lib.format`, versions 1.0 and 2.0
//! (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>): magic `\x93NUMPY`,
//! two bytes of version, the little-endian length of the header (2 bytes in 1.0, 4 in 2.0), a
//! Python dictionary padded with spaces and a line end so that the data starts at a multiple of 64,
//! then the data.

use crate::numeric::Dtype;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
const ALIGNMENT: usize = 64;

/// How numpy writes a dtype. It has no bfloat16 and no 8-bit floats of its own: those are written
/// as `ml_dtypes` arrays are by `numpy.save`, as that many opaque bytes, and come back with
/// `.view(ml_dtypes.bfloat16)`. `None` for dtypes that fill no whole byte.
pub fn descr(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::BOOL => "|b1",
        Dtype::U8 => "|u1",
        Dtype::I8 => "|i1",
        Dtype::U16 => "<u2",
        Dtype::I16 => "<i2",
        Dtype::U32 => "<u4",
        Dtype::I32 => "<i4",
        Dtype::U64 => "<u8",
        Dtype::I64 => "<i8",
        Dtype::F16 => "<f2",
        Dtype::F32 => "<f4",
        Dtype::F64 => "<f8",
        Dtype::C64 => "<c8",
        Dtype::BF16 => "<V2",
        Dtype::F8_E5M2
        | Dtype::F8_E4M3
        | Dtype::F8_E8M0
        | Dtype::F8_E4M3FNUZ
        | Dtype::F8_E5M2FNUZ => "|V1",
        Dtype::F4 | Dtype::F6_E2M3 | Dtype::F6_E3M2 => return None,
    })
}

/// Everything of a file before its data, in C order; version 1.0, or 2.0 where the header is longer
/// than that can say.
pub fn header(descr: &str, shape: &[u64]) -> Vec<u8> {
    let sides: Vec<String> = shape.iter().map(u64::to_string).collect();
    let tuple = match sides.as_slice() {
        [one] => format!("({one},)"),
        sides => format!("({})", sides.join(", ")),
    };
    let dictionary = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {tuple}, }}");
    let start = |prefix: usize| (prefix + dictionary.len() + 1).next_multiple_of(ALIGNMENT);
    let (version, start, prefix) = match u16::try_from(start(10) - 10) {
        Ok(length) => ([1, 0], start(10), length.to_le_bytes().to_vec()),
        Err(_) => (
            [2, 0],
            start(12),
            u32::try_from(start(12) - 12)
                .unwrap_or(u32::MAX)
                .to_le_bytes()
                .to_vec(),
        ),
    };
    let mut bytes = [MAGIC.as_slice(), &version, &prefix, dictionary.as_bytes()].concat();
    bytes.resize(start - 1, b' ');
    bytes.push(b'\n');
    bytes
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NpyHeader {
    /// The dtype as numpy writes it.
    pub descr: String,
    /// Shape, outermost dimension first.
    pub shape: Vec<u64>,
    /// Whether the first dimension is the fastest, not the last.
    pub fortran_order: bool,
    /// First byte of the data.
    pub data_start: u64,
}

/// The longest header that is read, in bytes.
pub const MAX_NPY_HEADER_BYTES: u64 = 1 << 16;

impl NpyHeader {
    /// Reads the header at the start of a file's first bytes ([`MAX_NPY_HEADER_BYTES`], or all
    /// there are).
    ///
    /// # Errors
    /// In words, where it is not one that [`header`] could have written, but for the order of the
    /// dimensions.
    pub fn parse(first: &[u8]) -> Result<Self, String> {
        let rest = first
            .strip_prefix(MAGIC)
            .ok_or("does not begin with \\x93NUMPY")?;
        let (prefix, length) = match rest {
            [1, 0, a, b, ..] => (10, usize::from(u16::from_le_bytes([*a, *b]))),
            [2, 0, a, b, c, d, ..] => (
                12,
                usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX),
            ),
            _ => return Err("has a version that is neither 1.0 nor 2.0".to_owned()),
        };
        let end = length.saturating_add(prefix);
        let text = first.get(prefix..end).ok_or("ends inside its header")?;
        let text = std::str::from_utf8(text).map_err(|e| e.to_string())?;
        let wrong = || format!("has the header {text:?}, which is not one of a plain array");
        let rest = text.strip_prefix("{'descr': '").ok_or_else(wrong)?;
        let (descr, rest) = rest.split_once("', 'fortran_order': ").ok_or_else(wrong)?;
        let (order, rest) = rest.split_once(", 'shape': (").ok_or_else(wrong)?;
        let fortran_order = match order {
            "False" => false,
            "True" => true,
            _ => return Err(wrong()),
        };
        let (sides, rest) = rest.split_once("), }").ok_or_else(wrong)?;
        if !rest.trim_start_matches(' ').eq("\n") {
            return Err(wrong());
        }
        let sides = sides
            .split(',')
            .map(str::trim)
            .filter(|side| !side.is_empty());
        let shape = sides
            .map(|side| side.parse().map_err(|_| wrong()))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            descr: descr.to_owned(),
            shape,
            fortran_order,
            data_start: end as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_of_numpy() {
        // numpy.save(numpy.zeros((2, 3), '<f4')) of numpy 2.4
        let wanted =
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
        let seen = header("<f4", &[2, 3]);
        assert!(seen.starts_with(wanted) && seen.len() == 128 && seen.ends_with(b" \n"));
        for (descr, shape) in [
            ("<f4", &[2, 3][..]),
            ("|b1", &[]),
            ("<V2", &[5]),
            ("<i8", &[0, 7]),
        ] {
            let bytes = header(descr, shape);
            assert_eq!(bytes.len() % 64, 0);
            let parsed = NpyHeader::parse(&bytes).unwrap();
            assert_eq!(
                (parsed.descr.as_str(), parsed.shape.as_slice()),
                (descr, shape)
            );
            assert_eq!(parsed.data_start, bytes.len() as u64);
        }
    }

    #[test]
    fn long_headers_are_of_version_2() {
        let shape = vec![1; 30_000];
        let bytes = header("|u1", &shape);
        assert_eq!(bytes[6..8], [2, 0]);
        assert_eq!(NpyHeader::parse(&bytes).unwrap().shape, shape);
    }

    #[test]
    fn the_order_of_dimensions_is_told() {
        // numpy.save(numpy.zeros((2, 3), '<i8').T) of numpy 2.4
        let text = "{'descr': '<i8', 'fortran_order': True, 'shape': (3, 2), }";
        let mut bytes = header("<i8", &[3, 2]);
        bytes[10..127].fill(b' ');
        bytes[10..10 + text.len()].copy_from_slice(text.as_bytes());
        let parsed = NpyHeader::parse(&bytes).unwrap();
        assert!(parsed.fortran_order && parsed.shape == [3, 2] && parsed.data_start == 128);
        assert!(
            !NpyHeader::parse(&header("<i8", &[3, 2]))
                .unwrap()
                .fortran_order
        );
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let good = header("<f4", &[2, 3]);
        for (at, byte) in [(0, 0), (6, 3), (8, 0), (20, b'x'), (34, b'T')] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert!(
                NpyHeader::parse(&bad).is_err()
                    || NpyHeader::parse(&bad) != NpyHeader::parse(&good)
            );
        }
        assert!(NpyHeader::parse(&good[..60]).is_err());
        assert!(NpyHeader::parse(b"").is_err());
    }
}
