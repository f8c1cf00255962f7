//! Numbers as they are stored: the element types of tensors.

mod dtype;

pub use dtype::{Dtype, UnknownDtype};
