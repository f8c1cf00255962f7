//! A checkpoint: which files belong to it, and the headers of its shards.
//!
//! Where the bytes come from knows its [`Store`]: shards and side files are read through [`ReadAt`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
#[cfg(feature = "remote")]
use std::sync::Mutex;
use std::sync::{Arc, OnceLock};

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256;
#[cfg(feature = "remote")]
use segpack_formats::io::InputFile;
use segpack_formats::io::ReadAt;
use segpack_formats::safetensors::{Shard, ShardIndex, check_relative_path};
use segpack_formats::strict_json::UniqueEntries;
use segpack_manifests::documents::{Finding, FindingKind, LeftOut, Provenance, SideFile};
use segpack_manifests::folder::{PARTIAL, SHARD_HEADERS, max_source_bytes};
use segpack_manifests::quantization::{self, ANNOUNCEMENTS};
use serde_json::Value;
use walkdir::{DirEntry, WalkDir};

use super::extra::{self, Extra, is_weight_file, left_out};
use super::place::{RemotePlace, WhyNot, no_place};
use super::provenance::DOWNLOAD_RECORDS;
#[cfg(feature = "remote")]
use super::remote;
#[cfg(feature = "remote")]
use super::remote::{Remote, RemoteFile};
use super::removed::{RemovedFile, RemovedShard};
use super::store::{Store, StoredShard};
use super::{SourceError, hub_cache, place};
use crate::causes::{chain, without_path};
use crate::work::Job;
#[cfg(feature = "remote")]
use crate::work::lock;

const INDEX_ENDING: &str = ".safetensors.index.json";
const CONFIG: &str = "config.json";
/// All weights in one file, which needs no index.
const WHOLE: &str = "model.safetensors";

/// Folders of tools, not of the checkpoint.
const LEFT_OUT: [(&str, &str); 2] = [(".git", "version control"), (".cache", "download records")];

/// Names at the top of a checkpoint that its pack, or the unpacked copy, uses itself.
const RESERVED: [&str; 2] = [SHARD_HEADERS, PARTIAL];

/// What to do with things that do not belong.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OpenOptions<'a> {
    /// What to do with weight files that the index does not name.
    pub extra: Extra,
    /// Shards that are not there any more because they are packed.
    pub removed: &'a [RemovedShard],
}

/// One weight file.
#[derive(Debug)]
pub(crate) struct CheckpointShard {
    /// Path relative to the checkpoint.
    pub path: String,
    /// The open file and its header.
    pub shard: Shard,
    /// What the hub says of it.
    pub hub_sha256: Option<Sha256>,
    /// What identified it, where it was not there any more when it was opened: an earlier run packed
    /// and removed it.
    pub removed: Option<String>,
    /// What stands in for its file once that is removed.
    pub gone: OnceLock<Arc<RemovedFile>>,
    /// Where it is on a server, the same bytes as those of `shard`.
    #[cfg(feature = "remote")]
    pub remote: Option<Fetched>,
}

/// A shard of a server, and its copy on this machine while there is one.
#[cfg(feature = "remote")]
#[derive(Debug)]
pub(crate) struct Fetched {
    /// On the server.
    pub file: Arc<RemoteFile>,
    /// On this machine, as long as it is needed.
    pub(super) local: Mutex<Option<Arc<InputFile>>>,
}

#[cfg(feature = "remote")]
impl Fetched {
    /// There is a copy on this machine from here on, or none any more; returns the one before.
    pub(crate) fn set(&self, copy: Option<Arc<InputFile>>) -> Option<Arc<InputFile>> {
        std::mem::replace(&mut *lock(&self.local), copy)
    }
}

/// A checkpoint whose headers have been read.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    /// Its folder or its address, as messages name it.
    pub root: PathBuf,
    /// Where its files are.
    pub store: Store,
    /// Where it came from.
    pub provenance: Provenance,
    /// Weight files, sorted by path.
    pub shards: Vec<CheckpointShard>,
    /// Other files, sorted by path.
    pub files: Vec<SideFile>,
    /// What does not belong to it.
    pub left_out: Vec<LeftOut>,
    /// `model.safetensors.index.json`.
    pub index: Option<ShardIndex>,
    /// `config.json`.
    pub config: Option<Value>,
    /// Digests of the files that were read to find out what there is, by path.
    pub parsed: BTreeMap<String, Sha256>,
    /// Whether it is one weight file beside an index, which was not read.
    pub one_of_several: bool,
    /// What is wrong with the files so far.
    pub findings: Vec<Finding>,
    /// Why a file that may be sound could not be read.
    environment: Option<FormatError>,
}

