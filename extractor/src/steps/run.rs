//! `run`: text from a pack.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use segpack_formats::digest::Sha256;
use segpack_formats::io::Stop;
use segpack_manifests::Pack;
use segpack_manifests::documents::{FormatVersion, GENERATOR, SourceFileKind};
use segpack_runtime_min::chat_template::{ChatTemplate, RenderOptions};
use segpack_runtime_min::generate::{
    Candidate, GenerateError, GenerateOptions, LanguageModel, Sampler, SamplingOptions, Step, StopReason,
    generate, rank_of, top_k_logits,
};
use segpack_runtime_min::memory::{CacheStats, Residency};
use segpack_runtime_min::ops::{Compute, CpuOps};
use segpack_runtime_min::thinker::{Check, Logits, RunSettings, RunStats, Thinker};
use segpack_runtime_min::tokenizer::{EosIds, SpecialTokens, Tokenizer, TokenizerError};
use segpack_runtime_min::trace::{RecordedFile, TraceRecorder};
use segpack_runtime_min::{RunError, Unobserved, WeightSource};
use serde::Serialize;

use super::StepError;

/// What to start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A text, tokenized as it is.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
    /// One turn of a chat, through the checkpoint's own template.
    Chat {
        /// The system's words, if any.
        system: Option<String>,
        /// The user's words.
        user: String,
        /// `enable_thinking` of the template, where it is set.
        enable_thinking: Option<bool>,
    },
}

/// How many experts may stay in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertRoom {
    /// A number of them.
    Count(u64),
    /// Bytes for them.
    Bytes(u64),
}

/// How to run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// What to start from.
    pub prompt: Prompt,
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// Random sampling; greedy where it is none.
    pub sampling: Option<SamplingOptions>,
    /// Candidates to show for each token.
    pub top_k_logits: usize,
    /// A continuation whose rank at the first step is asked for.
    pub rank: Option<String>,
    /// Bytes for the whole process.
    pub memory: Option<u64>,
    /// Room for experts.
    pub experts: Option<ExpertRoom>,
    /// Precision of activations.
    pub compute: Compute,
    /// When digests are compared.
    pub check: Check,
    /// Threads.
    pub threads: usize,
    /// Where to write a trace, the tensors to this file and the rest beside it.
    pub trace: Option<PathBuf>,
}

/// A candidate for the next token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShownCandidate {
    /// Token id.
    pub id: u32,
    /// What it stands for.
    pub text: String,
    /// Its logit.
    pub logit: f32,
    /// Its probability among all tokens.
    pub probability: f64,
}

/// One generated token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunToken {
    /// Its number, from 0.
    pub index: usize,
    /// Token id.
    pub id: u32,
    /// Text that is complete now; half a character waits for its rest.
    pub text: String,
    /// Whether it ends the text.
    pub stop: bool,
    /// The best candidates, if asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<ShownCandidate>,
}

/// Where a continuation ranks at the first step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShownRank {
    /// The continuation.
    pub text: String,
    /// Its first token, which is ranked, and how likely it is.
    pub first: ShownCandidate,
    /// Tokens of the continuation.
    pub tokens: usize,
    /// 1 for the most likely.
    pub rank: usize,
}

/// How often one expert was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ExpertUse {
    /// Layer.
    pub layer: u32,
    /// Expert.
    pub expert: u32,
    /// Forward passes that used it.
    pub uses: u64,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSummary {
    /// Version of this document.
    pub format_version: FormatVersion,
    /// What wrote it.
    pub generator: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Ids of the prompt.
    pub prompt_ids: Vec<u32>,
    /// The generated ids, the one that ended the text too.
    pub ids: Vec<u32>,
    /// The generated text without special tokens.
    pub text: String,
    /// Why it ended: `stop_id`, `max_new_tokens` or `context_full`.
    pub stop_reason: &'static str,
    /// Seconds until the first token.
    pub time_to_first_token: f64,
    /// Seconds for all tokens after the first.
    pub generation_seconds: f64,
    /// Bytes of weights read.
    pub bytes_read: u64,
    /// Experts that were in memory when needed.
    pub expert_hits: u64,
    /// Experts that had to be loaded.
    pub expert_misses: u64,
    /// Slots for experts.
    pub expert_slots: u64,
    /// Whether dense weights stayed in memory.
    pub dense_resident: bool,
    /// Peak resident memory of the process in bytes, where the system tells.
    pub peak_rss: Option<u64>,
    /// The rank that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<ShownRank>,
    /// All experts that were used.
    pub experts: Vec<ExpertUse>,
}

