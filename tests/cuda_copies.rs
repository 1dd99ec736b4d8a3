//! How the copy engine copies: in one call or one by one, by how many driver calls, and what a consumer hears when it fails. See
//! docs/design/0010-copy-engine.md for the numbers that are held here.
#![cfg(feature = "cuda")]

#[path = "fixture/shards.rs"]
mod shards;

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use farfeed::device::{Device, DeviceSlot, Engine, Segment, probe};
use farfeed::memory::{Landed, Landing, Slab};
use farfeed_driver_double::{Calls, Double, DoubleDevice, Live};
use shards::noise;

const PAGE_BYTES: usize = 4096;
/// The double's insight and its counts are what these tests go by.
macro_rules! on_the_double {
    () => {
        if farfeed_driver_double::on_gpu() {
            eprintln!("skipped: this looks into the double");
            return;
        }
    };
}

/// Longer than anything here takes, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(20);

/// Asks until there is an answer.
fn within_patience<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "nothing came of it");
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn acquire(engine: &mut dyn Engine) -> DeviceSlot {
    within_patience(|| {
        engine.poll().expect("copies go well");
        engine.acquire().expect("slots come back")
    })
}

fn settle(engine: &mut dyn Engine) {
    within_patience(|| (engine.poll().expect("copies go well") == 0).then_some(()));
}

fn land(slab: &Slab, bytes: &[u8]) -> Landed {
    let pages = slab.take(bytes.len().div_ceil(PAGE_BYTES)).expect("pages are free");
    let mut landing = Landing::new(pages, bytes.len());
    assert_eq!(landing.push(bytes), bytes.len());
    landing.landed().expect("all bytes were pushed")
}

/// Samples of 1,000 bytes out of `landed`, in another order; and what they read as in that order.
fn scattered<'a>(landed: &'a Landed, source: &[u8], count: usize) -> (Vec<Segment<'a>>, Vec<u8>) {
    let (mut segments, mut want) = (Vec::new(), Vec::new());
    for sample in (0..count).map(|place| place * 37 % count) {
        for from in landed.slices(sample * 1000, 1000) {
            segments.push(Segment { from, to: want.len() });
            want.extend_from_slice(from);
        }
        assert!(want.ends_with(&source[sample * 1000..sample * 1000 + 1000]));
    }
    (segments, want)
}

/// Copies `count` scattered samples and some bytes of the host's into a slot, and reads all back; the calls that the copying took.
fn copy_scattered(double: &DoubleDevice, engine: &mut dyn Engine, slab: &Slab, count: usize) -> Calls {
    let source = noise(count as u64, count * 1000);
    let landed = land(slab, &source);
    let (segments, want) = scattered(&landed, &source, count);
    let mut slot = acquire(engine);
    double.reset_calls();
    engine.copy(&mut slot, &segments).expect("the copies are listed");
    engine.put(&mut slot, count * 1000, b"from the host").expect("there is room");
    engine.seal(&mut slot, vec![landed.hold()]).expect("the batch is sealed");
    let calls = double.calls();
    drop(segments);
    drop(landed);
    assert_eq!(slot.read_back(0, count * 1000).expect("it lands"), want);
    assert_eq!(slot.read_back(count * 1000, 13).expect("it lands"), b"from the host");
    drop(slot);
    settle(engine);
    assert_eq!(slab.usage().free, slab.pages());
    calls
}

fn end(double: DoubleDevice, engine: Box<dyn Engine>, device: Device) {
    drop(engine);
    double.drain();
    drop(device);
    assert_eq!((double.violations().as_str(), double.live()), ("", Live::default()));
    assert!(Double::load().thread_is_untouched(), "the thread is as it was");
}

/// How this process's driver was told to be.
const SETTINGS: &str = "FARFEED_DOUBLE";
const OF_12_8: &str = "version=12080";

