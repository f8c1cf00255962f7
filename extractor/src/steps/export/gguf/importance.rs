//! Importance matrices of quantized files: which part of one belongs to which tensor.
//!
//! Where one says nothing of a tensor, its values are quantized without, as by llama.cpp.

use segpack_formats::gguf::{TensorType, Value};

use super::{Conversion, GgufExportError, Metadata, Planned, Types};
use crate::steps::export::{Importance, Quantization};

/// Whether a mix has something to choose by importance, and chooses its types as without.
///
/// # Errors
/// `Importance` where it has not, or llama.cpp's has types that are not written here.
pub(super) fn check(quantization: Option<Quantization>) -> Result<(), GgufExportError> {
    let why = match quantization {
        None => "nothing is quantized",
        Some(Quantization::Q8_0) => "blocks of 8 bits have nothing to choose",
        Some(Quantization::Q4_0 | Quantization::Q5_0) => {
            "with one, llama.cpp's mix of this name has types that segpack does not write"
        }
        Some(
            Quantization::Q4KS
            | Quantization::Q4KM
            | Quantization::Q5KS
            | Quantization::Q5KM
            | Quantization::Q6K,
        ) => return Ok(()),
    };
    Err(GgufExportError::Importance {
        why: why.to_owned(),
    })
}

/// What the matrix says of a tensor: of each column of each of its matrices.
///
/// # Errors
/// `Importance` where it has another size.
pub(super) fn of_tensor<'a>(
    types: &Types<'a>,
    name: &str,
    (matrices, columns): (usize, u64),
) -> Result<Option<&'a [f32]>, GgufExportError> {
    let found = types.importance.and_then(|matrix| matrix.get(name));
    let Some(found) = found else {
        return Ok(None);
    };
    let wanted = matrices as u64 * columns;
    if found.len() as u64 == wanted {
        return Ok(Some(found));
    }
    Err(GgufExportError::Importance {
        why: format!(
            "it has {} values for {name}, which has {matrices} x {columns} columns",
            found.len()
        ),
    })
}

/// The conversion of one of the matrices of a tensor.
pub(super) fn apply<'a>(
    conversion: Conversion<'a>,
    importance: Option<&'a [f32]>,
    number: usize,
    matrices: usize,
) -> Conversion<'a> {
    let (Conversion::Blocks(kind, from), Some(importance)) = (conversion, importance) else {
        return conversion;
    };
    let columns = importance.len() / matrices.max(1);
    Conversion::Rows(kind, from, &importance[number * columns..][..columns])
}

/// Notes how many tensors the matrix says nothing of.
///
/// # Errors
/// `Importance` where that is all of them: it is another model's.
pub(super) fn note_missing(
    planned: &[Planned<'_>],
    types: &Types<'_>,
    notes: &mut Vec<String>,
) -> Result<(), GgufExportError> {
    let Some(matrix) = types.importance else {
        return Ok(());
    };
    let quantized = || {
        let blocks = |p: &&Planned<'_>| matches!(p.spec.kind, TensorType::Blocks(_));
        planned.iter().filter(blocks)
    };
    let missing: Vec<&str> = quantized()
        .map(|p| p.spec.name.as_str())
        .filter(|name| matrix.get(name).is_none())
        .collect();
    if missing.len() == quantized().count() {
        return Err(GgufExportError::Importance {
            why: "it says nothing of any tensor of this model".to_owned(),
        });
    }
    if let Some(first) = missing.first() {
        notes.push(format!(
            "the importance matrix says nothing of {} quantized tensors ({first} first), whose values \
             all count alike",
            missing.len()
        ));
    }
    Ok(())
}

/// What llama.cpp's quantizer writes of the matrix.
pub(super) fn metadata(importance: &Importance) -> Metadata {
    let matrix = &importance.matrix;
    let count = |n: usize| Value::U32(u32::try_from(n).unwrap_or(u32::MAX));
    let mut all = vec![(
        "quantize.imatrix.file".to_owned(),
        Value::Text(importance.file.clone()),
    )];
    if let Some(first) = matrix.datasets.first() {
        let value = Value::Text(first.clone());
        all.push(("quantize.imatrix.dataset".to_owned(), value));
    }
    all.push((
        "quantize.imatrix.entries_count".to_owned(),
        count(matrix.len()),
    ));
    if matrix.chunks > 0 {
        let value = Value::U32(matrix.chunks);
        all.push(("quantize.imatrix.chunks_count".to_owned(), value));
    }
    all
}
