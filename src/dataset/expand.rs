//! Patterns of shard names: `train-{0000..0255}.tar`, `{train,extra}/{00..99}.tar`.

use std::fmt::Write;

use crate::error::{Error, Kind, Result};

/// Names that one pattern stands for, at most.
const NAMES_MAX: u64 = 1_000_000;
/// Bytes of all of these, at most.
const BYTES_MAX: u64 = 256 << 20;
const PATTERN_BYTES_MAX: usize = 64 * 1024;
/// Braces within braces.
const DEPTH_MAX: usize = 16;

/// The names that a pattern stands for, in the order in which it writes them: the last braces vary fastest.
///
/// `{007..012}` counts and keeps the zeros in front, `{9..0}` counts down, `{0..9..3}` in steps; `{a,b,c}` lists, and may hold further braces.
/// There is no escape: a name with braces in it cannot be written.
///
/// # Errors
/// `Config` for braces that are neither, for unmatched ones, and for more than a million names.
pub fn expand(pattern: &str) -> Result<Vec<String>> {
    let sequence = Parser { pattern, at: 0 }.pattern()?;
    let count = sequence.count().filter(|&count| count <= NAMES_MAX);
    let bytes = count.and_then(|count| sequence.longest().checked_mul(count)).filter(|&bytes| bytes <= BYTES_MAX);
    let (Some(_), Some(_)) = (count, bytes) else {
        return Err(Error::new(
            Kind::Config,
            format!(
                "pattern '{}' stands for more than {NAMES_MAX} names, or more than {BYTES_MAX} bytes of them",
                short(pattern)
            ),
        )
        .advice("name fewer shards at once, or a directory"));
    };
    let mut names = vec![String::new()];
    sequence.append(&mut names);
    Ok(names)
}

/// Enough of a pattern to know it by.
fn short(pattern: &str) -> &str {
    let end = (0..=pattern.len().min(200)).rev().find(|&end| pattern.is_char_boundary(end)).unwrap_or(0);
    &pattern[..end]
}

/// Parts one behind the other: every combination of them is a name.
struct Sequence(Vec<Part>);

enum Part {
    Text(String),
    Alternatives(Vec<Sequence>),
    Numbers { first: u64, last: u64, step: u64, width: usize },
}

impl Sequence {
    fn count(&self) -> Option<u64> {
        self.0.iter().try_fold(1u64, |count, part| count.checked_mul(part.count()?))
    }

    /// Bytes of the longest name, or more.
    fn longest(&self) -> u64 {
        self.0.iter().map(Part::longest).fold(0, u64::saturating_add)
    }

    /// Replaces each of `names` by itself followed by each name of this sequence.
    fn append(&self, names: &mut Vec<String>) {
        for part in &self.0 {
            part.append(names);
        }
    }
}

impl Part {
    fn count(&self) -> Option<u64> {
        match self {
            Part::Text(_) => Some(1),
            Part::Alternatives(all) => all.iter().try_fold(0u64, |count, one| count.checked_add(one.count()?)),
            Part::Numbers { first, last, step, .. } => (first.abs_diff(*last) / step).checked_add(1),
        }
    }

    fn longest(&self) -> u64 {
        match self {
            Part::Text(text) => text.len() as u64,
            Part::Alternatives(all) => all.iter().map(Sequence::longest).max().unwrap_or(0),
            Part::Numbers { width, .. } => (*width).max(20) as u64,
        }
    }

    fn append(&self, names: &mut Vec<String>) {
        match self {
            Part::Text(text) => names.iter_mut().for_each(|name| name.push_str(text)),
            Part::Alternatives(all) => {
                let tails: Vec<String> = all
                    .iter()
                    .flat_map(|one| {
                        let mut tails = vec![String::new()];
                        one.append(&mut tails);
                        tails
                    })
                    .collect();
                *names = names.iter().flat_map(|name| tails.iter().map(move |tail| format!("{name}{tail}"))).collect();
            }
            Part::Numbers { first, last, step, width } => {
                let numbers = || {
                    (0..=first.abs_diff(*last) / step)
                        .map(move |place| if first <= last { first + place * step } else { first - place * step })
                };
                let named = |name: &String, number: u64| {
                    let mut name = name.clone();
                    // Writing to a string does not fail.
                    let _ = write!(name, "{number:0width$}");
                    name
                };
                *names = names.iter().flat_map(|name| numbers().map(move |number| named(name, number))).collect();
            }
        }
    }
}

