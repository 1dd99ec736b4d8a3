//! What pictures are drawn on: a small writer of SVG.

use std::fmt::Write;

/// Where a text is held.
#[derive(Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// Left, top, width, height.
pub(crate) type Rect = (f64, f64, f64, f64);

pub(crate) struct Sheet {
    text: String,
}

/// Classes that a picture adds to those of every sheet, on light grounds and what differs on dark ones. No variables: not every viewer
/// knows them.
#[derive(Clone, Copy)]
pub(crate) struct Style {
    pub(crate) light: &'static str,
    pub(crate) dark: &'static str,
}

const LIGHT: &str = "
text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif; font-size: 12px; fill: #5d6778; }
.title { font-size: 21px; font-weight: 600; } .subtitle { font-size: 13px; }
.title, .heading { fill: #1c2430; } .legend, .tick, .scale { font-size: 11px; }
.ground { fill: #ffffff; } .panel { fill: #f4f6f9; } .grid { stroke: #1c2430; stroke-opacity: .1; }
";
const DARK: &str = "
text { fill: #98a2b3; } .title, .heading { fill: #e8ecf2; }
.ground { fill: #12161d; } .panel { fill: #1a202a; } .grid { stroke: #e8ecf2; }
";

impl Sheet {
    pub(crate) fn new(width: f64, height: f64, title: &str, style: Style) -> Self {
        let mut sheet = Sheet { text: String::new() };
        let (w, h) = (number(width), number(height));
        sheet.push(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" role=\"img\">\n<title>{}</title>\n<style>{LIGHT}{}@media (prefers-color-scheme: dark) {{{DARK}{}}}\n</style>\n",
            escape(title),
            style.light,
            style.dark
        ));
        sheet.rects("ground", &[(0.0, 0.0, width, height)]);
        sheet
    }

    pub(crate) fn text(&mut self, class: &str, x: f64, y: f64, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let (x, y, text) = (number(x), number(y), escape(text));
        self.push(format_args!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\"{anchor}>{text}</text>\n"));
    }

    pub(crate) fn line(&mut self, class: &str, x1: f64, y1: f64, x2: f64, y2: f64) {
        let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(number);
        self.push(format_args!("<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>\n"));
    }

    /// All of them as one path: a third of the size of as many elements.
    pub(crate) fn rects(&mut self, class: &str, rects: &[Rect]) {
        self.faint_rects(class, 1.0, rects);
    }

    pub(crate) fn faint_rects(&mut self, class: &str, opacity: f64, rects: &[Rect]) {
        if rects.is_empty() {
            return;
        }
        self.push(format_args!("<path class=\"{class}\""));
        if opacity < 1.0 {
            self.push(format_args!(" opacity=\"{}\"", number(opacity)));
        }
        self.push(format_args!(" d=\""));
        for rect in rects {
            let [x, y, w, h] = [rect.0, rect.1, rect.2, rect.3].map(number);
            self.push(format_args!("M{x} {y}h{w}v{h}h-{w}z"));
        }
        self.push(format_args!("\"/>\n"));
    }

    /// A line through points, and down to `base` where it is an area.
    pub(crate) fn curve(&mut self, class: &str, points: &[(f64, f64)], base: Option<f64>) {
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
        self.push(format_args!("<path class=\"{class}\" d=\"M{} {}", number(first.0), number(first.1)));
        for (x, y) in &points[1..] {
            self.push(format_args!("L{} {}", number(*x), number(*y)));
        }
        if let Some(base) = base {
            let base = number(base);
            self.push(format_args!("L{} {base}L{} {base}z", number(last.0), number(first.0)));
        }
        self.push(format_args!("\"/>\n"));
    }

    /// Round marks at points.
    pub(crate) fn dots(&mut self, class: &str, radius: f64, points: &[(f64, f64)]) {
        for (x, y) in points {
            let [x, y, r] = [*x, *y, radius].map(number);
            self.push(format_args!("<circle class=\"{class}\" cx=\"{x}\" cy=\"{y}\" r=\"{r}\"/>\n"));
        }
    }

    pub(crate) fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.text.write_fmt(text);
    }
}

/// At most two decimals: a hundredth of a pixel.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The smallest 1, 2 or 5 times a power of ten that is not below `value`.
pub(crate) fn nice_above(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|nice| *nice >= value * (1.0 - 1e-9)).unwrap_or(value)
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            // XML has no way to write these.
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}
