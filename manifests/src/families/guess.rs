//! A guess at the experts of a family that this build does not know: `….layers.5.….experts.17.…`
//! is expert 17 of layer 5. Names that say less stay as they are; nothing is audited by it.

use super::rules::parse_number;
use crate::names::Classification;

/// What a name says of its expert: the number after `experts`, and the last number before that.
pub(crate) fn classify(name: &str) -> Classification {
    let (layer, expert) = expert_of(name).unzip();
    Classification {
        layer,
        expert,
        ..Classification::UNCLASSIFIED
    }
}

fn expert_of(name: &str) -> Option<(u32, u32)> {
    let words: Vec<&str> = name.split('.').collect();
    let at = words.iter().position(|word| word.ends_with("experts"))?;
    let expert = parse_number(words.get(at + 1)?)?;
    // the matrix comes after it
    words.get(at + 2)?;
    let layer = words[..at]
        .iter()
        .rev()
        .find_map(|word| parse_number(word))?;
    Some((layer, expert))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_found_by_their_numbers() {
        let of = |name: &str| {
            let what = classify(name);
            what.layer.zip(what.expert)
        };
        for (name, wanted) in [
            ("model.layers.5.mlp.experts.17.w1.weight", Some((5, 17))),
            ("transformer.h.3.moe.local_experts.0.fc", Some((3, 0))),
            ("layers.2.ffn.shared_experts.w1.weight", None),
            ("layers.2.ffn.experts.gate_up_proj", None),
            ("experts.1.w1.weight", None),
            ("model.layers.5.experts.01.w1", None),
            ("model.layers.5.experts.1", None),
            ("model.norm.weight", None),
        ] {
            assert_eq!(of(name), wanted, "{name}");
        }
    }
}
