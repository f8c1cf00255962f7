//! A pack, opened for reading: a folder, or wherever else its files are.

mod files;
mod identity;
mod model;
pub(crate) mod paths;
mod reader;
mod source_file;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256;
use segpack_formats::io::ReadAt;

pub use files::{AlignedFile, LocalFiles, PackFiles};
pub use identity::{OpenOptions, Voucher, digest_in_list};
pub use model::{ModelError, PackModel, TextDecoder};
pub use paths::{
    MANIFEST, MAX_MANIFEST_BYTES, PACKS, PART, PARTIAL, SHARD_HEADERS, SIGNATURE, SOURCE, SUMS,
};
pub use reader::{PackCursor, PackReader};
pub use source_file::{max_source_bytes, shard_header, source_file, stored_file};

use crate::documents::{
    Manifest, ManifestError, PartManifest, PartShare, SegmentEntry, TensorEntry,
};
use crate::name_index::NameIndex;

/// Why a pack folder cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// A file cannot be read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The folder has no manifest.
    #[error("{} {why}", folder.display())]
    NotAPack {
        /// The folder.
        folder: PathBuf,
        /// What it is instead.
        why: NotAPack,
    },
    /// The manifest cannot be used.
    #[error("cannot use {}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// Why not.
        source: ManifestError,
    },
    /// The manifest is not the one that somebody vouches for.
    #[error("{} has SHA-256 {seen}, wanted {wanted}, {by}", path.display())]
    Identity {
        /// The manifest.
        path: PathBuf,
        /// Its SHA-256.
        seen: Sha256,
        /// The one that it should have.
        wanted: Sha256,
        /// Who says so.
        by: Voucher,
    },
}

/// What a folder without a manifest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAPack {
    /// A pack that is being written, or that an interrupted run left.
    Unfinished,
    /// A checkpoint.
    Checkpoint,
    /// What one of many machines packed.
    Part,
    /// A whole pack, where a part was wanted.
    Whole,
    /// Anything else.
    NoManifest,
}

impl std::fmt::Display for NotAPack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unfinished => "holds an unfinished pack (no manifest.json, but .partial)",
            Self::Checkpoint => "is a checkpoint, not a pack (no manifest.json)",
            Self::Part => "is a part of a pack, not a pack (part.json, but no manifest.json)",
            Self::Whole => "is a whole pack, not a part of one (manifest.json, but no part.json)",
            Self::NoManifest => "is not a pack: it has no manifest.json",
        })
    }
}

/// An open pack: its manifest, checked, and where to find things in it.
#[derive(Debug)]
pub struct Pack {
    files: Arc<dyn PackFiles>,
    /// The name of its document.
    document: &'static str,
    manifest: Manifest,
    manifest_sha256: Sha256,
    segments: NameIndex,
    tensors: NameIndex,
}

impl Pack {
    /// Opens a folder by its manifest. Packs themselves are not touched.
    ///
    /// # Errors
    /// `NotAPack` where there is no manifest, `Manifest` where it cannot be used, `Identity` where
    /// it is not the one in SHA256SUMS, `Format` where it cannot be read.
    pub fn open(folder: &Path) -> Result<Self, PackError> {
        Self::open_with(folder, OpenOptions::new())
    }

