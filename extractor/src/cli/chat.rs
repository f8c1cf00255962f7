//! `chat`: a conversation at the terminal.

mod input;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use segpack_formats::FormatError;
use segpack_formats::io::{PendingFile, read_limited};
use segpack_manifests::json;
use segpack_runtime_min::generate::StopReason;
use segpack_runtime_min::session::GenerationSettings;
use serde_json::json;

use self::input::{Input, Line};
use super::Context;
use super::args::{
    DEVICE, ExpertArgs, INPUT, ModelArgs, PackArg, ReadingArgs, SAMPLING, SamplingArgs,
};
use super::error::CliError;
use super::terminal::for_terminal;
use super::{hints, signals};
use crate::steps::chat::{Answer, ChatOptions, Conversation, chat};
use crate::steps::{Exit, StepError};

/// Talk with the model in a pack
///
/// Each line is a message; /help lists commands. Ctrl-C ends an answer, Ctrl-D the conversation.
/// Answers go to standard output, everything else to standard error. What was said stays in memory:
/// only new messages are run.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack chat omni.segpack --memory 8GB
  segpack chat omni.segpack --system 'Answer in one sentence.' --temperature 0.7
  printf 'Name three rivers.\\nThe longest?\\n' | segpack chat omni.segpack")]
pub(super) struct Args {
    #[command(flatten)]
    pack: PackArg,
    #[command(flatten)]
    reading: ReadingArgs,
    /// System message
    #[arg(long, value_name = "TEXT", help_heading = INPUT)]
    system: Option<String>,
    /// Go on with the conversation in this file, as /save writes it
    #[arg(long, value_name = "FILE", conflicts_with = "system", help_heading = INPUT)]
    load: Option<PathBuf>,
    /// Value of `enable_thinking` in the chat template
    #[arg(long, value_name = "BOOL", help_heading = INPUT)]
    enable_thinking: Option<bool>,
    /// Maximum number of tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = SAMPLING)]
    max_new_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Maximum number of tokens of the conversation (also limited by the model's context length);
    /// their keys and values count towards the memory budget
    #[arg(long, value_name = "N", default_value_t = 4096, help_heading = DEVICE)]
    context: usize,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    experts: ExpertArgs,
    /// Load as many weights as fit before the first message instead of on first use
    #[arg(long, help_heading = DEVICE)]
    preload: bool,
}

impl Args {
    fn options(&self) -> Result<ChatOptions, CliError> {
        let mut session = self.model.session();
        session.experts = self.experts.choice()?;
        let mut generation = GenerationSettings::default();
        generation.max_new_tokens = self.max_new_tokens;
        generation.sampling = self.sampling.options();
        generation.stop_strings.clone_from(&self.sampling.stop);
        generation.draft_lookup = self.sampling.drafts();
        generation.preload = self.preload;
        let mut options = ChatOptions::new();
        options.session = session;
        options.generation = generation;
        options.context = self.context;
        options.system.clone_from(&self.system);
        options.enable_thinking = self.enable_thinking;
        Ok(options)
    }
}

/// What a line begins with, what it takes, what it does.
const COMMANDS: [(&str, &str, &str); 8] = [
    ("/help", "", "list these commands"),
    (
        "/reset",
        "",
        "forget what was said, but for the system message",
    ),
    (
        "/system",
        " [TEXT]",
        "set the system message; without a text, remove it",
    ),
    ("/show", "", "print all messages as JSON"),
    ("/save", " FILE", "write all messages to a file"),
    ("/load", " FILE", "go on with the messages of a file"),
    ("/exit", "", "end the conversation, as Ctrl-D does"),
    ("/quit", "", "the same"),
];

/// A conversation has no output that an error could leave behind.
const NOTHING_WRITTEN: hints::Doing = hints::Doing {
    output: None,
    reads_parts: false,
};

/// Bytes of a conversation's file: far more than any model has positions for.
const MAX_BYTES: u64 = 64 << 20;

pub(super) fn run(args: &Args, context: &Context) -> Result<Exit, CliError> {
    args.reading
        .refuse_unchecked(args.model.leaves_unchecked(), "check")?;
    let options = args.options()?;
    let pack = args.reading.open(&args.pack, context)?;
    // what cannot be read is better found before the model is loaded
    let loaded = args.load.as_deref().map(read_messages).transpose()?;
    let is_restricted = options.session.experts.is_some();
    chat(&pack, &options, context.stop, |conversation| {
        Ok(talk(
            conversation,
            loaded.as_deref(),
            is_restricted,
            context,
        ))
    })?
}

/// A conversation from its beginning to its end.
fn talk(
    conversation: &mut Conversation<'_, '_>,
    loaded: Option<&str>,
    is_restricted: bool,
    context: &Context,
) -> Result<Exit, CliError> {
    if let Some(text) = loaded {
        conversation.load("the file to load", text)?;
    }
    if is_restricted {
        say("not the model: its routers are restricted to some experts");
    }
    let mut input = Input::open().map_err(unread)?;
    if input.is_interactive() && !context.quiet {
        say("/help lists commands; Ctrl-C ends an answer, Ctrl-D the conversation");
    }
    loop {
        let line = match input.next().map_err(unread)? {
            Line::Text(line) => line,
            #[cfg(unix)]
            Line::Cleared => continue,
            Line::End => return Ok(Exit::Ok),
        };
        match take(conversation, line.trim(), context) {
            Ok(Next::Line) => {}
            Ok(Next::End) => return Ok(Exit::Ok),
            // a person may try something else, a script has failed
            Err(e) if input.is_interactive() && !is_final(&e) => {
                context
                    .terminal
                    .error(&e, hints::hint(&e, &NOTHING_WRITTEN));
            }
            Err(e) => return Err(e),
        }
    }
}

fn unread(error: io::Error) -> CliError {
    StepError::io("read", "standard input")(error).into()
}

/// Whether a conversation cannot go on after this.
fn is_final(error: &CliError) -> bool {
    match error {
        CliError::Step(StepError::Stdout(_)) => true,
        error => error.exit() == Exit::Interrupted,
    }
}

/// What follows a line.
enum Next {
    Line,
    End,
}

/// One line: a command, or a message.
fn take(
    conversation: &mut Conversation<'_, '_>,
    line: &str,
    context: &Context,
) -> Result<Next, CliError> {
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    match word {
        "" => {}
        "/exit" | "/quit" => return Ok(Next::End),
        "/help" => say(&help()),
        "/reset" => conversation.reset(),
        "/system" => conversation.set_system((!rest.is_empty()).then(|| rest.to_owned())),
        "/show" => context.terminal.document(
            &json!({"messages": conversation.messages()}),
            true,
            |_| String::new(),
        )?,
        "/save" => save(conversation, named(word, rest)?)?,
        "/load" => {
            let file = named(word, rest)?;
            conversation.load(&file.display().to_string(), &read_messages(file)?)?;
        }
        word if word.starts_with('/') => {
            return Err(CliError::NoSuchChatCommand(word.to_owned()));
        }
        _ => answer(conversation, line, context)?,
    }
    Ok(Next::Line)
}

fn help() -> String {
    let mut lines = Vec::new();
    for (name, takes, does) in COMMANDS {
        let call = format!("{name}{takes}");
        lines.push(format!("{call:<16} {does}"));
    }
    lines.join("\n")
}

/// The file that a command takes.
fn named<'r>(command: &str, rest: &'r str) -> Result<&'r Path, CliError> {
    match rest {
        "" => Err(CliError::NoChatFile(command.to_owned())),
        rest => Ok(Path::new(rest)),
    }
}

