//! What a real driver does not promise, and the double therefore must not give; and what it reports beside races. Each rule is broken here once.

mod rig;

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use farfeed_driver_double::{Double, Driver, Live};
use rig::{BYTES, LEGACY, PER_THREAD, Rig, entry, inside, on_the_double};

/// What one thread knows another one may not count on when it enqueues; what the host does to memory it may.
#[test]
fn what_another_thread_has_observed_orders_nothing_here() {
    on_the_double!();
    let driver = Driver::open(0);
    let rig = Rig::new(0, &driver);
    rig.copy(rig.first);
    driver.record(rig.event, rig.first).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| driver.synchronize_event(rig.event).unwrap());
    });
    rig.double.host_wrote(rig.host.bytes());
    assert_eq!(rig.double.violations(), "");
    rig.fill(rig.second);
    rig.expect(&["race: a fill", "a copy to the device"]);
}

#[test]
fn each_thread_has_a_default_stream_of_its_own() {
    on_the_double!();
    let driver = Driver::open(1);
    let rig = Rig::new(1, &driver);
    rig.fill(PER_THREAD);
    // The legacy one comes behind both.
    rig.fill(LEGACY);
    std::thread::scope(|scope| {
        let memory = rig.memory;
        let driver = &driver;
        scope.spawn(move || driver.fill(memory, 7, BYTES, PER_THREAD).unwrap());
    });
    assert_eq!(rig.double.violations(), "");
    rig.fill(PER_THREAD);
    rig.expect(&["race: a fill", "nothing orders them"]);
}

#[test]
fn an_event_that_is_destroyed_is_still_waited_for() {
    on_the_double!();
    let driver = Driver::open(2);
    let rig = Rig::new(2, &driver);
    rig.double.set_rate(40_000);
    rig.host.write(0..BYTES, 3);
    rig.copy(rig.first);
    driver.record(rig.event, rig.first).unwrap();
    driver.wait(rig.second, rig.event).unwrap();
    driver.destroy_event(rig.event).unwrap();
    assert_eq!(driver.record(rig.event, rig.first), Err(400));
    assert_eq!(driver.read_back(rig.memory, BYTES, rig.second).unwrap(), [3; BYTES]);
    rig.expect_nothing();
}

/// What is over and known to be so is forgotten after a while; what is not is kept, however much comes later.
#[test]
fn what_is_not_known_to_be_over_is_remembered() {
    on_the_double!();
    let driver = Driver::open(4);
    let rig = Rig::new(4, &driver);
    rig.copy(rig.first);
    let other = driver.allocate(1000).unwrap();
    for at in 0..1000 {
        driver.fill(other + at, 1, 1, rig.second).unwrap();
        driver.synchronize_stream(rig.second).unwrap();
    }
    assert_eq!(rig.double.violations(), "");
    rig.fill(rig.second);
    rig.expect(&["race: a fill", "a copy to the device (number 1"]);
}

/// A kernel says only when it runs what it uses: what came meanwhile is kept for that long, though it is over and known to be.
#[test]
fn what_a_late_kernel_may_meet_is_remembered() {
    static GO: AtomicBool = AtomicBool::new(false);
    on_the_double!();
    let driver = Driver::open(15);
    let rig = Rig::new(15, &driver);
    Double::load().twin("late", |launch| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !GO.load(Ordering::Acquire) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        launch.read(launch.u64(0), 8);
    });
    let text = c".version 8.0\n.visible .entry late(.param .u64 late_param_0) { ret; }";
    let module = driver.module(text).unwrap();
    driver.launch(driver.function(module, c"late").unwrap(), 1, &[rig.memory], rig.first).unwrap();
    rig.fill(rig.second);
    let other = driver.allocate(1000).unwrap();
    for at in 0..1000 {
        driver.fill(other + at, 1, 1, rig.second).unwrap();
        driver.synchronize_stream(rig.second).unwrap();
    }
    GO.store(true, Ordering::Release);
    rig.double.settle();
    rig.expect(&["race: kernel late", "reads 8 bytes", "a fill"]);
}

