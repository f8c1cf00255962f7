//! The ways into the talker: `fc2(silu(fc1(x)))`, one for words, one for states of media.

use segpack_formats::io::{CancelToken, to_usize};
use segpack_manifests::PackReader;
use segpack_manifests::families::SpeechFacts;
use segpack_manifests::names::{Component, Role};

use crate::error::{RunError, Unsuitable};
use crate::ops::Ops;
use crate::tensor::Linear;
use crate::weights::PlacedTensor;

/// Tokens that go through a projection at a time.
const BATCH: usize = 64;

/// Both projections, in memory.
pub(crate) struct Projections {
    text: Resize,
    hidden: Resize,
}

/// One projection.
struct Resize {
    fc1: ProjectionLayer,
    fc2: ProjectionLayer,
}

/// A linear layer with a bias, in memory of its own.
struct ProjectionLayer {
    weight: PlacedTensor,
    bytes: Vec<u8>,
    bias: Vec<f32>,
}

impl Projections {
    /// Bytes that both take: weights as they are stored, at most in f32.
    pub(crate) fn bytes(facts: &SpeechFacts) -> u64 {
        let [outer, inner, hidden] = [
            facts.thinker_hidden,
            facts.projection,
            facts.talker.hidden_size,
        ];
        let values = inner.saturating_mul(outer.saturating_add(hidden));
        values.saturating_mul(8)
    }

    /// Reads both; their digests are compared.
    ///
    /// # Errors
    /// `Unsuitable` where one is missing or of another shape; damage of the pack.
    pub(crate) fn load<'a>(
        source: &'a PackReader<'a>,
        facts: &SpeechFacts,
    ) -> Result<Self, RunError> {
        Ok(Self {
            text: Resize::load(source, facts, "text_projection")?,
            hidden: Resize::load(source, facts, "hidden_projection")?,
        })
    }

    /// Word embeddings, `[tokens, thinker hidden]`, as rows of the talker.
    pub(crate) fn text(
        &self,
        ops: &impl Ops,
        x: &[f32],
        stop: &CancelToken,
    ) -> Result<Vec<f32>, RunError> {
        self.text.run(ops, x, stop)
    }

    /// States of media, `[tokens, thinker hidden]`, as rows of the talker.
    pub(crate) fn hidden(
        &self,
        ops: &impl Ops,
        x: &[f32],
        stop: &CancelToken,
    ) -> Result<Vec<f32>, RunError> {
        self.hidden.run(ops, x, stop)
    }
}

impl Resize {
    fn load<'a>(
        source: &'a PackReader<'a>,
        facts: &SpeechFacts,
        name: &str,
    ) -> Result<Self, RunError> {
        let [outer, inner, hidden] = [
            facts.thinker_hidden,
            facts.projection,
            facts.talker.hidden_size,
        ]
        .map(to_usize);
        Ok(Self {
            fc1: ProjectionLayer::load(source, &format!("{name}.linear_fc1"), [inner, outer])?,
            fc2: ProjectionLayer::load(source, &format!("{name}.linear_fc2"), [hidden, inner])?,
        })
    }

    fn run(&self, ops: &impl Ops, x: &[f32], stop: &CancelToken) -> Result<Vec<f32>, RunError> {
        let mut out = Vec::new();
        for x in x.chunks(BATCH * self.fc1.weight.columns) {
            let mut inner = self.fc1.run(ops, x, stop)?;
            // silu alone: multiplied by one
            let ones = vec![1.0; inner.len()];
            ops.silu_mul(&mut inner, &ones);
            out.extend(self.fc2.run(ops, &inner, stop)?);
        }
        Ok(out)
    }
}

impl ProjectionLayer {
    fn load<'a>(
        source: &'a PackReader<'a>,
        name: &str,
        [rows, columns]: [usize; 2],
    ) -> Result<Self, RunError> {
        let (weight, bytes) = tensor(source, &format!("{name}.weight"), &[rows, columns])?;
        let (bias, values) = tensor(source, &format!("{name}.bias"), &[rows])?;
        Ok(Self {
            weight,
            bytes,
            bias: bias.values(&values),
        })
    }

    fn run(&self, ops: &impl Ops, x: &[f32], stop: &CancelToken) -> Result<Vec<f32>, RunError> {
        let weight = self.weight.matrix(&self.bytes);
        let mut out = vec![0.0; x.len() / weight.columns * weight.rows];
        let mut linears = [Linear {
            x,
            weight,
            bias: Some(&self.bias),
            out: &mut out,
        }];
        ops.linears_until(&mut linears, stop)?;
        Ok(out)
    }
}

/// A tensor of the talker by what its name ends in, with its bytes.
fn tensor<'a>(
    source: &'a PackReader<'a>,
    name: &str,
    shape: &[usize],
) -> Result<(PlacedTensor, Vec<u8>), RunError> {
    let component = Component::TalkerText;
    let mut tensors = source.pack().manifest().tensors.iter();
    let is_it = |name: &str, of: &str| {
        of.strip_suffix(name)
            .is_some_and(|p| p.ends_with('.') || p.is_empty())
    };
    let found = tensors
        .find(|t| t.component == component && t.role == Role::Projection && is_it(name, &t.name));
    let Some(entry) = found else {
        return Err(Unsuitable::MissingTensor {
            component: component.to_string(),
            tensor: name.to_owned(),
        }
        .into());
    };
    let mut placed = PlacedTensor::new(entry, 0)?;
    placed.offset = 0;
    let values = shape
        .iter()
        .try_fold(placed.dtype.byte_width(), |n, side| n.checked_mul(*side));
    let sides = entry.shape.iter().map(|side| to_usize(*side));
    if !sides.eq(shape.iter().copied()) || values != Some(placed.length) {
        return Err(Unsuitable::TensorShape {
            tensor: entry.name.clone(),
            seen: entry.shape.clone(),
            wanted: shape.iter().map(|side| *side as u64).collect(),
        }
        .into());
    }
    Ok((placed, source.tensor_bytes(entry)?))
}
