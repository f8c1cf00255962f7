use super::logits::{check, exp};
use super::sampler::{SplitMix64, kept};
use super::*;
use std::num::NonZeroUsize;

/// Answers with rows of logits, one for the prompt and one for each token after it, and notes what it
/// was asked.
struct Fake {
    rows: Vec<Vec<f32>>,
    calls: Vec<Vec<u32>>,
    /// Those of the last call of `forward_all`.
    all: Vec<f32>,
    context: usize,
    position: usize,
    /// Tokens that it chooses at a time, in each call that asks it to; none where it never does.
    chosen: Option<Vec<usize>>,
}

impl Fake {
    fn new(rows: Vec<Vec<f32>>) -> Self {
        Self {
            rows,
            calls: Vec::new(),
            all: Vec::new(),
            context: 100,
            position: 0,
            chosen: None,
        }
    }

    /// Says these tokens in turn.
    fn saying(ids: &[u32]) -> Self {
        Self::new(
            ids.iter()
                .map(|&id| {
                    (0..4)
                        .map(|other| f32::from(u8::from(other == id)))
                        .collect()
                })
                .collect(),
        )
    }
}

impl LanguageModel for Fake {
    type Error = &'static str;

    fn vocab_size(&self) -> usize {
        4
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn position(&self) -> usize {
        self.position
    }

    fn forward(&mut self, ids: &[u32]) -> Result<&[f32], &'static str> {
        self.calls.push(ids.to_vec());
        self.position += ids.len();
        let number = self.position - self.calls[0].len();
        self.rows
            .get(number)
            .map(Vec::as_slice)
            .ok_or("out of rows")
    }

    /// What follows a token that it would not have said is no number.
    fn forward_all(&mut self, ids: &[u32]) -> Result<&[f32], &'static str> {
        self.calls.push(ids.to_vec());
        let mut all = Vec::new();
        let mut is_said = true;
        for (number, id) in ids.iter().enumerate() {
            let before = &self.rows[self.position - self.calls[0].len()];
            is_said &= number == 0 || check(before) == Ok(*id);
            self.position += 1;
            let row = self.rows.get(self.position - self.calls[0].len());
            match row {
                Some(row) if is_said => all.extend(row),
                _ => all.extend([f32::NAN; 4]),
            }
        }
        self.all = all;
        Ok(&self.all)
    }

    fn greedy(&mut self, last: u32, next: &mut [ArgMax]) -> Result<bool, &'static str> {
        let Some(chosen) = &mut self.chosen else {
            return Ok(false);
        };
        chosen.push(next.len());
        let mut id = last;
        for to in next {
            let row = self.forward(&[id])?.to_vec();
            let wrong = row.iter().position(|x| x.is_nan() || *x == f32::INFINITY);
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let best = wrong
                .or_else(|| row.iter().position(|x| *x == most))
                .unwrap();
            *to = ArgMax {
                id: u32::try_from(best).unwrap(),
                logit: row[best],
            };
            id = to.id;
        }
        Ok(true)
    }

    fn truncate(&mut self, position: usize) {
        assert!(position <= self.position, "forward is the other way");
        self.position = position;
    }
}

fn run(
    model: &mut Fake,
    prompt: &[u32],
    max_new_tokens: usize,
    stop_ids: &[u32],
) -> Result<Generated, GenerateError<&'static str>> {
    let options = GenerateOptions {
        max_new_tokens,
        stop_ids,
        wants_logits: false,
        ..GenerateOptions::default()
    };
    generate(model, prompt, &mut Sampler::greedy(), &options, |_| {
        ControlFlow::Continue(())
    })
}

fn random(temperature: f64, top_k: Option<usize>, top_p: Option<f64>, seed: u64) -> Sampler {
    Sampler::random(SamplingOptions {
        temperature,
        top_k,
        top_p,
        seed,
    })
    .unwrap()
}

#[test]
fn the_prompt_is_prefilled_once_and_the_last_token_is_not_run() {
    let mut model = Fake::saying(&[2, 1, 3]);
    let generated = run(&mut model, &[0, 1], 3, &[]).unwrap();
    assert_eq!(
        generated,
        Generated {
            ids: vec![2, 1, 3],
            reason: StopReason::MaxNewTokens,
            drafts: DraftCounts::default(),
        }
    );
    assert_eq!(model.calls, [vec![0, 1], vec![2], vec![1]]);
}

