//! The folder that a step writes: refused where it would destroy something, locked, whole or resumable.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use segpack_formats::FormatError;
use segpack_formats::io::{sync_folder, write_all_at};
use segpack_manifests::pack_folder::PARTIAL;

use super::StepError;

/// How much free space stays beyond what a step is known to need, in bytes.
const SPARE_BYTES: u64 = 16 << 20;

/// Bytes after which a file that is still being written begins to go to the drive: the kernel would wait until a
/// tenth of the memory is dirty, or for the final sync, and the drive would idle while digests are taken.
pub const FLUSH_BYTES: u64 = 64 << 20;

/// An output folder under this process's lock; unfinished things live in its `.partial`.
#[derive(Debug)]
pub struct OutputFolder {
    path: PathBuf,
    created: bool,
    _lock: File,
}

/// What a folder holds before anything is written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// It does not exist, or is empty.
    Nothing,
    /// An unfinished run's `.partial`.
    Unfinished,
    /// Something else.
    Occupied,
}

/// Looks at an output path.
///
/// # Errors
/// `Refused` where it is a file or a link that leads nowhere.
pub fn look(path: &Path) -> Result<Before, StepError> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(Before::Nothing);
    }
    if !path.is_dir() {
        return Err(StepError::Refused(format!("{} exists and is not a folder", path.display())));
    }
    let mut entries = fs::read_dir(path).map_err(StepError::io("list", path))?;
    if path.join(PARTIAL).is_dir() {
        return Ok(Before::Unfinished);
    }
    Ok(if entries.next().is_none() { Before::Nothing } else { Before::Occupied })
}

/// Refuses an output folder inside the input folder: its files would become part of the input.
///
/// # Errors
/// `Refused` with both paths.
pub fn refuse_inside(output: &Path, input: &Path) -> Result<(), StepError> {
    let input = input.canonicalize().map_err(StepError::io("open", input))?;
    // the part that exists decides; what follows it is new
    let mut existing = std::path::absolute(output).map_err(StepError::io("find", output))?;
    while !existing.exists() && existing.pop() {}
    let existing = existing.canonicalize().map_err(StepError::io("open", &existing))?;
    if existing.starts_with(&input) {
        return Err(StepError::Refused(format!(
            "output {} lies inside the input {}; choose another place",
            output.display(),
            input.display()
        )));
    }
    Ok(())
}

impl OutputFolder {
    /// Makes the folder and its `.partial`, and locks it.
    ///
    /// # Errors
    /// `Refused` where another process writes there; `Io`.
    pub fn open(path: &Path) -> Result<Self, StepError> {
        let created = !path.exists();
        let partial = path.join(PARTIAL);
        fs::create_dir_all(&partial).map_err(StepError::io("create", &partial))?;
        let lock_path = partial.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(StepError::io("create", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), created, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                Err(StepError::Refused(format!("another segpack is writing to {}", path.display())))
            }
            Err(TryLockError::Error(e)) => Err(StepError::io("lock", &lock_path)(e)),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a file is written before it is whole.
    pub fn partial(&self, relative: &str) -> PathBuf {
        self.path.join(PARTIAL).join(relative)
    }

    /// Creates an empty unfinished file, its folders too.
    ///
    /// # Errors
    /// `Io`.
    pub fn create(&self, relative: &str) -> Result<(Arc<File>, PathBuf), StepError> {
        let path = self.partial(relative);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(StepError::io("create", parent))?;
        }
        let file = File::create(&path).map_err(StepError::io("create", &path))?;
        Ok((Arc::new(file), path))
    }

    /// Makes an unfinished file durable and moves it to its place.
    ///
    /// # Errors
    /// `Io`.
    pub fn publish(&self, file: &File, relative: &str) -> Result<(), StepError> {
        let (from, to) = (self.partial(relative), self.path.join(relative));
        file.sync_all().map_err(StepError::io("sync", &from))?;
        let parent = to.parent().unwrap_or(&self.path);
        fs::create_dir_all(parent).map_err(StepError::io("create", parent))?;
        fs::rename(&from, &to).map_err(StepError::io("rename", &from))?;
        Ok(sync_folder(parent)?)
    }

    /// Lets `work` write files that a thread of its own makes durable and moves to their places, so that nobody
    /// who computes waits for the drive.
    ///
    /// # Errors
    /// Whatever the publishing or the work returns.
    pub fn with_publisher<'a>(
        &'a self,
        queue: usize,
        work: impl FnOnce(&Publisher<'a>) -> Result<(), StepError>,
    ) -> Result<(), StepError> {
        let (sender, receiver) = sync_channel(queue.max(1));
        thread::scope(|scope| {
            let publishing = scope.spawn(|| self.publish_all(receiver));
            let publisher = Publisher { sender };
            let worked = work(&publisher);
            drop(publisher);
            let died = || StepError::Refused("the publishing thread died".to_owned());
            let published = publishing.join().unwrap_or_else(|_| Err(died()));
            // where publishing failed, the workers only know that nobody listens
            published.and(worked)
        })
    }

    fn publish_all(&self, requests: Receiver<Request<'_>>) -> Result<(), StepError> {
        for request in requests {
            match request {
                // the kernel reports a failed write to one sync of an open file only, so this one must not lose it
                Request::Flush(file) => file.sync_data().map_err(StepError::io("sync", &self.path))?,
                Request::Publish { file, relative, then } => {
                    self.publish(&file, &relative)?;
                    then()?;
                }
            }
        }
        Ok(())
    }

