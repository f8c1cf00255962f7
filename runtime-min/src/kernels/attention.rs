//! Attention: all queries that see the same positions of a key head at once, over blocks of
//! positions.
//!
//! A tile's rows see the same positions: causally they are the query heads of one token that share
//! a key head, within segments some tokens of one head.
//! Under `Compute::F32` the softmax is online (Milakov and Gimelshein, 2018; FlashAttention): the
//! highest score, the sum and the result are carried from block to block. Blocks start at
//! multiples of [`POSITIONS`] whatever the batch is, so that a token's result depends on its query
//! and the positions before it alone. Under `Compute::Bf16` scores and probabilities are rounded as
//! the eager code does it, which takes all scores of a row before the first probability.

use segpack_formats::io::CancelToken;
use segpack_formats::numeric::FloatDtype;

use super::Kernels;
use super::exp::exp;
use super::order::Order;
use super::panel::{self, Rows};
use super::parallel::each;
use super::rows;
use super::scratch::{Buffer, Key};
use super::shared::Columns;
use super::simd::{self, LANES, Line, Simd, Work};
use super::tile::{self, by_tokens, groups};
use crate::tensor::{Compute, Heads};

/// Positions of a block.
const POSITIONS: usize = 64;
/// Vectors of scores of a block.
const SCORES: usize = POSITIONS / LANES;
/// Most tokens of a task: they share the packed keys of a block.
const TOKENS: usize = 16;
/// Most rows of a task within a segment: they share the packed keys of a block.
const ROWS: usize = 384;
/// Most values that a task under `Compute::Bf16` keeps as scores, unless one token has more.
const KEPT_SCORES: usize = 1 << 19;

/// One layer's attention of `tokens` new positions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention<'a> {
    /// `[tokens, query × width]`
    pub q: &'a [f32],
    /// `[positions, key_value × width]`
    pub keys: &'a [f32],
    /// Like `keys`.
    pub values: &'a [f32],
    pub heads: Heads,
    /// What scores are multiplied by.
    pub scale: f32,
    pub compute: Compute,
}

/// Computes `out`, like `q`; some of its values are undefined once `stop` is requested.
///
/// # Panics
/// Where the sizes do not fit together.
pub(crate) fn attention(
    kernels: Kernels,
    what: Attention<'_>,
    out: &mut [f32],
    stop: &CancelToken,
) {
    let Heads {
        query,
        key_value,
        width,
    } = what.heads;
    if what.q.is_empty() {
        return;
    }
    let (all, positions) = check(&what, out);
    assert!(all <= positions, "{all} tokens, {positions} keys");
    let group = query / key_value;
    let batch = match what.compute {
        Compute::F32 => TOKENS,
        Compute::Bf16 => (KEPT_SCORES / (group * positions)).clamp(1, TOKENS),
    };
    let mut out = Columns::all(out, query * width);
    let mut tasks = Vec::new();
    for first in (0..all).step_by(batch) {
        let tokens = first..(first + batch).min(all);
        let mut out = out.take_rows(tokens.len());
        for kv in 0..key_value {
            let out = out.take(group * width);
            tasks.push(Task {
                what,
                group,
                kv,
                tokens: tokens.len(),
                seen: positions - all + tokens.start + 1,
                queries: &what.q[(tokens.start * query + kv * group) * width..],
                strides: [query * width, width],
                rows: RowsOf::Heads,
                out,
            });
        }
    }
    let work = what.q.len() * positions;
    tasks.reverse(); // the longest first
    each(tasks, work > 1 << 16, stop, |task| kernels.run(task));
}

/// Tokens and positions, of sizes that fit together.
fn check(what: &Attention<'_>, out: &[f32]) -> (usize, usize) {
    let Heads {
        query,
        key_value,
        width,
    } = what.heads;
    let is_grouped = key_value > 0 && query > 0 && query % key_value == 0;
    assert!(width > 0 && is_grouped, "{:?}", what.heads);
    let (tokens, positions) = (
        what.q.len() / (query * width),
        what.keys.len() / (key_value * width),
    );
    assert!(
        tokens * query * width == out.len() && out.len() == what.q.len(),
        "queries of {tokens} tokens"
    );
    assert_eq!(
        positions * key_value * width,
        what.keys.len(),
        "{positions} keys"
    );
    assert_eq!(what.keys.len(), what.values.len(), "keys and values");
    (tokens, positions)
}

