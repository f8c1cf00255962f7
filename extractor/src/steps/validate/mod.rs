//! Runs a model from its pack and compares it with a trace, or with a direct calculation from a
//! checkpoint.

mod compare;
mod custody;
mod direct;
mod error;
mod media;
mod ranks;
mod recorded;
#[cfg(feature = "remote")]
mod server;
mod speech;
mod together;
mod wave;

use std::path::{Path, PathBuf};

use segpack_formats::io::CancelToken;
use segpack_manifests::Pack;
use segpack_manifests::documents::{
    Choice, Finding, FindingKind, FirstWrong, GENERATOR, PromptRow, Quantity, ReferenceKind,
    ValidateReport, ValueRow, Verdict,
};
use segpack_manifests::families::TextFacts;
use segpack_runtime_min::models::decoder::text_decoder;
use segpack_runtime_min::session::{
    Logits, Model, Reservation, SequenceNeed, Session, SessionOptions,
};
use segpack_runtime_min::tensor::Compute;
use segpack_runtime_min::trace::{MediaTrace, SpeechTrace, Trace};

use super::{StepError, precision};
use crate::work::Progress;
use compare::{Comparer, Differences, Disagreement, Reference, Tally};
use direct::Direct;
pub use error::ValidateError;
use recorded::RecordedPrompt;
#[cfg(feature = "remote")]
pub(crate) use server::ServerError;
#[cfg(feature = "remote")]
pub(crate) use server::{BearerKey, ServerKind, ServerPrompt, ServerSettings};

/// Disagreements that are findings one by one; of the others there is the number.
const MAX_DISAGREEMENTS: usize = 5;
/// Where no trace is given: tokens of each prompt, and tokens fed one by one after it.
const FIXED_PROMPTS: [(usize, usize); 3] = [(1, 3), (5, 3), (12, 4)];
/// In logits of these fixtures' spread (a standard deviation of 5) the gate's tolerance is this,
/// relative to the RMS.
const LOGITS_STD: f64 = 5.0;
/// Relative difference that rounding explains under bf16.
const BF16_BOUND: f64 = 0.1;

/// What to compare with.
#[derive(Debug, Clone)]
pub(crate) enum Against {
    /// A trace.
    Trace(PathBuf),
    /// A direct calculation from the shards of this checkpoint.
    Checkpoint(PathBuf),
    /// What a server generates now.
    #[cfg(feature = "remote")]
    Server(Box<ServerSettings>),
}

/// How to validate.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub(crate) struct ValidateSettings {
    /// What to compare with.
    pub against: Against,
    /// Where the model runs, and what it may use. The precision of activations is the reference's.
    pub session: SessionOptions,
    /// Maximum difference of a log-probability from those of a trace that has no logits.
    pub tolerance: Option<f64>,
    /// Whether a trace must be of the checkpoint that was packed.
    pub digests: bool,
}

impl ValidateSettings {
    /// Against this, on the CPU.
    pub(crate) fn new(against: Against) -> Self {
        Self {
            against,
            session: SessionOptions::default(),
            tolerance: None,
            digests: true,
        }
    }
}

/// One sequence of tokens.
struct Sequence {
    /// In one forward pass.
    prompt: Vec<u32>,
    /// One by one after it, whatever the model would have chosen.
    forced: Vec<u32>,
    /// Steps whose token is compared.
    generated: usize,
    bf16_stable: bool,
}

/// Maximum difference of a logit in f32.
pub(crate) fn tolerance(layers: u32) -> f64 {
    f64::max(3e-4, 4.5e-5 * f64::from(layers))
}

/// Maximum difference of a log-probability. One of a server that computed in f32 is two logits'
/// differences away from ours: its own, and that of the logarithm of the sum, which is at most the
/// greatest. Of other precisions the user has to say.
fn log_probability_tolerance(dtype: &str, layers: u32) -> Option<f64> {
    (dtype == "float32").then(|| 2.0 * tolerance(layers))
}

