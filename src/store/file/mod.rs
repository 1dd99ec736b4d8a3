//! Files of this machine, or of whatever is mounted: direct reads into pages over io_uring.
//!
//! A read bypasses the page cache where the file system allows it (`O_DIRECT`): widened to its alignment, the payload
//! then starts some bytes into the first page. Where it does not, or where the pages have no room to widen, the same
//! read goes through the page cache. Where the kernel refuses io_uring, as many containers do, a few threads read.
//! The caller sees none of this but in speed.
//!
//! Nothing here blocks the executor: opening and looking up go to threads, except asking a local file system for the
//! state of a file that is open. A read that is dropped leaves its pages with the ring, which frees them when the
//! kernel is done; what has not started by then never starts.
//!
//! *Meant, though it looks wrong*: a read is not cancelled when its future is dropped. A disk completes what it has
//! begun in any case, and nothing else would be gained than the race.

mod descriptor;
mod queue;
mod span;
mod task;
mod walk;
mod workers;

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use self::descriptor::{ALIGNMENT_FALLBACK, Descriptors, OpenFile, explain, identify};
use self::queue::RingQueue;
use self::span::{Failure, Span};
use self::task::{Outcome, ReadTask};
use self::workers::Workers;
use super::{Appetite, Arrival, ObjectEntry, ObjectMeta, ReadRequest, Store, StoreFuture, changed, past_end};
use crate::error::{Error, Kind, Result};
use crate::memory::Landing;

const ROOT: &str = "file://";
/// Threads that read where there is no ring: as many as a disk needs requests to be busy.
const READERS: usize = 8;
/// Threads that open, look up and list beside a ring.
const OPENERS: usize = 2;
/// Most operations that a ring may be asked to hold.
const QUEUE_DEPTH_MAX: usize = 4096;

/// What reads files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileBackend {
    /// A ring; threads where the kernel refuses one.
    #[default]
    Auto,
    /// io_uring, or an error.
    Ring,
    /// Threads, each with one read.
    Pread,
}

/// How files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// What reads them.
    pub backend: FileBackend,
    /// Whether to bypass the page cache where the file system allows it.
    pub direct: bool,
    /// Operations of up to 1 MiB that the ring keeps in flight, 1 to 4096.
    pub queue_depth: usize,
}

impl Default for FileOptions {
    /// 64 operations of 1 MiB are 16 reads of 4 MiB: twice what a fast disk needs, so that it never runs dry while
    /// completed reads are being replaced.
    fn default() -> Self {
        FileOptions { backend: FileBackend::Auto, direct: true, queue_depth: 64 }
    }
}

/// Files by path.
#[derive(Debug)]
pub struct FileStore {
    backend: Backend,
    direct: bool,
    workers: Workers,
    descriptors: Descriptors,
}

#[derive(Debug)]
enum Backend {
    Ring(RingQueue),
    Threads,
}

impl FileStore {
    /// A store with its threads. Keys are paths; those that do not start with `/` count from the working directory.
    ///
    /// # Errors
    /// `Config` for a queue depth out of bounds; `Unsupported` when [`FileBackend::Ring`] is refused by the kernel;
    /// `Io` when no thread can be started.
    pub fn open(options: FileOptions) -> Result<Arc<Self>> {
        let FileOptions { backend, direct, queue_depth } = options;
        if !(1..=QUEUE_DEPTH_MAX).contains(&queue_depth) {
            return Err(Error::new(Kind::Config, format!("queue depth of {queue_depth}"))
                .advice(format!("take one from 1 to {QUEUE_DEPTH_MAX}")));
        }
        let ring = match backend {
            FileBackend::Pread => None,
            FileBackend::Auto => RingQueue::start(queue_depth).ok(),
            FileBackend::Ring => Some(RingQueue::start(queue_depth).map_err(|error| {
                Error::new(Kind::Unsupported, "io_uring is refused by the kernel").source(error).advice(
                    "allow it (kernel.io_uring_disabled, the container's seccomp profile), or read with threads",
                )
            })?),
        };
        let workers = Workers::start(if ring.is_some() { OPENERS } else { READERS })?;
        let backend = ring.map_or(Backend::Threads, Backend::Ring);
        Ok(Arc::new(FileStore { backend, direct, workers, descriptors: Descriptors::default() }))
    }

    /// What reads the files: [`FileBackend::Ring`] or [`FileBackend::Pread`].
    pub fn backend(&self) -> FileBackend {
        match self.backend {
            Backend::Ring(_) => FileBackend::Ring,
            Backend::Threads => FileBackend::Pread,
        }
    }

    /// The file that `key` names now, and whether it had to be opened for this.
    async fn file(&self, key: &Arc<str>) -> Result<(Arc<OpenFile>, bool)> {
        if let Some(file) = self.descriptors.find(key) {
            let now = if file.local {
                identify(key)
            } else {
                let key = Arc::clone(key);
                self.workers.run(move || identify(&key)).await
            };
            if now.as_ref().is_ok_and(|now| *now == file.identity) {
                return Ok((file, false));
            }
            self.descriptors.forget(key);
            now?;
        }
        let (name, direct) = (Arc::clone(key), self.direct);
        let file = Arc::new(self.workers.run(move || OpenFile::open(&name, direct)).await?);
        self.descriptors.keep(key, &file);
        Ok((file, true))
    }

