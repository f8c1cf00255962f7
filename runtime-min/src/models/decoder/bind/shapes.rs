//! Whether a pack's tensors are those that the config's numbers call for: compared before anything
//! is allocated by them, the same for every device.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use segpack_formats::FormatError;
use segpack_manifests::PackReader;
use segpack_manifests::families::QkNorm;

use super::{DecoderWeights, ExpertWeights, LayerWeights, LinearWeights, MlpWeights, SharedExpert};
use crate::error::{RunError, Unsuitable};
use crate::models::decoder::spec::DecoderSpec;
use crate::weights::PlacedTensor;

impl DecoderWeights<'_> {
    /// Kernels go by the config's sizes: no tensor may have others.
    ///
    /// # Errors
    /// `Unsuitable` names the first one that has.
    pub(crate) fn check_shapes(&self, spec: &DecoderSpec) -> Result<(), RunError> {
        for (number, layer) in self.layers.iter().enumerate() {
            check_layer(number, layer, spec)?;
        }
        same("final norm", self.final_norm, spec.hidden, 1)?;
        for embedding in &self.embeddings {
            same("embedding", embedding.matrix, spec.vocab, spec.hidden)?;
        }
        let mut heads = self.heads.iter();
        heads.try_for_each(|head| same("head", head.matrix, spec.vocab, spec.hidden))
    }

    /// A layer has experts, or a dense MLP, as the config says.
    ///
    /// # Errors
    /// `Unsuitable` names the first that has the other.
    pub(crate) fn check_layers(&self, has_experts: &[bool]) -> Result<(), RunError> {
        for (layer, (weights, wanted)) in self.layers.iter().zip(has_experts).enumerate() {
            if matches!(weights.mlp, MlpWeights::Experts { .. }) != *wanted {
                let wanted = *wanted;
                return Err(Unsuitable::LayerKind { layer, wanted }.into());
            }
        }
        Ok(())
    }

    /// Memory is reserved by the lengths in the manifest: the packs that are used must have them.
    ///
    /// # Errors
    /// `Malformed` names a pack of another length; `Io`.
    pub(crate) fn check_files(&self, source: &PackReader<'_>) -> Result<(), RunError> {
        let mut used: BTreeSet<&str> = self.loads().map(|l| l.segment.pack.as_str()).collect();
        for embedding in &self.embeddings {
            used.insert(&source.segment_of(embedding.entry)?.pack);
        }
        let listed = source.pack().manifest().packs.iter();
        for entry in listed.filter(|entry| used.contains(entry.path.as_str())) {
            let path = source.pack().path(&entry.path);
            let length = source.pack().files().length(&entry.path)?;
            let missing = || FormatError::io("open", &path)(ErrorKind::NotFound.into());
            let (seen, wanted) = (length.ok_or_else(missing)?, entry.length);
            if seen != wanted {
                let what = format!("has {seen} bytes, wanted {wanted}");
                return Err(FormatError::malformed(&path, what).into());
            }
        }
        Ok(())
    }
}

