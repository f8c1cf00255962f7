//! One thing that is wrong with a checkpoint or a pack.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether a finding makes the input unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Does not change the exit status.
    Warning,
    /// The input is damaged, incomplete or different: exit status 3.
    Error,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $severity:ident,)*) => {
        /// What kind of thing is wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum FindingKind { $($(#[$doc])* $name,)* }

        impl FindingKind {
            /// Whether this kind makes the input unusable.
            pub fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }
        }
    };
}

kinds! {
    /// A weight file is not valid safetensors: malformed, truncated, a git-lfs pointer, a web page.
    MalformedShard = Error,
    /// The index is malformed or names paths outside the folder.
    MalformedIndex = Error,
    /// The index names a shard that is not there.
    MissingShard = Error,
    /// A weight file that the index does not name.
    UnlistedShard = Error,
    /// The index places a tensor in a shard that does not hold it.
    NotInShard = Error,
    /// A shard holds a tensor that the index does not name.
    NotInIndex = Error,
    /// Two shards hold a tensor of one name.
    DuplicateTensor = Error,
    /// The index's total size is not the sum of its tensors.
    WrongTotalSize = Error,
    /// `config.json` is malformed, or contradicts itself.
    BadConfig = Error,
    /// `config.json` describes a model of a family that this build does not know.
    UnknownFamily = Error,
    /// The weights are an adapter of a model, or a model that is wrapped for one.
    Adapter = Error,
    /// Most tensors have names of another family than the one that `config.json` describes.
    OtherNames = Error,
    /// The tensors are those of a model of other sizes than `config.json` gives.
    OtherSizes = Error,
    /// `config.json` announces layers that predict later tokens, and none is stored.
    LaterLayersNotStored = Warning,
    /// A git-lfs pointer is in the place of a file.
    GitLfsPointer = Error,
    /// No completeness audit was possible.
    NotAudited = Warning,
    /// A tensor that the architecture requires is missing.
    MissingTensor = Error,
    /// A tensor that the architecture does not have.
    ExtraTensor = Error,
    /// A tensor's shape is not the one that `config.json` gives.
    MisshapedTensor = Error,
    /// A tensor's dtype is not the one that `config.json` gives.
    WrongDtype = Error,
    /// No rule of the family names the tensor.
    UnclassifiedTensor = Error,
    /// All values of a tensor are zero.
    AllZero = Warning,
    /// A tensor holds values that are not a number, or infinite.
    NotFinite = Warning,
    /// Values of a tensor lie far beyond those that it, or others like it, has.
    OutlierValues = Warning,
    /// Whole rows of a matrix are zero.
    ZeroRows = Warning,
    /// Every value of a matrix is the same.
    ConstantTensor = Warning,
    /// A tensor equals another byte for byte, and the model does not tie them.
    EqualTensors = Warning,
    /// The manifest is missing, malformed, newer or contradicts itself.
    BadManifest = Error,
    /// A file that the manifest lists is not there.
    MissingFile = Error,
    /// A file, folder or link that the manifest does not list.
    UnlistedFile = Error,
    /// A signature lies in the pack's folder, and this command does not check it.
    UncheckedSignature = Warning,
    /// A signature is missing, malformed, not that of the key that was given, or not of this pack.
    BadSignature = Error,
    /// A file, an expert or a map is another rank's than the share has to have, or does not say whose.
    OtherShare = Error,
    /// The length of a file is not the one in the manifest.
    WrongLength = Error,
    /// A pack's header is not the one that the manifest describes.
    WrongHeader = Error,
    /// A segment's stored bytes do not match its digest or do not decode.
    DamagedSegment = Error,
    /// A tensor's bytes do not match its digest.
    DamagedTensor = Error,
    /// A file's bytes do not match its digest.
    DamagedFile = Error,
    /// The manifest is not the one whose SHA-256 was given.
    WrongIdentity = Error,
    /// What the manifest says of a tensor (component, role, part, layer, expert) is not what its
    /// name says.
    WrongClassification = Error,
    /// A tensor, segment or pack is not where the plan for the checkpoint puts it.
    WrongPlacement = Error,
    /// A tensor's dtype, shape or place in its shard is not the one in the shard's kept header.
    WrongSource = Error,
    /// The model's family or numbers are not those of `config.json`.
    WrongModelFacts = Error,
    /// What the manifest says was excluded is not what options and kept headers say.
    WrongExcluded = Error,
    /// Another entry of the manifest is not what follows from what the pack keeps.
    WrongRecord = Error,
    /// SHA256SUMS is not the text that follows from the manifest.
    WrongSums = Error,
    /// A file cannot be read.
    Unreadable = Error,
    /// A tensor of the pack is not in the checkpoint.
    NotInCheckpoint = Error,
    /// A tensor or file of the checkpoint is not in the pack.
    NotInPack = Error,
    /// A tensor or file has other bytes, another dtype or shape in the checkpoint.
    DiffersFromCheckpoint = Error,
    /// A source file's SHA-256 is not the one that the hub publishes.
    DiffersFromHub = Error,
    /// What would be restored from the pack is not the original file.
    NotRestorable = Error,
    /// Two reads of a source file gave different bytes.
    ReadsDiffer = Error,
    /// A trace was recorded from another checkpoint.
    ForeignTrace = Error,
    /// A trace does not say, or does not prove, which checkpoint it was recorded from.
    UnidentifiedTrace = Warning,
    /// The results of the model differ from the reference by more than the tolerance.
    DiffersFromReference = Error,
    /// The reference allows no verdict.
    NotJudged = Warning,
}

