//! `run --imatrix-out`: an importance matrix of llama.cpp's, of what the model's own linear layers
//! are multiplied with.
//!
//! The text is run in chunks of so many tokens, each of which begins anew. Of every matrix that a
//! GGUF export may quantize, the squares of its inputs are added up by column: for all tokens, or for
//! an expert's for those that the router sends to it. Nothing is generated, and the head is left
//! out, as by llama.cpp's `imatrix` (whose `--process-output` adds it).
//!
//! Source: `IMatrixCollector::collect_imatrix` in tools/imatrix/imatrix.cpp of llama.cpp (as in
//! llama-cpp-python 0.3.36).

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use segpack_formats::gguf::{ActivationSums, GgufError, write_imatrix, write_imatrix_list};
use segpack_formats::io::{CancelToken, PendingFile, to_usize};
use segpack_manifests::Pack;
use segpack_manifests::names::Role;
use segpack_runtime_min::processing::Prompt;
use segpack_runtime_min::processing::media::MediaOptions;
use segpack_runtime_min::session::{
    Logits, Model, Reservation, Session, SessionError, SessionOptions,
};
use segpack_runtime_min::{LinearInput, Observer};

use crate::steps::StepError;
use crate::steps::export::{LlamaMatrix, llama_matrices};
use crate::work::Progress;

/// How an importance matrix is recorded.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ImatrixOptions {
    /// The text.
    pub prompt: Prompt,
    /// What the matrix calls the text.
    pub dataset: String,
    /// Where the model runs, and what it may use. The sums take memory beside its budget: eight
    /// bytes for each column.
    pub session: SessionOptions,
    /// Tokens of a chunk.
    pub chunk: usize,
    /// The file to write: in the older format where its name ends in `.dat`, else GGUF.
    pub out: PathBuf,
}

impl ImatrixOptions {
    /// Of this text to this file, in chunks of 512 tokens, on the CPU.
    pub fn new(prompt: Prompt, out: PathBuf) -> Self {
        Self {
            prompt,
            dataset: String::new(),
            session: SessionOptions::default(),
            chunk: 512,
            out,
        }
    }
}

/// What was recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImatrixSummary {
    /// Tokens of the text.
    pub tokens: usize,
    /// Chunks that they were run in.
    pub chunks: usize,
    /// Tensors of the matrix.
    pub tensors: usize,
    /// Matrices of experts, one for each layer and expert and each of gate, up and down.
    pub expert_matrices: usize,
    /// Those that no token reached.
    pub unreached: usize,
}

/// Why no importance matrix is recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImatrixError {
    /// The device does not hand out what it computes with.
    #[error("{device} does not show what its linear layers are multiplied with: only the CPU does")]
    Device {
        /// The device.
        device: String,
    },
    /// There is nothing to run.
    #[error("the text for the importance matrix has no tokens")]
    Empty,
    /// The text has media, whose rows the encoders would give.
    #[error(
        "an importance matrix is recorded of text alone, and this chat has images, audio or videos"
    )]
    Media,
    /// The matrix is beyond its format.
    #[error("the importance matrix cannot be written")]
    Format(#[source] GgufError),
}

/// Runs a text and writes what its linear layers were multiplied with.
///
/// # Errors
/// A pack that cannot be run or is damaged, or whose family is not exported to GGUF; `Imatrix` where the
/// device shows nothing, and for an empty text or one with media.
pub fn record_imatrix(
    pack: &Pack,
    options: &ImatrixOptions,
    stop: &CancelToken,
    progress: &dyn Progress,
) -> Result<ImatrixSummary, StepError> {
    // what cannot be written is better found before the work than after it
    let file = PendingFile::create(&options.out)?;
    let matrices = llama_matrices(pack)?;
    let session = Session::open_cancellable(pack, &options.session, stop)?;
    let text = session.text()?;
    let media = MediaOptions::default();
    let prompt = session.install(|| text.tokenize_with(&options.prompt, &media, stop));
    let prompt = prompt.map_err(SessionError::from)?;
    if !prompt.media.is_empty() {
        return Err(ImatrixError::Media.into());
    }
    let ids = prompt.ids;
    if ids.is_empty() {
        return Err(ImatrixError::Empty.into());
    }
    let chunk = options.chunk.clamp(1, ids.len());
    let reservation = Reservation {
        positions: chunk,
        longest_pass: chunk,
    };
    let device = session.device_name();
    let sums = session.with_model(reservation, |model| {
        observed(model, &ids, chunk, &device, progress)
    })?;
    let chunks = ids.len().div_ceil(chunk);
    let summary = ImatrixSummary {
        tokens: ids.len(),
        chunks,
        ..sums.summary(&matrices)
    };
    let sums = sums.named(&matrices);
    let bytes = bytes(&sums, options, (count(chunks), count(chunk)));
    let bytes = bytes.map_err(ImatrixError::Format)?;
    file.publish(|out| out.write_all(&bytes))?;
    Ok(summary)
}

