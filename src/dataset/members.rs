//! Where the samples of a tar shard lie, packed: 16 bytes a sample, 16 a member, and the keys.

use super::catalog::Shard;

/// What a tar shard holds: samples, their keys, and the place of each field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardIndex {
    /// The file.
    pub shard: Shard,
    /// Members that belong to no sample.
    pub skipped: Skipped,
    /// Names of fields; members name them by their place here.
    pub(super) fields: Vec<String>,
    /// Whether the members' digests are known.
    pub(super) digests: bool,
    pub(super) samples: Samples,
}

impl ShardIndex {
    /// Samples in the shard.
    pub fn samples(&self) -> usize {
        self.samples.rows.len()
    }

    /// Key of a sample of this shard, if there is such a sample.
    pub fn key(&self, number: usize) -> Option<&str> {
        self.samples.key(number)
    }

    /// Fields of a sample of this shard, in the order in which they lie there.
    pub fn members(&self, number: usize) -> impl Iterator<Item = MemberPlace<'_>> {
        self.samples.members(number).map(|(start, member)| MemberPlace {
            field: self.fields.get(usize::from(member.field)).map_or("", String::as_str),
            start,
            len: u64::from(member.len),
            crc32c: self.digests.then_some(member.crc32c),
        })
    }
}

/// Members of a tar shard that belong to no sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Directories.
    pub directories: u64,
    /// Links, hard and symbolic.
    pub links: u64,
    /// Devices, pipes, volume labels and whatever else is no file.
    pub others: u64,
    /// Files that describe the shard: `__name__`.
    pub meta: u64,
    /// Files without an extension, or with nothing but one: they have no key or no field.
    pub unnamed: u64,
}

impl Skipped {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.directories + self.links + self.others + self.meta + self.unnamed
    }
}

/// Where a field of a sample lies in its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberPlace<'a> {
    /// Name of the field.
    pub field: &'a str,
    /// First byte, from the start of the shard.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Digest of the bytes, where the index has it.
    pub crc32c: Option<u32>,
}

/// Packed samples. Rows and members are in the order of the shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Samples {
    /// All keys, one behind the other.
    pub(super) keys: String,
    pub(super) rows: Vec<Row>,
    pub(super) members: Vec<Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// First byte of the sample's first member, from the start of the shard.
    pub(super) base: u64,
    /// One past the key's last byte in `keys`.
    pub(super) key_end: u32,
    /// One past the sample's last member in `members`.
    pub(super) member_end: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// First byte, from the row's base.
    pub(super) offset: u32,
    pub(super) len: u32,
    /// 0 where it is not known.
    pub(super) crc32c: u32,
    pub(super) field: u16,
}

impl Samples {
    pub(super) fn key(&self, number: usize) -> Option<&str> {
        let row = self.rows.get(number)?;
        let start = self.row_before(number).map_or(0, |row| row.key_end);
        self.keys.get(start as usize..row.key_end as usize)
    }

    /// Members of a sample with their first bytes, from the start of the shard.
    pub(super) fn members(&self, number: usize) -> impl Iterator<Item = (u64, Member)> {
        let base = self.rows.get(number).map_or(0, |row| row.base);
        self.row_members(number).iter().map(move |member| (base + u64::from(member.offset), *member))
    }

    /// The member of a sample that is its field `field`.
    pub(super) fn member(&self, number: usize, field: usize) -> Option<(u64, Member)> {
        self.members(number).find(|(_, member)| usize::from(member.field) == field)
    }

    /// From a sample's first byte to one past its last, from the start of the shard.
    pub(super) fn span(&self, number: usize) -> Option<(u64, u64)> {
        let base = self.rows.get(number)?.base;
        let last = self.row_members(number).last()?;
        Some((base, base + u64::from(last.offset) + u64::from(last.len)))
    }

    fn row_members(&self, number: usize) -> &[Member] {
        let Some(row) = self.rows.get(number) else { return &[] };
        let start = self.row_before(number).map_or(0, |row| row.member_end);
        self.members.get(start as usize..row.member_end as usize).unwrap_or_default()
    }

    fn row_before(&self, number: usize) -> Option<&Row> {
        number.checked_sub(1).and_then(|before| self.rows.get(before))
    }

    /// Gives back what growing took in advance.
    pub(super) fn shrink(&mut self) {
        self.keys.shrink_to_fit();
        self.rows.shrink_to_fit();
        self.members.shrink_to_fit();
    }

    /// Bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.keys.capacity() + self.rows.capacity() * size_of::<Row>() + self.members.capacity() * size_of::<Member>()
    }
}