/// Finds the checkpoint that an argument means: a folder, a weight file, a repo id in the local hub
/// cache.
///
/// # Errors
/// Where it is none of these.
fn locate(argument: &Path, removed: &[RemovedShard]) -> Result<PathBuf, SourceError> {
    if argument.is_dir() {
        if argument.join("snapshots").is_dir() && argument.join("refs").is_dir() {
            return hub_cache::snapshot_of(argument, None);
        }
        return Ok(argument.to_owned());
    }
    if argument.is_file() {
        let name = file_name(argument);
        if name.ends_with(".safetensors") {
            return Ok(argument.to_owned());
        }
        if name.ends_with(INDEX_ENDING) || name == CONFIG {
            return Ok(folder_of(argument).to_owned());
        }
        let what = "is not a checkpoint: wanted a folder or a .safetensors file";
        return Err(FormatError::malformed(argument, what).into());
    }
    let name = file_name(argument);
    if folder_of(argument).is_dir() && removed.iter().any(|r| r.path == name) {
        return Ok(argument.to_owned());
    }
    match fs::symlink_metadata(argument) {
        Ok(_) => {
            let what = "is neither a folder nor a file (a broken link?)";
            return Err(FormatError::malformed(argument, what).into());
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return Err(FormatError::io("open", argument)(e).into());
        }
        Err(_) => {}
    }
    match argument.to_str().and_then(hub_cache::parse_repo_id) {
        Some((repo, revision)) => hub_cache::find_snapshot(repo, revision),
        None => Err(SourceError::NotFound {
            path: argument.to_owned(),
        }),
    }
}

/// The folder that a file lies in.
fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

impl CheckpointShard {
    /// A shard of which the hub says nothing.
    pub(crate) fn of_input(path: &str, shard: Shard) -> Self {
        Self {
            path: path.to_owned(),
            shard,
            hub_sha256: None,
            removed: None,
            gone: OnceLock::new(),
            #[cfg(feature = "remote")]
            remote: None,
        }
    }
}

impl Checkpoint {
    /// Opens a checkpoint and reads the header of every shard. Whatever is wrong with it becomes a
    /// finding.
    ///
    /// # Errors
    /// Only where the argument means no checkpoint, or the folder cannot be listed.
    pub(crate) fn open(
        argument: &Path,
        options: OpenOptions<'_>,
        job: Job<'_>,
    ) -> Result<Self, SourceError> {
        let mut checkpoint = match place::parse(argument) {
            Some(place) => Self::open_place(argument, place, options, job),
            None => Self::open_path(argument, options),
        }?;
        match checkpoint.environment.take() {
            Some(e) => Err(e.into()),
            None => Ok(checkpoint),
        }
    }

    fn open_path(argument: &Path, options: OpenOptions<'_>) -> Result<Self, SourceError> {
        let path = locate(argument, options.removed)?;
        if path.is_dir() {
            Self::open_all(Store::Folder(path), options)
        } else {
            Self::open_file(&path, options.removed)
        }
    }

    #[cfg(feature = "remote")]
    fn open_place(
        argument: &Path,
        place: Result<RemotePlace, WhyNot>,
        options: OpenOptions<'_>,
        job: Job<'_>,
    ) -> Result<Self, SourceError> {
        let place = place.map_err(|why| no_place(argument, why))?;
        if remote::is_offline() {
            return match &place {
                // as Hugging Face's own client does
                RemotePlace::Hub { repo, revision } => {
                    let folder = hub_cache::find_snapshot(repo, revision.as_deref())?;
                    Self::open_all(Store::Folder(folder), options)
                }
                RemotePlace::Folder(_) | RemotePlace::Objects(_) => Err(SourceError::Offline {
                    place: argument.to_owned(),
                }),
            };
        }
        let remote = Remote::open(&place, job)?;
        let requests = remote.requests();
        requests.watched(job, || Self::open_all(Store::Remote(remote), options))?
    }

