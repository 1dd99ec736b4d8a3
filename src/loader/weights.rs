//! Weights: the tensors of safetensors files, streamed to a device.
//!
//! Where a loader goes on for ever, this happens once. Every byte has its place before the first one is asked for, so reads may land in
//! any order, and their pages go round: what is in flight is bounded by host memory, whatever the size of the files.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::batch::Dense;
use super::builder::{BuildStep, ByteSize, LoaderBuilder};
use super::column::align;
use super::indexing::listed_keys;
use super::opened::{CONNECTIONS_MAX, host_memory, reactors};
use super::source::shards;
use super::view::{Element, View};
use crate::dataset::{Dtype, Extent, SafetensorsHeader, TensorPlace};
use crate::device::{Device, DeviceSlot, Engine, RawStream, Segment};
use crate::error::{Error, Kind, Result};
use crate::fetch::{Completion, Fetch, FetchRead, RetryPolicy, Source, extents, heads};
use crate::memory::{Landed, Landing, Slab};
use crate::telemetry::{Stats, Telemetry};

/// Bytes of a file's beginning that are read first: the headers of most models' files are shorter.
const HEAD_BYTES: u64 = 128 << 10;
/// Most bytes of one read.
const PIECE_BYTES: u64 = 4 << 20;
/// Reads in flight unless told otherwise: 256 MiB, which is 10 Gbit/s at 200 ms.
const READS: usize = 64;
const PAGE_BYTES: usize = 512 << 10;
/// How often copies in flight are looked at, and how often a quiet link.
const POLL: Duration = Duration::from_micros(200);
const QUIET: Duration = Duration::from_millis(500);
/// How long the last copies may take.
const LANDING_PATIENCE: Duration = Duration::from_secs(30);

/// The tensors of safetensors files, on a device, all of them there. Made by [`LoaderBuilder::load_weights`].
///
/// They lie in one piece of memory, each at a multiple of 256 bytes, which is freed when this is dropped.
pub struct Weights {
    slot: DeviceSlot,
    device: Device,
    tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
    telemetry: Arc<Telemetry>,
}

/// A tensor, and where it comes from and goes to.
struct Tensor {
    place: TensorPlace,
    /// Offset in the slot.
    at: usize,
}

impl LoaderBuilder {
    /// Streams the tensors of safetensors files to the device, and waits until they are there. Of the options, those of files, stores,
    /// retries, requests, device, and memory of host and device count. Nothing but the link's own checks guards the bytes: the format has no digests.
    ///
    /// # Errors
    /// `NotFound` for a file that is not there; `Corrupt` for one that is no whole safetensors file; `Unsupported` for element types that
    /// farfeed does not know; `Config` where two files have tensors of one name, or host memory is less than a read takes; `Device` where the
    /// tensors do not fit; and what the link does.
    pub fn load_weights(self) -> Result<Weights> {
        let telemetry = Arc::new(Telemetry::new(self.trace_spans));
        (self.on_step)(BuildStep::Store);
        let (urls, sources) = self.files()?;
        let headers = read_headers(&urls, &sources, self.policy, &telemetry)?;
        let (tensors, files, slot_bytes) = lay_out(&urls, headers.iter())?;
        if let Some(limit) = self.device_memory.filter(|limit| limit.as_bytes() < slot_bytes as u64) {
            let what = format!("the tensors take {}, device_memory is {limit}", ByteSize::bytes(slot_bytes as u64));
            return Err(Error::new(Kind::Device, what).advice("raise device_memory, or take a larger device"));
        }
        let slot = Haul::start(&self, sources, &tensors, &files, slot_bytes, &telemetry)?.carry_out()?;
        let by_name = tensors.iter().enumerate().map(|(number, tensor)| (tensor.place.name.clone(), number)).collect();
        let mut metadata = BTreeMap::new();
        for (name, value) in headers.into_iter().flat_map(|header| header.metadata) {
            metadata.entry(name).or_insert(value);
        }
        Ok(Weights { slot, device: self.device, tensors, by_name, metadata, telemetry })
    }

