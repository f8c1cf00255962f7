//! The proof that what is packed restores the source: a shard is read twice, once tensor by tensor
//! for the packs and once as a whole for its SHA-256, and both reads must have given the same
//! bytes. They are compared by the digests of each tensor and of the header, as soon as both are
//! known.
//!
//! Then the bytes in the packs, put in the order of the shard, are the bytes that its SHA-256 is of.

use std::collections::HashMap;
use std::sync::Mutex;

use segpack_formats::digest::{Sha256, Sha256Hasher};
use segpack_manifests::documents::{Finding, FindingKind, Midstate, Plan, PlannedTensor};

use crate::output::ShardDigests;
use crate::steps::StepError;
use crate::work::lock;

/// The planned tensors of each shard, and the digests that either read found so far.
pub(super) struct Proof<'a> {
    /// By shard, in the order of their bytes; those without bytes prove nothing and are left out.
    tensors: HashMap<&'a str, Vec<Place<'a>>>,
    seen: Mutex<Seen>,
}

/// A tensor, and where its digest is among those of its pack.
struct Place<'a> {
    tensor: &'a PlannedTensor,
    pack: &'a str,
    number: usize,
}

/// Digests of tensors: by shard in the order of their bytes, by pack in the order of the plan.
#[derive(Default)]
struct Seen {
    shards: HashMap<String, Vec<Sha256>>,
    packs: HashMap<String, Vec<Sha256>>,
}

impl<'a> Proof<'a> {
    /// Nothing is read yet.
    pub(super) fn new(plan: &'a Plan) -> Self {
        let mut tensors: HashMap<&str, Vec<Place<'_>>> = HashMap::new();
        for pack in &plan.packs {
            let all = pack.segments.iter().flat_map(|s| &s.tensors).enumerate();
            for (number, tensor) in all.filter(|(_, t)| t.source.length > 0) {
                let place = Place {
                    tensor,
                    pack: &pack.path,
                    number,
                };
                tensors.entry(&tensor.source.file).or_default().push(place);
            }
        }
        for places in tensors.values_mut() {
            places.sort_by_key(|p| p.tensor.source.offset);
        }
        Self {
            tensors,
            seen: Mutex::default(),
        }
    }

    /// First and one-past-last byte of each planned tensor of a shard, in order.
    pub(super) fn ranges(&self, shard: &str) -> Vec<(u64, u64)> {
        self.places(shard)
            .iter()
            .map(|p| &p.tensor.source)
            .map(|source| (source.offset, source.offset + source.length))
            .collect()
    }

    /// The planned tensors of a shard that go into packs which are not `written`, with their numbers
    /// among the digests of the shard.
    pub(super) fn tensors_without(
        &self,
        shard: &str,
        written: &dyn Fn(&str) -> bool,
    ) -> Vec<(usize, &'a PlannedTensor)> {
        let places = self.places(shard).iter().enumerate();
        places
            .filter(|(_, place)| !written(place.pack))
            .map(|(number, place)| (number, place.tensor))
            .collect()
    }

    fn places(&self, shard: &str) -> &[Place<'a>] {
        self.tensors.get(shard).map_or(&[], Vec::as_slice)
    }

    /// The read of a whole shard found these digests.
    ///
    /// # Errors
    /// `Findings` with every tensor of which the other read gave other bytes.
    pub(super) fn shard(&self, shard: &str, digests: &ShardDigests) -> Result<(), StepError> {
        let mut seen = lock(&self.seen);
        let shards = &mut seen.shards;
        shards.insert(shard.to_owned(), digests.tensors.clone());
        self.compare(&seen, shard, |_| true)
    }

    /// Writing a pack found these digests of its tensors.
    ///
    /// # Errors
    /// As [`shard`](Self::shard).
    pub(super) fn pack(&self, pack: &str, tensors: &[Sha256]) -> Result<(), StepError> {
        let mut seen = lock(&self.seen);
        seen.packs.insert(pack.to_owned(), tensors.to_vec());
        let shards = self.tensors.keys();
        let mut shards: Vec<&str> = shards.copied().collect();
        shards.sort_unstable();
        shards
            .into_iter()
            .try_for_each(|shard| self.compare(&seen, shard, |place| place.pack == pack))
    }

