use super::OUTPUT;
use crate::render::text::Sizes;

/// How tables show sizes.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct SizeArgs {
    /// Print exact numbers of bytes
    #[arg(long, help_heading = OUTPUT)]
    bytes: bool,
}

impl SizeArgs {
    /// As a renderer takes it.
    pub(crate) fn sizes(self) -> Sizes {
        Sizes { exact: self.bytes }
    }
}
