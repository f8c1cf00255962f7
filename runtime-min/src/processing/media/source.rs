//! Where audio, images and videos come from.

#[cfg(any(feature = "audio", feature = "image"))]
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use segpack_formats::FormatError;

use super::MediaError;

/// Gets the files of `http:` and `https:` addresses, for chats that may have such.
pub trait FetchMedia: std::fmt::Debug + Send + Sync {
    /// All bytes of the file at an address.
    ///
    /// # Errors
    /// Where it cannot be had, is too long, or the work was interrupted.
    fn fetch(&self, address: &str) -> Result<Vec<u8>, FormatError>;
}

/// What references of a chat mean.
#[derive(Debug, Clone, Copy)]
pub(crate) struct References<'a> {
    /// What paths are relative to.
    pub(crate) folder: &'a Path,
    /// Who fetches; `None`: nothing is fetched.
    pub(crate) fetch: Option<&'a dyn FetchMedia>,
}

impl References<'_> {
    /// What a reference leads to.
    ///
    /// # Errors
    /// As [`MediaSource::parse`]; where an address cannot be fetched.
    pub(crate) fn resolve(self, reference: &str) -> Result<MediaSource, MediaError> {
        match self.fetch {
            Some(fetch) if is_web(reference) => {
                let bytes = fetch.fetch(reference)?.into();
                let name = bare(reference).to_owned();
                Ok(MediaSource::Bytes { name, bytes })
            }
            _ => MediaSource::parse(reference, self.folder),
        }
    }
}

/// A file, or bytes that a chat holds itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MediaSource {
    /// A file, or a folder of frames.
    Path(PathBuf),
    /// The frames of a video, each a picture.
    Frames(Vec<Self>),
    /// The bytes of a `data:` address, or what was fetched.
    Bytes {
        /// What messages call it: its type and its size, or its address.
        name: String,
        /// The file's bytes.
        bytes: Arc<[u8]>,
    },
}

impl MediaSource {
    /// What a chat gives: a path, which `folder` is put before where it is relative, or a `file:` or
    /// `data:` address.
    ///
    /// # Errors
    /// `Remote` for what would have to be fetched; `Address` where an address is not well formed.
    pub fn parse(reference: &str, folder: &Path) -> Result<Self, MediaError> {
        match scheme_of(reference).as_deref() {
            Some("http" | "https") => Err(MediaError::Remote {
                address: shortened(bare(reference)),
            }),
            Some("ftp" | "s3" | "gs" | "az" | "hf") => Err(wrong_address(
                reference,
                "cannot be fetched: wanted http: or https:, or a file of this machine",
            )),
            Some("file") => file_address(reference),
            Some("data") => data_address(reference),
            _ if reference.is_empty() => Err(MediaError::Address {
                address: String::new(),
                problem: "is empty",
            }),
            _ => Ok(Self::Path(folder.join(reference))),
        }
    }

    /// Opens it for a decoder of audio.
    ///
    /// # Errors
    /// Where it cannot be opened.
    #[cfg(feature = "audio")]
    pub fn open(&self) -> io::Result<Box<dyn crate::processing::audio::AudioSource>> {
        Ok(match self {
            Self::Path(path) => Box::new(std::fs::File::open(path)?),
            Self::Frames(_) => return Err(io::Error::other("a list of pictures has no sound")),
            Self::Bytes { bytes, .. } => Box::new(io::Cursor::new(Arc::clone(bytes))),
        })
    }

    /// Refuses what is no regular file: whoever has the other end of a pipe may never write.
    #[cfg(any(feature = "audio", feature = "image"))]
    pub(super) fn check(&self) -> io::Result<()> {
        match self {
            Self::Path(path) if !std::fs::metadata(path)?.is_file() => {
                Err(io::Error::other("not a regular file"))
            }
            _ => Ok(()),
        }
    }

    /// The bytes of a picture.
    ///
    /// # Errors
    /// As [`read_file`](crate::processing::image::read_file).
    #[cfg(feature = "image")]
    pub(crate) fn read_picture(&self) -> Result<Arc<[u8]>, crate::processing::image::ImageError> {
        use crate::processing::image::{ImageError, read_file};
        self.check().map_err(ImageError::Read)?;
        match self {
            Self::Path(path) => Ok(read_file(path)?.into()),
            Self::Bytes { bytes, .. } => Ok(Arc::clone(bytes)),
            Self::Frames(_) => {
                let list = "a list of pictures is no picture";
                Err(ImageError::Read(io::Error::other(list)))
            }
        }
    }

