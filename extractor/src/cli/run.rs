mod imatrix;
mod prompts;

use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use clap::ArgGroup;
use segpack_formats::FormatError;
use segpack_formats::io::{CancelToken, PendingFile, read_limited, read_up_to};
use segpack_manifests::documents::{RunPrompt, RunSummary, RunToken};
use segpack_manifests::json;
use segpack_runtime_min::processing::media::FetchMedia;
use segpack_runtime_min::processing::{Chat, Prompt};
use segpack_runtime_min::session::{GenerationSettings, SessionOptions};

use super::Context;
use super::args::values::{experts_file, token_id, trace_path};
use super::args::{
    DEVICE, ExpertArgs, INPUT, MediaArgs, ModelArgs, OUTPUT, PackArg, ReadingArgs, SAMPLING,
    SamplingArgs, VoiceArgs, is_to_stdout,
};
use super::error::CliError;
use super::terminal::for_terminal;
use crate::render::{svg, text};
use crate::steps::run::{RunEvent, RunOptions, media_fetcher, print_prompt, run};
use crate::steps::{Exit, StepError, experts_report};
use crate::work::Progress;

/// Generate text and speech with the model in a pack
///
/// Weights are read on first use, experts through a cache. Text goes to standard output, statistics
/// to standard error.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("templated").args(["chat", "messages", "prompts"]).multiple(true))]
#[command(after_help = "\
Examples:
  segpack run omni.segpack --prompt 'The capital of France is' --max-new-tokens 8 --rank ' Paris'
  segpack run omni.segpack --chat --prompt 'Name three rivers.' --memory 6GiB
  echo 'Once upon a time' | segpack run omni.segpack --temperature 0.7 --seed 1
  segpack run omni.segpack --device cuda --compute bf16 --prompt 'Name three rivers.' --chat
  segpack run omni.segpack --messages chat.json --print-prompt   # does not run the model
  segpack run omni.segpack --chat --audio a.wav --prompt 'What is being said?'
  segpack run omni.segpack --chat --prompt 'Say hello.' --speak hello.wav --speaker chelsie
  segpack run omni.segpack --prompts prompts.jsonl --chat --memory 8GB > answers.jsonl
  segpack run omni.segpack --prompt-ids 785,6722,315,9625,374 --top-k-logits 5 --json
  segpack run omni.segpack --imatrix-out imatrix.gguf < text.txt   # for export --imatrix")]
