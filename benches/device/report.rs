//! What was measured as a table, and as the page in docs/results.

use farfeed::device::measure::{Finding, Verdict};

use super::measured::Measured;

/// For a terminal: aligned, one line each.
pub(crate) fn table(measured: &Measured) -> String {
    let rows: Vec<[String; 5]> = measured.findings.iter().map(row).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    let mut lines = vec![measured.machine.to_string(), gpu(measured), String::new()];
    let mut part = "";
    for (row, finding) in rows.iter().zip(&measured.findings) {
        if finding.part != part {
            part = &finding.part;
            lines.push(part.to_owned());
        }
        let [name, figure, wanted, verdict, detail] = row;
        let [names, figures, targets, verdicts] = widths;
        let line = format!("  {name:<names$}  {figure:>figures$}  {wanted:<targets$}  {verdict:<verdicts$}  {detail}");
        lines.push(line.trim_end().to_owned());
    }
    lines.push(String::new());
    lines.push(summary(measured));
    lines.join("\n")
}

/// For docs/results.
pub(crate) fn page(measured: &Measured) -> String {
    let mut text = String::from("# On a GPU\n\n");
    text += &format!("- Machine: {}.\n- {}.\n", measured.machine, gpu(measured));
    text += &format!(
        "- farfeed {}, effort: {}; {:.0} s. `cargo bench --all-features --bench device`, the JSON beside this page.\n",
        measured.version, measured.effort, measured.seconds
    );
    text += "- The link of *epoch* is emulated, by a process beside it. No network was measured.\n";
    text += &format!("\n{}\n", summary(measured));
    let mut part = "";
    for finding in &measured.findings {
        if finding.part != part {
            part = &finding.part;
            text += &format!("\n## {part}\n\n| | figure | target | | how |\n|---|--:|---|---|---|\n");
        }
        let cells = row(finding).map(|cell| cell.replace('|', "\\|"));
        text += &format!("| {} |\n", cells.join(" | "));
    }
    text
}

/// In words: how many targets there are, and which were missed or not measured.
fn summary(measured: &Measured) -> String {
    let named = |verdict: Verdict| -> Vec<String> {
        let such = measured.findings.iter().filter(|finding| finding.verdict == verdict);
        such.map(|finding| format!("{}, {} ({})", finding.part, finding.name, finding.figure())).collect()
    };
    let (met, missed, failed) = (named(Verdict::Met), named(Verdict::Missed), named(Verdict::Failed));
    let mut text = format!("{} of {} targets met.", met.len(), met.len() + missed.len());
    if !missed.is_empty() {
        text += &format!(" Missed: {}.", missed.join("; "));
    }
    if !failed.is_empty() {
        text += &format!(" FAILED: {}.", failed.join("; "));
    }
    text
}

fn gpu(measured: &Measured) -> String {
    let gpu = &measured.gpu;
    let cuda = gpu.cuda.map_or("unknown".into(), |(major, minor)| format!("{major}.{minor}"));
    let (major, minor) = gpu.compute_capability;
    format!(
        "{}, {} GiB, compute {major}.{minor}, {} copy engines, at {}; driver {}, CUDA {cuda}",
        gpu.name,
        gpu.memory_bytes >> 30,
        gpu.copy_engines,
        gpu.bus,
        gpu.driver
    )
}

fn row(finding: &Finding) -> [String; 5] {
    [finding.name.clone(), finding.figure(), finding.wanted(), finding.verdict.to_string(), finding.detail.clone()]
}
