//! What an export will write: files, their tensors, and where each one's bytes come from.
//!
//! A target makes the plan; who writes and who checks know nothing of targets but how to read a
//! file's own index.

use segpack_formats::io::to_usize;
use segpack_formats::npy;
use segpack_formats::numeric::ggml::BlockType;
use segpack_formats::numeric::{Dtype, FloatConversion, FloatDtype};
use segpack_formats::safetensors::{NewTensor, byte_length, new_header};
use segpack_manifests::documents::{SourceFile, TensorEntry};

use super::arrangement::Arrangement;
use super::error::{Cause, ExportError};
use super::origin::Origin;

/// Everything that an export writes.
#[derive(Debug, Default)]
pub(super) struct ExportPlan<'a> {
    /// The files, in the order in which they are moved to their places.
    pub files: Vec<PlannedFile<'a>>,
    /// What the user has to know about the result.
    pub notes: Vec<String>,
}

/// One file of the output.
#[derive(Debug)]
pub(super) struct PlannedFile<'a> {
    /// Path relative to the output folder.
    pub path: String,
    /// What is in it.
    pub content: Content<'a>,
}

/// What is in a file.
#[derive(Debug)]
pub(super) enum Content<'a> {
    /// Tensors.
    Tensors(TensorFile<'a>),
    /// A file of the checkpoint, verbatim.
    Copy(&'a SourceFile),
    /// A small document.
    Bytes(Vec<u8>),
}

/// A file of tensors: a head, then each tensor at its offset; what lies between is zero.
#[derive(Debug)]
pub(super) struct TensorFile<'a> {
    /// How the file's own index is read back.
    pub format: FileFormat,
    /// The bytes before the first tensor.
    pub head: Vec<u8>,
    /// The tensors by place.
    pub tensors: Vec<Placed<'a>>,
    /// Bytes of the whole file.
    pub length: u64,
}

/// A tensor and the offset of its first byte, from the start of the file.
#[derive(Debug)]
pub(super) struct Placed<'a> {
    /// The tensor.
    pub tensor: NewTensorPlan<'a>,
    /// Its first byte.
    pub offset: u64,
}

/// A tensor of the output: the bytes of its parts, one after the other.
#[derive(Debug, Clone)]
pub(super) struct NewTensorPlan<'a> {
    /// Its name there.
    pub name: String,
    /// Its element type, as the output's format names it.
    pub dtype: String,
    /// Its shape, outermost dimension first.
    pub shape: Vec<u64>,
    /// Bytes that come first, of values that follow from the configuration alone.
    pub made: Vec<u8>,
    /// Where its other bytes come from.
    pub parts: Vec<Part<'a>>,
}

/// A tensor of the pack, and what becomes of its values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    /// The tensor of the pack.
    pub source: &'a TensorEntry,
    /// Another one, the scales of its blocks, that goes into the same bytes.
    pub beside: Option<&'a TensorEntry>,
    /// The order that its values get.
    pub arrangement: Arrangement,
    /// What becomes of them in that order. A block of the arrangement is whole blocks of it.
    pub conversion: Conversion<'a>,
}

/// What becomes of the values of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Conversion<'a> {
    /// The same bytes.
    Keep,
    /// The same values, as nearly as another floating-point dtype has them.
    Float(FloatConversion),
    /// Values of this dtype as ggml's blocks.
    Blocks(BlockType, FloatDtype),
    /// The same, where errors count as much as the importance of their columns says. What is
    /// converted together are rows.
    Rows(BlockType, FloatDtype, &'a [f32]),
}

