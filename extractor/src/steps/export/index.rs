//! Reads the index of a file that was written.

use std::sync::Arc;

use segpack_formats::io::InputFile;
use segpack_formats::npy::{MAX_NPY_HEADER_BYTES, NpyHeader};
use segpack_formats::safetensors::Shard;

#[cfg(not(feature = "run"))]
use super::ExportError;
use super::plan::FileFormat;
use super::written::WrittenTensor;
use crate::steps::StepError;

/// Reads a file's own index, by place.
///
/// # Errors
/// `Io`, `Malformed`.
pub(super) fn read_index(
    format: FileFormat,
    input: InputFile,
) -> Result<Vec<WrittenTensor>, StepError> {
    match format {
        FileFormat::Safetensors => {
            let tensors = Shard::open_from(Arc::new(input))?.header.tensors;
            Ok(tensors.into_iter().map(WrittenTensor::from).collect())
        }
        #[cfg(feature = "run")]
        FileFormat::Gguf => super::gguf::read_index(&input),
        #[cfg(not(feature = "run"))]
        FileFormat::Gguf => Err(ExportError::WithoutRun {
            target: segpack_manifests::documents::ExportTarget::Gguf,
        }
        .into()),
        FileFormat::Npy => read_npy(&input),
    }
}

fn read_npy(input: &InputFile) -> Result<Vec<WrittenTensor>, StepError> {
    let first = input.read_range(0..input.length().min(MAX_NPY_HEADER_BYTES))?;
    let header =
        NpyHeader::parse(&first).map_err(|what| StepError::malformed(input.path(), what))?;
    if header.fortran_order {
        let what = "has its first dimension fastest; wanted the last";
        return Err(StepError::malformed(input.path(), what));
    }
    Ok(vec![WrittenTensor {
        name: None,
        dtype: header.descr,
        shape: header.shape,
        offset: header.data_start,
    }])
}
