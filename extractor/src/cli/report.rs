use std::path::PathBuf;
use std::process::{Command, Stdio};

use segpack_formats::io::PendingFile;
use segpack_manifests::PackError;
use segpack_manifests::documents::ReportData;
use segpack_manifests::folder::{NotAPack, OpenOptions};

use super::Context;
use super::args::{INPUT, Jobs, OUTPUT, output_path};
use super::error::CliError;
use crate::output::{refuse_holding, refuse_inside};
use crate::render::cyclonedx::bill_of_materials;
use crate::render::html;
use crate::steps::contents::Contents;
use crate::steps::report::{GivenReports, model_card, report};
use crate::steps::{Exit, StepError};
use crate::work::Progress;

/// Write a page for the browser, or a bill of materials: what a pack holds, and what is known of it
///
/// The page is one HTML file that loads nothing: treemap of components, layers and experts,
/// compressibility, origin, audit, all tensors with search and filters. No weights are read, except
/// those of checkpoints that are compared. Reports of other commands are shown too: verification
/// and values, validation, use of experts.
///
/// `--format cyclonedx` writes the pack's bill of materials instead (CycloneDX 1.6, JSON): the model
/// with its licence and base model from the model card, every file with its SHA-256.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack report omni.segpack -o omni.html --open
  segpack verify omni.segpack --values --json > verify.json
  segpack report omni.segpack -o omni.html --verification verify.json
  segpack report before.segpack after.segpack -o difference.html
  segpack report ./Qwen3-Omni-30B-A3B-Instruct -o checkpoint.html
  segpack report omni.segpack --format cyclonedx -o bom.json")]
pub(super) struct Args {
    /// Pack folder or checkpoint
    #[arg(value_name = "A")]
    a: PathBuf,
    /// Pack folder or checkpoint to compare it with
    #[arg(value_name = "B")]
    b: Option<PathBuf>,
    /// Show what this report of `verify --json` says, and its values if there are any
    #[arg(long, value_name = "FILE", help_heading = INPUT)]
    verification: Option<PathBuf>,
    /// Show what this report of `validate --json` says, layer by layer
    #[arg(long, value_name = "FILE", help_heading = INPUT)]
    validation: Option<PathBuf>,
    /// Show which experts a run used: FILE.json of `run --experts-report`
    #[arg(long, value_name = "FILE", help_heading = INPUT)]
    experts: Option<PathBuf>,
    #[command(flatten)]
    jobs: Jobs,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Html, help_heading = OUTPUT)]
    format: Format,
    /// File to write; an existing one is replaced
    #[arg(
        long,
        short,
        value_name = "FILE",
        value_parser = output_path(),
        required_unless_present = "json",
        help_heading = OUTPUT
    )]
    output: Option<PathBuf>,
    /// Show the page in the browser when it is written
    #[arg(long, requires = "output", help_heading = OUTPUT)]
    open: bool,
    /// Print what the page shows as JSON on standard output (schemas/report-data.schema.json). With
    /// -o the page is written, too
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

/// What `report` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A page for the browser
    Html,
    /// A bill of materials
    Cyclonedx,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    refuse_input(args)?;
    if args.format == Format::Cyclonedx {
        return write_bill(args, context);
    }
    refuse_json_file(args)?;
    // what cannot be written is better found before the work than after it
    let output = args.output.as_deref().map(PendingFile::create);
    let output = output.transpose().map_err(StepError::from)?;
    let mut subjects = Vec::new();
    for path in [Some(&args.a), args.b.as_ref()].into_iter().flatten() {
        let contents = Contents::open(path, OpenOptions::new(), context.job())?;
        subjects.push((path.display().to_string(), contents));
    }
    let job = context.job_of(args.jobs.count());
    let given = GivenReports {
        verification: args.verification.as_deref(),
        validation: args.validation.as_deref(),
        experts: args.experts.as_deref(),
    };
    let data = report(&subjects, &given, job)?;
    if let Some(output) = output {
        let page =
            html::report(&data).map_err(|e| StepError::io("write", output.path())(e.into()))?;
        let published = output.publish(|out| out.write_all(page.as_bytes()));
        published.map_err(StepError::from)?;
    }
    if args.json {
        let nothing = |_: &ReportData| String::new();
        context.terminal.document(&data, true, nothing)?;
    }
    if args.open
        && let Some(path) = &args.output
    {
        show(path, context);
    }
    Ok(Exit::Ok)
}

/// Refuses a page whose name says that it is the JSON, which goes to standard output.
fn refuse_json_file(args: &Args) -> Result<(), CliError> {
    let name = args.output.as_deref().and_then(|path| path.extension());
    if args.json && name.is_some_and(|ending| ending.eq_ignore_ascii_case("json")) {
        return Err(CliError::Output {
            option: "output",
            why: "is the page, which is HTML; --json goes to standard output: leave out -o, and redirect it",
        });
    }
    Ok(())
}

/// Refuses an output that is an input, or lies inside one: inputs are never written to.
fn refuse_input(args: &Args) -> Result<(), StepError> {
    let Some(output) = &args.output else {
        return Ok(());
    };
    let is_here = |path: &&PathBuf| path.exists();
    let subjects = [Some(&args.a), args.b.as_ref()];
    for input in subjects.into_iter().flatten().filter(is_here) {
        refuse_inside(output, input)?;
    }
    let reports = [&args.verification, &args.validation, &args.experts];
    let reports = reports.into_iter().flatten().filter(is_here).cloned();
    Ok(refuse_holding(output, &reports.collect::<Vec<_>>())?)
}

/// The bill of materials of a pack.
fn write_bill(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let others = [&args.b, &args.verification, &args.validation, &args.experts];
    let is_alone = !args.json && !args.open && others.iter().all(|given| given.is_none());
    let output = args.output.as_ref().filter(|_| is_alone);
    let output = output.ok_or(CliError::Output {
        option: "format",
        why: "cyclonedx is of one pack: only -o FILE goes with it",
    })?;
    let output = PendingFile::create(output).map_err(StepError::from)?;
    let contents = Contents::open(&args.a, OpenOptions::new(), context.job())?;
    let pack = contents.pack().ok_or_else(|| PackError::NotAPack {
        folder: args.a.clone(),
        why: NotAPack::Checkpoint,
    })?;
    let card = model_card(pack)?;
    let bill = bill_of_materials(pack.manifest(), &pack.manifest_sha256().to_string(), &card);
    let published = output.publish(|out| {
        serde_json::to_writer_pretty(&mut *out, &bill)?;
        out.write_all(b"\n")
    });
    published.map_err(StepError::from)?;
    Ok(Exit::Ok)
}

/// Asks the desktop for its browser; where there is none the page is written all the same.
fn show(path: &std::path::Path, context: &Context) {
    let program = if cfg!(target_os = "macos") {
        "open"
    } else {
        "xdg-open"
    };
    let mut command = Command::new(program);
    command
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Err(e) = command.spawn() {
        let what = format!("cannot show {}: {program}: {e}", path.display());
        context.progress.note(&what);
    }
}
