//! Listing: the files under a prefix of paths.

use std::fs;
use std::io;

use super::ROOT;
use super::descriptor::explain;
use crate::error::{Error, Kind, Result};
use crate::store::ObjectEntry;

/// Files that one listing may find.
const FILES: usize = 1_000_000;
/// Folders below the prefix that a listing enters.
const DEPTH: usize = 64;

/// Files whose paths start with `prefix`, sorted. Links to files count as files; links to folders are not followed,
/// so that no loop is walked.
///
/// # Errors
/// `Config` above [`FILES`] files or [`DEPTH`] levels, or for a name that is not UTF-8; others by their errno.
pub(super) fn walk(prefix: &str) -> Result<Vec<ObjectEntry>> {
    let folder = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
    let mut found = Vec::new();
    // Folders to enter, with a slash at the end ("" is the working directory).
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let shown = if folder.is_empty() { "." } else { &folder };
        let entries = match fs::read_dir(shown) {
            Ok(entries) => entries,
            // A prefix that nothing matches, or a folder removed since: no objects, as in any object store.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            Err(error) => return Err(explain(shown, "listing", error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| explain(shown, "listing", error))?;
            let Ok(name) = entry.file_name().into_string() else {
                return Err(too_odd(shown, "a name that is not UTF-8"));
            };
            let path = format!("{folder}{name}");
            let kind = entry.file_type().map_err(|error| explain(&path, "looking up", error))?;
            if kind.is_dir() {
                if path.starts_with(prefix) {
                    if depth == DEPTH {
                        return Err(too_odd(&path, "too many folders inside each other"));
                    }
                    folders.push((path + "/", depth + 1));
                }
                continue;
            }
            if !path.starts_with(prefix) {
                continue;
            }
            match fs::metadata(&path) {
                Ok(meta) if meta.is_file() => found.push(ObjectEntry { key: path, size: meta.len() }),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(explain(&path, "looking up", error)),
            }
            if found.len() > FILES {
                return Err(too_odd(prefix, "more than a million files"));
            }
        }
    }
    found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(found)
}

fn too_odd(path: &str, what: &str) -> Error {
    Error::new(Kind::Config, format!("{ROOT}{path}: {what}"))
        .advice("name the shards with braces, as in train-{0000..0255}.tar")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_files_by_prefix_in_folders_below_and_follows_no_loop() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_str().unwrap();
        fs::create_dir_all(format!("{root}/train/deep")).unwrap();
        for (name, bytes) in [("train-1", 1), ("train/b", 2), ("train/deep/a", 3), ("valid", 4)] {
            fs::write(format!("{root}/{name}"), vec![0; bytes]).unwrap();
        }
        std::os::unix::fs::symlink(format!("{root}/train"), format!("{root}/train/deep/loop")).unwrap();
        std::os::unix::fs::symlink(format!("{root}/valid"), format!("{root}/train/link")).unwrap();
        let list = |prefix: &str| {
            let found = walk(&format!("{root}/{prefix}")).unwrap();
            found.into_iter().map(|entry| (entry.key[root.len() + 1..].to_owned(), entry.size)).collect::<Vec<_>>()
        };
        let owned = |pairs: &[(&str, u64)]| pairs.iter().map(|(k, s)| ((*k).to_owned(), *s)).collect::<Vec<_>>();
        let below = [("train/b", 2), ("train/deep/a", 3), ("train/link", 4)];
        assert_eq!(list("train/"), owned(&below));
        assert_eq!(list("train"), owned(&[&[("train-1", 1)][..], &below].concat()));
        assert_eq!(list("train/deep"), owned(&[("train/deep/a", 3)]));
        assert!(list("none/at/all").is_empty() && list("val/").is_empty());
    }
}