    #[cfg(not(feature = "remote"))]
    fn open_place(
        argument: &Path,
        place: Result<RemotePlace, WhyNot>,
        _: OpenOptions<'_>,
        _: Job<'_>,
    ) -> Result<Self, SourceError> {
        place.map_err(|why| no_place(argument, why))?;
        Err(SourceError::WithoutRemote {
            place: argument.to_owned(),
        })
    }

    /// Does something that reads it. Once `job` is to stop nobody waits for a server any more.
    ///
    /// # Errors
    /// `Interrupted`, where it is on a server; what `work` returns.
    pub(crate) fn watched<T, E: From<FormatError>>(
        &self,
        job: Job<'_>,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        self.store.watched(job, work)?
    }

    /// [`watched`](Self::watched), for work that leaves something behind: what is done by then is done,
    /// although the user wanted to stop.
    ///
    /// # Errors
    /// As [`watched`](Self::watched).
    pub(crate) fn watched_writing<T, E: From<FormatError>>(
        &self,
        job: Job<'_>,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let mut done = Err(FormatError::Interrupted.into());
        let watched = self.store.watched(job, || done = work());
        if done.is_err() {
            watched?;
        }
        done
    }

    /// Nobody waits for a server any more once `job` is to stop.
    pub(crate) fn end_with(&self, job: Job<'static>) {
        self.store.end_with(job);
    }

    /// Opens one of its files.
    ///
    /// # Errors
    /// `Io`, `Malformed`; of a server what reading it says.
    pub(crate) fn open_file_at(&self, path: &str) -> Result<Arc<dyn ReadAt>, FormatError> {
        self.store.open_file(path)
    }

    /// The folder that no output may be in; `None` where it is not on this machine.
    pub(crate) fn local_folder(&self) -> Option<&Path> {
        self.store.folder()
    }

    /// Every file of it that is on this machine, which no output may replace.
    pub(crate) fn local_paths(&self) -> Vec<PathBuf> {
        if self.local_folder().is_none() {
            return Vec::new();
        }
        let there = self.shards.iter().filter(|s| s.removed.is_none());
        there
            .map(|s| &s.path)
            .chain(self.files.iter().map(|f| &f.path))
            .map(|path| self.root.join(path))
            .collect()
    }

    /// A checkpoint whose shards are put together from others; its other files lie in `root`.
    pub(crate) fn assembled(
        root: &Path,
        shards: Vec<CheckpointShard>,
        files: Vec<SideFile>,
    ) -> Self {
        let mut checkpoint = Self::empty(Store::Folder(root.to_owned()));
        let names: BTreeSet<String> = files.iter().map(|f| f.path.clone()).collect();
        (checkpoint.shards, checkpoint.files) = (shards, files);
        checkpoint.read_index(&names);
        checkpoint.read_config();
        checkpoint
    }

    /// A checkpoint of which nothing but its origin is known.
    fn empty(store: Store) -> Self {
        let provenance = store.provenance();
        let mut checkpoint = Self {
            root: store.root().to_owned(),
            store,
            provenance: Provenance::default(),
            shards: Vec::new(),
            files: Vec::new(),
            left_out: Vec::new(),
            index: None,
            config: None,
            parsed: BTreeMap::new(),
            one_of_several: false,
            findings: Vec::new(),
            environment: None,
        };
        match provenance {
            Ok(provenance) => checkpoint.provenance = provenance,
            Err(e) => {
                let finding = Finding::new(FindingKind::Unreadable).file(DOWNLOAD_RECORDS);
                let finding = finding.seen(chain(&e));
                checkpoint.not_usable(e, finding);
            }
        }
        checkpoint
    }

