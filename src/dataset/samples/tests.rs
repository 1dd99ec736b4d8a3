use proptest::prelude::*;

use super::*;
use crate::dataset::catalog::Dtype;
use crate::dataset::tar::fixture::Archive;
use crate::dataset::webdataset::ShardIndexer;

fn record_shard(url: &str, start: u64, bytes: u64) -> RecordShard {
    RecordShard { shard: Shard { url: url.into(), size: start + bytes, version: None }, start, bytes }
}

fn indexed(url: &str, archive: Archive) -> ShardIndex {
    let bytes = archive.end();
    let mut indexer = ShardIndexer::new(Shard { url: url.into(), size: bytes.len() as u64, version: None });
    indexer.push(&bytes).unwrap();
    indexer.finish().unwrap()
}

/// What must hold of every dataset: blocks partition the samples, stay within a shard and the cut, and span their samples.
fn check_blocks(dataset: &Dataset, cut: BlockCut) {
    let mut next = 0;
    for (number, block) in dataset.blocks().iter().enumerate() {
        assert_eq!(block.first, next);
        assert!(block.samples == 1 || block.samples > 1 && block.extent.len <= cut.bytes, "{block:?}");
        next += u64::from(block.samples);
        for sample in [block.first, next - 1] {
            assert_eq!(dataset.block_of(sample), number);
        }
        let extents: Vec<_> = (block.first..next)
            .flat_map(|sample| (0..dataset.fields().len()).filter_map(move |field| dataset.extent(sample, field)))
            .collect();
        assert!(extents.iter().all(|extent| extent.shard == block.extent.shard));
        assert_eq!(extents.iter().map(|extent| extent.start).min(), Some(block.extent.start));
        assert_eq!(extents.iter().map(Extent::end).max(), Some(block.extent.end()));
        assert!(block.extent.end() <= dataset.shards()[block.extent.shard as usize].size);
    }
    assert_eq!(next, dataset.samples());
}

#[test]
fn tokens_overlap_and_leftovers_are_counted() {
    let spec = RecordSpec::tokens(Dtype::U16, 4, 1).unwrap();
    // 10 tokens: samples 0..5 and 4..9, one left. 3 tokens: none, all left. 5 tokens: one.
    let shards =
        vec![record_shard("s3://b/a.bin", 8, 20), record_shard("s3://b/b.bin", 0, 6), record_shard("c.bin", 0, 10)];
    let dataset = Dataset::records(shards, spec, BlockCut::default()).unwrap();
    assert_eq!((dataset.samples(), dataset.remainder()), (3, 4));
    let extents: Vec<_> = (0..4).map(|sample| dataset.extent(sample, 0)).collect();
    let extent = |shard, start| Some(Extent { shard, start, len: 10 });
    assert_eq!(extents, [extent(0, 8), extent(0, 16), extent(2, 0), None]);
    assert_eq!((dataset.key(1), dataset.key(2), dataset.key(3)), ("a.bin:1".into(), "c.bin:0".into(), "".into()));
    assert_eq!(dataset.fields()[0].fixed, Some((Dtype::U16, vec![5])));
    assert_eq!((dataset.field("tokens"), dataset.field("data"), dataset.extent(0, 1)), (Some(0), None, None));
    assert_eq!(dataset.crc32c(0, 0), None);
    assert_eq!(dataset.blocks().len(), 2);
    check_blocks(&dataset, BlockCut::default());
}

#[test]
fn a_billion_records_take_memory_per_block_only() {
    let spec = RecordSpec::tokens(Dtype::U16, 1024, 1).unwrap();
    let shards = (0..16).map(|n| record_shard(&format!("{n:02}.bin"), 0, 2 * (1024 * (1 << 26) + 1))).collect();
    let dataset = Dataset::records(shards, spec, BlockCut::default()).unwrap();
    assert_eq!(dataset.samples(), 1 << 30);
    // One sample of overlap keeps a block of 4 MiB at 2,047 samples.
    assert_eq!((dataset.blocks()[0].samples, dataset.blocks().len()), (2047, 16 * (1usize << 26).div_ceil(2047)));
    let last = dataset.extent((1 << 30) - 1, 0).unwrap();
    assert_eq!((last.shard, last.end()), (15, dataset.shards()[15].size));
    assert_eq!(dataset.block_of((1 << 30) - 1), dataset.blocks().len() - 1);
    let spec = RecordSpec::tokens(Dtype::U16, 1024, 1).unwrap();
    let huge = vec![record_shard("huge.bin", 0, 1 << 62)];
    assert_eq!(Dataset::records(huge, spec, BlockCut { bytes: 1 }).unwrap_err().kind(), Kind::Unsupported);
}

