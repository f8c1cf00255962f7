//! Why a step failed, and the exit status that says so.

use std::io;
use std::path::{Path, PathBuf};

use segpack_formats::FormatError;
use segpack_manifests::documents::Finding;
use segpack_manifests::layout::PlanError;
use segpack_manifests::{ModelError, PackError};
use segpack_runtime_min::generate::GenerateError;
use segpack_runtime_min::processing::PromptError;
#[cfg(feature = "run")]
use segpack_runtime_min::processing::media::MediaError;
#[cfg(feature = "run")]
use segpack_runtime_min::processing::text::chat_template::ChatTemplateError;
use segpack_runtime_min::session::SessionError;
use segpack_runtime_min::{RunError, SpeechError};

#[cfg(feature = "run")]
use super::bench::BenchError;
use super::cat::CatError;
#[cfg(feature = "run")]
use super::chat::ChatError;
use super::export::{ExportError, GgufExportError};
use super::join::JoinError;
use super::repair::RepairError;
#[cfg(feature = "run")]
use super::run::{ImatrixError, PromptsError};
#[cfg(feature = "serve")]
use super::serve::ServeError;
use super::sign::SignError;
#[cfg(feature = "run")]
use super::speak::SpeakError;
use super::unpack::UnpackError;
#[cfg(all(feature = "run", feature = "remote"))]
use super::validate::ServerError;
#[cfg(feature = "run")]
use super::validate::ValidateError;
#[cfg(feature = "run")]
use super::vocode::VocodeError;
use crate::output::{Leave, OutputError};
use crate::pack_writer::PackWriterError;
#[cfg(feature = "remote")]
use crate::source::RemoteError;
use crate::source::{SegmentCacheError, SourceError};
use crate::work::TaskError;

/// Exit status of the program. README.md and the end of every `--help` have this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is well (a closed pipe too).
    Ok = 0,
    /// The environment or the output failed: no space, no permission, output exists.
    Failed = 1,
    /// Wrong command line.
    Usage = 2,
    /// The input is damaged, incomplete or different.
    Damaged = 3,
    /// Interrupted by Ctrl-C.
    Interrupted = 130,
    /// Asked to terminate.
    Terminated = 143,
}

