//! What follows the transformer: upsampling and the waveform decoder, a few rows at a time.
//!
//! Every convolution keeps the rows before those that come next, so results do not depend on how
//! many come at a time, and memory does not depend on how many there are.

use segpack_formats::io::CancelToken;

use super::bind::{BlockWeights, DILATIONS, KERNEL, SnakeWeights, StageWeights, TailWeights};
use super::transformer::add_scaled;
use super::{VocoderObserver, VocoderSpec, WaveStage};
use crate::error::RunError;
use crate::models::encoder::Dense;
use crate::ops::{Conv1d, Onto, Ops};
use crate::tensor::{Linear, Matrix, SnakeBeta};
use crate::weights::{Block, PlacedTensor};

/// What the ConvNeXt blocks' norms add to the variance.
const LAYER_NORM_EPS: f32 = 1e-6;
/// What SnakeBeta adds to the divisor.
const SNAKE_EPS: f32 = 1e-9;
/// Rows before the first result of a convolution, at most.
const HISTORY: usize = (KERNEL - 1) * DILATIONS[2];
/// Values that a block gives at a time, about.
const PIECE: usize = 1 << 19;

/// A convolution, and the rows before those that come next.
struct Flow {
    conv: Conv1d,
    /// Zeros to begin with, or nothing: a transposed convolution sees none that is not there.
    is_padded: bool,
    /// The rows before.
    before: Vec<f32>,
}

/// Reused memory.
type Scratch = [Vec<f32>; 3];

/// What computing takes.
pub(super) struct Run<'r, O> {
    pub(super) ops: &'r O,
    pub(super) stop: &'r CancelToken,
    pub(super) observer: &'r mut dyn VocoderObserver,
}

/// Logarithms resolved.
struct Snake {
    alpha: Vec<f32>,
    inverse_beta: Vec<f32>,
}

/// Upsampling, and a ConvNeXt block.
struct Stage {
    transposed: Flow,
    depthwise: Depthwise,
    norm: [Vec<f32>; 2],
    up: Pointwise,
    down: Pointwise,
    gamma: Vec<f32>,
}

/// A convolution of every channel by itself.
struct Depthwise {
    /// `[kernel, channels]`
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// The rows before, then the rows that are given.
    rows: Vec<f32>,
}

/// A linear layer whose weight stays where it was loaded.
struct Pointwise {
    weight: PlacedTensor,
    bias: Vec<f32>,
}

/// A block of the waveform decoder.
struct DecoderBlock {
    snake: Snake,
    transposed: Flow,
    units: Vec<Unit>,
    /// Rows that are taken at a time.
    piece: usize,
    /// Channels of what it gives.
    width: usize,
}

/// A residual unit.
struct Unit {
    snakes: [Snake; 2],
    dilated: Flow,
    pointwise: Flow,
}

/// The last convolution, to one channel.
struct Last {
    snake: Snake,
    /// `[kernel, channels]`
    weight: Vec<f32>,
    bias: f32,
    rows: Vec<f32>,
}

/// All that follows the transformer.
pub(super) struct Tail {
    norm: Vec<f32>,
    eps: f32,
    hidden: usize,
    stages: Vec<Stage>,
    first: Flow,
    blocks: Vec<DecoderBlock>,
    last: Last,
    scratch: Scratch,
    memory: Block,
}

/// Values that a piece and reused memory take, at most.
pub(super) fn values(spec: &VocoderSpec) -> u64 {
    let widest = spec.hidden.max(spec.decoder);
    let rows = spec.rows_of_a_piece();
    // the ConvNeXt block's inner rows, and what the first convolution gives
    let up: usize = spec.stages.iter().product::<usize>().max(1);
    let stages = rows * up * (7 * spec.hidden + spec.decoder);
    // the widest inputs of a convolution, packed: 512 rows of results, and those before
    let packed = (2 << 20_usize).max((512 + 2 * HISTORY) * widest);
    // each block: what it gives, what is inside of a residual unit or comes to the last convolution,
    // with what vectors have to spare, and the rows before of each convolution
    let block = |(number, rate): (usize, &usize)| {
        let (before, after) = (spec.width_after(number), spec.width_after(number + 1));
        (4 * piece(rate * after) * rate + 2 * DILATIONS.len() * HISTORY) * after + 2 * before
    };
    let blocks: usize = spec.rates.iter().enumerate().map(block).sum();
    (stages + packed + blocks) as u64
}

