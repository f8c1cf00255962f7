//! Families that are a text decoder of [`Sizes`], with what stands beside it: their checkpoints are
//! taken apart and audited, and some are run.

use super::config::{ConfigError, Section};
use super::expected::ExpectedSink;
use super::facts::TextFacts;
use super::options::DecoderOptions;
use super::rules::{Block, Mount, Row, Rules};
use super::settings::{TextSettings, check_activation};
use super::sizes::{self, Ffn, Flag, Sizes};

/// A decoder, and the layers and towers beside it.
pub(crate) struct PackedModel {
    /// Where `config.json` describes the decoder, if not at its top.
    pub(crate) text: Option<&'static str>,
    /// Reads its sizes.
    pub(crate) sizes: fn(&Section<'_>) -> Result<Sizes, ConfigError>,
    /// Its tensors.
    pub(crate) mounts: &'static [&'static Mount<Sizes>],
    /// Its layers that predict later tokens.
    pub(crate) mtp: Option<Mtp>,
    /// What takes pictures.
    pub(crate) tower: Option<Tower>,
}

/// Reads what a decoder computes, from its section of the configuration.
pub(crate) type OptionsBy =
    fn(&Section<'_>, &Sizes, &TextFacts) -> Result<DecoderOptions, ConfigError>;

/// Layers that predict later tokens (multi-token prediction): stored as a whole, or left out as a
/// whole.
pub(crate) struct Mtp {
    /// How many there are.
    pub(crate) count: fn(&Section<'_>) -> Result<u32, ConfigError>,
    /// What such a layer, the number of which stands for `{layer}`, has and no other layer does; if
    /// any of it is stored, all has to be.
    pub(crate) marks: &'static [&'static str],
    /// Where they have names of their own, and no experts beyond those of the model's layers.
    pub(crate) mount: Option<(&'static Mount<Sizes>, Ffn)>,
}

/// What takes pictures.
pub(crate) struct Tower {
    /// Reads its sizes, given those of the decoder.
    pub(crate) sizes: fn(&Section<'_>, &Sizes) -> Result<Sizes, ConfigError>,
    /// Its tensors.
    pub(crate) mounts: &'static [&'static Mount<Sizes>],
}

/// Where `config.json` describes a tower.
const VISION: &str = "vision_config";

impl PackedModel {
    /// What its tensors are called.
    pub(crate) fn rules(&self) -> Rules {
        let of_mtp = self.mtp.iter().filter_map(|mtp| mtp.mount);
        let of_tower = self.tower.iter().flat_map(|tower| tower.mounts);
        let mounts = self.mounts.iter().chain(of_tower).copied();
        let mounts = mounts.chain(of_mtp.map(|(mount, _)| mount));
        mounts.fold(Rules::new(), Rules::with)
    }

    /// The object that describes the decoder.
    pub(crate) fn text_section<'a>(&self, root: &Section<'a>) -> Result<Section<'a>, ConfigError> {
        match self.text {
            Some(key) if root.has(key) => root.section(key),
            _ => Ok(root.clone()),
        }
    }

    /// The facts about the decoder.
    pub(crate) fn text_facts(&self, root: &Section<'_>) -> Result<TextFacts, ConfigError> {
        let section = self.text_section(root)?;
        sizes::text_facts(&section, &self.read_sizes(root, &section)?)
    }

    /// What a runtime has to know of the decoder, whose switches `options` reads.
    pub(crate) fn text_settings(
        &self,
        root: &Section<'_>,
        facts: &TextFacts,
        options: OptionsBy,
    ) -> Result<TextSettings, ConfigError> {
        let section = self.text_section(root)?;
        let sizes = self.read_sizes(root, &section)?;
        check_activation(&section)?;
        let mut options = options(&section, &sizes, facts)?;
        if let Some(mtp) = self.mtp.as_ref().filter(|mtp| mtp.mount.is_none()) {
            options.extra_layers = (mtp.count)(&section)?;
        }
        let per_token = options.router.experts_per_token;
        let has_experts = sizes.layers_with_experts();
        if has_experts.contains(&true) && !(1..=sizes.experts).contains(&per_token) {
            let key = sizes::per_token_key(&section);
            let wanted = format!("from 1 to the {} experts", sizes.experts);
            return Err(section.invalid(key, &wanted));
        }
        if facts.kv_heads == 0 || !facts.heads.is_multiple_of(facts.kv_heads) {
            let wanted = format!("a divisor of the {} heads", facts.heads);
            return Err(section.invalid("num_key_value_heads", &wanted));
        }
        TextSettings::of(&section, facts, has_experts, options)
    }

    fn read_sizes(&self, root: &Section<'_>, text: &Section<'_>) -> Result<Sizes, ConfigError> {
        let mut sizes = (self.sizes)(text)?;
        let tied = sizes.has(Flag::Tied) || root.flag("tie_word_embeddings", false)?;
        sizes.flag(Flag::Tied, tied);
        Ok(sizes)
    }

    /// Adds every tensor that a configuration calls for.
    pub(crate) fn expected(
        &self,
        root: &Section<'_>,
        is_present: &dyn Fn(&str) -> bool,
        out: &mut ExpectedSink<'_>,
    ) -> Result<(), ConfigError> {
        let section = self.text_section(root)?;
        let mut sizes = self.read_sizes(root, &section)?;
        let mut apart = None;
        if let Some(mtp) = &self.mtp {
            let count = mtp.stored(&section, &sizes, is_present)?;
            match mtp.mount {
                None => sizes.add_mtp(count, Ffn::Apart),
                Some((mount, ffn)) => {
                    let mut of_mtp = sizes.clone();
                    of_mtp.layers.clear();
                    of_mtp.add_mtp(count, ffn);
                    apart = (count > 0).then_some((mount, of_mtp));
                }
            }
        }
        sizes.find_stacked(|layer| {
            let mut names = self.mounts.iter().flat_map(|m| m.stacked_names(layer));
            names.any(|name| is_present(&name))
        });
        for mount in self.mounts {
            mount.expect(&sizes, section.name(), out)?;
        }
        if let Some((mount, of_mtp)) = apart {
            mount.expect(&of_mtp, section.name(), out)?;
        }
        match &self.tower {
            Some(tower) if root.has(VISION) => tower.expected(&root.section(VISION)?, &sizes, out),
            _ => Ok(()),
        }
    }
}

