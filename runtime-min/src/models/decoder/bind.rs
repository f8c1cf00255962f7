//! A decoder's tensors: found in a pack by what they are, and placed in memory.

mod find;
mod refused;
mod shapes;
mod stored;

pub(crate) use self::find::check_words;

use segpack_formats::codec::Codec;
use segpack_formats::io::to_usize;
use segpack_manifests::documents::TensorEntry;

use crate::weights::{Budget, ExpertSegment, PlacedTensor, Residency, SegmentGroup, SegmentLoad};

/// A dense linear layer.
#[derive(Debug, Clone, Copy)]
pub struct LinearWeights {
    pub(crate) weight: PlacedTensor,
    pub(crate) bias: Option<PlacedTensor>,
}

/// One expert: its segment, and where its matrices are in the memory that the segment is loaded to.
#[derive(Debug, Clone)]
pub(crate) struct ExpertWeights<'a> {
    pub(crate) load: SegmentLoad<'a>,
    pub(crate) gate: LinearWeights,
    pub(crate) up: LinearWeights,
    pub(crate) down: LinearWeights,
}

/// An expert that every token visits; a sigmoid may decide how much of it is added.
#[derive(Debug, Clone, Copy)]
pub struct SharedExpert {
    pub(crate) gate: LinearWeights,
    pub(crate) up: LinearWeights,
    pub(crate) down: LinearWeights,
    /// `[1, hidden]`: gives what the sigmoid is of; `None`: all of the expert is added.
    pub(crate) router: Option<LinearWeights>,
}

/// An embedding or a head among several.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EndWeights<'a> {
    pub(crate) entry: &'a TensorEntry,
    /// An embedding in the memory of its segment, a head in that of the heads' group.
    pub(crate) matrix: PlacedTensor,
}

/// What follows attention in a layer.
#[derive(Debug)]
pub(crate) enum MlpWeights<'a> {
    /// One MLP for all tokens.
    Dense {
        /// Gate projection.
        gate: LinearWeights,
        /// Up projection.
        up: LinearWeights,
        /// Down projection.
        down: LinearWeights,
    },
    /// A router, and the experts that it chooses among.
    Experts {
        /// Router.
        router: LinearWeights,
        /// `[experts]`, added to its scores for the choice alone.
        choice_bias: Option<PlacedTensor>,
        /// All experts, by number.
        experts: Vec<ExpertWeights<'a>>,
        /// The expert that every token visits.
        shared: Option<Box<SharedExpert>>,
    },
}

impl<'a> MlpWeights<'a> {
    /// The experts; none of a dense MLP.
    pub(crate) fn experts(&self) -> &[ExpertWeights<'a>] {
        match self {
            Self::Dense { .. } => &[],
            Self::Experts { experts, .. } => experts,
        }
    }
}

/// One layer. Its dense weights are one group.
#[derive(Debug)]
pub(crate) struct LayerWeights<'a> {
    pub(crate) input_norm: PlacedTensor,
    pub(crate) q: LinearWeights,
    pub(crate) k: LinearWeights,
    pub(crate) v: LinearWeights,
    pub(crate) o: LinearWeights,
    /// Norms of queries and of keys.
    pub(crate) qk_norms: Option<[PlacedTensor; 2]>,
    /// `[query heads]`
    pub(crate) sinks: Option<PlacedTensor>,
    pub(crate) post_attention_norm: PlacedTensor,
    pub(crate) mlp: MlpWeights<'a>,
}

/// The weights of a whole decoder.
#[derive(Debug)]
pub struct DecoderWeights<'a> {
    /// One, or one for each group of residual codes.
    pub(crate) embeddings: Vec<EndWeights<'a>>,
    /// As many.
    pub(crate) heads: Vec<EndWeights<'a>>,
    pub(crate) final_norm: PlacedTensor,
    pub(crate) layers: Vec<LayerWeights<'a>>,
    /// One for each layer, then the final norm's, then the heads'.
    pub(crate) groups: Vec<SegmentGroup<'a>>,
}

impl<'a> DecoderWeights<'a> {
    pub(crate) fn final_norm_group(&self) -> usize {
        self.layers.len()
    }

    pub(crate) fn head_group(&self) -> usize {
        self.layers.len() + 1
    }

    /// The first embedding, which is the only one of most decoders.
    #[cfg(feature = "cuda")]
    pub(crate) fn embedding(&self) -> EndWeights<'a> {
        self.embeddings[0]
    }

    /// The first head.
    pub(crate) fn head(&self) -> EndWeights<'a> {
        self.heads[0]
    }

    /// All experts of all layers.
    pub(crate) fn experts(&self) -> impl Iterator<Item = &ExpertWeights<'a>> {
        self.layers.iter().flat_map(|layer| layer.mlp.experts())
    }

    /// The segments of all experts, with layer and number.
    pub(crate) fn expert_segments(&self) -> impl Iterator<Item = ExpertSegment<'a>> {
        (0..).zip(&self.layers).flat_map(|(layer, weights)| {
            (0..)
                .zip(weights.mlp.experts())
                .map(move |(expert, e)| ((layer, expert), e.load.clone()))
        })
    }

    /// Layers that have experts.
    pub(crate) fn expert_layers(&self) -> usize {
        self.layers
            .iter()
            .filter(|layer| matches!(layer.mlp, MlpWeights::Experts { .. }))
            .count()
    }

    /// Raw bytes of the weights that a budget keeps in memory.
    pub(crate) fn bytes_within(&self, budget: &Budget) -> u64 {
        let dense: u64 = match budget.residency {
            Residency::Resident => self.groups.iter().map(SegmentGroup::raw_bytes).sum(),
            Residency::Streamed => 0,
        };
        let experts = self.experts().take(to_usize(budget.slots));
        dense + experts.map(|e| e.load.segment.raw_length).sum::<u64>()
    }

    /// Bytes of memory that the largest expert is loaded to; 0 where there are none.
    pub(crate) fn slot_bytes(&self) -> u64 {
        self.experts()
            .map(|e| e.load.buffer_len())
            .max()
            .unwrap_or(0)
    }

    /// Whether any segment has to be decoded.
    pub(crate) fn is_any_coded(&self) -> bool {
        self.loads().any(|load| load.segment.codec != Codec::Raw)
    }

    /// Bytes of memory in which segments are decoded, one after the other.
    pub(crate) fn staging_bytes(&self) -> u64 {
        self.loads()
            .map(SegmentLoad::staging_bytes)
            .max()
            .unwrap_or(0)
    }

    /// All segments that are loaded as a whole.
    fn loads(&self) -> impl Iterator<Item = &SegmentLoad<'a>> {
        let dense = self.groups.iter().flat_map(SegmentGroup::segments);
        dense.chain(self.experts().map(|e| &e.load))
    }
}
