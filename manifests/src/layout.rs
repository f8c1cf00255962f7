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
use crate::names::{Classification, Component, Role};

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
const GROUPS: [&str; 18] = [
    "embed_tokens",
    "codec_embedding",
    "stem", // before the layers
    "attention",
    "norms",
    "router",
    "experts",
    "shared_expert",
    "mlp",
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
    pack: (Component, Option<u32>),
    segment: SegmentKey,
    tensor: PlannedTensor,
}

/// Plans the packs of a checkpoint.
///
/// # Errors
/// A selection that names nothing or leaves nothing; stacked tensors that cannot be split.
pub fn plan(inventory: &Inventory, selection: &Selection, codec: Codec) -> Result<Plan, PlanError> {
    let mut present: Vec<Component> = inventory.tensors.iter().map(|t| t.component).collect();
    present.sort_unstable();
    present.dedup();
    selection.check(&present)?;
    let mut placed = Vec::new();
    for tensor in inventory
        .tensors
        .iter()
        .filter(|t| selection.takes(t.component))
    {
        place(inventory, tensor, &mut placed)?;
    }
    if placed.is_empty() {
        return Err(PlanError::Empty);
    }
    check_unique(&placed)?;
    let packs = gather(placed, codec);
    check_headers(&packs)?;
    Ok(Plan {
        format_version: Plan::VERSION,
        generator: GENERATOR.to_owned(),
        codec,
        excluded: excluded(inventory, selection),
        left_out: inventory.left_out.clone(),
        packs,
        estimate: None,
    })
}

fn excluded(inventory: &Inventory, selection: &Selection) -> Vec<Excluded> {
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
    if !matches!(
        stored.role,
        Role::ExpertGateUpStacked | Role::ExpertDownStacked
    ) {
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
            family.unstack(&stored.name, &stored.shape, stored.dtype.bitsize() as u64)
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
    let experts_of = what.expert.and(what.layer);
    Placed {
        pack: (what.component, experts_of),
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
        _ if component == Component::Unclassified => format!("{component}.{name}"),
        (Some(layer), Some(expert)) => format!("{component}.layers.{layer}.experts.{expert}"),
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
fn check_unique(placed: &[Placed]) -> Result<(), PlanError> {
    let names: HashSet<&str> = placed.iter().map(|p| p.tensor.name.as_str()).collect();
    if names.len() < placed.len() {
        let mut seen = HashSet::new();
        let twice = placed.iter().find(|p| !seen.insert(p.tensor.name.as_str()));
        return Err(PlanError::DuplicateName {
            name: twice.map_or_else(String::new, |p| p.tensor.name.clone()),
        });
    }
    match placed
        .iter()
        .find(|p| names.contains(p.segment.id.as_str()))
    {
        None => Ok(()),
        Some(p) => Err(PlanError::ReservedName {
            name: p.segment.id.clone(),
        }),
    }
}

/// A stock reader refuses longer headers.
fn check_headers(packs: &[PlannedPack]) -> Result<(), PlanError> {
    match packs.iter().find(|p| p.data_offset > MAX_HEADER_BYTES) {
        None => Ok(()),
        Some(p) => Err(PlanError::HeaderTooLong {
            path: p.path.clone(),
            length: p.data_offset,
        }),
    }
}

fn gather(mut placed: Vec<Placed>, codec: Codec) -> Vec<PlannedPack> {
    placed.sort_by(|a, b| {
        let key = |p: &Placed| (p.pack, p.tensor.role);
        (a.pack, &a.segment, key(a).1)
            .cmp(&(b.pack, &b.segment, key(b).1))
            .then_with(|| natural(&a.tensor.name).cmp(&natural(&b.tensor.name)))
    });
    let mut packs: Vec<PlannedPack> = Vec::new();
    let mut open: Option<((Component, Option<u32>), SegmentKey)> = None;
    for Placed {
        pack,
        segment,
        tensor,
    } in placed
    {
        let same_pack = open.as_ref().is_some_and(|(p, _)| *p == pack);
        if !same_pack {
            packs.push(PlannedPack {
                path: pack_path(pack),
                component: pack.0,
                data_offset: 0,
                length: 0,
                estimated_length: None,
                segments: Vec::new(),
            });
        }
        let Some(last) = packs.last_mut() else {
            continue;
        };
        if !same_pack || open.as_ref().is_none_or(|(_, s)| *s != segment) {
            last.segments.push(PlannedSegment {
                id: segment.id.clone(),
                raw_length: 0,
                tensors: Vec::new(),
            });
        }
        if let Some(segment) = last.segments.last_mut() {
            segment.raw_length = segment.raw_length.saturating_add(tensor.source.length);
            segment.tensors.push(tensor);
        }
        open = Some((pack, segment));
    }
    for pack in &mut packs {
        pack.data_offset = pack::data_start(&pack.specs(), codec);
        pack.length = pack.data_offset.saturating_add(pack.raw_length());
    }
    packs
}

fn pack_path((component, experts_of): (Component, Option<u32>)) -> String {
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
    use crate::names::Part;

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

    #[test]
    fn segments_are_named_after_what_loads_them() {
        let key = |component, role, layer, expert| {
            segment_key(
                Classification {
                    component,
                    role,
                    part: Part::Weight,
                    layer,
                    expert,
                },
                "some.name",
            )
            .id
        };
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
