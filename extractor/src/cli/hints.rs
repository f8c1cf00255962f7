//! Advice for errors: what to change on the command line. Errors themselves name no options, since
//! libraries do not know them.

use std::path::{Path, PathBuf};

use segpack_formats::FormatError;
use segpack_manifests::documents::{ExportTarget, Finding, FindingKind, Severity};
#[cfg(feature = "run")]
use segpack_manifests::documents::{ReferenceKind, ValidateReport, Verdict};
use segpack_manifests::folder::{MANIFEST, PART, PARTIAL};
use segpack_manifests::{NotAPack, PackError};
#[cfg(feature = "run")]
use segpack_runtime_min::devices::cuda::CudaError;
#[cfg(feature = "run")]
use segpack_runtime_min::processing::PromptError;
#[cfg(feature = "run")]
use segpack_runtime_min::processing::media::MediaError;
use segpack_runtime_min::session::SessionError;
use segpack_runtime_min::{RunError, Unsuitable};

use super::error::CliError;
use crate::output::{OutputError, is_between, is_unfinished, leftover};
use crate::pack_writer::PackWriterError;
#[cfg(feature = "remote")]
use crate::source::RemoteError;
use crate::source::SourceError;
use crate::steps::cat::CatError;
use crate::steps::export::{ExportError, ExportOption, GgufExportError};
use crate::steps::join::JoinError;
use crate::steps::repair::RepairError;
#[cfg(feature = "serve")]
use crate::steps::serve::ServeError;
use crate::steps::sign::SignError;
use crate::steps::unpack::UnpackError;
#[cfg(all(feature = "run", feature = "remote"))]
use crate::steps::validate::ServerError;
#[cfg(feature = "run")]
use crate::steps::validate::ValidateError;
use crate::steps::{Exit, StepError};

const OTHER_OUTPUT: &str = "choose another output path";
const REPLACE: &str = "--force replaces it";
#[cfg(feature = "run")]
const PROMISED_FLOAT32: &str = "float32 promises weights, keys, values and attention in f32: \
                                llama.cpp does that with an f32 export and --flash-attn off \
                                --cache-type-k f32 --cache-type-v f32 alone";
const REPAIR: &str = "`segpack repair PACK --from CKPT` restores what is damaged, from the checkpoint or \
                      another pack";
const PACK_PART_AGAIN: &str =
    "`segpack pack CKPT --part K/N -o PART --force` packs that part again";
const REPLACE_OUTPUT: &str = "--force replaces what an earlier run wrote";

/// What a command was doing.
#[derive(Debug, Default)]
pub(super) struct Doing {
    /// The folder that it writes, where it has `--resume`.
    pub output: Option<PathBuf>,
    /// Whether it reads parts of a pack.
    pub reads_parts: bool,
}

/// What to try after `error`, if anything.
pub(super) fn hint(error: &CliError, doing: &Doing) -> Option<String> {
    let CliError::Step(error) = error else {
        return error.hint().map(str::to_owned);
    };
    if let (true, StepError::Findings { findings, .. }) = (doing.reads_parts, error) {
        return of_findings_of_part(findings);
    }
    let output = doing.output.as_deref();
    if output.is_some_and(|output| can_be_resumed(error, output)) {
        let mut resume = "the same command with --resume continues".to_owned();
        if let Some(room) = leftover(output.unwrap_or(Path::new(""))) {
            let room = room.display();
            resume.push_str(&format!("; until then {room} keeps what it finished"));
        }
        return Some(match environment_of(error) {
            Some(advice) => format!("{advice}; {resume}"),
            None => resume,
        });
    }
    if let (StepError::Output(OutputError::NoSpace { .. }), Some(output)) = (error, output)
        && is_unfinished(output)
    {
        return Some("free some space; the same command with --resume continues".to_owned());
    }
    of_step(error, output).or_else(|| environment_of(error).map(str::to_owned))
}

