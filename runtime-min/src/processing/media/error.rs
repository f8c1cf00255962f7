use segpack_formats::FormatError;
use segpack_manifests::folder::ModelError;

use super::{MediaKind, SettingsError};
use crate::processing::text::BoxError;

/// Why audio, images or videos cannot become a part of a prompt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// It would have to be fetched, and nobody may.
    #[error("{address} would have to be fetched from a server, which was not allowed")]
    Remote {
        /// The address without its query, shortened.
        address: String,
    },
    /// An address that is not well formed.
    #[error("the address {address:?} {problem}")]
    Address {
        /// The address, shortened.
        address: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A part of a chat is nothing that is known.
    #[error("part {part} of message {message} (both from 0) {problem}")]
    Part {
        /// Which message, from 0.
        message: usize,
        /// Which part of its content, from 0.
        part: usize,
        /// What is wrong.
        problem: String,
    },
    /// A file cannot be used.
    #[error("cannot use {kind} {name}")]
    File {
        /// What it should be.
        kind: MediaKind,
        /// Its path, or what it is called.
        name: String,
        /// Why.
        #[source]
        source: BoxError,
        /// Whether it could not be read, rather than not be understood.
        unreadable: bool,
    },
    /// The chat asks for a part of a video in something that is no number.
    #[error("{key} of video {name} is no number of seconds")]
    Option {
        /// Its path, or what it is called.
        name: String,
        /// The key.
        key: &'static str,
    },
    /// The work was interrupted, or a file could not be fetched.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// All clips together cannot be used.
    #[error("cannot use the prompt's audio")]
    Clips(#[source] BoxError),
    /// The processor's settings are missing or odd.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The tokenizer does not say how media are marked in a text.
    #[error("tokenizer_config.json: {key} is missing or no text")]
    Token {
        /// The setting.
        key: &'static str,
    },
    /// The text has other placeholders than there are media.
    #[error(
        "the prompt has {in_text} {placeholder} and {given} {kind} to put there: the chat template \
         does not mark them, or a text contains the words of a placeholder"
    )]
    Count {
        /// What the placeholder stands for.
        kind: MediaKind,
        /// The placeholder.
        placeholder: String,
        /// How many the text has.
        in_text: usize,
        /// How many media there are.
        given: usize,
    },
    /// The tokenizer makes something else than one id of a placeholder.
    #[error("the tokenizer gives {ids} tokens for {in_text} {placeholder}")]
    Tokens {
        /// The placeholder.
        placeholder: String,
        /// How many the text has.
        in_text: usize,
        /// How many ids of it there are.
        ids: usize,
    },
    /// The model has nothing that encodes such media.
    #[error("the pack has no encoder of {kind}: {name} would not be perceived")]
    NoEncoder {
        /// Such media.
        kind: MediaKind,
        /// The first of them.
        name: String,
    },
    /// Of this family's media, images alone are computed.
    #[error(
        "cannot use {kind} {name}: images alone are taken of this model's family (its videos have \
         their times as text between the frames, which is not built)"
    )]
    ImagesAlone {
        /// Other media.
        kind: MediaKind,
        /// The first of them.
        name: String,
    },
    /// The model card of another family was asked for.
    #[error(
        "the model card's recipe is that of qwen-omni-utils, which loads the media of Qwen3-Omni; \
         the card of this model's family loads images by transformers"
    )]
    Recipe,
    /// What `config.json` says of the encoders cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A build without what decodes such media.
    #[error("cannot use {kind} {name}: built without the feature `{feature}`")]
    NotBuilt {
        /// Such media.
        kind: MediaKind,
        /// The first of them.
        name: String,
        /// The cargo feature.
        feature: &'static str,
    },
}
