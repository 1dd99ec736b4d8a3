//! From options to a loader: what exists, what fits, and what follows from it.

use std::collections::BinaryHeap;
use std::ops::RangeInclusive;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use atomic_waker::AtomicWaker;
use crossbeam_channel::bounded;

use super::admission::Limits;
use super::builder::{BuildStep, ByteSize, LoaderBuilder};
use super::column::{ColumnSpec, Field, Kind as ColumnKind};
use super::finishing::Finished;
use super::indexing::{find_or_make, listed_keys, read_head};
use super::lists::Shelf;
use super::quarantine::Ledger;
use super::run::{Parts, lock};
use super::source::{Format, Object, Stores, shards};
use super::standing::Standing;
use super::{Consumer, Loader};
use crate::dataset::{BlockCut, Dataset, NpyHeader, RecordShard, RecordSpec, SampleId, Shard, index_url};
use crate::error::{Error, Kind, Result};
use crate::fetch::{heads, hedge_bytes};
use crate::memory::Slab;
use crate::order::{Order, Partition, Shuffle};
use crate::schedule::{Budget, Plan, Shape};
use crate::store::Appetite;
use crate::sys::process::Birthplace;
use crate::telemetry::Telemetry;

/// Never more connections than this, whatever is asked for.
pub(super) const CONNECTIONS_MAX: usize = 256;
/// The default share of a machine's memory, and its bound.
const HOST_MEMORY_SHARE: u64 = 4;
const HOST_MEMORY_MAX: ByteSize = ByteSize::gib(4);
/// The most bytes that depth follows the link to over HTTP: requests of 1 MiB on all connections.
pub(super) const IN_FLIGHT_MAX: u64 = (CONNECTIONS_MAX as u64) << 20;
/// Reads in flight at the cold start, when they are small: this many share the link.
const REQUESTS_SEED: usize = 192;
/// What a .npy header fits in: NumPy writes less unless a type has thousands of fields.
const NPY_HEAD_BYTES: u64 = 64 << 10;
/// Reads of the cold start: what a fresh connection brings in two flights, 10 + 20 packets of 1,460 bytes.
const COLD_REQUEST_BYTES: u64 = 30 * 1460;
/// Sizes of a page that can be asked for.
const PAGE_BYTES: RangeInclusive<u64> = 4 << 10..=1 << 30;
/// More batches ahead than this is a slip: each takes a slot.
const BATCHES_AHEAD_MAX: usize = 1 << 16;

