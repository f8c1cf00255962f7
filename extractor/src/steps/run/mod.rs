//! `run`: text from a pack.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use segpack_formats::digest::Sha256;
use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::PackReader;
use segpack_manifests::documents::{
    GENERATOR, LayerExperts, RunCosts, RunEnd, RunPrompt, RunSummary, RunToken, ShownCandidate,
    ShownRank, SourceFileKind,
};
use segpack_runtime_min::generate::{
    Candidate, GenerateError, GenerateOptions, Generated, Greatest, LanguageModel, Sampler,
    SamplingOptions, Step, StopReason, generate, rank_of, top_k_logits,
};
use segpack_runtime_min::models::decoder::{
    Backend, Check, LayerUses, Logits, RunSettings, RunStats, Thinker,
};
use segpack_runtime_min::ops::{Compute, CpuOps};
use segpack_runtime_min::processing::text::chat_template::{
    ChatTemplate, RenderOptions, TemplateValue,
};
use segpack_runtime_min::processing::text::tokenizer::{
    EosIds, SpecialTokens, StreamDecoder, Tokenizer, TokenizerError,
};
use segpack_runtime_min::trace::{RecordedFile, TraceRecorder};
use segpack_runtime_min::weights::{CacheStats, Residency};
use segpack_runtime_min::{Observer, Routing, RunError, Unobserved};
use serde::Deserialize;

use super::StepError;
use super::device::{DeviceChoice, Opened, open};
use crate::work::Progress;

/// What to start from.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// A text, tokenized as it is.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
    /// A chat, through the checkpoint's own template.
    Chat {
        /// What was said.
        chat: Chat,
        /// `enable_thinking` of the template, where it is set.
        enable_thinking: Option<bool>,
    },
}

/// What was said, and which tools there are, as transformers' `apply_chat_template` takes them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chat {
    /// A list of objects with a role and a content.
    pub messages: TemplateValue,
    /// A list of schemas.
    #[serde(default)]
    pub tools: Option<TemplateValue>,
}

impl Chat {
    /// One turn of a user.
    pub fn turn(system: Option<&str>, user: &str) -> Self {
        let said = |role: &str, content: &str| {
            BTreeMap::from([("role", role), ("content", content)].map(owned))
        };
        let messages: Vec<_> = system
            .iter()
            .map(|s| said("system", s))
            .chain([said("user", user)])
            .collect();
        Self {
            messages: TemplateValue::of(&messages),
            tools: None,
        }
    }

    /// A JSON list of messages, or an object with `messages` and, where there are any, `tools`.
    ///
    /// # Errors
    /// Where it is neither.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        if text.trim_start().starts_with('{') {
            return serde_json::from_str(text);
        }
        Ok(Self {
            messages: TemplateValue::from_json(text)?,
            tools: None,
        })
    }
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
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
    /// Where to run.
    pub device: DeviceChoice,
    /// Bytes of a GPU's memory; all that is free where it is none.
    pub device_memory: Option<u64>,
    /// Bytes for the whole process; see [`Opened::memory`] for where it is none.
    pub memory: Option<u64>,
    /// Room for experts.
    pub experts: Option<ExpertRoom>,
    /// Precision of activations.
    pub compute: Compute,
    /// When digests are compared.
    pub check: Check,
    /// Whether to load all weights that there is room for before the prompt.
    pub preload: bool,
    /// Threads.
    pub threads: usize,
    /// Where to write a trace, the tensors to this file and the rest beside it.
    pub trace: Option<PathBuf>,
}

