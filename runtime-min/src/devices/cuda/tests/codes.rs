//! Codes of sound: each choice is the code that the host's sampler gives, and the rows that follow it.

use super::*;
use crate::devices::cuda::launch::{CodeChoice, MAX_CODES, sampling};
use crate::generate::{Draws, LogitsError, SamplingOptions};

/// What a device that chooses from these logits, `[choices, codes]`, comes to.
fn chosen(launch: Launch<'_>, gpu: &Arc<Gpu>, logits: View, draws: &Draws) -> Vec<ArgMax> {
    let choices = draws.fractions.len();
    let codes = logits.len / choices;
    let fractions = draws.fractions.iter().flat_map(|x| x.to_le_bytes());
    let (_f, fractions) = put_at(gpu, &fractions.collect::<Vec<u8>>(), 0);
    let (_h, how) = put_at(gpu, &sampling(draws.options.as_ref()), 0);
    let (_c, places) = put_at(gpu, &vec![0xff; choices * 8], 0);
    let (_p, position) = put_at(gpu, &41_u32.to_le_bytes(), 0);
    for number in 0..choices {
        let choice = CodeChoice {
            how,
            fraction: fractions.offset(number * 8),
            chosen: places.offset(number * 8),
            position,
        };
        let row = logits.part(number * codes..(number + 1) * codes);
        launch.choose_code(row, choice, 2).unwrap();
    }
    let counted = 41 + 2 * u32::try_from(choices).unwrap();
    assert_eq!(get_numbers(gpu, position, 1), [counted]);
    let ids = get_numbers(gpu, places, 2 * choices);
    let pairs = ids.as_chunks::<2>().0.iter();
    pairs
        .map(|[id, logit]| ArgMax {
            id: *id,
            logit: f32::from_bits(*logit),
        })
        .collect()
}

/// Compares the device's choices with the host's, and what both leave of the generator. Errors are
/// compared as they are shown: NaN is unequal to itself.
fn assert_same(gpu: &Arc<Gpu>, sampler: &Sampler, compute: Compute, rows: &[Vec<f32>], what: &str) {
    let launch = Launch { gpu, compute };
    let (_l, logits) = put(gpu, compute, &rows.concat());
    let draws = sampler.draws(rows.len());
    let seen = chosen(launch, gpu, logits, &draws);
    let (mut host, mut beside) = (sampler.clone(), sampler.clone());
    for (row, seen) in rows.iter().zip(&seen) {
        let row = &row.iter().map(|x| compute.round(*x)).collect::<Vec<f32>>();
        let wanted = host.choose(row);
        assert_eq!(
            format!("{:?}", seen.token()),
            format!("{wanted:?}"),
            "{what}"
        );
        if wanted.is_err() {
            return; // whoever chose no code draws no number
        }
        beside.skip(1);
        assert_eq!(format!("{host:?}"), format!("{beside:?}"), "{what}");
    }
}

/// A seed whose first random number is this one: SplitMix64, backwards.
fn seed_of(number: u64) -> u64 {
    let unshift = |x: u64, by: u32| (0..64 / by).fold(x, |y, _| x ^ (y >> by));
    let inverse = |odd: u64| {
        let newton = |x: u64| x.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(x)));
        (0..6).fold(odd, |x, _| newton(x))
    };
    let x = unshift(number, 31).wrapping_mul(inverse(0x94d0_49bb_1331_11eb));
    let x = unshift(x, 27).wrapping_mul(inverse(0xbf58_476d_1ce4_e5b9));
    unshift(x, 30).wrapping_sub(0x9e37_79b9_7f4a_7c15)
}

fn random(temperature: f64, top_k: Option<usize>, top_p: Option<f64>, seed: u64) -> Sampler {
    let mut options = SamplingOptions::new(temperature, seed);
    (options.top_k, options.top_p) = (top_k, top_p);
    Sampler::random(options).unwrap()
}

