//! Name rules as data: a row says what a tensor is called, what it is, when it exists and how large
//! it is. The same rows classify names (without any configuration) and derive the expected names
//! and shapes.

use std::fmt::Write as _;
use std::ops::Range;

use crate::families::config::ConfigError;
use crate::families::{Expected, Presence, Slice, UnstackError};
use crate::names::{Classification, Component, Role};

/// Most tensors that a configuration may ask for, in all.
pub const MAX_TENSORS: usize = 1_000_000;

/// Numbers of a name, in the order of its placeholders.
pub(crate) type At = [u32; 2];

/// What a number in a name counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placeholder {
    /// Layer or block of a transformer.
    Layer,
    /// Routed expert.
    Expert,
    /// Residual codebook of the code predictor.
    Group,
    /// Deepstack merger of the vision tower.
    Merger,
    /// Upsampling stage of the vocoder.
    Stage,
    /// Entry of the vocoder's decoder list.
    Unit,
    /// Residual unit inside a decoder block.
    Residual,
}

impl Placeholder {
    fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "layer" => Self::Layer,
            "expert" => Self::Expert,
            "group" => Self::Group,
            "merger" => Self::Merger,
            "stage" => Self::Stage,
            "unit" => Self::Unit,
            "residual" => Self::Residual,
            _ => return None,
        })
    }
}

/// The sizes of one block of a model, read from its configuration.
pub(crate) trait Dims {
    /// The numbers that a placeholder runs through.
    fn range(&self, placeholder: Placeholder) -> Range<u32>;
}

/// One rule: a name pattern (whole dot-separated words may be placeholders such as `{layer}`), the
/// role, the shape, and, where it is not always there, the condition.
pub(crate) struct Row<D> {
    pub(crate) pattern: &'static str,
    role: Role,
    shape: fn(&D, At) -> Vec<u64>,
    /// Sees the first number of the name only, so that a whole layer is skipped at once.
    when: fn(&D, u32) -> bool,
    optional: fn(&D) -> bool,
    /// The roles of the per-expert matrices stacked here: along the first axis the experts, along
    /// the second these, in equal shares.
    pub(crate) stack_of: &'static [Role],
}

/// A rule for a tensor that is always there; the methods narrow it.
pub(crate) const fn row<D>(
    pattern: &'static str,
    role: Role,
    shape: fn(&D, At) -> Vec<u64>,
) -> Row<D> {
    Row {
        pattern,
        role,
        shape,
        when: |_, _| true,
        optional: |_| false,
        stack_of: &[],
    }
}

impl<D> Row<D> {
    pub(crate) const fn when(mut self, condition: fn(&D, u32) -> bool) -> Self {
        self.when = condition;
        self
    }

    pub(crate) const fn optional(mut self, condition: fn(&D) -> bool) -> Self {
        self.optional = condition;
        self
    }

    pub(crate) const fn stack_of(mut self, roles: &'static [Role]) -> Self {
        self.stack_of = roles;
        self
    }
}

/// A pattern cut at its placeholders: `texts[0] {placeholders[0]} texts[1] …`.
#[derive(Debug, Clone)]
struct Pattern {
    prefix: &'static str,
    texts: Vec<&'static str>,
    placeholders: Vec<Placeholder>,
    /// For each placeholder the pattern up to its end; rows with equal stems share a loop.
    stems: Vec<&'static str>,
}

impl Pattern {
    fn parse(prefix: &'static str, pattern: &'static str) -> Self {
        let mut parsed = Self {
            prefix,
            texts: Vec::new(),
            placeholders: Vec::new(),
            stems: Vec::new(),
        };
        let mut start = 0;
        while let Some((open, close, placeholder)) = next_placeholder(pattern, start) {
            parsed.texts.push(&pattern[start..open]);
            parsed.placeholders.push(placeholder);
            parsed.stems.push(&pattern[..close]);
            start = close;
        }
        parsed.texts.push(&pattern[start..]);
        parsed
    }

    fn name(&self, at: At) -> String {
        let mut name = String::with_capacity(80);
        name.push_str(self.prefix);
        for (position, text) in self.texts.iter().enumerate() {
            if position > 0 {
                // Writing to a String cannot fail.
                let _ = write!(name, "{}", at[position - 1]);
            }
            name.push_str(text);
        }
        name
    }
}

fn next_placeholder(pattern: &str, start: usize) -> Option<(usize, usize, Placeholder)> {
    let open = start + pattern[start..].find('{')?;
    let close = open + pattern[open..].find('}')? + 1;
    Some((
        open,
        close,
        Placeholder::from_text(&pattern[open + 1..close - 1])?,
    ))
}

/// Rule tables under a name prefix: one component of a family.
pub(crate) struct Mount<D: 'static> {
    pub(crate) prefix: &'static str,
    pub(crate) component: Component,
    pub(crate) tables: &'static [&'static [Row<D>]],
}

