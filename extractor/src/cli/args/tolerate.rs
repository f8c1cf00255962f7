use clap::ValueEnum;

use super::INPUT;
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
    pub(crate) fn options(&self) -> ScanOptions {
        ScanOptions {
            extra: match self.extra {
                ExtraArg::Refuse => Extra::Refuse,
                ExtraArg::Keep => Extra::Keep,
                ExtraArg::Leave => Extra::Leave,
            },
            allow_unclassified: self.allow_unclassified,
            allow_unaudited: self.unaudited.allow_unaudited,
        }
    }
}
