//! Which tensor goes into which segment of which pack: a pure function of the inventory and the
//! options.
//!
//! The order is that of reading: embedding first (so that one row is one page), then the layers,
//! then the head; every MoE layer's experts have a pack of their own, `gate, up, down` of one
//! expert adjacent.

use std::collections::{BTreeMap, HashSet};

use segpack_formats::codec::Codec;
use segpack_formats::pack;
use segpack_formats::safetensors::MAX_HEADER_BYTES;

use crate::documents::{
    Excluded, GENERATOR, Inventory, InventoryTensor, Plan, PlannedPack, PlannedSegment,
    PlannedTensor, SourceRange,
};
use crate::families::{FamilyName, UnstackError};
use crate::folder::paths::PACKS;
use crate::names::{Classification, Component};

/// Why no plan can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A prefix of `--include` or `--exclude` selects nothing.
    #[error("no component of this checkpoint is {prefix:?}; it has: {has}")]
    NoSuchComponent {
        /// The prefix.
        prefix: String,
        /// Components that there are.
        has: String,
    },
    /// Everything was excluded.
    #[error("nothing is left to pack: every component is excluded")]
    Empty,
    /// No rule of its family says how a stacked tensor is taken apart.
    #[error("tensor {tensor:?} cannot be split into experts: no rule of its family says how")]
    NoStackRule {
        /// The tensor.
        tensor: String,
    },
    /// A stacked tensor cannot be taken apart.
    #[error("tensor {tensor:?} cannot be split into experts")]
    Stacked {
        /// The tensor.
        tensor: String,
        /// Why not.
        source: UnstackError,
    },
    /// A tensor has the name that a segment would get.
    #[error("tensor {name:?} has the name of a segment; rename it")]
    ReservedName {
        /// The name.
        name: String,
    },
    /// A pack would have more tensors than a safetensors header can name.
    #[error("{path} would have a header of {length} bytes, over the limit of {MAX_HEADER_BYTES}")]
    HeaderTooLong {
        /// The pack.
        path: String,
        /// Its header's bytes.
        length: u64,
    },
    /// Two tensors would have one name.
    #[error("tensor {name:?} exists twice: on its own and inside a stacked tensor")]
    DuplicateName {
        /// The name.
        name: String,
    },
}

/// Which components to pack.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Prefixes of components to take; all where empty.
    pub include: Vec<String>,
    /// Prefixes of components to leave behind.
    pub exclude: Vec<String>,
}

impl Selection {
    /// Whether a component is packed.
    pub fn takes(&self, component: Component) -> bool {
        let below = |prefixes: &[String]| prefixes.iter().any(|p| component.is_below(p));
        (self.include.is_empty() || below(&self.include)) && !below(&self.exclude)
    }

    fn check(&self, present: &[Component]) -> Result<(), PlanError> {
        let unknown = |p: &&String| !present.iter().any(|c| c.is_below(p));
        match self.include.iter().chain(&self.exclude).find(unknown) {
            None => Ok(()),
            Some(prefix) => {
                let has = present
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ");
                Err(PlanError::NoSuchComponent {
                    prefix: prefix.clone(),
                    has,
                })
            }
        }
    }
}

/// Order of groups outside the layers: those up to [`BEFORE_LAYERS`] come before them.
const GROUPS: [&str; 19] = [
    "embed_tokens",
    "codec_embedding",
    "stem", // before the layers
    "attention",
    "norms",
    "router",
    "experts",
    "shared_expert",
    "mlp",
    "mtp",
    "block", // inside
    "mergers",
    "upsample",
    "decoder",
    "final_norm",
    "lm_head",
    "codec_head",
    "projections",
    "unclassified",
];
const BEFORE_LAYERS: usize = 3;

/// Where a segment stands in its pack.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct SegmentKey {
    after_layers: bool,
    layer: Option<u32>,
    expert: Option<u32>,
    group: usize,
    id: String,
}

/// A tensor with all that its order depends on.
struct Placed {
    segment: SegmentKey,
    tensor: PlannedTensor,
}

/// Plans the packs of a checkpoint.
///
/// # Errors
/// A selection that names nothing or leaves nothing; stacked tensors that cannot be split.
pub fn plan(inventory: &Inventory, selection: &Selection, codec: Codec) -> Result<Plan, PlanError> {
    let packs: Vec<PlannedPack> =
        PackPlanner::new(inventory, selection, codec)?.collect::<Result<_, _>>()?;
    if packs.is_empty() {
        return Err(PlanError::Empty);
    }
    check_unique(&packs)?;
    Ok(Plan {
        format_version: Plan::VERSION,
        generator: GENERATOR.to_owned(),
        codec,
        excluded: excluded(inventory, selection),
        left_out: inventory.left_out.clone(),
        packs,
        estimate: None,
        consume: None,
    })
}

/// What has a pack of its own: a component, and in it the experts of each layer.
type PackKey = (Component, Option<u32>);

