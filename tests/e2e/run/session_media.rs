//! Prompts with audio, images and videos through a session: the official tokens, on the CPU and on a
//! GPU (the host shim), and what is left of a prompt after it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use segpack_manifests::Pack;
use segpack_runtime_min::Unobserved;
use segpack_runtime_min::models::encoder::{EncoderObserver, EncoderStage};
use segpack_runtime_min::processing::MediaFeatures;
use segpack_runtime_min::session::{
    DeviceChoice, GenerationSettings, Hooks, Logits, MediaInputs, MediaObserver, MemoryLimit,
    Reservation, Session, SessionError, SessionOptions, Token,
};
use segpack_runtime_min::trace::{MediaTrace, Normalization};

use crate::support::checkpoint::fixtures;
use crate::support::cli::packed;
use crate::support::folders::temp;
use crate::support::gpu::load;

/// What `preprocessor_config.json` of the checkpoint says.
const HALF: Normalization = Normalization {
    mean: [0.5; 3],
    std: [0.5; 3],
};

fn trace_of(case: &str) -> MediaTrace {
    let name = format!("traces/tiny-omni.media.{case}.float32.safetensors");
    MediaTrace::open(&fixtures().join(name)).unwrap().unwrap()
}

fn options(device: DeviceChoice) -> SessionOptions {
    let mut options = SessionOptions::default();
    options.device = device;
    options
}

fn generated(session: &Session<'_>, trace: &MediaTrace, features: &MediaFeatures) -> Vec<u32> {
    let mut settings = GenerationSettings::default();
    settings.max_new_tokens = trace.generated().len();
    settings.stop_ids = Some(Vec::new());
    let mut ignore = |_: &Token<'_>| ControlFlow::Continue(());
    let hooks = Hooks::new(&mut ignore);
    let text = session.text().unwrap();
    let generation = session.generate_media(&text, trace.ids(), features, &settings, hooks);
    generation.unwrap().ids
}

/// Greedy steps after a prompt are recorded ones on a GPU: they have to go on at the prompt's
/// positions.
#[test]
fn the_official_tokens_follow_prompts_with_media() {
    load();
    let folder = temp();
    let pack = Pack::open(&packed(&fixtures().join("tiny-omni"), folder.path())).unwrap();
    for device in [DeviceChoice::Cpu, DeviceChoice::Cuda(0)] {
        let session = Session::open(&pack, &options(device)).unwrap();
        for case in ["mixed", "audio-in-video-wide", "video-gif", "image-shapes"] {
            let trace = trace_of(case);
            let features = trace.features(Some(HALF)).unwrap();
            assert_eq!(
                generated(&session, &trace, &features),
                trace.generated(),
                "{case}"
            );
        }
    }
}

/// Logits of some text in a model that is reset before.
fn after<'m>(
    session: &Session<'_>,
    before: Option<(&[u32], &MediaInputs)>,
    steps: &'m [&'m [u32]],
) -> Vec<Vec<f32>> {
    let reservation = Reservation {
        positions: 200,
        longest_pass: 100,
    };
    let logits = session.with_model(reservation, |model| {
        // steps of one token, so that a GPU records one
        for id in [5, 6, 7, 8] {
            model.forward(&[id], Logits::Last, &mut Unobserved)?;
        }
        if let Some((ids, inputs)) = before {
            model.reset();
            model.forward_media(ids, inputs, Logits::Last, &mut Unobserved)?;
            for id in [5, 6, 7] {
                model.forward(&[id], Logits::Last, &mut Unobserved)?;
            }
        }
        model.reset();
        let run = |ids: &&[u32]| model.forward(ids, Logits::Last, &mut Unobserved);
        Ok::<_, SessionError>(steps.iter().map(run).collect::<Result<_, _>>()?)
    });
    logits.unwrap()
}

#[test]
fn positions_of_a_picture_are_forgotten_with_it() {
    load();
    let folder = temp();
    let pack = Pack::open(&packed(&fixtures().join("tiny-omni"), folder.path())).unwrap();
    let trace = trace_of("image-lossless");
    let features = trace.features(Some(HALF)).unwrap();
    let steps: [&[u32]; 4] = [&[9], &[77], &[200], &[31]];
    for device in [DeviceChoice::Cpu, DeviceChoice::Cuda(0)] {
        let session = Session::open(&pack, &options(device)).unwrap();
        let inputs = session.encode(trace.ids(), &features, &mut ()).unwrap();
        let seen = after(&session, Some((trace.ids(), &inputs)), &steps);
        assert_eq!(seen, after(&session, None, &steps), "{device:?}");
    }
}

