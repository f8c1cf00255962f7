//! Parsers of the values of options.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::{PathBufValueParser, TypedValueParser};

use crate::steps::export::ExpertParallel;
use segpack_runtime_min::session::ExpertCacheSize;

/// A file or folder to write. That of `-` would only be called so, which nobody means.
pub(crate) fn output_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(named_path)
}

fn named_path(path: PathBuf) -> Result<PathBuf, String> {
    if path.as_os_str() == "-" {
        let why = "cannot go to standard output; ./- would be a file or folder of that name";
        return Err(why.to_owned());
    }
    Ok(path)
}

pub(crate) fn token_id(text: &str) -> Result<u32, String> {
    text.trim()
        .parse()
        .map_err(|_| "expected token ids, which are whole numbers".to_owned())
}

/// Longer ones are hardly ever right to their end.
const LONGEST_DRAFT: usize = 64;

pub(crate) fn draft_length(text: &str) -> Result<NonZeroUsize, String> {
    let length = text
        .parse()
        .ok()
        .filter(|n: &NonZeroUsize| n.get() <= LONGEST_DRAFT);
    length.ok_or_else(|| format!("expected a number of tokens, 1 to {LONGEST_DRAFT}"))
}

pub(crate) fn experts_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|e| e.to_str()) {
        Some("json" | "svg") => Ok(path),
        _ => Err("expected a name that ends in .json or .svg".to_owned()),
    }
}

pub(crate) fn size(text: &str) -> Result<u64, String> {
    let parsed = text.parse::<ByteSize>();
    parsed
        .map(|b| b.as_u64())
        .map_err(|_| "expected a size such as 6GiB or 1500MB".to_owned())
}

/// The name of the other file of a trace is made from this one.
pub(crate) fn trace_path(text: &str) -> Result<PathBuf, String> {
    match text.strip_suffix(".safetensors") {
        Some(stem) if !stem.is_empty() => Ok(text.into()),
        _ => Err("expected a name that ends in .safetensors".to_owned()),
    }
}

/// A bare number counts experts, one with a unit bytes.
pub(crate) fn expert_cache_size(text: &str) -> Result<ExpertCacheSize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least one expert".to_owned()),
        Ok(n) => Ok(ExpertCacheSize::Experts(n)),
        Err(_) => size(text).map(ExpertCacheSize::Bytes),
    }
}

/// An empty one would end every text at once.
pub(crate) fn stop_string(text: &str) -> Result<String, String> {
    match text {
        "" => Err("expected a text that is not empty".to_owned()),
        text => Ok(text.to_owned()),
    }
}

/// A number of threads.
pub(crate) fn threads(text: &str) -> Result<usize, String> {
    const MAX: usize = 1024;
    let parsed = text.parse().ok().filter(|n| (1..=MAX).contains(n));
    parsed.ok_or_else(|| format!("expected a number of threads from 1 to {MAX}"))
}

/// A number of connections.
pub(crate) fn connections(text: &str) -> Result<usize, String> {
    const MAX: usize = 64;
    let parsed = text.parse().ok().filter(|n| (1..=MAX).contains(n));
    parsed.ok_or_else(|| format!("expected a number of connections from 1 to {MAX}"))
}

/// Bytes a second.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    let bytes = size(text).ok().filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "expected bytes a second, such as 20MB".to_owned())
}

/// A number of things, at least one.
pub(crate) fn count(text: &str) -> Result<usize, String> {
    let parsed = text.parse().ok().filter(|n| *n > 0);
    parsed.ok_or_else(|| "expected a whole number greater than 0".to_owned())
}

/// Frames per second of videos.
pub(crate) fn frames_per_second(text: &str) -> Result<f64, String> {
    let parsed = text
        .parse::<f64>()
        .ok()
        .filter(|fps| (0.001..=1000.0).contains(fps));
    parsed.ok_or_else(|| "expected a number of frames from 0.001 to 1000".to_owned())
}

pub(crate) fn shard_size(text: &str) -> Result<ByteSize, String> {
    text.parse::<ByteSize>()
        .ok()
        .filter(|size| size.0 > 0)
        .ok_or_else(|| "expected a size such as 5GB (decimal) or 2GiB (binary)".to_owned())
}

