use clap::ValueEnum;

use crate::steps::scan::ScanOptions;

/// What to do with things that do not belong.
#[derive(Debug, clap::Args)]
pub struct Tolerate {
    /// What to do with weight files that the index does not name
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    extra: Extra,
    /// Accept tensors that no rule names; they are packed on their own
    #[arg(long)]
    allow_unclassified: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Extra {
    /// They are errors
    Refuse,
    /// They are stored verbatim
    Keep,
}

impl Tolerate {
    pub fn options(&self) -> ScanOptions {
        ScanOptions {
            keep_extra: self.extra == Extra::Keep,
            allow_unclassified: self.allow_unclassified,
        }
    }
}
