//! One frame after the other.

use std::time::Instant;

use segpack_formats::io::{CancelToken, to_usize};
use segpack_manifests::PackReader;
use segpack_manifests::families::{SharedExpertOptions, SpeechFacts};
use segpack_manifests::names::Component;

use crate::error::RunError;
use crate::models::decoder::executor::StateAndLogits;
use crate::models::decoder::{
    Backend, Decoder, DecoderModel, DecoderSpec, Ends, Observer, RunSettings, RunStats, Unobserved,
};

use super::device::{FrameInput, SpeechBackend};
use super::scores::CodeSampler;
use crate::generate::LogitsError;

/// Hears of what is computed frame by frame, row-major.
pub trait SpeechObserver {
    /// Whether it does anything with what it is shown, or forces anything. If not, a device may make
    /// frames as a whole, and nothing of them is shown but the scores of their first codes.
    fn observes(&self) -> bool {
        true
    }
    /// What the talker begins with, before its layers run.
    fn prompt(&mut self, _: &TalkerPrompt) {}
    /// Who hears of the layers of the talker's prompt.
    fn layers(&mut self) -> Option<&mut dyn Observer> {
        None
    }
    /// Rows that the talker begins with in place of its own, `[rows, hidden]`.
    fn forced_prompt(&mut self) -> Option<Vec<f32>> {
        None
    }
    /// What a frame, from 0 on, goes on with in place of what was computed; while there is such, no
    /// end is.
    fn forced(&mut self, _frame: usize) -> Option<ForcedFrame> {
        None
    }
    /// Logits and scores that the first code of a frame is chosen from, `[vocabulary]` each.
    fn first(&mut self, _logits: &[f32], _scores: &[f32]) {}
    /// The state that the residual codes are predicted from, `[hidden]`.
    fn hidden(&mut self, _: &[f32]) {}
    /// Logits of a residual code, `[codes]`.
    fn residual(&mut self, _: &[f32]) {}
    /// What the talker takes in next, `[hidden]`.
    fn next(&mut self, _: &[f32]) {}
}

impl SpeechObserver for () {
    fn observes(&self) -> bool {
        false
    }
}

/// What a frame goes on with in place of what was computed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ForcedFrame {
    /// `[groups]`.
    pub codes: Vec<u32>,
    /// `[hidden]`: what the residual codes are predicted from.
    pub hidden: Option<Vec<f32>>,
    /// `[hidden]`: what the talker takes in next.
    pub next: Option<Vec<f32>>,
}

/// What the talker begins with.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct TalkerPrompt {
    /// `[rows]`, the ids that positions go by.
    pub ids: Vec<u32>,
    /// `[rows, hidden]`.
    pub embeds: Vec<f32>,
    /// Time, height and width of each row.
    pub places: Vec<[f32; 3]>,
    /// `[steps, hidden]`: the text that is added to the input of each step.
    pub trailing: Vec<f32>,
    /// `[hidden]`: what is added after it.
    pub tts_pad: Vec<f32>,
}

/// The codes of a frame, `[groups]`, and the sum of their embeddings, `[hidden]`.
type Frame = (Vec<u32>, Vec<f32>);

/// The codes of a frame, `[groups]`, and state and logits of the talker's step after it.
type WholeFrame = (Vec<u32>, StateAndLogits);

/// The talker and its code predictor.
pub(crate) struct Talker<'a, B: Backend> {
    facts: SpeechFacts,
    body: Decoder<'a, B>,
    predictor: Decoder<'a, B>,
}

/// The talker's decoder.
fn talker_model(facts: &SpeechFacts) -> Result<DecoderModel, RunError> {
    let mut spec = DecoderSpec::from_facts(&facts.talker)?;
    spec.mrope_section = Some(facts.mrope_section.map(to_usize));
    spec.options.shared_expert = SharedExpertOptions::of(facts.shared_intermediate, true);
    spec.ends = Ends::Codes;
    Ok(DecoderModel {
        has_experts: vec![true; spec.layers],
        facts: facts.talker.clone(),
        spec,
    })
}

