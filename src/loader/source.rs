//! From what the user wrote to stores, keys and formats.

use std::path::Path;
use std::sync::Arc;

use crate::dataset::{expand, shown};
use crate::error::{Error, Kind, Result};
use crate::fetch::{Source, VersionPin};
#[cfg(feature = "cloud")]
use crate::store::{FallbackStore, ObjectOptions, ObjectStore};
use crate::store::{FileOptions, FileStore, HttpOptions, HttpStore, Store, TlsOptions};

/// An object, and how the user would name it but for secrets.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) url: String,
    pub(super) store: Arc<dyn Store>,
    pub(super) key: Arc<str>,
}

impl Object {
    pub(super) fn source(&self, size: Option<u64>) -> Source {
        Source { store: Arc::clone(&self.store), key: Arc::clone(&self.key), size, version: VersionPin::default() }
    }
}

/// What a shard's name says of its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Tar,
    Npy,
    Bin,
}

impl Format {
    pub(super) fn of(url: &str) -> Result<Self> {
        let url = shown(url);
        match Path::new(&*url).extension().and_then(|extension| extension.to_str()) {
            Some("tar") => Ok(Format::Tar),
            Some("npy") => Ok(Format::Npy),
            Some("bin") => Ok(Format::Bin),
            _ => Err(Error::new(Kind::Unsupported, format!("{url}: unknown format"))
                .advice("shards are .tar (WebDataset), .npy, or .bin with tokens; the name of a directory ends in /")),
        }
    }
}

/// Stores opened so far, by what they were opened with.
#[derive(Debug, Default)]
pub(super) struct Stores {
    brought: Vec<Arc<dyn Store>>,
    opened: Vec<(String, Arc<dyn Store>)>,
    settings: Vec<(String, String)>,
    connections: usize,
    tls: TlsOptions,
}

impl Stores {
    pub(super) fn new(connections: usize, tls: TlsOptions) -> Self {
        Stores { connections, tls, ..Stores::default() }
    }

    /// A store that the caller brought; it serves every URL that begins with its root.
    pub(super) fn add(&mut self, store: Arc<dyn Store>) {
        self.brought.push(store);
    }

    /// Options for the stores that are opened from now on: names and values.
    pub(super) fn configure(&mut self, settings: &[(String, String)]) {
        self.settings.extend_from_slice(settings);
    }

    /// The object that `url` names.
    pub(super) fn object(&mut self, url: &str) -> Result<Object> {
        if let Some(store) =
            self.brought.iter().find(|store| !is_path_root(store.root()) && url.starts_with(store.root()))
        {
            let key = url[store.root().len()..].trim_start_matches('/').into();
            return Ok(Object { url: shown(url).into_owned(), key, store: Arc::clone(store) });
        }
        match url.split_once("://") {
            Some(("http" | "https", _)) => self.web(url),
            Some(("s3" | "gs" | "az", _)) => self.bucket(url),
            Some(("file", path)) => self.file(path),
            Some((scheme, _)) => Err(Error::new(Kind::Unsupported, format!("{scheme}:// is not supported"))
                .advice("use s3://, gs://, az://, https://, http:// or a mounted file system")),
            None => self.file(url),
        }
    }

    fn web(&mut self, url: &str) -> Result<Object> {
        let (root, key) = HttpStore::split(url);
        #[cfg(feature = "cloud")]
        let store = {
            let options = self.options();
            self.opened(&root, |root| Ok(FallbackStore::open(root, &options)?))?
        };
        #[cfg(not(feature = "cloud"))]
        let store = {
            let http = self.http();
            self.opened(&root, |root| Ok(HttpStore::open(root, http)?))?
        };
        Ok(Object { url: shown(url).into_owned(), key: key.into(), store })
    }

    /// A key in a bucket is taken as it is: a question mark is a letter there.
    #[cfg(feature = "cloud")]
    fn bucket(&mut self, url: &str) -> Result<Object> {
        let (root, key) = ObjectStore::split(url);
        if key.contains('?') && ["sig=", "Signature="].iter().any(|name| key.contains(name)) {
            return Err(Error::new(Kind::Config, format!("{root}/: a signature in the URL of a bucket"))
                .advice("set it as an option, such as sas_token, or use the https:// URL"));
        }
        let options = self.options();
        let store = self.opened(root, |root| Ok(ObjectStore::open(root, options)?))?;
        Ok(Object { url: format!("{}{key}", store.root()), key: key.into(), store })
    }

    #[cfg(not(feature = "cloud"))]
    fn bucket(&mut self, url: &str) -> Result<Object> {
        let scheme = url.split("://").next().unwrap_or_default();
        Err(Error::new(Kind::Unsupported, format!("{scheme}:// is not part of this build"))
            .advice("build with the feature cloud"))
    }

    fn http(&self) -> HttpOptions {
        HttpOptions { idle_connections: self.connections, tls: self.tls.clone(), ..HttpOptions::default() }
    }

    #[cfg(feature = "cloud")]
    fn options(&self) -> ObjectOptions {
        let options = ObjectOptions::default().http(self.http());
        self.settings.iter().fold(options, |options, (key, value)| options.set(key, value))
    }

    /// The store that was opened with `root`, or is now.
    fn opened(&mut self, root: &str, open: impl FnOnce(&str) -> Result<Arc<dyn Store>>) -> Result<Arc<dyn Store>> {
        if let Some((_, store)) = self.opened.iter().find(|(opened, _)| opened == root) {
            return Ok(Arc::clone(store));
        }
        let store = open(root)?;
        self.opened.push((root.to_owned(), Arc::clone(&store)));
        Ok(store)
    }

    fn file(&mut self, path: &str) -> Result<Object> {
        let brought = self.brought.iter().find(|store| is_path_root(store.root())).cloned();
        let store = match brought {
            Some(store) => store,
            None => self.opened("file:", |_| Ok(FileStore::open(FileOptions::default())?))?,
        };
        let absolute = std::path::absolute(path)
            .map_err(|e| Error::new(Kind::Io, format!("{path}: no absolute path")).source(e))?;
        let key = absolute.to_str().ok_or_else(|| Error::new(Kind::Unsupported, format!("{path}: not UTF-8")))?;
        Ok(Object { url: path.to_owned(), key: key.into(), store })
    }
}

fn is_path_root(root: &str) -> bool {
    root.starts_with("file:")
}

/// The shards that `patterns` name: braces expanded, prefixes (ending in `/`) listed.
pub(super) fn shards(
    patterns: &[String],
    stores: &mut Stores,
    mut list: impl FnMut(&Object) -> Result<Vec<String>>,
) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for pattern in patterns {
        for url in expand(pattern)? {
            if !url.ends_with('/') {
                objects.push(stores.object(&url)?);
                continue;
            }
            let prefix = stores.object(&url)?;
            let before = objects.len();
            for key in list(&prefix)? {
                let known = Format::of(&key).is_ok();
                if known {
                    let name = key.strip_prefix(&*prefix.key).unwrap_or(&key);
                    let url = format!("{}{name}", shown(&url));
                    objects.push(Object { url, store: Arc::clone(&prefix.store), key: key.into() });
                }
            }
            if objects.len() == before {
                return Err(Error::new(Kind::NotFound, format!("{}: no shard there", shown(&url)))
                    .advice("shards are named .tar, .npy or .bin"));
            }
        }
    }
    if objects.is_empty() {
        return Err(Error::new(Kind::Config, "no shard was named"));
    }
    Ok(objects)
}
