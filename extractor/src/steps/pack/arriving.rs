//! Packing while shards arrive from a server: there is never more than one of them on the disk.
//!
//! Each shard is fetched as a whole into `.partial`, digested, and compared with what the hub
//! publishes; only then is it read for packs. Those packs are written that need no later shard.
//! What later packs need of it is kept, as `--consume` keeps it, and the shard goes.
//!
//! The packs are written by the same code from the same bytes as those of a checkpoint on the disk.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use segpack_formats::FormatError;
use segpack_formats::digest::Sha256;
use segpack_formats::io::{InputFile, READ_BYTES, ReadAt};
use segpack_manifests::documents::{Finding, FindingKind, PackedFrom};

use super::kept::open_kept;
use super::share::Share;
use super::source::range_of;
use super::write::{Task, stored_header};
use super::{Planned, Work};
use crate::output::{Record, ShardDigests};
use crate::pack_writer::Recorder;
use crate::source::{
    CheckpointShard, Fetched, Fetching, KeptBytes, Remote, RemoteError, RemovedFile, Store, fetch,
    list_of,
};
use crate::steps::StepError;

/// Folder, below `.partial`, of the shard that is arriving.
const ARRIVING: &str = "arriving";
/// File, below `.partial`, with the commit that is packed.
const COMMIT: &str = "commit";

/// What is kept of shards that are gone, by number of the shard: the file, and the same to read.
type KeptFiles = BTreeMap<usize, (String, KeptBytes)>;

/// The server of a checkpoint that is on one.
pub(super) fn remote_of(planned: &Planned) -> Option<&Remote> {
    match &planned.checkpoint.store {
        Store::Folder(_) => None,
        Store::Remote(remote) => Some(remote),
    }
}

/// For each shard, the packs that are written once it is there: those that need it and no later one.
fn packs_by_last_shard((planned, share): (&Planned, &Share)) -> Vec<Vec<usize>> {
    let numbers = super::shard_numbers(&planned.checkpoint);
    let mut last = vec![Vec::new(); planned.checkpoint.shards.len().max(1)];
    let packs = planned.plan.packs.iter().enumerate();
    for (pack, planned) in packs.filter(|(_, p)| share.takes(&p.path)) {
        let tensors = planned.segments.iter().flat_map(|s| &s.tensors);
        let shards = tensors.filter_map(|t| numbers.get(t.source.file.as_str()));
        last[shards.max().copied().unwrap_or_default()].push(pack);
    }
    last
}

/// The most bytes that packing takes on the disk at any moment, where the packs that are to be
/// written have these lengths (those that are done, none).
pub(super) fn peak_bytes((planned, share): (&Planned, &Share), lengths: &[u64]) -> u64 {
    let numbers = super::shard_numbers(&planned.checkpoint);
    let mut written_after = vec![0; planned.plan.packs.len()];
    let by_shard = packs_by_last_shard((planned, share));
    for (shard, packs) in by_shard.iter().enumerate() {
        packs.iter().for_each(|pack| written_after[*pack] = shard);
    }
    // what each shard leaves behind for later packs
    let mut kept = vec![0_u64; planned.checkpoint.shards.len()];
    let packs = planned.plan.packs.iter().enumerate();
    for (number, pack) in packs.filter(|(_, p)| share.takes(&p.path)) {
        for tensor in pack.segments.iter().flat_map(|s| &s.tensors) {
            let shard = numbers.get(tensor.source.file.as_str()).copied();
            if let Some(shard) = shard.filter(|s| *s < written_after[number]) {
                kept[shard] += tensor.source.length;
            }
        }
    }
    let (mut there, mut peak) = (0_u64, 0_u64);
    for (number, shard) in planned.checkpoint.shards.iter().enumerate() {
        there += by_shard[number].iter().map(|p| lengths[*p]).sum::<u64>() + kept[number];
        let arrives = share.needs(number);
        peak = peak.max(there + u64::from(arrives) * shard.shard.input.length());
    }
    peak
}

