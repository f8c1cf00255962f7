//! What a server said after a prompt, and whether it is what a greedy decoder says after exactly
//! that prompt.

use std::collections::BTreeSet;

use segpack_runtime_min::trace::Ranked;

/// What vLLM writes for the logarithm of 0.
const LEAST: f32 = -9999.0;
/// A logarithm of 1 may have been rounded upwards.
const GREATEST: f32 = 1e-3;

/// What a server said after a prompt.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The tokens that it generated.
    pub ids: Vec<u32>,
    /// For each of them the most likely tokens, that one among them.
    pub steps: Vec<Vec<Ranked>>,
    /// Steps that the server, as it documents, lists nothing of; their lists are empty.
    pub unlisted: BTreeSet<usize>,
    /// How it read the prompt, where it tells.
    pub prompt_ids: Option<Vec<u32>>,
    /// How many tokens that were, where it tells.
    pub prompt_count: Option<u64>,
    /// How many tokens it says that it generated.
    pub counted: Option<u64>,
    /// Whether it ended the text by itself.
    pub has_ended: bool,
}

/// What an answer has to fit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The prompt's tokens.
    pub ids: &'a [u32],
    /// Maximum number of tokens to generate.
    pub max_new_tokens: usize,
    /// Tokens of each step that are listed.
    pub top: usize,
    /// Tokens that the model has.
    pub vocab: u64,
}

impl Answer {
    /// Checks it against what was asked, and sorts the lists.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn checked(mut self, requested: Asked<'_>) -> Result<Self, String> {
        self.check_prompt(requested.ids)?;
        self.check_count(requested)?;
        for (step, (id, row)) in self.ids.iter().zip(&mut self.steps).enumerate() {
            *row = sorted(row, requested.top)?;
            if !self.unlisted.contains(&step) {
                is_greedy(step, *id, row)?;
            }
        }
        Ok(self)
    }

    fn check_prompt(&self, ids: &[u32]) -> Result<(), String> {
        if let Some(seen) = self.prompt_ids.as_ref().filter(|seen| *seen != ids) {
            let begin = |ids: &[u32]| format!("{:?} …", &ids[..ids.len().min(8)]);
            return Err(format!(
                "the server read the prompt as tokens {}; wanted {}",
                begin(seen),
                begin(ids)
            ));
        }
        let seen = self.prompt_count.unwrap_or(ids.len() as u64);
        if seen != ids.len() as u64 {
            return Err(format!(
                "the server read the prompt as {seen} tokens; the pack's tokenizer and template \
                 make {} of it",
                ids.len()
            ));
        }
        Ok(())
    }

    fn check_count(&self, requested: Asked<'_>) -> Result<(), String> {
        let (tokens, limit) = (self.ids.len(), requested.max_new_tokens);
        if tokens == 0 {
            return Err("the server generated nothing".to_owned());
        }
        if tokens > limit {
            return Err(format!(
                "the server generated {tokens} tokens; wanted at most {limit}"
            ));
        }
        // the token that ends the text is counted by some and listed by others
        let most = tokens as u64 + u64::from(self.has_ended);
        let counted = self.counted.unwrap_or(tokens as u64);
        if !(tokens as u64..=most).contains(&counted) {
            return Err(format!(
                "the server generated {counted} tokens and listed {tokens} of them"
            ));
        }
        if self.steps.len() != tokens {
            let steps = self.steps.len();
            return Err(format!(
                "the answer has {tokens} tokens and log-probabilities of {steps}"
            ));
        }
        let outside = |id: &&u32| u64::from(**id) >= requested.vocab;
        match self.ids.iter().find(outside) {
            Some(id) => Err(format!(
                "token {id} is none of the model's {}",
                requested.vocab
            )),
            None => Ok(()),
        }
    }
}

/// Best first; what is as good as impossible says nothing, and the token that was chosen is listed
/// however unlikely it is, which is no rank.
fn sorted(row: &[Ranked], top: usize) -> Result<Vec<Ranked>, String> {
    let is_possible = |r: &&Ranked| r.log_probability.is_finite() && r.log_probability > LEAST;
    let mut row: Vec<Ranked> = row.iter().filter(is_possible).copied().collect();
    row.sort_by(|a, b| b.log_probability.total_cmp(&a.log_probability)); // stable
    if let Some(first) = row.first().filter(|r| r.log_probability > GREATEST) {
        let seen = first.log_probability;
        return Err(format!("a log-probability is {seen}; wanted none above 0"));
    }
    row.truncate(top.max(1));
    Ok(row)
}

