//! The sidecar's bytes. `docs/formats.md` describes them; the two change together, with [`FORMAT`].

use std::io::Read;

use crc_fast::{CrcAlgorithm, checksum};

use super::Index;
use crate::dataset::catalog::{Shard, Version};
use crate::dataset::location::path;
use crate::dataset::members::{Member, Row, Samples, ShardIndex, Skipped};
use crate::error::{Error, Kind, Result};

const MAGIC: [u8; 8] = *b"\x89FFINDX\n";
const FORMAT: u32 = 1;
/// The payload is one zstd frame; without it, the payload is stored as it is.
const ZSTD: u32 = 1;
const HEADER_BYTES: usize = 40;
const LEVEL: i32 = 6;
/// Largest window a frame may ask for, as a power of two: 16 MiB; level 6 asks for 2.
const WINDOW_LOG_MAX: u32 = 24;
/// A payload may be this large whatever it was compressed to, ...
const RAW_BYTES_FREE: u64 = 16 << 20;
/// ... and otherwise this many times larger than what is stored. Above, `encode` stores it uncompressed.
const RATIO_MAX: u64 = 64;
/// Members name their field in 16 bits.
const FIELDS_MAX: usize = 1 << 16;
/// Tar members begin at multiples of it; gaps between members are written relative to that.
const ALIGNMENT: u64 = 512;

pub(super) fn encode(index: &Index) -> Vec<u8> {
    let raw = payload(index);
    let packed = zstd::bulk::compress(&raw, LEVEL).ok();
    let packed = packed.filter(|packed| packed.len() < raw.len() && allowed(raw.len() as u64, packed.len() as u64));
    let flags = if packed.is_some() { ZSTD } else { 0 };
    let raw_bytes = raw.len() as u64;
    let stored = packed.unwrap_or(raw);
    seal(flags, &stored, raw_bytes)
}

/// The file: a header in front of what is stored.
pub(super) fn seal(flags: u32, stored: &[u8], raw_bytes: u64) -> Vec<u8> {
    let mut file = Vec::with_capacity(HEADER_BYTES + stored.len());
    file.extend_from_slice(&MAGIC);
    file.extend_from_slice(&FORMAT.to_le_bytes());
    file.extend_from_slice(&flags.to_le_bytes());
    file.extend_from_slice(&(stored.len() as u64).to_le_bytes());
    file.extend_from_slice(&raw_bytes.to_le_bytes());
    file.extend_from_slice(&crc32c(stored).to_le_bytes());
    let digest = crc32c(&file);
    file.extend_from_slice(&digest.to_le_bytes());
    file.extend_from_slice(stored);
    file
}

pub(super) fn decode(file: &[u8]) -> Result<Index> {
    let mut header = Reader { bytes: file, total: file.len() };
    if !file.starts_with(&MAGIC) {
        return Err(corrupt("no farfeed index: its first bytes are others", 0));
    }
    header.take(MAGIC.len() as u64)?;
    let format = u32::from_le_bytes(header.array()?);
    if format != FORMAT {
        return Err(Error::new(Kind::Unsupported, format!("index of format {format}, this is farfeed for {FORMAT}"))
            .advice("update farfeed, or run `farfeed index` again"));
    }
    let flags = u32::from_le_bytes(header.array()?);
    let stored_bytes = u64::from_le_bytes(header.array()?);
    let raw_bytes = u64::from_le_bytes(header.array()?);
    let stored_digest = u32::from_le_bytes(header.array()?);
    if u32::from_le_bytes(header.array()?) != crc32c(&file[..HEADER_BYTES - 4]) {
        return Err(corrupt("digest of the index's header does not hold", HEADER_BYTES - 4));
    }
    let stored = header.bytes;
    if stored_bytes != stored.len() as u64 {
        let len = stored.len();
        return Err(corrupt(&format!("index of {stored_bytes} bytes behind its header has {len}"), file.len()));
    }
    if stored_digest != crc32c(stored) {
        return Err(corrupt("digest of the index does not hold", HEADER_BYTES));
    }
    match flags {
        0 if raw_bytes == stored_bytes => read_payload(stored),
        ZSTD => read_payload(&unpack(stored, raw_bytes)?),
        _ => Err(corrupt(&format!("index of unknown kind {flags}"), 12)),
    }
}

/// Whether so few stored bytes may claim so many raw ones: what bounds a reader's memory.
fn allowed(raw_bytes: u64, stored_bytes: u64) -> bool {
    raw_bytes <= RAW_BYTES_FREE.max(stored_bytes.saturating_mul(RATIO_MAX))
}

fn unpack(stored: &[u8], raw_bytes: u64) -> Result<Vec<u8>> {
    if !allowed(raw_bytes, stored.len() as u64) {
        return Err(corrupt(&format!("index of {} bytes claims {raw_bytes} decompressed", stored.len()), 24));
    }
    let mut raw = Vec::new();
    let unpacked = zstd::stream::read::Decoder::with_buffer(stored).and_then(|mut decoder| {
        decoder.window_log_max(WINDOW_LOG_MAX)?;
        // The vector grows with what really comes, not with what is claimed.
        decoder.take(raw_bytes.saturating_add(1)).read_to_end(&mut raw)
    });
    unpacked.map_err(|error| corrupt("index does not decompress", HEADER_BYTES).source(error))?;
    if raw.len() as u64 != raw_bytes {
        return Err(corrupt(&format!("index decompresses to other than {raw_bytes} bytes"), HEADER_BYTES));
    }
    Ok(raw)
}

