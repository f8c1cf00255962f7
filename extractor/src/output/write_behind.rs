//! Write-behind: one thread has the bytes of a file, a second digests them, a third writes them.
//! Reading, digesting and writing take about as long as each other.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use segpack_formats::FormatError;
use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{SequentialWriter, WriteBuffer};

use super::Flushing;

/// Buffers that travel between the three threads.
const BUFFERS: usize = 4;

/// What [`write_behind`] and the thread that reads for it take, in bytes, rounded up.
pub(crate) const WRITE_BEHIND_MEMORY: u64 = 6 << 20;

/// Takes the bytes of a file in order; other threads digest and write them.
pub(crate) struct WriteBehind {
    full: SyncSender<WriteBuffer>,
    empty: Receiver<WriteBuffer>,
    filling: Option<WriteBuffer>,
}

impl WriteBehind {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// `WorkerDied` where writing has failed; the failure itself is what [`write_behind`] returns.
    pub(crate) fn write(&mut self, mut piece: &[u8]) -> Result<(), FormatError> {
        while !piece.is_empty() {
            let mut buffer = match self.filling.take() {
                Some(buffer) => buffer,
                None => self.empty.recv().map_err(|_| died("writing"))?,
            };
            piece = buffer.take(piece);
            if buffer.is_full() {
                self.full.send(buffer).map_err(|_| died("digesting"))?;
            } else {
                self.filling = Some(buffer);
            }
        }
        Ok(())
    }

    fn finish(self) {
        if let Some(last) = self.filling {
            let _ = self.full.send(last); // where writing has failed, that says why
        }
    }
}

fn died(thread: &'static str) -> FormatError {
    FormatError::WorkerDied { thread }
}

/// Lets `produce` give the bytes of a new file while two threads of their own digest and write
/// them. Returns the file's SHA-256, if `digested`, too.
///
/// # Errors
/// `Io` on the file, `WorkerDied`, or whatever `produce` returns.
pub(crate) fn write_behind<T, E: From<FormatError>>(
    file: &File,
    path: &Path,
    flushing: Flushing<'_, '_>,
    digested: bool,
    produce: impl FnOnce(&mut WriteBehind) -> Result<T, E>,
) -> Result<(T, Option<Sha256>), E> {
    let mut sha256 = digested.then(Sha256Hasher::default);
    let mut digest = |bytes: &[u8]| {
        if let Some(sha256) = &mut sha256 {
            sha256.update(bytes);
        }
    };
    let produced = write_digested(file, path, flushing, &mut digest, produce)?;
    Ok((produced, sha256.map(Sha256Hasher::finish)))
}

/// [`write_behind`] with any digest, which gets all bytes of the file in order.
fn write_digested<T, E: From<FormatError>>(
    file: &File,
    path: &Path,
    flushing: Flushing<'_, '_>,
    digest: &mut (dyn FnMut(&[u8]) + Send),
    produce: impl FnOnce(&mut WriteBehind) -> Result<T, E>,
) -> Result<T, E> {
    let (full, to_digest) = sync_channel::<WriteBuffer>(BUFFERS);
    let (passed_on, to_write) = sync_channel::<WriteBuffer>(BUFFERS);
    let (written, empty) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        let _ = written.send(WriteBuffer::default()); // the channel has space for all
    }
    thread::scope(|scope| {
        let digesting = move || digest_all(to_digest, &passed_on, digest);
        let digester = thread::Builder::new().spawn_scoped(scope, digesting);
        let digester = digester.map_err(FormatError::Thread)?;
        let writing = move || write_all(file, path, &flushing, to_write, &written);
        let writer = thread::Builder::new().spawn_scoped(scope, writing);
        let writer = writer.map_err(FormatError::Thread)?;
        let mut behind = WriteBehind {
            full,
            empty,
            filling: None,
        };
        let produced = produce(&mut behind);
        behind.finish();
        // a failed write, then a dead thread, explain why producing stopped
        let written = writer.join().unwrap_or_else(|_| Err(died("writing")));
        let digested = digester.join().map_err(|_| died("digesting"));
        written?;
        digested?;
        produced
    })
}

/// Digests buffers and passes them on, until there are no more or nobody takes them.
fn digest_all(
    from: Receiver<WriteBuffer>,
    to: &SyncSender<WriteBuffer>,
    digest: &mut (dyn FnMut(&[u8]) + Send),
) {
    for buffer in from {
        digest(buffer.bytes());
        if to.send(buffer).is_err() {
            break;
        }
    }
}

/// Writes buffers in order and gives them back empty.
fn write_all(
    file: &File,
    path: &Path,
    flushing: &Flushing<'_, '_>,
    from: Receiver<WriteBuffer>,
    to: &SyncSender<WriteBuffer>,
) -> Result<(), FormatError> {
    let mut writer = SequentialWriter::new(file, path);
    for mut buffer in from {
        writer.write(&buffer)?;
        if !writer.is_direct() {
            flushing.add(buffer.bytes().len() as u64);
        }
        buffer.clear();
        let _ = to.send(buffer); // nobody waits for it at the end
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{OutputError, OutputFolder};
    use super::*;

    /// Writes 64 MiB behind a digest; what comes of it.
    fn write(digest: &mut (dyn FnMut(&[u8]) + Send)) -> Result<(), OutputError> {
        let folder = tempfile::tempdir().unwrap();
        let output = OutputFolder::open(&folder.path().join("out")).unwrap();
        output.with_publisher(1, |publisher| {
            let (file, path) = output.create("file")?;
            let flushing = Flushing::new(publisher, &file);
            write_digested(&file, &path, flushing, digest, |behind| {
                (0..64).try_for_each(|_| behind.write(&[7; 1 << 20]))
            })?;
            assert_eq!(file.metadata().unwrap().len(), 64 << 20);
            Ok(())
        })
    }

    #[test]
    fn all_bytes_are_digested_and_written() {
        let mut digested = 0;
        write(&mut |bytes| digested += bytes.len()).unwrap();
        assert_eq!(digested, 64 << 20);
    }

    #[test]
    fn a_dead_digest_thread_is_an_error_of_its_own() {
        let died = write(&mut |_| panic!("a test of what a panic comes to")).unwrap_err();
        assert!(
            matches!(
                died,
                OutputError::Format(FormatError::WorkerDied {
                    thread: "digesting"
                })
            ),
            "{died:?}"
        );
    }
}
