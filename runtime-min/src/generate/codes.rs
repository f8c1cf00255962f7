//! Codes of sound: what a talker says, and a vocoder makes audible.

use std::ops::ControlFlow;

/// Codes of some frames, each of one code per group: group 0 is the talker's own, the others are
/// the code predictor's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Codes {
    groups: usize,
    /// `[frames, groups]`: frame by frame, as they come.
    values: Vec<u32>,
}

/// Codes that do not fit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodesError {
    /// A frame has another number of codes.
    #[error("a frame has {seen} codes; wanted {wanted}, one for each group")]
    Frame {
        /// Codes of the frame.
        seen: usize,
        /// Groups.
        wanted: usize,
    },
    /// The codes are no whole number of frames.
    #[error("{seen} codes are no whole number of frames of {groups} groups")]
    Shape {
        /// Codes in all.
        seen: usize,
        /// Groups.
        groups: usize,
    },
}

impl Codes {
    /// No frames yet.
    #[must_use]
    pub fn new(groups: usize) -> Self {
        Self {
            groups,
            values: Vec::new(),
        }
    }

    /// Of `[groups, frames]`, row-major: all codes of a group, then those of the next.
    ///
    /// # Errors
    /// `Shape` where the codes are no whole number of frames.
    pub fn from_rows(groups: usize, rows: &[u32]) -> Result<Self, CodesError> {
        let seen = rows.len();
        if groups == 0 || !seen.is_multiple_of(groups) {
            return Err(CodesError::Shape { seen, groups });
        }
        let frames = seen / groups;
        let mut values = Vec::with_capacity(seen);
        for frame in 0..frames {
            values.extend((0..groups).map(|group| rows[group * frames + frame]));
        }
        Ok(Self { groups, values })
    }

    /// Groups of a frame.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Frames.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.values.len().checked_div(self.groups).unwrap_or(0)
    }

    /// The codes of a frame, `[groups]`.
    ///
    /// # Panics
    /// Where there is no such frame.
    #[must_use]
    pub fn frame(&self, frame: usize) -> &[u32] {
        &self.values[frame * self.groups..(frame + 1) * self.groups]
    }

    /// All codes, `[groups, frames]`, row-major.
    #[must_use]
    pub fn to_rows(&self) -> Vec<u32> {
        let mut rows = Vec::with_capacity(self.values.len());
        for group in 0..self.groups {
            rows.extend(self.values.iter().skip(group).step_by(self.groups));
        }
        rows
    }

    /// All codes, `[frames, groups]`, row-major: frame by frame.
    #[must_use]
    pub fn by_frame(&self) -> &[u32] {
        &self.values
    }

    /// Adds a frame, `[groups]`.
    ///
    /// # Errors
    /// `Frame` where it has another number of codes.
    pub fn push(&mut self, frame: &[u32]) -> Result<(), CodesError> {
        if frame.len() != self.groups {
            return Err(CodesError::Frame {
                seen: frame.len(),
                wanted: self.groups,
            });
        }
        self.values.extend_from_slice(frame);
        Ok(())
    }
}

/// Gets the codes of speech frame by frame, while the next frame is computed by nobody else: what
/// takes long belongs on a thread of its own. A closure that takes a frame's codes, `[groups]`, is
/// one.
pub trait CodeSink: Send {
    /// The codes of the next frame. `Break` ends the speech.
    fn frame(&mut self, codes: &[u32]) -> ControlFlow<()>;
}

impl<F: FnMut(&[u32]) -> ControlFlow<()> + Send> CodeSink for F {
    fn frame(&mut self, codes: &[u32]) -> ControlFlow<()> {
        self(codes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_frames_and_rows_again() {
        let rows = [1, 2, 3, 10, 20, 30];
        let codes = Codes::from_rows(2, &rows).unwrap();
        assert_eq!((codes.groups(), codes.frames()), (2, 3));
        assert_eq!(
            (codes.frame(0), codes.frame(2)),
            (&[1, 10][..], &[3, 30][..])
        );
        assert_eq!(codes.to_rows(), rows);
        assert_eq!(codes.by_frame(), [1, 10, 2, 20, 3, 30]);
        let mut grown = Codes::new(2);
        for frame in 0..3 {
            grown.push(codes.frame(frame)).unwrap();
        }
        assert_eq!(grown, codes);
    }

    #[test]
    fn codes_that_are_no_whole_frames_are_refused() {
        let shape = |seen, groups| Err(CodesError::Shape { seen, groups });
        assert_eq!(Codes::from_rows(2, &[1, 2, 3]), shape(3, 2));
        assert_eq!(Codes::from_rows(0, &[1]), shape(1, 0));
        let frame = CodesError::Frame { seen: 1, wanted: 2 };
        assert_eq!(Codes::new(2).push(&[1]), Err(frame));
        assert_eq!(Codes::new(0).frames(), 0);
    }
}