/// Compares a pack with a reference. Differences are findings of the report, not errors.
///
/// # Errors
/// Where pack or reference cannot be read, or the model cannot be run.
pub(crate) fn validate(
    pack: &Pack,
    settings: &ValidateSettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<ValidateReport, StepError> {
    match &settings.against {
        Against::Trace(path) => against_trace(pack, path, settings, stop, progress),
        Against::Checkpoint(path) => against_checkpoint(pack, path, settings, stop, progress),
        #[cfg(feature = "remote")]
        Against::Server(requested) => {
            server::against_server(pack, requested, settings, stop, progress)
        }
    }
}

fn against_trace(
    pack: &Pack,
    path: &Path,
    settings: &ValidateSettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<ValidateReport, StepError> {
    if let Some(trace) = MediaTrace::open(path)? {
        if settings.tolerance.is_some() {
            let trace = trace.path().to_owned();
            return Err(ValidateError::FixedTolerance { trace }.into());
        }
        return media::against_media(pack, &trace, settings, stop, progress);
    }
    if let Some(trace) = SpeechTrace::open(path)? {
        if settings.tolerance.is_some() {
            let trace = trace.path().to_owned();
            return Err(ValidateError::FixedTolerance { trace }.into());
        }
        return speech::against_speech(pack, &trace, settings, stop, progress);
    }
    let trace = Trace::open(path)?;
    let mut report = empty_report(pack, ReferenceKind::Trace, path, trace.compute())?;
    report.level = trace.level().map(ToOwned::to_owned);
    if trace.has_log_probabilities() {
        report.reference_dtype = Some(trace.dtype().to_owned());
        report.tolerance = settings
            .tolerance
            .or_else(|| log_probability_tolerance(trace.dtype(), report.layers));
    } else if settings.tolerance.is_some() {
        let trace = trace.path().to_owned();
        return Err(ValidateError::FixedTolerance { trace }.into());
    }
    if settings.digests {
        custody::check(&mut report, trace.exported_from(), pack, || {
            recorded::compare_checkpoint(&trace, pack)
        });
        if report.verdict == Verdict::Foreign {
            return Ok(report);
        }
    }
    let sequences: Vec<Sequence> = trace.prompts().iter().map(recorded::sequence).collect();
    let excused = report.tolerance.unwrap_or_else(|| tolerance(report.layers));
    let job = Job {
        pack,
        settings,
        compute: trace.compute(),
        excused,
        sequences: &sequences,
        stop,
        progress,
    };
    let tally = job.run(|number| Ok(Box::new(RecordedPrompt::new(&trace, number))))?;
    Ok(judge(report, &tally, &sequences))
}

fn against_checkpoint(
    pack: &Pack,
    path: &Path,
    settings: &ValidateSettings,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<ValidateReport, StepError> {
    let job = crate::work::Job {
        threads: 1,
        stop,
        progress,
    };
    let report = empty_report(pack, ReferenceKind::Checkpoint, path, Compute::F32)?;
    let direct = Direct::open(path, pack, job)?;
    let compare = || compared_with(&direct, (pack, report), settings, job);
    direct.checkpoint().watched(job, compare)
}

/// The verdict on a pack beside what its checkpoint computes.
fn compared_with(
    direct: &Direct<'_>,
    (pack, mut report): (&Pack, ValidateReport),
    settings: &ValidateSettings,
    crate::work::Job { stop, progress, .. }: crate::work::Job<'_>,
) -> Result<ValidateReport, StepError> {
    if pack.manifest().model.text.facts() != Some(direct.facts()) {
        let finding = Finding::new(FindingKind::DiffersFromCheckpoint).file("config.json");
        let finding = finding.seen("another text model than the packed one");
        (report.verdict, report.ok, report.findings) = (Verdict::Foreign, false, vec![finding]);
        return Ok(report);
    }
    let sequences: Vec<Sequence> = (0..)
        .zip(FIXED_PROMPTS)
        .map(|(i, lengths)| fixed_sequence(i, lengths, direct.facts().vocab))
        .collect();
    let excused = tolerance(report.layers);
    let job = Job {
        pack,
        settings,
        compute: Compute::F32,
        excused,
        sequences: &sequences,
        stop,
        progress,
    };
    let tally = job.run(|number| {
        let sequence: &Sequence = &sequences[number];
        let ids = [&sequence.prompt[..], &sequence.forced].concat();
        Ok(Box::new(direct.calculate(
            &ids,
            sequence.prompt.len(),
            stop,
        )?))
    })?;
    let mut stages = media::Stages::default();
    progress.note("encoders");
    let mut options = settings.session.clone();
    options.compute = Compute::F32;
    let session = Session::open_cancellable(pack, &options, stop)?;
    media::against_direct(&session, direct, &mut stages)?;
    report.stages = stages.into_rows();
    report.findings = direct.findings();
    media::report_stages(&mut report.findings, &report.stages);
    Ok(judge(report, &tally, &sequences))
}

fn describe(number: usize, sequences: &[Sequence]) -> String {
    let (all, s) = (sequences.len(), &sequences[number]);
    format!(
        "prompt {} of {all}: {} + {} tokens",
        number + 1,
        s.prompt.len(),
        s.forced.len()
    )
}

/// Ids spread over the vocabulary, always the same.
fn fixed_sequence(number: u64, (prompt, forced): (usize, usize), vocab: u64) -> Sequence {
    let mut ids = (0..).map(|i| fixed_id(number, i, vocab));
    let prompt = ids.by_ref().take(prompt).collect();
    Sequence {
        prompt,
        forced: ids.take(forced).collect(),
        generated: forced + 1,
        bf16_stable: false,
    }
}

/// Id `i` of a fixed sequence.
fn fixed_id(number: u64, i: u64, vocab: u64) -> u32 {
    u32::try_from((17 + number * 104_729 + i * 7919) % vocab.max(1)).unwrap_or(0)
}

fn empty_report(
    pack: &Pack,
    reference: ReferenceKind,
    path: &Path,
    compute: Compute,
) -> Result<ValidateReport, StepError> {
    let layers = text_decoder(pack)?.facts.layers;
    Ok(ValidateReport {
        is_of_export: false,
        format_version: ValidateReport::VERSION,
        generator: GENERATOR.to_owned(),
        manifest_sha256: pack.manifest_sha256(),
        reference,
        reference_name: path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned(),
        level: None,
        reference_dtype: None,
        compute: precision(compute),
        layers,
        tolerance: (compute == Compute::F32).then(|| tolerance(layers)),
        verdict: Verdict::Inside,
        ok: true,
        prompts: Vec::new(),
        stages: Vec::new(),
        values: Vec::new(),
        choices: Vec::new(),
        first_wrong: None,
        not_compared: Vec::new(),
        findings: Vec::new(),
    })
}

/// The runs that are to be compared.
struct Job<'a> {
    pack: &'a Pack,
    settings: &'a ValidateSettings,
    compute: Compute,
    /// Gap of the reference's up to which a token that differs does not count.
    excused: f64,
    sequences: &'a [Sequence],
    stop: &'a CancelToken,
    progress: &'a dyn Progress,
}

impl Job<'_> {
    /// One model for all sequences, so that what it loaded stays: as many of them in one forward pass
    /// as the memory budget has room for.
    fn run<'r>(
        &self,
        mut reference: impl FnMut(usize) -> Result<Box<dyn Reference + 'r>, StepError> + Send,
    ) -> Result<Tally, StepError> {
        let mut options = self.settings.session.clone();
        options.compute = self.compute;
        let session = Session::open_cancellable(self.pack, &options, self.stop)?;
        let needs: Vec<SequenceNeed> = self.sequences.iter().map(Sequence::need).collect();
        session.install(|| match session.batch_model(&needs, Logits::All)? {
            Some((mut model, room)) => self.run_together(&mut model, room, &mut reference),
            None => {
                let mut model = session.model(reservation(&needs))?;
                self.run_one_by_one(&mut model, &mut reference)
            }
        })
    }

    fn run_one_by_one<'r>(
        &self,
        model: &mut Model<'_>,
        reference: &mut dyn FnMut(usize) -> Result<Box<dyn Reference + 'r>, StepError>,
    ) -> Result<Tally, StepError> {
        let facts = model.facts().clone();
        let mut tally = Tally::default();
        for (number, sequence) in self.sequences.iter().enumerate() {
            self.progress.note(&describe(number, self.sequences));
            let mut compared = Compared::new(number, reference(number)?);
            model.reset();
            for ids in sequence.passes() {
                let mut comparer = compared.comparer(self, &facts);
                comparer.forward(model, ids)?;
                compared.position = comparer.position;
            }
            tally.merge(compared.tally);
        }
        Ok(tally)
    }
}