/// Tokens that attend to each other, as the numbers of the first of each segment and the end of the
/// last.
type Segments<'a> = &'a [usize];

/// As [`attention`], of tokens that attend to all of their segment, before and after them. Keys and
/// values are of the same tokens, one key head per query head.
///
/// # Panics
/// Where the sizes do not fit together.
pub(crate) fn attention_within(
    kernels: Kernels,
    what: Attention<'_>,
    segments: Segments<'_>,
    out: &mut [f32],
    stop: &CancelToken,
) {
    let Heads {
        query,
        key_value,
        width,
    } = what.heads;
    if what.q.is_empty() {
        return;
    }
    let (tokens, positions) = check(&what, out);
    assert_eq!(query, key_value, "query heads and key heads");
    assert_eq!(tokens, positions, "tokens and keys");
    let is_covered = segments.first() == Some(&0) && segments.last() == Some(&tokens);
    assert!(is_covered && segments.is_sorted(), "{segments:?}");
    let row = query * width;
    let mut out = Columns::all(out, row);
    let mut tasks = Vec::new();
    let mut work = 0;
    for segment in segments.windows(2) {
        let positions = segment[1] - segment[0];
        work += positions * positions * row;
        let part = Attention {
            keys: &what.keys[segment[0] * row..segment[1] * row],
            values: &what.values[segment[0] * row..segment[1] * row],
            ..what
        };
        let rows = match what.compute {
            Compute::F32 => ROWS,
            Compute::Bf16 => (KEPT_SCORES / positions.max(1)).clamp(1, ROWS),
        };
        for first in (segment[0]..segment[1]).step_by(rows) {
            let group = rows.min(segment[1] - first);
            let mut out = out.take_rows(group);
            for kv in 0..key_value {
                tasks.push(Task {
                    what: part,
                    group,
                    kv,
                    tokens: 1,
                    seen: positions,
                    queries: &what.q[first * row + kv * width..],
                    strides: [0, row],
                    rows: RowsOf::Tokens,
                    out: out.take(width),
                });
            }
        }
    }
    each(tasks, work > 1 << 16, stop, |task| kernels.run(task));
}

/// What the rows of a group are.
#[derive(Debug, Clone, Copy)]
enum RowsOf {
    /// Query heads of one token.
    Heads,
    /// Tokens, of one query head.
    Tokens,
}

/// Some tokens' query heads of one key head, or one token's, which stand for the tokens of a
/// segment.
struct Task<'a> {
    what: Attention<'a>,
    /// Rows that see the same positions: query heads per key head, or tokens.
    group: usize,
    kv: usize,
    tokens: usize,
    /// Positions that the first token sees; each further one sees one more.
    seen: usize,
    /// From the first row of the first token on.
    queries: &'a [f32],
    /// From token to token, and from row to row.
    strides: [usize; 2],
    rows: RowsOf,
    out: Columns<'a>,
}

impl Work for Task<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match (self.what.compute, S::STRIP) {
            (Compute::F32, 2) => self.online::<S, 2>(s),
            (Compute::F32, _) => self.online::<S, 1>(s),
            (Compute::Bf16, 2) => self.rounded::<S, 2>(s),
            (Compute::Bf16, _) => self.rounded::<S, 1>(s),
        }
    }
}

/// The heads of one tile.
#[derive(Debug, Clone, Copy)]
struct Tile {
    /// Of the task.
    token: usize,
    /// First head of the group.
    head: usize,
    heads: usize,
    /// Positions of the block that the token sees.
    seen: usize,
}

