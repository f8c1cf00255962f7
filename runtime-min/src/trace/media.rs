//! A trace of one prompt with audio, images or videos: opened, checked, read tensor by tensor.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use segpack_formats::digest::Sha256;
use segpack_formats::io::{read_limited, to_usize};
use segpack_formats::numeric::{Dtype, FloatDtype};
use segpack_formats::safetensors::{Shard, TensorInfo};
use segpack_formats::{FormatError, Result};
use serde::Deserialize;

use super::NOT_THE_MODEL;
use crate::processing::{AudioFeatures, MediaFeatures, VisualFeatures};
use crate::tensor::Compute;

/// What the reference script calls a trace that begins with features.
pub const FEATURES_FORMAT: &str = "qwen3-omni-mm-trace-1";
/// What it calls a trace that begins with media files.
pub const MEDIA_FORMAT: &str = "qwen3-omni-media-trace-1";
/// Bytes that are read of the `.json` file.
const MAX_DOCUMENT_BYTES: u64 = 64 << 20;

/// How many tokens, values of a dimension or items are believed.
const MAX_COUNT: i64 = 1 << 32;

/// How 8-bit values become those that an encoder takes, by channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalization {
    /// Of values from 0 to 1.
    pub mean: [f32; 3],
    /// Of values from 0 to 1.
    pub std: [f32; 3],
}

