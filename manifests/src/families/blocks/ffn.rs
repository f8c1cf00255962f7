//! MLPs and experts, under the names that families give them.

use crate::families::rules::Stack;
use crate::families::sizes::table;
use crate::names::Role::{ExpertDown, ExpertGate, ExpertUp};

table! {
    /// A dense MLP beside experts, `mlp`.
    MLP_DENSE {
        "layers.{layer}.mlp.gate_proj.weight" MlpGate [Dense, Hidden] when dense;
        "layers.{layer}.mlp.up_proj.weight" MlpUp [Dense, Hidden] when dense;
        "layers.{layer}.mlp.down_proj.weight" MlpDown [Hidden, Dense] when dense;
    }
    /// Experts of `mlp.experts`, one by one or stacked `[experts, out, in]`.
    MLP_EXPERTS {
        "layers.{layer}.mlp.experts.{expert}.gate_proj.weight" ExpertGate [Expert, Hidden] when apart;
        "layers.{layer}.mlp.experts.{expert}.up_proj.weight" ExpertUp [Expert, Hidden] when apart;
        "layers.{layer}.mlp.experts.{expert}.down_proj.weight" ExpertDown [Hidden, Expert] when apart;
        "layers.{layer}.mlp.experts.gate_up_proj" ExpertGateUpStacked [Experts, TwoExpert, Hidden]
            when stacked as Stack::of(&[ExpertGate, ExpertUp]);
        "layers.{layer}.mlp.experts.down_proj" ExpertDownStacked [Experts, Hidden, Expert]
            when stacked as Stack::of(&[ExpertDown]);
    }
    /// A router without a bias.
    MLP_ROUTER {
        "layers.{layer}.mlp.gate.weight" Router [Experts, Hidden] when moe;
    }
    /// What a router's scores get for the choice alone.
    MLP_ROUTER_BIAS {
        "layers.{layer}.mlp.gate.e_score_correction_bias" RouterBias [Experts] when moe & router_bias;
    }
    /// One shared expert with a scalar gate: Qwen.
    MLP_SHARED_GATED {
        "layers.{layer}.mlp.shared_expert.gate_proj.weight" SharedExpertGate [Shared, Hidden] when shared;
        "layers.{layer}.mlp.shared_expert.up_proj.weight" SharedExpertUp [Shared, Hidden] when shared;
        "layers.{layer}.mlp.shared_expert.down_proj.weight" SharedExpertDown [Hidden, Shared] when shared;
        "layers.{layer}.mlp.shared_expert_gate.weight" SharedExpertRouter [One, Hidden] when shared;
    }
    /// Shared experts: DeepSeek, GLM, ERNIE.
    MLP_SHARED {
        "layers.{layer}.mlp.shared_experts.gate_proj.weight" SharedExpertGate [Shared, Hidden] when shared;
        "layers.{layer}.mlp.shared_experts.up_proj.weight" SharedExpertUp [Shared, Hidden] when shared;
        "layers.{layer}.mlp.shared_experts.down_proj.weight" SharedExpertDown [Hidden, Shared] when shared;
    }
    /// Mixtral's names for router and experts: w1 is the gate, w3 up, w2 down. Stacked: as the class of
    /// transformers 5 has them in memory, where its `save_pretrained` does not give them back their
    /// names.
    BLOCK_SPARSE {
        "layers.{layer}.block_sparse_moe.gate.weight" Router [Experts, Hidden] when apart;
        "layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight" ExpertGate [Expert, Hidden] when apart;
        "layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight" ExpertUp [Expert, Hidden] when apart;
        "layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight" ExpertDown [Hidden, Expert] when apart;
        "layers.{layer}.mlp.experts.gate_up_proj" ExpertGateUpStacked [Experts, TwoExpert, Hidden]
            when stacked as Stack::of(&[ExpertGate, ExpertUp]);
        "layers.{layer}.mlp.experts.down_proj" ExpertDownStacked [Experts, Hidden, Expert]
            when stacked as Stack::of(&[ExpertDown]);
    }
    /// The router of such a layer.
    STACKED_ROUTER {
        "layers.{layer}.mlp.gate.weight" Router [Experts, Hidden] when stacked;
    }
    /// Experts of Granite, stacked `[experts, out, in]`: gate rows, then up rows.
    GRANITE_EXPERTS {
        "layers.{layer}.block_sparse_moe.router.layer.weight" Router [Experts, Hidden] when moe;
        "layers.{layer}.block_sparse_moe.input_linear.weight" ExpertGateUpStacked
            [Experts, TwoExpert, Hidden] when moe as Stack::of(&[ExpertGate, ExpertUp]).each(&[
                "layers.{layer}.block_sparse_moe.experts.{expert}.gate_proj.weight",
                "layers.{layer}.block_sparse_moe.experts.{expert}.up_proj.weight",
            ]);
        "layers.{layer}.block_sparse_moe.output_linear.weight" ExpertDownStacked
            [Experts, Hidden, Expert] when moe as Stack::of(&[ExpertDown]).each(&[
                "layers.{layer}.block_sparse_moe.experts.{expert}.down_proj.weight",
            ]);
    }
}
