//! What a runtime wants to know of a model's vocoder, which makes sound of codes.

use super::config::{ConfigError, MAX_COUNT, Section};

/// Largest width that is believed; products of three of them fit 64 bits.
const MAX_WIDTH: u64 = 1 << 20;
/// Most samples that a frame of codes may become.
const MAX_SAMPLES: u64 = 1 << 20;
/// Samples of a second: the classes have it nowhere in their configurations.
const SAMPLE_RATE: u32 = 24_000;

/// The vocoder: Qwen3OmniMoeCode2Wav.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct VocoderFacts {
    /// Transformer layers.
    pub layers: u32,
    /// Width of the transformer and of the upsampling stages.
    pub hidden: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Inner width of the MLPs.
    pub intermediate: u64,
    /// Whether queries, keys, values and the output of attention have a bias.
    pub has_bias: bool,
    /// Frames that a frame attends to, itself among them.
    pub window: u64,
    /// What the RMS norms add to the mean square.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Codes of a codebook.
    pub codebook: u64,
    /// Codes of a frame, each of a codebook of its own.
    pub groups: u64,
    /// Factors of the upsampling stages.
    pub stages: Vec<u64>,
    /// Factors of the blocks of the waveform decoder.
    pub rates: Vec<u64>,
    /// Channels of the waveform decoder; each block halves them.
    pub decoder: u64,
    /// Samples of a second.
    pub sample_rate: u32,
}

impl VocoderFacts {
    /// Missing keys take the defaults of Qwen3OmniMoeCode2WavConfig.
    pub(crate) fn read(section: &Section<'_>) -> Result<Self, ConfigError> {
        let width = |key, default| section.integer(key, Some(default), 1..=MAX_WIDTH);
        check_operations(section)?;
        let hidden = width("hidden_size", 1024)?;
        let heads = width("num_attention_heads", 16)?;
        let kv_heads = match section.is_null("num_key_value_heads") {
            true => heads,
            false => width("num_key_value_heads", 16)?,
        };
        let head_dim = match section.has("head_dim") {
            true => width("head_dim", 1)?,
            false => hidden / heads,
        };
        if head_dim == 0 || head_dim % 2 != 0 {
            let wanted = "heads of an even width: its halves are rotated together";
            return Err(section.invalid("num_attention_heads", wanted));
        }
        if heads % kv_heads != 0 {
            let wanted = format!("a divisor of num_attention_heads, {heads}");
            return Err(section.invalid("num_key_value_heads", &wanted));
        }
        let facts = Self {
            layers: section.count("num_hidden_layers", Some(8), 1)?,
            hidden,
            heads,
            kv_heads,
            head_dim,
            intermediate: width("intermediate_size", 3072)?,
            has_bias: section.flag("attention_bias", false)?,
            window: section.integer("sliding_window", Some(72), 1..=MAX_COUNT)?,
            rms_norm_eps: section.number("rms_norm_eps", 1e-5, 0.0..=1.0)?,
            rope_theta: read_theta(section)?,
            codebook: width("codebook_size", 2048)?,
            groups: width("num_quantizers", 16)?,
            stages: section.integers("upsampling_ratios", &[2, 2], 1..=MAX_WIDTH)?,
            rates: section.integers("upsample_rates", &[8, 5, 4, 3], 1..=MAX_WIDTH)?,
            decoder: width("decoder_dim", 1536)?,
            sample_rate: SAMPLE_RATE,
        };
        facts.check_factors(section)?;
        Ok(facts)
    }

    fn check_factors(&self, section: &Section<'_>) -> Result<(), ConfigError> {
        let factors = self.stages.iter().chain(&self.rates);
        let samples = factors.fold(1_u64, |product, factor| product.saturating_mul(*factor));
        if samples > MAX_SAMPLES {
            let wanted = format!(
                "factors that make at most {MAX_SAMPLES} samples of a frame, with upsampling_ratios"
            );
            return Err(section.invalid("upsample_rates", &wanted));
        }
        let blocks = u32::try_from(self.rates.len()).unwrap_or(u32::MAX);
        if self.decoder.checked_shr(blocks).unwrap_or(0) == 0 {
            let wanted = "at least 2 to the number of upsample_rates";
            return Err(section.invalid("decoder_dim", wanted));
        }
        Ok(())
    }

    /// Samples that a frame of codes becomes, before the ends of chunks are cut.
    #[must_use]
    pub fn samples_per_frame(&self) -> u64 {
        self.stages.iter().chain(&self.rates).product()
    }
}

/// Other operations would give another sound without a word.
fn check_operations(section: &Section<'_>) -> Result<(), ConfigError> {
    match section.text("hidden_act")? {
        None | Some("silu") => Ok(()),
        Some(_) => Err(section.invalid("hidden_act", "\"silu\", the only one that is computed")),
    }
}

/// Beside the sizes, or in an object of its own as newer versions write it.
fn read_theta(section: &Section<'_>) -> Result<f64, ConfigError> {
    const RANGE: std::ops::RangeInclusive<f64> = 1.0..=1e12;
    let beside = section.number("rope_theta", 10_000.0, RANGE)?;
    let key = section.either("rope_parameters", "rope_scaling");
    if !section.has(key) {
        return Ok(beside);
    }
    let rope = section.section(key)?;
    let kind = rope.either("rope_type", "type");
    match rope.text(kind)? {
        None | Some("default") => rope.number("rope_theta", beside, RANGE),
        Some(_) => Err(rope.invalid(kind, "\"default\", the only one that is computed")),
    }
}
