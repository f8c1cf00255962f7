//! Rows of a matrix, read out of its pack one by one.

use segpack_formats::io::CancelToken;
use segpack_manifests::PackCursor;
use segpack_manifests::documents::TensorEntry;

use super::PlacedTensor;
use crate::error::RunError;

/// Rows of an embedding, `[ids, columns]`, widened. [`row_bytes`] are read for each.
///
/// # Errors
/// `TokenId` for a row that it does not have; damage of the pack.
pub(crate) fn read_rows(
    cursor: &mut PackCursor<'_>,
    (entry, matrix): (&TensorEntry, PlacedTensor),
    ids: &[u32],
    stop: &CancelToken,
) -> Result<Vec<f32>, RunError> {
    if let Some(id) = ids.iter().find(|id| **id as usize >= matrix.rows) {
        let rows = matrix.rows as u64;
        return Err(RunError::TokenId { id: *id, rows });
    }
    let width = row_bytes(matrix);
    let mut values = vec![0.0; ids.len() * matrix.columns];
    let mut bytes = Vec::new();
    for (id, to) in ids.iter().zip(values.chunks_exact_mut(matrix.columns)) {
        bytes.clear();
        let start = u64::from(*id) * width;
        cursor.read_tensor(entry, start..start + width, stop, |piece| {
            bytes.extend_from_slice(piece);
            Ok::<_, RunError>(())
        })?;
        matrix.dtype.widen(&bytes, to);
    }
    Ok(values)
}

/// Bytes of a row.
pub(crate) fn row_bytes(matrix: PlacedTensor) -> u64 {
    (matrix.columns * matrix.dtype.byte_width()) as u64
}
