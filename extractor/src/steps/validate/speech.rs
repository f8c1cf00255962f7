//! Compares a pack with a trace of spoken answers, stage by stage: once each stage with what the
//! reference had before it, so that a fault in one does not hide one in the next, and once from the
//! prompt on.

use std::ops::ControlFlow;

use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::documents::{ReferenceKind, Stage, ValidateReport, Verdict};
use segpack_runtime_min::models::code2wav::Chunks;
use segpack_runtime_min::processing::MediaFeatures;
use segpack_runtime_min::session::{
    AcceptedStates, Codes, ForcedFrame, GenerationSettings, Hooks, Session, SpeechObserver,
    SpeechScript, SpeechSettings, TalkerPrompt, Token,
};
use segpack_runtime_min::tensor::Compute;
use segpack_runtime_min::trace::{SpeechCase, SpeechTrace};
use segpack_runtime_min::{Observer, Routing};

use super::custody;
use super::media::{Allowed, Stages, compare_checkpoint, report_stages};
use super::wave::{self, WaveRows, recorded_codes};
use super::{ValidateSettings, empty_report};
use crate::steps::StepError;
use crate::work::Progress;

/// Differences that are allowed of rows of the talker's prompt, from recorded states.
const EMBEDS: f64 = 3e-5;
/// Of outputs of the talker's layers.
const LAYERS: f64 = 5e-4;
/// Of router probabilities, and of what the sigmoids are of.
const ROUTERS: f64 = 1e-4;
/// Of logits and scores.
const LOGITS: f64 = 2e-4;
/// Of states that residual codes are predicted from.
const HIDDEN: f64 = 5e-5;
/// Of logits of residual codes.
const PREDICTOR: f64 = 3e-4;

/// Compares all cases.
pub(super) fn against_speech(
    pack: &Pack,
    trace: &SpeechTrace,
    settings: &ValidateSettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<ValidateReport, StepError> {
    let mut report = empty_report(pack, ReferenceKind::Trace, trace.path(), trace.compute())?;
    report.level = Some("speech".to_owned());
    if settings.digests {
        custody::check(&mut report, trace.exported_from(), pack, || {
            compare_checkpoint(trace.checkpoint(), pack)
        });
        if report.verdict == Verdict::Foreign {
            return Ok(report);
        }
    }
    let mut options = settings.session.clone();
    options.compute = trace.compute();
    let session = Session::open_cancellable(pack, &options, stop)?;
    let run = SpeechRun {
        trace,
        session: &session,
        is_judged: trace.compute() == Compute::F32,
    };
    let mut stages = Stages::default();
    for case in trace.cases() {
        progress.note(&format!("spoken answer {}", case.number));
        run.forced(case, &mut stages)?;
        // elsewhere nothing but stages after recorded ones can be compared
        if run.is_judged {
            run.free(case, &mut stages)?;
        }
    }
    for case in trace.waves() {
        progress.note(&format!("sound {}", case.number));
        let rows = WaveRows::of_recorded(case.number, run.is_judged);
        wave::of_recorded_codes(&session, (&case.tensors, false), rows, &mut stages)?;
    }
    report.stages = stages.into_rows();
    report_stages(&mut report.findings, &report.stages);
    let is_inside = report.stages.iter().all(|row| row.ok);
    report.verdict = match (run.is_judged, is_inside) {
        (false, _) => Verdict::NotJudged,
        (true, true) => Verdict::Inside,
        (true, false) => Verdict::Outside,
    };
    report.ok = report.verdict != Verdict::Outside;
    Ok(report)
}

struct SpeechRun<'a> {
    trace: &'a SpeechTrace,
    session: &'a Session<'a>,
    is_judged: bool,
}

