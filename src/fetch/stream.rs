//! Whole objects, one after the other, in order: what indexing and small files need.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::reactor::{Completion, Fetch, FetchRead, Source};
use super::retry::RetryPolicy;
use crate::dataset::Extent;
use crate::error::{Error, Kind, Result};
use crate::memory::{Landed, Landing, Slab};
use crate::store::{ObjectEntry, ObjectMeta, StoreFuture};
use crate::telemetry::Telemetry;

/// Most bytes of one read.
const PIECE_BYTES: usize = 4 << 20;
/// Reads in flight. In order of need this is the window that a stream may run ahead: 64 MiB.
const PIECES_IN_FLIGHT: usize = 16;
/// Heads and lists in flight.
const LOOKUPS_IN_FLIGHT: usize = 32;
/// When a look-up has failed, those before it have so long to answer: one of them may fail, too, and then it is the first.
const BEFORE_A_FAILURE: Duration = Duration::from_secs(2);

/// Reads bytes `0..sizes[i]` of each source in turn and hands them on in order, as (source, offset, bytes).
///
/// # Errors
/// The first error of a read, in order, or of `take`, which ends the stream.
pub fn stream(
    sources: Vec<Source>,
    sizes: &[u64],
    policy: RetryPolicy,
    telemetry: &Arc<Telemetry>,
    take: impl FnMut(usize, u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let wholes = sizes.iter().take(sources.len()).enumerate();
    let pieces = wholes.flat_map(|(source, size)| pieces(source, source, 0, *size)).collect();
    carry(sources, pieces, policy, telemetry, take)
}

/// Reads extents, several at once: for looking at single samples.
///
/// # Errors
/// The first error of a read, in order.
pub fn extents(
    sources: Vec<Source>,
    extents: &[Extent],
    policy: RetryPolicy,
    telemetry: &Arc<Telemetry>,
) -> Result<Vec<Vec<u8>>> {
    let mut read = vec![Vec::new(); extents.len()];
    let wanted = extents.iter().enumerate();
    let pieces =
        wanted.flat_map(|(item, extent)| pieces(item, extent.shard as usize, extent.start, extent.len)).collect();
    carry(sources, pieces, policy, telemetry, |item, _, bytes| {
        read[item].extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(read)
}

/// A part of what is read, small enough for one request.
struct Piece {
    /// What it is a part of, for the taker.
    item: usize,
    source: usize,
    start: u64,
    len: usize,
}

fn pieces(item: usize, source: usize, start: u64, len: u64) -> impl Iterator<Item = Piece> {
    (0..len).step_by(PIECE_BYTES).map(move |at| Piece {
        item,
        source,
        start: start + at,
        len: (len - at).min(PIECE_BYTES as u64) as usize,
    })
}

/// Reads pieces, a window of them at once, and hands their bytes on in order.
fn carry(
    sources: Vec<Source>,
    pieces: Vec<Piece>,
    policy: RetryPolicy,
    telemetry: &Arc<Telemetry>,
    mut take: impl FnMut(usize, u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let Some(longest) = pieces.iter().map(|piece| piece.len).max() else { return Ok(()) };
    let alignment = sources.iter().map(|source| source.store.appetite().alignment).max().unwrap_or(1);
    // An eighth of a read, so that little is left over at its end; no page is smaller than the system's.
    let page_bytes = ((longest + 2 * alignment).next_power_of_two() / 8).max(4096);
    let pages = (longest + 2 * alignment).div_ceil(page_bytes);
    let ahead = PIECES_IN_FLIGHT.min(pieces.len());
    let slab = Slab::new(ahead * pages * page_bytes, page_bytes)?;
    let (done, completions) = crossbeam_channel::bounded(ahead);
    let fetch = Fetch::start(sources, policy, 1, ahead, 0, Arc::clone(telemetry), done)?;
    let mut arrived = BTreeMap::new();
    let (mut submitted, mut taken) = (0, 0);
    let mut under_way = VecDeque::with_capacity(ahead);
    while taken < pieces.len() {
        while submitted < pieces.len() && submitted - taken < ahead {
            let piece = &pieces[submitted];
            let landing = Landing::new(slab.take_within(pages, policy.patience)?, piece.len);
            under_way.push_back(landing.progress());
            let (id, shard) = (submitted as u64, piece.source as u32);
            fetch.submit(FetchRead { id, shard, start: piece.start, landing })?;
            submitted += 1;
        }
        let completion = next_completion(&completions, &under_way, policy)?;
        arrived.insert(completion.id, completion.result);
        // A failure waits for what comes before it: of several the first in order is told.
        while let Some(landed) = arrived.remove(&(taken as u64)) {
            let landed: Landed = landed?;
            let piece = &pieces[taken];
            let mut at = piece.start;
            for slice in landed.slices(0, piece.len) {
                take(piece.item, at, slice)?;
                at += slice.len() as u64;
            }
            taken += 1;
            under_way.pop_front();
        }
    }
    Ok(())
}

/// The next read that is done. A slow link may take its time as long as bytes come.
fn next_completion(
    completions: &Receiver<Completion>,
    under_way: &VecDeque<Arc<AtomicU64>>,
    policy: RetryPolicy,
) -> Result<Completion> {
    let patience = policy.patience.saturating_mul(2).max(Duration::from_secs(1));
    let bytes = || under_way.iter().map(|progress| progress.load(Ordering::Relaxed)).sum::<u64>();
    let mut seen = bytes();
    loop {
        match completions.recv_timeout(patience) {
            Ok(completion) => return Ok(completion),
            Err(_) if bytes() != seen => seen = bytes(),
            Err(_) => return Err(Error::new(Kind::Stalled, format!("no answer from the store for {patience:?}"))),
        }
    }
}

/// Sizes and versions of all sources, many at once.
///
/// # Errors
/// Of the errors that are not transient, or that lasted longer than the policy's patience, the first in the sources' order: not the one
/// whose answer came first. A look-up before it that takes much longer to answer is not waited for.
pub fn heads(sources: &[Source], policy: RetryPolicy) -> Result<Vec<ObjectMeta>> {
    block_on(async {
        // Connections belong to the runtime that opened them, and this one ends here.
        let own: Vec<Source> = super::reactor::for_reactor(sources);
        let mut lookups = Lookups { metas: vec![None; own.len()], answered: 0, failed: None };
        let mut tasks = tokio::task::JoinSet::new();
        let mut asked = 0;
        while !lookups.are_over() {
            while asked < lookups.end() && tasks.len() < LOOKUPS_IN_FLIGHT {
                let (number, source) = (asked, own[asked].clone());
                tasks.spawn(async move { (number, head(&source, policy).await) });
                asked += 1;
            }
            let Ok(joined) = tokio::time::timeout(lookups.patience(), tasks.join_next()).await else { break };
            let Some(joined) = joined else { break };
            let (number, meta) = joined.map_err(|e| Error::new(Kind::Io, "asking for sizes").source(e))?;
            lookups.note(number, meta);
        }
        lookups.outcome()
    })
}

/// What is known of a row of look-ups, whose answers come in any order.
struct Lookups {
    metas: Vec<Option<ObjectMeta>>,
    /// So many from the first on.
    answered: usize,
    /// The first in order that failed so far: those behind it are of no interest any more.
    failed: Option<(usize, Error, Instant)>,
}

impl Lookups {
    /// Those from here on need not be asked.
    fn end(&self) -> usize {
        self.failed.as_ref().map_or(self.metas.len(), |(number, ..)| *number)
    }

    fn are_over(&self) -> bool {
        self.answered >= self.end()
    }

    /// How long the next answer may take.
    fn patience(&self) -> Duration {
        self.failed.as_ref().map_or(Duration::MAX, |(_, _, since)| BEFORE_A_FAILURE.saturating_sub(since.elapsed()))
    }

    fn note(&mut self, number: usize, meta: Result<ObjectMeta>) {
        match meta {
            Ok(meta) => self.metas[number] = Some(meta),
            Err(error) if number < self.end() => {
                let since = self.failed.as_ref().map_or_else(Instant::now, |(.., since)| *since);
                self.failed = Some((number, error, since));
            }
            Err(_) => {}
        }
        while self.metas.get(self.answered).is_some_and(Option::is_some) {
            self.answered += 1;
        }
    }

    fn outcome(self) -> Result<Vec<ObjectMeta>> {
        match self.failed {
            Some((_, error, _)) => Err(error),
            None => Ok(self.metas.into_iter().flatten().collect()),
        }
    }
}

async fn head(source: &Source, policy: RetryPolicy) -> Result<ObjectMeta> {
    let what = format!("{}{}", source.store.root(), source.key);
    insist(policy, &what, policy.idle, || source.store.head(&source.key)).await
}

/// What a store lists below a prefix.
///
/// # Errors
/// The store's own; `Stalled` when it does not answer.
pub fn list(source: &Source, policy: RetryPolicy) -> Result<Vec<ObjectEntry>> {
    block_on(async {
        let store = Arc::clone(&source.store).per_reactor();
        let what = format!("listing {}{}", store.root(), source.key);
        // A listing is many answers, and its progress cannot be seen from here.
        insist(policy, &what, policy.patience, || store.list(&source.key)).await
    })
}

/// Asks until there is an answer, an error that does not pass, or no patience left; one answer may take `idle`.
async fn insist<'a, T>(
    policy: RetryPolicy,
    what: &str,
    idle: Duration,
    ask: impl Fn() -> StoreFuture<'a, T>,
) -> Result<T> {
    let (began, idle) = (Instant::now(), idle.min(policy.patience).max(Duration::from_millis(1)));
    let mut attempt = 0;
    loop {
        let error = match tokio::time::timeout(idle, ask()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(_) => Error::new(Kind::Stalled, format!("{what}: no answer for {idle:?}"))
                .advice("the store or the link hangs; `farfeed doctor` and the server's log may say why")
                .transient(),
        };
        policy.rest(error, attempt, began).await?;
        attempt += 1;
    }
}

/// Runs a future to its end on a thread of its own: the caller's may belong to a runtime, which allows no other one on it.
fn block_on<T: Send>(future: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let failed = |error: std::io::Error| Error::new(Kind::Io, "starting a reactor").source(error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("farfeed-lookup".to_owned());
        let thread = thread.spawn_scoped(scope, || runtime.block_on(future)).map_err(failed)?;
        thread.join().unwrap_or_else(|_| Err(Error::new(Kind::Io, "a look-up panicked; its message says more")))
    })
}

#[cfg(test)]
mod tests;
