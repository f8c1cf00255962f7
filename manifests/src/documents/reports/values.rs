//! What `verify --values` reports of the values of tensors.

use segpack_formats::numeric::Dtype;
use serde::{Deserialize, Serialize};

/// The values of one tensor. Numbers of quantised tensors are without their scales.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TensorValues {
    /// Its name.
    pub name: String,
    /// Element type, as safetensors names it.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::DtypeName")
    )]
    pub dtype: Dtype,
    /// Values.
    pub values: u64,
    /// Values that are not a number.
    pub nan: u64,
    /// Values that are infinite.
    pub infinite: u64,
    /// Values that are zero.
    pub zero: u64,
    /// Rows of which every value is zero.
    pub zero_rows: u64,
    /// The smallest finite value; `null` where there is none, as below.
    pub min: Option<f64>,
    /// The largest finite value.
    pub max: Option<f64>,
    /// Mean of the finite values.
    pub mean: Option<f64>,
    /// Standard deviation of the finite values.
    pub std: Option<f64>,
    /// The largest magnitude, divided by the median of that of the tensors that are compared with it
    /// (the same one of other layers, or of the other experts of its layer); left out where there
    /// are too few.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of_peers: Option<f64>,
}

/// The values of all tensors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ValuesReport {
    /// Every tensor that was read, in the order of the manifest.
    pub tensors: Vec<TensorValues>,
    /// Tensors of dtypes whose values this build does not know.
    pub unknown: Vec<String>,
}