impl Task<'_> {
    /// Positions that a token of the task sees.
    fn seen(&self, token: usize) -> usize {
        self.seen + token
    }

    /// The tiles that see a block.
    fn tiles(&self, block: usize, max: usize) -> impl Iterator<Item = Tile> {
        let tokens = (0..self.tokens)
            .map(|t| (t, self.seen(t)))
            .filter(move |(_, seen)| *seen > block);
        let heads = groups(self.group, max);
        tokens.flat_map(move |(token, seen)| {
            let seen = (seen - block).min(POSITIONS);
            heads.clone().map(move |(head, heads)| Tile {
                token,
                head,
                heads,
                seen,
            })
        })
    }

    /// The keys, or values, of a block of positions for this head; none after the last position
    /// seen.
    fn block<'b>(&self, all: &'b [f32], from: usize) -> impl Iterator<Item = &'b [f32]> {
        let (width, stride) = (
            self.what.heads.width,
            self.what.heads.key_value * self.what.heads.width,
        );
        let all_seen = self.seen(self.tokens - 1);
        let (from, end) = (from.min(all_seen), all_seen.min(from + POSITIONS));
        let first = self.kv * width;
        all[from * stride..end * stride]
            .chunks_exact(stride)
            .map(move |row| &row[first..first + width])
    }

    /// `[token][group of heads][width, heads]`
    #[inline(always)]
    fn pack_queries<S: Simd>(&self, packed: &mut [f32]) {
        let (width, group) = (self.what.heads.width, self.group);
        let [of_token, of_row] = self.strides;
        for token in 0..self.tokens {
            for (head, heads) in groups(group, S::TOKENS) {
                let to = &mut packed[(token * group + head) * width..][..heads * width];
                for h in 0..heads {
                    let q = &self.queries[token * of_token + (head + h) * of_row..][..width];
                    for (to, q) in to[h..].iter_mut().step_by(heads).zip(q) {
                        *to = *q;
                    }
                }
            }
        }
    }

    /// The result of one row.
    fn result(&mut self, token: usize, row: usize) -> &mut [f32] {
        let width = self.what.heads.width;
        match self.rows {
            RowsOf::Heads => &mut self.out.row(token)[row * width..][..width],
            RowsOf::Tokens => self.out.row(row),
        }
    }

    /// Keys of a block, as strips of positions: `[strip][width, STRIP]`.
    #[inline(always)]
    fn pack_keys<S: Simd, const STRIP: usize>(&self, s: S, from: usize, panels: &mut [Line]) {
        let (width, stride) = (
            self.what.heads.width,
            self.what.heads.key_value * self.what.heads.width,
        );
        let end = self.seen(self.tokens - 1).min(from + POSITIONS);
        let rows = Rows {
            dtype: FloatDtype::F32,
            bytes: simd::bytes(&self.what.keys[from * stride + self.kv * width..]),
            stride: stride * size_of::<f32>(),
            rows: end - from,
            columns: width,
        };
        for (i, panel) in panels.chunks_exact_mut(width * STRIP).enumerate() {
            if i * STRIP * LANES < rows.rows {
                let part = rows.part(i * STRIP * LANES, STRIP * LANES, 0, width);
                panel::pack(s, part, Order::natural(width), STRIP, panel);
            }
        }
        for key in self.block(self.what.keys, from + POSITIONS) {
            key.chunks(LANES)
                .for_each(|line| s.prefetch(line.as_ptr().cast()));
        }
    }

    /// Values of a block, as strips of the width: `[strip][POSITIONS, STRIP]`, and a vector that is
    /// left over as `[POSITIONS]`.
    #[inline(always)]
    fn pack_values<S: Simd, const STRIP: usize>(&self, s: S, from: usize, panels: &mut [Line]) {
        for (p, row) in self.block(self.what.values, from).enumerate() {
            let (whole, rest) = row.as_chunks::<LANES>();
            let strips = panels.len() / (POSITIONS * STRIP);
            let at = |v: usize| match v / STRIP < strips {
                true => ((v / STRIP) * POSITIONS + p) * STRIP + v % STRIP,
                false => v * POSITIONS + p,
            };
            for (v, x) in whole.iter().enumerate() {
                s.store(s.load(x), &mut panels[at(v)].0);
            }
            if !rest.is_empty() {
                panels[at(whole.len())].0[..rest.len()].copy_from_slice(rest);
            }
        }
        for value in self.block(self.what.values, from + POSITIONS) {
            value
                .chunks(LANES)
                .for_each(|line| s.prefetch(line.as_ptr().cast()));
        }
    }

    /// Whether packing would cost more than it spares: one token, whose heads are one tile, without
    /// vectors that are not full.
    fn has_few_rows<S: Simd>(&self) -> bool {
        self.tokens == 1 && self.group <= S::TOKENS && self.what.heads.width.is_multiple_of(LANES)
    }

    /// What this head has of a block of keys or values, from its first value on, and the values
    /// from position to position.
    fn rows_of<'b>(&self, all: &'b [f32], from: usize) -> (&'b [f32], usize) {
        let width = self.what.heads.width;
        let stride = self.what.heads.key_value * width;
        let last = self.seen(self.tokens - 1).min(from + POSITIONS) - 1;
        let first = self.kv * width;
        (
            &all[from * stride + first..last * stride + first + width],
            stride,
        )
    }

    /// The keys of a block, as they lie.
    fn key_rows(&self, from: usize) -> KeyRows<'_> {
        let (keys, stride) = self.rows_of(self.what.keys, from);
        KeyRows { keys, stride }
    }

    /// The values of a block, as they lie.
    fn value_rows(&self, from: usize) -> Values<'_> {
        let (values, stride) = self.rows_of(self.what.values, from);
        Values::Rows { values, stride }
    }

    #[inline(always)]
    fn online<S: Simd, const STRIP: usize>(mut self, s: S) {
        let (width, group, tokens) = (self.what.heads.width, self.group, self.tokens);
        let vectors = width.div_ceil(LANES);
        let [mut queries, mut keys, mut values, mut sums, mut states] =
            [Key::Inputs, Key::Panel, Key::Values, Key::Sums, Key::States].map(Buffer::take);
        let queries = queries.values(tokens * group * width);
        self.pack_queries::<S>(queries);
        let keys = keys.lines(POSITIONS / LANES * width);
        let values = values.lines(vectors * POSITIONS);
        let sums = sums.lines(tokens * group * vectors);
        sums.fill(Line::ZERO);
        let (states, _) = states.lines(2 * tokens * group).as_chunks_mut();
        states.fill(EMPTY);
        let few = self.has_few_rows::<S>();
        for from in (0..self.seen(tokens - 1)).step_by(POSITIONS) {
            let values = match few {
                true => self.value_rows(from),
                false => {
                    self.pack_values::<S, STRIP>(s, from, values);
                    Values::Packed(values)
                }
            };
            if few && S::TRANSPOSED_BESIDE_SUMS {
                let keys = self.key_rows(from);
                self.add_block::<S, STRIP>(s, from, keys, values, queries, states, sums);
            } else {
                self.pack_keys::<S, STRIP>(s, from, keys);
                let keys = PackedKeys(keys);
                self.add_block::<S, STRIP>(s, from, keys, values, queries, states, sums);
            }
        }
        for token in 0..tokens {
            for (head, heads) in groups(group, S::TOKENS) {
                let at = token * group + head;
                let [_, Line(totals)] = states[at];
                let sums = &sums[at * vectors..][..heads * vectors];
                for (h, total) in totals.iter().enumerate().take(heads) {
                    let out = self.result(token, head + h);
                    spread(sums, heads, STRIP, h, out);
                    out.iter_mut().for_each(|x| *x /= total);
                }
            }
        }
    }

    /// Adds what the tiles see of a block.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
    fn add_block<S: Simd, const STRIP: usize>(
        &self,
        s: S,
        from: usize,
        keys: impl Keys,
        values: Values<'_>,
        queries: &[f32],
        states: &mut [State],
        sums: &mut [Line],
    ) {
        let (width, group, scale) = (self.what.heads.width, self.group, self.what.scale);
        let vectors = width.div_ceil(LANES);
        for tile in self.tiles(from, S::TOKENS) {
            let at = tile.token * group + tile.head;
            let q = &queries[at * width..][..tile.heads * width];
            let sums = &mut sums[at * vectors..][..tile.heads * vectors];
            let (seen, state) = (tile.seen, &mut states[at]);
            by_tokens!(
                tile.heads,
                online::<S, STRIP>(s, keys, values, q, seen, scale, state, sums)
            );
        }
    }

    #[inline(always)]
    fn rounded<S: Simd, const STRIP: usize>(mut self, s: S) {
        let (width, group, tokens) = (self.what.heads.width, self.group, self.tokens);
        let vectors = width.div_ceil(LANES);
        let [mut queries, mut panel, mut scores, mut sums] =
            [Key::Inputs, Key::Panel, Key::Values, Key::Sums].map(Buffer::take);
        let queries = queries.values(tokens * group * width);
        self.pack_queries::<S>(queries);
        // keys of a block at first, its values later
        let panel = panel.lines((POSITIONS / LANES * width).max(vectors * POSITIONS));
        let longest = self.seen(tokens - 1);
        let stride = longest.div_ceil(POSITIONS) * SCORES;
        let scores = scores.lines(tokens * group * stride);
        let scale = self.what.scale;
        for (i, from) in (0..longest).step_by(POSITIONS).enumerate() {
            let keys = &mut panel[..POSITIONS / LANES * width];
            self.pack_keys::<S, STRIP>(s, from, keys);
            for tile in self.tiles(from, S::TOKENS) {
                let at = tile.token * group + tile.head;
                let q = &queries[at * width..][..tile.heads * width];
                let scores = &mut scores[at * stride + i * SCORES..];
                by_tokens!(
                    tile.heads,
                    rounded_scores::<S, STRIP>(s, keys, q, scale, stride, scores)
                );
            }
        }
        for (i, scores) in scores.chunks_exact_mut(stride).enumerate() {
            let scores = &mut simd::values_mut(scores)[..self.seen(i / group)];
            rows::softmax_row(s, scores);
            Compute::Bf16.round_all(scores);
        }
        let sums = sums.lines(tokens * group * vectors);
        sums.fill(Line::ZERO);
        for (i, from) in (0..longest).step_by(POSITIONS).enumerate() {
            let values = &mut panel[..vectors * POSITIONS];
            self.pack_values::<S, STRIP>(s, from, values);
            for tile in self.tiles(from, S::TOKENS) {
                let at = tile.token * group + tile.head;
                let scores = &scores[at * stride + i * SCORES..];
                let sums = &mut sums[at * vectors..][..tile.heads * vectors];
                by_tokens!(
                    tile.heads,
                    rounded_sums::<S, STRIP>(s, values, scores, stride, tile.seen, sums)
                );
            }
        }
        for token in 0..tokens {
            for (head, heads) in groups(group, S::TOKENS) {
                let sums = &sums[(token * group + head) * vectors..][..heads * vectors];
                for h in 0..heads {
                    let out = self.result(token, head + h);
                    spread(sums, heads, STRIP, h, out);
                    Compute::Bf16.round_all(out);
                }
            }
        }
    }
}