#[test]
fn stop_ids_end_the_text_and_belong_to_it() {
    let mut model = Fake::saying(&[2, 1, 3]);
    let mut seen = Vec::new();
    let options = GenerateOptions {
        max_new_tokens: 9,
        stop_ids: &[3, 1],
        wants_logits: true,
        ..GenerateOptions::default()
    };
    let generated = generate(&mut model, &[0], &mut Sampler::greedy(), &options, |step| {
        assert_eq!(step.logits.len(), 4);
        seen.push((step.index, step.id, step.is_stop));
        ControlFlow::Continue(())
    });
    assert_eq!(
        generated.unwrap(),
        Generated {
            ids: vec![2, 1],
            reason: StopReason::StopId(1),
            drafts: DraftCounts::default(),
        }
    );
    assert_eq!(seen, [(0, 2, false), (1, 1, true)]);
}

#[test]
fn the_caller_and_a_full_context_end_the_text() {
    let options = GenerateOptions {
        max_new_tokens: 9,
        stop_ids: &[],
        wants_logits: true,
        ..GenerateOptions::default()
    };
    let mut model = Fake::saying(&[2, 1]);
    let generated = generate(&mut model, &[0], &mut Sampler::greedy(), &options, |_| {
        ControlFlow::Break(())
    });
    assert_eq!(
        generated.unwrap(),
        Generated {
            ids: vec![2],
            reason: StopReason::Caller,
            drafts: DraftCounts::default(),
        }
    );
    let mut model = Fake {
        context: 3,
        ..Fake::saying(&[2, 1, 3])
    };
    assert_eq!(
        run(&mut model, &[0, 0], 9, &[]).unwrap(),
        Generated {
            ids: vec![2, 1],
            reason: StopReason::ContextFull,
            drafts: DraftCounts::default(),
        }
    );
    assert_eq!(model.position, 3);
}

/// What came of a text whose tokens the model or the loop chose: the tokens as they were told, the
/// end, the positions.
type Told = (Vec<(usize, u32, bool)>, Result<Generated, String>, usize);