impl Work<'_> {
    /// Refuses to go on with another commit than the one that was begun.
    ///
    /// # Errors
    /// `Moved`; `Io`.
    pub(super) fn pin(&self, remote: &Remote) -> Result<(), StepError> {
        let path = self.output.control(COMMIT);
        let name = remote.name.display().to_string();
        match fs::read_to_string(&path) {
            Ok(begun) if self.settings.resume && begun != name => {
                let what = format!("was {begun} when this pack was begun");
                let moved = RemoteError::Moved { url: name, what };
                Err(StepError::Source(moved.into()))
            }
            Ok(begun) if begun == name => Ok(()),
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(FormatError::io("read", &path)(e).into())
            }
            _ => Ok(fs::write(&path, name).map_err(FormatError::io("write", &path))?),
        }
    }

    /// Fetches each shard that is needed, and does every task that is not done.
    pub(super) fn write_arriving(&self, recorder: &Recorder<'_>) -> Result<(), StepError> {
        let checkpoint = &self.planned.checkpoint;
        let files: Vec<Task<'_>> = checkpoint.files.iter().map(Task::File).collect();
        self.run_group(&files, recorder)?;
        let mut kept = self.settle(recorder)?;
        let by_shard = packs_by_last_shard((self.planned, self.share));
        for (number, packs) in by_shard.into_iter().enumerate() {
            let all = packs.iter().map(|p| (*p, &self.planned.plan.packs[*p]));
            let missing = all.filter(|(_, pack)| !recorder.has_pack(&pack.path));
            let tasks: Vec<Task<'_>> = missing.map(|(p, pack)| Task::Pack(p, pack)).collect();
            let shard = checkpoint.shards.get(number);
            let arrived = shard.and_then(|s| Some((s, s.remote.as_ref()?)));
            let is_wanted = self.share.needs(number);
            let arrived = arrived.filter(|(shard, _)| is_wanted && shard.gone.get().is_none());
            let Some((shard, fetched)) = arrived else {
                self.run_group(&tasks, recorder)?;
                continue;
            };
            self.job.progress.note(&format!(
                "shard {} of {}: {}",
                number + 1,
                checkpoint.shards.len(),
                shard.path
            ));
            let (path, digests) = self.arrive(shard, fetched, recorder)?;
            self.run_group(&tasks, recorder)?;
            kept.extend(
                self.pass(shard, fetched, &digests, recorder)?
                    .map(|k| (number, k)),
            );
            self.put_away(shard, &path)?;
            self.drop_unneeded(&mut kept, recorder)?;
        }
        Ok(())
    }

    /// Where a shard lies while it is needed.
    fn place_of(&self, shard: &CheckpointShard) -> PathBuf {
        let identity = format!("{} {:?}", shard.path, shard.shard.input.stamp());
        let name = Sha256::of(identity.as_bytes()).to_string();
        self.output.control(ARRIVING).join(name)
    }

    /// Shards of which an earlier run has left nothing to do: they are not fetched again.
    fn settle(&self, recorder: &Recorder<'_>) -> Result<KeptFiles, StepError> {
        let mut files = KeptFiles::new();
        for (number, shard) in self.planned.checkpoint.shards.iter().enumerate() {
            let is_written = |pack: &str| self.is_written(pack, recorder);
            let missing = self.proof.tensors_without(&shard.path, &is_written);
            let digests = recorder.shard(&shard.path).ok();
            if digests.is_none() {
                continue;
            }
            let kept = recorder.kept(&shard.path);
            let opened = kept.and_then(|kept| {
                let file = kept.file.clone();
                Some((file, open_kept(self.output.path(), kept)?))
            });
            let bytes = opened.as_ref().map(|(_, bytes)| bytes.clone());
            let left = self.left_of(shard, bytes)?;
            let has_all = missing.iter().all(|(_, t)| left.has(&range_of(t)));
            let damaged = has_all && self.is_damaged(&left, &missing, digests.as_ref())?;
            if has_all && !damaged {
                shard.gone.get_or_init(|| Arc::new(left));
                files.extend(opened.map(|opened| (number, opened)));
                self.remove_copy(&self.place_of(shard))?;
            }
        }
        Ok(files)
    }

    /// Whether what was kept is not what the shard was.
    fn is_damaged(
        &self,
        left: &RemovedFile,
        tensors: &[(usize, &segpack_manifests::documents::PlannedTensor)],
        digests: Option<&ShardDigests>,
    ) -> Result<bool, StepError> {
        for (number, tensor) in tensors {
            let wanted = digests.and_then(|d| d.tensors.get(*number).copied());
            let seen = self.digest_at(left, tensor.source.offset, tensor)?;
            if wanted != Some(seen) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn left_of(
        &self,
        shard: &CheckpointShard,
        kept: Option<KeptBytes>,
    ) -> Result<RemovedFile, StepError> {
        let input = &shard.shard.input;
        let header = input.read_range(0..shard.shard.header.data_start)?;
        let name = input.name().to_owned();
        Ok(RemovedFile::new(name, header, input.length(), kept))
    }

    /// Brings a shard to the disk, and compares its digest; where that is wrong, once more. Returns
    /// where it lies.
    fn arrive(
        &self,
        shard: &CheckpointShard,
        fetched: &Fetched,
        recorder: &Recorder<'_>,
    ) -> Result<(PathBuf, ShardDigests), StepError> {
        let mut again = false;
        loop {
            let path = self.bring(shard, fetched, again)?;
            fetched.set(Some(Arc::new(InputFile::open(&path)?)));
            let (header, digests) = self.digest_arrived(shard)?;
            let Some(wrong) = self.wrong_digest(shard, header, &digests, recorder)? else {
                self.proof.shard(&shard.path, &digests)?;
                self.record_digests(shard, &digests, recorder)?;
                return Ok((path, digests));
            };
            fetched.set(None);
            self.remove_copy(&self.place_of(shard))?;
            if again {
                return Err(StepError::Findings {
                    what: format!(
                        "{}: what arrived is not what is published; nothing of it was packed",
                        shard.path
                    ),
                    findings: vec![wrong],
                });
            }
            again = true;
            self.job.progress.note(&format!(
                "{}: bytes 0 to {} arrived with another digest than the published one; fetching \
                 it once again",
                shard.path,
                shard.shard.input.length()
            ));
        }
    }

    /// The copy that an earlier run kept, else one that is fetched now.
    fn bring(
        &self,
        shard: &CheckpointShard,
        fetched: &Fetched,
        again: bool,
    ) -> Result<PathBuf, StepError> {
        let length = shard.shard.input.length();
        let settings = &self.settings.fetch;
        let kept = settings.keep.as_ref().map(|dir| dir.join(&shard.path));
        if let Some(kept) = kept.filter(|_| !again)
            && fs::metadata(&kept).is_ok_and(|m| m.is_file() && m.len() == length)
        {
            return Ok(kept);
        }
        let path = self.place_of(shard);
        self.job.progress.start("fetching", length);
        let how = Fetching {
            connections: settings.connections,
            rate: settings.rate,
        };
        let done = fetch(&fetched.file, &path, how, self.job);
        self.job.progress.finish();
        done?;
        Ok(path)
    }

    fn digest_arrived(&self, shard: &CheckpointShard) -> Result<(Sha256, ShardDigests), StepError> {
        self.job
            .progress
            .start("digesting", shard.shard.input.length());
        let digests = self.digest(shard, &mut vec![0; READ_BYTES], &mut |_| {});
        self.job.progress.finish();
        digests
    }

    /// What is wrong with the digest of a shard that has arrived: it is not the published one, not
    /// that of an earlier run, or its header is not the one that the plan was made from.
    fn wrong_digest(
        &self,
        shard: &CheckpointShard,
        header: Sha256,
        digests: &ShardDigests,
        recorder: &Recorder<'_>,
    ) -> Result<Option<Finding>, StepError> {
        let seen = digests.sha256;
        let before = recorder.shard(&shard.path).ok().map(|d| d.sha256);
        let planned = recorder.file(&stored_header(&shard.path))?;
        let comparisons = [
            (shard.hub_sha256, seen, "as the hub publishes"),
            (before, seen, "as when it was fetched before"),
            (Some(planned), header, "of the header when it was planned"),
        ];
        let mut wrong = comparisons.into_iter().filter_map(|(wanted, seen, what)| {
            let wanted = wanted.filter(|wanted| *wanted != seen)?;
            let finding = Finding::new(FindingKind::DiffersFromHub).file(&shard.path);
            let finding = finding.bytes(0, shard.shard.input.length());
            let finding = finding.seen(format!("SHA-256 {seen}"));
            Some(finding.wanted(format!("{wanted}, {what}")))
        });
        Ok(wrong.next())
    }

    fn record_digests(
        &self,
        shard: &CheckpointShard,
        digests: &ShardDigests,
        recorder: &Recorder<'_>,
    ) -> Result<(), StepError> {
        let known = recorder.shard(&shard.path).ok();
        if self.settings.source_digests && known.as_ref() != Some(digests) {
            recorder.add(Record::Shard {
                path: shard.path.clone(),
                digests: digests.clone(),
            })?;
        }
        Ok(())
    }

    /// What later packs need of a shard is kept; from here on that stands in for it.
    fn pass(
        &self,
        shard: &CheckpointShard,
        fetched: &Fetched,
        digests: &ShardDigests,
        recorder: &Recorder<'_>,
    ) -> Result<Option<(String, KeptBytes)>, StepError> {
        let kept = self.keep(shard, digests, recorder)?;
        recorder.add(Record::Passed {
            path: shard.path.clone(),
            kept: kept.as_ref().map(|(ranges, _)| ranges.clone()),
        })?;
        let opened = kept.map(|(ranges, bytes)| (ranges.file, bytes));
        let bytes = opened.as_ref().map(|(_, bytes)| bytes.clone());
        let left = self.left_of(shard, bytes)?;
        shard.gone.get_or_init(|| Arc::new(left));
        if let Some(copy) = fetched.set(None) {
            copy.close(); // an open file keeps its space
        }
        Ok(opened)
    }

    /// Removes the copy of a shard, or moves it to where the user wants it.
    fn put_away(&self, shard: &CheckpointShard, path: &Path) -> Result<(), StepError> {
        if path != self.place_of(shard) {
            return Ok(()); // it is there already
        }
        if let Some(folder) = &self.settings.fetch.keep {
            let to = folder.join(&shard.path);
            let parent = to.parent().unwrap_or(folder);
            fs::create_dir_all(parent).map_err(FormatError::io("create", parent))?;
            move_file(path, &to)?;
        }
        self.remove_copy(path)
    }

    fn remove_copy(&self, path: &Path) -> Result<(), StepError> {
        for path in [path.to_owned(), list_of(path)] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(FormatError::io("remove", &path)(e).into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what was kept for packs that are written now.
    fn drop_unneeded(
        &self,
        kept: &mut KeptFiles,
        recorder: &Recorder<'_>,
    ) -> Result<(), StepError> {
        let shards = &self.planned.checkpoint.shards;
        let is_written = |pack: &str| self.is_written(pack, recorder);
        let is_needed = |number: &usize| {
            let path = &shards[*number].path;
            !self.proof.tensors_without(path, &is_written).is_empty()
        };
        let over: Vec<usize> = kept.keys().copied().filter(|n| !is_needed(n)).collect();
        for number in over {
            if let Some((file, bytes)) = kept.remove(&number) {
                bytes.input.close();
                self.output.remove(&file)?;
            }
        }
        Ok(())
    }
}

/// What a run asked of a server so far.
pub(super) fn packed_from(remote: &Remote) -> PackedFrom {
    use std::sync::atomic::Ordering::Relaxed;
    let counts = remote.counts();
    PackedFrom {
        place: remote.name.display().to_string(),
        requests: counts.requests.load(Relaxed),
        retries: counts.retries.load(Relaxed),
        received_bytes: counts.bytes.load(Relaxed),
    }
}

/// To another disk, if need be.
fn move_file(from: &Path, to: &Path) -> Result<(), FormatError> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            let unfinished = to.with_extension("unfinished");
            fs::copy(from, &unfinished)
                .and_then(|_| fs::rename(&unfinished, to))
                .map_err(FormatError::io("write", to))
        }
        moved => moved.map_err(FormatError::io("write", to)),
    }
}