pub(crate) fn tokenizer_pre(text: &str) -> Result<String, String> {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !text.is_empty() && text.len() <= 64 && text.chars().all(known) {
        return Ok(text.to_owned());
    }
    Err("expected a name such as qwen2 or gpt-4o".to_owned())
}

pub(crate) fn expert_parallel(text: &str) -> Result<ExpertParallel, String> {
    let parsed = text
        .split_once('/')
        .and_then(|(r, n)| Some((r.parse().ok()?, n.parse().ok()?)));
    match parsed {
        Some((rank, ranks)) if rank < ranks => Ok(ExpertParallel { rank, ranks }),
        _ => Err("expected R/N with R from 0 to N-1".to_owned()),
    }
}

pub(crate) fn tolerance(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|e| format!("{e}"))?;
    let is_bound = number.is_finite() && number >= 0.0;
    is_bound
        .then_some(number)
        .ok_or_else(|| "expected a number that is not negative".to_owned())
}

/// The address of a server, without a slash at its end.
pub(crate) fn server_url(text: &str) -> Result<String, String> {
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"));
    let host = rest.unwrap_or_default().split('/').next();
    let is_address = host.is_some_and(|host| !host.is_empty())
        && !text.contains(['?', '#', '@'])
        && text.chars().all(|c| c.is_ascii_graphic());
    match is_address {
        true => Ok(text.trim_end_matches('/').to_owned()),
        false => Err("expected an address such as http://127.0.0.1:8000/v1".to_owned()),
    }
}

/// A dtype in the words of a server; the usual short names are those of traces.
pub(crate) fn served_dtype(text: &str) -> Result<String, String> {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text.is_empty() || text.len() > 64 || !text.chars().all(known) {
        return Err("expected a name such as float32, bfloat16 or q8_0".to_owned());
    }
    let lower = text.to_ascii_lowercase();
    Ok(match &*lower {
        "f32" | "fp32" => "float32".to_owned(),
        "bf16" => "bfloat16".to_owned(),
        "f16" | "fp16" => "float16".to_owned(),
        _ => lower,
    })
}

/// Seconds to wait.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    const MAX: f64 = 86_400.0;
    let parsed = text.parse().ok().filter(|s| (0.001..=MAX).contains(s));
    let parsed = parsed.map(Duration::from_secs_f64);
    parsed.ok_or_else(|| format!("expected a number of seconds from 0.001 to {MAX}"))
}

/// Members of a JSON object.
#[cfg(all(feature = "run", feature = "remote"))]
pub(crate) fn json_object(
    text: &str,
) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    serde_json::from_str(text).map_err(|e| format!("expected a JSON object: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_servers_hold_no_keys() {
        assert_eq!(server_url("http://h:1/v1/"), Ok("http://h:1/v1".to_owned()));
        let refused = [
            "h:1",
            "ftp://h",
            "http://",
            "http://u:p@h",
            "http://h?key=1",
            "http://h /",
        ];
        assert!(refused.iter().all(|text| server_url(text).is_err()));
    }

    #[test]
    fn short_names_of_dtypes_are_those_of_traces() {
        let all = ["f32", "BF16", "fp16", "Q8_0"].map(served_dtype);
        let wanted = ["float32", "bfloat16", "float16", "q8_0"];
        assert_eq!(all, wanted.map(|name| Ok(name.to_owned())));
        assert!(
            ["", "a b", "a/b"]
                .iter()
                .all(|text| served_dtype(text).is_err())
        );
    }

    #[test]
    fn threads_counts_and_sizes_have_bounds_of_their_own() {
        assert_eq!(threads("1024"), Ok(1024));
        assert!(
            ["0", "1025", "-1", "many"]
                .iter()
                .all(|text| threads(text).is_err())
        );
        assert_eq!(count("4096"), Ok(4096), "more tokens than threads");
        assert!(
            ["0", "-1", "1.5", "4k"]
                .iter()
                .all(|text| count(text).is_err())
        );
        assert_eq!(
            (size("6GiB"), size("1500MB")),
            (Ok(6 << 30), Ok(1_500_000_000))
        );
        assert!(size("much").is_err());
    }
}
