//! The grid and the tail as tables beside their targets, and as a picture.

use super::far::Way;
use super::ours::{HOST_MEMORY, RSS_ALLOWANCE};
use super::{Cell, GRID_BATCH, Point, Run, TAIL_BATCH, Wanted};
use crate::field::chart::{Line, LinePanel, Role, lines};
use crate::field::measure::median;

const SHARE_TARGET: f64 = 0.95;
const STEP_TARGET: f64 = 0.01;
const COPIES_TARGET: f64 = 0.01;
const TAIL_TARGET: f64 = 1.5;
const EXTRA_TARGET: f64 = 0.02;

pub(crate) fn print(wanted: &Wanted, cells: &[Cell]) {
    let (rate, rounds) = (wanted.rate_bytes_s / 1_000_000, wanted.rounds);
    println!("\nEmulated link of {rate} MB/s, {} s of it per pass; medians of {rounds} rounds.", wanted.seconds);
    for demand in demands(cells) {
        print_grid(wanted, cells, demand);
    }
    if grid(cells).next().is_some() {
        print_details(cells);
        print_ours(cells);
    }
    print_tail(cells);
}

fn of(cell: &Cell, what: impl Fn(&Run) -> f64) -> f64 {
    median(cell.runs.iter().map(what))
}

fn grid(cells: &[Cell]) -> impl Iterator<Item = &Cell> + Clone {
    cells.iter().filter(|cell| cell.point.batch_size == GRID_BATCH)
}

/// Distinct values in their order.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

fn demands(cells: &[Cell]) -> Vec<f64> {
    distinct(grid(cells).map(|cell| cell.point.demand))
}

/// Achieved of the ideal, a column for each reader.
fn print_grid(wanted: &Wanted, cells: &[Cell], demand: f64) {
    let rate = if demand < 1.0 { "with a compute step" } else { "as fast as it goes" };
    println!("\n## Achieved of the ideal, demand {:.0} % of the link, {rate}\n", 100.0 * demand);
    println!("| RTT | loss | {} |\n|--:|--:|{}", wanted.readers.join(" | "), "--:|".repeat(wanted.readers.len()));
    for row in distinct(grid(cells).filter(|cell| cell.point.demand == demand).map(|cell| cell.point)) {
        let columns = grid(cells).filter(|cell| cell.point == row).map(|cell| {
            let cut = if cell.runs.iter().all(|run| run.pass.complete) { "" } else { " (cut short)" };
            format!("{:.1} %{cut}", 100.0 * of(cell, Run::efficiency))
        });
        let Way { rtt_ms, loss, .. } = row.way;
        println!("| {rtt_ms} ms | {} % | {} |", 100.0 * loss, columns.collect::<Vec<_>>().join(" | "));
    }
}

