//! A figure, what it should be, and whether it is.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Result;

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What it belongs to: `copies`, `overlap`.
    pub part: String,
    /// What was measured.
    pub name: String,
    /// How much; `None` where it could not be measured.
    pub value: Option<f64>,
    /// Of what: `GB/s` (10⁹ bytes), `s/GB`, `ns`, `%`.
    pub unit: String,
    /// What it should be.
    pub target: Option<Target>,
    /// Whether it is.
    pub verdict: Verdict,
    /// How it was found, or why it was not.
    pub detail: String,
}

/// What a figure should be, in its unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

/// What became of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Reached.
    Met,
    /// Not reached.
    Missed,
    /// There is none.
    Told,
    /// It could not be measured, or what was computed is wrong.
    Failed,
}

impl Finding {
    /// A figure without a target.
    pub fn new(part: &str, name: impl Into<String>, value: f64, unit: &str) -> Finding {
        Finding {
            part: part.into(),
            name: name.into(),
            value: Some(value),
            unit: unit.into(),
            target: None,
            verdict: Verdict::Told,
            detail: String::new(),
        }
    }

    /// An answer that is no figure.
    pub fn answer(part: &str, name: impl Into<String>, detail: impl Into<String>) -> Finding {
        Finding { value: None, detail: detail.into(), ..Finding::new(part, name, 0.0, "") }
    }

    /// What could not be measured.
    pub fn failed(part: &str, name: impl Into<String>, why: impl fmt::Display) -> Finding {
        Finding { verdict: Verdict::Failed, ..Finding::answer(part, name, why.to_string()) }
    }

    /// Holds it against what it should be. A figure that is none misses every target.
    #[must_use]
    pub fn target(mut self, target: Target) -> Finding {
        let met = match (self.value, target) {
            (Some(value), Target::AtLeast(least)) => value >= least,
            (Some(value), Target::AtMost(most)) => value <= most,
            (None, _) => false,
        };
        self.target = Some(target);
        self.verdict = if met { Verdict::Met } else { Verdict::Missed };
        self
    }

    /// Says how it was found.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Finding {
        self.detail = detail.into();
        self
    }

    /// The figure with its unit, for a table: `54.3 GB/s`.
    pub fn figure(&self) -> String {
        match self.value {
            Some(value) if self.unit.is_empty() => number(value),
            Some(value) => format!("{} {}", number(value), self.unit),
            None => "–".into(),
        }
    }

    /// The target with its unit: `≥ 95 %`.
    pub fn wanted(&self) -> String {
        match self.target {
            Some(Target::AtLeast(least)) => format!("≥ {} {}", number(least), self.unit),
            Some(Target::AtMost(most)) => format!("≤ {} {}", number(most), self.unit),
            None => String::new(),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Met => "met",
            Verdict::Missed => "missed",
            Verdict::Told => "",
            Verdict::Failed => "FAILED",
        })
    }
}

/// What a part found, or the one finding that it failed.
pub fn findings(part: &str, found: Result<Vec<Finding>>) -> Vec<Finding> {
    found.unwrap_or_else(|error| vec![Finding::failed(part, "all of it", error)])
}

/// What `measure` found until it ended, and why it did if it failed.
pub(super) fn as_far(part: &str, measure: impl FnOnce(&mut Vec<Finding>) -> Result<()>) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Err(error) = measure(&mut found) {
        let name = if found.is_empty() { "all of it" } else { "the rest of it" };
        found.push(Finding::failed(part, name, error));
    }
    found
}

/// Three digits that matter; whole thousands as they are.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 && value.fract() != 0.0 => format!("{value:.1}"),
        size if size >= 1.0 && value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The middle of some figures; of none, not a number.
pub(super) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_met_from_their_own_side() {
        let figure = |value: f64| Finding::new("copies", "rate", value, "%");
        for (value, target, verdict) in [
            (95.0, Target::AtLeast(95.0), Verdict::Met),
            (94.9, Target::AtLeast(95.0), Verdict::Missed),
            (3.0, Target::AtMost(3.0), Verdict::Met),
            (3.1, Target::AtMost(3.0), Verdict::Missed),
            (f64::NAN, Target::AtMost(3.0), Verdict::Missed),
            (f64::NAN, Target::AtLeast(3.0), Verdict::Missed),
        ] {
            assert_eq!(figure(value).target(target).verdict, verdict, "{value} {target:?}");
        }
        assert_eq!(Finding::answer("a", "b", "c").target(Target::AtMost(1.0)).verdict, Verdict::Missed);
    }

    #[test]
    fn figures_are_written_with_what_matters() {
        for (value, text) in [(54.321, "54.3 GB/s"), (0.0123, "0.012 GB/s"), (2300.4, "2300 GB/s"), (1.0, "1 GB/s")] {
            assert_eq!(Finding::new("copies", "rate", value, "GB/s").figure(), text);
        }
        assert_eq!(Finding::new("copies", "rate", 1.0, "%").target(Target::AtLeast(95.0)).wanted(), "≥ 95 %");
    }

    #[test]
    fn a_finding_survives_its_json() {
        let finding = Finding::failed("copies", "all of it", "device: lost");
        let text = serde_json::to_string(&finding).unwrap();
        assert_eq!(serde_json::from_str::<Finding>(&text).unwrap(), finding);
    }
}
