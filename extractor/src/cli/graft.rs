use std::path::PathBuf;

use segpack_manifests::Pack;

use super::Context;
use super::args::{INPUT, Jobs, OUTPUT, output_path};
use super::error::CliError;
use crate::render::text;
use crate::source::local_pack;
use crate::steps::pack::graft;
use crate::steps::{Exit, StepError};

/// Put a fine-tuned thinker into the pack of a whole model
///
/// The result is the pack of the whole model, its talker, vocoder and files as they are, with the
/// tensors of the other thinker: byte for byte what packing the merged checkpoint would write, and
/// `unpack` gives that checkpoint. Both inputs are verified first; names, dtypes, shapes and
/// the numbers of config.json have to be those of the model. Pack files that stay the same are
/// linked, not copied. After an error nothing is left.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack graft tuned.segpack --onto omni.segpack -o tuned-omni.segpack
  segpack graft ./tuned-thinker --onto omni.segpack -o tuned-omni.segpack
  segpack unpack tuned-omni.segpack -o tuned-omni")]
pub(super) struct Args {
    /// Pack or checkpoint of the fine-tuned thinker
    #[arg(value_name = "THINKER")]
    thinker: PathBuf,
    /// Pack of the whole model
    #[arg(long, value_name = "PACK", help_heading = INPUT)]
    onto: PathBuf,
    #[command(flatten)]
    jobs: Jobs,
    /// Pack folder to write
    #[arg(long, short, value_name = "PACK", value_parser = output_path(), help_heading = OUTPUT)]
    output: PathBuf,
    /// Replace an existing pack, and nothing else; the old pack stays whole until the new one is
    /// complete
    #[arg(long, help_heading = OUTPUT)]
    force: bool,
    /// Print the report as JSON (schemas/graft-report.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let job = context.job_of(args.jobs.count());
    let why = "a thinker is grafted onto a pack of this machine: copy the pack to a folder";
    let onto = local_pack(&args.onto, why).map_err(StepError::from)?;
    let onto = Pack::open(onto).map_err(StepError::from)?;
    let report = graft(&args.thinker, &onto, &args.output, args.force, job)?;
    let place = args.output.display().to_string();
    context
        .terminal
        .document(&report, args.json, |r| text::graft(r, &place))?;
    Ok(Exit::Ok)
}
