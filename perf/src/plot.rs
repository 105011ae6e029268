//! Rows and their bounds as a picture: piece size from left to right, speed upwards.
//!
//! What the stack reaches is drawn through, bounds are dashed. A colour is a way to move bytes; where there are
//! two directions, marks of the first one are full and of the others empty. Names stand in a list beside the chart, in the
//! order of the lines' right ends, so that none can cover another.

use std::{fmt::Write, fs, path::Path};

use crate::{
    failure::Failure,
    rows::{Row, size},
};

/// Size of the chart itself, and what is left around it for labels.
const CHART: (f64, f64) = (520.0, 340.0);
const LEFT: f64 = 64.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 56.0;
/// Of the list of names, and of a line of it.
const LIST: f64 = 250.0;
const LINE: f64 = 22.0;
/// Two labels of sizes need this much between them.
const APART: f64 = 52.0;

/// Told apart by people who see colours differently: Okabe and Ito's, without the one too light on white.
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000",
];

/// One line.
#[derive(Debug)]
struct Series {
    op: &'static str,
    /// What moved the bytes.
    by: String,
    is_bound: bool,
    /// Piece size and speed.
    points: Vec<(f64, f64)>,
}

/// Writes a picture.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let written = fs::write(path, text);
    written.map_err(|error| Failure::Input(format!("cannot write {}: {error}", path.display())))
}

/// The picture of rows that share a unit with the first one.
pub(crate) fn svg(rows: &[Row]) -> String {
    let unit = rows.first().map_or("", |row| row.figures.unit());
    let mut lines = series(rows, unit);
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines.sort_by(|a, b| last(b).total_cmp(&last(a)));
    draw(&lines, unit)
}

fn last(series: &Series) -> f64 {
    series.points.last().map_or(0.0, |point| point.1)
}

fn series(rows: &[Row], unit: &str) -> Vec<Series> {
    let mut lines: Vec<Series> = Vec::new();
    let mut add = |row: &Row, by: &str, is_bound: bool, speed: f64| {
        let point = (row.piece as f64, speed);
        match lines
            .iter_mut()
            .find(|line| line.op == row.op && line.by == by)
        {
            Some(line) => line.points.push(point),
            None => lines.push(Series {
                op: row.op,
                by: by.to_owned(),
                is_bound,
                points: vec![point],
            }),
        }
    };
    for row in rows.iter().filter(|row| row.figures.unit() == unit) {
        add(
            row,
            &row.transport,
            row.kind == "bound",
            row.figures.drawn(),
        );
        for bound in &row.bounds {
            add(row, &bound.name, true, bound.figures.drawn());
        }
    }
    lines
}

/// From a piece size and a speed to a place in the chart.
struct Scale {
    /// Logarithms of the smallest and the largest size.
    from: f64,
    to: f64,
    /// What the upper edge stands for.
    most: f64,
}

impl Scale {
    fn of(lines: &[Series]) -> Self {
        let points = || lines.iter().flat_map(|line| &line.points);
        let logs = || points().map(|point| point.0.log2());
        let most = points().map(|point| point.1).fold(0.0, f64::max);
        let ticks = (most / step(most)).ceil().max(1.0);
        Self {
            from: logs().fold(f64::INFINITY, f64::min),
            to: logs().fold(f64::NEG_INFINITY, f64::max),
            most: ticks * step(most),
        }
    }

    fn x(&self, piece: f64) -> f64 {
        if self.to > self.from {
            // Not on the edges.
            let inner = CHART.0 - 48.0;
            LEFT + 24.0 + inner * (piece.log2() - self.from) / (self.to - self.from)
        } else {
            LEFT + CHART.0 / 2.0
        }
    }

    fn y(&self, speed: f64) -> f64 {
        TOP + CHART.1 * (1.0 - speed / self.most)
    }
}

/// A round distance between lines, of which `most` has at most eight.
fn step(most: f64) -> f64 {
    if !(most > 0.0 && most.is_finite()) {
        return 1.0;
    }
    let unit = 10_f64.powf((most / 8.0).log10().floor());
    let round = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * unit);
    round
        .into_iter()
        .find(|step| most / step <= 8.0 + 1e-9)
        .unwrap_or(10.0 * unit)
}

