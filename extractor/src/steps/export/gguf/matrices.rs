//! The matrices of a text decoder, under llama.cpp's names: what an importance matrix is recorded of.

use segpack_manifests::names::{Part, Role};
use segpack_manifests::{Pack, PackModel};

use super::GgufExportError;
use super::architecture::Architecture;
use super::layers::{Row, rows};
use crate::steps::StepError;
use crate::steps::export::ExportError;

/// A tensor of a layer that activations are multiplied with, as llama.cpp calls it.
#[derive(Debug, Clone)]
pub(crate) struct LlamaMatrix {
    pub name: String,
    pub layer: u32,
    pub role: Role,
    pub columns: u64,
    /// How many experts have a matrix in it.
    pub experts: Option<u32>,
}

/// All of them that the text decoder of a pack has.
///
/// # Errors
/// `Family` where it is not written as GGUF; where its configuration cannot be used.
pub(crate) fn llama_matrices(pack: &Pack) -> Result<Vec<LlamaMatrix>, StepError> {
    let family = pack.manifest().model.known_family();
    let family = family.map_err(ExportError::Family)?;
    let architecture = Architecture::of(family).ok_or_else(|| GgufExportError::Family {
        family: family.name(),
    })?;
    let model = PackModel::read(pack).map_err(ExportError::Model)?;
    let decoder = model.text_decoder().map_err(ExportError::Model)?;
    let mut matrices = Vec::new();
    for layer in 0..decoder.facts.layers {
        let has_experts = decoder.settings.has_experts.get(layer as usize).copied();
        let rows = rows(architecture, &decoder, has_experts.unwrap_or(true));
        let of_layer = rows.iter().filter(|row| is_matrix(row));
        matrices.extend(of_layer.map(|row| LlamaMatrix {
            name: format!("blk.{layer}.{}", row.name),
            layer,
            role: row.role,
            columns: row.shape.last().copied().unwrap_or(0),
            experts: row.by_expert.then_some(decoder.facts.experts),
        }));
    }
    Ok(matrices)
}

/// Neither a vector nor a bias.
fn is_matrix(row: &Row) -> bool {
    row.part == Part::Weight && row.shape.len() == 2
}
