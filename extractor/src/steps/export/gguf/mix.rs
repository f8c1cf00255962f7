//! Which type each tensor of a quantized file gets, as llama.cpp's quantizer chooses it.
//!
//! Source: `tensor_allows_quantization`, `llama_tensor_get_type_impl` and `tensor_type_fallback` in
//! llama.cpp's `src/llama-quant.cpp` (as in llama-cpp-python 0.3.36), without importance matrix, for
//! models of the architectures that are exported.

use segpack_formats::gguf::TensorType;
use segpack_formats::numeric::ggml::BlockType;

use crate::steps::export::Quantization;

/// The number of experts for which attention gets more bits: Mixtral's.
const FEW_EXPERTS: u32 = 8;

impl Quantization {
    /// The type of all tensors that no rule is for.
    fn plain(self) -> BlockType {
        match self {
            Self::Q4_0 => BlockType::Q4_0,
            Self::Q5_0 => BlockType::Q5_0,
            Self::Q4KS | Self::Q4KM => BlockType::Q4K,
            Self::Q5KS | Self::Q5KM => BlockType::Q5K,
            Self::Q6K => BlockType::Q6K,
            Self::Q8_0 => BlockType::Q8_0,
        }
    }

    /// `general.file_type`, of `LlamaFileType` in gguf-py/gguf/constants.py.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q4KS => 14,
            Self::Q4KM => 15,
            Self::Q5KS => 16,
            Self::Q5KM => 17,
            Self::Q6K => 18,
        }
    }
}

/// What of a model the rules look at.
pub(super) struct Mix {
    pub quantization: Quantization,
    /// Layers that the file tells of.
    pub layers: u32,
    /// Layers with attention that it holds: those that predict later tokens may be left out.
    pub attentions: u32,
    pub experts: u32,
    /// The embedding is the head, too.
    pub tied: bool,
}

/// The type of a tensor, and the one that it has in place of, where its rows are no whole blocks of
/// that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chosen {
    pub kind: TensorType,
    pub in_place_of: Option<BlockType>,
}

impl Chosen {
    /// The one that is wanted.
    pub(super) fn plain(kind: TensorType) -> Self {
        Self {
            kind,
            in_place_of: None,
        }
    }
}

impl Mix {
    /// The type of the tensor of this name without `.weight`, and of this many columns; the caller
    /// keeps norms, routers and vectors as they are.
    pub(super) fn kind(&self, name: &str, layer: Option<u32>, columns: u64) -> Chosen {
        let plain = self.quantization.plain();
        let wanted = match name {
            "output" => head(plain, columns),
            "token_embd" if self.tied => head(plain, columns),
            "attn_v" => self.values(plain, layer.unwrap_or(0)),
            "attn_k" if self.experts == FEW_EXPERTS => BlockType::Q8_0,
            "attn_output" if self.experts == FEW_EXPERTS => self.attention_output(plain),
            _ if name.starts_with("ffn_down") => self.down(plain, layer.unwrap_or(0)),
            _ => plain,
        };
        fitting(wanted, columns)
    }

    fn values(&self, plain: BlockType, layer: u32) -> BlockType {
        if self.experts == FEW_EXPERTS {
            return BlockType::Q8_0;
        }
        match self.quantization {
            Quantization::Q4KM | Quantization::Q5KM if gets_more_bits(layer, self.attentions) => {
                BlockType::Q6K
            }
            Quantization::Q4KS if layer < 4 => BlockType::Q5K,
            _ => plain,
        }
    }

    fn attention_output(&self, plain: BlockType) -> BlockType {
        match self.quantization {
            Quantization::Q4KS | Quantization::Q4KM => BlockType::Q5K,
            _ => plain,
        }
    }

    fn down(&self, plain: BlockType, layer: u32) -> BlockType {
        match self.quantization {
            Quantization::Q4KM | Quantization::Q5KM if gets_more_bits(layer, self.layers) => {
                BlockType::Q6K
            }
            Quantization::Q4KS if layer < self.layers / 8 => BlockType::Q5K,
            _ => plain,
        }
    }
}