    async fn fill(&self, request: &ReadRequest, landing: &mut Landing) -> Result<Arrival> {
        self.workers.check_process()?;
        let asked = Instant::now();
        let (file, opened) = self.file(&request.key).await?;
        let range = check(request, landing, &file)?;
        let version = Some(file.identity.version());
        if landing.remaining() == 0 {
            return Ok(Arrival { version, copied: 0, first_byte: asked.elapsed(), opened, fallback: None });
        }
        let span = Span::of(landing, request.start, file.alignment);
        let outcome = self.outcome(&file, span, landing, asked).await?;
        landing.put_pages(outcome.pages, span.lead);
        self.check_again(&request.key, &file, &range).await?;
        landing.advance(span.payload(outcome.arrived));
        match outcome.failure {
            None => Ok(Arrival { version, copied: 0, first_byte: outcome.first_byte, opened, fallback: None }),
            Some(Failure::System(error)) => {
                let at = request.start + landing.filled() as u64;
                Err(explain(&request.key, &format!("reading bytes {at}..{}", range.end), error))
            }
            // The size is still what it was, and the file ended before: a file system between two states.
            Some(Failure::EndOfFile) => Err(Error::new(
                Kind::Io,
                format!("{ROOT}{}: bytes {}..{} ended early", request.key, range.start, range.end),
            )
            .transient()),
        }
    }

    /// Gives the pages to the backend and waits for them.
    async fn outcome(&self, file: &OpenFile, span: Span, landing: &mut Landing, asked: Instant) -> Result<Outcome> {
        let (reply, answer) = oneshot::channel();
        let task = ReadTask {
            source: file.source(span.aligned),
            span,
            page_bytes: landing.page_bytes(),
            progress: landing.progress(),
            filled: landing.filled(),
            pages: landing.take_pages(),
            asked,
            reply,
        };
        match &self.backend {
            Backend::Ring(queue) => queue.send(task).await.map_err(|_| ended())?,
            Backend::Threads => self.workers.read(task).await?,
        }
        answer.await.map_err(|_| ended())
    }

    /// A file that changed while it was read has given bytes of two states: none of them counts.
    async fn check_again(&self, key: &Arc<str>, file: &Arc<OpenFile>, range: &Range<u64>) -> Result<()> {
        let now = if file.local {
            file.state(key)
        } else {
            let (key, file) = (Arc::clone(key), Arc::clone(file));
            self.workers.run(move || file.state(&key)).await
        }?;
        if now == file.identity {
            return Ok(());
        }
        self.descriptors.forget(key);
        if now.size < range.end {
            return Err(past_end(ROOT, key, range, now.size));
        }
        Err(changed(ROOT, key, &file.identity.version(), &now.version()))
    }
}

fn ended() -> Error {
    Error::new(Kind::Io, format!("{ROOT}: the thread that reads files has ended"))
        .advice("the kernel refused to go on with io_uring: read with threads")
}

/// The range of the file that is wanted, if the file is the expected one and long enough.
fn check(request: &ReadRequest, landing: &Landing, file: &OpenFile) -> Result<Range<u64>> {
    let identity = &file.identity;
    if let Some(expected) = &request.version {
        let found = identity.version();
        if *expected != found {
            return Err(changed(ROOT, &request.key, expected, &found));
        }
    }
    let range = request.start..request.start.saturating_add(landing.len() as u64);
    if range.end > identity.size || request.size.is_some_and(|expected| expected != identity.size) {
        return Err(past_end(ROOT, &request.key, &range, identity.size));
    }
    let lead = if landing.filled() == 0 { 0 } else { landing.lead() };
    if landing.lead_max().is_none_or(|max| lead > max) {
        return Err(Error::new(Kind::Config, format!("{ROOT}{}: a landing without its pages", request.key))
            .advice("a read that was dropped keeps the pages: take new ones"));
    }
    Ok(range)
}

impl Store for FileStore {
    fn root(&self) -> &str {
        ROOT
    }

    fn appetite(&self) -> Appetite {
        let alignment = if self.direct { ALIGNMENT_FALLBACK } else { 1 };
        // A gap of 128 KiB costs a disk of 2 GB/s about the 60 µs that one more request costs.
        Appetite { request_bytes: 4 << 20, requests: 16, gap_bytes: 128 << 10, alignment }
    }

    fn head<'a>(&'a self, key: &'a str) -> StoreFuture<'a, ObjectMeta> {
        let key: Arc<str> = key.into();
        Box::pin(async move {
            let identity = self.workers.run(move || identify(&key)).await?;
            Ok(ObjectMeta { size: identity.size, version: Some(identity.version()) })
        })
    }

