//! Finishing on the device: the kernels give what the host device gives, bit for bit, and both give what is written down.
//!
//! The CUDA side runs on the driver double, whose twins run the kernels' own text (`tests/kernels`); with FARFEED_TEST_GPU=1 in the
//! environment it is the real driver, device 0, and the kernels that it makes of the committed PTX.
#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test may")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use farfeed::dataset::Dtype;
use farfeed::device::{Arrangement, Device, Engine, Finishing, Pictures, Real, Turn, Widening};
use farfeed::loader::Normalize;
use farfeed::memory::Slab;
use farfeed::store::MemoryStore;
use farfeed::{Batch, ByteSize, Error, Field, Kind, Loader, Tokens};
use farfeed_driver_double::{Double, DoubleDevice, Live};
use proptest::prelude::*;

mod kernels;

const REALS: [Real; 3] = [Real::F32, Real::F16, Real::BF16];
const WIDENINGS: [Widening; 6] = [
    Widening::U8ToI32,
    Widening::U8ToI64,
    Widening::U16ToI32,
    Widening::U16ToI64,
    Widening::U32ToI64,
    Widening::I32ToI64,
];

/// The CUDA side of a test.
struct Cuda {
    device: Device,
    /// `None` where the driver is a real one.
    double: Option<DoubleDevice>,
}

impl Cuda {
    /// Device `ordinal` of the double, for one test; or the real one. `None` where neither is to be had, which is said.
    fn find(ordinal: u32) -> Option<Cuda> {
        if farfeed_driver_double::on_gpu() {
            return Some(Cuda { device: Device::cuda(0).unwrap(), double: None });
        }
        let double = Double::load();
        let device = Device::cuda(ordinal).unwrap();
        kernels::register(double).then(|| Cuda { device, double: Some(double.device(ordinal)) })
    }

    /// What was used must have been let go of, and nothing forbidden done.
    fn end(self) {
        drop(self.device);
        if let Some(double) = self.double {
            double.drain();
            assert_eq!((double.violations(), double.live()), (String::new(), Live::default()));
        }
    }
}

/// A slot's bytes after `turns`, on a device where they began as `before`.
fn finished(device: &Device, steps: &[Finishing], before: &[u8], turns: &[Turn]) -> Vec<u8> {
    let slab = Slab::new(4096, 4096).unwrap();
    let mut engine = device.backend().open(&slab, 1, before.len(), Arc::new(|| ())).unwrap();
    engine.prepare(steps).unwrap();
    let mut slot = engine.acquire().unwrap().unwrap();
    engine.put(&mut slot, 0, before).unwrap();
    for turn in turns {
        engine.finish(&mut slot, *turn).unwrap();
    }
    engine.seal(&mut slot, Vec::new()).unwrap();
    let bytes = slot.read_back(0, before.len()).unwrap();
    drop(slot);
    settle(engine.as_mut());
    bytes
}

