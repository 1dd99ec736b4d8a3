//! The dataset as a whole: samples numbered through all shards, and the blocks they are read in.

mod lookup;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

pub use lookup::Named;

use super::catalog::{Block, Extent, FieldId, FieldLayout, SampleId, Shard};
use super::fingerprint::Fingerprint;
use super::index::Index;
use super::location::file_name;
use super::members::{Samples, ShardIndex};
use super::records::{RecordShard, RecordSpec};
use crate::error::{Error, Kind, Result};

/// How samples are cut into blocks: a block is a run of neighbouring samples of one shard that spans at most `bytes`,
/// or one sample. The cut is part of the dataset's identity, as the order of samples follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockCut {
    /// Bytes that a block spans at most, where it has more than one sample.
    pub bytes: u64,
}

impl Default for BlockCut {
    /// 4 MiB.
    fn default() -> Self {
        BlockCut { bytes: 4 << 20 }
    }
}

/// Blocks of one dataset: 16 Mi of them take 640 MiB of memory, and are 64 TiB at 4 MiB each.
const BLOCKS_MAX: u64 = 1 << 24;

/// What samples exist and where their bytes lie.
pub struct Dataset {
    shards: Vec<Shard>,
    /// First sample of each shard, and one past the last of all.
    firsts: Vec<SampleId>,
    fields: Vec<FieldLayout>,
    /// Per field: samples that lack it.
    lacking: Vec<u64>,
    blocks: Vec<Block>,
    layout: Layout,
    remainder: u64,
    fingerprint: u64,
}

enum Layout {
    /// First byte of each shard's payload.
    Records {
        spec: RecordSpec,
        starts: Vec<u64>,
    },
    Members(Vec<Places>),
}

struct Places {
    samples: Samples,
    digests: bool,
}

impl Dataset {
    /// Files of equal records: tokens, or rows of arrays. Memory is per shard and per block, not per sample.
    ///
    /// # Errors
    /// `Config` where there is no sample or no bound to the blocks; `Corrupt` for a payload outside of its shard or of no whole number of elements.
    pub fn records(shards: Vec<RecordShard>, spec: RecordSpec, cut: BlockCut) -> Result<Dataset> {
        let mut firsts = vec![0];
        let (mut samples, mut remainder) = (0u64, 0u64);
        let mut fingerprint = Fingerprint::new("records");
        fingerprint.number(cut.bytes);
        fingerprint.text(&spec.to_string());
        for record in &shards {
            spec.check(record)?;
            let (here, left) = spec.count(record.bytes);
            samples = samples.saturating_add(here);
            remainder += left / spec.dtype().bytes() as u64;
            firsts.push(samples);
            fingerprint.text(file_name(&record.shard.url));
            for number in [record.shard.size, record.start, record.bytes] {
                fingerprint.number(number);
            }
        }
        let blocks = record_blocks(&shards, &spec, &firsts, cut)?;
        let starts = shards.iter().map(|record| record.start).collect();
        let fields = vec![spec.field()];
        Dataset {
            shards: shards.into_iter().map(|record| record.shard).collect(),
            firsts,
            fields,
            lacking: vec![0],
            blocks,
            layout: Layout::Records { spec, starts },
            remainder,
            fingerprint: fingerprint.finish(),
        }
        .checked()
    }

    /// Tar shards as an index describes them.
    ///
    /// # Errors
    /// `Config` where there is no sample; `Unsupported` for more than 65,535 fields or 2^24 blocks.
    pub fn members(index: Index, cut: BlockCut) -> Result<Dataset> {
        let mut fields = Fields::default();
        let mut firsts = vec![0];
        let mut total = 0;
        let mut blocks = Vec::new();
        let mut shards = Vec::with_capacity(index.shards.len());
        let mut places = Vec::with_capacity(index.shards.len());
        let mut fingerprint = Fingerprint::new("members");
        fingerprint.number(cut.bytes);
        for (number, mut indexed) in index.shards.into_iter().enumerate() {
            print_members(&indexed, &mut fingerprint);
            fields.adopt(&mut indexed)?;
            member_blocks(&indexed.samples, shard_number(number)?, total, cut, &mut blocks)?;
            total += indexed.samples.rows.len() as u64;
            firsts.push(total);
            shards.push(indexed.shard);
            places.push(Places { samples: indexed.samples, digests: indexed.digests });
        }
        let (fields, lacking) = fields.finish(total);
        Dataset {
            shards,
            firsts,
            fields,
            lacking,
            blocks,
            layout: Layout::Members(places),
            remainder: 0,
            fingerprint: fingerprint.finish(),
        }
        .checked()
    }

