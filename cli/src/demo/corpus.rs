//! The demo's dataset: a WebDataset of noise, the same on every machine, and the digest that each sample must have.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crc_fast::{CrcAlgorithm, Digest};
use farfeed::loader::index_location;
use farfeed::{Batch, Error, Kind, Loader, Result};

const SHARDS: u64 = 8;
/// The mean size of an image; sizes lie within half of it to either side.
const IMAGE_BYTES: u64 = 100_000;
const CLASSES: u64 = 1000;

/// What was written, and what must come back.
pub(super) struct Corpus {
    /// Names of the shards, with braces.
    pub(super) pattern: String,
    pub(super) shards: u64,
    /// Bytes of all shards.
    pub(super) bytes: u64,
    samples: HashMap<String, Expected>,
}

struct Expected {
    digest: u64,
    label: i64,
}

impl Corpus {
    /// Writes about `size` bytes of shards into `directory`, and their index beside them. `progress` hears of bytes written.
    ///
    /// # Errors
    /// `Io` when the directory cannot hold them.
    pub(super) fn write(directory: &Path, size: u64, progress: impl Fn(u64)) -> Result<Corpus> {
        let failed = |e: io::Error| {
            Error::new(Kind::Io, format!("writing the dataset to {}", directory.display()))
                .advice(format!("it takes {} MB there; TMPDIR names another place", size.div_ceil(1_000_000)))
                .source(e)
        };
        let pattern = format!("train-{{0000..{:04}}}.tar", SHARDS - 1);
        let mut corpus = Corpus { pattern, shards: SHARDS, bytes: 0, samples: HashMap::new() };
        let mut noise = Noise::new();
        for shard in 0..SHARDS {
            let path = directory.join(format!("train-{shard:04}.tar"));
            corpus.write_shard(&path, size / SHARDS, &mut noise, &progress).map_err(failed)?;
        }
        let pattern = directory.join(&corpus.pattern).to_string_lossy().into_owned();
        let found = Loader::builder(&pattern).make_index()?;
        std::fs::write(index_location(&pattern), found.encode()).map_err(failed)?;
        Ok(corpus)
    }

    fn write_shard(&mut self, path: &Path, size: u64, noise: &mut Noise, progress: &impl Fn(u64)) -> io::Result<()> {
        let mut archive = tar::Builder::new(BufWriter::with_capacity(1 << 20, File::create(path)?));
        let mut written = 0;
        while written < size {
            let number = self.samples.len() as u64;
            let key = format!("{number:06}");
            let image = noise.next_image();
            let label = number * 7919 % CLASSES;
            let note = format!("{{\"number\":{number},\"bytes\":{}}}", image.len());
            for (field, bytes) in [("jpg", image), ("cls", label.to_string().as_bytes()), ("json", note.as_bytes())] {
                append(&mut archive, &format!("{key}.{field}"), bytes)?;
            }
            written += image.len() as u64;
            progress(image.len() as u64);
            let expected = Expected { digest: digest(image, note.as_bytes()), label: label as i64 };
            self.samples.insert(key, expected);
        }
        archive.into_inner()?.flush()?;
        self.bytes += path.metadata()?.len();
        Ok(())
    }

    pub(super) fn samples(&self) -> usize {
        self.samples.len()
    }

    /// Begins to check what arrives.
    pub(super) fn checklist(&self) -> Checklist<'_> {
        Checklist { corpus: self, seen: vec![false; self.samples.len()] }
    }
}

/// Which samples have arrived, and whole.
pub(super) struct Checklist<'a> {
    corpus: &'a Corpus,
    seen: Vec<bool>,
}

impl Checklist<'_> {
    /// Checks every sample of a batch: digest, label, and that it has not come before.
    ///
    /// # Errors
    /// `Corrupt`, naming the sample.
    pub(super) fn check(&mut self, batch: &Batch) -> Result<()> {
        let (images, notes, labels) = (batch.values("jpg")?, batch.values("json")?, batch.ints("cls")?);
        for row in 0..batch.len() {
            let key = batch.key(row).unwrap_or_default();
            let wrong = |what: &str| Err(Error::new(Kind::Corrupt, format!("sample {key} of the demo {what}")));
            let Some(expected) = self.corpus.samples.get(key.as_ref()) else { return wrong("was never written") };
            if digest(&images[row], &notes[row]) != expected.digest || labels[row] != expected.label {
                return wrong("is not what was written");
            }
            // Keys are numbers in the order of writing.
            match key.parse().ok().and_then(|number: usize| self.seen.get_mut(number)) {
                Some(seen) if !*seen => *seen = true,
                _ => return wrong("came twice"),
            }
        }
        Ok(())
    }

    /// # Errors
    /// `Corrupt` when samples are missing.
    pub(super) fn finish(self) -> Result<()> {
        match self.seen.iter().filter(|seen| !**seen).count() {
            0 => Ok(()),
            missing => Err(Error::new(Kind::Corrupt, format!("{missing} samples of the demo never came"))),
        }
    }
}

/// Another digest than the loader's own, which the index tells it: this one knows what was written.
fn digest(image: &[u8], note: &[u8]) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(image);
    digest.update(note);
    digest.finalize()
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    archive.append_data(&mut header, name, bytes)
}

/// Bytes that no compression makes smaller, as those of images are (xorshift64).
struct Noise {
    state: u64,
    image: Vec<u8>,
}

impl Noise {
    fn new() -> Self {
        Noise { state: 0x9e37_79b9_7f4a_7c15, image: vec![0; (IMAGE_BYTES * 3 / 2) as usize] }
    }

    fn next_image(&mut self) -> &[u8] {
        let len = (IMAGE_BYTES / 2 + self.draw() % IMAGE_BYTES) as usize;
        // Whole words, and a few bytes beyond the end that are not used.
        for at in (0..len).step_by(8) {
            let word = self.draw().to_le_bytes();
            let end = (at + 8).min(self.image.len());
            self.image[at..end].copy_from_slice(&word[..end - at]);
        }
        &self.image[..len]
    }

    fn draw(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_same_every_time() {
        let write = || {
            let directory = tempfile::tempdir().unwrap();
            let corpus = Corpus::write(directory.path(), 2_000_000, |_| {}).unwrap();
            let shards =
                (0..SHARDS).map(|n| std::fs::read(directory.path().join(format!("train-{n:04}.tar"))).unwrap());
            (corpus.bytes, corpus.samples(), shards.collect::<Vec<_>>())
        };
        let (bytes, samples, shards) = write();
        assert!(write() == (bytes, samples, shards.clone()), "another time, another dataset");
        assert_eq!(bytes, shards.iter().map(|shard| shard.len() as u64).sum::<u64>());
        assert!((16..=40).contains(&samples), "{samples}");
        assert_ne!(shards[0], shards[1]);
    }
}
