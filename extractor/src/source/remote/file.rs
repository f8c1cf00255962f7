//! A file of a server, read by ranges.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use object_store::path::Path as ObjectPath;
use segpack_formats::digest::Sha256;
use segpack_formats::io::{ReadAt, Stamp, to_usize};
use segpack_formats::{FormatError, Result};

use super::RemoteError;
use super::client::{Answer, Client, Tries, Trouble, answer, number_of, shown, text_of};
use super::objects::Bucket;
use super::windows::Windows;
use crate::work::{Job, lock};

/// Bytes that are received and thrown away to reach others, where a server has no ranges.
const MAX_SKIPPED: u64 = 16 << 20;

/// What a file has to be, so that it is still the one that was listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Identity {
    /// Bytes.
    pub length: u64,
    /// The SHA-256 that the hub publishes.
    pub sha256: Option<Sha256>,
    /// The commit of the repository.
    pub commit: Option<String>,
    /// What a server without a commit calls this version of the file.
    pub tag: Option<String>,
}

/// Where a file is asked for.
#[derive(Debug, Clone)]
pub(super) enum Address {
    /// Of a hub or a web server.
    Web(String),
    /// Of an object store.
    Object(Arc<Bucket>, ObjectPath),
}

/// A file of a server.
#[derive(Debug)]
pub(crate) struct RemoteFile {
    client: Arc<Client>,
    /// As messages name it.
    name: PathBuf,
    address: Address,
    identity: Identity,
    /// Where it was found the last time, while that is valid.
    link: Mutex<Option<String>>,
    /// Whether the server has turned out to send whole files only.
    without_ranges: AtomicBool,
    windows: Windows,
}

impl RemoteFile {
    pub(super) fn new(
        client: Arc<Client>,
        name: PathBuf,
        address: Address,
        identity: Identity,
    ) -> Self {
        Self {
            client,
            name,
            address,
            identity,
            link: Mutex::default(),
            without_ranges: AtomicBool::new(false),
            windows: Windows::default(),
        }
    }

    /// Bytes that it has.
    pub(crate) fn length(&self) -> u64 {
        self.identity.length
    }

