//! Attention: the norms and the rotary embedding of its heads, the cache of keys and values.

use super::super::driver::Argument::{self, Float, Int};
use super::super::driver::CudaError;
use super::operands::{HeadNorms, KvCache, View, dtype_code};
use super::{FEW_TOKENS, Launch, int};
use crate::tensor::{Compute, Heads};

/// The widest heads that attention takes.
pub(in crate::devices::cuda) const MAX_HEAD_WIDTH: usize = 128;

/// Query heads of a block of `attention_parts`, and its shared memory in values.
pub(super) const DECODE_HEADS: usize = 8;
pub(super) const DECODE_SHARED: usize = (8 + 4 + 8 * 8) * MAX_HEAD_WIDTH + 2 * 16 * 8;
/// Positions that `attention_whole` takes, and its shared memory in values.
pub(in crate::devices::cuda) const WHOLE_POSITIONS: usize = 1024;
pub(super) const WHOLE_SHARED: usize = (1 + 4 + 8) * MAX_HEAD_WIDTH + WHOLE_POSITIONS + 2 * 8;
/// Tokens of a block of `attention_tokens`, and its shared memory in values.
pub(super) const PREFILL_TOKENS: usize = 64;
pub(super) const PREFILL_SHARED: usize = (64 + 2 * 32) * (MAX_HEAD_WIDTH + 4) + 64 * (32 + 4);
/// Tokens of a block of `attention_mma`; its shared memory has three tiles of so many rows.
pub(super) const MMA_TOKENS: usize = 64;
pub(super) const MMA_STAGES: usize = 3;
/// Heads up to this width take the narrow one.
pub(super) const NARROW_HEAD: usize = 64;
/// Most parts that the positions of decoding's attention are cut into.
pub(in crate::devices::cuda) const MAX_PARTS: usize = 32;

