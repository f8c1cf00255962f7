//! Sizes of the parts of a decoder or a tower, whatever its family, and the tables of rules over
//! them.
//!
//! A row of a table is `"name" Role [sides] or [sides] when conditions`: a side is a word of
//! [`Side`], a condition a method of [`Sizes`] that sees the layer.

use std::ops::Range;

use super::config::{ConfigError, MAX_COUNT, MAX_SIZE, Section};
use super::facts::TextFacts;
use super::rules::{Dims, Placeholder};

/// What a dimension of a tensor counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Any size.
    Any,
    /// 1, for scalars that are stored as vectors.
    One,
    /// Width of the residual stream.
    Hidden,
    /// Twice that: two streams side by side.
    TwoHidden,
    /// Rows of the embedding.
    Vocabulary,
    /// Inner width of a dense MLP.
    Dense,
    /// Inner width of a routed expert.
    Expert,
    /// Twice that: gate and up in one.
    TwoExpert,
    /// Inner width of the shared experts together.
    Shared,
    /// Twice that.
    TwoShared,
    /// Routed experts.
    Experts,
    /// Outputs of the router: experts, and those that compute nothing.
    Routed,
    /// Experts x their inner width: stacked along the rows.
    ExpertRows,
    /// Query heads.
    Heads,
    /// Width of a head.
    HeadDim,
    /// Width of all queries.
    Queries,
    /// Width of all keys.
    Keys,
    /// Width of all values.
    Values,
    /// Width of the heads' outputs together.
    Outputs,
    /// Width of queries, keys and values together.
    Qkv,
    /// Width of all keys of a sliding layer.
    SlidingKeys,
    /// Width of all values of a sliding layer.
    SlidingValues,
    /// Query heads of a sliding layer.
    SlidingHeads,
    /// Rank of the queries' compression.
    QueryRank,
    /// Rank of the compression of keys and values.
    KvRank,
    /// That rank and the rotated part of a key.
    KvCompressed,
    /// Keys without rotation, and values, of all heads.
    KvExpanded,
    /// Half of the rotated part of a head.
    Frequencies,
    /// Heads of the indexer.
    IndexHeads,
    /// Width of an indexer's head.
    IndexDim,
    /// Width of all indexer heads.
    IndexWidth,
    /// Heads of values of a linear attention, or of a state space.
    LinearHeads,
    /// Twice that.
    TwoLinearHeads,
    /// Width of such a head.
    LinearDim,
    /// Width of all its values.
    LinearValues,
    /// Width of what its convolution sees.
    LinearConv,
    /// Width of its first projection.
    LinearIn,
    /// Taps of its convolution.
    Taps,
    /// Size of a state.
    State,
    /// Rank of the time step.
    StepRank,
    /// Time step and two states together.
    StepAndStates,
    /// Channels of an image.
    Channels,
    /// Frames of a patch.
    Frames,
    /// Height and width of a patch.
    Patch,
    /// All values of a patch.
    PatchValues,
    /// Rows of a table of positions.
    Positions,
    /// Rows of a two-dimensional table of positions.
    PositionRows,
    /// Columns of it.
    PositionColumns,
    /// Three times the width of a tower: queries, keys and values.
    ThreeHidden,
    /// Width of merged patches.
    Merged,
    /// Height and width of a group of merged patches.
    Merge,
    /// Width of what a tower gives to the text.
    Output,
}

/// Number of sides.
const SIDES: usize = Side::Output as usize + 1;

/// What a configuration switches on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flag {
    /// The output head is the embedding.
    Tied,
    /// Biases of queries, keys and values.
    QkvBias,
    /// A bias of the attention's output.
    OutBias,
    /// Norms of queries and keys.
    QkNorm,
    /// A bias of the output head.
    HeadBias,
    /// A bias that routers choose by.
    RouterBias,
    /// Learned sinks of sliding layers.
    SlidingSinks,
    /// Learned sinks of the other layers.
    FullSinks,
    /// The extra layers share embedding and head with the model, or have their own.
    MtpShares,
    /// Shared experts.
    SharedExpert,
    /// What the class computes anew when it loads a checkpoint, stored or not.
    Recomputed,
}