    /// Whether the server has turned out to send whole files only.
    pub(super) fn is_without_ranges(&self) -> bool {
        self.without_ranges.load(Ordering::Relaxed)
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Passes the bytes of a range to `take`, in order. After a failure it goes on where it was.
    ///
    /// # Errors
    /// `Interrupted`; `Changed` where the file is another one now; `Io` where it cannot be had;
    /// whatever `take` returns.
    pub(super) fn receive(
        &self,
        range: Range<u64>,
        job: Job<'_>,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let name = self.name.display().to_string();
        let mut tries = Tries::new(&self.client, &name, job);
        let mut at = range.start;
        while at < range.end {
            let before = at;
            let mut counting = |piece: &[u8]| {
                take(piece)?;
                at += piece.len() as u64;
                Ok(())
            };
            let passed = self.receive_once(before..range.end, job, &mut counting);
            if at > before {
                tries.went_on();
            }
            match passed {
                Ok(taken) => taken?,
                Err(trouble) => tries.wait(trouble).map_err(|e| self.error(e))?,
            }
        }
        Ok(())
    }

    fn receive_once(
        &self,
        range: Range<u64>,
        job: Job<'_>,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> std::result::Result<Result<()>, Trouble> {
        let known = lock(&self.link).clone();
        let requested = Some((range.start, range.end));
        let from = self.ask(known.as_deref(), false, requested)?;
        if known.is_some() && matches!(from.status, 401 | 403 | 404 | 410) {
            // a link that has expired: the next try asks for another
            *lock(&self.link) = None;
            return Err(again_at_once(from.refused()));
        }
        let mut from = self.accept(from, known.is_some())?;
        let begins = self.begin_of(&from, &range)?;
        if from.redirected {
            *lock(&self.link) = Some(from.url.clone());
        }
        let skip = range.start - begins;
        let length = range.end - range.start;
        from.pass((skip, length), &self.client.counts, job.stop, take)
    }

    /// Sends one request for it, or for where a link has led before.
    fn ask(
        &self,
        link: Option<&str>,
        head: bool,
        range: Option<(u64, u64)>,
    ) -> std::result::Result<Answer, Trouble> {
        match &self.address {
            Address::Web(url) => self.client.ask(link.unwrap_or(url), head, range),
            Address::Object(bucket, path) => bucket.ask(path, head, range),
        }
    }

    /// Refuses what is not the file that was listed.
    fn accept(&self, from: Answer, by_link: bool) -> std::result::Result<Answer, Trouble> {
        if !by_link {
            self.compare(&from)?;
        }
        if from.status == 416 {
            return Err(self.moved("it has fewer bytes now").into());
        }
        from.expect(&[200, 206])
    }

    /// What the first host says of the file.
    fn compare(&self, from: &Answer) -> std::result::Result<(), RemoteError> {
        let Identity {
            sha256,
            commit,
            tag,
            length,
        } = &self.identity;
        if let Some(commit) = commit {
            if text_of(&from.first, "x-error-code") == Some("RevisionNotFound") {
                let what = format!("commit {commit} is not there any more");
                return Err(self.moved(&what));
            }
            let seen = text_of(&from.first, "x-repo-commit").filter(|seen| seen != commit);
            if let Some(seen) = seen {
                return Err(self.moved(&format!("commit {seen}, wanted {commit}")));
            }
        }
        if !matches!(from.status, 200 | 206) {
            return Ok(());
        }
        let linked =
            text_of(&from.first, "x-linked-etag").and_then(|t| t.trim_matches('"').parse().ok());
        if let (Some(wanted), Some(seen)) = (sha256, linked)
            && *wanted != seen
        {
            let what = format!("SHA-256 {seen}, wanted {wanted}");
            return Err(self.moved(&what));
        }
        let linked = number_of(&from.first, "x-linked-size");
        if let Some(seen) = linked.filter(|seen| seen != length) {
            return Err(self.moved(&format!("{seen} bytes, wanted {length}")));
        }
        let seen = strong_tag(&from.headers);
        if tag.is_some() && seen != *tag {
            return Err(self.moved("another version of the file"));
        }
        Ok(())
    }

    /// The byte of the file that a body begins with.
    fn begin_of(&self, from: &Answer, range: &Range<u64>) -> std::result::Result<u64, RemoteError> {
        let length = self.identity.length;
        if from.status == 206 {
            let text = text_of(&from.headers, "content-range").unwrap_or_default();
            let Some((first, last, total)) = parse_content_range(text) else {
                return Err(answer(
                    &from.url,
                    format!("a part without its place ({text:?})"),
                ));
            };
            if total.is_some_and(|total| total != length) {
                let total = total.unwrap_or_default();
                return Err(self.moved(&format!("{total} bytes, wanted {length}")));
            }
            if (first, last) != (range.start, range.end - 1) {
                let what = format!(
                    "bytes {first}-{last} instead of {}-{}",
                    range.start,
                    range.end - 1
                );
                return Err(answer(&from.url, what));
            }
            return Ok(first);
        }
        // a server without ranges sends all of it
        if let Some(seen) = number_of(&from.headers, "content-length").filter(|n| *n != length) {
            return Err(self.moved(&format!("{seen} bytes, wanted {length}")));
        }
        if range.start > 0 || range.end < length {
            self.without_ranges.store(true, Ordering::Relaxed);
        }
        let whole = range.end == length;
        if range.start > MAX_SKIPPED && !whole {
            let url = shown(&from.url);
            let at = range.start;
            return Err(RemoteError::NoRanges { url, at });
        }
        Ok(0)
    }

    fn moved(&self, what: &str) -> RemoteError {
        RemoteError::Moved {
            url: match &self.address {
                Address::Web(url) => shown(url),
                Address::Object(..) => self.name.display().to_string(),
            },
            what: what.to_owned(),
        }
    }

    /// As everything says it that reads checkpoints.
    fn error(&self, error: RemoteError) -> FormatError {
        as_format_error(&self.name, error)
    }

    /// Reads from `offset` on, and as far ahead as pays; all of `to`, where the file is that long.
    fn fetch_window(&self, to: &mut [u8], offset: u64) -> Result<()> {
        let needed = to.len() as u64;
        let length = self.windows.next_bytes(offset, needed);
        let length = length.min(self.identity.length - offset);
        let mut bytes = Vec::with_capacity(to_usize(length));
        self.receive(
            offset..offset + length,
            self.client.own_job(),
            &mut |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            },
        )?;
        to.copy_from_slice(&bytes[..to.len()]);
        self.windows.keep(offset, bytes, needed);
        Ok(())
    }
}

