use proptest::prelude::*;

use super::fixture::{Archive, Dialect, octal, pax};
use super::*;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    path: String,
    kind: EntryKind,
    start: u64,
    len: u64,
    crc32c: u32,
}

/// Everything that a scanner says of `bytes`, pushed in pieces of the given sizes, and then of one size.
fn scan(bytes: &[u8], size: Option<u64>, pieces: &[usize], last: usize) -> (Vec<Seen>, Result<()>) {
    let mut scanner = TarScanner::new(size);
    let mut seen = Vec::new();
    let mut rest = bytes;
    let mut pieces = pieces.iter().copied().chain(std::iter::repeat(last));
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(pieces.next().unwrap().clamp(1, rest.len()));
        let pushed = scanner.push(piece, |Entry { path, kind, start, len, crc32c, .. }| {
            seen.push(Seen { path: path.to_owned(), kind, start, len, crc32c });
            Ok(())
        });
        if let Err(error) = pushed {
            return (seen, Err(error));
        }
        rest = behind;
    }
    (seen, scanner.finish())
}

fn whole(bytes: &[u8]) -> Result<Vec<Seen>> {
    let (seen, result) = scan(bytes, Some(bytes.len() as u64), &[], usize::MAX);
    result.map(|()| seen)
}

fn refusal(bytes: &[u8]) -> (Kind, String) {
    let error = whole(bytes).unwrap_err();
    assert!(error.next_step().is_some(), "{error} comes without advice");
    (error.kind(), error.to_string())
}