/// Rows that make a piece of this many values each.
fn piece(values: usize) -> usize {
    (PIECE / values.max(1)).max(1)
}

impl Tail {
    /// Takes weights over, into the order that is computed with.
    pub(super) fn new(weights: &TailWeights, spec: &VocoderSpec, memory: Block) -> Self {
        let stages = weights
            .stages
            .iter()
            .map(|stage| Stage::new(stage, &memory));
        let blocks = weights.blocks.iter().enumerate();
        let blocks =
            blocks.map(|(n, block)| DecoderBlock::new(block, spec.width_after(n + 1), &memory));
        Self {
            norm: weights.norm.values(&memory),
            eps: spec.rms_norm_eps,
            hidden: spec.hidden,
            stages: stages.collect(),
            first: Flow::causal(&weights.first, &memory, KERNEL, 1),
            blocks: blocks.collect(),
            last: Last {
                snake: Snake::new(&weights.last_snake, &memory),
                weight: kernel_first(&weights.last.weight.values(&memory), KERNEL),
                bias: weights.last.bias.values(&memory)[0],
                rows: Vec::new(),
            },
            scratch: Scratch::default(),
            memory,
        }
    }

    /// Before the first row of a sequence.
    pub(super) fn begin(&mut self) {
        for stage in &mut self.stages {
            stage.transposed.begin();
            stage.depthwise.begin();
        }
        self.first.begin();
        for block in &mut self.blocks {
            block.transposed.begin();
            for unit in &mut block.units {
                unit.dilated.begin();
                unit.pointwise.begin();
            }
        }
        self.last.rows = vec![0.0; self.last.weight.len() - self.last.weight.len() / KERNEL];
    }

    /// The next rows of what left the transformer; `sink` takes samples.
    pub(super) fn push<O: Ops, E: From<RunError>>(
        &mut self,
        run: &mut Run<'_, O>,
        rows: &[f32],
        sink: &mut dyn FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut x = rows.to_vec();
        run.ops.rms_norm(&mut x, &self.norm, self.eps);
        run.observer.stage(WaveStage::Norm, &x, self.hidden);
        for (number, stage) in self.stages.iter_mut().enumerate() {
            x = stage.push(run, number, &x, &self.memory, &mut self.scratch)?;
        }
        let mut y = Vec::new();
        self.first.push(run, &x, None, Onto::New(&mut y))?;
        run.observer
            .stage(WaveStage::First, &y, self.first.conv.outputs());
        let mut rest = Rest {
            blocks: &mut self.blocks,
            number: 1,
            last: &mut self.last,
            scratch: &mut self.scratch,
        };
        rest.push(run, &y, sink)
    }
}

/// The blocks that are still to come.
struct Rest<'t> {
    blocks: &'t mut [DecoderBlock],
    /// Number of the first of them.
    number: usize,
    last: &'t mut Last,
    scratch: &'t mut Scratch,
}

impl Rest<'_> {
    fn push<O: Ops, E: From<RunError>>(
        &mut self,
        run: &mut Run<'_, O>,
        x: &[f32],
        sink: &mut dyn FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some((block, rest)) = self.blocks.split_first_mut() else {
            return self.last.push(run, x, sink);
        };
        let mut rest = Rest {
            blocks: rest,
            number: self.number + 1,
            last: self.last,
            scratch: self.scratch,
        };
        let channels = block.snake.alpha.len();
        for x in x.chunks(block.piece * channels) {
            let y = block.push(run, self.number, x, rest.scratch)?;
            rest.push(run, &y, sink)?;
        }
        Ok(())
    }
}

impl Flow {
    fn causal(stored: &Dense, memory: &[u8], kernel: usize, dilation: usize) -> Self {
        let (weight, bias) = (stored.weight.matrix(memory), stored.bias.values(memory));
        Self {
            conv: Conv1d::causal(weight, bias, kernel, dilation),
            is_padded: true,
            before: Vec::new(),
        }
    }

