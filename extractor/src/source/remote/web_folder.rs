//! A folder of a web server. It has no list of its files: which shards there are says the index,
//! which other files there may be says a list of the names that checkpoints use.

use std::collections::BTreeMap;
use std::path::PathBuf;

use segpack_formats::safetensors::ShardIndex;
use segpack_manifests::documents::Provenance;
use segpack_manifests::folder::max_source_bytes;

use super::client::{Client, Trouble, answer, number_of};
use super::file::{Address, Identity, strong_tag};
use super::hub::escaped;
use super::{Entry, Listing, RemoteError};
use crate::work::Job;

/// The index of a checkpoint of several shards.
const INDEX: &str = "model.safetensors.index.json";
/// The only shard of one without an index.
const ONLY_SHARD: &str = "model.safetensors";

/// Files beside the shards that are asked for. What else lies in the folder is not seen.
const SIDE_FILES: [&str; 24] = [
    "LICENSE",
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "configuration.json",
    "generation_config.json",
    "hf_quant_config.json",
    "merges.txt",
    "modules.json",
    "preprocessor_config.json",
    "processor_config.json",
    "quantize_config.json",
    "recipe.yaml",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Finds the files of a folder; `url` ends in `/`.
///
/// # Errors
/// `NoFile` where there is neither an index nor a single shard; `Answer` where the index is none;
/// what ended the last try.
pub(super) fn list(client: &Client, url: &str, job: Job<'_>) -> Result<Listing, RemoteError> {
    let mut files = BTreeMap::new();
    match client.small(&format!("{url}{INDEX}"), max_source_bytes(INDEX), job) {
        Ok(json) => {
            let index = ShardIndex::parse(&json);
            // what is wrong with it, the checkpoint says
            let shards = index.as_ref().map(ShardIndex::shards).unwrap_or_default();
            add(client, (url, INDEX), &mut files, job)?;
            for shard in shards {
                add(client, (url, shard), &mut files, job)?;
            }
        }
        Err(RemoteError::NoFile { .. }) => {
            if !add(client, (url, ONLY_SHARD), &mut files, job)? {
                let what = format!("has neither {INDEX} nor {ONLY_SHARD}");
                return Err(answer(url, what));
            }
        }
        Err(e) => return Err(e),
    }
    for name in SIDE_FILES {
        add(client, (url, name), &mut files, job)?;
    }
    Ok(Listing {
        name: PathBuf::from(url.trim_end_matches('/')),
        provenance: Provenance::default(),
        files,
    })
}

/// Adds a file, where it is there. Whether it is.
fn add(
    client: &Client,
    (folder, path): (&str, &str),
    files: &mut BTreeMap<String, Entry>,
    job: Job<'_>,
) -> Result<bool, RemoteError> {
    let found = entry(client, folder, path, job)?;
    let is_there = found.is_some();
    files.extend(found.map(|entry| (path.to_owned(), entry)));
    Ok(is_there)
}

/// What the server says of a file of a folder, whose address ends in `/`; `None` where there is
/// none.
///
/// # Errors
/// What ended the last try.
pub(super) fn entry(
    client: &Client,
    folder: &str,
    path: &str,
    job: Job<'_>,
) -> Result<Option<Entry>, RemoteError> {
    let url = format!("{folder}{}", escaped(path));
    let looked = client.until(&url, job, || {
        let from = client.ask(&url, true, None)?.expect(&[200])?;
        let length = number_of(&from.headers, "content-length");
        let length = length.ok_or_else(|| answer(&url, "the server does not say its length"))?;
        let tag = strong_tag(&from.headers);
        Ok::<_, Trouble>(Identity {
            length,
            tag,
            ..Identity::default()
        })
    });
    match looked {
        Ok(identity) => {
            let address = Address::Web(url);
            Ok(Some(Entry { address, identity }))
        }
        Err(RemoteError::NoFile { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}