/// Everything else that a reader can be asked, at each place.
fn print_details(cells: &[Cell]) {
    println!(
        "\n## Each reader at each place\n\n\
         | demand | RTT | loss | reader | MB/s | of the rate | open, ms | first batch, ms | stalled | CPU-s/GB | peak RSS, MB | connections | requests | extra bytes |\n\
         |--:|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    );
    for cell in grid(cells) {
        let Way { rtt_ms, loss, rate_bytes_s, .. } = cell.point.way;
        let goodput = of(cell, |run| run.pass.bytes as f64 / run.pass.streaming_s);
        println!(
            "| {:.0} % | {rtt_ms} ms | {} % | {} | {:.1} | {:.1} % | {:.0} | {:.0} | {:.2} % | {:.2} | {:.0} | {:.0} | {:.0} | {} |",
            100.0 * cell.point.demand,
            100.0 * loss,
            cell.reader,
            goodput / 1e6,
            100.0 * goodput / rate_bytes_s as f64,
            1e3 * of(cell, |run| run.pass.open_s),
            1e3 * of(cell, |run| run.pass.first_batch_s),
            100.0 * of(cell, |run| run.pass.stall_share),
            of(cell, |run| run.pass.cpu_s / (run.pass.bytes as f64 / 1e9)),
            of(cell, |run| run.pass.peak_rss as f64 / 1e6),
            of(cell, |run| run.sent.connections as f64),
            of(cell, |run| run.sent.requests as f64),
            extra(cell),
        );
    }
}

/// What was sent beyond what was streamed; of a pass that was cut short nobody can tell.
fn extra(cell: &Cell) -> String {
    if cell.runs.iter().all(|run| run.pass.complete) {
        format!("{:.2} %", 100.0 * of(cell, Run::extra_bytes))
    } else {
        String::new()
    }
}

/// Ours beside what the design promises, where nothing is lost.
fn print_ours(cells: &[Cell]) {
    let ours = |cell: &&Cell| cell.reader.starts_with("farfeed") && cell.point.way.loss == 0.0;
    let ours: Vec<&Cell> = grid(cells).filter(ours).collect();
    println!(
        "\n## farfeed and its promises, nothing lost\n\n\
         | | RTT | of the rate | after the first batch | first batch | step | against the nearest | copies/byte | peak RSS | retries |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    );
    for flat_out in ours.iter().filter(|cell| cell.point.demand >= 1.0) {
        let paced = ours.iter().find(|cell| {
            cell.point.demand < 1.0 && cell.point.way == flat_out.point.way && cell.reader == flat_out.reader
        });
        let nearest = paced.and_then(|paced| {
            ours.iter().find(|cell| cell.point.demand == paced.point.demand && cell.reader == paced.reader)
        });
        println!("| {} | {} |", flat_out.reader, promises(flat_out, paced.copied(), nearest.copied()).join(" | "));
    }
    println!(
        "| target | | ≥ {:.0} % at 15, 30, 100 ms | | ≤ 3 RTT + bytes/rate | | ≤ +{:.0} % | ≤ {COPIES_TARGET} | ≤ {} + slots + {} MiB | 0 |",
        100.0 * SHARE_TARGET,
        100.0 * STEP_TARGET,
        HOST_MEMORY.as_bytes() >> 20,
        RSS_ALLOWANCE >> 20
    );
}

fn promises(flat_out: &Cell, paced: Option<&Cell>, nearest: Option<&Cell>) -> [String; 9] {
    let Way { rtt_ms, rate_bytes_s, .. } = flat_out.point.way;
    let rate = rate_bytes_s as f64;
    let share = of(flat_out, |run| run.pass.bytes as f64 / run.pass.streaming_s / rate);
    let first = of(flat_out, |run| run.pass.first_batch_s);
    let first_target = of(flat_out, |run| 3e-3 * rtt_ms + run.pass.first_batch_bytes as f64 / rate);
    let step = paced.map_or(String::new(), |paced| format!("{:.2} ms", 1e3 * of(paced, |run| run.pass.step_s)));
    // Against the pass of the same round: what slows the machine down slows both.
    let longer = paced.zip(nearest).map_or(String::new(), |(far, near)| {
        let pairs = far.runs.iter().zip(&near.runs);
        let longer = median(pairs.map(|(far, near)| far.pass.step_s / near.pass.step_s - 1.0));
        format!("{:+.2} % {}", 100.0 * longer, verdict(longer <= STEP_TARGET))
    });
    let details = |what: fn(&super::ours::Details) -> f64| of(flat_out, |run| run.pass.ours.as_ref().map_or(0.0, what));
    let (copies, retries) = (details(|ours| ours.copies_per_byte), details(|ours| ours.retries as f64));
    let (rss, bound) = (of(flat_out, |run| run.pass.peak_rss as f64), details(|ours| ours.rss_bound as f64));
    [
        format!("{rtt_ms} ms"),
        format!("{:.1} % {}", 100.0 * share, verdict(share >= SHARE_TARGET)),
        format!("{:.1} %", 100.0 * of(flat_out, |run| run.pass.later_goodput / rate)),
        format!("{:.0} of {:.0} ms {}", 1e3 * first, 1e3 * first_target, verdict(first <= first_target)),
        step,
        longer,
        format!("{copies:.4} {}", verdict(copies <= COPIES_TARGET)),
        format!("{:.0} of {:.0} MB {}", rss / 1e6, bound / 1e6, verdict(rss <= bound)),
        format!("{retries:.0} {}", verdict(retries == 0.0)),
    ]
}

/// From one batch to the next, with and without slow requests.
fn print_tail(cells: &[Cell]) {
    let slow: Vec<&Cell> = cells.iter().filter(|cell| cell.point.way.slow > 0.0).collect();
    if slow.is_empty() {
        return;
    }
    println!(
        "\n## One request in a hundred takes ten times as long, batches of {TAIL_BATCH}: from one batch to the next, ms\n\n\
         | demand | RTT | reader | p50 | p99 | p99 with slow requests | ratio | slow of all requests | extra bytes |\n|--:|--:|---|--:|--:|--:|--:|--:|--:|"
    );
    for cell in slow {
        let point = Point { way: Way { slow: 0.0, ..cell.point.way }, ..cell.point };
        let Some(without) = cells.iter().find(|other| other.point == point && other.reader == cell.reader) else {
            continue;
        };
        let pairs = cell.runs.iter().zip(&without.runs);
        let ratio = median(pairs.map(|(with, without)| with.pass.latency_p99_s / without.pass.latency_p99_s));
        println!(
            "| {:.0} % | {} ms | {} | {:.1} | {:.1} | {:.1} | {ratio:.2} {} | {:.0} of {:.0} | {} {} |",
            100.0 * point.demand,
            point.way.rtt_ms,
            cell.reader,
            1e3 * of(without, |run| run.pass.latency_p50_s),
            1e3 * of(without, |run| run.pass.latency_p99_s),
            1e3 * of(cell, |run| run.pass.latency_p99_s),
            verdict(ratio <= TAIL_TARGET),
            of(cell, |run| run.sent.struck as f64),
            of(cell, |run| run.sent.requests as f64),
            extra(cell),
            verdict(of(cell, Run::extra_bytes) <= EXTRA_TARGET),
        );
    }
    println!("| target | | | | | | ≤ {TAIL_TARGET} | | ≤ {:.0} % |", 100.0 * EXTRA_TARGET);
}

pub(crate) fn picture(wanted: &Wanted, cells: &[Cell]) -> String {
    let losses = distinct(grid(cells).map(|cell| cell.point.way.loss));
    let rtts = distinct(grid(cells).map(|cell| cell.point.way.rtt_ms));
    let line = |reader: &String, loss: f64, demand: f64| {
        let at = |rtt_ms: &f64| {
            let here = |cell: &&Cell| {
                let Point { way, demand: wanted, .. } = cell.point;
                (way.rtt_ms, way.loss, wanted) == (*rtt_ms, loss, demand) && cell.reader == *reader
            };
            grid(cells).find(here).map(|cell| of(cell, Run::efficiency))
        };
        let role = if reader.starts_with("farfeed") { Role::Ours } else { Role::Field };
        Line { name: reader.clone(), role, values: rtts.iter().map(at).collect() }
    };
    let panel = |loss: &f64, demand: f64| LinePanel {
        heading: match (demand, *loss) {
            (1.0, 0.0) => "As fast as it goes, nothing lost".to_owned(),
            (1.0, loss) => format!("As fast as it goes, {} % lost", 100.0 * loss),
            (_, 0.0) => format!("{:.0} % wanted, nothing lost", 100.0 * demand),
            (_, loss) => format!("{:.0} % wanted, {} % lost", 100.0 * demand, 100.0 * loss),
        },
        places: rtts.iter().map(|rtt| format!("{rtt} ms")).collect(),
        lines: wanted.readers.iter().map(|reader| line(reader, *loss, demand)).collect(),
    };
    let row = |demand: f64| losses.iter().map(|loss| panel(loss, demand)).collect();
    let rows: Vec<Vec<LinePanel>> = demands(cells).into_iter().map(row).collect();
    let tcp = if cells.iter().any(|cell| cell.point.way.reno) { "Reno" } else { "CUBIC" };
    let rate = wanted.rate_bytes_s / 1_000_000;
    let subtitle =
        format!("Emulated link of {rate} MB/s, the server's TCP backing off as {tcp} does; by round-trip time.");
    lines("What is achieved, of what the link could carry at best", &subtitle, &rows)
}

fn verdict(met: bool) -> &'static str {
    if met { "ok" } else { "miss" }
}
