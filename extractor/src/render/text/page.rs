use std::fmt::Display;

use comfy_table::presets;
use comfy_table::{CellAlignment, Table};

/// Text that grows line by line.
#[derive(Debug, Default)]
pub(super) struct Page(String);

impl Page {
    pub(super) fn line(&mut self, line: impl Display) {
        self.0.push_str(&line.to_string());
        self.0.push('\n');
    }

    pub(super) fn blank(&mut self) {
        self.0.push('\n');
    }

    /// A [`table`]; nothing where it has no rows.
    pub(super) fn table(&mut self, left_columns: usize, header: &[&str], rows: Vec<Vec<String>>) {
        if !rows.is_empty() {
            self.line(table(left_columns, header, rows));
        }
    }

    /// Text that ends with a line end already.
    pub(super) fn append(&mut self, text: &str) {
        self.0.push_str(text);
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }
}

/// A table without rules: the first columns aligned left, the others right.
fn table(left_columns: usize, header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.to_vec())
        .add_rows(rows);
    for (i, column) in table.column_iter_mut().enumerate() {
        let (alignment, padding) = if i < left_columns {
            (CellAlignment::Left, (0, 2))
        } else {
            (CellAlignment::Right, (2, 0))
        };
        column.set_padding(padding);
        column.set_cell_alignment(alignment);
    }
    table.trim_fmt()
}