impl Exit {
    /// Of a report: whether what it looked at is sound.
    pub fn of(ok: bool) -> Self {
        if ok { Self::Ok } else { Self::Damaged }
    }
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// Bytes could not be read or written, or are malformed.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A pack folder cannot be opened.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A model cannot be run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A session cannot be opened, or a prompt not be continued.
    #[error(transparent)]
    Session(SessionError),
    /// The selection or a stacked tensor leaves no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A checkpoint cannot be found or opened.
    #[error(transparent)]
    Source(SourceError),
    /// A folder cannot be a cache of segments.
    #[error(transparent)]
    SegmentCache(SegmentCacheError),
    /// An output is refused.
    #[error(transparent)]
    Output(OutputError),
    /// A pack folder cannot be written or continued.
    #[error(transparent)]
    PackWriter(PackWriterError),
    /// A glob is malformed.
    #[error(transparent)]
    Glob(#[from] globset::Error),
    /// Nothing of a pack is listed or written.
    #[error(transparent)]
    Cat(#[from] CatError),
    /// A pack is not unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// A pack is not repaired.
    #[error(transparent)]
    Repair(#[from] RepairError),
    /// A pack is not signed, or its signature not checked.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// A pack is not served.
    #[cfg(feature = "serve")]
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Parts are not joined.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// A pack is not exported.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The input is damaged, incomplete or different.
    #[error("{what}: {} found", count(.findings))]
    Findings {
        /// Which input, and what cannot be done with it.
        what: String,
        /// All that is wrong with it.
        findings: Vec<Finding>,
    },
    /// A pack cannot be compared with a reference.
    #[cfg(feature = "run")]
    #[error(transparent)]
    Validate(#[from] ValidateError),
    /// A text is not spoken.
    #[cfg(feature = "run")]
    #[error(transparent)]
    Speak(#[from] SpeakError),
    /// A turn of a conversation is not taken.
    #[cfg(feature = "run")]
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The prompts of a file are not continued.
    #[cfg(feature = "run")]
    #[error(transparent)]
    Prompts(#[from] PromptsError),
    /// No importance matrix is recorded.
    #[cfg(feature = "run")]
    #[error(transparent)]
    Imatrix(#[from] ImatrixError),
    /// Codes are not made sound.
    #[cfg(feature = "run")]
    #[error(transparent)]
    Vocode(#[from] VocodeError),
    /// A figure cannot be measured.
    #[cfg(feature = "run")]
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// Standard output was closed or failed.
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
}

fn count(findings: &[Finding]) -> String {
    match findings.len() {
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    }
}

impl StepError {
    /// An I/O error with its verb and path.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let wrap = FormatError::io(action, path);
        move |e| Self::Format(wrap(e))
    }

    /// A malformed input file.
    pub fn malformed(path: &Path, what: impl Into<String>) -> Self {
        Self::Format(FormatError::malformed(path, what))
    }

    /// Whether it refuses to begin: nothing was written, and nothing can be continued.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Output(_) => true,
            Self::PackWriter(e) => !matches!(
                e,
                PackWriterError::NotWritten { .. } | PackWriterError::Fingerprint(_)
            ),
            _ => false,
        }
    }

    /// Whether it says that a finished pack is another one than would be written.
    pub(crate) fn is_other_pack(&self) -> bool {
        matches!(
            self,
            Self::PackWriter(
                PackWriterError::OtherOptions { .. }
                    | PackWriterError::OtherSource { .. }
                    | PackWriterError::Damaged { .. }
            )
        )
    }

    /// What a run that wrote a pack leaves after this error.
    pub(crate) fn leave(&self) -> Leave {
        match self.exit() {
            Exit::Damaged => Leave::Nothing,
            _ if self.is_refusal() => Leave::Before,
            _ => Leave::Unfinished,
        }
    }

    /// The exit status for it.
    pub fn exit(&self) -> Exit {
        // wherever it happened: nothing is known of the bytes
        if self.format_error().is_some_and(FormatError::is_environment) {
            return Exit::Failed;
        }
        match self {
            Self::Format(e) | Self::Pack(PackError::Format(e)) | Self::Run(RunError::Format(e)) => {
                exit_of_format(e)
            }
            Self::Pack(_) | Self::Findings { .. } => Exit::Damaged,
            Self::Run(e) => exit_of_run(e),
            Self::Session(e) => exit_of_session(e),
            Self::Plan(e) => exit_of_plan(e),
            Self::Source(e) => exit_of_source(e),
            Self::SegmentCache(_) | Self::Output(_) | Self::PackWriter(_) | Self::Stdout(_) => {
                Exit::Failed
            }
            Self::Cat(e) => exit_of_cat(e),
            Self::Unpack(e) => exit_of_unpack(e),
            Self::Repair(e) => exit_of_repair(e),
            Self::Join(e) => exit_of_join(e),
            #[cfg(feature = "serve")]
            Self::Serve(e) => exit_of_serve(e),
            Self::Sign(e) => exit_of_sign(e),
            Self::Export(e) => exit_of_export(e),
            #[cfg(feature = "run")]
            Self::Validate(e) => exit_of_validate(e),
            #[cfg(feature = "run")]
            Self::Chat(ChatError::Full { .. }) => Exit::Failed,
            #[cfg(feature = "run")]
            Self::Chat(ChatError::Media | ChatError::Messages { .. }) => Exit::Damaged,
            #[cfg(feature = "run")]
            Self::Prompts(e) => exit_of_prompts(e),
            #[cfg(feature = "run")]
            Self::Imatrix(ImatrixError::Device { .. } | ImatrixError::Media) => Exit::Usage,
            #[cfg(feature = "run")]
            Self::Imatrix(ImatrixError::Empty) => Exit::Damaged,
            #[cfg(feature = "run")]
            Self::Imatrix(ImatrixError::Format(_)) => Exit::Failed,
            #[cfg(feature = "run")]
            Self::Vocode(e) => exit_of_vocode(e),
            #[cfg(feature = "run")]
            Self::Speak(SpeakError::LineEnd { .. }) => Exit::Damaged,
            #[cfg(feature = "run")]
            Self::Bench(BenchError::NotResident | BenchError::NotOnItsOwn) => Exit::Failed,
            Self::Glob(_) => Exit::Usage,
        }
    }
}

impl StepError {
    /// What could not be read or written, where that is the cause, however far down.
    pub fn format_error(&self) -> Option<&FormatError> {
        // errors that are shown as their cause is do not name it as their source
        if let Self::Format(e) | Self::Pack(PackError::Format(e)) = self {
            return Some(e);
        }
        if let Self::Run(RunError::Format(e)) | Self::Source(SourceError::Format(e)) = self {
            return Some(e);
        }
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            match (error.downcast_ref(), error.downcast_ref()) {
                (Some(e), _) | (_, Some(ModelError::File(e))) => return Some(e),
                _ => cause = error.source(),
            }
        }
        None
    }
}

// The exit statuses of all errors, in one place. Every enum of this crate is matched without a
// wildcard, so that a new error has to be given one.

fn exit_of_format(error: &FormatError) -> Exit {
    match error {
        // a drive that cannot read its bytes has lost them; one that cannot write has not yet
        FormatError::Io { action: "read", .. } if error.is_medium() => Exit::Damaged,
        FormatError::Io { .. } | FormatError::WorkerDied { .. } | FormatError::Thread(_) => {
            Exit::Failed
        }
        FormatError::Interrupted => Exit::Interrupted,
        _ => Exit::Damaged,
    }
}

/// A speaker or a prompt that cannot be is a matter of the command line, a pack without a talker of
/// the pack; an answer without sound is what came out.
fn exit_of_speech(error: &SpeechError) -> Exit {
    match error {
        SpeechError::Speaker { .. } | SpeechError::NoUserTurn | SpeechError::NoAssistantTurn => {
            Exit::Usage
        }
        SpeechError::NoText | SpeechError::NoFrame => Exit::Failed,
        _ => Exit::Damaged,
    }
}

fn exit_of_run(error: &RunError) -> Exit {
    match error {
        RunError::Format(e) => exit_of_format(e),
        RunError::Unsuitable(_) | RunError::Media(_) | RunError::Vocoder(_) => Exit::Damaged,
        RunError::Speech(e) => exit_of_speech(e),
        RunError::Model(e) => exit_of_model(e),
        RunError::ExpertChoice(_) => Exit::Usage,
        // memory, threads, the GPU and its driver
        _ => Exit::Failed,
    }
}

fn exit_of_model(error: &ModelError) -> Exit {
    match error {
        ModelError::File(e) => exit_of_format(e),
        _ => Exit::Damaged,
    }
}

/// What of a session's errors is a matter of the command line or of this build; the rest is the
/// pack's.
fn exit_of_session(error: &SessionError) -> Exit {
    match error {
        SessionError::Run(e) => exit_of_run(e),
        SessionError::InBatch { source, .. } => exit_of_session(source),
        SessionError::Kernels(_)
        | SessionError::Sampling(_)
        | SessionError::DeviceMemoryOnCpu
        | SessionError::DraftsOnGpu
        | SessionError::Prompt(
            PromptError::EmptyContinuation
            | PromptError::StopString(_)
            | PromptError::StopStringsWithoutText,
        )
        | SessionError::Generate(GenerateError::EmptyPrompt) => Exit::Usage,
        #[cfg(feature = "run")]
        SessionError::Prompt(PromptError::Media(e)) => exit_of_media(e),
        #[cfg(feature = "run")]
        SessionError::Prompt(PromptError::ChatTemplate(ChatTemplateError::Thread(_))) => {
            Exit::Failed
        }
        SessionError::WithoutCuda { .. } => Exit::Failed,
        _ => Exit::Damaged,
    }
}

/// What of media could not be read is no fault of theirs.
#[cfg(feature = "run")]
fn exit_of_media(error: &MediaError) -> Exit {
    match error {
        MediaError::Format(e) => exit_of_format(e),
        MediaError::File {
            unreadable: true, ..
        }
        | MediaError::NotBuilt { .. } => Exit::Failed,
        MediaError::Recipe => Exit::Usage,
        _ => Exit::Damaged,
    }
}

fn exit_of_plan(error: &PlanError) -> Exit {
    match error {
        PlanError::NoSuchComponent { .. } | PlanError::Empty => Exit::Usage,
        _ => Exit::Damaged,
    }
}

#[cfg(feature = "remote")]
fn exit_of_remote(error: &RemoteError) -> Exit {
    match error {
        RemoteError::Interrupted => Exit::Interrupted,
        e if e.is_environment() => Exit::Failed,
        _ => Exit::Damaged,
    }
}

fn exit_of_source(error: &SourceError) -> Exit {
    match error {
        SourceError::Format(e) => exit_of_format(e),
        SourceError::Address { .. } => Exit::Usage,
        #[cfg(not(feature = "remote"))]
        SourceError::WithoutRemote { .. } => Exit::Failed,
        #[cfg(feature = "remote")]
        SourceError::Offline { .. } => Exit::Failed,
        SourceError::OnlyLocal { .. } | SourceError::OnlyFolder { .. } => Exit::Usage,
        #[cfg(feature = "remote")]
        SourceError::Remote(e) => exit_of_remote(e),
        SourceError::NotFound { .. } | SourceError::Kept { .. } => Exit::Failed,
        SourceError::NoHubCache
        | SourceError::NotInCache { .. }
        | SourceError::NoSnapshot { .. }
        | SourceError::ReservedName { .. } => Exit::Damaged,
    }
}

fn exit_of_cat(error: &CatError) -> Exit {
    match error {
        CatError::RowsOfNoTensor { .. } | CatError::NoSuchRows { .. } => Exit::Usage,
        CatError::NoMatch { .. }
        | CatError::NoSuchName { .. }
        | CatError::Shard { .. }
        | CatError::Damaged { .. }
        | CatError::DamagedFile { .. } => Exit::Damaged,
    }
}

fn exit_of_unpack(error: &UnpackError) -> Exit {
    match error {
        UnpackError::NoMatch { .. } => Exit::Damaged,
    }
}

#[cfg(all(feature = "run", feature = "remote"))]
fn exit_of_server(error: &ServerError) -> Exit {
    match error {
        ServerError::Remote(e) => exit_of_remote(e),
        ServerError::WhichModel { .. } | ServerError::Prompt { .. } => Exit::Usage,
        ServerError::NotAsDocumented { .. }
        | ServerError::NoLogProbabilities { .. }
        | ServerError::Unidentified { .. }
        | ServerError::Answer { .. } => Exit::Damaged,
    }
}

#[cfg(feature = "run")]
fn exit_of_validate(error: &ValidateError) -> Exit {
    match error {
        #[cfg(feature = "remote")]
        ValidateError::Server(e) => exit_of_server(e),
        ValidateError::FixedTolerance { .. } => Exit::Usage,
        ValidateError::NoConfig { .. }
        | ValidateError::UnknownFamily { .. }
        | ValidateError::OtherFamily { .. }
        | ValidateError::Config { .. }
        | ValidateError::Unstack { .. }
        | ValidateError::NoTextModel { .. }
        | ValidateError::NoSuchTensor { .. }
        | ValidateError::Dtype { .. }
        | ValidateError::Processor { .. }
        | ValidateError::Audio { .. }
        | ValidateError::Picture { .. }
        | ValidateError::TraceShape { .. } => Exit::Damaged,
    }
}

/// The file is the input.
#[cfg(feature = "run")]
fn exit_of_prompts(error: &PromptsError) -> Exit {
    match error {
        PromptsError::Line { .. }
        | PromptsError::NotOne { .. }
        | PromptsError::Media { .. }
        | PromptsError::Prompt { .. }
        | PromptsError::Empty { .. } => Exit::Damaged,
    }
}

#[cfg(feature = "run")]
fn exit_of_vocode(error: &VocodeError) -> Exit {
    match error {
        VocodeError::Dtype { .. } | VocodeError::Shape { .. } | VocodeError::Value { .. } => {
            Exit::Damaged
        }
        VocodeError::TooLong { .. } => Exit::Failed,
    }
}

fn exit_of_repair(error: &RepairError) -> Exit {
    match error {
        RepairError::Manifest { .. }
        | RepairError::Itself { .. }
        | RepairError::OtherCoding { .. }
        | RepairError::NotTheSame { .. } => Exit::Damaged,
    }
}

#[cfg(feature = "serve")]
fn exit_of_serve(error: &ServeError) -> Exit {
    match error {
        ServeError::Remote { .. } | ServeError::Context { .. } => Exit::Usage,
        ServeError::Listen { .. } | ServeError::Server(_) => Exit::Failed,
        ServeError::Key { .. } | ServeError::KeyVariable { .. } => Exit::Damaged,
    }
}

fn exit_of_sign(error: &SignError) -> Exit {
    match error {
        SignError::PrivateKey { .. }
        | SignError::Encrypted { .. }
        | SignError::NotPrivate { .. }
        | SignError::PublicKey { .. }
        | SignError::Certificates { .. }
        | SignError::TrustedRoot { .. }
        | SignError::IsAPack { .. }
        | SignError::NoFiles { .. } => Exit::Damaged,
        SignError::Exists { .. }
        | SignError::NotASignature { .. }
        | SignError::Encode(_)
        | SignError::Pem { .. } => Exit::Failed,
    }
}

fn exit_of_join(error: &JoinError) -> Exit {
    match error {
        JoinError::OtherCount { .. }
        | JoinError::Duplicate { .. }
        | JoinError::Missing { .. }
        | JoinError::OtherVersion { .. }
        | JoinError::OtherOptions { .. }
        | JoinError::OtherSource { .. }
        | JoinError::OtherShares { .. }
        | JoinError::Joined { .. } => Exit::Damaged,
    }
}

fn exit_of_export(error: &ExportError) -> Exit {
    match error {
        ExportError::Option { .. }
        | ExportError::NotAStream { .. }
        | ExportError::NotSelected { .. }
        | ExportError::NoExperts
        | ExportError::TooFewExperts { .. } => Exit::Usage,
        ExportError::NoMatch { .. }
        | ExportError::SamePath { .. }
        | ExportError::NoTextDecoder { .. }
        | ExportError::OtherArchitecture { .. }
        | ExportError::Family(_)
        | ExportError::NoConfig
        | ExportError::Config(_)
        | ExportError::SourceFile { .. }
        | ExportError::NoSuchShard { .. }
        | ExportError::NoSuchStack { .. }
        | ExportError::Parts { .. }
        | ExportError::FileName { .. }
        | ExportError::Numpy { .. }
        | ExportError::NoConversion { .. }
        | ExportError::Value { .. }
        | ExportError::Header(_)
        | ExportError::GgufHeader(_)
        | ExportError::Tokenizer(_) => Exit::Damaged,
        #[cfg(feature = "run")]
        ExportError::Template(_) => Exit::Damaged,
        ExportError::Model(e) => exit_of_model(e),
        ExportError::Gguf(e) => exit_of_gguf(e),
        ExportError::Document { .. }
        | ExportError::ReadBack { .. }
        | ExportError::WithoutRun { .. } => Exit::Failed,
    }
}

fn exit_of_gguf(error: &GgufExportError) -> Exit {
    match error {
        GgufExportError::Name { .. }
        | GgufExportError::TooManyFiles { .. }
        | GgufExportError::Importance { .. } => Exit::Usage,
        GgufExportError::Family { .. }
        | GgufExportError::NoEncoders { .. }
        | GgufExportError::NoTowers { .. }
        | GgufExportError::Preprocessor { .. }
        | GgufExportError::Requantized
        | GgufExportError::NoScale { .. }
        | GgufExportError::Setting { .. }
        | GgufExportError::Sampling { .. }
        | GgufExportError::Twice { .. }
        | GgufExportError::Part { .. }
        | GgufExportError::Missing { .. }
        | GgufExportError::Shape { .. }
        | GgufExportError::NoSuchTensor { .. }
        | GgufExportError::PreTokenizer { .. }
        | GgufExportError::NotByteLevel { .. }
        | GgufExportError::SpecialToken { .. }
        | GgufExportError::SentencePiece { .. }
        | GgufExportError::PostProcessor { .. }
        | GgufExportError::Merge => Exit::Damaged,
    }
}

// What a room could not read or write is the same error wherever it happened.

impl From<SessionError> for StepError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Run(e) => Self::Run(e),
            other => Self::Session(other),
        }
    }
}

impl From<SourceError> for StepError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Format(e) => Self::Format(e),
            other => Self::Source(other),
        }
    }
}

