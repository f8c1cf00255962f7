//! Speech: a prompt and its answer become codes of sound, frame by frame.
//!
//! The thinker is not needed for it: of a text the talker sees nothing but word embeddings, which
//! are read row by row, and of media the states that [`Hooks::states`](super::Hooks::states) kept
//! while the answer was generated.

use segpack_formats::io::{CancelToken, to_usize};
use segpack_manifests::PackModel;
use segpack_manifests::families::SpeechFacts;

use super::device::OpenDevice;
use super::{Session, SessionError, media};
use crate::error::{RunError, SpeechError};
use crate::generate::{CodeSink, Codes};
use crate::models::decoder::executor::StateAndLogits;
use crate::models::decoder::{Observer, RunSettings, RunStats, Unobserved, text_decoder};
use crate::models::omni;
use crate::models::talker::{
    AcceptedStates, CodeSampler, ForcedFrame, Projections, Row, SpeechBackend, SpeechObserver,
    SpeechSampling, Talker, TalkerPrompt, TalkerScript, ThinkerEmbedding,
};
use crate::ops::CpuOps;
use crate::processing::MediaFeatures;
use crate::weights::program_bytes;

/// How to speak.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SpeechSettings {
    /// A speaker of the checkpoint; case does not matter.
    pub speaker: String,
    /// Maximum number of first codes that the talker chooses; the last becomes no frame.
    pub max_codes: usize,
    /// How much less likely a first code is that was chosen before.
    pub repetition_penalty: f32,
    /// Random sampling. `None`: greedy, always the most likely code.
    pub sampling: Option<SpeechSampling>,
    /// Whether weights that have room are loaded before the first frame, and not when they are
    /// needed.
    pub preload: bool,
}

impl Default for SpeechSettings {
    /// Those of the official class, which samples.
    fn default() -> Self {
        Self {
            speaker: "Ethan".to_owned(),
            max_codes: 4096,
            repetition_penalty: 1.05,
            sampling: Some(SpeechSampling::default()),
            preload: false,
        }
    }
}

/// What is spoken: a prompt in ChatML and the answer to it.
#[derive(Debug, Clone, Copy)]
pub struct SpeechScript<'s> {
    /// The prompt, which ends in the model's own turn.
    pub prompt: &'s [u32],
    /// The tokens that the thinker generated, with the one that ended them. The last one is never
    /// spoken.
    pub answer: &'s [u32],
    /// The media of the prompt.
    pub media: &'s MediaFeatures,
    /// Their states: see [`StateCapture`].
    pub states: &'s AcceptedStates,
}

impl SpeechScript<'_> {
    /// Bytes of features and states, which whoever speaks holds meanwhile.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let states = self.states.rows.len() as u64 * 4;
        media::bytes(self.media).saturating_add(states)
    }
}

/// Why the talker stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpeechEnd {
    /// The end marker came.
    EndMarker,
    /// [`SpeechSettings::max_codes`] is reached.
    MaxCodes,
    /// The caller's function returned `Break`.
    Caller,
}

/// Speech as codes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Speech {
    /// `[groups, frames]`.
    pub codes: Codes,
    /// The first codes of all frames, and the one that became none.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub end: SpeechEnd,
    /// Rows of the talker's prompt.
    pub prompt_rows: usize,
    /// Bytes of word embeddings that were read of the thinker.
    pub embedding_bytes: u64,
    /// What the talker did, and what the predictor did. Frames that a GPU makes as a whole count as
    /// the talker's time.
    pub stats: [RunStats; 2],
}

/// Keeps the states of media while a prompt is run: what the talker takes of them.
#[derive(Debug, Clone)]
pub struct StateCapture {
    layer: usize,
    layers: usize,
    hidden: usize,
    states: AcceptedStates,
}

impl StateCapture {
    /// Takes the rows of the prompt's media out of the states of all tokens, `[tokens, hidden]`, that
    /// come from elsewhere.
    pub fn keep_all(&mut self, states: &[f32]) {
        self.keep(self.layer, states);
    }

