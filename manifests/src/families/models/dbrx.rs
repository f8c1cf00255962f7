//! DBRX: transformers 5.23, modeling_dbrx.py; the experts of a layer are the rows of one matrix, and w2 is used
//! transposed.

use crate::families::blocks::decoder_ends::LM_HEAD;
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::{Mount, Stack};
use crate::families::sizes::{Side, Sizes, table};
use crate::names::Component;
use crate::names::Role;

packed_family!(
    "dbrx",
    model_types["dbrx"],
    architectures["DbrxForCausalLM"]
);

static MODEL: PackedModel = PackedModel {
    text: None,
    sizes,
    mounts: &[&TEXT, &LM_HEAD],
    mtp: None,
    tower: None,
};

static TEXT: Mount<Sizes> = Mount {
    prefix: "transformer.",
    component: Component::Text,
    blocks: &[&block(BLOCKS)],
};

table! {
    BLOCKS {
        "wte.weight" Embedding [Vocabulary, Hidden];
        "norm_f.weight" FinalNorm [Hidden];
        "blocks.{layer}.norm_attn_norm.norm_1.weight" InputNorm [Hidden];
        "blocks.{layer}.norm_attn_norm.norm_2.weight" PostAttentionNorm [Hidden];
        "blocks.{layer}.norm_attn_norm.attn.Wqkv.weight" AttentionQkv [Qkv, Hidden];
        "blocks.{layer}.norm_attn_norm.attn.out_proj.weight" AttentionO [Hidden, Hidden];
        "blocks.{layer}.ffn.router.layer.weight" Router [Experts, Hidden];
        "blocks.{layer}.ffn.experts.mlp.w1" ExpertGateStacked [ExpertRows, Hidden]
            as rows(&[Role::ExpertGate], &["blocks.{layer}.ffn.experts.mlp.{expert}.w1"]);
        "blocks.{layer}.ffn.experts.mlp.v1" ExpertUpStacked [ExpertRows, Hidden]
            as rows(&[Role::ExpertUp], &["blocks.{layer}.ffn.experts.mlp.{expert}.v1"]);
        "blocks.{layer}.ffn.experts.mlp.w2" ExpertDownStacked [ExpertRows, Hidden]
            as rows(&[Role::ExpertDown], &["blocks.{layer}.ffn.experts.mlp.{expert}.w2"]);
    }
}

const fn rows(roles: &'static [Role], names: &'static [&'static str]) -> Stack {
    Stack::of(roles).along_rows().each(names)
}

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let mut sizes = Sizes::read_named(text, "d_model", "n_layers")?;
    let hidden = sizes.side(Side::Hidden);
    let heads = text.size("n_heads", None)?;
    let kv_heads = text.section("attn_config")?.size("kv_n_heads", Some(1))?;
    sizes.set_heads(heads, kv_heads, (hidden / heads).max(1));
    let key_values = sizes.side(Side::Keys).saturating_mul(2);
    sizes.set(
        Side::Qkv,
        sizes.side(Side::Queries).saturating_add(key_values),
    );
    let ffn = text.section("ffn_config")?;
    sizes.read_experts(&ffn, &["moe_num_experts"], "ffn_hidden_size")?;
    sizes.place_experts(text, |_| true)?;
    Ok(sizes)
}