fn crc32c(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

fn corrupt(what: &str, at: usize) -> Error {
    Error::new(Kind::Corrupt, format!("{what}, at byte {at}")).advice("run `farfeed index` again")
}

pub(super) fn payload(index: &Index) -> Vec<u8> {
    let mut out = Writer(Vec::new());
    let directory = shared_directory(index);
    out.number(index.shards.len() as u64);
    for shard in &index.shards {
        write_shard(shard, &path(&shard.shard.url)[directory..], &mut out);
    }
    out.0
}

/// Bytes of the directory that all shards lie in, with its slash.
fn shared_directory(index: &Index) -> usize {
    let mut paths = index.shards.iter().map(|shard| path(&shard.shard.url));
    let Some(first) = paths.next() else { return 0 };
    let directory = |path: &str| path.rfind('/').map_or(0, |slash| slash + 1);
    let mut shared = directory(first);
    for path in paths {
        let alike = first.bytes().zip(path.bytes()).take_while(|(a, b)| a == b).count();
        if alike < shared {
            shared = first.as_bytes()[..alike].iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        }
    }
    shared
}

fn write_shard(shard: &ShardIndex, name: &str, out: &mut Writer) {
    out.text(name);
    out.number(shard.shard.size);
    out.number(u64::from(shard.shard.version.is_some()));
    if let Some(version) = &shard.shard.version {
        out.text(&version.0);
    }
    let Skipped { directories, links, others, meta, unnamed } = shard.skipped;
    for count in [directories, links, others, meta, unnamed] {
        out.number(count);
    }
    out.number(shard.fields.len() as u64);
    shard.fields.iter().for_each(|field| out.text(field));
    out.number(u64::from(shard.digests));
    let samples = &shard.samples;
    out.number(samples.rows.len() as u64);
    out.number(samples.members.len() as u64);

    let rows = 0..samples.rows.len();
    for key in rows.clone().filter_map(|number| samples.key(number)) {
        out.text(key);
    }
    let mut member_end = 0;
    for row in &samples.rows {
        out.number(u64::from(row.member_end - member_end));
        member_end = row.member_end;
    }
    samples.members.iter().for_each(|member| out.number(u64::from(member.field)));
    let mut end = 0;
    for (start, member) in rows.flat_map(|number| samples.members(number)) {
        out.signed(start.wrapping_sub(aligned(end)) as i64);
        end = start + u64::from(member.len);
    }
    samples.members.iter().for_each(|member| out.number(u64::from(member.len)));
    if shard.digests {
        samples.members.iter().for_each(|member| out.0.extend_from_slice(&member.crc32c.to_le_bytes()));
    }
}

/// Wraps where no shard reaches; reading holds the result against the shard's size.
fn aligned(position: u64) -> u64 {
    position.wrapping_add(ALIGNMENT - 1) & !(ALIGNMENT - 1)
}

fn read_payload(raw: &[u8]) -> Result<Index> {
    let mut reader = Reader { bytes: raw, total: raw.len() };
    // Name, size, version, five counts, fields, digests, samples, members: a byte each at least.
    let count = reader.count(12)?;
    let mut shards = Vec::with_capacity(count);
    for _ in 0..count {
        shards.push(read_shard(&mut reader)?);
    }
    if !reader.bytes.is_empty() {
        return Err(reader.corrupt("more than an index holds"));
    }
    Ok(Index { shards })
}

fn read_shard(reader: &mut Reader<'_>) -> Result<ShardIndex> {
    let url = reader.text()?.to_owned();
    let size = reader.number()?;
    let version = match reader.flag()? {
        true => Some(Version(reader.text()?.into())),
        false => None,
    };
    let skipped = Skipped {
        directories: reader.number()?,
        links: reader.number()?,
        others: reader.number()?,
        meta: reader.number()?,
        unnamed: reader.number()?,
    };
    let count = reader.count(1)?;
    let mut fields: Vec<String> = Vec::with_capacity(count);
    for _ in 0..count {
        fields.push(reader.text()?.to_owned());
    }
    let mut names: Vec<&str> = fields.iter().map(String::as_str).collect();
    names.sort_unstable();
    if names.len() > FIELDS_MAX || names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(reader.corrupt("two fields of one name, or too many fields"));
    }
    let digests = reader.flag()?;
    let samples = read_samples(reader, size, fields.len(), digests)?;
    Ok(ShardIndex { shard: Shard { url, size, version }, skipped, fields, digests, samples })
}

