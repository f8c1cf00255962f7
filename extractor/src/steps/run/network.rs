//! Media of a prompt that are on web servers.

use std::sync::Arc;

#[cfg(feature = "remote")]
use segpack_formats::FormatError;
use segpack_runtime_min::processing::media::FetchMedia;

use crate::source::SourceError;
#[cfg(feature = "remote")]
use crate::source::WebFiles;
use crate::steps::StepError;
use crate::work::Job;

/// Bytes of all media of a command together: they are in memory until they are decoded.
#[cfg(feature = "remote")]
const MAX_BYTES: u64 = 256 << 20;

/// Fetches the media of `http:` and `https:` addresses of a chat, 256 MiB of all chats together. `job`
/// says when to stop, and hears of requests that are sent again.
///
/// # Errors
/// `Source` where the environment does not let anybody, or the build has no network.
#[cfg(feature = "remote")]
pub fn media_fetcher(job: Job<'static>) -> Result<Arc<dyn FetchMedia>, StepError> {
    let files = WebFiles::new(MAX_BYTES, job).map_err(SourceError::from)?;
    Ok(Arc::new(Fetcher(files)))
}

/// Refuses: this build has no network.
///
/// # Errors
/// `Source`, always.
#[cfg(not(feature = "remote"))]
pub fn media_fetcher(_: Job<'static>) -> Result<Arc<dyn FetchMedia>, StepError> {
    let place = "media of http: and https: addresses".into();
    Err(SourceError::WithoutRemote { place }.into())
}

#[cfg(feature = "remote")]
#[derive(Debug)]
struct Fetcher(WebFiles);

#[cfg(feature = "remote")]
impl FetchMedia for Fetcher {
    fn fetch(&self, address: &str) -> Result<Vec<u8>, FormatError> {
        self.0.fetch(address)
    }
}
