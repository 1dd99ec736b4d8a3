//! What the checker calls a race, and what not: each rule with the order there, and with it left out.

use std::ops::Range;
use std::time::{Duration, Instant};

use farfeed_driver_double::{Double, DoubleDevice, Driver, HostMemory, SourceOrder, on_gpu};

const BYTES: usize = 8192;
const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

/// A device of the double, with two streams that ignore the default one, two events, and memory on both sides.
struct Rig<'d> {
    double: DoubleDevice,
    driver: &'d Driver,
    first: usize,
    second: usize,
    event: usize,
    memory: u64,
    host: HostMemory<'d>,
}

impl<'d> Rig<'d> {
    fn new(ordinal: u32, driver: &'d Driver) -> Rig<'d> {
        let double = Double::load().device(ordinal);
        double.set_rate(1 << 40);
        Rig {
            double,
            driver,
            first: driver.stream(false),
            second: driver.stream(false),
            event: driver.event(false),
            memory: driver.allocate(BYTES).unwrap(),
            host: driver.host_memory(BYTES).unwrap(),
        }
    }

    /// Copies a part of the host's memory to the same part of the device's.
    fn copy(&self, range: Range<usize>, stream: usize) {
        self.driver.copy_to_device(self.memory + range.start as u64, &self.host, range, stream).unwrap();
    }

    fn fill(&self, stream: usize) {
        self.driver.fill(self.memory, 7, BYTES, stream).unwrap();
    }

    fn record(&self, stream: usize) {
        self.driver.record(self.event, stream).unwrap();
    }

    fn wait(&self, stream: usize) {
        self.driver.wait(stream, self.event).unwrap();
    }

    /// Until the event is said to have passed.
    fn poll(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.driver.has_passed(self.event).unwrap() {
            assert!(Instant::now() < deadline, "the event does not pass");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Until all is over, of which the host has heard nothing.
    fn let_time_pass(&self) {
        self.double.settle();
    }

    fn violations(&self) -> String {
        self.double.violations()
    }

    /// No race up to here.
    fn expect_no_race(&self) {
        assert_eq!(self.violations(), "");
    }

    /// One race, which names these.
    fn expect_race(self, names: &[&str]) {
        let found = self.violations();
        assert_eq!(found.lines().count(), 1, "{found}");
        assert!(found.starts_with("race: "), "{found}");
        for name in names {
            assert!(found.contains(name), "{name:?} is not in {found:?}");
        }
        // So that the host may give its memory back.
        self.driver.synchronize().unwrap();
    }
}

fn driver(ordinal: u32) -> Driver {
    Driver::open(ordinal)
}

/// The double's insight is what is tested: nothing to do on a real one.
macro_rules! on_the_double {
    () => {
        if on_gpu() {
            eprintln!("skipped: this looks into the double");
            return;
        }
    };
}

#[test]
fn streams_are_ordered_by_events() {
    on_the_double!();
    let driver = driver(0);
    let rig = Rig::new(0, &driver);
    rig.fill(rig.first);
    rig.copy(0..BYTES, rig.first);
    rig.record(rig.first);
    rig.wait(rig.second);
    rig.fill(rig.second);
    rig.expect_no_race();
    // Reading at once in both is no race; the write behind only one of them is.
    let other = driver.allocate(BYTES).unwrap();
    driver.copy_within(other, rig.memory, BYTES, rig.second).unwrap();
    rig.record(rig.second);
    rig.wait(rig.first);
    driver.copy_within(other, rig.memory, 1, rig.first).unwrap();
    rig.expect_no_race();
    rig.copy(0..100, rig.second);
    rig.expect_race(&["a copy to the device", "a copy within the device"]);
}

#[test]
fn an_event_that_was_recorded_too_early_orders_nothing() {
    on_the_double!();
    let driver = driver(1);
    let rig = Rig::new(1, &driver);
    rig.record(rig.first);
    rig.copy(0..100, rig.first);
    rig.wait(rig.second);
    // Recorded again behind the copy: the wait above was for the record that there was.
    rig.record(rig.first);
    rig.copy(100..200, rig.second);
    rig.expect_no_race();
    rig.copy(99..101, rig.second);
    rig.expect_race(&["writes 1 bytes", "nothing orders them"]);
}

#[test]
fn time_is_no_observation() {
    on_the_double!();
    let driver = driver(2);
    let rig = Rig::new(2, &driver);
    rig.copy(0..100, rig.first);
    rig.record(rig.first);
    rig.let_time_pass();
    // Beside the copied bytes.
    rig.double.host_wrote(&rig.host.bytes()[100..]);
    rig.expect_no_race();
    rig.double.host_wrote(&rig.host.bytes()[..1]);
    rig.expect_race(&["the host writes", "a copy to the device", "has not observed its end"]);
}

#[test]
fn what_the_host_has_observed_is_over() {
    on_the_double!();
    let driver = driver(3);
    let rig = Rig::new(3, &driver);
    let observations: [(&str, &dyn Fn()); 5] = [
        ("event query", &|| rig.poll()),
        ("event", &|| driver.synchronize_event(rig.event).unwrap()),
        ("stream", &|| driver.synchronize_stream(rig.first).unwrap()),
        ("context", &|| driver.synchronize().unwrap()),
        ("stream query", &|| {
            rig.let_time_pass();
            while !driver.is_idle(rig.first).unwrap() {}
        }),
    ];
    for (name, observe) in observations {
        rig.copy(0..BYTES, rig.first);
        rig.record(rig.first);
        observe();
        rig.double.host_wrote(rig.host.bytes());
        assert_eq!(rig.violations(), "", "{name}");
        // What the host has observed every stream comes after.
        rig.fill(rig.second);
        driver.synchronize().unwrap();
        assert_eq!(rig.violations(), "", "{name}");
    }
    // And what came before that, elsewhere: the record stands for all that its stream had waited for.
    rig.copy(0..BYTES, rig.first);
    rig.record(rig.first);
    rig.wait(rig.second);
    driver.record(rig.event, rig.second).unwrap();
    rig.poll();
    rig.double.host_wrote(rig.host.bytes());
    rig.expect_no_race();
    // A copy back to pageable memory returns when all before it in its stream is done; in another one it is no sign.
    rig.copy(0..BYTES, rig.first);
    driver.read_back(rig.memory, 10, rig.first).unwrap();
    rig.double.host_wrote(rig.host.bytes());
    rig.expect_no_race();
    let other = driver.allocate(10).unwrap();
    rig.copy(0..BYTES, rig.first);
    driver.read_back(other, 10, rig.second).unwrap();
    rig.let_time_pass();
    rig.double.host_wrote(rig.host.bytes());
    rig.expect_race(&["the host writes"]);
}

#[test]
fn an_event_in_another_stream_says_nothing() {
    on_the_double!();
    let driver = driver(4);
    let rig = Rig::new(4, &driver);
    rig.copy(0..BYTES, rig.first);
    rig.record(rig.second);
    rig.poll();
    // Never recorded, so it has "passed".
    assert_eq!(driver.has_passed(driver.event(false)), Ok(true));
    rig.let_time_pass();
    rig.double.host_wrote(rig.host.bytes());
    rig.expect_race(&["the host writes"]);
}

#[test]
fn the_default_stream_waits_for_blocking_streams_only() {
    on_the_double!();
    let driver = driver(5);
    let rig = Rig::new(5, &driver);
    let blocking = driver.stream(true);
    for stream in [blocking, PER_THREAD] {
        rig.fill(stream);
        rig.fill(LEGACY);
        rig.fill(stream);
        rig.expect_no_race();
        driver.synchronize().unwrap();
    }
    rig.fill(blocking);
    // An event recorded in it stands for all of them.
    rig.record(LEGACY);
    rig.wait(rig.first);
    rig.fill(rig.first);
    rig.expect_no_race();
    rig.fill(LEGACY);
    rig.expect_race(&["a fill", "nothing orders them"]);
}

/// The order of the queues is the real one's, not only the checker's.
#[test]
fn the_default_stream_waits_in_deed() {
    on_the_double!();
    let driver = driver(6);
    let rig = Rig::new(6, &driver);
    rig.double.set_rate(BYTES as u64);
    let (blocking, free) = (driver.stream(true), driver.stream(false));
    rig.host.write(0..BYTES, 3);
    rig.copy(0..BYTES, blocking);
    // A second of copying, which the default stream waits for, and the other one does not.
    rig.fill(LEGACY);
    let other = driver.allocate(1).unwrap();
    driver.fill(other, 1, 1, free).unwrap();
    driver.synchronize_stream(free).unwrap();
    assert_eq!(driver.is_idle(LEGACY), Ok(false));
    rig.double.set_rate(1 << 40);
    driver.copy_within(other, rig.memory, 1, blocking).unwrap();
    assert_eq!(driver.read_back(rig.memory, BYTES, blocking).unwrap(), [7; BYTES]);
    rig.driver.synchronize().unwrap();
    rig.expect_no_race();
}

#[test]
fn memory_that_is_given_back_is_used_by_nobody() {
    on_the_double!();
    let driver = driver(7);
    let rig = Rig::new(7, &driver);
    rig.copy(0..BYTES, rig.first);
    rig.let_time_pass();
    driver.free(rig.memory).unwrap();
    let found = rig.violations();
    assert!(found.contains("the host frees 8192 bytes"), "{found}");
    drop(rig.host);
    let found = rig.double.violations();
    assert!(found.contains("the host unregisters 8192 bytes") && found.lines().count() == 2, "{found}");
    assert_eq!(driver.free(rig.memory), Err(1));
    assert!(rig.double.violations().ends_with("device memory was freed that was not allocated"));
}

#[test]
fn what_is_given_back_in_order_is_fine() {
    on_the_double!();
    let driver = driver(8);
    let rig = Rig::new(8, &driver);
    rig.copy(0..BYTES, rig.first);
    // Its work is still done; the event speaks for it.
    rig.record(rig.first);
    driver.destroy_stream(rig.first).unwrap();
    rig.poll();
    driver.free(rig.memory).unwrap();
    let double = rig.double;
    drop(rig);
    assert_eq!(double.violations(), "");
}

#[test]
fn copies_of_a_batch_are_in_no_order() {
    on_the_double!();
    let driver = driver(9);
    let rig = Rig::new(9, &driver);
    rig.host.write(0..100, 1);
    rig.host.write(100..200, 2);
    let (first, second) = ((rig.memory, 0..100), (rig.memory + 100, 100..200));
    for is_new in [true, false] {
        let pieces = [first.clone(), second.clone()];
        driver.copy_batch(is_new, &rig.host, &pieces, SourceOrder::Stream, rig.first).unwrap();
        let found = driver.read_back(rig.memory, 200, rig.first).unwrap();
        assert!(found[..100] == [1; 100] && found[100..] == [2; 100]);
    }
    let calls = rig.double.calls();
    assert_eq!((calls.batches(), calls.copies(), calls.copied_bytes()), (2, 6, 800));
    // Not in the legacy default stream; nor with a piece that is not there, which the older form names.
    let refused = driver.copy_batch(true, &rig.host, std::slice::from_ref(&first), SourceOrder::Stream, LEGACY);
    assert_eq!(refused, Err((1, usize::MAX)));
    let past = (rig.memory + BYTES as u64 - 1, 0..2);
    let refused = driver.copy_batch(false, &rig.host, &[first.clone(), past], SourceOrder::Stream, rig.first);
    assert_eq!(refused, Err((1, 1)));
    rig.expect_no_race();
    let overlapping = (rig.memory + 99, 100..200);
    driver.copy_batch(true, &rig.host, &[first, overlapping], SourceOrder::Stream, rig.first).unwrap();
    rig.expect_race(&["a batch of copies", "both in no order"]);
}

#[test]
fn batches_can_be_refused() {
    on_the_double!();
    let driver = driver(10);
    let rig = Rig::new(10, &driver);
    rig.double.refuse_batches();
    for is_new in [true, false] {
        let refused = driver.copy_batch(is_new, &rig.host, &[(rig.memory, 0..1)], SourceOrder::Stream, rig.first);
        assert_eq!(refused.map_err(|(code, _)| code), Err(801));
    }
    rig.expect_no_race();
}

const PTX: &std::ffi::CStr = c"
.version 8.0
.target sm_75
.address_size 64
.visible .entry swap(
    .param .u64 swap_param_0, // the first
    .param .u64 swap_param_1
)
{ ret; }
.visible .entry lonely() { ret; }
";

#[test]
fn kernels_run_as_their_twins_and_are_checked_like_copies() {
    on_the_double!();
    let driver = driver(11);
    let rig = Rig::new(11, &driver);
    Double::load().twin("swap", |launch| {
        let (first, second) = (launch.u64(0), launch.u64(1));
        let (a, b) = (launch.read(first, 16), launch.read(second, 16));
        launch.write(first, &b);
        launch.write(second, &a);
    });
    let module = driver.module(PTX).unwrap();
    let swap = driver.function(module, c"swap").unwrap();
    assert_eq!(driver.function(module, c"wasp"), Err(500));
    rig.host.write(0..16, 1);
    rig.host.write(16..32, 2);
    rig.copy(0..32, rig.first);
    driver.launch(swap, 32, &[rig.memory, rig.memory + 16], rig.first).unwrap();
    let found = driver.read_back(rig.memory, 32, rig.first).unwrap();
    assert!(found[..16] == [2; 16] && found[16..] == [1; 16]);
    rig.expect_no_race();
    let lonely = driver.function(module, c"lonely").unwrap();
    assert_eq!(driver.launch(lonely, 1, &[], rig.first), Err(98));
    assert_eq!(rig.violations(), "kernel lonely was launched, and has no twin");

    // Behind the kernel in time, but not by anything that says so: found when the twin runs, whichever came first.
    driver.launch(swap, 32, &[rig.memory, rig.memory + 16], rig.second).unwrap();
    rig.copy(0..1, rig.first);
    driver.synchronize().unwrap();
    let found = rig.violations();
    assert!(found.contains("kernel swap") && found.contains("a copy to the device"), "{found}");
    assert_eq!(driver.unload(module), Ok(()));
    assert_eq!(driver.launch(swap, 1, &[0, 0], rig.first), Err(400));
    let newer = c".version 9.1\n.target sm_75\n";
    assert_eq!((driver.module(newer), driver.module(c"no ptx")), (Err(222), Err(218)));
}

#[test]
fn a_kernel_that_leaves_its_memory_breaks_the_device() {
    on_the_double!();
    let driver = driver(12);
    let rig = Rig::new(12, &driver);
    Double::load().twin("lost", |launch| launch.write(launch.u64(0), &[0; 2]));
    let text = c".version 8.0\n.visible .entry lost(.param .u64 lost_param_0) { ret; }";
    let module = driver.module(text).unwrap();
    let lost = driver.function(module, c"lost").unwrap();
    driver.launch(lost, 1, &[rig.memory + BYTES as u64 - 1], rig.first).unwrap();
    assert_eq!(driver.synchronize_stream(rig.first), Err(700));
    assert_eq!(driver.synchronize(), Err(700), "as all that comes later");
    assert!(rig.violations().contains("kernel lost touched 2 bytes"), "{}", rig.violations());
}

#[test]
fn events_tell_the_time_between_them() {
    on_the_double!();
    let driver = driver(13);
    let rig = Rig::new(13, &driver);
    rig.double.set_rate(100_000);
    let (start, end) = (driver.event(true), driver.event(true));
    driver.record(start, rig.first).unwrap();
    rig.copy(0..BYTES, rig.first);
    driver.record(end, rig.first).unwrap();
    assert_eq!(driver.elapsed_ms(start, end), Err(600));
    driver.synchronize_event(end).unwrap();
    let elapsed = driver.elapsed_ms(start, end).unwrap();
    assert!(elapsed > 80.0, "{elapsed} ms for 82 at this rate");
    assert_eq!(driver.elapsed_ms(start, rig.event), Err(400), "that one keeps no time");
    rig.expect_no_race();
}

/// The mistake of reusing a slot that a consumer still reads, sixteen times on a fast device: what the bytes show, and what the
/// checker shows.
#[test]
fn the_checker_sees_what_bytes_do_not() {
    on_the_double!();
    let driver = driver(14);
    let rig = Rig::new(14, &driver);
    let mut wrong_bytes = 0;
    for round in 0..16 {
        rig.host.write(0..BYTES, round);
        rig.copy(0..BYTES, rig.first);
        rig.record(rig.first);
        rig.poll();
        // The consumer's stream does wait for the batch; nobody waits for the consumer before the next copy.
        let found = driver.read_back(rig.memory, BYTES, rig.second).unwrap();
        wrong_bytes += found.iter().filter(|byte| **byte != round).count();
        rig.double.consume(rig.second, rig.memory, &[round; BYTES], Duration::ZERO);
        rig.let_time_pass();
    }
    let found = rig.violations();
    assert_eq!((found.lines().count(), wrong_bytes), (15, 0), "{found}");
    assert!(found.lines().all(|line| line.contains("a consumer's kernel") && line.contains("a copy to the device")));
}

/// A host dereference of device memory faults: tried in a process of its own.
#[test]
fn the_host_cannot_touch_device_memory() {
    on_the_double!();
    const AGAIN: &str = "FARFEED_TEST_DEREFERENCE";
    if std::env::var_os(AGAIN).is_some() {
        let driver = driver(15);
        let memory = driver.allocate(BYTES).unwrap();
        // SAFETY: what is tried here: the address allows no access, and the process ends.
        unsafe { (memory as *const u8).read_volatile() };
        std::process::exit(0);
    }
    let name = "the_host_cannot_touch_device_memory";
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    let status = again.args(["--exact", name]).env(AGAIN, "1").output().unwrap().status;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGSEGV), "{status}");
}
