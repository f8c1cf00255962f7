//! What a runtime wants to know of a model that speaks: its talker, the predictor of residual codes,
//! and the ids that lead from a text to them.

use super::blocks::decoder::{DecoderDefaults, Sparsity};
use super::config::{ConfigError, MAX_COUNT, MAX_SIZE, Section};
use super::facts::TextFacts;
use super::media::read_mrope;
use super::settings::{check_operations, check_rope};

/// Control codes at the end of the talker's vocabulary: only the end marker is ever chosen of them
/// (modeling_qwen3_omni_moe.py, `suppress_tokens`).
const CONTROL_CODES: u64 = 1024;

/// A talker with its code predictor.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SpeechFacts {
    /// The talker's decoder, all of whose layers have experts.
    pub talker: TextFacts,
    /// Inner width of the shared expert, which every token visits.
    pub shared_intermediate: u64,
    /// Rotary frequencies of the talker that go by time, height and width; interleaved.
    pub mrope_section: [u64; 3],
    /// The decoder that predicts the residual codes of a frame.
    pub predictor: TextFacts,
    /// Codes of a frame: the talker's own, and the residual ones.
    pub groups: u32,
    /// Width of the thinker's states, which are projected to the talker's.
    pub thinker_hidden: u64,
    /// Inner width of the projections.
    pub projection: u64,
    /// Whose states of media feed the talker: 0 are the embeddings, k what is after k layers of the
    /// thinker.
    pub accept_layer: u32,
    /// Token ids of the thinker.
    pub tokens: SpeechTokens,
    /// Ids of the talker's vocabulary.
    pub codes: SpeechCodes,
    /// Speakers and their ids, by name in lower case.
    pub speakers: Vec<(String, u32)>,
    /// Placeholders as the talker's positions see them.
    pub media: TalkerMedia,
}

/// Token ids of the thinker that speech goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpeechTokens {
    /// Before the role of a turn.
    pub im_start: u32,
    /// After a turn.
    pub im_end: u32,
    /// The role of the user.
    pub user: u32,
    /// The role of the model.
    pub assistant: u32,
    /// Stands where there is no text to speak.
    pub tts_pad: u32,
    /// Before the text.
    pub tts_bos: u32,
    /// After the text.
    pub tts_eos: u32,
}

/// Ids of the talker's vocabulary that are no codes of sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpeechCodes {
    /// No thinking.
    pub nothink: u32,
    /// Before thoughts.
    pub think_bos: u32,
    /// After thoughts.
    pub think_eos: u32,
    /// Beside the text's beginning.
    pub pad: u32,
    /// Before the first code.
    pub bos: u32,
    /// After the last code.
    pub eos: u32,
    /// The first id that is never chosen, but for `eos`.
    pub first_suppressed: u32,
}

/// What the talker's configuration says of media.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TalkerMedia {
    /// A row of the audio encoder.
    pub audio: u32,
    /// A row of an image.
    pub image: u32,
    /// A row of a video.
    pub video: u32,
    /// Patches along a side of the square that becomes one token.
    pub merge: u64,
    /// Positions of a second.
    pub positions_per_second: u64,
}

impl SpeechFacts {
    /// Of a whole omni model, whose thinker's decoder is `thinker`.
    pub(crate) fn read(
        root: &Section<'_>,
        thinker: &TextFacts,
        [talker_defaults, predictor_defaults]: [&DecoderDefaults; 2],
    ) -> Result<Self, ConfigError> {
        let talker = root.section("talker_config")?;
        let text = talker.section("text_config")?;
        let predictor = talker.section("code_predictor_config")?;
        check_operations(&text)?;
        check_rope(&text)?;
        check_operations(&predictor)?;
        check_rope(&predictor)?;
        check_layer_types(&predictor)?;
        let tied = text.flag("tie_word_embeddings", false)?
            || talker.flag("tie_word_embeddings", false)?;
        let facts = TextFacts::read_as(&text, talker_defaults, Sparsity::Everywhere, tied)?;
        let predictor_facts =
            TextFacts::read_as(&predictor, predictor_defaults, Sparsity::Nowhere, false)?;
        if predictor_facts.hidden_size != facts.hidden_size {
            let wanted = format!("{}, the talker's", facts.hidden_size);
            return Err(predictor.invalid("hidden_size", &wanted));
        }
        let thinker_hidden = thinker.hidden_size;
        talker.integer(
            "thinker_hidden_size",
            Some(thinker_hidden),
            thinker_hidden..=thinker_hidden,
        )?;
        Ok(Self {
            shared_intermediate: text.size("shared_expert_intermediate_size", None)?,
            mrope_section: read_mrope(&text)?,
            groups: groups(&talker, &predictor)?,
            thinker_hidden,
            projection: facts.intermediate,
            accept_layer: accept_layer(&talker, thinker)?,
            tokens: SpeechTokens::read(root, thinker.vocab)?,
            codes: SpeechCodes::read(&talker, facts.vocab, predictor_facts.vocab)?,
            speakers: speakers(&talker, facts.vocab)?,
            media: TalkerMedia::read(&talker, thinker.vocab)?,
            talker: facts,
            predictor: predictor_facts,
        })
    }