struct Compiled<'r, D> {
    row: &'r Row<D>,
    pattern: Pattern,
}

impl<D: Dims> Mount<D> {
    fn rows(&self) -> impl Iterator<Item = &'static Row<D>> {
        self.tables.iter().flat_map(|table| table.iter())
    }

    /// The names, at one layer, of the tensors that stack experts.
    pub(crate) fn stacked_names(&self, layer: u32) -> impl Iterator<Item = String> {
        let stacked = self.rows().filter(|row| !row.stack_of.is_empty());
        stacked.map(move |row| Pattern::parse(self.prefix, row.pattern).name([layer, 0]))
    }

    /// Adds every tensor that `dims` calls for: layers in order, within a layer the rows in order.
    pub(crate) fn expect(
        &self,
        dims: &D,
        section: &str,
        out: &mut Vec<Expected>,
    ) -> Result<(), ConfigError> {
        let compile = |row| Compiled {
            row,
            pattern: Pattern::parse(self.prefix, row.pattern),
        };
        let compiled: Vec<_> = self.rows().map(compile).collect();
        let rows: Vec<_> = compiled.iter().collect();
        emit(&rows, 0, [0; 2], dims, section, out)
    }

    fn add_to(&self, trie: &mut Node) {
        for row in self.rows() {
            let of_role = |role: &Role| {
                let logical = self.rows().find(|other| other.role == *role)?;
                Some(Logical {
                    role: *role,
                    pattern: Pattern::parse(self.prefix, logical.pattern),
                })
            };
            let stack_of = row.stack_of.iter().filter_map(of_role).collect();
            let words = self
                .prefix
                .split_terminator('.')
                .chain(row.pattern.split('.'));
            trie.insert(
                words,
                Rule {
                    component: self.component,
                    role: row.role,
                    stack_of,
                },
            );
        }
    }
}

