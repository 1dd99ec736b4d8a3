//! Batches in the hands of cudarc: streams, views, kernels. On the driver double, where a kernel is a twin on the host: see `tests/driver-double`.
#![cfg(feature = "cuda")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use farfeed::cudarc::driver::{CudaContext, CudaStream, DevicePtr, DeviceSlice};
use farfeed::dataset::Dtype;
use farfeed::device::{Device, RawStream};
use farfeed::store::MemoryStore;
use farfeed::{Batch, ByteSize, Kind, Loader, Tokens};
use farfeed_driver_double::{Double, DoubleDevice, Launch, Live};

#[expect(dead_code, reason = "its main")]
#[path = "../examples/07_kernel.rs"]
mod example;

/// The double's insight and its counts are what these tests go by.
macro_rules! on_the_double {
    () => {
        if farfeed_driver_double::on_gpu() {
            eprintln!("skipped: this looks into the double");
            return;
        }
    };
}

const TOKENS: usize = 1000;
const BATCH: usize = 8;

/// A device of the double for one test, and cudarc's hold on it.
struct Rig {
    double: DoubleDevice,
    device: Device,
    stream: Arc<CudaStream>,
}

impl Rig {
    fn new(ordinal: u32) -> Rig {
        let double = Double::load().device(ordinal);
        let device = Device::cuda(ordinal).expect("the double has that many devices");
        let context = CudaContext::new(ordinal as usize).expect("the primary context");
        Rig { double, device, stream: context.new_stream().expect("a stream") }
    }

    /// `samples` samples of uint32: token n of the file is n.
    fn loader(&self, samples: usize) -> Loader {
        loader(&self.device, samples)
    }

    /// What is left is the double's complaint or cudarc's; there is nothing of either.
    fn end(self) {
        self.double.drain();
        let context = Arc::clone(self.stream.context());
        drop((self.stream, self.device));
        context.check_err().expect("cudarc has nothing to say");
        drop(context);
        assert_eq!(self.double.violations(), "");
        assert_eq!(self.double.live(), Live::default());
    }
}