/// How a layer mixes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mixer {
    /// Attention over all tokens.
    Full,
    /// Attention over a window.
    Sliding,
    /// Linear attention, a state space, a convolution.
    Linear,
    /// Not at all.
    Absent,
}

/// What a layer has for an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ffn {
    /// One MLP.
    Dense,
    /// Experts, stored one by one.
    Apart,
    /// Experts, stored in one tensor for each role.
    Stacked,
    /// None.
    Absent,
}

/// One layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) mixer: Mixer,
    pub(crate) ffn: Ffn,
    /// Whether it predicts a later token, beyond the layers of the model.
    pub(crate) mtp: bool,
}

/// Sizes of a decoder or a tower.
#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    sides: [u64; SIDES],
    flags: u32,
    pub(crate) experts: u32,
    pub(crate) layers: Vec<Layer>,
    /// What a placeholder other than layer and expert runs through.
    pub(crate) groups: u32,
}

impl Dims for Sizes {
    fn range(&self, placeholder: Placeholder) -> Range<u32> {
        match placeholder {
            Placeholder::Layer => 0..u32::try_from(self.layers.len()).unwrap_or(0),
            Placeholder::Expert => 0..self.experts,
            Placeholder::Named(_) => 0..self.groups,
        }
    }
}

impl Sizes {
    /// Those of something that has so many layers, each with attention and a dense MLP, and nothing
    /// else yet.
    pub(crate) fn of_layers(layers: u32) -> Self {
        let layer = Layer {
            mixer: Mixer::Full,
            ffn: Ffn::Dense,
            mtp: false,
        };
        let mut sizes = Self {
            sides: [0; SIDES],
            flags: 0,
            experts: 0,
            layers: vec![layer; layers as usize],
            groups: 0,
        };
        sizes.set(Side::One, 1);
        sizes
    }

    /// Vocabulary, width, layers and a tied head: what every decoder has.
    pub(crate) fn read(section: &Section<'_>) -> Result<Self, ConfigError> {
        Self::read_named(section, "hidden_size", "num_hidden_layers")
    }

    /// [`read`](Self::read) where width and layers are called otherwise.
    pub(crate) fn read_named(
        section: &Section<'_>,
        hidden: &str,
        layers: &str,
    ) -> Result<Self, ConfigError> {
        Self::read_of_layers(section, hidden, section.count(layers, None, 1)?)
    }

    /// [`read`](Self::read) of so many layers.
    pub(crate) fn read_of_layers(
        section: &Section<'_>,
        hidden: &str,
        layers: u32,
    ) -> Result<Self, ConfigError> {
        let mut sizes = Self::of_layers(layers);
        let hidden = section.size(hidden, None)?;
        sizes.set(Side::Hidden, hidden);
        sizes.set(Side::TwoHidden, 2 * hidden);
        sizes.set(Side::Vocabulary, section.size("vocab_size", None)?);
        sizes.flag(Flag::Tied, section.flag("tie_word_embeddings", false)?);
        Ok(sizes)
    }

    /// A dimension.
    pub(crate) fn side(&self, side: Side) -> u64 {
        self.sides[side as usize]
    }

    /// Sets a dimension.
    pub(crate) fn set(&mut self, side: Side, size: u64) {
        self.sides[side as usize] = size;
    }

    /// Reads a dimension; `default` where the key is absent.
    pub(crate) fn take(
        &mut self,
        side: Side,
        section: &Section<'_>,
        (key, default): (&str, Option<u64>),
    ) -> Result<u64, ConfigError> {
        let size = section.size(key, default)?;
        self.set(side, size);
        Ok(size)
    }

    /// Switches something.
    pub(crate) fn flag(&mut self, flag: Flag, on: bool) {
        let bit = 1 << flag as u32;
        self.flags = if on {
            self.flags | bit
        } else {
            self.flags & !bit
        };
    }

    /// Whether something is switched on.
    pub(crate) fn has(&self, flag: Flag) -> bool {
        self.flags & (1 << flag as u32) != 0
    }