/// What the call for many copies is called in a driver of this process's version.
fn form_of_the_call() -> &'static str {
    match std::env::var(SETTINGS).is_ok_and(|settings| settings == OF_12_8) {
        true => "cuMemcpyBatchAsync",
        false => "cuMemcpyBatchAsync_v2",
    }
}

/// The same two tests, in a process whose driver has the call's first form only.
#[test]
fn a_driver_of_12_8_is_asked_in_its_own_form() {
    on_the_double!();
    let tests = ["scattered_samples_go_in_one_call_and_few_go_alone", "a_refused_call_is_done_without_and_remembered"];
    let mut again = Command::new(std::env::current_exe().expect("a test runs"));
    let ran = again.arg("--exact").args(tests).env(SETTINGS, OF_12_8).output().expect("it runs again");
    let told = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && told.contains("2 passed"), "{told}{}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn scattered_samples_go_in_one_call_and_few_go_alone() {
    on_the_double!();
    let (double, device) = (Double::load().device(0), Device::cuda(0).expect("a device"));
    let slab = Slab::new(400 * PAGE_BYTES, PAGE_BYTES).expect("a small slab");
    let mut engine = device.backend().open(&slab, 2, 2_000_000, Arc::new(|| ())).expect("it opens");
    let calls = copy_scattered(&double, engine.as_mut(), &slab, 500);
    assert_eq!((calls.batches(), calls.plain_copies()), (1, 0), "{calls:?}");
    assert_eq!(calls.of(form_of_the_call()), 1, "{calls:?}");
    assert!(calls.copies() > 500, "some samples lie across pages: {calls:?}");
    // More than one list holds: 1,500 and the host's.
    let calls = copy_scattered(&double, engine.as_mut(), &slab, 1_500);
    assert_eq!((calls.batches(), calls.plain_copies()), (2, 0), "{calls:?}");
    let calls = copy_scattered(&double, engine.as_mut(), &slab, 3);
    assert_eq!((calls.batches(), calls.plain_copies()), (0, calls.copies()), "{calls:?}");
    assert_eq!(engine.note(), None);
    end(double, engine, device);
}

#[test]
fn a_refused_call_is_done_without_and_remembered() {
    on_the_double!();
    let (double, device) = (Double::load().device(1), Device::cuda(1).expect("a device"));
    double.refuse_batches();
    let slab = Slab::new(400 * PAGE_BYTES, PAGE_BYTES).expect("a small slab");
    let mut engine = device.backend().open(&slab, 2, 1_000_000, Arc::new(|| ())).expect("it opens");
    assert_eq!(engine.note(), None);
    let calls = copy_scattered(&double, engine.as_mut(), &slab, 200);
    assert_eq!((calls.batches(), calls.plain_copies()), (1, calls.copies()), "{calls:?}");
    let note = engine.note().expect("that is worth telling");
    assert!(note.contains("one by one") && note.contains("CUDA_ERROR_NOT_SUPPORTED"), "{note}");
    let calls = copy_scattered(&double, engine.as_mut(), &slab, 200);
    assert_eq!((calls.batches(), calls.plain_copies()), (0, calls.copies()), "asked again: {calls:?}");
    end(double, engine, device);
}

/// The order among the copies of one call is the driver's; among those that overlap it is ours.
#[test]
fn of_segments_that_overlap_the_later_one_counts() {
    on_the_double!();
    let (double, device) = (Double::load().device(2), Device::cuda(2).expect("a device"));
    let slab = Slab::new(8 * PAGE_BYTES, PAGE_BYTES).expect("a small slab");
    let mut engine = device.backend().open(&slab, 1, PAGE_BYTES, Arc::new(|| ())).expect("it opens");
    let source = noise(1, 20 * 100);
    let landed = land(&slab, &source);
    let segments: Vec<_> =
        (0..20).flat_map(|sample| landed.slices(sample * 100, 100).map(|from| Segment { from, to: 0 })).collect();
    let mut slot = acquire(engine.as_mut());
    double.reset_calls();
    engine.copy(&mut slot, &segments).expect("the copies are listed");
    engine.put(&mut slot, 50, &[7; 10]).expect("there is room");
    engine.seal(&mut slot, vec![landed.hold()]).expect("the batch is sealed");
    assert_eq!(double.calls().batches(), 0);
    let want = [&source[1900..1950], &[7; 10], &source[1960..2000]].concat();
    assert_eq!(slot.read_back(0, 100).expect("it lands"), want);
    drop((slot, segments));
    drop(landed);
    end(double, engine, device);
}

