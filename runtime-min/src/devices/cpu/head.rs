//! The head where it is streamed: logits of a block of its rows at a time.

use segpack_formats::io::to_usize;
use std::ops::Range;
use std::time::{Duration, Instant};

use segpack_formats::codec::Codec;
use segpack_formats::digest::Blake3Hasher;
use segpack_formats::io::CancelToken;
use segpack_manifests::PackCursor;

use crate::error::RunError;
use crate::models::decoder::DecoderSpec;
use crate::models::decoder::bind::EndWeights;
use crate::ops::Ops;
use crate::tensor::Matrix;
use crate::weights::{ChecksumPolicy, damaged};

/// Bytes of a block, unless one row has more.
pub(super) const BLOCK_BYTES: u64 = 8 << 20;

/// Reads the head block by block.
pub(super) struct HeadStream<'a> {
    cursor: PackCursor<'a>,
    checksums: ChecksumPolicy,
    stop: &'a CancelToken,
    /// Bytes read so far.
    pub(super) bytes_read: u64,
    /// Time in which it read.
    pub(super) waited: Duration,
}

impl<'a> HeadStream<'a> {
    pub(super) fn new(
        cursor: PackCursor<'a>,
        checksums: ChecksumPolicy,
        stop: &'a CancelToken,
    ) -> Self {
        Self {
            cursor,
            checksums,
            stop,
            bytes_read: 0,
            waited: Duration::ZERO,
        }
    }

    /// `out`, `[tokens, vocab]`, the logits of `x`, `[tokens, hidden]`. Of a raw segment the digest
    /// is known only after the last block: `out` is of use if this returns without an error. Chunks
    /// of a coded one have checks of their own.
    pub(super) fn logits(
        &mut self,
        ops: &impl Ops,
        spec: &DecoderSpec,
        head: EndWeights<'_>,
        x: &[f32],
        out: &mut [f32],
    ) -> Result<(), RunError> {
        let (matrix, head) = (head.matrix, head.entry);
        let segment = self.cursor.source().segment_of(head)?;
        let is_checked = self.checksums != ChecksumPolicy::Never
            && segment.codec == Codec::Raw
            && segment.raw_length == head.length;
        let vocab = spec.vocab as u64;
        let row = head.length / vocab.max(1);
        let rows = (BLOCK_BYTES / row.max(1)).max(1);
        let (mut blake3, mut first) = (Blake3Hasher::default(), 0);
        let mut bytes = Vec::with_capacity(to_usize(rows * row));
        while first < vocab {
            let last = (first + rows).min(vocab);
            // the next rows, and their part of the digest
            let began = Instant::now();
            bytes.clear();
            let range = first * row..last * row;
            self.cursor.read_tensor(head, range, self.stop, |piece| {
                bytes.extend_from_slice(piece);
                Ok::<_, RunError>(())
            })?;
            if is_checked {
                blake3.update(&bytes);
            }
            self.waited += began.elapsed();
            self.bytes_read += (last - first) * row;
            // their logits
            let block = Matrix {
                dtype: matrix.dtype,
                bytes: &bytes,
                rows: to_usize(last - first),
                columns: matrix.columns,
            };
            let rows = to_usize(first)..to_usize(last);
            block_logits(ops, x, block, rows, spec.vocab, out);
            self.stop.check()?;
            first = last;
        }
        let seen = blake3.finish();
        if is_checked && seen != segment.blake3 {
            let file = self.cursor.source().open(&segment.pack)?;
            return Err(damaged(&*file, segment, &seen.to_string()).into());
        }
        Ok(())
    }
}

/// The logits of some rows of the head.
fn block_logits(
    ops: &impl Ops,
    x: &[f32],
    block: Matrix<'_>,
    rows: Range<usize>,
    vocab: usize,
    out: &mut [f32],
) {
    let mut part = vec![0.0; x.len() / block.columns * block.rows];
    ops.linear(x, block, None, &mut part);
    let tokens = out
        .chunks_exact_mut(vocab)
        .zip(part.chunks_exact(block.rows));
    for (out, part) in tokens {
        out[rows.clone()].copy_from_slice(part);
    }
}