fn read_samples(reader: &mut Reader<'_>, size: u64, fields: usize, digests: bool) -> Result<Samples> {
    // A sample has a key and a width; a member has field, gap, length and, where there are digests, one of these.
    let rows = reader.count(2)?;
    let members = reader.count(if digests { 7 } else { 3 })?;
    let mut samples = Samples {
        keys: String::new(),
        rows: Vec::with_capacity(rows),
        members: vec![Member { offset: 0, len: 0, crc32c: 0, field: 0 }; members],
    };
    for _ in 0..rows {
        samples.keys.push_str(reader.text()?);
        let key_end = u32::try_from(samples.keys.len()).map_err(|_| reader.corrupt("too many bytes of keys"))?;
        samples.rows.push(Row { base: 0, key_end, member_end: 0 });
    }
    let mut member_end = 0u32;
    for row in &mut samples.rows {
        let width = reader.number()?;
        let end = u32::try_from(width).ok().filter(|&width| width > 0).and_then(|width| member_end.checked_add(width));
        member_end = end.filter(|&end| end as usize <= members).ok_or_else(|| reader.corrupt("a sample of no size"))?;
        row.member_end = member_end;
    }
    if member_end as usize != members {
        return Err(reader.corrupt("members of no sample"));
    }
    for member in &mut samples.members {
        let field = reader.number()?;
        let known = usize::try_from(field).is_ok_and(|field| field < fields);
        member.field =
            u16::try_from(field).ok().filter(|_| known).ok_or_else(|| reader.corrupt("a field of no name"))?;
    }
    read_places(reader, size, &mut samples)?;
    if digests {
        for member in &mut samples.members {
            member.crc32c = u32::from_le_bytes(reader.array()?);
        }
    }
    check_twins(reader, &samples)?;
    Ok(samples)
}

/// Reads gaps, then lengths, and turns them into positions within the shard.
fn read_places(reader: &mut Reader<'_>, size: u64, samples: &mut Samples) -> Result<()> {
    let mut gaps = Reader { ..*reader };
    for _ in &samples.members {
        reader.number()?;
    }
    let mut end = 0u64;
    let mut member_start = 0usize;
    for row in &mut samples.rows {
        let members = &mut samples.members[member_start..row.member_end as usize];
        member_start = row.member_end as usize;
        for (place, member) in members.iter_mut().enumerate() {
            let start = aligned(end).wrapping_add_signed(gaps.signed()?);
            let len = reader.number()?;
            if place == 0 {
                row.base = start;
            }
            let next = start.checked_add(len).filter(|&next| start >= end && next <= size);
            let next = next.ok_or_else(|| reader.corrupt("a member outside of its shard"))?;
            // Its span bounds the offset and the length of every member.
            if u32::try_from(next - row.base).is_err() {
                return Err(reader.corrupt("a sample of 4 GiB or more"));
            }
            (member.offset, member.len) = ((start - row.base) as u32, len as u32);
            end = next;
        }
    }
    Ok(())
}

/// Refuses samples that have a field twice.
fn check_twins(reader: &Reader<'_>, samples: &Samples) -> Result<()> {
    let mut seen = Vec::new();
    for number in 0..samples.rows.len() {
        seen.clear();
        seen.extend(samples.members(number).map(|(_, member)| member.field));
        seen.sort_unstable();
        if seen.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(reader.corrupt("a sample that has a field twice"));
        }
    }
    Ok(())
}

struct Writer(Vec<u8>);

impl Writer {
    /// LEB128: seven bits a byte, low ones first.
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    /// Zigzag: 0, −1, 1, −2, … as 0, 1, 2, 3, …
    fn signed(&mut self, number: i64) {
        self.number(((number << 1) ^ (number >> 63)) as u64);
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }
}

struct Reader<'a> {
    /// What is left to read.
    bytes: &'a [u8],
    /// Bytes there were, to tell positions.
    total: usize,
}

impl<'a> Reader<'a> {
    fn corrupt(&self, what: &str) -> Error {
        corrupt(&format!("index has {what}"), self.total - self.bytes.len())
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let split = usize::try_from(count).ok().and_then(|count| self.bytes.split_at_checked(count));
        let (taken, rest) = split.ok_or_else(|| self.corrupt("fewer bytes than it claims"))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or_else(|| self.corrupt("fewer bytes than it claims"))?;
        self.bytes = rest;
        Ok(*taken)
    }

    fn number(&mut self) -> Result<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.corrupt("a number of more than 64 bits"))
    }

    fn signed(&mut self) -> Result<i64> {
        let number = self.number()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    fn flag(&mut self) -> Result<bool> {
        match self.number()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.corrupt("neither yes nor no")),
        }
    }

    /// A count of things that take at least `bytes` bytes each: never more than can follow.
    fn count(&mut self, bytes: usize) -> Result<usize> {
        let count = self.number()?;
        let fits = usize::try_from(count).ok().filter(|&count| count <= self.bytes.len() / bytes);
        fits.ok_or_else(|| self.corrupt("fewer bytes than it claims"))
    }

    fn text(&mut self) -> Result<&'a str> {
        let len = self.number()?;
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes).map_err(|_| self.corrupt("a name that is no text"))
    }
}
