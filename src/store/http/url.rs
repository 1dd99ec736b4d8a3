//! Where a request goes: roots, keys and redirects, and what of them may be shown.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Kind, Result};

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Scheme {
    Http,
    Https,
}

/// Scheme, host and port: what credentials and connections belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct Authority {
    pub(in crate::store) scheme: Scheme,
    /// Name or address, an IPv6 address without its brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// As the Host header wants it: the port only where it is not the scheme's own.
    pub(super) name: String,
}

/// Where one request goes.
#[derive(Clone)]
pub(in crate::store) struct Target {
    pub(super) authority: Arc<Authority>,
    /// Path and query as sent; the query may be a secret.
    pub(in crate::store) path: String,
    /// Value of the Authorization header. It never follows a redirect to another scheme, host or port.
    pub(super) authorization: Option<Arc<str>>,
    /// Further header lines, each with its end. They never follow a redirect.
    pub(in crate::store) lines: Option<Arc<str>>,
}

impl fmt::Debug for Target {
    /// Without the query and the headers: they may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.split('?').next();
        f.debug_struct("Target").field("authority", &self.authority.name).field("path", &path).finish_non_exhaustive()
    }
}

/// The URL that a store was opened with, taken apart.
pub(in crate::store) struct Root {
    /// Without user info and query, with a slash at its end.
    pub(in crate::store) shown: String,
    authority: Arc<Authority>,
    /// Percent-encoded, with slashes at both ends.
    base: String,
    /// With its question mark, or empty.
    query: String,
    authorization: Option<Arc<str>>,
}

impl Root {
    /// Takes `url` apart.
    ///
    /// # Errors
    /// `Config` when it is no URL; `Unsupported` for another scheme. Neither shows the URL's secrets.
    pub(in crate::store) fn parse(url: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| {
            Error::new(Kind::Config, "the root of an HTTP store has no scheme").advice("write http://host/path")
        })?;
        let scheme = Scheme::named(scheme).ok_or_else(|| {
            Error::new(Kind::Unsupported, format!("scheme {scheme}:// in an HTTP store"))
                .advice("use https:// or http://")
        })?;
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (user_info, authority) =
            authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        let authority = Authority::parse(scheme, authority)
            .ok_or_else(|| Error::new(Kind::Config, "the host or port of an HTTP root is malformed"))?;
        let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
        let base = format!("/{}", path.trim_matches('/'));
        let base = cleaned(if base.ends_with('/') { base } else { base + "/" });
        Ok(Root {
            shown: format!("{}://{}{base}", scheme.name(), authority.name),
            authority: Arc::new(authority),
            base,
            query: cleaned(query.to_owned()),
            authorization: user_info.map(|user| format!("Basic {}", base64(&percent_decoded(user))).into()),
        })
    }

    /// Where the object `key` is.
    pub(in crate::store) fn target(&self, key: &str) -> Target {
        let mut path = String::with_capacity(self.base.len() + key.len() + self.query.len() + 16);
        path.push_str(&self.base);
        percent_encode(key, &mut path);
        path.push_str(&self.query);
        Target { authority: Arc::clone(&self.authority), path, authorization: self.authorization.clone(), lines: None }
    }

    /// The root with its query, and what goes with each request. Both may be secrets.
    #[cfg(feature = "cloud")]
    pub(super) fn address(&self) -> (String, Option<&str>) {
        (format!("{}{}", self.shown, self.query), self.authorization.as_deref())
    }

    pub(in crate::store) fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }
}

/// The root and the key of the object at `url`; see [`super::HttpStore::split`].
pub(super) fn split(url: &str) -> (String, String) {
    let url = url.split('#').next().unwrap_or_default();
    let host = url.find("://").map_or(0, |at| at + 3);
    let path = url[host..].find(['/', '?']).map_or(url.len(), |at| host + at);
    let query = url[path..].find('?').map_or(url.len(), |at| path + at);
    let encoded = &url[path..query];
    let encoded = encoded.strip_prefix('/').unwrap_or(encoded);
    let key = String::from_utf8(percent_decoded(encoded)).unwrap_or_else(|_| encoded.to_owned());
    (format!("{}{}", &url[..path], &url[query..]), key)
}

