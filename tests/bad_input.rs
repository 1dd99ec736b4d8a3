//! Bytes that are not what they claim: an error of its kind that names the shard, the place and the way out; nothing is skipped
//! in silence, nothing hangs.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

#[path = "fixture/shards.rs"]
mod shards;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use farfeed::dataset::{Dtype, Index};
use farfeed::emulate::{Effect, Fault as Mishap, Faults, Link, Server, Site};
use farfeed::fetch::{Hedge, RetryPolicy};
use farfeed::loader::LoaderBuilder;
use farfeed::store::{Fault, FaultStore, MemoryStore, Store};
use farfeed::{ByteSize, Error, Field, Kind, Loader, Tokens};
use shards::{INDEX, WebDataset};

static DATASET: LazyLock<WebDataset> = LazyLock::new(|| shards::webdataset(3, 20, 2000));

/// Two seconds are for ever here.
const POLICY: RetryPolicy = RetryPolicy {
    patience: Duration::from_secs(2),
    idle: Duration::from_secs(1),
    rate_min: 16 << 10,
    hedge: Hedge::per_mille(20),
    pause_min: Duration::from_millis(1),
    pause_max: Duration::from_millis(20),
};

fn options(pattern: impl Into<String>) -> LoaderBuilder {
    Loader::builder(pattern)
        .batch_size(8)
        .epochs(1)
        .retry(POLICY)
        .patience(Duration::from_secs(10))
        .page_size(ByteSize::bytes(4096))
        .block_size(ByteSize::bytes(8192))
        .host_memory(ByteSize::mib(4))
}

fn over(store: Arc<dyn Store>, pattern: &str) -> LoaderBuilder {
    options(pattern).store(store)
}

/// One object, and a loader of it.
fn one(name: &str, bytes: impl Into<Arc<[u8]>>) -> LoaderBuilder {
    let store = MemoryStore::new();
    store.put(name, bytes);
    over(store, &format!("memory:{name}"))
}

/// What is delivered before the error, in samples, and the error.
fn read(options: LoaderBuilder) -> (Vec<u64>, Option<Error>) {
    let loader = match options.build() {
        Ok(loader) => loader,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut ids = Vec::new();
    for batch in loader.epoch(0) {
        match batch {
            Ok(batch) => ids.extend_from_slice(batch.ids()),
            Err(error) => {
                let slab = loader.slab().clone();
                drop(loader);
                assert_eq!(slab.usage().free, slab.pages(), "an error keeps no page");
                return (ids, Some(error));
            }
        }
    }
    (ids, None)
}

/// The error has this kind, says these words, and what to do.
#[track_caller]
fn fails(options: LoaderBuilder, kind: Kind, words: &[&str]) -> Vec<u64> {
    let (ids, error) = read(options);
    let error = error.unwrap_or_else(|| panic!("{} samples and no error", ids.len()));
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "'{word}' is not in: {text}");
    }
    assert!(error.next_step().is_some(), "no advice: {text}");
    ids
}

fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    members.iter().for_each(|(name, bytes)| shards::append(&mut archive, name, bytes));
    archive.into_inner().unwrap()
}

fn shard(number: usize) -> Vec<u8> {
    DATASET.shards[&format!("train-{number:04}.tar")].clone()
}

