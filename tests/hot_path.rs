//! What a warm loader allocates: nothing with a batch, whatever its rows; something with a read.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

#[path = "fixture/shards.rs"]
mod shards;

use std::thread;
use std::time::Duration;

use farfeed::dataset::Dtype;
use farfeed::device::Device;
use farfeed::loader::LoaderBuilder;
use farfeed::order::Shuffle;
use farfeed::store::MemoryStore;
use farfeed::{Batch, ByteSize, Field, Loader, Tokens};
use farfeed_driver_double::{Allocated, Counting};
use shards::{noise, webdataset};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const THREADS: [&str; 5] = ["consumer", "farfeed-copy", "farfeed-pump", "farfeed-net", "others"];
const WARM: usize = 300;
const COUNTED: usize = 400;

/// `COUNTED` batches are looked at so often at the most, until once they cost no more than they may. Lists that go round are as many as were
/// ever in use at once: where a thread was kept from running, more of them are made once more.
const LOOKS_MAX: usize = 10;
/// Allocations of each of [`THREADS`] in all `COUNTED` batches that are of neither a batch nor a read.
const STRAY_MAX: u64 = 20;
/// And those of each read on each of the threads that deal with reads. On the pump 7 were counted, half of them for the block that it reads, and on a
/// reactor 3, from memory.
const READ_MAX: u64 = 16;

/// What each of [`THREADS`] allocated, and how many reads there were.
struct Cost {
    allocated: [Allocated; THREADS.len()],
    reads: u64,
}

impl Cost {
    fn so_far(loader: &Loader) -> Cost {
        Cost { allocated: THREADS.map(Counting::allocated), reads: loader.stats().requests }
    }

    fn since(&self, before: &Cost) -> Cost {
        let mut allocated = self.allocated;
        for (now, before) in allocated.iter_mut().zip(&before.allocated) {
            *now = Allocated { times: now.times - before.times, bytes: now.bytes - before.bytes };
        }
        Cost { allocated, reads: self.reads - before.reads }
    }

    /// The first thread that allocated more than it may.
    fn too_much(&self) -> Option<&'static str> {
        let mut threads = THREADS.iter().zip(&self.allocated);
        let found = threads.find(|(thread, allocated)| {
            let of_reads = if ["farfeed-pump", "farfeed-net"].contains(*thread) { READ_MAX * self.reads } else { 0 };
            allocated.times > STRAY_MAX + of_reads
        });
        found.map(|(thread, _)| *thread)
    }
}

/// Takes batches in the manner of a training loop, and looks at what `COUNTED` of them cost after a while. One of the others at a time: whatever the
/// process allocates is counted.
fn cost(name: &str, builder: LoaderBuilder, look: impl Fn(&Batch) + Sync) {
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let loader = builder.host_memory(ByteSize::mib(32)).patience(Duration::from_secs(60)).build().unwrap();
    let consume = || {
        let (mut before, mut taken) = (None, 0);
        for epoch in 0.. {
            for batch in loader.epoch(epoch) {
                if taken >= WARM && (taken - WARM).is_multiple_of(COUNTED) {
                    let now = Cost::so_far(&loader);
                    let cost = before.replace(now).map(|before| Cost::so_far(&loader).since(&before));
                    if let Some(cost) = cost
                        && (cost.too_much().is_none() || taken >= WARM + LOOKS_MAX * COUNTED)
                    {
                        return cost;
                    }
                }
                look(&batch.unwrap());
                taken += 1;
            }
        }
        unreachable!("there is no last epoch")
    };
    let cost = thread::scope(|scope| {
        thread::Builder::new().name("consumer".into()).spawn_scoped(scope, consume).unwrap().join().unwrap()
    });
    println!("{name}: {COUNTED} batches, {} reads", cost.reads);
    for (thread, Allocated { times, bytes }) in THREADS.iter().zip(&cost.allocated) {
        println!("  {thread}: {times} allocations, {bytes} bytes");
    }
    assert_eq!(cost.too_much(), None, "{name}: allocated too often, with {} reads", cost.reads);
    assert!(5 * cost.reads < COUNTED as u64, "{name}: {} reads are too many to tell a batch's cost from", cost.reads);
}

/// Pictures of some hundred bytes and numbers: everything that makes a batch long in rows and short in bytes.
fn pictures(device: &Device, rows: u32) {
    let dataset = webdataset(2, 2_000, 600);
    let builder = Loader::builder(dataset.pattern("memory:"))
        .store(dataset.memory())
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(rows)
        .shuffle(Shuffle::window(512).seed(1))
        .block_size(ByteSize::mib(1))
        .device(device.clone());
    cost(&format!("{rows} pictures on {device}"), builder, |batch| {
        let (jpg, cls) = (batch.ragged("jpg").unwrap(), batch.dense("cls").unwrap());
        assert_eq!((jpg.offsets().len(), cls.shape), (batch.len() + 1, &[batch.len()][..]));
    })
}

fn tokens(device: &Device, rows: u32) {
    let store = MemoryStore::new();
    store.put("train.bin", noise(1, 8 << 20));
    let builder = Loader::builder("memory:train.bin")
        .store(store)
        .tokens(Tokens::new(Dtype::U16, 128).with_next())
        .batch_size(rows)
        .shuffle(Shuffle::window(4096).seed(1))
        .block_size(ByteSize::mib(1))
        .device(device.clone());
    cost(&format!("{rows} rows of tokens on {device}"), builder, |batch| {
        assert_eq!(batch.view::<u16>("tokens").unwrap().shape(), [batch.len(), 129]);
    })
}

fn all_on(device: &Device) {
    for rows in [8, 64] {
        pictures(device, rows);
        tokens(device, rows);
    }
}

#[test]
fn a_batch_on_the_host_costs_no_allocation() {
    all_on(&Device::host());
}

#[cfg(feature = "cuda")]
#[test]
fn a_batch_on_a_device_costs_no_allocation() {
    let _double = farfeed_driver_double::Double::load().device(0);
    all_on(&Device::cuda(0).unwrap());
}