fn check_layer(number: usize, l: &LayerWeights<'_>, s: &DecoderSpec) -> Result<(), RunError> {
    let of = |what: &str| format!("{what} of layer {number}");
    same(&of("input norm"), l.input_norm, s.hidden, 1)?;
    let post_attention_norm = of("post-attention norm");
    same(&post_attention_norm, l.post_attention_norm, s.hidden, 1)?;
    let (query, key) = (s.query_width(), s.key_width());
    if let Some([q_norm, k_norm]) = l.qk_norms {
        let [q_width, k_width] = match s.options.qk_norm {
            QkNorm::Whole => [query, key],
            QkNorm::Absent | QkNorm::PerHead | QkNorm::PerHeadAfterRotary => [s.heads.width; 2],
        };
        same(&of("q norm"), q_norm, q_width, 1)?;
        same(&of("k norm"), k_norm, k_width, 1)?;
    }
    if let Some(sinks) = l.sinks {
        same(&of("sinks"), sinks, s.heads.query, 1)?;
    }
    let (qkv_bias, output_bias) = (s.options.has_qkv_bias, s.options.has_output_bias);
    for (what, projection, shape, has_bias) in [
        ("q projection", &l.q, [query, s.hidden], qkv_bias),
        ("k projection", &l.k, [key, s.hidden], qkv_bias),
        ("v projection", &l.v, [key, s.hidden], qkv_bias),
        ("o projection", &l.o, [s.hidden, query], output_bias),
    ] {
        linear(&of(what), projection, shape, has_bias)?;
    }
    match &l.mlp {
        MlpWeights::Dense { gate, up, down } => {
            let (inner, hidden) = (s.intermediate, s.hidden);
            linear(&of("gate projection"), gate, [inner, hidden], false)?;
            linear(&of("up projection"), up, [inner, hidden], false)?;
            linear(&of("down projection"), down, [hidden, inner], false)
        }
        MlpWeights::Experts {
            router,
            choice_bias,
            experts,
            shared,
        } => {
            let has_bias = s.options.router.has_bias;
            linear(&of("router"), router, [s.experts, s.hidden], has_bias)?;
            if let Some(bias) = choice_bias {
                same(&of("bias of the choice of experts"), *bias, s.experts, 1)?;
            }
            if let Some(shared) = shared {
                check_shared(number, shared, s)?;
            }
            let mut numbered = experts.iter().enumerate();
            numbered.try_for_each(|(expert, weights)| check_expert(number, expert, weights, s))
        }
    }
}

fn check_shared(layer: usize, e: &SharedExpert, s: &DecoderSpec) -> Result<(), RunError> {
    let of = |what: &str| format!("{what} of the shared expert of layer {layer}");
    let (inner, hidden) = (s.shared_intermediate().unwrap_or(0), s.hidden);
    linear(&of("gate"), &e.gate, [inner, hidden], false)?;
    linear(&of("up"), &e.up, [inner, hidden], false)?;
    linear(&of("down"), &e.down, [hidden, inner], false)?;
    match &e.router {
        Some(router) => linear(&of("router"), router, [1, hidden], false),
        None => Ok(()),
    }
}

fn check_expert(
    layer: usize,
    expert: usize,
    e: &ExpertWeights<'_>,
    s: &DecoderSpec,
) -> Result<(), RunError> {
    let of = |what: &str| format!("{what} of expert {expert} of layer {layer}");
    let (inner, hidden) = (s.moe_intermediate, s.hidden);
    let has_bias = s.options.experts.has_bias;
    linear(&of("gate"), &e.gate, [inner, hidden], has_bias)?;
    linear(&of("up"), &e.up, [inner, hidden], has_bias)?;
    linear(&of("down"), &e.down, [hidden, inner], has_bias)
}

/// Whether a tensor is `[rows, columns]`.
fn same(what: &str, tensor: PlacedTensor, rows: usize, columns: usize) -> Result<(), RunError> {
    let bytes = rows
        .checked_mul(columns)
        .and_then(|values| values.checked_mul(tensor.dtype.byte_width()));
    if (tensor.rows, tensor.columns) == (rows, columns) && bytes == Some(tensor.length) {
        return Ok(());
    }
    Err(Unsuitable::Shape {
        what: what.to_owned(),
        seen: [tensor.rows, tensor.columns],
        wanted: [rows, columns],
    }
    .into())
}

/// Whether a linear layer is `[rows, columns]`, and has a bias `[rows]` where it should.
fn linear(
    what: &str,
    linear: &LinearWeights,
    [rows, columns]: [usize; 2],
    has_bias: bool,
) -> Result<(), RunError> {
    same(what, linear.weight, rows, columns)?;
    if linear.bias.is_some() != has_bias {
        let what = what.to_owned();
        return Err(Unsuitable::Bias {
            what,
            wanted: has_bias,
        }
        .into());
    }
    linear
        .bias
        .map_or(Ok(()), |bias| same(&format!("{what} bias"), bias, rows, 1))
}
