//! Names of what a pack folder holds.

/// File name of the manifest: its presence means "complete".
pub const MANIFEST: &str = "manifest.json";
/// File name of the document of a part: what one of many machines packed. It is there instead of
/// [`MANIFEST`], and its presence means "complete", too.
pub const PART: &str = "part.json";
/// File name of the list of digests that `sha256sum -c` reads.
pub const SUMS: &str = "SHA256SUMS";
/// File name of a signature as OpenSSF's model signing writes it, after the pack: it is in no list.
pub const SIGNATURE: &str = "model.sig";
/// Folder of the packs.
pub const PACKS: &str = "packs";
/// Folder of the checkpoint's other files.
pub const SOURCE: &str = "source";
/// Folder, below [`SOURCE`], of the shards' original headers.
pub const SHARD_HEADERS: &str = ".shard-headers";
/// Folder of everything that is not finished.
pub const PARTIAL: &str = ".partial";
/// The longest manifest that is read, in bytes: ten times that of the largest model known here.
pub const MAX_MANIFEST_BYTES: u64 = 1 << 30;