fn settle(engine: &mut dyn Engine) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while engine.poll().unwrap() > 0 {
        assert!(Instant::now() < deadline, "copies do not end");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| ((at + seed).wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

/// Holds the whole slot of both devices against each other; gives what is in it. `None` where there is no CUDA to hold it against.
fn on_both(ordinal: u32, step: &Finishing, rows: usize, raw_at: usize, gap: usize) -> (Vec<u8>, usize) {
    // First what is raw, then what is finished, or the other way round: where elements may begin, and mostly not where groups do.
    let (raw, done) = (step.raw_bytes() * rows, step.finished_bytes() * rows);
    let behind = |bytes: usize| (raw_at + bytes).next_multiple_of(8) + 8 * gap;
    let (from, to) = if gap.is_multiple_of(2) { (raw_at, behind(raw)) } else { (behind(done), raw_at) };
    let before = pattern(raw_at + raw + done + 8 * gap + 40, rows + gap);
    let turn = Turn { step: 0, from, to, rows };
    let steps = std::slice::from_ref(step);
    let host = finished(&Device::host(), steps, &before, &[turn]);
    if let Some(cuda) = Cuda::find(ordinal) {
        let found = finished(&cuda.device, steps, &before, &[turn]);
        assert!(found == host, "the devices differ: {step:?}, {turn:?}");
        cuda.end();
    }
    assert_eq!(host[..to], before[..to], "in front of what is finished");
    assert_eq!(host[to + done..], before[to + done..], "behind it");
    (host, to)
}

#[test]
fn integers_keep_their_value() {
    for (number, widening) in WIDENINGS.into_iter().enumerate() {
        let (raw, done) = [(1, 4), (1, 8), (2, 4), (2, 8), (4, 8), (4, 8)][number];
        for (elements, raw_at) in [(1, 0), (7, 8), (64, 0), (333, 24), (4099, 16)] {
            let (bytes, to) = on_both(0, &Finishing::widen(widening, elements), 3, raw_at, elements % 3 * 2);
            let signed = widening == Widening::I32ToI64;
            for i in 0..3 * elements {
                let narrow = &bytes[raw_at + i * raw..raw_at + (i + 1) * raw];
                let wide = &bytes[to + i * done..to + (i + 1) * done];
                assert_eq!(&wide[..raw], narrow);
                let fill = if signed && narrow[raw - 1] > 127 { 255 } else { 0 };
                assert!(wide[raw..].iter().all(|byte| *byte == fill), "{widening:?}: {narrow:?} became {wide:?}");
            }
        }
    }
}

#[test]
fn values_are_those_of_the_formula_wherever_they_lie() {
    let (means, deviations) = ([0.485, 0.456, 0.406, 0.5, 0.0], [0.229, 0.224, 0.225, -2.0, 1e-3]);
    for channels in [1, 3, 5] {
        let pictures = Pictures { count: 2, pixels: 35, channels };
        for arrangement in [Arrangement::ChannelsLast, Arrangement::ChannelsFirst, Arrangement::ToChannelsFirst] {
            let (means, deviations) = (&means[..channels], &deviations[..channels]);
            let step = Finishing::normalize(means, deviations, Real::F32, pictures, arrangement).unwrap();
            let (bytes, to) = on_both(1, &step, 2, 4, 2);
            for picture in 0..4 {
                for (pixel, channel) in (0..35).flat_map(|pixel| (0..channels).map(move |channel| (pixel, channel))) {
                    let (last, first) = (pixel * channels + channel, channel * 35 + pixel);
                    let (from, place) = match arrangement {
                        Arrangement::ChannelsLast => (last, last),
                        Arrangement::ChannelsFirst => (first, first),
                        Arrangement::ToChannelsFirst => (last, first),
                    };
                    let byte = bytes[4 + picture * 35 * channels + from];
                    let wanted = (f32::from(byte) / 255.0 - means[channel]) / deviations[channel];
                    let at = to + (picture * 35 * channels + place) * 4;
                    let found = f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                    assert_eq!(found.to_bits(), wanted.to_bits(), "{arrangement:?}, {channels}: {byte}");
                }
            }
        }
    }
}

/// Each of the 256 values in each channel, for usual and unusual means and deviations, in all three types.
#[cfg(feature = "half")]
#[test]
fn every_byte_becomes_the_nearest_real() {
    // Shades of nothing in the last two, where halves are subnormal; and values that no half can hold.
    let normalizations: [([f32; 3], [f32; 3]); 6] = [
        ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ([0.5; 3], [0.5; 3]),
        ([0.0; 3], [1.0; 3]),
        ([0.0, 0.25, 1.0], [1e-6, -1e-5, 3e-6]),
        ([0.0, 0.5, 1.0], [3e4, 6e4, -1e5]),
        ([0.1, 0.2, 0.3], [1e-38, f32::MIN_POSITIVE / 8.0, f32::MAX]),
    ];
    let pictures = Pictures { count: 1, pixels: 256, channels: 3 };
    let before: Vec<u8> = (0..=255).flat_map(|value| [value; 3]).chain([0; 256 * 3 * 4]).collect();
    let cuda = Cuda::find(7);
    for ((means, deviations), real) in normalizations.iter().flat_map(|of| REALS.map(|real| (of, real))) {
        let step = Finishing::normalize(means, deviations, real, pictures, Arrangement::ChannelsLast).unwrap();
        let turn = Turn { step: 0, from: 0, to: 768, rows: 1 };
        let steps = std::slice::from_ref(&step);
        let host = finished(&Device::host(), steps, &before, &[turn]);
        if let Some(cuda) = &cuda {
            assert!(finished(&cuda.device, steps, &before, &[turn]) == host, "the devices differ: {step:?}");
        }
        let size = step.finished_bytes() / 768;
        for (at, found) in host[768..768 + step.finished_bytes()].chunks(size).enumerate() {
            let (value, mean, deviation) = ((at / 3) as f32, means[at % 3], deviations[at % 3]);
            let wanted = (value / 255.0 - mean) / deviation;
            let wanted = match real {
                Real::F32 => wanted.to_le_bytes().to_vec(),
                Real::F16 => half::f16::from_f32(wanted).to_le_bytes().to_vec(),
                Real::BF16 => half::bf16::from_f32(wanted).to_le_bytes().to_vec(),
            };
            assert_eq!(found, wanted, "{value} less {mean} by {deviation} as {real:?}");
        }
    }
    cuda.into_iter().for_each(Cuda::end);
}

/// A step, rows, and where in the slot.
fn cases() -> impl Strategy<Value = (Finishing, usize, usize, usize)> {
    let pictures = (1usize..3, 1usize..90, prop_oneof![Just(3usize), 1usize..7])
        .prop_map(|(count, pixels, channels)| Pictures { count, pixels, channels });
    let widened = (prop::sample::select(WIDENINGS.to_vec()), 0usize..700)
        .prop_map(|(widening, elements)| Finishing::widen(widening, elements));
    let planes = (prop::sample::select(vec![1usize, 2, 4, 8]), pictures.clone())
        .prop_map(|(bytes, pictures)| Finishing::planes(bytes, pictures).unwrap());
    let arrangements = vec![Arrangement::ChannelsLast, Arrangement::ChannelsFirst, Arrangement::ToChannelsFirst];
    let looked_up = (prop::sample::select(REALS.to_vec()), pictures, prop::sample::select(arrangements)).prop_map(
        |(real, pictures, arrangement)| {
            let means: Vec<f32> = (0..pictures.channels).map(|channel| channel as f32 * 0.1).collect();
            let deviations: Vec<f32> = means.iter().map(|mean| mean + 0.2).collect();
            Finishing::normalize(&means, &deviations, real, pictures, arrangement).unwrap()
        },
    );
    // Whole pictures of four pixels by alignment take other paths than those that are not.
    (prop_oneof![widened, planes, looked_up], 0usize..5, (0usize..4).prop_map(|at| at * 8), 0usize..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn both_devices_give_the_same_bits((step, rows, raw_at, gap) in cases()) {
        on_both(2, &step, rows, raw_at, gap);
    }
}

#[test]
fn large_tables_stay_where_they_are_and_large_batches_take_turns() {
    // More channels than a block keeps, and more elements than all threads take at once: 1024 × 256 × 4.
    let pictures = Pictures { count: 1, pixels: 64, channels: 9 };
    let means: Vec<f32> = (0..9).map(|channel| channel as f32 / 10.0).collect();
    for arrangement in [Arrangement::ChannelsLast, Arrangement::ToChannelsFirst] {
        let step = Finishing::normalize(&means, &[0.5; 9], Real::F16, pictures, arrangement).unwrap();
        on_both(3, &step, 3, 0, 0);
    }
    on_both(3, &Finishing::widen(Widening::U16ToI64, 300_001), 2, 0, 2);
}

#[test]
fn an_engine_refuses_turns_that_do_not_fit() {
    let cuda = Cuda::find(4);
    for device in std::iter::once(Device::host()).chain(cuda.as_ref().map(|cuda| cuda.device.clone())) {
        let slab = Slab::new(4096, 4096).unwrap();
        let mut engine = device.backend().open(&slab, 1, 1000, Arc::new(|| ())).unwrap();
        let mut slot = engine.acquire().unwrap().unwrap();
        let turn = Turn { step: 0, from: 800, to: 0, rows: 1 };
        let refused = |engine: &mut dyn Engine, slot: &mut _, turn| engine.finish(slot, turn).unwrap_err().kind();
        assert_eq!(refused(engine.as_mut(), &mut slot, turn), Kind::Config, "nothing was prepared");
        let picture = Pictures { count: 1, pixels: 1 << 30, channels: 1 };
        let huge = Finishing::planes(1, picture).unwrap();
        engine.prepare(&[Finishing::widen(Widening::U16ToI64, 100), huge]).unwrap();
        for wrong in [
            Turn { step: 2, ..turn },
            Turn { from: 801, ..turn },
            Turn { to: 192, from: 0, ..turn },
            Turn { from: 798, ..turn },
            Turn { from: 900, to: 1, ..turn },
            Turn { from: usize::MAX, ..turn },
            Turn { rows: usize::MAX, ..turn },
            Turn { rows: 2, ..turn },
            Turn { step: 1, from: 0, to: 0, rows: 2 },
        ] {
            assert_eq!(refused(engine.as_mut(), &mut slot, wrong), Kind::Config, "{wrong:?}");
        }
        drop((slot, engine));
    }
    cuda.into_iter().for_each(Cuda::end);
}

#[test]
fn the_committed_ptx_is_of_the_committed_source() {
    let source = include_bytes!("../src/device/finish/kernels.cu");
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, source);
    let ptx = include_str!("../src/device/finish/kernels.ptx");
    let first = ptx.lines().next().unwrap();
    assert!(first.ends_with(&format!("crc32 {sum:08x}")), "{first}: compile it again, see tests/kernels/compile.py");
    let named = |line: &str| line.starts_with(".version 8.0") || line.starts_with(".target sm_75");
    assert_eq!(ptx.lines().filter(|line| named(line)).count(), 2, "what the oldest driver and device take");
    // No instruction of any kind on reals: there is nothing in it that could be rounded, contracted or flushed to zero.
    let real =
        |line: &&str| [".f16", ".bf16", ".f32", ".f64", ".tf32", ".approx", ".ftz"].iter().any(|of| line.contains(of));
    assert_eq!(ptx.lines().find(real), None);
}

fn npy(descr: &str, shape: &[usize], payload: &[u8]) -> Vec<u8> {
    let shape: Vec<_> = shape.iter().map(|extent| format!("{extent},")).collect();
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", shape.join(" "));
    let mut header = header.into_bytes();
    header.resize((10 + header.len() + 1).next_multiple_of(64) - 11, b' ');
    header.push(b'\n');
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], &header, payload].concat()
}

