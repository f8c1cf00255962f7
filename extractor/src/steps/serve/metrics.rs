//! What the server counts, as Prometheus reads it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use segpack_runtime_min::models::decoder::RunStats;

use crate::work::lock;

/// Counters since the server began.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Answers by endpoint and HTTP status.
    responses: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Requests whose client left before the answer was whole.
    abandoned: AtomicU64,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    /// Requests that the model dealt with, and how long it took, in microseconds.
    answered: AtomicU64,
    micros: AtomicU64,
    expert_hits: AtomicU64,
    expert_misses: AtomicU64,
    bytes_read: AtomicU64,
}

/// What a model did at some moment, to tell what it did since.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ModelWork {
    hits: u64,
    misses: u64,
    bytes_read: u64,
}

impl ModelWork {
    pub(super) fn of(stats: &RunStats) -> Self {
        Self {
            hits: stats.cache.hits,
            misses: stats.cache.misses,
            bytes_read: stats.bytes_read,
        }
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Metrics {
    /// A response was begun.
    pub(super) fn responded(&self, endpoint: &'static str, status: u16) {
        *lock(&self.responses).entry((endpoint, status)).or_default() += 1;
    }

    /// A client left.
    pub(super) fn abandoned(&self) {
        add(&self.abandoned, 1);
    }

    /// A prompt of so many tokens was begun.
    pub(super) fn prompted(&self, tokens: usize) {
        add(&self.prompt_tokens, tokens as u64);
    }

    /// A token was generated.
    pub(super) fn generated(&self) {
        add(&self.generated_tokens, 1);
    }

    /// The model is through with a request.
    pub(super) fn answered(&self, took: Duration) {
        add(&self.answered, 1);
        add(
            &self.micros,
            u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        );
    }

    /// What the model did since `before`.
    pub(super) fn worked(&self, before: ModelWork, now: ModelWork) {
        add(&self.expert_hits, now.hits.saturating_sub(before.hits));
        add(
            &self.expert_misses,
            now.misses.saturating_sub(before.misses),
        );
        add(
            &self.bytes_read,
            now.bytes_read.saturating_sub(before.bytes_read),
        );
    }

    /// Seconds until a request that comes now behind so many others may have its turn, by what
    /// requests took so far: 1 to 600.
    pub(super) fn wait(&self, ahead: usize) -> u64 {
        let each = get(&self.micros) / get(&self.answered).max(1);
        let micros = each.saturating_mul(ahead as u64);
        micros.div_ceil(1_000_000).clamp(1, 600)
    }

    /// In Prometheus' text format (version 0.0.4). `waiting` and `running` are lengths of the queue,
    /// `held` the bytes that requests take.
    pub(super) fn text(&self, (waiting, running): (usize, usize), held: u64) -> String {
        let mut page = Page::default();
        page.head(
            "requests_total",
            "counter",
            "Responses by endpoint and HTTP status.",
        );
        for ((endpoint, status), count) in &*lock(&self.responses) {
            let labels = format!("{{endpoint=\"{endpoint}\",status=\"{status}\"}}");
            page.sample("requests_total", &labels, *count);
        }
        let gauges = [
            (
                "queue_length",
                "Requests that wait for the model.",
                waiting as u64,
            ),
            (
                "running",
                "Requests that the model answers now.",
                running as u64,
            ),
            ("request_bytes", "Memory of the bodies of requests.", held),
        ];
        for (name, help, value) in gauges {
            page.one(name, "gauge", help, value);
        }
        let counters = [
            (
                "abandoned_total",
                "Requests whose client left before the answer was whole.",
                &self.abandoned,
            ),
            (
                "prompt_tokens_total",
                "Tokens of prompts.",
                &self.prompt_tokens,
            ),
            (
                "generated_tokens_total",
                "Tokens generated.",
                &self.generated_tokens,
            ),
            (
                "expert_cache_hits_total",
                "Uses of experts that were in memory.",
                &self.expert_hits,
            ),
            (
                "expert_cache_misses_total",
                "Uses of experts that were read from the pack.",
                &self.expert_misses,
            ),
            (
                "weight_bytes_read_total",
                "Bytes of weights read from the pack.",
                &self.bytes_read,
            ),
        ];
        for (name, help, counter) in counters {
            page.one(name, "counter", help, get(counter));
        }
        page.head(
            "answer_seconds",
            "summary",
            "Time of the model for each request.",
        );
        page.seconds("answer_seconds_sum", get(&self.micros));
        page.sample("answer_seconds_count", "", get(&self.answered));
        let memory = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = [
            (
                "resident_bytes",
                "VmRSS:",
                "Resident memory of the process.",
            ),
            (
                "peak_resident_bytes",
                "VmHWM:",
                "Peak resident memory of the process.",
            ),
        ];
        for (name, key, help) in resident {
            // only Linux tells
            if let Some(bytes) = memory_line(&memory, key) {
                page.one(name, "gauge", help, bytes);
            }
        }
        page.text
    }
}

/// Bytes of a line of `/proc/self/status`.
fn memory_line(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// A page of metrics.
#[derive(Debug, Default)]
struct Page {
    text: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // writing to a string cannot fail
        let _ = writeln!(self.text, "# HELP segpack_{name} {help}");
        let _ = writeln!(self.text, "# TYPE segpack_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.text, "segpack_{name}{labels} {value}");
    }

    fn seconds(&mut self, name: &str, micros: u64) {
        let (whole, rest) = (micros / 1_000_000, micros % 1_000_000);
        let _ = writeln!(self.text, "segpack_{name} {whole}.{rest:06}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        self.sample(name, "", value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_type_for_every_sample() {
        let metrics = Metrics::default();
        metrics.responded("/v1/completions", 200);
        metrics.responded("/v1/completions", 200);
        metrics.answered(Duration::from_millis(1500));
        metrics.worked(
            ModelWork::default(),
            ModelWork {
                hits: 3,
                misses: 1,
                bytes_read: 9,
            },
        );
        let page = metrics.text((2, 1), 7);
        for line in [
            "segpack_requests_total{endpoint=\"/v1/completions\",status=\"200\"} 2",
            "segpack_queue_length 2",
            "segpack_running 1",
            "segpack_answer_seconds_sum 1.500000",
            "segpack_expert_cache_hits_total 3",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
        let mut typed = Vec::new();
        for line in page.lines() {
            if let Some(typed_line) = line.strip_prefix("# TYPE ") {
                typed.push(typed_line.split(' ').next().unwrap().to_owned());
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                let name = name.strip_suffix("_sum").unwrap_or(name);
                let name = name.strip_suffix("_count").unwrap_or(name);
                assert_eq!(typed.last().map(String::as_str), Some(name));
            }
        }
    }

    #[test]
    fn waiting_is_told_by_what_requests_took() {
        let metrics = Metrics::default();
        assert_eq!(metrics.wait(5), 1);
        metrics.answered(Duration::from_secs(3));
        metrics.answered(Duration::from_secs(4));
        assert_eq!((metrics.wait(2), metrics.wait(usize::MAX)), (7, 600));
    }
}