/// The predictor's: an embedding and a head for each residual code of a frame.
fn predictor_model(facts: &SpeechFacts) -> Result<DecoderModel, RunError> {
    let mut spec = DecoderSpec::from_facts(&facts.predictor)?;
    spec.ends = Ends::Groups(facts.groups as usize - 1);
    Ok(DecoderModel {
        has_experts: vec![false; spec.layers],
        facts: facts.predictor.clone(),
        spec,
    })
}

/// What both decoders are opened with.
struct Opening<'a, 'b, B> {
    source: &'a PackReader<'a>,
    backend: B,
    facts: &'b SpeechFacts,
    settings: RunSettings,
    stop: &'a CancelToken,
}

impl<'a, B: Backend + Clone> Opening<'a, '_, B> {
    /// The predictor, where others hold so many bytes.
    fn predictor(&self, taken: u64) -> Result<Decoder<'a, B>, RunError> {
        let (backend, settings) = self.backend.clone().beside(self.settings, taken)?;
        let settings = RunSettings {
            positions: self.facts.groups as usize,
            longest_pass: 2,
            ..settings
        };
        let is_it = |c: &Component| *c == Component::TalkerCodePredictor;
        let model = predictor_model(self.facts)?;
        Decoder::of(self.source, backend, model, is_it, (settings, self.stop))
    }

    /// The talker, beside the predictor.
    fn body(&self, predictor: &Decoder<'a, B>) -> Result<Decoder<'a, B>, RunError> {
        let taken = predictor.held();
        let (backend, settings) = self.backend.clone().beside(self.settings, taken)?;
        let is_it = |c: &Component| *c == Component::TalkerText;
        let model = talker_model(self.facts)?;
        let body = Decoder::of(self.source, backend, model, is_it, (settings, self.stop));
        body.map_err(|e| beside::<B>(e, taken))
    }
}

impl<'a, B: Backend + Clone> Talker<'a, B> {
    /// Prepares to run both. No weight is read; a missing one is found here. The predictor runs many
    /// times for each frame, so its weights stay in memory where that leaves enough for the talker,
    /// which has the rest of the budget.
    ///
    /// # Errors
    /// `Unsuitable` names what the pack lacks; `Memory` and `DeviceMemory` say how much would do.
    pub(crate) fn new(
        source: &'a PackReader<'a>,
        backend: &B,
        facts: &SpeechFacts,
        settings: RunSettings,
        stop: &'a CancelToken,
    ) -> Result<Self, RunError> {
        // before the first of them takes any memory
        let (backend, settings) = backend.clone().beside(settings, 0)?;
        let opening = Opening {
            source,
            backend,
            facts,
            settings,
            stop,
        };
        let mut predictor = opening.predictor(0)?;
        let body = match opening.body(&predictor) {
            Err(e) if B::is_too_little(&e) && predictor.is_resident() => {
                let others = budget_of(&e).saturating_sub(predictor.demand().min());
                drop(predictor);
                predictor = opening.predictor(others)?;
                opening.body(&predictor)?
            }
            body => body?,
        };
        Ok(Self {
            facts: facts.clone(),
            body,
            predictor,
        })
    }
}

/// The budget that an error says is too small.
fn budget_of(error: &RunError) -> u64 {
    match error {
        RunError::Memory { memory, .. } | RunError::DeviceMemory { memory, .. } => *memory,
        _ => 0,
    }
}

/// An error that counts what the predictor takes of the budget.
fn beside<B: Backend>(error: RunError, taken: u64) -> RunError {
    match error {
        error if !B::is_too_little(&error) => error,
        RunError::DeviceMemory { memory, minimum } => RunError::DeviceMemory {
            memory: memory.saturating_add(taken),
            minimum: minimum.saturating_add(taken),
        },
        RunError::Memory { memory, minimum } => RunError::Memory {
            memory: memory.saturating_add(taken),
            minimum: minimum.saturating_add(taken),
        },
        other => other,
    }
}

