use super::super::Loader;
use super::*;
use crate::store::{Fault, FaultStore, MemoryStore, Store, Throttle, ThrottleStore};

const CODES: [(&str, Dtype); 4] = [("F32", Dtype::F32), ("BF16", Dtype::BF16), ("U8", Dtype::U8), ("I64", Dtype::I64)];

/// A tensor as it was written.
struct Written {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// Tensors of many sizes, some without elements, some longer than a read; each byte says which and where.
fn model(files: usize) -> (Arc<MemoryStore>, Vec<Written>) {
    let store = MemoryStore::new();
    let mut all = Vec::new();
    for file in 0..files {
        let (mut table, mut data) = (serde_json::Map::new(), Vec::new());
        table.insert("__metadata__".into(), serde_json::json!({"format": "pt", "file": file.to_string()}));
        for number in 0..30 {
            let (code, dtype) = CODES[number % CODES.len()];
            let shape = match number {
                7 => vec![1500, 1000],
                11 => vec![0, 3],
                12 => vec![],
                _ => vec![number + 1, 3 * file + 7],
            };
            let len = shape.iter().product::<usize>() * dtype.bytes();
            let bytes: Vec<u8> =
                (0..len).map(|at| (at * 7 + number * 31 + file * 97) as u8 ^ (at >> 8) as u8).collect();
            let name = format!("{file}.layer.{number}");
            let offsets = [data.len(), data.len() + len];
            table.insert(name.clone(), serde_json::json!({"dtype": code, "shape": shape, "data_offsets": offsets}));
            data.extend_from_slice(&bytes);
            all.push(Written { name, dtype, shape, bytes });
        }
        // The second file's header is longer than what is read first.
        let pad = if file == 1 { HEAD_BYTES as usize } else { 5 };
        let text = serde_json::Value::Object(table).to_string() + &" ".repeat(pad);
        let mut object = (text.len() as u64).to_le_bytes().to_vec();
        object.extend_from_slice(text.as_bytes());
        object.extend_from_slice(&data);
        store.put(format!("m-{file}.safetensors"), object);
    }
    (store, all)
}

fn load(store: Arc<dyn Store>, pattern: &str) -> LoaderBuilder {
    Loader::builder(format!("memory:{pattern}")).store(store).host_memory(ByteSize::mib(32))
}

#[test]
fn every_tensor_is_where_and_what_it_should_be() {
    let (store, all) = model(3);
    let weights = load(store, "m-{0..2}.safetensors").load_weights().unwrap();
    assert_eq!((weights.len(), weights.tensors().count()), (all.len(), all.len()));
    for Written { name, dtype, shape, bytes } in &all {
        let tensor = weights.tensor(name).unwrap();
        match weights.view::<f32>(name) {
            Ok(view) => {
                assert!(*dtype == Dtype::F32 && view.shape() == shape, "{name}");
                assert!(
                    view.as_slice().unwrap().iter().flat_map(|value| value.to_le_bytes()).eq(bytes.iter().copied())
                );
            }
            Err(error) => assert!(*dtype != Dtype::F32 && error.kind() == Kind::Config, "{error}"),
        }
        assert_eq!((tensor.dtype, tensor.shape, tensor.len), (*dtype, shape.as_slice(), bytes.len()), "{name}");
        assert!(tensor.bytes == Some(bytes.as_slice()) && weights.read_back(name).unwrap() == *bytes, "{name}");
        assert_eq!(tensor.pointer % 256, 0, "{name}");
    }
    assert_eq!(weights.metadata().get("file").map(String::as_str), Some("0"));
    assert_eq!(weights.payload_bytes(), all.iter().map(|tensor| tensor.bytes.len() as u64).sum::<u64>());
    assert!(weights.stats().fetch.bytes >= weights.payload_bytes());
    let error = weights.tensor("layer").unwrap_err();
    assert!(error.kind() == Kind::NotFound && error.to_string().contains("'0.layer."), "{error}");
}

#[test]
fn faults_on_the_way_are_survived() {
    let (store, all) = model(2);
    let cut = Fault::Cut { after: 100_000 };
    let fail = Fault::Fail { kind: Kind::Throttled, transient: true };
    let store = FaultStore::seeded(store, 5, 300, [cut, fail]);
    let weights = load(Arc::clone(&store) as _, "m-{0..1}.safetensors").load_weights().unwrap();
    assert!(store.faults() > 0);
    assert!(all.iter().all(|t| weights.tensor(&t.name).unwrap().bytes == Some(t.bytes.as_slice())));
}

#[test]
fn reads_are_side_by_side_and_memory_is_bounded() {
    let (store, _) = model(3);
    // Long, so that what a busy machine adds is little beside it.
    let latency = Duration::from_millis(200);
    let store = ThrottleStore::new(store, Throttle { latency, bytes_per_second: 0, requests: 0 });
    let began = Instant::now();
    let weights = load(store, "m-{0..2}.safetensors").load_weights().unwrap();
    // One after the other are sizes, heads, the one longer head, and tensors; the reads of each are side by side.
    let reads = weights.stats().requests as u32;
    assert!(reads >= 9 && began.elapsed() < latency * reads, "{reads} reads in {:?}", began.elapsed());
}

#[test]
fn what_cannot_be_is_refused() {
    let (store, _) = model(1);
    let whole = load(Arc::clone(&store) as _, "m-0.safetensors");
    let refused = |builder: LoaderBuilder, kind: Kind, part: &str| {
        let error = builder.load_weights().unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(part), "{error}");
    };
    refused(whole.clone().and("memory:m-0.safetensors"), Kind::Config, "is in memory:m-0.safetensors and in");
    refused(whole.clone().host_memory(ByteSize::mib(1)), Kind::Config, "host_memory is 1.0 MiB");
    refused(whole.clone().device_memory(ByteSize::mib(1)), Kind::Device, "device_memory is 1.0 MiB");
    refused(load(Arc::clone(&store) as _, "m-{1..3}.safetensors"), Kind::NotFound, "m-1");
    store.put("short.safetensors", &b"{}"[..]);
    refused(load(Arc::clone(&store) as _, "short.safetensors"), Kind::Corrupt, "short.safetensors");
    store.put("empty.safetensors", [&2u64.to_le_bytes()[..], b"{}"].concat());
    let empty = load(store, "empty.safetensors").load_weights().unwrap();
    assert!(empty.is_empty() && empty.payload_bytes() == 0);
}
