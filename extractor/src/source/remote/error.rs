//! What goes wrong between this machine and a server.

use std::io;

/// Why a checkpoint cannot be had from a server. Addresses are shown without their queries: those of
/// a content network let whoever has them read the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// An environment variable holds something else than it has to.
    #[error("{variable}: {why}")]
    Environment {
        /// The variable.
        variable: &'static str,
        /// What is wrong with its value, which is not shown: it may hold a password.
        why: String,
    },
    /// The file that has to hold the token cannot be read.
    #[error("cannot read the token in {}", path.display())]
    Token {
        /// The file.
        path: std::path::PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// No certificates of this machine say which servers to trust.
    #[error("no certificates of this system can be read, so that no server can be trusted: {why}")]
    Certificates {
        /// What was tried.
        why: String,
    },
    /// The hub has no such repository, or does not say so.
    #[error("{host} has no repository {repo}, or it is private and the token does not open it")]
    NoRepository {
        /// The host that was asked.
        host: String,
        /// `OWNER/NAME`.
        repo: String,
    },
    /// The repository has no such revision.
    #[error("{repo} has no revision {revision:?}")]
    NoRevision {
        /// `OWNER/NAME`.
        repo: String,
        /// A branch, a tag or a commit.
        revision: String,
    },
    /// The hub wants a token, or another one.
    #[error("{host} does not let this user read {what} ({status})")]
    NotAllowed {
        /// The host.
        host: String,
        /// A repository or a file.
        what: String,
        /// The status of the response.
        status: u16,
    },
    /// An object store wants credentials, and none can be had.
    #[error("no credentials for {place}: {why}")]
    NoCredentials {
        /// Its address.
        place: String,
        /// What is missing or wrong. Nothing that a message about keys quotes is shown.
        why: String,
    },
    /// An object store has no such bucket.
    #[error("there is no {bucket}")]
    NoBucket {
        /// Its address.
        bucket: String,
    },
    /// An object store does not take the credentials, or they do not open this.
    #[error(
        "{bucket} does not open {what} to these credentials ({status}{}{code})",
        if code.is_empty() { "" } else { " " }
    )]
    Denied {
        /// The address of the bucket.
        bucket: String,
        /// The path that was asked for.
        what: String,
        /// The status of the response.
        status: u16,
        /// The store's word for the reason; empty where it has none.
        code: String,
    },
    /// A bucket is asked for where it is not.
    #[error("{bucket} is in another region: {region}")]
    OtherRegion {
        /// The address of the bucket.
        bucket: String,
        /// Its region, where the store says it.
        region: String,
    },
    /// A file that was listed, or is wanted, is not there.
    #[error("{url}: not there (404)")]
    NoFile {
        /// The address.
        url: String,
    },
    /// The server answered with another status than one that goes on.
    #[error("{url}: the server answered with status {status}{}", tried(*tries))]
    Status {
        /// The address.
        url: String,
        /// The status.
        status: u16,
        /// How often it was asked.
        tries: u32,
    },
    /// A server that is asked for more than files refuses, and may say why.
    #[error("{url}: the server answered with status {status}{}", reason(printed))]
    Refused {
        /// The address.
        url: String,
        /// The status.
        status: u16,
        /// What it says, in one line; empty where it says nothing.
        printed: String,
    },
    /// No answer, or one that ended early.
    #[error("{url}: {what}{}", tried(*tries))]
    Connection {
        /// The address.
        url: String,
        /// What was going on.
        what: String,
        /// How often it was tried.
        tries: u32,
        /// The reason.
        source: io::Error,
    },
    /// A proxy does not let this user ask for the address.
    #[error(
        "{variable}: the proxy {proxy} does not pass on requests for {url} ({status}{})",
        if *status == 407 { ": it wants another name and password" } else { "" }
    )]
    Proxy {
        /// The variable that names it.
        variable: &'static str,
        /// Its host and port.
        proxy: String,
        /// The address.
        url: String,
        /// The status of its answer.
        status: u16,
    },
    /// An answer that ended, without an error, before all the bytes had come that it announced.
    #[error(
        "{url}: the server's answer ended early, {left} {} before its end{}",
        if *left == 1 { "byte" } else { "bytes" },
        tried(*tries)
    )]
    Short {
        /// The address.
        url: String,
        /// Bytes that were still to come.
        left: u64,
        /// How often it was tried, without a byte in between.
        tries: u32,
    },
    /// The answer is not what the protocol says.
    #[error("{url}: {what}")]
    Answer {
        /// The address.
        url: String,
        /// What was seen and what was wanted.
        what: String,
    },
    /// The files are others than those that were listed at the start.
    #[error("{url}: {what}: what is published there has changed since this run began")]
    Moved {
        /// The address, or the repository.
        url: String,
        /// What was seen and what was wanted.
        what: String,
    },
    /// A server without ranges is asked for bytes far into a file.
    #[error(
        "{url}: the server sends whole files only, and byte {at} of it is wanted; only packing reads it, once from its first byte to its last"
    )]
    NoRanges {
        /// The address.
        url: String,
        /// The byte.
        at: u64,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
}

fn tried(tries: u32) -> String {
    match tries {
        0 | 1 => String::new(),
        n => format!(", {n} times in a row"),
    }
}

fn reason(printed: &str) -> String {
    match printed {
        "" => String::new(),
        printed => format!(": {printed}"),
    }
}

impl RemoteError {
    /// Whether nothing is known of the checkpoint: the network, the server or this machine failed.
    pub(crate) fn is_environment(&self) -> bool {
        match self {
            Self::Environment { .. }
            | Self::Token { .. }
            | Self::Certificates { .. }
            | Self::NoCredentials { .. }
            | Self::Denied { .. }
            | Self::OtherRegion { .. }
            | Self::NotAllowed { .. }
            | Self::Status { .. }
            | Self::Refused { .. }
            | Self::Connection { .. }
            | Self::Proxy { .. }
            | Self::Short { .. }
            | Self::NoRanges { .. } => true,
            Self::NoRepository { .. }
            | Self::NoRevision { .. }
            | Self::NoBucket { .. }
            | Self::NoFile { .. }
            | Self::Answer { .. }
            | Self::Moved { .. }
            | Self::Interrupted => false,
        }
    }
}