impl SpeechRun<'_> {
    fn settings(&self, case: &SpeechCase) -> SpeechSettings {
        let mut settings = SpeechSettings::default();
        settings.speaker.clone_from(&case.speaker);
        settings.max_codes = self.trace.talker_tokens();
        settings.repetition_penalty = self.trace.repetition_penalty();
        settings.sampling = None;
        settings
    }

    /// Every stage with what the reference had before it.
    fn forced(&self, case: &SpeechCase, stages: &mut Stages) -> Result<(), StepError> {
        let trace = &case.tensors;
        let media = trace.features(None)?;
        let states = self.recorded_states(case)?;
        let mut seen = Seen::new(Recorded::read(case)?);
        let script = SpeechScript {
            prompt: trace.ids(),
            answer: &case.answer,
            media: &media,
            states: &states,
        };
        let mut ignore = |_: &[u32]| ControlFlow::Continue(());
        let speech =
            self.session
                .speak_observed(script, &self.settings(case), &mut ignore, &mut seen)?;
        self.compare(case, &seen, &speech.codes.to_rows(), stages)?;
        let rows = WaveRows::of_recorded(case.number, self.is_judged);
        wave::of_recorded_codes(self.session, (trace, true), rows, stages)
    }

    /// The states of the prompt's media, out of those of all positions.
    fn recorded_states(&self, case: &SpeechCase) -> Result<AcceptedStates, StepError> {
        let trace = &case.tensors;
        let mut capture = self.session.state_capture(trace.ids())?;
        let accept = trace.floats("thinker.accept")?.unwrap_or_default();
        capture.keep_all(&accept);
        Ok(capture.into_states())
    }

    fn compare(
        &self,
        case: &SpeechCase,
        seen: &Seen,
        codes: &[u32],
        stages: &mut Stages,
    ) -> Result<(), StepError> {
        let trace = &case.tensors;
        let number = u32::try_from(case.number).ok();
        let mut rows = Rows {
            case,
            number,
            is_judged: self.is_judged,
            stages,
        };
        let axes = (0..3).flat_map(|axis| seen.prompt.places.iter().map(move |p| p[axis]));
        let axes: Vec<f32> = axes.collect();
        rows.compare(Stage::TalkerPositions, "talker.position_ids", &axes, 0.0)?;
        #[expect(clippy::cast_precision_loss, reason = "positions are f32, as in torch")]
        let tokens = seen.prompt.places.len() as f32;
        let delta = axes.iter().copied().fold(0.0, f32::max) + 1.0 - tokens;
        rows.compare(Stage::TalkerRopeDelta, "talker.rope_delta", &[delta], 0.0)?;
        rows.compare(
            Stage::TalkerEmbeds,
            "talker.embeds",
            &seen.prompt.embeds,
            EMBEDS,
        )?;
        rows.compare(
            Stage::TalkerTrailing,
            "talker.trailing",
            &seen.prompt.trailing,
            EMBEDS,
        )?;
        rows.compare(
            Stage::TalkerTrailing,
            "talker.tts_pad",
            &seen.prompt.tts_pad,
            EMBEDS,
        )?;
        for (layer, values) in seen.layers.hidden.iter().enumerate() {
            let name = format!("talker.layer.{layer}.hidden");
            rows.compare(Stage::TalkerLayers, &name, values, LAYERS)?;
        }
        for (layer, routing) in seen.layers.routing.iter().enumerate() {
            let name = format!("talker.layer.{layer}.router_probs");
            rows.compare(Stage::TalkerRouters, &name, &routing.probabilities, ROUTERS)?;
        }
        for (layer, values) in seen.layers.gates.iter().enumerate() {
            let name = format!("talker.layer.{layer}.shared_gate");
            rows.compare(Stage::TalkerSharedGates, &name, values, ROUTERS)?;
        }
        rows.compare(Stage::TalkerLogits, "talker.logits", &seen.logits, LOGITS)?;
        rows.compare(Stage::TalkerHidden, "talker.hidden", &seen.hidden, HIDDEN)?;
        rows.compare(Stage::TalkerNext, "talker.next_embeds", &seen.next, EMBEDS)?;
        rows.compare(
            Stage::PredictorLogits,
            "pred.logits",
            &seen.residual,
            PREDICTOR,
        )?;
        self.scores(case, seen, stages)?;
        experts(case, seen, stages)?;
        let wanted = trace.token_ids("talker.ids")?.unwrap_or_default();
        exact(Stage::TalkerIds, number, &seen.prompt.ids, &wanted, stages);
        let wanted = trace.token_ids("codes")?.unwrap_or_default();
        if self.is_judged {
            exact(Stage::ForcedCodes, number, codes, &wanted, stages);
        }
        Ok(())
    }

    /// Scores that are possible by their values, those that are not by where they are.
    fn scores(&self, case: &SpeechCase, seen: &Seen, stages: &mut Stages) -> Result<(), StepError> {
        let Some(wanted) = case.tensors.floats("talker.scores")? else {
            return Ok(());
        };
        let number = u32::try_from(case.number).ok();
        let seen = &seen.scores[..wanted.len().min(seen.scores.len())];
        exact(
            Stage::TalkerSuppressed,
            number,
            &suppressed(seen),
            &suppressed(&wanted),
            stages,
        );
        let both = seen.iter().zip(&wanted);
        let possible = both.filter(|(a, b)| **a != f32::NEG_INFINITY && **b != f32::NEG_INFINITY);
        let (seen, wanted): (Vec<f32>, Vec<f32>) = possible.unzip();
        let allowed = Allowed::max(self.is_judged.then_some(LOGITS));
        stages.compare(Stage::TalkerScores, number, &seen, &wanted, allowed);
        Ok(())
    }

    /// From the prompt on: the text, the codes.
    fn free(&self, case: &SpeechCase, stages: &mut Stages) -> Result<(), StepError> {
        let trace = &case.tensors;
        let number = u32::try_from(case.number).ok();
        let media = trace.features(None)?;
        let (answer, states) = match self.trace.is_text_given() {
            true => (case.answer.clone(), self.recorded_states(case)?),
            false => self.answer(case, &media)?,
        };
        if !self.trace.is_text_given() {
            exact(Stage::SpeechText, number, &answer, &case.answer, stages);
        }
        let script = SpeechScript {
            prompt: trace.ids(),
            answer: &answer,
            media: &media,
            states: &states,
        };
        let mut ignore = |_: &[u32]| ControlFlow::Continue(());
        let speech = self
            .session
            .speak(script, &self.settings(case), &mut ignore)?;
        let wanted = trace.token_ids("talker.tokens")?.unwrap_or_default();
        exact(Stage::SpeechTokens, number, &speech.tokens, &wanted, stages);
        let wanted = trace.token_ids("codes")?.unwrap_or_default();
        exact(
            Stage::SpeechCodes,
            number,
            &speech.codes.to_rows(),
            &wanted,
            stages,
        );
        if let Some(wanted) = trace.floats("wave")? {
            let codes = speech.codes.by_frame();
            let seen = wave::decode(self.session, codes, Chunks::default(), &mut ())?;
            let rows = WaveRows {
                number,
                is_judged: self.is_judged,
                stages: [Stage::SpeechWave, Stage::SpeechNoise],
            };
            rows.compare(&seen, &wanted, stages);
        }
        Ok(())
    }

    fn answer(
        &self,
        case: &SpeechCase,
        media: &MediaFeatures,
    ) -> Result<(Vec<u32>, AcceptedStates), StepError> {
        let text = self.session.text()?;
        let mut settings = GenerationSettings::default();
        settings.max_new_tokens = self.trace.text_tokens();
        settings.stop_ids = Some(vec![self.session.speech_facts()?.tokens.im_end]);
        let ids = case.tensors.ids();
        let mut capture = self.session.state_capture(ids)?;
        let mut ignore = |_: &Token<'_>| ControlFlow::Continue(());
        let mut hooks = Hooks::new(&mut ignore);
        hooks.states = Some(&mut capture);
        let generated = self
            .session
            .generate_media(&text, ids, media, &settings, hooks)?;
        Ok((generated.ids, capture.into_states()))
    }
}

