//! Open files of which there may be more than the process has descriptors.
//!
//! A file stays open while there are descriptors to spare; beyond that, those that were not read
//! for longest are closed, and opened again when they are read.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use super::beneath;
use crate::{FormatError, Result};

/// Where a file lies.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// At a path whose links are followed.
    Path(PathBuf),
    /// Below a folder, and not reached through links.
    Beneath(PathBuf, String),
}

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Through the page cache.
    Buffered,
    /// Past it.
    #[cfg(target_os = "linux")]
    Direct,
}

impl Place {
    /// The path that messages name.
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Beneath(root, relative) => root.join(relative),
        }
    }

    /// Opens without ever blocking on a pipe that has no writer.
    #[cfg(unix)]
    fn open(&self, access: Access) -> Result<File> {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt;
        let flags = match access {
            Access::Buffered => OFlags::NONBLOCK,
            #[cfg(target_os = "linux")]
            Access::Direct => OFlags::NONBLOCK | OFlags::DIRECT,
        };
        match self {
            Self::Beneath(root, relative) => beneath::open(root, relative, flags),
            Self::Path(path) => {
                let flags = i32::try_from(flags.bits()).unwrap_or(0);
                let opened = File::options().read(true).custom_flags(flags).open(path);
                opened.map_err(FormatError::io("open", path))
            }
        }
    }

    #[cfg(not(unix))]
    fn open(&self, _: Access) -> Result<File> {
        match self {
            Self::Beneath(root, relative) => beneath::open(root, relative),
            Self::Path(path) => File::open(path).map_err(FormatError::io("open", path)),
        }
    }
}

/// A file that is open, or will be when it is read.
#[derive(Debug)]
pub(super) struct Handle {
    place: Place,
    access: Access,
    slot: Arc<Slot>,
}

/// What the pool closes.
#[derive(Debug, Default)]
struct Slot {
    file: Mutex<Option<Arc<File>>>,
    used: AtomicBool,
}

impl Slot {
    fn file(&self) -> std::sync::MutexGuard<'_, Option<Arc<File>>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handle {
    /// Opens a file.
    ///
    /// # Errors
    /// `Io`; `Link`.
    pub(super) fn open(place: Place, access: Access) -> Result<(Self, Metadata)> {
        let slot = Arc::<Slot>::default();
        let file = open_in_pool(&place, access)?;
        let metadata = length_of(&file, &place.path())?;
        *slot.file() = Some(Arc::new(file));
        POOL.admit(&slot);
        let handle = Self {
            place,
            access,
            slot,
        };
        Ok((handle, metadata))
    }

    /// The open file. Where it was closed, it is opened again and shown to `check`, which says
    /// whether it is still the same.
    ///
    /// # Errors
    /// As [`open`](Self::open); whatever `check` returns.
    pub(super) fn file(&self, check: impl FnOnce(&Metadata) -> Result<()>) -> Result<Arc<File>> {
        self.slot.used.store(true, Ordering::Relaxed);
        let mut slot = self.slot.file();
        if let Some(file) = &*slot {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(open_in_pool(&self.place, self.access)?);
        check(&length_of(&file, &self.place.path())?)?;
        *slot = Some(Arc::clone(&file));
        drop(slot);
        POOL.admit(&self.slot);
        Ok(file)
    }
}

impl Handle {
    /// Closes the file; it is opened again when it is read.
    pub(super) fn close(&self) {
        *self.slot.file() = None;
    }
}

fn length_of(file: &File, path: &Path) -> Result<Metadata> {
    file.metadata()
        .map_err(FormatError::io("read the length of", path))
}

/// Opens a file; without a descriptor left, once more after those that can be closed are.
fn open_in_pool(place: &Place, access: Access) -> Result<File> {
    match place.open(access) {
        Err(FormatError::Io { source, .. }) if is_out_of_descriptors(&source) => {
            POOL.close_all();
            place.open(access)
        }
        opened => opened,
    }
}

#[cfg(unix)]
fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE]
        .iter()
        .any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

#[cfg(not(unix))]
fn is_out_of_descriptors(_: &io::Error) -> bool {
    false
}

/// The files that are open.
struct Pool {
    max_open: usize,
    open: Mutex<VecDeque<Weak<Slot>>>,
}

static POOL: LazyLock<Pool> = LazyLock::new(|| Pool {
    max_open: max_open(),
    open: Mutex::default(),
});

/// Half of the descriptors that the process may have: the rest is for what is written, for threads
/// and for folders on the way.
fn max_open() -> usize {
    const MAX: usize = 4096;
    const MIN: usize = 4;
    #[cfg(unix)]
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .map_or(MAX, super::to_usize);
    #[cfg(not(unix))]
    let limit = MAX;
    (limit / 2).clamp(MIN, MAX)
}

impl Pool {
    /// Counts a file that was opened, and closes another where there are too many.
    fn admit(&self, slot: &Arc<Slot>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push_back(Arc::downgrade(slot));
        // each is passed over once where it was read since it was looked at last
        let mut looks = 2 * open.len();
        while open.len() > self.max_open && looks > 0 {
            looks -= 1;
            let Some(weak) = open.pop_front() else { break };
            let Some(oldest) = weak.upgrade() else {
                continue;
            };
            if oldest.used.swap(false, Ordering::Relaxed) {
                open.push_back(weak);
            } else if let Ok(mut file) = oldest.file.try_lock() {
                *file = None;
            } else {
                open.push_back(weak); // is being opened
            }
        }
    }

    /// Closes every file that nobody reads at this moment.
    fn close_all(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in open.drain(..).filter_map(|weak| weak.upgrade()) {
            if let Ok(mut file) = slot.file.try_lock() {
                *file = None;
            }
        }
    }
}
