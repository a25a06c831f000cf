//! Columns of a terminal: a Chinese character takes two, an escape none.

/// The width of each column.
pub fn widths<R: AsRef<[String]>>(rows: &[R]) -> Vec<usize> {
    let columns = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
    let cells = |column: usize| rows.iter().filter_map(move |row| row.as_ref().get(column));
    (0..columns)
        .map(|column| cells(column).map(|cell| console::measure_text_width(cell)).max().unwrap_or(0))
        .collect()
}

/// A cell filled up to its column's width.
pub fn padded(cell: &str, width: usize) -> String {
    console::pad_str(cell, width, console::Alignment::Left, None).into_owned()
}
