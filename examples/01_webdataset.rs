//! A WebDataset: an index made once, then shuffled batches with labels and bytes.
//!
//! Run it with `cargo run --example 01_webdataset`.

use std::fs::File;
use std::path::Path;

use farfeed::loader::index_location;
use farfeed::order::Shuffle;
use farfeed::{ByteSize, Field, Loader};

const SHARDS: u64 = 4;
const SAMPLES_PER_SHARD: u64 = 200;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let shards = write_shards(directory.path())?;

    // Once per dataset, at the speed of the link; `farfeed index` does the same. Without it the loader makes one each time.
    let found = Loader::builder(&shards).make_index()?;
    std::fs::write(index_location(&shards), found.encode())?;

    let loader = Loader::builder(&shards)
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(64)
        .shuffle(Shuffle::window(400).seed(7))
        .host_memory(ByteSize::mib(128))
        .epochs(1)
        .build()?;
    println!("{}\n", loader.plan());

    let mut seen = Vec::new();
    for batch in loader.epoch(0) {
        let batch = batch?;
        let labels = batch.ints("cls")?; // a dense tensor, [B]
        let images = batch.ragged("jpg")?; // values, and B + 1 offsets
        for (row, image) in images.iter().enumerate() {
            // Each image was written so that it says which sample it belongs to.
            let number = batch.ids()[row];
            assert_eq!((image[0] as u64, labels[row] as u64), (number % 251, number % 10));
        }
        println!(
            "batch {:2}: {} images, {:7} bytes; begins with {}, labels {:?}",
            batch.index(),
            batch.len(),
            images.values_len,
            batch.key(0).unwrap_or_default(),
            &labels[..6]
        );
        seen.extend_from_slice(batch.ids());
    }
    assert!(!seen.is_sorted(), "shuffled");
    seen.sort_unstable();
    assert_eq!(seen, (0..SHARDS * SAMPLES_PER_SHARD).collect::<Vec<_>>(), "every sample once");
    println!("\n{}", loader.stats());
    Ok(())
}

/// Shards as the `tar` command writes them: files that share a name up to the first dot are one sample.
fn write_shards(directory: &Path) -> std::io::Result<String> {
    for shard in 0..SHARDS {
        let mut archive = tar::Builder::new(File::create(directory.join(format!("train-{shard:04}.tar")))?);
        for number in shard * SAMPLES_PER_SHARD..(shard + 1) * SAMPLES_PER_SHARD {
            let image = vec![(number % 251) as u8; 5_000 + (number * 37 % 10_000) as usize];
            append(&mut archive, &format!("{number:06}.jpg"), &image)?;
            append(&mut archive, &format!("{number:06}.cls"), (number % 10).to_string().as_bytes())?;
        }
        archive.finish()?;
    }
    Ok(format!("{}/train-{{0000..{:04}}}.tar", directory.display(), SHARDS - 1))
}

fn append(archive: &mut tar::Builder<File>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, bytes)
}
