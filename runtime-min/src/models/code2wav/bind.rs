//! The tensors of the vocoder.

use segpack_manifests::PackReader;
use segpack_manifests::names::Component;

use super::VocoderSpec;
use crate::error::RunError;
use crate::models::encoder::{Affine, Dense, EncoderTensors};
use crate::weights::{PlacedTensor, SegmentGroup};

/// Length of the kernels that see more than one row.
pub(super) const KERNEL: usize = 7;
/// How far apart the rows are that the residual units of a block see.
pub(super) const DILATIONS: [usize; 3] = [1, 3, 9];

/// All of them.
pub(super) struct VocoderWeights<'a> {
    /// `[groups × codebook, hidden]`
    pub(super) embedding: PlacedTensor,
    pub(super) embedding_group: SegmentGroup<'a>,
    pub(super) layers: Vec<Layer<'a>>,
    /// What follows the transformer, its last norm first.
    pub(super) tail: TailWeights,
    pub(super) tail_group: SegmentGroup<'a>,
}

/// A linear layer with or without a bias.
#[derive(Debug, Clone, Copy)]
pub(super) struct Projection {
    pub(super) weight: PlacedTensor,
    pub(super) bias: Option<PlacedTensor>,
}

/// A layer of the transformer.
pub(super) struct Layer<'a> {
    pub(super) group: SegmentGroup<'a>,
    pub(super) attention_norm: PlacedTensor,
    pub(super) q: Projection,
    pub(super) k: Projection,
    pub(super) v: Projection,
    pub(super) out: Projection,
    pub(super) attention_scale: PlacedTensor,
    pub(super) mlp_norm: PlacedTensor,
    pub(super) gate: PlacedTensor,
    pub(super) up: PlacedTensor,
    pub(super) down: PlacedTensor,
    pub(super) mlp_scale: PlacedTensor,
}

/// What follows the layers.
pub(super) struct TailWeights {
    pub(super) norm: PlacedTensor,
    pub(super) stages: Vec<StageWeights>,
    pub(super) first: Dense,
    pub(super) blocks: Vec<BlockWeights>,
    pub(super) last_snake: SnakeWeights,
    pub(super) last: Dense,
}

/// Upsampling, and a ConvNeXt block.
pub(super) struct StageWeights {
    pub(super) factor: usize,
    pub(super) transposed: Dense,
    pub(super) depthwise: Dense,
    pub(super) norm: Affine,
    pub(super) up: Dense,
    pub(super) down: Dense,
    pub(super) gamma: PlacedTensor,
}

/// A block of the waveform decoder.
pub(super) struct BlockWeights {
    pub(super) rate: usize,
    pub(super) snake: SnakeWeights,
    pub(super) transposed: Dense,
    pub(super) units: [UnitWeights; 3],
}

/// A residual unit.
pub(super) struct UnitWeights {
    pub(super) snakes: [SnakeWeights; 2],
    pub(super) dilated: Dense,
    pub(super) pointwise: Dense,
}

/// Logarithms, one per channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct SnakeWeights {
    pub(super) alpha: PlacedTensor,
    pub(super) beta: PlacedTensor,
}

impl<'a> VocoderWeights<'a> {
    /// Finds every tensor that the vocoder needs, and none besides.
    pub(super) fn find(source: &'a PackReader<'a>, spec: &VocoderSpec) -> Result<Self, RunError> {
        let mut tensors = EncoderTensors::find(source, Component::Code2wav, "code2wav.")?;
        let mut embedding_group = SegmentGroup::default();
        let codes = spec.groups.saturating_mul(spec.codebook);
        let embedding = tensors.take(
            "code_embedding.weight",
            &[codes, spec.hidden],
            &mut embedding_group,
        )?;
        let layers = (0..spec.layers).map(|number| Layer::find(&mut tensors, spec, number));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let mut tail_group = SegmentGroup::default();
        let mut finder = TailFinder {
            tensors: &mut tensors,
            group: &mut tail_group,
        };
        let tail = finder.tail(spec)?;
        tensors.finish()?;
        Ok(Self {
            embedding,
            embedding_group,
            layers,
            tail,
            tail_group,
        })
    }
}

impl Projection {
    /// The weight of this name, and its bias where the model has biases.
    fn find<'a>(
        tensors: &mut EncoderTensors<'a>,
        name: &str,
        [rows, columns]: [usize; 2],
        has_bias: bool,
        group: &mut SegmentGroup<'a>,
    ) -> Result<Self, RunError> {
        let weight = tensors.take(&format!("{name}.weight"), &[rows, columns], group)?;
        let bias = has_bias.then(|| tensors.take(&format!("{name}.bias"), &[rows], group));
        Ok(Self {
            weight,
            bias: bias.transpose()?,
        })
    }
}