    /// Bytes of the states, once they are kept.
    pub(super) fn bytes(&self) -> u64 {
        (self.states.tokens.len() * self.hidden * 4) as u64
    }

    /// What was kept.
    #[must_use]
    pub fn into_states(self) -> AcceptedStates {
        self.states
    }

    /// Takes the rows of the prompt's media out of those of all tokens.
    fn keep(&mut self, of_layer: usize, all: &[f32]) {
        let tokens = all.len() / self.hidden;
        let is_prompt = self.states.tokens.last().is_some_and(|last| *last < tokens);
        if of_layer == self.layer && is_prompt && self.states.rows.is_empty() {
            for at in &self.states.tokens {
                let row = &all[at * self.hidden..(at + 1) * self.hidden];
                self.states.rows.extend_from_slice(row);
            }
        }
    }
}

/// State 0 are the embeddings, k what is after k layers, the last one what is after the final norm.
impl Observer for StateCapture {
    fn observes(&self) -> bool {
        !self.states.tokens.is_empty()
    }

    fn embed(&mut self, x: &[f32]) {
        self.keep(0, x);
    }

    fn hidden(&mut self, layer: usize, x: &[f32]) {
        if layer + 1 < self.layers {
            self.keep(layer + 1, x);
        }
    }

    fn norm(&mut self, x: &[f32]) {
        self.keep(self.layers, x);
    }
}

/// As many as there are words and states were computed.
const FEW_ROWS: RunError = RunError::Internal("a projection gave fewer rows than it got");

/// The sides of the talker's prompt that come from the thinker's words and states.
struct TextSide {
    /// `[rows, hidden]` of the user's turns.
    user: Vec<f32>,
    /// `[tokens, hidden]` from the model's own turn on.
    spoken: Vec<f32>,
    /// `[hidden]` each: beginning, end and padding of the text.
    markers: [Vec<f32>; 3],
}

