//! The tensors of a file of llama.cpp: their names, what they are, and their shapes.
//!
//! Source of the names: `TENSOR_NAMES` in gguf-py/gguf/constants.py, and what
//! `conversion/{llama,qwen,olmo,glm,gpt_oss}.py` make of those of the official classes.

use segpack_manifests::families::{QkNorm, TextFacts};
use segpack_manifests::folder::TextDecoder;
use segpack_manifests::names::{Part, Role};

use super::architecture::Architecture;

/// A tensor of the file.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) role: Role,
    /// `Weight` or `Bias`.
    pub(super) part: Part,
    /// Its name in its layer, with its ending.
    pub(super) name: &'static str,
    /// Its shape; of one expert's, where it is a stack of them.
    pub(super) shape: Vec<u64>,
    /// Whether every expert has one.
    pub(super) by_expert: bool,
}

/// What a layer beyond the model's has beside an ordinary one: the end of its name, its name in
/// llama.cpp, and whether it may be left out.
pub(super) const MTP: [(&str, &str, bool); 6] = [
    ("eh_proj.weight", "nextn.eh_proj.weight", false),
    ("embed_tokens.weight", "nextn.embed_tokens.weight", true),
    ("enorm.weight", "nextn.enorm.weight", false),
    ("hnorm.weight", "nextn.hnorm.weight", false),
    (
        "shared_head.head.weight",
        "nextn.shared_head_head.weight",
        true,
    ),
    (
        "shared_head.norm.weight",
        "nextn.shared_head_norm.weight",
        false,
    ),
];

/// The shape of one of [`MTP`].
pub(super) fn mtp_shape(name: &str, facts: &TextFacts) -> Vec<u64> {
    let hidden = facts.hidden_size;
    match name {
        "eh_proj.weight" => vec![hidden, 2 * hidden],
        "embed_tokens.weight" | "shared_head.head.weight" => vec![facts.vocab, hidden],
        _ => vec![hidden],
    }
}

/// The tensors of a layer in the order of the file.
pub(super) fn rows(
    architecture: Architecture,
    decoder: &TextDecoder,
    has_experts: bool,
) -> Vec<Row> {
    let mut rows = Rows(Vec::new());
    attention(&mut rows, architecture, decoder);
    match has_experts {
        true => experts(&mut rows, decoder),
        false => dense(&mut rows, &decoder.facts),
    }
    rows.0
}

/// Rows that are being listed.
struct Rows(Vec<Row>);

impl Rows {
    fn add(&mut self, role: Role, part: Part, name: &'static str, shape: &[u64]) {
        self.0.push(Row {
            role,
            part,
            name,
            shape: shape.to_vec(),
            by_expert: false,
        });
    }

    fn weight(&mut self, role: Role, name: &'static str, shape: &[u64]) {
        self.add(role, Part::Weight, name, shape);
    }

    fn bias_if(&mut self, has: bool, role: Role, name: &'static str, size: u64) {
        if has {
            self.add(role, Part::Bias, name, &[size]);
        }
    }

    /// What was listed since is there for every expert.
    fn by_expert_from(&mut self, start: usize) {
        self.0[start..]
            .iter_mut()
            .for_each(|row| row.by_expert = true);
    }
}

fn attention(rows: &mut Rows, architecture: Architecture, decoder: &TextDecoder) {
    let (facts, options) = (&decoder.facts, &decoder.settings.options);
    let (hidden, heads) = (facts.hidden_size, facts.heads);
    let (queries, keys) = (heads * facts.head_dim, facts.kv_heads * facts.head_dim);
    let (qkv, output) = (options.has_qkv_bias, options.has_output_bias);
    rows.weight(Role::InputNorm, "attn_norm.weight", &[hidden]);
    rows.weight(Role::AttentionQ, "attn_q.weight", &[queries, hidden]);
    rows.bias_if(qkv, Role::AttentionQ, "attn_q.bias", queries);
    rows.weight(Role::AttentionK, "attn_k.weight", &[keys, hidden]);
    rows.bias_if(qkv, Role::AttentionK, "attn_k.bias", keys);
    rows.weight(Role::AttentionV, "attn_v.weight", &[keys, hidden]);
    rows.bias_if(qkv, Role::AttentionV, "attn_v.bias", keys);
    rows.weight(Role::AttentionO, "attn_output.weight", &[hidden, queries]);
    rows.bias_if(output, Role::AttentionO, "attn_output.bias", hidden);
    let norms = match options.qk_norm {
        QkNorm::Absent => None,
        QkNorm::PerHead | QkNorm::PerHeadAfterRotary => Some([facts.head_dim; 2]),
        QkNorm::Whole => Some([queries, keys]),
    };
    if let Some([of_queries, of_keys]) = norms {
        rows.weight(Role::QNorm, "attn_q_norm.weight", &[of_queries]);
        rows.weight(Role::KNorm, "attn_k_norm.weight", &[of_keys]);
    }
    if options.has_sinks {
        rows.weight(Role::AttentionSink, "attn_sinks.weight", &[heads]);
    }
    let name = architecture.post_attention_norm();
    rows.weight(Role::PostAttentionNorm, name, &[hidden]);
}

fn experts(rows: &mut Rows, decoder: &TextDecoder) {
    let (facts, options) = (&decoder.facts, &decoder.settings.options);
    let (hidden, inner) = (facts.hidden_size, facts.moe_intermediate);
    let experts = u64::from(facts.experts);
    let router = &options.router;
    rows.weight(Role::Router, "ffn_gate_inp.weight", &[experts, hidden]);
    rows.bias_if(router.has_bias, Role::Router, "ffn_gate_inp.bias", experts);
    if router.has_choice_bias {
        rows.weight(Role::RouterBias, "exp_probs_b.bias", &[experts]);
    }
    let has_bias = options.experts.has_bias;
    let start = rows.0.len();
    rows.weight(Role::ExpertGate, "ffn_gate_exps.weight", &[inner, hidden]);
    rows.bias_if(has_bias, Role::ExpertGate, "ffn_gate_exps.bias", inner);
    rows.weight(Role::ExpertUp, "ffn_up_exps.weight", &[inner, hidden]);
    rows.bias_if(has_bias, Role::ExpertUp, "ffn_up_exps.bias", inner);
    rows.weight(Role::ExpertDown, "ffn_down_exps.weight", &[hidden, inner]);
    rows.bias_if(has_bias, Role::ExpertDown, "ffn_down_exps.bias", hidden);
    rows.by_expert_from(start);
    let Some(shared) = &options.shared_expert else {
        return;
    };
    let inner = shared.intermediate;
    if shared.is_gated {
        rows.weight(
            Role::SharedExpertRouter,
            "ffn_gate_inp_shexp.weight",
            &[1, hidden],
        );
    }
    rows.weight(
        Role::SharedExpertGate,
        "ffn_gate_shexp.weight",
        &[inner, hidden],
    );
    rows.weight(
        Role::SharedExpertUp,
        "ffn_up_shexp.weight",
        &[inner, hidden],
    );
    rows.weight(
        Role::SharedExpertDown,
        "ffn_down_shexp.weight",
        &[hidden, inner],
    );
}

fn dense(rows: &mut Rows, facts: &TextFacts) {
    let (hidden, inner) = (facts.hidden_size, facts.intermediate);
    rows.weight(Role::MlpGate, "ffn_gate.weight", &[inner, hidden]);
    rows.weight(Role::MlpUp, "ffn_up.weight", &[inner, hidden]);
    rows.weight(Role::MlpDown, "ffn_down.weight", &[hidden, inner]);
}