impl Conversion<'_> {
    /// From `from` to the wanted dtype where both are floats of 16 to 64 bits; everything else
    /// keeps its bytes.
    pub(crate) fn to(from: Dtype, wanted: Option<FloatDtype>) -> Self {
        wanted
            .and_then(|to| FloatConversion::new(from, to))
            .map_or(Self::Keep, Self::Float)
    }

    /// Bytes that are converted together, before and after.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Self::Keep => (1, 1),
            Self::Float(float) => (float.from_bytes(), float.to_bytes()),
            Self::Blocks(kind, from) => (from.byte_width() * kind.values(), kind.bytes()),
            Self::Rows(kind, from, importance) => {
                let blocks = importance.len() / kind.values();
                (from.byte_width() * importance.len(), blocks * kind.bytes())
            }
        }
    }

    /// Bytes after, of so many before.
    pub(super) fn length(self, before: u64) -> u64 {
        let (from, to) = self.block();
        before / from as u64 * to as u64
    }

    /// Appends what becomes of a whole number of blocks, made by this many threads where it takes
    /// long.
    ///
    /// # Errors
    /// Where a value cannot be represented.
    pub(super) fn convert(
        self,
        before: &[u8],
        threads: usize,
        after: &mut Vec<u8>,
    ) -> Result<(), Cause> {
        match self {
            Self::Keep => after.extend(before),
            Self::Float(float) => float.convert(before, after)?,
            Self::Blocks(kind, from) => kind.quantize_on(threads, from, before, after)?,
            Self::Rows(kind, from, importance) => {
                kind.quantize_rows(threads, from, importance, before, after)?;
            }
        }
        Ok(())
    }

    /// Judges whether `after` is what should have become of a whole number of blocks: by value, and
    /// blocks of ggml's other than Q8_0 by quantizing again.
    ///
    /// # Errors
    /// In words, which value is wrong.
    pub(super) fn check(self, before: &[u8], threads: usize, after: &[u8]) -> Result<(), String> {
        match self {
            Self::Keep if before == after => Ok(()),
            Self::Keep => Err("bytes differ".to_owned()),
            Self::Float(float) => match float.first_wrong(before, after) {
                None => Ok(()),
                Some(index) => Err(format!(
                    "value number {index} of the piece is not the pack's"
                )),
            },
            Self::Blocks(kind, from) => match kind.first_wrong(threads, from, before, after) {
                None => Ok(()),
                Some(block) => Err(format!(
                    "block number {block} of the piece is not the pack's"
                )),
            },
            Self::Rows(kind, from, importance) => {
                match kind.first_wrong_row(threads, from, importance, before, after) {
                    None => Ok(()),
                    Some(row) => Err(format!("row number {row} of the piece is not the pack's")),
                }
            }
        }
    }
}

impl<'a> Part<'a> {
    /// All values of a tensor in the order that they have.
    pub(super) fn of(source: &'a TensorEntry, conversion: Conversion<'a>) -> Self {
        Self {
            source,
            beside: None,
            arrangement: Arrangement::Kept,
            conversion,
        }
    }

    /// Whether the output has the very bytes of the tensor.
    pub(super) fn is_kept(&self) -> bool {
        self.arrangement == Arrangement::Kept && self.conversion == Conversion::Keep
    }

    /// Bytes of the tensor that are converted together.
    pub(super) fn block(&self) -> usize {
        match self.arrangement {
            Arrangement::Kept => self.conversion.block().0,
            arranged => arranged.block(to_usize(self.source.length)).max(1),
        }
    }

    /// Bytes in the output.
    pub(super) fn length(&self) -> u64 {
        self.length_of(self.source.length)
    }

    /// Bytes in the output, of so many of the tensor.
    pub(super) fn length_of(&self, before: u64) -> u64 {
        self.conversion.length(self.arrangement.length(before))
    }

    /// Appends what becomes of a whole number of blocks; `beside` is all of the tensor beside it.
    ///
    /// # Errors
    /// As [`Conversion::convert`].
    pub(super) fn convert(
        &self,
        (before, beside): (&[u8], &[u8]),
        threads: usize,
        after: &mut Vec<u8>,
    ) -> Result<(), Cause> {
        if self.arrangement == Arrangement::Kept {
            return self.conversion.convert(before, threads, after);
        }
        let mut arranged = Vec::with_capacity(before.len());
        self.arrangement.arrange(before, beside, &mut arranged);
        self.conversion.convert(&arranged, threads, after)
    }

    /// Judges whether `after` is what should have become of a whole number of blocks.
    ///
    /// # Errors
    /// As [`Conversion::check`].
    pub(super) fn check(
        &self,
        (before, beside): (&[u8], &[u8]),
        threads: usize,
        after: &[u8],
    ) -> Result<(), String> {
        if self.arrangement == Arrangement::Kept {
            return self.conversion.check(before, threads, after);
        }
        let mut arranged = Vec::with_capacity(before.len());
        self.arrangement.arrange(before, beside, &mut arranged);
        self.conversion.check(&arranged, threads, after)
    }
}

impl<'a> NewTensorPlan<'a> {
    /// A tensor of the pack under a name of its own.
    pub(crate) fn of(name: String, source: &'a TensorEntry, wanted: Option<FloatDtype>) -> Self {
        let conversion = Conversion::to(source.dtype, wanted);
        let dtype = dtype_after(source.dtype, conversion);
        let shape = source.shape.clone();
        Self {
            name,
            dtype: dtype.to_string(),
            shape,
            made: Vec::new(),
            parts: vec![Part::of(source, conversion)],
        }
    }

