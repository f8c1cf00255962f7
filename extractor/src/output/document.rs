//! One file that appears as a whole.

use std::fs::File;
use std::io;
use std::path::Path;

use segpack_formats::FormatError;
use tempfile::{Builder, NamedTempFile};

/// Writes a file that appears as a whole, or not at all, with the rights that any new file of the
/// user gets. `replace`: in the place of one that has its name.
///
/// # Errors
/// `Io`.
pub(crate) fn write_whole(
    to: &Path,
    replace: bool,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), FormatError> {
    let parent = to.parent().filter(|p| !p.as_os_str().is_empty());
    let created = temporary(parent.unwrap_or(Path::new(".")));
    let mut file = created.map_err(FormatError::io("create", to))?;
    write(file.as_file_mut())
        .and_then(|()| file.as_file().sync_all())
        .map_err(FormatError::io("write", to))?;
    let named = match replace {
        true => file.persist(to),
        false => file.persist_noclobber(to),
    };
    named.map_err(|e| FormatError::io("write", to)(e.error))?;
    Ok(())
}

/// A temporary file that is no secret: what it becomes is not, either.
#[cfg(unix)]
fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    let all = std::fs::Permissions::from_mode(0o666); // less what the user's umask takes
    Builder::new().permissions(all).tempfile_in(folder)
}

#[cfg(not(unix))]
fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
    Builder::new().tempfile_in(folder)
}
