//! What every decoder has around its layers and between their halves.

use crate::families::packed::{Mtp, block};
use crate::families::rules::Mount;
use crate::families::sizes::{Sizes, table};
use crate::names::Component;

/// The head of a text model.
pub(crate) static LM_HEAD: Mount<Sizes> = Mount {
    prefix: "",
    component: Component::Text,
    blocks: &[&block(HEAD)],
};

/// Layers beyond the model's that predict later tokens, numbered on: DeepSeek-V3 and its kin.
pub(crate) const MTP_LAYERS: Mtp = Mtp {
    count: |text| text.count("num_nextn_predict_layers", Some(0), 0),
    marks: &[
        "model.layers.{layer}.eh_proj.weight",
        "model.layers.{layer}.enorm.weight",
        "model.layers.{layer}.input_layernorm.weight",
    ],
    mount: None,
};

table! {
    /// Embedding and last norm.
    ENDS {
        "embed_tokens.weight" Embedding [Vocabulary, Hidden];
        "norm.weight" FinalNorm [Hidden];
    }
    /// Norms before attention and MLP.
    LAYER_NORMS {
        "layers.{layer}.input_layernorm.weight" InputNorm [Hidden];
        "layers.{layer}.post_attention_layernorm.weight" PostAttentionNorm [Hidden];
    }
    /// Output head; a tied one is left out when saving.
    HEAD {
        "lm_head.weight" LmHead [Vocabulary, Hidden] maybe Tied;
        "lm_head.bias" LmHead/Bias [Vocabulary] when head_bias maybe Tied;
    }
    /// What a layer beyond the model's has beside an ordinary layer: DeepSeek-V3, GLM-4.5.
    MTP_LAYER {
        "layers.{layer}.embed_tokens.weight" Mtp [Vocabulary, Hidden] when mtp maybe MtpShares;
        "layers.{layer}.enorm.weight" Mtp [Hidden] when mtp;
        "layers.{layer}.hnorm.weight" Mtp [Hidden] when mtp;
        "layers.{layer}.eh_proj.weight" Mtp [Hidden, TwoHidden] when mtp;
        "layers.{layer}.shared_head.norm.weight" Mtp [Hidden] when mtp;
        "layers.{layer}.shared_head.head.weight" Mtp [Vocabulary, Hidden] when mtp maybe MtpShares;
    }
    /// What such a module has around its layers: Qwen3-Next, Qwen3.5.
    MTP_ENDS {
        "fc.weight" Mtp [Hidden, TwoHidden];
        "norm.weight" Mtp [Hidden];
        "pre_fc_norm_embedding.weight" Mtp [Hidden];
        "pre_fc_norm_hidden.weight" Mtp [Hidden];
    }
}