impl Sequence {
    /// The ids of each forward pass.
    fn passes(&self) -> impl Iterator<Item = &[u32]> {
        [&self.prompt[..]].into_iter().chain(self.forced.chunks(1))
    }

    fn need(&self) -> SequenceNeed {
        SequenceNeed {
            tokens: self.prompt.len(),
            positions: self.prompt.len() + self.forced.len(),
        }
    }
}

/// Room for each of these by itself.
fn reservation(needs: &[SequenceNeed]) -> Reservation {
    let most = |of: fn(&SequenceNeed) -> usize| needs.iter().map(of).max().unwrap_or(1).max(1);
    Reservation {
        positions: most(|need| need.positions),
        longest_pass: most(|need| need.tokens),
    }
}

/// A prompt on its way: what it is compared with, and what was found so far.
struct Compared<'r> {
    number: usize,
    reference: Box<dyn Reference + 'r>,
    tally: Tally,
    /// The first position of the next forward pass.
    position: usize,
}

impl<'r> Compared<'r> {
    fn new(number: usize, reference: Box<dyn Reference + 'r>) -> Self {
        Self {
            number,
            reference,
            tally: Tally::default(),
            position: 0,
        }
    }

    /// Compares its next forward pass.
    fn comparer<'c>(&'c mut self, job: &Job<'_>, facts: &'c TextFacts) -> Comparer<'c> {
        Comparer {
            reference: self.reference.as_ref(),
            facts,
            tally: &mut self.tally,
            prompt: self.number,
            tokens: job.sequences[self.number].prompt.len(),
            position: self.position,
            tolerance: job.excused,
            failure: None,
            embedded: None,
        }
    }
}

