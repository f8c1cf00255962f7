//! Where audio, images and videos come from.

#[cfg(any(feature = "audio", feature = "image"))]
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use percent_encoding::percent_decode_str;

use super::MediaError;

/// A file, or bytes that a chat holds itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MediaSource {
    /// A file, or a folder of frames.
    Path(PathBuf),
    /// The frames of a video, each a picture.
    Frames(Vec<Self>),
    /// The bytes of a `data:` address.
    Bytes {
        /// What messages call it: its type and its size.
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
        let scheme = reference.split_once(':').map(|(scheme, _)| scheme);
        match scheme.map(str::to_ascii_lowercase).as_deref() {
            Some("http" | "https" | "ftp" | "s3" | "hf") => Err(MediaError::Remote {
                address: shortened(reference),
            }),
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
            ("http://a/b.jpg", "fetched"),
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
