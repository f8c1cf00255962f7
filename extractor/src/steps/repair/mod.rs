//! `repair`: what is damaged or missing is taken from the checkpoint or from another pack, and the
//! result is the undamaged pack, byte for byte.
//!
//! The manifest says what that is, so it has to be right: it has the SHA-256 in SHA256SUMS or that
//! the user gives, or it is taken from a pack whose manifest has. Every byte that comes from the
//! source has to have the digest in the manifest before it is written, and every file that is
//! written as a whole after. The new folder is built beside the old one, sound files as links to
//! those that are there, and takes its place in one step.

mod damage;
mod error;
mod manifest;
mod write;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use segpack_formats::codec::Coding;
use segpack_formats::digest::Sha256;
use segpack_manifests::documents::{
    DiffKind, Finding, GENERATOR, Manifest, RepairReport, RepairedFile,
};
use segpack_manifests::folder::{MANIFEST, OpenOptions, SUMS};

use super::StepError;
use super::contents::Contents;
use crate::output::{Leave, OutputFolder, recover, refuse_inside};
use crate::pack_writer::{close, memory_of};
use crate::work::{Job, into_inner, jobs_within_memory, lock, run_tasks};
use damage::Damaged;
pub use error::RepairError;
use write::Writer;

/// Repairs the pack in `folder` with what `from`, a checkpoint or a pack, holds.
///
/// # Errors
/// `Findings` where the source is not what the manifest lists, or the folder holds what it does not
/// list; `Repair` where the manifest cannot be trusted. Nothing is changed then.
pub(crate) fn repair(
    folder: &Path,
    from: &Path,
    wanted: Option<Sha256>,
    job: Job<'static>,
) -> Result<RepairReport, StepError> {
    // an earlier run that was killed between two renames has left the folder beside its path
    recover(folder, false)?;
    if !fs::metadata(folder)
        .map_err(StepError::io("open", folder))?
        .is_dir()
    {
        return Err(StepError::malformed(folder, "is not a folder"));
    }
    refuse_itself(folder, from)?;
    let trusted = manifest::find(folder, from, wanted)?;
    let manifest = &trusted.manifest;
    damage::refuse_unlisted(folder, manifest)?;
    let damaged = damage::find(folder, manifest, job)?;
    let sums = manifest
        .options
        .sums
        .then(|| manifest.sums_text(trusted.sha256));
    let sums_are_right = match &sums {
        Some(text) => damage::has_sums(folder, text)?,
        None => true,
    };
    let source = Contents::open(from, OpenOptions::new(), job)?;
    let repair = Repair {
        folder,
        trusted: &trusted,
        damaged: &damaged,
        sums: sums.as_deref().filter(|_| !sums_are_right),
        job,
    };
    let repaired = if repair.is_needed() {
        repair.run(&source)?
    } else {
        Vec::new()
    };
    let files = manifest.files();
    Ok(RepairReport {
        format_version: RepairReport::VERSION,
        generator: GENERATOR.to_owned(),
        manifest_sha256: trusted.sha256,
        from: source
            .pack()
            .map_or(DiffKind::Checkpoint, |_| DiffKind::Pack),
        checked_files: files.len() as u64,
        checked_bytes: files.iter().map(|(_, length, _)| length).sum(),
        repaired,
    })
}

/// A source inside the pack would be what is to be repaired; a pack inside the source is none.
fn refuse_itself(folder: &Path, from: &Path) -> Result<(), StepError> {
    let real = |path: &Path| path.canonicalize().ok();
    if real(folder).is_some_and(|f| Some(f) == real(from)) {
        let folder = folder.to_owned();
        return Err(RepairError::Itself { folder }.into());
    }
    if from.is_dir() {
        refuse_inside(folder, from)?;
    }
    Ok(())
}

/// One run of `repair`.
struct Repair<'a> {
    folder: &'a Path,
    trusted: &'a manifest::Trusted,
    damaged: &'a [Damaged],
    /// The text of SHA256SUMS, where it has to be written.
    sums: Option<&'a str>,
    job: Job<'a>,
}