    /// The files as they are shown, and where their bytes come from.
    fn files(&self) -> Result<(Vec<String>, Vec<Source>)> {
        let mut stores = self.open_stores(self.requests.unwrap_or(READS));
        let objects = shards(&self.patterns, &mut stores, |prefix| listed_keys(prefix, self.policy))?;
        let mut sources: Vec<Source> = objects.iter().map(|object| object.source(None)).collect();
        let metas = heads(&sources, self.policy)?;
        for (source, meta) in sources.iter_mut().zip(metas) {
            source.size = Some(meta.size);
        }
        Ok((objects.into_iter().map(|object| object.url).collect(), sources))
    }
}

fn read_headers(
    urls: &[String],
    sources: &[Source],
    policy: RetryPolicy,
    telemetry: &Arc<Telemetry>,
) -> Result<Vec<SafetensorsHeader>> {
    let size = |file: usize| sources[file].size.unwrap_or_default();
    let read = |wanted: &[(usize, u64)]| {
        let extent = |(file, len): &(usize, u64)| Extent { shard: *file as u32, start: 0, len: size(*file).min(*len) };
        let wanted: Vec<Extent> = wanted.iter().map(extent).collect();
        extents(sources.to_vec(), &wanted, policy, telemetry)
    };
    let mut heads = read(&(0..sources.len()).map(|file| (file, HEAD_BYTES)).collect::<Vec<_>>())?;
    let mut longer = Vec::new();
    for (file, head) in heads.iter().enumerate() {
        let needed = SafetensorsHeader::bytes_needed(head).map_err(|error| error.within(&urls[file]))?;
        if needed > HEAD_BYTES {
            longer.push((file, needed));
        }
    }
    for ((file, _), head) in longer.iter().zip(read(&longer)?) {
        heads[*file] = head;
    }
    let parsed = heads
        .iter()
        .enumerate()
        .map(|(file, head)| SafetensorsHeader::parse(head, size(file)).map_err(|error| error.within(&urls[file])));
    parsed.collect()
}

/// Where each tensor goes; which of them are each file's; and the bytes that all take.
fn lay_out<'a>(
    urls: &[String],
    headers: impl Iterator<Item = &'a SafetensorsHeader>,
) -> Result<(Vec<Tensor>, Vec<Range<usize>>, usize)> {
    let mut tensors: Vec<Tensor> = Vec::new();
    let mut files = Vec::new();
    let mut names: HashMap<&str, usize> = HashMap::new();
    let mut end = 0u64;
    for (file, header) in headers.enumerate() {
        let first = tensors.len();
        for place in &header.tensors {
            if let Some(other) = names.insert(&place.name, file) {
                let what = format!("tensor '{}' is in {} and in {}", place.name, urls[other], urls[file]);
                return Err(Error::new(Kind::Config, what).advice("name files of one model, each once"));
            }
            let at = usize::try_from(end).unwrap_or(usize::MAX);
            end = align(end.saturating_add(place.len));
            tensors.push(Tensor { place: place.clone(), at });
        }
        files.push(first..tensors.len());
    }
    // Nothing at all is no memory, which no device gives.
    let bytes = usize::try_from(end.max(align(1))).unwrap_or(usize::MAX);
    Ok((tensors, files, bytes))
}

/// One read, and what it brings.
struct Piece {
    file: usize,
    start: u64,
    len: usize,
}

/// The way from files to the slot.
struct Haul<'a> {
    tensors: &'a [Tensor],
    /// Which of them are each file's.
    files: &'a [Range<usize>],
    pieces: Vec<Piece>,
    pages_per_piece: usize,
    reads_max: usize,
    patience: Duration,
    // Dropped in this order: nothing lands any more, nothing is copied any more.
    fetch: Fetch,
    completions: Receiver<Completion>,
    slot: DeviceSlot,
    engine: Box<dyn Engine>,
    slab: Slab,
}