impl Normalization {
    /// `(value - 255 · mean) / (255 · std)` in f32, for patches whose values are ordered by channel.
    fn apply(&self, patches: &[u8], width: usize) -> Vec<f32> {
        let mut values = Vec::with_capacity(patches.len());
        for patch in patches.chunks(width.max(1)) {
            let channels = patch.chunks(width.div_ceil(3).max(1));
            for ((levels, mean), std) in channels.zip(self.mean).zip(self.std) {
                let levels = levels.iter().map(|level| f32::from(*level));
                values.extend(levels.map(|level| (level - 255.0 * mean) / (255.0 * std)));
            }
        }
        values
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Document {
    #[serde(default)]
    trace: Option<String>,
    #[serde(default)]
    conversation: Conversation,
    #[serde(default)]
    settings: Settings,
    #[serde(default)]
    checkpoint: BTreeMap<String, Sha256>,
    #[serde(default)]
    exported_from: Option<Sha256>,
    #[serde(default)]
    min_router_margin: Option<f64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Conversation {
    #[serde(default)]
    level: Option<String>,
    #[serde(default)]
    recipe: Option<String>,
    #[serde(default)]
    use_audio_in_video: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Settings {
    #[serde(default)]
    dtype: Option<String>,
    #[serde(default)]
    level: Option<String>,
}

/// An open trace of media. Tensors are read on demand.
#[derive(Debug)]
pub struct MediaTrace {
    shard: Shard,
    /// What the names of its tensors begin with.
    prefix: String,
    places: HashMap<String, usize>,
    document: Document,
    compute: Compute,
    ids: Vec<u32>,
    generated: Vec<u32>,
}

impl MediaTrace {
    /// Opens a trace by either of its two files; one that begins with features may have no `.json`
    /// file. `None`: it is a trace of text.
    ///
    /// # Errors
    /// `Io`; `Malformed` where it breaks the format.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let (tensors, beside) = match path.extension().and_then(|e| e.to_str()) {
            Some("json") => match read_document(path)? {
                Some(document) => (tensors_beside(path, &document), Some(document)),
                None => return Ok(None),
            },
            Some("safetensors") => (path.to_owned(), None),
            _ => return Ok(None), // the reader of text traces says what is wanted
        };
        let shard = Shard::open(&tensors)?;
        let mut names = shard.header.tensors.iter();
        if !names.any(|tensor| tensor.name.starts_with("mm.")) {
            return Ok(None);
        }
        let document = match beside {
            Some(document) => document,
            None => beside_of(&tensors)?,
        };
        Self::new(shard, document, "mm")?.with_prompt().map(Some)
    }

    /// Of the tensors whose names begin with this.
    pub(super) fn new(shard: Shard, document: Document, prefix: &str) -> Result<Self> {
        let places = shard.header.tensors.iter().enumerate();
        let mut trace = Self {
            places: places.map(|(i, t)| (t.name.clone(), i)).collect(),
            document,
            compute: Compute::F32,
            ids: Vec::new(),
            generated: Vec::new(),
            shard,
            prefix: prefix.to_owned(),
        };
        trace.compute = match trace.dtype().as_str() {
            "float32" => Compute::F32,
            "bfloat16" => Compute::Bf16,
            other => {
                let what = format!("its dtype is {other:?}; wanted \"float32\" or \"bfloat16\"");
                return Err(trace.malformed(what));
            }
        };
        trace.ids = trace.token_ids("input_ids")?.unwrap_or_default();
        trace.generated = trace.token_ids("gen.ids")?.unwrap_or_default();
        Ok(trace)
    }

    /// That there is a prompt, too.
    pub(super) fn with_prompt(self) -> Result<Self> {
        if self.ids.is_empty() {
            return Err(self.malformed(format!("has no {}.input_ids", self.prefix)));
        }
        Ok(self)
    }

    /// Names of the tensors, without what they begin with.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let names = self.shard.header.tensors.iter();
        names.filter_map(|tensor| {
            let name = tensor.name.strip_prefix(&self.prefix)?;
            name.strip_prefix('.')
        })
    }

    /// Of the `.json` file, or else of what the tensors' file says of itself.
    fn dtype(&self) -> String {
        let stated = self.document.settings.dtype.clone();
        stated
            .or_else(|| self.own_dtype())
            .unwrap_or_else(|| "float32".to_owned())
    }

    /// The metadata has the format's name, and behind it an object with the dtype.
    fn own_dtype(&self) -> Option<String> {
        let metadata = self.shard.header.metadata.as_ref()?;
        let (_, format) = metadata.iter().find(|(key, _)| key == "format")?;
        let object = &format[format.find('{')?..];
        let object: serde_json::Value = serde_json::from_str(object).ok()?;
        Some(object.get("dtype")?.as_str()?.to_owned())
    }

    /// The file that holds the tensors.
    pub fn path(&self) -> &Path {
        self.shard.input.name()
    }

    /// The precision that the reference computed in.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// How much was recorded, as the script calls it.
    pub fn level(&self) -> Option<&str> {
        let level = self.document.conversation.level.as_deref();
        level.or(self.document.settings.level.as_deref())
    }

    /// Which of the official ways of processing files was taken: `transformers`, or `readme` for that
    /// of the model card.
    pub fn recipe(&self) -> &str {
        let recipe = self.document.conversation.recipe.as_deref();
        recipe.unwrap_or("transformers")
    }

    /// Digests of the files of the checkpoint that it was recorded from; empty where it has none.
    pub fn checkpoint(&self) -> &BTreeMap<String, Sha256> {
        &self.document.checkpoint
    }

    /// SHA-256 of the manifest of the pack that the checkpoint was exported from; `None` where it was
    /// no export.
    pub fn exported_from(&self) -> Option<Sha256> {
        self.document.exported_from
    }

    /// Smallest router-logit distance between a chosen and a rejected expert.
    pub fn min_router_margin(&self) -> Option<f64> {
        self.document.min_router_margin
    }

    /// The prompt, placeholders and all.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The greedy continuation; empty where it was not recorded.
    pub fn generated(&self) -> &[u32] {
        &self.generated
    }

    fn malformed(&self, what: impl Into<String>) -> FormatError {
        FormatError::malformed(self.path(), what)
    }

    fn entry(&self, name: &str) -> Option<&TensorInfo> {
        let place = self.places.get(&format!("{}.{name}", self.prefix))?;
        Some(&self.shard.header.tensors[*place])
    }

    /// The shape of a tensor, which is named without `mm.` in front; `None` where it was not
    /// recorded.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let shape = &self.entry(name)?.shape;
        Some(shape.iter().map(|side| to_usize(*side)).collect())
    }

    fn bytes(&self, entry: &TensorInfo) -> Result<Vec<u8>> {
        let range = entry.offset..entry.offset + entry.length;
        self.shard.input.read_range(range)
    }

    /// A tensor of floats, widened; 16-bit integers are from -1 to 1. `None`: it was not recorded.
    ///
    /// # Errors
    /// `Malformed` where it is of another dtype; `Io`.
    pub fn floats(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(entry) = self.entry(name) else {
            return Ok(None);
        };
        self.widened(entry, &self.bytes(entry)?).map(Some)
    }

