//! The plan: what will be in flight and why, before a byte is read.

use std::fmt;

use serde::Serialize;

use super::{Budget, Shape};

/// What a loader is going to do, with the arithmetic behind each number. Sizes in bytes.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "Display explains each number")]
pub struct Plan {
    pub dataset: String,
    pub shards: usize,
    pub samples: u64,
    pub remainder: u64,
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
    pub requests: usize,
    pub in_flight_bytes: u64,
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

    pub(crate) fn set_memory(&mut self, shape: &Shape, budget: &Budget, pages: usize) {
        self.page_bytes = shape.page_bytes;
        self.pages = pages;
        self.window_pages = budget.window_pages;
        self.edge_pages = budget.edge_pages;
        self.request_bytes = shape.request_bytes;
        self.cold_request_bytes = shape.cold_request_bytes;
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let page_mib = |pages: usize| mib(pages as u64 * self.page_bytes as u64);
        writeln!(
            f,
            "dataset      {}: {} samples in {} shards, {}{}",
            self.dataset,
            self.samples,
            self.shards,
            mib(self.dataset_bytes),
            match self.remainder {
                0 => String::new(),
                left => format!("; {left} elements at the ends of shards fill no sample"),
            }
        )?;
        writeln!(
            f,
            "batches      {} per epoch of {} samples, rank {} of {}",
            self.batches_per_epoch, self.batch_size, self.rank, self.world_size
        )?;
        if self.window > 0 {
            writeln!(
                f,
                "order        shuffled within {} samples, {} blocks on {} lanes",
                self.window, self.blocks, self.lanes
            )?;
        } else {
            writeln!(f, "order        the dataset's own, {} blocks on {} lanes", self.blocks, self.lanes)?;
        }
        writeln!(
            f,
            "in flight    {} reads, at most {}: a fixed seed, enough for {:.0} MB/s at 15 ms and {:.0} MB/s at 30 ms (4 × rate × RTT)",
            self.requests,
            mib(self.in_flight_bytes),
            self.covers_bytes_per_s(0.015) / 1e6,
            self.covers_bytes_per_s(0.030) / 1e6,
        )?;
        writeln!(
            f,
            "reads        up to {}, at the cold start {} so that all connections share the first batch",
            mib(self.request_bytes),
            mib(self.cold_request_bytes)
        )?;
        writeln!(
            f,
            "host memory  {} pages of {} KiB = {}: {} for the window, {} for blocks at its edges, {} for reads in flight",
            self.pages,
            self.page_bytes / 1024,
            page_mib(self.pages),
            page_mib(self.window_pages),
            page_mib(self.edge_pages),
            page_mib(self.spare_pages()),
        )?;
        write!(f, "device       {}: {} slots of {}", self.device, self.slots, mib(self.slot_bytes as u64))
    }
}
