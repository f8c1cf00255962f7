use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use bytesize::ByteSize;
use clap::ValueEnum;
use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::documents::{RunPrompt, RunSummary, RunToken};
use segpack_runtime_min::generate::SamplingOptions;
use segpack_runtime_min::models::decoder::Check;
use segpack_runtime_min::ops::Compute;

use super::Context;
use super::pack::jobs;
use super::terminal::{bytes, counted};
use crate::steps::device::DeviceChoice;
use crate::steps::experts_report;
use crate::steps::progress::Progress;
use crate::steps::run::{Chat, ExpertRoom, Prompt, RunEvent, RunOptions, print_prompt, run};
use crate::steps::{Exit, StepError, default_jobs};

/// Generate text with the model in a pack (text thinker)
///
/// Weights are read when they are needed, experts through a cache. The text goes to standard
/// output, figures to standard error.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack run omni.segpack --prompt 'The capital of France is' --max-new-tokens 8 --rank ' Paris'
  segpack run omni.segpack --chat --prompt 'Name three rivers.' --memory 6GiB
  echo 'Once upon a time' | segpack run omni.segpack --temperature 0.7 --seed 1
  segpack run omni.segpack --device cuda --compute bf16 --prompt 'Name three rivers.' --chat
  segpack run omni.segpack --messages chat.json --print-prompt     what the model would read, nothing else
  segpack run omni.segpack --prompt-ids 785,6722,315,9625,374 --top-k-logits 5 --json")]
pub struct Args {
    /// The pack folder
    #[arg(value_name = "PACK")]
    pack: PathBuf,
    /// The text to continue; standard input where it is left out (a line end at its end is dropped)
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Token ids to continue, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', value_parser = token_id, conflicts_with_all = ["prompt", "chat", "messages"])]
    prompt_ids: Option<Vec<u32>>,
    /// The prompt is a user's turn: render it with the checkpoint's chat template
    #[arg(long, group = "conversation")]
    chat: bool,
    /// A chat of several turns: a JSON list of messages, or an object with `messages` and `tools`;
    /// `-` is standard input
    #[arg(long, value_name = "FILE", group = "conversation", conflicts_with_all = ["prompt", "chat", "system"])]
    messages: Option<PathBuf>,
    /// What the system says before the user's turn
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Tell the chat template whether to think
    #[arg(long, value_name = "BOOL", requires = "conversation")]
    enable_thinking: Option<bool>,
    /// Print the prompt as the model would get it (with --json also its token ids), and do not run
    /// the model
    #[arg(long, conflicts_with_all = ["top_k_logits", "rank", "trace", "experts_report", "preload"])]
    print_prompt: bool,
    /// Always take the most likely token (the default)
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "seed"])]
    greedy: bool,
    /// Sample, with logits divided by this
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Sample among this many tokens
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Sample among the fewest tokens that have this probability together
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Seed of the sampling [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Most tokens to generate; the model's longest context ends the text, too
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_new_tokens: usize,
    /// Show the best N candidates for every token
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k_logits: usize,
    /// Tell where this continuation ranks at the first token (on standard error; with --json in the
    /// summary)
    #[arg(long, value_name = "TEXT")]
    rank: Option<String>,
    #[command(flatten)]
    placement: Placement,
    #[command(flatten)]
    resources: Resources,
    /// Load all weights that there is room for before the prompt, not when they are needed; on a
    /// GPU that holds all of them a token is then one recorded step from the third on
    #[arg(long)]
    preload: bool,
    /// Precision of activations
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    compute: ComputeName,
    /// Write a trace of every intermediate result, in the format of the reference script
    #[arg(long, value_name = "FILE.safetensors", value_parser = trace_path)]
    trace: Option<PathBuf>,
    /// Tell which experts were used: on standard error, or as a document (FILE.json) or a heat map
    /// (FILE.svg)
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, value_parser = experts_file)]
    experts_report: Option<Option<PathBuf>>,
    /// Print one JSON object per token, and a summary (schemas/run-token.schema.json,
    /// run-summary.schema.json)
    #[arg(long)]
    json: bool,
}

/// Where a model runs.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Placement {
    /// Where to run: cpu, cuda (the first GPU), cuda:N or auto (`segpack devices` tells what there
    /// is)
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: DeviceChoice,
    /// GPU memory to use; all that is free where left out. Experts that do not fit come when they
    /// are needed
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub device_memory: Option<u64>,
}

