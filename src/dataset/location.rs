//! What URLs and paths have in common, whatever the store.

use std::borrow::Cow;

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