fn of_step(error: &StepError, output: Option<&Path>) -> Option<String> {
    match error {
        StepError::Format(FormatError::Io { path, .. })
        | StepError::Pack(PackError::Format(FormatError::Io { path, .. }))
            if is_between(path) =>
        {
            let beside = leftover(path).unwrap_or_default();
            Some(format!(
                "its replacement was interrupted; the old and the new one are whole in {}: the \
                 interrupted command with --resume ends it",
                beside.display()
            ))
        }
        StepError::Source(e) => of_source(e),
        StepError::Output(OutputError::NotEmpty { .. } | OutputError::Exists { .. }) => {
            Some(format!("{REPLACE_OUTPUT}; or {OTHER_OUTPUT}"))
        }
        StepError::Output(OutputError::Unfinished { .. })
        | StepError::PackWriter(PackWriterError::Unfinished { .. })
            if output.is_none() =>
        {
            Some(format!("--force starts over; or {OTHER_OUTPUT}"))
        }
        StepError::Output(e) => of_output(e, replaces(output)).map(str::to_owned),
        StepError::PackWriter(e) => of_pack_writer(e, replaces(output)).map(str::to_owned),
        StepError::Pack(e) => of_pack(e).map(str::to_owned),
        StepError::Cat(e) => of_cat(e).map(str::to_owned),
        StepError::Unpack(e) => of_unpack(e).map(str::to_owned),
        StepError::Repair(e) => of_repair(e).map(str::to_owned),
        #[cfg(feature = "serve")]
        StepError::Serve(e) => of_serve(e).map(str::to_owned),
        StepError::Sign(e) => of_sign(e).map(str::to_owned),
        StepError::Join(e) => of_join(e).map(str::to_owned),
        StepError::Export(e) => of_export(e),
        StepError::Run(e) => of_run(e),
        StepError::Session(SessionError::DraftsOnGpu) => {
            Some("leave out --draft-lookup, or run with --device cpu".to_owned())
        }
        StepError::Session(SessionError::DeviceMemoryOnCpu) => {
            Some("--device-memory requires --device cuda or --device auto".to_owned())
        }
        #[cfg(feature = "run")]
        StepError::Session(SessionError::Prompt(PromptError::Media(MediaError::Remote {
            ..
        }))) => Some(of_media_elsewhere().to_owned()),
        #[cfg(feature = "run")]
        StepError::Validate(ValidateError::FixedTolerance { .. }) => {
            Some("--tolerance is for traces of log-probabilities".to_owned())
        }
        #[cfg(all(feature = "run", feature = "remote"))]
        StepError::Validate(ValidateError::Server(e)) => of_server(e).map(str::to_owned),
        StepError::Findings { findings, .. } => of_unaudited_checkpoint(findings)
            .or_else(|| of_findings(findings))
            .or_else(|| of_unrestorable(findings)),
        _ => None,
    }
}

/// What to do about media that a server has.
#[cfg(feature = "run")]
fn of_media_elsewhere() -> &'static str {
    match cfg!(feature = "remote") {
        true => "`segpack run --allow-network` fetches it; or download it first",
        false => "download it first: this build, without the feature `remote`, reads no servers",
    }
}

/// What to change in the environment, where that is what a file could not be opened or read for.
fn environment_of(error: &StepError) -> Option<&'static str> {
    error.format_error().and_then(of_environment)
}

/// What to change in the environment; nothing is known of the bytes that it kept from being read.
fn of_environment(error: &FormatError) -> Option<&'static str> {
    use std::io::ErrorKind;
    const THREADS: &str = "--jobs 1 needs the fewest threads; `ulimit -u` limits them";
    let FormatError::Io { source, .. } = error else {
        return matches!(error, FormatError::Thread(_)).then_some(THREADS);
    };
    match source.kind() {
        ErrorKind::PermissionDenied => {
            Some("ask for the right to it, or run as a user who has it; nothing is wrong with it")
        }
        ErrorKind::OutOfMemory => Some("close other programs, or use fewer --jobs"),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some("free some space"),
        ErrorKind::ReadOnlyFilesystem => Some("choose another output path"),
        ErrorKind::NotADirectory => Some("a part of the path is a file"),
        // EMFILE, ENFILE: no kind of the standard library's
        _ if matches!(source.raw_os_error(), Some(23 | 24)) => {
            Some("`ulimit -n` raises the limit of open files; 64 are enough for any model")
        }
        _ => None,
    }
}

/// Whether an interruption or the environment ended a command that had begun to write.
fn can_be_resumed(error: &StepError, output: &Path) -> bool {
    is_unfinished(output)
        && !error.is_refusal()
        && matches!(error.exit(), Exit::Interrupted | Exit::Failed)
}

