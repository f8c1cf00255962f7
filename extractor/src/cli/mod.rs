//! The command line: one file per command, data to standard output, everything else to standard
//! error.

mod args;
#[cfg(feature = "run")]
mod bench;
mod cat;
#[cfg(feature = "run")]
mod chat;
mod completions;
mod confirm;
mod demo;
#[cfg(feature = "run")]
mod devices;
mod diff;
mod error;
mod export;
mod failure;
mod graft;
mod hints;
mod info;
mod join;
mod ls;
mod man;
mod pack;
mod progress;
mod repack;
mod repair;
mod report;
#[cfg(feature = "run")]
mod run;
mod scan;
#[cfg(feature = "serve")]
mod serve;
mod sign;
mod signals;
#[cfg(feature = "run")]
mod speak;
mod terminal;
mod unpack;
mod update;
#[cfg(feature = "run")]
mod validate;
mod verify;
#[cfg(feature = "run")]
mod vocode;
#[cfg(not(feature = "serve"))]
mod without_run;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{ArgAction, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};
use segpack_formats::io::CancelToken;

use crate::steps::{Exit, StepError};
use crate::work::Job;
use args::GLOBAL;
use error::CliError;
use failure::JsonOutput;
use progress::Reporter;
use terminal::Terminal;
#[cfg(not(feature = "serve"))]
use without_run::serve;
#[cfg(not(feature = "run"))]
use without_run::{bench, chat, devices, run, speak, validate, vocode};

/// Ends the help of every command.
const EXIT_STATUS: &str = "\
Exit status:
  0    success (also when standard output is closed early)
  1    the environment or the output failed: no space, no permission, output exists
  2    invalid command line
  3    the input is damaged, incomplete or different
  130  interrupted (Ctrl-C); 143 terminated";

/// Split Mixture-of-Experts checkpoints into checksummed per-expert packs, verify that nothing was
/// lost, restore the original files byte for byte, and run the model from its pack
#[derive(Debug, Parser)]
#[command(
    name = "segpack",
    version,
    propagate_version = true,
    max_term_width = 100,
    disable_help_flag = true,
    disable_version_flag = true
)]
pub struct Cli {
    /// Print only results and errors
    #[arg(long, short, global = true, help_heading = GLOBAL)]
    quiet: bool,
    /// When to use colours (NO_COLOR is respected)
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value_t = ColorChoice::Auto,
        help_heading = GLOBAL
    )]
    color: ColorChoice,
    /// Print help (-h prints a summary)
    #[arg(long, short, global = true, action = ArgAction::Help, help_heading = GLOBAL)]
    help: Option<bool>,
    /// Print the version
    #[arg(long, short = 'V', global = true, action = ArgAction::Version, help_heading = GLOBAL)]
    version: Option<bool>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Scan(scan::Args),
    Pack(pack::Args),
    Join(join::Args),
    Verify(verify::Args),
    Sign(sign::Args),
    Info(info::Args),
    Ls(ls::Args),
    Report(report::Args),
    Diff(diff::Args),
    Cat(cat::Args),
    Unpack(unpack::Args),
    Repack(repack::Args),
    Repair(repair::Args),
    Update(update::Args),
    Graft(graft::Args),
    Export(export::Args),
    // the largest by far
    Run(Box<run::Args>),
    Chat(Box<chat::Args>),
    Serve(Box<serve::Args>),
    Validate(validate::Args),
    Speak(speak::Args),
    Vocode(vocode::Args),
    Bench(bench::Args),
    Demo(demo::Args),
    Devices(devices::Args),
    Completions(completions::Args),
    Man(man::Args),
}

impl Command {
    /// The folder that a command writes and can continue with `--resume`.
    fn output(&self) -> Option<&Path> {
        match self {
            Self::Pack(args) => Some(args.output()),
            Self::Unpack(args) => Some(args.output()),
            Self::Repack(args) => Some(args.output()),
            Self::Export(args) => args.output(),
            _ => None,
        }
    }
}

/// What every command gets: where to write, how to report progress, when to stop.
struct Context {
    terminal: Terminal,
    /// As long as the process: servers are asked until it ends.
    progress: &'static Reporter,
    stop: &'static CancelToken,
    quiet: bool,
}

impl Context {
    /// What reads from servers needs.
    fn job(&self) -> Job<'static> {
        self.job_of(1)
    }

    /// Work on this many threads.
    fn job_of(&self, threads: usize) -> Job<'static> {
        Job {
            threads,
            stop: self.stop,
            progress: self.progress,
        }
    }
}

/// Ends the help of the program as a whole.
const EXAMPLES: &str = "\
Examples:
  segpack demo
  segpack scan Qwen/Qwen3-Omni-30B-A3B-Instruct
  segpack pack Qwen/Qwen3-Omni-30B-A3B-Instruct -o omni.segpack
  segpack verify omni.segpack && segpack unpack omni.segpack -o restored";