/// A column of each batch, as bytes.
fn columns(loader: &Loader, name: &str, look: impl Fn(&Batch)) -> Vec<Vec<u8>> {
    let read = |batch: Result<Batch, Error>| {
        let batch = batch.unwrap();
        look(&batch);
        batch.values(name).unwrap().concat()
    };
    loader.epoch(0).map(read).collect()
}

#[test]
fn a_loader_delivers_pictures_as_the_network_wants_them() {
    const PICTURES: usize = 50;
    let payload = pattern(PICTURES * 8 * 6 * 3, 5);
    let store = MemoryStore::new();
    store.put("pictures.npy", npy("|u1", &[PICTURES, 8, 6, 3], &payload));
    let load = |device: Device| {
        let field =
            Field::array(Dtype::U8, &[8, 6, 3]).channels_first().normalize(Normalize::imagenet().to(Dtype::F16));
        Loader::builder("memory:pictures.npy")
            .store(store.clone())
            .field("data", field)
            .batch_size(16)
            .epochs(1)
            .device(device)
            .host_memory(ByteSize::mib(4))
            .build()
    };
    let look = |batch: &Batch| {
        let column = batch.dense("data").unwrap();
        assert_eq!((column.dtype, column.shape), (Dtype::F16, &[batch.len(), 3, 8, 6][..]));
        assert_eq!(column.len, batch.len() * 3 * 8 * 6 * 2);
    };
    let host = load(Device::host()).unwrap();
    assert!(host.plan().slot_bytes >= 16 * 144 * 3, "what lands has its place beside what it becomes");
    assert!(host.explain().to_string().contains("uint8 [8, 6, 3]"), "{}", host.explain());
    let on_host = columns(&host, "data", look);
    assert_eq!(on_host.iter().map(Vec::len).collect::<Vec<_>>(), [16, 16, 16, 2].map(|rows| rows * 288));
    let first = f32::from(payload[0]) / 255.0;
    let half = u16::from_le_bytes([on_host[0][0], on_host[0][1]]);
    let value = f32::from(1024 + (half & 1023)) * f32::from(half >> 10 & 31).exp2() * (-25f32).exp2();
    assert!((value - ((first - 0.485) / 0.229).abs()).abs() < 1e-3, "{value}");

    if let Some(cuda) = Cuda::find(5) {
        let loader = load(cuda.device.clone()).unwrap();
        assert!(columns(&loader, "data", look) == on_host, "the devices differ");
        drop(loader);
        if let Some(double) = &cuda.double {
            assert_eq!(double.calls().launches(), 4, "one for each batch");
        }
        cuda.end();
    }
}

