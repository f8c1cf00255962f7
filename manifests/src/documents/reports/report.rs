//! What the page of `report` draws: everything that is known of one or two packs or checkpoints.

use segpack_formats::numeric::Dtype;
use serde::{Deserialize, Serialize};

use crate::documents::{
    Completeness, DiffKind, DiffReport, ExpertsReport, Finding, FormatVersion, InfoReport,
    Provenance, PublishedMatch, ValidateReport, VerifyReport,
};
use crate::families::FamilyName;
use crate::names::{Component, Part, Role};

/// What a page shows of one pack or checkpoint, or of two that are compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReportData {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// The one that it is about, or the two that are compared.
    pub subjects: Vec<ReportSubject>,
    /// What differs between the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<DiffReport>,
    /// What `verify` found, if its report was given. The values of tensors are with the tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerifyReport>,
    /// What `validate` found, if its report was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidateReport>,
    /// Which experts a run used, if its report was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertsReport>,
}

/// A pack or a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReportSubject {
    /// As the command line named it.
    pub name: String,
    /// What it is.
    pub kind: DiffKind,
    /// Of a pack, what `info` says.
    pub info: Option<InfoReport>,
    /// Family of the model, where it is known.
    pub family: Option<FamilyName>,
    /// Where the checkpoint came from, as far as that is recorded.
    pub provenance: Option<Provenance>,
    /// Of a checkpoint, the published model that has these tensors, or nearly.
    pub published: Option<PublishedMatch>,
    /// Whether all tensors are there that its `config.json` requires.
    pub completeness: Completeness,
    /// What is wrong; of a pack, as far as that can be told without reading weights.
    pub findings: Vec<Finding>,
    /// The numbers of the decoder that has routed experts.
    pub decoder: Option<ReportDecoder>,
    /// Of a pack, raw and stored bytes of its segments, in the order of the manifest.
    pub segments: Vec<[u64; 2]>,
    /// Its tensors.
    pub groups: Vec<ReportGroup>,
}

/// What of a decoder says which bytes a token needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReportDecoder {
    /// The component that it is.
    pub component: Component,
    /// Layers that have experts.
    pub layers: u32,
    /// Experts of such a layer.
    pub experts: u32,
    /// Experts that a token goes to in such a layer.
    pub experts_per_token: u32,
}

/// Tensors that are alike but for numbers in their names. All lists have `count` entries, one for
/// each tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReportGroup {
    /// Their name, `{}` in the place of each number.
    pub pattern: String,
    /// Part of the model.
    pub component: Component,
    /// What they do there.
    pub role: Role,
    /// What of the weight they are.
    #[serde(default = "Part::weight", skip_serializing_if = "Part::is_weight")]
    pub part: Part,
    /// The group of segments that such a role goes to, such as `attention`.
    pub unit: String,
    /// Element type, as safetensors names it.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::DtypeName")
    )]
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: Vec<u64>,
    /// Bytes of each.
    pub bytes: u64,
    /// How many there are.
    pub count: usize,
    /// For each `{}`, its numbers.
    pub numbers: Vec<Vec<u32>>,
    /// Which `{}` is the layer.
    pub layer_at: Option<usize>,
    /// Which `{}` is the expert.
    pub expert_at: Option<usize>,
    /// Of a pack, the number of the segment that holds each.
    pub segments: Vec<usize>,
    /// Of a pack, the first twelve hex digits of the SHA-256 of each.
    pub sha256: Vec<String>,
    /// Their values, if a report of `verify --values` was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<ReportValues>,
}

/// The values of the tensors of a group, with three significant digits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReportValues {
    /// Root of the mean square of the finite values; `null` where there is none.
    pub rms: Vec<Option<f64>>,
    /// The largest magnitude.
    pub max_abs: Vec<Option<f64>>,
    /// The largest magnitude, divided by the median of its peers'.
    pub of_peers: Vec<Option<f64>>,
    /// Values that are NaN or infinite.
    pub not_finite: Vec<u64>,
}
