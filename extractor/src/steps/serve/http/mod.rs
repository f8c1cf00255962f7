//! HTTP: connections, their limits, and the end of the server.

mod body;
mod patience;
mod reply;
mod routes;

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use segpack_formats::io::CancelToken;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use self::patience::Patience;
use super::ServeError;
use super::facts::Shared;

/// Connections at a time; others wait until one is free.
const MAX_CONNECTIONS: usize = 256;
/// How long a connection may take to send the head of a request, and be idle before it.
const HEAD_TIME: Duration = Duration::from_secs(15);
/// How long a client may leave unread what it is sent.
const READ_TIME: Duration = Duration::from_secs(60);
/// Bytes that a connection buffers.
const BUFFER: usize = 64 << 10;
/// How often is looked whether the server is to stop.
const LOOK: Duration = Duration::from_millis(20);
/// How long answers that were cut may take to be sent.
const FLUSH_TIME: Duration = Duration::from_secs(2);

/// Listens at an address.
///
/// # Errors
/// Where other machines reach it and that is not allowed, or it cannot be had.
pub(super) fn listen(address: SocketAddr, allow_remote: bool) -> Result<TcpListener, ServeError> {
    if !allow_remote && !address.ip().is_loopback() {
        return Err(ServeError::Remote { address });
    }
    let listen = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().map_err(|source| ServeError::Listen { address, source })
}

/// Talks to clients until `stop` is requested or the queue is closed. What is answered then has
/// `grace` to end; after it, it is cut.
///
/// # Errors
/// Where the system gives no sockets.
pub(super) fn serve(
    listener: TcpListener,
    shared: &Arc<Shared>,
    stop: &CancelToken,
    grace: Duration,
) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(ServeError::Server)?;
    let served = runtime.block_on(talk(listener, shared, stop, grace));
    // a worker that waits for requests ends by it
    shared.queue.close();
    served.map_err(ServeError::Server)
}

async fn talk(
    listener: TcpListener,
    shared: &Arc<Shared>,
    stop: &CancelToken,
    grace: Duration,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = GracefulShutdown::new();
    while !stop.is_cancelled() && !shared.queue.is_closed() {
        let slot = timeout(LOOK, Arc::clone(&slots).acquire_owned()).await;
        let Ok(Ok(slot)) = slot else {
            continue; // all are taken
        };
        match timeout(LOOK, listener.accept()).await {
            Err(_) => {}
            Ok(Ok((stream, _))) => connect(stream, slot, shared, &connections),
            // of one connection, or too many open files: others may do better
            Ok(Err(_)) => sleep(LOOK).await,
        }
    }
    drop(listener);
    shared.queue.close();
    end(connections, shared, grace).await;
    Ok(())
}

/// Lets what is answered end, then cuts it.
async fn end(connections: GracefulShutdown, shared: &Shared, grace: Duration) {
    let mut all_ended = std::pin::pin!(connections.shutdown());
    if timeout(grace, all_ended.as_mut()).await.is_err() {
        shared.queue.cut();
        // whoever does not read by then gets no more
        let _ = timeout(FLUSH_TIME, all_ended).await;
    }
}

/// Talks to a client on a task of its own.
fn connect(
    stream: TcpStream,
    slot: OwnedSemaphorePermit,
    shared: &Arc<Shared>,
    connections: &GracefulShutdown,
) {
    // pieces of text are small and wanted at once
    let _ = stream.set_nodelay(true);
    let shared = Arc::clone(shared);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(routes::answer(&shared, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(Patience::new(stream, READ_TIME)), service);
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        // a client that broke off is told nothing
        let _ = connection.await;
        drop(slot);
    });
}