    /// Some rows of a tensor of floats, as [`floats`](Self::floats) gives all; no others are read.
    /// `None`: it was not recorded, or it has no such rows.
    ///
    /// # Errors
    /// As [`floats`](Self::floats).
    pub fn float_rows(&self, name: &str, rows: Range<usize>) -> Result<Option<Vec<f32>>> {
        let Some(entry) = self.entry(name) else {
            return Ok(None);
        };
        let count = entry.shape.first().copied().unwrap_or(0);
        let [start, end] = [rows.start, rows.end].map(|row| row as u64);
        if start > end || end > count {
            return Ok(None);
        }
        let row = entry.length / count.max(1);
        let range = entry.offset + start * row..entry.offset + end * row;
        let bytes = self.shard.input.read_range(range)?;
        self.widened(entry, &bytes).map(Some)
    }

    /// Values of a tensor, given their bytes.
    fn widened(&self, entry: &TensorInfo, bytes: &[u8]) -> Result<Vec<f32>> {
        if entry.dtype == Dtype::I16 {
            let samples = bytes.as_chunks::<2>().0.iter();
            let wide = samples.map(|b| f32::from(i16::from_le_bytes(*b)) / 32768.0);
            return Ok(wide.collect());
        }
        let dtype = FloatDtype::try_from(entry.dtype)
            .map_err(|e| self.malformed(format!("tensor {:?}: {e}", entry.name)))?;
        let mut values = vec![0.0; bytes.len() / dtype.byte_width()];
        dtype.widen(bytes, &mut values);
        Ok(values)
    }

    /// Whether a tensor was recorded as 8-bit numbers.
    pub fn has_levels(&self, name: &str) -> bool {
        self.entry(name)
            .is_some_and(|entry| entry.dtype == Dtype::U8)
    }

    /// A tensor of 8-bit numbers. `None`: it was not recorded.
    ///
    /// # Errors
    /// As [`floats`](Self::floats).
    pub fn levels(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self.entry(name) {
            None => Ok(None),
            Some(entry) if entry.dtype == Dtype::U8 => self.bytes(entry).map(Some),
            Some(entry) => Err(self.wrong_dtype(entry, "U8")),
        }
    }

    /// A tensor of integers. `None`: it was not recorded.
    ///
    /// # Errors
    /// As [`floats`](Self::floats).
    pub fn integers(&self, name: &str) -> Result<Option<Vec<i64>>> {
        match self.entry(name) {
            None => Ok(None),
            Some(entry) if entry.dtype == Dtype::I64 => {
                let bytes = self.bytes(entry)?;
                let numbers = bytes.as_chunks::<8>().0.iter();
                Ok(Some(numbers.map(|b| i64::from_le_bytes(*b)).collect()))
            }
            Some(entry) => Err(self.wrong_dtype(entry, "I64")),
        }
    }

    fn wrong_dtype(&self, entry: &TensorInfo, wanted: &str) -> FormatError {
        let (name, dtype) = (&entry.name, entry.dtype);
        self.malformed(format!("tensor {name:?} is {dtype}; wanted {wanted}"))
    }

    /// A tensor of token or expert ids.
    ///
    /// # Errors
    /// As [`floats`](Self::floats), and where a number is no id.
    pub fn token_ids(&self, name: &str) -> Result<Option<Vec<u32>>> {
        let Some(numbers) = self.integers(name)? else {
            return Ok(None);
        };
        let ids: std::result::Result<_, _> = numbers.into_iter().map(u32::try_from).collect();
        let wrong = |_| {
            self.malformed(format!(
                "tensor \"{}.{name}\" holds a number that is no id",
                self.prefix
            ))
        };
        ids.map(Some).map_err(wrong)
    }

    fn counts(&self, name: &str) -> Result<Vec<usize>> {
        let numbers = self.integers(name)?.unwrap_or_default();
        if let Some(wrong) = numbers.iter().find(|n| !(0..=MAX_COUNT).contains(*n)) {
            return Err(self.malformed(format!("tensor \"mm.{name}\" holds {wrong}")));
        }
        Ok(numbers
            .into_iter()
            .map(|n| to_usize(n.unsigned_abs()))
            .collect())
    }