#[test]
fn tokens_travel_narrow_and_arrive_wide() {
    let tokens: Vec<u16> = (0..10_001u32).map(|i| (i * 7 % 65_521) as u16).collect();
    let store = MemoryStore::new();
    store.put("corpus.bin", tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>());
    let load = |device: Device| {
        Loader::builder("memory:corpus.bin")
            .store(store.clone())
            .tokens(Tokens::new(Dtype::U16, 100).with_next().widen(Dtype::I64))
            .batch_size(8)
            .device(device)
            .host_memory(ByteSize::mib(4))
            .build()
            .unwrap()
    };
    let wanted: Vec<i64> =
        (0..100).flat_map(|row| &tokens[row * 100..row * 100 + 101]).map(|t| i64::from(*t)).collect();
    let cuda = Cuda::find(6);
    for device in std::iter::once(Device::host()).chain(cuda.as_ref().map(|cuda| cuda.device.clone())) {
        let loader = load(device);
        let mut found = Vec::new();
        for batch in loader.epoch(0) {
            let batch = batch.unwrap();
            assert_eq!(batch.dense("tokens").unwrap().shape, [batch.len(), 101]);
            assert_eq!(batch.payload_bytes(), batch.len() as u64 * 202, "what travelled");
            found.extend(batch.ints("tokens").unwrap());
        }
        assert_eq!(found, wanted);
    }
    cuda.into_iter().for_each(Cuda::end);
}

