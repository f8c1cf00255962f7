use clap_complete::Shell;

use super::Context;
use super::error::CliError;
use crate::steps::Exit;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack completions bash > ~/.local/share/bash-completion/completions/segpack
  segpack completions zsh > ~/.zfunc/_segpack")]
pub(super) struct Args {
    /// Shell to complete for
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    // written to a buffer first: the generator panics where its writer fails
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "segpack", &mut script);
    context.terminal.stdout(|out| out.write_all(&script))?;
    Ok(Exit::Ok)
}
