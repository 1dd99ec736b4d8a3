//! The picture of a run: fetch, copy, compute and stall as lanes over time.
//!
//! Each run is a panel of two plots: its beginning, request by request, and all of it. However many spans there are, the
//! picture stays small: beyond a few hundred in a lane they are drawn as coverage, a column of pixels each.

mod lanes;

use farfeed::telemetry::{Lane, Span};

use self::lanes::{InFlight, Plot, Window};
use crate::sheet::{Anchor, Sheet, Style, nice_above};

/// One run of the pipeline.
pub(crate) struct Run {
    /// What tells it from the others, as in `15 ms`.
    pub(crate) label: String,
    /// A few numbers, a line each.
    pub(crate) notes: Vec<String>,
    /// When the first batch was asked for, in the spans' seconds: where the axis begins.
    pub(crate) begin_s: f64,
    pub(crate) spans: Vec<Span>,
}

const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 28.0;
const HEADER: f64 = 146.0;
const FOOTER: f64 = 58.0;
/// Where lane labels end and the plots begin.
const PLOTS_LEFT: f64 = 208.0;
const OPENING_WIDTH: f64 = 330.0;
const GAP: f64 = 36.0;
const WHOLE_LEFT: f64 = PLOTS_LEFT + OPENING_WIDTH + GAP;
const WHOLE_WIDTH: f64 = WIDTH - MARGIN - WHOLE_LEFT;
const PANEL_GAP: f64 = 26.0;
/// The beginning ends so many steps after the first batch.
const OPENING_STEPS: f64 = 3.0;

