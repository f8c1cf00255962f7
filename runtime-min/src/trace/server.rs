//! What a server tells of a distribution: the log-probabilities of the best few tokens.

use segpack_formats::Result;

use super::{Trace, tensor_name};

/// A token that a server lists among the best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Its id. `None`: the server did not identify it.
    pub id: Option<u32>,
    /// Natural logarithm of its probability.
    pub log_probability: f32,
}

/// Where a distribution belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// After this token of the prompt, which is not its last.
    Prompt(usize),
    /// This step of the generation.
    Step(usize),
}

impl Trace {
    /// The best tokens there, best first, of a trace of log-probabilities; empty where none were
    /// recorded.
    ///
    /// # Errors
    /// `Malformed` where the tensors are not what the format says; `Io`.
    pub fn ranked(&self, prompt: usize, place: Place) -> Result<Vec<Ranked>> {
        let recorded = &self.prompts()[prompt];
        let (kind, rows, row) = match place {
            Place::Prompt(row) => ("prompt", recorded.input_ids.len() - 1, row),
            Place::Step(row) => ("gen", recorded.generated.len(), row),
        };
        let name = format!("{kind}.top_logprobs");
        let Some(columns) = self
            .shape(prompt, &name)
            .and_then(|shape| shape.get(1).copied())
        else {
            return Ok(Vec::new());
        };
        let shape = [rows, usize::try_from(columns).unwrap_or(usize::MAX)];
        let numbers = self
            .floats(prompt, &name, &shape, row..row + 1)?
            .unwrap_or_default();
        let ids_name = format!("{kind}.top_ids");
        let Some(ids) = self.integers(prompt, &ids_name, &shape, row..row + 1)? else {
            return Err(self.malformed(format!(
                "has no tensor {:?}",
                tensor_name(prompt, &ids_name)
            )));
        };
        let (listed, rest) = numbers.split_at(numbers.iter().take_while(|x| !x.is_nan()).count());
        // a logarithm of 1 may have been rounded upwards
        let are_ranked =
            listed.is_sorted_by(|a, b| a >= b) && listed.first().is_none_or(|x| *x < 1e-3);
        if !are_ranked || rest.iter().any(|x| !x.is_nan()) {
            let what = format!(
                "row {row} of tensor {:?} is not logarithms",
                tensor_name(prompt, &name)
            );
            return Err(self.malformed(format!("{what} of probabilities, best first")));
        }
        let pairs = ids.into_iter().zip(listed);
        let ranked = pairs.map(|(id, log_probability)| match id {
            -1 => Ok(Ranked {
                id: None,
                log_probability: *log_probability,
            }),
            id => u32::try_from(id).map(|id| Ranked {
                id: Some(id),
                log_probability: *log_probability,
            }),
        });
        ranked
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| self.no_id(prompt, &ids_name))
    }
}
