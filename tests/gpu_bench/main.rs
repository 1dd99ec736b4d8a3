//! The benchmark of the device and what `farfeed doctor --gpu` measures, on the driver double: that they run, end, and notice what is wrong. The figures
//! mean nothing there. Kernels have host twins; some are made to lie.
#![cfg(all(feature = "cuda", feature = "emulate", feature = "measure"))]
#![expect(clippy::unwrap_used, reason = "a test may")]

#[path = "../../benches/device/apart.rs"]
mod apart;
#[allow(dead_code, reason = "the benchmark's own use")]
#[path = "../../benches/device/carried.rs"]
mod carried;
#[path = "../../benches/device/distant.rs"]
mod distant;
#[allow(dead_code, reason = "the benchmark's own use")]
#[path = "../../benches/device/epoch.rs"]
mod epoch;
mod kernels;
#[path = "../../benches/device/lifetimes.rs"]
mod lifetimes;
#[allow(dead_code, reason = "the benchmark's own use")]
#[path = "../../benches/field/machine.rs"]
mod machine;
#[path = "../../benches/device/measured.rs"]
mod measured;
#[path = "../../benches/device/report.rs"]
mod report;
mod separate;
mod twins;

use std::time::Duration;

use farfeed::device::Device;
use farfeed::device::measure::{Effort, Finding, Verdict, digest};
use farfeed_driver_double::{Double, DoubleDevice, Live, kernels as kernels_of};

use epoch::Scene;
use measured::{Measured, PARTS, Wanted};
use twins::{Lie, Lying, honest};

/// On a real GPU the benchmark itself is run.
macro_rules! on_the_double {
    () => {
        if farfeed_driver_double::on_gpu() {
            eprintln!("skipped: this looks into the double");
            return;
        }
    };
}

/// One of the double's devices, with honest twins on all but those that lie.
fn rig(ordinal: u32) -> (DoubleDevice, Device) {
    let double = Double::load();
    twins::install(double);
    double.device(ordinal).set_rate(4_000_000_000);
    (double.device(ordinal), Device::cuda(ordinal).unwrap())
}

fn wanted(parts: &[&str]) -> Wanted {
    Wanted {
        effort: Effort::glance(),
        scene: Scene::glance(),
        effort_name: "a glance",
        parts: parts.iter().map(|part| (*part).to_owned()).collect(),
        // Room for what takes part of the ways: it is used several times.
        lifetimes: (Duration::from_millis(200), 6),
        server: separate::server,
    }
}

fn measured(device: &Device, parts: &[&str]) -> Measured {
    Measured::take(device, &wanted(parts), |_| ()).unwrap()
}

fn finding<'m>(measured: &'m Measured, part: &str, name: &str) -> &'m Finding {
    let named = |finding: &&Finding| finding.part == part && finding.name.contains(name);
    measured.findings.iter().find(named).unwrap_or_else(|| panic!("no {name} of {part} in {}", report::table(measured)))
}

/// Nothing is left on the device, and nothing happened there that must not.
fn is_left_clean(double: &DoubleDevice, device: Device) {
    drop(device);
    double.drain();
    assert_eq!(double.violations(), "");
    assert_eq!(double.live(), Live::default());
}

#[test]
fn everything_is_measured_and_checked() {
    on_the_double!();
    let _honest = honest();
    let (double, device) = rig(0);
    let measured = measured(&device, &PARTS);
    let table = report::table(&measured);
    assert!(!measured.failed(), "{table}");
    for (part, name) in [
        ("page-locking", "slab: registered"),
        ("page-locking", "cuMemHostAlloc"),
        ("page-locking", "the driver takes the slab after io_uring"),
        ("copies", "ceiling"),
        ("copies", "64 KiB at a time, 1 stream"),
        ("copies", "1024 KiB at a time, 2 streams"),
        ("enqueueing", "one copy of 4 KiB"),
        ("engine", "dense batches, pages in a row"),
        ("engine", "shuffled samples"),
        ("overlap", "the product beside copies"),
        ("overlap", "copies beside the product"),
        ("overlap", "it beside copies"),
        ("epoch", "as fast as it comes"),
        ("epoch", "processor time"),
        ("epoch", "the device waited"),
        ("lifetimes", "digests compared"),
    ] {
        let finding = finding(&measured, part, name);
        assert!(finding.value.is_some() || !finding.detail.is_empty(), "{finding:?}");
        assert!(finding.value.is_none_or(f64::is_finite), "{finding:?}");
    }
    let ways = finding(&measured, "lifetimes", "batches used").value.unwrap();
    let digests = finding(&measured, "lifetimes", "digests").value.unwrap();
    assert!(ways >= 12.0 && digests > ways, "{ways} batches, {digests} digests");
    is_left_clean(&double, device);
}