impl Comparer<'_> {
    /// One forward pass, compared.
    fn forward(&mut self, model: &mut Model<'_>, ids: &[u32]) -> Result<(), StepError> {
        let logits = model.forward(ids, Logits::All, self)?;
        self.compare_logits(&logits, ids.len())
    }

    /// The logits of a forward pass of so many tokens, which is over.
    fn compare_logits(&mut self, logits: &[f32], tokens: usize) -> Result<(), StepError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        self.logits(logits)?;
        self.position += tokens;
        Ok(())
    }
}

/// Fills in the tables, and judges by the gate.
fn judge(mut report: ValidateReport, tally: &Tally, sequences: &[Sequence]) -> ValidateReport {
    report.values = value_rows(tally, &report);
    report.choices = tally.choices.values().cloned().collect();
    let wrong = report.values.iter().find(|row| row.wrong);
    report.first_wrong = wrong.map(|r| FirstWrong {
        quantity: r.quantity,
        layer: r.layer,
        // nothing is relative to what is not finite
        relative: r.relative.filter(|_| r.not_finite == 0),
    });
    report.prompts = sequences
        .iter()
        .enumerate()
        .map(|(i, s)| prompt_row(i, s, tally))
        .collect();
    report.not_compared = not_compared(&report);
    report_not_finite(&mut report.findings, tally, report.layers);
    let is_judged = match (report.tolerance, &report.reference_dtype) {
        (Some(tolerance), _) => judge_strictly(&mut report.findings, tally, tolerance),
        (None, Some(dtype)) => {
            let what = format!(
                "the reference computed in {dtype}, for which there is no default tolerance: nothing was judged"
            );
            report
                .findings
                .push(Finding::new(FindingKind::NotJudged).seen(what));
            false
        }
        (None, None) => judge_stable(&mut report.findings, tally, sequences),
    };
    report.ok = !Finding::any_error(&report.findings);
    report.verdict = match (report.ok, is_judged) {
        (false, _) => Verdict::Outside,
        (true, true) => Verdict::Inside,
        (true, false) => Verdict::NotJudged,
    };
    report
}

