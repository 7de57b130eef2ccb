//! Bar charts as SVG.

use std::fmt::Write;

const ROW: usize = 34;
const BAR: usize = 13;
const LABELS: usize = 210;
const WIDTH: f64 = 420.0;
const COLORS: [&str; 2] = ["#2b6cb0", "#90b4dd"];

/// A chart of bars in pairs: for each name two numbers, of which `series` are the names. A line is where both are equal, at 1.
pub fn chart(title: &str, series: [&str; 2], bars: &[(String, [Option<f64>; 2])]) -> String {
    let longest = bars.iter().flat_map(|(_, numbers)| numbers.iter().flatten()).fold(1.0, |a: f64, b| a.max(*b));
    let scale = |number: f64| number / longest * WIDTH;
    let (width, height) = (LABELS + WIDTH as usize + 60, 60 + bars.len() * ROW);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<text x=\"8\" y=\"20\" font-size=\"14\">{}</text>\n",
        escaped(title)
    );
    for (index, (name, color)) in series.iter().zip(COLORS).enumerate() {
        let x = LABELS + index * 140;
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"30\" width=\"12\" height=\"12\" fill=\"{color}\"/><text x=\"{}\" y=\"41\">{}</text>",
            x + 18,
            escaped(name)
        );
    }
    for (row, (name, numbers)) in bars.iter().enumerate() {
        let top = 52 + row * ROW;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LABELS - 8,
            top + BAR + 4,
            escaped(name)
        );
        for (index, (number, color)) in numbers.iter().zip(COLORS).enumerate() {
            let Some(number) = number else { continue };
            let (y, bar) = (top + index * BAR, scale(*number));
            let _ = writeln!(
                svg,
                "<rect x=\"{LABELS}\" y=\"{y}\" width=\"{bar:.1}\" height=\"{BAR}\" fill=\"{color}\"/>\
                 <text x=\"{:.1}\" y=\"{}\">{number:.2}</text>",
                LABELS as f64 + bar + 4.0,
                y + 11
            );
        }
    }
    let one = LABELS as f64 + scale(1.0);
    let _ = writeln!(
        svg,
        "<line x1=\"{one:.1}\" x2=\"{one:.1}\" y1=\"48\" y2=\"{}\" stroke=\"#555\"/>\n</svg>",
        height - 6
    );
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