pub(super) fn open(options: &LoaderBuilder, stores: &mut Stores) -> Result<Loader> {
    let telemetry = Arc::new(Telemetry::new(options.trace_spans));
    (options.on_step)(BuildStep::Store);
    let objects = shards(&options.patterns, stores, |prefix| listed_keys(prefix, options.policy))?;
    let dataset = Arc::new(dataset(options, &objects, stores, &telemetry)?);
    let excluded = excluded(options, &dataset)?;
    let columns = columns(options, &dataset, &excluded)?;
    let partition = Partition::new(options.rank, options.world_size, options.batch_size, options.drop_last)?;
    check_batches(&partition, dataset.samples())?;
    let appetite = appetite(&objects);
    let page_bytes = page_bytes(options, &dataset, &columns)?;
    let shape = shape(&appetite, page_bytes);
    let host_memory = host_memory(options);
    let pages = usize::try_from(host_memory.as_bytes() / page_bytes as u64).unwrap_or(usize::MAX).max(1);
    let largest = LargestBatch::of(&dataset, &columns, options.batch_size);
    let (order, budget) = order_that_fits(options, &dataset, &partition, &shape, &largest, pages)?;
    let (limits, reasons) = limits(options, &appetite, &shape, &budget, pages)?;
    let (slots, slot_bytes) = slots(options, &columns, &largest)?;
    (options.on_step)(BuildStep::Memory(host_memory));
    let backend = options.device.backend();
    let slab_bytes = pages * page_bytes;
    // A driver that locks pages makes them resident one after the other: sooner done before, on several threads.
    let slab = match options.device.is_host() {
        true => Slab::at_once(slab_bytes, page_bytes)?,
        false => Slab::near(slab_bytes, page_bytes, backend.host_node())?,
    };
    let (returned, slot_returned) = bounded::<()>(1);
    let mut engine = backend.open(
        &slab,
        slots,
        slot_bytes,
        Arc::new(move || {
            let _ = returned.try_send(());
        }),
    )?;
    let steps: Vec<_> = columns.iter().filter_map(|column| Some(column.finished.as_ref()?.finishing.clone())).collect();
    engine.prepare(&steps).map_err(|error| error.within(backend.name()))?;
    let note = Mutex::new(engine.note());
    let sources = objects.iter().zip(dataset.shards()).map(|(object, shard)| object.source(Some(shard.size))).collect();
    let names = columns.iter().map(|column| column.name.clone()).collect();
    let parts = Arc::new(Parts {
        dataset,
        order,
        partition,
        columns: columns.into(),
        names,
        sources,
        slab,
        shape,
        limits,
        policy: options.policy,
        reactors: reactors(),
        telemetry,
        slots,
        slot_bytes,
        shelf: Shelf::new(slots),
        verify: options.verify,
        ledger: Ledger::new(options.on_error),
        excluded: excluded.into(),
        epochs_end: options.epochs.unwrap_or(u64::MAX),
        patience: options.patience,
        engine: Mutex::new(Some(engine)),
        slot_returned,
        host_node: backend.host_node(),
        note,
        born: Birthplace::here(),
        warm: Mutex::new(None),
    });
    let plan = plan(options, &parts, &budget, reasons, host_memory, backend.name());
    let loader = Loader {
        parts,
        plan,
        consumer: Mutex::new(Consumer { run: None, served: None }),
        standing: Standing::default(),
        waker: Arc::new(AtomicWaker::new()),
        held: Arc::new(AtomicUsize::new(0)),
    };
    if let Some(state) = &options.state {
        loader.resume(state)?;
    }
    *lock(&loader.parts.warm) = Some(loader.parts.connect()?);
    Ok(loader)
}

fn shape(appetite: &Appetite, page_bytes: usize) -> Shape {
    Shape {
        // A read that is cut at whole pages wastes none.
        request_bytes: (appetite.request_bytes as u64).next_multiple_of(page_bytes as u64),
        // Short, but not so short that pages stay all but empty.
        cold_request_bytes: COLD_REQUEST_BYTES.max(page_bytes as u64 / 4),
        gap_bytes: appetite.gap_bytes as u64,
        page_bytes,
        alignment: appetite.alignment,
    }
}

fn plan(
    options: &LoaderBuilder,
    parts: &Parts,
    budget: &Budget,
    [requests_reason, in_flight_reason]: [&str; 2],
    host_memory: ByteSize,
    device: String,
) -> Plan {
    let Parts { dataset, order, partition, shape, limits, slab, .. } = parts;
    Plan {
        dataset: options.shown(),
        shards: dataset.shards().len(),
        samples: dataset.samples(),
        remainder: dataset.remainder(),
        left_out: parts.excluded.len() as u64,
        dataset_bytes: dataset.shards().iter().map(|shard| shard.size).sum(),
        blocks: dataset.blocks().len(),
        rank: options.rank,
        world_size: options.world_size,
        batch_size: u64::from(options.batch_size),
        batches_per_epoch: partition.batches(order.samples()),
        window: order.shuffle().window_samples(),
        lanes: order.lanes(),
        host_memory: host_memory.as_bytes(),
        requests: limits.requests,
        requests_max: limits.requests_max,
        follows_link: limits.follows,
        max_rate: limits.max_rate,
        requests_reason: requests_reason.into(),
        in_flight_bytes: limits.bytes,
        in_flight_reason: in_flight_reason.into(),
        connections_max: CONNECTIONS_MAX,
        device,
        slots: parts.slots,
        slot_bytes: parts.slot_bytes,
        page_bytes: shape.page_bytes,
        pages: slab.pages(),
        window_pages: budget.window_pages,
        edge_pages: budget.edge_pages,
        request_bytes: shape.request_bytes,
        cold_request_bytes: shape.cold_request_bytes,
        hedge_bytes: hedge_bytes(&parts.sources, parts.policy),
    }
}