fn judge_strictly(findings: &mut Vec<Finding>, tally: &Tally, tolerance: f64) -> bool {
    let mut logits = Differences::default();
    tally.logits.values().for_each(|d| logits.merge(d));
    let row = logits.row(Quantity::Logits, None, f64::INFINITY);
    let is_logits = tally
        .values
        .keys()
        .all(|(_, quantity)| *quantity != Quantity::LogProbabilities);
    let name = if is_logits {
        Quantity::Logits
    } else {
        Quantity::LogProbabilities
    }
    .text();
    if row.max_abs > tolerance {
        let [prompt, position] = row.worst.unwrap_or_default();
        let what = format!(
            "{name} differ by up to {:.3e}, at position {position} of prompt {prompt}",
            row.max_abs
        );
        let finding = Finding::new(FindingKind::DiffersFromReference).seen(what);
        findings.push(finding.wanted(format!("at most {tolerance:.1e}")));
    }
    for choice in Choice::ALL {
        report_disagreements(findings, tally, *choice, |_| true);
    }
    row.values > 0 || tally.choices.contains_key(&(Choice::GreedyTokens, None))
}

fn judge_stable(findings: &mut Vec<Finding>, tally: &Tally, sequences: &[Sequence]) -> bool {
    report_disagreements(findings, tally, Choice::GreedyTokens, |d| {
        sequences[d.prompt].bf16_stable
    });
    let compared = tally.choices.contains_key(&(Choice::GreedyTokens, None));
    let is_judged = compared && sequences.iter().any(|s| s.bf16_stable);
    if !is_judged {
        let what = "no prompt with generated tokens is marked bf16_stable; nothing was judged";
        findings.push(Finding::new(FindingKind::NotJudged).seen(what));
    }
    is_judged
}

/// Nothing that is not finite is inside a gate, whatever the other side has there: what comes out of
/// it says nothing.
fn report_not_finite(findings: &mut Vec<Finding>, tally: &Tally, layers: u32) {
    for ((stage, quantity), found) in tally.not_finite.iter().take(MAX_DISAGREEMENTS) {
        let layer = layer_of(*stage, layers).map_or(String::new(), |n| format!(" of layer {n}"));
        let sides = match (found.seen, found.wanted) {
            (seen, 0) => format!("{seen} of this run"),
            (0, wanted) => format!("{wanted} of the reference"),
            (seen, wanted) => format!("{seen} of this run, {wanted} of the reference"),
        };
        let [prompt, position] = found.first;
        let what = format!(
            "{}{layer} that are not finite: {sides}, from position {position} of prompt {prompt}",
            quantity.text()
        );
        let finding = Finding::new(FindingKind::DiffersFromReference).seen(what);
        findings.push(finding.wanted("finite values"));
    }
    let all = tally.not_finite.len();
    if all > MAX_DISAGREEMENTS {
        let more = all - MAX_DISAGREEMENTS;
        let what = format!("{more} more quantities that are not finite");
        findings.push(Finding::new(FindingKind::DiffersFromReference).seen(what));
    }
}

