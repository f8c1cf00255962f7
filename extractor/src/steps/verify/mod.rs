//! `verify`: everything that is wrong with a pack folder, not the first thing.

mod against;
mod content;
mod restore;
mod structure;
mod values;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256;
use segpack_formats::io::CancelToken;
use segpack_manifests::audit::refuse_unaudited;
use segpack_manifests::derive::{Kept, KeptError, derive};
use segpack_manifests::documents::{
    CheckedSignature, Completeness, Finding, FindingKind, GENERATOR, Manifest, VerifyCounts,
    VerifyMode, VerifyReport,
};
use segpack_manifests::folder::{MANIFEST, OpenOptions, PART, PackFiles};
use segpack_manifests::{NotAPack, Pack, PackError};

use values::TensorStatistics;

use super::StepError;
use super::scan::{Extra, ScanOptions, scan};
pub use super::sign::{SignatureSettings, SignerSettings};
use super::sign::{Signer, check_signature};
use crate::causes::{chain, without_path as describe};
use crate::source::PackPlace;
use crate::work::{Job, Progress, into_inner, lock};

/// How to verify.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct VerifySettings {
    /// How thoroughly.
    pub mode: VerifyMode,
    /// Part K of N, counted from 1.
    pub subset: Option<Subset>,
    /// Whether statistics of the values are taken, and what looks untrained is a finding.
    pub values: bool,
    /// A signature to check.
    pub signature: Option<SignatureSettings>,
    /// A checkpoint to compare with.
    pub against: Option<std::path::PathBuf>,
    /// The SHA-256 that the manifest's file must have.
    pub manifest_sha256: Option<Sha256>,
    /// Whether it is no error that nothing says which tensors there have to be.
    pub allow_unaudited: bool,
    /// Whether the original files are proved to be restorable (of a full verification).
    pub restorable: bool,
    /// Threads.
    pub jobs: usize,
}

impl VerifySettings {
    /// The pack alone, all of it.
    pub fn new(mode: VerifyMode, jobs: usize) -> Self {
        Self {
            mode,
            subset: None,
            values: false,
            signature: None,
            against: None,
            manifest_sha256: None,
            allow_unaudited: false,
            restorable: true,
            jobs,
        }
    }
}

/// More machines than anybody has.
pub(crate) const MAX_PARTS: u64 = 65_536;

/// One of N parts that together cover everything once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subset {
    /// Which part, from 1 to `of`.
    pub part: u64,
    /// How many parts.
    pub of: u64,
}

impl std::str::FromStr for Subset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once('/')
            .and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
        match parsed {
            Some((part, of)) if (1..=of).contains(&part) && of <= MAX_PARTS => {
                Ok(Self { part, of })
            }
            _ => Err(format!(
                "{text:?} is not K/N with K from 1 to N, and N at most {MAX_PARTS}"
            )),
        }
    }
}

impl Subset {
    fn takes(self, index: usize) -> bool {
        index as u64 % self.of == self.part - 1
    }
}

/// What the parts of a verification share: findings and counts from many threads.
#[derive(Default)]
struct Findings(Mutex<(Vec<Finding>, VerifyCounts)>, Mutex<NotChecked>);

/// What could not be read although it may be sound, and why.
type NotChecked = Vec<(Finding, FormatError)>;

impl Findings {
    fn add(&self, finding: Finding) {
        lock(&self.0).0.push(finding);
    }

    fn extend(&self, findings: impl IntoIterator<Item = Finding>) {
        findings.into_iter().for_each(|finding| self.add(finding));
    }

    /// Whether anything is wrong with this file.
    fn names(&self, file: &str) -> bool {
        let found = lock(&self.0);
        found.0.iter().any(|f| f.file.as_deref() == Some(file))
    }

    fn count(&self, change: impl FnOnce(&mut VerifyCounts)) {
        change(&mut lock(&self.0).1);
    }

