//! The header: metadata and the table of tensors.

use std::collections::HashSet;
use std::fmt;

use crate::numeric::ggml::BlockType;
use crate::numeric::{Dtype, FloatDtype, mxfp4};

use super::error::{GgufError, wrong};
use super::value::{Field, Value};

/// `general.alignment` where the metadata does not say otherwise: what tensor data is padded to, in
/// bytes.
pub const ALIGNMENT: u64 = 32;

/// ggml's `GGML_MAX_NAME` less the zero at the end.
pub const MAX_NAME_BYTES: usize = 63;

/// ggml's `GGML_MAX_DIMS`.
const MAX_DIMENSIONS: usize = 4;

pub(super) const MAGIC: [u8; 4] = *b"GGUF";
pub(super) const VERSION: u32 = 3;

/// How the values of a tensor are stored: those of ggml's types that segpack writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// 32-bit floats.
    F32,
    /// IEEE half-precision floats.
    F16,
    /// The upper halves of 32-bit floats.
    Bf16,
    /// Blocks of quantized values.
    Blocks(BlockType),
    /// Blocks of 32 values of E2M1 behind their scale of E8M0: see
    /// [`mxfp4::to_ggml`](crate::numeric::mxfp4::to_ggml).
    Mxfp4,
}

impl TensorType {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Blocks(BlockType::Q4_0),
        Self::Blocks(BlockType::Q5_0),
        Self::Blocks(BlockType::Q5_1),
        Self::Blocks(BlockType::Q8_0),
        Self::Blocks(BlockType::Q4K),
        Self::Blocks(BlockType::Q5K),
        Self::Blocks(BlockType::Q6K),
        Self::Mxfp4,
    ];

    /// Its number in files (`ggml_type`).
    pub fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Blocks(BlockType::Q4_0) => 2,
            Self::Blocks(BlockType::Q5_0) => 6,
            Self::Blocks(BlockType::Q5_1) => 7,
            Self::Blocks(BlockType::Q8_0) => 8,
            Self::Blocks(BlockType::Q4K) => 12,
            Self::Blocks(BlockType::Q5K) => 13,
            Self::Blocks(BlockType::Q6K) => 14,
            Self::Bf16 => 30,
            Self::Mxfp4 => 39,
        }
    }

    /// The type of this number.
    pub fn of_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.number() == number)
    }

    /// The type that holds the values of a safetensors dtype as they are.
    pub fn of_dtype(dtype: Dtype) -> Option<Self> {
        FloatDtype::try_from(dtype).ok().map(Self::of_float)
    }

    /// The type that holds the values of a float as they are.
    pub fn of_float(float: FloatDtype) -> Self {
        match float {
            FloatDtype::F32 => Self::F32,
            FloatDtype::F16 => Self::F16,
            FloatDtype::BF16 => Self::Bf16,
        }
    }

    /// Values of a block.
    pub fn block_values(self) -> u64 {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Blocks(kind) => kind.values() as u64,
            Self::Mxfp4 => mxfp4::BLOCK_VALUES as u64,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Blocks(kind) => kind.bytes() as u64,
            Self::Mxfp4 => mxfp4::GGML_BLOCK_BYTES as u64,
        }
    }

    /// Whether rows of this length are whole blocks.
    pub fn divides_rows_of(self, columns: u64) -> bool {
        columns.is_multiple_of(self.block_values())
    }

    /// Bytes of a tensor of this shape (outermost side first).
    ///
    /// # Errors
    /// No sides or more than 4, a side of 0, rows that are not whole blocks, more than 2^63 bytes.
    pub fn byte_length(self, shape: &[u64]) -> Result<u64, GgufError> {
        let Some(columns) = shape.last().filter(|_| shape.len() <= MAX_DIMENSIONS) else {
            return wrong(format!(
                "has {} dimensions, wanted 1 to {MAX_DIMENSIONS}",
                shape.len()
            ));
        };
        if shape.contains(&0) {
            return wrong(format!("has shape {shape:?}, a side of 0"));
        }
        if !self.divides_rows_of(*columns) {
            let block = self.block_values();
            return wrong(format!(
                "has rows of {columns} values, but {self} comes in blocks of {block}"
            ));
        }
        let values = shape.iter().try_fold(1_u64, |n, side| n.checked_mul(*side));
        let bytes = values.and_then(|n| (n / self.block_values()).checked_mul(self.block_bytes()));
        match bytes.filter(|n| i64::try_from(*n).is_ok()) {
            Some(bytes) => Ok(bytes),
            None => wrong(format!(
                "has shape {shape:?} of {self}, more bytes than 2^63"
            )),
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.pad("F32"),
            Self::F16 => f.pad("F16"),
            Self::Bf16 => f.pad("BF16"),
            Self::Blocks(kind) => kind.fmt(f),
            Self::Mxfp4 => f.pad("MXFP4"),
        }
    }
}

/// A tensor that a file is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, at most [`MAX_NAME_BYTES`].
    pub name: String,
    /// How its values are stored.
    pub kind: TensorType,
    /// Shape, outermost side first.
    pub shape: Vec<u64>,
}

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// How its values are stored.
    pub kind: TensorType,
    /// Shape, outermost side first.
    pub shape: Vec<u64>,
    /// First byte, counted from [`Header::data_start`]; a multiple of the alignment.
    pub offset: u64,
    /// Bytes, without padding.
    pub length: u64,
}

