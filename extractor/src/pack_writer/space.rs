//! Whether the disk has space for packs: by the bytes that they take at most, and where those do
//! not fit, by an estimate of what coding makes of them.

use std::path::Path;
use std::sync::Mutex;

use segpack_formats::FormatError;
use segpack_formats::codec::Coding;
use segpack_manifests::documents::{Plan, PlannedPack, SizeEstimate};

use super::estimate::{Estimate, ReadTensor, estimate};
use crate::output::{Needed, OutputError, check_space};
use crate::work::{Job, Silent, lock};

/// Adds to a plan what coding will make of it; a raw plan says that already.
///
/// # Errors
/// Whatever `read` returns; `Interrupted`.
pub(crate) fn add_estimate(
    plan: &mut Plan,
    coding: Coding,
    read: &ReadTensor<'_>,
    job: Job<'_>,
) -> Result<(), FormatError> {
    if coding == Coding::Raw {
        return Ok(());
    }
    let packs: Vec<&PlannedPack> = plan.packs.iter().collect();
    let found = estimate(&packs, coding, read, job)?;
    plan.estimate = Some(SizeEstimate {
        stored_bytes: found.packs.iter().sum(),
        sampled_bytes: found.sampled,
        exact: found.exact,
    });
    for (pack, length) in plan.packs.iter_mut().zip(found.packs) {
        pack.estimated_length = Some(length);
    }
    Ok(())
}

/// The space that the packs of a plan take.
pub(crate) struct Space<'a> {
    /// What will be written.
    pub plan: &'a Plan,
    /// How.
    pub coding: Coding,
    /// Reads what will be packed.
    pub read: &'a ReadTensor<'a>,
    /// Whether all of a pack can be read.
    pub can_read: &'a (dyn Fn(&PlannedPack) -> bool + Sync),
    /// Whether anything is checked at all.
    pub enabled: bool,
    /// The threads, when to stop, and the progress.
    pub job: Job<'a>,
    /// Once it was asked for.
    estimate: Mutex<Option<Estimate>>,
}

/// What a run needs, given the lengths of the plan's packs.
pub(crate) type NeededBytes<'a> = dyn Fn(&[u64]) -> u64 + 'a;

impl<'a> Space<'a> {
    /// Nothing is estimated yet.
    pub(crate) fn new(
        plan: &'a Plan,
        coding: Coding,
        read: &'a ReadTensor<'a>,
        enabled: bool,
        job: Job<'a>,
    ) -> Self {
        Self {
            plan,
            coding,
            read,
            can_read: &|_| true,
            enabled,
            job,
            estimate: Mutex::default(),
        }
    }

    /// Refuses what the disk of a folder cannot hold, even with what will be `freed` before.
    ///
    /// # Errors
    /// `NoSpace`; `Io`; whatever reading a sample returns.
    pub(crate) fn check(
        &self,
        folder: &Path,
        freed: u64,
        needed: &NeededBytes<'_>,
    ) -> Result<(), OutputError> {
        self.check_with(folder, freed, needed, self.job)
    }

    /// Refuses one pack, by its number in the plan, that the disk of a folder cannot hold.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(crate) fn check_pack(&self, folder: &Path, number: usize) -> Result<(), OutputError> {
        // the progress is that of packing
        let job = Job {
            progress: &Silent,
            ..self.job
        };
        self.check_with(folder, 0, &|lengths| lengths[number], job)
    }

    fn check_with(
        &self,
        folder: &Path,
        freed: u64,
        needed: &NeededBytes<'_>,
        job: Job<'_>,
    ) -> Result<(), OutputError> {
        if !self.enabled {
            return Ok(());
        }
        let most: Vec<u64> = self.plan.packs.iter().map(|p| p.length).collect();
        let at_most = check_space(folder, Needed::exactly(needed(&most)), freed);
        let is_full = matches!(at_most, Err(OutputError::NoSpace { .. }));
        if !is_full || self.coding == Coding::Raw {
            return at_most;
        }
        let bytes = self.with_estimate(job, |estimate| needed(&estimate.packs))?;
        let needed = Needed {
            bytes,
            estimated: true,
        };
        check_space(folder, needed, freed)
    }

    fn with_estimate<T>(
        &self,
        job: Job<'_>,
        take: impl FnOnce(&Estimate) -> T,
    ) -> Result<T, FormatError> {
        let mut known = lock(&self.estimate);
        if let Some(found) = &*known {
            return Ok(take(found));
        }
        // a pack whose source was removed once it was packed is not written again
        let packs = || self.plan.packs.iter();
        let readable: Vec<&PlannedPack> = packs().filter(|p| (self.can_read)(p)).collect();
        let mut found = estimate(&readable, self.coding, self.read, job)?;
        let mut lengths = std::mem::take(&mut found.packs).into_iter();
        found.packs = packs()
            .map(|pack| match (self.can_read)(pack) {
                true => lengths.next().unwrap_or(pack.length),
                false => pack.length,
            })
            .collect();
        Ok(take(known.insert(found)))
    }
}
