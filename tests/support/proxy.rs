//! A proxy on this machine, and servers with TLS behind it. It passes on requests by their whole
//! address, makes tunnels, knows names that nobody else knows, and may want a password. One thread
//! for each connection; it ends with the test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::checkpoint::fixtures;

/// A name that only the proxy knows, and the certificate of `fixtures/tls` has.
pub const HOST: &str = "hub.invalid";

/// What a proxy does.
#[derive(Debug, Clone, Default)]
pub struct Manners {
    /// Where it finds [`HOST`]: host and port.
    pub host: String,
    /// `name:password` in base64, without which it does nothing.
    pub password: Option<&'static str>,
    /// Tunnels get this status.
    pub refuse_tunnels: Option<u16>,
    /// It is spoken to with TLS.
    pub tls: bool,
}

/// The proxy.
pub struct Proxy {
    address: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub fn with(manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let log = Arc::default();
        let (manners, logged) = (Arc::new(manners), Arc::clone(&log));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (manners, log) = (Arc::clone(&manners), Arc::clone(&logged));
                thread::spawn(move || match manners.tls {
                    true => serve(&mut tls(stream), &manners, &log),
                    false => serve(&mut { stream }, &manners, &log),
                });
            }
        });
        Self { address, log }
    }

    /// Its host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The first lines of all requests so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

/// A server with TLS in front of one without. Its address: host and port.
pub fn with_tls(address: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let front = listener.local_addr().unwrap().to_string();
    let address = address.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let address = address.clone();
            thread::spawn(move || {
                let mut client = tls(stream);
                while let Some(head) = read_head(&mut client) {
                    if !pass_on(&mut client, &head.join(""), &address) {
                        return;
                    }
                }
            });
        }
    });
    front
}

/// What `SSL_CERT_FILE` has to be, so that the certificate is trusted.
pub fn authority() -> PathBuf {
    fixtures().join("tls/authority.pem")
}

fn tls(stream: TcpStream) -> StreamOwned<ServerConnection, TcpStream> {
    let file = |name| fixtures().join("tls").join(name);
    let certificate = CertificateDer::from_pem_file(file("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let connection = ServerConnection::new(Arc::new(config)).unwrap();
    StreamOwned::new(connection, stream)
}

/// Both directions of a tunnel can only be read at once where it is no TLS connection.
trait Client: Read + Write {
    fn raw(&self) -> Option<TcpStream>;
}

impl Client for TcpStream {
    fn raw(&self) -> Option<TcpStream> {
        self.try_clone().ok()
    }
}

impl Client for StreamOwned<ServerConnection, TcpStream> {
    fn raw(&self) -> Option<TcpStream> {
        None
    }
}

fn serve(client: &mut dyn Client, manners: &Manners, log: &Mutex<Vec<String>>) {
    while let Some(head) = read_head(client) {
        log.lock().unwrap().push(head[0].trim_end().to_owned());
        let wanted = manners
            .password
            .map(|p| format!("Proxy-Authorization: Basic {p}\r\n"));
        if wanted.is_some_and(|line| !head.contains(&line)) {
            answer(client, 407);
            continue;
        }
        let words: Vec<&str> = head[0].split(' ').collect();
        if words[0] == "CONNECT" {
            match manners.refuse_tunnels {
                Some(status) => answer(client, status),
                None => return tunnel(client, &known(manners, words[1])),
            }
            continue;
        }
        // a request that is not for a proxy has no host in its first line
        let Some((authority, path)) = words[1]
            .strip_prefix("http://")
            .and_then(|rest| rest.split_once('/'))
        else {
            answer(client, 400);
            continue;
        };
        let first = format!("{} /{path} {}", words[0], words[2]);
        let rest = head[1..].iter().filter(|line| !line.starts_with("Proxy-"));
        let head = first + &rest.map(String::as_str).collect::<String>();
        if !pass_on(client, &head, &known(manners, authority)) {
            return;
        }
    }
}

/// Where the host of an authority is.
fn known(manners: &Manners, authority: &str) -> String {
    let name = authority.split(':').next().unwrap();
    match name == HOST {
        true => manners.host.clone(),
        false => authority.to_owned(),
    }
}

/// The lines of a head, with their ends; no bodies are sent through this proxy.
fn read_head(from: &mut (impl Read + ?Sized)) -> Option<Vec<String>> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        from.read_exact(&mut byte).ok()?;
        bytes.extend(byte);
    }
    let text = String::from_utf8(bytes).ok()?;
    Some(text.split_inclusive("\r\n").map(str::to_owned).collect())
}

/// Sends one request on, and its answer back. Whether the connection goes on.
fn pass_on(client: &mut (impl Write + ?Sized), head: &str, address: &str) -> bool {
    let Ok(mut server) = TcpStream::connect(address) else {
        return client
            .write_all(b"HTTP/1.1 502 .\r\nContent-Length: 0\r\n\r\n")
            .is_ok();
    };
    server.write_all(head.as_bytes()).unwrap();
    server.shutdown(Shutdown::Write).unwrap(); // so that the server ends after it
    let mut reader = BufReader::new(server);
    loop {
        let bytes = reader.fill_buf().unwrap_or_default();
        let length = bytes.len();
        if length == 0 {
            return true;
        }
        if client
            .write_all(bytes)
            .and_then(|()| client.flush())
            .is_err()
        {
            return false;
        }
        reader.consume(length);
    }
}

fn answer(client: &mut dyn Client, status: u16) {
    let text = format!("HTTP/1.1 {status} .\r\nContent-Length: 0\r\n\r\n");
    let _ = client
        .write_all(text.as_bytes())
        .and_then(|()| client.flush());
}

fn tunnel(client: &mut dyn Client, address: &str) {
    let raw = client.raw().expect("a tunnel through TLS");
    let server = TcpStream::connect(address).unwrap();
    client.write_all(b"HTTP/1.1 200 .\r\n\r\n").unwrap();
    let (from, to) = (raw.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || copy(from, to));
    copy(server, raw);
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
