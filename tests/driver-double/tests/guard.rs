//! Guard mode and faults, told by the environment: each in a process of its own, which is this test's own binary.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::time::Duration;

use farfeed_driver_double::{Double, DoubleDevice, Driver, HostMemory, UNREAD};

const BYTES: usize = 64 << 10;
const SCENE: &str = "FARFEED_TEST_SCENE";

/// Runs `scene` in a new process, with these settings of the double.
fn run(scene: &str, settings: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "scenes", "--nocapture"]);
    command.env(SCENE, scene).env("FARFEED_DOUBLE", settings).env_remove("FARFEED_TEST_GPU").output().unwrap()
}

fn expect_success(scene: &str, settings: &str) {
    let output = run(scene, settings);
    assert!(output.status.success(), "{scene}, {settings}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What the processes do; nothing when it is run as a test among others.
#[test]
fn scenes() {
    match std::env::var(SCENE).as_deref() {
        Err(_) => {}
        Ok("recycle early") => recycle(false),
        Ok("recycle in time") => recycle(true),
        Ok("report") => report(),
        Ok("neighbours") => neighbours(),
        Ok("unread") => violate(false),
        Ok("read") => violate(true),
        Ok("third allocation") => third_allocation(),
        Ok("first registration") => first_registration(),
        Ok("second copy") => second_copy(),
        Ok("lost") => lost(),
        Ok(other) => panic!("no scene {other:?}"),
    }
}

fn rig(driver: &Driver) -> (DoubleDevice, usize, usize, u64, HostMemory<'_>) {
    let double = Double::load().device(0);
    let (stream, event) = (driver.stream(false), driver.event(false));
    (double, stream, event, driver.allocate(BYTES).unwrap(), driver.host_memory(BYTES).unwrap())
}

/// Writes to memory that was copied: after the copy is over, but before or after the host has heard of it.
fn recycle(in_time: bool) {
    let driver = Driver::open(0);
    let (double, stream, event, memory, host) = rig(&driver);
    host.write(0..BYTES, 1);
    driver.copy_to_device(memory, &host, 0..BYTES, stream).unwrap();
    driver.record(event, stream).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    if in_time {
        assert_eq!(driver.has_passed(event), Ok(true));
    }
    host.write(BYTES / 2..BYTES / 2 + 1, 2);
    assert_eq!((host.bytes()[BYTES / 2], double.violations().as_str()), (2, ""));
    driver.synchronize().unwrap();
}

#[test]
fn recycling_early_faults_at_the_line_that_writes() {
    let output = run("recycle early", "guard=die,rate=1000000000");
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{}", String::from_utf8_lossy(&output.stderr));
    // Without the guard nothing shows, neither in the bytes nor otherwise: the copy is over.
    expect_success("recycle early", "guard=off,rate=1000000000");
    expect_success("recycle in time", "guard=die,rate=1000000000");
    expect_success("recycle in time", "rate=1000000000");
}

/// The write goes on, and is told of; also from several threads, and again for the next copy.
fn report() {
    let driver = Driver::open(0);
    let (double, stream, event, memory, host) = rig(&driver);
    for round in 1..=3 {
        driver.copy_to_device(memory, &host, 0..BYTES, stream).unwrap();
        driver.record(event, stream).unwrap();
        host.write(0..BYTES, round);
        assert!(host.bytes().iter().all(|byte| *byte == round));
        let found = double.violations();
        // One for each copy, however many pages it has.
        let expected = usize::from(round);
        assert_eq!(found.lines().count(), expected, "{found}");
        assert!(found.lines().all(|line| line.contains("the host writes at") && line.contains("a copy to the device")));
        driver.synchronize_event(event).unwrap();
        host.write(0..BYTES, 0);
        assert_eq!(double.violations().lines().count(), expected);
    }
}

/// Bytes on one page with those that are copied may be written to.
fn neighbours() {
    let driver = Driver::open(0);
    let (double, stream, _event, memory, host) = rig(&driver);
    driver.copy_to_device(memory, &host, 0..100, stream).unwrap();
    host.write(128..256, 1);
    driver.copy_to_device(memory + 128, &host, 128..256, stream).unwrap();
    host.write(256..300, 1);
    assert_eq!(double.violations(), "");
    driver.synchronize_stream(stream).unwrap();
    host.write(0..BYTES, 1);
    assert_eq!(double.violations(), "");
}

#[test]
fn the_guard_reports_and_lets_go_on() {
    expect_success("report", "rate=1000000000");
    expect_success("neighbours", "rate=1000000000");
}

/// A violation of which `violations` is asked, or not.
fn violate(is_read: bool) {
    let driver = Driver::open(0);
    let (double, stream, _event, memory, host) = rig(&driver);
    driver.copy_to_device(memory, &host, 0..BYTES, stream).unwrap();
    if is_read {
        assert_eq!(double.violations(), "");
    }
    host.write(0..1, 2);
    if is_read {
        assert!(double.violations().contains("the host writes"));
    }
    driver.synchronize().unwrap();
}

/// What nobody asks for is told all the same: no test passes because it did not ask.
#[test]
fn a_report_that_nobody_reads_fails_the_process() {
    let output = run("unread", "");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(UNREAD), "{told}");
    assert!(told.contains("nobody has read:\ndevice 0: race: the host writes"), "{told}");
    expect_success("read", "");
}

fn third_allocation() {
    let driver = Driver::open(0);
    let answers = [0; 5].map(|_| driver.allocate(100).is_ok());
    assert_eq!(answers, [true, true, false, true, true]);
}

fn first_registration() {
    let driver = Driver::open(0);
    assert_eq!(driver.host_memory(100).err(), Some(2));
    assert!(driver.host_memory(100).is_ok());
}

fn second_copy() {
    let driver = Driver::open(0);
    let (double, stream, event, memory, host) = rig(&driver);
    driver.copy_to_device(memory, &host, 0..10, stream).unwrap();
    driver.synchronize_stream(stream).unwrap();
    driver.copy_to_device(memory, &host, 0..10, stream).unwrap();
    assert_eq!(driver.synchronize_stream(stream), Err(700));
    assert_eq!((driver.record(event, stream), driver.allocate(1)), (Err(700), Err(700)));
    // It has stopped: the host may do what it likes with its memory.
    host.write(0..BYTES, 1);
    assert_eq!((driver.free(memory), double.violations().as_str()), (Err(700), ""));
}

fn lost() {
    let driver = Driver::open(0);
    let mut codes = Vec::new();
    for _ in 0..20 {
        codes.push(driver.allocate(1).err());
    }
    // Three calls to each allocation: the context is made current, and the thread put back.
    assert_eq!(codes.iter().filter(|code| code.is_none()).count(), 10, "{codes:?}");
    assert!(codes[10..].iter().all(|code| *code == Some(719)), "{codes:?}");
    assert!(Driver::open(1).allocate(1).is_ok(), "that device has not had so many calls");
}

#[test]
fn faults_come_when_they_are_told_to() {
    expect_success("third allocation", "device-memory=3");
    expect_success("first registration", "host-memory=1");
    expect_success("second copy", "copy=2");
    expect_success("second copy", "copy=2,guard=die");
    expect_success("lost", "operation=31,loss=719");
}