    /// A failed read becomes a finding; only a wish to stop goes on as an error.
    fn unless_read(&self, file: &str, result: Result<(), FormatError>) -> Result<(), StepError> {
        match result {
            Ok(()) => Ok(()),
            Err(FormatError::Interrupted) => Err(FormatError::Interrupted.into()),
            Err(e) => {
                let finding = Finding::new(FindingKind::Unreadable).file(file);
                let finding = finding.seen(describe(&e));
                self.add_unread(e, finding);
                Ok(())
            }
        }
    }

    /// What the environment keeps from being read is not damaged for all that is known: it is no
    /// finding, and the verification ends with this error. Any other failed read is `finding`.
    fn add_unread(&self, error: FormatError, finding: Finding) {
        if error.is_environment() {
            let mut unread = lock(&self.1);
            unread.push((finding, error));
        } else {
            self.add(finding);
        }
    }

    /// Says what was not checked. Unless something else is wrong, that ends the verification.
    fn end_unread(&self, progress: &dyn Progress) -> Result<(), StepError> {
        let unread = std::mem::take(&mut *lock(&self.1));
        for (finding, error) in &unread {
            let file = finding.file.as_deref().unwrap_or_default();
            progress.note(&format!("not checked: {file}: {}", describe(error)));
        }
        let is_damaged = {
            let found = lock(&self.0);
            Finding::any_error(&found.0)
        };
        match unread.into_iter().next() {
            Some((_, first)) if !is_damaged => Err(first.into()),
            _ => Ok(()),
        }
    }
}

/// A pack may hold what `pack` was asked to tolerate.
const TOLERANT: ScanOptions = ScanOptions {
    config: None,
    family: None,
    extra: Extra::Keep,
    allow_unclassified: true,
    allow_unaudited: true,
};

/// The same, of a checkpoint that was packed with a configuration or a family that was given.
fn as_packed(manifest: &Manifest) -> ScanOptions {
    ScanOptions {
        config: manifest.options.config.clone(),
        family: manifest.options.known_family(),
        ..TOLERANT
    }
}

