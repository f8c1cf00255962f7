//! `run`: text from a pack.

mod batch;
mod features;
mod imatrix;
mod network;
mod prompts;
mod stream;
mod summary;

use std::path::PathBuf;

use segpack_formats::io::{CancelToken, PendingFile};
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    GENERATOR, PromptMedia, RunPrompt, RunSummary, RunToken, SpeakSummary,
};
use segpack_runtime_min::processing::media::{MediaOptions, MediaRecipe};
use segpack_runtime_min::processing::{Prompt, TextFrontend, TokenizedPrompt};
use segpack_runtime_min::session::{
    GenerationSettings, Hooks, Phase, Session, SessionError, SessionOptions, SessionProgress,
    SpeechScript, StateCapture,
};
use segpack_runtime_min::trace::{RESTRICTED, RecordedFile, TraceFiles, TraceRecorder};
use serde_json::json;

use super::StepError;
use super::speak::{Voice, VoiceOptions};
use crate::work::Progress;
pub use batch::{ResultListener, run_prompts};
pub use imatrix::{ImatrixError, ImatrixOptions, ImatrixSummary, record_imatrix};
pub use network::media_fetcher;
pub use prompts::{PromptsError, PromptsOptions};
use stream::Stream;
pub use summary::summarize;

/// How to run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunOptions {
    /// What to start from.
    pub prompt: Prompt,
    /// Where the model runs, and what it may use.
    pub session: SessionOptions,
    /// How the prompt is continued.
    pub generation: GenerationSettings,
    /// A continuation whose rank at the first step is wanted.
    pub rank: Option<String>,
    /// Where to write a trace, the tensors to this file and the rest beside it.
    pub trace: Option<PathBuf>,
    /// How audio, images and videos are processed.
    pub media: MediaOptions,
    /// Where to write what encoders get of them.
    pub dump_features: Option<PathBuf>,
    /// How the answer is spoken, where it is.
    pub(crate) voice: Option<VoiceOptions>,
}

impl RunOptions {
    /// This prompt, greedy, on the CPU.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            session: SessionOptions::default(),
            generation: GenerationSettings::default(),
            rank: None,
            trace: None,
            media: MediaOptions::default(),
            dump_features: None,
            voice: None,
        }
    }
}

