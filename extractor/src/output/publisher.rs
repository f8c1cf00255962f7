//! A thread that makes finished files durable and moves them to their places.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use segpack_formats::FormatError;
use segpack_formats::io::sync_data;

use super::{OutputError, OutputFolder};

/// Bytes after which a file that is still being written begins to go to the drive: the kernel would
/// wait until a tenth of the memory is dirty, or for the final sync, and the drive would idle while
/// digests are taken.
const FLUSH_BYTES: u64 = 64 << 20;

impl OutputFolder {
    /// Lets `work` write files that a thread of its own makes durable and moves to their places, so
    /// that nobody who computes waits for the drive.
    ///
    /// # Errors
    /// Whatever the publishing or the work returns.
    pub(crate) fn with_publisher<'a, E: From<OutputError>>(
        &'a self,
        queue: usize,
        work: impl FnOnce(&Publisher<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (sender, receiver) = sync_channel(queue.max(1));
        thread::scope(|scope| {
            let publishing = thread::Builder::new()
                .spawn_scoped(scope, || self.publish_all(receiver))
                .map_err(|e| OutputError::from(FormatError::Thread(e)))?;
            let publisher = Publisher { sender };
            let worked = work(&publisher);
            drop(publisher);
            let published = publishing.join().unwrap_or_else(|_| Err(died()));
            // where publishing failed, the workers only know that nobody listens
            published?;
            worked
        })
    }

    fn publish_all(&self, requests: Receiver<Request<'_>>) -> Result<(), OutputError> {
        for request in requests {
            match request {
                // the kernel reports a failed write to one sync of an open file only, so this one
                // must not lose it
                Request::Flush(file) => sync_data(&file, &self.path)?,
                Request::Publish {
                    file,
                    relative,
                    then,
                } => {
                    self.publish(&file, &relative)?;
                    then()?;
                }
            }
        }
        Ok(())
    }
}

fn died() -> OutputError {
    FormatError::WorkerDied {
        thread: "publishing",
    }
    .into()
}

/// What is done once a file has its name.
pub(crate) type Then<'a> = Box<dyn FnOnce() -> Result<(), OutputError> + Send + 'a>;

enum Request<'a> {
    Flush(Arc<File>),
    Publish {
        file: Arc<File>,
        relative: String,
        then: Then<'a>,
    },
}

/// Hands finished files over to the thread that publishes them.
pub(crate) struct Publisher<'a> {
    sender: SyncSender<Request<'a>>,
}

impl<'a> Publisher<'a> {
    /// Begins to write a growing file to the drive, unless the thread has enough to do.
    pub(crate) fn flush(&self, file: &Arc<File>) {
        let _ = self.sender.try_send(Request::Flush(Arc::clone(file)));
    }

    /// Publishes a file, then does what is to be done.
    ///
    /// # Errors
    /// `WorkerDied` where publishing has failed before; the failure itself is what
    /// `with_publisher` returns.
    pub(crate) fn publish(
        &self,
        file: Arc<File>,
        relative: String,
        then: Then<'a>,
    ) -> Result<(), OutputError> {
        let request = Request::Publish {
            file,
            relative,
            then,
        };
        self.sender.send(request).map_err(|_| died())
    }
}

/// Counts written bytes and asks for a flush every [`FLUSH_BYTES`].
pub(crate) struct Flushing<'p, 'a> {
    publisher: &'p Publisher<'a>,
    file: Arc<File>,
    pending: std::cell::Cell<u64>,
}

impl<'p, 'a> Flushing<'p, 'a> {
    /// Nothing is written yet.
    pub(crate) fn new(publisher: &'p Publisher<'a>, file: &Arc<File>) -> Self {
        Self {
            publisher,
            file: Arc::clone(file),
            pending: std::cell::Cell::new(0),
        }
    }

    /// So many more bytes are written.
    pub(crate) fn add(&self, bytes: u64) {
        self.pending.set(self.pending.get() + bytes);
        if self.pending.get() >= FLUSH_BYTES {
            self.pending.set(0);
            self.publisher.flush(&self.file);
        }
    }
}