pub(super) struct Args {
    #[command(flatten)]
    pack: PackArg,
    #[command(flatten)]
    reading: ReadingArgs,
    /// Text to continue [default: standard input, without a final line break]
    #[arg(long, value_name = "TEXT", help_heading = INPUT)]
    prompt: Option<String>,
    /// Token ids to continue, separated by commas
    #[arg(
        long,
        value_name = "IDS",
        value_delimiter = ',',
        value_parser = token_id,
        conflicts_with_all = ["prompt", "chat", "messages"],
        help_heading = INPUT
    )]
    prompt_ids: Option<Vec<u32>>,
    /// Treat the prompt as a user message: render it with the checkpoint's chat template
    #[arg(long, group = "conversation", help_heading = INPUT)]
    chat: bool,
    /// System message of --chat
    #[arg(long, value_name = "TEXT", requires = "chat", help_heading = INPUT)]
    system: Option<String>,
    /// JSON file with a list of chat messages, or with an object of `messages` and `tools`; - for
    /// standard input
    #[arg(
        long,
        value_name = "FILE",
        group = "conversation",
        conflicts_with_all = ["prompt", "chat", "system"],
        help_heading = INPUT
    )]
    messages: Option<PathBuf>,
    /// Continue many prompts, each weight read once per step for all that fit the memory budget: a
    /// file of JSON lines, each an object of `prompt`, `messages` or `prompt_ids`, optionally `id`,
    /// `tools`, `max_tokens`, `seed` and `stop`; - for standard input. Prints a JSON line for each
    /// (schemas/prompt-result.schema.json), in their order
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = [
            "prompt", "prompt_ids", "messages", "audio", "image", "video", "print_prompt",
            "dump_features", "sound", "top_k_logits", "rank", "trace", "experts_report",
            "imatrix_out", "draft_lookup",
        ],
        help_heading = INPUT
    )]
    prompts: Option<PathBuf>,
    /// Value of `enable_thinking` in the chat template
    #[arg(long, value_name = "BOOL", requires = "templated", help_heading = INPUT)]
    enable_thinking: Option<bool>,
    #[command(flatten)]
    media: MediaArgs,
    /// Maximum number of tokens to generate (also limited by the model's context length)
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = SAMPLING)]
    max_new_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    experts: ExpertArgs,
    /// Load as many weights as fit before the prompt instead of on first use
    #[arg(long, help_heading = DEVICE)]
    preload: bool,
    /// Print the prompt as the model would see it, with what each of its audio, images and videos
    /// takes, with --json also its token ids, and exit
    #[arg(
        long,
        conflicts_with_all = ["top_k_logits", "rank", "trace", "experts_report", "preload"],
        help_heading = OUTPUT
    )]
    print_prompt: bool,
    /// Write what the model's encoders get of audio, images and videos, with the names of official
    /// traces
    #[arg(
        long,
        value_name = "FILE.safetensors",
        value_parser = trace_path,
        help_heading = OUTPUT
    )]
    dump_features: Option<PathBuf>,
    /// Speak the answer: WAV file to write, or - for standard output, when the text goes to standard
    /// error
    #[arg(
        id = "sound",
        long = "speak",
        value_name = "FILE",
        conflicts_with_all = ["trace", "print_prompt"],
        help_heading = OUTPUT
    )]
    speak: Option<PathBuf>,
    #[command(flatten)]
    voice: VoiceArgs,
    /// Show the N most likely candidates for every token
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = OUTPUT)]
    top_k_logits: usize,
    /// Report the rank of this continuation at the first token (on standard error; with --json in
    /// the summary)
    #[arg(long, value_name = "TEXT", help_heading = OUTPUT)]
    rank: Option<String>,
    /// Write a trace of all intermediate results, in the format of the reference script
    #[arg(
        long,
        value_name = "FILE.safetensors",
        value_parser = trace_path,
        conflicts_with = "draft_lookup",
        help_heading = OUTPUT
    )]
    trace: Option<PathBuf>,
    /// Write an importance matrix for `export --imatrix` and llama.cpp's quantizer: how large what
    /// each weight matrix is multiplied with is on the prompt, an expert's on the tokens that the
    /// router sends to it. GGUF, or FILE.dat in the older format. Nothing is generated
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = [
            "max_new_tokens", "audio", "image", "video", "print_prompt", "dump_features", "sound",
            "top_k_logits", "rank", "trace", "experts_report", "json", "preload",
        ],
        help_heading = OUTPUT
    )]
    imatrix_out: Option<PathBuf>,
    /// Tokens of the pieces that --imatrix-out cuts the prompt into; each begins anew
    #[arg(
        long,
        value_name = "N",
        default_value_t = NonZeroUsize::new(512).unwrap_or(NonZeroUsize::MIN),
        requires = "imatrix_out",
        help_heading = OUTPUT
    )]
    imatrix_chunk: NonZeroUsize,
    /// Report how often each expert was used: on standard error, as a document (FILE.json) or as a
    /// heat map (FILE.svg)
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        value_parser = experts_file,
        help_heading = OUTPUT
    )]
    experts_report: Option<Option<PathBuf>>,
    /// Print one JSON object per token and a summary (schemas/run-token.schema.json,
    /// run-summary.schema.json)
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

