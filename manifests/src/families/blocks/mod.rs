//! Parts that model families are put together from: the tensors of each, by name, role and shape,
//! and its sizes as `config.json` gives them.

pub(crate) mod attention;
pub(crate) mod audio_tower;
pub(crate) mod decoder;
pub(crate) mod decoder_ends;
pub(crate) mod ffn;
pub(crate) mod gqa;
pub(crate) mod mlp;
pub(crate) mod moe;
pub(crate) mod norms;
pub(crate) mod pictures;
pub(crate) mod shared_expert;
pub(crate) mod talker_input;
pub(crate) mod vision_tower;
pub(crate) mod vocabulary;
pub(crate) mod vocoder;