#[test]
fn what_was_listed_and_not_sealed_is_never_copied() {
    on_the_double!();
    let (double, device) = (Double::load().device(3), Device::cuda(3).expect("a device"));
    let slab = Slab::new(8 * PAGE_BYTES, PAGE_BYTES).expect("a small slab");
    let mut engine = device.backend().open(&slab, 1, 4 * PAGE_BYTES, Arc::new(|| ())).expect("it opens");
    for turn in 0..3 {
        let landed = land(&slab, &noise(turn, 2 * PAGE_BYTES));
        let segments: Vec<_> = landed.slices(0, 2 * PAGE_BYTES).map(|from| Segment { from, to: 0 }).collect();
        let mut slot = acquire(engine.as_mut());
        engine.copy(&mut slot, &segments).expect("the copies are listed");
        // Given up: its pages go back at once.
        drop((slot, segments));
        drop(landed);
        double.reset_calls();
        let mut slot = acquire(engine.as_mut());
        engine.put(&mut slot, 0, b"sealed").expect("there is room");
        engine.seal(&mut slot, Vec::new()).expect("the batch is sealed");
        assert_eq!(slot.read_back(0, 6).expect("it lands"), b"sealed");
        assert_eq!(double.calls().copied_bytes(), 6 + 6, "turn {turn}");
    }
    end(double, engine, device);
}

/// As `load_weights` fills its one slot: pages come back seal by seal, not with the last.
#[test]
fn a_slot_that_is_sealed_again_lets_go_of_pages_in_between() {
    on_the_double!();
    let (double, device) = (Double::load().device(6), Device::cuda(6).expect("a device"));
    let slab = Slab::new(16 * PAGE_BYTES, PAGE_BYTES).expect("a small slab");
    let mut engine = device.backend().open(&slab, 1, 32 * PAGE_BYTES, Arc::new(|| ())).expect("it opens");
    double.set_rate(400_000);
    let mut slot = acquire(engine.as_mut());
    let mut want = Vec::new();
    for part in 0..4 {
        let bytes = noise(part, 8 * PAGE_BYTES);
        // Room for two parts: from the third on, the first must have come back while the second is under way.
        let landed = within_patience(|| {
            engine.poll().expect("copies go well");
            (slab.usage().free >= 8).then(|| land(&slab, &bytes))
        });
        if part >= 2 {
            assert_eq!(slab.usage().copying, 8, "the newer part is still being copied");
        }
        let mut to = want.len();
        for from in landed.slices(0, bytes.len()) {
            engine.copy(&mut slot, &[Segment { from, to }]).expect("the copy is listed");
            to += from.len();
        }
        engine.seal(&mut slot, vec![landed.hold()]).expect("it is sealed again");
        want.extend(bytes);
    }
    assert_eq!(slot.read_back(0, want.len()).expect("it lands"), want);
    settle(engine.as_mut());
    drop(slot);
    assert!(engine.acquire().expect("it came back").is_some());
    end(double, engine, device);
}

