//! A kernel of one's own on each batch, launched through cudarc: no copy, and no wait of the host. Without a GPU the same sums are taken on the host.
//!
//! Run it with `cargo run --example 07_kernel`.

use std::error::Error;
use std::sync::Arc;

use farfeed::cudarc::driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, LaunchConfig, PushKernelArg};
use farfeed::cudarc::nvrtc::Ptx;
use farfeed::device::{Device, probe};
use farfeed::order::Shuffle;
use farfeed::store::MemoryStore;
use farfeed::{Batch, ByteSize, Field, Loader};

const SAMPLES: u64 = 2_000;
const CLASSES: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::best();
    println!("batches go to {}", device.name());
    if device.is_host() {
        println!("no kernel is launched: {}", probe().problem.unwrap_or_default());
    }
    let sums = sums_by_class(&device)?;
    assert_eq!(sums, expected(), "each byte was counted once, in its class");
    println!("sums by class: {sums:?}");
    Ok(())
}

/// The sum of all images' bytes, class by class, taken where the batches are.
pub(crate) fn sums_by_class(device: &Device) -> Result<Vec<u64>, Box<dyn Error>> {
    let store = MemoryStore::new();
    store.put("train.tar", shard()?);
    let loader = Loader::builder("memory:train.tar")
        .store(store)
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(64)
        .shuffle(Shuffle::window(500).seed(7))
        .device(device.clone())
        .host_memory(ByteSize::mib(32))
        .epochs(1)
        .build()?;
    match device.ordinal() {
        Some(ordinal) => {
            let mut gpu = Gpu::open(ordinal)?;
            loader.epoch(0).try_for_each(|batch| gpu.add(&batch?))?;
            gpu.sums()
        }
        None => {
            let mut sums = vec![0; CLASSES];
            loader.epoch(0).try_for_each(|batch| add_on_host(&batch?, &mut sums))?;
            Ok(sums)
        }
    }
}

/// What adds up on a GPU.
struct Gpu {
    stream: Arc<CudaStream>,
    kernel: CudaFunction,
    sums: CudaSlice<u64>,
}

impl Gpu {
    fn open(ordinal: u32) -> Result<Gpu, Box<dyn Error>> {
        // The device's primary context, which farfeed takes as well.
        let context = CudaContext::new(ordinal as usize)?;
        let module = context.load_module(Ptx::from_src(include_str!("kernels/sum_by_class.ptx")))?;
        let stream = context.new_stream()?;
        Ok(Gpu { kernel: module.load_function("sum_by_class")?, sums: stream.alloc_zeros(CLASSES)?, stream })
    }

    /// Enqueues the kernel, which runs when the batch has landed. The batch may be dropped at once: its slot is refilled only behind the kernel.
    #[expect(unsafe_code, reason = "what a kernel does with its arguments, no compiler sees")]
    fn add(&mut self, batch: &Batch) -> Result<(), Box<dyn Error>> {
        let images = batch.ragged_view("jpg")?;
        let values = images.values.on(&self.stream)?;
        let offsets = images.offsets.on(&self.stream)?;
        let classes = batch.view::<i64>("cls")?.on(&self.stream)?;
        let rows = batch.len() as u32;
        let shape = LaunchConfig { grid_dim: (rows.max(1), 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: these are the kernel's parameters, in its order. It reads `rows + 1` offsets, the bytes between them and a class for each row, all of
        // which the views have; classes are less than CLASSES, and `sums` has that many.
        unsafe {
            self.stream
                .launch_builder(&self.kernel)
                .arg(&values)
                .arg(&offsets)
                .arg(&classes)
                .arg(&rows)
                .arg(&mut self.sums)
                .launch(shape)?;
        }
        Ok(())
    }

    fn sums(self) -> Result<Vec<u64>, Box<dyn Error>> {
        let sums = self.stream.clone_dtoh(&self.sums)?;
        self.stream.synchronize()?;
        Ok(sums)
    }
}

fn add_on_host(batch: &Batch, sums: &mut [u64]) -> Result<(), Box<dyn Error>> {
    let images = batch.ragged_view("jpg")?;
    let classes = batch.view::<i64>("cls")?;
    let (Some(values), Some(offsets), Some(classes)) =
        (images.values.as_slice(), images.offsets.as_slice(), classes.as_slice())
    else {
        return Err("the batch lies on a device".into());
    };
    for (bounds, class) in offsets.windows(2).zip(classes) {
        let image = &values[bounds[0] as usize..bounds[1] as usize];
        sums[*class as usize] += image.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    }
    Ok(())
}

/// What the sums must be: computed from the samples, not from batches.
pub(crate) fn expected() -> Vec<u64> {
    let mut sums = vec![0; CLASSES];
    for number in 0..SAMPLES {
        sums[class(number)] += image(number).iter().map(|byte| u64::from(*byte)).sum::<u64>();
    }
    sums
}

/// Bytes of no meaning, of many lengths.
fn image(number: u64) -> Vec<u8> {
    (0..500 + number * 37 % 1_000).map(|at| ((number * 131 + at * 7) % 251) as u8).collect()
}

fn class(number: u64) -> usize {
    (number * 7 / 3) as usize % CLASSES
}

/// A WebDataset shard in memory.
fn shard() -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for number in 0..SAMPLES {
        append(&mut archive, &format!("{number:06}.jpg"), &image(number))?;
        append(&mut archive, &format!("{number:06}.cls"), class(number).to_string().as_bytes())?;
    }
    archive.into_inner()
}

fn append(archive: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, bytes)
}
