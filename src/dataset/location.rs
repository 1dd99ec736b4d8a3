//! What URLs and paths have in common, whatever the store.

use std::borrow::Cow;
use std::collections::HashMap;

/// A URL as it may be shown: without user information, query and fragment, which may be secrets. Paths stay as they are.
pub fn shown(url: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = path(url).split_once("://") else { return Cow::Borrowed(url) };
    let host = &rest[..rest.find('/').unwrap_or(rest.len())];
    match host.rfind('@') {
        Some(at) => Cow::Owned(format!("{scheme}://{}", &rest[at + 1..])),
        None => Cow::Borrowed(path(url)),
    }
}

/// Last component of a URL or path, without query and fragment: what stays the same when a dataset is copied elsewhere.
pub(super) fn file_name(url: &str) -> &str {
    let path = path(url).trim_end_matches('/');
    path.rsplit('/').next().unwrap_or(path)
}

/// The URL without query and fragment. Paths have neither: `?` and `#` are letters there.
pub(super) fn path(url: &str) -> &str {
    &url[..path_end(url)]
}

/// Where the query or the fragment begins. Buckets' URLs have neither, as little as paths: their keys may have such letters.
pub(super) fn path_end(url: &str) -> usize {
    match url.split_once("://") {
        None | Some(("s3" | "gs" | "az", _)) => url.len(),
        Some(_) => url.find(['?', '#']).unwrap_or(url.len()),
    }
}

/// Shards by their URLs: each suffix of each path, with the place of the shard that has it, if there is only one.
pub(super) struct ByPath<'a>(HashMap<&'a str, Option<usize>>);

impl<'a> ByPath<'a> {
    pub(super) fn new(urls: impl Iterator<Item = &'a str>) -> Self {
        let mut by_suffix = HashMap::new();
        for (place, url) in urls.enumerate() {
            for suffix in suffixes(path(url)) {
                by_suffix.entry(suffix).and_modify(|only| *only = None).or_insert(Some(place));
            }
        }
        ByPath(by_suffix)
    }

    /// The one that shares the longest run of last path components with `url`; `Some(None)` where several do.
    pub(super) fn find(&self, url: &str) -> Option<Option<usize>> {
        // The longest comes last.
        suffixes(path(url)).filter_map(|suffix| self.0.get(suffix)).last().copied()
    }
}

/// The last component, the last two, and so on.
fn suffixes(path: &str) -> impl Iterator<Item = &str> {
    path.rmatch_indices('/').map(|(slash, _)| &path[slash + 1..]).chain(std::iter::once(path)).filter(|s| !s.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        for (url, seen) in [
            ("https://me:secret@h/a@b.tar?sig=secret", "https://h/a@b.tar"),
            ("http://h/{a,b}.tar#secret", "http://h/{a,b}.tar"),
            ("http://me@h?secret", "http://h"),
            ("/data/a@b?c.tar", "/data/a@b?c.tar"),
            ("memory:x", "memory:x"),
            ("s3://b/what?/a#1.tar", "s3://b/what?/a#1.tar"),
        ] {
            assert_eq!(shown(url), seen);
        }
    }

    #[test]
    fn last_components() {
        assert_eq!(file_name("s3://bucket/a/b.tar"), "b.tar");
        assert_eq!(file_name("https://h/a/b.tar?sig=1/2"), "b.tar");
        assert_eq!(file_name("/data/what?/b#1.tar"), "b#1.tar");
        assert_eq!(file_name("b.tar"), "b.tar");
        assert_eq!(file_name("/data/dir/"), "dir");
    }
}
