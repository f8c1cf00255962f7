//! The front door: a pack and a prompt in, tokens out.
//!
//! A [`Session`] is an open pack, a device, threads and a memory budget. It opens a model with room
//! for so many positions ([`Session::with_model`]), or does everything for one prompt
//! ([`Session::generate`]). Between text and token ids stands a [`TextFrontend`], made of the files
//! that the pack keeps of its checkpoint.
//!
//! The front page of the crate has an example.
//!
//! Several prompts through one model, whose weights stay loaded:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use segpack_manifests::Pack;
//! # use segpack_runtime_min::session::{Logits, Reservation, Session, SessionError, SessionOptions};
//! # use segpack_runtime_min::Unobserved;
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tiny.segpack");
//! # let pack = Pack::open(folder.as_ref())?;
//! # let session = Session::open(&pack, &SessionOptions::default())?;
//! let reservation = Reservation { positions: 16, longest_pass: 3 };
//! let last = session.with_model(reservation, |model| {
//!     for prompt in [[5, 9, 200], [7, 8, 31]] {
//!         model.reset();
//!         model.forward(&prompt, Logits::Last, &mut Unobserved)?;
//!     }
//!     Ok::<_, SessionError>(model.positions())
//! })?;
//! assert_eq!(last, 3);
//! # Ok(())
//! # }
//! ```

mod batch;
#[cfg(target_os = "linux")]
mod cgroup;
mod context;
mod device;
mod error;
mod generation;
mod host_memory;
mod media;
mod model;
mod narrator;
mod speech;
mod tokens;
mod vocoder;

use std::sync::LazyLock;
use std::time::Instant;

use rayon::ThreadPool;
use segpack_formats::io::CancelToken;
use segpack_manifests::{Pack, PackReader};

use self::device::OpenDevice;
use crate::error::RunError;
use crate::models::decoder::{RunSettings, text_decoder};
use crate::processing::{MediaFeatures, PromptError, TextFrontend};
use crate::tensor::Compute;
use crate::trace::TraceRecorder;
use crate::weights::ChecksumPolicy;

pub use self::batch::{BatchOutcome, BatchPrompt, BatchRoom, BatchSink, BatchText, SequenceNeed};
pub use self::context::{ASSUMED_CONTEXT, ContextLength};
pub use self::device::{DeviceChoice, UnknownDevice};
pub use self::error::SessionError;
pub use self::generation::{Generation, Hooks, Phase, SessionProgress};
pub use self::host_memory::available_memory;
pub use self::media::MediaObserver;
pub use self::model::Model;
pub use self::speech::{Speech, SpeechEnd, SpeechScript, SpeechSettings, StateCapture};
pub use self::tokens::{
    GenerationSettings, NamedCandidate, Note, RankedContinuation, Token, TokenSink,
};
pub use crate::generate::{CodeSink, Codes};
pub use crate::models::decoder::{
    ExpertChoice, Logits, LogitsVisitor, MediaInputs, SequenceId, SequenceTokens,
};
pub use crate::models::talker::{
    AcceptedStates, CodeSampling, ForcedFrame, SpeechObserver, SpeechSampling, TalkerPrompt,
};
pub use segpack_manifests::folder::source_file;

/// How a session runs models.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SessionOptions {
    /// Where models run.
    pub device: DeviceChoice,
    /// GPU memory to use, in bytes. `None`: all that is free.
    pub device_memory: Option<u64>,
    /// Memory budget of the process.
    pub memory: MemoryLimit,
    /// Upper limit of the expert cache. `None`: as large as the memory budget allows.
    pub expert_cache: Option<ExpertCacheSize>,
    /// Precision of activations.
    pub compute: Compute,
    /// When the digests of segments are compared.
    pub check: ChecksumPolicy,
    /// Experts that the routers of the text model may choose, their probabilities taken over those;
    /// on the CPU alone. What runs so is not the model that was packed. `None`: all.
    pub experts: Option<ExpertChoice>,
    /// Threads that compute. `None`: those of the rayon pool that the caller is in.
    pub threads: Option<usize>,
}

/// Memory budget of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MemoryLimit {
    /// On the CPU seven eighths of what is available when the session is opened. With a GPU, which
    /// holds the weights itself, as much as the model needs.
    #[default]
    Available,
    /// So many bytes. With a GPU, what is left of them holds experts that the GPU has no room for.
    Bytes(u64),
    /// As much as the model needs.
    Unlimited,
}

/// Upper limit of the expert cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertCacheSize {
    /// A number of experts.
    Experts(u64),
    /// So many bytes, of the pack's largest expert.
    Bytes(u64),
}

impl ExpertCacheSize {
    /// Slots of this size, for the experts of this pack.
    fn slots(self, pack: &Pack) -> u64 {
        let experts = pack
            .manifest()
            .segments
            .iter()
            .filter(|s| s.id.contains(".experts."));
        let largest = experts.map(|s| s.raw_length).max().unwrap_or(1);
        match self {
            Self::Experts(n) => n,
            Self::Bytes(bytes) => bytes / largest.max(1),
        }
    }
}

