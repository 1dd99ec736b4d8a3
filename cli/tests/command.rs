//! The command as its users meet it: what it prints, where it writes, how it exits.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use farfeed::emulate::{Cut, Effect, Fault, Faults, Link, Server, Site};
use serde_json::Value;
use tempfile::TempDir;

#[path = "../../tests/fixture/shards.rs"]
mod shards;

const SHARDS: usize = 4;
const PER_SHARD: usize = 60;
const SAMPLES: u64 = (SHARDS * PER_SHARD) as u64;
/// How the tests name their shards, in the directory that they run in.
const PATTERN: &str = "train-{0000..0003}.tar";
/// What keeps a run small: the default would set aside a quarter of the machine's memory.
const SMALL: [&str; 4] = ["--host-memory", "32MiB", "--batch-size", "16"];

/// A folder with a WebDataset and a file of tokens.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in shards::webdataset(SHARDS, PER_SHARD, 3000).shards {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let tokens: Vec<u8> = (0..50_003u32).flat_map(|token| ((token % 50_000) as u16).to_le_bytes()).collect();
    fs::write(folder.path().join("corpus.bin"), tokens).unwrap();
    folder
}

/// A folder whose shards have their index.
fn indexed_folder() -> TempDir {
    let folder = folder();
    succeed(folder.path(), &["index", PATTERN, "--json"]);
    folder
}

fn serve(folder: &TempDir, faults: Faults) -> Server {
    Server::start(Site::directory(folder.path()), Link::rtt(Duration::from_millis(2)), faults).unwrap()
}

fn run(within: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_farfeed")).args(args).current_dir(within).output().unwrap()
}

/// What a run that succeeds prints.
fn succeed(within: &Path, args: &[&str]) -> String {
    let output = run(within, args);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "farfeed {args:?} ended with {}: {complaint}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn json(within: &Path, args: &[&str]) -> Value {
    let text = succeed(within, args);
    assert_eq!(text.trim_end().lines().count(), 1, "one line: {text}");
    serde_json::from_str(&text).unwrap()
}

/// Figures of `farfeed bench`, of the dataset's two fields.
fn bench(within: &Path, url: &str, more: &[&str]) -> Value {
    let always = ["bench", url, "--fields", "jpg,cls:int", "--json"];
    json(within, &[&always[..], &SMALL[..], more].concat())
}

/// The only line that a failing run writes, and its exit status.
fn fail(within: &Path, args: &[&str]) -> (i32, String) {
    let output = run(within, args);
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(output.stdout.is_empty(), "farfeed {args:?} printed something");
    assert_eq!(complaint.trim_end().lines().count(), 1, "one line: {complaint}");
    (output.status.code().unwrap(), complaint)
}

fn ids(path: &Path) -> Vec<u64> {
    fs::read_to_string(path).unwrap().lines().map(|line| line.parse().unwrap()).collect()
}

fn number(figures: &Value, name: &str) -> f64 {
    figures[name].as_f64().unwrap_or_else(|| panic!("{name} is no number in {figures}"))
}

fn digest(figures: &Value, name: &str) -> u64 {
    let text = figures["digest"][name].as_str().unwrap_or_else(|| panic!("no digest {name} in {figures}"));
    u64::from_str_radix(text, 16).unwrap()
}

#[test]
fn an_index_is_made_beside_the_shards() {
    let folder = folder();
    let text = succeed(folder.path(), &["index", PATTERN]);
    assert!(text.contains("240 samples") && text.contains("jpg, cls") && text.contains("train.ffindex"), "{text}");
    let made = fs::read(folder.path().join("train.ffindex")).unwrap();
    let report = json(folder.path(), &["index", PATTERN, "-o", "other.ffindex", "--json"]);
    assert_eq!(fs::read(folder.path().join("other.ffindex")).unwrap(), made, "the same shards have the same index");
    assert_eq!((report["samples"].as_u64(), report["shards"].as_u64()), (Some(SAMPLES), Some(4)));
    assert_eq!(report["skipped"]["unnamed"], 0);
    assert_eq!(report["index_bytes"].as_u64(), Some(made.len() as u64));
    let left_behind = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left_behind, SHARDS + 3, "shards, tokens and two indexes");
}