/// The packs of a checkpoint, planned one by one: all of a large model at once are as large as its
/// manifest. That names are unique is not looked at.
pub(crate) struct PackPlanner<'a> {
    inventory: &'a Inventory,
    codec: Codec,
    /// The stored tensors of each pack that is not planned yet.
    waiting: BTreeMap<PackKey, Vec<&'a InventoryTensor>>,
}

impl<'a> PackPlanner<'a> {
    /// # Errors
    /// A selection that names nothing or leaves nothing.
    pub(crate) fn new(
        inventory: &'a Inventory,
        selection: &Selection,
        codec: Codec,
    ) -> Result<Self, PlanError> {
        let mut present: Vec<Component> = inventory.tensors.iter().map(|t| t.component).collect();
        present.sort_unstable();
        present.dedup();
        selection.check(&present)?;
        let mut waiting: BTreeMap<PackKey, Vec<&InventoryTensor>> = BTreeMap::new();
        let taken = inventory.tensors.iter();
        for tensor in taken.filter(|t| selection.takes(t.component)) {
            waiting.entry(pack_of(tensor)).or_default().push(tensor);
        }
        if waiting.is_empty() {
            return Err(PlanError::Empty);
        }
        Ok(Self {
            inventory,
            codec,
            waiting,
        })
    }
}

impl Iterator for PackPlanner<'_> {
    type Item = Result<PlannedPack, PlanError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (key, stored) = self.waiting.pop_first()?;
            let pack = plan_pack(self.inventory, key, &stored, self.codec);
            // stacks of no experts make no pack
            if !pack.as_ref().is_ok_and(|pack| pack.segments.is_empty()) {
                return Some(pack);
            }
        }
    }
}

/// The pack of a stored tensor; that of all its experts, where it stacks them.
fn pack_of(stored: &InventoryTensor) -> PackKey {
    let is_of_experts = stored.expert.is_some() || stored.role.is_stacked();
    let experts_of = stored.layer.filter(|_| is_of_experts);
    (stored.component, experts_of)
}

fn plan_pack(
    inventory: &Inventory,
    key: PackKey,
    stored: &[&InventoryTensor],
    codec: Codec,
) -> Result<PlannedPack, PlanError> {
    let mut placed = Vec::with_capacity(stored.len());
    for tensor in stored {
        place(inventory, tensor, &mut placed)?;
    }
    let pack = gather(key, placed, codec);
    check_header(&pack)?;
    Ok(pack)
}

/// Components that are left behind.
pub(crate) fn excluded(inventory: &Inventory, selection: &Selection) -> Vec<Excluded> {
    let mut sums: BTreeMap<Component, (u64, u64)> = BTreeMap::new();
    for t in inventory
        .tensors
        .iter()
        .filter(|t| !selection.takes(t.component))
    {
        let sum = sums.entry(t.component).or_default();
        *sum = (sum.0 + 1, sum.1 + t.length);
    }
    sums.into_iter()
        .map(|(component, (tensors, bytes))| Excluded {
            component,
            tensors,
            bytes,
        })
        .collect()
}

/// Places one stored tensor; a stacked one becomes the matrices of its experts.
fn place(
    inventory: &Inventory,
    stored: &InventoryTensor,
    placed: &mut Vec<Placed>,
) -> Result<(), PlanError> {
    let whole = stored.classification();
    let source = |offset, length| SourceRange {
        file: inventory.shards[stored.shard].path.clone(),
        tensor: stored.name.clone(),
        offset: stored.offset + offset,
        length,
    };
    if !stored.role.is_stacked() {
        placed.push(put(
            whole,
            stored.name.clone(),
            stored,
            stored.shape.clone(),
            source(0, stored.length),
        ));
        return Ok(());
    }
    let tensor = || stored.name.clone();
    let slices = inventory
        .family
        .and_then(FamilyName::family)
        .and_then(|family| {
            let bits = stored.dtype.bitsize() as u64;
            let experts = || inventory.routed_experts(stored);
            family.unstack(&stored.name, &stored.shape, bits, &experts)
        })
        .ok_or_else(|| PlanError::NoStackRule { tensor: tensor() })?
        .map_err(|source| PlanError::Stacked {
            tensor: tensor(),
            source,
        })?;
    for slice in slices {
        let range = source(slice.offset, slice.length);
        placed.push(put(
            slice.classification,
            slice.name,
            stored,
            slice.shape,
            range,
        ));
    }
    Ok(())
}

fn put(
    what: Classification,
    name: String,
    stored: &InventoryTensor,
    shape: Vec<u64>,
    source: SourceRange,
) -> Placed {
    Placed {
        segment: segment_key(what, &name),
        tensor: PlannedTensor {
            name,
            dtype: stored.dtype,
            shape,
            role: what.role,
            part: what.part,
            layer: what.layer,
            expert: what.expert,
            source,
        },
    }
}

