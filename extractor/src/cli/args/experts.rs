use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use segpack_formats::io::read_limited;
use segpack_manifests::documents::ExpertMask;
use segpack_runtime_min::session::ExpertChoice;

use super::DEVICE;
use crate::cli::error::CliError;

/// Bytes of a mask: far more than any model has experts.
const MAX_MASK_BYTES: u64 = 64 << 20;

/// Which experts routers may choose.
#[derive(Debug, clap::Args)]
pub(crate) struct ExpertArgs {
    /// Restrict the router of every layer to these experts, its probabilities taken over them alone:
    /// numbers and ranges, such as 0-7,12. The result is not the model's, and is marked as such
    #[arg(long, value_name = "LIST", value_parser = expert_list, help_heading = DEVICE)]
    experts: Option<Experts>,
    /// As --experts, of each layer by itself: a JSON file (schemas/expert-mask.schema.json), such as
    /// {"layers": {"0": [1, 2]}}
    #[arg(long, value_name = "FILE.json", conflicts_with = "experts", help_heading = DEVICE)]
    expert_mask: Option<PathBuf>,
}

/// Numbers of experts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Experts(BTreeSet<u32>);

impl ExpertArgs {
    /// What routers may choose among; `None` where all experts.
    ///
    /// # Errors
    /// Where the file of a mask cannot be read, or is none.
    pub(crate) fn choice(&self) -> Result<Option<ExpertChoice>, CliError> {
        match (&self.experts, &self.expert_mask) {
            (Some(experts), _) => Ok(Some(ExpertChoice::OfEveryLayer(experts.0.clone()))),
            (None, Some(file)) => read_mask(file).map(Some),
            (None, None) => Ok(None),
        }
    }
}

fn read_mask(file: &Path) -> Result<ExpertChoice, CliError> {
    let bytes = read_limited(file, MAX_MASK_BYTES)?;
    let mask: ExpertMask =
        serde_json::from_slice(&bytes).map_err(|source| CliError::ExpertMask {
            file: file.to_owned(),
            source,
        })?;
    let layers = mask.by_layer().map_err(|source| CliError::MaskLayer {
        file: file.to_owned(),
        source,
    })?;
    let sets = layers
        .into_iter()
        .map(|(n, ids)| (n, BTreeSet::from_iter(ids)));
    Ok(ExpertChoice::ByLayer(sets.collect()))
}

/// Numbers and ranges, separated by commas.
fn expert_list(text: &str) -> Result<Experts, String> {
    /// More than any model has.
    const MAX: u32 = 1 << 20;
    let mut experts = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let ends = [first, last].map(|end| end.trim().parse::<u32>().ok().filter(|n| *n < MAX));
        let [Some(first), Some(last)] = ends else {
            return Err("expected numbers of experts and ranges, such as 0-7,12".to_owned());
        };
        if first > last {
            return Err(format!("the range {first}-{last} ends before it begins"));
        }
        experts.extend(first..=last);
    }
    Ok(Experts(experts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_experts_has_numbers_and_ranges() {
        let listed = |text| expert_list(text).map(|e| e.0.into_iter().collect::<Vec<_>>());
        assert_eq!(listed("0-3, 12,5"), Ok(vec![0, 1, 2, 3, 5, 12]));
        for bad in ["", "a", "1-", "-1", "3-1", "1,,2", "1-2-3", "4294967295"] {
            assert!(listed(bad).is_err(), "{bad}");
        }
    }
}