#[test]
fn tar_files_that_are_broken_are_found_out_while_indexing() {
    let whole = shard(0);
    let key = "broken.tar";
    for cut in [1, 511, 512, 700, whole.len() / 2, whole.len() - 1024] {
        fails(one(key, &whole[..cut]), Kind::Corrupt, &["memory:broken.tar", "byte"]);
    }
    fails(one(key, &b""[..]), Kind::Corrupt, &["memory:broken.tar", "no bytes"]);
    // A bit in the second header.
    let second = 512 + (1000usize).next_multiple_of(512);
    let mut damaged = whole.clone();
    damaged[second + 3] ^= 0x10;
    fails(one(key, damaged), Kind::Corrupt, &["memory:broken.tar", &format!("byte {second}")]);
    // A size that lies, with a checksum that holds.
    let mut lying = tar_of(&[("a.jpg", b"123")]);
    let mut header = tar::Header::new_ustar();
    header.set_path("a.jpg").unwrap();
    header.set_size(1 << 40);
    header.set_mode(0o644);
    header.set_cksum();
    lying[..512].copy_from_slice(header.as_bytes());
    fails(one(key, lying), Kind::Corrupt, &["memory:broken.tar", "a.jpg", "1099511627776"]);
    fails(one(key, [0x1f_u8, 0x8b, 8, 0].repeat(300)), Kind::Unsupported, &["gzip"]);
    fails(one(key, shards::noise(1, 5000)), Kind::Corrupt, &["memory:broken.tar", "no tar archive"]);
    fails(one(key, vec![0; 1024]), Kind::Config, &["no sample in 1 shards"]);
    fails(one(key, tar_of(&[("a.jpg", b"1"), ("a.jpg", b"2")])), Kind::Corrupt, &["sample 'a'", "'jpg' a second time"]);
}

#[test]
fn an_empty_shard_among_others_is_no_error() {
    let store = MemoryStore::new();
    store.put("a-0.tar", vec![0; 1024]);
    store.put("a-1.tar", shard(1));
    store.put("a-2.tar", vec![0; 1024]);
    let (ids, error) = read(over(store, "memory:a-{0..2}.tar"));
    assert!(error.is_none(), "{error:?}");
    assert_eq!(ids, (0..20).collect::<Vec<_>>());
}

#[test]
fn shards_and_fields_that_are_missing_are_named() {
    let store = DATASET.memory();
    fails(over(store.clone(), "memory:data/train-{0000..0003}.tar"), Kind::NotFound, &["train-0003.tar"]);
    fails(over(store.clone(), "memory:data/other-0000.tar"), Kind::NotFound, &["memory:data/other-0000.tar"]);
    fails(over(store.clone(), "memory:elsewhere/"), Kind::NotFound, &["memory:elsewhere/"]);
    fails(over(store.clone(), "memory:data/train.ffindex"), Kind::Unsupported, &["unknown format"]);
    fails(over(store.clone(), &DATASET.pattern("memory:")).index("memory:none"), Kind::NotFound, &["memory:none"]);
    fails(over(store.clone(), "ftp://host/x.tar"), Kind::Unsupported, &["ftp://"]);
    let png = over(store, &DATASET.pattern("memory:")).field("png", Field::bytes());
    fails(png, Kind::NotFound, &["'png'", "jpg, cls"]);
    let holes = one("x.tar", tar_of(&[("a.jpg", b"1"), ("a.cls", b"1"), ("b.jpg", b"2"), ("c.jpg", b"2")]));
    fails(holes.clone().field("cls", Field::int()), Kind::Config, &["2 samples have no field 'cls'", "the first is b"]);
    fails(holes.clone(), Kind::Config, &["no field 'cls'"]);
    assert_eq!(read(holes.field("jpg", Field::bytes())).0, [0, 1, 2]);
    // The index knows a shard that is gone.
    let store = MemoryStore::new();
    store.put(INDEX, DATASET.index().encode());
    store.put("data/train-0000.tar", shard(0));
    store.put("data/train-0002.tar", shard(2));
    let ids = fails(over(store, &DATASET.pattern("memory:")), Kind::NotFound, &["data/train-0001.tar"]);
    assert_eq!(ids, (0..16).collect::<Vec<_>>(), "what comes before it is delivered");
}

