//! How a pack stores the matrices of a segment, and what they become in memory: matrices `[out, in]`
//! of floats, one for each projection.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;

use segpack_formats::io::to_usize;
use segpack_formats::numeric::{Dtype, FloatDtype, mxfp4};
use segpack_manifests::documents::TensorEntry;
use segpack_manifests::families::{StackLayout, expected_dtype};
use segpack_manifests::names::{Part, Role};
use segpack_manifests::quantization::{Quantization, WeightCoding};
use segpack_manifests::{ModelError, Pack, PackModel};

use super::refused::{not_run, surplus};
use crate::error::{RunError, Unsuitable};
use crate::models::decoder::spec::DecoderSpec;
use crate::weights::{Decoding, PlacedTensor, StoredRows, StoredValues};

/// The tensors of a layer, or of an expert, by what they are.
pub(super) type Parts<'a> = HashMap<(Role, Part), &'a TensorEntry>;

/// Weights and biases in the memory of their segment.
pub(super) type Placed = HashMap<(Role, Part), PlacedTensor>;

/// What is known of how a pack stores its weights.
pub(super) struct Storage {
    model: PackModel,
    /// Read where the first quantised weight asks: the lists of what is not quantised are long.
    coding: OnceCell<Option<WeightCoding>>,
    hidden: usize,
    moe_intermediate: usize,
}

/// A segment that is decoded.
pub(super) struct Decoded {
    pub(super) decoding: Arc<Decoding>,
    pub(super) placed: Placed,
}

/// A stored matrix: where its values are, and its size as `[out, in]`.
struct StoredMatrix {
    values: StoredValues,
    size: [usize; 2],
    dtype: FloatDtype,
}

impl Storage {
    pub(super) fn of(pack: &Pack, spec: &DecoderSpec) -> Result<Self, RunError> {
        Ok(Self {
            model: PackModel::read(pack)?,
            coding: OnceCell::new(),
            hidden: spec.hidden,
            moe_intermediate: spec.moe_intermediate,
        })
    }

    /// What the tensors of one segment become; `None` where all are used as they are stored.
    ///
    /// # Errors
    /// `Unsuitable` names a tensor that cannot be decoded, or lacks its scales.
    pub(super) fn decode(&self, parts: &Parts<'_>) -> Result<Option<Decoded>, RunError> {
        let is_transposed = self.is_transposed(parts);
        if !is_transposed
            && parts
                .iter()
                .all(|((role, _), tensor)| is_plain(*role, tensor))
        {
            return Ok(None);
        }
        let mut values: Vec<&&TensorEntry> = parts.values().collect();
        values.sort_by_key(|tensor| tensor.offset);
        let (mut decoding, mut placed) = (Decoding::default(), Placed::new());
        for tensor in values {
            let stored = match tensor.part {
                // comes with the values that it scales
                Part::Scale if has_codes(tensor.role, parts) => continue,
                Part::Scale => return Err(surplus(tensor)),
                Part::Bias => plain(tensor, false)?,
                _ => self.matrix(tensor, parts, is_transposed)?,
            };
            let [outputs, columns] = stored.size;
            let shares = self.shares(tensor);
            for (number, (role, step)) in shares.iter().enumerate() {
                let count = outputs / shares.len();
                let first = if *step == 1 { number * count } else { number };
                let rows = StoredRows { first, step: *step };
                let to = decoding.add(stored.values, rows, [count, columns], stored.dtype);
                let part = match tensor.part {
                    Part::Bias => Part::Bias,
                    _ => Part::Weight,
                };
                if placed.insert((*role, part), to).is_some() {
                    return Err(surplus(tensor));
                }
            }
        }
        let decoding = Arc::new(decoding);
        Ok(Some(Decoded { decoding, placed }))
    }

    /// What a tensor's outputs belong to, and from one of its outputs to the next.
    fn shares(&self, tensor: &TensorEntry) -> Vec<(Role, usize)> {
        if tensor.role != Role::ExpertGateUp {
            return vec![(tensor.role, 1)];
        }
        let is_interleaved = self.stack(tensor).is_some_and(|stack| stack.is_interleaved);
        let step = if is_interleaved { 2 } else { 1 };
        vec![(Role::ExpertGate, step), (Role::ExpertUp, step)]
    }

    /// How the stack lies that a tensor was cut from, if it was.
    fn stack(&self, tensor: &TensorEntry) -> Option<StackLayout> {
        let family = self.model.family()?;
        let stack = &tensor.source.tensor;
        (*stack != tensor.name).then(|| family.stack_layout(stack))?
    }

    /// Whether an expert's matrices are stored `[in, out]`. Versions of a class differ in that, so
    /// that their shapes decide; where all are square, the family's layout.
    fn is_transposed(&self, parts: &Parts<'_>) -> bool {
        let (hidden, inner) = (self.hidden as u64, self.moe_intermediate as u64);
        let weights = parts.values().filter(|t| t.part == Part::Weight);
        let mut by_layout = false;
        for tensor in weights {
            let wanted = match tensor.role {
                Role::ExpertGateUp => [2 * inner, hidden],
                Role::ExpertGate | Role::ExpertUp => [inner, hidden],
                Role::ExpertDown => [hidden, inner],
                _ => continue,
            };
            if wanted[0] != wanted[1] {
                return tensor.shape == [wanted[1], wanted[0]];
            }
            by_layout |= self.stack(tensor).is_some_and(|stack| stack.is_transposed);
        }
        by_layout
    }

