//! `imgconv map --plot`: the disk as a picture.

use std::fmt::Write as _;
use std::path::Path;

use clap::ValueEnum;
use diskimage::{Allocation, Image, Name, Plot, Result};

use crate::location;
use crate::output::{self, Style, human_size};

/// Form of the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum How {
    Text,
    Svg,
}

/// Rows of the picture.
const ROWS: usize = 16;
/// Characters in a row of a terminal whose width is not known.
const WIDTH: usize = 80;
/// Cells in a row of an SVG, and their width and height in its units.
const SVG_WIDTH: usize = 128;
const CELL_WIDTH: usize = 6;
const CELL_HEIGHT: usize = 18;

/// What the bytes of a cell can be.
struct Kind {
    name: &'static str,
    /// Of a cell of which at least half is stored, or that has nothing else.
    symbol: char,
    color: &'static str,
    bytes: fn(&Allocation) -> u64,
}

/// First those that are stored.
static KINDS: [Kind; 6] = [
    Kind { name: "data", symbol: '█', color: "#2b5c8a", bytes: |cell| cell.data },
    Kind { name: "compressed", symbol: '▓', color: "#6a4c93", bytes: |cell| cell.compressed },
    Kind { name: "in a backing file", symbol: '▒', color: "#c9822b", bytes: |cell| cell.backing },
    Kind { name: "zeros", symbol: '-', color: "#b8c4ce", bytes: |cell| cell.zero },
    Kind { name: "not used by the guest", symbol: '·', color: "#a9cf9a", bytes: |cell| cell.free },
    Kind { name: "unallocated", symbol: ' ', color: "#eef1f4", bytes: |cell| cell.unallocated },
];
const STORED: usize = 3;

/// The symbol of a cell of which less than half is stored.
const PARTLY: char = '▄';

/// The kind of a cell: of what is stored, if anything is, that of most bytes; and whether it is less than half of the cell.
fn kind_of(cell: &Allocation) -> (&'static Kind, bool) {
    let len: u64 = KINDS.iter().map(|kind| (kind.bytes)(cell)).sum();
    let stored = cell.stored();
    let kinds = if stored > 0 { &KINDS[..STORED] } else { &KINDS[STORED..] };
    let most = |a: &'static Kind, b: &'static Kind| if (b.bytes)(cell) > (a.bytes)(cell) { b } else { a };
    (kinds.iter().reduce(most).unwrap_or(&KINDS[0]), stored > 0 && stored < len - stored)
}

/// Prints the picture of the disk in `file`.
pub fn print(image: &Image, how: How, style: Style, file: &Path) -> Result<()> {
    match (style, how) {
        (Style::Json, _) => output::print_json(&image.plot(ROWS * WIDTH)?),
        (Style::Human, How::Text) => {
            let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
            // Up to what the widest terminals have, and so that the offsets of the rows fit.
            let width = columns.unwrap_or(WIDTH).clamp(20, 1000) - OFFSET_WIDTH - 2;
            output::print(&text(&image.plot(width * ROWS)?, width))
        }
        (Style::Human, How::Svg) => {
            let name = Name::from(&*location::shown(file)).to_string();
            output::print(&svg(&image.plot(SVG_WIDTH * ROWS)?, &name))
        }
    }
}

/// Characters of the offset at the start of a row.
const OFFSET_WIDTH: usize = 9;

fn text(plot: &Plot, width: usize) -> String {
    let mut text = String::new();
    for (row, cells) in plot.cells.chunks(width).enumerate() {
        let offset = plot.cell_len.saturating_mul((row * width) as u64);
        let symbols: String = cells.iter().map(symbol).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:>OFFSET_WIDTH$} {symbols}|", human_size(offset));
    }
    let _ = writeln!(text, "\n{} in each character:", human_size(plot.cell_len));
    for kind in present(&plot.total) {
        let _ = writeln!(text, "{} {}", kind.symbol, legend(kind, &plot.total));
    }
    if plot.cells.iter().any(|cell| kind_of(cell).1) {
        let _ = writeln!(text, "{PARTLY} less than half of it stored");
    }
    text
}

fn symbol(cell: &Allocation) -> char {
    match kind_of(cell) {
        (_, true) => PARTLY,
        (kind, false) => kind.symbol,
    }
}

/// The kinds that the disk has.
fn present(total: &Allocation) -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(|kind| (kind.bytes)(total) > 0)
}

fn legend(kind: &Kind, total: &Allocation) -> String {
    let (bytes, len) = ((kind.bytes)(total), KINDS.iter().map(|kind| (kind.bytes)(total)).sum::<u64>());
    format!("{}: {} ({:.1}%)", kind.name, human_size(bytes), bytes as f64 * 100.0 / len as f64)
}

/// A grid of cells with its legend. Equal cells in a row are one rectangle.
fn svg(plot: &Plot, name: &str) -> String {
    let kinds: Vec<_> = present(&plot.total).collect();
    let rows = plot.cells.len().div_ceil(SVG_WIDTH);
    let (width, grid) = (SVG_WIDTH * CELL_WIDTH, rows * CELL_HEIGHT);
    let height = grid + (kinds.len() + 2) * CELL_HEIGHT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>{}</title>\n",
        escaped(name)
    );
    for (row, cells) in plot.cells.chunks(SVG_WIDTH).enumerate() {
        let same =
            |a: &Allocation, b: &Allocation| kind_of(a).0.name == kind_of(b).0.name && kind_of(a).1 == kind_of(b).1;
        let mut column = 0;
        for run in cells.chunk_by(same) {
            if let Some((kind, is_partly)) = run.first().map(kind_of) {
                let (x, y, run) = (column * CELL_WIDTH, row * CELL_HEIGHT, run.len() * CELL_WIDTH);
                let opacity = if is_partly { " fill-opacity=\"0.4\"" } else { "" };
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{run}\" height=\"{}\" fill=\"{}\"{opacity}/>",
                    CELL_HEIGHT - 1,
                    kind.color
                );
            }
            column += run.len();
        }
    }
    let line = |index: usize| grid + (index + 1) * CELL_HEIGHT;
    for (index, kind) in kinds.iter().enumerate() {
        let (y, color, text) = (line(index), kind.color, legend(kind, &plot.total));
        let _ = writeln!(svg, "<rect x=\"0\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{color}\"/>", y - 11);
        let _ = writeln!(svg, "<text x=\"18\" y=\"{y}\">{text}</text>");
    }
    let y = line(kinds.len());
    let _ = writeln!(
        svg,
        "<text x=\"0\" y=\"{y}\">{} in each cell; pale: less than half of it stored</text>\n</svg>",
        human_size(plot.cell_len)
    );
    svg
}

/// The text in XML, which has no control characters.
fn escaped(text: &str) -> String {
    output::printable(text).replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(data: u64, compressed: u64, zero: u64, unallocated: u64) -> Allocation {
        let mut cell = Allocation::default();
        (cell.data, cell.compressed, cell.zero, cell.unallocated) = (data, compressed, zero, unallocated);
        cell
    }

    #[test]
    fn a_cell_is_what_most_of_it_is() {
        for (counts, expected) in [
            ((8, 0, 0, 0), '█'),
            ((4, 0, 4, 0), '█'),
            ((3, 0, 5, 0), '▄'),
            ((2, 3, 0, 3), '▓'),
            ((0, 0, 3, 5), ' '),
            ((0, 0, 4, 4), '-'),
            ((0, 0, 0, 0), '-'),
        ] {
            assert_eq!(symbol(&cell(counts.0, counts.1, counts.2, counts.3)), expected, "{counts:?}");
        }
    }
}