fn digest(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

#[test]
fn finds_members_and_what_is_none() {
    let bytes = Archive::default()
        .member(b'5', "dir/", b"")
        .file("dir/a.jpg", b"123456789")
        .member(b'2', "link", b"")
        .member(b'3', "device", b"")
        .member(0, "old", &[7; 512])
        .member(0, "old-dir/", b"")
        .member(b'Z', "of unknown type", b"skipped")
        .file("empty", b"")
        .end();
    let seen = whole(&bytes).unwrap();
    let kinds: Vec<_> = seen.iter().map(|seen| (seen.path.as_str(), seen.kind)).collect();
    use EntryKind::{Directory, File, Link, Other};
    assert_eq!(
        kinds,
        [
            ("dir/", Directory),
            ("dir/a.jpg", File),
            ("link", Link),
            ("device", Other),
            ("old", File),
            ("old-dir/", Directory),
            ("of unknown type", Other),
            ("empty", File)
        ]
    );
    // The check value of crc32c.
    assert_eq!((seen[1].start, seen[1].len, seen[1].crc32c), (1024, 9, 0xe306_9283));
    for member in &seen {
        let payload = &bytes[member.start as usize..][..member.len as usize];
        assert_eq!(digest(payload), member.crc32c, "{}", member.path);
    }
}

#[test]
fn reads_long_names_in_every_dialect() {
    let long = format!("{}/{}.jpg", "directory/".repeat(12).trim_end_matches('/'), "n".repeat(90));
    for dialect in [Dialect::Ustar, Dialect::Gnu, Dialect::Pax] {
        let bytes = Archive::default().named(dialect, &long, b"x").file("next.cls", b"y").end();
        let paths: Vec<_> = whole(&bytes).unwrap().into_iter().map(|seen| seen.path).collect();
        assert_eq!(paths, [long.as_str(), "next.cls"], "{dialect:?}");
    }
}

#[test]
fn extension_headers_rule() {
    let mut base_256 = [0; 12];
    base_256[0] = 0x80;
    base_256[11] = 5;
    let bytes = Archive::default()
        .member(b'g', "global", &pax(&[("comment", "for all that follow")]))
        .raw(b'0', b"big.a", &base_256, b"12345")
        .member(b'K', "././@LongLink", b"a target that no one asks for\0")
        .member(b'x', "pax", &pax(&[("size", "3"), ("path", "p.b")]))
        .raw(b'0', b"p", &octal(0), b"abc")
        .raw(b'0', b"latin-\xe9.c", &octal(1), b"z")
        .end();
    let seen = whole(&bytes).unwrap();
    let named: Vec<_> = seen.iter().map(|seen| (seen.path.as_str(), seen.len, seen.crc32c)).collect();
    assert_eq!(named, [("big.a", 5, digest(b"12345")), ("p.b", 3, digest(b"abc")), ("latin-\\xe9.c", 1, digest(b"z"))]);
}

#[test]
fn refuses_what_it_cannot_read() {
    let sparse = Archive::default().member(b'S', "s", b"").end();
    assert_eq!(refusal(&sparse).0, Kind::Unsupported);
    let sparse = Archive::default().member(b'x', "x", &pax(&[("GNU.sparse.major", "1")])).file("s", b"").end();
    assert_eq!(
        refusal(&sparse),
        (Kind::Unsupported, "unsupported: sparse file at byte 1024 (make the shard again without --sparse)".into())
    );
    assert_eq!(refusal(&Archive::default().member(b'M', "m", b"").end()).0, Kind::Unsupported);
    let (kind, text) = refusal(&[&[0x1f, 0x8b, 8][..], &[0; 1024]].concat());
    assert_eq!(kind, Kind::Unsupported);
    assert!(text.contains("gzip"), "{text}");
    let joined = [Archive::default().file("a", b"1").end(), Archive::default().file("b", b"2").end()].concat();
    let (kind, text) = refusal(&joined);
    assert_eq!(kind, Kind::Unsupported);
    assert!(text.contains("another archive") && text.contains("byte 2048"), "{text}");
}

#[test]
fn finds_damage_and_says_where() {
    let good = || Archive::default().file("a.x", &[1; 700]).file("b.x", b"2");
    let mut flipped = good().end();
    flipped[1536 + 3] ^= 1;
    let mut zeroed = good().end();
    zeroed[1536..2048].fill(0);
    let lying = Archive::default().raw(b'0', b"a.x", &octal(1 << 30), b"short").end();
    let overflow =
        Archive::default().raw(b'0', b"a.x", &[0x80, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255], b"").end();
    let no_size = Archive::default().raw(b'0', b"a.x", b"not a number", b"").end();
    let long = Archive::default().raw(b'L', b"l", &octal(65_537), &[b'n'; 65_537]).file("a", b"").end();
    let pax_bad = Archive::default().member(b'x', "x", b"99 path=a\n").file("a", b"").end();
    for (bytes, what) in [
        (flipped, "no valid header at byte 1536"),
        (zeroed, "zero block between members in front of byte 2048"),
        (lying, "'a.x' at byte 0 claims 1073741824 bytes"),
        (overflow, "'a.x' at byte 0 claims 18446744073709551615 bytes"),
        (no_size, "no size in the header at byte 0"),
        (long, "extension header of 65537 bytes at byte 0"),
        (pax_bad, "PAX header that ends at byte 522"),
        (good().without_end(), "ends at byte 2560 without its end-of-archive mark"),
        (good().end()[..2600].to_vec(), "ends at byte 2600 without its end-of-archive mark"),
        (good().member(b'L', "l", b"name\0").end(), "extension header without its member in front of byte 3584"),
        (vec![], "archive of no bytes"),
        (b"<html>".repeat(100), "no tar archive"),
    ] {
        let (kind, text) = refusal(&bytes);
        assert_eq!(kind, Kind::Corrupt, "{text}");
        assert!(text.contains(what), "{text} does not say: {what}");
    }
    // Where the size is not known beforehand, the end tells.
    for (upto, what) in [(600, "612 bytes before the end of member 'a.x' of 700 bytes at byte 512"), (1300, "padding")]
    {
        let (_, result) = scan(&good().end()[..upto], None, &[], usize::MAX);
        let text = result.unwrap_err().to_string();
        assert!(text.contains(what), "{text} does not say: {what}");
    }
    let (_, result) = scan(&good().end(), Some(4096), &[], usize::MAX);
    assert!(result.unwrap_err().to_string().contains("archive of 4096 bytes ends at byte 3584"));
}

#[test]
fn tolerates_what_loses_nothing() {
    let archive = || Archive::default().file("a.x", b"1");
    for bytes in [archive().bytes(&[0; 512]).without_end(), archive().bytes(&[0; 10_240]).without_end(), {
        archive().bytes(&[0; 1024]).bytes(&[0xaa; 777]).without_end()
    }] {
        assert_eq!(whole(&bytes).unwrap().len(), 1);
    }
    assert_eq!(whole(&Archive::default().end()).unwrap(), []);
}

#[test]
fn stops_at_the_first_error() {
    let bytes = Archive::default().file("a.x", b"1").file("b.x", b"2").end();
    let mut scanner = TarScanner::default();
    let refused = scanner.push(&bytes, |_| Err(Error::new(Kind::Config, "no more")));
    assert_eq!(refused.unwrap_err().kind(), Kind::Config);
    assert_eq!(scanner.push(&bytes, |_| Ok(())).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(scanner.finish().unwrap_err().kind(), Kind::Corrupt);
}

fn members() -> impl Strategy<Value = Vec<(Dialect, String, Vec<u8>)>> {
    let dialect = prop::sample::select(vec![Dialect::Ustar, Dialect::Gnu, Dialect::Pax]);
    let payload = prop::collection::vec(any::<u8>(), 0..1600);
    prop::collection::vec((dialect, "[a-z][a-zé/]{0,30}/[a-z]{1,90}", payload), 0..6)
}

fn write(members: &[(Dialect, String, Vec<u8>)]) -> Vec<u8> {
    let archive = members
        .iter()
        .fold(Archive::default(), |archive, (dialect, path, payload)| archive.named(*dialect, path, payload));
    archive.end()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_written_is_found_however_it_comes(
        members in members(),
        pieces in prop::collection::vec(1usize..2000, 0..20),
        last in 1usize..700,
    ) {
        let bytes = write(&members);
        let (seen, result) = scan(&bytes, Some(bytes.len() as u64), &pieces, last);
        result.unwrap();
        prop_assert_eq!(seen.len(), members.len());
        for (seen, (_, path, payload)) in seen.iter().zip(&members) {
            prop_assert_eq!(&seen.path, path);
            prop_assert_eq!(&bytes[seen.start as usize..][..seen.len as usize], payload.as_slice());
            prop_assert_eq!(seen.crc32c, digest(payload));
        }
    }

    #[test]
    fn damage_says_the_same_however_it_comes(
        members in members(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        known in any::<bool>(),
        last in 1usize..700,
    ) {
        let mut bytes = write(&members);
        let size = known.then_some(bytes.len() as u64);
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let (seen, result) = scan(&bytes, size, &[], usize::MAX);
        let (seen_in_pieces, result_in_pieces) = scan(&bytes, size, &[], last);
        prop_assert_eq!(&seen, &seen_in_pieces);
        prop_assert_eq!(result.map_err(|e| e.to_string()), result_in_pieces.map_err(|e| e.to_string()));
        for seen in seen {
            let payload = &bytes[seen.start as usize..][..seen.len as usize];
            prop_assert_eq!(seen.crc32c, digest(payload));
        }
    }

    #[test]
    fn headers_may_claim_anything(
        headers in prop::collection::vec(
            (any::<u8>(), prop::sample::select(b"00LKxgXS15".to_vec()), any::<bool>(), any::<[u8; 12]>(), 0u64..3000,
             prop::collection::vec(any::<u8>(), 0..600)),
            1..5,
        ),
        last in 1usize..700,
    ) {
        let archive = headers.into_iter().fold(Archive::default(), |archive, (any, typeflag, wild, bytes, size, payload)| {
            let (typeflag, size) = if wild { (any, bytes) } else { (typeflag, octal(size)) };
            archive.raw(typeflag, b"path", &size, &payload)
        });
        let bytes = archive.end();
        for size in [None, Some(bytes.len() as u64)] {
            let (seen, result) = scan(&bytes, size, &[], usize::MAX);
            let (seen_in_pieces, result_in_pieces) = scan(&bytes, size, &[], last);
            prop_assert_eq!(&seen, &seen_in_pieces);
            prop_assert_eq!(result.map_err(|e| e.to_string()), result_in_pieces.map_err(|e| e.to_string()));
            prop_assert!(seen.iter().all(|seen| seen.start + seen.len <= bytes.len() as u64));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let (seen, result) = scan(&bytes, None, &[], 512);
        prop_assert!(seen.is_empty() && result.is_err());
    }
}