/// Compares tensors of a case by name.
struct Rows<'r> {
    case: &'r SpeechCase,
    number: Option<u32>,
    is_judged: bool,
    stages: &'r mut Stages,
}

impl Rows<'_> {
    /// Some traces hold the first steps alone, or leave a tensor out.
    fn compare(
        &mut self,
        stage: Stage,
        name: &str,
        seen: &[f32],
        gate: f64,
    ) -> Result<(), StepError> {
        if let Some(wanted) = self.case.tensors.floats(name)? {
            let seen = &seen[..wanted.len().min(seen.len())];
            let allowed = Allowed::max(self.is_judged.then_some(gate));
            self.stages
                .compare(stage, self.number, seen, &wanted, allowed);
        }
        Ok(())
    }
}

/// Ids that have to be the same.
#[expect(
    clippy::cast_precision_loss,
    reason = "compared as the other stages are"
)]
fn exact(stage: Stage, number: Option<u32>, seen: &[u32], wanted: &[u32], stages: &mut Stages) {
    let [seen, wanted] =
        [seen, wanted].map(|ids| ids.iter().map(|id| *id as f32).collect::<Vec<_>>());
    stages.compare(stage, number, &seen, &wanted, Allowed::max(Some(0.0)));
}

/// 1 where a score is impossible.
fn suppressed(scores: &[f32]) -> Vec<u32> {
    let impossible = |score: &f32| u32::from(*score == f32::NEG_INFINITY);
    scores.iter().map(impossible).collect()
}

