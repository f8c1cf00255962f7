//! The tensors of the encoder.

use segpack_formats::FormatError;
use segpack_formats::io::CancelToken;
use segpack_manifests::PackReader;
use segpack_manifests::names::Component;

use super::AudioSpec;
use crate::error::RunError;
use crate::models::encoder::{Affine, Dense, EncoderTensors, Mlp, Projection};
use crate::ops::Ops;
use crate::weights::{PlacedTensor, SegmentGroup};

/// All of them.
pub(super) struct AudioWeights<'a> {
    pub(super) stem: Stem<'a>,
    pub(super) layers: Vec<Layer<'a>>,
    pub(super) head: Head<'a>,
}

/// What comes before the layers.
pub(super) struct Stem<'a> {
    pub(super) group: SegmentGroup<'a>,
    pub(super) spec: AudioSpec,
    /// `[channels, inputs × 3 × 3]`, and biases.
    pub(super) convolutions: [Dense; 3],
    /// `[width, channels × bins]`
    pub(super) out: PlacedTensor,
}

/// One layer.
pub(super) struct Layer<'a> {
    pub(super) group: SegmentGroup<'a>,
    pub(super) attention_norm: Affine,
    pub(super) q: Dense,
    pub(super) k: Dense,
    pub(super) v: Dense,
    pub(super) out: Dense,
    pub(super) mlp: Mlp,
}

/// What comes after them.
pub(super) struct Head<'a> {
    pub(super) group: SegmentGroup<'a>,
    pub(super) projection: Projection,
}

impl<'a> AudioWeights<'a> {
    /// Finds every tensor that the encoder needs, and none besides.
    pub(super) fn find(source: &'a PackReader<'a>, spec: &AudioSpec) -> Result<Self, RunError> {
        let mut tensors = EncoderTensors::find(source, Component::ThinkerAudio, "audio_tower.")?;
        let stem = Stem::find(&mut tensors, spec)?;
        let layers = (0..spec.layers).map(|number| Layer::find(&mut tensors, spec, number));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let head = Head::find(&mut tensors, spec)?;
        tensors.finish()?;
        Ok(Self { stem, layers, head })
    }
}

impl<'a> Stem<'a> {
    fn find(tensors: &mut EncoderTensors<'a>, spec: &AudioSpec) -> Result<Self, RunError> {
        let mut group = SegmentGroup::default();
        let channels = spec.channels;
        let convolutions = [
            convolution(tensors, "conv2d1", [channels, 1], &mut group)?,
            convolution(tensors, "conv2d2", [channels, channels], &mut group)?,
            convolution(tensors, "conv2d3", [channels, channels], &mut group)?,
        ];
        let shape = [spec.width, spec.flattened()];
        Ok(Self {
            out: tensors.take("conv_out.weight", &shape, &mut group)?,
            group,
            spec: *spec,
            convolutions,
        })
    }
}

/// A convolution with kernels of 3 × 3.
fn convolution<'a>(
    tensors: &mut EncoderTensors<'a>,
    name: &str,
    [channels, inputs]: [usize; 2],
    group: &mut SegmentGroup<'a>,
) -> Result<Dense, RunError> {
    let shape = [channels, inputs, 3, 3];
    Ok(Dense {
        weight: tensors.take(&format!("{name}.weight"), &shape, group)?,
        bias: tensors.take(&format!("{name}.bias"), &[channels], group)?,
    })
}

impl<'a> Layer<'a> {
    fn find(
        tensors: &mut EncoderTensors<'a>,
        spec: &AudioSpec,
        number: usize,
    ) -> Result<Self, RunError> {
        let mut group = SegmentGroup::default();
        let (width, ffn) = (spec.width, spec.ffn);
        let name = |rest: &str| format!("layers.{number}.{rest}");
        let mut square = |rest: &str| tensors.dense(&name(rest), [width, width], &mut group);
        let q = square("self_attn.q_proj")?;
        let k = square("self_attn.k_proj")?;
        let v = square("self_attn.v_proj")?;
        let out = square("self_attn.out_proj")?;
        let attention_norm = tensors.affine(&name("self_attn_layer_norm"), width, &mut group)?;
        let mlp = Mlp {
            norm: tensors.affine(&name("final_layer_norm"), width, &mut group)?,
            up: tensors.dense(&name("fc1"), [ffn, width], &mut group)?,
            down: tensors.dense(&name("fc2"), [width, ffn], &mut group)?,
        };
        Ok(Self {
            group,
            attention_norm,
            q,
            k,
            v,
            out,
            mlp,
        })
    }
}

impl Layer<'_> {
    /// Queries, keys and values.
    pub(super) fn project(
        &self,
        ops: &impl Ops,
        memory: &[u8],
        normed: &[f32],
        qkv: &mut [Vec<f32>; 3],
        stop: &CancelToken,
    ) -> Result<(), FormatError> {
        for (dense, to) in [&self.q, &self.k, &self.v].into_iter().zip(qkv) {
            dense.run(ops, memory, normed, to, stop)?;
        }
        Ok(())
    }
}

impl<'a> Head<'a> {
    fn find(tensors: &mut EncoderTensors<'a>, spec: &AudioSpec) -> Result<Self, RunError> {
        let mut group = SegmentGroup::default();
        let (width, output) = (spec.width, spec.output);
        let projection = Projection {
            norm: tensors.affine("ln_post", width, &mut group)?,
            first: tensors.dense("proj1", [width, width], &mut group)?,
            second: tensors.dense("proj2", [output, width], &mut group)?,
        };
        Ok(Self { group, projection })
    }
}
