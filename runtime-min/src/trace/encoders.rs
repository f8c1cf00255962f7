//! What a recorded trace has of audio, images and videos: what encoders get, and what they compute.

use segpack_formats::io::to_usize;
use segpack_formats::numeric::Dtype;

use super::tensor::{Tensor, float_bytes};
use crate::models::encoder::{EncoderObserver, EncoderStage};
use crate::processing::{MediaFeatures, VisualFeatures, audio_tokens};
use crate::tensor::Compute;

/// Records one encoder.
#[derive(Debug)]
pub(super) struct EncoderRecorder {
    /// `audio`, `image` or `video`.
    kind: &'static str,
    compute: Compute,
    /// Rows of the stages before the last one: tokens of audio, patches of pictures.
    rows: usize,
    /// Values of a row of what encoders give.
    output: usize,
    /// By the names of a trace, without `mm.`.
    pub(super) tensors: Vec<(String, Tensor)>,
}

impl EncoderRecorder {
    /// Of all three kinds.
    pub(super) fn all(compute: Compute, output: u64) -> [Self; 3] {
        ["audio", "image", "video"].map(|kind| Self {
            kind,
            compute,
            rows: 0,
            output: to_usize(output),
            tensors: Vec::new(),
        })
    }

    fn put(&mut self, name: &str, tensor: Tensor) {
        self.tensors.push((format!("{}.{name}", self.kind), tensor));
    }

    fn put_pictures(&mut self, features: &VisualFeatures) {
        if features.grids.is_empty() {
            return;
        }
        self.rows = features.values.len() / features.patch_width.max(1);
        let shape = [self.rows, features.patch_width];
        self.put("pixels", floats(&shape, &features.values));
        let sides = features.grids.iter().flatten().copied();
        self.put("grid", counts(&[features.grids.len(), 3], sides));
    }
}

/// Records what encoders get.
pub(super) fn put_features(
    [audio, images, videos]: &mut [EncoderRecorder; 3],
    media: &MediaFeatures,
) {
    let clips = &media.audio;
    if !clips.lengths.is_empty() {
        audio.rows = clips.lengths.iter().map(|n| audio_tokens(*n)).sum();
        let shape = [clips.mel_bins, clips.lengths.iter().sum()];
        audio.put("features", floats(&shape, &clips.values));
        let lengths = clips.lengths.iter().copied();
        audio.put("lengths", counts(&[clips.lengths.len()], lengths));
    }
    images.put_pictures(&media.images);
    videos.put_pictures(&media.videos);
    if !media.second_per_grid.is_empty() {
        let seconds = &media.second_per_grid;
        videos.put("second_per_grid", floats(&[seconds.len()], seconds));
    }
}

impl EncoderObserver for EncoderRecorder {
    fn stage(&mut self, stage: EncoderStage, values: &[f32]) {
        let name = match stage {
            EncoderStage::Input if self.kind == "audio" => "conv".to_owned(),
            EncoderStage::Input => "embed".to_owned(),
            EncoderStage::Block(number) => format!("layer.{number}"),
            EncoderStage::Deepstack(number) => format!("deepstack.{number}"),
            EncoderStage::Output => "out".to_owned(),
        };
        let rows = match stage {
            EncoderStage::Input | EncoderStage::Block(_) => self.rows,
            EncoderStage::Deepstack(_) | EncoderStage::Output => values.len() / self.output.max(1),
        };
        let tensor = Tensor::activations(self.compute, rows, values);
        self.put(&name, tensor);
    }
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor {
        dtype: Dtype::F32,
        shape: sides(shape),
        bytes: float_bytes(Compute::F32, values),
    }
}

fn counts(shape: &[usize], values: impl Iterator<Item = usize>) -> Tensor {
    Tensor {
        dtype: Dtype::I64,
        shape: sides(shape),
        bytes: values.flat_map(|n| (n as u64).to_le_bytes()).collect(),
    }
}

fn sides(shape: &[usize]) -> Vec<u64> {
    shape.iter().map(|side| *side as u64).collect()
}