/// An epoch without a batch would never end: the stream would turn from one to the next for ever.
fn check_batches(partition: &Partition, samples: u64) -> Result<()> {
    if partition.batches(samples) > 0 {
        return Ok(());
    }
    let global = partition.global_batch();
    let what = format!("{samples} samples do not fill one batch of {global} over all ranks, and a last one is dropped");
    Err(Error::new(Kind::Config, what).advice("lower batch_size, or keep the last batch"))
}

/// The samples of the shards, from their index or their headers.
pub(super) fn dataset(
    options: &LoaderBuilder,
    objects: &[Object],
    stores: &mut Stores,
    telemetry: &Arc<Telemetry>,
) -> Result<Dataset> {
    let format = Format::of(&objects[0].url)?;
    if let Some(other) = objects.iter().find(|object| Format::of(&object.url).ok() != Some(format)) {
        let what = format!("{} and {} are of different formats", objects[0].url, other.url);
        return Err(Error::new(Kind::Config, what).advice("name shards of one format"));
    }
    let cut = BlockCut { bytes: options.block_bytes.as_bytes() };
    let dataset = match format {
        Format::Tar => {
            let at = options.index.clone().unwrap_or_else(|| index_url(&options.patterns[0]));
            let sidecar = stores.object(&at)?;
            let required = options.index.is_some();
            let index = find_or_make(objects, Some(&sidecar), required, options.policy, telemetry, &options.on_index)?;
            Dataset::members(index, cut)?
        }
        Format::Npy | Format::Bin => {
            let (records, spec) = records(options, objects, format, telemetry)?;
            Dataset::records(records, spec, cut)?
        }
    };
    if dataset.samples() == 0 {
        return Err(Error::new(Kind::Config, format!("{}: no sample in it", options.shown())));
    }
    Ok(dataset)
}

fn records(
    options: &LoaderBuilder,
    objects: &[Object],
    format: Format,
    telemetry: &Arc<Telemetry>,
) -> Result<(Vec<RecordShard>, RecordSpec)> {
    let sources: Vec<_> = objects.iter().map(|object| object.source(None)).collect();
    let metas = heads(&sources, options.policy)?;
    let shard = |number: usize, size: u64| Shard { url: objects[number].url.clone(), size, version: None };
    let token_spec = options.tokens.map(|t| RecordSpec::tokens(t.dtype, t.tokens, t.overlap)).transpose()?;
    if format == Format::Bin {
        let spec = token_spec.ok_or_else(|| {
            Error::new(Kind::Config, format!("{}: a .bin file does not say what is in it", objects[0].url))
                .advice("tell with `tokens`: type and tokens per sample")
        })?;
        let records = metas.iter().enumerate().map(|(n, meta)| RecordShard {
            shard: shard(n, meta.size),
            start: 0,
            bytes: meta.size,
        });
        return Ok((records.collect(), spec));
    }
    let mut spec: Option<RecordSpec> = None;
    let mut records = Vec::with_capacity(objects.len());
    for (number, (object, meta)) in objects.iter().zip(&metas).enumerate() {
        let head = read_head(object, meta.size, NPY_HEAD_BYTES, options.policy, telemetry)?;
        let header = NpyHeader::parse(&head).map_err(|error| error.within(&object.url))?;
        let found = match (&token_spec, header.shape.as_slice()) {
            (Some(tokens), [_]) if tokens.dtype() == header.dtype => tokens.clone(),
            (Some(tokens), shape) => {
                let what = format!(
                    "{}: {} {shape:?}, not tokens of {}",
                    object.url,
                    header.dtype.name(),
                    tokens.dtype().name()
                );
                return Err(Error::new(Kind::Config, what).advice("tell the type that the file has"));
            }
            (None, _) => header.spec().map_err(|error| error.within(&object.url))?,
        };
        if spec.get_or_insert_with(|| found.clone()) != &found {
            let what = format!("{}: type or row shape differs from {}", object.url, objects[0].url);
            return Err(
                Error::new(Kind::Config, what).advice("all shards of a dataset hold rows of one type and shape")
            );
        }
        records.push(header.records(shard(number, meta.size)));
    }
    spec.map(|spec| (records, spec)).ok_or_else(|| Error::new(Kind::Config, "no shard was named"))
}

