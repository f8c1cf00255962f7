use segpack_manifests::documents::{SegmentEntry, TensorEntry};

/// A line of `ls`, without its line end: stored bytes, codec, name.
pub(crate) fn segment(segment: &SegmentEntry) -> String {
    format!(
        "{:>12}  {:<5} {}",
        segment.stored_length,
        segment.codec.name(),
        segment.id
    )
}

/// A line of `ls --tensors`, without its line end: bytes, dtype, shape, name.
pub(crate) fn tensor(tensor: &TensorEntry) -> String {
    let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
    let (shape, dtype) = (shape.join("x"), tensor.dtype.to_string());
    format!(
        "{:>12}  {dtype:<5} {shape:<14} {}",
        tensor.length, tensor.name
    )
}