#[test]
fn what_cannot_be_is_refused_when_the_loader_is_built() {
    let store = MemoryStore::new();
    store.put("x.npy", npy("|u1", &[4, 6, 5, 3], &[7; 360]));
    let build = |field: Field| {
        Loader::builder("memory:x.npy").store(store.clone()).field("data", field).host_memory(ByteSize::mib(4)).build()
    };
    let bytes = || Field::array(Dtype::U8, &[6, 5, 3]);
    let imagenet = Normalize::imagenet;
    let shades = Field::array(Dtype::U8, &[1, 1, 70_000]).channels_first().normalize(Normalize::scaled());
    let planes = || Field::array(Dtype::U8, &[3, 6, 5]);
    let refused: [(Field, &[&str]); 15] = [
        (planes().normalize(imagenet()), &["3 means", "5 channels", "of_channels_first"]),
        (planes().channels_first().normalize(imagenet()), &["3 means", "5 channels", "leave channels_first out"]),
        (shades, &["70000 channels", "65536"]),
        (Field::bytes().widen(Dtype::I64), &["only arrays"]),
        (bytes().widen(Dtype::F32), &["uint8 cannot be widened to float32", "int32 or int64"]),
        (bytes().widen(Dtype::I64).channels_first(), &["widened and made into a picture"]),
        (Field::array(Dtype::I64, &[3]).widen(Dtype::I32), &["int64 cannot be widened to int32"]),
        (Field::array(Dtype::F32, &[2, 2, 3]).normalize(imagenet()), &["float32 cannot be normalised"]),
        (bytes().normalize(imagenet().to(Dtype::F64)), &["normalised to float64", "bfloat16"]),
        (Field::array(Dtype::U8, &[90]).channels_first(), &["[90]", "no picture"]),
        (Field::array(Dtype::U8, &[9, 10]).normalize(imagenet()), &["3 means", "10 channels"]),
        (bytes().normalize(Normalize::new(&[0.5], &[0.5, 0.5])), &["1 means and 2 deviations"]),
        (bytes().normalize(Normalize::new(&[0.5], &[0.0])), &["deviation of 0"]),
        (bytes().normalize(imagenet().of_channels_first()), &["for 6 channels"]),
        (bytes().channels_first().normalize(imagenet().of_channels_first()), &["first already"]),
    ];
    for (field, texts) in refused {
        let error = build(field.clone()).err().unwrap_or_else(|| panic!("{field:?} was taken"));
        let said = format!("{error} {}", error.next_step().unwrap_or_default());
        assert_eq!(error.kind(), Kind::Config, "{said}");
        assert!(texts.iter().chain(&["field 'data'"]).all(|text| said.contains(text)), "{said}");
    }
    let means = vec![0.5; 70_000];
    let pictures = Pictures { count: 1, pixels: 1, channels: 70_000 };
    let error = Finishing::normalize(&means, &means, Real::F32, pictures, Arrangement::ChannelsLast).unwrap_err();
    assert!(error.kind() == Kind::Config && error.to_string().contains("70000 channels"), "{error}");

    store.put("x.bin", vec![7; 800]);
    let tokens =
        Loader::builder("memory:x.bin").store(store.clone()).tokens(Tokens::new(Dtype::U16, 4).widen(Dtype::I64));
    let twice = tokens.field("tokens", Field::array(Dtype::U16, &[4]).widen(Dtype::I32)).build().err().unwrap();
    let said = format!("{twice} {}", twice.next_step().unwrap_or_default());
    assert!(["'tokens'", "int64", "int32", "leave"].iter().all(|text| said.contains(text)), "{said}");

    let (small, large) = (build(bytes()).unwrap(), build(bytes().channels_first()).unwrap());
    assert!(large.plan().slot_bytes > small.plan().slot_bytes, "what lands has its place in the budget");
    let loader = Loader::builder("memory:x.npy").store(store.clone()).field("data", bytes().normalize(imagenet()));
    let error = loader.batch_size(4).device_memory(ByteSize::bytes(4 * 360 * 4)).build().err().unwrap();
    assert_eq!(error.kind(), Kind::Device, "{error}");
}