impl Repair<'_> {
    fn is_needed(&self) -> bool {
        !self.damaged.is_empty() || self.sums.is_some() || self.trusted.lost.is_some()
    }

    /// Builds the repaired pack beside the old one and lets it take its place.
    fn run(&self, source: &Contents) -> Result<Vec<RepairedFile>, StepError> {
        let output = OutputFolder::replace(self.folder, false)?;
        let done = self.build(&output, source);
        // what was built is of no use to another run, whatever ended this one
        close(output, done, |_: &StepError| Leave::Nothing)
    }

    fn build(
        &self,
        output: &OutputFolder,
        source: &Contents,
    ) -> Result<Vec<RepairedFile>, StepError> {
        let manifest = &self.trusted.manifest;
        let damaged: BTreeSet<&str> = self.damaged.iter().map(|d| d.path.as_str()).collect();
        let files = manifest.files();
        let needed = files.iter().filter(|(path, ..)| damaged.contains(path));
        output.check_space(needed.map(|(_, length, _)| length).sum())?;
        for (path, ..) in files.iter().filter(|(path, ..)| !damaged.contains(path)) {
            output.keep(self.folder, path)?;
        }
        let mut repaired = self.write_damaged(output, source)?;
        repaired.extend(self.write_documents(output)?);
        Ok(repaired)
    }

    /// Writes the damaged files, several at a time.
    fn write_damaged(
        &self,
        output: &OutputFolder,
        source: &Contents,
    ) -> Result<Vec<RepairedFile>, StepError> {
        let manifest: &Manifest = &self.trusted.manifest;
        let writer = Writer::new(self.folder, manifest, output, source, self.job)?;
        let bytes = self.damaged.iter().map(|d| writer.length(&d.path)).sum();
        self.job.progress.start("writing damaged files", bytes);
        let (options, repaired) = (&manifest.options, Mutex::new(Vec::new()));
        let coding = Coding::of(options.codec, options.level);
        let done = run_tasks(
            jobs_within_memory(self.job.threads, memory_of(coding)),
            self.damaged,
            || writer.worker(coding),
            |worker, damaged| {
                let segments = writer.write(&damaged.path, worker)?;
                lock(&repaired).push(RepairedFile {
                    path: damaged.path.clone(),
                    damage: damaged.damage,
                    length: writer.length(&damaged.path),
                    segments,
                });
                Ok::<_, StepError>(())
            },
        );
        self.job.progress.finish();
        done?;
        let mut findings = writer.into_findings();
        if !findings.is_empty() {
            Finding::sort(&mut findings);
            let what = format!(
                "{}: not repaired, since the source is another one",
                self.folder.display()
            );
            return Err(StepError::Findings { what, findings });
        }
        let mut repaired = into_inner(repaired);
        repaired.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(repaired)
    }

    fn write_document(
        &self,
        output: &OutputFolder,
        path: &str,
        bytes: &[u8],
    ) -> Result<RepairedFile, StepError> {
        let damage = damage::why(self.folder, path);
        output.write_small(path, |to| to.write_all(bytes))?;
        Ok(RepairedFile {
            path: path.to_owned(),
            damage,
            length: bytes.len() as u64,
            segments: Vec::new(),
        })
    }

    /// The digest list and the manifest: those that are right are kept.
    fn write_documents(&self, output: &OutputFolder) -> Result<Vec<RepairedFile>, StepError> {
        let mut written = Vec::new();
        let mut small = |path, bytes: &[u8]| {
            written.push(self.write_document(output, path, bytes)?);
            Ok::<_, StepError>(())
        };
        match self.sums {
            Some(text) => small(SUMS, text.as_bytes())?,
            None if self.trusted.manifest.options.sums => output.keep(self.folder, SUMS)?,
            None => {}
        }
        match &self.trusted.lost {
            Some(json) => small(MANIFEST, json)?,
            None => output.keep(self.folder, MANIFEST)?,
        }
        Ok(written)
    }
}