/// What a run tells while it goes on.
pub enum RunEvent<'a> {
    /// Something worth a line.
    Note(&'a str),
    /// A token.
    Token(&'a RunToken),
}

/// A file of the checkpoint as the pack keeps it, checked against its digest; none where there is none.
///
/// # Errors
/// `Format` where it cannot be read or is damaged.
pub fn source_file(pack: &Pack, name: &str) -> Result<Option<Vec<u8>>, StepError> {
    let listed = pack.manifest().source_files.iter();
    let Some(file) = listed.filter(|f| f.kind == SourceFileKind::File).find(|f| f.path == name) else {
        return Ok(None);
    };
    let path = pack.path(&file.stored_as);
    let bytes = fs::read(&path).map_err(StepError::io("read", &path))?;
    let seen = Sha256::of(&bytes);
    if seen != file.stored_sha256 {
        return Err(StepError::malformed(
            &path,
            format!("is damaged: SHA-256 {seen}, wanted {}", file.stored_sha256),
        ));
    }
    Ok(Some(bytes))
}

/// The model as the generation loop sees it.
struct Model<'a> {
    thinker: Thinker<'a, CpuOps>,
    context: usize,
    logits: Vec<f32>,
    recorder: Option<TraceRecorder>,
}

impl Model<'_> {
    /// A forward pass that is recorded: the prompt with all its logits, then each token with those it came from.
    fn recorded(
        thinker: &mut Thinker<'_, CpuOps>,
        recorder: &mut TraceRecorder,
        ids: &[u32],
        chosen_from: &[f32],
    ) -> Result<Vec<f32>, RunError> {
        if thinker.positions() > 0 {
            recorder.token(ids[0], chosen_from);
            return thinker.forward(ids, Logits::Last, recorder);
        }
        recorder.begin(ids);
        let mut all = thinker.forward(ids, Logits::All, recorder)?;
        recorder.logits(&all);
        Ok(all.split_off(all.len() - all.len() / ids.len()))
    }

    /// The last token is not run through the model, but recorded. Writes the trace.
    fn write_trace(&mut self, pack: &Pack, path: &Path, ids: &[u32]) -> Result<(), StepError> {
        let Some(recorder) = &mut self.recorder else { return Ok(()) };
        if let Some(last) = ids.last() {
            recorder.token(*last, &self.logits);
        }
        recorder.end(serde_json::Map::new());
        let files = pack.manifest().source_files.iter();
        let digests = files.map(|f| (f.path.clone(), RecordedFile { size: f.length, sha256: f.sha256 }));
        let checkpoint: BTreeMap<String, RecordedFile> = digests.collect();
        Ok(recorder.write(path, serde_json::Map::new(), &checkpoint)?)
    }
}

impl LanguageModel for Model<'_> {
    type Error = RunError;

    fn vocab_size(&self) -> usize {
        usize::try_from(self.thinker.facts().vocab).unwrap_or(usize::MAX)
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn position(&self) -> usize {
        self.thinker.positions()
    }

    fn forward(&mut self, ids: &[u32]) -> Result<&[f32], RunError> {
        self.logits = match &mut self.recorder {
            None => self.thinker.forward(ids, Logits::Last, &mut Unobserved)?,
            Some(recorder) => Self::recorded(&mut self.thinker, recorder, ids, &self.logits)?,
        };
        Ok(&self.logits)
    }
}