/// What to do about findings; of several things the first.
pub(super) fn of_findings(findings: &[Finding]) -> Option<String> {
    let errors = findings.iter().filter(|f| f.severity == Severity::Error);
    // that nothing was audited follows from an unknown family, which says more
    let (follows, first): (Vec<_>, Vec<_>) =
        errors.partition(|f| f.kind == FindingKind::NotAudited);
    let mut all = first.into_iter().chain(follows);
    all.find_map(of_finding).map(str::to_owned)
}

/// The same of a part of a pack, which is not repaired.
pub(super) fn of_findings_of_part(findings: &[Finding]) -> Option<String> {
    let hint = of_findings(findings)?;
    match &*hint {
        REPAIR => Some(PACK_PART_AGAIN.to_owned()),
        _ => Some(hint),
    }
}

/// What to do about a comparison without a verdict, of a trace that has no default tolerance, and
/// about a server that may round more than was promised.
#[cfg(feature = "run")]
pub(super) fn of_validation(report: &ValidateReport) -> Option<String> {
    let is_server = report.reference == ReferenceKind::Server;
    match (report.verdict, report.reference_dtype.as_deref()) {
        (Verdict::NotJudged, Some(_)) => Some("--tolerance X judges it".to_owned()),
        (Verdict::Outside, Some("float32")) if is_server => Some(PROMISED_FLOAT32.to_owned()),
        _ => None,
    }
}

/// A checkpoint that was not packed because nothing else is wrong with it than that nobody knows
/// whether it is complete.
fn of_unaudited_checkpoint(findings: &[Finding]) -> Option<String> {
    let mut errors = findings.iter().filter(|f| f.severity == Severity::Error);
    let hint = "--allow-unaudited or --allow-unclassified takes the checkpoint as it is";
    let is_unknown = |kind| matches!(kind, FindingKind::NotAudited | FindingKind::UnknownFamily);
    let only = !findings.is_empty() && errors.all(|f| is_unknown(f.kind));
    only.then(|| hint.to_owned())
}

fn of_finding(finding: &Finding) -> Option<&'static str> {
    match finding.kind {
        FindingKind::UnlistedShard => {
            Some("--extra keep stores such files byte for byte, --extra leave goes on without them")
        }
        FindingKind::Adapter => Some(
            "merge it: PeftModel.from_pretrained(model, adapter).merge_and_unload()\
             .save_pretrained(OUT); then use OUT",
        ),
        FindingKind::OtherNames => {
            Some("--as FAMILY goes by the names, --config FILE by another configuration")
        }
        FindingKind::OtherSizes => {
            Some("--config FILE takes a corrected copy of config.json, if that is what it is")
        }
        FindingKind::UnclassifiedTensor => {
            Some("--allow-unclassified takes the checkpoint as it is")
        }
        FindingKind::NotAudited => Some("--allow-unaudited accepts that"),
        FindingKind::UnknownFamily => Some(
            "--allow-unclassified packs it all the same, experts grouped by a guess at their names",
        ),
        FindingKind::GitLfsPointer => Some("fetch the file with `git lfs pull`"),
        FindingKind::DiffersFromHub => Some("download the file again"),
        FindingKind::DamagedTensor
        | FindingKind::DamagedSegment
        | FindingKind::DamagedFile
        | FindingKind::MissingFile
        | FindingKind::WrongLength
        | FindingKind::WrongHeader
        | FindingKind::WrongSums => Some(REPAIR),
        FindingKind::UnlistedFile if finding.file.as_deref() == Some(PARTIAL) => {
            Some("`segpack pack --resume` finishes or removes what an interrupted run left")
        }
        FindingKind::UnlistedFile => Some("a pack holds nothing else: move it away or remove it"),
        _ => None,
    }
}

/// Files that a pack without some components cannot restore.
fn of_unrestorable(findings: &[Finding]) -> Option<String> {
    let missing = findings.iter().any(|f| f.kind == FindingKind::NotInPack);
    missing.then(|| "--include restores the other files".to_owned())
}

