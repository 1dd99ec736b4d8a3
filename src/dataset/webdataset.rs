//! WebDataset's convention: neighbouring members of a tar file that differ in their extension only are one sample.

use std::collections::HashMap;

use super::catalog::Shard;
use super::location::path as without_query;
use super::members::{Member, Row, Samples, ShardIndex, Skipped};
use super::tar::{Entry, EntryKind, TarScanner};
use crate::error::{Error, Kind, Result};

/// Makes the index of one tar shard as its bytes stream by.
#[derive(Debug)]
pub struct ShardIndexer {
    scanner: TarScanner,
    grouping: Grouping,
}

impl ShardIndexer {
    /// An indexer for `shard`, whose size is held against what comes.
    pub fn new(shard: Shard) -> Self {
        let index = ShardIndex {
            shard,
            skipped: Skipped::default(),
            fields: Vec::new(),
            digests: true,
            samples: Samples::default(),
        };
        let scanner = TarScanner::new(Some(index.shard.size));
        ShardIndexer { scanner, grouping: Grouping { index, numbers: HashMap::new() } }
    }

    /// Bytes pushed so far.
    pub fn position(&self) -> u64 {
        self.scanner.position()
    }

    /// Takes the shard's next bytes, in any pieces.
    ///
    /// # Errors
    /// `Corrupt` and `Unsupported` as [`TarScanner::push`]; `Corrupt` where a sample has a field twice; `Unsupported` for samples
    /// of 4 GiB and more. Each names the shard.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let grouping = &mut self.grouping;
        self.scanner.push(bytes, |entry| grouping.add(entry)).map_err(|error| self.grouping.name(error))
    }

    /// The index, when all bytes have been pushed.
    ///
    /// # Errors
    /// `Corrupt` where the archive is cut short.
    pub fn finish(self) -> Result<ShardIndex> {
        self.scanner.finish().map_err(|error| self.grouping.name(error))?;
        let mut index = self.grouping.index;
        index.samples.shrink();
        Ok(index)
    }
}

#[derive(Debug)]
struct Grouping {
    index: ShardIndex,
    /// Place of each field in the index's list.
    numbers: HashMap<String, u16>,
}

impl Grouping {
    fn add(&mut self, entry: Entry<'_>) -> Result<()> {
        let skipped = &mut self.index.skipped;
        match entry.kind {
            EntryKind::Directory => skipped.directories += 1,
            EntryKind::Link => skipped.links += 1,
            EntryKind::Other => skipped.others += 1,
            EntryKind::File if is_meta(entry.path) => skipped.meta += 1,
            EntryKind::File => match split(entry.path) {
                None => skipped.unnamed += 1,
                Some((key, extension)) => return self.add_member(entry, key, &extension.to_lowercase()),
            },
        }
        Ok(())
    }

    fn add_member(&mut self, entry: Entry<'_>, key: &str, field: &str) -> Result<()> {
        let field_number = self.number(field)?;
        let samples = &mut self.index.samples;
        let last = samples.rows.len().checked_sub(1).filter(|&last| samples.key(last) == Some(key));
        if last.is_some_and(|last| samples.member(last, usize::from(field_number)).is_some()) {
            return Err(Error::new(
                Kind::Corrupt,
                format!("sample '{key}' has field '{field}' a second time at byte {}", entry.header),
            )
            .advice("write each field of a sample once, and neighbouring samples under different keys"));
        }
        let base = last.map_or(entry.start, |last| samples.rows[last].base);
        let narrow = |wide: u64| u32::try_from(wide).ok();
        let packed = (|| {
            narrow(entry.start - base + entry.len)?;
            Some(Member {
                offset: narrow(entry.start - base)?,
                len: narrow(entry.len)?,
                crc32c: entry.crc32c,
                field: field_number,
            })
        })();
        let member = packed.ok_or_else(|| {
            Error::new(Kind::Unsupported, format!("sample '{key}' spans 4 GiB or more at byte {}", entry.header))
                .advice("split the sample: it is read, held and copied as one")
        })?;
        samples.members.push(member);
        let key_bytes = samples.keys.len() as u64 + if last.is_some() { 0 } else { key.len() as u64 };
        let (Some(key_end), Some(member_end)) = (narrow(key_bytes), narrow(samples.members.len() as u64)) else {
            return Err(Error::new(Kind::Unsupported, "more than 2^32 members, or 4 GiB of keys, in one shard")
                .advice("write smaller shards"));
        };
        match last {
            Some(last) => samples.rows[last].member_end = member_end,
            None => {
                samples.keys.push_str(key);
                samples.rows.push(Row { base, key_end, member_end });
            }
        }
        Ok(())
    }

