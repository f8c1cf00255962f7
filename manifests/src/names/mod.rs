//! What a tensor is, in the terms of the field: its component, its role, its layer and its expert.

/// A text that names no variant of an enum of this crate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind} {found:?}, wanted one of: {wanted}")]
pub struct UnknownName {
    /// What was being named, such as "component".
    pub kind: &'static str,
    /// The text that was given.
    pub found: String,
    /// Every accepted text, comma separated.
    pub wanted: String,
}

/// An enum whose variants each have one text, used by `as_str`, `FromStr`, serde and the JSON
/// schema alike. `Display` prints what the method named after `display` returns.
macro_rules! text_enum {
    ($(#[$meta:meta])* $name:ident is $kind:literal, display $display:ident {
        $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum $name { $($(#[$variant_meta])* $variant,)+ }

        impl $name {
            /// Every variant, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The text used in documents and on the command line.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.$display())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::names::UnknownName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|known| known.as_str() == text).ok_or_else(|| {
                    let wanted: Vec<_> = Self::ALL.iter().map(|known| known.as_str()).collect();
                    $crate::names::UnknownName { kind: $kind, found: text.to_owned(), wanted: wanted.join(", ") }
                })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "enum": [$($text),+] })
            }
        }
    };
}
pub(crate) use text_enum;

