//! Why parts are not joined.

use std::path::PathBuf;

/// Why parts are no parts of one pack, or not all of them. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// Parts of another number of parts.
    #[error(
        "{} is part {part} of {of}, but {} is one of {first_of}",
        folder.display(), first.display()
    )]
    OtherCount {
        /// The folder of the part.
        folder: PathBuf,
        /// Which part it is.
        part: u64,
        /// Of how many.
        of: u64,
        /// The first part that was given.
        first: PathBuf,
        /// Of how many that one is.
        first_of: u64,
    },
    /// A part twice.
    #[error("{} and {} are both part {part} of {of}", first.display(), second.display())]
    Duplicate {
        /// Which part.
        part: u64,
        /// Of how many.
        of: u64,
        /// The one that was given first.
        first: PathBuf,
        /// The other one.
        second: PathBuf,
    },
    /// No part, beside a whole pack: the parts were being removed when a run before was killed.
    #[error(
        "{} is no part, and {} holds a pack: it seems that the parts were joined before, and were being removed",
        folder.display(), out.display()
    )]
    Joined {
        /// The folder of the part.
        folder: PathBuf,
        /// That of the pack.
        out: PathBuf,
    },
    /// Not all parts.
    #[error("{} missing of {of}", parts(missing, *count))]
    Missing {
        /// Which are not there.
        missing: Vec<u64>,
        /// How many.
        count: u64,
        /// How many there have to be.
        of: u64,
    },
    /// A part that another version wrote.
    #[error("{} was packed by {seen}, not by {wanted}", folder.display())]
    OtherVersion {
        /// The folder of the part.
        folder: PathBuf,
        /// Name and version of the program that wrote it.
        seen: String,
        /// Those of this build.
        wanted: &'static str,
    },
    /// A part that was packed with other options.
    #[error("{} was packed with {what} {seen}, {} with {wanted}", folder.display(), first.display())]
    OtherOptions {
        /// The folder of the part.
        folder: PathBuf,
        /// Which option.
        what: &'static str,
        /// That of the part.
        seen: String,
        /// The first part that was given.
        first: PathBuf,
        /// That of the first part.
        wanted: String,
    },
    /// A part of another checkpoint.
    #[error("{} is of another checkpoint than {}: {what}", folder.display(), first.display())]
    OtherSource {
        /// The folder of the part.
        folder: PathBuf,
        /// The first part that was given.
        first: PathBuf,
        /// What differs.
        what: String,
    },
    /// A part that was packed by another division of the same work.
    #[error("{} and {} divide the packs in different ways", folder.display(), first.display())]
    OtherShares {
        /// The folder of the part.
        folder: PathBuf,
        /// The first part that was given.
        first: PathBuf,
    },
}

/// Parts that are named one by one at most.
pub(super) const MOST: usize = 20;

/// `part 2 is`, `parts 2 and 5 are`.
fn parts(missing: &[u64], count: u64) -> String {
    match missing {
        [one] => format!("part {one} is"),
        [first, ..] if count > missing.len() as u64 => {
            format!("{count} parts, part {first} the first of them, are")
        }
        [others @ .., last] => {
            let others: Vec<String> = others.iter().map(u64::to_string).collect();
            format!("parts {} and {last} are", others.join(", "))
        }
        [] => "no part is".to_owned(),
    }
}
