//! Names with numbers in them, written and read.

use std::fmt::Write as _;

use crate::names::{Classification, Component, Part, Role};

/// What a number in a name counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placeholder {
    /// Layer or block of a transformer: becomes the tensor's layer.
    Layer,
    /// Routed expert: becomes the tensor's expert.
    Expert,
    /// Anything else, by the word between the braces.
    Named(&'static str),
}

impl Placeholder {
    fn from_text(text: &'static str) -> Self {
        match text {
            "layer" => Self::Layer,
            "expert" => Self::Expert,
            other => Self::Named(other),
        }
    }
}

/// A pattern cut at its placeholders: `texts[0] {placeholders[0]} texts[1] …`. It may have any
/// number of placeholders, each a whole dot-separated word, no two that count the same.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    prefix: &'static str,
    texts: Vec<&'static str>,
    pub(super) placeholders: Vec<Placeholder>,
    /// For each placeholder the pattern up to its end; rows with equal stems share a loop.
    pub(super) stems: Vec<&'static str>,
}

impl Pattern {
    pub(super) fn parse(prefix: &'static str, pattern: &'static str) -> Self {
        let mut parsed = Self {
            prefix,
            texts: Vec::new(),
            placeholders: Vec::new(),
            stems: Vec::new(),
        };
        let mut start = 0;
        while let Some((open, close, placeholder)) = next_placeholder(pattern, start) {
            debug_assert!(!parsed.placeholders.contains(&placeholder), "{pattern}");
            parsed.texts.push(&pattern[start..open]);
            parsed.placeholders.push(placeholder);
            parsed.stems.push(&pattern[..close]);
            start = close;
        }
        parsed.texts.push(&pattern[start..]);
        parsed
    }

    /// The name with these numbers, in the order of the placeholders.
    pub(super) fn name(&self, indices: &[u32]) -> String {
        let mut name = String::with_capacity(80);
        name.push_str(self.prefix);
        let (first, rest) = self.texts.split_first().unwrap_or((&"", &[]));
        name.push_str(first);
        for (index, text) in indices.iter().zip(rest) {
            let _ = write!(name, "{index}"); // writing to a String cannot fail
            name.push_str(text);
        }
        name
    }

    /// The name with these numbers, each by what it counts; one that is not given is 0.
    pub(super) fn name_with(&self, numbers: &Numbers) -> String {
        let counted = self.placeholders.iter();
        let indices: Vec<u32> = counted
            .map(|p| numbers.get(*p).unwrap_or_default())
            .collect();
        self.name(&indices)
    }

    /// The numbers, each with what it counts.
    pub(super) fn numbers(&self, indices: &[u32]) -> Numbers {
        let mut numbers = Numbers::default();
        for (placeholder, index) in self.placeholders.iter().zip(indices) {
            numbers.set(*placeholder, *index);
        }
        numbers
    }
}

/// Where the next placeholder of a pattern begins and ends, and what it counts.
pub(super) fn next_placeholder(
    pattern: &'static str,
    start: usize,
) -> Option<(usize, usize, Placeholder)> {
    let open = start + pattern[start..].find('{')?;
    let close = open + pattern[open..].find('}')? + 1;
    let placeholder = Placeholder::from_text(&pattern[open + 1..close - 1]);
    Some((open, close, placeholder))
}

/// The numbers of a name, each with what it counts. Those that nearly every name has lie outside of
/// the list: tens of thousands of names are read without an allocation for each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    layer: Option<u32>,
    expert: Option<u32>,
    named: Vec<(&'static str, u32)>,
}

impl Numbers {
    fn get(&self, placeholder: Placeholder) -> Option<u32> {
        match placeholder {
            Placeholder::Layer => self.layer,
            Placeholder::Expert => self.expert,
            Placeholder::Named(name) => {
                let mut named = self.named.iter();
                named.find(|(known, _)| *known == name).map(|(_, n)| *n)
            }
        }
    }

    /// Adds the number of a placeholder that has none.
    pub(super) fn set(&mut self, placeholder: Placeholder, number: u32) {
        match placeholder {
            Placeholder::Layer => self.layer = Some(number),
            Placeholder::Expert => self.expert = Some(number),
            Placeholder::Named(name) => self.named.push((name, number)),
        }
    }

    /// Takes the number of a placeholder away.
    pub(super) fn unset(&mut self, placeholder: Placeholder) {
        match placeholder {
            Placeholder::Layer => self.layer = None,
            Placeholder::Expert => self.expert = None,
            Placeholder::Named(name) => self.named.retain(|(known, _)| *known != name),
        }
    }

    pub(super) fn with(&self, placeholder: Placeholder, number: u32) -> Self {
        let mut numbers = self.clone();
        numbers.set(placeholder, number);
        numbers
    }

    pub(super) fn classification(
        &self,
        component: Component,
        role: Role,
        part: Part,
    ) -> Classification {
        Classification {
            component,
            role,
            part,
            layer: self.layer,
            expert: self.expert,
        }
    }
}

/// A number as PyTorch writes it into a name: no sign, no leading zero, at most 32 bits.
pub(crate) fn parse_number(word: &str) -> Option<u32> {
    let digits = word.bytes().all(|byte| byte.is_ascii_digit());
    let plain = digits && (word == "0" || !word.starts_with('0'));
    if plain { word.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_one_way() {
        assert_eq!(parse_number("0"), Some(0));
        assert_eq!(parse_number("4294967295"), Some(u32::MAX));
        for bad in [
            "",
            "00",
            "01",
            "+1",
            "-1",
            "1 ",
            "4294967296",
            "99999999999999999999",
            "１",
            "1e1",
        ] {
            assert_eq!(parse_number(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn patterns_are_cut_at_their_placeholders() {
        let pattern = Pattern::parse("a.", "b.{layer}.c.{expert}.d");
        assert_eq!(pattern.name(&[3, 14]), "a.b.3.c.14.d");
        assert_eq!(
            pattern.placeholders,
            [Placeholder::Layer, Placeholder::Expert]
        );
        assert_eq!(pattern.stems, ["b.{layer}", "b.{layer}.c.{expert}"]);
    }

    #[test]
    fn a_name_may_have_any_number_of_numbers() {
        let pattern = Pattern::parse("", "{stage}.a.{layer}.{head}.b.{expert}.{group}");
        let name = pattern.name(&[1, 2, 3, 4, 5]);
        assert_eq!(name, "1.a.2.3.b.4.5");
        let numbers = pattern.numbers(&[1, 2, 3, 4, 5]);
        assert_eq!(pattern.name_with(&numbers), name);
        let what = numbers.classification(Component::Text, Role::ExpertUp, Part::Scale);
        assert_eq!((what.layer, what.expert), (Some(2), Some(4)));
    }
}