impl<B: SpeechBackend> Talker<'_, B> {
    /// Loads the weights that have room, of both.
    pub(crate) fn preload(&mut self) -> Result<(), RunError> {
        self.predictor.preload(&mut |_| {})?;
        self.body.preload(&mut |_| {})?;
        B::prepare_frames(&mut self.body, &mut self.predictor)
    }

    /// What the talker did so far, and what the predictor did.
    pub(crate) fn stats(&self) -> [RunStats; 2] {
        [self.body.stats(), self.predictor.stats()]
    }

    /// Rows of the talker's own embedding, `[codes, hidden]`.
    pub(crate) fn embed(&mut self, codes: &[u32]) -> Result<Vec<f32>, RunError> {
        self.body.embed_by(0, codes)
    }

    /// Runs the prompt, `[tokens, hidden]`; state and logits of its last token. `places` of its
    /// tokens where they do not simply follow each other.
    pub(crate) fn prefill(
        &mut self,
        rows: Vec<f32>,
        places: Option<Vec<[f32; 3]>>,
        observer: &mut dyn Observer,
    ) -> Result<(Vec<f32>, Vec<f32>), RunError> {
        self.body.reset();
        self.body.forward_rows(rows, places, 0, observer)
    }

    /// Runs what follows a frame.
    pub(crate) fn step(&mut self, row: Vec<f32>) -> Result<(Vec<f32>, Vec<f32>), RunError> {
        self.body.forward_rows(row, None, 0, &mut Unobserved)
    }

    /// The residual codes of a frame, given the talker's last state after its final norm and the
    /// first code. The cache is new for each frame. Returns the codes, `[groups]`, and the sum of
    /// all their embeddings.
    pub(crate) fn frame(
        &mut self,
        hidden: &[f32],
        (first, forced): (u32, Option<&[u32]>),
        choice: &mut CodeSampler,
        observer: &mut dyn SpeechObserver,
    ) -> Result<Result<Frame, LogitsError>, RunError> {
        self.predictor.reset();
        let mut sum = self.embed(&[first])?;
        let (mut codes, mut rows) = (vec![first], hidden.to_vec());
        rows.extend_from_slice(&sum);
        for group in 0..self.facts.groups as usize - 1 {
            let (_, logits) = self
                .predictor
                .forward_rows(rows, None, group, &mut Unobserved)?;
            observer.residual(&logits);
            let code = match choice.residual(&logits) {
                Ok(code) => code,
                Err(wrong) => return Ok(Err(wrong)),
            };
            codes.push(code);
            let code = forced.map_or(code, |forced| forced[group + 1]);
            rows = self.predictor.embed_by(group, &[code])?;
            sum.iter_mut().zip(&rows).for_each(|(sum, x)| *sum += x);
        }
        Ok(Ok((codes, sum)))
    }

    /// A frame and the talker's step after it, where the device makes both as a whole: given the
    /// talker's last state, the first code, and the text that is added to what the talker takes in
    /// next. `None`, and nothing is run, where it does not.
    pub(crate) fn whole_frame(
        &mut self,
        (state, first): (&[f32], u32),
        text: &[f32],
        choice: &mut CodeSampler,
    ) -> Result<Option<Result<WholeFrame, LogitsError>>, RunError> {
        let began = Instant::now();
        let draws = choice.residual_draws(self.facts.groups as usize - 1);
        let input = FrameInput {
            state,
            first,
            draws: &draws,
            text,
        };
        let Some(output) = B::frame(&mut self.body, &mut self.predictor, &input)? else {
            return Ok(None);
        };
        self.body.count_time(began.elapsed());
        Ok(Some(choice.accept(&output.residual).map(|residual| {
            let codes = std::iter::once(first).chain(residual).collect();
            (codes, (output.state, output.logits))
        })))
    }
}
