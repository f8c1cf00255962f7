//! Requests through the proxies that the environment names.
//!
//! Addresses with TLS are reached through a tunnel (`CONNECT`), which ureq makes. Of the others the
//! proxy is asked by their whole address
//! (<https://www.rfc-editor.org/rfc/rfc9112#section-3.2.2>), as Hugging Face's own client and curl
//! ask it: many proxies make tunnels to port 443 alone. ureq knows tunnels only, so the connections
//! are made here.

use std::fmt;
use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, DefaultConnector, NextTimeout, Transport,
};
use ureq::{Agent, Error, Proxy, ProxyProtocol};

use super::{RemoteError, environment};

/// A proxy, and the variable that names it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct NamedProxy {
    /// The variable.
    pub variable: &'static str,
    proxy: Proxy,
}

impl fmt::Debug for NamedProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address()) // no password in any log
    }
}

impl NamedProxy {
    /// The proxy that the environment names for an address; `None` where it names none.
    ///
    /// # Errors
    /// `Environment` where the variable names no proxy that can be used. Its value may hold a
    /// password, so no error shows it.
    pub(super) fn of(uri: &Uri) -> Result<Option<Self>, RemoteError> {
        let scheme = uri.scheme_str().unwrap_or_default();
        let host = bare_host(uri);
        let port = uri.port_u16().unwrap_or(default_port(scheme));
        let Some((variable, address)) = environment::proxy(scheme, host, port) else {
            return Ok(None);
        };
        let wrong = |why: &str| RemoteError::Environment {
            variable,
            why: why.to_owned(),
        };
        let proxy = Proxy::new(&address);
        let proxy = proxy.map_err(|_| wrong("is not the address of a proxy"))?;
        match proxy.protocol() {
            ProxyProtocol::Http | ProxyProtocol::Https => Ok(Some(Self { variable, proxy })),
            _ => Err(wrong("names a SOCKS proxy; only HTTP proxies can be used")),
        }
    }

    /// Its host and port, without the password.
    pub(super) fn address(&self) -> String {
        format!("{}:{}", self.proxy.host(), self.proxy.port())
    }

    /// Whether connections to it use TLS.
    pub(super) fn uses_tls(&self) -> bool {
        self.proxy.protocol() == ProxyProtocol::Https
    }

    /// An agent whose requests go through it: of addresses with TLS in tunnels, of others by their
    /// whole address.
    pub(super) fn agent(
        &self,
        config: ureq::config::ConfigBuilder<ureq::typestate::AgentScope>,
        is_tls: bool,
    ) -> Agent {
        if is_tls {
            return config.proxy(Some(self.proxy.clone())).build().into();
        }
        let config = config.proxy(None).build();
        let resolver = ToProxy {
            proxy: self.proxy.uri().clone(),
            system: DefaultResolver::default(),
        };
        let connector = Forwarding {
            proxy: self.proxy.uri().clone(),
            authorization: self.authorization(),
            tcp: DefaultConnector::new(),
        };
        Agent::with_parts(config, connector, resolver)
    }

    /// The line of a request that has the name and the password; empty where there are none.
    fn authorization(&self) -> String {
        let (name, password) = (self.proxy.username(), self.proxy.password());
        if name.is_none() && password.is_none() {
            return String::new();
        }
        let (name, password) = (name.unwrap_or_default(), password.unwrap_or_default());
        let both = STANDARD.encode(format!("{name}:{password}"));
        format!("Proxy-Authorization: Basic {both}\r\n")
    }

    /// What a proxy says that makes no tunnel, where another try does not help: its status is one of
    /// those that blame the request.
    pub(super) fn refusal(&self, url: &str, reason: &str) -> Option<RemoteError> {
        let status = reason.split_once("responded ")?.1.split('/').next()?;
        let status: u16 = status.parse().ok()?;
        self.refused(url, status)
    }

    /// The same, where the proxy was asked by the whole address.
    pub(super) fn refused(&self, url: &str, status: u16) -> Option<RemoteError> {
        let is_final = (400..500).contains(&status) && !matches!(status, 408 | 425 | 429);
        is_final.then(|| RemoteError::Proxy {
            variable: self.variable,
            proxy: self.address(),
            url: url.to_owned(),
            status,
        })
    }
}

/// The host of an address, without the brackets of IPv6.
pub(super) fn bare_host(uri: &Uri) -> &str {
    let host = uri.host().unwrap_or_default();
    host.trim_start_matches('[').trim_end_matches(']')
}

fn default_port(scheme: &str) -> u16 {
    if scheme == "https" { 443 } else { 80 }
}

/// Finds the proxy, whatever is asked for: that host it may not even know.
#[derive(Debug)]
struct ToProxy {
    proxy: Uri,
    system: DefaultResolver,
}