    /// What messages call it.
    pub fn name(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Frames(frames) => match frames.first() {
                Some(first) => format!("of {} pictures, {} first", frames.len(), first.name()),
                None => "of no picture".to_owned(),
            },
            Self::Bytes { name, .. } => name.clone(),
        }
    }
}

fn scheme_of(reference: &str) -> Option<String> {
    let (scheme, _) = reference.split_once(':')?;
    Some(scheme.to_ascii_lowercase())
}

fn is_web(reference: &str) -> bool {
    matches!(scheme_of(reference).as_deref(), Some("http" | "https"))
}

/// An address without its query, which may be a key to the file.
fn bare(address: &str) -> &str {
    address.split(['?', '#']).next().unwrap_or_default()
}

/// `file:/path`, `file:///path` or `file://localhost/path`, percent-encoded.
fn file_address(address: &str) -> Result<MediaSource, MediaError> {
    let wrong = |problem| wrong_address(address, problem);
    let rest = &address["file:".len()..];
    let path = match rest.strip_prefix("//") {
        Some(rest) => rest.strip_prefix("localhost").unwrap_or(rest),
        None => rest,
    };
    if !path.starts_with('/') {
        return Err(wrong("names a file of another host, or no whole path"));
    }
    let path = percent_decode_str(path).decode_utf8();
    let path = path.map_err(|_| wrong("is not UTF-8 when it is decoded"))?;
    Ok(MediaSource::Path(PathBuf::from(path.into_owned())))
}

fn data_address(address: &str) -> Result<MediaSource, MediaError> {
    let wrong = |problem| wrong_address(address, problem);
    let parsed = data_url::DataUrl::process(address);
    let parsed = parsed.map_err(|_| wrong("has no comma before its data"))?;
    let (bytes, _) = parsed
        .decode_to_vec()
        .map_err(|_| wrong("is not valid base64"))?;
    let kind = parsed.mime_type();
    Ok(MediaSource::Bytes {
        name: format!(
            "data:{}/{} ({} bytes)",
            kind.type_,
            kind.subtype,
            bytes.len()
        ),
        bytes: bytes.into(),
    })
}

fn wrong_address(address: &str, problem: &'static str) -> MediaError {
    MediaError::Address {
        address: shortened(address),
        problem,
    }
}

/// An address for a message.
fn shortened(address: &str) -> String {
    match address.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &address[..end]),
        None => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(reference: &str) -> Result<MediaSource, String> {
        MediaSource::parse(reference, Path::new("/chats")).map_err(|e| e.to_string())
    }

    #[test]
    fn paths_and_addresses_are_told_apart() {
        let path = |text: &str| Ok(MediaSource::Path(text.into()));
        assert_eq!(parse("a b.wav"), path("/chats/a b.wav"));
        assert_eq!(parse("/a.wav"), path("/a.wav"));
        assert_eq!(parse("c:a.wav"), path("/chats/c:a.wav"));
        for address in [
            "file:/x%20y.png",
            "file:///x%20y.png",
            "FILE://localhost/x%20y.png",
        ] {
            assert_eq!(parse(address), path("/x y.png"));
        }
        let bytes = parse("data:audio/wav;base64,AAEC").unwrap();
        assert_eq!(bytes.name(), "data:audio/wav (3 bytes)");
        assert!(matches!(bytes, MediaSource::Bytes { bytes, .. } if *bytes == [0, 1, 2]));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let long = format!("https://example.org/{}", "a".repeat(100));
        let cases = [
            (
                "http://a/b.jpg?key=secret",
                "http://a/b.jpg would have to be fetched",
            ),
            ("s3://a/b.jpg", "wanted http: or https:"),
            (&long, "aaa…"),
            ("", "is empty"),
            ("file:b.jpg", "no whole path"),
            ("file://host/b.jpg", "another host"),
            ("file:///%ff", "UTF-8"),
            ("data:audio/wav;base64", "comma"),
            ("data:audio/wav;base64,A", "base64"),
        ];
        for (reference, wanted) in cases {
            let error = parse(reference).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