#[test]
fn an_index_of_something_else_is_found_out() {
    let with = |bytes: Vec<u8>| {
        let store = DATASET.memory();
        store.put("data/train-0001.tar", bytes);
        over(store, &DATASET.pattern("memory:"))
    };
    // Another size.
    let ids = fails(with(shard(1)[..20_000].to_vec()), Kind::Corrupt, &["data/train-0001.tar", "20000"]);
    assert_eq!(ids, (0..16).collect::<Vec<_>>());
    let longer = [shard(1), vec![0; 512]].concat();
    fails(with(longer), Kind::Corrupt, &["data/train-0001.tar"]);
    // The same size, other content: one byte of one field.
    let mut other = shard(1);
    let place = other.windows(32).position(|window| window == &DATASET.samples[27].1[..32]).unwrap();
    other[place + 40] ^= 1;
    let span = format!("bytes {place}..");
    let ids = fails(with(other.clone()), Kind::Corrupt, &["train-0001.tar", "0001/000007", "'jpg'", &span, "crc32c"]);
    assert_eq!(ids, (0..24).collect::<Vec<_>>());
    // Whoever turns that off gets what is there.
    assert_eq!(read(with(other).verify(false)).0.len(), 60);
    // No index at all, and one that was cut.
    for (index, kind, word) in [
        (b"not an index".to_vec(), Kind::Corrupt, "memory:data/train.ffindex"),
        (DATASET.index().encode()[..200].to_vec(), Kind::Corrupt, "memory:data/train.ffindex"),
        (Vec::new(), Kind::Corrupt, "memory:data/train.ffindex"),
        (Index::new(DATASET.index().shards()[..2].to_vec()).encode(), Kind::NotFound, "train-0002.tar"),
    ] {
        let store = DATASET.memory();
        store.put(INDEX, index);
        fails(over(store, &DATASET.pattern("memory:")), kind, &[word]);
    }
}

#[test]
fn an_object_that_changes_under_way_is_found_out() {
    let store = DATASET.memory();
    let loader = over(store.clone(), &DATASET.pattern("memory:"))
        .batches_ahead(1)
        .in_flight(ByteSize::bytes(1))
        .host_memory(ByteSize::bytes(40 * 4096))
        .epochs(9)
        .build()
        .unwrap();
    let mut epoch = loader.epoch(0);
    assert_eq!(epoch.next().unwrap().unwrap().ids()[0], 0);
    // The same bytes: but who is to know?
    store.put("data/train-0000.tar", shard(0));
    let error = (0..9).find_map(|epoch| loader.epoch(epoch).find_map(Result::err)).unwrap();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("data/train-0000.tar: the object changed"), "{error}");
    // A new start does not make it the same object.
    let error = (0..9).find_map(|epoch| loader.epoch(epoch).find_map(Result::err)).unwrap();
    assert!(error.to_string().contains("the object changed"), "{error}");
}

#[test]
fn records_that_change_while_a_body_is_resumed_are_never_mixed() {
    // There is no digest for records: the version alone tells. The first read is cut, and what follows is of another version.
    #[derive(Debug)]
    struct Changing(Arc<MemoryStore>, Arc<dyn Store>);
    impl Store for Changing {
        fn root(&self) -> &str {
            self.1.root()
        }
        fn appetite(&self) -> farfeed::store::Appetite {
            self.1.appetite()
        }
        fn head<'a>(&'a self, key: &'a str) -> farfeed::store::StoreFuture<'a, farfeed::store::ObjectMeta> {
            self.1.head(key)
        }
        fn read<'a>(
            &'a self,
            request: &'a farfeed::store::ReadRequest,
            landing: &'a mut farfeed::memory::Landing,
        ) -> farfeed::store::StoreFuture<'a, farfeed::store::Arrival> {
            Box::pin(async move {
                let outcome = self.1.read(request, landing).await;
                if outcome.is_err() {
                    self.0.put("t.bin", vec![2_u8; 8000]);
                }
                outcome
            })
        }
        fn per_reactor(self: Arc<Self>) -> Arc<dyn Store> {
            self
        }
    }
    let store = MemoryStore::new();
    store.put("t.bin", vec![1_u8; 8000]);
    let cut = FaultStore::scripted(store.clone(), [(0, Fault::Cut { after: 3000 })]);
    let loader = over(Arc::new(Changing(store, cut)), "memory:t.bin")
        .tokens(Tokens::new(Dtype::U8, 8000))
        .block_size(ByteSize::bytes(8000))
        .host_memory(ByteSize::mib(1))
        .build()
        .unwrap();
    let batch = loader.epoch(0).next().unwrap().unwrap();
    let row = batch.dense("tokens").unwrap().bytes.unwrap().to_vec();
    assert!(row.iter().all(|byte| *byte == row[0]), "a sample of two versions");
}

