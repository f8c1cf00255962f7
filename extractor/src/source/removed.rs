//! Shards that are removed once their bytes are in packs: which files that means, and what stands in
//! for a shard afterwards.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use segpack_formats::digest::Sha256;
use segpack_formats::io::{InputFile, ReadAt, Stamp, sync_folder};
use segpack_formats::{FormatError, Result};

#[cfg(feature = "remote")]
use crate::work::lock;

use super::{Checkpoint, CheckpointShard, SourceError};

/// A shard that an earlier run packed and removed.
#[derive(Debug, Clone)]
pub(crate) struct RemovedShard {
    /// Path relative to the checkpoint.
    pub path: String,
    /// Its first bytes, up to the first tensor.
    pub header: Vec<u8>,
    /// Bytes that it had.
    pub length: u64,
    /// What the hub says of it.
    pub hub_sha256: Option<Sha256>,
    /// What identified it.
    pub state: String,
    /// Those of its bytes that were in no finished pack, where they can be read.
    pub kept: Option<KeptBytes>,
}

/// Ranges of a removed shard, one after another in a file.
#[derive(Debug, Clone)]
pub(crate) struct KeptBytes {
    /// The file.
    pub input: Arc<InputFile>,
    /// First and one-past-last byte of each range in the shard.
    pub ranges: Vec<(u64, u64)>,
}

impl KeptBytes {
    /// Where in the file these bytes of the shard lie, which are in one of the ranges.
    fn locate(&self, range: &Range<u64>) -> Option<u64> {
        let mut at = 0;
        for &(start, end) in &self.ranges {
            if start <= range.start && range.end <= end {
                return Some(at + (range.start - start));
            }
            at += end - start;
        }
        None
    }
}

/// What is left of a removed shard: its header, its length, and what was kept of its bytes.
#[derive(Debug)]
pub(crate) struct RemovedFile {
    path: PathBuf,
    header: Vec<u8>,
    length: u64,
    kept: Option<KeptBytes>,
}

impl RemovedFile {
    /// Stands in for the file at `path`, which had this `header` and this many bytes.
    pub(crate) fn new(
        path: PathBuf,
        header: Vec<u8>,
        length: u64,
        kept: Option<KeptBytes>,
    ) -> Self {
        Self {
            path,
            header,
            length,
            kept,
        }
    }

    /// Whether these bytes, which are none of its header's, can be read.
    pub(crate) fn has(&self, range: &Range<u64>) -> bool {
        let kept = self.kept.as_ref();
        range.is_empty() || kept.is_some_and(|kept| kept.locate(range).is_some())
    }
}

impl CheckpointShard {
    /// Where its bytes are: in what was kept of it, in its copy on this machine, or in its file.
    pub(crate) fn bytes(&self) -> Arc<dyn ReadAt> {
        if let Some(left) = self.gone.get() {
            return Arc::clone(left) as Arc<dyn ReadAt>;
        }
        #[cfg(feature = "remote")]
        if let Some(local) = self.remote.as_ref().and_then(|r| lock(&r.local).clone()) {
            return local;
        }
        Arc::clone(&self.shard.input)
    }

    /// Whether these bytes, which are none of its header's, can be read.
    pub(crate) fn has(&self, range: &Range<u64>) -> bool {
        self.gone.get().is_none_or(|left| left.has(range))
    }
}

impl ReadAt for RemovedFile {
    fn name(&self) -> &Path {
        &self.path
    }

    fn stamp(&self) -> Stamp {
        Stamp::of_length(self.length)
    }

    fn read_at(&self, to: &mut [u8], offset: u64) -> Result<()> {
        let from = usize::try_from(offset).ok();
        let header = from.and_then(|from| self.header.get(from..from.checked_add(to.len())?));
        if let Some(header) = header {
            to.copy_from_slice(header);
            return Ok(());
        }
        let range = offset..offset.saturating_add(to.len() as u64);
        let place = |kept: &KeptBytes| Some((Arc::clone(&kept.input), kept.locate(&range)?));
        let Some((input, at)) = self.kept.as_ref().and_then(place) else {
            let what = "was removed after it was packed, but its bytes are needed again";
            return Err(FormatError::changed(&self.path, what));
        };
        input.read_at(to, at)
    }

    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// The files that go when a shard is removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Removable {
    /// The file with its bytes.
    file: PathBuf,
    /// The link in the snapshot of a hub cache that leads to it.
    link: Option<PathBuf>,
}

