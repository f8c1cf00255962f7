//! Routers that may choose among some of their experts only.

use std::collections::{BTreeMap, BTreeSet};

use super::spec::{Allowed, DecoderSpec};
use crate::error::ExpertChoiceError;

/// Which experts routers may choose. What runs so is not the model that was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpertChoice {
    /// The same of every layer that has experts.
    OfEveryLayer(BTreeSet<u32>),
    /// Of each layer that is named; the others choose among all of theirs.
    ByLayer(BTreeMap<u32, BTreeSet<u32>>),
}

impl ExpertChoice {
    /// The choice for each layer of a model; `has_experts` is of each.
    ///
    /// # Errors
    /// Layers or experts that are not there; fewer than each token goes to.
    pub(crate) fn of_model(
        &self,
        spec: &DecoderSpec,
        has_experts: &[bool],
    ) -> Result<Allowed, ExpertChoiceError> {
        if !has_experts.contains(&true) {
            return Err(ExpertChoiceError::NoExperts);
        }
        let mut allowed = vec![None; has_experts.len()];
        let last = u32::try_from(has_experts.len()).unwrap_or(u32::MAX) - 1;
        match self {
            Self::OfEveryLayer(experts) => {
                let layers = (0..).zip(has_experts).zip(&mut allowed);
                for ((layer, _), allowed) in layers.filter(|((_, has), _)| **has) {
                    *allowed = Some(of_layer(layer, experts, spec)?);
                }
            }
            Self::ByLayer(layers) => {
                for (layer, experts) in layers {
                    let (layer, number) = (*layer, *layer as usize);
                    match has_experts.get(number) {
                        None => return Err(ExpertChoiceError::NoSuchLayer { layer, last }),
                        Some(false) => return Err(ExpertChoiceError::Dense { layer }),
                        Some(true) => allowed[number] = Some(of_layer(layer, experts, spec)?),
                    }
                }
            }
        }
        Ok(allowed)
    }
}

fn of_layer(
    layer: u32,
    experts: &BTreeSet<u32>,
    spec: &DecoderSpec,
) -> Result<Vec<bool>, ExpertChoiceError> {
    let mut allowed = vec![false; spec.experts];
    for expert in experts {
        let Some(one) = allowed.get_mut(*expert as usize) else {
            return Err(ExpertChoiceError::NoSuchExpert {
                layer,
                expert: *expert,
                last: u32::try_from(spec.experts)
                    .unwrap_or(u32::MAX)
                    .saturating_sub(1),
            });
        };
        *one = true;
    }
    match experts.len() {
        chosen if chosen < spec.experts_per_token => Err(ExpertChoiceError::TooFew {
            layer,
            chosen,
            wanted: spec.experts_per_token,
        }),
        _ => Ok(allowed),
    }
}