/// What a run tells while it goes on.
pub enum RunEvent<'a> {
    /// Something worth a line.
    Note(&'a str),
    /// A token.
    Token(&'a RunToken),
}

/// A file of the checkpoint as the pack keeps it, checked against its digest; none where there is
/// none.
///
/// # Errors
/// `Format` where it cannot be read or is damaged.
pub fn source_file(pack: &Pack, name: &str) -> Result<Option<Vec<u8>>, StepError> {
    let listed = pack.manifest().source_files.iter();
    let Some(file) = listed
        .filter(|f| f.kind == SourceFileKind::File)
        .find(|f| f.path == name)
    else {
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
struct Model<'a, B: Backend> {
    thinker: Thinker<'a, B>,
    context: usize,
    logits: Vec<f32>,
    recorder: Option<TraceRecorder>,
    progress: &'a dyn Progress,
    /// Bytes read for the prompt.
    read_before: u64,
}

impl<B: Backend> Model<'_, B> {
    /// The whole prompt, with all its logits where it is recorded.
    fn prefill(&mut self, ids: &[u32]) -> Result<Vec<f32>, RunError> {
        let Some(recorder) = &mut self.recorder else {
            let mut watched = Watched {
                inner: &mut Unobserved,
                progress: self.progress,
            };
            return self.thinker.forward(ids, Logits::Last, &mut watched);
        };
        recorder.begin(ids);
        let mut watched = Watched {
            inner: recorder,
            progress: self.progress,
        };
        let mut all = self.thinker.forward(ids, Logits::All, &mut watched)?;
        recorder.logits(&all);
        Ok(all.split_off(all.len() - all.len() / ids.len()))
    }

    /// Tokens after it, recorded with the logits that they came from.
    fn decode(&mut self, ids: &[u32]) -> Result<Vec<f32>, RunError> {
        let Some(recorder) = &mut self.recorder else {
            return self.thinker.forward(ids, Logits::Last, &mut Unobserved);
        };
        recorder.token(ids[0], &self.logits);
        self.thinker.forward(ids, Logits::Last, recorder)
    }

    /// The last token is not run through the model, but recorded. Writes the trace.
    fn write_trace(&mut self, pack: &Pack, path: &Path, ids: &[u32]) -> Result<(), StepError> {
        let Some(recorder) = &mut self.recorder else {
            return Ok(());
        };
        if let Some(last) = ids.last() {
            recorder.token(*last, &self.logits);
        }
        recorder.end(serde_json::Map::new());
        let files = pack.manifest().source_files.iter();
        let digests = files.map(|f| {
            (
                f.path.clone(),
                RecordedFile {
                    size: f.length,
                    sha256: f.sha256,
                },
            )
        });
        let checkpoint: BTreeMap<String, RecordedFile> = digests.collect();
        Ok(recorder.write(path, serde_json::Map::new(), &checkpoint)?)
    }
}

impl<B: Backend> LanguageModel for Model<'_, B> {
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
        self.logits = if self.position() == 0 {
            let layers = u64::from(self.thinker.facts().layers);
            self.progress
                .start_counting("loading and prefilling", layers, "layer");
            let logits = self.prefill(ids);
            self.progress.finish();
            self.read_before = self.thinker.stats().bytes_read;
            logits?
        } else {
            self.decode(ids)?
        };
        Ok(&self.logits)
    }

    fn greedy(&mut self, last: u32, next: &mut [Greatest]) -> Result<bool, RunError> {
        self.thinker.greedy(last, next)
    }

    fn truncate(&mut self, position: usize) {
        self.thinker.truncate(position);
    }
}

/// Tells how many layers a forward pass is through. Weights are loaded where they are needed, so
/// this is loading, too.
struct Watched<'a> {
    inner: &'a mut dyn Observer,
    progress: &'a dyn Progress,
}

impl Observer for Watched<'_> {
    fn looks(&self) -> bool {
        self.inner.looks()
    }

    fn embed(&mut self, x: &[f32]) {
        self.inner.embed(x);
    }

    fn attention(&mut self, layer: usize, x: &[f32]) {
        self.inner.attention(layer, x);
    }

    fn mlp(&mut self, layer: usize, x: &[f32]) {
        self.inner.mlp(layer, x);
    }

    fn hidden(&mut self, layer: usize, x: &[f32]) {
        self.inner.hidden(layer, x);
        self.progress.advance(1);
    }

    fn router(&mut self, layer: usize, routing: &Routing) {
        self.inner.router(layer, routing);
    }

    fn norm(&mut self, x: &[f32]) {
        self.inner.norm(x);
    }
}

