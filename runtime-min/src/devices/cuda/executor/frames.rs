//! Frames of a talker and its predictor as one step: the passes of both, the choice of every
//! residual code, and the sum of embeddings.
//!
//! The host gives the first code, the text beside the frame and the random numbers, and gets the
//! residual codes, and state and logits of the talker. That takes all weights of both decoders on
//! the device, and memory for their embeddings beside them. The first such frame is queued kernel by
//! kernel, the second one is recorded, and from there on each is one launch of a graph.

use segpack_manifests::documents::SegmentEntry;

use super::super::bytes;
use super::super::driver::Graph;
use super::super::launch::{CodeChoice, MAX_CODES, SAMPLING_BYTES, sampling};
use super::super::layout::BufferPlan;
use super::steps::{CHOSEN_BYTES, chosen};
use super::*;
use crate::models::decoder::{Decoder, Ends};
use crate::models::talker::{FrameInput, FrameOutput, SpeechBackend};
use crate::weights::SegmentLoad;

/// An embedding of codes, in the pack.
pub(super) struct CodeEmbedding<'a> {
    segment: &'a SegmentEntry,
    /// Within the memory of the segment.
    table: PlacedTensor,
}

/// The embeddings of a decoder of codes; none of a decoder of text.
pub(super) fn code_embeddings<'a>(
    setup: &DecoderSetup<'a, '_>,
) -> Result<Vec<CodeEmbedding<'a>>, RunError> {
    if setup.spec.ends == Ends::Tokens {
        return Ok(Vec::new());
    }
    let embeddings = setup.weights.embeddings.iter();
    embeddings
        .map(|embedding| {
            Ok(CodeEmbedding {
                segment: setup.source.segment_of(embedding.entry)?,
                table: embedding.matrix,
            })
        })
        .collect()
}

/// Byte offsets of what a frame takes of memory.
struct FrameOffsets {
    /// What the host sends: [`sampling`], a random number for each residual code, state and text,
    /// the first code.
    input: usize,
    fractions: usize,
    state: usize,
    text: usize,
    first: usize,
    /// The residual codes and their logits.
    chosen: usize,
    /// The sum of embeddings, f32.
    sum: usize,
    /// The talker's embedding, then that of each residual code.
    embeddings: Vec<usize>,
}

/// Frames of a talker and its predictor: what they take of memory, and their graph.
pub(super) struct Frames {
    /// Where the predictor keeps keys and values: the graph works in the memory of this one alone.
    predictor: DevicePtr,
    memory: DeviceMemory,
    at: FrameOffsets,
    hidden: usize,
    tables: Vec<MatrixView>,
    /// All kernels were queued before: none of them is loaded any more while they are recorded.
    is_warm: bool,
    /// The frame, and where it leaves state and logits of the talker.
    graph: Option<(Graph, [View; 2])>,
}

/// A talker and its predictor.
type Pair<'d, 'a> = [&'d mut Decoder<'a, Cuda>; 2];

impl SpeechBackend for Cuda {
    fn prepare_frames<'a>(
        talker: &mut Decoder<'a, Self>,
        predictor: &mut Decoder<'a, Self>,
    ) -> Result<(), RunError> {
        let pair = [&mut talker.executor, &mut predictor.executor];
        if pair[0].frames.is_none() && are_whole(&pair) {
            let frames = Frames::load(pair)?;
            talker.executor.frames = frames;
        }
        Ok(())
    }

    fn frame<'a>(
        talker: &mut Decoder<'a, Self>,
        predictor: &mut Decoder<'a, Self>,
        input: &FrameInput<'_>,
    ) -> Result<Option<FrameOutput>, RunError> {
        Self::prepare_frames(talker, predictor)?;
        let Some(mut frames) = talker.executor.frames.take() else {
            return Ok(None);
        };
        let output = frames.run([&mut *talker, predictor], input);
        talker.executor.frames = Some(frames);
        output.map(Some)
    }
}

