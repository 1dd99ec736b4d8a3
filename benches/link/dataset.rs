//! What is streamed: a WebDataset of noise with its index, and what each part of it must be.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use crc_fast::CrcAlgorithm::Crc64Nvme;
use farfeed::Loader;
use farfeed::loader::index_location;
use serde::{Deserialize, Serialize};

const SHARDS: u64 = 8;
/// The mean size of an image; sizes lie within half of it to either side.
pub(crate) const IMAGE_BYTES: u64 = 100_000;
/// What those ask for who read shards from their beginning to their end.
pub(crate) const RANGE_BYTES: u64 = 8 << 20;
const MANIFEST: &str = "manifest.json";

#[derive(Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) shards: Vec<Shard>,
    /// Digest of each sample's image, by number.
    pub(crate) samples: Vec<u64>,
    /// Of all images and labels.
    pub(crate) payload_bytes: u64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Shard {
    pub(crate) key: String,
    pub(crate) bytes: u64,
    /// Digest of each range of `RANGE_BYTES`; the last one is shorter.
    pub(crate) ranges: Vec<u64>,
}

impl Manifest {
    pub(crate) fn read(folder: &Path) -> Self {
        serde_json::from_slice(&fs::read(folder.join(MANIFEST)).unwrap()).unwrap()
    }

    /// Of all shards.
    pub(crate) fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    /// Writes about `bytes` of images as shards, and their index.
    pub(crate) fn write(folder: &Path, bytes: u64) -> Self {
        let mut noise = Noise { state: 0x9e37_79b9_7f4a_7c15 };
        let mut manifest = Manifest { shards: Vec::new(), samples: Vec::new(), payload_bytes: 0 };
        for shard in 0..SHARDS {
            let key = format!("train-{shard:04}.tar");
            let file = File::create(folder.join(&key)).unwrap();
            let mut archive = tar::Builder::new(BufWriter::with_capacity(1 << 20, file));
            let mut written = 0;
            while written < bytes / SHARDS {
                let (number, image) = (manifest.samples.len() as u64, noise.image());
                let label = number.to_string();
                append(&mut archive, &format!("{}.jpg", sample_key(number)), &image);
                append(&mut archive, &format!("{}.cls", sample_key(number)), label.as_bytes());
                manifest.samples.push(digest([&*image]));
                written += image.len() as u64;
                manifest.payload_bytes += (image.len() + label.len()) as u64;
            }
            archive.into_inner().unwrap().flush().unwrap();
            let whole = fs::read(folder.join(&key)).unwrap();
            let ranges = whole.chunks(RANGE_BYTES as usize).map(|range| digest([range])).collect();
            manifest.shards.push(Shard { key, bytes: whole.len() as u64, ranges });
        }
        let shards = folder.join(pattern()).to_str().unwrap().to_owned();
        let found = Loader::builder(&shards).make_index().unwrap();
        fs::write(index_location(&shards), found.encode()).unwrap();
        fs::write(folder.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
        manifest
    }
}

pub(crate) fn pattern() -> String {
    format!("train-{{0000..{:04}}}.tar", SHARDS - 1)
}

pub(crate) fn sample_key(number: u64) -> String {
    format!("{number:06}")
}

/// Of slices one after the other.
pub(crate) fn digest<'a>(slices: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut digest = crc_fast::Digest::new(Crc64Nvme);
    slices.into_iter().for_each(|slice| digest.update(slice));
    digest.finalize()
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    archive.append_data(&mut header, name, bytes).unwrap();
}

/// The same on every machine (xorshift64).
struct Noise {
    state: u64,
}

impl Noise {
    fn image(&mut self) -> Vec<u8> {
        let len = (IMAGE_BYTES / 2 + self.draw() % IMAGE_BYTES) as usize;
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.draw().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }

    fn draw(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}
