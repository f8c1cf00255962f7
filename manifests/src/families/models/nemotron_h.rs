//! Nemotron-H and Nemotron 3: transformers 5.23, modeling_nemotron_h.py; each layer is a state space, attention,
//! an MLP or experts, and experts have no gate.

use crate::families::blocks::decoder_ends::LM_HEAD;
use crate::families::config::{ConfigError, Section};
use crate::families::packed::{PackedModel, block, packed_family};
use crate::families::rules::Mount;
use crate::families::sizes::{Ffn, Flag, Mixer, Side, Sizes, table};
use crate::names::Component;

packed_family!(
    "nemotron_h",
    model_types["nemotron_h"],
    architectures["NemotronHForCausalLM"]
);

static MODEL: PackedModel = PackedModel {
    text: None,
    sizes,
    mounts: &[&TEXT, &LM_HEAD],
    mtp: None,
    tower: None,
};

static TEXT: Mount<Sizes> = Mount {
    prefix: "backbone.",
    component: Component::Text,
    blocks: &[&block(LAYERS)],
};

table! {
    LAYERS {
        "embeddings.weight" Embedding [Vocabulary, Hidden];
        "norm_f.weight" FinalNorm [Hidden];
        "layers.{layer}.norm.weight" InputNorm [Hidden];
        "layers.{layer}.mixer.A_log" LinearAttention [LinearHeads] when linear;
        "layers.{layer}.mixer.D" LinearAttention [LinearHeads] when linear;
        "layers.{layer}.mixer.dt_bias" LinearAttention [LinearHeads] when linear;
        "layers.{layer}.mixer.conv1d.weight" LinearAttention [LinearConv, One, Taps] when linear;
        "layers.{layer}.mixer.conv1d.bias" LinearAttention/Bias [LinearConv] when linear & qkv_bias;
        "layers.{layer}.mixer.in_proj.weight" LinearAttention [LinearIn, Hidden] when linear;
        "layers.{layer}.mixer.norm.weight" LinearAttention [LinearValues] when linear;
        "layers.{layer}.mixer.out_proj.weight" LinearAttention [Hidden, LinearValues] when linear;
        "layers.{layer}.mixer.q_proj.weight" AttentionQ [Queries, Hidden] when full;
        "layers.{layer}.mixer.k_proj.weight" AttentionK [Keys, Hidden] when full;
        "layers.{layer}.mixer.v_proj.weight" AttentionV [Values, Hidden] when full;
        "layers.{layer}.mixer.o_proj.weight" AttentionO [Hidden, Outputs] when full;
        "layers.{layer}.mixer.up_proj.weight" MlpUp [Dense, Hidden] when dense;
        "layers.{layer}.mixer.down_proj.weight" MlpDown [Hidden, Dense] when dense;
        "layers.{layer}.mixer.gate.weight" Router [Experts, Hidden] when moe;
        "layers.{layer}.mixer.gate.e_score_correction_bias" RouterBias [Experts] when moe;
        "layers.{layer}.mixer.experts.{expert}.up_proj.weight" ExpertUp [Expert, Hidden] when moe;
        "layers.{layer}.mixer.experts.{expert}.down_proj.weight" ExpertDown [Hidden, Expert] when moe;
        "layers.{layer}.mixer.shared_experts.up_proj.weight" SharedExpertUp [Shared, Hidden] when shared;
        "layers.{layer}.mixer.shared_experts.down_proj.weight" SharedExpertDown [Hidden, Shared] when shared;
    }
}

fn sizes(text: &Section<'_>) -> Result<Sizes, ConfigError> {
    // transformers 5 tells the number of layers by their kinds alone
    let kinds = u32::try_from(text.texts(KINDS)?.len()).unwrap_or(u32::MAX);
    let mut sizes = match text.has("num_hidden_layers") || kinds == 0 {
        true => Sizes::read(text)?,
        false => Sizes::read_of_layers(text, "hidden_size", kinds)?,
    };
    sizes.read_heads(text)?;
    let heads = sizes.take(Side::LinearHeads, text, ("mamba_num_heads", None))?;
    let inner = text.product("mamba_num_heads", heads, text.size("mamba_head_dim", None)?)?;
    let groups = text.size("n_groups", None)?;
    let states = text.product("n_groups", groups, text.size("ssm_state_size", None)?)?;
    sizes.set_state_space(inner, 2 * states, heads);
    sizes.take(Side::Taps, text, ("conv_kernel", Some(4)))?;
    sizes.flag(Flag::QkvBias, text.flag("use_conv_bias", true)?);
    sizes.take(Side::Dense, text, ("intermediate_size", Some(1)))?;
    sizes.read_experts(
        text,
        &["n_routed_experts", "num_local_experts"],
        "moe_intermediate_size",
    )?;
    sizes.set_shared(text.size("moe_shared_expert_intermediate_size", None)?);
    place_layers(&mut sizes, text)
}

/// The kinds of the layers, in words.
const KINDS: &str = "layers_block_type";

/// One letter for each layer, or, as transformers 5 writes it, one word.
fn place_layers(sizes: &mut Sizes, text: &Section<'_>) -> Result<Sizes, ConfigError> {
    let words = text.texts(KINDS)?;
    let letters = text.text("hybrid_override_pattern")?.unwrap_or_default();
    let letters: Vec<String> = letters.chars().map(String::from).collect();
    let (kinds, key) = match words.is_empty() {
        true => (letters, "hybrid_override_pattern"),
        false => (words, KINDS),
    };
    if kinds.len() != sizes.layers.len() {
        let wanted = format!("one kind for each of the {} layers", sizes.layers.len());
        return Err(text.invalid_or_missing(key, &wanted));
    }
    for (layer, kind) in sizes.layers.iter_mut().zip(&kinds) {
        (layer.mixer, layer.ffn) = match kind.as_str() {
            "M" | "mamba" | "linear_attention" => (Mixer::Linear, Ffn::Absent),
            "*" | "attention" | "full_attention" => (Mixer::Full, Ffn::Absent),
            "E" | "moe" => (Mixer::Absent, Ffn::Apart),
            "-" | "mlp" => (Mixer::Absent, Ffn::Dense),
            _ => return Err(text.invalid(key, "of M, *, E and -")),
        };
    }
    Ok(sizes.clone())
}
