//! What a server tells about itself, and what it holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use segpack_manifests::Pack;

use super::api::Origin;
use super::key::ApiKey;
use super::metrics::Metrics;
use super::queue::Queue;
use super::room::Room;

/// What every request needs: shared by the connections and the model.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: Arc<Queue>,
    pub(super) metrics: Metrics,
    pub(super) room: Arc<Room>,
    pub(super) key: Option<ApiKey>,
    /// Bytes of the largest body.
    pub(super) max_body: u64,
    /// The model's name.
    pub(super) model: String,
    /// Positions of a prompt and its answer.
    pub(super) context: usize,
    /// Only programs of this machine can reach it.
    pub(super) is_local: bool,
    fingerprint: String,
    /// Seconds since 1970 when the server began.
    began: u64,
    answers: AtomicU64,
}

/// What is fixed when a server begins.
#[derive(Debug)]
pub(super) struct Fixed {
    pub(super) key: Option<ApiKey>,
    pub(super) max_body: u64,
    pub(super) queue: usize,
    pub(super) model: String,
    pub(super) context: usize,
    pub(super) is_local: bool,
}

impl Shared {
    pub(super) fn new(pack: &Pack, fixed: Fixed) -> Self {
        let fingerprint = pack.manifest_sha256().to_string();
        let digits = fingerprint.get(..16).unwrap_or_default();
        Self {
            queue: Arc::new(Queue::new(fixed.queue)),
            metrics: Metrics::default(),
            room: Arc::new(Room::new(room(fixed.max_body))),
            key: fixed.key,
            max_body: fixed.max_body,
            model: fixed.model,
            context: fixed.context,
            is_local: fixed.is_local,
            fingerprint: format!("segpack-{digits}"),
            began: now(),
            answers: AtomicU64::new(0),
        }
    }

    /// What an answer that begins now tells of itself.
    pub(super) fn origin(&self, kind: &str) -> Origin {
        let number = self.answers.fetch_add(1, Ordering::Relaxed);
        Origin {
            id: format!("{kind}-{:x}-{number}", self.began),
            created: now(),
            model: self.model.clone(),
            fingerprint: self.fingerprint.clone(),
        }
    }

    /// Seconds since 1970 when the server began.
    pub(super) fn began(&self) -> u64 {
        self.began
    }
}

/// Bytes that the bodies of all requests may take: two of the largest.
fn room(max_body: u64) -> u64 {
    max_body.saturating_mul(2)
}

/// Bytes of the memory budget that requests take: their bodies and what is made of them, and the
/// values of one that is read.
pub(super) fn request_memory(max_body: u64) -> u64 {
    /// A million values, of some 32 bytes each.
    const VALUES: u64 = 32 << 20;
    room(max_body)
        .saturating_mul(2)
        .saturating_add(VALUES.min(max_body.saturating_mul(16)))
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