    /// A weight file on its own; `config.json` beside it belongs to it where no index says
    /// otherwise.
    fn open_file(path: &Path, removed: &[RemovedShard]) -> Result<Self, SourceError> {
        let root = folder_of(path);
        let mut checkpoint = Self::empty(Store::Folder(root.to_owned()));
        checkpoint.open_shard(&file_name(path), removed);
        let mut has_config = false;
        for entry in fs::read_dir(root).map_err(FormatError::io("list", root))? {
            let name = entry.map_err(FormatError::io("list", root))?.file_name();
            let name = name.to_string_lossy();
            checkpoint.one_of_several |= name.ends_with(INDEX_ENDING);
            has_config |= name == CONFIG;
        }
        if !checkpoint.one_of_several && has_config {
            checkpoint.add_file(CONFIG);
            checkpoint.read_config();
        }
        Ok(checkpoint)
    }

    fn open_all(store: Store, options: OpenOptions<'_>) -> Result<Self, SourceError> {
        let mut checkpoint = Self::empty(store);
        let files = checkpoint.list(options.removed)?;
        checkpoint.read_index(&files);
        let weights: Vec<&String> = files.iter().filter(|f| is_weight_file(f)).collect();
        let shards = checkpoint.choose_shards(&weights);
        for shard in &shards {
            if files.contains(shard) {
                checkpoint.open_shard(shard, options.removed);
            } else {
                checkpoint.report_missing_shard(shard, &files);
            }
        }
        let others = files.iter().filter(|f| !shards.contains(*f)).cloned();
        let (extra, others): (Vec<_>, Vec<_>) = others.partition(|f| is_weight_file(f));
        others.iter().for_each(|file| checkpoint.add_file(file));
        checkpoint.take_extra(&extra, options.extra);
        checkpoint.read_config();
        Ok(checkpoint)
    }

    /// All files, as sorted relative paths.
    fn list(&mut self, removed: &[RemovedShard]) -> Result<BTreeSet<String>, SourceError> {
        let files = match &self.store {
            Store::Folder(_) => self.list_folder(removed),
            #[cfg(feature = "remote")]
            Store::Remote(remote) => {
                let paths = remote.paths().cloned().collect();
                self.checked_paths(paths)
            }
        };
        let reserved = |f: &&String| RESERVED.iter().any(|r| f.split('/').next() == Some(r));
        if let Some(file) = files.iter().find(reserved) {
            return Err(SourceError::ReservedName {
                root: self.root.clone(),
                file: file.clone(),
                reserved: &RESERVED,
            });
        }
        Ok(files)
    }

    /// The paths that a server lists, but for those that a pack could not hold and folders of tools.
    #[cfg(feature = "remote")]
    fn checked_paths(&mut self, listed: Vec<String>) -> BTreeSet<String> {
        let mut files = BTreeSet::new();
        let mut left_out = BTreeSet::new();
        for path in listed {
            let parts = path.split('/').collect::<Vec<_>>();
            let tool = (0..parts.len()).find_map(|n| {
                let mut known = LEFT_OUT.iter().filter(|_| n + 1 < parts.len());
                let (_, why) = known.find(|(name, _)| parts[n] == *name)?;
                Some((parts[..=n].join("/"), *why))
            });
            match (check_relative_path(&path), tool) {
                (Err(why), _) => self.unreadable(path, why),
                (Ok(()), Some(tool)) => {
                    left_out.insert(tool);
                }
                (Ok(()), None) => {
                    files.insert(path);
                }
            }
        }
        for (path, why) in left_out {
            let why = why.to_owned();
            self.left_out.push(LeftOut { path, why });
        }
        files
    }

