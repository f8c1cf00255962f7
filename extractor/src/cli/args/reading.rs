use std::path::PathBuf;

use segpack_manifests::Pack;

use super::signer::SIGNER_OPTION;
use super::{PackArg, SIGNATURE, SegmentCacheArgs, SignerArgs};
use crate::cli::Context;
use crate::cli::error::CliError;
use crate::steps::sign::require_signature;

/// How a pack is read whose weights are used.
#[derive(Debug, clap::Args)]
pub(crate) struct ReadingArgs {
    #[command(flatten)]
    cache: SegmentCacheArgs,
    /// Use the pack only if its signature is right, model.sig in the pack or FILE; every byte that is
    /// read is compared with what was signed
    #[arg(
        id = "signature",
        long = "require-signature",
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        requires_all = [SIGNER_OPTION, "pack"],
        help_heading = SIGNATURE
    )]
    signature: Option<Option<PathBuf>>,
    #[command(flatten)]
    signer: SignerArgs,
}

impl ReadingArgs {
    /// Opens the pack, if it is signed as it has to be.
    ///
    /// # Errors
    /// Where it is no pack, not the one that it must be, or not signed by whom it has to be; where
    /// its cache cannot be used.
    pub(crate) fn open(&self, pack: &PackArg, context: &Context) -> Result<Pack, CliError> {
        let pack = pack.open(context)?;
        if let Some(settings) = self.signer.signature(self.signature.as_ref()) {
            require_signature(&pack, &settings)?;
        }
        self.cache.of(pack, context)
    }

    /// Refuses an option with which not all that is read is compared.
    ///
    /// # Errors
    /// `Unchecked` where the pack has to be signed, and the option is used.
    pub(crate) fn refuse_unchecked(
        &self,
        is_used: bool,
        option: &'static str,
    ) -> Result<(), CliError> {
        match self.signature.is_some() && is_used {
            true => Err(CliError::Unchecked { option }),
            false => Ok(()),
        }
    }
}
