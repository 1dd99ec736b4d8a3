//! What was asked for at the prompt: `--name value` and `--name`.

use std::fmt::Debug;
use std::path::PathBuf;
use std::str::FromStr;

pub(crate) struct Options {
    arguments: Vec<String>,
    known: Vec<&'static str>,
}

impl Options {
    pub(crate) fn read() -> Self {
        Options { arguments: std::env::args().skip(1).collect(), known: vec!["--bench", "--test"] }
    }

    /// Whether `cargo bench` asks, or `cargo test --benches`, which wants to know whether it runs and not how fast.
    pub(crate) fn measures(&self) -> bool {
        self.arguments.iter().any(|argument| argument == "--bench")
    }

    pub(crate) fn flag(&mut self, name: &'static str) -> bool {
        self.known.push(name);
        self.arguments.iter().any(|argument| argument == name)
    }

    pub(crate) fn value<T: FromStr<Err: Debug>>(&mut self, name: &'static str, default: T) -> T {
        self.text(name).map_or(default, |text| text.parse().unwrap_or_else(|error| panic!("{name} {text}: {error:?}")))
    }

    pub(crate) fn path(&mut self, name: &'static str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    /// Several values with commas between them.
    pub(crate) fn list<T: FromStr<Err: Debug>>(&mut self, name: &'static str, default: Vec<T>) -> Vec<T> {
        let parse = |text: &str| text.parse().unwrap_or_else(|error| panic!("{name} {text}: {error:?}"));
        self.text(name).map_or(default, |text| text.split(',').map(parse).collect())
    }

    /// Refuses what nobody asked about: a misspelt filter would measure everything.
    pub(crate) fn finish(self) {
        for argument in self.arguments.iter().filter(|argument| argument.starts_with("--")) {
            assert!(self.known.contains(&argument.as_str()), "unknown option {argument}; there are {:?}", self.known);
        }
    }

    fn text(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        let at = self.arguments.iter().position(|argument| argument == name)?;
        Some(self.arguments.get(at + 1).unwrap_or_else(|| panic!("{name} needs a value")).clone())
    }
}
