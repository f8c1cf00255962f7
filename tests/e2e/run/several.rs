//! Several sequences in one forward pass: each has the bits that it has alone.

use std::path::Path;

use segpack_formats::codec::Coding;
use segpack_formats::io::CancelToken;
use segpack_manifests::{Pack, PackReader};
use segpack_runtime_min::models::decoder::{
    Decoder, Logits, RunSettings, SequenceId, SequenceTokens,
};
use segpack_runtime_min::ops::{Compute, CpuOps};
use segpack_runtime_min::{Observer, Routing, RunError, Unobserved};

use super::thinker::{fixture, packed};
use crate::support::checkpoint::fixtures;

/// A prompt, and the tokens that follow it one by one.
struct Text {
    prompt: Vec<u32>,
    forced: Vec<u32>,
    /// The forward pass that it begins in.
    begins: usize,
}

impl Text {
    fn new(seed: u32, prompt: usize, forced: usize, begins: usize) -> Self {
        let mut ids = (0_u32..).map(|i| (17 + seed * 89 + i * 31) % 48);
        Self {
            prompt: ids.by_ref().take(prompt).collect(),
            forced: ids.take(forced).collect(),
            begins,
        }
    }

    fn positions(&self) -> usize {
        self.prompt.len() + self.forced.len()
    }

    /// What forward pass `number` runs of it.
    fn pass(&self, number: usize) -> Option<&[u32]> {
        match number.checked_sub(self.begins)? {
            0 => Some(&self.prompt),
            n => self.forced.get(n - 1..n),
        }
    }
}

/// Different lengths; some begin while others go on, and end before them.
fn texts() -> Vec<Text> {
    vec![
        Text::new(1, 1, 6, 0),
        Text::new(2, 19, 3, 0),
        Text::new(3, 5, 0, 1),
        Text::new(4, 40, 2, 2),
        Text::new(5, 2, 4, 2),
    ]
}

/// The logits of each pass, one text after another.
type Logitses = Vec<Vec<Vec<f32>>>;

fn alone(pack: &Pack, ops: CpuOps, texts: &[Text], mut settings: RunSettings) -> Logitses {
    let (source, stop) = (PackReader::new(pack), CancelToken::default());
    settings.positions = texts.iter().map(Text::positions).max().unwrap();
    settings.longest_pass = settings.positions;
    let mut decoder = Decoder::new(&source, ops, settings, &stop).unwrap();
    let one = |text: &Text| {
        decoder.reset();
        let passes = (text.begins..).map_while(|number| text.pass(number));
        let logits = passes.map(|ids| decoder.forward(ids, Logits::All, &mut Unobserved).unwrap());
        logits.collect()
    };
    texts.iter().map(one).collect()
}

/// All of them in the same passes, in this order.
fn together(
    pack: &Pack,
    ops: CpuOps,
    texts: &[Text],
    order: &[usize],
    mut settings: RunSettings,
) -> Logitses {
    let (source, stop) = (PackReader::new(pack), CancelToken::default());
    settings.sequences = texts.len();
    settings.positions = texts.iter().map(Text::positions).sum();
    settings.longest_pass = settings.positions;
    let mut decoder = Decoder::new(&source, ops, settings, &stop).unwrap();
    let mut open: Vec<Option<SequenceId>> = vec![None; texts.len()];
    let mut seen: Logitses = vec![Vec::new(); texts.len()];
    for number in 0.. {
        let mut parts = Vec::new();
        let mut running = Vec::new();
        for at in order {
            let Some(ids) = texts[*at].pass(number) else {
                if let Some(sequence) = open[*at].take() {
                    decoder.close_sequence(sequence);
                }
                continue;
            };
            let sequence = *open[*at]
                .get_or_insert_with(|| decoder.open_sequence(texts[*at].positions()).unwrap());
            running.push(*at);
            parts.push(SequenceTokens {
                sequence,
                ids,
                want: Logits::All,
            });
        }
        if parts.is_empty() {
            break;
        }
        let logits = decoder.forward_batch(&parts, &mut []).unwrap();
        for (at, logits) in running.into_iter().zip(logits) {
            seen[at].push(logits);
        }
    }
    seen
}

fn bits(logits: &Logitses) -> Vec<Vec<Vec<u32>>> {
    let pass = |pass: &Vec<f32>| pass.iter().map(|x| x.to_bits()).collect();
    let text = |passes: &Vec<Vec<f32>>| passes.iter().map(pass).collect();
    logits.iter().map(text).collect()
}