    /// What the encoders got. Patches that were recorded as 8-bit numbers are normalised.
    ///
    /// # Errors
    /// `Malformed` where it breaks the format, or has 8-bit patches and there is no
    /// `normalization`; `Io`.
    pub fn features(&self, normalization: Option<Normalization>) -> Result<MediaFeatures> {
        let videos = self.visual_features("video", normalization)?;
        // some traces hold the number though no video stands in the prompt
        let second_per_grid = match videos.grids.is_empty() {
            true => Vec::new(),
            false => self.floats("video.second_per_grid")?.unwrap_or_default(),
        };
        Ok(MediaFeatures {
            audio: self.audio_features()?,
            images: self.visual_features("image", normalization)?,
            videos,
            second_per_grid,
            use_audio_in_video: self.document.conversation.use_audio_in_video,
        })
    }

    fn audio_features(&self) -> Result<AudioFeatures> {
        let Some(values) = self.floats("audio.features")? else {
            return Ok(AudioFeatures::default());
        };
        let shape = self.shape("audio.features").unwrap_or_default();
        let [mel_bins, _] = shape[..] else {
            return Err(self.malformed("mm.audio.features is no matrix"));
        };
        Ok(AudioFeatures {
            mel_bins,
            values,
            lengths: self.counts("audio.lengths")?,
        })
    }

    fn visual_features(
        &self,
        kind: &str,
        normalization: Option<Normalization>,
    ) -> Result<VisualFeatures> {
        let (pixels, patches) = (format!("{kind}.pixels"), format!("{kind}.patches"));
        let name = match self.entry(&pixels) {
            Some(_) => &pixels,
            None => &patches,
        };
        let Some(shape) = self.shape(name) else {
            return Ok(VisualFeatures::default());
        };
        let [_, patch_width] = shape[..] else {
            return Err(self.malformed(format!("mm.{name} is no matrix")));
        };
        let values = match (self.levels_of(&patches, name)?, normalization) {
            (Some(patches), Some(normalization)) => normalization.apply(&patches, patch_width),
            (Some(_), None) => {
                let what = format!("mm.{name} is 8-bit, and mean and deviation are not known");
                return Err(self.malformed(what));
            }
            (None, _) => self.floats(&pixels)?.unwrap_or_default(),
        };
        let grids = self.counts(&format!("{kind}.grid"))?;
        let (grids, rest) = grids.as_chunks::<3>();
        if !rest.is_empty() {
            return Err(self.malformed(format!("mm.{kind}.grid has not 3 columns")));
        }
        Ok(VisualFeatures {
            patch_width,
            values,
            grids: grids.to_vec(),
        })
    }

    /// The patches, where they are what is read.
    fn levels_of(&self, patches: &str, name: &str) -> Result<Option<Vec<u8>>> {
        if name == patches {
            self.levels(patches)
        } else {
            Ok(None)
        }
    }
}

/// The `.json` file of a trace of media; `None` where it is that of a trace of text.
fn read_document(path: &Path) -> Result<Option<Document>> {
    let bytes = read_limited(path, MAX_DOCUMENT_BYTES)?;
    let wrong = |e| FormatError::malformed(path, format!("is no description of a trace: {e}"));
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(wrong)?;
    let format = value.get("format").and_then(serde_json::Value::as_str);
    if !matches!(format, Some(FEATURES_FORMAT | MEDIA_FORMAT)) {
        return Ok(None);
    }
    if value.pointer("/settings/restricted_experts") == Some(&true.into()) {
        return Err(FormatError::malformed(path, NOT_THE_MODEL));
    }
    let document: Document = serde_json::from_value(value).map_err(wrong)?;
    Ok(Some(document))
}

/// What is beside a trace's tensors, if there is any.
fn beside_of(tensors: &Path) -> Result<Document> {
    let path = tensors.with_extension("json");
    if !path.exists() {
        return Ok(Document::default());
    }
    read_document(&path)?.ok_or_else(|| {
        let what = format!("its format is neither {FEATURES_FORMAT:?} nor {MEDIA_FORMAT:?}");
        FormatError::malformed(&path, what)
    })
}

/// The tensors lie under the same name; where they do not, the `.json` file says under which.
fn tensors_beside(path: &Path, document: &Document) -> PathBuf {
    let beside = path.with_extension("safetensors");
    let named = document.trace.as_deref();
    let named = named.filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
    match named.map(|name| path.with_file_name(name)) {
        Some(named) if !beside.exists() => named,
        _ => beside,
    }
}
