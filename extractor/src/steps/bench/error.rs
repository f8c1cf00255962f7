//! Why a figure cannot be measured.

/// Why a figure cannot be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The figures of a model that is wholly on the GPU need all of it there.
    #[error("the GPU has too little memory for all weights")]
    NotResident,
    /// The GPU cannot choose a token and continue with it, because weights are missing there.
    #[error("the GPU cannot continue by itself: not all weights are there")]
    NotOnItsOwn,
}
