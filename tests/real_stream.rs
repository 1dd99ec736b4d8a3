//! Files that webdataset, GNU tar, tarfile and NumPy wrote, through the whole loader: every byte of every batch is what their own
//! readers find.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

#[path = "fixture/real.rs"]
mod real;

use std::time::Duration;

use farfeed::dataset::Dtype;
use farfeed::emulate::{Cut, Effect, Fault, Faults, Link, Server, Site};
use farfeed::fetch::RetryPolicy;
use farfeed::loader::LoaderBuilder;
use farfeed::order::Shuffle;
use farfeed::{ByteSize, Field, Kind, Loader, Tokens};
use real::{Content, RealData, Sample};

const TRAIN: &str = "train-{0000..0003}.tar";

fn content(bytes: &[u8]) -> Content {
    Content { bytes: bytes.len() as u64, crc32c: crc_fast::crc32_iscsi(bytes) }
}

fn options(url: String) -> LoaderBuilder {
    let retry =
        RetryPolicy { idle: Duration::from_secs(1), pause_max: Duration::from_millis(200), ..RetryPolicy::default() };
    Loader::builder(url)
        .batch_size(24)
        .block_size(ByteSize::bytes(100_000))
        .shuffle(Shuffle::window(90).seed(11))
        .host_memory(ByteSize::mib(32))
        .retry(retry)
        .patience(Duration::from_secs(60))
        .epochs(2)
}

/// Where the files are read from: as paths, as URLs of them, and over a long link that loses a request now and then.
fn everywhere(real: &RealData, check: impl Fn(&str)) {
    check(&format!("{}/", real.dir.display()));
    check(&format!("file://{}/", real.dir.display()));
    let link = Link { rtt: Duration::from_millis(15), rate_bytes_s: Some(60_000_000), ..Link::default() };
    let faults = Faults::none()
        .with(Fault::new(Effect::Cut { after: 30_000, how: Cut::Reset }).every(11))
        .with(Fault::new(Effect::unavailable()).every(13));
    let server = Server::start(Site::directory(&real.dir), link, faults).unwrap();
    check(&format!("{}/", server.url()));
    assert!(server.stats().faults > 0, "something went wrong on the way");
}

/// Reads two epochs of tar files and compares every field of every sample.
fn check_samples(options: LoaderBuilder, expected: &[&Sample]) {
    let loader = options.field("jpg", Field::bytes()).field("cls", Field::int()).build().unwrap();
    for epoch in 0..2 {
        let mut seen = vec![false; expected.len()];
        for batch in loader.epoch(epoch) {
            let batch = batch.unwrap();
            let (jpgs, labels) = (batch.ragged("jpg").unwrap(), batch.ints("cls").unwrap());
            for (row, id) in batch.ids().iter().enumerate() {
                let sample = expected[*id as usize];
                assert_eq!(batch.key(row).unwrap(), sample.key);
                assert_eq!(content(jpgs.row(row).unwrap()), sample.fields["jpg"], "{}", sample.key);
                assert_eq!(content(labels[row].to_string().as_bytes()), sample.fields["cls"], "{}", sample.key);
                assert!(!std::mem::replace(&mut seen[*id as usize], true), "{} came twice", sample.key);
            }
        }
        assert!(seen.iter().all(|seen| *seen));
    }
    let slab = loader.slab().clone();
    drop(loader);
    assert_eq!(slab.usage().free, slab.pages());
}

#[test]
fn photographs_arrive_as_webdataset_wrote_them() {
    let real = RealData::obtain();
    let samples: Vec<&Sample> =
        (0..4).flat_map(|shard| &real.manifest.tars[&format!("train-{shard:04}.tar")].samples).collect();
    assert_eq!(samples.len(), 256);
    everywhere(&real, |root| {
        check_samples(options(format!("{root}{TRAIN}")), &samples);
        // Not every sample has a description: left out in silence is none of them.
        let error = options(format!("{root}{TRAIN}")).field("json", Field::json()).build().unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.to_string().contains("have no field 'json', the first is photo/000009"), "{error}");
    });
}

#[test]
fn archives_of_other_writers_too() {
    let real = RealData::obtain();
    everywhere(&real, |root| {
        for name in ["gnu.tar", "pax.tar", "ustar.tar"] {
            let samples: Vec<&Sample> = real.manifest.tars[name].samples.iter().collect();
            check_samples(options(format!("{root}{name}")), &samples);
            let loader = options(format!("{root}{name}")).field("json", Field::json()).build().unwrap();
            for batch in loader.epoch(1) {
                let batch = batch.unwrap();
                let texts = batch.ragged("json").unwrap();
                for ((id, text), parsed) in batch.ids().iter().zip(texts.iter()).zip(batch.json("json").unwrap()) {
                    assert_eq!(content(text), samples[*id as usize].fields["json"]);
                    assert_eq!(parsed["box"].as_array().unwrap().len(), 4);
                }
            }
        }
    });
}

#[test]
fn arrays_and_tokens_arrive_as_numpy_wrote_them() {
    let real = RealData::obtain();
    everywhere(&real, |root| {
        for (name, records) in &real.manifest.records {
            let options = options(format!("{root}{name}"));
            let (options, column) = match name.strip_suffix(".bin") {
                Some(_) => (options.tokens(Tokens::new(Dtype::U16, records.shape[0] - 1).with_next()), "tokens"),
                None => (options, "data"),
            };
            let loader = options.build().unwrap();
            for epoch in 0..2 {
                let mut rows = 0;
                for batch in loader.epoch(epoch) {
                    let batch = batch.unwrap();
                    let data = batch.dense(column).unwrap();
                    assert_eq!((data.dtype.name(), &data.shape[1..]), (records.dtype.as_str(), &records.shape[..]));
                    let row_bytes = data.len / batch.len();
                    for (id, row) in batch.ids().iter().zip(data.bytes.unwrap().chunks(row_bytes)) {
                        assert_eq!(content(row), records.rows[*id as usize], "{name}, row {id}");
                    }
                    rows += batch.len();
                }
                assert_eq!(rows, records.rows.len(), "{name}");
            }
        }
    });
}
