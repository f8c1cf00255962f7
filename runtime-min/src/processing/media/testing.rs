//! Official traces of media, for the tests of processing.

use std::path::{Path, PathBuf};

use segpack_formats::numeric::Dtype;
use segpack_formats::safetensors::Shard;
use serde_json::Value;

/// A file of the fixtures.
pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(path)
}

/// Reads the files of a folder by name; `None` where there is no such file.
pub(crate) fn files_of(folder: &Path) -> impl Fn(&str) -> std::io::Result<Option<Vec<u8>>> + use<> {
    let folder = folder.to_owned();
    move |name| match std::fs::read(folder.join(name)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// Reads the files of a folder of the fixtures.
pub(crate) fn fixture_files(
    folder: &str,
) -> impl Fn(&str) -> std::io::Result<Option<Vec<u8>>> + use<> {
    files_of(&fixture(folder))
}

/// A trace of `tiny-omni`.
pub(crate) struct MediaTrace {
    shard: Shard,
    /// The `.json` file beside it.
    pub(crate) document: Value,
}

impl MediaTrace {
    pub(crate) fn open(case: &str) -> Self {
        let stem = format!("traces/tiny-omni.media.{case}.float32");
        let shard = Shard::open(&fixture(&format!("{stem}.safetensors"))).unwrap();
        let document = std::fs::read(fixture(&format!("{stem}.json"))).unwrap();
        Self {
            shard,
            document: serde_json::from_slice(&document).unwrap(),
        }
    }

    pub(crate) fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let tensor = self.shard.tensor(name)?;
        let range = tensor.offset..tensor.offset + tensor.length;
        Some(self.shard.input.read_range(range).unwrap())
    }

    /// Values; samples that are kept as 16-bit numbers are from −1 to 1.
    pub(crate) fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let bytes = self.bytes(name)?;
        Some(match self.shard.tensor(name)?.dtype {
            Dtype::F32 => values(&bytes, f32::from_le_bytes),
            Dtype::I16 => values(&bytes, |b| f32::from(i16::from_le_bytes(b)) / 32768.0),
            other => panic!("{name} is of {other}"),
        })
    }

    pub(crate) fn integers(&self, name: &str) -> Option<Vec<i64>> {
        Some(values(&self.bytes(name)?, i64::from_le_bytes))
    }
}

fn values<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    let chunks = bytes.chunks_exact(N);
    chunks.map(|c| convert(c.try_into().unwrap())).collect()
}