#[test]
fn page_locked_memory_is_every_devices() {
    on_the_double!();
    let (driver, other) = (Driver::open(5), Driver::open(6));
    let (rig, there) = (Rig::new(5, &driver), Rig::new(6, &other));
    let pointer = rig.host.bytes().as_ptr().cast_mut().cast::<c_void>();
    let register = entry::<unsafe extern "C" fn(*mut c_void, usize, u32) -> u32>(c"cuMemHostRegister_v2");
    // SAFETY: live memory; what is tried is refused.
    let again = |bytes, flags| unsafe { register(pointer, bytes, flags) };
    let codes = inside(6, || [again(BYTES, 1), again(1, 1), again(0, 1), again(BYTES, 64)]);
    assert_eq!(codes, [712, 712, 1, 1]);
    // A device that has not registered it reads it when the copy is carried out, not before the call returns.
    other.copy_to_device(there.memory, &rig.host, 0..BYTES, there.first).unwrap();
    there.double.settle();
    there.double.host_wrote(rig.host.bytes());
    there.expect(&["the host writes"]);
    // Neither all of it nor none of it is page-locked.
    let copy = entry::<unsafe extern "C" fn(u64, *const c_void, usize, usize) -> u32>(c"cuMemcpyHtoDAsync_v2");
    // SAFETY: refused before anything is read.
    let code = inside(5, || unsafe { copy(rig.memory, pointer.byte_add(1), BYTES, rig.first) });
    assert_eq!(code, 1);
    rig.expect_nothing();
}

/// It may have the host wait for all of the device's work, and orders nothing.
#[test]
fn freeing_takes_its_time_and_is_no_observation() {
    on_the_double!();
    let driver = Driver::open(7);
    let rig = Rig::new(7, &driver);
    let (other, its) = (driver.allocate(1).unwrap(), driver.host_memory(1).unwrap());
    rig.double.set_rate(BYTES as u64 * 5);
    let begun = Instant::now();
    rig.copy(rig.first);
    driver.free(other).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(150), "{:?}: the copy takes 200 ms", begun.elapsed());
    rig.copy(rig.first);
    drop(its);
    assert!(begun.elapsed() >= Duration::from_millis(350), "{:?}: they take 400 ms", begun.elapsed());
    rig.double.host_wrote(rig.host.bytes());
    rig.expect(&["the host writes", "has not observed its end"]);
}

#[test]
fn device_memory_is_aligned_to_256_and_no_more() {
    on_the_double!();
    let driver = Driver::open(8);
    let rig = Rig::new(8, &driver);
    let pointer = driver.allocate(100).unwrap();
    assert_eq!((pointer % 256, pointer % 512), (0, 256));
    // Neither what is in front of it nor what is behind is anybody's.
    let beside = [(pointer - 1, 1), (pointer + 99, 2)].map(|(at, bytes)| driver.fill(at, 0, bytes, rig.first));
    assert_eq!(beside, [Err(1), Err(1)]);
    assert_eq!(driver.read_back(pointer, 100, rig.first).unwrap(), [0xDB; 100]);
    rig.expect_nothing();
}

#[test]
fn a_capture_elsewhere_is_respected() {
    on_the_double!();
    let driver = Driver::open(9);
    let rig = Rig::new(9, &driver);
    rig.double.capture_elsewhere(true);
    rig.copy(rig.first);
    driver.record(rig.event, rig.first).unwrap();
    driver.wait(rig.second, rig.event).unwrap();
    assert_eq!(rig.double.violations(), "");
    assert_eq!(driver.has_passed(rig.event), Err(900));
    assert_eq!(driver.allocate(1), Err(900));
    let found = rig.double.violations();
    assert!(found.contains("cuEventQuery breaks a capture") && found.contains("cuMemAlloc_v2 breaks"), "{found}");
    // In the relaxed mode all is allowed; and the exchange gives back what there was.
    let exchange = entry::<unsafe extern "C" fn(*mut u32) -> u32>(c"cuThreadExchangeStreamCaptureMode");
    let mut mode = 2;
    // SAFETY: a place with a mode.
    assert_eq!((unsafe { exchange(&mut mode) }, mode), (0, 0));
    assert!(!Double::load().thread_is_untouched());
    driver.free(driver.allocate(1).unwrap()).unwrap();
    driver.synchronize().unwrap();
    // SAFETY: as above.
    assert_eq!((unsafe { exchange(&mut mode) }, mode), (0, 2));
    mode = 3;
    // SAFETY: as above.
    assert_eq!(unsafe { exchange(&mut mode) }, 1);
    assert!(Double::load().thread_is_untouched());
    rig.double.capture_elsewhere(false);
    assert_eq!(rig.double.violations().lines().count(), 2);
}