fn of_source(error: &SourceError) -> Option<String> {
    match error {
        SourceError::NoHubCache => Some("set HF_HUB_CACHE to the folder of the cache".to_owned()),
        SourceError::NotInCache { repo, .. } => {
            Some(format!("download it with `hf download {repo}`"))
        }
        SourceError::ReservedName { .. } => Some("rename the file".to_owned()),
        SourceError::Kept { .. } => Some("pack it without --consume".to_owned()),
        #[cfg(not(feature = "remote"))]
        SourceError::WithoutRemote { .. } => {
            Some("build it with the feature `remote`, or download the checkpoint".to_owned())
        }
        #[cfg(feature = "remote")]
        SourceError::Remote(e) => of_remote(e).map(str::to_owned),
        #[cfg(feature = "remote")]
        SourceError::Offline { .. } => None,
        SourceError::OnlyLocal { .. } => {
            Some("download it first, or leave out --consume or --in-place".to_owned())
        }
        SourceError::Format(_)
        | SourceError::Address { .. }
        | SourceError::OnlyFolder { .. }
        | SourceError::NotFound { .. }
        | SourceError::NoSnapshot { .. } => None,
    }
}

/// What to change where a server does not give what was asked for.
#[cfg(feature = "remote")]
fn of_remote(error: &RemoteError) -> Option<&'static str> {
    match error {
        RemoteError::NoRepository { .. } | RemoteError::NotAllowed { .. } => Some(
            "for what is private or gated, accept its terms on its page and set HF_TOKEN, or run `hf auth login`",
        ),
        RemoteError::NoCredentials { place, .. } | RemoteError::Denied { bucket: place, .. } => {
            Some(match place.split_once("://") {
                Some(("gs", _)) => {
                    "set GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT; for public buckets GOOGLE_SKIP_SIGNATURE=true"
                }
                Some(("az", _)) => {
                    "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or AZURE_STORAGE_SAS_TOKEN); for public containers AZURE_SKIP_SIGNATURE=true"
                }
                _ => {
                    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (profiles are not read: `aws configure export-credentials --format env`); for public buckets AWS_SKIP_SIGNATURE=true"
                }
            })
        }
        RemoteError::Proxy { status: 407, .. } => Some(
            "name the user and the password in the variable: http://USER:PASSWORD@HOST:PORT, other signs as %XX",
        ),
        RemoteError::Proxy { .. } => Some("NO_PROXY=HOST goes to that host without a proxy"),
        RemoteError::OtherRegion { .. } => Some("set AWS_REGION"),
        RemoteError::Moved { .. } => Some("start again; hf://OWNER/NAME@COMMIT stays the same"),
        _ => None,
    }
}

/// What to change where a server does not give what can be compared.
#[cfg(all(feature = "run", feature = "remote"))]
fn of_server(error: &ServerError) -> Option<&'static str> {
    match error {
        ServerError::Remote(RemoteError::Refused { status, .. }) => match status {
            300..400 => Some("give that address as --server"),
            401 | 403 => Some("--api-key-env or --api-key-file gives the server its key"),
            404 | 405 => Some(
                "no such address or model there: --server-kind says what it is, --server ends in /v1 \
                 where the interface does, --server-model names what is served",
            ),
            400 | 422 => Some(
                "what it does not take can be changed: --top-logprobs, --max-new-tokens, \
                 --request-fields; a server that takes no token ids needs --prompt",
            ),
            429 | 503 => Some("it is busy; try again later"),
            _ => Some("its log says why"),
        },
        ServerError::Remote(RemoteError::Connection { .. }) => Some(
            "is the server running, and is this its port? --server-timeout says how long an answer may take",
        ),
        ServerError::WhichModel { .. } => Some("--server-model names it"),
        ServerError::NoLogProbabilities { .. } => Some(
            "some servers have to be started with an option for it; --server-kind says which interface is asked",
        ),
        ServerError::NotAsDocumented { .. } => Some("--server-kind says which interface is asked"),
        ServerError::Unidentified { .. } => {
            Some("--server-kind vllm and llama.cpp ask for token ids; a chat tells bytes: --chat")
        }
        ServerError::Remote(_) | ServerError::Answer { .. } | ServerError::Prompt { .. } => None,
    }
}

/// Whether there is a pack at the output path, which would be replaced.
fn replaces(output: Option<&Path>) -> bool {
    output.is_some_and(|output| {
        [MANIFEST, PART]
            .iter()
            .any(|name| output.join(name).exists())
    })
}

