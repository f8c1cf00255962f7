//! The model families, one file and one row each.

mod dbrx;
mod deepseek_v2;
mod deepseek_v3;
mod deepseek_v32;
mod dots1;
mod ernie4_5_moe;
mod glm4_moe;
mod glm4_moe_lite;
mod glm4v_moe;
mod glm_moe_dsa;
mod gpt_oss;
mod granitemoe;
mod granitemoehybrid;
mod hunyuan_v1_moe;
mod jamba;
mod kimi_k2;
mod kimi_k25;
mod kimi_linear;
mod lfm2_moe;
mod llama4;
mod longcat_flash;
mod mimo_v2_flash;
mod minimax_m2;
mod mixtral;
mod nemotron_h;
mod olmoe;
mod phimoe;
mod qwen2_moe;
mod qwen3_5_moe;
mod qwen3_moe;
mod qwen3_next;
mod qwen3_omni_moe;
mod qwen3_vl_moe;

use super::FamilyRow;

/// The registry: where two families name equally many tensors, the last is guessed.
pub(crate) static FAMILIES: &[&FamilyRow] = &[
    &qwen3_omni_moe::FAMILY,
    &dbrx::FAMILY,
    &deepseek_v2::FAMILY,
    &deepseek_v3::FAMILY,
    &deepseek_v32::FAMILY,
    &dots1::FAMILY,
    &ernie4_5_moe::FAMILY,
    &glm4_moe::FAMILY,
    &glm4_moe_lite::FAMILY,
    &glm4v_moe::FAMILY,
    &glm_moe_dsa::FAMILY,
    &gpt_oss::FAMILY,
    &granitemoe::FAMILY,
    &granitemoehybrid::FAMILY,
    &hunyuan_v1_moe::FAMILY,
    &jamba::FAMILY,
    &kimi_k2::FAMILY,
    &kimi_k25::FAMILY,
    &kimi_linear::FAMILY,
    &lfm2_moe::FAMILY,
    &llama4::FAMILY,
    &longcat_flash::FAMILY,
    &mimo_v2_flash::FAMILY,
    &minimax_m2::FAMILY,
    &mixtral::FAMILY,
    &nemotron_h::FAMILY,
    &olmoe::FAMILY,
    &phimoe::FAMILY,
    &qwen2_moe::FAMILY,
    &qwen3_5_moe::FAMILY,
    &qwen3_next::FAMILY,
    &qwen3_vl_moe::FAMILY,
    &qwen3_moe::FAMILY,
];