    /// Samples there are.
    pub fn samples(&self) -> u64 {
        self.firsts.last().copied().unwrap_or(0)
    }

    /// The files, in the dataset's order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The fields, in the order in which they first appear.
    pub fn fields(&self) -> &[FieldLayout] {
        &self.fields
    }

    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<FieldId> {
        self.fields.iter().position(|field| field.name == name)
    }

    /// Samples that lack a field.
    pub fn lacking(&self, field: FieldId) -> u64 {
        self.lacking.get(field).copied().unwrap_or_else(|| self.samples())
    }

    /// Runs of neighbouring samples that are read together, in the dataset's order; each sample is in one of them.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Which of the blocks holds `sample`; the last one for samples that do not exist.
    pub fn block_of(&self, sample: SampleId) -> usize {
        self.blocks.partition_point(|block| block.first <= sample).saturating_sub(1)
    }

    /// Where a field of a sample lies; `None` where the sample lacks the field, or does not exist.
    pub fn extent(&self, sample: SampleId, field: FieldId) -> Option<Extent> {
        let (shard, number) = self.locate(sample)?;
        let (start, len) = match &self.layout {
            Layout::Records { spec, starts } => {
                (field == 0).then(|| (starts[shard] + spec.start(number), spec.span(1)))?
            }
            Layout::Members(places) => {
                let (start, member) = places[shard].samples.member(number as usize, field)?;
                (start, u64::from(member.len))
            }
        };
        Some(Extent { shard: shard as u32, start, len })
    }

    /// Digest of a field of a sample, where the index has it.
    pub fn crc32c(&self, sample: SampleId, field: FieldId) -> Option<u32> {
        let Layout::Members(places) = &self.layout else { return None };
        let (shard, number) = self.locate(sample)?;
        let place = &places[shard];
        place.samples.member(number as usize, field).filter(|_| place.digests).map(|(_, member)| member.crc32c)
    }

    /// Name of a sample: its key in the shard, or `shard:number` for records. Empty for samples that do not exist.
    pub fn key(&self, sample: SampleId) -> Cow<'_, str> {
        let Some((shard, number)) = self.locate(sample) else { return Cow::Borrowed("") };
        match &self.layout {
            Layout::Records { .. } => Cow::Owned(format!("{}:{number}", file_name(&self.shards[shard].url))),
            Layout::Members(places) => Cow::Borrowed(places[shard].samples.key(number as usize).unwrap_or("")),
        }
    }

    /// Elements at the ends of record shards that fill no sample, summed over all shards.
    pub fn remainder(&self) -> u64 {
        self.remainder
    }

    /// The same for the same files, samples and cut, at whatever URL; another where any of that differs.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Shard of a sample and its number there.
    fn locate(&self, sample: SampleId) -> Option<(usize, u64)> {
        if sample >= self.samples() {
            return None;
        }
        // Shards without samples share their first with the next one: the last that begins at or before `sample` has it.
        let shard = self.firsts.partition_point(|&first| first <= sample) - 1;
        Some((shard, sample - self.firsts[shard]))
    }

    fn checked(self) -> Result<Self> {
        if self.samples() == 0 {
            let left = if self.remainder > 0 { format!(", and {} elements", self.remainder) } else { String::new() };
            return Err(Error::new(Kind::Config, format!("no sample in {} shards{left}", self.shards.len()))
                .advice("check the pattern of the shards and the shape of a sample"));
        }
        Ok(self)
    }
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataset")
            .field("shards", &self.shards.len())
            .field("samples", &self.samples())
            .field("fields", &self.fields)
            .field("blocks", &self.blocks.len())
            .field("fingerprint", &format_args!("{:016x}", self.fingerprint))
            .finish_non_exhaustive()
    }
}

fn record_blocks(shards: &[RecordShard], spec: &RecordSpec, firsts: &[SampleId], cut: BlockCut) -> Result<Vec<Block>> {
    let step = spec.fitting(cut.bytes).min(u64::from(u32::MAX));
    let count = firsts.windows(2).map(|pair| (pair[1] - pair[0]).div_ceil(step)).fold(0, u64::saturating_add);
    if count > BLOCKS_MAX {
        return Err(too_many_blocks(cut));
    }
    let mut blocks = Vec::with_capacity(count as usize);
    for (number, (record, pair)) in shards.iter().zip(firsts.windows(2)).enumerate() {
        let shard = shard_number(number)?;
        let (first, end) = (pair[0], pair[1]);
        let mut next = first;
        while next < end {
            let samples = step.min(end - next);
            let extent = Extent { shard, start: record.start + spec.start(next - first), len: spec.span(samples) };
            blocks.push(Block { first: next, samples: samples as u32, extent });
            next += samples;
        }
    }
    Ok(blocks)
}