impl Resolver for ToProxy {
    fn resolve(
        &self,
        _: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        self.system.resolve(&self.proxy, config, timeout)
    }
}

/// Connects to a proxy that is asked by whole addresses.
struct Forwarding {
    proxy: Uri,
    authorization: String,
    tcp: DefaultConnector,
}

impl fmt::Debug for Forwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarding").finish_non_exhaustive()
    }
}

impl Connector<()> for Forwarding {
    type Out = Forwarded;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<()>,
    ) -> Result<Option<Forwarded>, Error> {
        let to_proxy = ConnectionDetails {
            uri: &self.proxy,
            addrs: details.addrs.clone(), // those of the proxy: `ToProxy` has found it
            config: details.config,
            request_level: details.request_level,
            resolver: details.resolver,
            now: details.now,
            timeout: details.timeout,
            current_time: details.current_time.clone(),
            run_connector: details.run_connector.clone(),
            register_shutdown: details.register_shutdown.clone(),
        };
        let connection = self.tcp.connect(&to_proxy, chained)?;
        let authority = details.uri.authority().map_or("", |a| a.as_str());
        Ok(connection.map(|connection| Forwarded {
            connection,
            origin: format!("http://{authority}"),
            authorization: self.authorization.clone(),
            begins: true,
        }))
    }
}

/// A connection to a proxy, for requests of one origin.
struct Forwarded {
    connection: Box<dyn Transport>,
    /// What stands before the path: scheme, host and port.
    origin: String,
    authorization: String,
    /// Whether the next bytes are the head of a request.
    begins: bool,
}

impl fmt::Debug for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarded").finish_non_exhaustive()
    }
}

impl Forwarded {
    /// Makes the head of a request for a server, the first `length` bytes of what is sent, one for
    /// the proxy. Its length then.
    fn readdress(&mut self, length: usize) -> Result<usize, Error> {
        let head = self.connection.buffers().output();
        let rewritten = readdressed(head, length, &self.origin, &self.authorization);
        rewritten.ok_or_else(|| {
            let what = "the head of a request is too long for a proxy";
            Error::Other(io::Error::other(what).into())
        })
    }
}

/// `METHOD /path VERSION` becomes `METHOD origin/path VERSION`, and a line more follows it. `None`
/// where that does not fit into the buffer.
fn readdressed(buffer: &mut [u8], length: usize, origin: &str, line: &str) -> Option<usize> {
    let head = buffer.get(..length)?;
    let target = head.iter().position(|byte| *byte == b' ')? + 1;
    let second = head.windows(2).position(|two| two == b"\r\n")? + 2;
    let length = insert(buffer, length, second, line.as_bytes())?;
    insert(buffer, length, target, origin.as_bytes())
}

/// Inserts bytes into the first `length` of a buffer; `None` where they do not fit.
fn insert(buffer: &mut [u8], length: usize, at: usize, bytes: &[u8]) -> Option<usize> {
    let longer = length.checked_add(bytes.len())?;
    if longer > buffer.len() {
        return None;
    }
    let behind = at + bytes.len();
    buffer.copy_within(at..length, behind);
    buffer[at..behind].copy_from_slice(bytes);
    Some(longer)
}

impl Transport for Forwarded {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.connection.buffers()
    }

    /// ureq sends the head of a request in one piece, and bodies after it.
    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let amount = if std::mem::take(&mut self.begins) {
            self.readdress(amount)?
        } else {
            amount
        };
        self.connection.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.begins = true; // nothing more is sent of a request once its answer is waited for
        self.connection.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.connection.is_open()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_for_a_server_becomes_one_for_a_proxy() {
        let mut buffer = [0; 100];
        let head = b"GET /a?b HTTP/1.1\r\nHost: h:1\r\n\r\n";
        buffer[..head.len()].copy_from_slice(head);
        let length = readdressed(&mut buffer, head.len(), "http://h:1", "X: y\r\n").unwrap();
        let wanted = "GET http://h:1/a?b HTTP/1.1\r\nX: y\r\nHost: h:1\r\n\r\n";
        assert_eq!(&buffer[..length], wanted.as_bytes());
        assert_eq!(readdressed(&mut buffer, 90, "http://h:1", ""), Some(100));
        assert_eq!(readdressed(&mut buffer, 91, "http://h:1", ""), None);
        assert_eq!(readdressed(&mut buffer, 3, "http://h:1", ""), None);
    }

    #[test]
    fn no_log_shows_the_password_of_a_proxy() {
        let proxy = Proxy::new("http://user:secret@proxy:3128").unwrap();
        let variable = "HTTP_PROXY";
        let named = NamedProxy { variable, proxy };
        assert_eq!(
            format!("{named:?} {}", named.address()),
            "proxy:3128 proxy:3128"
        );
        let line = "Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n";
        assert_eq!(named.authorization(), line);
    }
}
