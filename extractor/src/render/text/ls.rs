use segpack_manifests::documents::{SegmentEntry, TensorEntry};

use super::numbers::{Sizes, counted};

/// A line of `ls`, without its line end: stored bytes, codec, name.
pub(crate) fn segment(segment: &SegmentEntry, sizes: Sizes) -> String {
    format!(
        "{:>12}  {:<5} {}",
        size(segment.stored_length, sizes),
        segment.codec.name(),
        segment.id
    )
}

/// A line of `ls --tensors`, without its line end: bytes, dtype, shape, name.
pub(crate) fn tensor(tensor: &TensorEntry, sizes: Sizes) -> String {
    let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
    let (shape, dtype) = (shape.join("x"), tensor.dtype.to_string());
    format!(
        "{:>12}  {dtype:<5} {shape:<14} {}",
        size(tensor.length, sizes),
        tensor.name
    )
}

/// Sums over what was listed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Total {
    /// Lines.
    pub count: u64,
    /// Stored bytes.
    pub stored: u64,
    /// Bytes of tensors.
    pub raw: u64,
}

/// The last line of `ls --sum`, without its line end.
pub(crate) fn total(total: Total, what: &str, sizes: Sizes) -> String {
    let count = counted(total.count, what);
    let raw = match total.raw == total.stored {
        true => String::new(),
        false => format!(" ({} of tensors)", sizes.bytes(total.raw)),
    };
    format!("{:>12}  total of {count}{raw}", size(total.stored, sizes))
}

/// Digits alone where sizes are exact: programs read them.
fn size(n: u64, sizes: Sizes) -> String {
    if sizes.exact {
        n.to_string()
    } else {
        sizes.cell(n)
    }
}
