//! What the environment says of the hub and the network, in the variables that Hugging Face's own
//! client reads
//! (<https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables>) and
//! those of proxies (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`).

use std::env;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::RemoteError;

/// The hub where `HF_ENDPOINT` names no other.
const HUB: &str = "https://huggingface.co";

/// How patient requests are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Without a byte for so long, a connection is given up.
    pub stall: Duration,
    /// So long a request may be without the first byte of its answer.
    pub answer: Duration,
    /// Failures in a row, without a byte in between, after which a file is given up.
    pub tries: u32,
    /// Whether the user has said how many.
    pub is_given: bool,
    /// The pause after the first failure; it doubles with each.
    pub pause: Duration,
    /// Bytes of a shard that one request asks for; what is lost at most of each connection when a
    /// run is killed.
    pub part: u64,
}

/// Where the hub is, without a slash at the end.
///
/// # Errors
/// `Environment` where `HF_ENDPOINT` is no address.
pub(super) fn endpoint() -> Result<String, RemoteError> {
    let Some(text) = value("HF_ENDPOINT") else {
        return Ok(HUB.to_owned());
    };
    let is_address = text.starts_with("http://") || text.starts_with("https://");
    if !is_address || text.contains(['?', '#', '@']) || !text.chars().all(|c| c.is_ascii_graphic())
    {
        return Err(RemoteError::Environment {
            variable: "HF_ENDPOINT",
            why: "is not the address of a hub, such as https://huggingface.co".to_owned(),
        });
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// Whether nothing may be contacted.
pub(in crate::source) fn is_offline() -> bool {
    ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
        .iter()
        .any(|name| value(name).is_some_and(|v| is_true(&v)))
}

/// The token for the hub: of `HF_TOKEN`, else of the file that `hf auth login` writes.
///
/// # Errors
/// `Token` where that file is there but cannot be read; `Environment` where the token is not one.
pub(super) fn token() -> Result<Option<String>, RemoteError> {
    if value("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|v| is_true(&v)) {
        return Ok(None);
    }
    let named = value("HF_TOKEN").or_else(|| value("HUGGING_FACE_HUB_TOKEN"));
    let token = match named {
        Some(token) => Some(token),
        None => token_in_file()?,
    };
    let token = token.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
    if token
        .as_ref()
        .is_some_and(|t| !t.chars().all(|c| c.is_ascii_graphic()))
    {
        return Err(RemoteError::Environment {
            variable: "HF_TOKEN",
            why: "holds characters that no token has".to_owned(),
        });
    }
    Ok(token)
}

fn token_in_file() -> Result<Option<String>, RemoteError> {
    let Some(path) = token_path() else {
        return Ok(None);
    };
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RemoteError::Token { path, source }),
    }
}

fn token_path() -> Option<PathBuf> {
    let path = |name: &str| value(name).map(PathBuf::from);
    path("HF_TOKEN_PATH")
        .or_else(|| Some(path("HF_HOME")?.join("token")))
        .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface/token")))
        .or_else(|| Some(env::home_dir()?.join(".cache/huggingface/token")))
}

/// How patient to be: `HF_HUB_DOWNLOAD_TIMEOUT` (seconds without a byte), `SEGPACK_RETRIES`,
/// `SEGPACK_RETRY_PAUSE` (seconds), `SEGPACK_PART_SIZE` (bytes).
///
/// # Errors
/// `Environment` where one of them is not a number that makes sense.
pub(super) fn patience() -> Result<Patience, RemoteError> {
    const STALL_SECONDS: f64 = 30.0;
    const PAUSE_SECONDS: f64 = 1.0;
    const TRIES: u32 = 6;
    const PART_BYTES: u64 = 16 << 20;
    let tries = match value("SEGPACK_RETRIES") {
        None => TRIES,
        Some(text) => match text.parse::<u32>() {
            Ok(n) if n < 1000 => n + 1,
            _ => return Err(not_a_number("SEGPACK_RETRIES")),
        },
    };
    let part = match value("SEGPACK_PART_SIZE") {
        None => PART_BYTES,
        Some(text) => match text.parse() {
            Ok(bytes) if bytes >= 4096 => bytes,
            _ => return Err(not_a_number("SEGPACK_PART_SIZE")),
        },
    };
    let stall = seconds("HF_HUB_DOWNLOAD_TIMEOUT", STALL_SECONDS)?;
    Ok(Patience {
        part,
        stall,
        answer: stall,
        pause: seconds("SEGPACK_RETRY_PAUSE", PAUSE_SECONDS)?,
        is_given: value("SEGPACK_RETRIES").is_some(),
        tries,
    })
}

