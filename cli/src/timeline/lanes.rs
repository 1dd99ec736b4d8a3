//! The four lanes of a plot.

use farfeed::telemetry::{Lane, Span};

use crate::sheet::{Anchor, Rect, Sheet};

/// A stretch of time, from zero.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub(super) end_s: f64,
}

/// A panel's plot of one stretch of time.
#[derive(Clone, Copy)]
pub(super) struct Plot {
    pub(super) left: f64,
    pub(super) width: f64,
    pub(super) window: Window,
    /// Each request has its line; otherwise how many are in flight.
    pub(super) each_request: bool,
}

/// Heights and tops of the lanes, from a panel's top.
const FETCH: (f64, f64) = (8.0, 84.0);
const COPY: (f64, f64) = (100.0, 12.0);
const COMPUTE: (f64, f64) = (120.0, 26.0);
const STALL: (f64, f64) = (154.0, 12.0);
const PANEL_HEIGHT: f64 = 174.0;
/// More spans than these in a lane are drawn as coverage.
const DRAWN_MAX: usize = 400;
/// Requests that get a line; what is in flight beyond shares the last one.
const LINES_MAX: usize = 128;
/// Thinner than this nothing can be seen.
const SEEN_MIN: f64 = 0.7;
/// Steps of opacity in a lane that is drawn as coverage.
const SHADES: usize = 8;

/// What was asked for and is not there yet.
#[derive(Clone, Copy, Default)]
pub(super) struct InFlight {
    pub(super) requests: usize,
    pub(super) bytes: u64,
}

impl InFlight {
    /// The most of either, each at its own time.
    pub(super) fn max(self, other: InFlight) -> InFlight {
        InFlight { requests: self.requests.max(other.requests), bytes: self.bytes.max(other.bytes) }
    }

    /// The most that was in flight at a time.
    pub(super) fn most(spans: &[Span]) -> InFlight {
        steps(spans).into_iter().fold(InFlight::default(), |most, (_, now)| most.max(now))
    }
}

pub(super) fn height() -> f64 {
    PANEL_HEIGHT
}