/// One head's row of `sums`, `[strip][heads, STRIP]` and a vector that is left over as `[heads]`.
#[inline(always)]
fn spread(sums: &[Line], heads: usize, strip: usize, head: usize, out: &mut [f32]) {
    let strips = sums.chunks_exact(heads * strip);
    let last = strips.remainder();
    let mut out = out.chunks_mut(LANES);
    let whole = strips.flat_map(|sums| &sums[head * strip..][..strip]);
    for (line, out) in whole.chain(last.get(head)).zip(&mut out) {
        out.copy_from_slice(&line.0[..out.len()]);
    }
}

/// What the online softmax carries from block to block, the maximum and the sum; lanes are heads.
type State = [Line; 2];

/// The state before the first block.
const EMPTY: State = [Line([f32::NEG_INFINITY; LANES]), Line::ZERO];

/// The scores of one tile: `[heads][POSITIONS]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Scores<const HEADS: usize>([[f32; POSITIONS]; HEADS]);

/// The keys of a block.
trait Keys: Copy {
    /// `[HEADS][POSITIONS]`: queries, `[width, HEADS]`, times the keys. What is beyond the positions
    /// that are seen is undefined.
    fn scores<S: Simd, const STRIP: usize, const HEADS: usize>(
        self,
        s: S,
        q: &[f32],
    ) -> [[S::V; SCORES]; HEADS];
}