fn segment_key(what: Classification, name: &str) -> SegmentKey {
    let Classification {
        component,
        layer,
        expert,
        ..
    } = what;
    let group = what.segment_group();
    let rank = GROUPS
        .iter()
        .position(|g| *g == group)
        .unwrap_or(GROUPS.len());
    let id = match (layer, expert) {
        (Some(layer), Some(expert)) => format!("{component}.layers.{layer}.experts.{expert}"),
        _ if component == Component::Unclassified => format!("{component}.{name}"),
        (Some(layer), None) => format!("{component}.layers.{layer}.{group}"),
        _ => format!("{component}.{group}"),
    };
    SegmentKey {
        after_layers: layer.is_none() && rank >= BEFORE_LAYERS,
        layer,
        expert,
        group: rank,
        id,
    }
}

/// No name twice, and no segment id that is another tensor's name: in a coded pack both name
/// tensors of one file.
fn check_unique(packs: &[PlannedPack]) -> Result<(), PlanError> {
    let segments = || packs.iter().flat_map(|pack| &pack.segments);
    let tensors = segments().flat_map(|segment| &segment.tensors);
    let mut names = HashSet::new();
    for tensor in tensors {
        if !names.insert(tensor.name.as_str()) {
            let name = tensor.name.clone();
            return Err(PlanError::DuplicateName { name });
        }
    }
    match segments().find(|segment| names.contains(segment.id.as_str())) {
        None => Ok(()),
        Some(segment) => Err(PlanError::ReservedName {
            name: segment.id.clone(),
        }),
    }
}

/// A stock reader refuses longer headers.
fn check_header(pack: &PlannedPack) -> Result<(), PlanError> {
    if pack.data_offset <= MAX_HEADER_BYTES {
        return Ok(());
    }
    Err(PlanError::HeaderTooLong {
        path: pack.path.clone(),
        length: pack.data_offset,
    })
}

fn gather(key: PackKey, mut placed: Vec<Placed>, codec: Codec) -> PlannedPack {
    placed.sort_by(|a, b| {
        (&a.segment, a.tensor.role)
            .cmp(&(&b.segment, b.tensor.role))
            .then_with(|| natural(&a.tensor.name).cmp(&natural(&b.tensor.name)))
    });
    let mut pack = PlannedPack {
        path: pack_path(key),
        component: key.0,
        data_offset: 0,
        length: 0,
        estimated_length: None,
        segments: Vec::new(),
    };
    let mut open: Option<SegmentKey> = None;
    for Placed { segment, tensor } in placed {
        if open.as_ref() != Some(&segment) {
            pack.segments.push(PlannedSegment {
                id: segment.id.clone(),
                raw_length: 0,
                tensors: Vec::new(),
            });
            open = Some(segment);
        }
        if let Some(segment) = pack.segments.last_mut() {
            segment.raw_length = segment.raw_length.saturating_add(tensor.source.length);
            segment.tensors.push(tensor);
        }
    }
    pack.data_offset = pack::data_start(&pack.specs(), codec);
    pack.length = pack.data_offset.saturating_add(pack.raw_length());
    pack
}

fn pack_path((component, experts_of): PackKey) -> String {
    match experts_of {
        Some(layer) => format!("{PACKS}/{component}.experts.{layer:02}.safetensors"),
        None => format!("{PACKS}/{component}.safetensors"),
    }
}

/// Splits a name so that `experts.2` sorts before `experts.10`.
fn natural(name: &str) -> Vec<(u64, &str)> {
    name.split('.')
        .map(|part| (part.parse().unwrap_or(u64::MAX), part))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{Part, Role};

    #[test]
    fn names_sort_by_number() {
        let mut names = ["a.10.b", "a.2.b", "a.b", "a.2.a"];
        names.sort_by_key(|n| natural(n));
        assert_eq!(names, ["a.2.a", "a.2.b", "a.10.b", "a.b"]);
    }

    #[test]
    fn every_segment_group_has_its_place() {
        for role in Role::KNOWN {
            assert!(GROUPS.contains(&role.segment_group()), "{role}");
        }
    }

    fn key(component: Component, role: Role, layer: Option<u32>, expert: Option<u32>) -> String {
        let of = Classification {
            component,
            role,
            part: Part::Weight,
            layer,
            expert,
        };
        segment_key(of, "some.name").id
    }

    #[test]
    fn segments_are_named_after_what_loads_them() {
        assert_eq!(
            key(Component::ThinkerText, Role::ExpertDown, Some(5), Some(17)),
            "thinker.text.layers.5.experts.17"
        );
        assert_eq!(
            key(Component::ThinkerText, Role::QNorm, Some(5), None),
            "thinker.text.layers.5.attention"
        );
        assert_eq!(
            key(Component::ThinkerText, Role::Embedding, None, None),
            "thinker.text.embed_tokens"
        );
        assert_eq!(
            key(Component::Unclassified, Role::Unclassified, None, None),
            "unclassified.some.name"
        );
    }
}