/// Samples that are left out from the start.
fn excluded(options: &LoaderBuilder, dataset: &Dataset) -> Result<Vec<SampleId>> {
    let (excluded, _) = options.quarantine.find_in(dataset)?;
    if excluded.len() as u64 == dataset.samples() {
        return Err(
            Error::new(Kind::Config, "every sample is in quarantine").advice("name other shards, or another list")
        );
    }
    Ok(excluded)
}

fn columns(options: &LoaderBuilder, dataset: &Dataset, excluded: &[SampleId]) -> Result<Vec<ColumnSpec>> {
    let every = || {
        dataset.fields().iter().map(|layout| match &layout.fixed {
            Some((dtype, shape)) => (layout.name.clone(), Field::array(*dtype, shape)),
            None => (layout.name.clone(), Field::bytes()),
        })
    };
    let wanted: Vec<(String, Field)> =
        if options.fields.is_empty() { every().collect() } else { options.fields.clone() };
    let mut columns: Vec<ColumnSpec> = Vec::with_capacity(wanted.len());
    for (name, field) in wanted {
        let Some(id) = dataset.field(&name) else {
            let there: Vec<_> = dataset.fields().iter().map(|layout| layout.name.as_str()).collect();
            return Err(Error::new(Kind::NotFound, format!("no field '{name}'"))
                .advice(format!("there are: {}", there.join(", "))));
        };
        if columns.iter().any(|column| column.name == name) {
            return Err(Error::new(Kind::Config, format!("field '{name}' is asked for twice")));
        }
        let left_out = excluded.iter().filter(|sample| dataset.extent(**sample, id).is_none()).count();
        let lacking = dataset.lacking(id) - left_out as u64;
        if lacking > 0 {
            let lacks =
                |sample: &SampleId| dataset.extent(*sample, id).is_none() && excluded.binary_search(sample).is_err();
            let key = (0..dataset.samples()).find(lacks).map(|sample| dataset.key(sample)).unwrap_or_default();
            return Err(Error::new(
                Kind::Config,
                format!("{lacking} samples have no field '{name}', the first is {key}"),
            )
            .advice("leave the field out, or these samples: name them to `quarantine`"));
        }
        let finished = finished(options, &name, &field)?;
        let step = columns.iter().filter(|column| column.finished.is_some()).count();
        columns.push(ColumnSpec { name, field: id, kind: field.kind, finished, step });
    }
    Ok(columns)
}

/// What a column becomes on the device, if anything.
fn finished(options: &LoaderBuilder, name: &str, field: &Field) -> Result<Option<Finished>> {
    let mut steps = field.steps.clone();
    let of_tokens = options.tokens.and_then(|tokens| tokens.widen).filter(|_| name == "tokens");
    if let (Some(one), Some(other)) = (of_tokens, steps.widen)
        && one != other
    {
        let what = format!("field '{name}': widened to {}, and to {} as tokens", other.name(), one.name());
        return Err(Error::new(Kind::Config, what).advice("leave one of Tokens::widen and Field::widen out"));
    }
    steps.widen = steps.widen.or(of_tokens);
    let finished = match &field.kind {
        ColumnKind::Array { dtype, shape } => steps.of_array(*dtype, shape),
        _ if steps.is_none() => Ok(None),
        _ => Err(Error::new(Kind::Config, "only arrays are finished on the device")
            .advice("ask for the field as an array, or leave the steps out")),
    };
    finished.map_err(|error| error.within(format!("field '{name}'")))
}

/// What suits all stores: the largest requests' size and the smallest gap.
fn appetite(objects: &[Object]) -> Appetite {
    let all = objects.iter().map(|object| object.store.appetite());
    all.reduce(|a, b| Appetite {
        request_bytes: a.request_bytes.max(b.request_bytes),
        requests: a.requests.max(b.requests),
        gap_bytes: a.gap_bytes.min(b.gap_bytes),
        alignment: a.alignment.max(b.alignment),
    })
    .unwrap_or(Appetite { request_bytes: 8 << 20, requests: 32, gap_bytes: 64 << 10, alignment: 1 })
}