text_enum! {
    /// A part of the model that is packed, included or excluded as a whole. The order is that of
    /// the packs.
    Component is "component", display as_str {
        /// The decoder of a plain MoE checkpoint.
        Text = "text",
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

text_enum! {
    /// What a tensor does inside its component. A bias has the role of its weight.
    Role is "role", display as_str {
        /// Token embedding, `[vocabulary, hidden]`.
        Embedding = "embedding",
        /// Query projection.
        AttentionQ = "attention_q",
        /// Key projection.
        AttentionK = "attention_k",
        /// Value projection.
        AttentionV = "attention_v",
        /// Output projection of the attention.
        AttentionO = "attention_o",
        /// RMS norm of each query head, `[head_dim]`.
        QNorm = "q_norm",
        /// RMS norm of each key head, `[head_dim]`.
        KNorm = "k_norm",
        /// Norm before the attention, `[hidden]`.
        InputNorm = "input_norm",
        /// Norm before the MLP or the experts, `[hidden]`.
        PostAttentionNorm = "post_attention_norm",
        /// Router, `[experts, hidden]`.
        Router = "router",
        /// An expert's gate projection, `[moe_intermediate, hidden]`.
        ExpertGate = "expert_gate",
        /// An expert's up projection, `[moe_intermediate, hidden]`.
        ExpertUp = "expert_up",
        /// An expert's down projection, `[hidden, moe_intermediate]`.
        ExpertDown = "expert_down",
        /// Gate and up projections of all experts of a layer, `[experts, 2 x moe_intermediate,
        /// hidden]`.
        ExpertGateUpStacked = "expert_gate_up_stacked",
        /// Down projections of all experts of a layer, `[experts, hidden, moe_intermediate]`.
        ExpertDownStacked = "expert_down_stacked",
        /// The shared expert's gate projection.
        SharedExpertGate = "shared_expert_gate",
        /// The shared expert's up projection.
        SharedExpertUp = "shared_expert_up",
        /// The shared expert's down projection.
        SharedExpertDown = "shared_expert_down",
        /// The scalar gate of the shared expert, `[1, hidden]` (`shared_expert_gate.weight`).
        SharedExpertRouter = "shared_expert_router",
        /// Gate projection of a dense SwiGLU MLP.
        MlpGate = "mlp_gate",
        /// Up projection of a dense SwiGLU MLP.
        MlpUp = "mlp_up",
        /// Down projection of a dense SwiGLU MLP.
        MlpDown = "mlp_down",
        /// Norm after the last layer.
        FinalNorm = "final_norm",
        /// Output head, `[vocabulary, hidden]`.
        LmHead = "lm_head",
        /// Projection between two models, or out of a tower.
        Projection = "projection",
        /// Embedding of audio codes.
        CodecEmbedding = "codec_embedding",
        /// Output head over audio codes.
        CodecHead = "codec_head",
        /// Convolutional stem of a tower.
        Conv = "conv",
        /// Learned position table.
        PositionEmbedding = "position_embedding",
        /// Patch merger of the vision tower.
        Merger = "merger",
        /// Anything inside a layer of the audio tower.
        AudioBlock = "audio_block",
        /// Anything inside a block of the vision tower.
        VisionBlock = "vision_block",
        /// Anything inside a transformer layer of the vocoder.
        CodecBlock = "codec_block",
        /// Upsampling stages of the vocoder.
        CodecUpsample = "codec_upsample",
        /// Waveform decoder of the vocoder.
        CodecDecoder = "codec_decoder",
        /// A tensor that no rule names.
        Unclassified = "unclassified",
    }
}

impl Role {
    /// The segment that a tensor of this role goes to, within its layer or, outside the layers, its
    /// component.
    #[must_use]
    pub const fn segment_group(self) -> &'static str {
        match self {
            Self::Embedding => "embed_tokens",
            Self::AttentionQ | Self::AttentionK | Self::AttentionV | Self::AttentionO => {
                "attention"
            }
            Self::QNorm | Self::KNorm => "attention",
            Self::InputNorm | Self::PostAttentionNorm => "norms",
            Self::Router => "router",
            Self::ExpertGate | Self::ExpertUp | Self::ExpertDown => "experts",
            Self::ExpertGateUpStacked | Self::ExpertDownStacked => "experts",
            Self::SharedExpertGate | Self::SharedExpertUp | Self::SharedExpertDown => {
                "shared_expert"
            }
            Self::SharedExpertRouter => "shared_expert",
            Self::MlpGate | Self::MlpUp | Self::MlpDown => "mlp",
            Self::FinalNorm => "final_norm",
            Self::LmHead => "lm_head",
            Self::Projection => "projections",
            Self::CodecEmbedding => "codec_embedding",
            Self::CodecHead => "codec_head",
            Self::Conv | Self::PositionEmbedding => "stem",
            Self::Merger => "mergers",
            Self::AudioBlock | Self::VisionBlock | Self::CodecBlock => "block",
            Self::CodecUpsample => "upsample",
            Self::CodecDecoder => "decoder",
            Self::Unclassified => "unclassified",
        }
    }
}

text_enum! {
    /// A row of the table that `scan` prints for each component.
    Class is "class", display title {
        /// Token and codec embeddings.
        Embedding = "embedding",
        /// Query, key, value and output projections.
        Attention = "attention",
        /// Norms inside the layers, those of queries and keys too.
        Norms = "norms",
        /// Norm after the last layer.
        FinalNorm = "final_norm",
        /// Routers.
        Router = "router",
        /// Routed experts.
        Experts = "experts",
        /// Shared experts and their scalar gates.
        SharedExpert = "shared_expert",
        /// MLPs of dense layers.
        DenseMlp = "dense_mlp",
        /// Output heads, over tokens or codes.
        LmHead = "lm_head",
        /// Projections between thinker and talker.
        Projections = "projections",
        /// The audio tower.
        Audio = "audio",
        /// The vision tower.
        Vision = "vision",
        /// The vocoder.
        Code2wav = "code2wav",
        /// Tensors that no rule names.
        Unclassified = "unclassified",
    }
}

impl Class {
    /// The row's heading.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::FinalNorm => "final norm",
            Self::SharedExpert => "shared expert",
            Self::DenseMlp => "dense mlp",
            other => other.as_str(),
        }
    }

    /// The class of a role in a component; towers and vocoder are classes of their own, whatever
    /// the role.
    #[must_use]
    pub const fn of(component: Component, role: Role) -> Self {
        match component {
            Component::ThinkerAudio => Self::Audio,
            Component::ThinkerVision => Self::Vision,
            Component::Code2wav => Self::Code2wav,
            Component::Unclassified => Self::Unclassified,
            Component::Text | Component::ThinkerText => Self::in_decoder(role),
            Component::TalkerText | Component::TalkerCodePredictor => Self::in_decoder(role),
        }
    }

    const fn in_decoder(role: Role) -> Self {
        match role {
            Role::Embedding | Role::CodecEmbedding | Role::PositionEmbedding => Self::Embedding,
            Role::AttentionQ | Role::AttentionK | Role::AttentionV | Role::AttentionO => {
                Self::Attention
            }
            Role::QNorm | Role::KNorm | Role::InputNorm | Role::PostAttentionNorm => Self::Norms,
            Role::FinalNorm => Self::FinalNorm,
            Role::Router => Self::Router,
            Role::ExpertGate | Role::ExpertUp | Role::ExpertDown => Self::Experts,
            Role::ExpertGateUpStacked | Role::ExpertDownStacked => Self::Experts,
            Role::SharedExpertGate | Role::SharedExpertUp | Role::SharedExpertDown => {
                Self::SharedExpert
            }
            Role::SharedExpertRouter => Self::SharedExpert,
            Role::MlpGate | Role::MlpUp | Role::MlpDown => Self::DenseMlp,
            Role::LmHead | Role::CodecHead => Self::LmHead,
            Role::Projection | Role::Merger => Self::Projections,
            Role::AudioBlock => Self::Audio,
            Role::VisionBlock => Self::Vision,
            Role::Conv | Role::CodecBlock | Role::CodecUpsample | Role::CodecDecoder => {
                Self::Code2wav
            }
            Role::Unclassified => Self::Unclassified,
        }
    }
}