/// What a model reserves when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    /// Positions of keys and values: the prompt and the tokens that follow it.
    pub positions: usize,
    /// Tokens of the longest forward pass: those of the longest prompt.
    pub longest_pass: usize,
}

/// A stop that nobody asks for.
static NEVER: LazyLock<CancelToken> = LazyLock::new(CancelToken::default);

/// An open pack, and where and how to run its model.
#[derive(Debug)]
pub struct Session<'p> {
    pack: &'p Pack,
    reader: PackReader<'p>,
    device: OpenDevice,
    options: SessionOptions,
    /// Bytes; the limit of the options, resolved.
    memory: Option<u64>,
    pool: Option<ThreadPool>,
    cancel: &'p CancelToken,
}

impl<'p> Session<'p> {
    /// Opens the device and starts the threads. No weight is read.
    ///
    /// # Errors
    /// `Run` where the device or the threads cannot be had; `DeviceMemoryOnCpu`; `Kernels` where
    /// the environment names an instruction set that this processor does not have.
    pub fn open(pack: &'p Pack, options: &SessionOptions) -> Result<Self, SessionError> {
        Self::open_cancellable(pack, options, &NEVER)
    }

    /// As [`open`](Self::open); all work of the session ends soon after `cancel` is requested.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_cancellable(
        pack: &'p Pack,
        options: &SessionOptions,
        cancel: &'p CancelToken,
    ) -> Result<Self, SessionError> {
        let pool = options.threads.map(thread_pool).transpose()?;
        let device = OpenDevice::open(options)?;
        let memory = match options.memory {
            MemoryLimit::Available if device.is_cpu() => available_memory(),
            MemoryLimit::Available | MemoryLimit::Unlimited => None,
            MemoryLimit::Bytes(bytes) => Some(bytes),
        };
        Ok(Self {
            pack,
            reader: PackReader::new(pack),
            device,
            options: options.clone(),
            memory,
            pool,
            cancel,
        })
    }

    /// The pack.
    pub fn pack(&self) -> &'p Pack {
        self.pack
    }

    /// What reports call the device: `cpu`, or `cuda:` with its number and name.
    pub fn device_name(&self) -> String {
        self.device.name()
    }

    /// Precision of activations.
    pub fn compute(&self) -> Compute {
        self.options.compute
    }

    /// Tokenizer, chat template and end-of-text ids of the checkpoint.
    ///
    /// # Errors
    /// As [`TextFrontend::load`].
    pub fn text(&self) -> Result<TextFrontend<'p>, SessionError> {
        Ok(TextFrontend::load(self.pack)?)
    }

    /// Positions that the text model was made for.
    ///
    /// # Errors
    /// `Run` where the numbers of the model cannot be used.
    pub fn context_length(&self) -> Result<ContextLength, SessionError> {
        Ok(ContextLength::of(&text_decoder(self.pack)?.settings))
    }

    /// Runs `work` on the session's threads.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Opens the model and hands it to `work`, on the session's threads. Weights that it loads stay
    /// until `work` returns.
    ///
    /// # Errors
    /// What [`model`](Self::model) and `work` return.
    pub fn with_model<T: Send, E: From<SessionError> + Send>(
        &self,
        reservation: Reservation,
        work: impl FnOnce(&mut Model<'_>) -> Result<T, E> + Send,
    ) -> Result<T, E> {
        self.install(|| work(&mut self.model(reservation)?))
    }

    /// As [`with_model`](Self::with_model), where others hold so many bytes of the memory budget: what
    /// [`encode`](Self::encode) returned.
    ///
    /// # Errors
    /// As [`with_model`](Self::with_model).
    pub fn with_model_beside<T: Send, E: From<SessionError> + Send>(
        &self,
        reservation: Reservation,
        taken: u64,
        work: impl FnOnce(&mut Model<'_>) -> Result<T, E> + Send,
    ) -> Result<T, E> {
        self.install(|| work(&mut self.model_beside(reservation, taken)?))
    }

    /// Opens the model, to be used on threads of the caller's choice: see
    /// [`install`](Self::install). No weight is read; a missing one is found here.
    ///
    /// # Errors
    /// `Run`: the pack does not hold what the model needs, or the memory budget is too small.
    pub fn model(&self, reservation: Reservation) -> Result<Model<'_>, SessionError> {
        self.model_beside(reservation, 0)
    }

    /// As [`model`](Self::model), where others hold so many bytes of the memory budget.
    fn model_beside(
        &self,
        reservation: Reservation,
        taken: u64,
    ) -> Result<Model<'_>, SessionError> {
        let opened = self.open_model(RunSettings {
            positions: reservation.positions,
            longest_pass: reservation.longest_pass,
            ..self.settings(taken)
        });
        opened.map_err(|e| self.beside(e, taken))
    }

    /// An error of a network that was given what others leave of the memory budget, as one of the
    /// whole budget.
    fn beside(&self, error: SessionError, taken: u64) -> SessionError {
        match error {
            SessionError::Run(RunError::Memory { memory, minimum }) => RunError::Memory {
                memory: self.memory.unwrap_or(memory),
                minimum: minimum.saturating_add(taken),
            }
            .into(),
            other => other,
        }
    }

    fn open_model(&self, settings: RunSettings) -> Result<Model<'_>, SessionError> {
        let (reader, device) = (&self.reader, &self.device);
        let experts = self.options.experts.as_ref();
        let model = Model::new(reader, device, experts, settings, self.cancel);
        Ok(model?)
    }

    /// What every model of the session may use, where others hold so many bytes of the memory budget.
    fn settings(&self, taken: u64) -> RunSettings {
        RunSettings {
            memory: self.memory.map(|memory| memory.saturating_sub(taken)),
            expert_slots: self.options.expert_cache.map(|size| size.slots(self.pack)),
            check: self.options.check,
            ..RunSettings::default()
        }
    }

    /// Continues a prompt: opens a model that fits it, loads what is needed, generates.
    ///
    /// # Errors
    /// A pack that cannot be run or is damaged; a prompt that is empty or outside the vocabulary;
    /// too little memory; sampling settings out of range.
    pub fn generate(
        &self,
        text: &TextFrontend<'_>,
        prompt: &[u32],
        settings: &GenerationSettings,
        sink: &mut dyn TokenSink,
    ) -> Result<Generation, SessionError> {
        self.generate_observed(text, prompt, settings, Hooks::new(sink))
    }

    /// As [`generate`](Self::generate), with progress, and with a trace of every intermediate
    /// result where there is a recorder (made by [`recorder`](Self::recorder)).
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_observed(
        &self,
        text: &TextFrontend<'_>,
        prompt: &[u32],
        settings: &GenerationSettings,
        hooks: Hooks<'_>,
    ) -> Result<Generation, SessionError> {
        self.generate_media(text, prompt, &MediaFeatures::default(), settings, hooks)
    }

    /// As [`generate_observed`](Self::generate_observed), of a prompt whose placeholders stand for
    /// audio, images and videos: as many as these features have rows, in their order. The encoders
    /// run first, within the same memory budget, and give their memory back before the decoder's is
    /// taken.
    ///
    /// # Errors
    /// As [`generate`](Self::generate) and [`encode`](Self::encode).
    pub fn generate_media(
        &self,
        text: &TextFrontend<'_>,
        prompt: &[u32],
        media: &MediaFeatures,
        settings: &GenerationSettings,
        mut hooks: Hooks<'_>,
    ) -> Result<Generation, SessionError> {
        let began = Instant::now();
        let inputs = match (media.is_empty(), &mut hooks.recorder) {
            (true, _) => None,
            (false, None) => Some(self.encode(prompt, media, &mut ())?),
            (false, Some(recorder)) => {
                recorder.media(media);
                Some(self.encode(prompt, media, *recorder)?)
            }
        };
        // the caller holds the features meanwhile, and states that are kept
        let rows = inputs.as_ref().map_or(0, MediaInputs::bytes);
        let states = hooks.states.as_ref().map_or(0, |states| states.bytes());
        let taken = rows
            .saturating_add(media::bytes(media))
            .saturating_add(states)
            .saturating_add(self.draft_bytes(settings)?);
        let context = self.context_length()?;
        let notes = generation::notes(text, context, prompt.len());
        notes.iter().for_each(|note| hooks.sink.note(note));
        // a prompt beyond the model's context is run all the same, with a note
        let longest = context.positions().max(prompt.len());
        let reservation = Reservation {
            positions: prompt
                .len()
                .saturating_add(settings.max_new_tokens)
                .min(longest),
            longest_pass: prompt.len().max(settings.longest_draft() + 1),
        };
        let mut generation = self.install(|| {
            let mut model = self.model_beside(reservation, taken)?;
            text.check(model.facts().vocab).map_err(PromptError::from)?;
            if settings.preload {
                model.preload_with_progress(hooks.progress)?;
            }
            model.generate_since(began, text, (prompt, inputs.as_ref()), settings, hooks)
        })?;
        generation.notes = notes;
        Ok(generation)
    }

    /// Bytes of the logits of drafts, which a model that checks them holds beside the memory budget of
    /// [`with_model`](Self::with_model).
    ///
    /// # Errors
    /// `Run` where the pack's model cannot be run.
    pub fn draft_bytes(&self, settings: &GenerationSettings) -> Result<u64, SessionError> {
        let row = text_decoder(self.pack)?.facts.vocab.saturating_mul(4);
        Ok(row.saturating_mul(settings.longest_draft() as u64))
    }

    /// Records what this session computes.
    ///
    /// # Errors
    /// `Run` where the pack's model cannot be run.
    pub fn recorder(&self) -> Result<TraceRecorder, SessionError> {
        let facts = text_decoder(self.pack)?.facts;
        Ok(TraceRecorder::new(self.options.compute, &facts))
    }
}

/// Runs `work` on so many threads of its own.
///
/// # Errors
/// `Threads` where they cannot be started.
pub fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> Result<T, RunError> {
    Ok(thread_pool(threads)?.install(work))
}

fn thread_pool(threads: usize) -> Result<ThreadPool, RunError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|e| RunError::Threads {
        threads,
        source: std::io::Error::other(e),
    })
}