fn draw(lines: &[Series], unit: &str) -> String {
    let list = TOP + LINE * lines.len() as f64;
    let (right, bottom) = (LEFT + CHART.0, TOP + CHART.1);
    let (width, height) = (right + LIST, (bottom + BOTTOM).max(list + 8.0));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{unit} by size of a piece, medians</text>\n"
    );
    let mut add = |text: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = out.write_fmt(text);
    };
    if lines.is_empty() {
        add(format_args!("</svg>\n"));
        return out;
    }
    let scale = Scale::of(lines);
    let distance = step(scale.most);
    for n in 0..=(scale.most / distance).round() as u32 {
        let speed = f64::from(n) * distance;
        let y = scale.y(speed);
        let label = (speed * 1e6).round() / 1e6;
        add(format_args!(
            "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>\n",
            LEFT - 8.0,
            y + 4.5
        ));
    }
    let mut sizes: Vec<f64> = lines
        .iter()
        .flat_map(|line| line.points.iter().map(|point| point.0))
        .collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    let mut free = 0.0;
    for piece in sizes {
        let x = scale.x(piece);
        add(format_args!(
            "<path d=\"M{x:.1} {bottom}v5\" stroke=\"#222\"/>"
        ));
        if x >= free {
            add(format_args!(
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 21.0,
                size(piece as u64)
            ));
            free = x + APART;
        }
        add(format_args!("\n"));
    }
    add(format_args!(
        "<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"#222\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">bytes of a piece</text>\n",
        LEFT + CHART.0 / 2.0,
        bottom + 44.0
    ));
    let mut ways: Vec<&str> = lines.iter().map(|line| &*line.by).collect();
    ways.sort_unstable();
    ways.dedup();
    for (n, line) in lines.iter().enumerate() {
        let way = ways
            .iter()
            .position(|by| *by == line.by)
            .unwrap_or_default();
        let colour = COLOURS[way % COLOURS.len()];
        let is_first = line.op == lines.iter().map(|line| line.op).max().unwrap_or_default();
        let fill = if is_first { colour } else { "#fff" };
        let mark = format!("r=\"3.5\" fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"2\"");
        let dash = if line.is_bound {
            " stroke-dasharray=\"6 4\""
        } else {
            ""
        };
        let places: Vec<String> = line
            .points
            .iter()
            .map(|point| format!("{:.1},{:.1}", scale.x(point.0), scale.y(point.1)))
            .collect();
        add(format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>\n",
            places.join(" ")
        ));
        for (x, y) in places.iter().filter_map(|place| place.split_once(',')) {
            add(format_args!("<circle cx=\"{x}\" cy=\"{y}\" {mark}/>"));
        }
        let (x, y) = (right + 20.0, TOP + LINE * n as f64 + 6.0);
        add(format_args!(
            "\n<path d=\"M{x} {y}h26\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>\
             <circle cx=\"{}\" cy=\"{y}\" {mark}/>\
             <text x=\"{}\" y=\"{}\">{}</text>\n",
            x + 13.0,
            x + 34.0,
            y + 4.5,
            escaped(&format!("{} {}", line.op, line.by))
        ));
    }
    add(format_args!("</svg>\n"));
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(by: &str, points: &[(f64, f64)]) -> Series {
        Series {
            op: "put",
            by: by.to_owned(),
            is_bound: by != "tcp",
            points: points.to_vec(),
        }
    }

    fn numbers<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = f64> {
        let parts = text.split(before).skip(1);
        parts.map(|part| part.split('"').next().unwrap().parse().unwrap())
    }

    #[test]
    fn steps_are_round_and_few() {
        let steps = [0.07, 0.9, 7.3, 8.0, 8.1, 58.0, 1300.0].map(step);
        assert_eq!(steps, [0.01, 0.2, 1.0, 1.0, 2.0, 10.0, 200.0]);
        assert_eq!(step(0.0), 1.0);
    }

    #[test]
    fn every_point_lies_within_the_chart() {
        let sizes = [256.0, 4096.0, 65536.0, 1048576.0];
        let of = |speeds: [f64; 4]| sizes.into_iter().zip(speeds).collect::<Vec<_>>();
        let lines = [
            line("tcp", &of([0.2, 2.0, 4.0, 4.1])),
            line("a < b & c", &of([9.0, 10.5, 12.25, 13.0])),
        ];
        let text = draw(&lines, "GB/s");
        assert_eq!(text.matches("<polyline").count(), 2);
        assert_eq!(text.matches("stroke-dasharray").count(), 2);
        assert!(text.contains("a &lt; b &amp; c") && text.contains(">64 KiB<"));
        assert!(text.contains(">14<") && !text.contains("NaN"));
        for x in numbers(&text, "cx=\"") {
            assert!((LEFT..LEFT + CHART.0 + LIST).contains(&x));
        }
        for y in numbers(&text, "cy=\"") {
            assert!((TOP..=TOP + CHART.1).contains(&y));
        }
    }

    #[test]
    fn sizes_close_together_share_a_label_and_one_alone_is_in_the_middle() {
        let near: Vec<(f64, f64)> = (0..40)
            .map(|n| (f64::from(1 << 20) + 8.0 * f64::from(n), 1.0))
            .collect();
        let labels = draw(&[line("tcp", &near)], "GB/s")
            .matches("text-anchor=\"middle\"")
            .count();
        assert!(labels <= 1 + (CHART.0 / APART) as usize, "{labels} labels");
        let alone = draw(&[line("tcp", &[(256.0, 20.0)])], "p50, µs");
        assert!(
            alone.contains(&format!("cx=\"{:.1}\"", LEFT + CHART.0 / 2.0)),
            "{alone}"
        );
        assert!(!alone.contains("NaN") && !alone.contains("inf"));
        assert!(svg(&[]).ends_with("</svg>\n"));
    }
}
