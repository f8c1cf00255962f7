//! Roles: what a tensor does inside its component.

use super::word::words;

words! {
    /// What a tensor does inside its component. The tensors of one weight (its values, its bias, its
    /// scales) share a role and differ in their [`Part`](super::Part).
    Role, display as_str {
        /// Token embedding, `[vocabulary, hidden]`.
        Embedding = "embedding",
        /// Query projection.
        AttentionQ = "attention_q",
        /// Key projection.
        AttentionK = "attention_k",
        /// Value projection.
        AttentionV = "attention_v",
        /// Output projection of the attention.
        AttentionO = "attention_o",
        /// Query, key and value projections in one.
        AttentionQkv = "attention_qkv",
        /// Compression of queries, `[rank, hidden]`.
        AttentionQA = "attention_q_a",
        /// Queries from their compressed form.
        AttentionQB = "attention_q_b",
        /// Compression of keys and values, with the rotated part of a key.
        AttentionKvA = "attention_kv_a",
        /// Keys and values from their compressed form.
        AttentionKvB = "attention_kv_b",
        /// Learned sinks of the attention, one for each head.
        AttentionSink = "attention_sink",
        /// The indexer that picks the tokens to attend to.
        Indexer = "indexer",
        /// Anything of a linear attention, a state space or a convolution in the place of attention.
        LinearAttention = "linear_attention",
        /// Rotary frequencies, where they are stored.
        Rotary = "rotary",
        /// RMS norm of each query head, `[head_dim]`.
        QNorm = "q_norm",
        /// RMS norm of each key head, `[head_dim]`.
        KNorm = "k_norm",
        /// Norm of compressed queries.
        QANorm = "q_a_norm",
        /// Norm of compressed keys and values.
        KvANorm = "kv_a_norm",
        /// Norm before the attention, `[hidden]`.
        InputNorm = "input_norm",
        /// Norm before the MLP or the experts, `[hidden]`.
        PostAttentionNorm = "post_attention_norm",
        /// Router, `[experts, hidden]`.
        Router = "router",
        /// What is added to the router's scores for the choice of experts.
        RouterBias = "router_bias",
        /// An expert's gate projection, `[moe_intermediate, hidden]`.
        ExpertGate = "expert_gate",
        /// An expert's up projection, `[moe_intermediate, hidden]`.
        ExpertUp = "expert_up",
        /// An expert's down projection, `[hidden, moe_intermediate]`.
        ExpertDown = "expert_down",
        /// An expert's gate and up projections in one matrix, where the checkpoint's layout does
        /// not keep the two apart.
        ExpertGateUp = "expert_gate_up",
        /// Gate and up projections of all experts of a layer, `[experts, 2 x moe_intermediate,
        /// hidden]`.
        ExpertGateUpStacked = "expert_gate_up_stacked",
        /// Gate projections of all experts of a layer.
        ExpertGateStacked = "expert_gate_stacked",
        /// Up projections of all experts of a layer.
        ExpertUpStacked = "expert_up_stacked",
        /// Down projections of all experts of a layer, `[experts, hidden, moe_intermediate]`.
        ExpertDownStacked = "expert_down_stacked",
        /// The shared expert's gate projection.
        SharedExpertGate = "shared_expert_gate",
        /// The shared expert's up projection.
        SharedExpertUp = "shared_expert_up",
        /// The shared expert's gate and up projections in one.
        SharedExpertGateUp = "shared_expert_gate_up",
        /// The shared expert's down projection.
        SharedExpertDown = "shared_expert_down",
        /// The scalar gate of the shared expert, `[1, hidden]` (`shared_expert_gate.weight`).
        SharedExpertRouter = "shared_expert_router",
        /// Gate projection of a dense SwiGLU MLP.
        MlpGate = "mlp_gate",
        /// Up projection of a dense SwiGLU MLP.
        MlpUp = "mlp_up",
        /// Down projection of a dense SwiGLU MLP.
        MlpDown = "mlp_down",
        /// What a layer that predicts a later token has beside an ordinary layer.
        Mtp = "mtp_other",
        /// Norm after the last layer.
        FinalNorm = "final_norm",
        /// Output head, `[vocabulary, hidden]`.
        LmHead = "lm_head",
        /// Projection between two models, or out of a tower.
        Projection = "projection",
        /// Embedding of audio codes.
        CodecEmbedding = "codec_embedding",
        /// Output head over audio codes.
        CodecHead = "codec_head",
        /// Convolutional stem of a tower.
        Conv = "conv",
        /// Learned position table.
        PositionEmbedding = "position_embedding",
        /// Patch merger of the vision tower.
        Merger = "merger",
        /// Anything inside a layer of the audio tower.
        AudioBlock = "audio_block",
        /// Anything inside a block of the vision tower.
        VisionBlock = "vision_block",
        /// Anything inside a transformer layer of the vocoder.
        CodecBlock = "codec_block",
        /// Upsampling stages of the vocoder.
        CodecUpsample = "codec_upsample",
        /// Waveform decoder of the vocoder.
        CodecDecoder = "codec_decoder",
        /// A tensor that no rule names.
        Unclassified = "unclassified",
    }
}

impl Role {
    /// Whether the tensor holds the matrices of all experts of a layer.
    #[must_use]
    pub const fn is_stacked(self) -> bool {
        matches!(
            self,
            Self::ExpertGateUpStacked
                | Self::ExpertGateStacked
                | Self::ExpertUpStacked
                | Self::ExpertDownStacked
        )
    }

    /// The segment that a tensor of this role goes to, within its layer or, outside the layers, its
    /// component.
    #[must_use]
    pub fn segment_group(self) -> &'static str {
        match self {
            Self::Embedding => "embed_tokens",
            Self::AttentionQ | Self::AttentionK | Self::AttentionV | Self::AttentionO => {
                "attention"
            }
            Self::AttentionQkv | Self::AttentionQA | Self::AttentionQB => "attention",
            Self::AttentionKvA | Self::AttentionKvB => "attention",
            Self::AttentionSink | Self::Indexer | Self::Rotary => "attention",
            Self::LinearAttention => "attention",
            Self::QNorm | Self::KNorm | Self::QANorm | Self::KvANorm => "attention",
            Self::InputNorm | Self::PostAttentionNorm => "norms",
            Self::Router | Self::RouterBias => "router",
            Self::ExpertGate | Self::ExpertUp | Self::ExpertDown => "experts",
            Self::ExpertGateUp => "experts",
            Self::ExpertGateUpStacked | Self::ExpertDownStacked => "experts",
            Self::ExpertGateStacked | Self::ExpertUpStacked => "experts",
            Self::SharedExpertGate | Self::SharedExpertUp | Self::SharedExpertDown => {
                "shared_expert"
            }
            Self::SharedExpertRouter | Self::SharedExpertGateUp => "shared_expert",
            Self::MlpGate | Self::MlpUp | Self::MlpDown => "mlp",
            Self::Mtp => "mtp",
            Self::FinalNorm => "final_norm",
            Self::LmHead => "lm_head",
            Self::Projection => "projections",
            Self::CodecEmbedding => "codec_embedding",
            Self::CodecHead => "codec_head",
            Self::Conv | Self::PositionEmbedding => "stem",
            Self::Merger => "mergers",
            Self::AudioBlock | Self::VisionBlock | Self::CodecBlock => "block",
            Self::CodecUpsample => "upsample",
            Self::CodecDecoder => "decoder",
            Self::Unclassified => "unclassified",
            Self::Other(word) => word.as_str(),
        }
    }
}
