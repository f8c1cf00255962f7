//! What is refused of a pack's tensors.

use segpack_manifests::documents::TensorEntry;
use segpack_manifests::names::Role;

use crate::error::{RunError, Unsuitable};

/// A weight that the pack does not have; `owner` is what should have it.
pub(super) fn missing(owner: String, role: Role) -> RunError {
    let role = role.to_string();
    Unsuitable::Missing { owner, role }.into()
}

/// A tensor that has no place, or whose place another has.
pub(super) fn surplus(tensor: &TensorEntry) -> RunError {
    let layer = tensor.layer.map(|layer| format!("layer {layer}"));
    let owner = match (layer, tensor.expert) {
        (Some(layer), Some(expert)) => format!("expert {expert} of {layer}"),
        (Some(layer), None) => layer,
        (None, _) => "the model".to_owned(),
    };
    Unsuitable::Surplus {
        tensor: tensor.name.clone(),
        role: tensor.role.to_string(),
        owner,
    }
    .into()
}

/// A quantised weight that nothing decodes.
pub(super) fn not_run(tensor: &TensorEntry) -> RunError {
    Unsuitable::Part {
        tensor: tensor.name.clone(),
        part: tensor.part.to_string(),
        role: tensor.role.to_string(),
    }
    .into()
}
