//! Parts that model families are put together from: the tensors of each, by name, role and shape.

pub(crate) mod audio_tower;
pub(crate) mod decoder;
pub(crate) mod vision_tower;
pub(crate) mod vocoder;