fn assert_same_bits(checkpoint: &Path, coding: Coding, compute: Compute) {
    let (_folder, pack) = packed(checkpoint, coding);
    let ops = CpuOps::new(compute);
    let texts = texts();
    let wanted = bits(&alone(&pack, ops, &texts, RunSettings::default()));
    let mut one_expert = RunSettings::default();
    one_expert.expert_slots = Some(1);
    let orders = [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1]];
    for (order, threads, settings) in [
        (orders[0], 1, RunSettings::default()),
        (orders[1], 2, one_expert),
        (orders[1], 3, RunSettings::default()),
    ] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = pool.build().unwrap();
        let seen = pool.install(|| together(&pack, ops, &texts, &order, settings));
        assert!(
            bits(&seen) == wanted,
            "{} {coding:?} {compute:?} in order {order:?} on {threads} threads",
            checkpoint.display()
        );
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_among_others() {
    for name in ["tiny-text", "tiny-full"] {
        for coding in [Coding::Raw, Coding::Bf16Rans] {
            assert_same_bits(&fixture(name), coding, Compute::F32);
        }
        assert_same_bits(&fixture(name), Coding::Raw, Compute::Bf16);
    }
}

#[test]
fn so_has_one_of_each_family_that_is_run() {
    let folder = fixtures().join("decoders");
    let mut families = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        assert_same_bits(&entry.unwrap().path(), Coding::Raw, Compute::F32);
        families += 1;
    }
    assert!(families >= 10, "{families} families");
}

#[test]
fn the_smallest_memory_budget_changes_no_bit() {
    let (_folder, pack) = packed(&fixture("tiny-full"), Coding::Raw);
    let (ops, texts) = (CpuOps::new(Compute::F32), texts());
    let wanted = bits(&alone(&pack, ops, &texts, RunSettings::default()));
    let positions: usize = texts.iter().map(Text::positions).sum();
    let mut settings = RunSettings::new(positions, positions);
    settings.sequences = texts.len();
    let least = {
        let (source, stop) = (PackReader::new(&pack), CancelToken::default());
        let decoder = Decoder::new(&source, ops, settings, &stop).unwrap();
        decoder.demand().min()
    };
    settings.memory = Some(least);
    let seen = together(&pack, ops, &texts, &[3, 0, 1, 2, 4], settings);
    assert!(bits(&seen) == wanted);
}

/// Experts of the first layer that has them.
#[derive(Default)]
struct Chosen(Vec<u32>, Vec<f32>);

impl Observer for Chosen {
    fn hidden(&mut self, layer: usize, x: &[f32]) {
        if layer == 0 {
            self.1.extend(x);
        }
    }

    fn router(&mut self, _: usize, routing: &Routing) {
        self.0.extend(&routing.ids);
    }
}

#[test]
fn an_observer_sees_its_sequence_and_an_expert_is_read_once_for_all() {
    let (_folder, pack) = packed(&fixture("tiny-full"), Coding::Raw);
    let (source, stop) = (PackReader::new(&pack), CancelToken::default());
    let prompts: [&[u32]; 2] = [&[5, 9, 200, 4], &[5, 9, 200]];
    let mut settings = RunSettings::new(8, 8);
    settings.sequences = 2;
    let ops = CpuOps::new(Compute::F32);
    let mut decoder = Decoder::new(&source, ops, settings, &stop).unwrap();
    let parts = prompts.map(|ids| SequenceTokens {
        sequence: decoder.open_sequence(4).unwrap(),
        ids,
        want: Logits::Last,
    });
    let (mut one, mut other) = (Chosen::default(), Chosen::default());
    decoder
        .forward_batch(&parts, &mut [&mut one, &mut other])
        .unwrap();
    // the second is the beginning of the first
    assert!(one.1.starts_with(&other.1) && one.1.len() > other.1.len());
    let uses = decoder.stats().expert_uses;
    assert!(uses.values().all(|n| *n == 1), "{uses:?}");
    assert!(decoder.stats().cache.misses == uses.len() as u64);
}

#[test]
fn what_does_not_fit_or_is_not_open_is_refused() {
    let (_folder, pack) = packed(&fixture("tiny-text"), Coding::Raw);
    let (source, stop) = (PackReader::new(&pack), CancelToken::default());
    let mut settings = RunSettings::new(10, 10);
    settings.sequences = 2;
    let ops = CpuOps::new(Compute::F32);
    let mut decoder = Decoder::new(&source, ops, settings, &stop).unwrap();
    let sequence = decoder.open_sequence(6).unwrap();
    let error = decoder.open_sequence(5).unwrap_err();
    assert!(matches!(
        error,
        RunError::TooLong {
            wanted: 5,
            reserved: 4
        }
    ));
    let part = |ids| SequenceTokens {
        sequence,
        ids,
        want: Logits::Last,
    };
    let error = decoder
        .forward_batch(&[part(&[1; 7])], &mut [])
        .unwrap_err();
    assert!(matches!(error, RunError::TooLong { wanted: 7, .. }));
    let error = decoder.forward_batch(&[part(&[1]), part(&[2])], &mut []);
    assert!(error.unwrap_err().to_string().contains("twice"));
    assert!(matches!(
        decoder.forward_batch(&[part(&[u32::MAX])], &mut []),
        Err(RunError::TokenId { .. })
    ));
    // none of them ran
    assert_eq!(decoder.stats().bytes_read, 0);
    decoder.close_sequence(sequence);
    assert!(decoder.forward_batch(&[part(&[1])], &mut []).is_err());
    assert!(decoder.open_sequence(10).is_ok());
}