    /// Queries, keys and values of grouped heads: `num_attention_heads`, `num_key_value_heads` (as
    /// many where absent), `head_dim` (an equal share of the width where absent).
    pub(crate) fn read_heads(&mut self, section: &Section<'_>) -> Result<(), ConfigError> {
        let heads = section.size("num_attention_heads", None)?;
        let kv_heads = section.size("num_key_value_heads", Some(heads))?;
        let share = self
            .side(Side::Hidden)
            .checked_div(heads)
            .unwrap_or(0)
            .max(1);
        let head_dim = section.size("head_dim", Some(share))?;
        self.set_heads(heads, kv_heads, head_dim);
        Ok(())
    }

    /// Queries, keys and values of grouped heads.
    pub(crate) fn set_heads(&mut self, heads: u64, kv_heads: u64, head_dim: u64) {
        self.set(Side::Heads, heads);
        self.set(Side::HeadDim, head_dim);
        self.set(Side::Queries, heads.saturating_mul(head_dim));
        self.set(Side::Outputs, heads.saturating_mul(head_dim));
        self.set(Side::Keys, kv_heads.saturating_mul(head_dim));
        self.set(Side::Values, kv_heads.saturating_mul(head_dim));
    }

    /// Heads of compressed keys and values (multi-head latent attention).
    pub(crate) fn read_latent_heads(&mut self, section: &Section<'_>) -> Result<(), ConfigError> {
        let heads = self.take(Side::Heads, section, ("num_attention_heads", None))?;
        let plain = section.integer("qk_nope_head_dim", None, 0..=MAX_SIZE)?;
        let rotated = section.size("qk_rope_head_dim", None)?;
        let value = section.size("v_head_dim", None)?;
        let rank = self.take(Side::KvRank, section, ("kv_lora_rank", None))?;
        self.set(Side::HeadDim, plain + rotated);
        self.set(Side::Queries, heads.saturating_mul(plain + rotated));
        self.set(Side::Outputs, heads.saturating_mul(value));
        self.set(Side::KvCompressed, rank + rotated);
        self.set(Side::KvExpanded, heads.saturating_mul(plain + value));
        self.set(Side::Frequencies, rotated / 2);
        if section.has("q_lora_rank") {
            self.take(Side::QueryRank, section, ("q_lora_rank", None))?;
        }
        Ok(())
    }

    /// Heads of the indexer that picks the tokens to attend to.
    pub(crate) fn read_indexer(&mut self, section: &Section<'_>) -> Result<(), ConfigError> {
        let heads = self.take(Side::IndexHeads, section, ("index_n_heads", None))?;
        let width = self.take(Side::IndexDim, section, ("index_head_dim", None))?;
        self.set(Side::IndexWidth, heads.saturating_mul(width));
        Ok(())
    }

    /// Routed experts, by the first of these keys that is there, and their inner width.
    pub(crate) fn read_experts(
        &mut self,
        section: &Section<'_>,
        count: &[&str],
        width: &str,
    ) -> Result<(), ConfigError> {
        let key = count.iter().find(|key| section.has(key));
        let key = key.or(count.first()).copied().unwrap_or_default();
        self.experts = section.count(key, None, 0)?;
        let width = size_or_first(section, width)?;
        self.set_experts(self.experts, width);
        Ok(())
    }

    /// Routed experts and their inner width.
    pub(crate) fn set_experts(&mut self, experts: u32, width: u64) {
        self.experts = experts;
        self.set(Side::Experts, experts.into());
        self.set(Side::Routed, experts.into());
        self.set(Side::Expert, width);
        self.set(Side::TwoExpert, 2 * width);
        self.set(Side::ExpertRows, width.saturating_mul(experts.into()));
    }

    /// The inner width of the shared experts together.
    pub(crate) fn set_shared(&mut self, width: u64) {
        self.set(Side::Shared, width);
        self.set(Side::TwoShared, 2 * width);
        self.flag(Flag::SharedExpert, width > 0);
    }

    /// Shared experts of the routed ones' width, `key` of them: a number, or a list that begins
    /// with it.
    pub(crate) fn read_shared_like_routed(
        &mut self,
        section: &Section<'_>,
        key: &str,
    ) -> Result<(), ConfigError> {
        let count = match section.value(key) {
            Some(serde_json::Value::Array(_)) => size_or_first(section, key)?,
            _ => section.integer(key, Some(0), 0..=MAX_COUNT)?,
        };
        self.set_shared(count.saturating_mul(self.side(Side::Expert)));
        Ok(())
    }