#[test]
fn a_prompt_with_media_is_the_first_of_its_text() {
    let folder = temp();
    let pack = Pack::open(&packed(&fixtures().join("tiny-omni"), folder.path())).unwrap();
    let trace = trace_of("audio-one");
    let features = trace.features(None).unwrap();
    let session = Session::open(&pack, &options(DeviceChoice::Cpu)).unwrap();
    let inputs = session.encode(trace.ids(), &features, &mut ()).unwrap();
    let reservation = Reservation {
        positions: 100,
        longest_pass: 80,
    };
    let refused = session.with_model(reservation, |model| {
        model.forward(&[5], Logits::Last, &mut Unobserved)?;
        let after = model.forward_media(trace.ids(), &inputs, Logits::Last, &mut Unobserved);
        let refused = after.unwrap_err().to_string();
        model.reset();
        // inputs of another prompt are no panic
        let other = model.forward_media(&[5, 6], &inputs, Logits::Last, &mut Unobserved);
        assert!(other.is_err());
        Ok::<_, SessionError>(refused)
    });
    assert!(refused.unwrap().contains("has to be the first"));
}

/// The stages in the order in which the encoder of pictures completed them.
#[derive(Default)]
struct Order {
    images: Stages,
    videos: Stages,
    count: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Stages(Vec<(usize, EncoderStage)>, Arc<AtomicUsize>);

impl EncoderObserver for Stages {
    fn stage(&mut self, stage: EncoderStage, _: &[f32]) {
        let number = self.1.fetch_add(1, Ordering::Relaxed);
        self.0.push((number, stage));
    }
}

impl MediaObserver for Order {
    fn audio(&mut self) -> &mut dyn EncoderObserver {
        Box::leak(Box::new(()))
    }

    fn images(&mut self) -> &mut dyn EncoderObserver {
        self.images.1 = Arc::clone(&self.count);
        &mut self.images
    }

    fn videos(&mut self) -> &mut dyn EncoderObserver {
        self.videos.1 = Arc::clone(&self.count);
        &mut self.videos
    }
}

/// A block's weights are in memory once: what is before it is done of images and of videos, what is
/// after it of neither.
#[test]
fn images_and_videos_go_through_the_encoder_together() {
    let folder = temp();
    let pack = Pack::open(&packed(&fixtures().join("tiny-omni"), folder.path())).unwrap();
    let trace = trace_of("mixed");
    let features = trace.features(Some(HALF)).unwrap();
    let session = Session::open(&pack, &options(DeviceChoice::Cpu)).unwrap();
    let mut order = Order::default();
    session.encode(trace.ids(), &features, &mut order).unwrap();
    let place = |stages: &Stages, wanted: EncoderStage| {
        let found = stages.0.iter().find(|(_, stage)| *stage == wanted);
        found.unwrap().0
    };
    let [first, second] = [0, 1].map(EncoderStage::Block);
    for (one, other) in [
        (&order.images, &order.videos),
        (&order.videos, &order.images),
    ] {
        assert!(place(one, first) < place(other, second));
    }
    assert_eq!(order.images.0.len(), order.videos.0.len());
}

/// The encoders' memory is counted before it is taken, and what is told as the minimum works.
#[test]
fn the_smallest_memory_that_is_told_is_enough_for_encoders() {
    let folder = temp();
    let pack = Pack::open(&packed(&fixtures().join("tiny-omni"), folder.path())).unwrap();
    let trace = trace_of("mixed");
    let features = trace.features(Some(HALF)).unwrap();
    let encode = |memory: u64| {
        let mut options = options(DeviceChoice::Cpu);
        options.memory = MemoryLimit::Bytes(memory);
        let session = Session::open(&pack, &options).unwrap();
        session.encode(trace.ids(), &features, &mut ()).map(drop)
    };
    let mut memory = 1000;
    for _ in 0..4 {
        match encode(memory) {
            Ok(()) => return,
            Err(SessionError::Run(segpack_runtime_min::RunError::Memory { minimum, .. })) => {
                assert!(minimum > memory);
                memory = minimum;
            }
            Err(other) => panic!("{other}"),
        }
    }
    panic!("{memory} bytes are not enough");
}
