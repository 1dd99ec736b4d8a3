//! When and where figures were taken: figures without that say nothing.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Shown above the tables, and kept with them.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// As in 2026-11-21, of universal time.
    date: String,
    processor: String,
    cores: usize,
    memory_gib: u64,
    kernel: String,
    /// Processes that wanted a core in the last minute before the start, on average. Above 1, others were measured too.
    load: f64,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map_or(String::new(), |(_, value)| value.trim().to_owned())
        };
        let total = field(&read("/proc/meminfo"), "MemTotal");
        let kib: u64 = total.trim_end_matches(" kB").parse().unwrap_or(0);
        Machine {
            date: date(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 86_400),
            processor: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().unwrap().get(),
            memory_gib: kib >> 20,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Machine { date, processor, cores, memory_gib, kernel, load } = self;
        write!(f, "{date}; {cores} cores of {processor}, {memory_gib} GiB, Linux {kernel}; load {load} before")
    }
}

/// Of so many days after 1 January 1970.
fn date(days: u64) -> String {
    // Years begin in March here, so that the day that some have more comes last.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    format!("{}-{month:02}-{day:02}", era * 400 + year + u64::from(month <= 2))
}
