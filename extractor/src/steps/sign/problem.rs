//! What is wrong with a signature.

/// What is wrong with a signature: what was seen, and what was wanted.
#[derive(Debug)]
pub(in crate::steps) struct Problem {
    pub seen: String,
    pub wanted: String,
}

/// Refuses a signature.
pub(super) fn problem<T>(seen: impl Into<String>, wanted: impl Into<String>) -> Result<T, Problem> {
    Err(Problem {
        seen: seen.into(),
        wanted: wanted.into(),
    })
}
