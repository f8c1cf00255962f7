//! How the codes of a frame are chosen.

use segpack_manifests::families::SpeechCodes;

use crate::generate::{ArgMax, Draws, LogitsError, Sampler, SamplingError, SamplingOptions};

/// How the first code of a frame is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CodeSampling {
    /// Divides the scores.
    pub temperature: f64,
    /// Keeps this many of the highest.
    pub top_k: Option<usize>,
    /// Keeps the fewest whose probabilities add up to this.
    pub top_p: Option<f64>,
}

/// How speech is sampled; the defaults are those of the official class.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SpeechSampling {
    /// The first code of a frame.
    pub talker: CodeSampling,
    /// The residual codes.
    pub predictor: CodeSampling,
    /// The same seed and logits give the same codes, on any machine.
    pub seed: u64,
}

impl Default for SpeechSampling {
    fn default() -> Self {
        Self {
            talker: CodeSampling {
                temperature: 0.9,
                top_k: Some(50),
                top_p: None,
            },
            predictor: CodeSampling {
                temperature: 1.0,
                top_k: Some(50),
                top_p: Some(0.8),
            },
            seed: 0,
        }
    }
}

impl CodeSampling {
    fn sampler(self, seed: u64) -> Result<Sampler, SamplingError> {
        Sampler::random(SamplingOptions {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed,
        })
    }
}

/// Chooses codes.
pub(crate) struct CodeSampler {
    talker: Sampler,
    predictor: Sampler,
    codes: SpeechCodes,
    penalty: f32,
    /// First codes so far, each once.
    seen: Vec<u32>,
}

impl CodeSampler {
    /// `sampling`: `None` is greedy.
    pub(crate) fn new(
        codes: SpeechCodes,
        penalty: f32,
        sampling: Option<SpeechSampling>,
    ) -> Result<Self, SamplingError> {
        let [talker, predictor] = match sampling {
            None => [Sampler::greedy(), Sampler::greedy()],
            // two streams, so that one has no say in the other
            Some(s) => [
                s.talker.sampler(s.seed)?,
                s.predictor.sampler(s.seed ^ 0x5bd1_e995_9e37_79b9)?,
            ],
        };
        Ok(Self {
            talker,
            predictor,
            codes,
            penalty,
            seen: Vec::new(),
        })
    }

    /// Scores of the first code: codes that were chosen before are less likely, control codes other
    /// than the end marker are impossible.
    pub(crate) fn scores(&self, logits: &[f32]) -> Vec<f32> {
        let mut scores = logits.to_vec();
        for code in &self.seen {
            let score = &mut scores[*code as usize];
            *score = if *score < 0.0 {
                *score * self.penalty
            } else {
                *score / self.penalty
            };
        }
        for (id, score) in (0..).zip(&mut scores) {
            if id >= self.codes.first_suppressed && id != self.codes.eos {
                *score = f32::NEG_INFINITY;
            }
        }
        scores
    }

    /// The first code by its scores, or the end marker.
    pub(crate) fn first(&mut self, scores: &[f32]) -> Result<u32, LogitsError> {
        // suppressed ids are left out, as a sampler refuses what is not finite
        let kept: Vec<u32> = (0..)
            .zip(scores)
            .filter(|(id, _)| *id < self.codes.first_suppressed || *id == self.codes.eos)
            .map(|(id, _)| id)
            .collect();
        let values: Vec<f32> = kept.iter().map(|id| scores[*id as usize]).collect();
        Ok(kept[self.talker.choose(&values)? as usize])
    }

    /// Counts a first code as chosen.
    pub(crate) fn note(&mut self, id: u32) {
        if !self.seen.contains(&id) {
            self.seen.push(id);
        }
    }

    /// A residual code.
    pub(crate) fn residual(&mut self, logits: &[f32]) -> Result<u32, LogitsError> {
        self.predictor.choose(logits)
    }

    /// What so many next residual codes go by, where a device chooses them.
    pub(crate) fn residual_draws(&self, count: usize) -> Draws {
        self.predictor.draws(count)
    }