impl Session<'_> {
    /// What the model wants to know to speak.
    ///
    /// # Errors
    /// `Run`: it does not speak, or `config.json` cannot be used.
    pub fn speech_facts(&self) -> Result<SpeechFacts, SessionError> {
        let model = PackModel::read(self.pack).map_err(RunError::from)?;
        let facts = model.speech().map_err(RunError::from)?;
        Ok(facts.ok_or(RunError::Speech(SpeechError::NoTalker))?)
    }

    /// The id of a speaker.
    ///
    /// # Errors
    /// `Speaker` with the names that there are.
    pub fn speaker(&self, facts: &SpeechFacts, name: &str) -> Result<u32, SessionError> {
        let found = facts.speaker(name).ok_or_else(|| {
            let known: Vec<&str> = facts.speakers.iter().map(|(name, _)| &name[..]).collect();
            RunError::Speech(SpeechError::Speaker {
                seen: name.to_owned(),
                known: known.join(", "),
            })
        });
        Ok(found?)
    }

    /// Keeps what the talker takes of a prompt's media.
    ///
    /// # Errors
    /// As [`speech_facts`](Self::speech_facts); `Run` where the prompt cannot be spoken about.
    pub fn state_capture(&self, prompt: &[u32]) -> Result<StateCapture, SessionError> {
        let facts = self.speech_facts()?;
        let thinker = text_decoder(self.pack)?.facts;
        let media = self.media_facts()?.map(|m| m.tokens);
        let is_medium = |id: u32| media.is_some_and(|tokens| tokens.is_placeholder(id));
        let tokens = (0..prompt.len()).filter(|at| is_medium(prompt[*at]));
        Ok(StateCapture {
            layer: facts.accept_layer as usize,
            layers: thinker.layers as usize,
            hidden: to_usize(thinker.hidden_size),
            states: AcceptedStates {
                tokens: tokens.collect(),
                rows: Vec::new(),
            },
        })
    }

    /// Speaks: the talker and its predictor run on the session's device, within its memory budget;
    /// `sink` gets the codes of each frame as soon as they are there.
    ///
    /// # Errors
    /// `Run`: the model does not speak, has no such speaker, or the script cannot be spoken; the
    /// memory budget is too small; damage of the pack. `Logits`, `Sampling`.
    pub fn speak(
        &self,
        script: SpeechScript<'_>,
        settings: &SpeechSettings,
        sink: &mut dyn CodeSink,
    ) -> Result<Speech, SessionError> {
        self.speak_observed(script, settings, sink, &mut ())
    }

    /// As [`speak`](Self::speak), with intermediate results.
    ///
    /// # Errors
    /// As [`speak`](Self::speak).
    pub fn speak_observed(
        &self,
        script: SpeechScript<'_>,
        settings: &SpeechSettings,
        sink: &mut dyn CodeSink,
        observer: &mut (dyn SpeechObserver + Send),
    ) -> Result<Speech, SessionError> {
        self.install(|| self.speak_here(script, settings, sink, observer))
    }

    fn speak_here(
        &self,
        script: SpeechScript<'_>,
        settings: &SpeechSettings,
        sink: &mut dyn CodeSink,
        observer: &mut dyn SpeechObserver,
    ) -> Result<Speech, SessionError> {
        let facts = self.speech_facts()?;
        let speaker = self.speaker(&facts, &settings.speaker)?;
        let media = self.media_facts()?;
        let walked = TalkerScript::of(&facts, media.as_ref(), script.prompt, script.answer);
        let walked = walked.map_err(RunError::Speech)?;
        let mut choice =
            CodeSampler::new(facts.codes, settings.repetition_penalty, settings.sampling)?;
        let places = self.talker_places(&facts, &walked.ids, script.media)?;
        // words and states through the projections, on the CPU, whose memory is given back
        let ops = self.encoder_ops()?;
        let mut words = ThinkerEmbedding::find(&self.reader, &text_decoder(self.pack)?.facts)?;
        let text = self.text_side(&ops, &facts, script, &walked, &mut words)?;
        let taken = script.bytes().saturating_add(rows_bytes(&facts, &walked));
        let plan = SpeechPlan {
            facts: &facts,
            script: &walked,
            places,
            speaker,
            text,
            settings: RunSettings {
                positions: walked.rows().saturating_add(settings.max_codes),
                longest_pass: walked.rows(),
                ..self.settings(taken)
            },
            taken,
            max_codes: settings.max_codes,
            preload: settings.preload,
        };
        let spoken = match self.device.clone() {
            OpenDevice::Cpu(ops) => self.speak_on(&ops, plan, &mut choice, sink, observer)?,
            #[cfg(feature = "cuda")]
            OpenDevice::Cuda(cuda) => self.speak_on(&cuda, plan, &mut choice, sink, observer)?,
        };
        Ok(Speech {
            embedding_bytes: words.bytes_read,
            ..spoken
        })
    }

    fn speak_on<B: SpeechBackend + Clone>(
        &self,
        backend: &B,
        plan: SpeechPlan<'_>,
        choice: &mut CodeSampler,
        sink: &mut dyn CodeSink,
        observer: &mut dyn SpeechObserver,
    ) -> Result<Speech, SessionError> {
        let facts = plan.facts;
        let talker = Talker::new(&self.reader, backend, facts, plan.settings, self.cancel);
        let mut talker = talker.map_err(|e| self.beside(e.into(), plan.taken))?;
        if plan.preload {
            talker.preload()?;
        }
        let max_codes = plan.max_codes;
        let prompt = talker_prompt(&mut talker, plan)?;
        observer.prompt(&prompt);
        let mut speaking = Speaking {
            facts,
            talker: &mut talker,
            prompt: &prompt,
            choice,
            max_codes,
        };
        let (codes, tokens, end) = speaking.run(sink, observer)?;
        if codes.frames() == 0 {
            return Err(RunError::Speech(SpeechError::NoFrame).into());
        }
        Ok(Speech {
            codes,
            tokens,
            end,
            prompt_rows: prompt.ids.len(),
            embedding_bytes: 0,
            stats: talker.stats(),
        })
    }

    /// Where the rows of the talker's prompt are. Audio alone does not change that they follow each
    /// other; a sound within a video neither, as upstream does not tell the talker of it.
    fn talker_places(
        &self,
        facts: &SpeechFacts,
        ids: &[u32],
        media: &MediaFeatures,
    ) -> Result<Vec<[f32; 3]>, SessionError> {
        let has_grids = !media.images.grids.is_empty() || !media.videos.grids.is_empty();
        let of_thinker = self.media_facts()?.filter(|_| has_grids);
        let (Some(mut of_talker), false) = (of_thinker, media.use_audio_in_video) else {
            #[expect(clippy::cast_precision_loss, reason = "positions are f32, as in torch")]
            return Ok((0..ids.len()).map(|at| [at as f32; 3]).collect());
        };
        if let Some(audio) = &mut of_talker.tokens.audio {
            audio.row = facts.media.audio;
        }
        of_talker.tokens.image = facts.media.image;
        of_talker.tokens.video = facts.media.video;
        of_talker.vision.merge = facts.media.merge;
        of_talker.positions_per_second = Some(facts.media.positions_per_second);
        Ok(omni::layout(&of_talker, ids, media)?.positions)
    }

    /// Whether the projections fit in the memory budget, beside the program and what is projected.
    fn check_projections(
        &self,
        facts: &SpeechFacts,
        spoken: SpeechScript<'_>,
        script: &TalkerScript,
    ) -> Result<(), RunError> {
        let (program, manifest) = program_bytes(&self.reader, false);
        let parts = [
            manifest,
            spoken.bytes(),
            rows_bytes(facts, script),
            words_bytes(facts, script),
            Projections::bytes(facts),
        ];
        let minimum = parts.into_iter().fold(program, u64::saturating_add);
        match self.memory {
            Some(memory) if memory < minimum => Err(RunError::Memory { memory, minimum }),
            _ => Ok(()),
        }
    }

    fn text_side(
        &self,
        ops: &CpuOps,
        facts: &SpeechFacts,
        spoken: SpeechScript<'_>,
        script: &TalkerScript,
        words: &mut ThinkerEmbedding<'_>,
    ) -> Result<TextSide, SessionError> {
        let states = spoken.states;
        let outer = to_usize(facts.thinker_hidden);
        let (seen, wanted) = (states.rows.len() / outer.max(1), script.states());
        if seen != wanted || states.tokens.len() != wanted {
            return Err(RunError::Speech(SpeechError::States { seen, wanted }).into());
        }
        self.check_projections(facts, spoken, script)?;
        let projections = Projections::load(&self.reader, facts)?;
        let mut projected = Projected {
            words,
            projections: &projections,
            ops,
            stop: self.cancel,
        };
        let of_words = projected.text(&script.words())?;
        let of_states = projections.hidden(ops, &states.rows, self.cancel)?;
        let hidden = to_usize(facts.talker.hidden_size);
        let [mut of_words, mut of_states] =
            [&of_words, &of_states].map(|rows| rows.chunks_exact(hidden));
        let mut rows = Vec::new();
        for row in &script.user {
            let next = match row {
                Row::Word(_) => of_words.next(),
                Row::State(_) => of_states.next(),
            };
            rows.extend_from_slice(next.ok_or(FEW_ROWS)?);
        }
        let tokens = &facts.tokens;
        Ok(TextSide {
            user: rows,
            spoken: projected.text(&script.spoken)?,
            markers: [
                projected.text(&[tokens.tts_bos])?,
                projected.text(&[tokens.tts_eos])?,
                projected.text(&[tokens.tts_pad])?,
            ],
        })
    }
}