/// The checked header of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Metadata in file order, no key twice.
    pub metadata: Vec<(String, Value)>,
    /// Tensors by their offset in the file, no hole between them.
    pub tensors: Vec<TensorInfo>,
    /// First byte of the data, from the file's start.
    pub data_start: u64,
    /// What tensor data is padded to, in bytes.
    pub alignment: u64,
}

impl Header {
    /// Places tensors in this order behind a header with this metadata.
    ///
    /// # Errors
    /// A key or name that is empty, too long or given twice; a shape that its type cannot have; a
    /// `general.alignment` that is not a power of two.
    pub fn place(
        metadata: Vec<(String, Value)>,
        tensors: Vec<TensorSpec>,
    ) -> Result<Self, GgufError> {
        let alignment = alignment(&metadata)?;
        check_keys(&metadata)?;
        let mut placed = Vec::with_capacity(tensors.len());
        let mut offset = 0;
        for TensorSpec { name, kind, shape } in tensors {
            let length = checked_length(&name, kind, &shape)?;
            placed.push(TensorInfo {
                name,
                kind,
                shape,
                offset,
                length,
            });
            offset = padded_end(offset, length, alignment)?;
        }
        check_names(&placed)?;
        let mut header = Self {
            metadata,
            tensors: placed,
            data_start: 0,
            alignment,
        };
        header.data_start = header.to_bytes().len() as u64;
        if offset.checked_add(header.data_start).is_none() {
            return wrong("the tensors take more than 2^64 bytes");
        }
        Ok(header)
    }

    /// The file's bytes before its data, padding included.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        VERSION.write(&mut bytes);
        (self.tensors.len() as u64).write(&mut bytes);
        (self.metadata.len() as u64).write(&mut bytes);
        for (key, value) in &self.metadata {
            key.write(&mut bytes);
            value.type_number().write(&mut bytes);
            value.write(&mut bytes);
        }
        for tensor in &self.tensors {
            tensor.write(&mut bytes);
        }
        let end = bytes
            .len()
            .next_multiple_of(usize::try_from(self.alignment).unwrap_or(1));
        bytes.resize(end, 0);
        bytes
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value)
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// Length of the file in bytes, with the padding behind the last tensor.
    pub fn file_length(&self) -> u64 {
        self.data_start + data_end(&self.tensors, self.alignment)
    }
}

/// End of the last tensor's padding, from the start of the data.
pub fn data_end(tensors: &[TensorInfo], alignment: u64) -> u64 {
    tensors
        .last()
        .map_or(0, |t| (t.offset + t.length).next_multiple_of(alignment))
}

impl TensorInfo {
    fn write(&self, to: &mut Vec<u8>) {
        self.name.write(to);
        u32::try_from(self.shape.len())
            .unwrap_or(u32::MAX)
            .write(to);
        self.shape.iter().rev().for_each(|side| side.write(to));
        self.kind.number().write(to);
        self.offset.write(to);
    }
}

/// `general.alignment`, or the default.
pub(super) fn alignment(metadata: &[(String, Value)]) -> Result<u64, GgufError> {
    match metadata.iter().find(|(key, _)| key == "general.alignment") {
        None => Ok(ALIGNMENT),
        // 2^16 is generous: page-aligned files exist
        Some((_, Value::U32(n))) if n.is_power_of_two() && *n <= 1 << 16 => Ok(u64::from(*n)),
        Some((_, other)) => wrong(format!(
            "general.alignment is {other:?}, wanted a U32 power of two up to 65536"
        )),
    }
}

/// A tensor's bytes; errors carry its name.
pub(super) fn checked_length(
    name: &str,
    kind: TensorType,
    shape: &[u64],
) -> Result<u64, GgufError> {
    kind.byte_length(shape).map_err(|e| GgufError::Tensor {
        name: name.to_owned(),
        source: Box::new(e),
    })
}

/// Where the tensor after this one begins.
pub(super) fn padded_end(offset: u64, length: u64, alignment: u64) -> Result<u64, GgufError> {
    let end = offset
        .checked_add(length)
        .and_then(|end| end.checked_next_multiple_of(alignment));
    end.ok_or_else(|| GgufError::Rule("the tensors take more than 2^64 bytes".to_owned()))
}

/// Every key is there once. The specification allows 2^16 - 1 bytes of a key.
pub(super) fn check_keys(metadata: &[(String, Value)]) -> Result<(), GgufError> {
    let mut seen = HashSet::new();
    for (key, _) in metadata {
        if key.is_empty() || key.len() > usize::from(u16::MAX) {
            return wrong(format!(
                "a metadata key has {} bytes, wanted 1 to {}",
                key.len(),
                u16::MAX
            ));
        }
        if !seen.insert(key) {
            return wrong(format!("metadata key {key:?} appears twice"));
        }
    }
    Ok(())
}

/// Every name is there once, and short enough for ggml.
pub(super) fn check_names(tensors: &[TensorInfo]) -> Result<(), GgufError> {
    let mut seen = HashSet::new();
    for TensorInfo { name, .. } in tensors {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return wrong(format!(
                "tensor name {name:?} has {} bytes, wanted 1 to {MAX_NAME_BYTES}",
                name.len()
            ));
        }
        if !seen.insert(name) {
            return wrong(format!("tensor {name:?} appears twice"));
        }
    }
    Ok(())
}
