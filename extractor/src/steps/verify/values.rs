//! `--values`: what no trained tensor looks like.
//!
//! The statistics of a tensor are compared with those of its peers: the tensors of the same name but
//! for the numbers of layer and expert. All is judged by orders of magnitude, with medians, so that
//! neither a few odd tensors nor ordinary differences between layers move the verdict:
//!
//! | finding | where |
//! |---|---|
//! | values far beyond those of the peers | the logarithm of the largest magnitude lies above the peers' median by more than [`MATRIX_OCTAVES`] (vectors: [`VECTOR_OCTAVES`]) and [`DEVIATIONS`] robust standard deviations |
//! | values far beyond the others of the tensor | at most one in [`RARE`] values of a matrix, above a gap of at least five empty octaves |
//! | rows of zeros | in a matrix that is no table of tokens |
//! | a tensor equal to another | byte for byte, not constant, where the model does not tie them |
//! | a constant matrix | every value the same, and not zero |
//!
//! Every one is a warning: the bytes are those of the checkpoint, whatever they mean.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use segpack_formats::digest::Sha256;
use segpack_formats::numeric::{Statistics, StatisticsBuilder, has_values};
use segpack_manifests::documents::{
    Finding, FindingKind, Manifest, TensorEntry, TensorValues, ValuesReport,
};
use segpack_manifests::names::{Part, Role};

use crate::work::{into_inner, lock};

/// Octaves by which the largest magnitude of a matrix may exceed that of its peers: 64 times.
/// Trained matrices of one kind differ by a factor of three to ten.
const MATRIX_OCTAVES: f64 = 6.0;
/// The same for vectors: 256 times. Norms have outliers of 10 to 30, biases of keys of hundreds.
const VECTOR_OCTAVES: f64 = 8.0;
/// Robust standard deviations (1.4826 median absolute deviations) of the peers' logarithms.
const DEVIATIONS: f64 = 8.0;
/// Fewest tensors to compare, this one included.
const MIN_PEERS: usize = 5;
/// Of so many values of a matrix at most one may lie apart, to count as an outlier.
const RARE: u64 = 1000;
/// Fewest values of a matrix in which a gap means something.
const MIN_VALUES: u64 = 512;
/// Fewest values of tensors that are not equal by chance.
const MIN_EQUAL: u64 = 8;
/// Shortest row that is not zero by chance.
const MIN_ROW: u64 = 8;

/// The statistics of a tensor on its way through a verification.
pub(super) type Watching = Option<StatisticsBuilder>;

/// Collects the statistics of tensors from many threads.
#[derive(Debug, Default)]
pub(super) struct TensorStatistics(Mutex<HashMap<String, Statistics>>);

impl TensorStatistics {
    /// Begins with a tensor.
    pub(super) fn watch(tensor: &TensorEntry) -> Watching {
        StatisticsBuilder::new(tensor.dtype, &tensor.shape)
    }

    /// A tensor was read to its end.
    pub(super) fn add(&self, tensor: &TensorEntry, watched: Watching) {
        if let Some(watched) = watched {
            let mut all = lock(&self.0);
            all.insert(tensor.name.clone(), watched.finish());
        }
    }

    /// The report, and what is odd.
    pub(super) fn judge(self, manifest: &Manifest) -> (ValuesReport, Vec<Finding>) {
        let all = into_inner(self.0);
        let seen = manifest.tensors.iter();
        let seen = seen.filter_map(|tensor| {
            let statistics = *all.get(&tensor.name)?;
            Some(Seen { tensor, statistics })
        });
        let seen: Vec<Seen<'_>> = seen.collect();
        let facts = manifest.model.text.facts();
        let tied = facts.is_some_and(|f| f.tie_word_embeddings);
        let (findings, of_peers) = judge(&seen, tied);
        let report = ValuesReport {
            tensors: seen.iter().zip(of_peers).map(describe).collect(),
            unknown: unknown(manifest),
        };
        (report, findings)
    }
}

fn unknown(manifest: &Manifest) -> Vec<String> {
    let tensors = manifest.tensors.iter();
    let unknown = tensors.filter(|t| !has_values(t.dtype));
    unknown.map(|t| t.name.clone()).collect()
}

/// A tensor with its statistics.
#[derive(Debug)]
struct Seen<'a> {
    tensor: &'a TensorEntry,
    statistics: Statistics,
}