/// Whether both decoders are loaded on one device, and their frames can be steps of it.
fn are_whole([talker, predictor]: &[&mut CudaExecutor<'_>; 2]) -> bool {
    let is_loaded = |e: &CudaExecutor<'_>| e.has_all_weights() && Launch::is_few(2, e.sizes.hidden);
    Arc::ptr_eq(&talker.gpu, &predictor.gpu)
        && is_loaded(talker)
        && is_loaded(predictor)
        && talker.sizes.hidden == predictor.sizes.hidden
        && predictor.sizes.vocab <= MAX_CODES
        && talker.code_embeddings.len() == 1
        && !predictor.code_embeddings.is_empty()
}

impl Frames {
    /// Loads the embeddings; `None` where there is too little memory for them.
    fn load([talker, predictor]: [&mut CudaExecutor<'_>; 2]) -> Result<Option<Self>, RunError> {
        let (hidden, codes) = (talker.sizes.hidden, predictor.code_embeddings.len());
        let mut plan = BufferPlan::default();
        let input = plan.take(input_bytes(hidden, codes));
        let fractions = input + SAMPLING_BYTES;
        let state = fractions + codes * size_of::<f64>();
        let text = state + hidden * size_of::<f32>();
        let both = talker
            .code_embeddings
            .iter()
            .chain(&predictor.code_embeddings);
        let at = FrameOffsets {
            input,
            fractions,
            state,
            text,
            first: text + hidden * size_of::<f32>(),
            chosen: plan.take(codes * CHOSEN_BYTES),
            sum: plan.take(hidden * size_of::<f32>()),
            embeddings: both
                .map(|embedding| plan.take(to_usize(buffer_len(embedding.segment))))
                .collect(),
        };
        // the page that an embedding of text may begin is not used otherwise
        if plan.bytes as u64 > talker.left {
            return Ok(None);
        }
        let memory = talker.gpu.alloc(plan.bytes, "embeddings of codes")?;
        let place = |offset: &usize| memory.start().offset(*offset);
        let (of_talker, of_predictor) = at.embeddings.split_at(1);
        let mut tables = talker.load_code_embeddings(of_talker.iter().map(place))?;
        tables.extend(predictor.load_code_embeddings(of_predictor.iter().map(place))?);
        Ok(Some(Self {
            predictor: predictor.kv_cache.start(),
            memory,
            at,
            hidden,
            tables,
            is_warm: false,
            graph: None,
        }))
    }

    /// Makes a frame, and runs the step after it.
    fn run(
        &mut self,
        [talker, predictor]: Pair<'_, '_>,
        input: &FrameInput<'_>,
    ) -> Result<FrameOutput, RunError> {
        if self.predictor != predictor.executor.kv_cache.start() {
            return Err(RunError::Internal("frames of another predictor"));
        }
        talker.check(&[input.first], 1)?;
        for executor in [&mut talker.executor, &mut predictor.executor] {
            executor.drop_recording();
            executor.forget_rows();
        }
        predictor.reset();
        predictor.begin_rows(2)?;
        talker.begin_rows(1)?;
        let gpu = Arc::clone(&talker.executor.gpu);
        gpu.upload_now(self.place(self.at.input), &self.input(input)?)?;
        let [state, logits] = match &self.graph {
            Some((graph, results)) => {
                graph.launch()?;
                *results
            }
            None => self.queue_or_record([&mut *talker, predictor])?,
        };
        let mut residual = vec![0; (self.tables.len() - 1) * CHOSEN_BYTES];
        gpu.download(&mut residual, self.place(self.at.chosen))?;
        Ok(FrameOutput {
            residual: chosen(&residual).collect(),
            logits: talker.executor.fetch(logits)?,
            state: talker.executor.download(state)?,
        })
    }

    fn place(&self, offset: usize) -> DevicePtr {
        self.memory.start().offset(offset)
    }

    fn f32_at(&self, offset: usize) -> View {
        View::f32(self.place(offset), self.hidden)
    }

    /// What the host sends.
    fn input(&self, of: &FrameInput<'_>) -> Result<Vec<u8>, RunError> {
        let codes = self.tables.len() - 1;
        let sizes = [of.state.len(), of.text.len(), of.draws.fractions.len()];
        if sizes != [self.hidden, self.hidden, codes] {
            return Err(RunError::Internal("a frame of other sizes"));
        }
        let mut input = sampling(of.draws.options.as_ref()).to_vec();
        input.extend(of.draws.fractions.iter().flat_map(|x| x.to_le_bytes()));
        input.extend_from_slice(bytes(of.state));
        input.extend_from_slice(bytes(of.text));
        input.extend(of.first.to_le_bytes());
        debug_assert_eq!(input.len(), input_bytes(self.hidden, codes));
        Ok(input)
    }

    /// Queues a frame; the second one is recorded, and what was recorded runs.
    fn queue_or_record(&mut self, pair: Pair<'_, '_>) -> Result<[View; 2], RunError> {
        if !std::mem::replace(&mut self.is_warm, true) {
            return self.queue(pair);
        }
        let gpu = Arc::clone(&pair[0].executor.gpu);
        gpu.begin_recording()?;
        let queued = self.queue(pair);
        // also where something could not be queued
        let graph = gpu.end_recording();
        let results = queued?;
        let graph = graph?;
        graph.launch()?;
        self.graph = Some((graph, results));
        Ok(results)
    }

    /// Queues all kernels of a frame; state and logits of the talker's step after it.
    fn queue(&self, [talker, predictor]: Pair<'_, '_>) -> Result<[View; 2], RunError> {
        let sum = self.f32_at(self.at.sum);
        let first = (self.tables[0], self.place(self.at.first));
        let x = predictor
            .executor
            .residual_in(false)
            .part(0..2 * self.hidden);
        let launch = predictor.executor.launch();
        launch.first_code(self.f32_at(self.at.state), first, sum, x)?;
        for (group, table) in self.tables[1..].iter().enumerate() {
            let tokens = if group == 0 { 2 } else { 1 };
            predictor.executor.begin_pass(tokens);
            predictor.layers_of_rows(tokens)?;
            let (executor, weights) = (&predictor.executor, &predictor.weights);
            let logits = executor.queue_logits(weights, group, tokens - 1..tokens)?;
            let choice = CodeChoice {
                how: self.place(self.at.input),
                fraction: self.place(self.at.fractions + group * size_of::<f64>()),
                chosen: self.place(self.at.chosen + group * CHOSEN_BYTES),
                position: executor.buffers.positions,
            };
            executor.launch().choose_code(logits, choice, tokens)?;
            let is_last = group + 2 == self.tables.len();
            let to = if is_last { &talker.executor } else { executor };
            let text = is_last.then(|| self.f32_at(self.at.text));
            let x = to.residual_in(false).part(0..self.hidden);
            let code = (*table, choice.chosen);
            executor.launch().next_code(code, sum, text, x)?;
        }
        talker.executor.begin_pass(1);
        talker.layers_of_rows(1)?;
        let logits = talker.executor.queue_logits(&talker.weights, 0, 0..1)?;
        let state = talker.executor.rows(Activation::Residual, &(0..1));
        Ok([state, logits])
    }
}

/// Bytes of what the host sends, of so many residual codes.
fn input_bytes(hidden: usize, codes: usize) -> usize {
    SAMPLING_BYTES + codes * size_of::<f64>() + 2 * hidden * size_of::<f32>() + size_of::<u32>()
}

impl CudaExecutor<'_> {
    /// Loads the embeddings of codes to these places.
    fn load_code_embeddings(
        &mut self,
        places: impl Iterator<Item = DevicePtr>,
    ) -> Result<Vec<MatrixView>, RunError> {
        let mut tables = Vec::new();
        for (number, place) in places.enumerate() {
            let CodeEmbedding { segment, table } = self.code_embeddings[number];
            self.load_segment(&SegmentLoad::plain(segment), place)?;
            tables.push(matrix_at(place, table));
        }
        self.staging = None; // nothing passes through it any more
        Ok(tables)
    }
}