fn is_greedy(step: usize, id: u32, row: &[Ranked]) -> Result<(), String> {
    let own = row.iter().find(|r| r.id == Some(id));
    let own = own.map_or(f32::NEG_INFINITY, |r| r.log_probability);
    let best = row.first().map_or(f32::INFINITY, |r| r.log_probability);
    if own >= best {
        return Ok(());
    }
    Err(format!(
        "step {step} is not greedy: the server chose token {id} of log-probability {own:.4}, and \
         one of {best:.4} was likelier; it samples, penalises repetition, or tells other steps' \
         numbers"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pairs: &[(u32, f32)]) -> Vec<Ranked> {
        let ranked = |(id, log_probability): &(u32, f32)| Ranked {
            id: Some(*id),
            log_probability: *log_probability,
        };
        pairs.iter().map(ranked).collect()
    }

    fn answer() -> Answer {
        Answer {
            ids: vec![3, 4],
            steps: vec![row(&[(3, -0.1), (1, -3.0)]), row(&[(4, -0.2), (2, -0.2)])],
            prompt_ids: Some(vec![1, 2]),
            prompt_count: Some(2),
            counted: Some(2),
            has_ended: false,
            unlisted: BTreeSet::new(),
        }
    }

    const ASKED: Asked<'_> = Asked {
        ids: &[1, 2],
        max_new_tokens: 2,
        top: 2,
        vocab: 10,
    };

    #[test]
    fn an_answer_that_fits_is_taken() {
        let checked = answer().checked(ASKED).unwrap();
        assert_eq!(checked.steps, answer().steps);
        let mut ended = answer();
        (ended.has_ended, ended.counted) = (true, Some(3));
        assert!(ended.checked(ASKED).is_ok());
    }

    #[test]
    fn what_is_as_good_as_impossible_is_left_out_and_lists_are_sorted() {
        let mut unsorted = answer();
        unsorted.steps[0] = row(&[(9, -9999.0), (1, -3.0), (7, f32::NEG_INFINITY), (3, -0.1)]);
        let checked = unsorted.checked(ASKED).unwrap();
        assert_eq!(checked.steps[0], row(&[(3, -0.1), (1, -3.0)]));
    }

    #[test]
    fn a_step_of_which_nothing_is_listed_is_taken_only_where_the_server_leaves_it_out() {
        let mut left_out = answer();
        left_out.steps[1].clear();
        left_out.unlisted.insert(1);
        assert_eq!(left_out.checked(ASKED).unwrap().ids, [3, 4]);
    }

    #[test]
    fn an_answer_that_does_not_fit_is_refused_by_what_is_wrong() {
        let refused = |bend: fn(&mut Answer), words: &str| {
            let mut bent = answer();
            bend(&mut bent);
            let why = bent.checked(ASKED).unwrap_err();
            assert!(why.contains(words), "{why}");
        };
        refused(
            |a| a.prompt_ids = Some(vec![1, 3]),
            "read the prompt as tokens [1, 3]",
        );
        refused(|a| a.prompt_count = Some(3), "read the prompt as 3 tokens");
        refused(|a| a.ids.clear(), "generated nothing");
        refused(|a| a.ids.push(1), "3 tokens; wanted at most 2");
        refused(|a| a.counted = Some(5), "generated 5 tokens and listed 2");
        refused(
            |a| drop(a.steps.pop()),
            "2 tokens and log-probabilities of 1",
        );
        refused(|a| a.ids[1] = 10, "token 10 is none of the model's 10");
        refused(|a| a.ids[1] = 5, "step 1 is not greedy");
        refused(|a| a.ids[0] = 1, "step 0 is not greedy");
        refused(
            |a| a.steps[0][0].log_probability = 0.5,
            "wanted none above 0",
        );
        refused(|a| a.steps[0].clear(), "step 0 is not greedy");
    }
}
