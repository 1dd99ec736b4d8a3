//! Objects in this process's memory, for tests.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::{Appetite, Arrival, ObjectEntry, ObjectMeta, ReadRequest, Store, StoreFuture, changed, past_end};
use crate::dataset::Version;
use crate::error::{Error, Kind, Result};
use crate::memory::Landing;

/// Objects in this process's memory. Putting an object again changes its version.
#[derive(Debug, Default)]
pub struct MemoryStore {
    objects: RwLock<Objects>,
}

#[derive(Debug, Default)]
struct Objects {
    by_key: BTreeMap<String, (Version, Arc<[u8]>)>,
    puts: u64,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Makes or replaces an object.
    pub fn put(&self, key: impl Into<String>, bytes: impl Into<Arc<[u8]>>) {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        objects.puts += 1;
        let version = Version(format!("put-{}", objects.puts).into());
        objects.by_key.insert(key.into(), (version, bytes.into()));
    }

    fn object(&self, key: &str) -> Result<(Version, Arc<[u8]>)> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects
            .by_key
            .get(key)
            .cloned()
            .ok_or_else(|| Error::new(Kind::NotFound, format!("memory:{key}: no such object")).advice("check its name"))
    }

    fn copy(&self, request: &ReadRequest, landing: &mut Landing) -> Result<Arrival> {
        let (version, bytes) = self.object(&request.key)?;
        let size = bytes.len() as u64;
        if let Some(expected) = request.version.as_ref().filter(|expected| **expected != version) {
            return Err(changed(self.root(), &request.key, expected, &version));
        }
        let range = request.start..request.start.saturating_add(landing.len() as u64);
        if range.end > size || request.size.is_some_and(|expected| expected != size) {
            return Err(past_end(self.root(), &request.key, &range, size));
        }
        let from = request.start as usize + landing.filled();
        let copied = landing.push(&bytes[from..range.end as usize]) as u64;
        Ok(Arrival { version: Some(version), copied, first_byte: Duration::ZERO, opened: false, fallback: None })
    }
}

impl Store for MemoryStore {
    fn root(&self) -> &str {
        "memory:"
    }

    fn appetite(&self) -> Appetite {
        Appetite { request_bytes: 8 << 20, requests: 4, gap_bytes: 4096, alignment: 1 }
    }

    fn head<'a>(&'a self, key: &'a str) -> StoreFuture<'a, ObjectMeta> {
        let meta =
            self.object(key).map(|(version, bytes)| ObjectMeta { size: bytes.len() as u64, version: Some(version) });
        Box::pin(std::future::ready(meta))
    }

    fn read<'a>(&'a self, request: &'a ReadRequest, landing: &'a mut Landing) -> StoreFuture<'a, Arrival> {
        Box::pin(async move { self.copy(request, landing) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<ObjectEntry>> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        let entries = objects
            .by_key
            .iter()
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(key, (_, bytes))| ObjectEntry { key: key.clone(), size: bytes.len() as u64 })
            .collect();
        Box::pin(std::future::ready(Ok(entries)))
    }

    fn per_reactor(self: Arc<Self>) -> Arc<dyn Store> {
        self
    }
}
