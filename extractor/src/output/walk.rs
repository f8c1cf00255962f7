//! What lies below a folder.

use std::path::{Path, PathBuf};

use segpack_formats::FormatError;

use super::OutputError;

/// The files below a folder, by their paths from it with `/` between the parts.
///
/// # Errors
/// `Link` with the first link; `Io`, also where a name is not UTF-8.
pub(crate) fn files_below(folder: &Path) -> Result<Vec<String>, OutputError> {
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(folder)
        .min_depth(1)
        .sort_by_file_name()
    {
        let entry = entry.map_err(|e| not_listed(folder, e))?;
        if entry.file_type().is_dir() {
            continue;
        }
        let path = entry.into_path();
        if path.is_symlink() {
            return Err(OutputError::Link { path });
        }
        files.push(relative(folder, &path));
    }
    Ok(files)
}

fn relative(folder: &Path, path: &Path) -> String {
    let below = path.strip_prefix(folder).unwrap_or(path);
    let parts = below.components().map(|c| c.as_os_str().to_string_lossy());
    parts.collect::<Vec<_>>().join("/")
}

/// The system's own reason: a walk's error repeats it.
fn not_listed(folder: &Path, error: walkdir::Error) -> FormatError {
    let path: PathBuf = error.path().unwrap_or(folder).to_owned();
    let source = error
        .into_io_error()
        .unwrap_or_else(|| std::io::Error::other("a link leads back to a folder above it"));
    FormatError::io("list", path)(source)
}
