//! Lists of modules that a scheme leaves as they are.

use std::collections::HashSet;

use regex_lite::Regex;

use crate::families::config::{ConfigError, Section};

/// Most entries with a `*`: each is held against every module.
const MAX_PATTERNS: usize = 256;

/// Modules named by whole dot-separated words: in full, by leading, trailing or inner words
/// (`lm_head`, `model.layers.0.mlp.gate`, `gate`). `*` stands for anything inside a word; after
/// `re:` comes a regular expression that the whole name begins with.
#[derive(Debug, Clone, Default)]
pub(super) struct Modules {
    exact: HashSet<String>,
    patterns: Vec<String>,
    expressions: Vec<Regex>,
}

impl Modules {
    /// The modules that these lists of a configuration name together.
    pub(super) fn read(section: &Section<'_>, keys: &[&str]) -> Result<Self, ConfigError> {
        let mut modules = Self::default();
        for key in keys {
            for entry in section.texts(key)? {
                if let Some(expression) = entry.strip_prefix("re:") {
                    let compiled = Regex::new(&format!("^(?:{expression})"));
                    let invalid = |_| section.invalid(key, "regular expressions after re:");
                    modules.expressions.push(compiled.map_err(invalid)?);
                } else if entry.contains('*') {
                    modules.patterns.push(entry);
                } else {
                    modules.exact.insert(entry);
                }
            }
            if modules.patterns.len() + modules.expressions.len() > MAX_PATTERNS {
                let wanted = format!("at most {MAX_PATTERNS} entries with * or re:");
                return Err(section.invalid(key, &wanted));
            }
        }
        Ok(modules)
    }

    /// Whether the list names this module.
    pub(super) fn name(&self, module: &str) -> bool {
        let runs = || runs_of_words(module);
        let matched = |pattern: &String| runs().any(|run| matches_words(pattern, run));
        let is_listed = runs().any(|run| self.exact.contains(run));
        is_listed
            || self.patterns.iter().any(matched)
            || self.expressions.iter().any(|e| e.is_match(module))
    }
}

/// All runs of whole dot-separated words of a name.
fn runs_of_words(name: &str) -> impl Iterator<Item = &str> {
    let dots = || name.match_indices('.').map(|(at, _)| at);
    let starts = std::iter::once(0).chain(dots().map(|at| at + 1));
    starts.flat_map(move |start| {
        let ends = dots().chain([name.len()]).filter(move |end| *end >= start);
        ends.map(move |end| &name[start..end])
    })
}

fn matches_words(pattern: &str, words: &str) -> bool {
    let (mut patterns, mut words) = (pattern.split('.'), words.split('.'));
    loop {
        match (patterns.next(), words.next()) {
            (None, None) => return true,
            (Some(pattern), Some(word)) if matches_word(pattern, word) => {}
            _ => return false,
        }
    }
}

/// Whether a word matches a pattern in which `*` stands for any characters: the texts between the
/// stars come in order, the first at the beginning, the last at the end.
fn matches_word(pattern: &str, word: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else {
        return pattern == word;
    };
    let (inner, last) = after.rsplit_once('*').unwrap_or(("", after));
    let Some(mut rest) = word.strip_prefix(before) else {
        return false;
    };
    for text in inner.split('*') {
        let Some((_, behind)) = rest.split_once(text) else {
            return false;
        };
        rest = behind;
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(entry: &str, module: &str) -> bool {
        let config = json!({"kept": [entry], "also": ["lm_head"]});
        let section = Section::root(&config).unwrap();
        let modules = Modules::read(&section, &["kept", "also", "absent"]).unwrap();
        assert!(modules.name("lm_head"));
        modules.name(module)
    }

    #[test]
    fn modules_are_named_whole_in_part_and_by_pattern() {
        let gate = "model.layers.10.mlp.gate";
        for entry in [
            gate,
            "gate",
            "mlp.gate",
            "model",
            "layers.10",
            "layers.*.mlp",
            "ga*e",
            "*",
            "g*t*",
            "m*d*l",
            "layers.1*.mlp",
        ] {
            assert!(names(entry, gate), "{entry}");
        }
        for entry in [
            "",
            "model.layers.1",
            "at",
            "mlp.gate.weight",
            "gate_proj",
            "layers.1*2",
            "g*x*e",
            "gate*e",
            "layers.*.gate",
        ] {
            assert!(!names(entry, gate), "{entry}");
        }
    }

    #[test]
    fn a_flood_of_patterns_is_refused() {
        let config = json!({"kept": vec!["a*"; MAX_PATTERNS + 1]});
        let section = Section::root(&config).unwrap();
        let error = Modules::read(&section, &["kept"]).unwrap_err().to_string();
        assert!(
            error.contains("kept is a list of 257, wanted at most 256 entries"),
            "{error}"
        );
    }
}
