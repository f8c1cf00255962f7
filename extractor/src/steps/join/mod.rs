//! `join`: what many machines packed of one checkpoint becomes one pack, byte for byte the one that
//! a single machine would have written.

mod error;
mod files;
mod union;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use segpack_manifests::Pack;
use segpack_manifests::documents::{
    GENERATOR, Manifest, PackOptions, PackSummary, PartShare, SourceFile,
};
use segpack_manifests::folder::{MANIFEST, PART};

pub use error::JoinError;
use error::MOST;

use super::StepError;
use crate::output::{Leave, refuse_holding, refuse_inside};
use crate::pack_writer::{Target, close, summarise, write_documents};
use crate::work::Job;

/// How to join.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JoinSettings {
    /// Replace an existing pack.
    pub force: bool,
    /// Remove the parts once the pack is complete.
    pub remove_parts: bool,
    /// Read every file, and compare its SHA-256 with the one that its part recorded.
    pub verify: bool,
}

/// An open part.
struct Part {
    pack: Pack,
    share: PartShare,
}

impl Part {
    fn folder(&self) -> &Path {
        self.pack.folder()
    }

    fn manifest(&self) -> &Manifest {
        self.pack.manifest()
    }
}

/// Joins the parts in these folders, in whatever order they are given, to a pack in `out`. Files are
/// linked where the file system can, else copied.
///
/// # Errors
/// `Join` where they are no parts of one pack, or not all; `Findings` where one is damaged, or where
/// two machines read different bytes of one shard; as `pack` for the output. After an error nothing
/// is left of the output, and the parts are as they were.
pub(crate) fn join(
    folders: &[PathBuf],
    out: &Path,
    settings: JoinSettings,
    job: Job<'_>,
) -> Result<PackSummary, StepError> {
    let parts = open_outside(folders, out).map_err(|e| match settings.remove_parts {
        // where a pack may be replaced, another one may be there
        true if !settings.force => joined_before(folders, out).map_or(e, StepError::from),
        _ => e,
    })?;
    let manifest = union::union(&parts)?;
    let listed: BTreeSet<String> = manifest.files().iter().map(|f| f.0.to_owned()).collect();
    let target = Target {
        resume: false,
        force: settings.force,
        in_place: false,
        consume: false,
        elsewhere: None,
        job,
    };
    let output = target.open(out, &listed, &|_| Ok(()))?;
    let done = files::place(&parts, &manifest, &output, settings, job)
        .and_then(|()| Ok(write_documents(&output, &manifest)?));
    let sha256 = close(output, done, |_: &StepError| Leave::Nothing)?;
    if settings.remove_parts {
        parts.iter().try_for_each(files::remove)?;
    }
    let mut summary = summarise(&manifest, sha256, 0, 0, Vec::new());
    summary.joined_parts = Some(parts.len() as u64);
    Ok(summary)
}

/// The error of a folder that is no part any more, where what the parts give is there already: a run that
/// was to remove them was killed meanwhile.
fn joined_before(folders: &[PathBuf], out: &Path) -> Option<JoinError> {
    // the manifest is written last
    if !out.join(MANIFEST).exists() {
        return None;
    }
    let folder = folders.iter().find(|folder| !folder.join(PART).exists())?;
    Some(JoinError::Joined {
        folder: folder.clone(),
        out: out.to_owned(),
    })
}

/// Opens all parts, none of which may hold the output, or lie in it.
fn open_outside(folders: &[PathBuf], out: &Path) -> Result<Vec<Part>, StepError> {
    refuse_holding(out, folders)?;
    for folder in folders {
        refuse_inside(out, folder)?;
    }
    open(folders)
}

/// Opens all parts of one pack, the first one first.
fn open(folders: &[PathBuf]) -> Result<Vec<Part>, StepError> {
    let mut parts: Vec<Part> = Vec::new();
    for folder in folders {
        let (pack, share) = Pack::open_part(folder)?;
        let part = Part { pack, share };
        check_version(&part)?;
        if let Some(first) = parts.first() {
            check_number(&part, first)?;
            check_options(&part, first)?;
            check_source(&part, first)?;
        }
        parts.push(part);
    }
    parts.sort_by_key(|part| part.share.part);
    for pair in parts.windows(2) {
        if pair[0].share.part == pair[1].share.part {
            return Err(JoinError::Duplicate {
                part: pair[0].share.part,
                of: pair[0].share.of,
                first: pair[0].folder().to_owned(),
                second: pair[1].folder().to_owned(),
            }
            .into());
        }
    }
    let there: BTreeSet<u64> = parts.iter().map(|part| part.share.part).collect();
    let of = parts.first().map_or(0, |part| part.share.of);
    // a document may say any number
    let missing = (1..=of).filter(|part| !there.contains(part));
    let missing: Vec<u64> = missing.take(MOST).collect();
    if missing.is_empty() {
        return Ok(parts);
    }
    let count = of.saturating_sub(there.len() as u64);
    Err(JoinError::Missing { missing, count, of }.into())
}

