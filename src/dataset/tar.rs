//! Tar archives as they stream by: where each member's bytes lie, and their digest.
//!
//! Reads ustar, GNU (long names, base-256 sizes) and PAX (paths, sizes). Sans I/O: bytes are pushed in any pieces.

#[cfg(test)]
pub(super) mod fixture;
mod header;
#[cfg(test)]
mod tests;

use crc_fast::{CrcAlgorithm, Digest};

use self::header::{BLOCK_BYTES, Header, Overrides, until_nul};
use crate::error::{Error, Kind, Result};

/// A member of an archive. Emitted when its last byte has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Path in the archive; bytes that are not UTF-8 are written `\xNN`.
    pub path: &'a str,
    /// What it is.
    pub kind: EntryKind,
    /// Position of its header in the archive.
    pub header: u64,
    /// Position of its first byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Digest of the bytes.
    pub crc32c: u32,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file with its bytes.
    File,
    /// A directory.
    Directory,
    /// A hard or symbolic link: its bytes are another member's, or none.
    Link,
    /// A device, a pipe, a label, or a type that is not known.
    Other,
}

/// GNU tar itself writes no longer names than the system's paths, 4 KiB.
const LONG_NAME_BYTES_MAX: u64 = 64 * 1024;
const PAX_BYTES_MAX: u64 = 1024 * 1024;
const REMAKE: &str = "the shard is cut short or overwritten: make it or upload it again";

/// Finds the members of one archive that is pushed through it, front to back. Holds a header and a name, never payload.
#[derive(Debug)]
pub struct TarScanner {
    /// Bytes pushed so far.
    position: u64,
    /// Bytes of the archive, if known beforehand.
    size: Option<u64>,
    state: State,
    block: [u8; BLOCK_BYTES],
    block_filled: usize,
    /// Zero blocks since the last member.
    zero_blocks: u32,
    /// From extension headers, for the next member.
    local: Overrides,
    /// From global PAX headers, for all that follow.
    global: Overrides,
    extension: Vec<u8>,
    member: Member,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Payload {
        left: u64,
    },
    Extension {
        kind: Extension,
        left: u64,
    },
    Padding {
        left: u64,
    },
    /// Behind the end-of-archive mark.
    End,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    LongName,
    LongLink,
    Pax,
    GlobalPax,
}

/// The member whose bytes are passing.
#[derive(Debug)]
struct Member {
    path: String,
    kind: EntryKind,
    header: u64,
    start: u64,
    len: u64,
    digest: Digest,
}

impl Default for TarScanner {
    fn default() -> Self {
        Self::new(None)
    }
}

impl TarScanner {
    /// A scanner for an archive of `size` bytes; where the size is known, members that pass the end are found at their headers.
    pub fn new(size: Option<u64>) -> Self {
        TarScanner {
            position: 0,
            size,
            state: State::Header,
            block: [0; BLOCK_BYTES],
            block_filled: 0,
            zero_blocks: 0,
            local: Overrides::default(),
            global: Overrides::default(),
            extension: Vec::new(),
            member: Member {
                path: String::new(),
                kind: EntryKind::File,
                header: 0,
                start: 0,
                len: 0,
                digest: Digest::new(CrcAlgorithm::Crc32Iscsi),
            },
        }
    }

