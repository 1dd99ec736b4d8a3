//! What farfeed finds in files that others wrote, against what their own readers find there.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

#[path = "fixture/real.rs"]
mod real;

use std::collections::BTreeMap;

use farfeed::dataset::{
    BlockCut, Dataset, Dtype, EntryKind, Index, NpyHeader, RecordShard, RecordSpec, Shard, ShardIndex, ShardIndexer,
    TarScanner,
};
use real::{Content, RealData, Tar};

fn content(bytes: &[u8]) -> Content {
    Content { bytes: bytes.len() as u64, crc32c: crc_fast::crc32_iscsi(bytes) }
}

fn shard(name: &str, bytes: &[u8]) -> Shard {
    Shard { url: format!("s3://bucket/real/{name}"), size: bytes.len() as u64, version: None }
}

/// The file's bytes, if they are those that the manifest describes.
fn read_tar(real: &RealData, name: &str, tar: &Tar) -> Vec<u8> {
    let bytes = real.read(name);
    assert_eq!(content(&bytes), Content { bytes: tar.bytes, crc32c: tar.crc32c }, "{name} is not what was written");
    bytes
}

/// Pushed in pieces that fall anywhere in headers and payloads.
fn indexed(name: &str, bytes: &[u8]) -> ShardIndex {
    let mut indexer = ShardIndexer::new(shard(name, bytes));
    for piece in bytes.chunks(4099) {
        indexer.push(piece).unwrap();
    }
    indexer.finish().unwrap()
}

#[test]
fn the_scanner_finds_every_file_and_its_bytes() {
    let real = RealData::obtain();
    for (name, tar) in &real.manifest.tars {
        let bytes = read_tar(&real, name, tar);
        let mut files = Vec::new();
        let mut scanner = TarScanner::new(Some(tar.bytes));
        for piece in bytes.chunks(777) {
            scanner
                .push(piece, |entry| {
                    let payload = &bytes[entry.start as usize..][..entry.len as usize];
                    assert_eq!(content(payload).crc32c, entry.crc32c, "{name}: {}", entry.path);
                    if entry.kind == EntryKind::File {
                        files.push(content(payload));
                    }
                    Ok(())
                })
                .unwrap();
        }
        scanner.finish().unwrap();
        let digests = |contents: &mut dyn Iterator<Item = Content>| {
            let mut all: Vec<_> = contents.map(|content| (content.bytes, content.crc32c)).collect();
            all.sort_unstable();
            all
        };
        let expected = tar.samples.iter().flat_map(|sample| sample.fields.values().copied());
        assert_eq!(digests(&mut files.into_iter()), digests(&mut expected.into_iter()), "{name}");
    }
}

#[test]
fn samples_are_those_of_webdataset_s_own_reader() {
    let real = RealData::obtain();
    assert_eq!(real.manifest.tars.len(), 7);
    for (name, tar) in &real.manifest.tars {
        let bytes = read_tar(&real, name, tar);
        let index = indexed(name, &bytes);
        assert_eq!(index.samples(), tar.samples.len(), "{name}");
        assert_eq!((index.skipped.directories, index.skipped.links), (tar.directories, tar.links), "{name}");
        assert_eq!(index.skipped.total(), tar.directories + tar.links, "{name}");
        for (number, sample) in tar.samples.iter().enumerate() {
            assert_eq!(index.key(number), Some(sample.key.as_str()), "{name}");
            let found: BTreeMap<_, _> = index
                .members(number)
                .map(|place| {
                    let payload = content(&bytes[place.start as usize..][..place.len as usize]);
                    assert_eq!(place.crc32c, Some(payload.crc32c), "{name}: {}", sample.key);
                    (place.field.to_owned(), payload)
                })
                .collect();
            assert_eq!(found, sample.fields, "{name}: {}", sample.key);
        }
    }
}

