//! What GPUs do with batches, measured: `farfeed doctor --gpu`.

use farfeed::device::measure::{Effort, Finding, Verdict, measure_parts};
use farfeed::device::{Device, DeviceFacts, DriverFacts};
use serde::Serialize;

use crate::output;
use crate::progress;

/// What was found on one device.
#[derive(Serialize)]
pub(super) struct Measured {
    device: u32,
    name: String,
    /// Whether it was only seen that all works: figures mean nothing then.
    quick: bool,
    findings: Vec<Finding>,
}

/// Measures each device, one after the other. A device that cannot be opened has one finding: why.
pub(super) fn measure(driver: &DriverFacts, quick: bool, quiet: bool) -> impl Iterator<Item = Measured> {
    driver.devices.iter().map(move |facts| Measured::take(facts, quick, quiet))
}

impl Measured {
    fn take(facts: &DeviceFacts, quick: bool, quiet: bool) -> Measured {
        let effort = if quick { Effort::glance() } else { Effort::short() };
        let bar = progress::bar(quiet, "{spinner} measuring {msg}");
        let told = |part: &str| {
            bar.set_message(format!("cuda:{}: {part}", facts.ordinal));
            bar.tick();
        };
        let found = Device::cuda(facts.ordinal).and_then(|device| measure_parts(&device, &effort, |_| true, told));
        bar.finish_and_clear();
        let findings = found.unwrap_or_else(|error| vec![Finding::failed("device", "opening it", error)]);
        Measured { device: facts.ordinal, name: facts.name.clone(), quick, findings }
    }

    /// A line for each figure, under the parts' names; what failed or is no figure has its words below.
    pub(super) fn text(&self, columns: usize) -> String {
        let how = if self.quick { "tried: figures mean nothing" } else { "measured" };
        let mut lines = vec![format!("cuda:{} {}, {how}", self.device, self.name)];
        let width = self.findings.iter().map(|finding| finding.name.chars().count()).max().unwrap_or(0);
        let mut part = "";
        for finding in &self.findings {
            if finding.part != part {
                part = &finding.part;
                lines.push(format!("  {part}"));
            }
            let mark = match finding.verdict {
                Verdict::Met => "✓",
                Verdict::Told => " ",
                Verdict::Missed => "–",
                Verdict::Failed => "✗",
            };
            let (figure, wanted) = (finding.figure(), finding.wanted());
            let name = &finding.name;
            let wanted = if wanted.is_empty() { wanted } else { format!("({wanted})") };
            if finding.value.is_some() {
                lines.push(format!("  {mark} {name:<width$}  {figure:>11}  {wanted}").trim_end().to_owned());
            } else {
                lines.push(format!("  {mark} {name}"));
                lines.extend(
                    output::wrapped(&finding.detail, columns - 6).into_iter().map(|line| format!("      {line}")),
                );
            }
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use farfeed::device::measure::Target;

    use super::*;

    #[test]
    fn figures_have_lines_and_failures_have_words() {
        let findings = vec![
            Finding::new("copies", "ceiling", 54.32, "GB/s"),
            Finding::new("copies", "4096 KiB at a time, 1 stream", 96.04, "%").target(Target::AtLeast(95.0)),
            Finding::new("overlap", "slower by", 4.5, "%").target(Target::AtMost(3.0)),
            Finding::failed(
                "engine",
                "all of it",
                "a batch has the digest 0x1 on the device, and it should have another one than that",
            ),
        ];
        let text = Measured { device: 1, name: "NVIDIA H100".into(), quick: false, findings }.text(80);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "cuda:1 NVIDIA H100, measured");
        assert_eq!(lines[1], "  copies");
        assert!(lines[2].ends_with("54.3 GB/s") && lines[3].ends_with("96.0 %  (≥ 95 %)"), "{text}");
        assert!(lines[3].starts_with("  ✓") && lines[5].starts_with("  –") && lines[7].starts_with("  ✗"), "{text}");
        assert_eq!(lines.len(), 10, "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
    }
}
