//! What goes to standard output: text, tables, one line of JSON.

use std::io::Write;

use farfeed::{Error, Kind, Result};
use indicatif::HumanCount;
use serde::Serialize;

/// Writes `text` and the end of the line.
///
/// # Errors
/// `Io`; a reader that has gone (`farfeed plan … | head -1`) is told by [`is_reader_gone`].
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    written.map_err(|error| Error::new(Kind::Io, "writing to standard output").source(error))
}

/// Writes `value` as one line of JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(value).map_err(|error| Error::new(Kind::Io, "writing JSON").source(error))?;
    print(&line)
}

/// Whether `error` says no more than that nobody reads our output any more.
pub(crate) fn is_reader_gone(error: &Error) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .is_some_and(|source| source.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Rows in columns as wide as their widest cell; columns named in `right` are flush right.
pub(crate) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if right.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `text` in lines of at most `width` letters, cut at spaces; longer words stay whole.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// `3 shards`, `1 shard`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", HumanCount(count), if count == 1 { "" } else { "s" })
}

/// Rounded to six decimal places: microseconds, bytes of a megabyte.
pub(crate) fn rounded(number: f64) -> f64 {
    (number * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "1".into(), "é".into()], vec!["bcd".into(), "22".into()]];
        assert_eq!(table(&rows, &[1]), "a     1  é\nbcd  22");
    }

    #[test]
    fn lines_end_in_time() {
        assert_eq!(wrapped("aé bcd e longest f", 6), ["aé bcd", "e", "longest", "f"]);
        assert_eq!(wrapped("", 6), [""]);
    }

    #[test]
    fn only_a_closed_pipe_is_a_reader_that_has_gone() {
        let error = |kind: std::io::ErrorKind| Error::new(Kind::Io, "x").source(std::io::Error::from(kind));
        assert!(is_reader_gone(&error(std::io::ErrorKind::BrokenPipe)));
        assert!(
            !is_reader_gone(&error(std::io::ErrorKind::StorageFull)) && !is_reader_gone(&Error::new(Kind::Io, "x"))
        );
    }
}