    /// Bytes pushed so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Takes the next bytes of the archive, and calls `on_entry` for each member that ends in them.
    ///
    /// # Errors
    /// `Corrupt` with the position where the archive is not what it should be; `Unsupported` for sparse files, volumes,
    /// compressed and concatenated archives; what `on_entry` returns. There is no going on after an error.
    pub fn push(&mut self, mut bytes: &[u8], mut on_entry: impl FnMut(Entry<'_>) -> Result<()>) -> Result<()> {
        while !bytes.is_empty() {
            let taken = self.step(bytes, &mut on_entry).inspect_err(|_| self.state = State::Failed)?;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Checks that the archive ended where it may.
    ///
    /// # Errors
    /// `Corrupt` where a member or the end-of-archive mark is missing.
    pub fn finish(&self) -> Result<()> {
        if let Some(size) = self.size.filter(|&size| size != self.position) {
            return Err(corrupt(format!("archive of {size} bytes ends at byte {}", self.position)));
        }
        let context = match self.state {
            State::End => return Ok(()),
            // One zero block where two belong: the writer meant to end here, and nothing is lost.
            State::Header if self.zero_blocks > 0 && self.block_filled == 0 => return Ok(()),
            State::Header if self.position == 0 => "archive of no bytes".to_owned(),
            State::Header => format!("archive ends at byte {} without its end-of-archive mark", self.position),
            State::Payload { left } => format!(
                "archive ends at byte {}, {left} bytes before the end of member '{}' of {} bytes at byte {}",
                self.position, self.member.path, self.member.len, self.member.start
            ),
            State::Extension { .. } => format!("archive ends at byte {} within an extension header", self.position),
            State::Padding { .. } => format!("archive ends at byte {} within the padding of a member", self.position),
            State::Failed => "archive could not be read".to_owned(),
        };
        Err(corrupt(context))
    }

    /// Takes at least one byte; returns how many.
    fn step(&mut self, bytes: &[u8], on_entry: &mut impl FnMut(Entry<'_>) -> Result<()>) -> Result<usize> {
        let upto = |left: u64| usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let taken = match self.state {
            State::Failed => return Err(Error::new(Kind::Corrupt, "archive could not be read further")),
            State::Header | State::End => {
                let taken = upto((BLOCK_BYTES - self.block_filled) as u64);
                self.block[self.block_filled..self.block_filled + taken].copy_from_slice(&bytes[..taken]);
                self.block_filled += taken;
                self.position += taken as u64;
                if self.block_filled == BLOCK_BYTES {
                    self.block_filled = 0;
                    self.take_block(on_entry)?;
                }
                return Ok(taken);
            }
            State::Padding { left } => {
                let taken = upto(left);
                let left = left - taken as u64;
                self.state = if left == 0 { State::Header } else { State::Padding { left } };
                taken
            }
            State::Payload { left } => {
                let taken = upto(left);
                self.member.digest.update(&bytes[..taken]);
                self.state = State::Payload { left: left - taken as u64 };
                taken
            }
            State::Extension { kind, left } => {
                let taken = upto(left);
                self.extension.extend_from_slice(&bytes[..taken]);
                self.state = State::Extension { kind, left: left - taken as u64 };
                taken
            }
        };
        self.position += taken as u64;
        self.leave(on_entry)?;
        Ok(taken)
    }

    /// Goes on where the payload or the extension in hand is complete.
    fn leave(&mut self, on_entry: &mut impl FnMut(Entry<'_>) -> Result<()>) -> Result<()> {
        let len = match self.state {
            State::Payload { left: 0 } => {
                let member = &self.member;
                on_entry(Entry {
                    path: &member.path,
                    kind: member.kind,
                    header: member.header,
                    start: member.start,
                    len: member.len,
                    crc32c: member.digest.finalize() as u32,
                })?;
                member.len
            }
            State::Extension { kind, left: 0 } => {
                self.take_extension(kind)?;
                self.extension.len() as u64
            }
            _ => return Ok(()),
        };
        let padding = len.next_multiple_of(BLOCK_BYTES as u64) - len;
        self.state = if padding == 0 { State::Header } else { State::Padding { left: padding } };
        Ok(())
    }

    /// Judges a full block where a header is due.
    fn take_block(&mut self, on_entry: &mut impl FnMut(Entry<'_>) -> Result<()>) -> Result<()> {
        let at = self.position - BLOCK_BYTES as u64;
        let block = self.block;
        if block == [0; BLOCK_BYTES] {
            if self.local != Overrides::default() {
                return Err(corrupt(format!("extension header without its member in front of byte {at}")));
            }
            self.zero_blocks = self.zero_blocks.saturating_add(1);
            if self.zero_blocks >= 2 {
                self.state = State::End;
            }
            return Ok(());
        }
        let header = Header::parse(&block);
        if self.state == State::End {
            // Writers may leave anything behind the mark, but members there would be lost in silence.
            return match header {
                None => Ok(()),
                Some(_) => Err(Error::new(
                    Kind::Unsupported,
                    format!("another archive follows the end-of-archive mark at byte {at}"),
                )
                .advice("join archives with `tar --concatenate`, or keep them apart")),
            };
        }
        if self.zero_blocks > 0 {
            return Err(corrupt(format!("zero block between members in front of byte {at}")));
        }
        let header = header.ok_or_else(|| no_header(&block, at))?;
        self.open(header, at)?;
        self.leave(on_entry)
    }

    fn open(&mut self, header: Header<'_>, at: u64) -> Result<()> {
        let size = header.size().ok_or_else(|| corrupt(format!("no size in the header at byte {at}")))?;
        let extension = match header.typeflag() {
            b'L' => Some((Extension::LongName, LONG_NAME_BYTES_MAX)),
            b'K' => Some((Extension::LongLink, LONG_NAME_BYTES_MAX)),
            b'x' | b'X' => Some((Extension::Pax, PAX_BYTES_MAX)),
            b'g' => Some((Extension::GlobalPax, PAX_BYTES_MAX)),
            _ => None,
        };
        let Some((kind, bytes_max)) = extension else { return self.open_member(header, at, size) };
        if size > bytes_max {
            return Err(corrupt(format!(
                "extension header of {size} bytes at byte {at}, where {bytes_max} are allowed"
            )));
        }
        self.check_end(at, size, "extension header")?;
        self.extension.clear();
        self.state = State::Extension { kind, left: size };
        Ok(())
    }

    fn open_member(&mut self, header: Header<'_>, at: u64, size: u64) -> Result<()> {
        let local = std::mem::take(&mut self.local);
        let typeflag = header.typeflag();
        if local.sparse || self.global.sparse || typeflag == b'S' {
            return Err(Error::new(Kind::Unsupported, format!("sparse file at byte {at}"))
                .advice("make the shard again without --sparse"));
        }
        if typeflag == b'M' {
            return Err(Error::new(Kind::Unsupported, format!("continued volume at byte {at}"))
                .advice("make the shard again without --multi-volume"));
        }
        let size = local.size.or(self.global.size).unwrap_or(size);
        let path = local.path.or_else(|| self.global.path.clone()).unwrap_or_else(|| header.path());
        let (kind, len) = match typeflag {
            b'0' | 0 | b'7' if path.ends_with(b"/") => (EntryKind::Directory, size),
            b'0' | 0 | b'7' => (EntryKind::File, size),
            // Whatever size these claim, no bytes follow.
            b'1' | b'2' => (EntryKind::Link, 0),
            b'3' | b'4' | b'6' | b'V' => (EntryKind::Other, 0),
            b'5' => (EntryKind::Directory, 0),
            b'D' => (EntryKind::Directory, size),
            _ => (EntryKind::Other, size),
        };
        let path = text(&path);
        self.check_end(at, len, &path)?;
        let digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        self.member = Member { path, kind, header: at, start: self.position, len, digest };
        self.state = State::Payload { left: len };
        Ok(())
    }

    /// Refuses what cannot fit: its padded end is past the archive's, or past all numbers.
    fn check_end(&self, at: u64, len: u64, what: &str) -> Result<()> {
        let end = len.checked_next_multiple_of(BLOCK_BYTES as u64).and_then(|len| self.position.checked_add(len));
        match (end, self.size) {
            (Some(end), Some(size)) if end <= size => Ok(()),
            (Some(_), None) => Ok(()),
            (_, size) => {
                let size = size.map_or_else(|| "any".to_owned(), |size| format!("an archive of {size} bytes"));
                Err(corrupt(format!("'{what}' at byte {at} claims {len} bytes, which {size} cannot hold")))
            }
        }
    }

    fn take_extension(&mut self, kind: Extension) -> Result<()> {
        let overrides = match kind {
            Extension::LongLink => return Ok(()),
            Extension::LongName => {
                self.local.path = Some(until_nul(&self.extension).to_vec());
                return Ok(());
            }
            Extension::Pax => &mut self.local,
            Extension::GlobalPax => &mut self.global,
        };
        let end = self.position;
        overrides
            .add_pax(&self.extension)
            .map_err(|what| corrupt(format!("PAX header that ends at byte {end} has a {what}")))
    }
}

fn corrupt(context: String) -> Error {
    Error::new(Kind::Corrupt, context).advice(REMAKE)
}

/// Says what is there instead of a header.
fn no_header(block: &[u8; BLOCK_BYTES], at: u64) -> Error {
    let compressed = match block {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zstd"),
        [b'B', b'Z', b'h', ..] => Some("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Some("xz"),
        _ => None,
    };
    match compressed {
        Some(how) if at == 0 => Error::new(Kind::Unsupported, format!("archive compressed with {how}"))
            .advice("decompress the shards: samples in them cannot be read one by one"),
        _ if at == 0 => Error::new(Kind::Corrupt, "no tar archive: its first 512 bytes are no header")
            .advice("check that the pattern names tar files and that the store answers with them"),
        _ => corrupt(format!("no valid header at byte {at}")),
    }
}

/// The path as text; what is not UTF-8 is escaped, so that different paths stay different.
fn text(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}