impl<'a> Layer<'a> {
    fn find(
        tensors: &mut EncoderTensors<'a>,
        spec: &VocoderSpec,
        number: usize,
    ) -> Result<Self, RunError> {
        let mut group = SegmentGroup::default();
        let heads = spec.attention;
        let (queries, keys) = (heads.query * heads.width, heads.key_value * heads.width);
        let hidden = spec.hidden;
        let name = |rest: &str| format!("pre_transformer.layers.{number}.{rest}");
        let mut projection = |rest: &str, shape: [usize; 2]| {
            let name = name(&format!("self_attn.{rest}"));
            Projection::find(tensors, &name, shape, spec.has_bias, &mut group)
        };
        let q = projection("q_proj", [queries, hidden])?;
        let k = projection("k_proj", [keys, hidden])?;
        let v = projection("v_proj", [keys, hidden])?;
        let out = projection("o_proj", [hidden, queries])?;
        let mut take = |rest: &str, shape: &[usize]| tensors.take(&name(rest), shape, &mut group);
        let (inner, outer) = ([spec.intermediate, hidden], [hidden, spec.intermediate]);
        Ok(Self {
            attention_norm: take("input_layernorm.weight", &[hidden])?,
            q,
            k,
            v,
            out,
            attention_scale: take("self_attn_layer_scale.scale", &[hidden])?,
            mlp_norm: take("post_attention_layernorm.weight", &[hidden])?,
            gate: take("mlp.gate_proj.weight", &inner)?,
            up: take("mlp.up_proj.weight", &inner)?,
            down: take("mlp.down_proj.weight", &outer)?,
            mlp_scale: take("mlp_layer_scale.scale", &[hidden])?,
            group,
        })
    }
}

/// Finds what is kept in one group.
struct TailFinder<'f, 'a> {
    tensors: &'f mut EncoderTensors<'a>,
    group: &'f mut SegmentGroup<'a>,
}

impl TailFinder<'_, '_> {
    fn tail(&mut self, spec: &VocoderSpec) -> Result<TailWeights, RunError> {
        let hidden = spec.hidden;
        let norm = self.take("pre_transformer.norm.weight", &[hidden])?;
        let stages = spec.stages.iter().enumerate();
        let stages = stages.map(|(number, factor)| self.stage(number, *factor, hidden));
        let stages = stages.collect::<Result<Vec<_>, _>>()?;
        let first = self.conv(
            "decoder.0.conv",
            &[spec.decoder, hidden, KERNEL],
            spec.decoder,
        )?;
        let blocks = (1..).zip(&spec.rates);
        let blocks = blocks.map(|(unit, rate)| self.block(spec, unit, *rate));
        let blocks = blocks.collect::<Result<Vec<_>, _>>()?;
        let (count, width) = (spec.rates.len(), spec.width_after(spec.rates.len()));
        let last = format!("decoder.{}.conv", count + 2);
        Ok(TailWeights {
            norm,
            stages,
            first,
            blocks,
            last_snake: self.snake(&format!("decoder.{}", count + 1), width)?,
            last: self.conv(&last, &[1, width, KERNEL], 1)?,
        })
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<PlacedTensor, RunError> {
        self.tensors.take(name, shape, self.group)
    }

    fn conv(&mut self, name: &str, shape: &[usize], outputs: usize) -> Result<Dense, RunError> {
        Ok(Dense {
            weight: self.take(&format!("{name}.weight"), shape)?,
            bias: self.take(&format!("{name}.bias"), &[outputs])?,
        })
    }

    fn snake(&mut self, name: &str, width: usize) -> Result<SnakeWeights, RunError> {
        Ok(SnakeWeights {
            alpha: self.take(&format!("{name}.alpha"), &[width])?,
            beta: self.take(&format!("{name}.beta"), &[width])?,
        })
    }

    fn stage(
        &mut self,
        number: usize,
        factor: usize,
        hidden: usize,
    ) -> Result<StageWeights, RunError> {
        let name = |rest: &str| format!("upsample.{number}.{rest}");
        let inner = hidden.saturating_mul(4);
        Ok(StageWeights {
            factor,
            transposed: self.conv(&name("0.conv"), &[hidden, hidden, factor], hidden)?,
            depthwise: self.conv(&name("1.dwconv.conv"), &[hidden, 1, KERNEL], hidden)?,
            norm: self.tensors.affine(&name("1.norm"), hidden, self.group)?,
            up: self
                .tensors
                .dense(&name("1.pwconv1"), [inner, hidden], self.group)?,
            down: self
                .tensors
                .dense(&name("1.pwconv2"), [hidden, inner], self.group)?,
            gamma: self.take(&name("1.gamma"), &[hidden])?,
        })
    }

    fn block(
        &mut self,
        spec: &VocoderSpec,
        unit: usize,
        rate: usize,
    ) -> Result<BlockWeights, RunError> {
        let (before, after) = (spec.width_after(unit - 1), spec.width_after(unit));
        let name = |rest: &str| format!("decoder.{unit}.block.{rest}");
        let kernel = rate.saturating_mul(2);
        Ok(BlockWeights {
            rate,
            snake: self.snake(&name("0"), before)?,
            transposed: self.conv(&name("1.conv"), &[before, after, kernel], after)?,
            units: [
                self.unit(&name("2"), after)?,
                self.unit(&name("3"), after)?,
                self.unit(&name("4"), after)?,
            ],
        })
    }

    fn unit(&mut self, name: &str, width: usize) -> Result<UnitWeights, RunError> {
        Ok(UnitWeights {
            snakes: [
                self.snake(&format!("{name}.act1"), width)?,
                self.snake(&format!("{name}.act2"), width)?,
            ],
            dilated: self.conv(
                &format!("{name}.conv1.conv"),
                &[width, width, KERNEL],
                width,
            )?,
            pointwise: self.conv(&format!("{name}.conv2.conv"), &[width, width, 1], width)?,
        })
    }
}