/// Generates text from a pack.
///
/// # Errors
/// A pack that cannot be run or is damaged; a prompt that does not fit; too little memory; whatever
/// `tell` returns.
pub fn run(
    pack: &Pack,
    options: &RunOptions,
    stop: &CancelToken,
    progress: &dyn Progress,
    tell: &mut (dyn FnMut(RunEvent<'_>) -> Result<(), StepError> + Send),
) -> Result<RunSummary, StepError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.threads)
        .build();
    let pool = pool.map_err(|e| {
        StepError::Refused(format!("cannot start {} threads: {e}", options.threads))
    })?;
    pool.install(|| {
        let device = open(options.device, options.compute, options.device_memory)?;
        let name = device.name();
        let options = &RunOptions {
            memory: device.memory(options.memory),
            ..options.clone()
        };
        match device {
            Opened::Cpu(ops) => run_on(ops, name, pack, options, stop, progress, tell),
            Opened::Cuda(cuda) => run_on(cuda, name, pack, options, stop, progress, tell),
        }
    })
}

/// The prompt as a model would get it. Reads the tokenizer and the chat template, no weights.
///
/// # Errors
/// Where the pack holds no tokenizer or template, or they do not take the prompt.
pub fn print_prompt(pack: &Pack, prompt: &Prompt) -> Result<RunPrompt, StepError> {
    let words = Words::load(pack, prompt)?;
    let (text, ids) = words.prompt(pack, prompt)?;
    Ok(RunPrompt {
        format_version: RunPrompt::VERSION,
        generator: GENERATOR.to_owned(),
        text,
        ids,
    })
}