    /// All files below the folder.
    fn list_folder(&mut self, removed: &[RemovedShard]) -> BTreeSet<String> {
        let mut files: BTreeSet<String> = removed.iter().map(|r| r.path.clone()).collect();
        let mut left_out = Vec::new();
        let walk = WalkDir::new(&self.root)
            .follow_links(true)
            .sort_by_file_name()
            .into_iter();
        // folders of tools are listed, but not entered
        let walk = walk.filter_entry(|entry| match why_left_out(entry) {
            Some(why) => {
                left_out.push((entry.path().to_owned(), why));
                false
            }
            None => true,
        });
        for entry in walk {
            match entry {
                Ok(entry) if entry.file_type().is_dir() => {}
                Ok(entry) => match self.relative(entry.path()) {
                    Ok(path) if entry.file_type().is_file() => {
                        files.insert(path);
                    }
                    Ok(path) => self.unreadable(path, "is neither a file nor a folder"),
                    Err((path, why)) => self.unreadable(path, why),
                },
                Err(e) => {
                    let path = e.path().unwrap_or(&self.root).to_owned();
                    let path = self.relative(&path).unwrap_or_else(|(path, _)| path);
                    if files.contains(&path) {
                        continue; // the link to a removed shard
                    }
                    let why = e.to_string();
                    match e.into_io_error() {
                        Some(e) => self.not_read(path, e),
                        None => self.unreadable(path, &why),
                    }
                }
            }
        }
        for (path, why) in left_out {
            let path = self.relative(&path).unwrap_or_else(|(path, _)| path);
            self.left_out.push(LeftOut {
                path,
                why: why.to_owned(),
            });
        }
        files
    }

    /// The path below the root, with `/` on every system; an error where a pack could not hold it.
    fn relative(&self, path: &Path) -> Result<String, (String, &'static str)> {
        let below = path.strip_prefix(&self.root).unwrap_or(path);
        let parts: Vec<_> = below.iter().map(|p| p.to_string_lossy()).collect();
        let joined = parts.join("/");
        if below.to_str().is_none() {
            return Err((joined, "the file name is not UTF-8; rename it"));
        }
        match check_relative_path(&joined) {
            Ok(()) => Ok(joined),
            Err(why) => Err((joined, why)),
        }
    }

    /// A file that cannot be read: the environment's fault ends the opening, any other is a finding.
    fn not_read(&mut self, path: String, error: io::Error) {
        let finding = Finding::new(FindingKind::Unreadable).file(&path);
        let finding = finding.seen(&error);
        let error = FormatError::io("read", self.root.join(path))(error);
        self.not_usable(error, finding);
    }

    /// A file that cannot be opened, as [`not_read`](Self::not_read).
    fn not_opened(&mut self, path: &str, error: FormatError) {
        let finding = Finding::new(FindingKind::Unreadable).file(path);
        let finding = finding.seen(reason(&error));
        self.not_usable(error, finding);
    }

    /// What failed with this error: the environment's fault ends the opening, any other is
    /// `finding`.
    fn not_usable(&mut self, error: FormatError, finding: Finding) {
        if error.is_environment() {
            self.environment.get_or_insert(error);
        } else {
            self.findings.push(finding);
        }
    }

    fn unreadable(&mut self, path: String, why: &str) {
        self.findings
            .push(Finding::new(FindingKind::Unreadable).file(path).seen(why));
    }

    fn malformed_index(&mut self, file: &str, what: &str) {
        let finding = Finding::new(FindingKind::MalformedIndex);
        self.findings.push(finding.file(file).seen(what));
    }

    fn read_index(&mut self, files: &BTreeSet<String>) {
        let named: Vec<&String> = files
            .iter()
            .filter(|f| f.ends_with(INDEX_ENDING) && !f.contains('/'))
            .collect();
        match &named[..] {
            [] => {}
            [file] => match self.store.read_limited(file, max_source_bytes(file)) {
                Err(e) => {
                    let finding = Finding::new(FindingKind::MalformedIndex).file(*file);
                    let finding = finding.seen(reason(&e));
                    self.not_usable(e, finding);
                }
                Ok(json) => {
                    self.parsed.insert((*file).clone(), Sha256::of(&json));
                    match ShardIndex::parse(&json) {
                        Ok(index) => self.index = Some(index),
                        Err(e) => self.malformed_index(file, &chain(&e)),
                    }
                }
            },
            [file, others @ ..] => {
                let what = format!(
                    "is one of {} indexes, beside {:?}; wanted one",
                    others.len() + 1,
                    others
                );
                self.malformed_index(file, &what);
            }
        }
    }

