//! Which experts a router may choose: the file of `run --expert-mask`, and what reports say of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The experts that the router of each layer may choose, for studying what a part of a model can do:
/// `{"layers": {"0": [0, 1, 2]}}`, or a list for each layer, `{"layers": [[0, 1], null]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ExpertMask {
    /// Layers, and the experts of each.
    pub layers: MaskedLayers,
}

/// Layers, and the experts of each that may be chosen. A layer that is not named, or has `null`,
/// chooses among all of its experts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum MaskedLayers {
    /// By the number of the layer.
    Named(BTreeMap<String, Vec<u32>>),
    /// Of each layer, from the first.
    Listed(Vec<Option<Vec<u32>>>),
}

/// A name that is no number of a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no number of a layer")]
pub struct NoLayer {
    /// The name.
    pub name: String,
}

impl ExpertMask {
    /// The experts of each layer that is restricted.
    ///
    /// # Errors
    /// Where a layer is named by something else than its number.
    pub fn by_layer(&self) -> Result<BTreeMap<u32, Vec<u32>>, NoLayer> {
        match &self.layers {
            MaskedLayers::Named(layers) => layers.iter().map(numbered).collect(),
            MaskedLayers::Listed(layers) => {
                let listed = (0..).zip(layers);
                let restricted = listed.filter_map(|(n, experts)| Some((n, experts.clone()?)));
                Ok(restricted.collect())
            }
        }
    }
}

fn numbered((name, experts): (&String, &Vec<u32>)) -> Result<(u32, Vec<u32>), NoLayer> {
    match name.parse() {
        Ok(layer) => Ok((layer, experts.clone())),
        Err(_) => Err(NoLayer { name: name.clone() }),
    }
}

/// What a run with restricted experts says of them: of each restricted layer those that its router
/// could choose. Such a run is not one of the model.
pub type RestrictedExperts = BTreeMap<u32, Vec<u32>>;

#[cfg(test)]
mod tests {
    use super::*;

    fn by_layer(json: &str) -> Result<BTreeMap<u32, Vec<u32>>, NoLayer> {
        serde_json::from_str::<ExpertMask>(json).unwrap().by_layer()
    }

    #[test]
    fn layers_are_named_or_listed() {
        let wanted = BTreeMap::from([(0, vec![1, 2]), (2, vec![0])]);
        let named = r#"{"layers": {"0": [1, 2], "2": [0]}}"#;
        assert_eq!(by_layer(named), Ok(wanted.clone()));
        assert_eq!(by_layer(r#"{"layers": [[1, 2], null, [0]]}"#), Ok(wanted));
        let name = "first".to_owned();
        assert_eq!(
            by_layer(r#"{"layers": {"first": [0]}}"#),
            Err(NoLayer { name })
        );
    }
}
