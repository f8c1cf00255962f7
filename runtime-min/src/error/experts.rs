//! Why routers cannot be restricted to some experts.

/// Why experts cannot be restricted so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExpertChoiceError {
    /// The model has fewer layers.
    #[error("experts are chosen for layer {layer}, but the model has layers 0 to {last}")]
    NoSuchLayer {
        /// The layer.
        layer: u32,
        /// The last of the model.
        last: u32,
    },
    /// A layer has a dense MLP.
    #[error("experts are chosen for layer {layer}, which has none")]
    Dense {
        /// The layer.
        layer: u32,
    },
    /// A layer has fewer experts.
    #[error("expert {expert} is chosen for layer {layer}, which has experts 0 to {last}")]
    NoSuchExpert {
        /// The layer.
        layer: u32,
        /// The expert.
        expert: u32,
        /// The last of the layer.
        last: u32,
    },
    /// A token could not be routed.
    #[error(
        "{chosen} experts are chosen for layer {layer}, whose router sends each token to {wanted}"
    )]
    TooFew {
        /// The layer.
        layer: u32,
        /// Experts that are chosen.
        chosen: usize,
        /// Experts of each token.
        wanted: usize,
    },
    /// No layer has experts.
    #[error("experts are chosen, but no layer of the model has any")]
    NoExperts,
    /// The kernels of a GPU route to all experts.
    #[error("experts are restricted on the CPU alone; a GPU routes to all of them")]
    OnGpu,
}
