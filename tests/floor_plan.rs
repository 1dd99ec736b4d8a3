//! Who may import whom, where `unsafe` may stand, how long a file may be, and what a room must say of itself.
//!
//! The table is that of `docs/ARCHITECTURE.md`, and the two are compared. Sources are read token by token, so that comments, strings and test modules
//! don't count.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A room and the rooms that it may import.
const FLOOR_PLAN: [(&str, &[&str]); 14] = [
    ("error", &[]),
    ("sys", &["error"]),
    ("memory", &["sys", "error"]),
    ("dataset", &["error"]),
    ("order", &["error", "dataset"]),
    ("schedule", &["error", "dataset", "order"]),
    ("store", &["memory", "sys", "error", "dataset"]),
    ("fetch", &["store", "schedule", "memory", "telemetry", "error", "dataset"]),
    ("decode", &["error"]),
    ("device", &["memory", "sys", "error", "telemetry"]),
    ("telemetry", &["error"]),
    ("probe", &["store", "memory", "error"]),
    ("emulate", &["sys", "error"]),
    (
        "loader",
        &[
            "error",
            "sys",
            "memory",
            "dataset",
            "order",
            "schedule",
            "store",
            "fetch",
            "decode",
            "device",
            "telemetry",
            "probe",
            "emulate",
        ],
    ),
];

/// A file longer than this asks to be split.
const LINES_MAX: usize = 600;

#[test]
fn rooms_import_what_the_table_allows() {
    let reexports = reexports(&tokens(&read(&root().join("src/lib.rs"))));
    let mut offences = Vec::new();
    for source in sources("src") {
        let Some(room) = source.room() else { continue };
        let Some(allowed) = allowed(&room) else {
            offences.push(format!("{}: no room {room} in the table", source.name));
            continue;
        };
        for import in imports(&source.code, source.depth()) {
            let to = reexports.get(&import).unwrap_or(&import);
            if *to != room && !allowed.contains(&to.as_str()) {
                offences.push(format!("{}: {room} may not import {to}", source.name));
            }
        }
    }
    assert!(offences.is_empty(), "see FLOOR_PLAN:\n{}", offences.join("\n"));
}

#[test]
fn the_table_has_no_circles_and_nobody_imports_the_loader() {
    let mut settled = BTreeSet::new();
    while let Some((room, _)) = FLOOR_PLAN
        .iter()
        .find(|(room, imports)| !settled.contains(room) && imports.iter().all(|import| settled.contains(import)))
    {
        settled.insert(*room);
    }
    assert_eq!(settled.len(), FLOOR_PLAN.len(), "a circle among the rooms other than {settled:?}");
    assert!(FLOOR_PLAN.iter().all(|(_, imports)| !imports.contains(&"loader")));
}

#[test]
fn the_architecture_shows_the_same_table() {
    let text = read(&root().join("docs/ARCHITECTURE.md"));
    let shown: BTreeMap<String, BTreeSet<String>> = text
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
            let (room, imports) = (cells.next()?, cells.next()?);
            allowed(room)?;
            let imports = imports.split(',').map(|name| name.trim().to_owned());
            Some((room.to_owned(), imports.filter(|name| name != "–").collect()))
        })
        .collect();
    for (room, imports) in FLOOR_PLAN {
        let shown = shown.get(room).unwrap_or_else(|| panic!("docs/ARCHITECTURE.md lacks the room {room}"));
        let held: BTreeSet<String> = imports.iter().map(|name| (*name).to_owned()).collect();
        let everything = room == "loader" && *shown == BTreeSet::from(["all".to_owned()]);
        assert!(everything || *shown == held, "{room}: docs/ARCHITECTURE.md shows {shown:?}, the test holds {held:?}");
    }
}

#[test]
fn unsafe_stands_in_sys_and_where_its_room_is_another() {
    let crates = ["src", "cli", "ffi", "tests", "examples", "benches"];
    let offences: Vec<String> = crates
        .iter()
        .flat_map(|folder| sources(folder))
        // The double of the driver is a C library.
        .filter(|source| !source.name.starts_with("tests/driver-double/"))
        .filter(|source| source.name != "ffi/python/src/dlpack.rs")
        // It launches a kernel of its own, which is the user's to vouch for.
        .filter(|source| source.name != "examples/07_kernel.rs")
        .filter(|source| source.room().as_deref() != Some("sys") && source.all.iter().any(|token| token == "unsafe"))
        .map(|source| source.name)
        .collect();
    assert!(
        offences.is_empty(),
        "unsafe outside src/sys, the binding's dlpack.rs and the kernel's example: {offences:?}"
    );
}