/// The last release destroys what is left; nothing of it is of use in the next context, and nothing works without one.
#[test]
fn a_context_ends_with_its_last_release() {
    on_the_double!();
    let double = Double::load().device(10);
    let driver = Driver::open(10);
    let (stream, memory) = (driver.stream(false), driver.allocate(100).unwrap());
    let context = 10 + 1;
    let push = entry::<unsafe extern "C" fn(usize) -> u32>(c"cuCtxPushCurrent_v2");
    let pop = entry::<unsafe extern "C" fn(*mut usize) -> u32>(c"cuCtxPopCurrent_v2");
    let release = entry::<unsafe extern "C" fn(i32) -> u32>(c"cuDevicePrimaryCtxRelease_v2");
    let allocate = entry::<unsafe extern "C" fn(*mut u64, usize) -> u32>(c"cuMemAlloc_v2");
    let mut place = 0;
    // SAFETY: places for the answers; a context that is held, or refused.
    unsafe {
        assert_eq!(push(context), 0);
        drop(driver);
        assert_eq!(double.live(), Live { allocations: 1, streams: 1, ..Live::default() });
        assert_eq!((allocate(&mut place, 1), push(context)), (709, 709));
        let mut popped = 0;
        assert_eq!((pop(&mut popped), popped), (0, context));
        assert_eq!(release(10), 201);
    }
    let found = double.violations();
    assert_eq!(found.matches("used after its last release").count(), 2, "{found}");
    assert!(found.ends_with("a context was released more often than it was taken") && found.lines().count() == 3);
    let driver = Driver::open(10);
    assert_eq!(double.live(), Live { contexts: 1, ..Live::default() });
    assert_eq!((driver.destroy_stream(stream), driver.fill(memory, 0, 1, LEGACY)), (Err(400), Err(1)));
    assert_eq!(double.violations().lines().count(), 3);
}

#[test]
fn a_module_is_not_unloaded_under_its_kernels() {
    on_the_double!();
    let driver = Driver::open(11);
    let rig = Rig::new(11, &driver);
    Double::load().twin("nothing", |_| ());
    let text = c".version 8.0\n.visible .entry nothing() { ret; }";
    for is_observed in [true, false] {
        let module = driver.module(text).unwrap();
        driver.launch(driver.function(module, c"nothing").unwrap(), 1, &[], rig.first).unwrap();
        // Over in any case.
        rig.double.settle();
        if is_observed {
            driver.synchronize().unwrap();
        }
        driver.unload(module).unwrap();
        assert_eq!(rig.double.violations().is_empty(), is_observed);
    }
    rig.expect(&["a module was unloaded under kernel nothing"]);
}

#[test]
fn consumers_say_what_they_find() {
    on_the_double!();
    let driver = Driver::open(12);
    let rig = Rig::new(12, &driver);
    rig.fill(rig.first);
    let mut expected = [7; BYTES];
    rig.double.consume(rig.first, rig.memory, &expected, Duration::ZERO);
    rig.double.settle();
    assert_eq!(rig.double.violations(), "");
    expected[5000] = 8;
    rig.double.consume(rig.first, rig.memory, &expected, Duration::ZERO);
    rig.double.settle();
    rig.expect(&["a consumer found 0x07 for 0x08 at 5000"]);
}

#[test]
fn a_twin_that_panics_breaks_the_device() {
    on_the_double!();
    let driver = Driver::open(13);
    let rig = Rig::new(13, &driver);
    Double::load().twin("impatient", |launch| assert_eq!(launch.u64(0), 1, "not what was wanted"));
    let text = c".version 8.0\n.visible .entry impatient(.param .u64 impatient_param_0) { ret; }";
    let module = driver.module(text).unwrap();
    driver.launch(driver.function(module, c"impatient").unwrap(), 1, &[2], rig.first).unwrap();
    assert_eq!(driver.synchronize(), Err(700));
    let found = rig.double.violations();
    assert!(found.contains("kernel impatient panicked: ") && found.contains("not what was wanted"), "{found}");
}
