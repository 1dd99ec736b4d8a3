//! The kernels' own text, compiled for the processor, beside what the library and the twins hold them against.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use farfeed::device::measure::digest;

/// The program that runs kernels; `None` without a C++ compiler.
fn compiled() -> Option<PathBuf> {
    Command::new("c++").arg("--version").stdout(Stdio::null()).status().ok()?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu_bench/run.cpp");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("run-measure-{}", std::process::id()));
    let compile = |checks: &[&str]| {
        let flags = ["-std=c++20", "-O1", "-pthread", "-w"];
        Command::new("c++").args(flags).args(checks).arg("-o").args([&program, &source]).output().unwrap()
    };
    if !compile(&["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]).status.success() {
        let plain = compile(&[]);
        assert!(plain.status.success(), "{}", String::from_utf8_lossy(&plain.stderr));
    }
    Some(program)
}

fn run(program: &Path, arguments: &[String], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It reads everything before it writes anything.
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn kernels_compute_what_the_host_expects() {
    let Some(program) = compiled() else {
        return eprintln!("skipped: no C++ compiler (c++), which makes the kernels run on the processor");
    };
    for (bytes, offset, blocks) in
        [(0, 0, 1), (1, 0, 1), (8, 0, 1), (9, 3, 2), (1001, 1, 1), (20_000, 0, 3), (20_007, 5, 2)]
    {
        let input: Vec<u8> = (0..bytes).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let arguments = ["digest".into(), bytes.to_string(), offset.to_string(), blocks.to_string()];
        let told = String::from_utf8(run(&program, &arguments, &input)).unwrap();
        assert_eq!(told.trim().parse(), Ok(digest(&input)), "{bytes} bytes at {offset}, {blocks} blocks");
    }
    // More than one block in each direction.
    let n = 256;
    let numbers = |salt: usize| (0..n * n).map(move |at| ((at * 31 + salt * at / 7) % 8) as f32 - 4.0);
    let (a, b): (Vec<f32>, Vec<f32>) = (numbers(1).collect(), numbers(5).collect());
    let input: Vec<u8> = a.iter().chain(&b).flat_map(|number| number.to_le_bytes()).collect();
    let told = run(&program, &["product".into(), n.to_string()], &input);
    for (at, number) in told.chunks_exact(4).enumerate() {
        let (row, column) = (at / n, at % n);
        let wanted: f32 = (0..n).map(|k| a[row * n + k] * b[k * n + column]).sum();
        assert_eq!(number, wanted.to_le_bytes(), "row {row}, column {column}");
    }
    assert_eq!(told.len(), 4 * n * n);
}
