//! The files of parts in the folder of the whole.

use std::path::Path;

use segpack_formats::FormatError;
use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{InputFile, READ_BYTES, write_all_at};
use segpack_manifests::documents::{Finding, FindingKind, Manifest};
use segpack_manifests::folder::{PACKS, PART, SOURCE, SUMS};

use super::{JoinSettings, Part};
use crate::output::{OutputFolder, remove_from};
use crate::steps::StepError;
use crate::work::{Job, run_tasks};

/// A file that the whole gets from a part.
struct Wanted<'a> {
    /// The folder of the part.
    from: &'a Path,
    /// Its path in either folder.
    path: &'a str,
    length: u64,
    sha256: Sha256,
    /// Whether the file system can give it a second name, which it then has.
    linked: bool,
}

/// Gives the output every file of the whole: packs from the parts that have them, the files of the
/// checkpoint from the first one. What is read on the way has to have the digest that its part
/// recorded; without `verify`, what is linked is not read.
///
/// # Errors
/// `Findings` with every file that is damaged; `NoSpace`; `Io`; `Interrupted`.
pub(super) fn place(
    parts: &[Part],
    manifest: &Manifest,
    output: &OutputFolder,
    settings: JoinSettings,
    job: Job<'_>,
) -> Result<(), StepError> {
    let mut files = wanted(parts);
    output.check_limits(manifest.files().iter().map(|f| (f.0, f.1)))?;
    let damaged = files.iter().filter_map(wrong_length);
    refuse(damaged.collect())?;
    for file in &mut files {
        job.stop.check()?;
        file.linked = output.link(file.from, file.path)?;
    }
    let copied = files.iter().filter(|f| !f.linked);
    output.check_space(copied.map(|f| f.length).sum())?;

    files.retain(|file| settings.verify || !file.linked);
    job.progress
        .start("joining", files.iter().map(|f| f.length).sum());
    let damaged = std::sync::Mutex::new(Vec::new());
    let buffer = || Ok::<_, StepError>(vec![0; READ_BYTES]);
    let done = run_tasks(job.threads, &files, buffer, |buffer, file| {
        if let Some(finding) = file.carry(output, buffer, job)? {
            crate::work::lock(&damaged).push(finding);
        }
        Ok(())
    });
    job.progress.finish();
    done?;
    refuse(crate::work::into_inner(damaged))
}

/// Every file of the whole, and where it is.
fn wanted(parts: &[Part]) -> Vec<Wanted<'_>> {
    let mut files = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        let packs = part.manifest().files().into_iter();
        // the files of the checkpoint are the same in all parts
        let own = packs.filter(|(path, ..)| number == 0 || is_below(path, PACKS));
        files.extend(own.map(|(path, length, sha256)| Wanted {
            from: part.folder(),
            path,
            length,
            sha256,
            linked: false,
        }));
    }
    files
}

fn is_below(path: &str, folder: &str) -> bool {
    path.split('/').next() == Some(folder)
}

/// What is wrong with a file, where its length says so or it cannot be opened.
fn wrong_length(file: &Wanted<'_>) -> Option<Finding> {
    let (kind, seen) = match InputFile::open_beneath(file.from, file.path) {
        Ok(input) if input.length() == file.length => return None,
        Ok(input) => (
            FindingKind::WrongLength,
            format!("{} bytes", input.length()),
        ),
        Err(e) => (FindingKind::Unreadable, crate::causes::without_path(&e)),
    };
    let finding = Finding::new(kind).file(shown(file)).seen(seen);
    Some(finding.wanted(format!("{} bytes, as its part says", file.length)))
}

/// A file with the folder of its part.
fn shown(file: &Wanted<'_>) -> String {
    file.from.join(file.path).display().to_string()
}

fn refuse(mut findings: Vec<Finding>) -> Result<(), StepError> {
    if findings.is_empty() {
        return Ok(());
    }
    Finding::sort(&mut findings);
    let what = "the parts are damaged; nothing was joined".to_owned();
    Err(StepError::Findings { what, findings })
}

impl Wanted<'_> {
    /// Reads the file, and writes it where it is not linked. Says what is wrong with it.
    fn carry(
        &self,
        output: &OutputFolder,
        buffer: &mut [u8],
        job: Job<'_>,
    ) -> Result<Option<Finding>, StepError> {
        let input = InputFile::open_beneath(self.from, self.path)?;
        let copy = match self.linked {
            true => None,
            false => Some(output.create(self.path)?),
        };
        let (mut sha256, mut at) = (Sha256Hasher::default(), 0);
        input.for_each_piece(0..self.length, buffer, job.stop, |piece| {
            sha256.update(piece);
            if let Some((file, path)) = &copy {
                write_all_at(file, piece, at).map_err(FormatError::io("write", path))?;
            }
            at += piece.len() as u64;
            job.progress.advance(piece.len() as u64);
            Ok::<_, FormatError>(())
        })?;
        let seen = sha256.finish();
        if seen != self.sha256 {
            let finding = Finding::new(FindingKind::DamagedFile).file(shown(self));
            let finding = finding.seen(format!("SHA-256 {seen}"));
            return Ok(Some(
                finding.wanted(format!("{}, as its part says", self.sha256)),
            ));
        }
        if let Some((file, _)) = &copy {
            output.publish(file, self.path)?;
        }
        Ok(None)
    }
}

/// Removes what a part consists of, and nothing else; its folder goes where nothing else is in it.
///
/// # Errors
/// `Link`; `Io`.
pub(super) fn remove(part: &Part) -> Result<(), StepError> {
    // its document first, so that what is left does not look complete
    let mut files = vec![PART, SUMS];
    files.extend(part.manifest().files().iter().map(|f| f.0));
    Ok(remove_from(part.folder(), &files, &[PACKS, SOURCE])?)
}