#[test]
fn an_index_of_far_shards_comes_here() {
    let (far, here) = (folder(), tempfile::tempdir().unwrap());
    let server = serve(&far, Faults::default());
    let text = succeed(here.path(), &["index", &format!("{}/{PATTERN}", server.url())]);
    assert!(text.contains(&format!("{}/train.ffindex", server.url())), "says where it belongs: {text}");
    succeed(far.path(), &["index", PATTERN]);
    let [near, far] = [&here, &far].map(|folder| fs::read(folder.path().join("train.ffindex")).unwrap());
    assert_eq!(near, far);
}

#[test]
fn inspect_shows_shards_fields_and_samples() {
    let folder = indexed_folder();
    let report = json(folder.path(), &["inspect", PATTERN, "--samples", "2", "--from", "59", "--json"]);
    assert_eq!(report["samples"], SAMPLES);
    let per_shard: Vec<_> =
        report["shards"].as_array().unwrap().iter().map(|shard| shard["samples"].as_u64()).collect();
    assert_eq!(per_shard, [Some(60); 4]);
    let fields = report["fields"].as_array().unwrap();
    assert_eq!((fields[0]["name"].as_str(), fields[1]["name"].as_str()), (Some("jpg"), Some("cls")));
    assert!(number(&fields[0], "bytes_min") <= number(&fields[0], "bytes_mean"));
    assert!(number(&fields[0], "bytes_mean") <= number(&fields[0], "bytes_max"));
    let shown = report["shown"].as_array().unwrap();
    assert_eq!((shown[0]["key"].as_str(), shown[1]["key"].as_str()), (Some("0000/000059"), Some("0001/000000")));
    assert_eq!(
        (shown[0]["fields"][1]["kind"].as_str(), shown[0]["fields"][1]["text"].as_str()),
        (Some("text"), Some("59"))
    );
    let text = succeed(folder.path(), &["inspect", PATTERN]);
    assert!(text.contains("train-0003.tar") && text.contains("sample 2: 0000/000002"), "{text}");

    let server = serve(&folder, Faults::default());
    let far =
        json(folder.path(), &["inspect", &format!("{}/corpus.bin", server.url()), "--tokens", "uint16:100", "--json"]);
    assert_eq!((far["samples"].as_u64(), far["remainder_elements"].as_u64()), (Some(500), Some(3)));
    assert_eq!(
        (far["fields"][0]["dtype"].as_str(), &far["fields"][0]["shape"]),
        (Some("uint16"), &serde_json::json!([100]))
    );
    assert!(far["shown"][1]["fields"][0]["text"].as_str().unwrap().starts_with("[100, 101, "), "{far}");
}