/// The sets of experts, whatever their order is.
fn experts(case: &SpeechCase, seen: &Seen, stages: &mut Stages) -> Result<(), StepError> {
    let number = u32::try_from(case.number).ok();
    for (layer, routing) in seen.layers.routing.iter().enumerate() {
        let name = format!("talker.layer.{layer}.topk_ids");
        let Some(shape) = case.tensors.shape(&name) else {
            continue;
        };
        let wanted = case.tensors.token_ids(&name)?.unwrap_or_default();
        let width = shape.last().copied().unwrap_or(1).max(1);
        let [seen, wanted] = [&routing.ids, &wanted].map(|ids| sorted_rows(ids, width));
        exact(Stage::TalkerExperts, number, &seen, &wanted, stages);
    }
    Ok(())
}

fn sorted_rows(ids: &[u32], width: usize) -> Vec<u32> {
    let mut ids = ids.to_vec();
    ids.chunks_mut(width).for_each(<[u32]>::sort_unstable);
    ids
}

/// What every frame goes on with.
struct Recorded {
    codes: Codes,
    embeds: Option<Vec<f32>>,
    hidden: Option<Vec<f32>>,
    next: Option<Vec<f32>>,
}

impl Recorded {
    fn read(case: &SpeechCase) -> Result<Self, StepError> {
        let trace = &case.tensors;
        Ok(Self {
            codes: recorded_codes(trace)?,
            embeds: trace.floats("talker.embeds")?,
            hidden: trace.floats("talker.hidden")?,
            next: trace.floats("talker.next_embeds")?,
        })
    }

    /// A row of what has one for each frame.
    fn row(&self, of: Option<&Vec<f32>>, frame: usize) -> Option<Vec<f32>> {
        let values = of?;
        let width = values.len() / self.codes.frames().max(1);
        values
            .get(frame * width..(frame + 1) * width)
            .map(<[f32]>::to_vec)
    }
}

/// What was computed.
struct Seen {
    recorded: Recorded,
    prompt: TalkerPrompt,
    layers: Layers,
    logits: Vec<f32>,
    scores: Vec<f32>,
    hidden: Vec<f32>,
    residual: Vec<f32>,
    next: Vec<f32>,
}

impl Seen {
    fn new(recorded: Recorded) -> Self {
        Self {
            recorded,
            prompt: TalkerPrompt::default(),
            layers: Layers::default(),
            logits: Vec::new(),
            scores: Vec::new(),
            hidden: Vec::new(),
            residual: Vec::new(),
            next: Vec::new(),
        }
    }
}

impl SpeechObserver for Seen {
    fn prompt(&mut self, prompt: &TalkerPrompt) {
        self.prompt = prompt.clone();
    }

    fn layers(&mut self) -> Option<&mut dyn Observer> {
        Some(&mut self.layers)
    }

    fn forced_prompt(&mut self) -> Option<Vec<f32>> {
        let wanted = self.prompt.embeds.len();
        self.recorded
            .embeds
            .clone()
            .filter(|rows| rows.len() == wanted)
    }

    fn forced(&mut self, frame: usize) -> Option<ForcedFrame> {
        let recorded = &self.recorded;
        if frame >= recorded.codes.frames() {
            return None;
        }
        Some(ForcedFrame {
            codes: recorded.codes.frame(frame).to_vec(),
            hidden: recorded.row(recorded.hidden.as_ref(), frame),
            next: recorded.row(recorded.next.as_ref(), frame),
        })
    }

    fn first(&mut self, logits: &[f32], scores: &[f32]) {
        self.logits.extend_from_slice(logits);
        self.scores.extend_from_slice(scores);
    }

    fn hidden(&mut self, hidden: &[f32]) {
        self.hidden.extend_from_slice(hidden);
    }

    fn residual(&mut self, logits: &[f32]) {
        self.residual.extend_from_slice(logits);
    }

    fn next(&mut self, next: &[f32]) {
        self.next.extend_from_slice(next);
    }
}

/// What the layers of the talker's prompt computed.
#[derive(Default)]
struct Layers {
    hidden: Vec<Vec<f32>>,
    routing: Vec<Routing>,
    gates: Vec<Vec<f32>>,
}

impl Observer for Layers {
    fn hidden(&mut self, _: usize, x: &[f32]) {
        self.hidden.push(x.to_vec());
    }

    fn router(&mut self, _: usize, routing: &Routing) {
        self.routing.push(routing.clone());
    }

    fn shared_expert(&mut self, _: usize, gate: &[f32], _: &[f32]) {
        self.gates.push(gate.to_vec());
    }
}
