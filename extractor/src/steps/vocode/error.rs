use std::path::PathBuf;

/// Why codes are not made sound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VocodeError {
    /// An array of other than whole numbers.
    #[error("{}: holds values of dtype {descr:?}; wanted whole numbers", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// Its dtype as numpy writes it.
        descr: String,
    },
    /// An array of another shape.
    #[error(
        "{}: has shape {shape:?}; wanted [{groups}, frames] or [frames, {groups}]: the model has {groups} codes in a frame",
        path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// Its shape.
        shape: Vec<u64>,
        /// Codes of a frame.
        groups: usize,
    },
    /// A value that no codebook has.
    #[error("{}: code {value} of group {group}, frame {frame}, is no code", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The value, in decimal.
        value: String,
        /// Its group, from 0.
        group: usize,
        /// Its frame, from 0.
        frame: usize,
    },
    /// More sound than the file format can hold.
    #[error("{samples} samples are more than a WAV file can hold")]
    TooLong {
        /// Samples.
        samples: u64,
    },
}
