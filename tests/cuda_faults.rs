//! A whole loader on a driver that fails, once for each fault, in a process of its own: this test's own binary. Batches are right,
//! or there is an error that names the driver's word; everything comes back that can; nothing hangs. See `tests/driver-double`.
#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

mod cuda;

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use cuda::PATIENCE;
use farfeed::dataset::Dtype;
use farfeed::device::{Device, probe};
use farfeed::store::MemoryStore;
use farfeed::{ByteSize, Error, Kind, Loader, Tokens};
use farfeed_driver_double::{Double, Live, on_gpu};

const SCENE: &str = "FARFEED_TEST_SCENE";
const TOKENS: usize = 64 << 10;
const SAMPLE: usize = 256;

/// Begins `scene` in a new process with these settings of the double.
fn begin(scene: &str, settings: &str) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "scenes", "--nocapture"]).env(SCENE, scene).env("FARFEED_DOUBLE", settings);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What the process had to say for itself: the line that begins with the scene.
fn end(scene: &str, settings: &str, mut child: std::process::Child) -> String {
    let deadline = Instant::now() + 2 * PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{scene} with {settings:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let (told, errors) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{scene} with {settings:?}: {status}\n{told}\n{errors}");
    let prefix = format!("{scene}: ");
    let line = told.lines().find_map(|line| line.split_once(&prefix)).map(|(_, rest)| rest.to_owned());
    line.unwrap_or_else(|| panic!("{scene} with {settings:?} said nothing:\n{told}\n{errors}"))
}

fn run(scene: &str, settings: &str) -> String {
    end(scene, settings, begin(scene, settings))
}

/// What the processes do; nothing when it is run as a test among others.
#[test]
fn scenes() {
    match std::env::var(SCENE).as_deref() {
        Err(_) => {}
        Ok("an epoch") => println!("an epoch: {}", an_epoch()),
        Ok("wide tokens") => println!("wide tokens: {}", wide_tokens()),
        Ok("a look") => println!("a look: {}", a_look()),
        Ok(other) => panic!("no scene {other:?}"),
    }
}

/// Reads all batches back. Gives `right`, or the error; with the notes of the loader.
fn an_epoch() -> String {
    let double = Double::load().device(0);
    let outcome = stream();
    assert_eq!(double.violations(), "");
    let live = double.live();
    assert_eq!((live.contexts, live.allocations, live.registrations), (0, 0, 0), "{outcome}");
    outcome
}

fn stream() -> String {
    let tokens: Vec<u8> = (0..TOKENS).flat_map(|token| ((token * 7 % 65_521) as u16).to_le_bytes()).collect();
    let store = MemoryStore::new();
    store.put("corpus.bin", tokens.clone());
    let device = match Device::cuda(0) {
        Ok(device) => device,
        Err(error) => return told(&error),
    };
    let builder = Loader::builder("memory:corpus.bin")
        .store(store)
        .tokens(Tokens::new(Dtype::U16, SAMPLE))
        .batch_size(16)
        .host_memory(ByteSize::mib(16))
        .patience(PATIENCE)
        .epochs(1)
        .device(device);
    let loader = match builder.build() {
        Ok(loader) => loader,
        Err(error) => return told(&error),
    };
    let slab = loader.slab().clone();
    let (mut next, mut failure) = (0, None);
    for batch in loader.epoch(0) {
        let read = batch.and_then(|batch| batch.values("tokens").map(|values| values.concat()));
        match read {
            Ok(bytes) => {
                assert!(bytes == tokens[next..next + bytes.len()], "the wrong bytes at {next}");
                next += bytes.len();
            }
            Err(error) => {
                failure = Some(told(&error));
                break;
            }
        }
    }
    let notes = format!("{}", loader.stats());
    drop(loader);
    assert_eq!(slab.usage().free, slab.pages(), "every page came back");
    failure.unwrap_or_else(|| {
        assert_eq!(next, tokens.len());
        format!("right; {}", notes.replace('\n', "; "))
    })
}

/// An error in one line, once it was seen to be a good one.
fn told(error: &Error) -> String {
    assert!(matches!(error.kind(), Kind::Device | Kind::Unsupported), "{error}");
    format!("{:?}: {error}; {}", error.kind(), error.next_step().unwrap_or("no advice")).replace('\n', " ")
}

/// Asks for a step, which takes kernels. Gives `built`, or the error.
fn wide_tokens() -> String {
    let double = Double::load().device(0);
    let store = MemoryStore::new();
    store.put("corpus.bin", vec![1; 4096]);
    let outcome = Loader::builder("memory:corpus.bin")
        .store(store)
        .tokens(Tokens::new(Dtype::U16, 16).widen(Dtype::I64))
        .host_memory(ByteSize::mib(16))
        .device(Device::cuda(0).unwrap())
        .build()
        .map_or_else(|error| told(&error), |_| "built".into());
    assert_eq!((double.violations().as_str(), double.live()), ("", Live::default()));
    outcome
}

/// Asks what devices there are.
fn a_look() -> String {
    Double::load();
    let facts = probe();
    assert_eq!(facts.devices.is_empty(), facts.problem.is_some());
    format!("{} devices; {}; best is {}", facts.devices.len(), facts.problem.unwrap_or_default(), Device::best().name())
}

macro_rules! on_the_double {
    () => {
        if on_gpu() {
            eprintln!("skipped: a real driver does not fail when it is told to");
            return;
        }
    };
}

#[test]
fn without_a_fault_all_is_right() {
    on_the_double!();
    assert!(run("an epoch", "").starts_with("right"));
    assert!(run("an epoch", "rate=20000000").starts_with("right"));
    // Before batches of copies, and with the first form of them.
    assert!(run("an epoch", "version=12040").starts_with("right"));
    assert!(run("an epoch", "version=12080").starts_with("right"));
}

#[test]
fn memory_that_is_not_there_is_named() {
    on_the_double!();
    for allocation in 1..=2 {
        let told = run("an epoch", &format!("device-memory={allocation}"));
        assert!(told.starts_with("Device: ") && told.contains("CUDA_ERROR_OUT_OF_MEMORY (2)"), "{allocation}: {told}");
    }
    // Page-locking is done without: the slab's, and the staging memory's.
    for registration in 1..=2 {
        let told = run("an epoch", &format!("host-memory={registration}"));
        assert!(told.starts_with("right"), "{registration}: {told}");
    }
}

#[test]
fn a_driver_that_does_not_start_is_explained() {
    on_the_double!();
    let words = [
        (100, "CUDA_ERROR_NO_DEVICE (100)"),
        (802, "CUDA_ERROR_SYSTEM_NOT_READY (802)"),
        (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"),
    ];
    for (code, word) in words {
        let told = run("an epoch", &format!("init={code}"));
        assert!(told.starts_with("Device: ") && told.contains(word) && !told.contains("no advice"), "{told}");
        let told = run("a look", &format!("init={code}"));
        assert!(
            told.starts_with("0 devices") && told.contains(word) && told.ends_with("best is host memory"),
            "{told}"
        );
    }
    let told = run("an epoch", "version=11080");
    assert!(told.starts_with("Unsupported: ") && told.contains("11.8"), "{told}");
}

/// What the driver's compiler has to say of the kernels is in the error, and what can be done.
#[test]
fn kernels_that_the_driver_does_not_compile_are_explained() {
    on_the_double!();
    assert_eq!(run("wide tokens", ""), "built");
    let words = [
        (218, "CUDA_ERROR_INVALID_PTX (218)", "compute capability 7.5"),
        (221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND (221)", "libnvidia-ptxjitcompiler"),
        (222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION (222)", "driver 525"),
        (223, "CUDA_ERROR_JIT_COMPILATION_DISABLED (223)", "CUDA_DISABLE_PTX_JIT"),
    ];
    for (code, word, advice) in words {
        let told = run("wide tokens", &format!("ptx={code}"));
        let said = format!("fatal : not compiled; because it was told to say {code}");
        assert!(told.starts_with("Device: "), "{told}");
        assert!(["cuda:0", word, advice, &said].iter().all(|part| told.contains(part)), "{told}");
    }
    // Nobody who wants no kernels has to have a compiler.
    assert!(run("an epoch", "ptx=221").starts_with("right"));
}

#[test]
fn a_copy_that_fails_ends_the_epoch() {
    on_the_double!();
    let children: Vec<_> = [1, 2, 3, 7].map(|copy| format!("copy={copy}")).into_iter().collect();
    for settings in children {
        let told = run("an epoch", &settings);
        assert!(
            told.starts_with("Device: ") && told.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"),
            "{settings}: {told}"
        );
    }
}

/// The device is lost with any of its first calls, and with later ones.
#[test]
fn a_device_may_be_lost_at_any_time() {
    on_the_double!();
    let calls: Vec<u32> = (1..30).step_by(2).chain((30..120).step_by(11)).collect();
    let mut lost = 0;
    for some in calls.chunks(4) {
        let settings = some.iter().map(|call| format!("operation={call},loss=719"));
        let begun: Vec<_> = settings.map(|settings| (begin("an epoch", &settings), settings)).collect();
        for (child, settings) in begun {
            let told = end("an epoch", &settings, child);
            let is_named = told.starts_with("Device: ") && told.contains("CUDA_ERROR_LAUNCH_FAILED (719)");
            assert!(is_named || told.starts_with("right"), "{settings}: {told}");
            lost += u32::from(is_named);
        }
    }
    assert!(lost >= 10, "only {lost} were lost before the end");
}
