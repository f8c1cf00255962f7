//! The x86-64 paths on other processors: types without a value, so nothing can take them.

use super::{Block, LANES, State};

#[derive(Debug, Clone, Copy)]
pub(super) enum ShaNi {}

#[derive(Debug, Clone, Copy)]
pub(super) enum Avx512 {}

impl ShaNi {
    pub(super) fn detect() -> Option<Self> {
        None
    }

    pub(super) fn compress_same(self, _: &mut State, _: &mut State, _: &[Block]) {
        match self {}
    }

    pub(super) fn compress_two(
        self,
        _: &mut State,
        _: &[Block],
        _: &mut State,
        _: &[Block],
    ) -> usize {
        match self {}
    }
}

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        None
    }

    pub(super) fn compress_lanes(self, _: &mut [State; LANES], _: [&[Block]; LANES]) {
        match self {}
    }
}
