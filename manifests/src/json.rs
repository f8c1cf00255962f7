//! How documents are written: deterministic, small, and with one list element per line for `grep`
//! and `diff`.

use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter};

/// Compact JSON, but a new line before every key of the document and every element of its lists.
#[derive(Default)]
struct LineFormatter {
    depth: usize,
    compact: CompactFormatter,
}

/// Keys of the document are at depth 1, elements of its lists at depth 2; deeper things stay on
/// their line.
const BROKEN: usize = 2;

impl LineFormatter {
    fn new_line<W: ?Sized + io::Write>(&self, to: &mut W, first: bool) -> io::Result<()> {
        if !first {
            to.write_all(b",")?;
        }
        match self.depth {
            1 => to.write_all(b"\n"),
            BROKEN => to.write_all(b"\n "),
            _ => Ok(()),
        }
    }
}

impl Formatter for LineFormatter {
    fn begin_array<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.depth += 1;
        self.compact.begin_array(to)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.depth -= 1;
        self.compact.end_array(to)
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.new_line(to, first)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.depth += 1;
        self.compact.begin_object(to)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.depth -= 1;
        if self.depth == 0 {
            to.write_all(b"\n")?;
        }
        self.compact.end_object(to)
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if self.depth == 1 {
            self.new_line(to, first)
        } else {
            self.compact.begin_object_key(to, first)
        }
    }
}

/// Writes a document and a line end.
///
/// # Errors
/// Where `to` cannot be written to.
pub fn write_document(mut to: impl io::Write, document: &impl Serialize) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(&mut to, LineFormatter::default());
    document.serialize(&mut serializer)?;
    to.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn lists_have_one_element_per_line() {
        let mut bytes = Vec::new();
        let document = serde_json::json!({"a": [{"b": [1, 2], "c": {"d": 3}}, {"e": []}], "f": {"g": 1, "h": 2}, "i": []});
        super::write_document(&mut bytes, &document).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let wanted = "{\n\"a\":[\n {\"b\":[1,2],\"c\":{\"d\":3}},\n {\"e\":[]}],\n\"f\":{\"g\":1,\"h\":2},\n\"i\":[]\n}\n";
        assert_eq!(text, wanted);
    }
}