/// A machine with one node has nothing to choose; what the device says is passed on all the same.
#[test]
fn the_node_next_to_a_device_is_told() {
    on_the_double!();
    let double = Double::load().device(7);
    for (told, known) in [(-1, None), (3, Some(3))] {
        double.set_numa_node(told);
        let facts = probe();
        assert_eq!(facts.devices[7].host_node, known);
    }
    let device = Device::cuda(7).expect("a device");
    let node = device.backend().host_node();
    assert!(node.is_none() || node == Some(3), "{node:?}");
    // A node that this machine does not have is a wish, no error.
    let slab = Slab::near(8 * PAGE_BYTES, PAGE_BYTES, Some(900)).expect("memory of any node");
    let mut engine = device.backend().open(&slab, 1, 10_000, Arc::new(|| ())).expect("it opens");
    copy_scattered(&double, engine.as_mut(), &slab, 9);
    end(double, engine, device);
}

/// Batches of 12 MB in 3 copies each, as long as the engine's thread stays inside its context. How often it asks whether they have landed
/// depends on the time they take, which a loaded machine stretches: rounds are run until one is good.
#[test]
fn a_coalesced_copy_costs_at_most_three_calls() {
    on_the_double!();
    const BATCHES: u64 = 8;
    const BATCH_BYTES: usize = 12 << 20;
    let (double, device) = (Double::load().device(4), Device::cuda(4).expect("a device"));
    double.set_rate(2_000_000_000);
    let slab = Slab::new(2 * BATCH_BYTES, 1 << 20).expect("24 MiB");
    let mut engine = device.backend().open(&slab, 3, BATCH_BYTES, Arc::new(|| ())).expect("it opens");
    let (engine, stream) = (engine.as_mut(), device.stream().expect("a stream"));
    engine.attach().expect("a context");
    let mut fewest = u64::MAX;
    let deadline = Instant::now() + PATIENCE;
    for round in 0.. {
        double.reset_calls();
        for _ in 0..BATCHES {
            let slot = copy_contiguous(engine, &slab, BATCH_BYTES);
            // A consumer on another thread, as in a training loop: it is let be.
            let stream = stream.clone();
            std::thread::spawn(move || slot.wait_on(stream).expect("a stream")).join().expect("no panic");
        }
        let calls = double.calls();
        assert_eq!(calls.copies(), 3 * BATCHES, "coalesced up to 4 MiB: {calls:?}");
        // The consumers': entering, one call and leaving, for waiting and for letting go.
        let engines = calls.total() - 2 * 3 * BATCHES;
        println!("{engines} calls of the engine for {} copies: {calls:?}", calls.copies());
        if round > 0 {
            assert_eq!((calls.allocations(), calls.host_waits()), (0, 0), "{calls:?}");
            assert!(engines - calls.queries() <= 2 * calls.copies(), "questions apart: {calls:?}");
            fewest = fewest.min(engines);
        }
        if fewest <= 3 * 3 * BATCHES || Instant::now() > deadline {
            break;
        }
    }
    assert!(fewest <= 3 * 3 * BATCHES, "{fewest} calls for {} copies, at the least", 3 * BATCHES);
    engine.detach();
    assert!(Double::load().thread_is_untouched(), "the thread is as it was");
}

/// A batch of `bytes` from pages that follow each other, as soon as they are free.
fn copy_contiguous(engine: &mut dyn Engine, slab: &Slab, bytes: usize) -> DeviceSlot {
    let pages = within_patience(|| {
        engine.poll().expect("copies go well");
        std::thread::sleep(engine.look_again());
        slab.take(bytes / slab.page_bytes())
    });
    let mut landing = Landing::new(pages, bytes);
    landing.advance(bytes);
    let landed = landing.landed().expect("all of it");
    let mut slot = acquire(engine);
    let mut to = 0;
    let segments: Vec<_> = landed
        .slices(0, bytes)
        .map(|from| {
            to += from.len();
            Segment { from, to: to - from.len() }
        })
        .collect();
    engine.copy(&mut slot, &segments).expect("the copies are listed");
    let mut holds = engine.spare_holds();
    holds.push(landed.hold());
    engine.seal(&mut slot, holds).expect("the batch is sealed");
    slot
}