fn seconds(variable: &'static str, default: f64) -> Result<Duration, RemoteError> {
    const MAX: f64 = 86_400.0;
    let seconds = match value(variable) {
        None => default,
        Some(text) => text.parse().map_err(|_| not_a_number(variable))?,
    };
    if (0.001..=MAX).contains(&seconds) {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(not_a_number(variable))
}

fn not_a_number(variable: &'static str) -> RemoteError {
    RemoteError::Environment {
        variable,
        why: "is not a number that makes sense there".to_owned(),
    }
}

/// The proxy for addresses of this scheme, host and port, and the variable that names it; as
/// Python's clients choose it.
pub(super) fn proxy(scheme: &str, host: &str, port: u16) -> Option<(&'static str, String)> {
    let [own, all] = if scheme == "https" {
        [["https_proxy", "HTTPS_PROXY"], ["all_proxy", "ALL_PROXY"]]
    } else {
        [["http_proxy", "HTTP_PROXY"], ["all_proxy", "ALL_PROXY"]]
    };
    let except = either(["no_proxy", "NO_PROXY"]);
    if except.is_some_and(|(_, list)| is_excepted(host, port, &list)) {
        return None;
    }
    either(own).or_else(|| either(all))
}

/// The value of a variable that is written in small or in large letters, and which of them it is.
/// The one in small letters counts where both are set, even one that is empty: it takes the other
/// back.
fn either([small, large]: [&'static str; 2]) -> Option<(&'static str, String)> {
    let name = if env::var_os(small).is_some() {
        small
    } else {
        large
    };
    Some((name, value(name)?))
}

/// Whether a list of hosts, domains and networks, separated by commas, names a host; an entry with
/// a port names that port alone.
fn is_excepted(host: &str, port: u16, list: &str) -> bool {
    let host = host.to_ascii_lowercase();
    list.split(',').map(str::trim).any(|entry| {
        let entry = entry.to_ascii_lowercase();
        let (name, of_port) = with_port(&entry);
        let names = name == "*" || is_in_network(&host, name) || is_in_domain(&host, name);
        names && of_port.is_none_or(|of_port| of_port == port)
    })
}

/// An entry without its port. IPv6 with a port has brackets, without one it may have them.
fn with_port(entry: &str) -> (&str, Option<u16>) {
    let whole = (entry.trim_start_matches('[').trim_end_matches(']'), None);
    let Some((name, port)) = entry.rsplit_once(':') else {
        return whole;
    };
    let is_name = !name.contains(':') || name.ends_with(']');
    match port.parse() {
        Ok(port) if is_name => (
            name.trim_start_matches('[').trim_end_matches(']'),
            Some(port),
        ),
        _ => whole,
    }
}

/// Whether a host is a domain, or one below it.
fn is_in_domain(host: &str, entry: &str) -> bool {
    let domain = entry.trim_start_matches('*').trim_start_matches('.');
    let below = host.strip_suffix(domain).filter(|_| !domain.is_empty());
    below.is_some_and(|below| below.is_empty() || below.ends_with('.'))
}

/// Whether a host is an address of a network such as `10.0.0.0/8`, or the address itself.
fn is_in_network(host: &str, entry: &str) -> bool {
    let (network, bits) = entry.split_once('/').unwrap_or((entry, "128"));
    let (Ok(host), Ok(network), Ok(bits)) = (host.parse(), network.parse(), bits.parse::<u32>())
    else {
        return false;
    };
    match (host, network) {
        (IpAddr::V4(host), IpAddr::V4(network)) => {
            (u32::from(host) ^ u32::from(network)).leading_zeros() >= bits.min(32)
        }
        (IpAddr::V6(host), IpAddr::V6(network)) => {
            (u128::from(host) ^ u128::from(network)).leading_zeros() >= bits.min(128)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// The value of a variable that is set and not empty.
fn value(name: &str) -> Option<String> {
    env::var(name).ok().filter(|v| !v.is_empty())
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_need_no_proxy_are_listed_by_name_or_domain() {
        let list = "localhost, .example.com,*.example.org,here:8080,10.1.0.0/16,192.0.2.7,\
                    2001:db8::/32,[::1]:80";
        for host in [
            "localhost",
            "a.example.com",
            "example.com",
            "B.Example.org",
            "here",
            "10.1.2.3",
            "192.0.2.7",
            "2001:db8:1::2",
        ] {
            assert!(is_excepted(host, 8080, list), "{host}");
        }
        for host in [
            "notexample.com",
            "example.net",
            "localhost.net",
            "10.2.0.1",
            "192.0.2.70",
            "2001:db9::1",
            "::1",
        ] {
            assert!(!is_excepted(host, 8080, list), "{host}");
        }
        assert!(!is_excepted("here", 80, list) && is_excepted("::1", 80, list));
        assert!(is_excepted("anything", 1, "*") && !is_excepted("anything", 1, ""));
        assert!(is_excepted("10.9.9.9", 1, "0.0.0.0/0") && !is_excepted("::1", 1, "0.0.0.0/0"));
    }
}