/// Names of the lanes and their base lines.
pub(super) fn labels(top: f64) -> [(&'static str, f64); 4] {
    let middle = |lane: (f64, f64)| top + lane.0 + lane.1 / 2.0 + 4.0;
    [("fetch", middle(FETCH)), ("copy", middle(COPY)), ("compute", middle(COMPUTE)), ("stall", middle(STALL))]
}

impl Plot {
    pub(super) fn x(&self, at_s: f64) -> f64 {
        self.left + self.width * (at_s / self.window.end_s).clamp(0.0, 1.0)
    }

    pub(super) fn draw(&self, sheet: &mut Sheet, spans: &[Span], top: f64, scale: InFlight) {
        sheet.rects("panel", &[(self.left, top, self.width, PANEL_HEIGHT)]);
        let seen: Vec<Span> = spans.iter().filter(|span| span.start_s < self.window.end_s).copied().collect();
        let of = |lane: Lane| seen.iter().filter(|span| span.lane == lane).copied().collect::<Vec<_>>();
        if self.each_request {
            self.requests(sheet, &of(Lane::Fetch), top + FETCH.0, scale);
        } else {
            self.in_flight(sheet, &of(Lane::Fetch), top + FETCH.0, scale);
        }
        self.strip(sheet, ["copy", "copy"], &of(Lane::Copy), top + COPY.0, COPY.1);
        let steps = of(Lane::Compute);
        if let Some(first) = steps.first() {
            let x = self.x(0.0);
            sheet.rects("first", &[(x, top + COMPUTE.0 + COMPUTE.1 - 4.0, self.x(first.start_s) - x, 4.0)]);
        }
        self.strip(sheet, ["compute", "compute2"], &steps, top + COMPUTE.0, COMPUTE.1);
        let mut stalls = of(Lane::Stall);
        // Taking a batch that is there takes microseconds too.
        stalls.retain(|span| span.end_s - span.start_s > 100e-6);
        self.strip(sheet, ["stall", "stall"], &stalls, top + STALL.0, STALL.1);
    }

    /// Each request on the highest line that is free.
    fn requests(&self, sheet: &mut Sheet, spans: &[Span], top: f64, scale: InFlight) {
        let mut spans = spans.to_vec();
        spans.sort_by(|a, b| a.start_s.total_cmp(&b.start_s));
        let lines = scale.requests.clamp(16, LINES_MAX);
        let pitch = FETCH.1 / lines as f64;
        let mut free_at = vec![0.0; lines];
        let mut rects: Vec<Rect> = Vec::new();
        for span in spans.iter().take(4 * DRAWN_MAX) {
            let line = free_at.iter().position(|at| *at <= span.start_s).unwrap_or(lines - 1);
            free_at[line] = span.end_s;
            let (x, end) = (self.x(span.start_s), self.x(span.end_s));
            rects.push((x, top + pitch * line as f64, (end - x - 0.4).max(SEEN_MIN), (pitch * 0.72).min(3.0)));
        }
        sheet.rects("fetch", &rects);
    }

    /// How many bytes are in flight, as an area.
    fn in_flight(&self, sheet: &mut Sheet, spans: &[Span], top: f64, scale: InFlight) {
        let columns = self.width as usize;
        let mut most = vec![0u64; columns + 1];
        let steps = steps(spans);
        let column = |at_s: f64| ((at_s / self.window.end_s).clamp(0.0, 1.0) * columns as f64) as usize;
        for (n, (at, in_flight)) in steps.iter().enumerate() {
            let until = steps.get(n + 1).map_or(*at, |(next, _)| *next);
            for cell in &mut most[column(*at)..=column(until)] {
                *cell = (*cell).max(in_flight.bytes);
            }
        }
        let base = top + FETCH.1;
        let mut points = Vec::new();
        for (n, in_flight) in most.iter().enumerate() {
            let y = base - FETCH.1 * *in_flight as f64 / scale.bytes.max(1) as f64;
            let same_as = |m: Option<usize>| m.and_then(|m| most.get(m)) == Some(in_flight);
            // Only where it turns.
            if !(same_as(n.checked_sub(1)) && same_as(Some(n + 1))) {
                points.push((self.left + n as f64 * self.width / columns as f64, y));
            }
        }
        sheet.curve("area", &points, Some(base));
        sheet.curve("edge", &points, None);
        let label = format!("at most {:.0} MB", most.iter().max().map_or(0.0, |bytes| *bytes as f64 / 1e6));
        sheet.text("scale", self.left + self.width - 6.0, top + 10.0, Anchor::End, &label);
    }

    /// Spans that follow each other, in two classes in turn.
    fn strip(&self, sheet: &mut Sheet, classes: [&str; 2], spans: &[Span], top: f64, height: f64) {
        if spans.len() > DRAWN_MAX {
            return self.coverage(sheet, classes[0], spans, top, height);
        }
        let mut rects: [Vec<Rect>; 2] = Default::default();
        for (n, span) in spans.iter().enumerate() {
            let x = self.x(span.start_s);
            let width = (self.x(span.end_s) - x).max(SEEN_MIN);
            rects[n % 2].push((x, top, width.min(self.left + self.width - x).max(0.0), height));
        }
        for (class, rects) in classes.iter().zip(&rects) {
            sheet.rects(class, rects);
        }
    }

    /// The share of each column of pixels that spans cover, as its opacity.
    fn coverage(&self, sheet: &mut Sheet, class: &str, spans: &[Span], top: f64, height: f64) {
        let columns = self.width as usize;
        let mut covered = vec![0.0f64; columns];
        for span in spans {
            let place = |at_s: f64| (at_s / self.window.end_s).clamp(0.0, 1.0) * columns as f64;
            let (from, to) = (place(span.start_s), place(span.end_s));
            for (n, cell) in covered.iter_mut().enumerate().take(columns.min(to as usize + 1)).skip(from as usize) {
                *cell += (to.min(n as f64 + 1.0) - from.max(n as f64)).max(0.0);
            }
        }
        let shade = |cell: f64| (cell.min(1.0) * SHADES as f64).ceil() as usize;
        let mut rects: [Vec<Rect>; SHADES + 1] = Default::default();
        let mut begin = 0;
        for n in 1..=columns {
            let ends = n == columns || shade(covered[n]) != shade(covered[begin]);
            if ends {
                let x = self.left + begin as f64;
                rects[shade(covered[begin])].push((x, top, (n - begin) as f64, height));
                begin = n;
            }
        }
        for (shade, rects) in rects.iter().enumerate().skip(1) {
            sheet.faint_rects(class, shade as f64 / SHADES as f64, rects);
        }
    }
}

/// When what is in flight changes, and to what: number of requests, and bytes.
fn steps(spans: &[Span]) -> Vec<(f64, InFlight)> {
    let requests = spans.iter().filter(|span| span.lane == Lane::Fetch);
    let mut changes: Vec<(f64, bool, u64)> =
        requests.flat_map(|span| [(span.start_s, true, span.bytes), (span.end_s, false, span.bytes)]).collect();
    // Ends before beginnings: a connection that goes on to its next request counts once.
    changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut now = InFlight::default();
    let change = |(at, begins, bytes)| {
        if begins {
            now = InFlight { requests: now.requests + 1, bytes: now.bytes + bytes };
        } else {
            now = InFlight { requests: now.requests.saturating_sub(1), bytes: now.bytes.saturating_sub(bytes) };
        }
        (at, now)
    };
    changes.into_iter().map(change).collect()
}