fn loader(device: &Device, samples: usize) -> Loader {
    let store = MemoryStore::new();
    let tokens = 0..(samples * TOKENS) as u32;
    store.put("train.bin", tokens.flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    Loader::builder("memory:train.bin")
        .store(store)
        .tokens(Tokens::new(Dtype::U32, TOKENS))
        .batch_size(BATCH as u32)
        .device(device.clone())
        .host_memory(ByteSize::mib(16))
        .epochs(1)
        .build()
        .expect("the loader is built")
}

fn tokens(batch: &Batch) -> Vec<u32> {
    batch.ids().iter().flat_map(|id| (0..TOKENS as u32).map(move |at| *id as u32 * TOKENS as u32 + at)).collect()
}

fn bytes(elements: &[u32]) -> Vec<u8> {
    elements.iter().flat_map(|element| element.to_le_bytes()).collect()
}

/// The kernel of `examples/07_kernel.rs`, by its parameters alone.
fn sum_by_class(launch: &Launch<'_>) {
    let (values, offsets, classes, rows, sums) =
        (launch.u64(0), launch.u64(1), launch.u64(2), launch.u32(3), launch.u64(4));
    assert_eq!((launch.grid(), launch.block()), ([rows.max(1), 1, 1], [128, 1, 1]));
    let number = |address| i64::from_le_bytes(launch.read(address, 8).try_into().expect("8 bytes"));
    for row in 0..u64::from(rows) {
        let (from, to) = (number(offsets + row * 8), number(offsets + row * 8 + 8));
        let sum: i64 =
            launch.read(values + from as u64, (to - from) as usize).iter().map(|byte| i64::from(*byte)).sum();
        let place = sums + number(classes + row * 8) as u64 * 8;
        launch.write(place, &(number(place) + sum).to_le_bytes());
    }
}

#[test]
fn the_example_launches_its_kernel_on_each_batch() {
    on_the_double!();
    let double = Double::load();
    double.twin("sum_by_class", sum_by_class);
    let device = Device::cuda(0).expect("the double has a device");
    double.device(0).set_rate(50_000_000);
    assert_eq!(example::sums_by_class(&device).expect("it runs"), example::expected());
    double.device(0).drain();
    drop(device);
    assert_eq!((double.device(0).violations().as_str(), double.device(0).live()), ("", Live::default()));
    assert_eq!(example::sums_by_class(&Device::host()).expect("it runs"), example::expected());
}

#[test]
fn a_view_is_read_by_its_stream_behind_the_batch_and_before_the_next_one() {
    on_the_double!();
    let rig = Rig::new(1);
    rig.double.set_rate(4_000_000);
    let loader = rig.loader(12 * BATCH);
    for batch in loader.epoch(0) {
        let batch = batch.expect("it comes");
        let view = batch.view::<u32>("tokens").expect("they are uint32");
        assert_eq!((view.shape(), view.len()), (&[BATCH, TOKENS][..], BATCH * TOKENS));
        assert!(view.as_slice().is_none(), "the host cannot read it");
        let ours = view.on(&rig.stream).expect("the stream is told");
        assert_eq!((ours.pointer(), ours.len()), (view.pointer(), view.len()));
        // A kernel that is slow to read: the slot must not be refilled under it.
        let handle = rig.stream.cu_stream() as usize;
        rig.double.consume(handle, ours.pointer(), &bytes(&tokens(&batch)), Duration::from_millis(15));
    }
    drop(loader);
    rig.end();
}

/// Through cudarc's own functions, in the view's stream and in one that the batch has not heard of; both are late.
#[test]
fn cudarcs_functions_take_views() {
    on_the_double!();
    let rig = Rig::new(2);
    rig.double.set_rate(1_000_000);
    let loader = rig.loader(8 * BATCH);
    let other = rig.stream.context().new_stream().expect("a stream");
    let zero = rig.stream.alloc_zeros::<u8>(1).expect("a byte");
    let zero_at = zero.device_ptr(&rig.stream).0;
    rig.stream.synchronize().expect("it is zero");
    let mut copies = Vec::new();
    for (number, batch) in loader.epoch(0).enumerate() {
        let batch = batch.expect("it comes");
        let view = batch.view::<u32>("tokens").expect("they are uint32").on(&rig.stream).expect("the stream is told");
        let stream = if number % 2 == 0 { &rig.stream } else { &other };
        rig.double.consume(stream.cu_stream() as usize, zero_at, &[0], Duration::from_millis(30));
        copies.push((stream, stream.clone_dtod(&view).expect("a copy on the device"), tokens(&batch)));
    }
    for (number, (stream, copy, expected)) in copies.into_iter().enumerate() {
        let back = stream.clone_dtoh(&copy).expect("it comes back");
        stream.synchronize().expect("it is over");
        assert!(back == expected, "batch {number}");
    }
    drop((loader, other, zero));
    rig.end();
}

#[test]
fn streams_are_named_by_value_by_reference_and_by_handle() {
    on_the_double!();
    let rig = Rig::new(3);
    let loader = rig.loader(5 * BATCH);
    let default = rig.stream.context().default_stream();
    assert_eq!(RawStream::from(&default), RawStream::LEGACY_DEFAULT);
    assert_eq!(RawStream::from(&rig.stream).handle(), rig.stream.cu_stream() as usize);
    let mut batches = loader.epoch(0).map(|batch| batch.expect("it comes"));
    let mut take = || batches.next().expect("there are more");

    let batch = take();
    batch.wait_on(&rig.stream).expect("by reference");
    batch.release(Arc::clone(&rig.stream)).expect("by value");
    let batch = take();
    batch.wait_on(RawStream::from(&default)).expect("the default one");
    batch.release(RawStream::LEGACY_DEFAULT).expect("by its constant");
    let raw = rig.device.stream().expect("a stream of ours");
    let batch = take();
    batch.wait_on(&raw).expect("one of ours");
    batch.release(&raw).expect("one of ours");

    // cudarc's stream lives for as long as the batch that was told of it.
    let short_lived = rig.stream.context().new_stream().expect("a stream");
    let streams = rig.double.live().streams;
    let batch = take();
    batch.wait_on(&short_lived).expect("a stream like any other");
    drop(short_lived);
    assert_eq!(rig.double.live().streams, streams);
    drop(batch);
    assert_eq!(rig.double.live().streams, streams - 1);
    drop((batches, default, raw));
    drop(loader);
    rig.end();
}

#[test]
fn a_stream_of_another_device_is_refused_and_nothing_is_lost() {
    on_the_double!();
    let (rig, foreign) = (Rig::new(4), Rig::new(5));
    let loader = rig.loader(8 * BATCH);
    let mut delivered = 0;
    for batch in loader.epoch(0) {
        let batch = batch.expect("it comes");
        let view = batch.view::<u32>("tokens").expect("they are uint32");
        for error in [view.on(&foreign.stream).err(), batch.wait_on(&foreign.stream).err()] {
            let error = error.expect("it is refused");
            assert_eq!(error.kind(), Kind::Config, "{error}");
            assert!(error.to_string().contains("cuda:4") && error.next_step().is_some(), "{error}");
        }
        batch.wait_on(&rig.stream).expect("this one will do");
        assert_eq!(batch.release(&foreign.stream).expect_err("it is refused").kind(), Kind::Config);
        delivered += 1;
    }
    assert_eq!(delivered, 8, "the slots came back all the same");
    drop(loader);
    foreign.end();
    rig.end();
}

/// `release` names one stream more: those that the batch was told of still count.
#[test]
fn releasing_on_one_stream_forgets_no_other() {
    on_the_double!();
    let rig = Rig::new(6);
    let loader = rig.loader(10 * BATCH);
    let other = rig.device.stream().expect("a stream of ours");
    for batch in loader.epoch(0) {
        let batch = batch.expect("it comes");
        let view = batch.view::<u32>("tokens").expect("they are uint32").on(&rig.stream).expect("the stream is told");
        let handle = rig.stream.cu_stream() as usize;
        rig.double.consume(handle, view.pointer(), &bytes(&tokens(&batch)), Duration::from_millis(15));
        drop(view);
        batch.release(&other).expect("a stream that is idle");
    }
    drop((loader, other));
    rig.end();
}

#[test]
fn views_say_what_a_column_holds() {
    on_the_double!();
    let rig = Rig::new(7);
    for device in [&rig.device, &Device::host()] {
        let loader = loader(device, BATCH);
        let batch = loader.epoch(0).next().expect("there is one").expect("it comes");
        let error = batch.view::<f32>("tokens").expect_err("they are not");
        assert_eq!(error.kind(), Kind::Config);
        let text = format!("{error}: {}", error.next_step().unwrap_or_default());
        assert!(
            ["column 'tokens'", "uint32", "float32", "view it as u32"].iter().all(|part| text.contains(part)),
            "{text}"
        );
        assert_eq!(batch.view::<u32>("token").expect_err("a typing mistake").kind(), Kind::NotFound);
        assert_eq!(batch.ragged_view("tokens").expect_err("it is dense").kind(), Kind::Config);
        assert_eq!(batch.view::<u32>("tokens").expect("they are uint32").to_vec().expect("read back"), tokens(&batch));

        let view = batch.view::<u32>("tokens").expect("they are uint32");
        match device.is_host() {
            true => {
                assert_eq!(view.as_slice().expect("the host's memory"), tokens(&batch));
                assert_eq!(view.pointer(), view.as_slice().map_or(0, |slice| slice.as_ptr() as u64));
                let error = view.on(&rig.stream).expect_err("kernels do not reach it");
                assert!(error.kind() == Kind::Unsupported && error.next_step().is_some(), "{error}");
            }
            false => assert!(view.as_slice().is_none()),
        }
    }
    rig.end();
}

/// A stream waits once for a batch, however many views of it it is given; each stream waits, and for each batch.
#[test]
fn views_of_one_batch_cost_a_stream_one_wait() {
    let rig = Rig::new(9);
    let other = rig.stream.context().new_stream().expect("a stream");
    let loader = rig.loader(2 * BATCH);
    // All there are, and the copy engine has nothing left to do.
    let batches: Vec<_> = loader.epoch(0).map(|batch| batch.expect("it comes")).collect();
    wait_for_quiet(&rig.double);
    for batch in &batches {
        let view = batch.view::<u32>("tokens").expect("they are uint32");
        for (stream, waits) in [(&rig.stream, 1), (&rig.stream, 0), (&other, 1), (&rig.stream, 0), (&other, 0)] {
            let before = rig.double.calls();
            let given = view.on(stream).expect("the stream is told");
            batch.wait_on(stream).expect("once more");
            let after = rig.double.calls();
            assert_eq!(after.stream_waits() - before.stream_waits(), waits, "{given:?}");
            // Entered and left where there is something to tell, and not otherwise.
            assert_eq!(after.context_changes() - before.context_changes(), 2 * waits, "{given:?}");
        }
    }
    drop((batches, loader, other));
    rig.end();
}

/// Until nobody has entered a context for a while.
fn wait_for_quiet(double: &DoubleDevice) {
    let (began, mut before) = (Instant::now(), u64::MAX);
    loop {
        let now = double.calls().context_changes();
        if now == before {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "somebody is at it all the time");
        before = now;
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// The stream that a thread has as its default is another one on each: a view that was made on one is read right on another.
#[test]
fn a_view_on_a_threads_own_stream_is_right_on_other_threads() {
    let rig = Rig::new(10);
    // 32 KB in 32 ms: who does not wait finds nothing.
    rig.double.set_rate(1_000_000);
    let own = rig.stream.context().per_thread_stream();
    let loader = rig.loader(6 * BATCH);
    for batch in loader.epoch(0) {
        let batch = batch.expect("it comes");
        let view = batch.view::<u32>("tokens").expect("they are uint32").on(&own).expect("the stream is told");
        let found = std::thread::scope(|scope| {
            let elsewhere = scope.spawn(|| {
                let before = rig.double.calls();
                let copy = own.clone_dtod(&view).expect("a copy on the device");
                assert!(rig.double.calls().host_waits() > before.host_waits(), "the slot does not know of this stream");
                own.clone_dtoh(&copy).expect("it comes back")
            });
            elsewhere.join().expect("no panic")
        });
        // What one thread has waited for another one knows, and the checker does not.
        rig.stream.context().synchronize().expect("all is over");
        assert!(found == tokens(&batch), "batch {}", batch.index());
    }
    drop((loader, own));
    rig.end();
}

/// What an asynchronous consumer holds across its waits can go to another thread, and its kernels are enqueued from there.
#[test]
fn an_asynchronous_consumer_launches_from_any_thread() {
    on_the_double!();
    fn movable<T: Send + 'static>(value: T) -> T {
        value
    }
    let rig = Rig::new(8);
    rig.double.set_rate(4_000_000);
    let loader = Arc::new(rig.loader(6 * BATCH));
    let seen = Arc::new(AtomicUsize::new(0));
    let (double, stream, count) = (rig.double, Arc::clone(&rig.stream), Arc::clone(&seen));
    let consumer = movable(async move {
        while let Some(batch) = loader.next_batch().await? {
            let view = batch.view::<u32>("tokens")?.on(&stream)?;
            tokio::task::yield_now().await;
            let handle = view.stream().cu_stream() as usize;
            double.consume(handle, view.pointer(), &bytes(&tokens(&batch)), Duration::from_millis(5));
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok::<(), farfeed::Error>(())
    });
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().expect("a runtime");
    let answer = runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(30), tokio::spawn(consumer)).await.expect("it ends")
    });
    answer.expect("no panic").expect("no error");
    assert_eq!(seen.load(Ordering::Relaxed), 6);
    drop(runtime);
    rig.end();
}