/// Colours that stay apart also for the colour-blind, on white and on near-black.
const STYLE: Style = Style {
    light: "
.label { font-size: 24px; font-weight: 600; fill: #1c2430; } .lane { font-size: 11px; }
.fetch, .area { fill: #3c78c3; } .area { fill-opacity: .28; } .edge { fill: none; stroke: #3c78c3; stroke-width: 1.2; stroke-linejoin: round; }
.copy { fill: #8a5fc0; } .compute { fill: #1f9d84; } .compute2 { fill: #62c2ae; } .stall { fill: #d6324a; } .first { fill: #aab2bf; }
",
    dark: "
.label { fill: #e8ecf2; } .fetch, .area { fill: #6ea3e6; } .edge { stroke: #6ea3e6; }
.copy { fill: #b394e6; } .compute { fill: #2fb79b; } .compute2 { fill: #1f7f6d; } .stall { fill: #ff5c72; } .first { fill: #566275; }
",
};

/// The picture as a standalone SVG, for light and dark backgrounds.
pub(crate) fn draw(title: &str, subtitle: &str, runs: &[Run]) -> String {
    let panels: Vec<Vec<Span>> = runs.iter().map(Run::since_begin).collect();
    let whole = panels.iter().flatten().map(|span| span.end_s).fold(0.0, f64::max).max(1e-3);
    let opening = nice_above(panels.iter().map(|spans| opening_s(spans)).fold(0.0, f64::max).max(1e-3)).min(whole);
    let panel_height = lanes::height();
    let height = HEADER + runs.len() as f64 * (panel_height + PANEL_GAP) - PANEL_GAP + FOOTER;

    let mut sheet = Sheet::new(WIDTH, height, title, STYLE);
    sheet.text("title", MARGIN, 42.0, Anchor::Start, title);
    sheet.text("subtitle", MARGIN, 64.0, Anchor::Start, subtitle);
    legend(&mut sheet, 92.0);
    sheet.text("heading", PLOTS_LEFT, HEADER - 12.0, Anchor::Start, "The beginning: each request a line");
    sheet.text("heading", WHOLE_LEFT, HEADER - 12.0, Anchor::Start, "The whole epoch: bytes in flight");
    let plots = [
        Plot { left: PLOTS_LEFT, width: OPENING_WIDTH, window: Window { end_s: opening }, each_request: true },
        Plot { left: WHOLE_LEFT, width: WHOLE_WIDTH, window: Window { end_s: whole }, each_request: false },
    ];
    // One scale for all panels, so that their heights can be compared.
    let in_flight_max = panels.iter().map(|spans| InFlight::most(spans)).fold(InFlight::default(), InFlight::max);
    for (number, (run, spans)) in runs.iter().zip(&panels).enumerate() {
        let top = HEADER + number as f64 * (panel_height + PANEL_GAP);
        gutter(&mut sheet, run, top);
        for plot in &plots {
            plot.draw(&mut sheet, spans, top, in_flight_max);
        }
    }
    for plot in &plots {
        axis(&mut sheet, plot, height - FOOTER, HEADER);
    }
    sheet.finish()
}

impl Run {
    /// Spans on an axis that begins when the first batch was asked for.
    fn since_begin(&self) -> Vec<Span> {
        let shifted = |span: &Span| {
            let (start_s, end_s) = (span.start_s - self.begin_s, span.end_s - self.begin_s);
            Span { start_s: start_s.max(0.0), end_s: end_s.max(0.0), ..*span }
        };
        let finite = |span: &Span| span.start_s.is_finite() && span.end_s.is_finite();
        // What ended before was reading the index.
        self.spans.iter().map(shifted).filter(|span| finite(span) && span.end_s > 0.0).collect()
    }
}

/// When the first few steps are over.
fn opening_s(spans: &[Span]) -> f64 {
    let mut steps = spans.iter().filter(|span| span.lane == Lane::Compute);
    match steps.next() {
        Some(first) => first.start_s + OPENING_STEPS * (first.end_s - first.start_s),
        None => spans.iter().map(|span| span.end_s).fold(0.0, f64::max) / 4.0,
    }
}

fn legend(sheet: &mut Sheet, base: f64) {
    // Widths of the labels, as no font's are known here: generous ones.
    let entries = [
        ("fetch", "fetch: a request, until its last byte", 240.0),
        ("copy", "copy: a batch gathered on the device", 248.0),
        ("compute", "compute: a step, in two shades by turns", 264.0),
        ("first", "waiting for the first batch", 188.0),
        ("stall", "stall: waiting for another", 160.0),
    ];
    let mut x = MARGIN;
    for (class, label, width) in entries {
        sheet.rects(class, &[(x, base - 9.5, 11.0, 11.0)]);
        sheet.text("legend", x + 17.0, base, Anchor::Start, label);
        x += width;
    }
}

fn gutter(sheet: &mut Sheet, run: &Run, top: f64) {
    sheet.text("label", MARGIN, top + 24.0, Anchor::Start, &run.label);
    for (number, note) in run.notes.iter().enumerate() {
        sheet.text("note", MARGIN, top + 46.0 + 17.0 * number as f64, Anchor::Start, note);
    }
    for (label, y) in lanes::labels(top) {
        sheet.text("lane", PLOTS_LEFT - 10.0, y, Anchor::End, label);
    }
}

/// Ticks below the last panel, and a hair line through all of them.
fn axis(sheet: &mut Sheet, plot: &Plot, bottom: f64, top: f64) {
    let end_s = plot.window.end_s;
    let (step, in_ms) = (tick_step(end_s), end_s < 1.0);
    let ticks = (0..=(end_s / step + 1e-9) as usize).map(|n| n as f64 * step);
    for at in ticks {
        let x = plot.x(at);
        sheet.line("grid", x, top, x, bottom);
        let label = if in_ms { format!("{:.0}", at * 1e3) } else { decimal(at, step) };
        sheet.text("tick", x, bottom + 17.0, Anchor::Middle, &label);
    }
    let unit = if in_ms { "milliseconds after asking for the first batch" } else { "seconds" };
    sheet.text("tick", plot.left + plot.width, bottom + 36.0, Anchor::End, unit);
}

/// The smallest 1, 2 or 5 times a power of ten that gives at most eight ticks.
fn tick_step(end: f64) -> f64 {
    nice_above(end / 8.0)
}

fn decimal(value: f64, step: f64) -> String {
    let places = if step >= 1.0 { 0 } else { (-step.log10()).ceil() as usize };
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of `steps` steps with ten requests each, the later ones stalled.
    fn run(steps: u64) -> Run {
        let mut spans = Vec::new();
        let span = |lane, start_s: f64, end_s: f64, id| Span { lane, start_s, end_s, id, bytes: 1000 };
        for step in 0..steps {
            let at = 0.1 + step as f64 * 0.04;
            spans.extend((0..10).map(|n| span(Lane::Fetch, at - 0.05, at + 0.001 * n as f64, step * 10 + n)));
            spans.push(span(Lane::Copy, at, at + 0.001, step));
            spans.push(span(Lane::Compute, at + 0.001, at + 0.04, step));
            spans.push(span(Lane::Stall, at, at + if step % 7 == 6 { 0.001 } else { 0.0 }, step));
        }
        Run { label: "15 ms".into(), notes: vec!["a < b & \"c\"".into()], begin_s: 0.05, spans }
    }

    #[test]
    fn is_well_formed_and_complete() {
        let svg = draw("title <&>", "subtitle", &[run(50), run(3)]);
        let document = roxmltree::Document::parse(&svg).unwrap();
        let of_class = |class: &str| document.descendants().filter(|n| n.attribute("class") == Some(class)).count();
        assert_eq!(of_class("label"), 2);
        assert!(of_class("compute") >= 4 && of_class("copy") >= 4 && of_class("stall") >= 2, "{svg}");
        assert!(svg.contains("a &lt; b &amp; &quot;c&quot;"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn stays_small_however_much_happened() {
        let svg = draw("title", "subtitle", &[run(40_000), run(40_000), run(40_000)]);
        roxmltree::Document::parse(&svg).unwrap();
        assert!(svg.len() < 500_000, "{} bytes", svg.len());
    }

    #[test]
    fn nothing_to_draw_is_drawn() {
        for runs in [vec![], vec![Run { label: "0 ms".into(), notes: vec![], begin_s: 0.0, spans: vec![] }]] {
            let svg = draw("title", "subtitle", &runs);
            roxmltree::Document::parse(&svg).unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf"));
        }
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!([0.3, 2.4, 7.9, 80.0].map(tick_step), [0.05, 0.5, 1.0, 10.0]);
        assert_eq!(
            (decimal(0.5, 0.5), decimal(10.0, 5.0), decimal(0.25, 0.05)),
            ("0.5".into(), "10".into(), "0.25".into())
        );
    }
}