    fn transposed(stored: &Dense, memory: &[u8], kernel: usize, stride: usize) -> Self {
        let (weight, bias) = (stored.weight.matrix(memory), stored.bias.values(memory));
        Self {
            conv: Conv1d::transposed(weight, &bias, kernel, stride),
            is_padded: false,
            before: Vec::new(),
        }
    }

    fn begin(&mut self) {
        self.before.clear();
        if self.is_padded {
            self.before.resize(self.history(), 0.0);
        }
    }

    /// Values of the rows before.
    fn history(&self) -> usize {
        self.conv.history() * self.conv.channels()
    }

    /// What the next rows give, each of them through `snake` first.
    fn push<O: Ops>(
        &mut self,
        run: &Run<'_, O>,
        x: &[f32],
        snake: Option<&Snake>,
        out: Onto<'_>,
    ) -> Result<(), RunError> {
        let rows = [&self.before[..], x];
        let snake = snake.map(Snake::factors);
        self.conv.run(run.ops, rows, snake, out, run.stop)?;
        let history = self.history();
        self.before
            .extend_from_slice(&x[x.len().saturating_sub(history)..]);
        keep_last(&mut self.before, history);
        Ok(())
    }
}

/// Forgets all but the last so many values.
fn keep_last(rows: &mut Vec<f32>, values: usize) {
    let first = rows.len().saturating_sub(values);
    rows.drain(..first);
}

impl Snake {
    fn new(stored: &SnakeWeights, memory: &[u8]) -> Self {
        let mut alpha = stored.alpha.values(memory);
        let mut beta = stored.beta.values(memory);
        alpha.iter_mut().for_each(|x| *x = exp(*x));
        beta.iter_mut()
            .for_each(|x| *x = 1.0 / (exp(*x) + SNAKE_EPS));
        Self {
            alpha,
            inverse_beta: beta,
        }
    }

    fn factors(&self) -> SnakeBeta<'_> {
        SnakeBeta {
            alpha: &self.alpha,
            inverse_beta: &self.inverse_beta,
        }
    }
}

/// Rounded once.
#[expect(clippy::cast_possible_truncation, reason = "f32, as torch does")]
fn exp(x: f32) -> f32 {
    libm::exp(f64::from(x)) as f32
}

/// `[channels, kernel]` as `[kernel, channels]`.
fn kernel_first(stored: &[f32], kernel: usize) -> Vec<f32> {
    let channels = stored.len() / kernel;
    let at = |i: usize| stored[i % channels * kernel + i / channels];
    (0..stored.len()).map(at).collect()
}

impl Depthwise {
    fn begin(&mut self) {
        self.rows = vec![0.0; self.weight.len() - self.bias.len()];
    }

    fn push(&mut self, ops: &impl Ops, x: &[f32], out: &mut Vec<f32>) {
        self.rows.extend_from_slice(x);
        out.resize(x.len(), 0.0);
        ops.depthwise(&self.rows, &self.weight, &self.bias, out);
        keep_last(&mut self.rows, self.weight.len() - self.bias.len());
    }
}

impl Pointwise {
    fn new(stored: &Dense, memory: &[u8]) -> Self {
        Self {
            weight: stored.weight,
            bias: stored.bias.values(memory),
        }
    }

    fn run<O: Ops>(
        &self,
        run: &Run<'_, O>,
        memory: &[u8],
        x: &[f32],
        out: &mut Vec<f32>,
    ) -> Result<(), RunError> {
        let weight: Matrix<'_> = self.weight.matrix(memory);
        out.resize(x.len() / weight.columns * weight.rows, 0.0);
        let bias = Some(&self.bias[..]);
        let linear = Linear {
            x,
            weight,
            bias,
            out,
        };
        Ok(run.ops.linears_until(&mut [linear], run.stop)?)
    }
}