    /// Writes a small file and publishes it.
    ///
    /// # Errors
    /// `Io`.
    pub fn write_small(
        &self,
        relative: &str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), StepError> {
        let (file, path) = self.create(relative)?;
        let mut buffered = io::BufWriter::new(&*file);
        write(&mut buffered).and_then(|()| buffered.flush()).map_err(StepError::io("write", &path))?;
        drop(buffered);
        self.publish(&file, relative)
    }

    /// Refuses to begin what the disk cannot hold.
    ///
    /// # Errors
    /// `Refused` with both figures.
    pub fn check_space(&self, needed: u64) -> Result<(), StepError> {
        let free =
            fs4::available_space(&self.path).map_err(StepError::io("find the free space of", &self.path))?;
        if free >= needed.saturating_add(SPARE_BYTES) {
            return Ok(());
        }
        Err(StepError::Refused(format!(
            "{} needs {needed} bytes and {SPARE_BYTES} to spare, but its disk has only {free} free",
            self.path.display()
        )))
    }

    /// Everything is in place: takes `.partial` away.
    ///
    /// # Errors
    /// `Io`.
    pub fn finish(self) -> Result<(), StepError> {
        let partial = self.path.join(PARTIAL);
        fs::remove_dir_all(&partial).map_err(StepError::io("remove", &partial))?;
        Ok(sync_folder(&self.path)?)
    }

    /// Takes back everything that this and earlier unfinished runs wrote below these entries.
    pub fn abandon(self, entries: &[&str]) {
        for entry in entries.iter().chain(&[PARTIAL]) {
            let path = self.path.join(entry);
            // best effort: the error that led here is what the user must see
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
        if self.created {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// What is to be done once a file is in its place.
pub type Then<'a> = Box<dyn FnOnce() -> Result<(), StepError> + Send + 'a>;

enum Request<'a> {
    Flush(Arc<File>),
    Publish { file: Arc<File>, relative: String, then: Then<'a> },
}

/// Hands finished files over to the thread that publishes them.
pub struct Publisher<'a> {
    sender: SyncSender<Request<'a>>,
}

impl<'a> Publisher<'a> {
    /// Begins to write a growing file to the drive, unless the thread has enough to do.
    pub fn flush(&self, file: &Arc<File>) {
        let _ = self.sender.try_send(Request::Flush(Arc::clone(file)));
    }

    /// Publishes a file, then does what is to be done.
    ///
    /// # Errors
    /// `Interrupted` where publishing has failed before; the failure itself is what `with_publisher` returns.
    pub fn publish(&self, file: Arc<File>, relative: String, then: Then<'a>) -> Result<(), StepError> {
        let request = Request::Publish { file, relative, then };
        self.sender.send(request).map_err(|_| FormatError::Interrupted.into())
    }
}

/// Counts written bytes and asks for a flush every [`FLUSH_BYTES`].
pub struct Flushing<'p, 'a> {
    publisher: &'p Publisher<'a>,
    file: Arc<File>,
    pending: std::cell::Cell<u64>,
}

impl<'p, 'a> Flushing<'p, 'a> {
    /// Nothing is written yet.
    pub fn new(publisher: &'p Publisher<'a>, file: &Arc<File>) -> Self {
        Self { publisher, file: Arc::clone(file), pending: std::cell::Cell::new(0) }
    }

    /// So many more bytes are written.
    pub fn add(&self, bytes: u64) {
        self.pending.set(self.pending.get() + bytes);
        if self.pending.get() >= FLUSH_BYTES {
            self.pending.set(0);
            self.publisher.flush(&self.file);
        }
    }
}

/// Buffers that travel between the thread that has the bytes and the one that writes them.
const BEHIND: usize = 3;

/// Takes the bytes of a file in order; another thread writes them.
pub struct Behind {
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
}

impl Behind {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// `Interrupted` where writing has failed; the failure itself is what [`write_behind`] returns.
    pub fn write(&self, piece: &[u8]) -> Result<(), FormatError> {
        let mut buffer = self.empty.recv().map_err(|_| FormatError::Interrupted)?;
        buffer.clear();
        buffer.extend_from_slice(piece);
        self.full.send(buffer).map_err(|_| FormatError::Interrupted)
    }
}

/// Lets `produce` give the bytes of a file while a thread of its own writes them: copying into the page cache costs
/// as much as digesting.
///
/// # Errors
/// `Io` on the file, or whatever `produce` returns.
pub fn write_behind<T>(
    file: &File,
    path: &Path,
    flushing: Flushing<'_, '_>,
    produce: impl FnOnce(Behind) -> Result<T, FormatError>,
) -> Result<T, FormatError> {
    let (full, to_write) = sync_channel::<Vec<u8>>(BEHIND);
    let (written, empty) = sync_channel(BEHIND);
    for _ in 0..BEHIND {
        let _ = written.send(Vec::new()); // there is room for all
    }
    thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let mut at = 0;
            for buffer in to_write {
                write_all_at(file, &buffer, at).map_err(FormatError::io("write", path))?;
                at += buffer.len() as u64;
                flushing.add(buffer.len() as u64);
                let _ = written.send(buffer); // nobody waits for it at the end
            }
            Ok(())
        });
        let produced = produce(Behind { full, empty });
        // a failed write explains why producing stopped
        writer.join().unwrap_or(Err(FormatError::Interrupted))?;
        produced
    })
}
