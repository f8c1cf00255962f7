//! The receipt of `verify`: what was verified, and when. It lies outside the pack, which holds no
//! times.

use serde::{Deserialize, Serialize};

use crate::documents::{FormatVersion, VerifyReport};

/// A file of the pack as it was when it was verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ReceiptFile {
    /// Path relative to the pack folder.
    pub path: String,
    /// Bytes.
    pub length: u64,
    /// Time of the last modification, in nanoseconds since 1970 (UTC), as text: JSON numbers lose
    /// digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<String>,
}

/// What `verify --receipt` records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VerifyReceipt {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// When the verification ended, as in RFC 3339, UTC.
    pub time: String,
    /// The report, without the values of tensors.
    pub report: VerifyReport,
    /// The files of the pack when the verification began.
    pub files: Vec<ReceiptFile>,
}
