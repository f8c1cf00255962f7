//! Measures what speaks of a pack: talker and code predictor as a share of the machine's memory
//! bandwidth, code2wav as a share of its f32 multiply-add peak; both limits are measured in turn.
//!
//! ```text
//! cargo run --release -p segpack-runtime-min --example speech PACK [--memory BYTES]
//!     [--threads N] [--frames N] [--runs N] [--only talker|code2wav]
//! ```
//!
//! The text is made up and codes are chosen greedily, which changes nothing of what is computed. Bytes of a
//! frame are those of the weights that it touches: the talker's layers with the experts of one token, and
//! its head; the predictor's layers once for each residual code, and each of its heads. Of code2wav the
//! multiply-adds of linear layers, convolutions and attention count; activations and norms are overhead.

mod measure;

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use memmap2::{Advice, MmapMut};
use segpack_formats::io::to_usize;
use segpack_manifests::Pack;
use segpack_manifests::families::{SpeechFacts, TextFacts, VocoderFacts};
use segpack_runtime_min::models::code2wav::{Chunks, VocoderObserver, WaveStage};
use segpack_runtime_min::processing::MediaFeatures;
use segpack_runtime_min::session::{
    AcceptedStates, Session, SessionError, SpeechScript, SpeechSettings,
};
use segpack_runtime_min::{Kernels, limits};

use measure::{STEPS, beside_limit, options, peak_memory, real};

/// Bytes of a measurement of the bandwidth.
const MEMORY: usize = 1 << 30;
/// Words of the text.
const WORDS: u32 = 40;

struct Args {
    pack: PathBuf,
    memory: Option<u64>,
    threads: usize,
    frames: usize,
    runs: usize,
    only: Option<String>,
}

