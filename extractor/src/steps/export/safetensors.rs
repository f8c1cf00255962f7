//! The target `safetensors`: tensors in one file.

use segpack_manifests::Pack;
use segpack_manifests::documents::TensorEntry;

use super::origin::Origin;
use super::plan::{Content, ExportPlan, NewTensorPlan, PlannedFile, TensorFile};
use super::{ExportError, ExportSettings};

/// One safetensors file of these tensors, under the names that `ls --tensors` prints.
pub(super) fn safetensors<'a>(
    pack: &Pack,
    chosen: &[&'a TensorEntry],
    settings: &ExportSettings,
    path: &str,
) -> Result<ExportPlan<'a>, ExportError> {
    let tensors = chosen
        .iter()
        .map(|t| NewTensorPlan::of(t.name.clone(), t, settings.dtype))
        .collect();
    let content = Content::Tensors(TensorFile::safetensors(tensors, &Origin::of(pack))?);
    Ok(ExportPlan {
        files: vec![PlannedFile {
            path: path.to_owned(),
            content,
        }],
        notes: Vec::new(),
    })
}
