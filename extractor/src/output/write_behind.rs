//! Threads behind the one that has the bytes of a file: one digests them, one writes them.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use segpack_formats::FormatError;
use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{SequentialWriter, WriteBuffer};

use super::Flushing;

/// Buffers that travel between the thread that has the bytes, the one that digests and the one that
/// writes them.
const BEHIND: usize = 4;

/// What [`write_behind`] and one who reads for it take, in bytes, rounded up.
pub const BEHIND_MEMORY: u64 = 6 << 20;

/// Takes the bytes of a file in order; other threads digest and write them.
pub struct Behind {
    full: SyncSender<WriteBuffer>,
    empty: Receiver<WriteBuffer>,
    filling: Option<WriteBuffer>,
}

impl Behind {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// `Interrupted` where writing has failed; the failure itself is what [`write_behind`] returns.
    pub fn write(&mut self, mut piece: &[u8]) -> Result<(), FormatError> {
        while !piece.is_empty() {
            let mut buffer = match self.filling.take() {
                Some(buffer) => buffer,
                None => self.empty.recv().map_err(|_| FormatError::Interrupted)?,
            };
            piece = buffer.take(piece);
            if buffer.is_full() {
                self.full
                    .send(buffer)
                    .map_err(|_| FormatError::Interrupted)?;
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

/// Lets `produce` give the bytes of a new file while two threads of their own digest and write
/// them: reading, digesting and writing take about as long as each other. Returns the file's
/// SHA-256, if `digested`, too.
///
/// # Errors
/// `Io` on the file, or whatever `produce` returns.
pub fn write_behind<T>(
    file: &File,
    path: &Path,
    flushing: Flushing<'_, '_>,
    digested: bool,
    produce: impl FnOnce(&mut Behind) -> Result<T, FormatError>,
) -> Result<(T, Option<Sha256>), FormatError> {
    let (full, to_digest) = sync_channel::<WriteBuffer>(BEHIND);
    let (passed_on, to_write) = sync_channel::<WriteBuffer>(BEHIND);
    let (written, empty) = sync_channel(BEHIND);
    for _ in 0..BEHIND {
        let _ = written.send(WriteBuffer::default()); // there is room for all
    }
    thread::scope(|scope| {
        let digester = scope.spawn(move || {
            let mut sha256 = digested.then(Sha256Hasher::default);
            for buffer in to_digest {
                if let Some(sha256) = &mut sha256 {
                    sha256.update(buffer.bytes());
                }
                if passed_on.send(buffer).is_err() {
                    break;
                }
            }
            sha256.map(Sha256Hasher::finish)
        });
        let writer = scope.spawn(move || {
            let mut to = SequentialWriter::new(file, path);
            for mut buffer in to_write {
                to.write(&buffer)?;
                if !to.is_direct() {
                    flushing.add(buffer.bytes().len() as u64);
                }
                buffer.clear();
                let _ = written.send(buffer); // nobody waits for it at the end
            }
            Ok(())
        });
        let mut behind = Behind {
            full,
            empty,
            filling: None,
        };
        let produced = produce(&mut behind);
        behind.finish();
        // a failed write explains why producing stopped
        writer.join().unwrap_or(Err(FormatError::Interrupted))?;
        let sha256 = digester.join().map_err(|_| FormatError::Interrupted)?;
        Ok((produced?, sha256))
    })
}