/// Verifies a pack folder.
///
/// # Errors
/// Only where there is no such folder or it is a file, the checkpoint of `against` cannot be
/// opened, the environment keeps a file from being read (and nothing else is wrong), or the user
/// stops it: everything else is a finding of the report.
pub fn verify(
    folder: &Path,
    settings: &VerifySettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<VerifyReport, StepError> {
    if folder.exists() && !folder.is_dir() {
        return Err(StepError::malformed(folder, "is not a folder"));
    }
    let mut opened = Opened::whole(OpenOptions::new().check_sums(false).open(folder));
    if let Err(PackError::NotAPack {
        why: NotAPack::Part,
        ..
    }) = opened.pack
    {
        opened.document = PART;
        let pack = Pack::open_part(folder);
        opened.pack = pack.map(|(pack, share)| {
            opened.part = Some([share.part, share.of]);
            pack
        });
    }
    verify_opened(folder, opened, settings, stop, progress)
}

/// What was found where a pack has to be.
struct Opened {
    pack: Result<Pack, PackError>,
    /// The number of a part, and how many there are.
    part: Option<[u64; 2]>,
    /// The file that lists what there is.
    document: &'static str,
}

impl Opened {
    /// What is no part.
    fn whole(pack: Result<Pack, PackError>) -> Self {
        Self {
            pack,
            part: None,
            document: MANIFEST,
        }
    }
}

/// [`verify`] of the pack of a folder or of an address, as every command takes it. `job` says when to
/// stop, and hears how far it is; the threads are those of the settings.
///
/// # Errors
/// As [`verify`]; where a server cannot be asked.
pub fn verify_place(
    place: &Path,
    settings: &VerifySettings,
    job: Job<'static>,
) -> Result<VerifyReport, StepError> {
    let files = PackPlace::find(place, job)?.files();
    verify_at(files, settings, job.stop, job.progress)
}

/// [`verify`], wherever the pack is.
///
/// # Errors
/// As [`verify`].
pub(crate) fn verify_at(
    files: Arc<dyn PackFiles>,
    settings: &VerifySettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<VerifyReport, StepError> {
    if let Some(folder) = files.local() {
        return verify(folder, settings, stop, progress);
    }
    let root = files.root().to_owned();
    let opened = Opened::whole(OpenOptions::new().check_sums(false).open_at(files));
    verify_opened(&root, opened, settings, stop, progress)
}

fn verify_opened(
    place: &Path,
    opened: Opened,
    settings: &VerifySettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<VerifyReport, StepError> {
    let findings = Findings::default();
    // first, as a mistyped path should not be told after an hour
    let signer = signer_of(settings)?;
    let Opened {
        pack,
        part,
        document,
    } = opened;
    let pack = match pack {
        Ok(pack) => Some(pack),
        Err(PackError::NotAPack { why, .. }) => {
            let finding = Finding::new(FindingKind::BadManifest).file(document);
            findings.add(finding.seen(format!("the folder {why}")));
            None
        }
        Err(PackError::Manifest { source, .. }) => {
            findings.add(
                Finding::new(FindingKind::BadManifest)
                    .file(document)
                    .seen(chain(&source)),
            );
            None
        }
        Err(PackError::Format(e)) => match e {
            FormatError::Io { .. } => return Err(e.into()),
            e => {
                findings.add(
                    Finding::new(FindingKind::BadManifest)
                        .file(document)
                        .seen(describe(&e)),
                );
                None
            }
        },
        // of a pack it is a finding of its SHA256SUMS; of a part nothing else is then known
        Err(PackError::Identity { seen, wanted, .. }) => {
            let finding = Finding::new(FindingKind::WrongIdentity).file(document);
            let finding = finding.seen(format!("SHA-256 {seen}"));
            findings.add(finding.wanted(format!("{wanted}, as SHA256SUMS says")));
            None
        }
        Err(e) => return Err(e.into()),
    };
    let found = Found {
        place,
        pack: pack.as_ref(),
        part,
        signer,
    };
    verify_found(&found, settings, findings, stop, progress)
}

/// Verifies a pack that is open, and not a part. Its manifest is not read a second time.
///
/// # Errors
/// As [`verify`].
pub(crate) fn verify_open(
    pack: &Pack,
    settings: &VerifySettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<VerifyReport, StepError> {
    let found = Found {
        place: pack.folder(),
        pack: Some(pack),
        part: None,
        signer: signer_of(settings)?,
    };
    verify_found(&found, settings, Findings::default(), stop, progress)
}

/// Whose the signature has to be, if there has to be one.
fn signer_of(settings: &VerifySettings) -> Result<Option<Signer>, StepError> {
    let wanted = settings.signature.as_ref();
    wanted.map(|s| Signer::read(&s.signer)).transpose()
}

/// What is verified.
struct Found<'a> {
    place: &'a Path,
    /// `None` where it cannot be opened.
    pack: Option<&'a Pack>,
    part: Option<[u64; 2]>,
    signer: Option<Signer>,
}

fn verify_found(
    found: &Found<'_>,
    settings: &VerifySettings,
    findings: Findings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<VerifyReport, StepError> {
    let Found {
        place,
        pack,
        part,
        ref signer,
    } = *found;
    let mut signature = None;
    let mut completeness = Completeness::NotKnown;
    let mut files = Vec::new();
    let values = settings.values.then(TensorStatistics::default);
    if let (Some(_), Some(against)) = (&part, &settings.against) {
        return Err(StepError::malformed(
            place,
            format!(
                "is a part of a pack: only the whole is compared with {}",
                against.display()
            ),
        ));
    }
    if let Some(pack) = pack {
        findings.extend(wrong_identity(pack.manifest_sha256(), settings));
        let job = Job {
            threads: settings.jobs,
            stop,
            progress,
        };
        // first, as a mistyped path should not be told after an hour
        let checkpoint = settings
            .against
            .as_deref()
            .map(|path| scan(path, as_packed(pack.manifest()), job))
            .transpose()?;
        let sound = structure::check(pack, &findings)?;
        if let Some((wanted, signer)) = settings.signature.as_ref().zip(signer.as_ref()) {
            signature = report_signature(pack, wanted, signer, &findings)?;
        }
        if !pack.is_part() {
            completeness = check_derivation(pack, &sound, settings, &findings)?;
        }
        if settings.mode != VerifyMode::Quick {
            let watch = values.as_ref();
            files = content::check(pack, &sound, settings, &findings, watch, stop, progress)?;
        }
        if let Some(checkpoint) = &checkpoint {
            let compare = || against::check(pack, checkpoint, settings, &findings, job);
            checkpoint.0.watched(job, compare)?;
        }
    }
    findings.end_unread(progress)?;
    let judged = values.zip(pack);
    let values = judged.map(|(values, pack)| {
        let (report, odd) = values.judge(pack.manifest());
        findings.extend(odd);
        report
    });
    let (mut findings, checked) = into_inner(findings.0);
    Finding::sort(&mut findings);
    findings.dedup(); // what is kept is read for its content and for what follows from it
    Ok(VerifyReport {
        format_version: VerifyReport::VERSION,
        generator: GENERATOR.to_owned(),
        manifest_sha256: pack.map(Pack::manifest_sha256),
        mode: settings.mode,
        part,
        subset: settings.subset.map(|s| [s.part, s.of]),
        against: settings.against.is_some(),
        signature,
        completeness,
        ok: !Finding::any_error(&findings),
        checked,
        files,
        findings,
        values,
    })
}

/// The manifest against what follows from the files that the pack keeps, where all of them are
/// `sound`.
fn check_derivation(
    pack: &Pack,
    sound: &BTreeSet<String>,
    settings: &VerifySettings,
    findings: &Findings,
) -> Result<Completeness, StepError> {
    let mut kept = Kept::files(&pack.manifest().source_files);
    if !kept.all(|file| sound.contains(&file.stored_as)) {
        return Ok(Completeness::NotKnown); // the finding about the file is an error
    }
    let mut derived = match Kept::read(pack) {
        Ok(kept) => derive(pack.manifest(), kept),
        Err(errors) => {
            for error in errors {
                match error {
                    KeptError::Wrong(finding) => findings.add(*finding),
                    KeptError::Unreadable { file, source } => {
                        findings.unless_read(&file, Err(source))?;
                    }
                }
            }
            return Ok(Completeness::NotKnown);
        }
    };
    if !settings.allow_unaudited {
        derived.findings.iter_mut().for_each(refuse_unaudited);
    }
    findings.extend(derived.findings);
    Ok(derived.completeness)
}

/// Reports a signature.
fn report_signature(
    pack: &Pack,
    settings: &SignatureSettings,
    signer: &Signer,
    findings: &Findings,
) -> Result<Option<CheckedSignature>, StepError> {
    match check_signature(pack, settings, signer)? {
        Ok(signature) => {
            if settings.file.is_none() {
                let unchecked = |f: &Finding| f.kind == FindingKind::UncheckedSignature;
                lock(&findings.0).0.retain(|f| !unchecked(f));
            }
            Ok(Some(signature))
        }
        Err(finding) => {
            findings.add(*finding);
            Ok(None)
        }
    }
}

/// The manifest is not the one that the user named.
fn wrong_identity(seen: Sha256, settings: &VerifySettings) -> Option<Finding> {
    let wanted = settings.manifest_sha256.filter(|wanted| *wanted != seen)?;
    let finding = Finding::new(FindingKind::WrongIdentity).file(MANIFEST);
    let finding = finding.seen(format!("SHA-256 {seen}"));
    Some(finding.wanted(format!("{wanted}, as given")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted_from_one_and_cover_everything_once() {
        let parts: Vec<Subset> = ["1/3", "2/3", "3/3"].map(|t| t.parse().unwrap()).to_vec();
        for index in 0..10 {
            assert_eq!(parts.iter().filter(|p| p.takes(index)).count(), 1);
        }
        for bad in ["0/3", "4/3", "1/0", "1", "a/b", "", "1/3/2", "-1/3"] {
            assert!(
                bad.parse::<Subset>().unwrap_err().contains("is not K/N"),
                "{bad}"
            );
        }
    }
}