/// Strips of positions: `[strip][width, STRIP]`.
#[derive(Clone, Copy)]
struct PackedKeys<'a>(&'a [Line]);

impl Keys for PackedKeys<'_> {
    #[inline(always)]
    fn scores<S: Simd, const STRIP: usize, const HEADS: usize>(
        self,
        s: S,
        q: &[f32],
    ) -> [[S::V; SCORES]; HEADS] {
        let Self(keys) = self;
        let mut to = [[s.splat(0.0); SCORES]; HEADS];
        let panel = keys.len() / (SCORES / STRIP);
        for (i, keys) in keys.chunks_exact(panel).enumerate() {
            let acc = [[s.splat(0.0); STRIP]; HEADS];
            let acc = tile::columns::<S, STRIP, HEADS, 0>(s, keys, q, std::ptr::null(), acc);
            for h in 0..HEADS {
                for v in 0..STRIP {
                    to[h][i * STRIP + v] = acc[h][v];
                }
            }
        }
        to
    }
}

/// Keys in the order of the cache, `stride` values from position to position.
#[derive(Clone, Copy)]
struct KeyRows<'a> {
    keys: &'a [f32],
    stride: usize,
}

impl Keys for KeyRows<'_> {
    /// Sixteen positions after the other become lanes in registers, column by column; of each pair
    /// of columns the odd one is first, as in [`tile::columns`]. Asks for the next block on the way.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "references keep sums in memory")]
    fn scores<S: Simd, const STRIP: usize, const HEADS: usize>(
        self,
        s: S,
        q: &[f32],
    ) -> [[S::V; SCORES]; HEADS] {
        let mut to = [[s.splat(0.0); SCORES]; HEADS];
        let positions = self.keys.len().div_ceil(self.stride);
        let q = q.as_chunks::<HEADS>().0.as_chunks::<LANES>().0;
        for v in 0..SCORES {
            let mut lines = [self.keys.as_chunks::<LANES>().0; LANES];
            for i in 0..LANES {
                // positions that are not there are the last one again
                let position = (v * LANES + i).min(positions - 1);
                lines[i] = self.keys[position * self.stride..].as_chunks().0;
            }
            let mut acc = [s.splat(0.0); HEADS];
            for (k, q) in q.iter().enumerate() {
                let mut rows = [s.splat(0.0); LANES];
                for i in 0..LANES {
                    let line = &lines[i][k];
                    rows[i] = s.load(line);
                    s.prefetch(line.as_ptr().wrapping_add(POSITIONS * self.stride).cast());
                }
                let columns = s.transpose(rows);
                for pair in 0..LANES / 2 {
                    for column in [2 * pair + 1, 2 * pair] {
                        for h in 0..HEADS {
                            acc[h] = s.mul_add(columns[column], s.splat(q[column][h]), acc[h]);
                        }
                    }
                }
            }
            for h in 0..HEADS {
                to[h][v] = acc[h];
            }
        }
        to
    }
}