impl Seen<'_> {
    fn is_matrix(&self) -> bool {
        self.tensor.shape.iter().filter(|side| **side > 1).count() >= 2
    }

    /// Whether rows are tokens, codes or positions, which may never have been used.
    fn is_table(&self) -> bool {
        matches!(
            self.tensor.role,
            Role::Embedding
                | Role::CodecEmbedding
                | Role::PositionEmbedding
                | Role::LmHead
                | Role::CodecHead
        )
    }

    fn is_constant(&self) -> bool {
        self.statistics.min == self.statistics.max
    }

    /// The logarithm of the largest magnitude; `None` where all is zero or nothing finite.
    fn log_max(&self) -> Option<f64> {
        let max = self.statistics.max_abs();
        (max > 0.0 && max.is_finite()).then(|| max.log2())
    }

    fn finding(&self, kind: FindingKind) -> Finding {
        Finding::new(kind).tensor(&self.tensor.name)
    }
}

fn describe((seen, of_peers): (&Seen<'_>, Option<f64>)) -> TensorValues {
    let s = &seen.statistics;
    let finite = |value: f64| value.is_finite().then_some(value);
    TensorValues {
        name: seen.tensor.name.clone(),
        dtype: seen.tensor.dtype,
        values: s.values,
        nan: s.nan,
        infinite: s.infinite,
        zero: s.zero,
        zero_rows: s.zero_rows,
        min: finite(s.min),
        max: finite(s.max),
        mean: finite(s.mean),
        std: finite(s.std),
        of_peers,
    }
}

/// All that is odd, and for each tensor its largest magnitude over its peers'.
fn judge(seen: &[Seen<'_>], tied: bool) -> (Vec<Finding>, Vec<Option<f64>>) {
    let mut findings: Vec<Finding> = seen.iter().flat_map(alone).collect();
    let (beyond, of_peers) = among_peers(seen);
    for (number, octaves) in beyond {
        let seen = &seen[number];
        // the gap in the tensor itself has said it already, with a count
        let printed = |f: &Finding| {
            f.kind == FindingKind::OutlierValues && f.tensor.as_ref() == Some(&seen.tensor.name)
        };
        if !findings.iter().any(printed) {
            let max = seen.statistics.max_abs();
            let finding = seen.finding(FindingKind::OutlierValues);
            findings.push(finding.seen(format!(
                "values up to {max:.3e}, {:.0} times the median of its peers' largest",
                octaves.exp2()
            )));
        }
    }
    findings.extend(equal(seen, tied));
    (findings, of_peers)
}

/// What is odd about a tensor by itself.
fn alone(seen: &Seen<'_>) -> Vec<Finding> {
    let (s, mut findings) = (&seen.statistics, Vec::new());
    if s.nan + s.infinite > 0 {
        let finding = seen.finding(FindingKind::NotFinite);
        let what = format!(
            "{} NaN and {} infinite of {} values",
            s.nan, s.infinite, s.values
        );
        findings.push(finding.seen(what));
    }
    if s.values > 0 && s.zero == s.values {
        findings.push(
            seen.finding(FindingKind::AllZero)
                .seen("every value is zero"),
        );
        return findings;
    }
    if !seen.is_matrix() {
        return findings;
    }
    if seen.is_constant() && seen.tensor.part == Part::Weight {
        let finding = seen.finding(FindingKind::ConstantTensor);
        findings.push(finding.seen(format!("every value is {}", s.min)));
        return findings;
    }
    findings.extend(zero_rows(seen));
    findings.extend(apart(seen));
    findings
}

fn zero_rows(seen: &Seen<'_>) -> Option<Finding> {
    let (s, [rows, row]) = (&seen.statistics, seen.tensor.shape[..].try_into().ok()?);
    if s.zero_rows == 0 || row < MIN_ROW || seen.is_table() || seen.tensor.part != Part::Weight {
        return None;
    }
    let first = s.first_zero_row.unwrap_or_default();
    let what = format!(
        "{} of {rows} rows are zero, the first is row {first}",
        s.zero_rows
    );
    Some(seen.finding(FindingKind::ZeroRows).seen(what))
}

fn apart(seen: &Seen<'_>) -> Option<Finding> {
    let (s, apart) = (&seen.statistics, seen.statistics.apart?);
    if s.values < MIN_VALUES || apart.values > (s.values / RARE).max(few(s.values)) {
        return None;
    }
    let what = format!(
        "{} of {} values are up to {:.3e}, all others below {}",
        apart.values,
        s.values,
        s.max_abs(),
        apart.others_below
    );
    Some(seen.finding(FindingKind::OutlierValues).seen(what))
}

/// So many outliers of a small matrix are still few: 18 of some thousand.
fn few(values: u64) -> u64 {
    (values / 32).min(32)
}

/// The name without the numbers of layer and expert.
fn pattern(name: &str) -> String {
    let is_number = |word: &&str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    let words = name.split('.');
    let words: Vec<&str> = words.map(|w| if is_number(&w) { "*" } else { w }).collect();
    words.join(".")
}

/// The median of values that are in order, the lower one of two: half of a small group may be
/// larger by as much as norms are.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len().saturating_sub(1) / 2;
    sorted.get(middle).copied().unwrap_or(f64::NAN)
}

/// Median and robust standard deviation.
fn robust(values: &[f64]) -> (f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = median(&sorted);
    let mut distances: Vec<f64> = sorted.iter().map(|v| (v - middle).abs()).collect();
    distances.sort_by(f64::total_cmp);
    (middle, 1.4826 * median(&distances))
}

/// Tensors whose largest magnitude lies far above their peers', with the octaves, and for each
/// tensor the factor.
fn among_peers(seen: &[Seen<'_>]) -> (Vec<(usize, f64)>, Vec<Option<f64>>) {
    let mut groups: BTreeMap<(String, &str), Vec<usize>> = BTreeMap::new();
    for (number, one) in seen.iter().enumerate() {
        let key = (pattern(&one.tensor.name), one.tensor.dtype.name());
        groups.entry(key).or_default().push(number);
    }
    let (mut beyond, mut of_peers) = (BTreeMap::new(), vec![None; seen.len()]);
    for group in groups.values() {
        // the experts of one layer among each other
        let mut layers: BTreeMap<Option<u32>, Vec<usize>> = BTreeMap::new();
        for &number in group {
            let tensor = seen[number].tensor;
            let layer = tensor.expert.and(tensor.layer);
            layers.entry(layer).or_default().push(number);
        }
        if layers.len() > 1 {
            for experts in layers.values() {
                compare(seen, experts, &mut beyond, &mut of_peers);
            }
            compare_layers(seen, &layers, &mut beyond);
        } else {
            compare(seen, group, &mut beyond, &mut of_peers);
        }
    }
    (beyond.into_iter().collect(), of_peers)
}

/// Compares tensors among each other.
fn compare(
    seen: &[Seen<'_>],
    group: &[usize],
    beyond: &mut BTreeMap<usize, f64>,
    of_peers: &mut [Option<f64>],
) {
    let known = group.iter().filter_map(|&n| Some((n, seen[n].log_max()?)));
    let known: Vec<(usize, f64)> = known.collect();
    if known.len() < MIN_PEERS {
        return;
    }
    let logs: Vec<f64> = known.iter().map(|k| k.1).collect();
    let (middle, deviation) = robust(&logs);
    for (number, log) in known {
        let octaves = log - middle;
        of_peers[number] = Some(octaves.exp2());
        if octaves > limit(&seen[number], deviation) {
            beyond.insert(number, octaves);
        }
    }
}

fn limit(seen: &Seen<'_>, deviation: f64) -> f64 {
    let octaves = if seen.is_matrix() {
        MATRIX_OCTAVES
    } else {
        VECTOR_OCTAVES
    };
    octaves.max(DEVIATIONS * deviation)
}

/// Compares layers by the median of their experts: one in which all experts are odd. Of it, the
/// expert with the largest value is named.
fn compare_layers(
    seen: &[Seen<'_>],
    layers: &BTreeMap<Option<u32>, Vec<usize>>,
    beyond: &mut BTreeMap<usize, f64>,
) {
    let layers = layers.values();
    let medians: Vec<(usize, f64)> = layers
        .filter_map(|experts| of_layer(seen, experts))
        .collect();
    if medians.len() < MIN_PEERS {
        return;
    }
    let logs: Vec<f64> = medians.iter().map(|m| m.1).collect();
    let (middle, deviation) = robust(&logs);
    for (most, log) in medians {
        if log - middle > limit(&seen[most], deviation) {
            beyond.entry(most).or_insert(log - middle);
        }
    }
}

/// The expert of a layer with the largest value, and the median of the logarithms of all.
fn of_layer(seen: &[Seen<'_>], experts: &[usize]) -> Option<(usize, f64)> {
    let mut logs: Vec<f64> = experts.iter().filter_map(|&n| seen[n].log_max()).collect();
    logs.sort_by(f64::total_cmp);
    let log = |n: usize| seen[n].log_max().unwrap_or(f64::NEG_INFINITY);
    let largest = experts.iter().copied();
    let largest = largest.max_by(|a, b| log(*a).total_cmp(&log(*b)))?;
    (!logs.is_empty()).then(|| (largest, median(&logs)))
}

/// Tensors that are equal byte for byte, but for those that may be.
fn equal(seen: &[Seen<'_>], tied: bool) -> Vec<Finding> {
    let mut first: HashMap<(Sha256, &[u64]), &Seen<'_>> = HashMap::new();
    let mut findings = Vec::new();
    for one in seen {
        let t = one.tensor;
        // scales and group indices of quantised weights are often the same; the weights are not
        let is_own = matches!(t.part, Part::Weight | Part::Bias);
        let known = t.role != Role::Unclassified && t.role.is_known() && is_own;
        if !known || one.is_constant() || one.statistics.values < MIN_EQUAL {
            continue;
        }
        let Some(other) = first.get(&(t.sha256, &t.shape[..])) else {
            first.insert((t.sha256, &t.shape), one);
            continue;
        };
        if other.tensor.dtype == t.dtype && !(tied && are_tied(one, other)) {
            let finding = one.finding(FindingKind::EqualTensors);
            findings.push(finding.seen(format!("equals {} byte for byte", other.tensor.name)));
        }
    }
    findings
}

/// Embedding and output head of one decoder.
fn are_tied(a: &Seen<'_>, b: &Seen<'_>) -> bool {
    let roles = [a.tensor.role, b.tensor.role];
    a.tensor.component == b.tensor.component
        && roles.contains(&Role::Embedding)
        && roles.contains(&Role::LmHead)
}

#[cfg(test)]
mod tests {
    use segpack_formats::numeric::Dtype;
    use segpack_manifests::documents::SourceRange;
    use segpack_manifests::names::Component;

    use super::*;

    /// A model of tensors in memory.
    struct Model(Vec<(TensorEntry, Vec<f32>)>);

    #[expect(clippy::cast_possible_truncation, reason = "rounded to the nearest")]
    fn rounded(value: f64) -> f32 {
        value as f32
    }

    /// Values that look trained: nearly normal, with this standard deviation.
    fn normal(seed: &str, count: u64, std: f64) -> Vec<f32> {
        let digest = Sha256::of(seed.as_bytes()).0;
        let mut state = u64::from_le_bytes(digest[..8].try_into().unwrap());
        let mut uniform = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        let mut value = || ((0..12).map(|_| uniform()).sum::<f64>() - 6.0) * std;
        (0..count).map(|_| rounded(value())).collect()
    }

    impl Model {
        /// A decoder that looks trained, with what real ones have: norms with outliers, experts and
        /// layers of different scale, columns that stand out, tokens that were never used.
        fn trained() -> Self {
            let mut model = Self(Vec::new());
            let embedding = model.add(
                "model.embed_tokens.weight",
                Role::Embedding,
                &[300, 64],
                0.02,
            );
            for (i, value) in embedding.iter_mut().enumerate() {
                match (i / 64, i % 64) {
                    (250.., _) => *value = 0.0,
                    (_, 7) => *value *= 25.0,
                    _ => {}
                }
            }
            for layer in 0..6_u32 {
                let name = |rest: &str| format!("model.layers.{layer}.{rest}");
                let depth = 1.0 + f64::from(layer) * 0.4;
                let norm = model.add(&name("input_layernorm.weight"), Role::InputNorm, &[64], 0.1);
                norm.iter_mut().for_each(|v| *v += 1.0);
                if layer >= 4 {
                    norm[3] = 30.0;
                }
                let bias = model.add(&name("self_attn.k_proj.bias"), Role::AttentionK, &[64], 0.5);
                if layer == 0 {
                    bias[9] = 90.0;
                }
                model.0.last_mut().unwrap().0.part = Part::Bias;
                model.add(
                    &name("self_attn.q_proj.weight"),
                    Role::AttentionQ,
                    &[64, 64],
                    0.03 * depth,
                );
                model.add(&name("mlp.gate.weight"), Role::Router, &[8, 64], 0.3);
                for expert in 0..8 {
                    let scale = if expert == 3 { 3.0 } else { 1.0 };
                    let name = name(&format!("mlp.experts.{expert}.down_proj.weight"));
                    model.add(&name, Role::ExpertDown, &[64, 32], 0.02 * depth * scale);
                    model.0.last_mut().unwrap().0.expert = Some(expert);
                }
                // one value that stands out, as trained models have in early layers
                if layer == 1 {
                    model.get("model.layers.1.mlp.experts.5.down_proj.weight")[77] = 1.2;
                }
            }
            model.add("lm_head.weight", Role::LmHead, &[300, 64], 0.02);
            model
        }

        fn add(&mut self, name: &str, role: Role, shape: &[u64], std: f64) -> &mut Vec<f32> {
            let values = normal(name, shape.iter().product(), std);
            let mut words = name.split('.').skip_while(|w| *w != "layers");
            let entry = TensorEntry {
                name: name.to_owned(),
                dtype: Dtype::F32,
                shape: shape.to_vec(),
                segment: String::new(),
                offset: 0,
                length: values.len() as u64 * 4,
                sha256: Sha256([0; 32]),
                component: Component::Text,
                role,
                part: Part::Weight,
                layer: words.nth(1).and_then(|w| w.parse().ok()),
                expert: None,
                source: SourceRange {
                    file: String::new(),
                    tensor: name.to_owned(),
                    offset: 0,
                    length: 0,
                },
            };
            self.0.push((entry, values));
            &mut self.0.last_mut().unwrap().1
        }

        fn get(&mut self, name: &str) -> &mut Vec<f32> {
            &mut self
                .0
                .iter_mut()
                .find(|(entry, _)| entry.name == name)
                .unwrap()
                .1
        }

        /// The kinds and tensors of all findings.
        fn judged(&mut self, tied: bool) -> Vec<(FindingKind, String)> {
            for (entry, values) in &mut self.0 {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                entry.sha256 = Sha256::of(&bytes);
            }
            let seen = self.0.iter().map(|(tensor, values)| {
                let mut watching = TensorStatistics::watch(tensor).unwrap();
                values
                    .iter()
                    .for_each(|v| watching.update(&v.to_le_bytes()));
                Seen {
                    tensor,
                    statistics: watching.finish(),
                }
            });
            let (findings, of_peers) = judge(&seen.collect::<Vec<_>>(), tied);
            assert_eq!(of_peers.len(), self.0.len());
            let mut kinds: Vec<_> = findings
                .into_iter()
                .map(|f| (f.kind, f.tensor.unwrap()))
                .collect();
            kinds.sort();
            kinds
        }
    }

    #[test]
    fn what_looks_trained_gives_no_alarm() {
        assert_eq!(Model::trained().judged(false), []);
    }

    const EXPERT: &str = "model.layers.3.mlp.experts.6.down_proj.weight";

    #[test]
    fn eighteen_values_of_a_thousand() {
        let places = |i: usize| 5 + i * 97;
        for (name, count) in [
            (EXPERT, 18),
            (EXPERT, 1),
            ("model.layers.2.self_attn.q_proj.weight", 18),
            ("model.layers.0.mlp.gate.weight", 1),
            ("model.embed_tokens.weight", 18),
            ("lm_head.weight", 2),
            ("model.layers.2.input_layernorm.weight", 1),
        ] {
            let mut model = Model::trained();
            let values = model.get(name);
            let length = values.len();
            (0..count).for_each(|i| values[places(i) % length] = 1000.0);
            let wanted = [(FindingKind::OutlierValues, name.to_owned())];
            assert_eq!(model.judged(false), wanted, "{name}");
        }
    }

    #[test]
    fn a_layer_of_which_every_expert_is_odd_is_named_once() {
        let mut model = Model::trained();
        for expert in 0..8 {
            let name = format!("model.layers.2.mlp.experts.{expert}.down_proj.weight");
            model.get(&name).iter_mut().for_each(|v| *v *= 1000.0);
        }
        let seen = model.judged(false);
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen[0].1.starts_with("model.layers.2.mlp.experts."));
    }

    #[test]
    fn rows_of_zeros_constants_and_values_that_are_none() {
        let mut model = Model::trained();
        model.get(EXPERT)[32..64].fill(0.0);
        model.get("model.layers.1.mlp.gate.weight").fill(0.5);
        model
            .get("model.layers.5.self_attn.q_proj.weight")
            .fill(0.0);
        model.get("model.layers.0.input_layernorm.weight")[0] = f32::NAN;
        let kinds: Vec<FindingKind> = model.judged(false).into_iter().map(|k| k.0).collect();
        let wanted = [
            FindingKind::AllZero,
            FindingKind::NotFinite,
            FindingKind::ZeroRows,
            FindingKind::ConstantTensor,
        ];
        assert_eq!(kinds, wanted);
    }

    #[test]
    fn equal_tensors_are_found_but_for_those_that_are_tied() {
        let mut model = Model::trained();
        let first = model.get("model.layers.0.input_layernorm.weight").clone();
        *model.get("model.layers.3.input_layernorm.weight") = first;
        let expert = model
            .get("model.layers.3.mlp.experts.1.down_proj.weight")
            .clone();
        *model.get(EXPERT) = expert;
        let embedding = model.get("model.embed_tokens.weight").clone();
        *model.get("lm_head.weight") = embedding;
        let names = |seen: Vec<(FindingKind, String)>| -> Vec<String> {
            assert!(
                seen.iter().all(|s| s.0 == FindingKind::EqualTensors),
                "{seen:?}"
            );
            seen.into_iter().map(|s| s.1).collect()
        };
        let head = "lm_head.weight".to_owned();
        let mut others = vec![
            "model.layers.3.input_layernorm.weight".to_owned(),
            EXPERT.to_owned(),
        ];
        assert_eq!(names(model.judged(true)), others);
        others.insert(0, head);
        assert_eq!(names(model.judged(false)), others);
        // norms that are all ones are constant, not copies
        for layer in [1, 2] {
            model
                .get(&format!("model.layers.{layer}.input_layernorm.weight"))
                .fill(1.0);
        }
        assert_eq!(names(model.judged(false)), others);
    }

    #[test]
    fn only_the_head_is_tied_to_the_embedding() {
        let mut model = Model::trained();
        let embedding = model.get("model.embed_tokens.weight").clone();
        *model.add("model.other.weight", Role::AttentionQ, &[300, 64], 0.02) = embedding;
        let equal = (FindingKind::EqualTensors, "model.other.weight".to_owned());
        assert!(model.judged(true).contains(&equal));
    }

    #[test]
    fn a_few_values_of_a_matrix_are_outliers_and_many_are_not() {
        let found = |name: &str, count: usize| {
            let mut model = Model::trained();
            let values = model.get(name);
            (0..count).for_each(|i| values[i * 97] = 1000.0);
            model.judged(false).len()
        };
        assert_eq!(
            (found("lm_head.weight", 32), found("lm_head.weight", 33)),
            (1, 0)
        );
        // of a small matrix one in 32, and of a smaller one none
        let mut small = Model(Vec::new());
        small.add("small.weight", Role::Router, &[8, 64], 0.02)[..16].fill(1000.0);
        small.add("smaller.weight", Role::Router, &[7, 73], 0.02)[0] = 1000.0;
        let wanted = (FindingKind::OutlierValues, "small.weight".to_owned());
        assert_eq!(small.judged(false), [wanted]);
        small.get("small.weight")[16] = 1000.0;
        assert_eq!(small.judged(false), []);
    }

    /// Tensors of one kind, each of them `normal` times its factor.
    fn scaled(shape: &[u64], factors: &[f64]) -> Model {
        let mut model = Model(Vec::new());
        for (layer, factor) in factors.iter().enumerate() {
            let name = format!("model.layers.{layer}.some.weight");
            model.add(&name, Role::AttentionQ, shape, 0.02 * factor);
        }
        model
    }

    #[test]
    fn peers_are_five_or_more_and_differ_by_less_than_the_limits() {
        let found = |shape: &[u64], factors: &[f64]| scaled(shape, factors).judged(false).len();
        let (matrix, vector, row) = ([64, 64], [64], [1, 64]);
        assert_eq!(found(&matrix, &[1.0, 1.0, 1.0, 1000.0]), 0);
        assert_eq!(found(&matrix, &[1.0, 1.0, 1.0, 1.0, 1000.0]), 1);
        // 64 times and 256 times; a single row is a vector
        let others = [1.0; 8];
        for (shape, less, more) in [
            (&matrix[..], 40.0, 100.0),
            (&vector[..], 150.0, 500.0),
            (&row[..], 150.0, 500.0),
        ] {
            assert_eq!(
                found(shape, &[&others[..], &[less]].concat()),
                0,
                "{shape:?}"
            );
            assert_eq!(
                found(shape, &[&others[..], &[more]].concat()),
                1,
                "{shape:?}"
            );
        }
        // where all differ, one that differs as much is like them
        let each_more: Vec<f64> = (0..6).map(|i| 128_f64.powi(i)).collect();
        assert_eq!(found(&matrix, &each_more), 0);
        // names that differ in more than numbers are no peers
        let mut others = scaled(&matrix, &[1.0, 1.0, 1.0, 1.0, 1000.0]);
        for (number, (entry, _)) in others.0.iter_mut().enumerate() {
            entry.name = format!("model.{}.weight", ["a", "b", "c", "d", "e"][number]);
        }
        assert_eq!(others.judged(false), []);
    }

    #[test]
    fn the_median_is_in_the_middle_and_the_lower_of_two() {
        assert_eq!(median(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), 4.0);
        assert_eq!(median(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), 3.0);
    }

    #[test]
    fn layers_are_compared_where_there_are_five() {
        for (layers, found) in [(4, 0), (5, 1)] {
            let mut model = Model(Vec::new());
            for (layer, expert) in (0..layers).flat_map(|l| (0..8).map(move |e| (l, e))) {
                let name = format!("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight");
                let std = if layer == 2 { 20.0 } else { 0.02 };
                model.add(&name, Role::ExpertUp, &[32, 32], std);
                model.0.last_mut().unwrap().0.expert = Some(expert);
            }
            assert_eq!(model.judged(false).len(), found, "{layers} layers");
        }
    }

    #[test]
    fn what_is_short_or_no_weight_is_zero_and_equal_by_chance() {
        let odd = |side: u64, part: Part, role: Role| {
            let mut model = Model(Vec::new());
            for layer in 0..2 {
                let name = format!("model.layers.{layer}.some.weight");
                let values = model.add(&name, role, &[side, side], 0.02);
                values[..usize::try_from(side).unwrap()].fill(0.0);
                model.0.last_mut().unwrap().0.part = part;
            }
            model
                .judged(false)
                .into_iter()
                .map(|f| f.0)
                .collect::<Vec<_>>()
        };
        let rows = [FindingKind::ZeroRows; 2];
        assert_eq!(odd(8, Part::Weight, Role::Router), rows);
        assert_eq!(odd(7, Part::Weight, Role::Router), []);
        assert_eq!(odd(8, Part::Scale, Role::Router), []);
        // no values at all are not zeros
        let mut empty = Model(Vec::new());
        empty.add("empty.weight", Role::Router, &[0, 8], 0.02);
        assert_eq!(empty.judged(false), []);
        let equal = |count: u64, part: Part, role: Role| {
            let mut model = Model(Vec::new());
            for layer in 0..2 {
                let name = format!("model.layers.{layer}.some.weight");
                model.add(&name, role, &[count], 0.02);
                model.0.last_mut().unwrap().0.part = part;
            }
            let first = model.0[0].1.clone();
            model.0[1].1 = first;
            model.judged(false).len()
        };
        assert_eq!(equal(8, Part::Weight, Role::InputNorm), 1);
        assert_eq!(equal(8, Part::Bias, Role::InputNorm), 1);
        assert_eq!(equal(7, Part::Weight, Role::InputNorm), 0);
        assert_eq!(equal(8, Part::Scale, Role::InputNorm), 0);
        assert_eq!(equal(8, Part::Weight, Role::Unclassified), 0);
    }
}