impl FindingKind {
    /// Whether it says that the tensors are not those that `config.json` requires.
    #[must_use]
    pub fn is_incompleteness(self) -> bool {
        matches!(
            self,
            Self::MissingTensor
                | Self::ExtraTensor
                | Self::MisshapedTensor
                | Self::WrongDtype
                | Self::OtherSizes
                | Self::MissingShard
                | Self::MalformedShard
                | Self::NotInShard
                | Self::NotInPack
        )
    }
}

/// Whether all tensors are there that `config.json` requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Completeness {
    /// Every one is there, and no other.
    Complete,
    /// Tensors are missing, unexpected, or of another shape or dtype.
    Incomplete,
    /// Nothing says which tensors there have to be, or it could not be read.
    NotKnown,
}

impl fmt::Display for Completeness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "complete",
            Self::Incomplete => "incomplete",
            Self::NotKnown => "not known",
        })
    }
}

/// One thing that is wrong, where, what was seen and what was wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// Whether it makes the input unusable.
    pub severity: Severity,
    /// The file, relative to the folder under inspection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<String>,
    /// The tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// First and one-past-last byte in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<[u64; 2]>,
    /// What was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<String>,
    /// What should have been there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<String>,
}

impl Finding {
    /// A finding of this kind, with nothing else said yet.
    pub fn new(kind: FindingKind) -> Self {
        Self {
            kind,
            severity: kind.severity(),
            file: None,
            segment: None,
            tensor: None,
            bytes: None,
            seen: None,
            wanted: None,
        }
    }

    /// In this file.
    #[must_use]
    pub fn file(self, file: impl Into<String>) -> Self {
        Self {
            file: Some(file.into()),
            ..self
        }
    }

    /// In this segment.
    #[must_use]
    pub fn segment(self, segment: impl Into<String>) -> Self {
        Self {
            segment: Some(segment.into()),
            ..self
        }
    }

    /// In this tensor.
    #[must_use]
    pub fn tensor(self, tensor: impl Into<String>) -> Self {
        Self {
            tensor: Some(tensor.into()),
            ..self
        }
    }

    /// In these bytes of the file.
    #[must_use]
    pub fn bytes(self, start: u64, end: u64) -> Self {
        Self {
            bytes: Some([start, end]),
            ..self
        }
    }

    /// This was seen.
    #[must_use]
    pub fn seen(self, seen: impl fmt::Display) -> Self {
        Self {
            seen: Some(seen.to_string()),
            ..self
        }
    }

    /// This was wanted.
    #[must_use]
    pub fn wanted(self, wanted: impl fmt::Display) -> Self {
        Self {
            wanted: Some(wanted.to_string()),
            ..self
        }
    }

    /// The kind in words, as in JSON but with spaces.
    pub fn kind_text(&self) -> String {
        let kind = serde_json::to_value(self.kind).ok();
        kind.as_ref()
            .and_then(|k| k.as_str())
            .unwrap_or("finding")
            .replace('_', " ")
    }

    /// Orders findings by severity, place (whole files before tensors) and kind, so that a report
    /// is the same whatever found them first.
    pub fn sort(findings: &mut [Self]) {
        findings.sort_by_cached_key(Self::rank);
    }

    fn rank(&self) -> impl Ord + use<> {
        let place = (
            self.tensor.is_some(),
            self.file.clone(),
            self.bytes,
            self.tensor.clone(),
        );
        (std::cmp::Reverse(self.severity), place, self.kind)
    }

    /// Whether any of them is an error.
    pub fn any_error(findings: &[Self]) -> bool {
        findings.iter().any(|f| f.severity == Severity::Error)
    }
}

/// Text from a file or its name, with control characters escaped: a terminal would obey them.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        self.0.chars().try_for_each(|c| match c.is_control() {
            true => write!(f, "{}", c.escape_debug()),
            false => f.write_char(c),
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind_text())?;
        if let Some(tensor) = &self.tensor {
            write!(f, ": tensor {}", Escaped(tensor))?;
        }
        if let Some(segment) = &self.segment {
            write!(f, ": segment {}", Escaped(segment))?;
        }
        if let Some(file) = &self.file {
            write!(f, ": {}", Escaped(file))?;
        }
        if let Some([start, end]) = self.bytes {
            write!(f, ", bytes {start}..{end}")?;
        }
        if let Some(seen) = &self.seen {
            write!(f, ": {}", Escaped(seen))?;
        }
        if let Some(wanted) = &self.wanted {
            write!(f, "; wanted {}", Escaped(wanted))?;
        }
        Ok(())
    }
}