#[test]
fn samples_may_lack_fields_where_people_only_look() {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in
        [("a.png", &b"\x89PNG\r\n\x1a\n"[..]), ("a.json", b"{\"x\": 1}"), ("README", b"."), ("b.png", b"")]
    {
        shards::append(&mut archive, name, bytes);
    }
    fs::write(folder.path().join("x.tar"), archive.into_inner().unwrap()).unwrap();
    let text = succeed(folder.path(), &["index", "x.tar"]);
    assert!(text.contains("json (in 1 sample)") && text.contains("1 file without a key or an extension"), "{text}");
    let report = json(folder.path(), &["inspect", "x.tar", "--json"]);
    assert_eq!(report["fields"][1]["lacking"], 1);
    let shown = report["shown"].as_array().unwrap();
    let values = shown.iter().flat_map(|sample| sample["fields"].as_array().unwrap());
    let kinds: Vec<_> = values.map(|value| value["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["PNG", "JSON", "empty"]);
    let (status, complaint) = fail(folder.path(), &["plan", "x.tar", "--host-memory", "32MiB"]);
    assert!(status == 2 && complaint.contains("1 samples have no field 'json', the first is b"), "{complaint}");
}

#[test]
fn a_plan_is_told_and_holds() {
    let folder = indexed_folder();
    let args = [&["plan", PATTERN, "--fields", "jpg", "--window", "64", "--seed", "3"][..], &SMALL[..]].concat();
    let plan = json(folder.path(), &[&args[..], &["--json"]].concat());
    assert_eq!((plan["samples"].as_u64(), plan["batches_per_epoch"].as_u64()), (Some(SAMPLES), Some(15)));
    assert_eq!((plan["host_memory"].as_u64(), plan["window"].as_u64()), (Some(32 << 20), Some(64)));
    let text = succeed(folder.path(), &args);
    assert!(text.contains("240 samples in 4 shards") && text.contains("shuffled within 64 samples"), "{text}");
}

#[test]
fn bench_says_what_a_run_cost() {
    let folder = indexed_folder();
    let figures = bench(folder.path(), PATTERN, &["--compute-ms", "10", "--epochs", "2"]);
    for name in [
        "bytes",
        "samples",
        "batches",
        "seconds",
        "goodput_mb_s",
        "first_batch_s",
        "stall_s",
        "stall_pct",
        "cpu_s",
        "cpu_s_per_gb",
        "peak_rss_mb",
        "pinned_mb",
        "copies_per_byte",
        "requests",
        "retries",
        "build_s",
    ] {
        assert!(number(&figures, name) >= 0.0, "{name} in {figures}");
    }
    assert_eq!((figures["samples"].as_u64(), figures["batches"].as_u64()), (Some(2 * SAMPLES), Some(30)));
    let payload: usize = shards::webdataset(SHARDS, PER_SHARD, 3000).samples.iter().map(|sample| sample.1.len()).sum();
    assert!(number(&figures, "bytes") >= 2.0 * payload as f64);
    let seconds = number(&figures, "seconds");
    assert!(seconds >= 0.3, "30 steps of 10 ms took {seconds} s");
    assert!(number(&figures, "first_batch_s") + number(&figures, "stall_s") <= seconds - 0.3 + 1e-3, "{figures}");
    let goodput = number(&figures, "bytes") / 1e6 / seconds;
    assert!((number(&figures, "goodput_mb_s") / goodput - 1.0).abs() < 1e-3);
    assert!(number(&figures, "cpu_s") > 0.0 && number(&figures, "requests") >= 4.0);
    assert!(number(&figures, "pinned_mb") > 0.0 && number(&figures, "pinned_mb") <= number(&figures, "host_memory_mb"));
    assert!(number(&figures, "peak_rss_mb") > number(&figures, "host_memory_mb"));

    let text =
        succeed(folder.path(), &[&["bench", PATTERN, "--fields", "jpg", "--no-digest"][..], &SMALL[..]].concat());
    assert!(text.contains("bound by: ") && text.contains("240 samples") && text.contains("--no-digest"), "{text}");
    assert!(bench(folder.path(), PATTERN, &["--no-digest"])["digest"].is_null());
}

#[test]
fn the_bytes_are_the_same_from_everywhere() {
    let folder = indexed_folder();
    let near = bench(folder.path(), PATTERN, &["--window", "100"]);
    let unavailable = Fault::new(Effect::unavailable()).on("train-").every(7).times(3);
    let reset = Fault::new(Effect::Cut { after: 1000, how: Cut::Reset }).on("train-").skip(2).times(2);
    let server = serve(&folder, Faults::none().with(unavailable).with(reset));
    let far = bench(folder.path(), &format!("{}/{PATTERN}", server.url()), &["--window", "100"]);
    assert_eq!(near["digest"], far["digest"]);
    assert!(number(&far, "retries") > 0.0 && server.stats().faults > 0, "{far}");

    let digest_of = |url: &str| {
        let args = [&["bench", url, "--tokens", "uint16:128+1", "--json"][..], &SMALL[..]].concat();
        json(folder.path(), &args)["digest"].clone()
    };
    let near = digest_of("corpus.bin");
    assert_eq!(near, digest_of(&format!("{}/corpus.bin", server.url())));
    fs::write(folder.path().join("corpus.bin"), vec![1; 100_006]).unwrap();
    let other = digest_of("corpus.bin");
    assert!(near["content"] != other["content"] && near["order"] == other["order"], "{near} {other}");
}

#[test]
fn ranks_share_one_order() {
    let folder = indexed_folder();
    let path = |name: &str| folder.path().join(name);
    let options = ["--window", "100", "--seed", "7", "--lanes", "2", "--epochs", "2", "--ids"];
    let whole = bench(folder.path(), PATTERN, &[&options[..], &["whole"]].concat());
    let [zero, one] = ["0", "1"].map(|rank| {
        let list = ["rank", rank].concat();
        let share = [&list, "--rank", rank, "--world-size", "2", "--batch-size", "8"];
        let always = ["bench", PATTERN, "--fields", "jpg,cls:int", "--json", "--host-memory", "32MiB"];
        json(folder.path(), &[&always[..], &options[..], &share[..]].concat())
    });
    for name in ["content", "order"] {
        assert_eq!(digest(&whole, name), digest(&zero, name).wrapping_add(digest(&one, name)), "{name}");
    }
    let (zero, one) = (ids(&path("rank0")), ids(&path("rank1")));
    let interleaved: Vec<u64> = zero.iter().zip(&one).flat_map(|(zero, one)| [*zero, *one]).collect();
    let whole = ids(&path("whole"));
    assert_eq!((zero.len(), one.len(), whole.len()), (240, 240, 480));
    assert_eq!(interleaved, whole);
    let mut first_epoch = whole[..240].to_vec();
    assert_ne!(first_epoch, whole[240..], "epochs differ");
    first_epoch.sort_unstable();
    assert_eq!(first_epoch, (0..SAMPLES).collect::<Vec<_>>(), "each sample once");
}

#[test]
fn a_resumed_run_delivers_the_rest() {
    let folder = indexed_folder();
    let options = ["--window", "100", "--epochs", "2", "--ids"];
    let whole = bench(folder.path(), PATTERN, &[&options[..], &["whole"]].concat());
    let all = ids(&folder.path().join("whole"));
    for (start, epoch, batch) in [(4u64, 0u64, 4u64), (15, 1, 0), (17, 1, 2)] {
        let rest =
            bench(folder.path(), PATTERN, &[&options[..], &["rest", "--start-batch", &start.to_string()]].concat());
        assert_eq!(ids(&folder.path().join("rest")), all[16 * start as usize..], "from batch {start} on");
        assert_eq!((rest["first_epoch"].as_u64(), rest["first_batch"].as_u64()), (Some(epoch), Some(batch)));
        assert_eq!(rest["batches"].as_u64(), Some(30 - start));
        assert_ne!(digest(&rest, "order"), digest(&whole, "order"));
    }
    let (status, complaint) = fail(folder.path(), &["bench", PATTERN, "--host-memory", "32MiB", "--start-batch", "4"]);
    assert!(status == 2 && complaint.contains("no batch 4"), "{complaint}");
}

#[test]
fn shards_without_an_index_are_read_once_more() {
    let folder = folder();
    let server = serve(&folder, Faults::default());
    let url = format!("{}/{PATTERN}", server.url());
    let output = run(folder.path(), &[&["bench", &url, "--fields", "jpg,cls:int"][..], &SMALL[..]].concat());
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && told.contains("no index beside the shards"), "{told}");
    let without = bench(folder.path(), &url, &[]);
    succeed(folder.path(), &["index", PATTERN]);
    let with = bench(folder.path(), &url, &[]);
    assert_eq!(without["digest"], with["digest"]);
    assert!(number(&with, "requests") <= number(&without, "requests") + 1.0, "only reads of the run count");
}

#[test]
fn damage_is_found_and_named() {
    let folder = indexed_folder();
    let shard = folder.path().join("train-0002.tar");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[520] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let args = [&["bench", PATTERN, "--fields", "jpg"][..], &SMALL[..]].concat();
    let (status, complaint) = fail(folder.path(), &args);
    assert_eq!(status, 1);
    assert!(
        complaint.contains("sample 0002/000000") && complaint.contains("train-0002.tar, bytes 512.."),
        "{complaint}"
    );
    succeed(folder.path(), &[&args[..], &["--no-verify"]].concat());
}

#[test]
fn wrong_use_exits_with_2_and_failure_with_1() {
    let folder = indexed_folder();
    let nowhere = folder.path().join("nowhere/x.ffindex").display().to_string();
    let cases: [(&[&str], i32, &str); 16] = [
        (&["bench", "missing.tar"], 1, "missing.tar: no such file"),
        (&["bench", "missing-{0..9}.tar"], 1, "missing-0.tar"),
        (&["inspect", "missing.npy"], 1, "missing.npy"),
        (&["index", "missing.tar"], 1, "missing.tar"),
        (&["index", "corpus.bin"], 1, "only tar shards have an index"),
        (&["index", PATTERN, "-o", &nowhere], 1, "no directory"),
        (&["index", PATTERN, "-o", "."], 2, "a directory"),
        (&["inspect", "corpus.bin"], 2, "tokens"),
        (&["inspect", "."], 1, "ends in /"),
        (&["inspect", PATTERN, "--from", "240"], 2, "no sample 240"),
        (&["plan", PATTERN, "--fields", "png"], 1, "there are: jpg, cls"),
        (&["plan", PATTERN, "--fields", "jpg:jpeg"], 2, "'jpeg' is no kind of field"),
        (&["plan", PATTERN, "--rank", "1"], 2, "rank 1 in a world of 1"),
        (&["plan", PATTERN, "--host-memory", "64KiB"], 2, "raise host_memory to"),
        (&["plan", "train-{0..", "--device", "host"], 2, "without its '}'"),
        (&["plan", "s3://me:secret@bucket/x.tar?secret"], 2, "no bucket is called that"),
    ];
    for (args, expected, part) in cases {
        let (status, complaint) = fail(folder.path(), args);
        assert_eq!(status, expected, "farfeed {args:?}: {complaint}");
        assert!(complaint.starts_with("farfeed: ") && complaint.contains(part), "farfeed {args:?}: {complaint}");
        assert!(!complaint.contains("secret"), "{complaint}");
    }
    for args in
        [&["bench"][..], &["bench", PATTERN, "--epochs", "0"], &["bench", PATTERN, "--host-memory", "lots"], &["fly"]]
    {
        assert_eq!(run(folder.path(), args).status.code(), Some(2), "farfeed {args:?}");
    }
}

#[test]
fn secrets_of_urls_are_used_but_not_shown() {
    let folder = indexed_folder();
    let server = serve(&folder, Faults::default());
    let address = server.address();
    let url = format!("http://me:secret@{address}/train-%7B0000..0003%7D.tar?sig=secret");
    let (status, complaint) = fail(folder.path(), &["bench", &url]);
    assert!(status == 1 && !complaint.contains("secret"), "braces that are encoded are none: {complaint}");
    let url = format!("http://me:secret@{address}/{PATTERN}?sig=secret");
    let args = |command| [&[command, url.as_str()][..], &["--fields", "jpg"], &SMALL[..]].concat();
    for output in
        [run(folder.path(), &args("bench")), run(folder.path(), &args("plan")), run(folder.path(), &["inspect", &url])]
    {
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        assert!(output.status.success() && text.contains("train-"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

#[test]
fn doctor_looks_at_everything() {
    let folder = tempfile::tempdir().unwrap();
    let report = json(folder.path(), &["doctor", "--json"]);
    let checks = report["checks"].as_array().unwrap();
    for name in [
        "kernel",
        "cores",
        "memory",
        "locked memory",
        "huge pages",
        "io_uring",
        "direct reads",
        "receive buffer",
        "driver",
        "host copies",
    ] {
        let check =
            checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"));
        assert!(["good", "fair", "bad"].contains(&check["status"].as_str().unwrap()), "{check}");
        assert!(
            !check["value"].as_str().unwrap().is_empty() && !check["meaning"].as_str().unwrap().is_empty(),
            "{check}"
        );
    }
    assert!(report["driver"]["devices"].is_array());
    assert_eq!(report["measured"].as_array().unwrap().len(), 0, "not asked for");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
}

/// With a GPU it is measured; without one it says so, and why.
#[test]
fn doctor_measures_gpus_where_there_are_any() {
    let folder = tempfile::tempdir().unwrap();
    let report = json(folder.path(), &["doctor", "--gpu", "--json"]);
    let (devices, measured) = (&report["driver"]["devices"], report["measured"].as_array().unwrap());
    assert_eq!(devices.as_array().unwrap().len(), measured.len());
    let gpu = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "gpu");
    match report["driver"]["problem"].as_str() {
        Some(problem) => assert!(gpu.unwrap()["meaning"].as_str().unwrap().contains(problem), "{report}"),
        None => {
            assert!(gpu.is_none() && measured.iter().all(|device| !device["findings"].as_array().unwrap().is_empty()))
        }
    }
}

#[test]
fn help_fits_a_narrow_terminal() {
    let folder = tempfile::tempdir().unwrap();
    for args in [
        &["--help"][..],
        &["bench", "--help"],
        &["index", "--help"],
        &["inspect", "--help"],
        &["plan", "--help"],
        &["verify", "--help"],
        &["doctor", "--help"],
        &["serve", "--help"],
    ] {
        let help = succeed(folder.path(), args);
        let long: Vec<_> = help.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(long.is_empty(), "farfeed {args:?}: {long:#?}");
    }
}

/// Changes a byte of each of these samples' `jpg` in the folder's shards.
fn damage(folder: &TempDir, samples: &[usize]) {
    let dataset = shards::webdataset(SHARDS, PER_SHARD, 3000);
    for sample in samples {
        let path = folder.path().join(format!("train-{:04}.tar", sample / PER_SHARD));
        let mut bytes = fs::read(&path).unwrap();
        let jpg = &dataset.samples[*sample].1;
        let at = bytes.windows(jpg.len()).position(|window| window == jpg).unwrap();
        bytes[at + jpg.len() / 2] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn verify_lists_what_is_bad_and_loaders_leave_it_out() {
    let folder = indexed_folder();
    let text = succeed(folder.path(), &["verify", PATTERN]);
    assert!(text.contains("4 shards, 240 samples") && text.contains("bad       none"), "{text}");
    let intact = bench(folder.path(), PATTERN, &[]);
    damage(&folder, &[7, 200]);
    let (status, complaint) = fail(folder.path(), &[&["bench", PATTERN, "--json"], &SMALL[..]].concat());
    assert!(status == 1 && complaint.contains("0000/000007"), "{complaint}");
    let output = run(folder.path(), &["verify", PATTERN, "-o", "bad.jsonl"]);
    let (text, complaint) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(
        complaint.contains("2 of 240 samples are bad") && complaint.contains("--quarantine bad.jsonl"),
        "{complaint}"
    );
    assert!(
        text.contains("bad       2 samples") && text.contains("sample 0003/000020 of train-0003.tar, field 'jpg'"),
        "{text}"
    );
    let lines = fs::read_to_string(folder.path().join("bad.jsonl")).unwrap();
    let keys: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["key"].clone()).collect();
    assert_eq!(keys, ["0000/000007", "0003/000020"]);
    let named = bench(folder.path(), PATTERN, &["--quarantine", "bad.jsonl"]);
    let skipped = bench(folder.path(), PATTERN, &["--on-error", "skip:2"]);
    for figures in [&named, &skipped] {
        assert_eq!((number(figures, "samples"), number(figures, "left_out")), (238.0, 2.0));
        assert_eq!(number(figures, "batches"), number(&intact, "batches"));
        assert_eq!(digest(figures, "content"), digest(&named, "content"));
    }
    assert_eq!(skipped["quarantine"]["entries"][1]["key"], "0003/000020");
    assert_eq!(named["quarantine"]["entries"].as_array().unwrap().len(), 0);
    let text = succeed(folder.path(), &[&["bench", PATTERN, "--on-error", "skip"], &SMALL[..]].concat());
    assert!(text.contains("left out:    2 samples") && text.contains("sample 0000/000007 of"), "{text}");
    let (status, complaint) =
        fail(folder.path(), &[&["bench", PATTERN, "--json", "--on-error", "skip:1"], &SMALL[..]].concat());
    assert!(status == 1 && complaint.contains("1 bad samples of epoch 0"), "{complaint}");
    // Lists that cannot be read or written are told before anything is.
    let (status, complaint) = fail(folder.path(), &["bench", PATTERN, "--quarantine", "train.ffindex"]);
    assert!(status == 1 && complaint.contains("train.ffindex"), "{complaint}");
    let (status, complaint) = fail(folder.path(), &["verify", PATTERN, "-o", "nowhere/bad.jsonl"]);
    assert!(status == 1 && complaint.contains("nowhere"), "{complaint}");
}

#[test]
fn verify_reads_across_a_link_and_says_so_in_one_line() {
    let folder = indexed_folder();
    damage(&folder, &[100]);
    let server = serve(&folder, Fault::new(Effect::unavailable()).every(3).times(4).into());
    let url = format!("{}/{PATTERN}", server.url());
    let output = run(folder.path(), &["verify", &url, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((number(&report, "samples"), number(&report, "bad")), (240.0, 1.0));
    assert_eq!(report["first"][0]["key"], "0001/000040");
    fs::remove_file(folder.path().join("train-0002.tar")).unwrap();
    let output = run(folder.path(), &["verify", &url, "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((number(&report, "bad"), number(&report, "entries")), (61.0, 2.0));
}
