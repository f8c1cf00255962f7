//! Why a pack is not served.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a pack is not served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Others could reach it, and that was not asked for.
    #[error("{address} can be reached from other machines")]
    Remote {
        /// The address.
        address: SocketAddr,
    },
    /// The address is taken, or is none of this machine's.
    #[error("cannot listen at {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The server cannot begin or go on.
    #[error("the server failed")]
    Server(#[source] io::Error),
    /// A file holds no key.
    #[error(
        "{} holds no key: wanted one line of 1 to 1024 visible ASCII characters",
        path.display()
    )]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// The environment holds no key.
    #[error("{variable} holds no key: wanted 1 to 1024 visible ASCII characters")]
    KeyVariable {
        /// The variable.
        variable: &'static str,
    },
    /// There is no context for a prompt and a token.
    #[error(
        "a context of {wanted} positions cannot be served; wanted 1 to {longest}, which the model was \
         made for"
    )]
    Context {
        /// Positions that were requested.
        wanted: usize,
        /// Positions of the model.
        longest: usize,
    },
}
