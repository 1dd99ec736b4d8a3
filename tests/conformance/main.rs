//! Every store, the same suite. A new store needs a test of a few lines here.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

#[allow(unused_imports, reason = "the servers are shared, and this needs one of them")]
#[path = "../fixture/mod.rs"]
mod fixture;
mod suite;

use std::sync::Arc;
use std::time::Duration;

use farfeed::Kind;
use farfeed::store::{
    Fault, FaultStore, FileBackend, FileOptions, FileStore, MemoryStore, Store, Throttle, ThrottleStore,
};

use suite::suite;

fn memory() -> (Arc<MemoryStore>, impl Fn(&str, &[u8]) -> String) {
    let store = MemoryStore::new();
    let objects = Arc::clone(&store);
    (store, move |name: &str, bytes: &[u8]| {
        objects.put(name, bytes);
        name.to_owned()
    })
}

#[test]
fn memory_store() {
    let (store, put) = memory();
    suite(store, put);
}

/// `None` where this machine's kernel refuses the backend.
fn files(backend: FileBackend, direct: bool) -> Option<Arc<FileStore>> {
    match FileStore::open(FileOptions { backend, direct, ..FileOptions::default() }) {
        Err(error) if error.kind() == Kind::Unsupported => {
            eprintln!("skipped: {error}");
            None
        }
        store => Some(store.unwrap()),
    }
}

fn file_suite(store: Arc<dyn Store>, folder: &tempfile::TempDir) {
    suite(store, |name, bytes| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    });
}

#[test]
fn file_store_with_a_ring_and_direct_reads() {
    let Some(store) = files(FileBackend::Ring, true) else { return };
    file_suite(store, &tempfile::tempdir().unwrap());
}

#[test]
fn file_store_with_a_ring_through_the_page_cache() {
    let Some(store) = files(FileBackend::Ring, false) else { return };
    file_suite(store, &tempfile::tempdir().unwrap());
}

#[test]
fn file_store_with_a_ring_of_one() {
    let options = FileOptions { queue_depth: 1, ..FileOptions::default() };
    file_suite(FileStore::open(options).unwrap(), &tempfile::tempdir().unwrap());
}

#[test]
fn file_store_with_threads() {
    for direct in [true, false] {
        file_suite(files(FileBackend::Pread, direct).unwrap(), &tempfile::tempdir().unwrap());
    }
}

#[test]
fn file_store_in_shared_memory() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return };
    file_suite(files(FileBackend::Auto, true).unwrap(), &folder);
}

#[test]
fn fault_store_without_faults() {
    let (store, put) = memory();
    suite(FaultStore::scripted(store, []), put);
}

#[test]
fn fault_store_that_rests_in_every_read() {
    let (store, put) = memory();
    let stall = |after| Fault::Stall { after, rest: Some(Duration::from_millis(1)) };
    suite(FaultStore::seeded(store, 5, 1000, [0, 1, 5000].map(stall)), put);
}

#[test]
fn fault_store_around_files() {
    let folder = tempfile::tempdir().unwrap();
    let stall = Fault::Stall { after: 5000, rest: Some(Duration::from_millis(1)) };
    file_suite(FaultStore::seeded(files(FileBackend::Auto, true).unwrap(), 5, 500, [stall]), &folder);
}

#[test]
fn throttle_store() {
    let (store, put) = memory();
    let throttle = Throttle { latency: Duration::from_millis(2), bytes_per_second: 500_000_000, requests: 16 };
    suite(ThrottleStore::new(store, throttle), put);
}

#[test]
fn http_store() {
    let server = fixture::FileServer::start();
    suite(server.store(), |name, bytes| {
        server.put(name, bytes);
        name.to_owned()
    });
}