/// Bytes of the rows of the talker's prompt and of the text beside its frames, in f32; the prompt is
/// copied once.
fn rows_bytes(facts: &SpeechFacts, script: &TalkerScript) -> u64 {
    let rows = (script.rows() + script.spoken.len() + 4) as u64;
    rows.saturating_mul(facts.talker.hidden_size)
        .saturating_mul(8)
}

/// Bytes of the word embeddings of all rows at once, before they are projected, in f32.
fn words_bytes(facts: &SpeechFacts, script: &TalkerScript) -> u64 {
    let rows = (script.rows() + script.spoken.len()) as u64;
    rows.saturating_mul(facts.thinker_hidden).saturating_mul(4)
}

/// What the talker is given, and how it runs.
struct SpeechPlan<'p> {
    facts: &'p SpeechFacts,
    script: &'p TalkerScript,
    places: Vec<[f32; 3]>,
    speaker: u32,
    text: TextSide,
    settings: RunSettings,
    /// Bytes that others hold of the memory budget.
    taken: u64,
    max_codes: usize,
    preload: bool,
}

/// Words through the projection.
struct Projected<'p, 'w> {
    words: &'p mut ThinkerEmbedding<'w>,
    projections: &'p Projections,
    ops: &'p CpuOps,
    stop: &'p CancelToken,
}