    /// Residual codes that a device chose. They count as chosen here, up to the first where it could
    /// choose none.
    pub(crate) fn accept(&mut self, chosen: &[ArgMax]) -> Result<Vec<u32>, LogitsError> {
        let codes: Result<Vec<u32>, LogitsError> = chosen.iter().map(|code| code.token()).collect();
        let is_code = |code: &&ArgMax| code.token().is_ok();
        self.predictor
            .skip(chosen.iter().take_while(is_code).count());
        codes
    }
}

#[cfg(test)]
mod tests {
    use segpack_manifests::families::Family;

    use super::*;

    fn codes() -> SpeechCodes {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/tiny-speech/config.json"
        );
        let config = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let family = Family::of_config(&config).unwrap();
        family.speech_facts(&config).unwrap().unwrap().codes
    }

    #[test]
    fn chosen_codes_are_less_likely_and_control_codes_impossible() {
        let mut choice = CodeSampler::new(codes(), 1.25, None).unwrap();
        let mut logits = vec![0.5; 1120];
        (logits[3], logits[4], logits[197]) = (1.0, -1.0, 9.0);
        choice.note(3);
        choice.note(4);
        choice.note(4);
        let scores = choice.scores(&logits);
        assert_eq!((scores[3], scores[4], scores[5]), (0.8, -1.25, 0.5));
        let possible: Vec<usize> = (0..1120).filter(|id| scores[*id].is_finite()).collect();
        let wanted: Vec<usize> = (0..96).chain([198]).collect();
        assert_eq!(possible, wanted);
        assert_eq!(choice.first(&scores), Ok(3));
        logits[198] = 2.0;
        let scores = choice.scores(&logits);
        assert_eq!(choice.first(&scores), Ok(198));
    }

    #[test]
    fn the_same_seed_chooses_the_same_codes() {
        let logits: Vec<f32> = (0_u8..96).map(|i| f32::from(i % 7)).collect();
        let mut sampling = SpeechSampling::default();
        let draw = |sampling| {
            let mut choice = CodeSampler::new(codes(), 1.0, Some(sampling)).unwrap();
            let drawn = (0..32).map(|_| choice.residual(&logits).unwrap());
            drawn.collect::<Vec<u32>>()
        };
        let first = draw(sampling);
        assert_eq!(draw(sampling), first);
        sampling.seed = 1;
        assert_ne!(draw(sampling), first);
    }

    #[test]
    fn codes_that_a_device_chose_leave_the_sampler_as_if_it_had_chosen_them() {
        let logits: Vec<f32> = (0_u8..96).map(|i| f32::from(i % 7)).collect();
        let code = |id| ArgMax { id, logit: 1.0 };
        let no_code = ArgMax {
            id: 9,
            logit: f32::INFINITY,
        };
        for sampling in [None, Some(SpeechSampling::default())] {
            let sampler = || CodeSampler::new(codes(), 1.0, sampling).unwrap();
            let next = |sampler: &mut CodeSampler| {
                let codes = (0..8).map(|_| sampler.residual(&logits).unwrap());
                codes.collect::<Vec<u32>>()
            };
            let (mut host, mut device) = (sampler(), sampler());
            let numbers = device.residual_draws(5).fractions;
            let all: Vec<u32> = (0..5).map(|_| host.residual(&logits).unwrap()).collect();
            let chosen: Vec<ArgMax> = all.iter().copied().map(code).collect();
            assert_eq!(device.accept(&chosen), Ok(all));
            assert_eq!(next(&mut device), next(&mut host));
            assert!(numbers.iter().all(|x| (0.0..1.0).contains(x)));
            // what follows the first that is none was never drawn
            let (mut host, mut device) = (sampler(), sampler());
            host.residual(&logits).unwrap();
            let wrong = device.accept(&[code(3), no_code, code(4)]);
            assert_eq!(wrong, no_code.token().map(|_| Vec::new()));
            assert_eq!(next(&mut device), next(&mut host));
        }
    }
}