/// The first few one by one, in the order in which they were found.
fn report_disagreements(
    findings: &mut Vec<Finding>,
    tally: &Tally,
    choice: Choice,
    counts: impl Fn(&Disagreement) -> bool,
) {
    let of_choice = |d: &&Disagreement| d.choice == choice && counts(d);
    for d in tally
        .disagreements
        .iter()
        .filter(of_choice)
        .take(MAX_DISAGREEMENTS)
    {
        let layer = d
            .layer
            .map_or(String::new(), |layer| format!(" in layer {layer}"));
        let what = match d.choice {
            Choice::ExpertSets => "experts",
            Choice::TopTokens => "best token",
            Choice::GreedyTokens => "next token",
            Choice::TokenRanks => "best tokens in their order",
        };
        let gap = d.gap.map_or(String::new(), |gap| format!(" by {gap:.2e}"));
        let seen = format!(
            "{what}{layer} at position {} of prompt {}: {}",
            d.position,
            d.prompt,
            ids(&d.seen)
        );
        let finding = Finding::new(FindingKind::DiffersFromReference).seen(seen);
        findings.push(finding.wanted(format!("{}{gap}", ids(&d.wanted))));
    }
    let all = tally.disagreements.iter().filter(of_choice).count();
    if all > MAX_DISAGREEMENTS {
        let what = format!("{} more {} differ", all - MAX_DISAGREEMENTS, choice.text());
        findings.push(Finding::new(FindingKind::DiffersFromReference).seen(what));
    }
}

fn ids(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

/// What is wrong in a single layer is judged relative to the RMS, as the gate is in logits.
fn value_rows(tally: &Tally, report: &ValidateReport) -> Vec<ValueRow> {
    let bound = report
        .tolerance
        .map_or(BF16_BOUND, |tolerance| tolerance / LOGITS_STD);
    let mut rows = Vec::new();
    for ((stage, quantity), differences) in &tally.values {
        let mut row = differences.row(*quantity, layer_of(*stage, report.layers), bound);
        if let (Quantity::LogProbabilities, Some(tolerance)) = (quantity, report.tolerance) {
            row.wrong = row.max_abs > tolerance || row.not_finite > 0;
        }
        rows.push(row);
    }
    rows
}

/// The layer of a stage; stage 0 comes before the layers, others after them.
fn layer_of(stage: usize, layers: u32) -> Option<u32> {
    let layer = u32::try_from(stage.checked_sub(1)?).ok()?;
    (layer < layers).then_some(layer)
}

fn prompt_row(number: usize, sequence: &Sequence, tally: &Tally) -> PromptRow {
    let of_prompt = || tally.disagreements.iter().filter(|d| d.prompt == number);
    let differ = |choice| of_prompt().filter(|d| d.choice == choice).count() as u64;
    let logits = tally.logits.get(&number).cloned().unwrap_or_default();
    PromptRow {
        tokens: sequence.prompt.len() as u64,
        generated: sequence.generated as u64,
        bf16_stable: sequence.bf16_stable,
        max_abs_logits: logits.row(Quantity::Logits, None, f64::INFINITY).max_abs,
        top_tokens_differ: differ(Choice::TopTokens),
        greedy_tokens_differ: differ(Choice::GreedyTokens),
        expert_sets_differ: differ(Choice::ExpertSets),
    }
}

fn not_compared(report: &ValidateReport) -> Vec<String> {
    // those that have logits have these two in them
    let has_logits = report.reference_dtype.is_none();
    let values = Quantity::ALL
        .iter()
        .filter(|q| !report.values.iter().any(|row| row.quantity == **q));
    let values = values.filter(|q| !(has_logits && **q == Quantity::LogProbabilities));
    let choices = Choice::ALL
        .iter()
        .filter(|c| !report.choices.iter().any(|row| row.choice == **c));
    let choices = choices.filter(|c| !(has_logits && **c == Choice::TokenRanks));
    values
        .map(|q| q.text().to_owned())
        .chain(choices.map(|c| c.text().to_owned()))
        .collect()
}
