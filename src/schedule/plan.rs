//! The plan: what will be in flight and why, before a byte is read.

use std::fmt;

use serde::Serialize;

/// What a loader is going to do, with the arithmetic behind each number. Sizes in bytes.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "Display explains each number")]
pub struct Plan {
    pub dataset: String,
    pub shards: usize,
    pub samples: u64,
    pub remainder: u64,
    pub left_out: u64,
    pub dataset_bytes: u64,
    pub blocks: usize,
    pub rank: u32,
    pub world_size: u32,
    pub batch_size: u64,
    pub batches_per_epoch: u64,
    pub window: u64,
    pub lanes: u32,
    pub host_memory: u64,
    pub page_bytes: usize,
    pub pages: usize,
    pub window_pages: usize,
    pub edge_pages: usize,
    pub request_bytes: u64,
    pub cold_request_bytes: u64,
    /// Memory beside the pages for second requests for what is late, in bytes; 0 where there are none.
    pub hedge_bytes: u64,
    pub requests: usize,
    pub requests_reason: String,
    pub requests_max: usize,
    pub follows_link: bool,
    pub max_rate: Option<u64>,
    pub in_flight_bytes: u64,
    pub in_flight_reason: String,
    pub connections_max: usize,
    pub device: String,
    pub slots: usize,
    pub slot_bytes: usize,
}

impl Plan {
    /// Pages left for reads in flight, beyond what the window may hold.
    pub fn spare_pages(&self) -> usize {
        self.pages.saturating_sub(self.window_pages + self.edge_pages)
    }

    /// The most goodput that `in_flight_bytes` can carry at a round-trip time, in bytes/s: a quarter of it per round
    /// trip, since a full link wants about four bandwidth-delay products in flight.
    pub fn covers_bytes_per_s(&self, rtt_s: f64) -> f64 {
        self.in_flight_bytes as f64 / 4.0 / rtt_s
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sections = [
            ("dataset", self.dataset_text()),
            ("batches", self.batches_text()),
            ("order", self.order_text()),
            ("in flight", self.in_flight_text()),
            ("reads", self.reads_text()),
            ("host memory", self.memory_text()),
            ("device", self.device_text()),
        ];
        for (number, (label, text)) in sections.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            write_wrapped(f, label, text)?;
        }
        Ok(())
    }
}

impl Plan {
    fn dataset_text(&self) -> String {
        let remainder = match self.remainder {
            0 => String::new(),
            left => format!("; {left} elements at the ends of shards fill no sample"),
        };
        let left_out = match self.left_out {
            0 => String::new(),
            samples => format!("; {} in quarantine, left out of their batches", count(samples, "sample")),
        };
        let (samples, shards) = (count(self.samples, "sample"), count(self.shards as u64, "shard"));
        format!("{}: {samples} in {shards}, {}{remainder}{left_out}", self.dataset, size(self.dataset_bytes))
    }

    fn batches_text(&self) -> String {
        let (batches, samples) = (count(self.batches_per_epoch, "batch"), count(self.batch_size, "sample"));
        format!("{batches} of {samples} per epoch, for rank {} of {}", self.rank, self.world_size)
    }

    fn order_text(&self) -> String {
        let order = match self.window {
            0 => "the dataset's own".into(),
            window => format!("shuffled within {}", count(window, "sample")),
        };
        let (blocks, lanes) = (count(self.blocks as u64, "block"), count(u64::from(self.lanes), "lane"));
        format!("{order}; {blocks}, each read once per epoch, on {lanes}: any world size that divides them can resume")
    }

    fn in_flight_text(&self) -> String {
        let reads = if self.requests_max > self.requests {
            format!(
                "{} at the cold start ({}), then {}",
                count(self.requests as u64, "read"),
                self.requests_reason,
                self.requests_max
            )
        } else {
            format!("{} ({})", count(self.requests as u64, "read"), self.requests_reason)
        };
        let depth = if self.follows_link {
            "follows the link: more while it brings goodput, a few times goodput × shortest time to the first byte where a queue stands"
        } else {
            "grows to this bound by a quarter with each batch that is waited for, whatever the link does"
        };
        let rate =
            self.max_rate.map_or(String::new(), |max| format!(". No more than {} is asked for", per_s(max as f64)));
        format!(
            "up to {reads}, over HTTP each on a connection of its own, opened ahead; up to {} ({}), which is 4 × rate × RTT for \
             {} at 15 ms or {} at 30 ms. The first batch's reads have the link to themselves; then what is in flight \
             begins with that one's bytes, or 8 MiB, and {depth}{rate}",
            size(self.in_flight_bytes),
            self.in_flight_reason,
            per_s(self.covers_bytes_per_s(0.015)),
            per_s(self.covers_bytes_per_s(0.030)),
        )
    }

    fn reads_text(&self) -> String {
        format!(
            "up to {}: what this store likes to be asked for, in whole pages. For the first batches up to {}, so that \
             many connections share them: what a fresh one brings in two round trips, half a page, or a gap that is \
             read over, whichever is more",
            size(self.request_bytes),
            size(self.cold_request_bytes),
        )
    }

