use clap::ValueEnum;
use segpack_formats::codec::{Codec, Coding};

use super::OUTPUT;
use crate::cli::error::CliError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CodecName {
    /// No compression; packs are plain safetensors files
    Raw,
    /// zstd in independently decodable chunks
    Zstd,
    /// bf16 weights a third smaller; any zstd decodes it
    #[value(name = "bf16-zstd")]
    Bf16Zstd,
    /// bf16 weights a third smaller, decoded faster than a drive reads: for storage and transfer
    #[value(name = "bf16-rans")]
    Bf16Rans,
}

/// Settings of codecs.
#[derive(Debug, clap::Args)]
pub(crate) struct CodecArgs {
    /// Compression level of zstd, 1 (fast) to 22 (small) [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=22), help_heading = OUTPUT)]
    level: Option<i32>,
}

impl CodecArgs {
    /// A codec with these settings.
    pub(crate) fn coding(&self, name: CodecName) -> Result<Coding, CliError> {
        let codec = match name {
            CodecName::Raw => Codec::Raw,
            CodecName::Zstd => Codec::Zstd,
            CodecName::Bf16Zstd => Codec::Bf16Zstd,
            CodecName::Bf16Rans => Codec::Bf16Rans,
        };
        if codec != Codec::Zstd && self.level.is_some() {
            return Err(CliError::Level(codec));
        }
        Ok(Coding::of(codec, self.level))
    }
}
