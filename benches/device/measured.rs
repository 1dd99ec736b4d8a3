//! Everything that is measured, and where: what is kept as JSON.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use farfeed::Result;
use farfeed::device::measure::{Apparatus, Effort, Finding, Verdict, findings, measure_parts};
use farfeed::device::{Device, probe};
use serde::{Deserialize, Serialize};

use super::apart;
use super::epoch::{Scene, epoch};
use super::lifetimes::lifetimes;
use super::machine::Machine;

/// What is measured here: with the tests that were carried along, what `--only` chooses from.
pub(crate) const PARTS: [&str; 7] = ["page-locking", "enqueueing", "copies", "engine", "overlap", "epoch", "lifetimes"];

pub(crate) struct Wanted {
    pub(crate) effort: Effort,
    pub(crate) scene: Scene,
    pub(crate) effort_name: &'static str,
    pub(crate) parts: Vec<String>,
    /// How long lifetimes are tried, and how many digests there is room for.
    pub(crate) lifetimes: (Duration, usize),
    /// What serves the epoch's scene.
    pub(crate) server: fn() -> Command,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) machine: Machine,
    pub(crate) gpu: Gpu,
    pub(crate) version: String,
    /// How thoroughly.
    pub(crate) effort: String,
    pub(crate) seconds: f64,
    pub(crate) findings: Vec<Finding>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Gpu {
    pub(crate) name: String,
    pub(crate) memory_bytes: u64,
    pub(crate) compute_capability: (u32, u32),
    pub(crate) copy_engines: u32,
    /// Empty where it was not asked for.
    pub(crate) bus: String,
    /// The CUDA version that the driver supports.
    pub(crate) cuda: Option<(u32, u32)>,
    /// The driver's own version, where the kernel tells.
    pub(crate) driver: String,
}

impl Measured {
    /// Nothing yet.
    pub(crate) fn begin(device: &Device, effort: &str) -> Measured {
        Measured {
            machine: Machine::look(),
            gpu: Gpu::look(device),
            version: env!("CARGO_PKG_VERSION").into(),
            effort: effort.into(),
            seconds: 0.0,
            findings: Vec::new(),
        }
    }

    /// Measures in this process; `told` is called before each part.
    ///
    /// # Errors
    /// Those of opening the device. A part that fails is a finding.
    pub(crate) fn take(device: &Device, wanted: &Wanted, mut told: impl FnMut(&str)) -> Result<Measured> {
        let begun = Instant::now();
        let mut measured = Measured::begin(device, wanted.effort_name);
        let is_wanted = |part: &str| wanted.parts.iter().any(|wanted| wanted == part);
        measured.gpu.bus = Apparatus::open(device)?.bus_address().unwrap_or_else(|error| error.to_string());
        let mut all = measure_parts(device, &wanted.effort, is_wanted, &mut told)?;
        if is_wanted("epoch") {
            told("epoch");
            all.extend(findings("epoch", epoch(device, &wanted.effort, &wanted.scene, (wanted.server)())));
        }
        if is_wanted("lifetimes") {
            told("lifetimes");
            all.extend(findings("lifetimes", lifetimes(device, &wanted.effort, wanted.lifetimes)));
        }
        (measured.findings, measured.seconds) = (all, begun.elapsed().as_secs_f64());
        Ok(measured)
    }

    /// Has `command` measure `part` in a process of its own, for `limit` at most, and print what it found. Whatever becomes of it is a finding.
    pub(crate) fn take_apart(&mut self, part: &str, command: Command, limit: Duration) {
        let ended = match apart::run(command, limit) {
            Ok(ended) => ended,
            Err(error) => return self.findings.push(Finding::failed(part, "all of it", error)),
        };
        self.seconds += ended.seconds;
        // On a line of its own, or behind what a test's binary says of itself.
        let read = |line: &str| serde_json::from_str::<Measured>(&line[line.find('{')?..]).ok();
        let Some(told) = ended.output.lines().find_map(read) else {
            let why = format!("{}; it said: {}", ended.how(), ended.output.trim());
            return self.findings.push(Finding::failed(part, "all of it", why));
        };
        let failed = told.failed();
        self.gpu = told.gpu;
        self.findings.extend(told.findings);
        // A crash while it ended, behind the last figure.
        if !ended.well() && !failed {
            self.findings.push(Finding::failed(part, "the end of it", ended.how()));
        }
    }

    /// Whether something did not work, or was wrong.
    pub(crate) fn failed(&self) -> bool {
        self.findings.iter().any(|finding| finding.verdict == Verdict::Failed)
    }
}

impl Gpu {
    /// What is known without opening it.
    fn look(device: &Device) -> Gpu {
        let told = probe();
        let facts = told.devices.into_iter().find(|facts| Some(facts.ordinal) == device.ordinal());
        let driver = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
        // "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue …"
        let driver = driver.split_whitespace().find(|word| word.contains('.')).unwrap_or("unknown").to_owned();
        Gpu {
            name: facts.as_ref().map(|facts| facts.name.clone()).unwrap_or_default(),
            memory_bytes: facts.as_ref().map_or(0, |facts| facts.memory_bytes),
            compute_capability: facts.as_ref().map_or((0, 0), |facts| facts.compute_capability),
            copy_engines: facts.as_ref().map_or(0, |facts| facts.copy_engines),
            bus: String::new(),
            cuda: told.version,
            driver,
        }
    }
}