/// The values of a block.
#[derive(Clone, Copy)]
enum Values<'a> {
    /// Strips of the width: `[strip][POSITIONS, STRIP]`, and a vector that is left over as
    /// `[POSITIONS]`.
    Packed(&'a [Line]),
    /// In the order of the cache, `stride` values from position to position.
    Rows { values: &'a [f32], stride: usize },
}

impl<'a> Values<'a> {
    /// A strip of so many vectors, from a vector on: the first position's, and the values from
    /// position to position.
    #[inline(always)]
    fn strip(self, vectors: usize, first: usize) -> (&'a [f32], usize) {
        match self {
            Self::Packed(lines) => (simd::values(&lines[first * POSITIONS..]), vectors * LANES),
            Self::Rows { values, stride } => (&values[first * LANES..], stride),
        }
    }
}

/// `sums += probabilities · values` over the positions seen, in ascending order. Asks for the next
/// block where values are as in the cache.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "references keep sums in memory")]
fn add_values<S: Simd, const STRIP: usize, const HEADS: usize>(
    s: S,
    (values, stride): (&[f32], usize),
    probabilities: &Scores<HEADS>,
    seen: usize,
    mut acc: [[S::V; STRIP]; HEADS],
) -> [[S::V; STRIP]; HEADS] {
    let rows = values.chunks(stride).take(seen);
    for (p, row) in rows.enumerate().take(POSITIONS) {
        let line = &row.as_chunks::<LANES>().0[..STRIP];
        let mut w = [s.splat(0.0); STRIP];
        for v in 0..STRIP {
            w[v] = s.load(&line[v]);
            if stride > STRIP * LANES {
                s.prefetch(line[v].as_ptr().wrapping_add(POSITIONS * stride).cast());
            }
        }
        for h in 0..HEADS {
            // from where it lies: gathered before, the compiler writes all of a position to memory
            // and waits for that
            let x = s.splat(probabilities.0[h][p]);
            for v in 0..STRIP {
                acc[h][v] = s.mul_add(w[v], x, acc[h][v]);
            }
        }
    }
    acc
}

/// One block of the online softmax.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
fn online<S: Simd, const STRIP: usize, const HEADS: usize>(
    s: S,
    keys: impl Keys,
    values: Values<'_>,
    q: &[f32],
    seen: usize,
    scale: f32,
    [max, total]: &mut State,
    sums: &mut [Line],
) {
    if HEADS > S::TOKENS || STRIP > S::STRIP {
        return; // never called; spares its code
    }
    let mut scores = keys.scores::<S, STRIP, HEADS>(s, q);
    let mut kept = Scores([[0.0; POSITIONS]; HEADS]);
    let mut maxima = [s.splat(f32::NEG_INFINITY); LANES];
    for (h, row) in scores.iter_mut().enumerate() {
        for score in row.iter_mut() {
            *score = s.mul(*score, s.splat(scale));
        }
        if seen < POSITIONS {
            hide(s, row, seen);
        }
        maxima[h] = s.max(s.max(row[0], row[1]), s.max(row[2], row[3]));
    }
    let before = s.load(&max.0);
    let after = s.max(across(s, maxima, S::max), before);
    s.store(after, &mut max.0);
    // what is subtracted must be finite where no score is above -∞ yet
    let mut base = *max;
    base.0
        .iter_mut()
        .filter(|x| **x == f32::NEG_INFINITY)
        .for_each(|x| *x = 0.0);
    let factor = exp(s, s.sub(before, s.load(&base.0)));
    let mut totals = [s.splat(0.0); LANES];
    for (h, row) in scores.iter_mut().enumerate() {
        let base = s.splat(base.0[h]);
        for (score, to) in row.iter_mut().zip(kept.0[h].as_chunks_mut().0) {
            *score = exp(s, s.sub(*score, base));
            s.store(*score, to);
        }
        totals[h] = s.add(s.add(row[0], row[1]), s.add(row[2], row[3]));
    }
    let sum = s.mul_add(s.load(&total.0), factor, across(s, totals, S::add));
    s.store(sum, &mut total.0);
    let mut factors = Line::ZERO;
    s.store(factor, &mut factors.0);
    weigh_all::<S, STRIP, HEADS>(s, values, &kept, seen, &factors, sums);
}

/// `sums = sums · factors + probabilities · values`; lanes of `factors` are heads.
#[inline(always)]
fn weigh_all<S: Simd, const STRIP: usize, const HEADS: usize>(
    s: S,
    values: Values<'_>,
    probabilities: &Scores<HEADS>,
    seen: usize,
    factors: &Line,
    sums: &mut [Line],
) {
    let whole = sums.len() / (HEADS * STRIP) * STRIP;
    let (sums, last_sums) = sums.split_at_mut(whole * HEADS);
    weigh::<S, STRIP, HEADS>(s, (values, 0), probabilities, seen, factors, sums);
    // a strip of one vector rather than lanes that nobody needs
    weigh::<S, 1, HEADS>(s, (values, whole), probabilities, seen, factors, last_sums);
}

/// As [`weigh_all`], of whole strips from a vector on.
#[inline(always)]
fn weigh<S: Simd, const STRIP: usize, const HEADS: usize>(
    s: S,
    (values, first): (Values<'_>, usize),
    probabilities: &Scores<HEADS>,
    seen: usize,
    factors: &Line,
    sums: &mut [Line],
) {
    let sums = sums.as_chunks_mut::<STRIP>().0.chunks_exact_mut(HEADS);
    for (strip, sums) in sums.enumerate() {
        let mut acc = [[s.splat(0.0); STRIP]; HEADS];
        for h in 0..HEADS {
            for v in 0..STRIP {
                acc[h][v] = s.mul(s.load(&sums[h][v].0), s.splat(factors.0[h]));
            }
        }
        let values = values.strip(STRIP, first + strip * STRIP);
        acc = add_values(s, values, probabilities, seen, acc);
        for h in 0..HEADS {
            for v in 0..STRIP {
                s.store(acc[h][v], &mut sums[h][v].0);
            }
        }
    }
}

/// Sets the scores of positions that are not seen to -∞.
#[inline(always)]
fn hide<S: Simd>(s: S, row: &mut [S::V; SCORES], seen: usize) {
    for (v, score) in row.iter_mut().enumerate() {
        let mut line = Line::ZERO;
        s.store(*score, &mut line.0);
        let seen = seen.saturating_sub(v * LANES).min(LANES);
        line.0[seen..].fill(f32::NEG_INFINITY);
        *score = s.load(&line.0);
    }
}

/// Lane i of the result is row i, reduced pairwise: lanes j and j + 8, then j and j + 4, and so on.
#[inline(always)]
fn across<S: Simd>(s: S, rows: [S::V; LANES], reduce: impl Fn(S, S::V, S::V) -> S::V) -> S::V {
    let mut columns = s.transpose(rows);
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            columns[i] = reduce(s, columns[i], columns[i + width]);
        }
        width /= 2;
    }
    columns[0]
}

