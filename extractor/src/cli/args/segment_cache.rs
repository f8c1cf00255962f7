use std::path::PathBuf;
use std::sync::Arc;

use segpack_manifests::Pack;

use super::PERFORMANCE;
use super::values::size;
use crate::cli::Context;
use crate::cli::error::CliError;
use crate::source::{CachedFiles, SegmentCache};
use crate::steps::StepError;
use crate::work::Progress;

/// Where segments of a pack on a server are kept.
#[derive(Debug, clap::Args)]
pub(crate) struct SegmentCacheArgs {
    /// Keep segments of a pack that is on a server in this folder, so that they are fetched once. It
    /// is made, or has to be such a cache; several processes may share it
    #[arg(long, value_name = "DIR", help_heading = PERFORMANCE)]
    segment_cache: Option<PathBuf>,
    /// Size limit of --segment-cache: the segments that were not used for longest make room
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = size,
        default_value = "20GB",
        requires = "segment_cache",
        help_heading = PERFORMANCE
    )]
    segment_cache_size: u64,
}

impl SegmentCacheArgs {
    /// The pack, read through the cache where there is one. A pack of this machine needs none.
    ///
    /// # Errors
    /// Where the cache cannot be used.
    pub(crate) fn of(&self, pack: Pack, context: &Context) -> Result<Pack, CliError> {
        let Some(folder) = &self.segment_cache else {
            return Ok(pack);
        };
        if pack.local().is_some() {
            let note = "note: the segment cache is not used: the pack is on this machine";
            context.progress.note(note);
            return Ok(pack);
        }
        let cache = SegmentCache::open(folder, self.segment_cache_size, context.job());
        let cache = cache.map_err(StepError::from)?;
        let files = CachedFiles::new(Arc::clone(pack.files()), cache, pack.manifest());
        Ok(pack.read_through(Arc::new(files)))
    }
}