/// Rows of so many logits: close together and far apart, with ties, zeros of both signs, and codes
/// that are ruled out.
fn rows(codes: usize, seed: u32) -> Vec<Vec<f32>> {
    let noise = noise(codes, seed);
    let of = |f: &dyn Fn(usize, f32) -> f32| -> Vec<f32> {
        noise.iter().enumerate().map(|(i, x)| f(i, *x)).collect()
    };
    vec![
        of(&|_, x| x),
        of(&|_, x| 9.0 * x),
        of(&|_, x| 700.0 * x),
        of(&|_, x| (4.0 * x).round() / 2.0),
        of(&|_, _| -3.0),
        of(&|i, _| if i % 3 == 1 { 0.0 } else { -0.0 }),
        of(&|i, x| if i % 2 == 1 { f32::NEG_INFINITY } else { x }),
    ]
}

/// Temperatures and top-p.
const SETTINGS: [(f64, Option<f64>); 7] = [
    (1.0, None),
    (1.0, Some(0.8)),
    (0.9, Some(1.0)),
    (1e-300, Some(0.5)),
    (0.013, None),
    (5e4, Some(1e-12)),
    (7.5, Some(0.999_999_999)),
];

#[test]
fn the_device_chooses_the_highest_logit_that_the_host_chooses() {
    let gpu = gpu();
    for codes in [1, 2, 31, 96, 700, 2048, MAX_CODES] {
        let rows = rows(codes, u32::try_from(codes).unwrap());
        for compute in BOTH {
            let what = format!("{codes} {compute:?}");
            assert_same(&gpu, &Sampler::greedy(), compute, &rows, &what);
        }
    }
}

#[test]
fn the_device_samples_the_code_that_the_host_samples() {
    let gpu = gpu();
    // every size with some settings, few codes with many
    let some = [None, Some(50)];
    let many = [1, 2, 5, 32, 33, 34, usize::MAX].map(Some);
    let sizes = [1, 2, 31, 96, 700, MAX_CODES].map(|codes| (codes, &some[..]));
    for (codes, top_ks) in sizes.into_iter().chain([(33, &many[..])]) {
        for (number, (temperature, top_p)) in SETTINGS.into_iter().enumerate() {
            // the least and the greatest random number, and others
            let numbers = [1 << 60, u64::MAX, 0, u64::MAX - (1 << 11), 1 << 63];
            let seeds = numbers.map(seed_of).into_iter().chain(0..3);
            let seeds = seeds.take(if codes < 100 { 8 } else { 1 });
            for (seed, top_k) in seeds.flat_map(|seed| top_ks.iter().map(move |k| (seed, *k))) {
                let compute = BOTH[number % 2];
                let sampler = random(temperature, top_k, top_p, seed);
                let rows = rows(codes, u32::try_from(codes + number).unwrap());
                let what = format!("{codes} {compute:?} {temperature} {top_k:?} {top_p:?} {seed}");
                assert_same(&gpu, &sampler, compute, &rows, &what);
            }
        }
    }
}

#[test]
fn random_numbers_close_to_one_leave_a_crumb_to_the_last_code_with_any_weight() {
    let gpu = gpu();
    // a third of the weights is 0, and the numbers are the greatest ones
    let rows: Vec<Vec<f32>> = (0..40)
        .map(|seed| {
            let ruled_out = |(i, x): (usize, &f32)| if i % 3 == 2 { -1e30 } else { 3.0 * x };
            noise(50, seed).iter().enumerate().map(ruled_out).collect()
        })
        .collect();
    for row in rows {
        let sampler = random(1.0, None, None, seed_of(u64::MAX));
        assert_eq!(sampler.draws(1).fractions, [1.0 - f64::EPSILON / 2.0]);
        assert_same(&gpu, &sampler, Compute::F32, &[row], "the greatest number");
    }
}

/// Where one code ends and the next begins moves with the last bits of the weights.
#[test]
fn the_last_random_number_of_a_code_is_that_of_the_host() {
    let gpu = gpu();
    let of = |number: u64| random(0.7, None, None, seed_of(number << 11));
    for row in (0..40).map(|seed| noise(3, seed)) {
        let first = |number| of(number).choose(&row).unwrap();
        let (mut low, mut high) = (0, (1 << 53) - 1);
        while high - low > 1 {
            let between = u64::midpoint(low, high);
            match first(between) == first(0) {
                true => low = between,
                false => high = between,
            }
        }
        assert_ne!(first(low), first(high), "{row:?}");
        for number in [low, high] {
            let row = std::slice::from_ref(&row);
            assert_same(&gpu, &of(number), Compute::F32, row, "a border");
        }
    }
}

