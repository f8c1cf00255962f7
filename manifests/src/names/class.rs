//! Classes: the rows of the table that `scan` prints.

use super::word::words;
use super::{Component, Role};

words! {
    /// A row of the table that `scan` prints for each component.
    Class, display title {
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
        /// What layers that predict later tokens have beside ordinary layers.
        Mtp = "mtp",
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
    pub fn title(self) -> &'static str {
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
            Component::Vision => Self::Vision,
            Component::Text | Component::TextMtp => Self::in_decoder(role),
            Component::ThinkerText => Self::in_decoder(role),
            Component::TalkerText | Component::TalkerCodePredictor => Self::in_decoder(role),
            Component::Other(_) => Self::in_decoder(role),
        }
    }

    const fn in_decoder(role: Role) -> Self {
        match role {
            Role::Embedding | Role::CodecEmbedding | Role::PositionEmbedding => Self::Embedding,
            Role::AttentionQ | Role::AttentionK | Role::AttentionV | Role::AttentionO => {
                Self::Attention
            }
            Role::AttentionQkv | Role::AttentionQA | Role::AttentionQB => Self::Attention,
            Role::AttentionKvA | Role::AttentionKvB | Role::AttentionSink => Self::Attention,
            Role::Indexer | Role::LinearAttention | Role::Rotary => Self::Attention,
            Role::QNorm | Role::KNorm | Role::InputNorm | Role::PostAttentionNorm => Self::Norms,
            Role::QANorm | Role::KvANorm => Self::Norms,
            Role::FinalNorm => Self::FinalNorm,
            Role::Router | Role::RouterBias => Self::Router,
            Role::ExpertGate | Role::ExpertUp | Role::ExpertDown => Self::Experts,
            Role::ExpertGateUp => Self::Experts,
            Role::ExpertGateUpStacked | Role::ExpertDownStacked => Self::Experts,
            Role::ExpertGateStacked | Role::ExpertUpStacked => Self::Experts,
            Role::SharedExpertGate | Role::SharedExpertUp | Role::SharedExpertDown => {
                Self::SharedExpert
            }
            Role::SharedExpertRouter | Role::SharedExpertGateUp => Self::SharedExpert,
            Role::MlpGate | Role::MlpUp | Role::MlpDown => Self::DenseMlp,
            Role::Mtp => Self::Mtp,
            Role::LmHead | Role::CodecHead => Self::LmHead,
            Role::Projection | Role::Merger => Self::Projections,
            Role::AudioBlock => Self::Audio,
            Role::VisionBlock => Self::Vision,
            Role::Conv | Role::CodecBlock | Role::CodecUpsample | Role::CodecDecoder => {
                Self::Code2wav
            }
            Role::Unclassified => Self::Unclassified,
            Role::Other(word) => Self::Other(word),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
