use super::Context;
use super::args::OUTPUT;
use super::error::CliError;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::devices::list;

/// List the GPUs that can run a model, and the device that `--device auto` selects
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack devices
  segpack devices --json | jq -r .auto")]
pub(super) struct Args {
    /// Print the report as JSON (schemas/devices-report.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    context
        .terminal
        .document(&list()?, args.json, text::devices)?;
    Ok(Exit::Ok)
}
