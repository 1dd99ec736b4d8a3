//! What is stored at the far end: a directory, or objects in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Error, Kind, Result};

/// What a server serves.
#[derive(Clone, Debug)]
pub struct Site {
    kept: Kept,
    chunked: bool,
}

#[derive(Clone, Debug)]
enum Kept {
    Directory(PathBuf),
    Objects(Objects),
}

impl Site {
    /// The files under `path`, by their relative paths. An ETag is made of size and time of change.
    pub fn directory(path: impl AsRef<Path>) -> Self {
        Site { kept: Kept::Directory(path.as_ref().to_path_buf()), chunked: false }
    }

    /// Objects in memory, which the caller may go on changing. An ETag is made of the content.
    pub fn objects(objects: Objects) -> Self {
        Site { kept: Kept::Objects(objects), chunked: false }
    }

    /// The same, with every body in chunks (`Transfer-Encoding: chunked`), as servers do that make their answers
    /// up as they go.
    #[must_use]
    pub fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    /// Resolves the directory, so that links out of it can be told from links within.
    pub(super) fn open(self) -> Result<Self> {
        let Kept::Directory(path) = &self.kept else { return Ok(self) };
        let root = path.canonicalize().and_then(|root| match root.metadata()?.is_dir() {
            true => Ok(root),
            false => Err(std::io::ErrorKind::NotADirectory.into()),
        });
        match root {
            Ok(root) => Ok(Site { kept: Kept::Directory(root), ..self }),
            Err(error) => Err(Error::new(Kind::NotFound, format!("{}: no directory to serve", path.display()))
                .advice("name a directory that exists and can be read")
                .source(error)),
        }
    }

    /// The object of that key, if there is one and it lies inside.
    pub(super) fn object(&self, key: &str) -> Option<Object> {
        match &self.kept {
            Kept::Objects(objects) => objects.object(key),
            Kept::Directory(root) => file(root, key),
        }
        .map(|object| Object { chunked: self.chunked, ..object })
    }
}

/// Opens `key` under `root`; never what lies outside, be it by `..` or by a link.
fn file(root: &Path, key: &str) -> Option<Object> {
    let relative = Path::new(key);
    if key.contains('\0') || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    let path = root.join(relative).canonicalize().ok().filter(|path| path.starts_with(root))?;
    // Only regular files: opening a pipe would wait for its writer.
    path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let file = File::open(path).ok()?;
    let metadata = file.metadata().ok()?;
    let etag = format!("\"{:x}-{:x}.{:x}\"", metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    Some(Object { size: metadata.len(), etag, content: Content::File(file), chunked: false })
}

/// An object as one response needs it.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) size: u64,
    /// Strong, with its quotes.
    pub(super) etag: String,
    pub(super) content: Content,
    /// Whether it is sent in chunks.
    pub(super) chunked: bool,
}

/// Where the bytes are.
#[derive(Debug)]
pub(super) enum Content {
    Memory(Arc<[u8]>),
    File(File),
}

/// Objects in memory, shared by all clones.
#[derive(Clone, Debug, Default)]
pub struct Objects(Arc<RwLock<BTreeMap<String, Stored>>>);

#[derive(Clone, Debug)]
struct Stored {
    etag: Arc<str>,
    bytes: Arc<[u8]>,
}

impl Objects {
    /// Makes or replaces an object. Requests that are being answered finish with the bytes they began with.
    pub fn put(&self, key: impl Into<String>, bytes: impl Into<Arc<[u8]>>) {
        let bytes = bytes.into();
        let digest = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &bytes);
        let etag = format!("\"{:x}-{digest:016x}\"", bytes.len()).into();
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key.into(), Stored { etag, bytes });
    }

    /// Removes an object; says whether it was there.
    pub fn remove(&self, key: &str) -> bool {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(key).is_some()
    }

    fn object(&self, key: &str) -> Option<Object> {
        let stored = self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()?;
        Some(Object {
            size: stored.bytes.len() as u64,
            etag: stored.etag.to_string(),
            content: Content::Memory(stored.bytes),
            chunked: false,
        })
    }
}

impl<K: Into<String>, V: Into<Arc<[u8]>>> FromIterator<(K, V)> for Objects {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(objects: I) -> Self {
        let all = Objects::default();
        objects.into_iter().for_each(|(key, bytes)| all.put(key, bytes));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serves_only_what_lies_inside() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), b"no").unwrap();
        let root = outside.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("sub/a"), b"yes").unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), root.join("link")).unwrap();
        std::os::unix::fs::symlink(root.join("sub/a"), root.join("inner")).unwrap();
        let site = Site::directory(&root).open().unwrap();

        assert_eq!(site.object("sub/a").unwrap().size, 3);
        assert_eq!(site.object("inner").unwrap().size, 3);
        for key in ["../secret", "sub/../../secret", "/etc/passwd", "link", "sub", "", ".", "a\0b", "none"] {
            assert!(site.object(key).is_none(), "{key:?} was served");
        }
    }

    #[test]
    fn the_version_follows_the_content() {
        let objects = Objects::from_iter([("a", vec![1_u8, 2]), ("b", vec![1, 2])]);
        let etag = |key| objects.object(key).unwrap().etag;
        assert_eq!(etag("a"), etag("b"));
        objects.put("a", vec![2_u8, 1]);
        assert_ne!(etag("a"), etag("b"));
        assert!(objects.remove("a") && !objects.remove("a"));
    }

    #[test]
    fn refuses_a_directory_that_is_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(Site::directory(file.path()).open().unwrap_err().kind(), Kind::NotFound);
    }
}