impl<'a> Haul<'a> {
    fn start(
        options: &LoaderBuilder,
        sources: Vec<Source>,
        tensors: &'a [Tensor],
        files: &'a [Range<usize>],
        slot_bytes: usize,
        telemetry: &Arc<Telemetry>,
    ) -> Result<Self> {
        let pieces = pieces(tensors, files);
        let alignment = sources.iter().map(|source| source.store.appetite().alignment).max().unwrap_or(1);
        let pages_per_piece = (PIECE_BYTES as usize + 2 * alignment).div_ceil(PAGE_BYTES);
        let piece_bytes = pages_per_piece * PAGE_BYTES;
        let host_memory = host_memory(options);
        let room = usize::try_from(host_memory.as_bytes()).unwrap_or(usize::MAX) / piece_bytes;
        if room == 0 {
            let what = format!("a read takes {}, host_memory is {host_memory}", ByteSize::bytes(piece_bytes as u64));
            return Err(Error::new(Kind::Config, what).advice("raise host_memory"));
        }
        let wanted = options.requests.unwrap_or(READS).clamp(1, CONNECTIONS_MAX).min(pieces.len().max(1));
        // On a GPU as many again, whose copies are under way.
        let in_pages = if options.device.is_host() { wanted } else { 2 * wanted }.min(room);
        let reads_max = wanted.min(in_pages);
        (options.on_step)(BuildStep::Memory(ByteSize::bytes((in_pages * piece_bytes) as u64)));
        let backend = options.device.backend();
        let slab = match options.device.is_host() {
            true => Slab::at_once(in_pages * piece_bytes, PAGE_BYTES)?,
            false => Slab::near(in_pages * piece_bytes, PAGE_BYTES, backend.host_node())?,
        };
        let mut engine = backend.open(&slab, 1, slot_bytes, Arc::new(|| ()))?;
        let slot = engine.acquire()?.ok_or_else(|| Error::new(Kind::Device, "a new engine has no slot"))?;
        let (done, completions) = bounded(reads_max);
        let threads = reactors().min(reads_max);
        let fetch = Fetch::start(sources, options.policy, threads, reads_max, reads_max, Arc::clone(telemetry), done)?;
        let patience = options.policy.patience.saturating_mul(2).max(QUIET);
        Ok(Haul {
            tensors,
            files,
            pieces,
            pages_per_piece,
            reads_max,
            patience,
            fetch,
            completions,
            slot,
            engine,
            slab,
        })
    }

    /// Until all tensors are there; gives where.
    fn carry_out(mut self) -> Result<DeviceSlot> {
        let (mut asked, mut landed) = (0, 0);
        let mut under_way: HashMap<u64, Arc<AtomicU64>> = HashMap::with_capacity(self.reads_max);
        let (mut seen, mut since) = ((0, 0, 0), Instant::now());
        while landed < self.pieces.len() {
            let copying = self.engine.poll()?;
            while asked < self.pieces.len() && under_way.len() < self.reads_max {
                let Some(pages) = self.slab.take(self.pages_per_piece) else { break };
                let piece = &self.pieces[asked];
                let landing = Landing::new(pages, piece.len);
                let (id, shard) = (asked as u64, piece.file as u32);
                under_way.insert(id, landing.progress());
                self.fetch.submit(FetchRead { id, shard, start: piece.start, landing })?;
                asked += 1;
            }
            match self.completions.recv_timeout(if copying > 0 { POLL } else { QUIET }) {
                Ok(Completion { id, result, .. }) => {
                    under_way.remove(&id);
                    self.place(id as usize, &result?)?;
                    landed += 1;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Error::new(Kind::Io, "the reactors have stopped")),
            }
            // Each read has its own deadline, which makes an end of it; this is for what has none.
            let bytes: u64 = under_way.values().map(|progress| progress.load(Ordering::Relaxed)).sum();
            let now = (landed, bytes, copying);
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() > self.patience {
                let what = format!("nothing has arrived or been copied for {:?}", since.elapsed());
                return Err(Error::new(Kind::Stalled, what).advice("`farfeed probe` may say why"));
            }
        }
        let deadline = Instant::now() + LANDING_PATIENCE;
        while self.engine.poll()? > 0 {
            if Instant::now() > deadline {
                return Err(Error::new(Kind::Stalled, format!("copies took longer than {LANDING_PATIENCE:?}")));
            }
            std::thread::sleep(POLL);
        }
        self.slot.synchronize()?;
        Ok(self.slot)
    }