#[test]
fn logits_that_are_no_numbers_are_the_same_error_as_on_the_host() {
    let gpu = gpu();
    let minus_nan = f32::from_bits(0xffc0_0001);
    let mut rows = vec![vec![f32::NEG_INFINITY; 700], vec![f32::NEG_INFINITY; 1]];
    for (first, second) in [(0, 1), (5, 699), (40, 3), (500, 255)] {
        for (a, b) in [
            (f32::NAN, f32::INFINITY),
            (f32::INFINITY, minus_nan),
            (minus_nan, f32::NEG_INFINITY),
        ] {
            let mut logits = noise(700, 3);
            (logits[first], logits[second]) = (a, b);
            rows.push(logits);
        }
    }
    let samplers = [
        Sampler::greedy(),
        random(1.0, Some(50), Some(0.8), 1),
        random(0.7, None, None, 2),
    ];
    for (row, sampler) in rows
        .iter()
        .flat_map(|row| samplers.iter().map(move |s| (row, s)))
    {
        assert!(sampler.clone().choose(row).is_err());
        let what = format!("{sampler:?}");
        for compute in BOTH {
            assert_same(&gpu, sampler, compute, std::slice::from_ref(row), &what);
        }
    }
    let all_excluded = samplers[1].clone().choose(&rows[0]);
    assert_eq!(all_excluded, Err(LogitsError::AllExcluded));
}

#[test]
fn rows_of_codes_are_taken_in_and_added_up_in_order() {
    let gpu = gpu();
    for (dtype, launch) in DTYPES
        .into_iter()
        .flat_map(|d| launches(&gpu).map(move |l| (d, l)))
    {
        let (compute, hidden) = (launch.compute, 300);
        let tables = [1, 2, 3].map(|seed| matrix(&gpu, dtype, 9, hidden, seed));
        let row = |seed: u32, code: usize| -> Vec<f32> {
            let mut all = vec![0.0; 9 * hidden];
            dtype.widen(&bytes(dtype, &noise(9 * hidden, seed)), &mut all);
            let mut row = all[code * hidden..][..hidden].to_vec();
            compute.round_all(&mut row);
            row
        };
        let state = activations(compute, hidden, 4);
        let (_s, state_there) = put_f32(&gpu, &state);
        let (_t, text) = put_f32(&gpu, &noise(hidden, 5));
        let (_c, codes) = put_at(&gpu, &[7_u32, 0, 8, 0].map(u32::to_le_bytes).concat(), 0);
        let (_u, sum) = put_f32(&gpu, &vec![f32::NAN; hidden]);
        let (_x, x) = blank(&gpu, compute, 2 * hidden);
        launch
            .first_code(state_there, (tables[0].1, codes), sum, x)
            .unwrap();
        let mut wanted = row(1, 7);
        assert_eq!(get(&gpu, x), [&state[..], &wanted].concat());
        // the second code is the next pass's input, the third one ends the frame
        let x = x.part(0..hidden);
        for (number, code, text) in [(1, 0, None), (2, 8, Some(text))] {
            let chosen = codes.offset(4 * number);
            launch
                .next_code((tables[number].1, chosen), sum, text, x)
                .unwrap();
            let row = row(u32::try_from(number).unwrap() + 1, code);
            wanted.iter_mut().zip(&row).for_each(|(sum, x)| *sum += x);
            assert_eq!(get(&gpu, sum), wanted, "{dtype} {compute:?}");
            if text.is_none() {
                assert_eq!(get(&gpu, x), row);
            }
        }
        let with_text = wanted.iter().zip(noise(hidden, 5));
        let wanted: Vec<f32> = with_text.map(|(sum, x)| compute.round(sum + x)).collect();
        assert_eq!(get(&gpu, x), wanted);
    }
}