/// `replaces`: the command was to replace a pack.
fn of_output(error: &OutputError, replaces: bool) -> Option<&'static str> {
    match error {
        OutputError::Differs { .. } => Some(REPLACE_OUTPUT),
        OutputError::NotEmpty { .. }
        | OutputError::Exists { .. }
        | OutputError::InsideInput { .. }
        | OutputError::HoldsInput { .. } => Some(OTHER_OUTPUT),
        OutputError::Address { .. } => Some(
            "write to a folder, then upload it; `segpack pack -o s3://BUCKET/PREFIX` (or az://) uploads a pack itself",
        ),
        OutputError::NoSpace { .. } if replaces => Some(
            "free some space or choose another disk; --force --in-place removes what is replaced \
             before the new files are written",
        ),
        OutputError::NoSpace { .. } => Some("free some space or choose another disk"),
        OutputError::Store { .. } => Some(
            "choose another prefix, or --resume with the same spool folder; `aws s3 rm --recursive`, or \
             `az storage blob delete-batch`, removes what is there",
        ),
        OutputError::NotOurs { .. } => Some("rename or remove it"),
        OutputError::OnlyCopy { .. } => Some("`segpack pack --resume` continues it"),
        OutputError::MountPoint { .. } if replaces => {
            Some("--force --in-place removes the old pack first; or choose a folder below it")
        }
        OutputError::MountPoint { .. } => {
            Some("remove what is in it yourself, or choose a folder below it")
        }
        OutputError::Link { .. } => Some("remove the link, or choose another output path"),
        OutputError::Unfinished { .. } => Some("--resume continues it, --force starts over"),
        OutputError::OtherRun { .. } => {
            Some("give the same pack and options, or start over with --force")
        }
        OutputError::OtherCommand { .. } => {
            Some("that command with --resume ends it; or remove the folder")
        }
        OutputError::Foreign { .. } => {
            Some("choose another output path, or remove what is there yourself")
        }
        OutputError::Limit { .. } => Some("choose another output path, on another file system"),
        OutputError::Format(_)
        | OutputError::NotAFolder { .. }
        | OutputError::Busy { .. }
        | OutputError::NoFileName { .. }
        | OutputError::NoParent { .. } => None,
    }
}

fn of_pack_writer(error: &PackWriterError, replaces: bool) -> Option<&'static str> {
    match error {
        PackWriterError::Output(e) => of_output(e, replaces),
        PackWriterError::Unfinished { .. } => Some("--resume continues it, --force starts over"),
        PackWriterError::NotAllPacked { .. } => {
            Some("pack everything, or pack it without --consume")
        }
        PackWriterError::HoldsPack { .. }
        | PackWriterError::OtherOptions { .. }
        | PackWriterError::OtherSource { .. }
        | PackWriterError::Damaged { .. } => Some(REPLACE),
        PackWriterError::OtherRun { .. } => {
            Some("give the same source and options, or start over with --force")
        }
        PackWriterError::ForeignEntry { .. }
        | PackWriterError::ForeignFile { .. }
        | PackWriterError::NotAPack { .. } => {
            Some("choose another output path, or remove the folder yourself")
        }
        PackWriterError::NotWritten { .. } => Some("continue with --resume"),
        PackWriterError::Format(_)
        | PackWriterError::List { .. }
        | PackWriterError::Fingerprint(_) => None,
    }
}

fn of_pack(error: &PackError) -> Option<&'static str> {
    match error {
        PackError::NotAPack { why, .. } => match why {
            NotAPack::Unfinished => Some("continue with `segpack pack --resume`"),
            NotAPack::Checkpoint => Some("make a pack of it with `segpack pack`"),
            NotAPack::Part => Some("`segpack join` makes a pack of all its parts"),
            NotAPack::Whole | NotAPack::NoManifest => None,
        },
        _ => None,
    }
}

fn of_cat(error: &CatError) -> Option<&'static str> {
    match error {
        CatError::NoSuchName { .. } => Some("`segpack ls --tensors` lists the names"),
        CatError::Shard { .. } => Some("`segpack unpack --include NAME` restores it"),
        CatError::RowsOfNoTensor { .. } => Some("--rows needs the name of a tensor"),
        CatError::NoSuchRows { .. } => Some("--rows A..B counts from 0, without B"),
        CatError::NoMatch { .. } | CatError::Damaged { .. } | CatError::DamagedFile { .. } => None,
    }
}

fn of_unpack(error: &UnpackError) -> Option<&'static str> {
    match error {
        UnpackError::NoMatch { .. } => None,
    }
}