/// The command with the list of exit statuses under every help text.
fn command() -> clap::Command {
    let mut command = Cli::command().after_help(format!("{EXAMPLES}\n\n{EXIT_STATUS}"));
    let names: Vec<String> = command
        .get_subcommands()
        .map(|c| c.get_name().to_owned())
        .collect();
    for name in names {
        command = command.mut_subcommand(name, |sub| {
            let examples = sub
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            sub.after_help(format!("{examples}\n\n{EXIT_STATUS}"))
        });
    }
    command
}

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    ExitCode::from(main_with(std::env::args_os()))
}

/// Runs the program with these arguments, the first of them its name, and returns its exit status.
/// Signals are its own from then on, and standard output is flushed: nothing else of the process has
/// to know of either.
pub fn main_with(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let status = run_with(arguments.into_iter().collect());
    // Rust flushes at the end of its own programs alone; a pipe that is closed has its status already
    let _ = io::stdout().flush();
    status
}

fn run_with(arguments: Vec<OsString>) -> u8 {
    let words = arguments.get(1..).unwrap_or_default().to_vec();
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(e) => return usage(&e, words),
    };
    let json = JsonOutput::of(&matches);
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => return usage(&e, words),
    };
    let terminal = Terminal::new(cli.color);
    let stop = match cli.command {
        Command::Chat(_) => signals::install_for_answers(),
        _ => signals::install(cli.quiet),
    };
    let context = Context {
        terminal,
        progress: Box::leak(Box::new(Reporter::new(cli.quiet))),
        stop,
        quiet: cli.quiet,
    };
    let doing = hints::Doing {
        output: cli.command.output().map(Path::to_owned),
        reads_parts: matches!(cli.command, Command::Join(_)),
    };
    let exit = match dispatch(cli.command, &context) {
        Ok(exit) => exit,
        Err(e) if is_broken_pipe(&e) => Exit::Ok,
        Err(e) => {
            let hint = hints::hint(&e, &doing);
            context.terminal.error(&e, hint.clone());
            let status = signals::exit_status(e.exit());
            json.print(&failure::report(&e, hint, status));
            e.exit()
        }
    };
    signals::exit_status(exit)
}

fn usage(error: &clap::Error, arguments: Vec<OsString>) -> u8 {
    // help that goes into a closed pipe is no failure
    let _ = error.print();
    if error.use_stderr() {
        JsonOutput::guess(arguments).print(&failure::usage(error));
    }
    if error.use_stderr() {
        Exit::Usage as u8
    } else {
        Exit::Ok as u8
    }
}

fn dispatch(command: Command, context: &Context) -> Result<Exit, CliError> {
    match command {
        Command::Scan(args) => scan::run(&args, context),
        Command::Pack(args) => pack::run(&args, context),
        Command::Join(args) => join::run(&args, context),
        Command::Verify(args) => verify::run(args, context),
        Command::Sign(args) => sign::run(&args, context),
        Command::Info(args) => info::run(&args, context),
        Command::Diff(args) => diff::run(&args, context),
        Command::Ls(args) => ls::run(&args, context),
        Command::Report(args) => report::run(&args, context),
        Command::Cat(args) => cat::run(&args, context),
        Command::Unpack(args) => unpack::run(args, context),
        Command::Repack(args) => repack::run(&args, context),
        Command::Repair(args) => repair::run(&args, context),
        Command::Update(args) => update::run(&args, context),
        Command::Graft(args) => graft::run(&args, context),
        Command::Export(args) => export::run(args, context),
        Command::Run(args) => run::run_command(&args, context),
        Command::Chat(args) => chat::run(&args, context),
        Command::Serve(args) => serve::run(&args, context),
        Command::Validate(args) => validate::run(&args, context),
        Command::Speak(args) => speak::run(&args, context),
        Command::Vocode(args) => vocode::run(&args, context),
        Command::Bench(args) => bench::run(args, context),
        Command::Demo(args) => demo::run(&args, context),
        Command::Devices(args) => devices::run(&args, context),
        Command::Completions(args) => completions::run(&args, context),
        Command::Man(args) => man::run(&args, context),
    }
}

/// Whether standard output was closed.
fn is_broken_pipe(error: &CliError) -> bool {
    matches!(error, CliError::Step(StepError::Stdout(e)) if e.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn only_a_closed_standard_output_is_a_broken_pipe() {
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&CliError::stdout(closed())));
        assert!(!is_broken_pipe(
            &StepError::io("write", "file")(closed()).into()
        ));
        assert!(!is_broken_pipe(&CliError::stdout(
            io::ErrorKind::StorageFull.into()
        )));
    }
}