fn save(conversation: &Conversation<'_, '_>, file: &Path) -> Result<(), CliError> {
    let messages = json!({"messages": conversation.messages()});
    let pending = PendingFile::create(file)?;
    pending.publish(|out| json::write_document(out, &messages))?;
    Ok(())
}

/// Prints an answer piece by piece. Ctrl-C ends it, and not the program.
fn answer(
    conversation: &mut Conversation<'_, '_>,
    message: &str,
    context: &Context,
) -> Result<(), CliError> {
    let is_terminal = io::stdout().is_terminal();
    let mut print = |piece: &str| print(piece, is_terminal).map_err(StepError::Stdout);
    let answered = signals::while_answering(|| conversation.answer(message, &mut print));
    let has_text = answered.as_ref().map_or(true, |one| !one.text.is_empty());
    if has_text {
        context.terminal.text("\n")?;
    }
    if signals::is_terminated() {
        return Err(FormatError::Interrupted.into());
    }
    let answer = answered?;
    if let Some(note) = note(&answer) {
        say(&note);
    }
    Ok(())
}

/// What is to be said of an answer.
fn note(answer: &Answer) -> Option<String> {
    if answer.is_stopped {
        return Some("(stopped)".to_owned());
    }
    let generation = answer.generation.as_ref()?;
    match generation.stop_reason {
        StopReason::ContextFull => {
            Some("(the conversation is full: /reset begins anew)".to_owned())
        }
        StopReason::MaxNewTokens => Some("(cut off by --max-new-tokens)".to_owned()),
        StopReason::StopId(_) | StopReason::StopString | StopReason::Caller => None,
    }
}

fn print(piece: &str, is_terminal: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match is_terminal {
        true => write!(out, "{}", for_terminal(piece))?,
        false => write!(out, "{piece}")?,
    }
    out.flush()
}

fn say(line: &str) {
    // nobody is left to tell where standard error is closed
    let _ = writeln!(io::stderr(), "{line}");
}

fn read_messages(file: &Path) -> Result<String, CliError> {
    let bytes = read_limited(file, MAX_BYTES)?;
    String::from_utf8(bytes).map_err(|e| CliError::NotUtf8 {
        what: file.display().to_string(),
        source: e.utf8_error(),
    })
}
