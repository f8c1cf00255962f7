//! What `--consume` keeps of a shard that goes before every pack with bytes of it is written: the
//! tensors of those packs, one after another in a file of `.partial`, each with the digest that it
//! had when the shard was read as a whole.

use std::path::Path;
use std::sync::Arc;

use segpack_formats::FormatError;
use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{InputFile, READ_BYTES, ReadAt, write_all_at};
use segpack_manifests::documents::{Finding, FindingKind, PlannedTensor};

use super::Work;
use super::source::range_of;
use crate::output::{KeptRanges, OutputFolder, ShardDigests};
use crate::pack_writer::{Done, Recorder};
use crate::source::{CheckpointShard, KeptBytes};
use crate::steps::StepError;

/// Opens what an earlier run kept; `None` where it is not there, or not as long as it was.
pub(super) fn open_kept(out: &Path, kept: KeptRanges) -> Option<KeptBytes> {
    let KeptRanges { file, ranges } = kept;
    let input = InputFile::open_beneath(out, &file).ok()?;
    let lengths = ranges.iter().map(|(start, end)| end.checked_sub(*start));
    let length = lengths.sum::<Option<u64>>()?;
    (input.length() == length).then(|| KeptBytes {
        input: Arc::new(input),
        ranges,
    })
}

impl Work<'_> {
    /// Whether a pack needs no more bytes: it is written, or another part writes it.
    pub(super) fn is_written(&self, pack: &str, recorder: &Recorder<'_>) -> bool {
        !self.share.takes(pack) || recorder.has_pack(pack)
    }

    /// Copies the tensors of a shard whose packs are not written, syncs the copy and reads it back;
    /// `None` where there are none.
    ///
    /// # Errors
    /// `Malformed` where the copy is not what the shard was; `Io`; `Interrupted`.
    pub(super) fn keep(
        &self,
        shard: &CheckpointShard,
        digests: &ShardDigests,
        recorder: &Recorder<'_>,
    ) -> Result<Option<(KeptRanges, KeptBytes)>, StepError> {
        let is_written = |pack: &str| self.is_written(pack, recorder);
        let tensors = self.proof.tensors_without(&shard.path, &is_written);
        if tensors.is_empty() {
            return Ok(None);
        }
        let ranges = tensors.iter().map(|(_, tensor)| range_of(tensor));
        let ranges: Vec<(u64, u64)> = ranges.map(|range| (range.start, range.end)).collect();
        // another choice of tensors is another file: what the journal said before stays true
        let name = Sha256::of(format!("{} {ranges:?}", shard.path).as_bytes());
        let file = OutputFolder::kept(&name.to_string());
        self.copy_ranges(shard, &ranges, &file)?;

        // from the drive, not from the page cache
        let input = InputFile::open_beneath(self.output.path(), &file)?;
        input.forget();
        let kept = KeptBytes {
            input: Arc::new(input),
            ranges: ranges.clone(),
        };
        let mut at = 0;
        for (number, tensor) in tensors {
            let wanted = digests.tensors.get(number).copied();
            let seen = self.digest_at(&*kept.input, at, tensor)?;
            at += tensor.source.length;
            if wanted != Some(seen) {
                let what = format!(
                    "read back after it was copied, {:?} has SHA-256 {seen}, not that of the shard: \
                     the drive or the memory of this machine may be failing; no more of the source \
                     is removed",
                    tensor.name
                );
                return Err(FormatError::malformed(kept.input.path(), what).into());
            }
        }
        Ok(Some((KeptRanges { file, ranges }, kept)))
    }

    fn copy_ranges(
        &self,
        shard: &CheckpointShard,
        ranges: &[(u64, u64)],
        to: &str,
    ) -> Result<(), StepError> {
        let (file, path) = self.output.create(to)?;
        let (mut buffer, mut at) = (vec![0; READ_BYTES], 0);
        for &(start, end) in ranges {
            let stop = self.job.stop;
            shard
                .bytes()
                .for_each_piece(start..end, &mut buffer, stop, |piece| {
                    write_all_at(&file, piece, at).map_err(FormatError::io("write", &path))?;
                    at += piece.len() as u64;
                    Ok::<_, FormatError>(())
                })?;
        }
        Ok(self.output.publish(&file, to)?)
    }

    /// The digest of a tensor's bytes, which lie at `at`.
    pub(super) fn digest_at(
        &self,
        input: &dyn ReadAt,
        at: u64,
        tensor: &PlannedTensor,
    ) -> Result<Sha256, FormatError> {
        let (mut sha256, mut buffer) = (Sha256Hasher::default(), vec![0; READ_BYTES]);
        let range = at..at + tensor.source.length;
        input.for_each_piece(range, &mut buffer, self.job.stop, |piece| {
            sha256.update(piece);
            Ok::<_, FormatError>(())
        })?;
        Ok(sha256.finish())
    }

    /// Reads again what an earlier run kept for packs that are not written.
    ///
    /// # Errors
    /// `Io`; `Interrupted`.
    pub(super) fn damaged_kept(&self, done: &Done) -> Result<Vec<Finding>, StepError> {
        let mut findings = Vec::new();
        let shards = self.planned.checkpoint.shards.iter();
        for shard in shards.filter(|s| s.removed.is_some()) {
            let is_written = |pack: &str| done.has_pack(pack);
            let tensors = self.proof.tensors_without(&shard.path, &is_written);
            let there = tensors.iter().filter(|(_, t)| shard.has(&range_of(t)));
            for (number, tensor) in there {
                let digests = done.shard(&shard.path);
                let wanted = digests.and_then(|d| d.tensors.get(*number).copied());
                let seen = self.digest_at(&*shard.bytes(), tensor.source.offset, tensor)?;
                if let Some(wanted) = wanted.filter(|wanted| *wanted != seen) {
                    let finding = Finding::new(FindingKind::NotRestorable)
                        .file(&shard.path)
                        .tensor(&tensor.name);
                    let seen = format!("what was kept of it has SHA-256 {seen}");
                    findings.push(finding.seen(seen).wanted(wanted));
                }
            }
        }
        Ok(findings)
    }
}
