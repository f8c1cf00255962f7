//! Headers of new safetensors files.
//!
//! Format: <https://github.com/huggingface/safetensors#format>.

use super::{Dtype, HeaderError, MAX_HEADER_BYTES, byte_length};

/// The header's length is padded to a multiple of this, as the stock writer does, so that the data
/// can be mapped.
const ALIGNMENT: usize = 8;

/// One tensor of a file that will be written.
#[derive(Debug, Clone, Copy)]
pub struct NewTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: &'a [u64],
}

/// Appends one entry: the name as a JSON string, dtype, shape and range in the data section.
pub(crate) fn push_entry(
    json: &mut String,
    name: &str,
    dtype: &str,
    shape: &[u64],
    begin: u64,
    end: u64,
) {
    use std::fmt::Write;
    let name = serde_json::Value::from(name);
    let shape = shape
        .iter()
        .map(u64::to_string)
        .collect::<Vec<_>>()
        .join(",");
    // writing to a String does not fail
    let _ = write!(
        json,
        r#",{name}:{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{begin},{end}]}}"#
    );
}

/// Appends a pair of `__metadata__`, both as JSON strings.
fn push_metadata(json: &mut String, key: &str, value: &str) {
    use std::fmt::Write;
    let (key, value) = (serde_json::Value::from(key), serde_json::Value::from(value));
    // writing to a String does not fail
    let _ = write!(json, ",{key}:{value}");
}

/// Everything of a safetensors file before its data: length field, JSON, padding. The data is that
/// of the tensors in this order, without gaps. `__metadata__` has `"format":"pt"`, which
/// transformers asks for, and these keys and values in their order.
///
/// # Errors
/// A tensor that has no whole number of bytes; more names than a header may hold.
pub fn new_header(
    tensors: &[NewTensor<'_>],
    metadata: &[(&str, &str)],
) -> Result<Vec<u8>, HeaderError> {
    let mut json = r#"{"__metadata__":{"format":"pt""#.to_owned();
    for (key, value) in metadata {
        push_metadata(&mut json, key, value);
    }
    json.push('}');
    let mut at = 0_u64;
    for tensor in tensors {
        let length = byte_length(tensor.dtype, tensor.shape);
        let length = length.map_err(|source| HeaderError::Length {
            tensor: tensor.name.to_owned(),
            source,
        })?;
        let end = at.checked_add(length).ok_or_else(|| {
            HeaderError::Rule(format!("tensor {:?} ends beyond 64 bits", tensor.name))
        })?;
        push_entry(
            &mut json,
            tensor.name,
            &tensor.dtype.to_string(),
            tensor.shape,
            at,
            end,
        );
        at = end;
    }
    json.push('}');
    let padded = json.len().next_multiple_of(ALIGNMENT);
    if padded as u64 > MAX_HEADER_BYTES {
        return Err(HeaderError::Rule(format!(
            "the header of {} tensors would have {padded} bytes, over the limit of {MAX_HEADER_BYTES}",
            tensors.len()
        )));
    }
    let mut bytes = (padded as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.resize(8 + padded, b' ');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::ShardHeader;
    use super::*;
    use crate::error::chain;

    #[test]
    fn the_stock_reader_and_ours_find_the_tensors() {
        let tensors = [
            NewTensor {
                name: "a \"b\"",
                dtype: Dtype::F32,
                shape: &[2, 1],
            },
            NewTensor {
                name: "scalar",
                dtype: Dtype::BF16,
                shape: &[],
            },
            NewTensor {
                name: "empty",
                dtype: Dtype::U8,
                shape: &[0, 3],
            },
        ];
        let mut file = new_header(&tensors, &[("made \"from\"", "a\nb")]).unwrap();
        assert_eq!(file.len() % 8, 0);
        let head = file.len();
        file.extend([7; 10]);
        let ours = ShardHeader::parse(&file[8..head], file.len() as u64).unwrap();
        let start = head as u64;
        let seen: Vec<_> = ours
            .tensors
            .iter()
            .map(|t| (t.name.as_str(), t.offset - start, t.length))
            .collect();
        assert_eq!(
            seen,
            [("a \"b\"", 0, 8), ("scalar", 8, 2), ("empty", 10, 0)]
        );
        let stock = ::safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(stock.tensor("a \"b\"").unwrap().shape(), [2, 1]);
        assert_eq!(stock.tensor("scalar").unwrap().data(), [7, 7]);
    }

    #[test]
    fn a_tensor_without_whole_bytes_is_refused() {
        let odd = NewTensor {
            name: "odd",
            dtype: Dtype::F4,
            shape: &[3],
        };
        assert!(chain(&new_header(&[odd], &[]).unwrap_err()).contains("ends inside a byte"));
    }
}