/// What a model may use.
#[derive(Debug, clap::Args)]
pub struct Resources {
    /// Memory for the whole process (6GiB, 1500MB) [default: what it needs, at most 7/8 of what is
    /// available]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// Most experts in memory: a number (64), or a size (2GiB)
    #[arg(long, value_name = "N|SIZE", value_parser = expert_room)]
    pub expert_cache: Option<ExpertRoom>,
    /// When the digests of segments are compared
    #[arg(long, value_name = "WHEN", default_value = "always")]
    pub check: CheckName,
    /// Threads [default: one per core, at most 16]
    #[arg(long, short, value_name = "N", value_parser = jobs)]
    pub threads: Option<usize>,
}

impl Resources {
    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(default_jobs)
    }

    /// When digests are compared.
    pub fn check(&self) -> Check {
        self.check.into()
    }
}

impl From<ComputeName> for Compute {
    fn from(name: ComputeName) -> Self {
        match name {
            ComputeName::F32 => Self::F32,
            ComputeName::Bf16 => Self::Bf16,
        }
    }
}

impl From<CheckName> for Check {
    fn from(name: CheckName) -> Self {
        match name {
            CheckName::Always => Self::Always,
            CheckName::First => Self::First,
            CheckName::Never => Self::Never,
        }
    }
}

/// Precision of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ComputeName {
    /// As exact as 32 bits are
    F32,
    /// Rounded where the official bf16 code rounds
    Bf16,
}

/// When digests are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckName {
    /// At every load
    Always,
    /// At the first load of each segment
    First,
    /// Never
    Never,
}

fn token_id(text: &str) -> Result<u32, String> {
    text.trim()
        .parse()
        .map_err(|_| format!("{text:?} is not a token id, which is a whole number"))
}

fn experts_file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|e| e.to_str()) {
        Some("json" | "svg") => Ok(path),
        _ => Err(format!("{text:?} ends neither in .json nor in .svg")),
    }
}

pub fn size(text: &str) -> Result<u64, String> {
    let parsed = text.parse::<ByteSize>();
    parsed
        .map(|b| b.as_u64())
        .map_err(|_| format!("{text:?} is not a size such as 6GiB or 1500MB"))
}

/// The name of the other file of a trace is made from this one.
fn trace_path(text: &str) -> Result<PathBuf, String> {
    match text.strip_suffix(".safetensors") {
        Some(stem) if !stem.is_empty() => Ok(text.into()),
        _ => Err(format!("{text:?} does not end in .safetensors")),
    }
}

/// A bare number counts experts, one with a unit bytes.
fn expert_room(text: &str) -> Result<ExpertRoom, String> {
    match text.parse() {
        Ok(0) => Err("at least one expert has to fit".to_owned()),
        Ok(n) => Ok(ExpertRoom::Count(n)),
        Err(_) => size(text).map(ExpertRoom::Bytes),
    }
}

impl Args {
    fn options(&self, stop: &CancelToken) -> Result<RunOptions, StepError> {
        let random = self.temperature.is_some()
            || self.top_k.is_some()
            || self.top_p.is_some()
            || self.seed.is_some();
        let sampling = random.then(|| SamplingOptions {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed.unwrap_or(0),
        });
        Ok(RunOptions {
            prompt: self.read_prompt(stop)?,
            max_new_tokens: self.max_new_tokens,
            sampling,
            top_k_logits: self.top_k_logits,
            rank: self.rank.clone(),
            device: self.placement.device,
            device_memory: self.placement.device_memory,
            memory: self.resources.memory,
            experts: self.resources.expert_cache,
            compute: self.compute.into(),
            check: self.resources.check(),
            preload: self.preload,
            threads: self.resources.threads(),
            trace: self.trace.clone(),
        })
    }

    fn read_prompt(&self, stop: &CancelToken) -> Result<Prompt, StepError> {
        let enable_thinking = self.enable_thinking;
        if let Some(ids) = &self.prompt_ids {
            return Ok(Prompt::Ids(ids.clone()));
        }
        if let Some(file) = &self.messages {
            return Ok(Prompt::Chat {
                chat: read_messages(file, stop)?,
                enable_thinking,
            });
        }
        let text = match &self.prompt {
            Some(text) => text.clone(),
            None if io::stdin().is_terminal() => {
                return Err(StepError::Usage(
                    "give a prompt: --prompt, --prompt-ids, --messages or standard input"
                        .to_owned(),
                ));
            }
            None => without_line_end(read_stdin(stop)?),
        };
        if !self.chat {
            return Ok(Prompt::Text(text));
        }
        Ok(Prompt::Chat {
            chat: Chat::turn(self.system.as_deref(), &text),
            enable_thinking,
        })
    }
}

