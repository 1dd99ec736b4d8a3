//! A copy engine that ends: in every state of its slots, in both orders, after a failure, beside another one. What is still used
//! is not freed, what is not comes back, and nothing takes longer than it may. See `tests/driver-double`.
#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

mod cuda;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cuda::{PAGE_BYTES, PATIENCE, Rig, pattern};
use farfeed::Kind;
use farfeed::device::{DeviceSlot, RawStream};
use farfeed::memory::Landed;
use farfeed_driver_double::on_gpu;

const PAGES: usize = 16;
const SLOT_BYTES: usize = 4 * PAGE_BYTES;

/// How far the one slot has come that is out when the engine ends.
#[derive(Clone, Copy, Debug)]
enum State {
    /// There is none.
    Idle,
    Empty,
    Filled,
    InFlight,
    Landed,
    /// A consumer's stream waits for it, and will read it then.
    Awaited,
    /// It has come back, and its consumer still reads it.
    Released,
    /// And the next batch's copy waits for that.
    BehindItsConsumer,
}

const STATES: [State; 8] = [
    State::Idle,
    State::Empty,
    State::Filled,
    State::InFlight,
    State::Landed,
    State::Awaited,
    State::Released,
    State::BehindItsConsumer,
];

/// What is left of the scene: slots, and pages that were never sealed into one.
type Left = (Option<DeviceSlot>, Option<Landed>);

fn bring_to(rig: &mut Rig, state: State, stream: &RawStream) -> Left {
    if matches!(state, State::Idle) {
        return (None, None);
    }
    let bytes = pattern(SLOT_BYTES, 3);
    let mut slot = rig.acquire();
    if matches!(state, State::Empty) {
        return (Some(slot), None);
    }
    let landed = rig.land(&bytes);
    if matches!(state, State::Filled) {
        rig.copy(&mut slot, &landed);
        return (Some(slot), Some(landed));
    }
    rig.send(&mut slot, landed);
    match state {
        State::InFlight => return (Some(slot), None),
        State::Landed => {
            slot.synchronize().unwrap();
            return (Some(slot), None);
        }
        _ => {}
    }
    slot.wait_on(stream.clone()).unwrap();
    rig.expect(stream, &slot, &bytes, Duration::from_millis(30));
    match state {
        State::Awaited => return (Some(slot), None),
        State::Released => drop(slot),
        _ => {
            slot.release(Some(stream.clone())).unwrap();
            let landed = rig.land(&pattern(SLOT_BYTES, 4));
            let mut next = rig.acquire();
            rig.send(&mut next, landed);
            return (Some(next), None);
        }
    }
    (None, None)
}

#[test]
fn an_engine_ends_in_any_state_and_another_one_begins() {
    for state in STATES {
        for engine_first in [true, false] {
            let mut rig = Rig::new(0, PAGES, 1, SLOT_BYTES);
            // 8 ms for a batch: in flight when the engine ends.
            rig.place.set_rate(2_000_000);
            let stream = rig.place.device.stream().unwrap();
            let (slot, landed) = bring_to(&mut rig, state, &stream);
            let begun = Instant::now();
            if engine_first {
                rig.engine = None;
                drop(slot);
            } else {
                drop(slot);
                rig.engine = None;
            }
            assert!(begun.elapsed() < PATIENCE, "{state:?}: {:?}", begun.elapsed());
            drop(landed);
            assert_eq!(rig.slab.usage().free, PAGES, "{state:?}, engine first: {engine_first}");
            open_again(&mut rig, state);
            // A stream outlives its device's engine, and what was enqueued in it is carried out.
            rig.consumers.driver().synchronize().unwrap();
            drop(stream);
            rig.end();
        }
    }
}

/// The slab can serve another engine, which does what the first one did.
fn open_again(rig: &mut Rig, state: State) {
    let engine = rig.place.device.backend().open(&rig.slab, 1, SLOT_BYTES, Arc::new(|| ()));
    rig.engine = Some(engine.unwrap_or_else(|error| panic!("{state:?}: {error}")));
    let bytes = pattern(SLOT_BYTES, 5);
    let landed = rig.land(&bytes);
    let mut slot = rig.acquire();
    rig.send(&mut slot, landed);
    assert_eq!(slot.read_back(0, SLOT_BYTES).unwrap(), bytes, "{state:?}");
}

#[test]
fn a_teardown_in_mid_copy_waits_for_the_copy() {
    let mut rig = Rig::new(1, 8, 3, 8 * PAGE_BYTES);
    rig.place.set_rate(200_000);
    let bytes = pattern(8 * PAGE_BYTES, 5);
    let landed = rig.land(&bytes);
    let mut held = rig.acquire();
    let unsealed = rig.acquire();
    rig.send(&mut held, landed);
    drop(unsealed);
    assert!(rig.engine().poll().unwrap() == 1 || on_gpu());
    rig.engine = None;
    assert_eq!(rig.slab.usage().free, 8);
    if let Some(double) = rig.place.double {
        assert_eq!(double.live().registrations, 1, "the slab is unregistered; the held slot has its staging memory");
    }
    // 32 KiB at 200 kB/s would have been cut short by freeing anything early.
    assert_eq!(held.read_back(0, bytes.len()).unwrap(), bytes);
    drop(held);
    rig.end();
}