    fn number(&mut self, field: &str) -> Result<u16> {
        if let Some(&number) = self.numbers.get(field) {
            return Ok(number);
        }
        let number = u16::try_from(self.index.fields.len()).map_err(|_| {
            Error::new(Kind::Unsupported, "more than 65,536 fields in one shard")
                .advice("a field is a member's name behind its first dot: are there dots in the keys?")
        })?;
        self.index.fields.push(field.to_owned());
        self.numbers.insert(field.to_owned(), number);
        Ok(number)
    }

    fn name(&self, error: Error) -> Error {
        error.within(without_query(&self.index.shard.url))
    }
}

/// Key and extension: the path is cut at the first dot of its last component. None where either would be empty of a name.
fn split(path: &str) -> Option<(&str, &str)> {
    let name_start = path.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name_start + path[name_start..].find('.')?;
    (dot > name_start && dot + 1 < path.len()).then(|| (&path[..dot], &path[dot + 1..]))
}

/// Whether the first component is `__name__`.
fn is_meta(path: &str) -> bool {
    let first = path.split('/').next().unwrap_or(path);
    first.len() >= 4 && first.starts_with("__") && first.ends_with("__")
}

#[cfg(test)]
mod tests {
    use super::super::members::MemberPlace;
    use super::super::tar::fixture::Archive;
    use super::*;

    fn index(bytes: &[u8]) -> Result<ShardIndex> {
        let url = "https://host/train-0.tar?signature=secret".to_owned();
        let mut indexer = ShardIndexer::new(Shard { url, size: bytes.len() as u64, version: None });
        bytes.chunks(100).try_for_each(|piece| indexer.push(piece))?;
        assert_eq!(indexer.position(), bytes.len() as u64);
        indexer.finish()
    }

    #[test]
    fn names() {
        assert_eq!(split("a/b.c/000.seg.PNG"), Some(("a/b.c/000", "seg.PNG")));
        assert_eq!(split("000.jpg"), Some(("000", "jpg")));
        for none in ["000", "a/.hidden", "a/000.", ".", ""] {
            assert_eq!(split(none), None, "{none}");
        }
        assert!(is_meta("__worker__") && is_meta("__info__/x.json") && is_meta("____"));
        assert!(!is_meta("__x__.json") && !is_meta("a/__x__") && !is_meta("___"));
    }

    #[test]
    fn groups_neighbours_of_one_key() {
        let bytes = Archive::default()
            .member(b'5', "d/", b"")
            .file("__info__/written-by.json", b"{}")
            .file("d/0.JPG", b"picture")
            .file("d/0.cls", b"7")
            .member(b'2', "d/0.link", b"")
            .file("README", b"no sample")
            .file("d/0.Seg.Png", b"mask")
            .file("d/1.cls", b"8")
            .end();
        let index = index(&bytes).unwrap();
        assert_eq!(index.skipped, Skipped { directories: 1, links: 1, others: 0, meta: 1, unnamed: 1 });
        assert_eq!(index.skipped.total(), 4);
        let samples: Vec<(_, Vec<_>)> =
            (0..index.samples()).map(|number| (index.key(number).unwrap(), index.members(number).collect())).collect();
        let fields =
            |number: usize| samples[number].1.iter().map(|place: &MemberPlace<'_>| place.field).collect::<Vec<_>>();
        assert_eq!((samples.len(), samples[0].0, samples[1].0), (2, "d/0", "d/1"));
        assert_eq!((fields(0), fields(1)), (vec!["jpg", "cls", "seg.png"], vec!["cls"]));
        for (place, payload) in samples.iter().flat_map(|sample| &sample.1).zip(["picture", "7", "mask", "8"]) {
            assert_eq!(&bytes[place.start as usize..][..place.len as usize], payload.as_bytes());
            assert_eq!(place.crc32c, Some(crc_fast::crc32_iscsi(payload.as_bytes())));
        }
        assert_eq!((index.key(2), index.members(2).count()), (None, 0));
    }

    #[test]
    fn names_the_shard_and_the_twin_but_no_secret() {
        let bytes = Archive::default().file("0.jpg", b"1").file("0.JPG", b"2").end();
        let error = index(&bytes).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        let text = error.to_string();
        assert!(
            text.contains("https://host/train-0.tar: sample '0' has field 'jpg' a second time at byte 1024"),
            "{text}"
        );
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn refuses_a_sample_that_cannot_be_held() {
        let mut grouping = ShardIndexer::new(Shard { url: "a.tar".into(), size: 0, version: None }).grouping;
        let entry =
            |path, start, len| Entry { path, kind: EntryKind::File, header: start - 512, start, len, crc32c: 0 };
        grouping.add(entry("0.a", 512, 1)).unwrap();
        grouping.add(entry("0.b", 2 << 30, (2 << 30) + 511)).unwrap();
        let error = grouping.add(entry("0.c", (4 << 30) + 1024, 1)).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("sample '0' spans 4 GiB"), "{error}");
        grouping.add(entry("1.c", (4 << 30) + 1024, 1)).unwrap();
    }
}
