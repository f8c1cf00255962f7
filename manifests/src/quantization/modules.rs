//! Lists of modules that a scheme leaves as they are.

use std::collections::{BTreeMap, HashSet};

use regex::RegexSet;

use crate::families::config::{ConfigError, Section};

/// Most entries with a `*`: each is held against every module.
const MAX_PATTERNS: usize = 256;

/// Modules named by whole dot-separated words: in full, by leading, trailing or inner words
/// (`lm_head`, `model.layers.0.mlp.gate`, `gate`). `*` stands for anything inside a word; after
/// `re:` comes a regular expression that the whole name begins with.
#[derive(Debug, Clone, Default)]
pub(super) struct Modules {
    /// By their number of words: of a module, only runs of as many words are looked up.
    exact: BTreeMap<usize, HashSet<String>>,
    patterns: Vec<String>,
    /// All of them, searched for at once.
    expressions: RegexSet,
}

impl Modules {
    /// The modules that these lists of a configuration name together.
    pub(super) fn read(section: &Section<'_>, keys: &[&str]) -> Result<Self, ConfigError> {
        let mut modules = Self::default();
        let mut expressions = Vec::new();
        for key in keys {
            for entry in section.texts(key)? {
                if let Some(expression) = entry.strip_prefix("re:") {
                    expressions.push(format!("^(?:{expression})"));
                } else if entry.contains('*') {
                    modules.patterns.push(entry);
                } else {
                    let words = words_of(&entry);
                    modules.exact.entry(words).or_default().insert(entry);
                }
            }
            if modules.patterns.len() + expressions.len() > MAX_PATTERNS {
                let wanted = format!("at most {MAX_PATTERNS} entries with * or re:");
                return Err(section.invalid(key, &wanted));
            }
            modules.expressions = RegexSet::new(&expressions)
                .map_err(|_| section.invalid(key, "regular expressions after re:"))?;
        }
        Ok(modules)
    }

    /// Whether the list names this module.
    pub(super) fn name(&self, module: &str) -> bool {
        let is_listed = |(words, exact): (&usize, &HashSet<String>)| {
            runs_of_words(module, *words).any(|run| exact.contains(run))
        };
        let matched = |pattern: &String| {
            runs_of_words(module, words_of(pattern)).any(|run| matches_words(pattern, run))
        };
        self.exact.iter().any(is_listed)
            || self.patterns.iter().any(matched)
            || self.expressions.is_match(module)
    }
}

/// How many dot-separated words a name has.
fn words_of(name: &str) -> usize {
    name.matches('.').count() + 1
}

/// All runs of so many whole dot-separated words of a name.
fn runs_of_words(name: &str, words: usize) -> impl Iterator<Item = &str> {
    let starts = std::iter::once(0).chain(name.match_indices('.').map(|(dot, _)| dot + 1));
    let ends = name
        .match_indices('.')
        .map(|(dot, _)| dot)
        .chain([name.len()]);
    let ends = ends.skip(words - 1);
    starts.zip(ends).map(|(start, end)| &name[start..end])
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
    fn expressions_begin_where_the_name_does() {
        let gate = "model.layers.10.mlp.gate";
        for entry in [
            "re:model",
            "re:.*gate$",
            r"re:model\.layers\.\d+\.mlp",
            r"re:(?i)MODEL\b",
            "re:a|model",
        ] {
            assert!(names(entry, gate), "{entry}");
        }
        for entry in ["re:gate", "re:layers", "re:model$", "re:.*gate.weight"] {
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