    /// The shards that the index names; without one, the only weight file.
    fn choose_shards(&mut self, weights: &[&String]) -> BTreeSet<String> {
        if let Some(index) = &self.index {
            return index.shards().into_iter().map(str::to_owned).collect();
        }
        let safetensors: Vec<&String> = weights
            .iter()
            .copied()
            .filter(|w| w.ends_with(".safetensors") && !w.contains('/'))
            .collect();
        match &safetensors[..] {
            [] => {
                let what = "no .safetensors file and no index: not a checkpoint, or its download never began";
                self.findings
                    .push(Finding::new(FindingKind::MissingShard).seen(what));
                BTreeSet::new()
            }
            [only] => BTreeSet::from([(*only).clone()]),
            // transformers and vLLM read no other file then
            several if several.iter().any(|s| *s == WHOLE) => BTreeSet::from([WHOLE.to_owned()]),
            _ if self
                .findings
                .iter()
                .any(|f| f.kind == FindingKind::MalformedIndex) =>
            {
                safetensors.into_iter().cloned().collect()
            }
            several => {
                let what = format!(
                    "{} weight files, but no index says which belong together",
                    several.len()
                );
                let wanted = "model.safetensors.index.json";
                self.findings.push(
                    Finding::new(FindingKind::MalformedIndex)
                        .seen(what)
                        .wanted(wanted),
                );
                several.iter().map(|s| (*s).clone()).collect()
            }
        }
    }

    fn open_shard(&mut self, path: &str, removed: &[RemovedShard]) {
        let full = self.root.join(path);
        let removed = removed.iter().find(|r| r.path == path && !full.exists());
        let opened = match removed {
            Some(removed) => CheckpointShard::removed(full, removed),
            None => self
                .store
                .open_shard(path)
                .and_then(|stored| CheckpointShard::open(path, stored)),
        };
        match opened {
            Ok(mut shard) => {
                if removed.is_none() {
                    shard.hub_sha256 = self.published_sha256(path);
                }
                self.shards.push(shard);
            }
            Err(e) => {
                let finding = Finding::new(FindingKind::MalformedShard).file(path);
                let finding = finding.seen(without_path(&e));
                self.not_usable(e, finding);
            }
        }
    }

    /// The digest that the hub publishes for a file; a record that cannot be read is a finding.
    fn published_sha256(&mut self, path: &str) -> Option<Sha256> {
        self.store.published_sha256(path).unwrap_or_else(|e| {
            let why = format!("what the hub publishes of it: {}", chain(&e));
            let finding = Finding::new(FindingKind::Unreadable).file(path);
            self.not_usable(e, finding.seen(why));
            None
        })
    }

    fn report_missing_shard(&mut self, shard: &str, files: &BTreeSet<String>) {
        let unfinished = files
            .iter()
            .find(|f| f.starts_with(shard) && f.ends_with(".incomplete"));
        let what = match unfinished {
            Some(file) => {
                format!("the index names it, but there is only {file}: the download did not finish")
            }
            None => "the index names it, but it is not there".to_owned(),
        };
        self.findings.push(
            Finding::new(FindingKind::MissingShard)
                .file(shard)
                .seen(what),
        );
    }

    /// Takes weight files that the index does not name as it was asked to.
    fn take_extra(&mut self, files: &[String], what: Extra) {
        if files.is_empty() {
            return;
        }
        match what {
            Extra::Refuse => {}
            Extra::Keep => files.iter().for_each(|file| self.add_file(file)),
            Extra::Leave => self.left_out.extend(files.iter().map(|f| left_out(f))),
        }
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        self.left_out.sort_by(|a, b| a.path.cmp(&b.path));
        let tensors = self.shards.iter().flat_map(|s| &s.shard.header.tensors);
        let lengths: Vec<u64> = tensors.map(|t| t.length).collect();
        let has_index = self.index.is_some();
        let found = extra::findings(&self.store, files, &lengths, what, has_index);
        self.findings.extend(found);
    }

    fn add_file(&mut self, path: &str) {
        let length = match self.store.length(path) {
            Ok(length) => length,
            Err(e) => return self.not_opened(path, e),
        };
        match self.store.is_lfs_pointer(path, length) {
            Ok(false) => {}
            Ok(true) => {
                let what = "is a git-lfs pointer, not the file";
                self.findings.push(
                    Finding::new(FindingKind::GitLfsPointer)
                        .file(path)
                        .seen(what),
                );
            }
            Err(e) => self.not_opened(path, e),
        }
        let hub_sha256 = self.published_sha256(path);
        self.files.push(SideFile {
            path: path.to_owned(),
            length,
            hub_sha256,
        });
    }