impl Target {
    /// Where a redirect from here leads. `Err` says why it cannot be followed, without naming path or query.
    pub(super) fn redirected(&self, location: &str) -> Result<Target, String> {
        let location = location.split('#').next().unwrap_or_default();
        if let Some(rest) = location.strip_prefix("//") {
            return self.elsewhere(self.authority.scheme, rest);
        }
        if let Some((scheme, rest)) = location.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) {
            return match (self.authority.scheme, Scheme::named(scheme)) {
                (Scheme::Https, Some(Scheme::Http)) => {
                    Err("redirected from https to http, where anybody on the way could read and change the bytes"
                        .into())
                }
                (_, Some(scheme)) => self.elsewhere(scheme, rest),
                (_, None) => Err(format!("redirected to scheme {}", scheme.to_ascii_lowercase())),
            };
        }
        let path = self.path.split('?').next().unwrap_or_default();
        let path = match location.as_bytes().first() {
            None => return Err("redirected to nowhere".to_owned()),
            Some(b'/') => location.to_owned(),
            Some(b'?') => format!("{path}{location}"),
            Some(_) => format!("{}/{location}", path.rsplit_once('/').map_or("", |(directory, _)| directory)),
        };
        Ok(Target { path: cleaned(path), ..self.clone() })
    }

    /// `rest` is what follows the two slashes.
    fn elsewhere(&self, scheme: Scheme, rest: &str) -> Result<Target, String> {
        let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let authority = Authority::parse(scheme, host).ok_or("redirected to a malformed host")?;
        let path = cleaned(if path.starts_with('/') { path.to_owned() } else { format!("/{path}") });
        if authority == *self.authority {
            return Ok(Target { path, ..self.clone() });
        }
        Ok(Target { authority: Arc::new(authority), path, authorization: None, lines: None })
    }
}

impl Scheme {
    fn named(name: &str) -> Option<Self> {
        [Scheme::Http, Scheme::Https].into_iter().find(|scheme| name.eq_ignore_ascii_case(scheme.name()))
    }

    fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    fn port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

impl Authority {
    fn parse(scheme: Scheme, text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                host.parse::<std::net::Ipv6Addr>().ok()?;
                (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
            }
            None => {
                let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
                let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
                if host.is_empty() || !host.bytes().all(legal) {
                    return None;
                }
                (host, port)
            }
        };
        let port = match port {
            None | Some("") => scheme.port(),
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok()?,
            Some(_) => return None,
        };
        let host = host.to_ascii_lowercase();
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let name = if port == scheme.port() { bracketed } else { format!("{bracketed}:{port}") };
        Some(Authority { scheme, host, port, name })
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

/// Encodes a key byte by byte; slashes and what S3's canonical form leaves alone stay.
fn percent_encode(key: &str, into: &mut String) {
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/') {
            into.push(char::from(byte));
        } else {
            push_encoded(byte, into);
        }
    }
}

/// What others have encoded already, with everything that would end a request line or a header encoded too.
fn cleaned(text: String) -> String {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return text;
    }
    let mut clean = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if byte.is_ascii_graphic() {
            clean.push(char::from(byte));
        } else {
            push_encoded(byte, &mut clean);
        }
    }
    clean
}

