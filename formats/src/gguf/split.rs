//! Models in several files, as llama.cpp's `gguf-split` names them and its loader wants them.

use super::value::Value;

/// Number of the file, from 0.
pub const SPLIT_NO: &str = "split.no";
/// Number of files.
pub const SPLIT_COUNT: &str = "split.count";
/// Tensors in all files together.
pub const SPLIT_TENSORS_COUNT: &str = "split.tensors.count";

/// Most files of a model: names count with five digits, `split.no` and `split.count` with 16 bits.
pub const MAX_FILES: usize = u16::MAX as usize;

/// Name of a file, `number` counted from 0: `STEM-00001-of-00003.gguf`.
///
/// Source: `llama_split_path` in llama.cpp, `"%s-%05d-of-%05d.gguf"`.
pub fn split_name(stem: &str, number: usize, files: usize) -> String {
    format!("{stem}-{:05}-of-{files:05}.gguf", number + 1)
}

/// What each file of a split model says of itself. The first one holds the model's metadata as
/// well, the others nothing else. Types as in llama.cpp (`gguf_set_val_u16`, `gguf_set_val_i32`),
/// which refuses others.
///
/// Returns none where the counts do not fit those types.
pub fn split_metadata(number: usize, files: usize, tensors: usize) -> Option<[(String, Value); 3]> {
    Some([
        (SPLIT_NO.to_owned(), Value::U16(u16::try_from(number).ok()?)),
        (
            SPLIT_COUNT.to_owned(),
            Value::U16(u16::try_from(files).ok()?),
        ),
        (
            SPLIT_TENSORS_COUNT.to_owned(),
            Value::I32(i32::try_from(tensors).ok()?),
        ),
    ])
}
