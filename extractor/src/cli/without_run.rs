//! The commands that run models, in a build without the feature `run`: they say so.

/// A command of this name that takes any arguments and refuses them.
macro_rules! refusing {
    ($name:ident, $run:ident($args:ty)) => {
        pub mod $name {
            use std::ffi::OsString;

            use crate::cli::Context;
            use crate::cli::error::CliError;
            use crate::steps::Exit;

            /// Not in this build, which is without the feature `run`
            #[derive(Debug, clap::Args)]
            pub struct Args {
                /// Arguments of the command
                #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
                _arguments: Vec<OsString>,
            }

            pub fn $run(_: $args, _: &Context) -> Result<Exit, CliError> {
                Err(CliError::WithoutRun(stringify!($name)))
            }
        }
    };
}

refusing!(run, run_command(&Args));
refusing!(validate, run(Args));
refusing!(bench, run(Args));
refusing!(devices, run(&Args));
refusing!(vocode, run(&Args));
refusing!(speak, run(&Args));