impl Mtp {
    /// How many such layers the checkpoint stores: all, or none.
    fn stored(
        &self,
        section: &Section<'_>,
        sizes: &Sizes,
        is_present: &dyn Fn(&str) -> bool,
    ) -> Result<u32, ConfigError> {
        let count = (self.count)(section)?;
        let first = match self.mount {
            Some(_) => 0,
            None => u32::try_from(sizes.layers.len()).unwrap_or(u32::MAX),
        };
        let mut layers = first..first.saturating_add(count);
        let has_mark = |layer: u32| {
            let names = self.marks.iter();
            let mut names = names.map(|mark| mark.replace("{layer}", &layer.to_string()));
            names.any(|name| is_present(&name))
        };
        Ok(if layers.any(has_mark) { count } else { 0 })
    }
}

impl Tower {
    fn expected(
        &self,
        section: &Section<'_>,
        text: &Sizes,
        out: &mut ExpectedSink<'_>,
    ) -> Result<(), ConfigError> {
        let sizes = (self.sizes)(section, text)?;
        let mut mounts = self.mounts.iter();
        mounts.try_for_each(|mount| mount.expect(&sizes, section.name(), out))
    }
}

/// A block whose sizes are those of its component.
pub(crate) const fn block(rows: &'static [Row<Sizes>]) -> Block<Sizes, Sizes> {
    Block {
        rows,
        dims: |sizes| sizes,
    }
}

/// The row of a family that is a [`PackedModel`] called `MODEL`. `run`: what its decoder computes, of
/// its section of the configuration, its sizes and its facts; without it, it is not run. `media`: what
/// takes pictures, of the whole configuration; without it, text alone is taken.
macro_rules! packed_family {
    (@settings) => { None };
    (@settings $options:expr) => {
        Some(|root, facts| MODEL.text_settings(root, facts, $options))
    };
    (@media) => { |_| Ok(None) };
    (@media $media:expr) => { $media };
    (
        $name:literal, model_types $types:expr, architectures $architectures:expr
        $(, run $options:expr)? $(, media $media:expr)?
    ) => {
        /// The family's row.
        pub(crate) static FAMILY: $crate::families::FamilyRow = $crate::families::FamilyRow {
            name: $name,
            model_types: &$types,
            architectures: &$architectures,
            rules: std::sync::LazyLock::new(|| MODEL.rules()),
            expected: |root, is_present, out| MODEL.expected(root, is_present, out),
            text_facts: |root| MODEL.text_facts(root),
            text_settings: $crate::families::packed::packed_family!(@settings $($options)?),
            media_facts: $crate::families::packed::packed_family!(@media $($media)?),
            vocoder_facts: |_| Ok(None),
            speech_facts: |_| Ok(None),
            as_causal_lm: None,
            partial_config: |_, _| $crate::families::PartialConfig::Unchanged,
        };
    };
}
pub(crate) use packed_family;