    /// Gives experts to the layers that `is_moe` picks, and none to the others, unless the
    /// configuration lists what each layer has.
    pub(crate) fn place_experts(
        &mut self,
        section: &Section<'_>,
        is_moe: impl Fn(u64) -> bool,
    ) -> Result<(), ConfigError> {
        // transformers 5 writes the list where 4 wrote the rule
        let listed = section.texts("mlp_layer_types")?;
        let has_experts = self.experts > 0;
        let mut listed = listed.iter();
        for (number, layer) in (0..).zip(&mut self.layers) {
            let stated = listed.next().map(|kind| kind == "sparse");
            if has_experts && stated.unwrap_or_else(|| is_moe(number)) {
                layer.ffn = Ffn::Apart;
            }
        }
        Ok(())
    }

    /// Experts as `mlp_only_layers` and `decoder_sparse_step` place them: Qwen.
    pub(crate) fn place_experts_by_step(&mut self, text: &Section<'_>) -> Result<(), ConfigError> {
        let step = text.size("decoder_sparse_step", Some(1))?;
        let dense = text.integers("mlp_only_layers", &[], 0..=MAX_COUNT)?;
        let is_moe = |layer: u64| !dense.contains(&layer) && (layer + 1).is_multiple_of(step);
        self.place_experts(text, is_moe)
    }

    /// Experts in every `moe_layer_freq`th layer after the first dense ones: DeepSeek.
    pub(crate) fn place_experts_after_dense(
        &mut self,
        text: &Section<'_>,
    ) -> Result<(), ConfigError> {
        let dense = text.integer("first_k_dense_replace", Some(0), 0..=MAX_COUNT)?;
        let step = text.size("moe_layer_freq", Some(1))?;
        self.place_experts(text, |layer| layer >= dense && layer.is_multiple_of(step))
    }

    /// The MLPs of DeepSeek-V3 and those that followed it.
    pub(crate) fn read_deepseek_experts(&mut self, text: &Section<'_>) -> Result<(), ConfigError> {
        self.take(Side::Dense, text, ("intermediate_size", None))?;
        let counts = ["n_routed_experts", "num_local_experts", "num_experts"];
        self.read_experts(text, &counts, "moe_intermediate_size")?;
        self.read_shared_like_routed(text, "n_shared_experts")?;
        self.flag(Flag::RouterBias, true);
        self.place_experts_after_dense(text)
    }

    /// A state space of heads: its inner width, its two states together, its heads.
    pub(crate) fn set_state_space(&mut self, inner: u64, states: u64, heads: u64) {
        self.set(Side::LinearValues, inner);
        self.set(Side::LinearConv, inner.saturating_add(states));
        let all = inner.saturating_mul(2).saturating_add(states);
        self.set(Side::LinearIn, all.saturating_add(heads));
    }

    /// A tower of so many layers, this wide, that cuts pictures into patches.
    pub(crate) fn of_tower(
        section: &Section<'_>,
        layers: &str,
        hidden: &str,
    ) -> Result<Self, ConfigError> {
        let mut sizes = Self::of_layers(section.count(layers, None, 1)?);
        let hidden = sizes.take(Side::Hidden, section, (hidden, None))?;
        sizes.set(Side::ThreeHidden, 3 * hidden);
        sizes.take(Side::Channels, section, ("in_channels", Some(3)))?;
        sizes.take(Side::Frames, section, ("temporal_patch_size", Some(2)))?;
        sizes.take(Side::Patch, section, ("patch_size", None))?;
        Ok(sizes)
    }

    /// How each layer mixes tokens: as `layer_types` lists it, or else as `kind` says.
    pub(crate) fn place_mixers(
        &mut self,
        section: &Section<'_>,
        kind: impl Fn(u64) -> Mixer,
    ) -> Result<(), ConfigError> {
        let listed = section.texts("layer_types")?;
        let mut listed = listed.iter();
        for (number, layer) in (0..).zip(&mut self.layers) {
            layer.mixer = match listed.next().map(String::as_str) {
                Some("sliding_attention" | "chunked_attention") => Mixer::Sliding,
                Some("linear_attention" | "mamba" | "conv") => Mixer::Linear,
                Some(_) => Mixer::Full,
                None => kind(number),
            };
        }
        Ok(())
    }