/// What a run reports while it goes on.
pub enum RunEvent<'a> {
    /// Something worth a line.
    Note(&'a str),
    /// A token.
    Token(&'a RunToken),
    /// The answer was spoken.
    Spoken(&'a SpeakSummary),
}

/// Who hears of the tokens of a run; what it returns as an error ends the run.
pub type Listener<'a> = dyn FnMut(RunEvent<'_>) -> Result<(), StepError> + Send + 'a;

/// Generates text from a pack.
///
/// # Errors
/// A pack that cannot be run or is damaged; a prompt that does not fit; too little memory; whatever
/// `listener` returns.
pub fn run(
    pack: &Pack,
    options: &RunOptions,
    stop: &CancelToken,
    progress: &dyn Progress,
    listener: &mut Listener<'_>,
) -> Result<RunSummary, StepError> {
    // what cannot be written is better found before the work than after it
    let trace = options.trace.as_deref().map(TraceFiles::create);
    let trace = trace.transpose()?;
    let session = Session::open_cancellable(pack, &options.session, stop)?;
    let text = session.text()?;
    let mut settings = options.generation.clone();
    let ranked = options
        .rank
        .as_ref()
        .map(|c| text.continuation(c))
        .transpose();
    settings.rank = ranked.map_err(SessionError::from)?;
    let mut prompt = session.install(|| prepare(&text, options, stop))?;
    // a model that does not speak says so before anything is computed
    let voice = options.voice.as_ref();
    let voice = voice
        .map(|voice| Voice::create(&session, voice))
        .transpose()?;
    let mut states = match &voice {
        Some(_) => Some(session.state_capture(&prompt.ids)?),
        None => None,
    };
    let mut recorder = trace.as_ref().map(|_| session.recorder()).transpose()?;
    if let Some(recorder) = &mut recorder
        && !prompt.media.is_empty()
    {
        describe(recorder, &prompt, &options.media);
    }

    let mut stream = Stream::new(listener, options.session.experts.is_some());
    let hooks = Hooks {
        sink: &mut stream,
        progress: &PhaseProgress(progress),
        recorder: recorder.as_mut(),
        states: states.as_mut(),
    };
    let generation = session.generate_media(&text, &prompt.ids, &prompt.media, &settings, hooks)?;
    stream.finish()?;
    prompt.media.drop_values();
    if let Some(voice) = voice {
        let states = states.map(StateCapture::into_states).unwrap_or_default();
        let script = SpeechScript {
            prompt: &prompt.ids,
            answer: &generation.ids,
            media: &prompt.media,
            states: &states,
        };
        let spoken = voice.speak(&session, script)?;
        listener(RunEvent::Spoken(&spoken))?;
    }
    if let (Some(files), Some(recorder)) = (trace, &recorder) {
        let checkpoint = RecordedFile::all_of(pack.manifest());
        let mut settings = serde_json::Map::new();
        if options.session.experts.is_some() {
            settings.insert(RESTRICTED.to_owned(), json!(true));
        }
        recorder.write_to(files, settings, &checkpoint)?;
    }
    Ok(summarize(&session, prompt.ids, generation))
}

/// Says in a trace how the media of its prompt were processed.
fn describe(recorder: &mut TraceRecorder, prompt: &TokenizedPrompt, options: &MediaOptions) {
    // the words of the reference script
    let recipe = match options.recipe {
        MediaRecipe::Transformers => "transformers",
        MediaRecipe::ModelCard => "readme",
    };
    recorder.describe("recipe", json!(recipe));
    recorder.describe("fps", json!(options.fps));
    let media: Vec<PromptMedia> = prompt.placed.iter().map(features::shown).collect();
    recorder.describe("media", json!(media));
    recorder.describe("prompt", json!(prompt.text));
}

/// The prompt as a model would get it. Reads the tokenizer, the chat template and media, no weights.
///
/// # Errors
/// Where the pack holds no tokenizer or template, or they do not take the prompt; where media cannot
/// be read, or the model does not take them.
pub fn print_prompt(
    pack: &Pack,
    options: &RunOptions,
    stop: &CancelToken,
) -> Result<RunPrompt, StepError> {
    let text = TextFrontend::load(pack).map_err(SessionError::from)?;
    let prompt = prepare(&text, options, stop)?;
    Ok(RunPrompt {
        format_version: RunPrompt::VERSION,
        generator: GENERATOR.to_owned(),
        text: prompt.text,
        ids: prompt.ids,
        media: prompt.placed.iter().map(features::shown).collect(),
    })
}

/// Tokenizes the prompt, processes its media, and writes what encoders get, where that is wanted.
fn prepare(
    text: &TextFrontend<'_>,
    options: &RunOptions,
    stop: &CancelToken,
) -> Result<TokenizedPrompt, StepError> {
    // what cannot be written is better found before the work than after it
    let dump = options.dump_features.as_deref().map(PendingFile::create);
    let dump = dump.transpose()?;
    let prompt = text.tokenize_with(&options.prompt, &options.media, stop);
    let prompt = prompt.map_err(SessionError::from)?;
    if let Some(file) = dump {
        features::write(file, &prompt)?;
    }
    Ok(prompt)
}

/// A session's phases as phases of a step.
struct PhaseProgress<'p>(&'p dyn Progress);

impl SessionProgress for PhaseProgress<'_> {
    fn begin(&self, phase: Phase) {
        match phase {
            Phase::Preload { bytes } => self.0.start("loading", bytes),
            Phase::Prefill { layers } => {
                self.0
                    .start_counting("loading and prefilling", layers, "layer");
            }
            Phase::Batch { prompts } => self.0.start_counting("generating", prompts, "prompt"),
        }
    }

    fn advance(&self, more: u64) {
        self.0.advance(more);
    }

    fn end(&self) {
        self.0.finish();
    }
}
