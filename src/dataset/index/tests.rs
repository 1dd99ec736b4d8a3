use proptest::prelude::*;

use super::*;
use crate::dataset::catalog::{Shard, Version};
use crate::dataset::members::{Member, Row, Samples, Skipped};
use crate::dataset::tar::fixture::Archive;
use crate::dataset::webdataset::ShardIndexer;

/// A shard's index with one sample per key, of one field.
fn shard(url: &str, keys: &[&str]) -> ShardIndex {
    let archive =
        keys.iter().fold(Archive::default(), |archive, key| archive.file(&format!("{key}.txt"), key.as_bytes()));
    let bytes = archive.end();
    let shard = Shard { url: url.to_owned(), size: bytes.len() as u64, version: Some(Version("\"etag\"".into())) };
    let mut indexer = ShardIndexer::new(shard);
    indexer.push(&bytes).unwrap();
    indexer.finish().unwrap()
}

fn urls(index: &Index) -> Vec<&str> {
    index.shards.iter().map(|shard| shard.shard.url.as_str()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn the_format_stays_what_it_is() {
    let index =
        Index::new(vec![shard("s3://bucket/train/0.tar", &["a", "b"]), shard("s3://bucket/train/1.tar", &["c"])]);
    // What is compressed may change with the compressor; what it decompresses to may not.
    assert_eq!(hex(&codec::payload(&index)), GOLDEN_PAYLOAD);
    let mut renamed = index.clone();
    renamed.shards[0].shard.url = "0.tar".into();
    renamed.shards[1].shard.url = "1.tar".into();
    assert_eq!(Index::decode(&unhex(GOLDEN_FILE)).unwrap(), renamed);
    assert_eq!(Index::decode(&unhex(GOLDEN_STORED)).unwrap(), renamed);
    assert_eq!(Index::decode(&index.encode()).unwrap(), renamed);
}

const GOLDEN_PAYLOAD: &str = "\
    0205302e746172801801062265746167220000000000010374787401020201610162010100008008800801013043d0c1c4b0\
    80d205312e746172801001062265746167220000000000010374787401010101630100800801c733eb20\
";
/// Compressed, as it was once written.
const GOLDEN_FILE: &str = "\
    894646494e44580a010000000100000054000000000000005c00000000000000319f557c6603bd0a28b52ffd205c5d020004\
    040205302e7461728018010622657461672200010374787401020201610162010100008008800801013043d0c1c4b080d205\
    3110010101630100800801c733eb2003002005acbac70261\
";
/// Not compressed; its digests were computed by other means.
const GOLDEN_STORED: &str = "\
    894646494e44580a01000000000000005c000000000000005c000000000000000cf7ec5545f427120205302e746172801801\
    062265746167220000000000010374787401020201610162010100008008800801013043d0c1c4b080d205312e7461728010\
    01062265746167220000000000010374787401010101630100800801c733eb20\
";

#[test]
fn names_are_relative_to_what_shards_share() {
    for (urls_in, names) in [
        (&["s3://b/x/0.tar", "s3://b/x/1.tar"][..], &["0.tar", "1.tar"][..]),
        (&["s3://b/x/0.tar", "s3://b/y/0.tar"], &["x/0.tar", "y/0.tar"]),
        (
            &["s3://b/train-a/0.tar", "s3://b/train-b/0.tar", "s3://b/0.tar"],
            &["train-a/0.tar", "train-b/0.tar", "0.tar"],
        ),
        (&["https://h/x/0.tar?token=secret"], &["0.tar"]),
        (&["0.tar", "d/1.tar"], &["0.tar", "d/1.tar"]),
    ] {
        let index = Index::new(urls_in.iter().map(|url| shard(url, &["a"])).collect());
        assert_eq!(urls(&Index::decode(&index.encode()).unwrap()), names);
    }
}

#[test]
fn selects_by_last_components() {
    let index = Index::new(vec![shard("x/0.tar", &["a"]), shard("y/0.tar", &["b"]), shard("1.tar", &["c"])]);
    let wanted = ["http://other/1.tar?sig", "gs://other/y/0.tar", "gs://other/1.tar", "/mnt/x/0.tar"];
    let selected = index.clone().select(&wanted).unwrap();
    assert_eq!(urls(&selected), wanted);
    let keys: Vec<_> = selected.shards.iter().map(|shard| shard.key(0).unwrap()).collect();
    assert_eq!(keys, ["c", "b", "c", "a"]);
    let error = index.clone().select(&["https://other/2.tar?secret"]).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(
        error.to_string(),
        "not found: shard https://other/2.tar is not in the index (run `farfeed index` on the shards again)"
    );
    assert_eq!(index.select(&["gs://other/0.tar"]).unwrap_err().kind(), Kind::Config);
}

#[test]
fn lies_beside_the_shards() {
    for (pattern, url) in [
        ("s3://b/train-{0000..0255}.tar", "s3://b/train.ffindex"),
        ("s3://b/d/{0000..0255}.tar", "s3://b/d/dataset.ffindex"),
        ("s3://b/{train,val}/{0..9}.tar", "s3://b/dataset.ffindex"),
        ("x.tar", "x.tar.ffindex"),
        ("/data/x-.tar", "/data/x-.tar.ffindex"),
        ("dir/", "dir/dataset.ffindex"),
        ("https://h/c/t_{0..9}.tar?sas=1/2", "https://h/c/t.ffindex?sas=1/2"),
    ] {
        assert_eq!(index_url(pattern), url);
    }
}

#[test]
fn claims_are_not_believed() {
    let good = Index::new(vec![shard("0.tar", &["a", "b"])]).encode();
    let kind = |bytes: &[u8]| Index::decode(bytes).unwrap_err().kind();
    assert_eq!(kind(b""), Kind::Corrupt);
    assert_eq!(kind(&good[..good.len() - 1]), Kind::Corrupt);
    assert_eq!(kind(&[&good[..], b"x"].concat()), Kind::Corrupt);
    for place in 0..good.len() {
        let mut bad = good.clone();
        bad[place] ^= 0x40;
        let error = Index::decode(&bad).unwrap_err();
        let expected = if (8..12).contains(&place) { Kind::Unsupported } else { Kind::Corrupt };
        assert_eq!((error.kind(), error.next_step().is_some()), (expected, true), "byte {place}: {error}");
    }
    // Sealed with good digests, so that only what is inside can be refused.
    let zeros = zstd::bulk::compress(&vec![0; 8 << 20], 1).unwrap();
    for (flags, stored, raw_bytes, what) in [
        (1, &zeros[..], 1 << 40, "claims 1099511627776 decompressed"),
        (1, &zeros, 100, "other than 100 bytes"),
        (1, &zeros, 9 << 20, "other than 9437184 bytes"),
        (1, &zeros, 8 << 20, "more than an index holds"),
        (1, b"no frame", 100, "does not decompress"),
        (0, b"\xff\xff\xff\xff\x0f", 5, "fewer bytes than it claims"),
        (0, b"\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05\x05", 13, "fewer bytes than it claims"),
        (0, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 10, "more than 64 bits"),
        (2, b"\x00", 1, "unknown kind 2"),
    ] {
        let error = Index::decode(&codec::seal(flags, stored, raw_bytes)).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains(what), "{error} does not say: {what}");
    }
}

/// Samples as a scanner would find them: keys, and for each member its field, the gap in front of it, its length and digest.
type Rows = Vec<(String, Vec<(u16, u64, u32, u32)>)>;

fn rows() -> impl Strategy<Value = Rows> {
    let member = (0u16..3, 0u64..5000, 0u32..1_000_000, any::<u32>());
    let row = prop::collection::vec(member, 1..4).prop_map(|mut members| {
        members.sort_by_key(|member| member.0);
        members.dedup_by_key(|member| member.0);
        members
    });
    prop::collection::vec(("[a-zé0-9/]{0,12}", row), 0..20)
}

fn packed(number: usize, rows: &Rows, digests: bool, version: &Option<String>) -> ShardIndex {
    let mut samples = Samples::default();
    let mut end = 0u64;
    for (key, members) in rows {
        samples.keys.push_str(key);
        let base = end + members[0].1;
        for (field, gap, len, crc32c) in members {
            let offset = (end + gap - base) as u32;
            end += gap + u64::from(*len);
            samples.members.push(Member {
                offset,
                len: *len,
                crc32c: if digests { *crc32c } else { 0 },
                field: *field,
            });
        }
        let (key_end, member_end) = (samples.keys.len() as u32, samples.members.len() as u32);
        samples.rows.push(Row { base, key_end, member_end });
    }
    let version = version.as_deref().map(|version| Version(version.into()));
    ShardIndex {
        shard: Shard { url: format!("{number}.tar"), size: end, version },
        skipped: Skipped { directories: 1, links: 2, others: 3, meta: 4, unnamed: u64::MAX },
        fields: ["jpg", "cls", "é.json"].map(String::from).to_vec(),
        digests,
        samples,
    }
}

fn indexes() -> impl Strategy<Value = Index> {
    let shard = (rows(), any::<bool>(), prop::option::of("[ -~]{0,12}"));
    prop::collection::vec(shard, 0..5).prop_map(|shards| {
        let shards = shards.iter().enumerate();
        Index::new(shards.map(|(number, (rows, digests, version))| packed(number, rows, *digests, version)).collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn round_trip(index in indexes()) {
        let bytes = index.encode();
        let decoded = Index::decode(&bytes).unwrap();
        prop_assert_eq!(&decoded, &index);
        prop_assert_eq!(decoded.encode(), bytes);
    }

    #[test]
    fn sealed_lies_are_refused_or_consistent(
        index in indexes(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut raw = codec::payload(&index);
        for (place, byte) in changes {
            let place = place.index(raw.len());
            raw[place] = byte;
        }
        raw.truncate(cut.map_or(raw.len(), |cut| cut.index(raw.len() + 1)));
        if let Ok(decoded) = Index::decode(&codec::seal(0, &raw, raw.len() as u64)) {
            for shard in &decoded.shards {
                let members = (0..shard.samples()).flat_map(|number| shard.members(number));
                let mut end = 0;
                for place in members {
                    prop_assert!(place.start >= end);
                    end = place.start + place.len;
                }
                prop_assert!(end <= shard.shard.size);
            }
            // 16 bytes a row and a member, each of which takes 2 and 3 of the file's.
            prop_assert!(decoded.memory_bytes() <= 16 * raw.len());
        }
    }

    #[test]
    fn any_payload_is_read_or_refused(raw in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Index::decode(&codec::seal(0, &raw, raw.len() as u64));
        let _ = Index::decode(&codec::seal(1, &raw, 1 << 20));
        prop_assert!(Index::decode(&raw).is_err());
    }
}