/// Pages about the size of a sample leave little behind when it has gone.
fn page_bytes(options: &LoaderBuilder, dataset: &Dataset, columns: &[ColumnSpec]) -> Result<usize> {
    if let Some(size) = options.page_size.map(ByteSize::as_bytes) {
        let fits = size.is_power_of_two() && PAGE_BYTES.contains(&size);
        return if fits {
            Ok(size as usize)
        } else {
            Err(Error::new(Kind::Config, format!("page size of {size} bytes")).advice(format!(
                "take a power of two from {} to {}",
                PAGE_BYTES.start(),
                PAGE_BYTES.end()
            )))
        };
    }
    let fields = dataset.fields();
    let mean: u64 =
        columns.iter().map(|column| (fields[column.field].bytes_min + fields[column.field].bytes_max) / 2).sum();
    Ok(mean.clamp(64 << 10, 1 << 20).next_power_of_two() as usize)
}

pub(super) fn host_memory(options: &LoaderBuilder) -> ByteSize {
    options.host_memory.unwrap_or_else(|| {
        let info = rustix::system::sysinfo();
        let total = info.totalram.saturating_mul(u64::from(info.mem_unit.max(1)));
        ByteSize::bytes(total / HOST_MEMORY_SHARE).min(HOST_MEMORY_MAX)
    })
}

/// The order asked for, or with a smaller window if that was allowed and is needed; and the pages it takes.
fn order_that_fits(
    options: &LoaderBuilder,
    dataset: &Dataset,
    partition: &Partition,
    shape: &Shape,
    largest: &LargestBatch,
    pages: usize,
) -> Result<(Order, Budget)> {
    let block_samples: Arc<[u32]> = dataset.blocks().iter().map(|block| block.samples).collect();
    let lanes = options.lanes.or(options.state.map(|state| state.lanes));
    let mut shuffle = options.shuffle;
    loop {
        let order = Order::new(Arc::clone(&block_samples), shuffle, options.world_size, lanes)?;
        let own_lanes = order.lanes() / options.world_size;
        // One batch being complete and one being copied, beside the window.
        let batches = 2 * u64::from(partition.batch_size());
        let budget = Budget::new(dataset.blocks(), shape, own_lanes, order.lane_window(), batches);
        let wanted = budget.pages_wanted(shape, largest.values(), largest.bytes());
        if wanted <= pages {
            return Ok((order, budget));
        }
        let window = shuffle.window_samples();
        if options.shrink_window && window > 1 {
            shuffle = Shuffle::window(window / 2).seed(shuffle.seed_value());
            continue;
        }
        let bytes = |pages: usize| ByteSize::bytes(pages as u64 * shape.page_bytes as u64);
        let enough = bytes(wanted).rounded_up();
        let advice = if window > 0 {
            format!("raise host_memory to {enough}, take a smaller window or batch_size, or let the window shrink")
        } else {
            format!("raise host_memory to {enough}, or lower batch_size")
        };
        return Err(Error::new(
            Kind::Config,
            format!(
                "a window of {window} samples and 2 batches of {} need {} of pages, host_memory is {}",
                partition.batch_size(),
                bytes(wanted),
                bytes(pages)
            ),
        )
        .advice(advice));
    }
}

