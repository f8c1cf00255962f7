//! Word embeddings of the thinker, read row by row: all that speech needs of it.

use segpack_formats::io::CancelToken;
use segpack_manifests::PackReader;
use segpack_manifests::documents::TensorEntry;
use segpack_manifests::families::TextFacts;
use segpack_manifests::names::{Component, Role};

use crate::error::{RunError, Unsuitable};
use crate::weights::{PlacedTensor, read_rows, row_bytes};

/// The embedding of the thinker, in its pack.
pub(crate) struct ThinkerEmbedding<'a> {
    source: &'a PackReader<'a>,
    entry: &'a TensorEntry,
    table: PlacedTensor,
    /// Bytes read so far.
    pub(crate) bytes_read: u64,
}

impl<'a> ThinkerEmbedding<'a> {
    /// Finds it, and compares its shape with the thinker's sizes.
    ///
    /// # Errors
    /// `Unsuitable` where it is missing, of another shape, or of a dtype that is not computed with.
    pub(crate) fn find(source: &'a PackReader<'a>, thinker: &TextFacts) -> Result<Self, RunError> {
        let mut tensors = source.pack().manifest().tensors.iter();
        let is_it =
            |t: &&TensorEntry| t.component == Component::ThinkerText && t.role == Role::Embedding;
        let Some(entry) = tensors.find(is_it) else {
            return Err(Unsuitable::Missing {
                owner: "the thinker".to_owned(),
                role: Role::Embedding.to_string(),
            }
            .into());
        };
        let table = PlacedTensor::new(entry, 0)?;
        let wanted = [thinker.vocab, thinker.hidden_size];
        let values = wanted[0].checked_mul(wanted[1]);
        let bytes = values.and_then(|n| n.checked_mul(table.dtype.byte_width() as u64));
        if entry.shape != wanted || bytes != Some(entry.length) {
            return Err(Unsuitable::TensorShape {
                tensor: entry.name.clone(),
                seen: entry.shape.clone(),
                wanted: wanted.to_vec(),
            }
            .into());
        }
        Ok(Self {
            source,
            entry,
            table,
            bytes_read: 0,
        })
    }

    /// The rows of these tokens, `[ids, hidden]`.
    ///
    /// # Errors
    /// `TokenId`; damage of the pack.
    pub(crate) fn rows(&mut self, ids: &[u32], stop: &CancelToken) -> Result<Vec<f32>, RunError> {
        let mut cursor = self.source.cursor()?;
        let values = read_rows(&mut cursor, (self.entry, self.table), ids, stop)?;
        self.bytes_read += ids.len() as u64 * row_bytes(self.table);
        Ok(values)
    }
}