#[test]
fn values_that_are_not_what_was_asked_for_name_sample_and_bytes() {
    let with = |name: &str, value: &[u8], field: Field| {
        let good: &[u8] = if name.ends_with("json") { b"{}" } else { b"5" };
        let file = |key: &str| format!("{key}.{name}");
        let members: Vec<(String, &[u8])> =
            (0..12).map(|n| (file(&format!("{n:03}")), if n == 9 { value } else { good })).collect();
        let members: Vec<(&str, &[u8])> = members.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
        one("v.tar", tar_of(&members)).field(name, field)
    };
    let place = format!("bytes {}..", 9 * 1024 + 512);
    let named = ["memory:v.tar", "sample 009", place.as_str()];
    for value in [&b"five"[..], b"", b"1e3", b"99999999999999999999", b"\xff\xfe", &[b'1'; 100]] {
        let ids =
            fails(with("cls", value, Field::int()), Kind::Corrupt, if value.is_empty() { &named[..2] } else { &named });
        assert_eq!(ids, (0..8).collect::<Vec<_>>());
    }
    fails(with("score", b"pi", Field::float()), Kind::Corrupt, &named);
    for value in [&b"{\"a\": "[..], b"{} {}", b"", b"'a'"] {
        let words = if value.is_empty() { &named[..2] } else { &named };
        fails(with("json", value, Field::json()), Kind::Corrupt, words);
    }
    fails(with("cls", b"55", Field::array(Dtype::U8, &[1])), Kind::Corrupt, &named);
    // As bytes everything goes.
    assert_eq!(read(with("json", b"{\"a\": ", Field::bytes())).0.len(), 12);
}

fn npy(header: &str, payload: &[u8]) -> Vec<u8> {
    let mut header = header.to_owned().into_bytes();
    header.resize((10 + header.len() + 1).next_multiple_of(64) - 11, b' ');
    header.push(b'\n');
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], &header, payload].concat()
}

#[test]
fn arrays_whose_headers_lie_are_found_out() {
    let header =
        |descr: &str, shape: &str| format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    let good = npy(&header("<f4", "(6, 2)"), &[1; 48]);
    assert_eq!(read(one("x.npy", good.clone())).0, (0..6).collect::<Vec<_>>());
    // More rows than there are bytes.
    fails(one("x.npy", npy(&header("<f4", "(60, 2)"), &[1; 48])), Kind::Corrupt, &["memory:x.npy", "480 bytes"]);
    fails(one("x.npy", npy(&header("<f8", "(6, 2)"), &[1; 48])), Kind::Corrupt, &["memory:x.npy", "96 bytes"]);
    fails(one("x.npy", good[..100].to_vec()), Kind::Corrupt, &["memory:x.npy"]);
    fails(one("x.npy", b"PK\x03\x04".repeat(9)), Kind::Corrupt, &["memory:x.npy"]);
    fails(one("x.npy", npy(&header(">f4", "(6, 2)"), &[1; 48])), Kind::Unsupported, &["memory:x.npy", ">f4"]);
    fails(one("x.npy", npy(&header("<f4", "(0, 2)"), &[])), Kind::Config, &["no sample in 1 shards"]);
    let store = MemoryStore::new();
    store.put("a-0.npy", good.clone());
    store.put("a-1.npy", npy(&header("<f4", "(4, 3)"), &[1; 48]));
    fails(over(store, "memory:a-{0..1}.npy"), Kind::Config, &["memory:a-1.npy", "memory:a-0.npy"]);
    // In a tar file: of another type, another shape, or cut short.
    let field = Field::array(Dtype::F32, &[2]);
    let inside = |value: &[u8]| one("v.tar", tar_of(&[("0.npy", value)])).field("npy", field.clone());
    assert_eq!(read(inside(&npy(&header("<f4", "(2,)"), &[1; 8]))).0, [0]);
    for (value, word) in [
        (npy(&header("<i4", "(2,)"), &[1; 8]), "int32"),
        (npy(&header("<f4", "(3,)"), &[1; 12]), "[3]"),
        (npy(&header("<f4", "(2,)"), &[1; 7]), "float32 [2]"),
        (vec![1; 9], "float32 [2]"),
        (Vec::new(), "float32 [2]"),
    ] {
        fails(inside(&value), Kind::Corrupt, &["memory:v.tar", "sample 0", word]);
    }
}