struct Parser<'a> {
    pattern: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn pattern(&mut self) -> Result<Sequence> {
        if self.pattern.len() > PATTERN_BYTES_MAX {
            return Err(self.refuse(&format!("is longer than {PATTERN_BYTES_MAX} bytes")));
        }
        let sequence = self.sequence(0)?;
        match self.next() {
            None => Ok(sequence),
            Some(_) => Err(self.refuse("has a '}' without its '{'")),
        }
    }

    /// Up to the end, or to what ends an alternative: `,` and `}` within braces, `}` outside.
    fn sequence(&mut self, depth: usize) -> Result<Sequence> {
        let mut parts = Vec::new();
        while let Some(byte) = self.next() {
            match byte {
                b'}' => break,
                b',' if depth > 0 => break,
                b'{' if depth == DEPTH_MAX => return Err(self.refuse(&format!("nests braces deeper than {DEPTH_MAX}"))),
                b'{' => parts.push(self.braces(depth + 1)?),
                _ => {
                    let ends = |byte: u8| matches!(byte, b'{' | b'}') || byte == b',' && depth > 0;
                    let rest = &self.pattern[self.at..];
                    let len = rest.bytes().position(ends).unwrap_or(rest.len());
                    parts.push(Part::Text(rest[..len].to_owned()));
                    self.at += len;
                }
            }
        }
        Ok(Sequence(parts))
    }

    fn braces(&mut self, depth: usize) -> Result<Part> {
        self.at += 1;
        let mut alternatives = Vec::new();
        loop {
            alternatives.push(self.sequence(depth)?);
            match self.next() {
                Some(b',') => self.at += 1,
                Some(_) => break,
                None => return Err(self.refuse("has a '{' without its '}'")),
            }
        }
        self.at += 1;
        match alternatives.as_slice() {
            [Sequence(parts)] => match parts.as_slice() {
                [Part::Text(range)] => self.numbers(range),
                _ => Err(self.refuse("has braces around neither a range nor a list")),
            },
            _ => Ok(Part::Alternatives(alternatives)),
        }
    }

    fn numbers(&self, range: &str) -> Result<Part> {
        let wrong = || self.refuse(&format!("has '{{{}}}', which is no range such as 000..099", short(range)));
        let mut bounds = range.split("..");
        let (Some(first), Some(last), step, None) = (bounds.next(), bounds.next(), bounds.next(), bounds.next()) else {
            return Err(wrong());
        };
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse::<u64>().ok()).flatten().ok_or_else(wrong)
        };
        let padded = |digits: &str| digits.len() > 1 && digits.starts_with('0');
        let width = if padded(first) || padded(last) { first.len().max(last.len()) } else { 0 };
        let (first, last, step) = (number(first)?, number(last)?, step.map_or(Ok(1), number)?);
        if step == 0 {
            return Err(self.refuse("counts in steps of 0"));
        }
        Ok(Part::Numbers { first, last, step, width })
    }

    fn next(&self) -> Option<u8> {
        self.pattern.as_bytes().get(self.at).copied()
    }

    fn refuse(&self, what: &str) -> Error {
        Error::new(Kind::Config, format!("pattern '{}' {what}, at byte {}", short(self.pattern), self.at))
            .advice("write train-{0000..0255}.tar, or {train,extra}.tar")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(pattern: &str) -> Vec<String> {
        expand(pattern).unwrap()
    }

    #[test]
    fn counts_and_lists() {
        assert_eq!(names("a-{008..011}.tar"), ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]);
        assert_eq!(names("{8..11}"), ["8", "9", "10", "11"]);
        assert_eq!(names("{3..1}"), ["3", "2", "1"]);
        assert_eq!(names("{00..10..5}"), ["00", "05", "10"]);
        assert_eq!(names("{10..0..4}"), ["10", "6", "2"]);
        assert_eq!(names("{a,b}/{0..1}"), ["a/0", "a/1", "b/0", "b/1"]);
        assert_eq!(names("{a{0..1},b{x,}}!"), ["a0!", "a1!", "bx!", "b!"]);
        assert_eq!(names("s3://b/é,.tar"), ["s3://b/é,.tar"]);
        assert_eq!(names(""), [""]);
        assert_eq!(names("{18446744073709551614..18446744073709551615}").len(), 2);
    }

    #[test]
    fn names_what_is_wrong() {
        for (pattern, what) in [
            ("a{0..9", "without its '}'"),
            ("a}b", "without its '{'"),
            ("{abc}", "no range"),
            ("{}", "neither a range nor a list"),
            ("{a..z}", "no range"),
            ("{0..9..0}", "steps of 0"),
            ("{0..1..2..3}", "no range"),
            ("{{0..3}}", "neither"),
            ("{0..99999999999999999999}", "no range"),
            ("{0..9999}{0..9999}", "more than 1000000 names"),
            ("{0..18446744073709551615}", "more than 1000000 names"),
            ("{,{,{,{,{,{,{,{,{,{,{,{,{,{,{,{,{,}}}}}}}}}}}}}}}}}", "deeper than 16"),
        ] {
            let error = expand(pattern).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
            assert!(error.to_string().contains(what), "{pattern}: {error}");
        }
        let long = format!("{}{{0..99999}}", "x".repeat(60_000));
        assert!(expand(&long).unwrap_err().to_string().contains("268435456 bytes"));
    }

    proptest! {
        #[test]
        fn any_text_is_expanded_or_refused(pattern in "[{}.,0-9a-c]{0,40}") {
            if let Ok(names) = expand(&pattern) {
                prop_assert!(!names.is_empty() && names.len() as u64 <= NAMES_MAX);
                let braces = names.iter().any(|name| name.contains(['{', '}']));
                prop_assert!(!braces);
            }
        }

        #[test]
        fn ranges_are_what_format_writes(first in 0u64..2000, count in 0u64..50, width in 1usize..6) {
            let last = first + count;
            let pattern = format!("x{{{first:0width$}..{last:0width$}}}y");
            // Where the first number fills the width, there are no zeros to keep.
            let expected: Vec<_> = (first..=last).map(|number| format!("x{number:0width$}y")).collect();
            prop_assert_eq!(expand(&pattern).unwrap(), expected);
        }
    }
}
