//! Reading everything once against the index's digests: which samples are bad, before any rank meets them.

use std::sync::Arc;

use crc_fast::{CrcAlgorithm, Digest};

use super::LoaderBuilder;
use super::indexing::{find_or_make, listed_keys};
use super::quarantine::Quarantined;
use super::source::{Format, Object, shards};
use super::value;
use crate::dataset::{Extent, Index, MemberPlace, ShardIndex, index_url};
use crate::error::{Error, Kind, Result};
use crate::fetch::{Source, extents, heads, stream};
use crate::store::ObjectMeta;
use crate::telemetry::Telemetry;

/// How far a scan is, or what it came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scanned {
    /// Bytes read.
    pub bytes: u64,
    /// Bytes there should be.
    pub bytes_total: u64,
    /// Shards that are done.
    pub shards: usize,
    /// Shards there are.
    pub shards_total: usize,
    /// Samples of the shards that are done.
    pub samples: u64,
    /// Samples that are bad: all of a shard that is gone or of another size.
    pub bad: u64,
}

/// Bytes of fields that are read a second time at once.
const AGAIN_BYTES: u64 = 64 << 20;

impl LoaderBuilder {
    /// Reads every byte of the tar shards once, in order and at the speed of the link, and holds each field against its digest in the index; a
    /// field that fails is read once more. `found` is told of each bad field, and of each shard that is gone or has another size as
    /// a whole. Of the options, those of shards, stores, index and retries count.
    ///
    /// # Errors
    /// `NotFound` where there is no index; `Unsupported` for formats and indexes without digests; what the link does; and those of `found`.
    pub fn scan(
        self,
        mut progress: impl FnMut(Scanned),
        found: impl FnMut(Quarantined) -> Result<()>,
    ) -> Result<Scanned> {
        let mut stores = self.open_stores(16);
        let telemetry = Arc::new(Telemetry::new(0));
        let objects = shards(&self.patterns, &mut stores, |prefix| listed_keys(prefix, self.policy))?;
        if let Some(other) = objects.iter().find(|object| Format::of(&object.url).ok() != Some(Format::Tar)) {
            return Err(Error::new(Kind::Unsupported, format!("{}: only tar shards have digests", other.url))
                .advice("compare files of records with their originals by a tool for checksums"));
        }
        let at = stores.object(&self.index.clone().unwrap_or_else(|| index_url(&self.patterns[0])))?;
        let index = find_or_make(&objects, Some(&at), true, self.policy, &telemetry, &self.on_index)?;
        if let Some(bare) = index.shards().iter().find(|shard| !has_digests(shard)) {
            return Err(Error::new(Kind::Unsupported, format!("{}: no digests of {}", at.url, bare.shard.url))
                .advice("make the index again with `farfeed index`, from shards that are known to be good"));
        }
        let mut so_far = Scanned {
            bytes_total: index.shards().iter().map(|shard| shard.shard.size).sum(),
            shards_total: objects.len(),
            ..Scanned::default()
        };
        progress(so_far);
        let mut scan = Scan { builder: &self, objects: &objects, index: &index, telemetry, found, last: None };
        let there = scan.there(&mut so_far)?;
        scan.read_all(&there, &mut so_far, &mut progress)?;
        Ok(so_far)
    }
}

fn has_digests(shard: &ShardIndex) -> bool {
    (0..shard.samples()).all(|number| shard.members(number).all(|member| member.crc32c.is_some()))
}

#[derive(Clone, Copy)]
struct Told {
    shard: usize,
    sample: u64,
    start: u64,
}

struct Scan<'a, F> {
    builder: &'a LoaderBuilder,
    objects: &'a [Object],
    index: &'a Index,
    telemetry: Arc<Telemetry>,
    found: F,
    /// What was told of last: it may have to be read again with what follows.
    last: Option<Told>,
}