fn run_on<B: Backend>(
    backend: B,
    device: String,
    pack: &Pack,
    options: &RunOptions,
    stop: &CancelToken,
    progress: &dyn Progress,
    tell: &mut dyn FnMut(RunEvent<'_>) -> Result<(), StepError>,
) -> Result<RunSummary, StepError> {
    let mut sampler = match options.sampling {
        Some(sampling) => Sampler::random(sampling).map_err(|e| StepError::Usage(e.to_string()))?,
        None => Sampler::greedy(),
    };
    if let Some(path) = &options.trace {
        check_folder(path)?;
    }
    let words = Words::load(pack, &options.prompt)?;
    let rank_of = options
        .rank
        .as_ref()
        .map(|text| words.ranked(text))
        .transpose()?;
    let notes: Vec<String> = words.eos.notice().into_iter().collect();
    for note in &notes {
        tell(RunEvent::Note(note))?;
    }
    let (_, prompt) = words.prompt(pack, &options.prompt)?;
    let source = PackReader::new(pack);
    let longest = longest_context(pack)?.max(prompt.len());
    let context = prompt
        .len()
        .saturating_add(options.max_new_tokens)
        .min(longest);
    let settings = RunSettings {
        memory: options.memory,
        expert_slots: expert_slots(pack, options.experts),
        positions: context,
        longest_pass: prompt.len(),
        check: options.check,
    };
    let began = Instant::now();
    let mut thinker = Thinker::new(&source, backend, settings, stop)?;
    words.check(thinker.facts().vocab)?;
    if options.preload {
        progress.start("loading", thinker.preload_bytes());
        let loaded = thinker.preload(&mut |bytes| progress.advance(bytes));
        progress.finish();
        loaded?;
    }
    let recorder = options
        .trace
        .as_ref()
        .map(|_| TraceRecorder::new(options.compute, thinker.facts()));
    let mut model = Model {
        thinker,
        context,
        logits: Vec::new(),
        recorder,
        progress,
        read_before: 0,
    };
    let stream = words
        .tokenizer
        .as_ref()
        .map(|t| t.stream(SpecialTokens::Skip));
    // the last token is not run through the model, so it needs no position
    let most = options.max_new_tokens.min(context - prompt.len() + 1);
    let mut talk = Talk {
        words: &words,
        options,
        tell,
        stream,
        most,
        rank_of,
        began,
        first: None,
        rank: None,
        failed: None,
    };
    let loop_options = GenerateOptions {
        max_new_tokens: options.max_new_tokens,
        stop_ids: &words.eos.ids,
        wants_logits: options.top_k_logits > 0 || options.trace.is_some(),
    };
    let generated = generate(&mut model, &prompt, &mut sampler, &loop_options, |step| {
        talk.token(&step)
    })
    .map_err(generate_error)?;
    if let Some(e) = talk.failed.take() {
        return Err(e);
    }
    if let Some(path) = &options.trace {
        model.write_trace(pack, path, &generated.ids)?;
    }
    let first = talk.first.unwrap_or_default();
    let after = talk.first.map_or(Duration::ZERO, |first| {
        talk.began.elapsed().saturating_sub(first)
    });
    let (rank, read_before) = (talk.rank.take(), model.read_before);
    let outcome = Outcome {
        device,
        prompt,
        generated,
        first,
        after,
        read_before,
        rank,
        notes,
    };
    Ok(summarise(&words, outcome, &model.thinker))
}

/// Positions of a checkpoint whose config does not say how many it was made for.
const UNKNOWN_CONTEXT: u64 = 1 << 18;

/// The positions that the text model was made for.
fn longest_context(pack: &Pack) -> Result<usize, StepError> {
    let config = source_file(pack, "config.json")?.unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
    let places = ["/thinker_config/text_config", "/text_config", ""];
    let most = places.iter().find_map(|p| {
        config
            .pointer(&format!("{p}/max_position_embeddings"))?
            .as_u64()
    });
    Ok(usize::try_from(most.unwrap_or(UNKNOWN_CONTEXT)).unwrap_or(usize::MAX))
}

/// A trace that cannot be written is better found before the work than after it.
fn check_folder(trace: &Path) -> Result<(), StepError> {
    let folder = trace
        .parent()
        .filter(|f| !f.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::read_dir(folder)
        .map(drop)
        .map_err(StepError::io("write to", folder))
}

fn generate_error(e: GenerateError<RunError>) -> StepError {
    match e {
        GenerateError::Model(e) => e.into(),
        GenerateError::EmptyPrompt => {
            StepError::Usage(GenerateError::<RunError>::EmptyPrompt.to_string())
        }
        e => StepError::Input(e.to_string()),
    }
}

/// The operations on this processor, or on what `SEGPACK_CPU` names.
pub(super) fn cpu_ops(compute: Compute) -> Result<CpuOps, StepError> {
    CpuOps::from_environment(compute).map_err(|e| StepError::Usage(e.to_string()))
}

pub(super) fn expert_slots(pack: &Pack, room: Option<ExpertRoom>) -> Option<u64> {
    let expert = |s: &&segpack_manifests::documents::SegmentEntry| s.id.contains(".experts.");
    let largest = pack
        .manifest()
        .segments
        .iter()
        .filter(expert)
        .map(|s| s.raw_length)
        .max()
        .unwrap_or(1);
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
            Ok(tokenizer) => Ok(Self {
                eos: tokenizer.eos_ids().clone(),
                tokenizer: Some(tokenizer),
            }),
            Err(TokenizerError::Missing { .. }) if matches!(prompt, Prompt::Ids(_)) => {
                let eos = EosIds::without_tokenizer(&files)
                    .map_err(|e| StepError::Input(e.to_string()))?;
                Ok(Self {
                    tokenizer: None,
                    eos,
                })
            }
            Err(e) => Err(StepError::Input(e.to_string())),
        }
    }

    fn tokenizer(&self) -> Result<&Tokenizer, StepError> {
        self.tokenizer
            .as_ref()
            .ok_or_else(|| StepError::Input("the pack holds no tokenizer".to_owned()))
    }

    /// The prompt's text, where it has one, and its ids.
    fn prompt(
        &self,
        pack: &Pack,
        prompt: &Prompt,
    ) -> Result<(Option<String>, Vec<u32>), StepError> {
        let input = |e: TokenizerError| StepError::Input(e.to_string());
        match prompt {
            Prompt::Ids(ids) => {
                let text = self
                    .tokenizer
                    .as_ref()
                    .map(|t| t.decode(ids, SpecialTokens::Keep));
                Ok((text, ids.clone()))
            }
            Prompt::Text(text) => {
                let ids = self.tokenizer()?.encode(text).map_err(input)?;
                Ok((Some(text.clone()), ids))
            }
            Prompt::Chat {
                chat,
                enable_thinking,
            } => {
                let text = render(pack, chat, *enable_thinking)?;
                let ids = self.tokenizer()?.encode_bare(&text).map_err(input)?;
                Ok((Some(text), ids))
            }
        }
    }

    /// The ids of a continuation whose first is ranked.
    fn ranked(&self, text: &str) -> Result<Ranked, StepError> {
        let ids = self
            .tokenizer()?
            .encode_bare(text)
            .map_err(|e| StepError::Input(e.to_string()))?;
        match ids.first() {
            Some(first) => Ok(Ranked {
                text: text.to_owned(),
                first: *first,
                tokens: ids.len() as u64,
            }),
            None => Err(StepError::Usage(
                "--rank needs a text that is not empty".to_owned(),
            )),
        }
    }

    fn check(&self, rows: u64) -> Result<(), StepError> {
        let checked = self
            .tokenizer
            .as_ref()
            .map_or(Ok(()), |t| t.check_against_embedding(rows));
        checked.map_err(|e| StepError::Input(e.to_string()))
    }

    fn shown(&self, candidate: &Candidate) -> ShownCandidate {
        let text = self
            .tokenizer
            .as_ref()
            .map(|t| t.decode(&[candidate.id], SpecialTokens::Keep));
        ShownCandidate {
            id: candidate.id,
            text: text.unwrap_or_default(),
            logit: candidate.logit,
            probability: candidate.probability,
        }
    }
}

