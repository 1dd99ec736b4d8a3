//! The costs as tables, as ratios beside their targets, and as a picture.

use super::contender::{BARE, Cost};
use super::{Row, Setting, Table};
use crate::field::chart::{Bar, BarPanel, Role, bars};
use crate::field::clients::{OURS, STREAMED, Scheme, WHOLE};
use crate::field::measure::{median, span};

/// Bytes that user space may copy per byte received, over HTTP.
const COPIES_TARGET: f64 = 0.01;

/// Processor time of ours, as a share of a rival's: what it is to be at the most.
fn target(table: &Table, rival: &str) -> Option<f64> {
    match (table.scheme, table.setting.rate_mb_s.is_some(), rival) {
        (Scheme::Http, true, STREAMED) => Some(0.45),
        (Scheme::Http, true, WHOLE) => Some(0.3),
        (Scheme::Https, true, STREAMED) => Some(0.75),
        (Scheme::Http, false, BARE) => Some(1.2),
        _ => None,
    }
}

pub(crate) fn print(tables: &[Table]) {
    for table in tables {
        println!("\n## {}\n", heading(table));
        println!(
            "| | CPU-s/GB | least to most | GB/s | switches/GB | copies/byte | peak RSS, MB | against the floor | farfeed against it | target |\n\
             |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
        );
        let ceiling = floor(tables, table);
        for row in &table.rows {
            print_row(table, row, ceiling);
        }
        if let Some(slowest) = starved(table) {
            println!("\n**Not paced**: {slowest} had less than nine tenths of the rate, and not because of itself.");
            println!("Where bytes wait for their reader, it wakes up less often: measure on a quieter machine.");
        }
        if let Some(row) = table.rows.iter().find(|row| row.contender == OURS && table.scheme == Scheme::Http) {
            let copies = median(row.rounds.iter().map(|cost| cost.copies_per_byte));
            println!(
                "\nCopied in user space: {copies:.5} of each byte (at most {COPIES_TARGET}: {}).",
                verdict(copies <= COPIES_TARGET)
            );
        }
    }
}

/// Who was kept waiting neither by the link nor by its own thread, if anybody.
fn starved(table: &Table) -> Option<&'static str> {
    let rate = table.setting.rate_mb_s? as f64 / 1e3;
    let column = |row: &Row, of: fn(&Cost) -> f64| median(row.rounds.iter().map(of));
    let busy = |row: &Row| column(row, |cost| cost.cpu_s_per_gb * cost.gb_per_s);
    let starved = |row: &&Row| column(row, |cost| cost.gb_per_s) < 0.9 * rate && busy(row) < 0.9;
    table.rows.iter().find(starved).map(|row| row.contender)
}

fn print_row(table: &Table, row: &Row, floor: Option<&Row>) {
    let column = |of: fn(&Cost) -> f64| median(row.rounds.iter().map(of));
    let (least, most) = span(row.rounds.iter().map(|cost| cost.cpu_s_per_gb));
    let ours = table.rows.iter().find(|row| row.contender == OURS).filter(|ours| ours.contender != row.contender);
    let against = ours.map(|ours| ratio(ours, row));
    let share = |ratio: Option<f64>| ratio.map_or("".to_owned(), |ratio| format!("{ratio:.2}"));
    let judged = target(table, row.contender)
        .zip(against)
        .map(|(target, against)| format!("≤ {target}: {}", verdict(against <= target)));
    println!(
        "| {} | {:.3} | {least:.3}–{most:.3} | {:.2} | {:.0} | {:.4} | {:.0} | {} | {} | {} |",
        row.contender,
        column(|cost| cost.cpu_s_per_gb),
        column(|cost| cost.gb_per_s),
        column(|cost| cost.switches_per_gb),
        column(|cost| cost.copies_per_byte),
        column(|cost| cost.peak_rss as f64 / 1e6),
        share(floor.map(|floor| ratio(row, floor))),
        share(against),
        judged.unwrap_or_default(),
    );
}

/// Of processor time, round by round: what slows the machine down for a while slows both.
fn ratio(row: &Row, base: &Row) -> f64 {
    median(row.rounds.iter().zip(&base.rounds).map(|(row, base)| row.cpu_s_per_gb / base.cpu_s_per_gb))
}

/// The bare loop over the same link: plain TCP, that being what everyone stands on.
fn floor<'a>(tables: &'a [Table], table: &Table) -> Option<&'a Row> {
    let same = |other: &&Table| other.scheme == Scheme::Http && other.setting.rate_mb_s == table.setting.rate_mb_s;
    tables.iter().find(same)?.rows.iter().find(|row| row.contender == BARE)
}

fn heading(table: &Table) -> String {
    let Setting { rate_mb_s, rtt_ms, connections, turns } = &table.setting;
    let link =
        rate_mb_s.map_or("no link between".to_owned(), |rate| format!("emulated link of {rate} MB/s, {rtt_ms} ms"));
    let (range, rounds) = (table.range_bytes >> 20, table.rows.first().map_or(0, |row| row.rounds.len()));
    let threads = if table.threads == 1 { "one thread".to_owned() } else { format!("{} threads", table.threads) };
    format!(
        "{}: {link}, {connections} connections × {range} MiB, {threads} for async clients; medians of {rounds} rounds of {} MB",
        table.scheme.name(),
        turns * connections * table.range_bytes / 1_000_000
    )
}

pub(crate) fn picture(tables: &[Table]) -> String {
    let panel = |table: &Table| {
        let bar = |row: &Row| {
            let costs = || row.rounds.iter().map(|cost| cost.cpu_s_per_gb);
            let role = match row.contender {
                OURS => Role::Ours,
                name if name.starts_with("bare") => Role::Floor,
                _ => Role::Field,
            };
            Bar { name: row.contender.to_owned(), role, value: median(costs()), span: span(costs()) }
        };
        let link = table
            .setting
            .rate_mb_s
            .map_or("no link between".to_owned(), |rate| format!("paced at {rate} MB/s, {} ms", table.setting.rtt_ms));
        let heading = format!("{}, {link}, {} connections", table.scheme.name(), table.setting.connections);
        BarPanel { heading, bars: table.rows.iter().map(bar).collect() }
    };
    let panels: Vec<_> = tables.iter().map(panel).collect();
    bars(
        "What receiving a gigabyte costs the client",
        "CPU-seconds per GB, user and system; medians, and the range of the rounds. nginx on loopback, the link emulated.",
        &panels,
    )
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}