impl Launch<'_> {
    /// Norms the heads of q and k, applies the rotary embedding, puts k and v into the cache, and attends to all
    /// positions up to each token's: `out`. q may change. The cache is cut into so many `parts`
    /// where tokens are few; `partial` has room for
    /// [`partial_values`] and begins with [`counters`] zeros, as it then does again.
    pub(in crate::devices::cuda) fn attend(
        &self,
        qkv: [View; 3],
        heads: Heads,
        norms: HeadNorms,
        cache: KvCache,
        (parts, partial): (usize, View),
        out: View,
    ) -> Result<(), CudaError> {
        let Heads {
            query,
            key_value,
            width,
        } = heads;
        let [q, k, v] = qkv;
        let tokens = q.len / (query * width);
        assert!(
            q.len == tokens * query * width
                && k.len == v.len
                && k.len == tokens * key_value * width
        );
        assert!(
            norms.q_norm.rows == width && norms.k_norm.rows == width,
            "norms of {width} values"
        );
        assert!(width <= MAX_HEAD_WIDTH && out.len == q.len && cache.keys.len == cache.values.len);
        if tokens <= FEW_TOKENS {
            return self.attend_few(qkv, heads, norms, cache, (parts, partial), out);
        }
        let mut arguments = head_arguments(qkv, heads, norms);
        arguments.extend(cache.arguments());
        arguments.push(self.rounds());
        let grid = [tokens, (query + 2 * key_value).div_ceil(4), 1];
        self.queue("heads", grid, 128, 0, &arguments)?;
        self.attend_many(q, heads, cache, out)
    }

    /// Causal attention of the last tokens, whose heads are normed, over all positions.
    pub(super) fn attend_many(
        &self,
        q: View,
        heads: Heads,
        cache: KvCache,
        out: View,
    ) -> Result<(), CudaError> {
        let Heads {
            query,
            key_value,
            width,
        } = heads;
        let tokens = q.len / (query * width);
        let arguments = [
            q.argument(),
            cache.keys.argument(),
            cache.values.argument(),
            int(query),
            int(key_value),
            int(width),
            Float(scale(width)),
            Argument::Pointer(cache.position),
            int(tokens),
            out.argument(),
        ];
        if self.compute == Compute::F32 {
            let grid = [query, tokens.div_ceil(PREFILL_TOKENS), 1];
            return self.queue(
                "attention_tokens",
                grid,
                256,
                PREFILL_SHARED * 4,
                &arguments,
            );
        }
        let (name, width) = if width > NARROW_HEAD {
            ("attention_mma", MAX_HEAD_WIDTH)
        } else {
            ("attention_mma_narrow", NARROW_HEAD)
        };
        let shared = MMA_STAGES * MMA_TOKENS * width * 2;
        self.queue(
            name,
            [query, tokens.div_ceil(MMA_TOKENS), 1],
            128,
            shared,
            &arguments,
        )
    }

    /// All of `attend` in one kernel, or two under bf16 with several parts.
    pub(super) fn attend_few(
        &self,
        qkv: [View; 3],
        heads: Heads,
        norms: HeadNorms,
        cache: KvCache,
        (parts, partial): (usize, View),
        out: View,
    ) -> Result<(), CudaError> {
        let Heads {
            query,
            key_value,
            width,
        } = heads;
        let tokens = out.len / (query * width);
        let positions = cache.keys.len / (key_value * width);
        let wanted = partial_values(tokens, heads, self.compute, parts, positions);
        assert!(
            partial.len >= wanted,
            "{partial:?} for {parts} parts of {positions} positions"
        );
        assert!((1..=MAX_PARTS).contains(&parts), "{parts} parts");
        assert!(
            parts > 1 || positions <= WHOLE_POSITIONS,
            "{positions} positions in one part"
        );
        let mut arguments = head_arguments(qkv, heads, norms);
        arguments.push(Float(scale(width)));
        arguments.extend(cache.arguments());
        arguments.extend([
            self.rounds(),
            partial.argument(),
            int(positions),
            out.argument(),
        ]);
        if parts == 1 {
            return self.queue(
                "attention_whole",
                [query, tokens, 1],
                256,
                WHOLE_SHARED * 4,
                &arguments,
            );
        }
        let grid = [
            parts,
            tokens,
            key_value * (query / key_value).div_ceil(DECODE_HEADS),
        ];
        let names: &[&'static str] = match self.compute {
            Compute::F32 => &["attention_parts"],
            Compute::Bf16 => &["attention_sums", "attention_results"],
        };
        names
            .iter()
            .try_for_each(|name| self.queue(name, grid, 256, DECODE_SHARED * 4, &arguments))
    }
}

/// What the kernels that norm heads want first.
pub(super) fn head_arguments(
    [q, k, v]: [View; 3],
    heads: Heads,
    norms: HeadNorms,
) -> Vec<Argument> {
    vec![
        q.argument(),
        k.argument(),
        v.argument(),
        norms.q_norm.argument(),
        Int(dtype_code(norms.q_norm.dtype).0),
        norms.k_norm.argument(),
        Int(dtype_code(norms.k_norm.dtype).0),
        norms.cos.argument(),
        norms.sin.argument(),
        Float(norms.eps),
        int(heads.query),
        int(heads.key_value),
        int(heads.width),
    ]
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "applied in f32, as torch does"
)]
pub(super) fn scale(width: usize) -> f32 {
    (width as f64).powf(-0.5) as f32
}

/// Counters, u32, at the start of what [`Launch::attend`] keeps in between; they must be 0.
pub(in crate::devices::cuda) fn counters(heads: Heads) -> usize {
    FEW_TOKENS * heads.query
}

/// f32 values that [`Launch::attend`] of few tokens keeps in between.
pub(in crate::devices::cuda) fn partial_values(
    tokens: usize,
    heads: Heads,
    compute: Compute,
    parts: usize,
    positions: usize,
) -> usize {
    if parts == 1 {
        return 0;
    }
    let scores = match compute {
        Compute::F32 => 0,
        Compute::Bf16 => positions.div_ceil(2),
    };
    counters(heads) + tokens.min(FEW_TOKENS) * heads.query * (parts * (2 + heads.width) + scores)
}
