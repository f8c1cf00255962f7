use std::io;
use std::path::PathBuf;
use std::str::Utf8Error;

use segpack_formats::FormatError;
use segpack_formats::codec::Codec;
use segpack_manifests::PackError;
use segpack_manifests::documents::NoLayer;

use crate::steps::{Exit, StepError};

/// Why a command failed.
#[cfg_attr(
    not(feature = "run"),
    allow(dead_code, reason = "some are of commands that run models")
)]
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// A step failed.
    #[error(transparent)]
    Step(#[from] StepError),
    /// A level was given for a codec without levels.
    #[error("codec {0} has no compression levels")]
    Level(Codec),
    /// Neither an option nor standard input gives a prompt.
    #[error("there is no prompt")]
    NoPrompt,
    /// Text that was read is not UTF-8.
    #[error("{what} is not UTF-8")]
    NotUtf8 { what: String, source: Utf8Error },
    /// A chat is not what it has to be.
    #[error("{what} is neither a JSON list of messages nor an object with `messages` and `tools`")]
    Messages {
        what: String,
        source: serde_json::Error,
    },
    /// A file is no mask of experts.
    #[error("{}: not a mask of experts", file.display())]
    ExpertMask {
        file: PathBuf,
        source: serde_json::Error,
    },
    /// A mask of experts names a layer that cannot be.
    #[error("{}: not a mask of experts", file.display())]
    MaskLayer { file: PathBuf, source: NoLayer },
    /// Token ids are to be shown as text.
    #[error("these token ids have no text: the pack has no tokenizer")]
    NoTokenizer,
    /// Bytes of tensors would go to a terminal.
    #[error("this is binary, and standard output is a terminal")]
    BinaryToTerminal,
    /// The source would be deleted, and there is no terminal to ask on.
    #[error(
        "the checkpoint would be deleted while it is packed, and nobody can be asked; nothing was written"
    )]
    CannotAsk,
    /// The question was not answered with yes.
    #[error("not confirmed; nothing was written or deleted")]
    NotConfirmed,
    /// Two things would go to standard output.
    #[error("the data and the summary cannot both go to standard output")]
    TwoOutputs,
    /// `bench --device` with something else than a GPU.
    #[error("the device to measure is not a GPU")]
    NotAGpu,
    /// Several memory budgets of a host whose GPU is measured.
    #[error("a GPU is measured with one memory budget of the host")]
    HostMemory,
    /// A command that runs models, in a build without what it needs.
    #[cfg(not(feature = "serve"))]
    #[error("`segpack {command}` is not in this build, which is without the feature `{feature}`")]
    WithoutFeature {
        command: &'static str,
        feature: &'static str,
    },
    /// A file that should hold the SHA-256 of a manifest does not.
    #[error("{} holds no SHA-256 of a manifest.json", .0.display())]
    NoDigest(PathBuf),
    /// As many SHA-256 of manifests as there are packs are needed.
    #[error("every pack that is compared needs a SHA-256 of its manifest.json, or none does")]
    Identities,
    /// An option with which a pack that has to be signed would be used unchecked.
    #[error("with --{option} not all that is read of a pack is compared with what was signed")]
    Unchecked { option: &'static str },
    /// An option that makes no sense for the output.
    #[error("--{option} {why}")]
    Output {
        option: &'static str,
        why: &'static str,
    },
    /// Neither a pack with a format and an output, nor a share to check.
    #[error("nothing says what to export, how and where to")]
    NothingToExport,
    /// An environment variable that should hold a key does not.
    #[error("the environment variable {0} is not set, or empty")]
    NoKey(String),
    /// What should be a key is none; it is not shown.
    #[error("{0} holds no key: wanted one line of printable ASCII characters")]
    NotAKey(String),
    /// A line of a conversation that begins with `/`.
    #[error("there is no command {0:?} in a conversation")]
    NoSuchChatCommand(String),
    /// A command of a conversation without a file.
    #[error("{0} needs the name of a file")]
    NoChatFile(String),
    /// `man` of a command that does not exist.
    #[error("there is no command {0:?}")]
    NoSuchCommand(String),
}

impl CliError {
    /// Standard output was closed or failed.
    pub(crate) fn stdout(error: io::Error) -> Self {
        StepError::Stdout(error).into()
    }

    /// The exit status for it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Step(e) => e.exit(),
            #[cfg(not(feature = "serve"))]
            Self::WithoutFeature { .. } => Exit::Failed,
            Self::BinaryToTerminal | Self::NotConfirmed => Exit::Failed,
            Self::NotUtf8 { .. }
            | Self::Messages { .. }
            | Self::ExpertMask { .. }
            | Self::MaskLayer { .. }
            | Self::NoTokenizer => Exit::Damaged,
            Self::Level(_)
            | Self::NoPrompt
            | Self::CannotAsk
            | Self::TwoOutputs
            | Self::NotAGpu
            | Self::HostMemory
            | Self::NoDigest(_)
            | Self::Identities
            | Self::NothingToExport
            | Self::NoKey(_)
            | Self::NotAKey(_)
            | Self::Unchecked { .. }
            | Self::Output { .. }
            | Self::NoSuchChatCommand(_)
            | Self::NoChatFile(_)
            | Self::NoSuchCommand(_) => Exit::Usage,
        }
    }

    /// What to change on the command line, where the error is one of it.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Level(_) => Some("--level requires --codec zstd"),
            Self::NoPrompt => Some("use --prompt, --prompt-ids, --messages or standard input"),
            Self::BinaryToTerminal => Some("redirect it to a file or a pipe"),
            Self::ExpertMask { .. } | Self::MaskLayer { .. } => {
                Some("wanted {\"layers\": {\"0\": [0, 1]}}, or a list of experts for each layer")
            }
            Self::CannotAsk => Some("--yes confirms it"),
            Self::TwoOutputs => Some("use either --json or -o -"),
            Self::Unchecked { .. } => Some(
                "--check always, or whole tensors in place of --rows, or no --require-signature",
            ),
            Self::NotAGpu => {
                Some("use --device cuda or cuda:N; without --device, the CPU is measured")
            }
            Self::HostMemory => Some("with --device, use --memory once"),
            Self::NoDigest(_) => {
                Some("wanted the digest alone, or a list as `sha256sum` prints it")
            }
            Self::Identities => Some("use --manifest-sha256 once for each pack, in their order"),
            Self::NoSuchChatCommand(_) => Some("/help lists them"),
            Self::NoSuchCommand(_) => Some("`segpack --help` lists the commands"),
            #[cfg(not(feature = "serve"))]
            Self::WithoutFeature { .. } => None,
            Self::Step(_)
            | Self::Output { .. }
            | Self::NothingToExport
            | Self::NoKey(_)
            | Self::NotAKey(_)
            | Self::NotConfirmed
            | Self::NoChatFile(_)
            | Self::NotUtf8 { .. }
            | Self::Messages { .. }
            | Self::NoTokenizer => None,
        }
    }
}

impl From<FormatError> for CliError {
    fn from(error: FormatError) -> Self {
        Self::Step(error.into())
    }
}

impl From<PackError> for CliError {
    fn from(error: PackError) -> Self {
        Self::Step(error.into())
    }
}