    /// Adds what files beside `config.json` announce. One that cannot be used announces nothing.
    fn complete(&mut self, config: &mut Value) {
        for file in ANNOUNCEMENTS {
            if !matches!(self.store.has(file), Ok(true)) {
                continue;
            }
            let Ok(json) = self.store.read_limited(file, max_source_bytes(file)) else {
                continue;
            };
            self.parsed.insert(file.to_owned(), Sha256::of(&json));
            if let Ok(contents) = serde_json::from_slice(&json) {
                quantization::announce(config, file, &contents);
            }
        }
    }

    /// Goes on with another configuration than the checkpoint's own, about which nothing is said
    /// then.
    pub(crate) fn replace_config(&mut self, mut config: Value) {
        self.complete(&mut config);
        self.config = Some(config);
        self.findings
            .retain(|f| f.kind != FindingKind::BadConfig || f.file.as_deref() != Some(CONFIG));
    }

    fn read_config(&mut self) {
        match self.store.has(CONFIG) {
            Ok(true) => {}
            Ok(false) => return, // scan reports the missing audit
            Err(e) => return self.not_opened(CONFIG, e),
        }
        let json = match self.store.read_limited(CONFIG, max_source_bytes(CONFIG)) {
            Ok(json) => json,
            // `add_file` has reported what cannot be read at all
            Err(_)
                if self
                    .findings
                    .iter()
                    .any(|f| f.file.as_deref() == Some(CONFIG)) =>
            {
                return;
            }
            Err(e) => {
                let finding = Finding::new(FindingKind::Unreadable).file(CONFIG);
                let finding = finding.seen(reason(&e));
                return self.not_usable(e, finding);
            }
        };
        self.parsed.insert(CONFIG.to_owned(), Sha256::of(&json));
        match serde_json::from_slice::<UniqueEntries<Value>>(&json) {
            Ok(entries) => {
                let mut config = Value::Object(entries.0.into_iter().collect());
                self.complete(&mut config);
                self.config = Some(config);
            }
            Err(e) => {
                let what = format!("is not a JSON object: {e}");
                self.findings
                    .push(Finding::new(FindingKind::BadConfig).file(CONFIG).seen(what));
            }
        }
    }
}

impl CheckpointShard {
    /// Reads the header of a shard.
    fn open(path: &str, stored: StoredShard) -> Result<Self, FormatError> {
        Ok(Self {
            path: path.to_owned(),
            shard: Shard::open_from(stored.input)?,
            hub_sha256: None,
            removed: None,
            gone: OnceLock::new(),
            #[cfg(feature = "remote")]
            remote: stored.remote.map(|file| Fetched {
                file,
                local: Mutex::default(),
            }),
        })
    }

    /// A shard that an earlier run removed; it was at `full`.
    fn removed(full: PathBuf, removed: &RemovedShard) -> Result<Self, FormatError> {
        let RemovedShard {
            path,
            header,
            length,
            hub_sha256,
            state,
            kept,
        } = removed;
        let left = RemovedFile::new(full, header.clone(), *length, kept.clone());
        let left = Arc::new(left);
        Ok(Self {
            path: path.clone(),
            shard: Shard::open_from(Arc::clone(&left) as Arc<dyn ReadAt>)?,
            hub_sha256: *hub_sha256,
            removed: Some(state.clone()),
            gone: OnceLock::from(left),
            #[cfg(feature = "remote")]
            remote: None,
        })
    }
}

/// Why a file cannot be read, for a finding that names it.
fn reason(error: &FormatError) -> String {
    match error {
        FormatError::Io { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

/// Why a folder does not belong to the checkpoint, where it does not.
fn why_left_out(entry: &DirEntry) -> Option<&'static str> {
    let mut known = LEFT_OUT.iter().filter(|_| entry.depth() > 0);
    let (_, why) = known.find(|(name, _)| entry.file_name() == *name)?;
    Some(why)
}