    /// Opens a folder by its manifest, which has to be what the options say.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(folder: &Path, options: OpenOptions) -> Result<Self, PackError> {
        if let Err(e) = fs::metadata(folder) {
            return Err(FormatError::io("open", folder)(e).into());
        }
        Self::open_at(Arc::new(LocalFiles::new(folder)), options)
    }

    /// Opens a pack by its manifest, which has to be what the options say, wherever its files are.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_at(files: Arc<dyn PackFiles>, options: OpenOptions) -> Result<Self, PackError> {
        let json = read_document(&*files, MANIFEST)?;
        // first: who names a manifest wants nothing of another to be believed
        let sha256 = Sha256::of(&json);
        options.check_wanted(files.root(), sha256)?;
        let manifest = Manifest::parse(&json).map_err(unusable(&*files, MANIFEST))?;
        options.check_listed(&*files, MANIFEST, sha256)?;
        Ok(Self::of(files, MANIFEST, manifest, sha256))
    }

    /// Opens what one of many machines packed, by its `part.json`, which has to be the one that its
    /// SHA256SUMS lists. The pack that is returned has the packs of that part alone.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_part(folder: &Path) -> Result<(Self, PartShare), PackError> {
        if let Err(e) = fs::metadata(folder) {
            return Err(FormatError::io("open", folder)(e).into());
        }
        let files = LocalFiles::new(folder);
        let json = read_document(&files, PART)?;
        let sha256 = Sha256::of(&json);
        OpenOptions::new().check_listed(&files, PART, sha256)?;
        let PartManifest {
            share, manifest, ..
        } = PartManifest::parse(&json).map_err(unusable(&files, PART))?;
        Ok((Self::of(Arc::new(files), PART, manifest, sha256), share))
    }

    fn of(
        files: Arc<dyn PackFiles>,
        document: &'static str,
        manifest: Manifest,
        manifest_sha256: Sha256,
    ) -> Self {
        let segments = NameIndex::of(&manifest.segments, |s| &s.id);
        let tensors = NameIndex::of(&manifest.tensors, |t| &t.name);
        Self {
            files,
            document,
            manifest,
            manifest_sha256,
            segments,
            tensors,
        }
    }

    /// The same pack, read through other files: such as a cache of those that it was opened with.
    #[must_use]
    pub fn read_through(self, files: Arc<dyn PackFiles>) -> Self {
        Self { files, ..self }
    }

    /// The folder, or the address, as messages name it.
    pub fn folder(&self) -> &Path {
        self.files.root()
    }

    /// The folder, where it is one of this machine.
    pub fn local(&self) -> Option<&Path> {
        self.files.local()
    }

    /// Where its files are.
    pub fn files(&self) -> &Arc<dyn PackFiles> {
        &self.files
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The name of the file that lists what the folder holds: [`MANIFEST`], or [`PART`] of a part.
    pub fn document(&self) -> &'static str {
        self.document
    }

    /// Whether it is what one of many machines packed.
    pub fn is_part(&self) -> bool {
        self.document == PART
    }

    /// Whether `SHA256SUMS` has to be there: a part always has it.
    pub fn has_sums(&self) -> bool {
        self.is_part() || self.manifest.options.sums
    }

    /// The text that `SHA256SUMS` has to have.
    pub fn sums_text(&self) -> String {
        let sha256 = self.manifest_sha256;
        self.manifest.sums_text_with(self.document, sha256)
    }

    /// SHA-256 of the manifest's file: the pack's identity.
    pub fn manifest_sha256(&self) -> Sha256 {
        self.manifest_sha256
    }

    /// The segment of this id.
    pub fn segment(&self, id: &str) -> Option<&SegmentEntry> {
        let all = &self.manifest.segments;
        self.segments.find(all, |s| &s.id, id).map(|i| &all[i])
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        let all = &self.manifest.tensors;
        self.tensors.find(all, |t| &t.name, name).map(|i| &all[i])
    }

    /// The slices of a tensor that the checkpoint stores stacked, in source order; empty where
    /// there is none.
    pub fn slices_of(&self, source_tensor: &str) -> Vec<&TensorEntry> {
        let mut slices: Vec<_> = self
            .manifest
            .tensors
            .iter()
            .filter(|t| t.source.tensor == source_tensor)
            .collect();
        slices.sort_by_key(|t| t.source.offset);
        slices
    }

    /// The path of a file that the manifest names, for messages.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder().join(relative)
    }

    /// Opens a file that the manifest names. No link in a folder is followed.
    ///
    /// # Errors
    /// As [`PackFiles::open`].
    pub fn open_file(&self, relative: &str) -> Result<Arc<dyn ReadAt>, FormatError> {
        self.files.open(relative)
    }

    /// [`open_file`](Self::open_file), to be read past the page cache where it is a file of this
    /// machine.
    ///
    /// # Errors
    /// As [`PackFiles::open`].
    pub fn open_direct(&self, relative: &str) -> Result<AlignedFile, FormatError> {
        self.files.open_direct(relative)
    }
}

/// Why the document of a pack cannot be used.
fn unusable(files: &dyn PackFiles, document: &str) -> impl FnOnce(ManifestError) -> PackError {
    let path = files.root().join(document);
    move |source| PackError::Manifest { path, source }
}

fn read_document(files: &dyn PackFiles, document: &str) -> Result<Vec<u8>, PackError> {
    let (folder, path) = (files.root(), files.root().join(document));
    if !files.has(document)? {
        return Err(PackError::NotAPack {
            folder: folder.to_owned(),
            why: what_it_is(files)?,
        });
    }
    let input = files.open(document)?;
    if input.length() > MAX_MANIFEST_BYTES {
        let what = format!(
            "has {} bytes, over the limit of {MAX_MANIFEST_BYTES}",
            input.length()
        );
        return Err(FormatError::malformed(&path, what).into());
    }
    Ok(input.read_range(0..input.length())?)
}

fn what_it_is(files: &dyn PackFiles) -> Result<NotAPack, FormatError> {
    Ok(if files.has(PART)? {
        NotAPack::Part
    } else if files.has(MANIFEST)? {
        NotAPack::Whole
    } else if files.has(PARTIAL)? {
        NotAPack::Unfinished
    } else if files.has("config.json")? {
        NotAPack::Checkpoint
    } else {
        NotAPack::NoManifest
    })
}
