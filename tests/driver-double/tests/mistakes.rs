//! Deliberate mistakes: a small engine that makes them one at a time, and what finds each of them. The same engine without a
//! mistake is found well.
//!
//! A batch's way is the library's: landed in a page, copied into a slot in the copy stream, waited for and read in the consumer's
//! stream; the page used again when its copy is known to be over, the slot behind what its consumer was given to do.

use std::time::{Duration, Instant};

use farfeed_driver_double::{Double, DoubleDevice, Driver, HostMemory, on_gpu};

const BYTES: usize = 64 << 10;
const PAGES: usize = 3;
const SLOTS: usize = 2;
const BATCHES: usize = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// A page is written to while nobody knows whether its last copy is over.
    RecycleEarly,
    /// The consumer reads without waiting for the copy.
    ForgetTheWait,
    /// A slot is filled again without waiting for its consumer.
    OverwriteTheSlot,
    /// The event behind the copy is recorded before it.
    RecordTooEarly,
    /// The consumer's event is recorded in the copy stream, not in its own.
    RecordInTheWrongStream,
    /// A slot that is let go of says nothing, and is covered by the default stream, which the consumer's ignores.
    TrustTheDefaultStream,
}

struct Slot {
    memory: u64,
    landed: usize,
    released: usize,
    was_used: bool,
}

struct Engine<'d> {
    driver: &'d Driver,
    double: DoubleDevice,
    mistake: Mistake,
    copies: usize,
    consumer: usize,
    pages: HostMemory<'d>,
    /// For each page the event behind its last copy.
    copied: [usize; PAGES],
    slots: [Slot; SLOTS],
}

impl<'d> Engine<'d> {
    fn new(driver: &'d Driver, double: DoubleDevice, mistake: Mistake) -> Engine<'d> {
        let slot = || Slot {
            memory: driver.allocate(BYTES).unwrap(),
            landed: driver.event(false),
            released: driver.event(false),
            was_used: false,
        };
        Engine {
            driver,
            double,
            mistake,
            copies: driver.stream(false),
            consumer: driver.stream(false),
            pages: driver.host_memory(PAGES * BYTES).unwrap(),
            copied: [0; PAGES].map(|_| driver.event(false)),
            slots: [slot(), slot()],
        }
    }

    fn land(&self, batch: usize) {
        let page = batch % PAGES;
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.mistake != Mistake::RecycleEarly && !self.driver.has_passed(self.copied[page]).unwrap() {
            assert!(Instant::now() < deadline, "a copy does not end");
            std::thread::sleep(Duration::from_micros(50));
        }
        self.pages.write(page * BYTES..(page + 1) * BYTES, batch as u8);
    }

    fn copy(&mut self, batch: usize) {
        let (page, slot) = (batch % PAGES, &mut self.slots[batch % SLOTS]);
        let (driver, copies, mistake) = (self.driver, self.copies, self.mistake);
        if slot.was_used && mistake != Mistake::OverwriteTheSlot {
            driver.wait(copies, slot.released).unwrap();
        }
        slot.was_used = true;
        if mistake == Mistake::RecordTooEarly {
            driver.record(slot.landed, copies).unwrap();
        }
        driver.copy_to_device(slot.memory, &self.pages, page * BYTES..(page + 1) * BYTES, copies).unwrap();
        driver.record(self.copied[page], copies).unwrap();
        if mistake != Mistake::RecordTooEarly {
            driver.record(slot.landed, copies).unwrap();
        }
    }

    fn consume(&self, batch: usize) {
        let (slot, driver) = (&self.slots[batch % SLOTS], self.driver);
        if self.mistake != Mistake::ForgetTheWait {
            driver.wait(self.consumer, slot.landed).unwrap();
        }
        self.double.consume(self.consumer, slot.memory, &[batch as u8; BYTES], Duration::from_millis(1));
        let stream = match self.mistake {
            Mistake::RecordInTheWrongStream => self.copies,
            Mistake::TrustTheDefaultStream => 1,
            _ => self.consumer,
        };
        driver.record(slot.released, stream).unwrap();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// The host runs ahead of slow copies: here bytes can show what is wrong.
    Ahead,
    /// All is over before the next thing is enqueued: here they cannot.
    Idle,
}

/// Runs the batches; gives the races, and how many batches were read wrongly.
fn run(ordinal: u32, mistake: Mistake, pace: Pace) -> (Vec<String>, usize) {
    let double = Double::load().device(ordinal);
    double.set_rate(if pace == Pace::Ahead { 10_000_000 } else { 1 << 40 });
    let driver = Driver::open(ordinal);
    let mut engine = Engine::new(&driver, double, mistake);
    let pause = || {
        if pace == Pace::Idle {
            double.settle();
        }
    };
    for batch in 0..BATCHES {
        engine.land(batch);
        engine.copy(batch);
        pause();
        engine.consume(batch);
        pause();
    }
    driver.synchronize().unwrap();
    let found = double.violations();
    let (races, bytes): (Vec<_>, Vec<_>) =
        found.lines().map(str::to_owned).partition(|line| line.starts_with("race: "));
    assert!(bytes.iter().all(|line| line.starts_with("a consumer found")), "{bytes:?}");
    (races, bytes.len())
}

#[test]
fn the_engine_without_a_mistake_is_well() {
    if on_gpu() {
        return;
    }
    for (ordinal, pace) in [(0, Pace::Ahead), (1, Pace::Idle)] {
        assert_eq!(run(ordinal, Mistake::None, pace), (Vec::new(), 0));
    }
}

/// Each mistake at both paces. The checker finds it every time; what the bytes show is a matter of luck at one, and nothing at
/// the other.
fn is_caught(ordinal: u32, mistake: Mistake, name: &str) {
    if on_gpu() {
        return;
    }
    for (ordinal, pace) in [(ordinal, Pace::Ahead), (ordinal + 1, Pace::Idle)] {
        let (races, wrong) = run(ordinal, mistake, pace);
        let told = if pace == Pace::Ahead { "ahead" } else { "idle" };
        eprintln!("{mistake:?}, {told}: {} races and {wrong} wrong batches of {BATCHES}", races.len());
        assert!(races.len() >= BATCHES - PAGES, "{mistake:?}: {races:?}");
        let names = [name, "a copy to the device"];
        assert!(races.iter().all(|race| names.iter().all(|name| race.contains(name))), "{mistake:?}: {races:?}");
        assert!(pace == Pace::Ahead || wrong == 0, "{mistake:?}: {wrong} wrong batches where all was over");
    }
}

#[test]
fn a_page_recycled_early_is_caught() {
    is_caught(2, Mistake::RecycleEarly, "the host writes");
}

#[test]
fn a_forgotten_wait_is_caught() {
    is_caught(4, Mistake::ForgetTheWait, "a consumer's kernel");
}

#[test]
fn an_overwritten_slot_is_caught() {
    is_caught(6, Mistake::OverwriteTheSlot, "a consumer's kernel");
}

#[test]
fn an_event_recorded_too_early_is_caught() {
    is_caught(8, Mistake::RecordTooEarly, "a consumer's kernel");
}

#[test]
fn an_event_recorded_in_the_wrong_stream_is_caught() {
    is_caught(10, Mistake::RecordInTheWrongStream, "a consumer's kernel");
}

#[test]
fn trust_in_the_default_stream_is_caught() {
    is_caught(12, Mistake::TrustTheDefaultStream, "a consumer's kernel");
}
