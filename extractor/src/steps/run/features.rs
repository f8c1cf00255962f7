//! What encoders get of the media of a prompt, for people and for comparisons.

use segpack_formats::FormatError;
use segpack_formats::io::PendingFile;
use segpack_formats::numeric::Dtype;
use segpack_formats::safetensors::{NewTensor, new_header};
use segpack_manifests::documents::PromptMedia;
use segpack_runtime_min::processing::TokenizedPrompt;
use segpack_runtime_min::processing::media::PlacedMedia;

use crate::steps::StepError;

/// One of the media, as documents have it.
pub(super) fn shown(placed: &PlacedMedia) -> PromptMedia {
    PromptMedia {
        kind: placed.kind.as_str().to_owned(),
        name: placed.name.clone(),
        tokens: placed.tokens as u64,
        audio_frames: placed.audio_frames.map(|frames| frames as u64),
        grid: placed.grid.map(|grid| grid.map(|side| side as u64)),
        second_per_grid: placed.second_per_grid,
    }
}

/// A tensor with its bytes.
struct Tensor {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn floats(name: &'static str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self {
            name,
            dtype: Dtype::F32,
            shape: lengths(shape),
            bytes,
        }
    }

    fn integers(
        name: &'static str,
        shape: &[usize],
        values: impl IntoIterator<Item = usize>,
    ) -> Self {
        let values = values.into_iter().flat_map(|v| (v as u64).to_le_bytes());
        Self {
            name,
            dtype: Dtype::I64,
            shape: lengths(shape),
            bytes: values.collect(),
        }
    }
}

fn lengths(shape: &[usize]) -> Vec<u64> {
    shape.iter().map(|n| *n as u64).collect()
}

/// Writes the features of a prompt, with the names that official traces have for them.
pub(super) fn write(file: PendingFile, prompt: &TokenizedPrompt) -> Result<(), StepError> {
    let tensors = tensors(prompt);
    let entries: Vec<_> = tensors
        .iter()
        .map(|tensor| NewTensor {
            name: tensor.name,
            dtype: tensor.dtype,
            shape: &tensor.shape,
        })
        .collect();
    let header = new_header(&entries, &[]).map_err(|source| FormatError::Header {
        path: file.path().to_owned(),
        source,
    })?;
    file.publish(|out| {
        out.write_all(&header)?;
        tensors
            .iter()
            .try_for_each(|tensor| out.write_all(&tensor.bytes))
    })?;
    Ok(())
}

/// By their names.
fn tensors(prompt: &TokenizedPrompt) -> Vec<Tensor> {
    let media = &prompt.media;
    let mut tensors = Vec::new();
    let audio = &media.audio;
    if !audio.lengths.is_empty() {
        let frames = audio.lengths.iter().sum();
        let shape = [audio.mel_bins, frames];
        let lengths = audio.lengths.iter().copied();
        tensors.push(Tensor::floats("mm.audio.features", &shape, &audio.values));
        tensors.push(Tensor::integers(
            "mm.audio.lengths",
            &[audio.lengths.len()],
            lengths,
        ));
    }
    let images = ("mm.image.grid", "mm.image.pixels", &media.images);
    let videos = ("mm.video.grid", "mm.video.pixels", &media.videos);
    for (grid, pixels, visual) in [images, videos] {
        if visual.grids.is_empty() {
            continue;
        }
        let patches = visual.values.len() / visual.patch_width.max(1);
        let shape = [patches, visual.patch_width];
        let sides = visual.grids.iter().flatten().copied();
        tensors.push(Tensor::integers(grid, &[visual.grids.len(), 3], sides));
        tensors.push(Tensor::floats(pixels, &shape, &visual.values));
    }
    if !media.second_per_grid.is_empty() {
        let seconds = &media.second_per_grid;
        tensors.push(Tensor::floats(
            "mm.video.second_per_grid",
            &[seconds.len()],
            seconds,
        ));
    }
    let ids = prompt.ids.iter().map(|id| *id as usize);
    tensors.push(Tensor::integers("mm.input_ids", &[prompt.ids.len()], ids));
    tensors.sort_by_key(|tensor| tensor.name);
    tensors
}