    /// A stored matrix, quantised or not.
    fn matrix(
        &self,
        tensor: &TensorEntry,
        parts: &Parts<'_>,
        is_transposed: bool,
    ) -> Result<StoredMatrix, RunError> {
        if tensor.part == Part::Weight && FloatDtype::try_from(tensor.dtype).is_ok() {
            return plain(tensor, is_transposed);
        }
        let scales = parts.get(&(tensor.role, Part::Scale)).copied();
        let scales = scales.ok_or_else(|| no_scale(tensor))?;
        let is_fp8 = tensor.dtype == Dtype::F8_E4M3 && tensor.shape.len() == 2 && !is_transposed;
        match self.coding()? {
            Some(WeightCoding::Fp8Blocks { block }) if is_fp8 => self.fp8(tensor, scales, block),
            Some(WeightCoding::Mxfp4) if tensor.part == Part::Blocks => self.mxfp4(tensor, scales),
            _ => Err(not_run(tensor)),
        }
    }

    fn fp8(
        &self,
        tensor: &TensorEntry,
        scales: &TensorEntry,
        block: [u64; 2],
    ) -> Result<StoredMatrix, RunError> {
        let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
        let blocks = [rows.div_ceil(block[0]), columns.div_ceil(block[1])];
        has_shape(scales, &blocks)?;
        let values = StoredValues::Fp8 {
            at: to_usize(tensor.offset),
            scales: to_usize(scales.offset),
            scale: PlacedTensor::new(scales, 0)?.dtype,
            block: block.map(to_usize),
        };
        Ok(StoredMatrix {
            values,
            size: [rows, columns].map(to_usize),
            dtype: self.dtype()?,
        })
    }

    fn mxfp4(&self, tensor: &TensorEntry, scales: &TensorEntry) -> Result<StoredMatrix, RunError> {
        let &[rows, blocks, bytes] = tensor.shape.as_slice() else {
            return Err(not_run(tensor));
        };
        let are_bytes = [tensor, scales].iter().all(|t| t.dtype == Dtype::U8);
        if bytes != mxfp4::BLOCK_BYTES as u64 || !are_bytes {
            return Err(not_run(tensor));
        }
        has_shape(scales, &[rows, blocks])?;
        let values = StoredValues::Mxfp4 {
            at: to_usize(tensor.offset),
            scales: to_usize(scales.offset),
        };
        Ok(StoredMatrix {
            values,
            size: [to_usize(rows), to_usize(blocks) * mxfp4::BLOCK_VALUES],
            dtype: FloatDtype::BF16, // exact: two bits and an exponent
        })
    }

    /// How the weights are quantised.
    fn coding(&self) -> Result<Option<WeightCoding>, RunError> {
        if let Some(coding) = self.coding.get() {
            return Ok(*coding);
        }
        let config = self.model.config();
        let quantization = config.map(Quantization::of_config).transpose();
        let quantization = quantization.map_err(ModelError::from)?.flatten();
        let coding = quantization.and_then(|quantization| quantization.coding());
        Ok(*self.coding.get_or_init(|| coding))
    }

    /// The dtype that FP8 weights are loaded as: that of the config, in which the official class loads
    /// them whatever it computes in then, or else BF16.
    fn dtype(&self) -> Result<FloatDtype, RunError> {
        let config = self.model.config();
        let dtype = config.map(expected_dtype).transpose();
        let dtype = dtype.map_err(ModelError::from)?.flatten();
        Ok(dtype
            .and_then(|dtype| FloatDtype::try_from(dtype).ok())
            .unwrap_or(FloatDtype::BF16))
    }
}

/// Whether the weight of this role is quantised.
fn has_codes(role: Role, parts: &Parts<'_>) -> bool {
    let weight = parts.get(&(role, Part::Weight));
    parts.contains_key(&(role, Part::Blocks)) || weight.is_some_and(|w| !is_plain(w.role, w))
}

/// Whether a tensor is used as it is stored.
fn is_plain(role: Role, tensor: &TensorEntry) -> bool {
    matches!(tensor.part, Part::Weight | Part::Bias)
        && role != Role::ExpertGateUp
        && FloatDtype::try_from(tensor.dtype).is_ok()
}

/// Floats as they are stored.
fn plain(tensor: &TensorEntry, is_transposed: bool) -> Result<StoredMatrix, RunError> {
    let PlacedTensor {
        dtype,
        offset,
        rows,
        columns,
        ..
    } = PlacedTensor::new(tensor, 0)?;
    let is_transposed = is_transposed && tensor.shape.len() == 2;
    Ok(StoredMatrix {
        values: StoredValues::Plain {
            at: offset,
            width: columns,
            is_transposed,
        },
        size: if is_transposed {
            [columns, rows]
        } else {
            [rows, columns]
        },
        dtype,
    })
}

fn has_shape(tensor: &TensorEntry, wanted: &[u64]) -> Result<(), RunError> {
    if tensor.shape == wanted {
        return Ok(());
    }
    Err(Unsuitable::TensorShape {
        tensor: tensor.name.clone(),
        seen: tensor.shape.clone(),
        wanted: wanted.to_vec(),
    }
    .into())
}

fn no_scale(tensor: &TensorEntry) -> RunError {
    if tensor.part == Part::Weight && tensor.dtype != Dtype::F8_E4M3 {
        return Unsuitable::Dtype {
            tensor: tensor.name.clone(),
            dtype: tensor.dtype.to_string(),
        }
        .into();
    }
    let owner = format!("tensor {:?}", tensor.name);
    let role = Part::Scale.to_string();
    Unsuitable::Missing { owner, role }.into()
}
