//! All rules of a family, as a tree over the dot-separated words of a name.

use super::mount::Mount;
use super::pattern::{Numbers, Placeholder, next_placeholder, parse_number};
use super::stack::{Cut, Cutting, Stack};
use crate::families::{Slice, UnstackError};
use crate::names::{Classification, Component, Part, Role};

/// All rules of a family.
pub(crate) struct Rules(Node);

impl Rules {
    pub(crate) fn new() -> Self {
        Self(Node::default())
    }

    pub(crate) fn with<D>(mut self, mount: &Mount<D>) -> Self {
        mount.add_to(&mut self.0);
        self
    }

    pub(crate) fn classify(&self, name: &str) -> Option<Classification> {
        let (rule, numbers) = self.find(name)?;
        Some(numbers.classification(rule.component, rule.role, rule.part))
    }

    pub(crate) fn unstack(
        &self,
        name: &str,
        shape: &[u64],
        dtype_bits: u64,
    ) -> Option<Result<Vec<Slice>, UnstackError>> {
        let (rule, numbers) = self.find(name)?;
        let cutting = rule.stack.as_ref()?;
        let whole = numbers.classification(rule.component, rule.role, rule.part);
        let slices = cutting.slices((name, whole), &numbers, shape, dtype_bits);
        Some(slices.map_err(|wanted| UnstackError {
            name: name.to_owned(),
            shape: shape.to_vec(),
            dtype_bits,
            wanted,
        }))
    }

    fn find(&self, name: &str) -> Option<(&Rule, Numbers)> {
        let mut numbers = Numbers::default();
        let rule = self.0.find(name, &mut numbers)?;
        Some((rule, numbers))
    }
}

/// What a name means.
pub(crate) struct Rule {
    component: Component,
    role: Role,
    part: Part,
    stack: Option<Cutting>,
}

impl Rule {
    pub(super) fn new(
        component: Component,
        (role, part): (Role, Part),
        stack: Option<(Stack, Vec<Cut>)>,
    ) -> Self {
        let stack = stack.map(|(stack, cuts)| Cutting {
            component,
            part,
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
        debug_assert!(node.rule.is_none(), "two rules for {prefix}{pattern}");
        node.rule = Some(rule);
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
    fn find(&self, rest: &str, numbers: &mut Numbers) -> Option<&Rule> {
        let (word, tail) = match rest.split_once('.') {
            Some((word, tail)) => (word, Some(tail)),
            None => (rest, None),
        };
        let named = self.words.iter().find(|(known, _)| *known == word);
        if let Some(found) = named.and_then(|(_, node)| node.follow(tail, numbers)) {
            return Some(found);
        }
        let (placeholder, node) = self.number.as_ref()?;
        numbers.0.push((*placeholder, parse_number(word)?));
        let found = node.follow(tail, numbers);
        if found.is_none() {
            numbers.0.pop();
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