impl<F: FnMut(Quarantined) -> Result<()>> Scan<'_, F> {
    /// The shards that are there, in the index's size; the others are told of.
    fn there(&mut self, so_far: &mut Scanned) -> Result<Vec<usize>> {
        let sources: Vec<Source> = (0..self.objects.len()).map(|shard| self.source(shard)).collect();
        let metas: Vec<Result<ObjectMeta>> = match heads(&sources, self.builder.policy) {
            Ok(metas) => metas.into_iter().map(Ok).collect(),
            // It is one of them: each for itself.
            Err(error) if error.is_in_object() => {
                let one = |source| Ok(heads(std::slice::from_ref(source), self.builder.policy)?.remove(0));
                sources.iter().map(one).collect()
            }
            Err(error) => return Err(error),
        };
        let mut there = Vec::with_capacity(metas.len());
        for (shard, meta) in metas.into_iter().enumerate() {
            let expected = self.index.shards()[shard].shard.size;
            match meta {
                Ok(meta) if meta.size == expected => there.push(shard),
                Ok(meta) => {
                    let what = format!("the object has {} bytes, the index says {expected}", meta.size);
                    self.lose(shard, &Error::new(Kind::Corrupt, what), so_far)?;
                }
                Err(error) if error.is_in_object() => self.lose(shard, &error, so_far)?,
                Err(error) => return Err(error),
            }
        }
        Ok(there)
    }

    fn read_all(&mut self, there: &[usize], so_far: &mut Scanned, progress: &mut impl FnMut(Scanned)) -> Result<()> {
        let mut rest = there;
        let mut alone = false;
        while !rest.is_empty() {
            let group = if alone { &rest[..1] } else { rest };
            let before = *so_far;
            let mut done = 0;
            match self.read_group(group, &mut done, so_far, progress) {
                Ok(()) => (rest, alone) = (&rest[group.len()..], false),
                Err(error) if error.is_in_object() => {
                    // Those before are done; which one it is, is seen when the next one is read alone.
                    if alone {
                        *so_far = before;
                        self.lose(rest[0], &error, so_far)?;
                        done = 1;
                    }
                    (rest, alone) = (&rest[done..], !alone);
                }
                Err(error) => return Err(error),
            }
        }
        progress(*so_far);
        Ok(())
    }

    /// Reads whole shards one after the other; counts in `done` those that are finished.
    fn read_group(
        &mut self,
        group: &[usize],
        done: &mut usize,
        so_far: &mut Scanned,
        progress: &mut impl FnMut(Scanned),
    ) -> Result<()> {
        let sources = group.iter().map(|shard| self.source(*shard)).collect();
        let sizes: Vec<u64> = group.iter().map(|shard| self.index.shards()[*shard].shard.size).collect();
        let (index, policy, telemetry) = (self.index, self.builder.policy, Arc::clone(&self.telemetry));
        let mut at_start = so_far.bytes;
        let mut walk = Walk::new(&index.shards()[group[0]]);
        let outcome = stream(sources, &sizes, policy, &telemetry, |place, at, bytes| {
            while *done < place {
                self.finish(group[*done], &mut walk, so_far)?;
                *done += 1;
                walk = Walk::new(&index.shards()[group[*done]]);
                at_start = so_far.bytes;
            }
            walk.push(at, bytes);
            so_far.bytes = at_start + at + bytes.len() as u64;
            if walk.suspect_bytes >= AGAIN_BYTES {
                self.tell(group[place], &mut walk, so_far)?;
            }
            progress(*so_far);
            Ok(())
        });
        if let Err(error) = outcome {
            so_far.bytes = at_start;
            return Err(error);
        }
        while *done < group.len() {
            self.finish(group[*done], &mut walk, so_far)?;
            *done += 1;
            if let Some(next) = group.get(*done) {
                walk = Walk::new(&index.shards()[*next]);
            }
        }
        Ok(())
    }

    fn finish(&mut self, shard: usize, walk: &mut Walk<'_>, so_far: &mut Scanned) -> Result<()> {
        walk.end();
        self.tell(shard, walk, so_far)?;
        so_far.shards += 1;
        so_far.samples += self.index.shards()[shard].samples() as u64;
        Ok(())
    }

    /// Reads suspects once more, and tells of those that are still bad.
    fn tell(&mut self, shard: usize, walk: &mut Walk<'_>, so_far: &mut Scanned) -> Result<()> {
        let suspects = std::mem::take(&mut walk.suspects);
        walk.suspect_bytes = 0;
        let there: Vec<&(u64, MemberPlace<'_>)> = suspects.iter().filter(|(_, place)| place.len > 0).collect();
        let wanted: Vec<Extent> =
            there.iter().map(|(_, place)| Extent { shard: 0, start: place.start, len: place.len }).collect();
        let again = extents(vec![self.source(shard)], &wanted, self.builder.policy, &self.telemetry)?;
        let mut again = again.iter();
        for (number, place) in &suspects {
            let bytes = if place.len > 0 { again.next().map_or(&[][..], Vec::as_slice) } else { &[] };
            let (found, expected) = (value::crc32c(std::iter::once(bytes)), place.crc32c.unwrap_or_default());
            if found == expected {
                continue;
            }
            let last = self.last.filter(|last| last.shard == shard);
            if last.is_some_and(|last| place.start <= last.start) {
                continue;
            }
            so_far.bad += u64::from(last.is_none_or(|last| last.sample != *number));
            self.last = Some(Told { shard, sample: *number, start: place.start });
            let what = format!("crc32c is {found:08x}, the index has {expected:08x}");
            self.report(shard, Some((*number, place)), &Error::new(Kind::Corrupt, what))?;
        }
        Ok(())
    }

    /// Tells of a whole shard.
    fn lose(&mut self, shard: usize, error: &Error, so_far: &mut Scanned) -> Result<()> {
        let index = &self.index.shards()[shard];
        so_far.bad += index.samples() as u64;
        so_far.samples += index.samples() as u64;
        so_far.shards += 1;
        self.report(shard, None, error)
    }

    fn report(&mut self, shard: usize, field: Option<(u64, &MemberPlace<'_>)>, error: &Error) -> Result<()> {
        let index = &self.index.shards()[shard];
        (self.found)(Quarantined {
            shard: index.shard.url.clone(),
            key: field.and_then(|(number, _)| index.key(number as usize)).map(str::to_owned),
            number: field.map(|(number, _)| number),
            field: field.map(|(_, place)| place.field.to_owned()),
            start: field.map(|(_, place)| place.start),
            bytes: field.map(|(_, place)| place.len),
            reason: error.summary(),
        })
    }

    fn source(&self, shard: usize) -> Source {
        self.objects[shard].source(Some(self.index.shards()[shard].shard.size))
    }
}

/// A shard's bytes going by, and the members that they are held against.
struct Walk<'a> {
    /// Members that are not over yet, in the order of the shard, each with its sample's number.
    members: Box<dyn Iterator<Item = (u64, MemberPlace<'a>)> + 'a>,
    current: Option<(u64, MemberPlace<'a>)>,
    digest: Digest,
    /// Those whose bytes were not the right ones.
    suspects: Vec<(u64, MemberPlace<'a>)>,
    suspect_bytes: u64,
}

impl<'a> Walk<'a> {
    fn new(shard: &'a ShardIndex) -> Self {
        let of = |number: usize| shard.members(number).map(move |place| (number as u64, place));
        let mut members: Box<dyn Iterator<Item = _>> = Box::new((0..shard.samples()).flat_map(of));
        let current = members.next();
        Walk { members, current, digest: fresh(), suspects: Vec::new(), suspect_bytes: 0 }
    }

    /// The bytes from `at` on, which follow those before.
    fn push(&mut self, at: u64, bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        while let Some((_, place)) = &self.current {
            let member_end = place.start + place.len;
            let (from, to) = (place.start.clamp(at, end), member_end.clamp(at, end));
            self.digest.update(&bytes[(from - at) as usize..(to - at) as usize]);
            if member_end > end {
                break;
            }
            self.next();
        }
    }

    /// The shard is over; so are members that its last bytes did not reach, those of no bytes among them.
    fn end(&mut self) {
        while self.current.is_some() {
            self.next();
        }
    }

    fn next(&mut self) {
        let found = std::mem::replace(&mut self.digest, fresh()).finalize() as u32;
        if let Some((number, place)) = self.current.take().filter(|(_, place)| place.crc32c != Some(found)) {
            self.suspect_bytes += place.len;
            self.suspects.push((number, place));
        }
        self.current = self.members.next();
    }
}

fn fresh() -> Digest {
    Digest::new(CrcAlgorithm::Crc32Iscsi)
}
