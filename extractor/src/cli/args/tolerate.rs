use std::path::{Path, PathBuf};

use clap::ValueEnum;
use segpack_formats::FormatError;
use segpack_formats::io::read_limited;
use segpack_formats::strict_json::UniqueEntries;
use segpack_manifests::families::Family;
use segpack_manifests::folder::max_source_bytes;
use serde_json::Value;

use super::INPUT;
use crate::cli::error::CliError;
use crate::steps::StepError;
use crate::steps::scan::{Extra, ScanOptions};

/// What to do with files and tensors that do not belong to the model.
#[derive(Debug, clap::Args)]
pub(crate) struct Tolerate {
    /// What to do with weight files that the index does not list
    #[arg(long, value_name = "WHAT", default_value = "refuse", help_heading = INPUT)]
    extra: ExtraArg,
    /// Accept tensors that no rule classifies; they go into a pack of their own
    #[arg(long, help_heading = INPUT)]
    allow_unclassified: bool,
    #[command(flatten)]
    unaudited: AllowUnaudited,
    /// Audit with this file instead of the checkpoint's config.json, which stays part of the
    /// checkpoint: for one whose experts were pruned, or whose configuration is of another style
    #[arg(long, value_name = "FILE", help_heading = INPUT)]
    config: Option<PathBuf>,
    /// Take the names to be those of this family, whatever config.json says, such as qwen3_vl_moe
    #[arg(long = "as", value_name = "FAMILY", value_parser = family, help_heading = INPUT)]
    family: Option<Family>,
}

/// Whether a model may be taken whose completeness is not known.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct AllowUnaudited {
    /// Accept that completeness is not known: an unknown family, or no config.json
    #[arg(long, help_heading = INPUT)]
    pub allow_unaudited: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExtraArg {
    /// Report them as errors
    Refuse,
    /// Store them as files, byte for byte; unpack restores them
    Keep,
    /// Leave them out, which the manifest records
    Leave,
}

impl Tolerate {
    /// # Errors
    /// Where the file of `--config` cannot be read, or is no JSON object.
    pub(crate) fn options(&self) -> Result<ScanOptions, CliError> {
        let config = self.config.as_deref().map(read_config).transpose()?;
        Ok(ScanOptions {
            config,
            family: self.family,
            extra: match self.extra {
                ExtraArg::Refuse => Extra::Refuse,
                ExtraArg::Keep => Extra::Keep,
                ExtraArg::Leave => Extra::Leave,
            },
            allow_unclassified: self.allow_unclassified,
            allow_unaudited: self.unaudited.allow_unaudited,
        })
    }
}

/// A configuration that stands for the checkpoint's own.
fn read_config(path: &Path) -> Result<Value, CliError> {
    let json = read_limited(path, max_source_bytes("config.json")).map_err(StepError::from)?;
    let entries: UniqueEntries<Value> = serde_json::from_slice(&json).map_err(|e| {
        let what = format!("is not a JSON object: {e}");
        StepError::from(FormatError::malformed(path, what))
    })?;
    Ok(Value::Object(entries.0.into_iter().collect()))
}

/// A family by its name in documents.
fn family(name: &str) -> Result<Family, String> {
    Family::named(name).ok_or_else(|| {
        let all: Vec<&str> = Family::all().map(Family::as_str).collect();
        format!("expected one of {}", all.join(", "))
    })
}
