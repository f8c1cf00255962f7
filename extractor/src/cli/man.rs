use clap_mangen::Man;

use super::Context;
use super::error::CliError;
use crate::steps::Exit;

/// Print the manual page of segpack or of one of its commands
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack man | man -l -
  segpack man pack > segpack-pack.1")]
pub(super) struct Args {
    /// Command to describe [default: segpack itself]
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let mut all = super::command();
    all.build(); // gives subcommands their full names and inherited flags
    let (page, title) = match &args.command {
        None => (all, "segpack".to_owned()),
        Some(name) => {
            let found = all.find_subcommand(name).cloned();
            let page = found.ok_or_else(|| CliError::NoSuchCommand(name.clone()))?;
            (page, format!("segpack-{name}"))
        }
    };
    let mut text = Vec::new();
    Man::new(page)
        .title(title)
        .render(&mut text)
        .map_err(CliError::stdout)?;
    context.terminal.stdout(|out| out.write_all(&text))?;
    Ok(Exit::Ok)
}
