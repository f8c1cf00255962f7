//! The JSON header of a shard: parsed, bounded and checked as a whole.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::error::{HeaderError, LengthError};
use crate::numeric::Dtype;
use crate::strict_json::UniqueEntries;

/// The longest header that is read, in bytes: the stock reader's own limit.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Bytes of the length field before the header.
pub(crate) const LENGTH_FIELD: u64 = 8;

fn wrong<T>(what: impl Into<String>) -> Result<T, HeaderError> {
    Err(HeaderError::Rule(what.into()))
}

/// One tensor of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, unique in the shard.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost dimension first; empty for a scalar.
    pub shape: Vec<u64>,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Length in bytes; always shape × dtype.
    pub length: u64,
}

/// A checked header: its tensors cover the data section without a hole or an overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardHeader {
    /// `__metadata__`, in file order, if there is one.
    pub metadata: Option<Vec<(String, String)>>,
    /// All tensors, by their offset in the file.
    pub tensors: Vec<TensorInfo>,
    /// First byte of the data section: 8 + the header's length.
    pub data_start: u64,
}

/// Length in bytes of a tensor, or why it has none.
///
/// # Errors
/// Where the product overflows or a sub-byte dtype does not fill whole bytes.
pub fn byte_length(dtype: Dtype, shape: &[u64]) -> Result<u64, LengthError> {
    let bits = shape
        .iter()
        .try_fold(dtype.bitsize() as u64, |bits, &side| bits.checked_mul(side));
    let shape = || shape.to_vec();
    match bits {
        None => Err(LengthError::Overflow {
            dtype,
            shape: shape(),
        }),
        Some(bits) if bits % 8 != 0 => Err(LengthError::PartOfAByte {
            dtype,
            shape: shape(),
        }),
        Some(bits) => Ok(bits / 8),
    }
}

impl ShardHeader {
    /// Reads the length field, given the length of the whole file.
    ///
    /// # Errors
    /// A file shorter than 8 bytes; a header that is empty, longer than [`MAX_HEADER_BYTES`] or
    /// than the file.
    pub fn parse_length(first: &[u8], file_length: u64) -> Result<u64, HeaderError> {
        let Some(field) = first.first_chunk::<8>() else {
            return wrong(format!(
                "has {file_length} bytes; a safetensors file begins with 8 bytes of header length"
            ));
        };
        let length = u64::from_le_bytes(*field);
        match length {
            0 => wrong("header length (byte 0) is 0; a header has at least the 2 bytes {}"),
            _ if length > file_length.saturating_sub(LENGTH_FIELD) => wrong(format!(
                "header length (byte 0) is {length}, but only {} bytes follow it: cut off, or not a safetensors file",
                file_length.saturating_sub(LENGTH_FIELD)
            )),
            _ if length > MAX_HEADER_BYTES => wrong(format!(
                "header length (byte 0) is {length}, over the limit of {MAX_HEADER_BYTES} bytes"
            )),
            _ => Ok(length),
        }
    }

    /// Parses the JSON text of a header and checks it against the length of the whole file.
    ///
    /// # Errors
    /// Everything that the format forbids, named: see the crate's tests for the list.
    pub fn parse(json: &[u8], file_length: u64) -> Result<Self, HeaderError> {
        let data_start = LENGTH_FIELD + json.len() as u64;
        let text = std::str::from_utf8(json).map_err(|source| HeaderError::NotUtf8 {
            at: LENGTH_FIELD + source.valid_up_to() as u64,
            source,
        })?;
        if !text.starts_with('{') {
            let seen: String = text.chars().take(8).collect();
            return wrong(format!(
                "header (byte 8) begins with {seen:?}; it must be a JSON object and begin with {{"
            ));
        }
        let raw: RawHeader<'_> =
            serde_json::from_str(text.trim_end_matches(' ')).map_err(HeaderError::Table)?;
        let data_length = file_length.saturating_sub(data_start);
        let mut tensors = raw
            .tensors
            .into_iter()
            .map(|(name, entry)| entry.check(name, data_start))
            .collect::<Result<Vec<_>, _>>()?;
        tensors.sort_by_key(|t| (t.offset, t.length)); // stable: empty tensors keep the header's order
        check_cover(&tensors, data_start, data_length)?;
        Ok(Self {
            metadata: raw.metadata,
            tensors,
            data_start,
        })
    }
}

