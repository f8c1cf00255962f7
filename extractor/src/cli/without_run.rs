//! The commands that run models, in a build without the feature `run` or `serve`: they say so.

/// A command of this name that takes any arguments and refuses them, for want of a feature.
macro_rules! refusing {
    ($name:ident, $run:ident($args:ty), $feature:literal) => {
        pub mod $name {
            use std::ffi::OsString;

            use crate::cli::Context;
            use crate::cli::error::CliError;
            use crate::steps::Exit;

            #[doc = concat!("Not in this build, which is without the feature `", $feature, "`")]
            #[derive(Debug, clap::Args)]
            pub struct Args {
                /// Arguments of the command
                #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
                _arguments: Vec<OsString>,
            }

            pub fn $run(_: $args, _: &Context) -> Result<Exit, CliError> {
                Err(CliError::WithoutFeature {
                    command: stringify!($name),
                    feature: $feature,
                })
            }
        }
    };
}

refusing!(serve, run(&Args), "serve");
#[cfg(not(feature = "run"))]
mod models {
    refusing!(run, run_command(&Args), "run");
    refusing!(chat, run(&Args), "run");
    refusing!(validate, run(&Args), "run");
    refusing!(bench, run(Args), "run");
    refusing!(devices, run(&Args), "run");
    refusing!(vocode, run(&Args), "run");
    refusing!(speak, run(&Args), "run");
}
#[cfg(not(feature = "run"))]
pub(super) use models::{bench, chat, devices, run, speak, validate, vocode};