    /// Compares those tensors of a shard that both reads have reached.
    fn compare(
        &self,
        seen: &Seen,
        shard: &str,
        chosen: impl Fn(&Place<'_>) -> bool,
    ) -> Result<(), StepError> {
        let Some(whole) = seen.shards.get(shard) else {
            return Ok(());
        };
        let mut findings = Vec::new();
        let chosen_places = self.places(shard).iter().zip(whole);
        for (place, whole) in chosen_places.filter(|(place, _)| chosen(place)) {
            let packed = seen.packs.get(place.pack).and_then(|p| p.get(place.number));
            if let Some(packed) = packed.filter(|packed| *packed != whole) {
                findings.push(differs(shard, place.tensor, *packed, *whole));
            }
        }
        if findings.is_empty() {
            return Ok(());
        }
        Err(two_reads_differ(findings))
    }
}

fn differs(shard: &str, tensor: &PlannedTensor, packed: Sha256, whole: Sha256) -> Finding {
    let source = &tensor.source;
    Finding::new(FindingKind::ReadsDiffer)
        .file(shard)
        .tensor(&tensor.name)
        .bytes(source.offset, source.offset + source.length)
        .seen(format!("SHA-256 {packed} when it was packed"))
        .wanted(format!("{whole}, as when the shard was read as a whole"))
}

/// The header of a shard that was kept, and that of the read as a whole.
///
/// # Errors
/// `Findings` where they differ.
pub(super) fn same_header(shard: &str, kept: Sha256, whole: Sha256) -> Result<(), StepError> {
    if kept == whole {
        return Ok(());
    }
    let finding = Finding::new(FindingKind::ReadsDiffer)
        .file(shard)
        .seen(format!("its header has SHA-256 {kept}"))
        .wanted(format!("{whole}, as when the shard was read as a whole"));
    Err(two_reads_differ(vec![finding]))
}

/// A file that was copied, and what was read of it to plan the pack.
///
/// # Errors
/// `Findings` where they differ.
pub(super) fn same_as_parsed(
    path: &str,
    copied: Sha256,
    parsed: Option<Sha256>,
) -> Result<(), StepError> {
    let Some(parsed) = parsed.filter(|parsed| *parsed != copied) else {
        return Ok(());
    };
    let finding = Finding::new(FindingKind::ReadsDiffer)
        .file(path)
        .seen(format!("SHA-256 {copied} when it was copied"))
        .wanted(format!("{parsed}, as when the pack was planned"));
    Err(two_reads_differ(vec![finding]))
}

fn two_reads_differ(findings: Vec<Finding>) -> StepError {
    StepError::Findings {
        what: "two reads of the checkpoint gave different bytes; nothing was packed".to_owned(),
        findings,
    }
}

/// Digests a shard whose bytes come in order: as a whole, and each range by itself.
pub(super) struct ShardHasher {
    whole: Sha256Hasher,
    /// Of the begun range.
    part: Sha256Hasher,
    /// The header, then the tensors: first and one-past-last byte, ascending.
    ranges: Vec<(u64, u64)>,
    /// Digests of the ranges that have ended.
    digests: Vec<Sha256>,
    /// Bytes taken.
    at: u64,
    midstates: Vec<Midstate>,
}

/// Midstates are at least this many bytes apart: near enough to let many threads check one shard,
/// far enough to take no room in the manifest.
const MIDSTATE_BYTES: u64 = 16 << 20;

impl ShardHasher {
    /// Nothing is taken yet; the header ends where the first tensor may begin.
    pub(super) fn new(header_length: u64, tensors: Vec<(u64, u64)>) -> Self {
        let mut ranges = vec![(0, header_length)];
        ranges.extend(tensors);
        Self {
            whole: Sha256Hasher::default(),
            part: Sha256Hasher::default(),
            ranges,
            digests: Vec::new(),
            at: 0,
            midstates: Vec::new(),
        }
    }

    /// Keeps the state, where a tensor begins and the one before is far enough away.
    fn keep_midstate(&mut self) {
        let (state, offset) = self.whole.midstate();
        let before = self.midstates.last().map_or(0, |m| m.offset);
        if offset >= before + MIDSTATE_BYTES {
            self.midstates.push(Midstate { offset, state });
        }
    }

    /// Takes the next bytes.
    pub(super) fn take(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            // up to the start of the next range, or to the end of the begun one
            let (inside, end) = match self.ranges.get(self.digests.len()) {
                None => (false, u64::MAX),
                Some((start, _)) if self.at < *start => (false, *start),
                Some((_, end)) => (true, *end),
            };
            let length = usize::try_from(end - self.at).unwrap_or(usize::MAX);
            let (now, later) = piece.split_at(length.min(piece.len()));
            if inside && self.ranges[self.digests.len()].0 == self.at {
                self.keep_midstate();
            }
            if inside {
                // two digests of the same bytes cost little more than one
                Sha256Hasher::update_pair(&mut self.part, &mut self.whole, now);
            } else {
                self.whole.update(now);
            }
            self.at += now.len() as u64;
            piece = later;
            if inside && self.at == end {
                self.digests.push(std::mem::take(&mut self.part).finish());
            }
        }
    }

