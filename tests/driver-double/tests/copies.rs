//! When copies read and write: no earlier and no later than a driver promises, and what their ends tell the host.

mod rig;

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use farfeed_driver_double::{Double, Driver, SourceOrder};
use rig::{BYTES, Rig, entry, inside, on_the_double};

/// By their attribute the copies of a batch read before the call returns, or later, whatever memory it is.
#[test]
fn a_batch_reads_when_it_says() {
    on_the_double!();
    let driver = Driver::open(0);
    let rig = Rig::new(0, &driver);
    let piece = [(rig.memory, 0..100)];
    rig.host.write(0..100, 1);
    driver.copy_batch(true, &rig.host, &piece, SourceOrder::DuringCall, rig.first).unwrap();
    rig.host.write(0..100, 2);
    assert_eq!(driver.read_back(rig.memory, 100, rig.first).unwrap(), [1; 100]);
    assert_eq!(rig.double.violations(), "");
    for order in [SourceOrder::Stream, SourceOrder::Any] {
        driver.copy_batch(true, &rig.host, &piece, order, rig.first).unwrap();
        rig.double.settle();
        rig.host.write(0..100, 2);
        let found = rig.double.violations();
        assert!(found.lines().last().is_some_and(|last| last.contains("the host writes")), "{order:?}: {found:?}");
        driver.synchronize().unwrap();
    }
    assert_eq!(rig.double.violations().lines().count(), 2);
}

/// A copy to pageable memory returns when it is over, and with it what came before it in its stream. By itself: nothing else waits here.
#[test]
fn a_copy_to_pageable_memory_is_an_observation() {
    on_the_double!();
    let driver = Driver::open(1);
    let rig = Rig::new(1, &driver);
    let back = entry::<unsafe extern "C" fn(*mut c_void, u64, usize, usize) -> u32>(c"cuMemcpyDtoHAsync_v2");
    let mut bytes = [0u8; 100];
    rig.copy(rig.first);
    assert_eq!(driver.has_passed(rig.event), Ok(true), "never recorded: says nothing");
    // SAFETY: memory of that size, which is written to before the call returns.
    assert_eq!(inside(1, || unsafe { back(bytes.as_mut_ptr().cast(), rig.memory, 100, rig.first) }), 0);
    rig.double.host_wrote(rig.host.bytes());
    rig.expect_nothing();
}

/// An event that has not been passed says nothing, though it was asked.
#[test]
fn not_yet_is_no_observation() {
    on_the_double!();
    let driver = Driver::open(2);
    let rig = Rig::new(2, &driver);
    rig.double.set_rate(BYTES as u64);
    rig.copy(rig.first);
    driver.record(rig.event, rig.first).unwrap();
    // A second of copying.
    assert_eq!((driver.has_passed(rig.event), driver.is_idle(rig.first)), (Ok(false), Ok(false)));
    rig.double.host_wrote(rig.host.bytes());
    rig.expect(&["the host writes"]);
}

/// Whoever reads too early finds what nobody sent.
#[test]
fn a_destination_is_spoiled_while_its_copy_is_under_way() {
    static SEEN: AtomicBool = AtomicBool::new(false);
    on_the_double!();
    let driver = Driver::open(3);
    let rig = Rig::new(3, &driver);
    rig.fill(rig.first);
    driver.synchronize().unwrap();
    rig.double.set_rate(BYTES as u64 / 2);
    Double::load().twin("peek", |launch| {
        let deadline = Instant::now() + Duration::from_millis(1800);
        while Instant::now() < deadline && !SEEN.load(Ordering::Acquire) {
            SEEN.store(launch.read(launch.u64(0), BYTES) == [0xEE; BYTES], Ordering::Release);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let text = c".version 8.0\n.visible .entry peek(.param .u64 peek_param_0) { ret; }";
    let module = driver.module(text).unwrap();
    let peek = driver.function(module, c"peek").unwrap();
    // Two seconds.
    rig.copy(rig.first);
    driver.launch(peek, 1, &[rig.memory], rig.second).unwrap();
    driver.synchronize_stream(rig.second).unwrap();
    assert!(SEEN.load(Ordering::Acquire), "the old bytes are still there, or the new ones already");
    let found = rig.double.violations();
    assert!(found.lines().all(|line| line.contains("kernel peek") && line.contains("a copy to the device")), "{found}");
    assert!(!found.is_empty());
    driver.synchronize().unwrap();
}

/// Pageable bytes are taken before the call returns, and are the caller's again.
#[test]
fn pageable_memory_is_read_at_once() {
    on_the_double!();
    let driver = Driver::open(4);
    let rig = Rig::new(4, &driver);
    rig.double.set_rate(BYTES as u64 * 10);
    rig.copy(rig.first);
    let mut bytes = vec![1; BYTES];
    driver.copy_pageable(rig.memory, &bytes, rig.first).unwrap();
    bytes.fill(2);
    rig.double.host_wrote(&bytes);
    assert_eq!(driver.read_back(rig.memory, BYTES, rig.first).unwrap(), [1; BYTES]);
    rig.expect_nothing();
}
