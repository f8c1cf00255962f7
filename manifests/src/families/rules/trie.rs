//! Rules as a tree over the dot-separated words of a name.

use super::pattern::{Numbers, Placeholder, next_placeholder, parse_number};
use super::stack::{Cut, Cutting, Stack};
use crate::names::{Component, Part, Role};

/// What a name means.
pub(super) struct Rule {
    pub(super) component: Component,
    pub(super) role: Role,
    pub(super) part: Part,
    pub(super) stack: Option<Cutting>,
}

impl Rule {
    pub(super) fn new(
        component: Component,
        (role, part): (Role, Part),
        stack: Option<(Stack, Vec<Cut>)>,
    ) -> Self {
        let stack = stack.map(|(stack, cuts)| Cutting {
            component,
            stack,
            cuts,
        });
        Self {
            component,
            role,
            part,
            stack,
        }
    }
}

/// A place in the tree: the words that may follow, and the rule of the name that ends here.
#[derive(Default)]
pub(crate) struct Node {
    words: Vec<(&'static str, Node)>,
    number: Option<(Placeholder, Box<Node>)>,
    rule: Option<Rule>,
}

impl Node {
    pub(super) fn insert(&mut self, prefix: &'static str, pattern: &'static str, rule: Rule) {
        let mut node = self;
        for word in prefix.split_terminator('.').chain(pattern.split('.')) {
            node = node.child(word);
        }
        // two rows for one name differ in shape, each for its own layers
        let is_same = |known: &Rule| (known.role, known.part) == (rule.role, rule.part);
        debug_assert!(
            node.rule.as_ref().is_none_or(is_same),
            "two rules for {prefix}{pattern}"
        );
        node.rule.get_or_insert(rule);
    }

    fn child(&mut self, word: &'static str) -> &mut Node {
        if let Some((.., placeholder)) = next_placeholder(word, 0) {
            let new = || (placeholder, Box::default());
            let (known, node) = self.number.get_or_insert_with(new);
            debug_assert_eq!(*known, placeholder, "two meanings for one number");
            return node;
        }
        let known = self.words.iter().position(|(known, _)| *known == word);
        let position = known.unwrap_or_else(|| {
            self.words.push((word, Node::default()));
            self.words.len() - 1
        });
        &mut self.words[position].1
    }

    /// The rule of a name, its numbers added to `numbers`. A word is tried before a number.
    pub(super) fn find(&self, rest: &str, numbers: &mut Numbers) -> Option<&Rule> {
        let (word, tail) = match rest.split_once('.') {
            Some((word, tail)) => (word, Some(tail)),
            None => (rest, None),
        };
        let named = self.words.iter().find(|(known, _)| *known == word);
        if let Some(found) = named.and_then(|(_, node)| node.follow(tail, numbers)) {
            return Some(found);
        }
        let (placeholder, node) = self.number.as_ref()?;
        numbers.set(*placeholder, parse_number(word)?);
        let found = node.follow(tail, numbers);
        if found.is_none() {
            numbers.unset(*placeholder);
        }
        found
    }

    fn follow(&self, tail: Option<&str>, numbers: &mut Numbers) -> Option<&Rule> {
        match tail {
            Some(tail) => self.find(tail, numbers),
            None => self.rule.as_ref(),
        }
    }
}