impl From<SegmentCacheError> for StepError {
    fn from(error: SegmentCacheError) -> Self {
        match error {
            SegmentCacheError::Format(e) => Self::Format(e),
            other @ SegmentCacheError::NotACache { .. } => Self::SegmentCache(other),
        }
    }
}

impl From<OutputError> for StepError {
    fn from(error: OutputError) -> Self {
        match error {
            OutputError::Format(e) => Self::Format(e),
            other => Self::Output(other),
        }
    }
}

impl From<PackWriterError> for StepError {
    fn from(error: PackWriterError) -> Self {
        match error {
            PackWriterError::Format(e) => Self::Format(e),
            PackWriterError::Output(e) => e.into(),
            other => Self::PackWriter(other),
        }
    }
}

impl From<GgufExportError> for StepError {
    fn from(error: GgufExportError) -> Self {
        Self::Export(error.into())
    }
}

impl TaskError for StepError {
    fn is_stop(&self) -> bool {
        matches!(
            self,
            Self::Format(FormatError::Interrupted)
                | Self::Run(RunError::Format(FormatError::Interrupted))
        )
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    #[cfg(feature = "run")]
    use segpack_formats::numeric::Dtype;
    use segpack_manifests::NotAPack;
    use segpack_manifests::documents::{FindingKind, Manifest};
    use segpack_manifests::families::ConfigError;
    use segpack_runtime_min::Unsuitable;
    use segpack_runtime_min::generate::LogitsError;
    use segpack_runtime_min::processing::text::TokenizerError;

    use super::*;
    use crate::steps::export::Difference;

    /// One error of every type that holds another, and of every room.
    fn samples() -> Vec<StepError> {
        let mut samples = samples_of_all_builds();
        samples.extend(samples_of_runs());
        samples
    }

    fn samples_of_all_builds() -> Vec<StepError> {
        let io = || io::Error::from(io::ErrorKind::PermissionDenied);
        let json = || serde_json::from_str::<u8>("x").unwrap_err();
        let path = || PathBuf::from("some/path");
        let not_a_pack = || PackError::NotAPack {
            folder: path(),
            why: NotAPack::NoManifest,
        };
        vec![
            StepError::io("open", "some/path")(io()),
            StepError::malformed(&path(), "is odd"),
            FormatError::WorkerDied { thread: "worker" }.into(),
            StepError::Stdout(io()),
            not_a_pack().into(),
            PackError::Manifest {
                path: path(),
                source: Manifest::parse(b"{}").unwrap_err(),
            }
            .into(),
            SourceError::NotFound { path: path() }.into(),
            SourceError::Format(FormatError::io("read", path())(io())).into(),
            OutputError::Busy { path: path() }.into(),
            OutputError::Format(FormatError::io("write", path())(io())).into(),
            PackWriterError::NotAPack {
                folder: path(),
                source: not_a_pack(),
            }
            .into(),
            PackWriterError::List {
                folder: path(),
                source: io(),
            }
            .into(),
            PackWriterError::Damaged {
                folder: path(),
                compared: true,
                first: Box::new(Finding::new(FindingKind::DamagedFile)),
            }
            .into(),
            PackWriterError::Fingerprint(json()).into(),
            globset::Glob::new("[").unwrap_err().into(),
            CatError::NoSuchName {
                name: "x".to_owned(),
            }
            .into(),
            UnpackError::NoMatch { globs: Vec::new() }.into(),
            SignError::Encode(json()).into(),
            JoinError::Missing {
                missing: vec![2],
                count: 1,
                of: 3,
            }
            .into(),
            OutputError::Differs { path: path() }.into(),
            ExportError::SourceFile {
                file: "config.json".to_owned(),
                source: json().into(),
            }
            .into(),
            ExportError::Document {
                file: "config.json".to_owned(),
                source: json(),
            }
            .into(),
            ExportError::Value {
                tensor: "t".to_owned(),
                source: "value 3 is too large".into(),
            }
            .into(),
            ExportError::Config(ConfigError::Missing {
                key: "hidden_size".to_owned(),
                wanted: "a number".to_owned(),
            })
            .into(),
            ExportError::ReadBack {
                path: path(),
                difference: Box::new(Difference::Digest),
            }
            .into(),
            GgufExportError::Merge.into(),
            RunError::from(Unsuitable::NoTextDecoder).into(),
            RunError::Memory {
                memory: 1,
                minimum: 2,
            }
            .into(),
            RunError::OutOfMemory {
                bytes: 1,
                source: io(),
            }
            .into(),
            RunError::Threads {
                threads: 1,
                source: io(),
            }
            .into(),
            RunError::from(ModelError::Json {
                path: path(),
                source: json(),
            })
            .into(),
            ExportError::Model(ModelError::NoConfig).into(),
            SessionError::from(PromptError::from(TokenizerError::Missing {
                missing: "vocab.json".to_owned(),
            }))
            .into(),
            SessionError::Generate(GenerateError::Logits {
                step: 1,
                source: LogitsError::Empty,
            })
            .into(),
            SessionError::DeviceMemoryOnCpu.into(),
        ]
    }

    /// The same for what only builds with the feature `run` have.
    #[cfg(feature = "run")]
    fn samples_of_runs() -> Vec<StepError> {
        let checkpoint = || PathBuf::from("some/checkpoint");
        let no_float = segpack_formats::numeric::FloatDtype::try_from(Dtype::I8).unwrap_err();
        vec![
            BenchError::NotResident.into(),
            ValidateError::Config {
                checkpoint: checkpoint(),
                source: ConfigError::Missing {
                    key: "hidden_size".to_owned(),
                    wanted: "a number".to_owned(),
                },
            }
            .into(),
            ValidateError::Dtype {
                checkpoint: checkpoint(),
                name: "t".to_owned(),
                source: no_float,
            }
            .into(),
            ValidateError::FixedTolerance {
                trace: PathBuf::from("some/trace.json"),
            }
            .into(),
        ]
    }

    #[cfg(not(feature = "run"))]
    fn samples_of_runs() -> Vec<StepError> {
        Vec::new()
    }

    #[test]
    fn no_message_repeats_its_cause() {
        for sample in samples() {
            let mut error: &dyn Error = &sample;
            while let Some(source) = error.source() {
                let (message, cause) = (error.to_string(), source.to_string());
                assert!(!message.contains(&cause), "{message:?} repeats {cause:?}");
                error = source;
            }
        }
    }

    #[test]
    fn no_message_names_an_option() {
        for sample in samples() {
            let message = sample.to_string();
            assert!(!message.contains("--"), "{message}");
        }
    }

    #[test]
    fn a_dead_worker_is_a_failure_and_no_interruption() {
        let died = StepError::from(FormatError::WorkerDied { thread: "worker" });
        assert_eq!(died.exit() as u8, 1);
        let died = StepError::from(OutputError::Format(FormatError::WorkerDied {
            thread: "digesting",
        }));
        assert_eq!(died.exit() as u8, 1);
        let stopped = StepError::from(OutputError::Format(FormatError::Interrupted));
        assert_eq!(stopped.exit() as u8, 130);
    }
}
