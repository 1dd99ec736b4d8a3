//! What runs in processes of its own: this test's own binary, or a script.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use farfeed::device::measure::Verdict;

use super::carried::carried;
use super::epoch::Scene;
use super::measured::Measured;
use super::{distant, honest, measured, rig};

const SCENE: &str = "FARFEED_TEST_SCENE";

/// This binary once more, as what `scene` says.
fn again(scene: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "separate::scenes", "--nocapture"]).env(SCENE, scene);
    command
}

/// The epoch's server.
pub(crate) fn server() -> Command {
    again("server")
}

/// What the processes do; nothing when it is run as a test among others.
#[test]
fn scenes() {
    match std::env::var(SCENE).as_deref() {
        Err(_) => {}
        Ok("server") => distant::serve(&Scene::glance()).unwrap(),
        Ok("a part") => {
            let _honest = honest();
            let (_, device) = rig(7);
            println!("{}", serde_json::to_string(&measured(&device, &["copies"])).unwrap());
        }
        Ok("a crash") => std::process::abort(),
        Ok("a crash at the end") => {
            let (_, device) = rig(7);
            println!("{}", serde_json::to_string(&Measured::begin(&device, "a glance")).unwrap());
            std::process::abort();
        }
        Ok("a hang") => std::thread::sleep(Duration::from_secs(600)),
        Ok(other) => panic!("no scene {other:?}"),
    }
}

/// Whatever becomes of one part, the others' figures stay.
#[test]
fn a_part_that_crashes_or_hangs_costs_its_own_figures() {
    let (_, device) = rig(8);
    let mut all = Measured::begin(&device, "a glance");
    let long = Duration::from_secs(60);
    all.take_apart("copies", again("a part"), long);
    assert!(!all.failed() && all.findings.len() > 3 && !all.gpu.bus.is_empty(), "{:?}", all.findings);
    let good = all.findings.clone();
    let begun = Instant::now();
    for (part, scene, limit, why) in [
        ("engine", "a crash", long, "signal: 6"),
        ("overlap", "a crash at the end", long, "signal: 6"),
        ("epoch", "a hang", Duration::from_millis(300), "not over after"),
    ] {
        all.take_apart(part, again(scene), limit);
        let last = all.findings.last().unwrap();
        assert_eq!((last.part.as_str(), last.verdict), (part, Verdict::Failed), "{last:?}");
        assert!(last.detail.contains(why), "{last:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "what hangs is ended");
    assert_eq!((all.findings.len(), &all.findings[..good.len()]), (good.len() + 3, &good[..]));
}

/// Programs of tests, as shell scripts that answer as they do.
#[test]
fn carried_tests_are_run_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let none = carried(folder.path(), Duration::from_secs(1), Duration::from_secs(1));
    assert!(none.len() == 1 && none[0].verdict == Verdict::Told && none[0].detail.contains("not run"), "{none:?}");
    let program = |name: &str, tests: &[(&str, &str)]| {
        let listed: String = tests.iter().map(|(name, _)| format!("echo '{name}: test'; ")).collect();
        let cases: String = tests.iter().map(|(name, does)| format!("{name}) {does};; ")).collect();
        let text = format!(
            "#!/bin/sh\nif [ $1 = --list ]; then {listed} exit 0; fi\n[ $FARFEED_TEST_GPU = 1 ] || exit 9\ncase $2 in {cases} esac\n"
        );
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("a_good", &[("one", "true"), ("two", "echo 'skipped: none here' >&2")]);
    program(
        "b_bad",
        &[
            ("one", "echo \"thread 'one' panicked at here:\" >&2; echo 'left is not right' >&2; exit 101"),
            ("two", "exec sleep 600"),
            ("three", "true"),
        ],
    );
    program("c_none", &[]);
    let told = carried(folder.path(), Duration::from_secs(2), Duration::from_secs(60));
    let verdicts: Vec<_> = told.iter().map(|finding| (finding.name.as_str(), finding.verdict)).collect();
    assert_eq!(verdicts, [("a_good", Verdict::Told), ("b_bad", Verdict::Failed), ("c_none", Verdict::Failed)]);
    assert!(told[0].value == Some(1.0) && told[0].detail.contains("of 2,"), "{:?}", told[0]);
    let why = &told[1].detail;
    for text in ["2 of 3 failed", "one: exit status: 101", "left is not right", "two: not over after"] {
        assert!(why.contains(text), "no {text:?} in {why}");
    }
}