/// Generates text from a pack.
///
/// # Errors
/// A pack that cannot be run or is damaged; a prompt that does not fit; too little memory; whatever `tell` returns.
pub fn run(
    pack: &Pack,
    options: &RunOptions,
    stop: &Stop,
    tell: &mut (dyn FnMut(RunEvent<'_>) -> Result<(), StepError> + Send),
) -> Result<RunSummary, StepError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build();
    let pool =
        pool.map_err(|e| StepError::Refused(format!("cannot start {} threads: {e}", options.threads)))?;
    pool.install(|| run_here(pack, options, stop, tell))
}

fn run_here(
    pack: &Pack,
    options: &RunOptions,
    stop: &Stop,
    tell: &mut dyn FnMut(RunEvent<'_>) -> Result<(), StepError>,
) -> Result<RunSummary, StepError> {
    let words = Words::load(pack, &options.prompt)?;
    if let Some(notice) = words.eos.notice() {
        tell(RunEvent::Note(&notice))?;
    }
    let prompt = words.prompt_ids(pack, &options.prompt)?;
    let source = WeightSource::new(pack);
    let context = prompt.len() + options.max_new_tokens;
    let settings = RunSettings {
        memory: options.memory,
        expert_slots: expert_slots(pack, options.experts),
        positions: context,
        longest_pass: prompt.len(),
        check: options.check,
    };
    let began = Instant::now();
    let thinker = Thinker::new(&source, cpu_ops(options.compute)?, settings, stop)?;
    words.check(thinker.facts().vocab)?;
    let recorder = options.trace.as_ref().map(|_| TraceRecorder::new(options.compute, thinker.facts()));
    let mut model = Model { thinker, context, logits: Vec::new(), recorder };
    let mut talk = Talk { words: &words, options, tell, began, first: None, rank: None, failed: None };
    let mut stream = words.tokenizer.as_ref().map(|t| t.stream(SpecialTokens::Skip));
    let mut sampler = match options.sampling {
        Some(sampling) => Sampler::random(sampling).map_err(|e| StepError::Usage(e.to_string()))?,
        None => Sampler::greedy(),
    };
    let loop_options = GenerateOptions { max_new_tokens: options.max_new_tokens, stop_ids: &words.eos.ids };
    let generated = generate(&mut model, &prompt, &mut sampler, &loop_options, |step| {
        let text = stream.as_mut().map_or_else(String::new, |s| s.push(step.id));
        talk.token(&step, text)
    })
    .map_err(generate_error)?;
    if let Some(e) = talk.failed.take() {
        return Err(e);
    }
    if let Some(path) = &options.trace {
        model.write_trace(pack, path, &generated.ids)?;
    }
    let (first, rank) = (talk.first.unwrap_or_default(), talk.rank.take());
    let rest = stream.map_or_else(String::new, |s| s.finish());
    if !rest.is_empty() {
        let last = RunToken { index: generated.ids.len(), id: 0, text: rest, stop: true, top: Vec::new() };
        (talk.tell)(RunEvent::Token(&last))?;
    }
    let seconds = Seconds { first, all: began.elapsed() };
    Ok(summarise(&words, prompt, &generated.ids, generated.reason, &model.thinker, seconds, rank))
}

fn generate_error(e: GenerateError<RunError>) -> StepError {
    match e {
        GenerateError::Model(e) => e.into(),
        GenerateError::EmptyPrompt => StepError::Usage(GenerateError::<RunError>::EmptyPrompt.to_string()),
        e => StepError::Input(e.to_string()),
    }
}

/// The operations on this processor, or on what `SEGPACK_CPU` names.
pub(super) fn cpu_ops(compute: Compute) -> Result<CpuOps, StepError> {
    CpuOps::from_environment(compute).map_err(|e| StepError::Usage(e.to_string()))
}

pub(super) fn expert_slots(pack: &Pack, room: Option<ExpertRoom>) -> Option<u64> {
    let expert = |s: &&segpack_manifests::documents::SegmentEntry| s.id.contains(".experts.");
    let largest = pack.manifest().segments.iter().filter(expert).map(|s| s.raw_length).max().unwrap_or(1);
    room.map(|room| match room {
        ExpertRoom::Count(n) => n,
        ExpertRoom::Bytes(bytes) => bytes / largest.max(1),
    })
}

/// Everything between text and token ids.
struct Words {
    tokenizer: Option<Tokenizer>,
    eos: EosIds,
}

impl Words {
    /// A prompt of ids works without a tokenizer; its text is then empty.
    fn load(pack: &Pack, prompt: &Prompt) -> Result<Self, StepError> {
        let files = |name: &str| source_file(pack, name);
        match Tokenizer::load(&files) {
            Ok(tokenizer) => Ok(Self { eos: tokenizer.eos_ids().clone(), tokenizer: Some(tokenizer) }),
            Err(TokenizerError::Missing { .. }) if matches!(prompt, Prompt::Ids(_)) => {
                let eos = EosIds::without_tokenizer(&files).map_err(|e| StepError::Input(e.to_string()))?;
                Ok(Self { tokenizer: None, eos })
            }
            Err(e) => Err(StepError::Input(e.to_string())),
        }
    }

    fn tokenizer(&self) -> Result<&Tokenizer, StepError> {
        self.tokenizer.as_ref().ok_or_else(|| StepError::Input("the pack holds no tokenizer".to_owned()))
    }

    fn prompt_ids(&self, pack: &Pack, prompt: &Prompt) -> Result<Vec<u32>, StepError> {
        let input = |e: TokenizerError| StepError::Input(e.to_string());
        match prompt {
            Prompt::Ids(ids) => Ok(ids.clone()),
            Prompt::Text(text) => self.tokenizer()?.encode(text).map_err(input),
            Prompt::Chat { system, user, enable_thinking } => {
                let files = |name: &str| source_file(pack, name);
                let template = ChatTemplate::load(&files).map_err(|e| StepError::Input(e.to_string()))?;
                let system = system.iter().map(|s| serde_json::json!({"role": "system", "content": s}));
                let user = serde_json::json!({"role": "user", "content": user});
                let messages: Vec<serde_json::Value> = system.chain([user]).collect();
                let options = RenderOptions {
                    add_generation_prompt: true,
                    enable_thinking: *enable_thinking,
                    ..RenderOptions::default()
                };
                let text =
                    template.render(&messages, &options).map_err(|e| StepError::Input(e.to_string()))?;
                self.tokenizer()?.encode_bare(&text).map_err(input)
            }
        }
    }

    fn check(&self, rows: u64) -> Result<(), StepError> {
        let checked = self.tokenizer.as_ref().map_or(Ok(()), |t| t.check_against_embedding(rows));
        checked.map_err(|e| StepError::Input(e.to_string()))
    }

    fn shown(&self, candidate: &Candidate) -> ShownCandidate {
        let text = self.tokenizer.as_ref().map(|t| t.decode(&[candidate.id], SpecialTokens::Keep));
        ShownCandidate {
            id: candidate.id,
            text: text.unwrap_or_default(),
            logit: candidate.logit,
            probability: candidate.probability,
        }
    }
}

/// What happens at every token.
struct Talk<'a> {
    words: &'a Words,
    options: &'a RunOptions,
    tell: &'a mut dyn FnMut(RunEvent<'_>) -> Result<(), StepError>,
    began: Instant,
    first: Option<Duration>,
    rank: Option<ShownRank>,
    failed: Option<StepError>,
}