#[test]
fn refuses_what_is_no_dataset() {
    let spec = || RecordSpec::rows(Dtype::F32, vec![2]).unwrap();
    let refuse = |shards| Dataset::records(shards, spec(), BlockCut::default()).unwrap_err();
    assert_eq!(refuse(vec![]).kind(), Kind::Config);
    let error = refuse(vec![record_shard("a.npy", 0, 4)]);
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.to_string().contains("no sample in 1 shards, and 1 elements"), "{error}");
    assert_eq!(refuse(vec![record_shard("a.npy", 0, 9)]).kind(), Kind::Corrupt);
    let mut cut_short = record_shard("a.npy", 128, 80);
    cut_short.shard.size = 200;
    assert_eq!(refuse(vec![cut_short.clone()]).kind(), Kind::Corrupt);
    cut_short.start = u64::MAX;
    assert_eq!(refuse(vec![cut_short]).kind(), Kind::Corrupt);
    assert_eq!(Dataset::members(Index::new(vec![]), BlockCut::default()).unwrap_err().kind(), Kind::Config);
}

#[test]
fn members_keep_fields_keys_and_digests() {
    let first = Archive::default().file("0.jpg", &[1; 600]).file("0.cls", b"7").file("1.cls", b"8");
    let second = Archive::default().file("2.txt", b"words").file("2.jpg", b"xy");
    let shards = vec![indexed("a.tar", first), indexed("none.tar", Archive::default()), indexed("b.tar", second)];
    let dataset = Dataset::members(Index::new(shards), BlockCut::default()).unwrap();
    let names: Vec<_> =
        dataset.fields().iter().map(|field| (field.name.as_str(), field.bytes_min, field.bytes_max)).collect();
    assert_eq!(names, [("jpg", 2, 600), ("cls", 1, 1), ("txt", 5, 5)]);
    assert_eq!((dataset.lacking(0), dataset.lacking(1), dataset.lacking(2), dataset.lacking(3)), (1, 1, 2, 3));
    assert_eq!((0..3).map(|sample| dataset.key(sample).into_owned()).collect::<Vec<_>>(), ["0", "1", "2"]);
    assert_eq!(dataset.extent(0, 0), Some(Extent { shard: 0, start: 512, len: 600 }));
    assert_eq!(dataset.extent(1, 0), None);
    assert_eq!(dataset.extent(2, 0), Some(Extent { shard: 2, start: 1536, len: 2 }));
    assert_eq!(dataset.crc32c(2, 2), Some(crc_fast::crc32_iscsi(b"words")));
    assert_eq!((dataset.crc32c(1, 0), dataset.crc32c(3, 0)), (None, None));
    check_blocks(&dataset, BlockCut::default());
}