impl Projected<'_, '_> {
    /// Rows of these tokens, `[ids, hidden]`.
    fn text(&mut self, ids: &[u32]) -> Result<Vec<f32>, RunError> {
        let rows = self.words.rows(ids, self.stop)?;
        self.projections.text(self.ops, &rows, self.stop)
    }
}

/// The turns of the user, then nine rows: the beginning of the model's turn, and the text's first
/// token beside the last of six control codes.
fn talker_prompt<B: SpeechBackend>(
    talker: &mut Talker<'_, B>,
    plan: SpeechPlan<'_>,
) -> Result<TalkerPrompt, RunError> {
    let SpeechPlan {
        facts,
        script,
        text,
        ..
    } = plan;
    let hidden = to_usize(facts.talker.hidden_size);
    let codes = &facts.codes;
    let control = talker.embed(&[
        codes.nothink,
        codes.think_bos,
        codes.think_eos,
        plan.speaker,
        codes.pad,
        codes.bos,
    ])?;
    let [bos, eos, pad] = &text.markers;
    let spoken = &text.spoken;
    let mut rows = spoken[..3 * hidden].to_vec();
    for row in [pad, pad, pad, pad, bos] {
        rows.extend_from_slice(row);
    }
    rows.extend_from_slice(&spoken[3 * hidden..4 * hidden]);
    let beside = rows[3 * hidden..].iter_mut().zip(&control);
    beside.for_each(|(row, code)| *row += code);
    let mut embeds = text.user;
    embeds.append(&mut rows);
    // the rest of the text, its end; upstream then moves the end, counted in generated tokens
    let mut trailing = spoken[4 * hidden..].to_vec();
    trailing.extend_from_slice(eos);
    let (entries, ends_at) = (trailing.len() / hidden, script.ends_at);
    for entry in ends_at..entries {
        let row = if entry == ends_at { eos } else { pad };
        trailing[entry * hidden..(entry + 1) * hidden].copy_from_slice(row);
    }
    Ok(TalkerPrompt {
        ids: script.ids.clone(),
        embeds,
        places: plan.places,
        trailing,
        tts_pad: pad.clone(),
    })
}

/// Whoever forces values was given their sizes before.
const NOT_FITTING: RunError = RunError::Internal("forced values are not of this talker");

/// The loop.
struct Speaking<'r, 's, B: SpeechBackend> {
    facts: &'r SpeechFacts,
    talker: &'r mut Talker<'s, B>,
    prompt: &'r TalkerPrompt,
    choice: &'r mut CodeSampler,
    max_codes: usize,
}

/// How the talker goes on after a frame.
enum AfterFrame {
    /// By this row, to which the text is still to be added.
    Row(Vec<f32>),
    /// It did.
    Step(StateAndLogits),
}