fn emit<D: Dims>(
    rows: &[&Compiled<'_, D>],
    depth: usize,
    at: At,
    dims: &D,
    section: &str,
    out: &mut Vec<Expected>,
) -> Result<(), ConfigError> {
    let mut rest = rows;
    while let Some(first) = rest.first() {
        let Some(stem) = first.pattern.stems.get(depth) else {
            if depth > 0 || (first.row.when)(dims, 0) {
                push(first, at, dims, section, out)?;
            }
            rest = &rest[1..];
            continue;
        };
        let run = rest
            .iter()
            .take_while(|row| row.pattern.stems.get(depth) == Some(stem))
            .count();
        for index in dims.range(first.pattern.placeholders[depth]) {
            let mut at = at;
            at[depth] = index;
            // Asked before any inner loop, so that a skipped layer costs nothing per expert.
            let wanted = |row: &&&Compiled<'_, D>| depth > 0 || (row.row.when)(dims, index);
            let kept: Vec<_> = rest[..run].iter().filter(wanted).copied().collect();
            emit(&kept, depth + 1, at, dims, section, out)?;
        }
        rest = &rest[run..];
    }
    Ok(())
}

fn push<D: Dims>(
    row: &Compiled<'_, D>,
    at: At,
    dims: &D,
    section: &str,
    out: &mut Vec<Expected>,
) -> Result<(), ConfigError> {
    if out.len() == MAX_TENSORS {
        return Err(ConfigError::TooManyTensors {
            section: section.to_owned(),
            limit: MAX_TENSORS,
        });
    }
    let presence = if (row.row.optional)(dims) {
        Presence::Optional
    } else {
        Presence::Required
    };
    out.push(Expected {
        name: row.pattern.name(at),
        shape: (row.row.shape)(dims, at),
        presence,
    });
    Ok(())
}

/// All rules of a family, as a tree over the words of a name.
pub(crate) struct Rules(Node);

impl Rules {
    pub(crate) fn new() -> Self {
        Self(Node::default())
    }

    pub(crate) fn with<D: Dims>(mut self, mount: &Mount<D>) -> Self {
        mount.add_to(&mut self.0);
        self
    }

    pub(crate) fn classify(&self, name: &str) -> Option<Classification> {
        let (rule, numbers) = self.0.find(name, Numbers::default())?;
        Some(numbers.classification(rule.component, rule.role))
    }

    pub(crate) fn unstack(
        &self,
        name: &str,
        shape: &[u64],
        dtype_bits: u64,
    ) -> Option<Result<Vec<Slice>, UnstackError>> {
        let (rule, numbers) = self.0.find(name, Numbers::default())?;
        if rule.stack_of.is_empty() {
            return None;
        }
        Some(
            slices(rule, numbers, shape, dtype_bits).map_err(|wanted| UnstackError {
                name: name.to_owned(),
                shape: shape.to_vec(),
                dtype_bits,
                wanted,
            }),
        )
    }
}

/// A per-expert matrix inside a stacked tensor.
struct Logical {
    role: Role,
    pattern: Pattern,
}

struct Rule {
    component: Component,
    role: Role,
    stack_of: Vec<Logical>,
}

#[derive(Clone, Copy, Default)]
struct Numbers {
    layer: Option<u32>,
    expert: Option<u32>,
}

impl Numbers {
    fn classification(self, component: Component, role: Role) -> Classification {
        Classification {
            component,
            role,
            layer: self.layer,
            expert: self.expert,
        }
    }

    fn with(mut self, placeholder: Placeholder, number: u32) -> Self {
        match placeholder {
            Placeholder::Layer => self.layer = Some(number),
            Placeholder::Expert => self.expert = Some(number),
            _ => {}
        }
        self
    }
}

#[derive(Default)]
struct Node {
    words: Vec<(&'static str, Node)>,
    number: Option<(Placeholder, Box<Node>)>,
    rule: Option<Rule>,
}

impl Node {
    fn insert(&mut self, words: impl Iterator<Item = &'static str>, rule: Rule) {
        let mut node = self;
        for word in words {
            node = node.child(word);
        }
        debug_assert!(node.rule.is_none(), "two rules for one name");
        node.rule = Some(rule);
    }

    fn child(&mut self, word: &'static str) -> &mut Node {
        if let Some((.., placeholder)) = next_placeholder(word, 0) {
            let (known, node) = self
                .number
                .get_or_insert_with(|| (placeholder, Box::default()));
            debug_assert_eq!(*known, placeholder, "two meanings for one number");
            return node;
        }
        let position = self
            .words
            .iter()
            .position(|(known, _)| *known == word)
            .unwrap_or_else(|| {
                self.words.push((word, Node::default()));
                self.words.len() - 1
            });
        &mut self.words[position].1
    }

    fn find(&self, rest: &str, numbers: Numbers) -> Option<(&Rule, Numbers)> {
        let (word, tail) = rest
            .split_once('.')
            .map_or((rest, None), |(word, tail)| (word, Some(tail)));
        if let Some((_, node)) = self.words.iter().find(|(known, _)| *known == word)
            && let Some(found) = node.follow(tail, numbers)
        {
            return Some(found);
        }
        let (placeholder, node) = self.number.as_ref()?;
        node.follow(tail, numbers.with(*placeholder, parse_number(word)?))
    }

    fn follow(&self, tail: Option<&str>, numbers: Numbers) -> Option<(&Rule, Numbers)> {
        match tail {
            Some(tail) => self.find(tail, numbers),
            None => self.rule.as_ref().map(|rule| (rule, numbers)),
        }
    }
}

/// A number as PyTorch writes it into a name: no sign, no leading zero, at most 32 bits.
fn parse_number(word: &str) -> Option<u32> {
    let plain =
        word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    if plain { word.parse().ok() } else { None }
}

fn slices(
    rule: &Rule,
    numbers: Numbers,
    shape: &[u64],
    dtype_bits: u64,
) -> Result<Vec<Slice>, String> {
    let parts = rule.stack_of.len() as u64;
    let &[experts, rows, columns] = shape else {
        return Err("three dimensions".to_owned());
    };
    let count = u32::try_from(experts)
        .ok()
        .filter(|count| u64::from(*count) <= crate::families::config::MAX_COUNT);
    let Some(count) = count else {
        return Err(format!(
            "at most {} experts",
            crate::families::config::MAX_COUNT
        ));
    };
    if rows % parts != 0 {
        return Err(format!(
            "a second dimension that {parts} matrices share equally"
        ));
    }
    let bits = (rows / parts)
        .checked_mul(columns)
        .and_then(|elements| elements.checked_mul(dtype_bits));
    let bytes = bits.filter(|bits| bits % 8 == 0).map(|bits| bits / 8);
    let total = bytes.and_then(|bytes| bytes.checked_mul(parts)?.checked_mul(experts));
    let (Some(length), Some(_)) = (bytes, total) else {
        return Err("matrices of whole bytes, fewer than 2^64 in all".to_owned());
    };
    let mut slices = Vec::with_capacity(count as usize * rule.stack_of.len());
    for expert in 0..count {
        for logical in &rule.stack_of {
            let numbers = Numbers {
                expert: Some(expert),
                ..numbers
            };
            slices.push(Slice {
                name: logical
                    .pattern
                    .name([numbers.layer.unwrap_or_default(), expert]),
                shape: vec![rows / parts, columns],
                classification: numbers.classification(rule.component, logical.role),
                offset: slices.len() as u64 * length,
                length,
            });
        }
    }
    Ok(slices)
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
        assert_eq!(pattern.name([3, 14]), "a.b.3.c.14.d");
        assert_eq!(
            pattern.placeholders,
            [Placeholder::Layer, Placeholder::Expert]
        );
        assert_eq!(pattern.stems, ["b.{layer}", "b.{layer}.c.{expert}"]);
    }
}