#[test]
fn the_fingerprint_is_the_content_s_not_the_place_s() {
    let archive = || Archive::default().file("0.jpg", &[1; 600]).file("1.jpg", b"2");
    let print = |url: &str, archive, bytes| {
        let index = Index::new(vec![indexed(url, archive)]);
        Dataset::members(index, BlockCut { bytes }).unwrap().fingerprint()
    };
    let here = print("s3://b/x/a.tar", archive(), 100);
    assert_eq!(here, print("https://host/mirror/a.tar?token=1", archive(), 100));
    // Pinned: a saved state refers to it.
    assert_eq!(here, 12_431_116_840_368_981_009);
    let others = [
        print("s3://b/x/b.tar", archive(), 100),
        print("s3://b/x/a.tar", archive(), 101),
        print("s3://b/x/a.tar", archive().file("2.jpg", b""), 100),
        print("s3://b/x/a.tar", Archive::default().file("0.jpg", &[1; 601]).file("1.jpg", b"2"), 100),
        print("s3://b/x/a.tar", Archive::default().file("0.jpg", &[1; 600]).file("1.png", b"2"), 100),
        print("s3://b/x/a.tar", Archive::default().file("0.jpg", &[1; 600]).file("2.jpg", b"2"), 100),
    ];
    assert!(others.iter().all(|&other| other != here));

    let records = |url: &str, bytes, spec: RecordSpec, cut| {
        Dataset::records(vec![record_shard(url, 0, bytes)], spec, BlockCut { bytes: cut }).unwrap().fingerprint()
    };
    let tokens = |tokens, overlap| RecordSpec::tokens(Dtype::U16, tokens, overlap).unwrap();
    let here = records("s3://b/a.bin", 100, tokens(4, 1), 64);
    assert_eq!(here, records("/mnt/a.bin", 100, tokens(4, 1), 64));
    assert_eq!(here, 3_533_250_612_513_442_005);
    let others = [
        records("a.bin", 102, tokens(4, 1), 64),
        records("a.bin", 100, tokens(5, 0), 64),
        records("a.bin", 100, tokens(4, 0), 64),
        records("a.bin", 100, tokens(4, 1), 65),
        records("a.bin", 100, RecordSpec::tokens(Dtype::I16, 4, 1).unwrap(), 64),
    ];
    assert!(others.iter().all(|&other| other != here));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn records_are_cut_into_blocks(
        payloads in prop::collection::vec((0u64..200, 0u64..3000), 1..5),
        tokens in 1usize..40,
        overlap in 0usize..2,
        bytes in 0u64..600,
    ) {
        let shards = payloads.iter().map(|(start, elements)| record_shard("a.bin", *start, elements * 4)).collect();
        let spec = RecordSpec::tokens(Dtype::F32, tokens, overlap).unwrap();
        if let Ok(dataset) = Dataset::records(shards, spec, BlockCut { bytes }) {
            check_blocks(&dataset, BlockCut { bytes });
            for (number, (_, elements)) in payloads.iter().enumerate() {
                let in_shard = (0..dataset.samples()).filter_map(|sample| dataset.extent(sample, 0))
                    .filter(|extent| extent.shard as usize == number).count() as u64;
                prop_assert_eq!(in_shard, elements.saturating_sub(overlap as u64) / tokens as u64);
            }
        }
    }

    #[test]
    fn members_are_cut_into_blocks(
        shards in prop::collection::vec(prop::collection::vec(prop::collection::vec(0usize..2000, 1..4), 0..12), 1..4),
        bytes in 0u64..9000,
    ) {
        let index = shards.iter().map(|samples| {
            let mut archive = Archive::default();
            for (key, fields) in samples.iter().enumerate() {
                for (field, len) in fields.iter().enumerate() {
                    archive = archive.file(&format!("{key}.f{field}"), &vec![1; *len]);
                }
            }
            indexed("a.tar", archive)
        });
        if let Ok(dataset) = Dataset::members(Index::new(index.collect()), BlockCut { bytes }) {
            check_blocks(&dataset, BlockCut { bytes });
            prop_assert_eq!(dataset.samples() as usize, shards.iter().map(Vec::len).sum::<usize>());
        }
    }
}

#[test]
fn samples_are_found_by_their_names() {
    let spec = RecordSpec::tokens(Dtype::U16, 4, 0).unwrap();
    let shards = vec![record_shard("http://h/x/a.bin", 0, 40), record_shard("http://h/y/a.bin", 0, 40)];
    let dataset = Dataset::records(shards, spec, BlockCut::default()).unwrap();
    let named = |shard, key, number| Named { shard, key, number };
    let find = |name| dataset.find([name]).map_err(|error| error.kind());
    assert_eq!(find(named("/elsewhere/y/a.bin", Some("a.bin:2"), None)), Ok((vec![7], 0)));
    assert_eq!(find(named("x/a.bin", Some("a.bin:3"), Some(3))), Ok((vec![3], 0)));
    assert_eq!(find(named("y/a.bin", None, None)), Ok(((5..10).collect(), 0)));
    assert_eq!(find(named("z.bin", None, None)), Ok((vec![], 1)));
    assert_eq!(find(named("a.bin", None, None)), Err(Kind::Config));
    for (key, number) in [("a.bin:5", None), ("b.bin:1", None), ("a", None), ("a.bin:2", Some(3)), ("a.bin:9", Some(9))]
    {
        assert_eq!(find(named("x/a.bin", Some(key), number)), Err(Kind::NotFound), "{key}");
    }
    // A key may be there twice: both are meant unless one is numbered.
    let twice = |url| indexed(url, Archive::default().file("k.a", b"1").file("l.a", b"2").file("k.a", b"3"));
    let dataset = Dataset::members(Index::new(vec![twice("s.tar"), twice("t.tar")]), BlockCut::default()).unwrap();
    assert_eq!((dataset.samples_of(1), dataset.samples_of(2), dataset.shard_of(4)), (3..6, 0..0, Some((1, 1))));
    let names =
        [named("t.tar", Some("k"), None), named("s.tar", Some("k"), Some(2)), named("t.tar", Some("k"), Some(0))];
    assert_eq!(dataset.find(names).unwrap(), (vec![2, 3, 5], 0));
}
