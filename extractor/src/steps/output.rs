//! The folder that a step writes: refused where it would destroy something, locked, whole or
//! resumable.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use segpack_formats::FormatError;
use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_formats::io::{SequentialWriter, WriteBuffer, sync_folder};
use segpack_manifests::folder::PARTIAL;

use super::StepError;

/// Folder, below [`PARTIAL`], of files that are being written.
const FILES: &str = "files";

/// Name, in [`PARTIAL`], of the file that whoever writes has locked.
pub const LOCK: &str = "lock";

/// How much free space stays beyond what a step is known to need, in bytes.
const SPARE_BYTES: u64 = 16 << 20;

/// Bytes after which a file that is still being written begins to go to the drive: the kernel would
/// wait until a tenth of the memory is dirty, or for the final sync, and the drive would idle while
/// digests are taken.
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
        return Err(StepError::Refused(format!(
            "{} exists and is not a folder",
            path.display()
        )));
    }
    let mut entries = fs::read_dir(path).map_err(StepError::io("list", path))?;
    if path.join(PARTIAL).is_dir() {
        return Ok(Before::Unfinished);
    }
    Ok(if entries.next().is_none() {
        Before::Nothing
    } else {
        Before::Occupied
    })
}

/// Refuses an unfinished output that another process is writing to at this moment.
///
/// # Errors
/// `Refused` with the path.
pub fn refuse_busy(path: &Path) -> Result<(), StepError> {
    // without a lock to open nobody writes; other errors come up when it is taken
    match File::open(path.join(PARTIAL).join(LOCK)).map(|lock| lock.try_lock()) {
        Ok(Err(TryLockError::WouldBlock)) => Err(busy(path)),
        _ => Ok(()),
    }
}

fn busy(path: &Path) -> StepError {
    StepError::Refused(format!("another segpack is writing to {}", path.display()))
}

/// Refuses an output folder inside the input folder: its files would become part of the input.
///
/// # Errors
/// `Refused` with both paths.
pub fn refuse_inside(output: &Path, input: &Path) -> Result<(), StepError> {
    let real = input.canonicalize().map_err(StepError::io("open", input))?;
    if resolve(output)?.starts_with(&real) {
        return Err(StepError::Refused(format!(
            "output {} lies inside the input {}; choose another place",
            output.display(),
            real.display()
        )));
    }
    Ok(())
}

/// Refuses an output folder that holds one of the inputs: replacing it would destroy them.
///
/// # Errors
/// `Refused` with both paths.
pub fn refuse_holding(output: &Path, inputs: &[PathBuf]) -> Result<(), StepError> {
    let folder = resolve(output)?;
    for input in inputs {
        let real = input.canonicalize().map_err(StepError::io("open", input))?;
        if real.starts_with(&folder) {
            return Err(StepError::Refused(format!(
                "the input {} lies inside the output {}; choose another place",
                input.display(),
                output.display()
            )));
        }
    }
    Ok(())
}

/// Where a path will be once the folders that it lacks are made: links followed as far as it
/// exists.
fn resolve(path: &Path) -> Result<PathBuf, StepError> {
    let absolute = std::path::absolute(path).map_err(StepError::io("find", path))?;
    let mut real = PathBuf::new();
    for part in absolute.components() {
        match part {
            std::path::Component::ParentDir => {
                real.pop();
            }
            part => real.push(part),
        }
        if real.exists() {
            real = real.canonicalize().map_err(StepError::io("open", &real))?;
        }
    }
    Ok(real)
}

/// Refuses what the disk of an existing folder cannot hold, even with what will be `freed` before.
///
/// # Errors
/// `Refused` with both figures.
pub fn check_space(folder: &Path, needed: u64, freed: u64) -> Result<(), StepError> {
    let free =
        fs4::available_space(folder).map_err(StepError::io("find the free space of", folder))?;
    if free.saturating_add(freed) >= needed.saturating_add(SPARE_BYTES) {
        return Ok(());
    }
    Err(StepError::Refused(format!(
        "{} needs {needed} bytes and {SPARE_BYTES} to spare, but its disk has only {free} free",
        folder.display()
    )))
}

/// Removes a file, or a folder with all that is in it; nothing there is fine.
///
/// # Errors
/// `Io`.
pub fn remove_all(path: &Path) -> Result<(), StepError> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StepError::io("remove", path)(e)),
        _ => Ok(()),
    }
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
        let lock_path = partial.join(LOCK);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(StepError::io("create", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                created,
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(busy(path)),
            Err(TryLockError::Error(e)) => Err(StepError::io("lock", &lock_path)(e)),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a file is written before it is whole.
    pub fn partial(&self, relative: &str) -> PathBuf {
        self.path.join(PARTIAL).join(FILES).join(relative)
    }

    /// Removes what an interrupted run was in the midst of: it is of no use, and takes room.
    ///
    /// # Errors
    /// `Io`.
    pub fn clear_unfinished(&self) -> Result<(), StepError> {
        remove_all(&self.path.join(PARTIAL).join(FILES))
    }

    /// A file of the run itself, gone when it is finished.
    pub fn control(&self, name: &str) -> PathBuf {
        self.path.join(PARTIAL).join(name)
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
        let is_new = !parent.exists();
        fs::create_dir_all(parent).map_err(StepError::io("create", parent))?;
        fs::rename(&from, &to).map_err(StepError::io("rename", &from))?;
        sync_folder(parent)?;
        if is_new {
            // a new folder is durable once the one that holds it is
            let mut above = parent
                .ancestors()
                .skip(1)
                .take_while(|a| a.starts_with(&self.path));
            above.try_for_each(sync_folder)?;
        }
        Ok(())
    }

    /// Lets `work` write files that a thread of its own makes durable and moves to their places, so
    /// that nobody who computes waits for the drive.
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
                // the kernel reports a failed write to one sync of an open file only, so this one
                // must not lose it
                Request::Flush(file) => file
                    .sync_data()
                    .map_err(StepError::io("sync", &self.path))?,
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
        write(&mut buffered)
            .and_then(|()| buffered.flush())
            .map_err(StepError::io("write", &path))?;
        drop(buffered);
        self.publish(&file, relative)
    }

    /// Refuses to begin what the disk cannot hold.
    ///
    /// # Errors
    /// `Refused` with both figures.
    pub fn check_space(&self, needed: u64) -> Result<(), StepError> {
        check_space(&self.path, needed, 0)
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

    /// Takes back a folder that was made for this run, as long as nothing is in it.
    pub fn abandon_if_new(self) {
        let only_partial = fs::read_dir(&self.path).is_ok_and(|entries| entries.count() == 1);
        if self.created && only_partial {
            self.abandon(&[]);
        }
    }

    /// Takes back everything that this and earlier unfinished runs wrote below these entries.
    pub fn abandon(self, entries: &[&str]) {
        for entry in entries.iter().chain(&[PARTIAL]) {
            let path = self.path.join(entry);
            // best effort: the error that led here is what the user must see
            let _ = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
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
    Publish {
        file: Arc<File>,
        relative: String,
        then: Then<'a>,
    },
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
    /// `Interrupted` where publishing has failed before; the failure itself is what
    /// `with_publisher` returns.
    pub fn publish(
        &self,
        file: Arc<File>,
        relative: String,
        then: Then<'a>,
    ) -> Result<(), StepError> {
        let request = Request::Publish {
            file,
            relative,
            then,
        };
        self.sender
            .send(request)
            .map_err(|_| FormatError::Interrupted.into())
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
        Self {
            publisher,
            file: Arc::clone(file),
            pending: std::cell::Cell::new(0),
        }
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