    fn read<'a>(&'a self, request: &'a ReadRequest, landing: &'a mut Landing) -> StoreFuture<'a, Arrival> {
        Box::pin(self.fill(request, landing))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<ObjectEntry>> {
        let prefix = prefix.to_owned();
        Box::pin(self.workers.run(move || walk::walk(&prefix)))
    }

    /// The same store: one ring keeps a disk busy, and there are no connections.
    fn per_reactor(self: Arc<Self>) -> Arc<dyn Store> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Slab;

    const BYTES: usize = 3 << 20;

    fn stores() -> Vec<Arc<FileStore>> {
        let open = |backend, direct| FileStore::open(FileOptions { backend, direct, queue_depth: 4 });
        let rings = [true, false].map(|direct| open(FileBackend::Ring, direct).ok());
        let threads = [true, false].map(|direct| open(FileBackend::Pread, direct).ok());
        rings.into_iter().chain(threads).flatten().collect()
    }

    fn file(folder: &tempfile::TempDir) -> Arc<str> {
        let path = folder.path().join("a");
        std::fs::write(&path, vec![1; BYTES]).unwrap();
        path.to_str().unwrap().into()
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    /// Coarse clocks of older kernels tick every 10 ms.
    fn tick() {
        std::thread::sleep(std::time::Duration::from_millis(30));
    }

    /// The threads are not there, and nobody would ever answer.
    #[test]
    fn a_forked_child_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let key = file(&folder);
        for store in stores() {
            run(store.head(&key)).unwrap();
            let answer = farfeed_driver_double::in_a_child(std::time::Duration::from_secs(20), || {
                let slab = Slab::new(1 << 20, 1 << 20).unwrap();
                let mut landing = Landing::new(slab.take(1).unwrap(), 100);
                let request = ReadRequest { key: Arc::clone(&key), start: 0, size: None, version: None };
                let kinds = [
                    run(store.head(&key)).map(drop),
                    run(store.list("/")).map(drop),
                    run(store.read(&request, &mut landing)).map(drop),
                ];
                format!("{:?}", kinds.map(|answer| answer.err().map(|error| error.kind())))
            });
            assert_eq!(answer.as_deref(), Ok("[Some(Unsupported), Some(Unsupported), Some(Unsupported)]"));
        }
    }

    #[test]
    fn a_file_that_changes_in_mid_read_is_corrupt() {
        let folder = tempfile::tempdir().unwrap();
        for store in stores() {
            let key = file(&folder);
            let (open, opened) = run(store.file(&key)).unwrap();
            assert!(opened && run(store.check_again(&key, &open, &(0..9))).is_ok());
            assert!(!run(store.file(&key)).unwrap().1, "the descriptor was kept");
            tick();
            std::fs::write(&*key, vec![2; BYTES]).unwrap();
            let error = run(store.check_again(&key, &open, &(0..9))).unwrap_err();
            assert!(error.kind() == Kind::Corrupt && error.to_string().contains("changed"), "{error}");
            assert!(run(store.file(&key)).unwrap().1, "and was given up");
        }
    }

    #[test]
    fn an_early_end_keeps_what_had_landed_and_is_corrupt() {
        let folder = tempfile::tempdir().unwrap();
        let slab = Slab::new(8 << 20, 1 << 20).unwrap();
        for store in stores() {
            let key = file(&folder);
            let (open, _) = run(store.file(&key)).unwrap();
            let mut landing = Landing::new(slab.take(4).unwrap(), BYTES - 10);
            let span = Span::of(&landing, 10, open.alignment);
            let left = 1_500_000;
            std::fs::File::options().write(true).open(&*key).unwrap().set_len(left).unwrap();
            let outcome = run(store.outcome(&open, span, &mut landing, Instant::now())).unwrap();
            assert!(matches!(outcome.failure, Some(Failure::EndOfFile)), "{:?}", outcome.failure);
            assert_eq!(span.payload(outcome.arrived), left as usize - 10);
            assert_eq!(outcome.pages.len(), 4);
            let error = run(store.check_again(&key, &open, &(10..BYTES as u64))).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt);
            assert!(error.to_string().contains("10..3145728 wanted, the object has 1500000"), "{error}");
        }
    }

    #[test]
    fn a_file_that_was_replaced_under_its_name_is_opened_anew() {
        let folder = tempfile::tempdir().unwrap();
        let slab = Slab::new(1 << 20, 1 << 16).unwrap();
        for store in stores() {
            let key = file(&folder);
            let first = || {
                let mut landing = Landing::new(slab.take(1).unwrap(), 1);
                let request = ReadRequest { key: Arc::clone(&key), start: 5, size: None, version: None };
                run(store.read(&request, &mut landing)).unwrap();
                landing.landed().unwrap().slices(0, 1).next().unwrap()[0]
            };
            assert_eq!(first(), 1);
            let other = folder.path().join("b");
            std::fs::write(&other, vec![3; BYTES]).unwrap();
            std::fs::rename(&other, &*key).unwrap();
            assert_eq!(first(), 3);
        }
    }

    #[test]
    fn impossible_options_are_refused() {
        for queue_depth in [0, QUEUE_DEPTH_MAX + 1] {
            let error = FileStore::open(FileOptions { queue_depth, ..FileOptions::default() }).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
        }
    }
}
