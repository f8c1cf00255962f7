//! What a bucket of an object store holds: a checkpoint's files, or those of a pack.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::ObjectMeta;
use segpack_manifests::documents::Provenance;

use super::client::{Client, answer};
use super::file::{Address, Identity};
use super::objects::{Bucket, strong};
use super::{Entry, Listing, RemoteError};
use crate::source::place::ObjectPlace;
use crate::work::Job;

/// Objects that a checkpoint has at most. A bucket named by mistake may hold any number.
const MAX_OBJECTS: usize = 100_000;
/// Pages of a list at most: a server may send empty ones for ever.
const MAX_PAGES: usize = 10_000;

/// Lists the objects under a prefix, with their lengths and versions.
///
/// # Errors
/// `NoCredentials`, `NoBucket`, `Denied`, `OtherRegion`; `Answer` where there is nothing, or more
/// than a checkpoint has; what ended the last try.
pub(super) fn list(
    client: &Arc<Client>,
    place: &ObjectPlace,
    job: Job<'_>,
) -> Result<Listing, RemoteError> {
    let bucket = Arc::new(Bucket::open(place, client)?);
    let files = list_objects(&bucket, client, job)?;
    let name = place.to_string();
    if files.is_empty() {
        return Err(answer(&name, "holds no objects"));
    }
    Ok(Listing {
        name: PathBuf::from(name),
        provenance: Provenance::default(),
        files,
    })
}

/// The objects below the prefix of a bucket, by path; there may be none.
///
/// # Errors
/// As [`list`].
pub(super) fn list_objects(
    bucket: &Arc<Bucket>,
    client: &Client,
    job: Job<'_>,
) -> Result<BTreeMap<String, Entry>, RemoteError> {
    let name = bucket.place.to_string();
    let mut files = BTreeMap::new();
    let mut next = None;
    for _ in 0..MAX_PAGES {
        let page = client.until(&name, job, || bucket.page(next.clone()))?;
        for object in page.result.objects {
            add(bucket, object, &mut files)?;
        }
        if files.len() > MAX_OBJECTS {
            let what = format!("holds more than {MAX_OBJECTS} objects, and is no checkpoint");
            return Err(answer(&name, what));
        }
        next = page.page_token;
        if next.is_none() {
            break;
        }
    }
    if next.is_some() {
        let what = format!("its list has more than {MAX_PAGES} pages");
        return Err(answer(&name, what));
    }
    Ok(files)
}

/// Adds an object to the list of files.
fn add(
    bucket: &Arc<Bucket>,
    object: ObjectMeta,
    files: &mut BTreeMap<String, Entry>,
) -> Result<(), RemoteError> {
    let key = object.location.as_ref();
    let prefix = &*bucket.place.prefix;
    let relative = match key.strip_prefix(prefix) {
        Some(rest) if prefix.is_empty() => Some(rest),
        Some(rest) => rest.strip_prefix('/'),
        None => None,
    };
    // the object of the prefix itself is what some tools make of a folder
    let Some(relative) = relative.filter(|r| !r.is_empty()) else {
        return Ok(());
    };
    let (relative, name) = (relative.to_owned(), bucket.place.to_string());
    let entry = Entry {
        address: Address::Object(Arc::clone(bucket), object.location),
        identity: Identity {
            length: object.size,
            tag: object.e_tag.as_deref().and_then(strong),
            ..Identity::default()
        },
    };
    if files.insert(relative.clone(), entry).is_some() {
        return Err(answer(&name, format!("{relative:?} is listed twice")));
    }
    Ok(())
}