impl<B: SpeechBackend> Speaking<'_, '_, B> {
    fn run(
        &mut self,
        sink: &mut dyn CodeSink,
        observer: &mut dyn SpeechObserver,
    ) -> Result<(Codes, Vec<u32>, SpeechEnd), SessionError> {
        let prompt = self.prompt;
        let mut codes = Codes::new(self.facts.groups as usize);
        let mut tokens = Vec::new();
        let forced = observer.forced_prompt();
        let embeds = forced.unwrap_or_else(|| prompt.embeds.clone());
        if embeds.len() != prompt.embeds.len() {
            return Err(NOT_FITTING.into());
        }
        let places = Some(prompt.places.clone());
        let (mut hidden, mut logits) = match observer.layers() {
            Some(layers) => self.talker.prefill(embeds, places, layers)?,
            None => self.talker.prefill(embeds, places, &mut Unobserved)?,
        };
        let end = loop {
            let scores = self.choice.scores(&logits);
            observer.first(&logits, &scores);
            let chosen = self.choice.first(&scores)?;
            tokens.push(chosen);
            let forced = observer.forced(codes.frames());
            if forced.is_none() && chosen == self.facts.codes.eos {
                break SpeechEnd::EndMarker;
            }
            if forced.is_none() && tokens.len() >= self.max_codes {
                break SpeechEnd::MaxCodes;
            }
            let forced = forced.unwrap_or_default();
            let first = forced.codes.first().copied().unwrap_or(chosen);
            self.choice.note(first);
            // as a whole, or pass by pass
            let (frame, after) =
                match self.whole_frame(&hidden, chosen, codes.frames(), observer)? {
                    Some(whole) => whole,
                    None => self.frame(&hidden, (chosen, first), &forced, observer)?,
                };
            codes
                .push(&frame)
                .map_err(|_| RunError::Internal("a frame of another number of codes"))?;
            if sink.frame(&frame).is_break() {
                break SpeechEnd::Caller;
            }
            (hidden, logits) = match after {
                AfterFrame::Step(results) => results,
                AfterFrame::Row(row) => self.step(row, codes.frames() - 1, forced, observer)?,
            };
        };
        Ok((codes, tokens, end))
    }

    /// A frame and the step after it as a whole, where the device can do that and nobody needs
    /// anything in between.
    fn whole_frame(
        &mut self,
        hidden: &[f32],
        first: u32,
        number: usize,
        observer: &dyn SpeechObserver,
    ) -> Result<Option<(Vec<u32>, AfterFrame)>, SessionError> {
        if observer.observes() {
            return Ok(None);
        }
        let text = text_beside(self.prompt, number);
        let whole = self
            .talker
            .whole_frame((hidden, first), text, self.choice)?;
        let Some(frame) = whole else { return Ok(None) };
        let (frame, results) = frame?;
        Ok(Some((frame, AfterFrame::Step(results))))
    }

    /// A frame, pass by pass.
    fn frame(
        &mut self,
        hidden: &[f32],
        (chosen, first): (u32, u32),
        forced: &ForcedFrame,
        observer: &mut dyn SpeechObserver,
    ) -> Result<(Vec<u32>, AfterFrame), SessionError> {
        observer.hidden(hidden);
        let groups = self.facts.groups as usize;
        let residual = (forced.codes.len() == groups).then_some(&forced.codes[..]);
        let from = forced.hidden.as_deref().unwrap_or(hidden);
        if from.len() != hidden.len() {
            return Err(NOT_FITTING.into());
        }
        let frame = self
            .talker
            .frame(from, (first, residual), self.choice, observer)?;
        let (mut frame, next) = frame?;
        frame[0] = chosen;
        Ok((frame, AfterFrame::Row(next)))
    }

    /// The talker's step after a frame.
    fn step(
        &mut self,
        mut next: Vec<f32>,
        number: usize,
        forced: ForcedFrame,
        observer: &mut dyn SpeechObserver,
    ) -> Result<StateAndLogits, SessionError> {
        let text = text_beside(self.prompt, number);
        next.iter_mut().zip(text).for_each(|(next, x)| *next += x);
        observer.next(&next);
        if let Some(forced) = forced.next {
            next = forced;
        }
        Ok(self.talker.step(next)?)
    }
}

/// The text beside a frame, `[hidden]`, or what stands where there is none left.
fn text_beside(prompt: &TalkerPrompt, frame: usize) -> &[f32] {
    let width = prompt.tts_pad.len();
    let text = prompt.trailing.chunks_exact(width).nth(frame);
    text.unwrap_or(&prompt.tts_pad)
}