fn of_repair(error: &RepairError) -> Option<&'static str> {
    match error {
        RepairError::Manifest { .. } => Some(
            "--from a pack with the same codec and manifest, and --manifest-sha256 where SHA256SUMS \
             is lost; or pack the checkpoint anew",
        ),
        RepairError::OtherCoding { .. } => {
            Some("repair it with the version that wrote it, or --from a pack with the same codec")
        }
        RepairError::NotTheSame { .. } => Some("pack the checkpoint anew"),
        RepairError::Itself { .. } => None,
    }
}

#[cfg(feature = "serve")]
fn of_serve(error: &ServeError) -> Option<&'static str> {
    match error {
        ServeError::Remote { .. } => Some("--allow-remote allows it; --api-key asks for a key"),
        ServeError::Listen { .. } => Some("--port 0 finds a port that is free"),
        ServeError::Context { .. } => Some("use a smaller --context"),
        ServeError::Server(_) | ServeError::Key { .. } | ServeError::KeyVariable { .. } => None,
    }
}

fn of_sign(error: &SignError) -> Option<&'static str> {
    match error {
        SignError::PrivateKey { .. } => {
            Some("`openssl ecparam -name prime256v1 -genkey -noout -out key.pem` makes one")
        }
        SignError::Encrypted { .. } => {
            Some("`openssl pkey -in KEY -out PLAIN` decrypts it; sign with that, then delete it")
        }
        SignError::PublicKey { .. } => {
            Some("`openssl ec -in key.pem -pubout -out key.pub` writes it")
        }
        SignError::TrustedRoot { .. } => Some(
            "the instance publishes it, as trusted_root.json in its repository of keys (TUF); that of \
             the public one is in the Python package sigstore",
        ),
        SignError::Exists { .. } => Some(REPLACE),
        SignError::NotASignature { .. } => Some("choose another -o, or remove it"),
        SignError::IsAPack { .. } => Some("without --files it is verified, then signed"),
        SignError::NotPrivate { .. }
        | SignError::Certificates { .. }
        | SignError::NoFiles { .. }
        | SignError::Encode(_)
        | SignError::Pem { .. } => None,
    }
}

fn of_join(error: &JoinError) -> Option<&'static str> {
    match error {
        JoinError::OtherCount { .. } | JoinError::OtherShares { .. } => {
            Some("pack that part again with the K/N of the others")
        }
        JoinError::Joined { .. } => Some(
            "if `segpack verify` and `segpack info` show that the pack is the one that was to be joined, remove \
             what is left of the parts; else give other folders",
        ),
        JoinError::Duplicate { .. } => Some("give one folder of each part"),
        JoinError::Missing { .. } => Some("give the folders of all parts; --part K/N packs one"),
        JoinError::OtherVersion { .. } => {
            Some("join with the version that packed them, or pack them again with this one")
        }
        JoinError::OtherOptions { .. } => {
            Some("pack that part again with the options of the others")
        }
        JoinError::OtherSource { .. } => Some(
            "pack all parts of the same files; --no-provenance if they only lie in different places",
        ),
    }
}

fn of_export(error: &ExportError) -> Option<String> {
    let fixed = match error {
        ExportError::Option { option, .. } => return Some(of_option(*option)),
        ExportError::Gguf(e) => of_gguf(e)?,
        ExportError::NotAStream { .. } => "only --to safetensors can go to standard output",
        ExportError::NotSelected { .. } => "select it with --component",
        ExportError::OtherArchitecture { .. } => "--to hf writes the checkpoint as it is",
        ExportError::NoExperts => "--expert-parallel needs a --component that has experts",
        ExportError::TooFewExperts { .. } => "--component selects others",
        ExportError::ReadBack { .. } => {
            "nothing was published; the drive or the memory of this machine may be failing"
        }
        _ => return None,
    };
    Some(fixed.to_owned())
}