impl Removable {
    /// Removes the file of a shard, which has to be the one that was read; then the link to it.
    ///
    /// # Errors
    /// `Changed` where it is not; `Io`.
    pub(crate) fn remove(&self, read: &dyn ReadAt) -> Result<()> {
        read.check_unchanged()?;
        // the path may lead to another file now than when it was opened
        if InputFile::open(&self.file)?.stamp() != read.stamp() {
            let what = "is not the file that was packed; it stays";
            return Err(FormatError::changed(&self.file, what));
        }
        remove_file(&self.file)?;
        // an open file keeps its space
        read.close();
        match &self.link {
            Some(link) => remove_file(link),
            None => Ok(()),
        }
    }
}

fn remove_file(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(FormatError::io("remove", path))?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

impl Checkpoint {
    /// What to remove so that a shard is gone and its space is free.
    ///
    /// # Errors
    /// `Kept` where that would take something else away, or free nothing.
    pub(crate) fn removable(
        &self,
        shard: &CheckpointShard,
    ) -> std::result::Result<Removable, SourceError> {
        let path = self.root.join(&shard.path);
        let kept = |why: String| SourceError::Kept {
            path: path.clone(),
            why,
        };
        let root = real(&self.root)?;
        let folder = real(path.parent().unwrap_or(&self.root))?;
        if !folder.starts_with(&root) {
            return Err(kept("its folder is a link".to_owned()));
        }
        let metadata = path
            .symlink_metadata()
            .map_err(FormatError::io("inspect", &path))?;
        let removable = if metadata.is_symlink() {
            let file = real(&path)?;
            if !is_blob_of(&file, &root) {
                return Err(kept("it is a link, and not one of a hub cache".to_owned()));
            }
            if let Some(other) = other_link(&file, &root, &folder.join(name_of(&path)))? {
                let other = other.display();
                return Err(kept(format!("{other} is a link to the same file")));
            }
            Removable {
                file,
                link: Some(path.clone()),
            }
        } else {
            Removable {
                file: path.clone(),
                link: None,
            }
        };
        if names_of(&removable.file)? > 1 {
            let why = "it has another name (a hard link), so that removing it frees nothing";
            return Err(kept(why.to_owned()));
        }
        Ok(removable)
    }

    /// Removes the links to removed shards that an interrupted run left.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn remove_dangling_links(&self) -> Result<()> {
        for shard in self.shards.iter().filter(|s| s.removed.is_some()) {
            let path = self.root.join(&shard.path);
            if path.is_symlink() {
                remove_file(&path)?;
            }
        }
        Ok(())
    }
}

fn real(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(FormatError::io("open", path))
}

fn name_of(path: &Path) -> &std::ffi::OsStr {
    path.file_name().unwrap_or_default()
}

/// Whether a file is a blob of the hub cache that the checkpoint at `root` is a snapshot of.
fn is_blob_of(file: &Path, root: &Path) -> bool {
    let repo = repo_of(root);
    repo.is_some_and(|repo| file.parent() == Some(&repo.join("blobs")))
}

/// The folder of a repo in a hub cache, given one of its snapshots.
fn repo_of(snapshot: &Path) -> Option<&Path> {
    let snapshots = snapshot.parent()?;
    (snapshots.file_name()? == "snapshots").then(|| snapshots.parent())?
}

/// Another link of any snapshot of the repo to the same blob.
fn other_link(blob: &Path, root: &Path, own: &Path) -> Result<Option<PathBuf>> {
    let Some(snapshots) = root.parent() else {
        return Ok(None);
    };
    for entry in walkdir::WalkDir::new(snapshots) {
        let Ok(entry) = entry else { continue };
        let path = entry.path();
        let is_other = entry.path_is_symlink() && path != own;
        if is_other && path.canonicalize().is_ok_and(|real| real == blob) {
            return Ok(Some(path.to_owned()));
        }
    }
    Ok(None)
}

/// How many names a file has.
fn names_of(path: &Path) -> Result<u64> {
    let metadata = fs::metadata(path).map_err(FormatError::io("inspect", path))?;
    #[cfg(unix)]
    let names = std::os::unix::fs::MetadataExt::nlink(&metadata);
    #[cfg(not(unix))]
    let names = u64::from(metadata.is_file());
    Ok(names)
}