/// R13 of docs/python.md: no wait for a user's stream is without an end.
#[test]
fn a_consumer_that_never_ends_does_not_hang_the_teardown() {
    let mut rig = Rig::new(2, 16, 1, SLOT_BYTES);
    let stream = rig.place.device.stream().unwrap();
    let first = pattern(SLOT_BYTES, 1);
    let landed = rig.land(&first);
    let mut slot = rig.acquire();
    rig.send(&mut slot, landed);
    slot.wait_on(stream.clone()).unwrap();
    rig.expect(&stream, &slot, &first, Duration::from_secs(4));
    slot.release(Some(stream.clone())).unwrap();
    // The next batch's copy waits for that kernel, in the copy stream.
    let landed = rig.land(&pattern(SLOT_BYTES, 2));
    let mut slot = rig.acquire();
    rig.send(&mut slot, landed);
    let begun = Instant::now();
    rig.engine = None;
    drop(slot);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}: not before the kernel's end", begun.elapsed());
    if let Some(double) = rig.place.double {
        let live = double.live();
        // The slot's memory beside three of the kernel's.
        let given_up = (live.allocations - 2, live.registrations);
        assert_eq!(given_up, (1, 2), "what the device may still touch is given up, not freed");
    }
    assert_eq!(rig.slab.usage().copying, 4);
    rig.consumers.driver().synchronize().unwrap();
    drop(stream);
    if let Some(double) = rig.place.double {
        assert_eq!(double.violations(), "");
    }
    rig.consumers.end();
}

/// Where other slots are there to be freed, the driver may have that wait for the kernel: the teardown takes as long then, and no longer,
/// and there is nothing to be given up.
#[test]
fn a_late_consumer_delays_the_freeing_of_other_slots() {
    const STEP: Duration = Duration::from_secs(2);
    let mut rig = Rig::new(7, 16, 3, SLOT_BYTES);
    let stream = rig.place.device.stream().unwrap();
    let bytes = pattern(SLOT_BYTES, 1);
    let landed = rig.land(&bytes);
    let mut slot = rig.acquire();
    rig.send(&mut slot, landed);
    slot.wait_on(stream.clone()).unwrap();
    let begun = Instant::now();
    rig.expect(&stream, &slot, &bytes, STEP);
    slot.release(Some(stream.clone())).unwrap();
    rig.engine = None;
    let took = begun.elapsed();
    assert!(took < STEP + PATIENCE, "{took:?}");
    assert_eq!(rig.slab.usage().free, 16);
    if let Some(double) = rig.place.double {
        assert!(took > STEP - Duration::from_millis(200), "{took:?}: the double is kinder than a driver may be");
        let live = double.live();
        // The kernel's own two.
        assert_eq!((live.allocations, live.registrations), (2, 0));
    }
    drop(stream);
    rig.end();
}

#[test]
fn a_failed_copy_is_told_with_the_drivers_name_for_it() {
    if on_gpu() {
        eprintln!("skipped: the double's copies fail when they are told to");
        return;
    }
    let mut rig = Rig::new(3, 16, 2, SLOT_BYTES);
    let double = rig.place.double.unwrap();
    double.set_rate(10_000_000);
    double.fail_copy(1);
    let mut slots = Vec::new();
    for batch in 0..2 {
        let landed = rig.land(&pattern(SLOT_BYTES, batch));
        let mut slot = rig.acquire();
        rig.send(&mut slot, landed);
        slots.push(slot);
    }
    let error = slots[1].synchronize().unwrap_err();
    assert_eq!(error.kind(), Kind::Device);
    assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{error}");
    assert!(error.next_step().is_some());
    let polled = cuda::within_patience("the engine to hear of it", || rig.engine().poll().err());
    assert_eq!(polled.kind(), Kind::Device);
    let begun = Instant::now();
    for slot in slots {
        assert_eq!(slot.release(None).unwrap_err().kind(), Kind::Device);
    }
    assert_eq!(rig.engine().acquire().unwrap_err().kind(), Kind::Device);
    rig.engine = None;
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    assert_eq!((double.violations().as_str(), rig.slab.usage().free), ("", 16));
}

#[test]
fn engines_of_several_devices_know_nothing_of_each_other() {
    if on_gpu() {
        eprintln!("skipped: there may be one GPU only");
        return;
    }
    let mut rigs = [4, 5, 6].map(|ordinal| Rig::new(ordinal, PAGES, 2, SLOT_BYTES));
    let streams = rigs.each_ref().map(|rig| rig.place.device.stream().unwrap());
    for batch in 0..6 {
        for (number, rig) in rigs.iter_mut().enumerate() {
            let bytes = pattern(SLOT_BYTES, 10 * batch + number);
            let landed = rig.land(&bytes);
            let mut slot = rig.acquire();
            rig.send(&mut slot, landed);
            slot.wait_on(streams[number].clone()).unwrap();
            rig.expect(&streams[number], &slot, &bytes, Duration::from_millis(2));
        }
    }
    // A slot of one is none of the other's.
    let mut stranger = rigs[0].acquire();
    let landed = rigs[1].land(&[1]);
    let refused = rigs[1].engine().seal(&mut stranger, vec![landed.hold()]).unwrap_err();
    assert_eq!(refused.kind(), Kind::Config);
    drop((stranger, landed));
    // One device ends, and one fails: the third goes on.
    let [first, second, mut third] = rigs;
    let broken = second.place.double.unwrap();
    broken.fail_copy(0);
    let calls = first.place.double.unwrap().calls();
    assert!(calls.total() > 0 && calls.plain_copies() > 0, "{calls:?}");
    first.consumers.driver().synchronize().unwrap();
    let [of_first, of_second, of_third] = streams;
    drop(of_first);
    first.end();
    let bytes = pattern(SLOT_BYTES, 99);
    let landed = third.land(&bytes);
    let mut slot = third.acquire();
    third.send(&mut slot, landed);
    assert_eq!(slot.read_back(0, SLOT_BYTES).unwrap(), bytes);
    drop((slot, of_third));
    third.consumers.driver().synchronize().unwrap();
    third.end();
    drop((of_second, second));
    assert_eq!(broken.violations(), "");
}