/// On a thread of its own: a read that waits for input would not notice Ctrl-C.
fn read_stdin(stop: &CancelToken) -> Result<String, StepError> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = io::stdin().read_to_end(&mut bytes).map(|_| bytes);
        // nobody listens any more after an interruption
        let _ = send.send(read);
    });
    let read = loop {
        stop.check()?;
        match receive.recv_timeout(Duration::from_millis(20)) {
            Err(RecvTimeoutError::Timeout) => {}
            read => break read.unwrap_or_else(|gone| Err(io::Error::other(gone))),
        }
    };
    utf8(
        "standard input",
        read.map_err(StepError::io("read", "standard input"))?,
    )
}

fn utf8(what: &str, bytes: Vec<u8>) -> Result<String, StepError> {
    String::from_utf8(bytes).map_err(|e| {
        StepError::Input(format!(
            "{what} is not UTF-8 (byte {})",
            e.utf8_error().valid_up_to()
        ))
    })
}

/// What `echo` adds is not meant as a part of the prompt.
fn without_line_end(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

fn read_messages(file: &Path, stop: &CancelToken) -> Result<Chat, StepError> {
    let (name, text) = if file == Path::new("-") {
        ("standard input".to_owned(), read_stdin(stop)?)
    } else {
        let name = file.display().to_string();
        let bytes = fs::read(file).map_err(StepError::io("read", file))?;
        (name.clone(), utf8(&name, bytes)?)
    };
    Chat::from_json(&text).map_err(|e| {
        let wanted =
            "a JSON list of messages, or an object with `messages` and, where there are any, `tools`";
        StepError::Input(format!("{name} is not {wanted}: {e}"))
    })
}

pub fn run_command(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let options = args.options(context.stop)?;
    let pack = Pack::open(&args.pack).map_err(StepError::from)?;
    if args.print_prompt {
        return show_prompt(&print_prompt(&pack, &options.prompt)?, args.json, context);
    }
    let mut streamed = false;
    let to_terminal = io::stdout().is_terminal();
    let mut tell = |event: RunEvent<'_>| match event {
        RunEvent::Note(note) => {
            context.progress.note(&format!("note: {note}"));
            Ok(())
        }
        RunEvent::Token(token) => {
            streamed = true;
            show(token, args.json, to_terminal).map_err(StepError::Stdout)
        }
    };
    let summary =
        run(&pack, &options, context.stop, &context.progress, &mut tell).inspect_err(|_| {
            if streamed && !args.json {
                // the error begins on a line of its own; where standard output is gone it is the
                // error
                let _ = writeln!(io::stdout());
            }
        })?;
    if args.json {
        context.terminal.stdout(|out| {
            serde_json::to_writer(&mut *out, &summary)?;
            writeln!(out)
        })?;
    } else {
        context.terminal.line("")?;
    }
    if let Some(Some(path)) = &args.experts_report {
        experts_report::write(&summary, path)?;
    }
    let told = matches!(args.experts_report, Some(None));
    report(&summary, told, context.quiet, &mut io::stderr().lock())?;
    Ok(Exit::Ok)
}

/// The text alone is printed as it is; only a terminal gets a line end more.
fn show_prompt(prompt: &RunPrompt, json: bool, context: &Context) -> anyhow::Result<Exit> {
    if json {
        context.terminal.document(prompt)?;
        return Ok(Exit::Ok);
    }
    let Some(text) = &prompt.text else {
        return Err(StepError::Input(
            "the pack holds no tokenizer: these ids have no text".to_owned(),
        )
        .into());
    };
    context
        .terminal
        .stdout(|out| match io::stdout().is_terminal() {
            true => writeln!(out, "{}", for_terminal(text)),
            false => write!(out, "{text}"),
        })?;
    Ok(Exit::Ok)
}

/// A model can be made to say anything, a terminal be told anything by control characters.
fn for_terminal(text: &str) -> String {
    let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars()
        .filter(|c| *c != '\r')
        .map(|c| if harmless(c) { c } else { '\u{fffd}' })
        .collect()
}

