//! Single files of web servers, each as a whole in memory.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use segpack_formats::io::CancelToken;
use segpack_formats::{FormatError, Result};

use super::RemoteError;
use super::client::{Client, host_of, shown};
use super::environment::is_offline;
use super::file::as_format_error;
use crate::work::{Job, lock};

/// Fetches files of web servers, all of them together no longer than a limit. No token goes anywhere.
#[derive(Debug)]
pub(crate) struct WebFiles {
    client: Client,
    job: Job<'static>,
    /// Bytes that may still come.
    left: Mutex<u64>,
}

impl WebFiles {
    /// At most `limit` bytes of all files together. `job` says when to stop, and hears of requests that
    /// are sent again.
    ///
    /// # Errors
    /// `Environment`, also where nothing may be contacted.
    pub(crate) fn new(limit: u64, job: Job<'static>) -> std::result::Result<Self, RemoteError> {
        if is_offline() {
            return Err(RemoteError::Environment {
                variable: "HF_HUB_OFFLINE",
                why: "is set, and nothing is contacted".to_owned(),
            });
        }
        Ok(Self {
            client: Client::new(None)?,
            job,
            left: Mutex::new(limit),
        })
    }

    /// All bytes of the file at an address of `http:` or `https:`.
    ///
    /// # Errors
    /// `Interrupted`; `Io` where the network or the server failed; `Malformed` where there is no such
    /// file, or one that is too long.
    pub(crate) fn fetch(&self, address: &str) -> Result<Vec<u8>> {
        if let Some((_, host)) = host_of(address).rsplit_once('@') {
            let what = "an address with a name or a password in it is not taken";
            return Err(FormatError::malformed(Path::new(host), what));
        }
        let name = PathBuf::from(shown(address));
        let mut left = lock(&self.left);
        let get = || self.client.small(address, *left, self.job);
        let got = self.client.watched(self.job, &CancelToken::new(), get)?;
        let bytes = got.map_err(|e| as_format_error(&name, e))?;
        *left = left.saturating_sub(bytes.len() as u64);
        Ok(bytes)
    }
}