impl Args {
    fn options(&self, context: &Context) -> Result<RunOptions, CliError> {
        let mut prompt = self.read_prompt(context.stop)?;
        if let Prompt::Chat { chat, .. } = &mut prompt {
            chat.fetch = self.fetcher(context)?;
        }
        let mut options = RunOptions::new(prompt);
        options.session = self.session()?;
        options.generation = self.generation();
        options.rank = self.rank.clone();
        options.trace = self.trace.clone();
        options.media = self.media.options();
        options.dump_features = self.dump_features.clone();
        options.voice = self.speak.clone().map(|sound| self.voice.options(sound));
        if let Some(voice) = &mut options.voice {
            voice.speech.preload = self.preload;
        }
        Ok(options)
    }

    /// Who fetches media, where the user lets anybody.
    fn fetcher(&self, context: &Context) -> Result<Option<Arc<dyn FetchMedia>>, CliError> {
        let job = context.job();
        let fetcher = self.media.allow_network.then(|| media_fetcher(job));
        Ok(fetcher.transpose()?)
    }

    /// Where the model runs, and what it may use.
    fn session(&self) -> Result<SessionOptions, CliError> {
        let mut session = self.model.session();
        session.experts = self.experts.choice()?;
        Ok(session)
    }

    /// How a prompt is continued.
    fn generation(&self) -> GenerationSettings {
        let mut settings = GenerationSettings::default();
        settings.max_new_tokens = self.max_new_tokens;
        settings.sampling = self.sampling.options();
        settings.top_k_logits = self.top_k_logits;
        settings.preload = self.preload;
        settings.stop_strings.clone_from(&self.sampling.stop);
        settings.draft_lookup = self.sampling.drafts();
        settings
    }

    fn read_prompt(&self, stop: &CancelToken) -> Result<Prompt, CliError> {
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
                return Err(CliError::NoPrompt);
            }
            None => without_line_end(read_stdin(stop)?),
        };
        if !self.chat {
            return Ok(Prompt::Text(text));
        }
        Ok(Prompt::Chat {
            chat: Chat::turn_with_media(self.system.as_deref(), &self.media.files.files, &text),
            enable_thinking,
        })
    }
}

/// What messages call it.
const STDIN: &str = "standard input";
/// Bytes of a prompt or of a chat: far more than any model has positions for.
const MAX_PROMPT_BYTES: u64 = 64 << 20;

/// On a thread of its own: a read that waits for input would not notice Ctrl-C.
fn read_stdin(stop: &CancelToken) -> Result<String, CliError> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let read = read_up_to(io::stdin(), MAX_PROMPT_BYTES);
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
    let read = read.map_err(StepError::io("read", STDIN))?;
    let bytes = read.map_err(|length| FormatError::TooLarge {
        path: STDIN.into(),
        length,
        limit: MAX_PROMPT_BYTES,
    })?;
    utf8(STDIN, bytes)
}