fn show(token: &RunToken, json: bool, to_terminal: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, token)?;
        writeln!(out)?;
    } else {
        if token.text.is_empty() && token.top.is_empty() {
            return Ok(());
        }
        match to_terminal {
            true => write!(out, "{}", for_terminal(&token.text))?,
            false => write!(out, "{}", token.text)?,
        }
        for c in &token.top {
            write!(
                out,
                "\n  {:>6} {:<16} {:>9.4}  {:.4}",
                c.id,
                format!("{:?}", c.text),
                c.logit,
                c.probability
            )?;
        }
        if !token.top.is_empty() {
            writeln!(out)?;
        }
    }
    out.flush()
}

/// What was asked for is always told, the figures unless `quiet`.
fn report(s: &RunSummary, experts: bool, quiet: bool, out: &mut dyn Write) -> io::Result<()> {
    if let Some(r) = &s.rank {
        let more = if r.tokens > 1 {
            format!(" (its first token of {})", r.tokens)
        } else {
            String::new()
        };
        writeln!(
            out,
            "rank of {:?}: {}{more}, probability {:.4}, logit {:.4}",
            r.text, r.rank, r.first.probability, r.first.logit
        )?;
    }
    if !quiet {
        figures(s, out)?;
    }
    if experts {
        for layer in &s.experts {
            writeln!(
                out,
                "  layer {:>3}: {} of {} uses in memory",
                layer.layer,
                layer.hits,
                layer.hits + layer.misses
            )?;
            for (expert, uses) in layer.uses.iter().enumerate().filter(|(_, uses)| **uses > 0) {
                writeln!(out, "    expert {expert:>4}: {}", counted(*uses, "use"))?;
            }
        }
    }
    Ok(())
}

fn figures(s: &RunSummary, out: &mut dyn Write) -> io::Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let rate = |tokens: u64, seconds: f64| tokens as f64 / seconds.max(1e-9);
    let after = (s.ids.len() as u64).saturating_sub(1);
    write!(out, "prompt: {}", counted(s.prompt_tokens, "token"))?;
    if !s.ids.is_empty() {
        let per_second = rate(s.prompt_tokens, s.time_to_first_token);
        write!(
            out,
            ", {:.2} s to the first token ({per_second:.1} tokens/s)",
            s.time_to_first_token
        )?;
    }
    write!(
        out,
        "\ngenerated: {} ({})",
        counted(s.ids.len() as u64, "token"),
        s.stop_reason.text()
    )?;
    if after > 0 {
        write!(
            out,
            ", {:.1} tokens/s after the first",
            rate(after, s.generation_seconds)
        )?;
    }
    let uses = s.expert_hits + s.expert_misses;
    #[expect(clippy::cast_precision_loss, reason = "a percentage")]
    let share = 100.0 * s.expert_hits as f64 / uses.max(1) as f64;
    writeln!(
        out,
        "\nexperts: {share:.1} % of {uses} uses were in memory ({}); dense weights {}; {} read",
        counted(s.expert_slots, "slot"),
        if s.dense_resident {
            "resident"
        } else {
            "streamed"
        },
        bytes(s.bytes_read)
    )?;
    let c = &s.costs;
    writeln!(
        out,
        "time: {:.2} s computing, {:.2} s waiting for weights (threads that load: {:.2} s reading, {:.2} s checking, {:.2} s decoding)",
        c.forward - c.waiting,
        c.waiting,
        c.reading,
        c.checking,
        c.decoding
    )?;
    if after > 0 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bytes, rounded"
        )]
        let per_token = bytes(c.bytes_read_per_token as u64);
        writeln!(
            out,
            "read for each token after the first: {per_token}; past the page cache: {}",
            bytes(c.bytes_direct)
        )?;
    }
    if s.device != "cpu" {
        writeln!(
            out,
            "device: {}; {} copied to it",
            s.device,
            bytes(c.bytes_copied)
        )?;
    }
    if let Some(peak) = s.peak_rss {
        writeln!(out, "peak memory: {}", bytes(peak))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_control_characters() {
        assert_eq!(
            for_terminal("a\x1b[31m\r\n\tb\x07\u{9b}é"),
            "a\u{fffd}[31m\n\tb\u{fffd}\u{fffd}é"
        );
    }

    #[test]
    fn one_line_end_is_dropped() {
        let dropped = |text: &str| without_line_end(text.to_owned());
        assert_eq!(
            ["a\n", "a\r\n", "a\n\n", "\r", ""].map(dropped),
            ["a", "a", "a\n", "\r", ""]
        );
    }
}
