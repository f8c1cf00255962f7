//! The target `npy`: a folder of `.npy` files.

use segpack_formats::safetensors::{Dtype, check_relative_path};
use segpack_manifests::documents::TensorEntry;

use super::plan::{Content, ExportPlan, NewTensorPlan, PlannedFile, TensorFile};
use super::{ExportError, ExportSettings};

/// One `.npy` file for each tensor, called as it is.
pub(super) fn npy<'a>(
    chosen: &[&'a TensorEntry],
    settings: &ExportSettings,
) -> Result<ExportPlan<'a>, ExportError> {
    let mut plan = ExportPlan::default();
    for tensor in chosen {
        let path = format!("{}.npy", tensor.name);
        check_relative_path(&path).map_err(|why| ExportError::FileName {
            tensor: tensor.name.clone(),
            why,
        })?;
        let content = TensorFile::npy(NewTensorPlan::of(
            tensor.name.clone(),
            tensor,
            settings.dtype,
        ))?;
        plan.files.push(PlannedFile {
            path,
            content: Content::Tensors(content),
        });
    }
    let opaque = |t: &&&TensorEntry| settings.dtype.is_none() && t.dtype == Dtype::BF16;
    let count = chosen.iter().filter(opaque).count();
    if count > 0 {
        plan.notes.push(format!(
            "numpy has no bfloat16: {count} arrays are 2-byte values ('<V2', as ml_dtypes saves them); read them with \
             numpy.load(FILE).view(ml_dtypes.bfloat16), or export with --dtype f32, which is exact"
        ));
    }
    Ok(plan)
}
