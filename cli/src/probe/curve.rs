//! The picture of a probe: goodput against connections, a line for each size of request.

use farfeed::probe::{Need, Point, ProbeReport};

use crate::sheet::{Anchor, Sheet, Style, nice_above};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 540.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 872.0;
const TOP: f64 = 132.0;
const BOTTOM: f64 = 474.0;
/// Lines have as many colours; further ones begin again.
const COLOURS: usize = 5;
/// A need that is this much above the best would flatten the curve.
const NEED_SHOWN: f64 = 2.5;

/// Colours that stay apart also for the colour-blind, on white and on near-black.
const STYLE: Style = Style {
    light: "
.curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
.s0 { stroke: #3c78c3; } .s1 { stroke: #c4651a; } .s2 { stroke: #1f9d84; } .s3 { stroke: #8a5fc0; } .s4 { stroke: #7a7f88; }
.d0 { fill: #3c78c3; } .d1 { fill: #c4651a; } .d2 { fill: #1f9d84; } .d3 { fill: #8a5fc0; } .d4 { fill: #7a7f88; }
.ceiling { stroke: #1c2430; stroke-opacity: .55; stroke-dasharray: 6 4; } .need { stroke: #d6324a; stroke-width: 1.4; stroke-dasharray: 2 3; }
.knee { fill: none; stroke: #1c2430; stroke-width: 2; } .note { fill: #1c2430; font-size: 12.5px; } .asked { fill: #d6324a; font-size: 12.5px; }
.note, .asked { paint-order: stroke; stroke: #f4f6f9; stroke-width: 4px; stroke-linejoin: round; }
",
    dark: "
.s0 { stroke: #6ea3e6; } .s1 { stroke: #ec9a57; } .s2 { stroke: #2fb79b; } .s3 { stroke: #b394e6; } .s4 { stroke: #98a2b3; }
.d0 { fill: #6ea3e6; } .d1 { fill: #ec9a57; } .d2 { fill: #2fb79b; } .d3 { fill: #b394e6; } .d4 { fill: #98a2b3; }
.ceiling { stroke: #e8ecf2; } .need { stroke: #ff5c72; } .knee { stroke: #e8ecf2; } .note { fill: #e8ecf2; } .asked { fill: #ff5c72; }
.note, .asked { stroke: #1a202a; }
",
};

/// Where what is drawn.
struct Axes {
    connections_max: f64,
    goodput_max: f64,
    step: f64,
}

impl Axes {
    /// Connections by their logarithm: they are doubled from point to point.
    fn x(&self, connections: usize) -> f64 {
        LEFT + (RIGHT - LEFT) * (connections.max(1) as f64).log2() / self.connections_max.log2().max(1.0)
    }

    fn y(&self, bytes_s: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * bytes_s / self.goodput_max
    }
}

/// The picture as a standalone SVG, for light and dark grounds.
pub(super) fn draw(report: &ProbeReport, need: Option<Need>) -> String {
    let mut sizes: Vec<usize> = report.grid.iter().map(|point| point.request_bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let best = report.best.goodput_bytes_s.max(1.0);
    let shown = need.map(|need| need.bytes_s).filter(|need| *need <= NEED_SHOWN * best);
    // Room for a label above the highest line.
    let top = 1.1 * best.max(shown.unwrap_or(0.0));
    let step = nice_above(top / 6.0);
    let most = report.grid.iter().map(|point| point.connections).max().unwrap_or(1);
    let axes = Axes { connections_max: most as f64, goodput_max: (top / step).ceil() * step, step };

    let title = "Goodput against connections";
    let mut sheet = Sheet::new(WIDTH, HEIGHT, title, STYLE);
    sheet.text("title", LEFT, 40.0, Anchor::Start, title);
    sheet.text("subtitle", LEFT, 62.0, Anchor::Start, &subtitle(report, need, shown));
    legend(&mut sheet, &sizes, 92.0);
    grid(&mut sheet, &axes, most, report.connect.is_some());
    for (number, size) in sizes.iter().enumerate() {
        let mut line: Vec<&Point> = report.grid.iter().filter(|point| point.request_bytes == *size).collect();
        line.sort_unstable_by_key(|point| point.connections);
        let points: Vec<_> =
            line.iter().map(|point| (axes.x(point.connections), axes.y(point.goodput_bytes_s))).collect();
        sheet.curve(&format!("curve s{}", number % COLOURS), &points, None);
        sheet.dots(&format!("d{}", number % COLOURS), 3.4, &points);
    }
    levels(&mut sheet, report, &axes, shown);
    sheet.finish()
}

fn subtitle(report: &ProbeReport, need: Option<Need>, shown: Option<f64>) -> String {
    let mut text = format!("{}: held {}", report.store, report.held(None));
    if let Some(rtt) = report.rtt_s {
        text.push_str(&format!("; {:.1} ms round trip", rtt * 1e3));
    }
    if let (Some(need), None) = (need, shown) {
        text.push_str(&format!("; needed {} MB/s, far above", megabytes(need.bytes_s)));
    }
    text
}

fn legend(sheet: &mut Sheet, sizes: &[usize], base: f64) {
    sheet.text("legend", LEFT, base, Anchor::Start, "requests of");
    for (number, size) in sizes.iter().enumerate() {
        let x = LEFT + 74.0 + 92.0 * number as f64;
        let class = format!("curve s{}", number % COLOURS);
        sheet.line(&class, x, base - 4.0, x + 20.0, base - 4.0);
        sheet.text("legend", x + 27.0, base, Anchor::Start, &size_text(*size));
    }
}

fn grid(sheet: &mut Sheet, axes: &Axes, most: usize, has_connections: bool) {
    sheet.rects("panel", &[(LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP)]);
    for line in 0..=(axes.goodput_max / axes.step).round() as usize {
        let goodput = line as f64 * axes.step;
        let y = axes.y(goodput);
        sheet.line("grid", LEFT, y, RIGHT, y);
        sheet.text("tick", LEFT - 9.0, y + 4.0, Anchor::End, &megabytes(goodput));
    }
    let doublings = std::iter::successors(Some(1), |count| Some(2 * count)).take_while(|count| *count < most);
    for count in doublings.chain([most]) {
        let x = axes.x(count);
        sheet.line("grid", x, TOP, x, BOTTOM);
        sheet.text("tick", x, BOTTOM + 18.0, Anchor::Middle, &count.to_string());
    }
    sheet.text("scale", LEFT - 9.0, TOP - 12.0, Anchor::End, "MB/s");
    let unit = if has_connections { "connections, each with one request" } else { "requests at a time" };
    sheet.text("scale", RIGHT, BOTTOM + 40.0, Anchor::End, unit);
}

/// Lines closer than this leave no room for a label in between.
const CLOSE: f64 = 22.0;

/// The best, what is needed, and the knee: their labels above the curves, the knee's on its own side.
fn levels(sheet: &mut Sheet, report: &ProbeReport, axes: &Axes, need: Option<f64>) {
    let (best, knee) = (report.best.goodput_bytes_s, report.knee);
    let (y, at) = (axes.y(best), need.map(|need| axes.y(need)));
    let (knee_x, knee_y) = (axes.x(knee.connections), axes.y(knee.goodput_bytes_s));
    let knee_is_left = knee_x < (LEFT + RIGHT) / 2.0;
    let (anchor, x) = if knee_is_left { (Anchor::End, RIGHT - 8.0) } else { (Anchor::Start, LEFT + 8.0) };
    sheet.line("ceiling", LEFT, y, RIGHT, y);
    let is_close_above = at.is_some_and(|at| at <= y && y - at < CLOSE);
    let base = if is_close_above { y + 16.0 } else { y - 8.0 };
    sheet.text("note", x, base, anchor, &format!("best {} MB/s", megabytes(best)));
    if let (Some(need), Some(at)) = (need, at) {
        sheet.line("need", LEFT, at, RIGHT, at);
        let is_close_below = at > y && at - y < CLOSE;
        let base = if is_close_below { at + 16.0 } else { at - 8.0 };
        sheet.text("asked", x, base, anchor, &format!("needed {} MB/s", megabytes(need)));
    }
    sheet.dots("knee", 8.0, &[(knee_x, knee_y)]);
    let size = size_text(knee.request_bytes);
    let label = format!("knee: {} × {size}, {} MB/s", knee.connections, megabytes(knee.goodput_bytes_s));
    let (anchor, x) = match knee_x {
        x if x < LEFT + 110.0 => (Anchor::Start, x.max(LEFT + 8.0)),
        x if x > RIGHT - 110.0 => (Anchor::End, x.min(RIGHT - 8.0)),
        x => (Anchor::Middle, x),
    };
    let above = if is_close_above { at.unwrap_or(y).min(y) } else { y };
    sheet.text("note", x, (above - 8.0).min(knee_y - 14.0), anchor, &label);
}

pub(super) fn size_text(bytes: usize) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes as f64 / f64::from(1 << 20)) } else { format!("{} KiB", bytes >> 10) }
}

/// In MB/s: three digits or more, none that says nothing.
fn megabytes(bytes_s: f64) -> String {
    let number = bytes_s / 1e6;
    let places = if number >= 100.0 {
        0
    } else if number >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{number:.places$}");
    if places > 0 { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.0, 1.5e6, 42.04e6, 254.4e6, 2.5e9].map(megabytes), ["0", "1.5", "42", "254", "2500"]);
        assert_eq!([256 << 10, 1 << 20, 3 << 19].map(size_text), ["256 KiB", "1 MiB", "1.5 MiB"]);
    }

    #[test]
    fn the_axes_hold_what_is_drawn() {
        let axes = Axes { connections_max: 64.0, goodput_max: 300e6, step: 50e6 };
        assert_eq!((axes.x(1), axes.x(64), axes.y(0.0), axes.y(300e6)), (LEFT, RIGHT, BOTTOM, TOP));
        assert!((axes.x(8) - (LEFT + RIGHT) / 2.0).abs() < 1e-9);
        let one = Axes { connections_max: 1.0, goodput_max: 1.0, step: 1.0 };
        assert_eq!(one.x(1), LEFT);
    }
}