    fn memory_text(&self) -> String {
        let of_pages = |pages: usize| size(pages as u64 * self.page_bytes as u64);
        let beside = match self.hedge_bytes {
            0 => String::new(),
            bytes => format!("; beside it {} for second requests", size(bytes)),
        };
        format!(
            "{} of {}, a page being about a sample = {}: {} for the window and two batches, {} for blocks that are \
             partly inside, two on each lane, {} for reads in flight{beside}",
            count(self.pages as u64, "page"),
            size(self.page_bytes as u64),
            of_pages(self.pages),
            of_pages(self.window_pages),
            of_pages(self.edge_pages),
            of_pages(self.spare_pages()),
        )
    }

    fn device_text(&self) -> String {
        let ahead = self.slots.saturating_sub(2);
        format!(
            "{}: {} slots of {}, the largest batch: {ahead} ready, one with the consumer, one being filled",
            self.device,
            self.slots,
            size(self.slot_bytes as u64)
        )
    }
}

/// Where texts begin and how wide they may become, in characters.
const INDENT: usize = 13;
const WIDTH: usize = 100;

/// Writes `text` behind `label`, its further lines below its first one. A word that is too long has a line of its own.
pub(crate) fn write_wrapped(f: &mut fmt::Formatter<'_>, label: &str, text: &str) -> fmt::Result {
    write!(f, "{label:<INDENT$}")?;
    let mut column = INDENT;
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if column > INDENT && column + 1 + width > WIDTH {
            write!(f, "\n{:INDENT$}", "")?;
            column = INDENT;
        } else if column > INDENT {
            write!(f, " ")?;
            column += 1;
        }
        write!(f, "{word}")?;
        column += width;
    }
    Ok(())
}

/// In the unit that leaves the fewest digits.
fn size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match UNITS.iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => {
            let number = format!("{:.1}", bytes as f64 / (1u64 << shift) as f64);
            format!("{} {unit}", number.strip_suffix(".0").unwrap_or(&number))
        }
        None => count(bytes, "byte"),
    }
}

fn per_s(bytes_per_s: f64) -> String {
    let mb = bytes_per_s / 1e6;
    if mb < 10.0 { format!("{mb:.1} MB/s") } else { format!("{mb:.0} MB/s") }
}

/// A number and what it counts.
fn count(number: u64, what: &str) -> String {
    match (number, what.ends_with("ch")) {
        (1, _) => format!("1 {what}"),
        (_, false) => format!("{number} {what}s"),
        (_, true) => format!("{number} {what}es"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            dataset: "http://host/train-{0000..0007}.tar".into(),
            shards: 8,
            samples: 3120,
            remainder: 0,
            left_out: 0,
            dataset_bytes: 5 << 30,
            blocks: 80,
            rank: 0,
            world_size: 1,
            batch_size: 64,
            batches_per_epoch: 49,
            window: 512,
            lanes: 12,
            host_memory: 256 << 20,
            page_bytes: 128 << 10,
            pages: 2048,
            window_pages: 600,
            edge_pages: 800,
            request_bytes: 1 << 20,
            cold_request_bytes: 65_536,
            requests: 192,
            requests_reason: "a fixed number".into(),
            requests_max: 256,
            follows_link: true,
            max_rate: None,
            in_flight_bytes: 64 << 20,
            in_flight_reason: "what host memory has room for".into(),
            connections_max: 256,
            device: "host".into(),
            slots: 4,
            slot_bytes: 9_700_000,
            hedge_bytes: 8 << 20,
        }
    }

    #[test]
    fn fits_a_hundred_columns_with_every_number_in_a_fitting_unit() {
        let text = plan().to_string();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "3120 samples in 8 shards, 5 GiB",
            "49 batches of 64 samples per epoch",
            "up to 192 reads at the cold start (a fixed number), then 256, over HTTP",
            "up to 64 MiB (what host memory has room for), which is 4 × rate × RTT for 1118 MB/s at 15 ms or 559 MB/s at 30 ms",
            "up to 1 MiB: what this store",
            "For the first batches up to 64 KiB",
            "2048 pages of 128 KiB, a page being about a sample = 256 MiB: 75 MiB for the window",
            "100 MiB for blocks that are partly inside, two on each lane, 81 MiB for reads in flight; beside it 8 MiB for second requests",
            "4 slots of 9.3 MiB, the largest batch: 2 ready",
        ] {
            assert!(flat.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn says_what_moves_the_depth() {
        let flat = |plan: Plan| plan.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat(plan()).contains("or 8 MiB, and follows the link"));
        let fixed = Plan { follows_link: false, requests_max: 192, max_rate: Some(50_000_000), ..plan() };
        let text = flat(fixed);
        for part in
            ["up to 192 reads (a fixed number), over", "and grows to this bound", "No more than 50 MB/s is asked for"]
        {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn sizes_have_the_unit_that_fits() {
        let shown = [1, 43_800, 1 << 20, 1_500_000_000, 3 << 40].map(size);
        assert_eq!(shown, ["1 byte", "42.8 KiB", "1 MiB", "1.4 GiB", "3 TiB"]);
    }

    #[test]
    fn a_word_longer_than_a_line_has_one_of_its_own() {
        let dataset = format!("memory:{}", "x".repeat(200));
        let text = Plan { dataset: dataset.clone(), ..plan() }.to_string();
        assert!(text.starts_with(&format!("dataset      {dataset}:\n             3120 samples in 8 shards")), "{text}");
    }
}
