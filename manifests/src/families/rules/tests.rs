//! Stacks of every orientation, on made-up tensors whose values tell where they come from.

use std::ops::Range;

use super::pattern::Placeholder;
use super::row::{Dims, Row, row};
use super::stack::Stack;
use super::{Block, Mount, Rules};
use crate::families::expected::Slice;
use crate::names::{Component, Part, Role};

const EXPERTS: u64 = 3;
const INNER: u64 = 4;
const HIDDEN: u64 = 5;

struct Sizes;

impl Dims for Sizes {
    fn range(&self, _: Placeholder) -> Range<u32> {
        0..1
    }
}

const fn gate() -> Row<Sizes> {
    row("l.{layer}.e.{expert}.gate", Role::ExpertGate, |_, _| {
        vec![INNER, HIDDEN]
    })
}

const fn up() -> Row<Sizes> {
    row("l.{layer}.e.{expert}.up", Role::ExpertUp, |_, _| {
        vec![INNER, HIDDEN]
    })
}

const fn down() -> Row<Sizes> {
    row("l.{layer}.e.{expert}.down", Role::ExpertDown, |_, _| {
        vec![HIDDEN, INNER]
    })
}

const fn stacked(stack: Stack) -> Row<Sizes> {
    row("l.{layer}.stack", Role::ExpertGateUpStacked, |_, _| {
        Vec::new()
    })
    .stack(stack)
}

const GATE_UP: &[Role] = &[Role::ExpertGate, Role::ExpertUp];
const FUSED: &str = "l.{layer}.e.{expert}.gate_up";

static CONCATENATED: &[Row<Sizes>] = &[gate(), up(), stacked(Stack::of(GATE_UP))];
static INTERLEAVED: &[Row<Sizes>] = &[
    gate(),
    up(),
    stacked(
        Stack::of(GATE_UP)
            .interleaved()
            .fused(FUSED, Role::ExpertGateUp),
    ),
];
static TRANSPOSED: &[Row<Sizes>] = &[
    gate(),
    up(),
    stacked(
        Stack::of(GATE_UP)
            .transposed()
            .fused(FUSED, Role::ExpertGateUp),
    ),
];
static ONE_TRANSPOSED: &[Row<Sizes>] =
    &[down(), stacked(Stack::of(&[Role::ExpertDown]).transposed())];
static EXPERTS_INSIDE: &[Row<Sizes>] = &[gate(), up(), stacked(Stack::of(GATE_UP).expert_axis(1))];
static UNNAMED: &[Row<Sizes>] = &[gate(), up(), stacked(Stack::of(GATE_UP).interleaved())];

fn itself(sizes: &Sizes) -> &Sizes {
    sizes
}

macro_rules! rules_of {
    ($rows:ident) => {{
        static MOUNT: Mount<Sizes> = Mount {
            prefix: "",
            component: Component::Text,
            blocks: &[&Block {
                rows: $rows,
                dims: itself,
            }],
        };
        Rules::new().with(&MOUNT)
    }};
}

/// The slices of the stack of layer 7. They tile it: whatever is cut, unpacking gives the bytes
/// back.
#[track_caller]
fn slices(rules: &Rules, shape: &[u64]) -> Vec<Slice> {
    let slices = rules
        .unstack(("l.7.stack", "", None), shape, 16, &|| None)
        .unwrap()
        .unwrap();
    let mut end = 0;
    for slice in &slices {
        assert_eq!(slice.offset, end);
        assert_eq!(slice.length, 2 * slice.shape.iter().product::<u64>());
        end += slice.length;
    }
    assert_eq!(end, 2 * shape.iter().product::<u64>());
    slices
}

fn names(slices: &[Slice]) -> Vec<&str> {
    slices.iter().map(|s| s.name.as_str()).collect()
}

#[test]
fn concatenated_rows_are_cut_part_by_part() {
    let rules = rules_of!(CONCATENATED);
    let slices = slices(&rules, &[EXPERTS, 2 * INNER, HIDDEN]);
    assert_eq!(
        names(&slices),
        [
            "l.7.e.0.gate",
            "l.7.e.0.up",
            "l.7.e.1.gate",
            "l.7.e.1.up",
            "l.7.e.2.gate",
            "l.7.e.2.up"
        ]
    );
    for slice in &slices {
        assert_eq!(slice.shape, [INNER, HIDDEN]);
        assert_eq!(rules.classify(&slice.name), Some(slice.classification));
    }
    let what = slices[3].classification;
    assert_eq!((what.role, what.part), (Role::ExpertUp, Part::Weight));
    assert_eq!((what.layer, what.expert), (Some(7), Some(1)));
}

#[test]
fn interleaved_rows_stay_together() {
    let slices = slices(&rules_of!(INTERLEAVED), &[EXPERTS, 2 * INNER, HIDDEN]);
    assert_eq!(
        names(&slices),
        ["l.7.e.0.gate_up", "l.7.e.1.gate_up", "l.7.e.2.gate_up"]
    );
    assert_eq!(slices[2].shape, [2 * INNER, HIDDEN]);
    assert_eq!(slices[2].classification.role, Role::ExpertGateUp);
    assert_eq!(slices[2].classification.expert, Some(2));
}

#[test]
fn transposed_columns_stay_together() {
    let rules = rules_of!(TRANSPOSED);
    let slices = slices(&rules, &[EXPERTS, HIDDEN, 2 * INNER]);
    assert_eq!(
        names(&slices),
        ["l.7.e.0.gate_up", "l.7.e.1.gate_up", "l.7.e.2.gate_up"]
    );
    assert_eq!(slices[0].shape, [HIDDEN, 2 * INNER]);
    let odd = rules
        .unstack(("l.7.stack", "", None), &[EXPERTS, HIDDEN, 7], 16, &|| None)
        .unwrap()
        .unwrap_err();
    assert_eq!(
        odd.wanted,
        "a third dimension that 2 matrices share equally"
    );
}

#[test]
fn one_transposed_matrix_is_cut_as_it_lies() {
    let slices = slices(&rules_of!(ONE_TRANSPOSED), &[EXPERTS, INNER, HIDDEN]);
    assert_eq!(
        names(&slices),
        ["l.7.e.0.down", "l.7.e.1.down", "l.7.e.2.down"]
    );
    assert_eq!(slices[1].shape, [INNER, HIDDEN]);
}

#[test]
fn what_cannot_be_cut_stays_whole() {
    let shape = [2 * INNER, EXPERTS, HIDDEN];
    for rules in [rules_of!(EXPERTS_INSIDE), rules_of!(UNNAMED)] {
        let slices = slices(&rules, &shape);
        assert_eq!(names(&slices), ["l.7.stack"]);
        assert_eq!(
            slices[0].classification,
            rules.classify("l.7.stack").unwrap()
        );
        assert_eq!(slices[0].classification.expert, None);
    }
}

#[test]
fn a_word_wins_over_a_number_and_backtracks() {
    static ROWS: &[Row<Sizes>] = &[
        row("a.{layer}.b.{group}.c", Role::Conv, |_, _| Vec::new()),
        row("a.{layer}.b.0.d", Role::Merger, |_, _| Vec::new()),
    ];
    let rules = rules_of!(ROWS);
    let role = |name: &str| rules.classify(name).map(|c| (c.role, c.layer));
    assert_eq!(role("a.3.b.0.d"), Some((Role::Merger, Some(3))));
    assert_eq!(role("a.3.b.0.c"), Some((Role::Conv, Some(3))));
    assert_eq!(role("a.3.b.1.d"), None);
}