/// What may be in flight; and the reasons for both numbers, for the plan.
///
/// # Errors
/// `Config` for a rate of nothing.
fn limits(
    options: &LoaderBuilder,
    appetite: &Appetite,
    shape: &Shape,
    budget: &Budget,
    pages: usize,
) -> Result<(Limits, [&'static str; 2])> {
    let max_rate = options.max_rate.map(ByteSize::as_bytes);
    if max_rate == Some(0) {
        return Err(Error::new(Kind::Config, "a max_rate of 0 bytes per second").advice("leave it out for no limit"));
    }
    let (requests, requests_max, requests_reason) = match options.requests {
        Some(requests) => (requests, requests, "as asked for"),
        None if appetite.requests > REQUESTS_SEED => (appetite.requests, CONNECTIONS_MAX, "what this store likes"),
        None => (REQUESTS_SEED, CONNECTIONS_MAX, "a fixed number"),
    };
    let [requests, requests_max] = [requests, requests_max].map(|requests| requests.clamp(1, CONNECTIONS_MAX));
    // With the longest reads, as many as there may be connections.
    let most = requests_max as u64 * shape.request_bytes;
    let spare = (pages - budget.pages().min(pages)) as u64 * shape.page_bytes as u64;
    let follows = options.in_flight.is_none();
    let bytes_by_memory = follows && spare < most;
    let (bytes, bytes_reason) = match options.in_flight {
        Some(bytes) => (bytes.as_bytes(), "as asked for"),
        None if bytes_by_memory => (spare.max(shape.request_bytes), "what host memory has room for"),
        None => (most, "the longest reads on all connections"),
    };
    let limits = Limits { requests, requests_max, bytes: bytes.max(1), bytes_by_memory, follows, max_rate };
    Ok((limits, [requests_reason, bytes_reason]))
}

/// How many slots, and how large: what the largest batch of each column can need.
fn slots(options: &LoaderBuilder, columns: &[ColumnSpec], largest: &LargestBatch) -> Result<(usize, usize)> {
    if options.batches_ahead > BATCHES_AHEAD_MAX {
        let what = format!("{} batches ahead, at most {BATCHES_AHEAD_MAX} can be", options.batches_ahead);
        return Err(Error::new(Kind::Config, what).advice("two or three are enough"));
    }
    for ColumnSpec { name, finished, .. } in columns {
        let rows_max = finished.as_ref().map_or(usize::MAX, |finished| finished.finishing.rows_max());
        if largest.rows > rows_max {
            let what = format!("field '{name}': {} rows are finished at a time, {rows_max} can be", largest.rows);
            return Err(Error::new(Kind::Config, what).advice("lower batch_size"));
        }
    }
    let payloads = columns.iter().zip(&largest.payloads);
    let slot_bytes = payloads.map(|(column, payload)| column.slot_bytes(largest.rows, *payload));
    let bytes = slot_bytes.fold(0, u64::saturating_add);
    let slots = options.batches_ahead + 2;
    let total = bytes.saturating_mul(slots as u64);
    if let Some(limit) = options.device_memory.filter(|limit| limit.as_bytes() < total) {
        return Err(Error::new(
            Kind::Device,
            format!(
                "{slots} slots of {} are {}, device_memory is {limit}",
                ByteSize::bytes(bytes),
                ByteSize::bytes(total)
            ),
        )
        .advice("lower batch_size or batches_ahead, or raise device_memory"));
    }
    Ok((slots, usize::try_from(bytes).unwrap_or(usize::MAX)))
}

/// What no batch of a rank can exceed.
struct LargestBatch {
    rows: usize,
    /// Bytes of all values, by column.
    payloads: Vec<u64>,
}

impl LargestBatch {
    fn of(dataset: &Dataset, columns: &[ColumnSpec], batch_size: u32) -> Self {
        // No batch has more rows than there are samples.
        let rows = u64::from(batch_size).min(dataset.samples()) as usize;
        LargestBatch { rows, payloads: columns.iter().map(|column| longest_values(dataset, column, rows)).collect() }
    }

    fn values(&self) -> u64 {
        self.rows as u64 * self.payloads.len() as u64
    }

    fn bytes(&self) -> u64 {
        self.payloads.iter().copied().fold(0, u64::saturating_add)
    }
}

/// Bytes of the `rows` longest values of a ragged column.
fn longest_values(dataset: &Dataset, column: &ColumnSpec, rows: usize) -> u64 {
    let layout = &dataset.fields()[column.field];
    if !matches!(column.kind, ColumnKind::Bytes | ColumnKind::Json) || layout.bytes_min == layout.bytes_max {
        return layout.bytes_max.saturating_mul(rows as u64);
    }
    let mut largest = BinaryHeap::with_capacity(rows + 1);
    for sample in 0..dataset.samples() {
        let len = dataset.extent(sample, column.field).map_or(0, |extent| extent.len);
        largest.push(std::cmp::Reverse(len));
        if largest.len() > rows {
            largest.pop();
        }
    }
    largest.into_iter().map(|std::cmp::Reverse(len)| len).sum()
}

/// One thread carries tens of Gbit/s of plain HTTP; more of them only where there are many cores.
pub(super) fn reactors() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 8).clamp(1, 4))
}