/// The tensors must tile the data section: any hole would be lost, any overlap restored twice.
fn check_cover(
    tensors: &[TensorInfo],
    data_start: u64,
    data_length: u64,
) -> Result<(), HeaderError> {
    let mut at = data_start;
    let mut last = "the header";
    for tensor in tensors {
        if tensor.offset < at {
            return wrong(format!(
                "tensor {:?} begins at byte {} of the data, inside {last}, which ends at {}: ranges overlap",
                tensor.name,
                tensor.offset - data_start,
                at - data_start
            ));
        }
        if tensor.offset > at {
            return wrong(format!(
                "bytes {}..{} of the data, between {last} and tensor {:?}, belong to no tensor",
                at - data_start,
                tensor.offset - data_start,
                tensor.name
            ));
        }
        at = tensor.offset.saturating_add(tensor.length);
        last = &tensor.name;
    }
    let end = at - data_start;
    if end > data_length {
        return wrong(format!(
            "tensor {last:?} ends at byte {end} of the data, but the file has only {data_length}: it is cut off"
        ));
    }
    if end < data_length {
        return wrong(format!(
            "{} bytes follow the last tensor's end at byte {end} of the data",
            data_length - end
        ));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), HeaderError> {
    if name.is_empty() {
        return wrong("a tensor has an empty name");
    }
    if let Some(bad) = name.chars().find(|c| c.is_control()) {
        return wrong(format!(
            "tensor name {name:?} holds the control character {bad:?}"
        ));
    }
    if name.split(['/', '\\']).any(|part| part == "..") {
        return wrong(format!(
            "tensor name {name:?} holds the path component \"..\""
        ));
    }
    Ok(())
}

struct RawHeader<'a> {
    metadata: Option<Vec<(String, String)>>,
    tensors: Vec<(String, RawEntry<'a>)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl RawEntry<'_> {
    fn check(self, name: String, data_start: u64) -> Result<TensorInfo, HeaderError> {
        check_name(&name)?;
        let dtype: Dtype = match self.dtype.parse() {
            Ok(dtype) => dtype,
            Err(source) => {
                let tensor = name;
                return Err(HeaderError::Dtype { tensor, source });
            }
        };
        let [begin, end] = self.data_offsets;
        let Some(length) = end.checked_sub(begin) else {
            return wrong(format!(
                "tensor {name:?}: data_offsets [{begin}, {end}] end before they begin"
            ));
        };
        let wanted = match byte_length(dtype, &self.shape) {
            Ok(wanted) => wanted,
            Err(source) => {
                let tensor = name;
                return Err(HeaderError::Length { tensor, source });
            }
        };
        if wanted != length {
            return wrong(format!(
                "tensor {name:?}: data_offsets [{begin}, {end}] hold {length} bytes, but shape {:?} of {dtype} takes {wanted}",
                self.shape
            ));
        }
        if data_start.checked_add(end).is_none() {
            return wrong(format!(
                "tensor {name:?}: data_offsets [{begin}, {end}] overflow 64 bits"
            ));
        }
        let offset = data_start + begin;
        Ok(TensorInfo {
            dtype,
            shape: self.shape,
            offset,
            length,
            name,
        })
    }
}

impl<'de> Deserialize<'de> for RawHeader<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader<'de>, A::Error> {
                let mut header = RawHeader {
                    metadata: None,
                    tensors: Vec::new(),
                };
                while let Some(key) = map.next_key::<String>()? {
                    let in_key = |e: A::Error| A::Error::custom(format!("key {key:?}: {e}"));
                    if key == "__metadata__" {
                        let entries: UniqueEntries<String> = map.next_value().map_err(in_key)?;
                        if header.metadata.replace(entries.0).is_some() {
                            return Err(A::Error::custom("key \"__metadata__\" appears twice"));
                        }
                    } else {
                        let entry = map.next_value().map_err(in_key)?;
                        header.tensors.push((key, entry));
                    }
                }
                let mut names: Vec<&str> = header
                    .tensors
                    .iter()
                    .map(|(name, _)| name.as_str())
                    .collect();
                names.sort_unstable();
                if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
                    return Err(A::Error::custom(format!(
                        "key {:?} appears twice",
                        twice[0]
                    )));
                }
                Ok(header)
            }
        }

        from.deserialize_map(HeaderVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    fn parse(json: &str, data: u64) -> Result<ShardHeader, String> {
        ShardHeader::parse(json.as_bytes(), 8 + json.len() as u64 + data).map_err(|e| chain(&e))
    }

    #[test]
    fn tensors_come_by_place_with_file_offsets() {
        let json = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[4,8]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"e":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}}  "#;
        let header = parse(json, 8).unwrap();
        let start = 8 + json.len() as u64;
        assert_eq!(header.data_start, start);
        assert_eq!(
            header.metadata.unwrap(),
            [("format".to_owned(), "pt".to_owned())]
        );
        let seen: Vec<_> = header
            .tensors
            .iter()
            .map(|t| (t.name.as_str(), t.offset - start, t.length))
            .collect();
        assert_eq!(seen, [("a", 0, 4), ("e", 4, 0), ("b", 4, 4)]);
        assert_eq!(parse("{}", 0).unwrap().tensors, []);
    }

    /// A header of one tensor, `t`.
    fn one(dtype: &str, shape: &str, offsets: &str) -> String {
        format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    }

    /// A header of two tensors of four bytes.
    fn two(a: &str, b: &str) -> String {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
        )
    }

    /// A header of one tensor of this name.
    fn named(name: &str) -> String {
        format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#)
    }

    #[test]
    fn each_malformed_header_says_what_and_where() {
        let cases: Vec<(String, u64, &str)> = vec![
            ("[]".into(), 0, "begins with \"[]\""),
            ("\u{feff}{}".into(), 0, "must be a JSON object"),
            (" {}".into(), 0, "must be a JSON object"),
            ("{}\n{}".into(), 0, "trailing characters"),
            ("{\"a\":1}".into(), 0, "key \"a\": invalid type"),
            (
                "{\"__metadata__\":{\"a\":1}}".into(),
                0,
                "key \"__metadata__\"",
            ),
            (
                "{\"__metadata__\":{},\"__metadata__\":{}}".into(),
                0,
                "\"__metadata__\" appears twice",
            ),
            (
                two("[0,4]", "[4,8]").replace("\"b\"", "\"\\u0061\""),
                8,
                "key \"a\" appears twice",
            ),
            (
                one("U8", "[4],\"shape\":[4]", "[0,4]"),
                4,
                "duplicate field `shape`",
            ),
            (one("U8", "[4],\"x\":1", "[0,4]"), 4, "unknown field `x`"),
            (
                one("U9", "[4]", "[0,4]"),
                4,
                "tensor \"t\" cannot be read: unknown dtype \"U9\"",
            ),
            (one("U8", "[-4]", "[0,4]"), 4, "invalid value: integer `-4`"),
            (one("U8", "[4.5]", "[0,4]"), 4, "floating point"),
            (one("U8", "[4]", "[-1,4]"), 4, "invalid value: integer `-1`"),
            (one("U8", "[4]", "[0,4,8]"), 4, "key \"t\""),
            (one("U8", "[4]", "[4,0]"), 4, "end before they begin"),
            (
                one("F32", "[4]", "[0,4]"),
                4,
                "hold 4 bytes, but shape [4] of F32 takes 16",
            ),
            (
                one("BF16", "[9223372036854775808,2]", "[0,4]"),
                4,
                "overflows 64 bits",
            ),
            (one("U8", "[0,9223372036854775808,4]", "[0,0]"), 0, ""),
            (one("F4", "[3]", "[0,1]"), 1, "ends inside a byte"),
            (
                one("U8", "[18446744073709551615]", "[0,18446744073709551615]"),
                4,
                "overflow",
            ),
            (
                one("U8", "[4]", "[0,4]"),
                3,
                "ends at byte 4 of the data, but the file has only 3: it is cut off",
            ),
            (
                one("U8", "[4]", "[0,4]"),
                5,
                "1 bytes follow the last tensor's end at byte 4",
            ),
            (
                one("U8", "[4]", "[1,5]"),
                5,
                "bytes 0..1 of the data, between the header and tensor \"t\"",
            ),
            (
                two("[0,4]", "[3,7]"),
                7,
                "tensor \"b\" begins at byte 3 of the data, inside a",
            ),
            (two("[0,4]", "[0,4]"), 4, "ranges overlap"),
            (two("[0,4]", "[5,9]"), 9, "belong to no tensor"),
            (named(""), 1, "empty name"),
            (named("a\\u0000b"), 1, "control character '\\0'"),
            (named("a\\nb"), 1, "control character '\\n'"),
            (named("\\u001b[31m"), 1, "control character '\\u{1b}'"),
            (named("../../etc/passwd"), 1, "path component \"..\""),
        ];
        for (json, data, wanted) in cases {
            match parse(&json, data) {
                Ok(_) => assert!(wanted.is_empty(), "{json} was accepted, wanted {wanted:?}"),
                Err(seen) => {
                    assert!(
                        !wanted.is_empty() && seen.contains(wanted),
                        "{json}\n  seen: {seen}\nwanted: {wanted}"
                    );
                }
            }
        }
    }

    #[test]
    fn header_lengths_are_bounded_before_anything_is_allocated() {
        let cases: [(&[u8], u64, &str); 6] = [
            (b"", 0, "has 0 bytes"),
            (b"1234567", 7, "has 7 bytes"),
            (&[0; 8], 100, "header length (byte 0) is 0"),
            (
                &[93, 0, 0, 0, 0, 0, 0, 0],
                100,
                "is 93, but only 92 bytes follow",
            ),
            (
                &[255; 8],
                100,
                "is 18446744073709551615, but only 92 bytes follow",
            ),
            (
                &[1, 225, 245, 5, 0, 0, 0, 0],
                1 << 40,
                "over the limit of 100000000 bytes",
            ),
        ];
        for (first, length, wanted) in cases {
            let seen = ShardHeader::parse_length(first, length)
                .unwrap_err()
                .to_string();
            assert!(seen.contains(wanted), "{seen}");
        }
        assert_eq!(
            ShardHeader::parse_length(&[92, 0, 0, 0, 0, 0, 0, 0], 100).unwrap(),
            92
        );
    }

    #[test]
    fn not_utf8_names_the_byte() {
        let error = ShardHeader::parse(b"{\"a\xff\":1}", 20)
            .unwrap_err()
            .to_string();
        assert!(error.contains("not UTF-8 at byte 11"), "{error}");
    }
}