fn member_blocks(samples: &Samples, shard: u32, first: SampleId, cut: BlockCut, blocks: &mut Vec<Block>) -> Result<()> {
    let mut open: Option<Block> = None;
    for (number, (start, end)) in (0..samples.rows.len()).map_while(|n| Some((n as u64, samples.span(n)?))) {
        match &mut open {
            Some(block) if end - block.extent.start <= cut.bytes => {
                block.samples += 1;
                block.extent.len = end - block.extent.start;
            }
            _ => {
                blocks.extend(open.take());
                open = Some(Block {
                    first: first + number,
                    samples: 1,
                    extent: Extent { shard, start, len: end - start },
                });
            }
        }
        if blocks.len() as u64 >= BLOCKS_MAX {
            return Err(too_many_blocks(cut));
        }
    }
    blocks.extend(open);
    Ok(())
}

fn too_many_blocks(cut: BlockCut) -> Error {
    Error::new(Kind::Unsupported, format!("more than {BLOCKS_MAX} blocks of {} bytes", cut.bytes))
        .advice("cut larger blocks, or split the dataset")
}

fn shard_number(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(|_| Error::new(Kind::Unsupported, "more than 2^32 shards"))
}

/// Digests are left out: an index without them describes the same dataset.
fn print_members(indexed: &ShardIndex, fingerprint: &mut Fingerprint) {
    fingerprint.text(file_name(&indexed.shard.url));
    fingerprint.number(indexed.shard.size);
    fingerprint.number(indexed.fields.len() as u64);
    for field in &indexed.fields {
        fingerprint.text(field);
    }
    fingerprint.text(&indexed.samples.keys);
    for row in &indexed.samples.rows {
        fingerprint.number(row.base);
        fingerprint.number(u64::from(row.key_end) << 32 | u64::from(row.member_end));
    }
    for member in &indexed.samples.members {
        fingerprint.number(u64::from(member.offset) << 32 | u64::from(member.len));
        fingerprint.number(u64::from(member.field));
    }
}

/// Fields of all shards, merged by name.
#[derive(Default)]
struct Fields {
    layouts: Vec<FieldLayout>,
    present: Vec<u64>,
    by_name: HashMap<String, u16>,
}

impl Fields {
    /// Renumbers the shard's members from its own fields to the dataset's.
    fn adopt(&mut self, indexed: &mut ShardIndex) -> Result<()> {
        let mut renumbered = Vec::with_capacity(indexed.fields.len());
        for name in &indexed.fields {
            renumbered.push(self.number(name)?);
        }
        for member in &mut indexed.samples.members {
            let Some(&field) = renumbered.get(usize::from(member.field)) else { continue };
            member.field = field;
            let layout = &mut self.layouts[usize::from(field)];
            layout.bytes_min = layout.bytes_min.min(u64::from(member.len));
            layout.bytes_max = layout.bytes_max.max(u64::from(member.len));
            self.present[usize::from(field)] += 1;
        }
        Ok(())
    }

    fn number(&mut self, name: &str) -> Result<u16> {
        if let Some(&number) = self.by_name.get(name) {
            return Ok(number);
        }
        let number = u16::try_from(self.layouts.len()).map_err(|_| {
            Error::new(Kind::Unsupported, "more than 65,535 fields in one dataset")
                .advice("a member's field is its name behind the first dot: are there dots in the keys?")
        })?;
        self.layouts.push(FieldLayout { name: name.to_owned(), bytes_min: u64::MAX, bytes_max: 0, fixed: None });
        self.present.push(0);
        self.by_name.insert(name.to_owned(), number);
        Ok(number)
    }

    fn finish(mut self, samples: u64) -> (Vec<FieldLayout>, Vec<u64>) {
        for layout in &mut self.layouts {
            layout.bytes_min = layout.bytes_min.min(layout.bytes_max);
        }
        let lacking = self.present.iter().map(|&present| samples - present).collect();
        (self.layouts, lacking)
    }
}