fn push_encoded(byte: u8, into: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    into.push('%');
    into.push(char::from(DIGITS[usize::from(byte >> 4)]));
    into.push(char::from(DIGITS[usize::from(byte & 15)]));
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digit = |offset: usize| bytes.get(at + offset).and_then(|byte| char::from(*byte).to_digit(16));
        let (byte, used) = match (bytes[at], digit(1), digit(2)) {
            (b'%', Some(high), Some(low)) => ((high * 16 + low) as u8, 3),
            (byte, _, _) => (byte, 1),
        };
        decoded.push(byte);
        at += used;
    }
    decoded
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= group.len() { char::from(DIGITS[index as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_object_is_found_at_its_own_url() {
        for (url, root, key, asked) in [
            ("http://h:81/a/b.tar", "http://h:81", "a/b.tar", "/a/b.tar"),
            ("http://u:p@h/a%20b.tar?sig=x%2F1&y", "http://u:p@h?sig=x%2F1&y", "a b.tar", "/a%20b.tar?sig=x%2F1&y"),
            ("http://h//a.tar#part", "http://h", "/a.tar", "//a.tar"),
            ("http://h?list", "http://h?list", "", "/?list"),
        ] {
            assert_eq!(split(url), (root.to_owned(), key.to_owned()));
            assert_eq!(Root::parse(root).unwrap().target(key).path, asked);
        }
    }

    #[test]
    fn roots_show_no_secrets() {
        let root = Root::parse("HTTP://us%40er:p%3Ass@Example.org:8080/data/v 1/?sig=secret#x").unwrap();
        assert_eq!(root.shown, "http://example.org:8080/data/v%201/");
        let target = root.target("a/b c+%é?.tar");
        assert_eq!(target.path, "/data/v%201/a/b%20c%2B%25%C3%A9%3F.tar?sig=secret");
        assert_eq!(target.authorization.as_deref(), Some("Basic dXNAZXI6cDpzcw=="));
        assert_eq!(Root::parse("http://h").unwrap().target("k").path, "/k");
        assert_eq!(Root::parse("http://h:80?q").unwrap().shown, "http://h/");
        let secure = Root::parse("HTTPS://h:443/d").unwrap();
        assert_eq!((secure.shown.as_str(), secure.authority.port), ("https://h/d/", 443));
        assert_eq!(Root::parse("https://h:80").unwrap().shown, "https://h:80/");
        let six = Root::parse("http://[::1]:99/").unwrap();
        assert_eq!((six.authority.host.as_str(), six.authority.name.as_str()), ("::1", "[::1]:99"));
    }

    #[test]
    fn malformed_roots_are_refused_without_being_shown() {
        for url in [
            "secret",
            "http://",
            "http://u:secret@",
            "http://a b/secret",
            "http://h:99999/secret",
            "http://h:+1/",
            "http://[x]/",
        ] {
            let error = Root::parse(url).err().unwrap();
            assert_eq!(error.kind(), Kind::Config, "{url}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert_eq!(Root::parse("ftp://h/").err().unwrap().kind(), Kind::Unsupported);
    }

    #[test]
    fn redirects_lead_where_the_standard_says() {
        let from = Root::parse("http://u:p@h:81/a/b/?q=1").unwrap().target("c");
        let to = |location: &str| {
            from.redirected(location).map(|to| (to.authority.name.clone(), to.path, to.authorization.is_some()))
        };
        let same = |path: &str| Ok(("h:81".to_owned(), path.to_owned(), true));
        assert_eq!(to("/x?y=2#z"), same("/x?y=2"));
        assert_eq!(to("d"), same("/a/b/d"));
        assert_eq!(to("?r"), same("/a/b/c?r"));
        assert_eq!(to("http://h:81/n?u=http://o/"), same("/n?u=http://o/"));
        assert_eq!(to("//other/y"), Ok(("other".to_owned(), "/y".to_owned(), false)));
        assert_eq!(to("http://u:p@other?k"), Ok(("other".to_owned(), "/?k".to_owned(), false)));
        assert_eq!(to("FTP://h/secret"), Err("redirected to scheme ftp".to_owned()));
        assert!(to("").is_err() && to("http://h:x/").is_err() && to("//").is_err());
    }

    #[test]
    fn redirects_gain_security_and_never_lose_it() {
        let to = |from: &str, location: &str| {
            let to = Root::parse(from).unwrap().target("c").redirected(location)?;
            Ok::<_, String>((to.authority.scheme, to.authority.port, to.authorization.is_some()))
        };
        assert_eq!(to("http://u:p@h/", "https://h/x"), Ok((Scheme::Https, 443, false)));
        assert_eq!(to("http://u:p@h:443/", "https://h/x"), Ok((Scheme::Https, 443, false)), "another scheme");
        assert_eq!(to("https://u:p@h/", "https://h:443/x"), Ok((Scheme::Https, 443, true)));
        assert_eq!(to("https://u:p@h/", "//h/x"), Ok((Scheme::Https, 443, true)));
        assert_eq!(to("https://u:p@h/", "/x"), Ok((Scheme::Https, 443, true)));
        for location in ["http://h/secret", "HTTP://h:443/secret"] {
            let refused = to("https://u:p@h/", location).unwrap_err();
            assert!(refused.contains("https to http") && !refused.contains("secret"), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn nothing_breaks_out_of_a_request_line(url in ".{0,40}", key in ".{0,40}", location in ".{0,40}") {
            let clean = |target: &Target| {
                target.path.bytes().chain(target.authority.name.bytes()).all(|byte| byte.is_ascii_graphic())
                    && target.path.starts_with('/')
            };
            let _ = Root::parse(&url);
            if let Ok(root) = Root::parse(&format!("http://{url}")) {
                let target = root.target(&key);
                prop_assert!(clean(&target), "{target:?}");
                if let Ok(to) = target.redirected(&location) {
                    prop_assert!(clean(&to), "{to:?}");
                }
            }
        }

        #[test]
        fn keys_survive_encoding(key in ".{0,40}") {
            let mut path = String::new();
            percent_encode(&key, &mut path);
            prop_assert_eq!(percent_decoded(&path), key.as_bytes());
        }
    }
}
