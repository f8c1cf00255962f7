//! Towers of vision-language models. Source: transformers 5.23, Qwen3VLMoeVisionModel,
//! Glm4vMoeVisionModel, Kimi_K25's MoonViT, Llama4VisionModel.

use crate::families::sizes::table;

table! {
    /// Qwen's tower: every Linear has a bias.
    QWEN_VISION {
        "patch_embed.proj.weight" Conv [Hidden, Channels, Frames, Patch, Patch];
        "patch_embed.proj.bias" Conv/Bias [Hidden];
        "pos_embed.weight" PositionEmbedding [Positions, Hidden];
        "blocks.{layer}.norm1.weight" VisionBlock [Hidden];
        "blocks.{layer}.norm1.bias" VisionBlock/Bias [Hidden];
        "blocks.{layer}.attn.qkv.weight" VisionBlock [ThreeHidden, Hidden];
        "blocks.{layer}.attn.qkv.bias" VisionBlock/Bias [ThreeHidden];
        "blocks.{layer}.attn.proj.weight" VisionBlock [Hidden, Hidden];
        "blocks.{layer}.attn.proj.bias" VisionBlock/Bias [Hidden];
        "blocks.{layer}.norm2.weight" VisionBlock [Hidden];
        "blocks.{layer}.norm2.bias" VisionBlock/Bias [Hidden];
        "blocks.{layer}.mlp.linear_fc1.weight" VisionBlock [Dense, Hidden];
        "blocks.{layer}.mlp.linear_fc1.bias" VisionBlock/Bias [Dense];
        "blocks.{layer}.mlp.linear_fc2.weight" VisionBlock [Hidden, Dense];
        "blocks.{layer}.mlp.linear_fc2.bias" VisionBlock/Bias [Hidden];
        "merger.norm.weight" Merger [Hidden];
        "merger.norm.bias" Merger/Bias [Hidden];
        "merger.linear_fc1.weight" Merger [Merged, Merged];
        "merger.linear_fc1.bias" Merger/Bias [Merged];
        "merger.linear_fc2.weight" Merger [Output, Merged];
        "merger.linear_fc2.bias" Merger/Bias [Output];
        "deepstack_merger_list.{merger}.norm.weight" Merger [Merged];
        "deepstack_merger_list.{merger}.norm.bias" Merger/Bias [Merged];
        "deepstack_merger_list.{merger}.linear_fc1.weight" Merger [Merged, Merged];
        "deepstack_merger_list.{merger}.linear_fc1.bias" Merger/Bias [Merged];
        "deepstack_merger_list.{merger}.linear_fc2.weight" Merger [Output, Merged];
        "deepstack_merger_list.{merger}.linear_fc2.bias" Merger/Bias [Output];
    }
    /// GLM-4.5V's tower.
    GLM_VISION {
        "patch_embed.proj.weight" Conv [Hidden, Channels, Frames, Patch, Patch];
        "patch_embed.proj.bias" Conv/Bias [Hidden];
        "embeddings.position_embedding.weight" PositionEmbedding [Positions, Hidden];
        "post_conv_layernorm.weight" VisionBlock [Hidden];
        "blocks.{layer}.norm1.weight" VisionBlock [Hidden];
        "blocks.{layer}.attn.qkv.weight" VisionBlock [ThreeHidden, Hidden];
        "blocks.{layer}.attn.qkv.bias" VisionBlock/Bias [ThreeHidden] when qkv_bias;
        "blocks.{layer}.attn.proj.weight" VisionBlock [Hidden, Hidden];
        "blocks.{layer}.norm2.weight" VisionBlock [Hidden];
        "blocks.{layer}.mlp.gate_proj.weight" VisionBlock [Output, Hidden];
        "blocks.{layer}.mlp.up_proj.weight" VisionBlock [Output, Hidden];
        "blocks.{layer}.mlp.down_proj.weight" VisionBlock [Hidden, Output];
        "post_layernorm.weight" FinalNorm [Hidden];
        "downsample.weight" Conv [Output, Hidden, Merge, Merge];
        "downsample.bias" Conv/Bias [Output];
        "merger.proj.weight" Merger [Output, Output];
        "merger.post_projection_norm.weight" Merger [Output];
        "merger.post_projection_norm.bias" Merger/Bias [Output];
        "merger.gate_proj.weight" Merger [Dense, Output];
        "merger.up_proj.weight" Merger [Dense, Output];
        "merger.down_proj.weight" Merger [Output, Dense];
    }
    /// Kimi-K2.5's tower.
    KIMI_VISION {
        "patch_embed.proj.weight" Conv [Hidden, Channels, Patch, Patch];
        "patch_embed.proj.bias" Conv/Bias [Hidden];
        "patch_embed.pos_emb.weight" PositionEmbedding [PositionRows, PositionColumns, Hidden];
        "encoder.blocks.{layer}.norm0.weight" VisionBlock [Hidden];
        "encoder.blocks.{layer}.norm0.bias" VisionBlock/Bias [Hidden];
        "encoder.blocks.{layer}.wqkv.weight" VisionBlock [ThreeHidden, Hidden];
        "encoder.blocks.{layer}.wqkv.bias" VisionBlock/Bias [ThreeHidden];
        "encoder.blocks.{layer}.wo.weight" VisionBlock [Hidden, Hidden];
        "encoder.blocks.{layer}.wo.bias" VisionBlock/Bias [Hidden];
        "encoder.blocks.{layer}.norm1.weight" VisionBlock [Hidden];
        "encoder.blocks.{layer}.norm1.bias" VisionBlock/Bias [Hidden];
        "encoder.blocks.{layer}.mlp.fc0.weight" VisionBlock [Dense, Hidden];
        "encoder.blocks.{layer}.mlp.fc0.bias" VisionBlock/Bias [Dense];
        "encoder.blocks.{layer}.mlp.fc1.weight" VisionBlock [Hidden, Dense];
        "encoder.blocks.{layer}.mlp.fc1.bias" VisionBlock/Bias [Hidden];
        "encoder.final_layernorm.weight" FinalNorm [Hidden];
        "encoder.final_layernorm.bias" FinalNorm/Bias [Hidden];
    }
    /// Kimi-K2.5's projector.
    KIMI_PROJECTOR {
        "pre_norm.weight" Projection [Hidden];
        "pre_norm.bias" Projection/Bias [Hidden];
        "proj.0.weight" Projection [Merged, Merged];
        "proj.0.bias" Projection/Bias [Merged];
        "proj.2.weight" Projection [Output, Merged];
        "proj.2.bias" Projection/Bias [Output];
    }
    /// Llama-4's tower.
    LLAMA_VISION {
        "class_embedding" PositionEmbedding [Hidden];
        "positional_embedding_vlm" PositionEmbedding [Positions, Hidden];
        "patch_embedding.linear.weight" Conv [Hidden, PatchValues];
        "layernorm_pre.weight" VisionBlock [Hidden];
        "layernorm_pre.bias" VisionBlock/Bias [Hidden];
        "layernorm_post.weight" FinalNorm [Hidden];
        "layernorm_post.bias" FinalNorm/Bias [Hidden];
        "model.layers.{layer}.input_layernorm.weight" VisionBlock [Hidden];
        "model.layers.{layer}.input_layernorm.bias" VisionBlock/Bias [Hidden];
        "model.layers.{layer}.post_attention_layernorm.weight" VisionBlock [Hidden];
        "model.layers.{layer}.post_attention_layernorm.bias" VisionBlock/Bias [Hidden];
        "model.layers.{layer}.self_attn.q_proj.weight" VisionBlock [Hidden, Hidden];
        "model.layers.{layer}.self_attn.q_proj.bias" VisionBlock/Bias [Hidden];
        "model.layers.{layer}.self_attn.k_proj.weight" VisionBlock [Hidden, Hidden];
        "model.layers.{layer}.self_attn.k_proj.bias" VisionBlock/Bias [Hidden];
        "model.layers.{layer}.self_attn.v_proj.weight" VisionBlock [Hidden, Hidden];
        "model.layers.{layer}.self_attn.v_proj.bias" VisionBlock/Bias [Hidden];
        "model.layers.{layer}.self_attn.o_proj.weight" VisionBlock [Hidden, Hidden];
        "model.layers.{layer}.self_attn.o_proj.bias" VisionBlock/Bias [Hidden];
        "model.layers.{layer}.mlp.fc1.weight" VisionBlock [Dense, Hidden];
        "model.layers.{layer}.mlp.fc1.bias" VisionBlock/Bias [Dense];
        "model.layers.{layer}.mlp.fc2.weight" VisionBlock [Hidden, Dense];
        "model.layers.{layer}.mlp.fc2.bias" VisionBlock/Bias [Hidden];
        "vision_adapter.mlp.fc1.weight" Merger [Merged, Dense];
        "vision_adapter.mlp.fc2.weight" Merger [Merged, Merged];
    }
    /// Llama-4's projector.
    LLAMA_PROJECTOR {
        "linear_1.weight" Projection [Output, Merged];
    }
}
