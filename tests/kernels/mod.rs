//! The finishing kernels on the driver double: their own text, compiled for the processor, is what its twins run.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use farfeed_driver_double::{Double, Launch};

/// Kernels, and how many bytes an element has that they read and that they write.
const KERNELS: [(&str, usize, usize); 14] = [
    ("farfeed_widen_u8_i32", 1, 4),
    ("farfeed_widen_u8_i64", 1, 8),
    ("farfeed_widen_u16_i32", 2, 4),
    ("farfeed_widen_u16_i64", 2, 8),
    ("farfeed_widen_u32_i64", 4, 8),
    ("farfeed_widen_i32_i64", 4, 8),
    ("farfeed_planes_1", 1, 1),
    ("farfeed_planes_2", 2, 2),
    ("farfeed_planes_4", 4, 4),
    ("farfeed_planes_8", 8, 8),
    ("farfeed_look_up_2", 1, 2),
    ("farfeed_look_up_4", 1, 4),
    ("farfeed_look_up_planes_2", 1, 2),
    ("farfeed_look_up_planes_4", 1, 4),
];

/// Gives the double a twin for each kernel; `false` where there is no C++ compiler to make them with, which is said.
pub(crate) fn register(double: Double) -> bool {
    static RUN: LazyLock<Option<PathBuf>> = LazyLock::new(compile);
    let Some(run) = &*RUN else {
        eprintln!("skipped: no C++ compiler (c++), which makes the kernels run on the processor");
        return false;
    };
    for (name, raw_bytes, finished_bytes) in KERNELS {
        double.twin(name, move |launch| twin(run, name, raw_bytes, finished_bytes, launch));
    }
    true
}

/// The program that runs kernels, with every check that the compiler has.
fn compile() -> Option<PathBuf> {
    Command::new("c++").arg("--version").stdout(Stdio::null()).status().ok()?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/run.cpp");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("run-kernels-{}", std::process::id()));
    let compiled = |checks: &[&str]| {
        let flags = ["-std=c++17", "-O1", "-fno-strict-aliasing", "-w"];
        Command::new("c++").args(flags).args(checks).arg("-o").args([&program, &source]).output().unwrap()
    };
    let checked = compiled(&["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
    if !checked.status.success() {
        eprintln!("without sanitizers: {}", String::from_utf8_lossy(&checked.stderr));
        let plain = compiled(&[]);
        assert!(plain.status.success(), "{}", String::from_utf8_lossy(&plain.stderr));
    }
    Some(program)
}

/// Takes a launch apart as the kernel's signature says, has the program carry it out, and writes what it has written.
fn twin(run: &Path, name: &str, raw_bytes: usize, finished_bytes: usize, launch: &Launch<'_>) {
    let (from, to) = (launch.u64(0), launch.u64(1));
    let (elements, table_bytes, numbers) = if name.contains("widen") {
        (launch.u64(2) as usize, 0, vec![launch.u64(2)])
    } else if name.contains("look_up") {
        let numbers: Vec<u64> = (3..6).map(|index| u64::from(launch.u32(index))).collect();
        let [channels, second, third] = numbers[..] else { unreachable!("three numbers") };
        let elements = if name.contains("planes") { channels * second * third } else { second };
        (elements as usize, channels as usize * 256 * finished_bytes, numbers)
    } else {
        let numbers: Vec<u64> = (2..5).map(|index| u64::from(launch.u32(index))).collect();
        (numbers.iter().product::<u64>() as usize, 0, numbers)
    };
    let (raw, finished) = (launch.read(from, elements * raw_bytes), launch.read(to, elements * finished_bytes));
    let table = if table_bytes > 0 { launch.read(launch.u64(2), table_bytes) } else { Vec::new() };
    let (grid, block) = (launch.grid(), launch.block());
    assert_eq!([grid[1], grid[2], block[1], block[2], launch.shared_bytes()], [1, 1, 1, 1, 0], "{name} is flat");
    let arguments = [u64::from(grid[0]), u64::from(block[0]), raw.len() as u64, from % 16]
        .into_iter()
        .chain([finished.len() as u64, to % 16, table.len() as u64])
        .chain(numbers)
        .map(|number| number.to_string());
    let mut child = Command::new(run)
        .arg(name)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It reads everything before it writes anything.
    child.stdin.take().unwrap().write_all(&[raw, finished, table].concat()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    launch.write(to, &output.stdout);
}
