//! How many positions a model was made for.

use segpack_manifests::Pack;
use serde_json::Value;

use super::SessionError;
use crate::source_file::source_file;

/// Positions that are assumed where `config.json` does not give the context length.
pub const ASSUMED_CONTEXT: usize = 1 << 18;

/// Where `config.json` may have the text model's settings: an omni model, a model with a text part,
/// a plain model.
const SECTIONS: [&str; 3] = ["/thinker_config/text_config", "/text_config", ""];

/// Positions that a text model was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextLength {
    /// `max_position_embeddings` of `config.json`.
    Given(usize),
    /// `config.json` is not in the pack, or does not say: [`ASSUMED_CONTEXT`].
    Assumed,
}

impl ContextLength {
    /// The number of positions.
    pub fn positions(self) -> usize {
        match self {
            Self::Given(positions) => positions,
            Self::Assumed => ASSUMED_CONTEXT,
        }
    }

    /// Reads the pack's `config.json`.
    pub(super) fn of(pack: &Pack) -> Result<Self, SessionError> {
        const CONFIG: &str = "config.json";
        let Some(bytes) = source_file(pack, CONFIG)? else {
            return Ok(Self::Assumed);
        };
        let config: Value =
            serde_json::from_slice(&bytes).map_err(|source| SessionError::Config {
                path: CONFIG.into(),
                source,
            })?;
        Self::find(&config)
    }

    fn find(config: &Value) -> Result<Self, SessionError> {
        let given = |section| config.pointer(&format!("{section}/max_position_embeddings"));
        let Some(value) = SECTIONS
            .into_iter()
            .find_map(given)
            .filter(|v| !v.is_null())
        else {
            return Ok(Self::Assumed);
        };
        match value.as_u64().filter(|n| *n > 0) {
            // more than can be counted is as good as unlimited
            Some(n) => Ok(Self::Given(usize::try_from(n).unwrap_or(usize::MAX))),
            None => Err(SessionError::BadContextLength {
                seen: value.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_text_model_of_any_kind_of_config_gives_its_context_length() {
        let find = |config: Value| ContextLength::find(&config).unwrap();
        let omni = json!({"thinker_config": {"text_config": {"max_position_embeddings": 6}}});
        assert_eq!(find(omni), ContextLength::Given(6));
        assert_eq!(
            find(json!({"text_config": {"max_position_embeddings": 7}})),
            ContextLength::Given(7)
        );
        assert_eq!(
            find(json!({"max_position_embeddings": 8})),
            ContextLength::Given(8)
        );
        for silent in [json!({}), json!({"max_position_embeddings": null})] {
            assert_eq!(find(silent), ContextLength::Assumed);
        }
    }

    #[test]
    fn a_context_length_that_is_no_number_is_refused() {
        for (value, seen) in [
            (json!("many"), "\"many\""),
            (json!(0), "0"),
            (json!(-1), "-1"),
        ] {
            let error = ContextLength::find(&json!({"max_position_embeddings": value}));
            assert!(error.unwrap_err().to_string().contains(seen));
        }
    }
}