#[test]
fn tokens_that_do_not_come_out_even_are_counted_or_refused() {
    let options = || one("t.bin", vec![1_u8; 2050]).tokens(Tokens::new(Dtype::U16, 100).with_next());
    let loader = options().build().unwrap();
    // 1,025 tokens: ten samples of 100 and their next one, and 24 that fill none.
    assert_eq!((loader.dataset().samples(), loader.dataset().remainder()), (10, 24));
    assert!(loader.plan().to_string().contains("24 elements"), "{}", loader.plan());
    assert_eq!(read(options()).0.len(), 10);
    fails(
        one("t.bin", vec![1_u8; 2051]).tokens(Tokens::new(Dtype::U16, 100)),
        Kind::Corrupt,
        &["memory:t.bin", "2051"],
    );
    fails(
        one("t.bin", vec![1_u8; 100]).tokens(Tokens::new(Dtype::U16, 100)),
        Kind::Config,
        &["no sample", "50 elements"],
    );
    fails(one("t.bin", Vec::new()).tokens(Tokens::new(Dtype::U16, 100)), Kind::Config, &["no sample"]);
    fails(one("t.bin", vec![1_u8; 100]), Kind::Config, &["memory:t.bin", "`tokens`"]);
    fails(one("t.bin", vec![1_u8; 100]).tokens(Tokens::new(Dtype::U16, 0)), Kind::Config, &["uint16"]);
}

#[test]
fn servers_that_misbehave_are_told_apart() {
    let server = Server::start(Site::objects(DATASET.site()), Link::default(), Faults::none()).unwrap();
    let pattern = DATASET.pattern(&format!("{}/", server.url()));
    let cases = [
        (Effect::IgnoreRange, Kind::Unsupported, "ignores Range"),
        (Effect::WrongETag, Kind::Corrupt, "the object changed"),
        (Effect::WrongContentRange, Kind::Corrupt, "the object has"),
        (Effect::RedirectLoop, Kind::Unsupported, "redirect loop"),
        (Effect::Status { status: 404, retry_after: None }, Kind::NotFound, "HTTP 404"),
        (Effect::Status { status: 403, retry_after: None }, Kind::Auth, "HTTP 403"),
        (Effect::Corrupt { at: 3 }, Kind::Corrupt, "crc32c"),
    ];
    for (effect, kind, word) in cases {
        // While reading samples: the index and the first read of each shard have come.
        server.set_faults(Mishap::new(effect.clone()).on("train-0001.tar").skip(2)).unwrap();
        let ids = fails(options(&pattern).requests(1), kind, &["train-0001.tar", word]);
        assert!(ids.len() >= 16, "{effect:?}: what does not need it is delivered: {ids:?}");
        // While indexing, or reading the index.
        if !matches!(effect, Effect::WrongETag | Effect::Corrupt { .. } | Effect::Status { status: 404, .. }) {
            server.set_faults(Mishap::new(effect).on("ffindex")).unwrap();
            assert!(fails(options(&pattern), kind, &["train.ffindex", word]).is_empty());
        }
    }
    // Damaged once on the way: fetched again.
    server.set_faults(Mishap::new(Effect::Corrupt { at: 700 }).on("train-0001.tar").nth(2)).unwrap();
    let loader = options(&pattern).field("jpg", Field::bytes()).field("cls", Field::int()).requests(1).build().unwrap();
    assert_eq!(loader.epoch(0).map(|batch| DATASET.check(&batch.unwrap())).count(), 8);
    assert_eq!((server.stats().faults > 0, loader.stats().fields_read_again), (true, 1));
    // Something that never ends: patience does.
    server.set_faults(Mishap::new(Effect::unavailable())).unwrap();
    let error = read(options(&pattern)).1.unwrap();
    assert!(error.kind() == Kind::Throttled && error.to_string().contains("train.ffindex"), "{error}");
}