fn arguments() -> Result<Args, Box<dyn Error>> {
    let mut given = std::env::args().skip(1);
    let mut args = Args {
        pack: given.next().ok_or("wanted a pack")?.into(),
        memory: None,
        threads: 2,
        frames: 50,
        runs: 3,
        only: None,
    };
    while let Some(name) = given.next() {
        let value = given.next().ok_or("wanted a value")?;
        match name.as_str() {
            "--memory" => args.memory = Some(value.parse()?),
            "--threads" => args.threads = value.parse()?,
            "--frames" => args.frames = value.parse()?,
            "--runs" => args.runs = value.parse()?,
            "--only" => args.only = Some(value),
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    Ok(args)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = arguments()?;
    let pack = Pack::open(&args.pack)?;
    let session = Session::open(&pack, &options(args.memory, args.threads))?;
    let kernels = Kernels::from_environment()?;
    println!("{} kernels, {} threads", kernels.name(), args.threads);
    let wanted = |what| args.only.as_ref().is_none_or(|only| only == what);
    if wanted("talker") {
        talker(&session, kernels, &args)?;
    }
    if wanted("code2wav") {
        code2wav(&session, kernels, &args)?;
    }
    println!("peak memory: {}", peak_memory());
    Ok(())
}

fn talker(session: &Session<'_>, kernels: Kernels, args: &Args) -> Result<(), Box<dyn Error>> {
    let facts = session.speech_facts()?;
    let bytes = bytes_of_a_frame(&facts);
    let memory = memory()?;
    let mut runs = Vec::new();
    for _ in 0..args.runs {
        let limit = || session.install(|| limits::read_bandwidth(kernels, &[&memory]));
        let run = || frames_per_second(session, &facts, args.frames);
        let (rate, limit) = beside_limit(limit, run)?;
        runs.push((rate * bytes / limit, rate, limit));
    }
    let (share, rate, limit) = median(runs);
    println!(
        "talker and predictor: {rate:.2} frames/s, {:.2} GB per frame, {:.1} % of {:.1} GB/s",
        bytes / 1e9,
        share * 100.0,
        limit / 1e9
    );
    Ok(())
}

/// From the first frame to the last: what is loaded once does not count.
fn frames_per_second(
    session: &Session<'_>,
    facts: &SpeechFacts,
    frames: usize,
) -> Result<f64, SessionError> {
    let tokens = &facts.tokens;
    let prompt = [
        tokens.im_start,
        tokens.user,
        198,
        1000,
        1001,
        tokens.im_end,
        198,
        tokens.im_start,
        tokens.assistant,
        198,
    ];
    let answer: Vec<u32> = (2000..2000 + WORDS).chain([tokens.im_end]).collect();
    let mut settings = SpeechSettings::default();
    settings.max_codes = frames + 1;
    settings.sampling = None;
    let script = SpeechScript {
        prompt: &prompt,
        answer: &answer,
        media: &MediaFeatures::default(),
        states: &AcceptedStates::default(),
    };
    let mut times = Vec::new();
    session.speak(script, &settings, &mut |_: &[u32]| {
        times.push(Instant::now());
        ControlFlow::Continue(())
    })?;
    let time = times.last().zip(times.first());
    let seconds = time.map_or(0.0, |(last, first)| (*last - *first).as_secs_f64());
    Ok(real(times.len().saturating_sub(1)) / seconds)
}

/// Weights in bf16 that a frame touches.
fn bytes_of_a_frame(facts: &SpeechFacts) -> f64 {
    let attention = |t: &TextFacts| {
        let [hidden, heads, kv, width] =
            [t.hidden_size, t.heads, t.kv_heads, t.head_dim].map(|n| real(to_usize(n)));
        hidden * width * (2.0 * heads + 2.0 * kv)
    };
    let talker = &facts.talker;
    let hidden = real(to_usize(talker.hidden_size));
    let [per_token, all] = [talker.experts_per_token, talker.experts].map(|n| real(n as usize));
    let inner = real(to_usize(talker.moe_intermediate));
    let experts = per_token * 3.0 * hidden * inner + all * hidden;
    let shared = 3.0 * hidden * real(to_usize(facts.shared_intermediate));
    let layers = real(talker.layers as usize);
    let first =
        layers * (attention(talker) + experts + shared) + hidden * real(to_usize(talker.vocab));
    let predictor = &facts.predictor;
    let hidden = real(to_usize(predictor.hidden_size));
    let mlp = 3.0 * hidden * real(to_usize(predictor.intermediate));
    let residual = real(facts.groups as usize - 1);
    let layers = real(predictor.layers as usize);
    let head = hidden * real(to_usize(predictor.vocab));
    2.0 * (first + residual * (layers * (attention(predictor) + mlp) + head))
}

fn code2wav(session: &Session<'_>, kernels: Kernels, args: &Args) -> Result<(), Box<dyn Error>> {
    let facts = session.vocoder_facts()?;
    let vocoder = session.vocoder(0)?;
    let groups = vocoder.groups();
    let codebook = u32::try_from(facts.codebook)?;
    let codes: Vec<u32> = (0..args.frames * groups)
        .map(|n| u32::try_from(n * 7919 % 65_521).unwrap_or(0) % codebook)
        .collect();
    let work = 2.0 * multiply_adds(&facts, args.frames);
    let chunks = Chunks::default();
    let sound = real(vocoder.samples(args.frames, chunks)) / f64::from(vocoder.sample_rate());
    let (mut all, mut loaded) = (Vec::new(), Vec::new());
    for _ in 0..args.runs {
        let peak = || session.install(|| limits::fma_peak(kernels, STEPS));
        let ([whole, rest], peak) = beside_limit(peak, || {
            let began = Instant::now();
            let mut first = FirstStage(None);
            let mut sink = |_: &[f32]| Ok::<_, SessionError>(());
            session.vocode(&vocoder, &codes, chunks, &mut first, &mut sink)?;
            let since = |then: Instant| then.elapsed().as_secs_f64();
            Ok::<_, SessionError>([since(began), since(first.0.unwrap_or(began))])
        })?;
        all.push((work / whole / peak, sound / whole, peak));
        loaded.push((work / rest / peak, sound / rest, peak));
    }
    for (what, runs) in [("code2wav", all), ("once it is loaded", loaded)] {
        let (share, rate, peak) = median(runs);
        println!(
            "{what}: {rate:.3} s of sound per second, {:.1} % of {:.0} GFLOP/s",
            share * 100.0,
            peak / 1e9
        );
    }
    Ok(())
}

/// When the first result came: the weights of all but the transformer's layers are loaded before.
struct FirstStage(Option<Instant>);

impl VocoderObserver for FirstStage {
    fn stage(&mut self, _: WaveStage, _: &[f32], _: usize) {
        self.0.get_or_insert_with(Instant::now);
    }
}

/// Of all linear layers, convolutions and attention, for a chunk of so many frames.
fn multiply_adds(facts: &VocoderFacts, frames: usize) -> f64 {
    let [hidden, heads, kv, width, inner, window, decoder] = [
        facts.hidden,
        facts.heads,
        facts.kv_heads,
        facts.head_dim,
        facts.intermediate,
        facts.window,
        facts.decoder,
    ]
    .map(|n| real(to_usize(n)));
    let layer = hidden * width * (2.0 * heads + 2.0 * kv)
        + 3.0 * hidden * inner
        + 2.0 * window * heads * width;
    let mut sum = real(facts.layers as usize) * layer;
    // rows of a frame
    let mut rows = 1.0;
    for factor in &facts.stages {
        rows *= real(to_usize(*factor));
        sum += rows * (hidden * hidden + 7.0 * hidden + 8.0 * hidden * hidden);
    }
    sum += rows * 7.0 * hidden * decoder;
    let mut channels = decoder;
    for rate in &facts.rates {
        rows *= real(to_usize(*rate));
        // each row of the transposed convolution sees two taps; then three residual units
        sum += rows * 2.0 * channels * channels / 2.0;
        channels /= 2.0;
        sum += rows * 3.0 * 8.0 * channels * channels;
    }
    sum += rows * 7.0 * channels;
    sum * real(frames)
}

/// Memory on huge pages, as weights are, with other values on every page.
fn memory() -> Result<MmapMut, Box<dyn Error>> {
    let mut map = MmapMut::map_anon(MEMORY)?;
    #[cfg(target_os = "linux")]
    map.advise(Advice::HugePage)?;
    for (page, bytes) in map.chunks_mut(4096).enumerate() {
        bytes.fill(u8::try_from(page % 251).unwrap_or(0));
    }
    Ok(map)
}

/// The run in the middle, by its share.
fn median(mut runs: Vec<(f64, f64, f64)>) -> (f64, f64, f64) {
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    runs[runs.len() / 2]
}