impl Talk<'_> {
    fn token(&mut self, step: &Step<'_>, text: String) -> ControlFlow<()> {
        let told = self.try_token(step, text);
        match told {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                self.failed = Some(e);
                ControlFlow::Break(())
            }
        }
    }

    fn try_token(&mut self, step: &Step<'_>, text: String) -> Result<(), StepError> {
        if step.index == 0 {
            self.first = Some(self.began.elapsed());
            self.rank = self.options.rank.as_ref().map(|text| self.rank(step.logits, text)).transpose()?;
        }
        let top = match self.options.top_k_logits {
            0 => Vec::new(),
            n => {
                let best = top_k_logits(step.logits, n).map_err(|e| StepError::Input(e.to_string()))?;
                best.iter().map(|c| self.words.shown(c)).collect()
            }
        };
        let token = RunToken { index: step.index, id: step.id, text, stop: step.is_stop, top };
        (self.tell)(RunEvent::Token(&token))
    }

    fn rank(&self, logits: &[f32], text: &str) -> Result<ShownRank, StepError> {
        let input = |e: &dyn std::fmt::Display| StepError::Input(e.to_string());
        let ids = self.words.tokenizer()?.encode_bare(text).map_err(|e| input(&e))?;
        let id = *ids
            .first()
            .ok_or_else(|| StepError::Usage("--rank needs a text that is not empty".to_owned()))?;
        let outside = || StepError::Input(format!("token id {id} of {text:?} is not in the embedding"));
        let rank = rank_of(logits, id).map_err(|e| input(&e))?.ok_or_else(outside)?;
        Ok(ShownRank {
            text: text.to_owned(),
            first: self.words.shown(&rank.candidate),
            tokens: ids.len(),
            rank: rank.rank,
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct Seconds {
    first: Duration,
    all: Duration,
}

fn summarise(
    words: &Words,
    prompt: Vec<u32>,
    ids: &[u32],
    reason: StopReason,
    thinker: &Thinker<'_, CpuOps>,
    seconds: Seconds,
    rank: Option<ShownRank>,
) -> RunSummary {
    let RunStats { bytes_read, cache, expert_uses, .. } = thinker.stats();
    let CacheStats { hits, misses, .. } = cache;
    let budget = thinker.budget();
    RunSummary {
        format_version: FormatVersion::CURRENT,
        generator: GENERATOR.to_owned(),
        prompt_tokens: prompt.len(),
        prompt_ids: prompt,
        ids: ids.to_vec(),
        text: words.tokenizer.as_ref().map_or_else(String::new, |t| t.decode(ids, SpecialTokens::Skip)),
        stop_reason: match reason {
            StopReason::StopId(_) => "stop_id",
            StopReason::MaxNewTokens => "max_new_tokens",
            StopReason::ContextFull => "context_full",
            StopReason::Caller => "caller",
        },
        time_to_first_token: seconds.first.as_secs_f64(),
        generation_seconds: seconds.all.saturating_sub(seconds.first).as_secs_f64(),
        bytes_read,
        expert_hits: hits,
        expert_misses: misses,
        expert_slots: budget.slots,
        dense_resident: budget.residency == Residency::Resident,
        peak_rss: peak_rss(),
        rank,
        experts: expert_uses
            .into_iter()
            .map(|((layer, expert), uses)| ExpertUse { layer, expert, uses })
            .collect(),
    }
}

/// Peak resident memory of this process in bytes: `VmHWM`, which is `ru_maxrss`.
fn peak_rss() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}
