//! The results as a picture: an SVG, light or dark as the reader's screen.

use std::fmt::Write as _;

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
/// Where bars begin: names stand to the left.
const BARS_LEFT: f64 = 220.0;
const BARS_RIGHT: f64 = 860.0;
const BAR_STEP: f64 = 24.0;
const LINES_HEIGHT: f64 = 230.0;

/// Lines and bars of one colour each: ours, the floor that nobody can pass, and the field.
const STYLE: &str = "
text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; font-size: 12.5px; fill: #5d6778; }
.title { font-size: 20px; font-weight: 600; fill: #1c2430; } .heading { font-size: 14px; font-weight: 600; fill: #1c2430; }
.name { fill: #1c2430; } .bold { fill: #1c2430; font-weight: 700; } .ground { fill: #ffffff; }
.grid { stroke: #1c2430; stroke-opacity: .12; } .whisker { stroke: #1c2430; stroke-width: 1.5; }
.c0 { fill: #3c78c3; stroke: #3c78c3; } .c1 { fill: #aab2bf; stroke: #aab2bf; } .c2 { fill: #c98a2b; stroke: #c98a2b; }
.c3 { fill: #1f9d84; stroke: #1f9d84; } .c4 { fill: #8a5fc0; stroke: #8a5fc0; } .c5 { fill: #d6324a; stroke: #d6324a; }
.bar { stroke: none; } .line { fill: none; stroke-width: 2.2; stroke-linejoin: round; } .wide { stroke-width: 3.6; }
.d0 { stroke-dasharray: 9 6; } .d1 { stroke-dasharray: 3 5; } .d2 { stroke-dasharray: 14 4 2 4; }
@media (prefers-color-scheme: dark) {
text { fill: #98a2b3; } .title, .heading, .name, .bold { fill: #e8ecf2; } .ground { fill: #12161d; } .grid, .whisker { stroke: #e8ecf2; }
.c0 { fill: #6ea3e6; stroke: #6ea3e6; } .c1 { fill: #566275; stroke: #566275; } .line { fill: none; }
}
";

/// What a bar or a line stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Ours,
    Floor,
    Field,
}

/// One bar: the median, and the least and the most of the rounds.
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) value: f64,
    pub(crate) span: (f64, f64),
}

/// Bars below a heading.
pub(crate) struct BarPanel {
    pub(crate) heading: String,
    pub(crate) bars: Vec<Bar>,
}

/// One line: a value for each place on the horizontal axis, where there is one.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) values: Vec<Option<f64>>,
}

/// Lines over the same places, 0 to 100 % upwards.
pub(crate) struct LinePanel {
    pub(crate) heading: String,
    pub(crate) places: Vec<String>,
    pub(crate) lines: Vec<Line>,
}

/// Bars to the right, all on one scale per panel.
pub(crate) fn bars(title: &str, subtitle: &str, panels: &[BarPanel]) -> String {
    let rows: usize = panels.iter().map(|panel| panel.bars.len()).sum();
    let height = 76.0 + panels.len() as f64 * 50.0 + rows as f64 * BAR_STEP + 8.0;
    let mut sheet = Sheet::new(height, title, subtitle);
    let mut y = 76.0;
    for panel in panels {
        sheet.text("heading", MARGIN, y + 20.0, "start", &panel.heading);
        y += 34.0;
        let most = panel.bars.iter().map(|bar| bar.span.1).fold(0.0, f64::max);
        let scale = (BARS_RIGHT - BARS_LEFT) / most;
        for bar in &panel.bars {
            let middle = y + BAR_STEP / 2.0;
            let (name, class) = match bar.role {
                Role::Ours => ("bold", "c0"),
                Role::Floor => ("name", "c1"),
                Role::Field => ("name", "c2"),
            };
            sheet.text(name, BARS_LEFT - 10.0, middle + 4.5, "end", &bar.name);
            sheet.rect(&format!("bar {class}"), BARS_LEFT, y + 3.0, bar.value * scale, BAR_STEP - 6.0);
            let (least, most) = (BARS_LEFT + bar.span.0 * scale, BARS_LEFT + bar.span.1 * scale);
            sheet.path("whisker", &format!("M{least:.1} {middle:.1}H{most:.1}"));
            sheet.text(
                name,
                most.max(BARS_LEFT + bar.value * scale) + 8.0,
                middle + 4.5,
                "start",
                &format!("{:.2}", bar.value),
            );
            y += BAR_STEP;
        }
        y += 16.0;
    }
    sheet.finish()
}

/// Panels beside each other, a line per reader, shares upwards.
pub(crate) fn lines(title: &str, subtitle: &str, rows: &[Vec<LinePanel>]) -> String {
    let height = 76.0 + rows.len() as f64 * (LINES_HEIGHT + 74.0) + 40.0;
    let mut sheet = Sheet::new(height, title, subtitle);
    let mut top = 76.0;
    for panels in rows {
        let width = (WIDTH - 2.0 * MARGIN) / panels.len() as f64;
        for (index, panel) in panels.iter().enumerate() {
            draw_lines(&mut sheet, panel, MARGIN + index as f64 * width, top, width);
        }
        top += LINES_HEIGHT + 74.0;
    }
    let mut x = MARGIN + 40.0;
    let names = rows.iter().flatten().max_by_key(|panel| panel.lines.len());
    for (index, line) in names.iter().flat_map(|panel| panel.lines.iter().enumerate()) {
        sheet.path(&class(line, index), &format!("M{x:.1} {:.1}h24", top + 6.0));
        sheet.text("name", x + 32.0, top + 10.0, "start", &line.name);
        x += 60.0 + 7.2 * line.name.len() as f64;
    }
    sheet.finish()
}

fn draw_lines(sheet: &mut Sheet, panel: &LinePanel, left: f64, top: f64, width: f64) {
    let (left, right, bottom) = (left + 40.0, left + width - 20.0, top + 34.0 + LINES_HEIGHT - 20.0);
    let height = LINES_HEIGHT - 20.0;
    sheet.text("heading", left, top + 20.0, "start", &panel.heading);
    for percent in [0, 25, 50, 75, 100] {
        let y = bottom - height * f64::from(percent) / 100.0;
        sheet.path("grid", &format!("M{left:.1} {y:.1}H{right:.1}"));
        sheet.text("tick", left - 8.0, y + 4.0, "end", &format!("{percent} %"));
    }
    let step = (right - left) / panel.places.len() as f64;
    let x = |place: usize| left + step * (place as f64 + 0.5);
    for (place, name) in panel.places.iter().enumerate() {
        sheet.text("tick", x(place), bottom + 18.0, "middle", name);
    }
    // Ours last, on top of the others.
    let mut order: Vec<usize> = (0..panel.lines.len()).collect();
    order.sort_by_key(|index| panel.lines[*index].role == Role::Ours);
    for index in order {
        let line = &panel.lines[index];
        let points = line.values.iter().enumerate().filter_map(|(place, value)| Some((x(place), (*value)?)));
        let points: Vec<_> = points.map(|(x, value)| (x, bottom - height * value.clamp(0.0, 1.0))).collect();
        let path: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let class = class(line, index);
        sheet.path(&class, &format!("M{}", path.join("L")));
        for (x, y) in points {
            sheet.path(&class, &format!("M{:.1} {y:.1}h4", x - 2.0));
        }
    }
}

/// Colours by place in the list, so that a reader has one colour in all panels.
fn class(line: &Line, index: usize) -> String {
    match line.role {
        Role::Ours => "line wide c0".to_owned(),
        Role::Floor => "line c1".to_owned(),
        Role::Field => format!("line d{} c{}", index % 3, 2 + index % 4),
    }
}

struct Sheet {
    text: String,
}

impl Sheet {
    fn new(height: f64, title: &str, subtitle: &str) -> Self {
        let mut sheet = Sheet { text: String::new() };
        let _ = write!(
            sheet.text,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
             <title>{}</title>\n<style>{STYLE}</style>\n",
            escaped(title)
        );
        sheet.rect("ground", 0.0, 0.0, WIDTH, height);
        sheet.text("title", MARGIN, 36.0, "start", title);
        sheet.text("subtitle", MARGIN, 58.0, "start", subtitle);
        sheet
    }

    fn text(&mut self, class: &str, x: f64, y: f64, anchor: &str, text: &str) {
        let text = escaped(text);
        let _ = writeln!(
            self.text,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    fn rect(&mut self, class: &str, x: f64, y: f64, width: f64, height: f64) {
        let _ = writeln!(
            self.text,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        );
    }

    fn path(&mut self, class: &str, path: &str) {
        let _ = writeln!(self.text, "<path class=\"{class}\" d=\"{path}\"/>");
    }

    fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