/// What another version would have written may differ, and so may how it divides the work.
fn check_version(part: &Part) -> Result<(), JoinError> {
    let seen = &part.manifest().generator;
    if seen == GENERATOR {
        return Ok(());
    }
    Err(JoinError::OtherVersion {
        folder: part.folder().to_owned(),
        seen: seen.clone(),
        wanted: GENERATOR,
    })
}

fn check_number(part: &Part, first: &Part) -> Result<(), JoinError> {
    if part.share.of == first.share.of {
        return Ok(());
    }
    Err(JoinError::OtherCount {
        folder: part.folder().to_owned(),
        part: part.share.part,
        of: part.share.of,
        first: first.folder().to_owned(),
        first_of: first.share.of,
    })
}

fn check_options(part: &Part, first: &Part) -> Result<(), JoinError> {
    let [seen, wanted] = [part, first].map(|part| in_words(&part.manifest().options));
    let mut both = seen.into_iter().zip(wanted);
    let differing = both.find(|((_, seen), (_, wanted))| seen != wanted);
    let Some(((what, seen), (_, wanted))) = differing else {
        return Ok(());
    };
    Err(JoinError::OtherOptions {
        folder: part.folder().to_owned(),
        what,
        seen,
        first: first.folder().to_owned(),
        wanted,
    })
}

/// Every option with its value.
fn in_words(options: &PackOptions) -> Vec<(&'static str, String)> {
    let PackOptions {
        codec,
        level,
        include,
        exclude,
        source_digests,
        sums,
        config,
        family,
    } = options;
    let given = |words: &[String]| match words {
        [] => "nothing".to_owned(),
        words => words.join(", "),
    };
    vec![
        ("the codec", codec.to_string()),
        (
            "the level",
            level.map_or("none".to_owned(), |l| l.to_string()),
        ),
        ("the inclusion of", given(include)),
        ("the exclusion of", given(exclude)),
        ("source digests:", source_digests.to_string()),
        ("SHA256SUMS:", sums.to_string()),
        (
            "the configuration",
            config
                .as_ref()
                .map_or("of the checkpoint".to_owned(), ToString::to_string),
        ),
        (
            "the family",
            family.map_or("of the checkpoint".to_owned(), |f| f.to_string()),
        ),
    ]
}

/// The same files with the same headers, configuration and origin; the same division of the work.
fn check_source(part: &Part, first: &Part) -> Result<(), JoinError> {
    let other = |what: String| JoinError::OtherSource {
        folder: part.folder().to_owned(),
        first: first.folder().to_owned(),
        what,
    };
    let (seen, wanted) = (part.manifest(), first.manifest());
    if let Some(file) = differing_file(&seen.source_files, &wanted.source_files) {
        return Err(other(format!("{file} differs")));
    }
    if let Some(shard) = differing_digest(part, first) {
        return Err(other(format!("the SHA-256 of {shard} differs")));
    }
    if seen.provenance != wanted.provenance {
        return Err(other("where it comes from differs".to_owned()));
    }
    if (&seen.model, &seen.excluded, &seen.left_out, &seen.graft)
        != (
            &wanted.model,
            &wanted.excluded,
            &wanted.left_out,
            &wanted.graft,
        )
    {
        return Err(other(
            "its components or the files beside it differ".to_owned(),
        ));
    }
    let shards = |share: &PartShare| -> Vec<_> {
        let shards = share.shards.iter();
        shards.map(|s| (s.path.clone(), s.part)).collect()
    };
    if part.share.packs != first.share.packs || shards(&part.share) != shards(&first.share) {
        return Err(JoinError::OtherShares {
            folder: part.folder().to_owned(),
            first: first.folder().to_owned(),
        });
    }
    Ok(())
}

/// The first file that one of two checkpoints lacks, or that is another one in it, as far as both
/// parts know: its length, its bytes or those of its header.
fn differing_file(a: &[SourceFile], b: &[SourceFile]) -> Option<String> {
    let known = |f: &SourceFile| {
        let stored = (f.stored_as.clone(), f.stored_length, f.stored_sha256);
        (f.path.clone(), f.kind, f.length, stored)
    };
    let mut both = a.iter().zip(b);
    if let Some((file, _)) = both.find(|(a, b)| known(a) != known(b)) {
        return Some(file.path.clone());
    }
    let longer = if a.len() > b.len() { a } else { b };
    longer
        .get(a.len().min(b.len()))
        .map(|file| file.path.clone())
}

/// The first shard of which two parts know different digests, be it that they read it or that the
/// hub published it.
fn differing_digest(part: &Part, first: &Part) -> Option<String> {
    let known = |part: &Part, number: usize| {
        let share = part.share.shards.get(number);
        let published = share.and_then(|s| s.published_sha256);
        let mut files = part.manifest().source_files.iter();
        let file = files.find(|f| share.is_some_and(|s| s.path == f.path));
        published.or_else(|| file.and_then(|f| f.sha256))
    };
    let mut shards = first.share.shards.iter().enumerate();
    let differs = |number: usize| {
        let both = known(part, number).zip(known(first, number));
        both.is_some_and(|(seen, wanted)| seen != wanted)
    };
    let found = shards.find(|(number, _)| differs(*number));
    found.map(|(_, shard)| shard.path.clone())
}