/// From what is measured to the page in docs/results, by way of the JSON that is carried.
#[test]
fn the_page_is_made_of_the_json() {
    on_the_double!();
    let _honest = honest();
    let (_, device) = rig(1);
    let measured = measured(&device, &["copies", "overlap"]);
    let carried: Measured = serde_json::from_str(&serde_json::to_string(&measured).unwrap()).unwrap();
    let page = report::page(&carried);
    assert_eq!(page, report::page(&measured));
    for text in ["# On a GPU", "driver double", "## copies", "| ceiling", "## overlap", "≤ 3 %", "targets met."] {
        assert!(page.contains(text), "no {text:?} in {page}");
    }
    let rows = page.lines().filter(|line| line.starts_with("| "));
    assert!(rows.clone().count() > 8 && rows.clone().all(|row| row.matches(" |").count() == 5), "{page}");
}

/// A kernel that computes something else, or bytes that arrive otherwise: a failure of that part, and of that part alone.
#[test]
fn what_is_wrong_is_reported() {
    on_the_double!();
    for (ordinal, lie, parts) in [
        (2, Lie::Digest, &["copies", "enqueueing", "engine", "overlap", "epoch", "lifetimes"][..]),
        (3, Lie::Product, &["overlap", "epoch", "lifetimes"]),
        (4, Lie::LateDigest, &["engine", "epoch", "lifetimes"]),
    ] {
        let (_, device) = rig(ordinal);
        let _lying = Lying::begin(lie);
        for part in parts {
            let measured = measured(&device, &[part]);
            let wrong: Vec<_> = measured.findings.iter().filter(|finding| finding.verdict == Verdict::Failed).collect();
            assert_eq!(wrong.len(), 1, "{lie:?} {part}: {}", report::table(&measured));
            assert!(measured.failed() && report::page(&measured).contains("FAILED: "), "{lie:?} {part}");
            let why = &wrong[0].detail;
            assert!(why.contains("digest") || why.contains("row "), "{lie:?} {part}: {why}");
        }
    }
}

/// The device fails in the middle: every part says so, in the driver's words, and it ends.
#[test]
fn a_device_that_fails_is_told_of() {
    on_the_double!();
    let _honest = honest();
    let (double, device) = rig(5);
    double.fail_copy(40);
    let measured = measured(&device, &PARTS);
    assert!(measured.failed());
    let failed = measured.findings.iter().filter(|finding| finding.verdict == Verdict::Failed);
    assert!(failed.clone().count() >= 1 && failed.clone().all(|finding| finding.detail.contains("CUDA_ERROR_")));
}

#[test]
fn memory_that_cannot_be_registered_is_told_of() {
    on_the_double!();
    let _honest = honest();
    let (double, device) = rig(6);
    double.refuse_registration();
    let measured = measured(&device, &["page-locking", "engine"]);
    let refused = finding(&measured, "page-locking", "all of it");
    assert!(refused.verdict == Verdict::Failed && refused.detail.contains("NOT_SUPPORTED"), "{refused:?}");
}

/// The twins, written from the kernels' source, agree with the library's own digest.
#[test]
fn twins_compute_what_kernels_should() {
    for bytes in [&b""[..], b"1", b"12345678", b"123456789", &[7; 1001]] {
        assert_eq!(kernels_of::digest_of(bytes), digest(bytes), "{} bytes", bytes.len());
    }
}