#[test]
fn no_file_is_too_long() {
    let folders = ["src", "cli", "tests", "examples", "benches", "ffi"];
    let offences: Vec<String> = folders
        .iter()
        .flat_map(|folder| sources(folder))
        .filter(|source| source.lines > LINES_MAX)
        .map(|source| format!("{}: {} lines", source.name, source.lines))
        .collect();
    assert!(offences.is_empty(), "longer than {LINES_MAX} lines: {offences:?}");
}

#[test]
fn every_room_answers_the_five_questions() {
    let mut offences = Vec::new();
    for (room, _) in FLOOR_PLAN.iter().filter(|(room, _)| is_built(room)) {
        let text = read(&root().join("src").join(room).join("mod.rs"));
        let doc: String = text.lines().filter_map(|line| line.strip_prefix("//!")).collect::<String>().to_lowercase();
        for answer in ["*takes*", "*gives*", "*owns*", "*bounded*", "*fails*"] {
            if !doc.contains(answer) {
                offences.push(format!("src/{room}/mod.rs does not say {answer}"));
            }
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

/// Whether the room is a folder with something in it; `error` is a file.
fn is_built(room: &str) -> bool {
    fs::read_dir(root().join("src").join(room)).is_ok_and(|mut entries| entries.next().is_some())
}

fn allowed(room: &str) -> Option<&'static [&'static str]> {
    FLOOR_PLAN.iter().find(|(name, _)| *name == room).map(|(_, imports)| *imports)
}

struct Source {
    /// Path from the repository's root.
    name: String,
    path: PathBuf,
    lines: usize,
    /// All tokens.
    all: Vec<String>,
    /// Those outside test modules.
    code: Vec<String>,
}

impl Source {
    /// The room that the file belongs to; none for `src/lib.rs`, and for what is not in `src`.
    fn room(&self) -> Option<String> {
        let inside = self.path.strip_prefix(root().join("src")).ok()?;
        let first = Path::new(inside.components().next()?.as_os_str()).with_extension("");
        let room = first.to_str()?.to_owned();
        (room != "lib").then_some(room)
    }

    /// How many `super` lead from the file's module to the crate's root.
    fn depth(&self) -> usize {
        let components = self.path.strip_prefix(root().join("src")).unwrap().components().count();
        if self.path.ends_with("mod.rs") { components - 1 } else { components }
    }
}

/// All Rust files under a folder, without those that only tests include.
fn sources(folder: &str) -> Vec<Source> {
    let (mut found, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(source(path));
            }
        }
    }
    let test_files: Vec<PathBuf> = found.iter().flat_map(test_only_files).collect();
    for source in &mut found {
        if test_files.iter().any(|file| source.path.starts_with(file) || source.path == file.with_extension("rs")) {
            source.code.clear();
        }
    }
    assert!(!(found.is_empty() && folder == "src"), "no sources found");
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn source(path: PathBuf) -> Source {
    let text = read(&path);
    let all = tokens(&text);
    let (code, _) = without_tests(&all);
    let name = path.strip_prefix(root()).unwrap().display().to_string();
    Source { name, path, lines: text.lines().count(), all, code }
}

/// Paths, without their extension, of the modules that a file declares under `cfg(test)`.
fn test_only_files(source: &Source) -> Vec<PathBuf> {
    let (_, modules) = without_tests(&source.all);
    let own = if source.path.ends_with("mod.rs") || source.path.ends_with("lib.rs") {
        source.path.parent().unwrap().to_owned()
    } else {
        source.path.with_extension("")
    };
    modules.into_iter().map(|module| own.join(module)).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Identifiers and single punctuation marks; comments and literals left out.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let (mut found, mut i) = (Vec::new(), 0);
    while i < chars.len() {
        match chars[i] {
            '/' if at(i + 1) == '/' => i = (i..chars.len()).find(|j| at(*j) == '\n').unwrap_or(chars.len()),
            '/' if at(i + 1) == '*' => i = past_block_comment(&chars, i),
            '"' => i = past_string(&chars, i),
            // A lifetime has no closing quote two or, after a backslash, more places on.
            '\'' if at(i + 1) == '\\' => i = (i + 3..chars.len()).find(|j| at(*j) == '\'').unwrap_or(chars.len()) + 1,
            '\'' if at(i + 2) == '\'' => i += 3,
            c if c.is_alphabetic() || c == '_' => {
                let end =
                    (i..chars.len()).find(|j| !(at(*j).is_alphanumeric() || at(*j) == '_')).unwrap_or(chars.len());
                let word: String = chars[i..end].iter().collect();
                let hashes = chars[end..].iter().take_while(|c| **c == '#').count();
                i = end;
                if matches!(word.as_str(), "r" | "br" | "cr") && at(end + hashes) == '"' {
                    i = past_raw_string(&chars, end + hashes, hashes);
                } else {
                    found.push(word);
                }
            }
            c if c.is_whitespace() => i += 1,
            c => {
                found.push(c.to_string());
                i += 1;
            }
        }
    }
    found
}

fn past_block_comment(chars: &[char], start: usize) -> usize {
    let (mut depth, mut i) = (0usize, start);
    while i < chars.len() {
        match chars.get(i..i + 2) {
            Some(['/', '*']) => (depth, i) = (depth + 1, i + 2),
            Some(['*', '/']) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    i
}

fn past_string(chars: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// `quote` is the place of the opening quote.
fn past_raw_string(chars: &[char], quote: usize, hashes: usize) -> usize {
    let closes = |i: &usize| chars[*i] == '"' && chars[i + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
    (quote + 1..chars.len()).find(closes).map_or(chars.len(), |i| i + 1 + hashes)
}

/// The tokens without items under `cfg(test)`, and the names of modules declared, without a body, among those.
fn without_tests(tokens: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut kept, mut modules, mut i) = (Vec::new(), Vec::new(), 0);
    while i < tokens.len() {
        let attribute = attribute_end(tokens, i);
        let Some(end) = attribute.filter(|end| is_test_only(&tokens[i..*end])) else {
            kept.push(tokens[i].clone());
            i += 1;
            continue;
        };
        let mut item = end;
        while let Some(end) = attribute_end(tokens, item) {
            item = end;
        }
        let end = item_end(tokens, item);
        if let [.., keyword, name, last] = &tokens[item..end]
            && keyword == "mod"
            && last == ";"
        {
            modules.push(name.clone());
        }
        i = end;
    }
    (kept, modules)
}

/// One past the attribute that starts at `start`, if one does.
fn attribute_end(tokens: &[String], start: usize) -> Option<usize> {
    (tokens.get(start)? == "#" && tokens.get(start + 1)? == "[").then(|| closing(tokens, start + 1))
}

fn is_test_only(attribute: &[String]) -> bool {
    let has = |word: &str| attribute.iter().any(|token| token == word);
    has("cfg") && has("test") && !has("not") && !has("any")
}

/// One past the item that starts at `start`: its semicolon, or its closing brace.
fn item_end(tokens: &[String], start: usize) -> usize {
    let mut i = start;
    while i < tokens.len() {
        match tokens[i].as_str() {
            "(" | "[" => i = closing(tokens, i),
            // The braces of an import are followed by a semicolon.
            "{" if tokens.get(start).is_some_and(|first| first == "use") => i = closing(tokens, i),
            "{" => return closing(tokens, i),
            ";" => return i + 1,
            _ => i += 1,
        }
    }
    i
}

/// One past the bracket that closes the one at `open`.
fn closing(tokens: &[String], open: usize) -> usize {
    let mut depth = 0usize;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match token.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i + 1;
        }
    }
    tokens.len()
}

/// First names of all paths that begin at the crate's root, in code `depth` modules below it.
fn imports(tokens: &[String], depth: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut i = 0;
    while i < tokens.len() {
        let Some(after) = past_root(tokens, i, depth) else {
            i += 1;
            continue;
        };
        found.extend(heads(tokens, after));
        i = after;
    }
    found
}

/// One past `crate::`, or past as many `super::` as lead to the root, if that stands at `start`.
fn past_root(tokens: &[String], start: usize, depth: usize) -> Option<usize> {
    let is_colons = |i: usize| tokens.get(i..i + 2).is_some_and(|pair| pair == [":", ":"]);
    if tokens[start] == "crate" && is_colons(start + 1) {
        return Some(start + 3);
    }
    // The first `super` of a chain, not one in its middle.
    if tokens[start] != "super" || (start > 0 && tokens[start - 1] == ":") {
        return None;
    }
    let mut i = start;
    let mut supers = 0;
    while tokens.get(i).is_some_and(|token| token == "super") && is_colons(i + 1) {
        (supers, i) = (supers + 1, i + 3);
    }
    (supers >= depth.max(1)).then_some(i)
}

/// The name at `start`, or the names that head the members of the group there.
fn heads(tokens: &[String], start: usize) -> Vec<String> {
    match tokens.get(start).map(String::as_str) {
        Some("{") => {
            let (mut heads, mut i) = (Vec::new(), start + 1);
            let end = closing(tokens, start) - 1;
            while i < end {
                heads.push(tokens[i].clone());
                while i < end && tokens[i] != "," {
                    i = if tokens[i] == "{" { closing(tokens, i) } else { i + 1 };
                }
                i += 1;
            }
            heads
        }
        Some(head) => vec![head.to_owned()],
        None => Vec::new(),
    }
}

/// Names that `lib.rs` gives to things of a room: `pub use error::{Error, Kind}` makes `Error` the room `error`.
fn reexports(tokens: &[String]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (i, pair) in tokens.windows(2).enumerate().filter(|(_, pair)| pair[0] == "use") {
        let room = &pair[1];
        let end = item_end(tokens, i);
        let names = tokens[i..end].iter().filter(|token| token.chars().all(|c| c.is_alphanumeric() || c == '_'));
        found.extend(
            names.filter(|name| allowed(room).is_some() && *name != room).map(|name| (name.clone(), room.clone())),
        );
    }
    found
}

mod the_reader {
    use super::*;

    fn found(code: &str, depth: usize) -> Vec<String> {
        imports(&without_tests(&tokens(code)).0, depth).into_iter().collect()
    }

    #[test]
    fn sees_every_shape_of_import() {
        assert_eq!(found("use crate::memory::Page;", 1), ["memory"]);
        assert_eq!(
            found("use crate::{\n  error::{Error, Kind}, memory, store::{self, file::X} };", 1),
            ["error", "memory", "store"]
        );
        assert_eq!(found("pub(crate) fn f() -> crate::Result<()> { $crate::sys::g() }", 1), ["Result", "sys"]);
        assert_eq!(found("use super::super::loader::Loader; use super::lane;", 2), ["loader"]);
        assert_eq!(found("use super::loader::Loader;", 1), ["loader"]);
        assert_eq!(found("use crate::*;", 1), ["*"]);
    }

    #[test]
    fn skips_what_is_not_code() {
        let code = r####"
            // use crate::a::A;
            /* use crate::b; /* use crate::c; */ use crate::d; */
            const S: &str = "use crate::e; \" use crate::f;"; const R: &str = r#"" crate::g::x"#; const C: char = '"'; const D: char = '\'';
            fn life<'a>(x: &'a str) -> crate::kept::X<'a> { todo(x) }
        "####;
        assert_eq!(found(code, 1), ["kept"]);
    }

    #[test]
    fn skips_tests_and_only_tests() {
        let code = "#[cfg(test)] #[allow(x)] mod tests { use crate::a::{b}; fn f() { {} } } use crate::kept; \
                    #[cfg(test)] use crate::{c, d}; #[cfg(test)] mod brute; #[cfg(not(test))] use crate::also;";
        assert_eq!(found(code, 1), ["also", "kept"]);
        assert_eq!(without_tests(&tokens(code)).1, ["brute"]);
    }

    #[test]
    fn knows_what_the_root_reexports() {
        let names =
            reexports(&tokens("pub mod error; pub use error::{Error, Kind}; pub use loader::Loader; use std::fmt;"));
        assert_eq!(names["Kind"], "error");
        assert_eq!(names["Loader"], "loader");
        assert!(!names.contains_key("fmt"));
    }
}