    /// The id of a speaker, whose name is compared without regard to case.
    #[must_use]
    pub fn speaker(&self, name: &str) -> Option<u32> {
        let name = name.to_lowercase();
        let found = self.speakers.iter().find(|(known, _)| *known == name);
        found.map(|(_, id)| *id)
    }
}

/// Windows of attention are not computed.
fn check_layer_types(predictor: &Section<'_>) -> Result<(), ConfigError> {
    let key = "layer_types";
    if predictor.has(key) && predictor.texts(key)?.iter().any(|t| t != "full_attention") {
        let wanted = "\"full_attention\" alone: sliding windows are not computed";
        return Err(predictor.invalid(key, wanted));
    }
    Ok(())
}

/// The talker's number and the predictor's, which have to be the same.
fn groups(talker: &Section<'_>, predictor: &Section<'_>) -> Result<u32, ConfigError> {
    // class defaults: 32 of both
    let groups = predictor.count("num_code_groups", Some(32), 2)?;
    let wanted = u64::from(groups);
    talker.integer("num_code_groups", Some(32), wanted..=wanted)?;
    Ok(groups)
}

fn accept_layer(talker: &Section<'_>, thinker: &TextFacts) -> Result<u32, ConfigError> {
    let key = "accept_hidden_layer";
    let layer = talker.integer(key, Some(18), 0..=thinker.layers.into())?;
    u32::try_from(layer).map_err(|_| talker.invalid(key, "a layer"))
}

/// An id below `rows`.
fn id(section: &Section<'_>, key: &str, rows: u64) -> Result<u32, ConfigError> {
    let last = rows.saturating_sub(1).min(MAX_SIZE);
    let id = section.integer(key, None, 0..=last)?;
    u32::try_from(id).map_err(|_| section.invalid(key, "an id"))
}

impl SpeechTokens {
    fn read(root: &Section<'_>, vocab: u64) -> Result<Self, ConfigError> {
        Ok(Self {
            im_start: id(root, "im_start_token_id", vocab)?,
            im_end: id(root, "im_end_token_id", vocab)?,
            user: id(root, "user_token_id", vocab)?,
            assistant: id(root, "assistant_token_id", vocab)?,
            tts_pad: id(root, "tts_pad_token_id", vocab)?,
            tts_bos: id(root, "tts_bos_token_id", vocab)?,
            tts_eos: id(root, "tts_eos_token_id", vocab)?,
        })
    }
}

impl SpeechCodes {
    fn read(talker: &Section<'_>, vocab: u64, codebook: u64) -> Result<Self, ConfigError> {
        let first = vocab.saturating_sub(CONTROL_CODES);
        let eos = id(talker, "codec_eos_token_id", vocab)?;
        // a code that can be chosen has to have a row in the vocoder and no other meaning
        if first == 0 || first > codebook {
            let text = talker.section("text_config")?;
            let wanted = format!(
                "{CONTROL_CODES} control codes more than the codes of sound, of which there are at \
                 most {codebook}"
            );
            return Err(text.invalid("vocab_size", &wanted));
        }
        Ok(Self {
            nothink: id(talker, "codec_nothink_id", vocab)?,
            think_bos: id(talker, "codec_think_bos_id", vocab)?,
            think_eos: id(talker, "codec_think_eos_id", vocab)?,
            pad: id(talker, "codec_pad_id", vocab)?,
            bos: id(talker, "codec_bos_id", vocab)?,
            eos,
            first_suppressed: u32::try_from(first).unwrap_or(u32::MAX),
        })
    }
}

/// An object of names and ids.
fn speakers(talker: &Section<'_>, vocab: u64) -> Result<Vec<(String, u32)>, ConfigError> {
    let section = talker.section("speaker_id")?;
    let names = section.keys();
    if names.len() as u64 > MAX_COUNT {
        return Err(talker.invalid("speaker_id", "fewer speakers"));
    }
    let speaker = |name: &&str| Ok((name.to_lowercase(), id(&section, name, vocab)?));
    names.iter().map(speaker).collect()
}

impl TalkerMedia {
    fn read(talker: &Section<'_>, vocab: u64) -> Result<Self, ConfigError> {
        Ok(Self {
            audio: id(talker, "audio_token_id", vocab)?,
            image: id(talker, "image_token_id", vocab)?,
            video: id(talker, "video_token_id", vocab)?,
            // the configuration class does not declare it
            merge: talker.integer("spatial_merge_size", Some(2), 1..=64)?,
            positions_per_second: talker.integer(
                "position_id_per_seconds",
                Some(25),
                1..=MAX_COUNT,
            )?,
        })
    }
}