impl Stage {
    fn new(stored: &StageWeights, memory: &[u8]) -> Self {
        let depthwise = stored.depthwise.weight.values(memory);
        Self {
            transposed: Flow::transposed(&stored.transposed, memory, stored.factor, stored.factor),
            depthwise: Depthwise {
                weight: kernel_first(&depthwise, KERNEL),
                bias: stored.depthwise.bias.values(memory),
                rows: Vec::new(),
            },
            norm: [
                stored.norm.weight.values(memory),
                stored.norm.bias.values(memory),
            ],
            up: Pointwise::new(&stored.up, memory),
            down: Pointwise::new(&stored.down, memory),
            gamma: stored.gamma.values(memory),
        }
    }

    fn push<O: Ops>(
        &mut self,
        run: &mut Run<'_, O>,
        number: usize,
        x: &[f32],
        memory: &[u8],
        scratch: &mut Scratch,
    ) -> Result<Vec<f32>, RunError> {
        let [normed, wide, back] = scratch;
        let (width, mut x_up) = (self.gamma.len(), Vec::new());
        self.transposed.push(run, x, None, Onto::New(&mut x_up))?;
        run.observer.stage(WaveStage::UpConv(number), &x_up, width);
        self.depthwise.push(run.ops, &x_up, normed);
        run.ops
            .layer_norm(normed, &self.norm[0], &self.norm[1], LAYER_NORM_EPS);
        self.up.run(run, memory, normed, wide)?;
        run.ops.gelu(wide);
        self.down.run(run, memory, wide, back)?;
        add_scaled(&mut x_up, back, &self.gamma);
        run.observer.stage(WaveStage::Up(number), &x_up, width);
        Ok(x_up)
    }
}

impl DecoderBlock {
    fn new(stored: &BlockWeights, width: usize, memory: &[u8]) -> Self {
        let units = stored.units.iter().zip(DILATIONS);
        let units = units.map(|(unit, dilation)| Unit {
            snakes: unit.snakes.map(|snake| Snake::new(&snake, memory)),
            dilated: Flow::causal(&unit.dilated, memory, KERNEL, dilation),
            pointwise: Flow::causal(&unit.pointwise, memory, 1, 1),
        });
        Self {
            snake: Snake::new(&stored.snake, memory),
            transposed: Flow::transposed(&stored.transposed, memory, 2 * stored.rate, stored.rate),
            units: units.collect(),
            piece: piece(stored.rate * width),
            width,
        }
    }

    fn push<O: Ops>(
        &mut self,
        run: &mut Run<'_, O>,
        number: usize,
        x: &[f32],
        scratch: &mut Scratch,
    ) -> Result<Vec<f32>, RunError> {
        let [_, inside, _] = scratch;
        let mut y = Vec::new();
        let snake = Some(&self.snake);
        self.transposed.push(run, x, snake, Onto::New(&mut y))?;
        run.observer
            .stage(WaveStage::Transposed(number), &y, self.width);
        for unit in &mut self.units {
            let [first, second] = unit.snakes.each_ref().map(Some);
            unit.dilated.push(run, &y, first, Onto::New(inside))?;
            unit.pointwise
                .push(run, inside, second, Onto::Sum(&mut y))?;
        }
        run.observer.stage(WaveStage::Block(number), &y, self.width);
        Ok(y)
    }
}

impl Last {
    fn push<O: Ops, E: From<RunError>>(
        &mut self,
        run: &mut Run<'_, O>,
        x: &[f32],
        sink: &mut dyn FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let channels = self.snake.alpha.len();
        let before = self.rows.len();
        self.rows.extend_from_slice(x);
        let SnakeBeta {
            alpha,
            inverse_beta,
        } = self.snake.factors();
        run.ops.snake(&mut self.rows[before..], alpha, inverse_beta);
        let mut wave = vec![0.0; x.len() / channels];
        run.ops
            .slide(&self.rows, channels, &self.weight, self.bias, &mut wave);
        keep_last(&mut self.rows, self.weight.len() - channels);
        run.observer.stage(WaveStage::Raw, &wave, 1);
        // a NaN stays one, as in torch
        wave.iter_mut().for_each(|x| *x = x.clamp(-1.0, 1.0));
        sink(&wave)
    }
}