/// The scores of a block as the eager code rounds them; rows are `stride` lines apart.
#[inline(always)]
fn rounded_scores<S: Simd, const STRIP: usize, const HEADS: usize>(
    s: S,
    keys: &[Line],
    q: &[f32],
    scale: f32,
    stride: usize,
    to: &mut [Line],
) {
    if HEADS > S::TOKENS || STRIP > S::STRIP {
        return; // never called; spares its code
    }
    let scores = PackedKeys(keys).scores::<S, STRIP, HEADS>(s, q);
    for (h, row) in scores.iter().enumerate() {
        for (score, line) in row.iter().zip(&mut to[h * stride..][..SCORES]) {
            s.store(*score, &mut line.0);
            for x in &mut line.0 {
                *x = Compute::Bf16.round(Compute::Bf16.round(*x) * scale);
            }
        }
    }
}

/// `sums += probabilities · values` for rows of probabilities that are `stride` lines apart.
#[inline(always)]
fn rounded_sums<S: Simd, const STRIP: usize, const HEADS: usize>(
    s: S,
    values: &[Line],
    probabilities: &[Line],
    stride: usize,
    seen: usize,
    sums: &mut [Line],
) {
    if HEADS > S::TOKENS || STRIP > S::STRIP {
        return; // never called; spares its code
    }
    let mut kept = Scores([[0.0; POSITIONS]; HEADS]);
    for (h, row) in kept.0.iter_mut().enumerate() {
        row.copy_from_slice(simd::values(&probabilities[h * stride..][..SCORES]));
    }
    let values = Values::Packed(values);
    weigh_all::<S, STRIP, HEADS>(s, values, &kept, seen, &Line([1.0; LANES]), sums);
}