/// What the rules of a family say about one tensor name.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Classification {
    /// The component it belongs to.
    pub component: Component,
    /// What it does there.
    pub role: Role,
    /// Its layer or block, counted from 0.
    pub layer: Option<u32>,
    /// Its expert, counted from 0.
    pub expert: Option<u32>,
}

impl Classification {
    /// What a tensor gets that no rule names.
    pub const UNCLASSIFIED: Self = Self {
        component: Component::Unclassified,
        role: Role::Unclassified,
        layer: None,
        expert: None,
    };

    /// The row of `scan`'s table.
    #[must_use]
    pub const fn class(&self) -> Class {
        Class::of(self.component, self.role)
    }

    /// The segment group inside its layer or component: see [`Role::segment_group`].
    #[must_use]
    pub const fn segment_group(&self) -> &'static str {
        self.role.segment_group()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_selects_whole_words_only() {
        let below = |prefix: &str| -> Vec<_> {
            Component::ALL
                .iter()
                .filter(|component| component.is_below(prefix))
                .map(|c| c.as_str())
                .collect()
        };
        assert_eq!(
            below("thinker"),
            ["thinker.text", "thinker.audio", "thinker.vision"]
        );
        assert_eq!(below("thinker.text"), ["thinker.text"]);
        assert_eq!(below("talker"), ["talker.text", "talker.code_predictor"]);
        assert_eq!(below("text"), ["text"]);
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

    #[test]
    fn texts_come_back() {
        for component in Component::ALL {
            assert_eq!(component.to_string().parse(), Ok(*component));
        }
        for role in Role::ALL {
            let json = serde_json::to_string(role).unwrap();
            assert_eq!(serde_json::from_str::<Role>(&json).unwrap(), *role);
        }
        let error = "thinkr".parse::<Component>().unwrap_err().to_string();
        assert!(
            error.starts_with("unknown component \"thinkr\", wanted one of: text, thinker.text,"),
            "{error}"
        );
        assert_eq!(format!("{:<14}|", Class::SharedExpert), "shared expert |");
        assert_eq!(
            serde_json::to_string(&Class::SharedExpert).unwrap(),
            "\"shared_expert\""
        );
    }

    #[test]
    fn towers_are_classes_of_their_own() {
        assert_eq!(Class::of(Component::ThinkerAudio, Role::Conv), Class::Audio);
        assert_eq!(
            Class::of(Component::ThinkerVision, Role::FinalNorm),
            Class::Vision
        );
        assert_eq!(
            Class::of(Component::Code2wav, Role::CodecEmbedding),
            Class::Code2wav
        );
        assert_eq!(
            Class::of(Component::TalkerText, Role::CodecHead),
            Class::LmHead
        );
        assert_eq!(Class::of(Component::ThinkerText, Role::QNorm), Class::Norms);
    }
}