fn utf8(what: &str, bytes: Vec<u8>) -> Result<String, CliError> {
    String::from_utf8(bytes).map_err(|e| CliError::NotUtf8 {
        what: what.to_owned(),
        source: e.utf8_error(),
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

/// The text of a file, or of standard input, and what messages call it.
fn read_text(file: &Path, stop: &CancelToken) -> Result<(String, String), CliError> {
    if file == Path::new("-") {
        return Ok((STDIN.to_owned(), read_stdin(stop)?));
    }
    let name = file.display().to_string();
    let bytes = read_limited(file, MAX_PROMPT_BYTES)?;
    let text = utf8(&name, bytes)?;
    Ok((name, text))
}

fn read_messages(file: &Path, stop: &CancelToken) -> Result<Chat, CliError> {
    let (name, text) = read_text(file, stop)?;
    let chat = Chat::from_json(&text);
    let mut chat = chat.map_err(|source| CliError::Messages { what: name, source })?;
    // of a file without a folder, and of standard input, the process's own
    chat.folder = file.parent().map(Path::to_owned).unwrap_or_default();
    Ok(chat)
}

pub(super) fn run_command(args: &Args, context: &Context) -> Result<Exit, CliError> {
    let is_sound = match &args.speak {
        Some(file) => is_to_stdout(file, args.json)?,
        None => false,
    };
    args.reading
        .refuse_unchecked(args.model.leaves_unchecked(), "check")?;
    if let Some(file) = &args.prompts {
        return prompts::run(args, file, context);
    }
    if let Some(file) = &args.imatrix_out {
        return imatrix::run(args, file, context);
    }
    let options = args.options(context)?;
    let pack = args.reading.open(&args.pack, context)?;
    if args.print_prompt {
        return show_prompt(
            &print_prompt(&pack, &options, context.stop)?,
            args.json,
            context,
        );
    }
    let report = match &args.experts_report {
        // what cannot be written is better found before the work than after it
        Some(Some(path)) => Some(PendingFile::create(path).map_err(StepError::from)?),
        _ => None,
    };
    let mut streamed = false;
    let to_terminal = io::stdout().is_terminal();
    let place = args
        .speak
        .as_deref()
        .map_or(String::new(), |p| p.display().to_string());
    let mut spoken = String::new();
    let mut tell = |event: RunEvent<'_>| match event {
        RunEvent::Note(note) => {
            context.progress.note(&format!("note: {note}"));
            Ok(())
        }
        RunEvent::Token(token) => {
            if is_sound {
                // nobody is left to tell where standard error is closed
                let _ = write!(io::stderr(), "{}", for_terminal(&token.text));
                return Ok(());
            }
            streamed = true;
            show(token, args.json, to_terminal).map_err(StepError::Stdout)
        }
        RunEvent::Spoken(summary) => {
            spoken = text::speak(summary, &place);
            Ok(())
        }
    };
    let summary =
        run(&pack, &options, context.stop, context.progress, &mut tell).inspect_err(|_| {
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
    } else if !is_sound {
        context.terminal.text("\n")?;
    }
    if let Some(file) = report {
        write_experts(&summary, file)?;
    }
    // nobody is left to tell where standard error is closed
    let figures = spoken + &figures(&summary, args, context);
    let _ = io::stderr().write_all(figures.as_bytes());
    Ok(Exit::Ok)
}

/// What was requested is always printed, the figures unless `--quiet`.
fn figures(summary: &RunSummary, args: &Args, context: &Context) -> String {
    let mut figures = text::restricted(&summary.restricted_experts);
    figures += &summary.rank.as_ref().map_or(String::new(), text::rank);
    if !context.quiet {
        figures += &text::figures(summary);
    }
    if matches!(args.experts_report, Some(None)) {
        figures += &text::experts(&summary.experts);
    }
    figures
}

/// Writes which experts were used: as a heat map where the name ends in `.svg`, otherwise as a
/// document.
fn write_experts(summary: &RunSummary, file: PendingFile) -> Result<(), CliError> {
    let report = experts_report::report(summary);
    let is_picture = file.path().extension().is_some_and(|e| e == "svg");
    let written = file.publish(|out| match is_picture {
        true => out.write_all(svg::heat_map(&report).as_bytes()),
        false => json::write_document(out, &report),
    });
    Ok(written.map_err(StepError::from)?)
}

/// The text alone is printed as it is; only a terminal gets a line end more.
fn show_prompt(prompt: &RunPrompt, json: bool, context: &Context) -> Result<Exit, CliError> {
    if json {
        context.terminal.document(prompt, true, |_| String::new())?;
        return Ok(Exit::Ok);
    }
    let Some(text) = &prompt.text else {
        return Err(CliError::NoTokenizer);
    };
    let media;
    let text = match prompt.media.is_empty() {
        true => text,
        false => {
            media = text::prompt_with_media(prompt, text);
            &media
        }
    };
    context
        .terminal
        .stdout(|out| match io::stdout().is_terminal() {
            true => writeln!(out, "{}", for_terminal(text)),
            false => write!(out, "{text}"),
        })?;
    Ok(Exit::Ok)
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
        write!(out, "{}", text::candidates(token))?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_end_is_dropped() {
        let dropped = |text: &str| without_line_end(text.to_owned());
        assert_eq!(
            ["a\n", "a\r\n", "a\n\n", "\r", ""].map(dropped),
            ["a", "a", "a\n", "\r", ""]
        );
    }
}
