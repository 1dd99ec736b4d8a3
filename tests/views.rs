//! Columns as typed slices of the batch's own memory, whatever their neighbours' lengths.

use farfeed::dataset::Dtype;
use farfeed::loader::Element;
use farfeed::order::Shuffle;
use farfeed::store::MemoryStore;
use farfeed::{Batch, ByteSize, Field, Kind, Loader};

const SAMPLES: usize = 100;
/// Odd, so that columns have every length.
const BATCH: usize = 7;

/// Text, label, float32, float16 as bits, float64, bools.
type Sample = (Vec<u8>, i64, [f32; 3], [u16; 5], [f64; 1], [u8; 3]);

fn sample(number: usize) -> Sample {
    let n = number as u16;
    let text = vec![number as u8; number * 13 % 50];
    let halves = [n, n + 1, n + 2, n + 3, n + 4];
    (text, -(number as i64), [0.5, n as f32, -1.0], halves, [n as f64 / 3.0], [n as u8, n as u8 % 2, 1])
}

fn shard() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for number in 0..SAMPLES {
        let (text, label, floats, halves, double, flags) = sample(number);
        let floats: Vec<u8> = floats.iter().flat_map(|value| value.to_le_bytes()).collect();
        let halves: Vec<u8> = halves.iter().flat_map(|value| value.to_le_bytes()).collect();
        let double: Vec<u8> = double.iter().flat_map(|value| value.to_le_bytes()).collect();
        let label = label.to_string();
        let members: [(&str, &[u8]); 6] = [
            ("txt", &text),
            ("cls", label.as_bytes()),
            ("floats", &floats),
            ("halves", &halves),
            ("double", &double),
            ("flags", &flags),
        ];
        for (extension, bytes) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, format!("{number:04}.{extension}"), bytes).expect("memory");
        }
    }
    archive.into_inner().expect("memory")
}

fn loader() -> Loader {
    let store = MemoryStore::new();
    store.put("train.tar", shard());
    Loader::builder("memory:train.tar")
        .store(store)
        .field("flags", Field::array(Dtype::Bool, &[3]))
        .field("txt", Field::bytes())
        .field("double", Field::array(Dtype::F64, &[1]))
        .field("halves", Field::array(Dtype::F16, &[5]))
        .field("cls", Field::int())
        .field("floats", Field::array(Dtype::F32, &[3]))
        .batch_size(BATCH as u32)
        .shuffle(Shuffle::window(50).seed(3))
        .host_memory(ByteSize::mib(16))
        .epochs(1)
        .build()
        .expect("the loader is built")
}

/// The whole column, which is the batch's memory: nothing was copied for it.
fn slice<'b, T: Element>(batch: &'b Batch, column: &str, row: &[usize]) -> &'b [T] {
    let view = batch.view::<T>(column).expect("it holds that");
    assert_eq!(view.shape(), [&[batch.len()], row].concat(), "{column}");
    let slice = view.as_slice().expect("the host can read it, and it is aligned");
    assert_eq!(batch.dense(column).expect("it is dense").pointer, slice.as_ptr() as u64);
    assert_eq!(view.pointer() % 256, 0, "{column}");
    assert_eq!(view.to_vec().expect("it is here").len(), slice.len());
    slice
}

#[test]
fn every_column_is_a_slice_of_its_type() {
    let loader = loader();
    let mut seen = 0;
    for batch in loader.epoch(0) {
        let batch = batch.expect("it comes");
        let (labels, floats) = (slice::<i64>(&batch, "cls", &[]), slice::<f32>(&batch, "floats", &[3]));
        let (doubles, flags) = (slice::<f64>(&batch, "double", &[1]), slice::<u8>(&batch, "flags", &[3]));
        let texts = batch.ragged_view("txt").expect("it is ragged");
        let (values, offsets) = (texts.values.as_slice().expect("here"), texts.offsets.as_slice().expect("here"));
        assert_eq!((texts.offsets.shape(), offsets.len()), (&[batch.len() + 1][..], batch.len() + 1));
        let bounds: Vec<usize> = offsets.iter().map(|offset| *offset as usize).collect();
        assert_eq!(bounds, batch.ragged("txt").expect("it is ragged").offsets());
        for (row, id) in batch.ids().iter().enumerate() {
            let (text, label, three, halves, double, bits) = sample(*id as usize);
            assert_eq!((labels[row], doubles[row]), (label, double[0]));
            assert_eq!((&floats[row * 3..][..3], &flags[row * 3..][..3]), (&three[..], &bits[..]));
            assert_eq!(&values[bounds[row]..bounds[row + 1]], text);
            #[cfg(feature = "half")]
            assert!(slice::<half::f16>(&batch, "halves", &[5])[row * 5..][..5].iter().map(|h| h.to_bits()).eq(halves));
            #[cfg(not(feature = "half"))]
            let _ = halves;
        }
        seen += batch.len();
    }
    assert_eq!(seen, SAMPLES);
}

#[test]
fn the_wrong_type_is_refused_with_the_right_one() {
    let loader = loader();
    let batch = loader.epoch(0).next().expect("there is one").expect("it comes");
    for (column, error, right) in [
        ("halves", batch.view::<u16>("halves").err(), "half::f16"),
        ("cls", batch.view::<u64>("cls").err(), "i64"),
        ("flags", batch.view::<i8>("flags").err(), "u8"),
        ("txt", batch.view::<u8>("txt").err(), "ragged_view"),
    ] {
        let error = error.expect("it is refused");
        assert_eq!(error.kind(), Kind::Config);
        let advice = error.next_step().unwrap_or_default();
        assert!(error.to_string().contains(column) && advice.contains(right), "{error}: {advice}");
    }
    let error = batch.ragged_view("cls").expect_err("it is dense");
    assert!(error.kind() == Kind::Config && error.next_step() == Some("use batch.view"), "{error}");
}