#[test]
fn the_sidecar_serves_a_copy_of_the_dataset() {
    let real = RealData::obtain();
    let files: Vec<(&String, Vec<u8>)> =
        real.manifest.tars.iter().map(|(name, tar)| (name, read_tar(&real, name, tar))).collect();
    let index = Index::new(files.iter().map(|(name, bytes)| indexed(name, bytes)).collect());
    let here = Dataset::members(index.clone(), BlockCut::default()).unwrap();

    let sidecar = index.encode();
    let total: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(sidecar.len() < total / 100, "a sidecar of {} bytes for {total}", sidecar.len());
    println!("sidecar: {} bytes for {} samples in {total} bytes", sidecar.len(), here.samples());
    let copies: Vec<_> = files.iter().map(|(name, _)| format!("https://mirror/copy/{name}?signature=x")).collect();
    let copy = Index::decode(&sidecar).unwrap().select(&copies).unwrap();
    let there = Dataset::members(copy, BlockCut::default()).unwrap();
    assert_eq!(there.fingerprint(), here.fingerprint());

    let expected = real.manifest.tars.values().flat_map(|tar| &tar.samples);
    let mut samples = 0;
    for (sample, expected) in (0..there.samples()).zip(expected) {
        assert_eq!(there.key(sample), expected.key.as_str());
        for (field, layout) in there.fields().iter().enumerate() {
            let found = there.extent(sample, field).map(|extent| {
                let bytes = &files[extent.shard as usize].1[extent.start as usize..extent.end() as usize];
                assert_eq!(there.crc32c(sample, field), Some(content(bytes).crc32c));
                content(bytes)
            });
            assert_eq!(found.as_ref(), expected.fields.get(&layout.name), "{}: {}", expected.key, layout.name);
        }
        samples += 1;
    }
    assert_eq!((samples, there.samples()), (376, 376));
    let json = there.field("json").unwrap();
    assert!(there.lacking(json) > 0, "some samples lack a field");
}

#[test]
fn a_shard_that_ends_early_is_found_out() {
    let real = RealData::obtain();
    for (name, tar) in &real.manifest.tars {
        let bytes = read_tar(&real, name, tar);
        for cut in [bytes.len() / 3, bytes.len() / 2 / 512 * 512] {
            let mut indexer = ShardIndexer::new(Shard { size: cut as u64, ..shard(name, &bytes) });
            let result = indexer.push(&bytes[..cut]).and_then(|()| indexer.finish());
            let error = result.unwrap_err();
            assert_eq!(error.kind(), farfeed::Kind::Corrupt, "{error}");
            assert!(error.to_string().contains(name.as_str()) && error.next_step().is_some(), "{error}");
        }
    }
}

#[test]
fn rows_and_tokens_are_those_of_numpy() {
    let real = RealData::obtain();
    assert_eq!(real.manifest.records.len(), 4);
    for (name, records) in &real.manifest.records {
        let bytes = real.read(name);
        assert_eq!(content(&bytes), Content { bytes: records.bytes, crc32c: records.crc32c }, "{name}");
        let (spec, file) = if name.ends_with(".npy") {
            let header = NpyHeader::parse(&bytes).unwrap();
            (header.spec().unwrap(), header.records(shard(name, &bytes)))
        } else {
            let file = RecordShard { shard: shard(name, &bytes), start: 0, bytes: bytes.len() as u64 };
            (RecordSpec::tokens(Dtype::U16, records.shape[0] - 1, 1).unwrap(), file)
        };
        assert_eq!((spec.dtype().name(), spec.shape()), (records.dtype.as_str(), records.shape.as_slice()), "{name}");
        let dataset = Dataset::records(vec![file], spec, BlockCut::default()).unwrap();
        let rows: Vec<_> = (0..dataset.samples())
            .map(|sample| dataset.extent(sample, 0).unwrap())
            .map(|extent| content(&bytes[extent.start as usize..extent.end() as usize]))
            .collect();
        assert_eq!(rows, records.rows, "{name}");
    }
}
