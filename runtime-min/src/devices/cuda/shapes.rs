//! What the kernels can run, and whether a pack's tensors have the config's shapes.

use segpack_manifests::families::TextFacts;

use super::launch::MOST_HEAD_WIDTH;
use super::layout::Sizes;
use crate::error::{GpuLimit, RunError, Unsuitable};
use crate::models::decoder::bind::{Linear, Mlp, TextModel, Weight};
use crate::models::decoder::index;

/// Experts that a router can choose among (its values are in shared memory).
const MOST_EXPERTS: u32 = 4096;

/// What the kernels cannot run is named here.
pub(super) fn check(model: &TextModel<'_>, facts: &TextFacts) -> Result<(), RunError> {
    let width = index(facts.head_dim);
    if width > MOST_HEAD_WIDTH {
        return Err(GpuLimit::HeadWidth {
            seen: width,
            max: MOST_HEAD_WIDTH,
        }
        .into());
    }
    if facts.experts > MOST_EXPERTS {
        return Err(GpuLimit::Experts {
            seen: facts.experts,
            max: MOST_EXPERTS,
        }
        .into());
    }
    for (layer, expert, e) in model.all_experts() {
        let Mlp::Experts { experts, .. } = &model.layers[layer as usize].mlp else {
            continue;
        };
        if [e.gate.dtype, e.up.dtype, e.down.dtype]
            .iter()
            .any(|d| *d != experts[0].gate.dtype)
        {
            return Err(GpuLimit::MixedDtypes { layer, expert }.into());
        }
    }
    Ok(())
}

/// Kernels go by the config's sizes: no tensor may have others.
pub(super) fn check_shapes(model: &TextModel<'_>, s: &Sizes) -> Result<(), RunError> {
    let same = |what: &str, weight: Weight, rows: usize, columns: usize| {
        let bytes = rows * columns * weight.dtype.byte_width();
        if (weight.rows, weight.columns, weight.length) == (rows, columns, bytes) {
            return Ok(());
        }
        Err(Unsuitable::Shape {
            what: what.to_owned(),
            seen: [weight.rows, weight.columns],
            wanted: [rows, columns],
        }
        .into())
    };
    let linear = |what: &str, linear: &Linear, rows: usize, columns: usize| {
        same(what, linear.weight, rows, columns)?;
        linear
            .bias
            .map_or(Ok(()), |bias| same(&format!("{what} bias"), bias, rows, 1))
    };
    for (number, l) in model.layers.iter().enumerate() {
        let of = |what: &str| format!("{what} of layer {number}");
        same(&of("input norm"), l.input_norm, s.hidden, 1)?;
        same(
            &of("post-attention norm"),
            l.post_attention_norm,
            s.hidden,
            1,
        )?;
        same(&of("q norm"), l.q_norm, s.heads.width, 1)?;
        same(&of("k norm"), l.k_norm, s.heads.width, 1)?;
        linear(&of("q projection"), &l.q, s.query, s.hidden)?;
        linear(&of("k projection"), &l.k, s.key, s.hidden)?;
        linear(&of("v projection"), &l.v, s.key, s.hidden)?;
        linear(&of("o projection"), &l.o, s.hidden, s.query)?;
        match &l.mlp {
            Mlp::Dense { gate, up, down } => {
                linear(&of("gate projection"), gate, s.inner, s.hidden)?;
                linear(&of("up projection"), up, s.inner, s.hidden)?;
                linear(&of("down projection"), down, s.hidden, s.inner)?;
            }
            Mlp::Experts { router, experts } => {
                linear(&of("router"), router, s.experts, s.hidden)?;
                for e in experts {
                    same(&of("expert gate"), e.gate, s.moe, s.hidden)?;
                    same(&of("expert up"), e.up, s.moe, s.hidden)?;
                    same(&of("expert down"), e.down, s.hidden, s.moe)?;
                }
            }
        }
    }
    same("final norm", model.final_norm, s.hidden, 1)?;
    same("embedding", model.embedding_weight, s.vocab, s.hidden)?;
    same("head", model.head_weight, s.vocab, s.hidden)
}