    /// Copies what a read has brought to where it belongs.
    fn place(&mut self, number: usize, landed: &Landed) -> Result<()> {
        let Piece { file, start, len } = self.pieces[number];
        let end = start + len as u64;
        let tensors = &self.tensors[self.files[file].clone()];
        let first = tensors.partition_point(|tensor| tensor.place.start + tensor.place.len <= start);
        let mut segments = Vec::with_capacity(self.pages_per_piece + 1);
        for Tensor { place, at } in tensors[first..].iter().take_while(|tensor| tensor.place.start < end) {
            let (from, to) = (place.start.max(start), (place.start + place.len).min(end));
            let mut at = at + (from - place.start) as usize;
            for slice in landed.slices((from - start) as usize, (to - from) as usize) {
                segments.push(Segment { from: slice, to: at });
                at += slice.len();
            }
        }
        self.engine.copy(&mut self.slot, &segments)?;
        self.engine.seal(&mut self.slot, vec![landed.hold()])
    }
}

/// All bytes of all tensors, in the order of the files.
fn pieces(tensors: &[Tensor], files: &[Range<usize>]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (file, tensors) in files.iter().map(|range| &tensors[range.clone()]).enumerate() {
        let (Some(first), Some(last)) = (tensors.first(), tensors.last()) else { continue };
        let (start, end) = (first.place.start, last.place.start + last.place.len);
        let starts = (start..end).step_by(PIECE_BYTES as usize);
        pieces.extend(starts.map(|start| Piece { file, start, len: (end - start).min(PIECE_BYTES) as usize }));
    }
    pieces
}

impl Weights {
    /// Tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensors with their names, in the order of the files.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, Dense<'_>)> {
        self.tensors.iter().map(|tensor| (tensor.place.name.as_str(), self.dense(tensor)))
    }

    /// A tensor by its name.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn tensor(&self, name: &str) -> Result<Dense<'_>> {
        self.find(name).map(|tensor| self.dense(tensor))
    }

    /// What the writers of the files noted; of several notes with one name the first.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Bytes of all tensors.
    pub fn payload_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.place.len).sum()
    }

    /// Where they are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What it took to bring them here.
    pub fn stats(&self) -> Stats {
        self.telemetry.stats()
    }

    /// Has the memory remember a stream that uses it: it is freed only after what the stream has been given to do when this is dropped. The
    /// tensors are there already, so nothing waits. Does nothing on the host device.
    ///
    /// # Errors
    /// `Config` for more than eight streams; `Device` when the driver refuses.
    pub fn wait_on(&self, stream: impl Into<RawStream>) -> Result<()> {
        self.slot.wait_on(stream.into())
    }

    /// A tensor as elements of type `T`.
    ///
    /// # Errors
    /// `NotFound`; `Config` when it holds something else than `T`.
    pub fn view<T: Element>(&self, name: &str) -> Result<View<'_, T>> {
        let Tensor { place, at } = self.find(name)?;
        View::new(&self.slot, *at, &place.shape, place.dtype).map_err(|error| error.within(format!("tensor '{name}'")))
    }

    /// The bytes of a tensor, read back to the host where need be: for checks.
    ///
    /// # Errors
    /// `NotFound`; `Device` when they cannot be read back.
    pub fn read_back(&self, name: &str) -> Result<Vec<u8>> {
        let tensor = self.tensor(name)?;
        let at = (tensor.pointer - self.slot.device_pointer()) as usize;
        self.slot.read_back(at, tensor.len)
    }

    fn find(&self, name: &str) -> Result<&Tensor> {
        self.by_name.get(name).map(|number| &self.tensors[*number]).ok_or_else(|| {
            Error::new(Kind::NotFound, format!("no tensor '{name}'")).advice(format!(
                "there are {}, such as '{}'",
                self.len(),
                self.first_name()
            ))
        })
    }

    fn dense<'a>(&'a self, tensor: &'a Tensor) -> Dense<'a> {
        let Tensor { place, at } = tensor;
        let len = place.len as usize;
        let dtype: Dtype = place.dtype;
        Dense {
            dtype,
            shape: &place.shape,
            pointer: self.slot.device_pointer() + *at as u64,
            len,
            bytes: self.slot.bytes().and_then(|bytes| bytes.get(*at..*at + len)),
        }
    }

    fn first_name(&self) -> &str {
        self.tensors.first().map_or("none", |tensor| tensor.place.name.as_str())
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weights")
            .field("tensors", &self.len())
            .field("bytes", &self.payload_bytes())
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