/// A text's chunks, one after the other.
fn observed(
    model: &mut Model<'_>,
    ids: &[u32],
    chunk: usize,
    device: &str,
    progress: &dyn Progress,
) -> Result<InputSums, StepError> {
    if !model.shows_linear_inputs() {
        let device = device.to_owned();
        return Err(ImatrixError::Device { device }.into());
    }
    let mut sums = InputSums::default();
    progress.start_counting("recording", ids.len().div_ceil(chunk) as u64, "chunk");
    for ids in ids.chunks(chunk) {
        model.reset();
        model.forward(ids, Logits::Last, &mut sums)?;
        progress.advance(1);
    }
    progress.finish();
    Ok(sums)
}

fn bytes(
    sums: &BTreeMap<String, ActivationSums>,
    options: &ImatrixOptions,
    chunks: (u32, u32),
) -> Result<Vec<u8>, GgufError> {
    match options.out.extension().is_some_and(|e| e == "dat") {
        true => write_imatrix_list(sums, &options.dataset, chunks),
        false => write_imatrix(sums, std::slice::from_ref(&options.dataset), chunks),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Squares of the inputs of linear layers, added up by column.
#[derive(Debug, Default)]
struct InputSums(HashMap<(usize, LinearInput), ColumnSums>);

/// In double precision: single stands still after some ten million tokens.
#[derive(Debug, Default)]
struct ColumnSums {
    squares: Vec<f64>,
    rows: u64,
}

impl Observer for InputSums {
    fn linear_input(&mut self, layer: usize, of: LinearInput, columns: usize, x: &[f32]) {
        let sums = self.0.entry((layer, of)).or_default();
        sums.squares.resize(columns, 0.0);
        for row in x.chunks_exact(columns.max(1)) {
            sums.rows += 1;
            for (sum, x) in sums.squares.iter_mut().zip(row) {
                *sum += f64::from(*x) * f64::from(*x);
            }
        }
    }
}

impl InputSums {
    /// What one matrix of a tensor is multiplied with; `None` where nothing reached it.
    fn of(&self, matrix: &LlamaMatrix, expert: u32) -> Option<&ColumnSums> {
        let of = linear_input(matrix.role, expert)?;
        self.0.get(&(matrix.layer as usize, of))
    }

    /// Under the names that llama.cpp has for the tensors.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the format has single precision"
    )]
    fn named(&self, matrices: &[LlamaMatrix]) -> BTreeMap<String, ActivationSums> {
        let named = matrices.iter().map(|matrix| {
            let mut sums = ActivationSums::default();
            for expert in 0..matrix.experts.unwrap_or(1) {
                let nothing = ColumnSums::nothing(matrix.columns);
                let of = self.of(matrix, expert).unwrap_or(&nothing);
                sums.sums.extend(of.squares.iter().map(|sum| *sum as f32));
                sums.counts.push(of.rows);
            }
            (matrix.name.clone(), sums)
        });
        named.collect()
    }

    fn summary(&self, matrices: &[LlamaMatrix]) -> ImatrixSummary {
        let of_experts = matrices.iter().flat_map(|matrix| {
            let experts = 0..matrix.experts.unwrap_or(0);
            experts.map(move |expert| self.of(matrix, expert).is_some())
        });
        let reached: Vec<bool> = of_experts.collect();
        ImatrixSummary {
            tensors: matrices.len(),
            expert_matrices: reached.len(),
            unreached: reached.iter().filter(|is_reached| !**is_reached).count(),
            ..ImatrixSummary::default()
        }
    }
}

impl ColumnSums {
    /// Of a matrix that no token reached.
    fn nothing(columns: u64) -> Self {
        Self {
            squares: vec![0.0; to_usize(columns)],
            rows: 0,
        }
    }
}

/// What the matrix of a role is multiplied with; `None`: it is none that is multiplied.
fn linear_input(role: Role, expert: u32) -> Option<LinearInput> {
    match role {
        Role::AttentionQ | Role::AttentionK | Role::AttentionV => Some(LinearInput::Attention),
        Role::AttentionO => Some(LinearInput::AttentionOutput),
        Role::Router
        | Role::MlpGate
        | Role::MlpUp
        | Role::SharedExpertRouter
        | Role::SharedExpertGate
        | Role::SharedExpertUp => Some(LinearInput::Mlp),
        Role::MlpDown => Some(LinearInput::MlpDown),
        Role::ExpertGate | Role::ExpertUp => Some(LinearInput::Expert(expert)),
        Role::ExpertDown => Some(LinearInput::ExpertDown(expert)),
        Role::SharedExpertDown => Some(LinearInput::SharedExpertDown),
        _ => None,
    }
}
