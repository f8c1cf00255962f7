use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::ValueEnum;
use segpack_manifests::Pack;
use segpack_runtime_min::generate::SamplingOptions;
use segpack_runtime_min::ops::Compute;
use segpack_runtime_min::thinker::Check;

use super::Context;
use super::pack::jobs;
use super::terminal::{bytes, counted};
use crate::steps::run::{ExpertRoom, Prompt, RunEvent, RunOptions, RunSummary, RunToken, run};
use crate::steps::{Exit, StepError, default_jobs};

/// Generate text with the model in a pack (text thinker, CPU)
///
/// Weights are read when they are needed, experts through a cache. The text goes to standard output, figures to standard
/// error.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  segpack run omni.segpack --prompt 'The capital of France is' --max-new-tokens 8 --rank ' Paris'
  segpack run omni.segpack --chat --prompt 'Name three rivers.' --memory 6GiB
  echo 'Once upon a time' | segpack run omni.segpack --temperature 0.7 --seed 1
  segpack run omni.segpack --prompt-ids 785,6722,315,9625,374 --top-k-logits 5 --json")]
pub struct Args {
    /// The pack folder
    #[arg(value_name = "PACK")]
    pack: PathBuf,
    /// The text to continue; standard input where it is left out
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Token ids to continue, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with_all = ["prompt", "chat"])]
    prompt_ids: Option<Vec<u32>>,
    /// The prompt is a user's turn: render it with the checkpoint's chat template
    #[arg(long)]
    chat: bool,
    /// The system's words
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Tell the chat template whether to think
    #[arg(long, value_name = "BOOL", requires = "chat")]
    enable_thinking: Option<bool>,
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
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_new_tokens: usize,
    /// Show the best N candidates for every token
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k_logits: usize,
    /// Tell where this continuation ranks at the first token
    #[arg(long, value_name = "TEXT")]
    rank: Option<String>,
    #[command(flatten)]
    resources: Resources,
    /// Precision of activations
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    compute: ComputeName,
    /// Write a trace of every intermediate result, in the format of the reference script
    #[arg(long, value_name = "FILE.safetensors", value_parser = trace_path)]
    trace: Option<PathBuf>,
    /// Tell which experts were used (on standard error; with --json in the summary)
    #[arg(long)]
    experts_report: bool,
    /// Print one JSON object per token, and a summary
    #[arg(long)]
    json: bool,
}

/// What a model may use.
#[derive(Debug, clap::Args)]
pub struct Resources {
    /// Memory for the whole process (6GiB, 1500MB); as much as it needs where left out
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// Most experts in memory: a number, or a size
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

impl From<CheckName> for Check {
    fn from(name: CheckName) -> Self {
        match name {
            CheckName::Always => Self::Always,
            CheckName::First => Self::First,
            CheckName::Never => Self::Never,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ComputeName {
    /// The strict oracle
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

pub fn size(text: &str) -> Result<u64, String> {
    let parsed = text.parse::<ByteSize>();
    parsed.map(|b| b.as_u64()).map_err(|_| format!("{text:?} is not a size such as 6GiB or 1500MB"))
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
    fn options(&self) -> Result<RunOptions, StepError> {
        let random =
            self.temperature.is_some() || self.top_k.is_some() || self.top_p.is_some() || self.seed.is_some();
        let sampling = random.then(|| SamplingOptions {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed.unwrap_or(0),
        });
        Ok(RunOptions {
            prompt: self.read_prompt()?,
            max_new_tokens: self.max_new_tokens,
            sampling,
            top_k_logits: self.top_k_logits,
            rank: self.rank.clone(),
            memory: self.resources.memory,
            experts: self.resources.expert_cache,
            compute: match self.compute {
                ComputeName::F32 => Compute::F32,
                ComputeName::Bf16 => Compute::Bf16,
            },
            check: self.resources.check(),
            threads: self.resources.threads(),
            trace: self.trace.clone(),
        })
    }

    fn read_prompt(&self) -> Result<Prompt, StepError> {
        if let Some(ids) = &self.prompt_ids {
            return Ok(Prompt::Ids(ids.clone()));
        }
        let text = match &self.prompt {
            Some(text) => text.clone(),
            None if io::stdin().is_terminal() => {
                return Err(StepError::Usage(
                    "give a prompt: --prompt, --prompt-ids or standard input".to_owned(),
                ));
            }
            None => {
                let mut text = String::new();
                let read = io::stdin().read_to_string(&mut text);
                read.map_err(StepError::io("read", "standard input"))?;
                text
            }
        };
        if !self.chat {
            return Ok(Prompt::Text(text));
        }
        Ok(Prompt::Chat { system: self.system.clone(), user: text, enable_thinking: self.enable_thinking })
    }
}

pub fn run_command(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let options = args.options()?;
    let pack = Pack::open(&args.pack).map_err(StepError::from)?;
    let mut tell = |event: RunEvent<'_>| match event {
        RunEvent::Note(note) => {
            let _ = writeln!(io::stderr(), "note: {note}");
            Ok(())
        }
        RunEvent::Token(token) => show(token, args.json).map_err(StepError::Stdout),
    };
    let summary = run(&pack, &options, context.stop, &mut tell)?;
    if args.json {
        context.terminal.stdout(|out| {
            serde_json::to_writer(&mut *out, &summary)?;
            writeln!(out)
        })?;
    } else {
        context.terminal.line("")?;
    }
    if !context.quiet {
        report(&summary, args.experts_report, &mut io::stderr().lock())?;
    }
    Ok(Exit::Ok)
}

fn show(token: &RunToken, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, token)?;
        writeln!(out)?;
    } else {
        if token.text.is_empty() && token.top.is_empty() {
            return Ok(());
        }
        write!(out, "{}", token.text)?;
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

fn report(s: &RunSummary, experts: bool, out: &mut dyn Write) -> io::Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let rate = |tokens: usize, seconds: f64| tokens as f64 / seconds.max(1e-9);
    if let Some(r) = &s.rank {
        let more = if r.tokens > 1 { format!(" (its first token of {})", r.tokens) } else { String::new() };
        writeln!(
            out,
            "rank of {:?}: {}{more}, probability {:.4}, logit {:.4}",
            r.text, r.rank, r.first.probability, r.first.logit
        )?;
    }
    writeln!(
        out,
        "prompt: {}, {:.2} s to the first token ({:.1} tokens/s)",
        counted(s.prompt_tokens as u64, "token"),
        s.time_to_first_token,
        rate(s.prompt_tokens, s.time_to_first_token)
    )?;
    let after = s.ids.len().saturating_sub(1);
    writeln!(
        out,
        "generated: {} ({}), {:.1} tokens/s after the first",
        counted(s.ids.len() as u64, "token"),
        s.stop_reason.replace('_', " "),
        rate(after, s.generation_seconds)
    )?;
    let uses = s.expert_hits + s.expert_misses;
    #[expect(clippy::cast_precision_loss, reason = "a percentage")]
    let share = 100.0 * s.expert_hits as f64 / uses.max(1) as f64;
    writeln!(
        out,
        "experts: {share:.1} % of {uses} uses were in memory ({}); dense weights {}; {} read",
        counted(s.expert_slots, "slot"),
        if s.dense_resident { "resident" } else { "streamed" },
        bytes(s.bytes_read)
    )?;
    if let Some(peak) = s.peak_rss {
        writeln!(out, "peak memory: {}", bytes(peak))?;
    }
    if experts {
        for e in &s.experts {
            writeln!(out, "  layer {:>3} expert {:>4}: {}", e.layer, e.expert, counted(e.uses, "use"))?;
        }
    }
    Ok(())
}