    /// Bytes in the output.
    pub(super) fn length(&self) -> u64 {
        self.made.len() as u64 + self.parts.iter().map(Part::length).sum::<u64>()
    }

    /// Values in it.
    pub(super) fn values(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Its parts do not make it.
    pub(super) fn wrong_parts(&self) -> ExportError {
        ExportError::Parts {
            tensor: self.name.clone(),
            parts: self.parts.len(),
            shape: self.shape.clone(),
            dtype: self.dtype.clone(),
        }
    }

    fn safetensors_dtype(&self) -> Result<Dtype, ExportError> {
        let first = self
            .parts
            .first()
            .map(|p| dtype_after(p.source.dtype, p.conversion));
        first.ok_or_else(|| self.wrong_parts())
    }
}

fn dtype_after(before: Dtype, conversion: Conversion<'_>) -> Dtype {
    match conversion {
        Conversion::Keep => before,
        Conversion::Float(float) => float.to(),
        // safetensors has no blocks: bytes
        Conversion::Blocks(..) | Conversion::Rows(..) => Dtype::U8,
    }
}

/// How the index of a written file is read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileFormat {
    /// <https://github.com/huggingface/safetensors#format>
    Safetensors,
    /// <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>
    Gguf,
    /// One array of numpy's; its name is that of the file.
    Npy,
}

impl<'a> TensorFile<'a> {
    /// A safetensors file of these tensors: in their order, but wider elements first, so that every
    /// tensor is aligned.
    ///
    /// # Errors
    /// Where the header would be too long.
    pub(super) fn safetensors(
        mut tensors: Vec<NewTensorPlan<'a>>,
        origin: &Origin,
    ) -> Result<Self, ExportError> {
        let mut dtypes = Vec::with_capacity(tensors.len());
        tensors
            .sort_by_key(|t| std::cmp::Reverse(t.safetensors_dtype().map_or(0, |d| d.bitsize()))); // stable
        for tensor in &tensors {
            dtypes.push(tensor.safetensors_dtype()?);
        }
        for (tensor, dtype) in tensors.iter().zip(&dtypes) {
            if byte_length(*dtype, &tensor.shape).ok() != Some(tensor.length()) {
                return Err(tensor.wrong_parts());
            }
        }
        let named: Vec<NewTensor<'_>> = tensors
            .iter()
            .zip(&dtypes)
            .map(|(t, dtype)| NewTensor {
                name: &t.name,
                dtype: *dtype,
                shape: &t.shape,
            })
            .collect();
        let head = new_header(&named, &origin.pairs()).map_err(ExportError::Header)?;
        let (mut length, mut placed) = (head.len() as u64, Vec::with_capacity(tensors.len()));
        for tensor in tensors {
            let offset = length;
            length += tensor.length();
            placed.push(Placed { tensor, offset });
        }
        Ok(Self {
            format: FileFormat::Safetensors,
            head,
            tensors: placed,
            length,
        })
    }

    /// A `.npy` file of one tensor.
    ///
    /// # Errors
    /// `Numpy` where numpy has no dtype for it.
    pub(super) fn npy(mut tensor: NewTensorPlan<'a>) -> Result<Self, ExportError> {
        let dtype = tensor.safetensors_dtype()?;
        let Some(descr) = npy::descr(dtype) else {
            return Err(ExportError::Numpy {
                tensor: tensor.name,
                dtype,
            });
        };
        tensor.dtype = descr.to_owned();
        let head = npy::header(descr, &tensor.shape);
        let offset = head.len() as u64;
        let length = offset + tensor.length();
        Ok(Self {
            format: FileFormat::Npy,
            head,
            tensors: vec![Placed { tensor, offset }],
            length,
        })
    }
}

impl PlannedFile<'_> {
    /// Bytes of the file.
    pub(super) fn length(&self) -> u64 {
        match &self.content {
            Content::Tensors(file) => file.length,
            Content::Copy(file) => file.stored_length,
            Content::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// How many tensors are in it, and how many of their values are converted.
    pub(super) fn tensors(&self) -> &[Placed<'_>] {
        match &self.content {
            Content::Tensors(file) => &file.tensors,
            _ => &[],
        }
    }
}