    /// Adds layers that predict later tokens: like the last of the model, with attention over all
    /// tokens.
    pub(crate) fn add_mtp(&mut self, count: u32, ffn: Ffn) {
        let layer = Layer {
            mixer: Mixer::Full,
            ffn,
            mtp: true,
        };
        self.layers.extend(vec![layer; count as usize]);
    }

    /// Turns the experts of a layer into stacked ones where `is_present` knows one of its stacked
    /// names.
    pub(crate) fn find_stacked(&mut self, is_stacked: impl Fn(u32) -> bool) {
        for (number, layer) in (0..).zip(&mut self.layers) {
            if layer.ffn == Ffn::Apart && is_stacked(number) {
                layer.ffn = Ffn::Stacked;
            }
        }
    }

    /// For each layer of the model whether it has routed experts.
    pub(crate) fn layers_with_experts(&self) -> Vec<bool> {
        let own = self.layers.iter().filter(|layer| !layer.mtp);
        own.map(|layer| matches!(layer.ffn, Ffn::Apart | Ffn::Stacked))
            .collect()
    }

    fn at(&self, layer: u32) -> Option<Layer> {
        self.layers.get(layer as usize).copied()
    }

    fn mixes(&self, layer: u32, mixer: Mixer) -> bool {
        self.at(layer).is_some_and(|l| l.mixer == mixer)
    }

    fn feeds(&self, layer: u32, ffn: Ffn) -> bool {
        self.at(layer).is_some_and(|l| l.ffn == ffn)
    }
}

/// Conditions of rows.
impl Sizes {
    pub(crate) fn full(&self, layer: u32) -> bool {
        self.mixes(layer, Mixer::Full)
    }

    pub(crate) fn sliding(&self, layer: u32) -> bool {
        self.mixes(layer, Mixer::Sliding)
    }

    pub(crate) fn linear(&self, layer: u32) -> bool {
        self.mixes(layer, Mixer::Linear)
    }

    pub(crate) fn attends(&self, layer: u32) -> bool {
        self.full(layer) || self.sliding(layer)
    }

    pub(crate) fn dense(&self, layer: u32) -> bool {
        self.feeds(layer, Ffn::Dense)
    }

    pub(crate) fn apart(&self, layer: u32) -> bool {
        self.feeds(layer, Ffn::Apart)
    }

    pub(crate) fn stacked(&self, layer: u32) -> bool {
        self.feeds(layer, Ffn::Stacked)
    }

    pub(crate) fn moe(&self, layer: u32) -> bool {
        self.apart(layer) || self.stacked(layer)
    }

    pub(crate) fn shared(&self, layer: u32) -> bool {
        self.moe(layer) && self.has(Flag::SharedExpert)
    }

    pub(crate) fn mtp(&self, layer: u32) -> bool {
        self.at(layer).is_some_and(|l| l.mtp)
    }

    pub(crate) fn qkv_bias(&self, _: u32) -> bool {
        self.has(Flag::QkvBias)
    }

    pub(crate) fn out_bias(&self, _: u32) -> bool {
        self.has(Flag::OutBias)
    }

    pub(crate) fn qk_norm(&self, _: u32) -> bool {
        self.has(Flag::QkNorm)
    }

    pub(crate) fn head_bias(&self, _: u32) -> bool {
        self.has(Flag::HeadBias)
    }

    pub(crate) fn router_bias(&self, _: u32) -> bool {
        self.has(Flag::RouterBias)
    }

    pub(crate) fn sink(&self, layer: u32) -> bool {
        let of_sliding = self.sliding(layer) && self.has(Flag::SlidingSinks);
        of_sliding || (self.full(layer) && self.has(Flag::FullSinks))
    }

    pub(crate) fn ranked(&self, _: u32) -> bool {
        self.side(Side::QueryRank) > 0
    }

    pub(crate) fn unranked(&self, layer: u32) -> bool {
        !self.ranked(layer)
    }
}

/// A size, or a list of sizes per layer, of which the first counts.
fn size_or_first(section: &Section<'_>, key: &str) -> Result<u64, ConfigError> {
    match section.value(key) {
        Some(serde_json::Value::Array(_)) => {
            let sizes = section.integers(key, &[], 0..=MAX_SIZE)?;
            let first = sizes
                .first()
                .copied()
                .filter(|_| sizes.iter().all(|s| *s == sizes[0]));
            first.ok_or_else(|| section.invalid(key, "a size, or the same size for each layer"))
        }
        _ => section.size(key, None),
    }
}