/// Without a pause.
fn again_at_once(trouble: Trouble) -> Trouble {
    match trouble {
        Trouble::Final(error) => Trouble::Again(error, Some(std::time::Duration::ZERO)),
        again @ Trouble::Again(..) => again,
    }
}

/// What a server calls a version of a file; a weak name says nothing of its bytes.
pub(super) fn strong_tag(headers: &ureq::http::HeaderMap) -> Option<String> {
    let tag = text_of(headers, "etag")?;
    tag.starts_with('"').then(|| tag.to_owned())
}

/// `bytes FIRST-LAST/TOTAL`; a total of `*` is not known.
fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = match total {
        "*" => None,
        number => Some(number.parse().ok()?),
    };
    Some((first.parse().ok()?, last.parse().ok()?, total))
}

/// As everything says it that reads checkpoints: what the environment did is `Io`, what has moved is
/// `Changed`, the rest `Malformed`.
pub(super) fn as_format_error(name: &Path, error: RemoteError) -> FormatError {
    match error {
        RemoteError::Interrupted => FormatError::Interrupted,
        RemoteError::Moved { .. } => FormatError::changed(name, error.to_string()),
        error if error.is_environment() => {
            FormatError::io("fetch", name)(std::io::Error::other(error))
        }
        error => FormatError::malformed(name, crate::causes::chain(&error)),
    }
}

impl ReadAt for RemoteFile {
    fn name(&self) -> &Path {
        &self.name
    }

    fn stamp(&self) -> Stamp {
        let Identity {
            length,
            sha256,
            commit,
            tag,
        } = &self.identity;
        let digest = sha256.map(|sha256| sha256.to_string());
        Stamp {
            tag: digest.or_else(|| commit.clone()).or_else(|| tag.clone()),
            ..Stamp::of_length(*length)
        }
    }

    fn length(&self) -> u64 {
        self.identity.length
    }

    fn read_at(&self, mut to: &mut [u8], mut offset: u64) -> Result<()> {
        let end = offset.saturating_add(to.len() as u64);
        if end > self.identity.length {
            return Err(FormatError::ends_early(
                &self.name,
                end,
                self.identity.length,
            ));
        }
        loop {
            let kept = self.windows.copy(to, offset);
            to = &mut to[kept..];
            offset += kept as u64;
            if to.is_empty() {
                return Ok(());
            }
            if kept == 0 {
                return self.fetch_window(to, offset);
            }
        }
    }

    /// A hub's file is named by its commit, and its digest is compared; of another server's, every
    /// answer is compared with what was listed, and here once more.
    fn check_unchanged(&self) -> Result<()> {
        if self.identity.commit.is_some() {
            return Ok(());
        }
        let look = || {
            let from = self.ask(None, true, None)?.expect(&[200])?;
            self.compare(&from)?;
            let seen = number_of(&from.headers, "content-length");
            if seen.is_some_and(|seen| seen != self.identity.length) {
                return Err(self.moved("it has another length").into());
            }
            Ok(())
        };
        let name = self.name.display().to_string();
        let looked = self.client.until(&name, self.client.own_job(), look);
        looked.map_err(|e| self.error(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_parts_are_read() {
        assert_eq!(parse_content_range("bytes 0-9/20"), Some((0, 9, Some(20))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5, 9, None)));
        for bad in ["", "bytes */20", "items 0-9/20", "bytes 0-/20", "bytes 0-9"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