/// An error, with what is wrong with the logits where it is about them.
fn with_cause(error: &GenerateError<&str>) -> String {
    match error {
        GenerateError::Logits { source, .. } => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}

fn reported(model: &mut Fake, max_new_tokens: usize, stop_ids: &[u32], break_at: usize) -> Told {
    let mut seen = Vec::new();
    let options = GenerateOptions {
        max_new_tokens,
        stop_ids,
        wants_logits: false,
        ..GenerateOptions::default()
    };
    let generated = generate(model, &[0, 0], &mut Sampler::greedy(), &options, |step| {
        seen.push((step.index, step.id, step.is_stop));
        if step.index == break_at {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    (seen, generated.map_err(|e| with_cause(&e)), model.position)
}

#[test]
fn what_the_model_chooses_is_what_the_loop_would_choose() {
    // the first 3 is at 5, the first 0 at 12
    let ids = [1, 2, 1, 1, 2, 3, 2, 1, 3, 1, 2, 2, 0, 1, 1, 2, 3, 1, 2, 1];
    for max_new_tokens in 0..ids.len() {
        for (stop_ids, context, break_at) in [
            (&[][..], 100, 99),
            (&[3], 100, 99),
            (&[0], 100, 99),
            (&[], 12, 99),
            (&[3], 7, 99),
            (&[], 100, 10),
        ] {
            let of = |chosen: Option<Vec<usize>>| {
                let mut model = Fake {
                    chosen,
                    context,
                    ..Fake::saying(&ids)
                };
                (
                    reported(&mut model, max_new_tokens, stop_ids, break_at),
                    model.chosen,
                )
            };
            let (by_loop, _) = of(None);
            let (by_model, chosen) = of(Some(Vec::new()));
            assert_eq!(
                by_model, by_loop,
                "{max_new_tokens} {stop_ids:?} {context} {break_at}"
            );
            let chosen = chosen.unwrap();
            assert!(
                chosen.iter().all(|n| (1..=MAX_CHOSEN).contains(n)),
                "{chosen:?}"
            );
            assert_eq!(
                chosen.is_empty(),
                max_new_tokens < 2,
                "all but the first token: {chosen:?}"
            );
        }
    }
}

#[test]
fn wrong_logits_are_named_where_the_model_chooses_and_only_before_the_end() {
    for (wrong, printed) in [
        (
            vec![0.0, 1.0, f32::NAN, f32::INFINITY],
            "step 4 cannot be used: the logit of token 2 is NaN",
        ),
        (
            vec![0.0, f32::INFINITY, f32::NAN, 0.0],
            "step 4 cannot be used: the logit of token 1 is inf",
        ),
        (
            vec![f32::NEG_INFINITY; 4],
            "step 4 cannot be used: every logit is minus infinity",
        ),
    ] {
        let reported = |stop_ids: &[u32], chosen| {
            let mut model = Fake {
                chosen,
                ..Fake::saying(&[1, 2, 1, 3, 2, 1, 1, 1, 1, 1])
            };
            model.rows[4] = wrong.clone();
            reported(&mut model, 10, stop_ids, 99)
        };
        for chosen in [None, Some(Vec::new())] {
            let (seen, generated, _) = reported(&[], chosen.clone());
            assert_eq!(seen.iter().map(|s| s.1).collect::<Vec<_>>(), [1, 2, 1, 3]);
            assert!(generated.unwrap_err().contains(printed));
            assert_eq!(
                reported(&[3], chosen).1.unwrap().reason,
                StopReason::StopId(3),
                "what comes after does not count"
            );
        }
    }
}

#[test]
fn the_model_is_not_asked_where_logits_are_wanted_or_tokens_drawn() {
    for (mut sampler, wants_logits) in [
        (Sampler::greedy(), true),
        (random(1.0, None, None, 1), false),
    ] {
        let mut model = Fake {
            chosen: Some(Vec::new()),
            ..Fake::saying(&[1, 2, 1, 3])
        };
        let options = GenerateOptions {
            max_new_tokens: 4,
            stop_ids: &[],
            wants_logits,
            ..GenerateOptions::default()
        };
        let mut logits = 0;
        generate(&mut model, &[0], &mut sampler, &options, |step| {
            logits += step.logits.len();
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!((model.chosen, logits), (Some(Vec::new()), 16));
    }
}

#[test]
fn drafts_change_the_forward_passes_and_nothing_of_the_text() {
    // it quotes itself, goes another way, and quotes that
    let ids = [
        1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 1, 1, 2, 3, 0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 0,
    ];
    let lookup = DraftLookup::new(NonZeroUsize::new(5).unwrap());
    for max_new_tokens in 0..ids.len() {
        for (stop_ids, context, break_at) in [
            (&[][..], 100, 99),
            (&[0], 100, 99),
            (&[], 12, 99),
            (&[], 100, 6),
            (&[], 100, 20),
        ] {
            for sampled in [false, true] {
                let of = |drafts| {
                    let mut model = Fake {
                        context,
                        ..Fake::saying(&ids)
                    };
                    // so sure that it draws what is greatest, each draw one step of the generator
                    let mut sampler = match sampled {
                        true => random(1e-3, None, None, 1),
                        false => Sampler::greedy(),
                    };
                    let options = GenerateOptions {
                        max_new_tokens,
                        stop_ids,
                        drafts,
                        ..GenerateOptions::default()
                    };
                    let mut seen = Vec::new();
                    let generated = generate(&mut model, &[0, 0], &mut sampler, &options, |step| {
                        seen.push((step.index, step.id, step.is_stop, step.logits.to_vec()));
                        match step.index == break_at {
                            true => ControlFlow::Break(()),
                            false => ControlFlow::Continue(()),
                        }
                    });
                    let generated = generated.unwrap();
                    let end = (generated.reason, model.position, format!("{sampler:?}"));
                    ((seen, generated.ids, end), generated.drafts, model.calls)
                };
                let (wanted, none, one_by_one) = of(None);
                let (text, counts, passes) = of(Some(&lookup));
                let case = format!("{max_new_tokens} {stop_ids:?} {context} {break_at} {sampled}");
                assert_eq!(text, wanted, "{case}");
                assert_eq!(none, DraftCounts::default());
                let saved = one_by_one.len() - passes.len();
                assert_eq!(counts.accepted, saved as u64, "{case}: {counts:?}");
                assert!(counts.accepted <= counts.drafted && counts.passes <= counts.drafted);
            }
        }
    }
    let options = GenerateOptions {
        drafts: Some(&lookup),
        ..GenerateOptions::new(ids.len(), &[])
    };
    let mut model = Fake::saying(&ids);
    let greedy = &mut Sampler::greedy();
    let generated = generate(&mut model, &[0, 0], greedy, &options, |_| {
        ControlFlow::Continue(())
    });
    let counts = generated.unwrap().drafts;
    assert!(
        counts.accepted >= 10 && counts.drafted > counts.accepted,
        "{counts:?}"
    );
    assert!(
        model.calls.iter().all(|ids| ids.len() <= 6),
        "{:?}",
        model.calls
    );
}

#[test]
fn logits_of_a_draft_are_counted_and_looked_at_until_the_text_goes_another_way() {
    let lookup = DraftLookup::new(NonZeroUsize::new(5).unwrap());
    let options = GenerateOptions {
        drafts: Some(&lookup),
        ..GenerateOptions::new(9, &[])
    };
    let failing = |wrong: usize| {
        let mut model = Fake::saying(&[1, 1, 1, 1, 1, 2, 1, 1, 1, 1]);
        model.rows[wrong] = vec![f32::NAN; 4];
        let greedy = &mut Sampler::greedy();
        generate(&mut model, &[1, 1], greedy, &options, |_| {
            ControlFlow::Continue(())
        })
    };
    let seen = with_cause(&failing(4).unwrap_err());
    assert!(
        seen.contains("step 4 cannot be used: the logit of token 0 is NaN"),
        "{seen}"
    );
    // the draft of step 5 is 1, and what would follow it is no number
    assert_eq!(failing(9).unwrap().ids, [1, 1, 1, 1, 1, 2, 1, 1, 1]);
}

#[test]
fn no_tokens_wanted_means_no_forward_pass() {
    let mut model = Fake::saying(&[]);
    assert!(run(&mut model, &[0], 0, &[]).unwrap().ids.is_empty());
    assert!(model.calls.is_empty());
}

#[test]
fn bad_prompts_and_bad_logits_are_named() {
    let refusal =
        |mut model: Fake, prompt: &[u32]| with_cause(&run(&mut model, prompt, 3, &[]).unwrap_err());
    assert!(refusal(Fake::saying(&[1]), &[]).contains("no tokens"));
    let long = refusal(
        Fake {
            context: 2,
            ..Fake::saying(&[1])
        },
        &[0, 0, 0],
    );
    assert!(
        long.contains("3 tokens") && long.contains("only 2 of the model's 2 positions are free"),
        "{long}"
    );
    let outside = refusal(Fake::saying(&[1]), &[0, 4]);
    assert!(
        outside.contains("token id 4 (number 1 of the prompt)"),
        "{outside}"
    );
    assert_eq!(refusal(Fake::saying(&[1]), &[0]), "out of rows");
    assert!(
        refusal(Fake::new(vec![vec![0.0; 3]]), &[0]).contains("3 logits for a vocabulary of 4")
    );
    let nan = refusal(
        Fake::new(vec![vec![0.0; 4], vec![0.0, 1.0, f32::NAN, 0.0]]),
        &[0],
    );
    assert!(
        nan.contains("step 1 cannot be used: the logit of token 2 is NaN"),
        "{nan}"
    );
}

#[test]
fn greedy_takes_the_lowest_id_of_the_highest() {
    let mut greedy = Sampler::greedy();
    assert_eq!(greedy.choose(&[1.0, 3.0, 3.0, -1.0]), Ok(1));
    assert_eq!(greedy.choose(&[-0.0, 0.0]), Ok(0));
    assert_eq!(greedy.choose(&[f32::NEG_INFINITY, -5.0]), Ok(1));
    assert_eq!(
        greedy.choose(&[f32::NEG_INFINITY; 2]),
        Err(LogitsError::AllExcluded)
    );
    assert_eq!(greedy.choose(&[]), Err(LogitsError::Empty));
    assert!(matches!(
        greedy.choose(&[f32::INFINITY]),
        Err(LogitsError::NotFinite { id: 0, .. })
    ));
}

#[test]
fn split_mix_64_gives_its_published_outputs() {
    let mut random = SplitMix64(1_234_567);
    let outputs: Vec<u64> = (0..5).map(|_| random.next()).collect();
    assert_eq!(
        outputs,
        [
            6457827717110365317,
            3203168211198807973,
            9817491932198370423,
            4593380528125082431,
            16408922859458223821
        ]
    );
}

#[test]
fn the_same_seed_draws_the_same_tokens() {
    let logits: Vec<f32> = (0..50_u8).map(|id| f32::from(id % 7) / 3.0).collect();
    let draw = |seed| {
        let mut sampler = random(0.8, Some(20), Some(0.9), seed);
        (0..20)
            .map(|_| sampler.choose(&logits).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
    assert_eq!(
        draw(42)[..8],
        [33, 20, 27, 34, 6, 47, 20, 40],
        "pinned: every platform draws these"
    );
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [1.0_f32, 0.0, 2.0, f32::NEG_INFINITY];
    let mut sampler = random(0.5, None, None, 3);
    let mut counts = [0_u32; 4];
    for _ in 0..100_000 {
        counts[usize::try_from(sampler.choose(&logits).unwrap()).unwrap()] += 1;
    }
    let weights = [2.0_f64.exp(), 1.0, 4.0_f64.exp(), 0.0];
    for (count, weight) in counts.into_iter().zip(weights) {
        let want = weight / weights.iter().sum::<f64>();
        assert!(
            (f64::from(count) / 100_000.0 - want).abs() < 0.005,
            "{counts:?}"
        );
    }
}

/// The tokens that sampling leaves to choose from.
fn ids_kept(top_k: Option<usize>, top_p: Option<f64>, logits: &[f32]) -> Vec<u32> {
    let options = SamplingOptions {
        temperature: 1.0,
        top_k,
        top_p,
        seed: 0,
    };
    kept(logits, &options)
        .into_iter()
        .map(|(id, _)| id)
        .collect::<Vec<_>>()
}

#[test]
fn top_k_and_top_p_leave_what_transformers_leaves() {
    let logits = [0.1_f32.ln(), 0.4_f32.ln(), 0.2_f32.ln(), 0.3_f32.ln()];
    assert_eq!(ids_kept(None, None, &logits), [1, 3, 2, 0]);
    assert_eq!(ids_kept(Some(2), None, &logits), [1, 3]);
    assert_eq!(ids_kept(Some(9), None, &logits), [1, 3, 2, 0]);
    assert_eq!(ids_kept(None, Some(0.65), &logits), [1, 3]);
    assert_eq!(ids_kept(None, Some(0.75), &logits), [1, 3, 2]);
    assert_eq!(ids_kept(None, Some(1e-9), &logits), [1]);
    assert_eq!(ids_kept(None, Some(1.0), &logits).len(), 4);
    assert_eq!(
        ids_kept(Some(3), Some(0.5), &logits),
        [1, 3],
        "top-p counts what top-k left"
    );
    assert_eq!(
        ids_kept(Some(1), None, &[2.0, 2.0, 1.0]),
        [0, 1],
        "equal logits stay together"
    );
    assert_eq!(random(1e-3, None, None, 1).choose(&[1.0, 2.0, 0.0]), Ok(1));
}

fn refused(temperature: f64, top_k: Option<usize>, top_p: Option<f64>) -> String {
    Sampler::random(SamplingOptions {
        temperature,
        top_k,
        top_p,
        seed: 0,
    })
    .map(|_| ())
    .unwrap_err()
    .to_string()
}

#[test]
fn sampling_settings_out_of_range_are_refused() {
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(refused(temperature, None, None).contains("temperature"));
    }
    for top_p in [0.0, 1.1, f64::NAN] {
        assert!(refused(1.0, None, Some(top_p)).contains("top-p"));
    }
    assert!(refused(1.0, Some(0), None).contains("top-k"));
}

#[test]
fn the_highest_logits_come_with_probabilities() {
    let logits = [1.0_f32, 3.0, 3.0, 0.0, 2.0];
    let top = top_k_logits(&logits, 3).unwrap();
    assert_eq!(
        top.iter().map(|candidate| candidate.id).collect::<Vec<_>>(),
        [1, 2, 4]
    );
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    for candidate in &top {
        assert!((candidate.probability - f64::from(candidate.logit).exp() / sum).abs() < 1e-12);
    }
    assert_eq!(top_k_logits(&logits, 9).unwrap().len(), 5);
    assert!(top_k_logits(&logits, 0).unwrap().is_empty());
    let total: f64 = top_k_logits(&logits, 5)
        .unwrap()
        .iter()
        .map(|candidate| candidate.probability)
        .sum();
    assert!((total - 1.0).abs() < 1e-12);
    assert!(top_k_logits(&[f32::NAN], 1).is_err());
    assert_eq!(top_k_logits(&[3e38, -3e38], 1).unwrap()[0].probability, 1.0);
}

#[test]
fn ranks_count_from_one() {
    let logits = [1.0_f32, 3.0, 3.0, 0.0];
    let ranks: Vec<usize> = (0..4)
        .map(|id| rank_of(&logits, id).unwrap().unwrap().rank)
        .collect();
    assert_eq!(ranks, [3, 1, 2, 4]);
    assert_eq!(rank_of(&logits, 4).unwrap(), None);
    let top = top_k_logits(&logits, 4).unwrap();
    assert_eq!(rank_of(&logits, 0).unwrap().unwrap().candidate, top[2]);
}

#[test]
fn exp_agrees_with_the_platform() {
    for step in 0..70_000_i32 {
        let power = -f64::from(step) / 100.0;
        let (seen, want) = (exp(power), power.exp());
        assert!(
            (seen - want).abs() <= 1e-12 * want,
            "{power}: {seen} {want}"
        );
    }
    assert_eq!(
        (exp(0.0), exp(f64::NEG_INFINITY), exp(-1e300)),
        (1.0, 0.0, 0.0)
    );
}