    /// The digests of all that was taken.
    pub(super) fn finish(self) -> (Sha256, ShardDigests) {
        let mut tensors = self.digests;
        let header = if tensors.is_empty() {
            Sha256Hasher::default().finish()
        } else {
            tensors.remove(0)
        };
        let digests = ShardDigests {
            sha256: self.whole.finish(),
            midstates: self.midstates,
            tensors,
        };
        (header, digests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_digested_in_parts_whatever_its_pieces_are() {
        let bytes: Vec<u8> = (0..1000_u32).map(|i| (i * 7).to_le_bytes()[0]).collect();
        // a gap of excluded bytes before the last tensor, and one behind it
        let ranges = [(100_usize, 164), (164, 500), (700, 900)];
        for size in [1, 63, 64, 100, 999, 1000] {
            let mut hasher =
                ShardHasher::new(100, ranges.map(|(a, b)| (a as u64, b as u64)).to_vec());
            bytes.chunks(size).for_each(|piece| hasher.take(piece));
            let (header, digests) = hasher.finish();
            assert_eq!(header, Sha256::of(&bytes[..100]), "pieces of {size}");
            assert_eq!(digests.sha256, Sha256::of(&bytes));
            let wanted = ranges.map(|(start, end)| Sha256::of(&bytes[start..end]));
            assert_eq!(digests.tensors, wanted);
            assert!(digests.midstates.is_empty(), "too short for any");
        }
    }

    #[test]
    fn midstates_lead_from_tensor_to_tensor_to_the_digest() {
        let header = 1001;
        let tensor = MIDSTATE_BYTES + 72;
        let ranges: Vec<(u64, u64)> = (0..3)
            .map(|i| (header + i * tensor, header + (i + 1) * tensor))
            .collect();
        let bytes = vec![3; usize::try_from(ranges[2].1).unwrap()];
        let mut hasher = ShardHasher::new(header, ranges.clone());
        bytes.chunks(1 << 20).for_each(|piece| hasher.take(piece));
        let (_, digests) = hasher.finish();
        assert_eq!(digests.midstates.len(), 2);
        for (midstate, (start, _)) in digests.midstates.iter().zip(&ranges[1..]) {
            assert_eq!(midstate.offset, start / 64 * 64);
            let mut rest = Sha256Hasher::resume(midstate.state, midstate.offset).unwrap();
            rest.update(&bytes[usize::try_from(midstate.offset).unwrap()..]);
            assert_eq!(rest.finish(), digests.sha256);
        }
    }

    /// Two tensors of one shard, each in a pack of its own.
    fn plan() -> Plan {
        let pack = |name: &str, offset: u64| {
            let source = serde_json::json!({
                "file": "shard", "tensor": name, "offset": offset, "length": 4
            });
            let tensor = serde_json::json!({
                "name": name, "dtype": "U8", "shape": [4], "role": "norm", "source": source
            });
            serde_json::json!({
                "path": name, "component": "text", "data_offset": 4096, "length": 4100,
                "segments": [{"id": format!("{name}.segment"), "raw_length": 4, "tensors": [tensor]}]
            })
        };
        serde_json::from_value(serde_json::json!({
            "format_version": "1.1", "generator": "test", "codec": "raw", "excluded": [],
            "left_out": [], "packs": [pack("second", 104), pack("first", 100)]
        }))
        .unwrap()
    }

    #[test]
    fn two_reads_are_compared_whichever_ends_first() {
        let plan = plan();
        let [one, two, other] = [1, 2, 3].map(|n| Sha256([n; 32]));
        let shard = ShardDigests {
            sha256: other,
            midstates: Vec::new(),
            tensors: vec![one, two],
        };
        assert_eq!(Proof::new(&plan).ranges("shard"), [(100, 104), (104, 108)]);

        let proof = Proof::new(&plan);
        proof.pack("first", &[one]).unwrap();
        proof.shard("shard", &shard).unwrap();
        proof.pack("second", &[two]).unwrap();

        let proof = Proof::new(&plan);
        proof.shard("shard", &shard).unwrap();
        let differs = proof.pack("second", &[other]).unwrap_err();
        let StepError::Findings { findings, .. } = differs else {
            panic!("{differs}");
        };
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].kind, FindingKind::ReadsDiffer);
        assert_eq!(findings[0].tensor.as_deref(), Some("second"));
        assert_eq!(findings[0].bytes, Some([104, 108]));

        let proof = Proof::new(&plan);
        proof.pack("first", &[other]).unwrap();
        assert!(proof.shard("shard", &shard).is_err());
        assert!(same_header("shard", one, one).is_ok());
        assert!(same_header("shard", one, two).is_err());
        assert!(same_as_parsed("config.json", one, None).is_ok());
        assert!(same_as_parsed("config.json", one, Some(one)).is_ok());
        assert!(same_as_parsed("config.json", one, Some(two)).is_err());
    }
}
