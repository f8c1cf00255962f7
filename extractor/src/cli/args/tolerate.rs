use clap::ValueEnum;

use super::INPUT;
use crate::steps::scan::ScanOptions;

/// What to do with files and tensors that do not belong to the model.
#[derive(Debug, clap::Args)]
pub(crate) struct Tolerate {
    /// What to do with weight files that the index does not list
    #[arg(long, value_name = "WHAT", default_value = "refuse", help_heading = INPUT)]
    extra: Extra,
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
enum Extra {
    /// Report them as errors
    Refuse,
    /// Store them verbatim
    Keep,
}

impl Tolerate {
    pub(crate) fn options(&self) -> ScanOptions {
        ScanOptions {
            keep_extra: self.extra == Extra::Keep,
            allow_unclassified: self.allow_unclassified,
            allow_unaudited: self.unaudited.allow_unaudited,
        }
    }
}
