use super::Context;
use crate::render::text;
use crate::steps::Exit;
use crate::steps::device::list;

/// List the GPUs that a model can run on, and which device `--device auto` takes
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack devices
  segpack devices --json | jq -r .auto")]
pub struct Args {
    /// Print one JSON document (schemas/devices-report.schema.json)
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    context
        .terminal
        .document(&list()?, args.json, text::devices)?;
    Ok(Exit::Ok)
}