fn render(pack: &Pack, chat: &Chat, enable_thinking: Option<bool>) -> Result<String, StepError> {
    let files = |name: &str| source_file(pack, name);
    let template = ChatTemplate::load(&files).map_err(|e| StepError::Input(e.to_string()))?;
    let options = RenderOptions {
        add_generation_prompt: true,
        enable_thinking,
        tools: chat.tools.clone(),
        ..RenderOptions::default()
    };
    template
        .render(&chat.messages, &options)
        .map_err(|e| StepError::Input(e.to_string()))
}

/// A continuation, its first token, and how many it has.
struct Ranked {
    text: String,
    first: u32,
    tokens: u64,
}

/// What happens at every token.
struct Talk<'a> {
    words: &'a Words,
    options: &'a RunOptions,
    tell: &'a mut dyn FnMut(RunEvent<'_>) -> Result<(), StepError>,
    stream: Option<StreamDecoder<'a>>,
    /// Tokens that there can be.
    most: usize,
    rank_of: Option<Ranked>,
    began: Instant,
    first: Option<Duration>,
    rank: Option<ShownRank>,
    failed: Option<StepError>,
}

impl Talk<'_> {
    fn token(&mut self, step: &Step<'_>) -> ControlFlow<()> {
        match self.try_token(step) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                self.failed = Some(e);
                ControlFlow::Break(())
            }
        }
    }

    fn try_token(&mut self, step: &Step<'_>) -> Result<(), StepError> {
        if step.index == 0 {
            self.first = Some(self.began.elapsed());
            self.rank = self
                .rank_of
                .as_ref()
                .map(|r| self.rank(step.logits, r))
                .transpose()?;
        }
        let text = self.text(step);
        let top = match self.options.top_k_logits {
            0 => Vec::new(),
            n => {
                let best =
                    top_k_logits(step.logits, n).map_err(|e| StepError::Input(e.to_string()))?;
                best.iter().map(|c| self.words.shown(c)).collect()
            }
        };
        let token = RunToken {
            index: step.index as u64,
            id: step.id,
            text,
            stop: step.is_stop,
            top,
        };
        (self.tell)(RunEvent::Token(&token))
    }

    /// What this token completes; the last one also brings what waited in vain for its rest.
    fn text(&mut self, step: &Step<'_>) -> String {
        let mut text = self
            .stream
            .as_mut()
            .map_or_else(String::new, |s| s.push(step.id));
        if step.is_stop || step.index + 1 == self.most {
            text.extend(self.stream.take().map(StreamDecoder::finish));
        }
        text
    }

    fn rank(&self, logits: &[f32], of: &Ranked) -> Result<ShownRank, StepError> {
        let Ranked {
            text,
            first,
            tokens,
        } = of;
        let outside = || {
            StepError::Input(format!(
                "token id {first} of {text:?} is not in the embedding"
            ))
        };
        let rank = rank_of(logits, *first)
            .map_err(|e| StepError::Input(e.to_string()))?
            .ok_or_else(outside)?;
        Ok(ShownRank {
            text: text.clone(),
            first: self.words.shown(&rank.candidate),
            tokens: *tokens,
            rank: rank.rank as u64,
        })
    }
}

