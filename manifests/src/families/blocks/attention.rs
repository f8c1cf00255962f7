//! Attention of any kind: grouped heads, compressed heads, and what some models have in its place.
//! Every Linear is `[out, in]`. Source: the classes of transformers 5.23, as named.

use crate::families::sizes::table;

table! {
    /// Grouped heads: MixtralAttention, OlmoeAttention, Qwen2MoeAttention and many more.
    GROUPED {
        "layers.{layer}.self_attn.q_proj.weight" AttentionQ [Queries, Hidden] when attends;
        "layers.{layer}.self_attn.q_proj.bias" AttentionQ/Bias [Queries] when attends & qkv_bias;
        "layers.{layer}.self_attn.k_proj.weight" AttentionK [Keys, Hidden] when attends;
        "layers.{layer}.self_attn.k_proj.bias" AttentionK/Bias [Keys] when attends & qkv_bias;
        "layers.{layer}.self_attn.v_proj.weight" AttentionV [Values, Hidden] when attends;
        "layers.{layer}.self_attn.v_proj.bias" AttentionV/Bias [Values] when attends & qkv_bias;
        "layers.{layer}.self_attn.o_proj.weight" AttentionO [Hidden, Outputs] when attends;
        "layers.{layer}.self_attn.o_proj.bias" AttentionO/Bias [Hidden] when attends & out_bias;
    }
    /// Queries beside a gate of each output: Qwen3NextAttention.
    GATED {
        "layers.{layer}.self_attn.q_proj.weight" AttentionQ [Queries, Hidden] when full;
        "layers.{layer}.self_attn.k_proj.weight" AttentionK [Keys, Hidden] when full;
        "layers.{layer}.self_attn.v_proj.weight" AttentionV [Values, Hidden] when full;
        "layers.{layer}.self_attn.o_proj.weight" AttentionO [Hidden, Outputs] when full;
    }
    /// Heads of other widths in the sliding layers, and sinks: MiMoV2FlashAttention.
    TWO_WIDTHS {
        "layers.{layer}.self_attn.q_proj.weight" AttentionQ [Queries, Hidden];
        "layers.{layer}.self_attn.k_proj.weight" AttentionK [Keys, Hidden] when full;
        "layers.{layer}.self_attn.k_proj.weight" AttentionK [SlidingKeys, Hidden] when sliding;
        "layers.{layer}.self_attn.v_proj.weight" AttentionV [Values, Hidden] when full;
        "layers.{layer}.self_attn.v_proj.weight" AttentionV [SlidingValues, Hidden] when sliding;
        "layers.{layer}.self_attn.o_proj.weight" AttentionO [Hidden, Outputs];
        "layers.{layer}.self_attn.attention_sink_bias" AttentionSink [SlidingHeads] when sink;
    }
    /// A norm of each query and key head: Qwen3MoeAttention.
    HEAD_NORMS {
        "layers.{layer}.self_attn.q_norm.weight" QNorm [HeadDim] when attends & qk_norm;
        "layers.{layer}.self_attn.k_norm.weight" KNorm [HeadDim] when attends & qk_norm;
    }
    /// A norm of all queries, and one of all keys: OlmoeAttention, MiniMaxM2Attention.
    WHOLE_NORMS {
        "layers.{layer}.self_attn.q_norm.weight" QNorm [Queries] when qk_norm;
        "layers.{layer}.self_attn.k_norm.weight" KNorm [Keys] when qk_norm;
    }
    /// Learned sinks: GptOssAttention.
    SINKS {
        "layers.{layer}.self_attn.sinks" AttentionSink [Heads];
    }
    /// Compressed keys and values, and mostly queries: DeepseekV3Attention.
    LATENT {
        "layers.{layer}.self_attn.q_proj.weight" AttentionQ [Queries, Hidden] when full & unranked;
        "layers.{layer}.self_attn.q_a_proj.weight" AttentionQA [QueryRank, Hidden] when full & ranked;
        "layers.{layer}.self_attn.q_a_layernorm.weight" QANorm [QueryRank] when full & ranked;
        "layers.{layer}.self_attn.q_b_proj.weight" AttentionQB [Queries, QueryRank] when full & ranked;
        "layers.{layer}.self_attn.kv_a_proj_with_mqa.weight" AttentionKvA [KvCompressed, Hidden] when full;
        "layers.{layer}.self_attn.kv_a_layernorm.weight" KvANorm [KvRank] when full;
        "layers.{layer}.self_attn.kv_b_proj.weight" AttentionKvB [KvExpanded, KvRank] when full;
        "layers.{layer}.self_attn.o_proj.weight" AttentionO [Hidden, Outputs] when full;
    }
    /// The indexer of sparse attention: DeepseekV32Indexer, GlmMoeDsaIndexer.
    INDEXER {
        "layers.{layer}.self_attn.indexer.wq_b.weight" Indexer [IndexWidth, QueryRank];
        "layers.{layer}.self_attn.indexer.wk.weight" Indexer [IndexDim, Hidden];
        "layers.{layer}.self_attn.indexer.k_norm.weight" Indexer [IndexDim];
        "layers.{layer}.self_attn.indexer.k_norm.bias" Indexer/Bias [IndexDim];
        "layers.{layer}.self_attn.indexer.weights_proj.weight" Indexer [IndexHeads, Hidden];
    }
    /// The gated delta rule, projections fused: Qwen3NextGatedDeltaNet.
    DELTA_FUSED {
        "layers.{layer}.linear_attn.in_proj_qkvz.weight" LinearAttention [LinearIn, Hidden] when linear;
        "layers.{layer}.linear_attn.in_proj_ba.weight" LinearAttention [TwoLinearHeads, Hidden] when linear;
    }
    /// The same, projections apart: Qwen3_5MoeGatedDeltaNet.
    DELTA_APART {
        "layers.{layer}.linear_attn.in_proj_qkv.weight" LinearAttention [LinearConv, Hidden] when linear;
        "layers.{layer}.linear_attn.in_proj_z.weight" LinearAttention [LinearValues, Hidden] when linear;
        "layers.{layer}.linear_attn.in_proj_b.weight" LinearAttention [LinearHeads, Hidden] when linear;
        "layers.{layer}.linear_attn.in_proj_a.weight" LinearAttention [LinearHeads, Hidden] when linear;
    }
    /// What both have.
    DELTA {
        "layers.{layer}.linear_attn.A_log" LinearAttention [LinearHeads] when linear;
        "layers.{layer}.linear_attn.dt_bias" LinearAttention [LinearHeads] when linear;
        "layers.{layer}.linear_attn.conv1d.weight" LinearAttention [LinearConv, One, Taps] when linear;
        "layers.{layer}.linear_attn.norm.weight" LinearAttention [LinearDim] when linear;
        "layers.{layer}.linear_attn.out_proj.weight" LinearAttention [Hidden, LinearValues] when linear;
    }
    /// Kimi delta attention: KimiLinearDeltaAttention.
    KIMI_DELTA {
        "layers.{layer}.self_attn.q_proj.weight" AttentionQ [LinearValues, Hidden] when linear;
        "layers.{layer}.self_attn.k_proj.weight" AttentionK [LinearValues, Hidden] when linear;
        "layers.{layer}.self_attn.v_proj.weight" AttentionV [LinearValues, Hidden] when linear;
        "layers.{layer}.self_attn.o_proj.weight" AttentionO [Hidden, LinearValues] when linear;
        "layers.{layer}.self_attn.q_conv1d.weight" LinearAttention [LinearValues, One, Taps] when linear;
        "layers.{layer}.self_attn.k_conv1d.weight" LinearAttention [LinearValues, One, Taps] when linear;
        "layers.{layer}.self_attn.v_conv1d.weight" LinearAttention [LinearValues, One, Taps] when linear;
        "layers.{layer}.self_attn.A_log" LinearAttention [One, One, LinearHeads, One] or [LinearHeads] when linear;
        "layers.{layer}.self_attn.dt_bias" LinearAttention [LinearValues] when linear;
        "layers.{layer}.self_attn.b_proj.weight" LinearAttention [LinearHeads, Hidden] when linear;
        "layers.{layer}.self_attn.f_a_proj.weight" LinearAttention [LinearDim, Hidden] when linear;
        "layers.{layer}.self_attn.f_b_proj.weight" LinearAttention [LinearValues, LinearDim] when linear;
        "layers.{layer}.self_attn.g_a_proj.weight" LinearAttention [LinearDim, Hidden] when linear;
        "layers.{layer}.self_attn.g_b_proj.weight" LinearAttention [LinearValues, LinearDim] when linear;
        "layers.{layer}.self_attn.o_norm.weight" LinearAttention [LinearDim] when linear;
    }
    /// A state space of one matrix: JambaMambaMixer.
    MAMBA {
        "layers.{layer}.mamba.A_log" LinearAttention [LinearValues, State] when linear;
        "layers.{layer}.mamba.D" LinearAttention [LinearValues] when linear;
        "layers.{layer}.mamba.b_layernorm.weight" LinearAttention [State] when linear;
        "layers.{layer}.mamba.c_layernorm.weight" LinearAttention [State] when linear;
        "layers.{layer}.mamba.conv1d.weight" LinearAttention [LinearValues, One, Taps] when linear;
        "layers.{layer}.mamba.conv1d.bias" LinearAttention/Bias [LinearValues] when linear;
        "layers.{layer}.mamba.dt_layernorm.weight" LinearAttention [StepRank] when linear;
        "layers.{layer}.mamba.dt_proj.weight" LinearAttention [LinearValues, StepRank] when linear;
        "layers.{layer}.mamba.dt_proj.bias" LinearAttention/Bias [LinearValues] when linear;
        "layers.{layer}.mamba.in_proj.weight" LinearAttention [LinearIn, Hidden] when linear;
        "layers.{layer}.mamba.out_proj.weight" LinearAttention [Hidden, LinearValues] when linear;
        "layers.{layer}.mamba.x_proj.weight" LinearAttention [StepAndStates, LinearValues] when linear;
    }
    /// A state space of heads: GraniteMoeHybridMambaLayer.
    MAMBA2 {
        "layers.{layer}.mamba.A_log" LinearAttention [LinearHeads] when linear;
        "layers.{layer}.mamba.D" LinearAttention [LinearHeads] when linear;
        "layers.{layer}.mamba.dt_bias" LinearAttention [LinearHeads] when linear;
        "layers.{layer}.mamba.conv1d.weight" LinearAttention [LinearConv, One, Taps] when linear;
        "layers.{layer}.mamba.conv1d.bias" LinearAttention/Bias [LinearConv] when linear;
        "layers.{layer}.mamba.in_proj.weight" LinearAttention [LinearIn, Hidden] when linear;
        "layers.{layer}.mamba.norm.weight" LinearAttention [LinearValues] when linear;
        "layers.{layer}.mamba.out_proj.weight" LinearAttention [Hidden, LinearValues] when linear;
    }
    /// A short convolution: Lfm2MoeShortConv.
    SHORT_CONV {
        "layers.{layer}.conv.conv.weight" LinearAttention [Hidden, One, Taps] when linear;
        "layers.{layer}.conv.in_proj.weight" LinearAttention [LinearIn, Hidden] when linear;
        "layers.{layer}.conv.out_proj.weight" LinearAttention [Hidden, Hidden] when linear;
    }
}
