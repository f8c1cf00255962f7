//! `part.json`: what one of N machines that pack one checkpoint has packed of it.

use std::collections::HashSet;
use std::io;

use segpack_formats::digest::Sha256;
use serde::{Deserialize, Serialize};

use crate::documents::{FormatVersion, Manifest, ManifestError, SourceFile, SourceFileKind};

/// The whole document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PartManifest {
    /// Version of this document.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "crate::documents::schema::VersionText")
    )]
    pub format_version: FormatVersion,
    /// Name and version of the program that wrote it.
    pub generator: String,
    /// Who packs and digests what.
    pub share: PartShare,
    /// What is in the folder, as the manifest of a whole pack has it, but for three things: packs of
    /// other parts are missing, and their bytes count as excluded; a shard has a digest only where
    /// this part read it as a whole; the source is not looked up among the known ones.
    pub manifest: Manifest,
}

/// How the work is shared, and which share is this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PartShare {
    /// Which part this is, counted from 1.
    pub part: u64,
    /// How many parts there are.
    pub of: u64,
    /// Every pack of the whole, in the order of its manifest.
    pub packs: Vec<PackShare>,
    /// Every shard of the checkpoint, in the order of the manifest.
    pub shards: Vec<ShardShare>,
}

/// Who packs a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PackShare {
    /// Its path, relative to the pack folder.
    pub path: String,
    /// Bytes of its tensors before coding.
    pub raw_length: u64,
    /// The part that packs it.
    pub part: u64,
}

/// Who digests a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ShardShare {
    /// Its path, relative to the checkpoint.
    pub path: String,
    /// The part that reads it as a whole; none where nothing of it is packed, and with
    /// `--no-source-digests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<u64>,
    /// The digest that the hub publishes of it, where it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<crate::documents::schema::HexDigest>")
    )]
    pub published_sha256: Option<Sha256>,
    /// Where this part read it as a whole: the digests of all tensors of it that any part packs, in
    /// the order of their bytes, without those that have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Vec<crate::documents::schema::HexDigest>")
    )]
    pub tensors: Vec<Sha256>,
}

impl PartManifest {
    /// Parses and checks the document of a part.
    ///
    /// # Errors
    /// As [`Manifest::parse`]; `Part` where the share and what is packed contradict each other.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        let mut manifest = crate::documents::pack::version::readable::<Self>(json)?;
        manifest.manifest = manifest.manifest.checked()?;
        manifest.check_numbers()?;
        manifest.check_packs()?;
        manifest.check_shards()?;
        Ok(manifest)
    }

    /// Writes the document: deterministic.
    ///
    /// # Errors
    /// Where `to` cannot be written to.
    pub fn write(&self, to: impl io::Write) -> io::Result<()> {
        crate::json::write_document(to, self)
    }

    /// The text of `SHA256SUMS`, given the digest of this document's file.
    #[must_use]
    pub fn sums_text(&self, sha256: Sha256) -> String {
        let document = crate::folder::paths::PART;
        self.manifest.sums_text_with(document, sha256)
    }

    fn check_numbers(&self) -> Result<(), ManifestError> {
        let PartShare {
            part,
            of,
            packs,
            shards,
        } = &self.share;
        let packs = packs.iter().map(|p| p.part);
        let shards = shards.iter().filter_map(|s| s.part);
        let mut all = packs.chain(shards).chain([*part]);
        match all.find(|part| !(1..=*of).contains(part)) {
            Some(part) => wrong(format!("names part {part} of {of}")),
            None => Ok(()),
        }
    }

    /// The folder has the packs of its share, in their order.
    fn check_packs(&self) -> Result<(), ManifestError> {
        let mut seen = HashSet::new();
        let shares = &self.share.packs;
        if let Some(twice) = shares.iter().find(|p| !seen.insert(p.path.as_str())) {
            return wrong(format!("deals {} out twice", twice.path));
        }
        let own = shares.iter().filter(|p| p.part == self.share.part);
        let listed = self.manifest.packs.iter().map(|p| p.path.as_str());
        if own.map(|p| p.path.as_str()).eq(listed) {
            return Ok(());
        }
        wrong("lists other packs than those of its share".to_owned())
    }

    /// The shards are those of the manifest, and have a digest where this part read them.
    fn check_shards(&self) -> Result<(), ManifestError> {
        let is_shard = |f: &&SourceFile| f.kind == SourceFileKind::Shard;
        let files: Vec<_> = self.manifest.source_files.iter().filter(is_shard).collect();
        let shares = &self.share.shards;
        if !files
            .iter()
            .map(|f| &f.path)
            .eq(shares.iter().map(|s| &s.path))
        {
            return wrong("shares other shards than it lists".to_owned());
        }
        for (file, share) in files.into_iter().zip(shares) {
            let is_own = share.part == Some(self.share.part);
            if is_own != file.sha256.is_some() || !is_own && !share.tensors.is_empty() {
                let (path, not) = (&file.path, if is_own { "no" } else { "a" });
                return wrong(format!("has {not} digest of {path}, against its share"));
            }
        }
        Ok(())
    }
}

fn wrong(what: String) -> Result<(), ManifestError> {
    Err(ManifestError::Part { what })
}
