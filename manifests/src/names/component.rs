//! Components: the parts of a model that are packed as a whole.

use super::word::words;

words! {
    /// A part of the model that is packed, included or excluded as a whole. The order is that of
    /// the packs.
    Component, display as_str {
        /// The decoder of a plain MoE checkpoint.
        Text = "text",
        /// Layers of their own that predict later tokens.
        TextMtp = "text.mtp",
        /// The vision encoder of a model that also reads text.
        Vision = "vision",
        /// The thinker's decoder, with its embedding and head.
        ThinkerText = "thinker.text",
        /// The thinker's audio encoder.
        ThinkerAudio = "thinker.audio",
        /// The thinker's vision encoder.
        ThinkerVision = "thinker.vision",
        /// The talker's decoder, with its projections, codec embedding and codec head.
        TalkerText = "talker.text",
        /// The talker's dense decoder of residual codes.
        TalkerCodePredictor = "talker.code_predictor",
        /// The vocoder.
        Code2wav = "code2wav",
        /// Tensors that no rule names.
        Unclassified = "unclassified",
    }
}

impl Component {
    /// Whether `prefix` selects this component: its own name, or whole leading words of it
    /// (`thinker` selects `thinker.text`, `think` selects nothing).
    #[must_use]
    pub fn is_below(self, prefix: &str) -> bool {
        self.as_str()
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            && !prefix.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn below(prefix: &str) -> Vec<&'static str> {
        Component::KNOWN
            .iter()
            .filter(|component| component.is_below(prefix))
            .map(|c| c.as_str())
            .collect()
    }

    #[test]
    fn a_prefix_selects_whole_words_only() {
        assert_eq!(
            below("thinker"),
            ["thinker.text", "thinker.audio", "thinker.vision"]
        );
        assert_eq!(below("thinker.text"), ["thinker.text"]);
        assert_eq!(below("talker"), ["talker.text", "talker.code_predictor"]);
        assert_eq!(below("text"), ["text", "text.mtp"]);
        for nothing in [
            "",
            "think",
            "thinker.",
            "thinker.t",
            "code",
            "thinker.text.layers",
        ] {
            assert!(below(nothing).is_empty(), "{nothing:?}");
        }
    }
}