/// Which targets a setting is for.
fn of_option(option: ExportOption) -> String {
    const ALL: [ExportTarget; 5] = [
        ExportTarget::Hf,
        ExportTarget::Qwen3Moe,
        ExportTarget::Gguf,
        ExportTarget::Safetensors,
        ExportTarget::Npy,
    ];
    let flag = match option {
        ExportOption::MaxShardSize => "--max-shard-size",
        ExportOption::ExpertParallel => "--expert-parallel",
        ExportOption::Names => "GLOB",
        ExportOption::Quantize => "--dtype q4_0 to q8_0",
        ExportOption::TokenizerPre => "--tokenizer-pre",
        ExportOption::Importance => "--imatrix",
        ExportOption::Mmproj => "--mmproj",
    };
    let targets: Vec<&str> = ALL
        .into_iter()
        .filter(|target| option.applies_to(*target))
        .map(ExportTarget::as_str)
        .collect();
    match &targets[..] {
        [others @ .., last] if !others.is_empty() => {
            format!("{flag} is for --to {} and {last}", others.join(", "))
        }
        _ => format!("{flag} is for --to {}", targets.join(", ")),
    }
}

fn of_gguf(error: &GgufExportError) -> Option<&'static str> {
    match error {
        GgufExportError::Name { .. } => {
            Some("--to gguf writes a file, whose name must end in .gguf")
        }
        GgufExportError::Setting { architecture, .. }
        | GgufExportError::NoSuchTensor { architecture, .. }
            if *architecture == "qwen3moe" =>
        {
            Some("--to hf or qwen3-moe writes this model for transformers and vLLM")
        }
        GgufExportError::Importance { .. } => Some(
            "--imatrix is for --dtype q4_k_s, q4_k_m, q5_k_s, q5_k_m and q6_k, and for the model that it was made with",
        ),
        GgufExportError::Setting { .. }
        | GgufExportError::NoSuchTensor { .. }
        | GgufExportError::Part { .. }
        | GgufExportError::Family { .. } => {
            Some("--to hf writes the checkpoint as it is, for transformers and vLLM")
        }
        GgufExportError::Requantized => Some(
            "without --dtype the experts stay MXFP4; --dtype q8_0 makes blocks of the other matrices",
        ),
        GgufExportError::TooManyFiles { .. } => Some("a larger --max-shard-size gives fewer files"),
        GgufExportError::PreTokenizer { .. } => Some(
            "give the name with --tokenizer-pre NAME, or leave the tokenizer out with \
             --tokenizer-pre none",
        ),
        GgufExportError::PostProcessor { .. }
        | GgufExportError::NotByteLevel { .. }
        | GgufExportError::SpecialToken { .. }
        | GgufExportError::SentencePiece { .. } => {
            Some("leave the tokenizer out with --tokenizer-pre none")
        }
        GgufExportError::NoEncoders { .. }
        | GgufExportError::NoTowers { .. }
        | GgufExportError::Preprocessor { .. } => {
            Some("without --mmproj the text decoder alone is written")
        }
        GgufExportError::Sampling { .. }
        | GgufExportError::Twice { .. }
        | GgufExportError::NoScale { .. }
        | GgufExportError::Missing { .. }
        | GgufExportError::Shape { .. }
        | GgufExportError::Merge => None,
    }
}

fn of_run(error: &RunError) -> Option<String> {
    match error {
        RunError::Memory { minimum, .. } => Some(format!("--memory {}", size(*minimum))),
        RunError::DeviceMemory { minimum, .. } => {
            Some(format!("--device-memory {}", size(*minimum)))
        }
        RunError::Unsuitable(Unsuitable::Gpu(_)) => Some("--device cpu can run it".to_owned()),
        #[cfg(feature = "run")]
        RunError::Cuda(CudaError::OutOfMemory { .. }) => {
            Some("a smaller --device-memory needs less".to_owned())
        }
        RunError::OutOfMemory { .. } => Some("a smaller --memory needs less".to_owned()),
        _ => None,
    }
}

/// A size as the command line takes it, rounded up to at most four digits: `68MB`.
fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    let (unit, name) = UNITS
        .into_iter()
        .find(|(unit, _)| bytes > 10 * unit)
        .unwrap_or((1, "B"));
    format!("{}{name}", bytes.div_ceil(unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::values;

    #[test]
    fn a_size_is_enough_and_the_command_line_takes_it() {
        assert_eq!(
            [999, 67_266_232, 9_999_999_999, 70_519_637_090].map(size),
            ["999B", "68MB", "10000MB", "71GB"]
        );
        for bytes in [1, 999, 12_345, 67_266_232, 70_519_637_090] {
            assert!(values::size(&size(bytes)).unwrap() >= bytes);
        }
    }
}