/// `use_more_bits`: the first and the last eighth of the layers, and every third one between.
fn gets_more_bits(layer: u32, layers: u32) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The head has six bits at least, eight where its rows are no whole blocks.
fn head(plain: BlockType, columns: u64) -> BlockType {
    match TensorType::Blocks(plain).divides_rows_of(columns) {
        true if plain != BlockType::Q8_0 => BlockType::Q6K,
        _ => BlockType::Q8_0,
    }
}

/// The type, or the one of blocks of 32 that replaces it, or F16 where rows are not even those.
fn fitting(wanted: BlockType, columns: u64) -> Chosen {
    if TensorType::Blocks(wanted).divides_rows_of(columns) {
        return Chosen::plain(TensorType::Blocks(wanted));
    }
    let smaller = match wanted {
        BlockType::Q4K => BlockType::Q5_0,
        BlockType::Q5K => BlockType::Q5_1,
        BlockType::Q6K => BlockType::Q8_0,
        BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q8_0 => wanted,
    };
    let smaller = Some(TensorType::Blocks(smaller)).filter(|kind| kind.divides_rows_of(columns));
    Chosen {
        kind: smaller.unwrap_or(TensorType::F16),
        in_place_of: Some(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix(quantization: Quantization, layers: u32, experts: u32) -> Mix {
        Mix {
            quantization,
            layers,
            attentions: layers,
            experts,
            tied: false,
        }
    }

    /// Layers whose tensor of this name has another type than most, by llama.cpp's own quantizer
    /// (`tests/peers/heavy` compares whole files).
    fn other(mix: &Mix, name: &str) -> Vec<(u32, String)> {
        let plain = TensorType::Blocks(mix.quantization.plain());
        let kinds = (0..mix.layers).map(|layer| (layer, mix.kind(name, Some(layer), 2048).kind));
        kinds
            .filter(|(_, kind)| *kind != plain)
            .map(|(layer, kind)| (layer, kind.to_string()))
            .collect()
    }

    #[test]
    fn q4_k_m_gives_half_of_the_layers_more_bits_as_in_published_files() {
        // Qwen3-30B-A3B, 48 layers: 6 + 6 of both ends, and every third between
        let layers: Vec<u32> = other(&mix(Quantization::Q4KM, 48, 128), "ffn_down_exps")
            .into_iter()
            .map(|(layer, kind)| {
                assert_eq!(kind, "Q6_K");
                layer
            })
            .collect();
        let wanted: Vec<u32> = (0..6).chain((8..42).step_by(3)).chain(42..48).collect();
        assert_eq!(layers, wanted);
    }

    #[test]
    fn heads_and_eight_experts_have_rules_of_their_own() {
        let few = mix(Quantization::Q4KM, 32, 8);
        for (name, columns, kind) in [
            ("output", 2048, "Q6_K"),
            ("output", 96, "Q8_0"),
            ("output", 40, "F16"),
            ("token_embd", 2048, "Q4_K"),
            ("attn_v", 2048, "Q8_0"),
            ("attn_k", 2048, "Q8_0"),
            ("attn_output", 2048, "Q5_K"),
            ("attn_output", 96, "Q5_1"),
            ("attn_q", 2048, "Q4_K"),
            ("attn_q", 96, "Q5_0"),
            ("attn_q", 24, "F16"),
        ] {
            assert_eq!(
                few.kind(name, Some(12), columns).kind.to_string(),
                kind,
                "{name}"
            );
        }
        let tied = Mix { tied: true, ..few };
        assert_eq!(tied.kind("token_embd", None, 2048).kind.to_string(), "Q6_K");
        let small = other(&mix(Quantization::Q4KS, 16, 64), "ffn_down_exps");
        assert_eq!(small, [(0, "Q5_K".to_owned()), (1, "Q5_K".to_owned())]);
    }
}