/// What a run made, and how long it took: to the first token, and after it.
struct Outcome {
    device: String,
    prompt: Vec<u32>,
    generated: Generated,
    first: Duration,
    after: Duration,
    /// Bytes read until the first token.
    read_before: u64,
    rank: Option<ShownRank>,
    notes: Vec<String>,
}

fn summarise<B: Backend>(words: &Words, outcome: Outcome, thinker: &Thinker<'_, B>) -> RunSummary {
    let stats = thinker.stats();
    let CacheStats { hits, misses, .. } = stats.cache;
    let budget = thinker.budget();
    let Generated { ids, reason } = outcome.generated;
    let tokens_after = ids.len().saturating_sub(1);
    RunSummary {
        format_version: RunSummary::VERSION,
        generator: GENERATOR.to_owned(),
        device: outcome.device,
        prompt_tokens: outcome.prompt.len() as u64,
        prompt_ids: outcome.prompt,
        text: words
            .tokenizer
            .as_ref()
            .map_or_else(String::new, |t| t.decode(&ids, SpecialTokens::Skip)),
        ids,
        stop_reason: match reason {
            StopReason::StopId(_) => RunEnd::StopId,
            StopReason::ContextFull => RunEnd::ContextFull,
            // a caller that breaks off is an error before
            StopReason::MaxNewTokens | StopReason::Caller => RunEnd::MaxNewTokens,
        },
        notes: outcome.notes,
        time_to_first_token: outcome.first.as_secs_f64(),
        generation_seconds: outcome.after.as_secs_f64(),
        bytes_read: stats.bytes_read,
        expert_hits: hits,
        expert_misses: misses,
        expert_slots: budget.slots,
        dense_resident: budget.residency == Residency::Resident,
        peak_rss: peak_rss(),
        rank: outcome.rank,
        costs: costs(&stats, outcome.read_before, tokens_after),
        experts: layer_experts(&stats, thinker.facts().experts),
    }
}

/// What a run cost; `before` is what was read until the first token.
fn costs(stats: &RunStats, before: u64, tokens_after: usize) -> RunCosts {
    let load = stats.load;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let per_token = stats.bytes_read.saturating_sub(before) as f64 / tokens_after.max(1) as f64;
    RunCosts {
        bytes_direct: load.direct,
        bytes_cached: load.cached,
        bytes_decoded: load.decoded,
        bytes_copied: stats.bytes_copied,
        bytes_read_per_token: per_token,
        forward: stats.forward.as_secs_f64(),
        waiting: stats.waited.as_secs_f64(),
        reading: load.read_time.as_secs_f64(),
        checking: load.check_time.as_secs_f64(),
        decoding: load.decode_time.as_secs_f64(),
    }
}

fn layer_experts(stats: &RunStats, experts: u32) -> Vec<LayerExperts> {
    let layers = (0..)
        .zip(&stats.layers)
        .filter(|(_, uses)| uses.hits + uses.misses > 0);
    let uses = |layer, expert| {
        stats
            .expert_uses
            .get(&(layer, expert))
            .copied()
            .unwrap_or(0)
    };
    let layer = |(layer, l): (u32, &LayerUses)| LayerExperts {
        layer,
        hits: l.hits,
        misses: l.misses,
        uses: (0..experts).map(|expert| uses(layer, expert)).collect(),
    };
    layers.map(layer).collect()
}

/// Peak resident memory of this process in bytes: `VmHWM`, which is `ru_maxrss`.
fn peak_rss() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(
        line.trim()
            .strip_suffix(" kB")?
            .trim()
            .parse::<u64>()
            .ok()?
            * 1024,
    )
}