/// The facts about a decoder of these sizes.
pub(crate) fn text_facts(section: &Section<'_>, sizes: &Sizes) -> Result<TextFacts, ConfigError> {
    let own = |l: &&Layer| !l.mtp;
    let sparse = |l: &&Layer| matches!(l.ffn, Ffn::Apart | Ffn::Stacked);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let experts_per_token = experts_per_token(section, 0)?;
    let eps = EPS.iter().find(|key| section.has(key)).unwrap_or(&EPS[0]);
    let head_dim = sizes.side(Side::HeadDim);
    let (rope_theta, rope_type) = super::facts::read_rope(section, 10_000.0)?;
    Ok(TextFacts {
        hidden_size: sizes.side(Side::Hidden),
        layers: count(sizes.layers.iter().filter(own).count()),
        moe_layers: count(sizes.layers.iter().filter(own).filter(sparse).count()),
        experts: sizes.experts,
        experts_per_token,
        moe_intermediate: sizes.side(Side::Expert),
        intermediate: sizes.side(Side::Dense),
        heads: sizes.side(Side::Heads),
        kv_heads: sizes.side(Side::Keys).checked_div(head_dim).unwrap_or(0),
        head_dim,
        vocab: sizes.side(Side::Vocabulary),
        rms_norm_eps: section.number(eps, 1e-6, super::facts::RMS_NORM_EPS)?,
        rope_theta,
        rope_type,
        attention_bias: sizes.has(Flag::QkvBias),
        norm_topk_prob: section.flag("norm_topk_prob", false)?,
        tie_word_embeddings: sizes.has(Flag::Tied),
    })
}

/// The key for the experts that each token visits: the one that is there, or else the usual.
pub(crate) fn per_token_key(section: &Section<'_>) -> &'static str {
    let found = PER_TOKEN.iter().find(|key| section.has(key));
    found.copied().unwrap_or(PER_TOKEN[0])
}

/// Experts that each token visits; `default` where no key is there.
pub(crate) fn experts_per_token(section: &Section<'_>, default: u32) -> Result<u32, ConfigError> {
    let key = per_token_key(section);
    match section.has(key) {
        true => Ok(u32::try_from(size_or_first(section, key)?).unwrap_or(u32::MAX)),
        false => Ok(default),
    }
}

/// Keys for the experts that each token visits.
const PER_TOKEN: [&str; 5] = [
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_k",
    "moe_top_k",
];

/// Keys for what norms add to a mean square.
const EPS: [&str; 3] = ["rms_norm_eps", "norm_eps", "layer_norm_epsilon"];

/// A table of rules over [`Sizes`]: see the top of this file. `role/Part` is a part other than the
/// weight, `maybe flag` a tensor that may be left out where the flag is on, `as` how a stack is
/// taken apart.
macro_rules! table {
    ($($(#[$meta:meta])* $name:ident {
        $($pattern:literal $role:ident $(/ $part:ident)? [$($side:ident),*]
            $(or [$($other:ident),*])? $(when $($when:ident)&+)? $(maybe $maybe:ident)? $(as $stack:expr)?;)*
    })*) => {$(
        $(#[$meta])*
        pub(crate) static $name: &[$crate::families::rules::Row<$crate::families::sizes::Sizes>] =
            &[$({
                let row = $crate::families::rules::row(
                    $pattern,
                    $crate::names::Role::$role,
                    |_d: &$crate::families::sizes::Sizes, _| {
                        vec![$(_d.side($crate::families::sizes::Side::$side)),*]
                    },
                );
                $(let row = row.or_shape(|_d, _| {
                    vec![$(_d.side($crate::families::sizes::Side::$other)),*]
                });)?
                $(let row = row.part($crate::names::Part::$part);)?
                $(let row = row.when(|d, layer| $(d.$when(layer))&&+);)?
                $(let row = row.optional(|d| d.has($crate::families::sizes::Flag::$maybe));)?
                $(let row = row.stack($stack);)?
                row.precise_by_role()
            }),*];
    )*};
}
pub(crate) use table;
