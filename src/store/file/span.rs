//! Pure: where in the file and where in the pages a read goes, and how it is cut into operations.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use rustix::io::Errno;

use crate::memory::{Filling, Landing, Page};

/// Bytes of one operation, unless a single page is larger: above half of this a disk is as fast as it gets, and the
/// more operations a read is cut into, the sooner its first bytes are there.
pub(super) const OPERATION_BYTES: usize = 1 << 20;
/// Times in a row that one operation may be interrupted before it fails.
const INTERRUPTS: u32 = 16;

/// What one read asks the kernel for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// First byte asked for, from the start of the file.
    pub(super) offset: u64,
    /// Its place, counted through the pages.
    pub(super) at: usize,
    /// Bytes asked for.
    pub(super) ask: usize,
    /// Bytes of those that must arrive.
    pub(super) need: usize,
    /// Bytes of `need` in front of the payload's next byte: brought along by widening.
    pub(super) reread: usize,
    /// Where the payload starts in the first page afterwards.
    pub(super) lead: usize,
    /// Whether offset, place and length are aligned.
    pub(super) aligned: bool,
}

impl Span {
    /// The bytes at `start + landing.filled()` onwards, widened to multiples of `alignment` where the pages have room
    /// for that and what has landed lies where it must; exactly those otherwise.
    pub(super) fn of(landing: &Landing, start: u64, alignment: Option<usize>) -> Span {
        let position = start + landing.filled() as u64;
        let remaining = landing.remaining();
        let exact = || {
            let lead = if landing.filled() == 0 { 0 } else { landing.lead() };
            let at = lead + landing.filled();
            Span { offset: position, at, ask: remaining, need: remaining, reread: 0, lead, aligned: false }
        };
        let Some(alignment) = alignment.filter(|alignment| landing.page_bytes().is_multiple_of(*alignment)) else {
            return exact();
        };
        let reread = (position % alignment as u64) as usize;
        let lead = if landing.filled() == 0 { reread } else { landing.lead() };
        let place = lead + landing.filled();
        let need = reread + remaining;
        let ask = need.next_multiple_of(alignment);
        let room = landing.page_count() * landing.page_bytes();
        let fits = place % alignment == reread && place - reread + ask <= room;
        if !fits || landing.lead_max().is_none_or(|max| lead > max) {
            return exact();
        }
        Span { offset: position - reread as u64, at: place - reread, ask, need, reread, lead, aligned: true }
    }

    /// Payload bytes among the first `arrived` bytes.
    pub(super) fn payload(&self, arrived: usize) -> usize {
        arrived.min(self.need).saturating_sub(self.reread)
    }
}

/// A part of a read: neighbouring pages, and how much of them has arrived. It travels with its pages.
#[derive(Debug)]
pub(super) struct Piece {
    /// Position among the pieces of its read.
    pub(super) index: usize,
    pub(super) pages: Box<[Page<Filling>]>,
    offset: u64,
    at: usize,
    ask: usize,
    need: usize,
    arrived: usize,
    interrupts: u32,
    source: Source,
}

/// The descriptors of a file that a piece may be read from.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// Bypasses the page cache; `None` where that is refused, or where the read is not aligned.
    pub(super) direct: Option<Arc<File>>,
    pub(super) buffered: Arc<File>,
}

/// What becomes of a piece after an operation.
#[derive(Debug)]
pub(super) enum Step {
    /// One more operation.
    Again,
    /// All bytes that were needed are here.
    Complete,
    Failed(Failure),
}

/// Why a read ended early.
#[derive(Debug)]
pub(super) enum Failure {
    /// The file is shorter than it was when the read began.
    EndOfFile,
    System(io::Error),
}

impl Piece {
    /// The next operation: descriptor, offset in the file, and bytes of the pages.
    pub(super) fn operation(&self) -> (&Arc<File>, u64, Range<usize>) {
        let file = self.source.direct.as_ref().unwrap_or(&self.source.buffered);
        (file, self.offset + self.arrived as u64, self.at + self.arrived..self.at + self.ask)
    }

    /// What an operation's result means. A short read is neither success nor failure: the rest is asked for.
    pub(super) fn advance(&mut self, result: io::Result<usize>) -> Step {
        match result {
            Ok(0) => Step::Failed(Failure::EndOfFile),
            Ok(count) => {
                self.interrupts = 0;
                self.arrived = (self.arrived + count).min(self.ask);
                if self.arrived >= self.need {
                    return Step::Complete;
                }
                // Offset and place move together, so a remainder that is still aligned to the smallest block any
                // file system takes may go on; if the kernel refuses it, the next arm has it.
                if !count.is_multiple_of(512) {
                    self.source.direct = None;
                }
                Step::Again
            }
            Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::INTR | Errno::AGAIN) if self.interrupts < INTERRUPTS => {
                    self.interrupts += 1;
                    Step::Again
                }
                Some(Errno::INVAL | Errno::OPNOTSUPP) if self.source.direct.is_some() => {
                    self.source.direct = None;
                    Step::Again
                }
                _ => Step::Failed(Failure::System(error)),
            },
        }
    }

    /// Bytes that have arrived of those that were needed.
    pub(super) fn arrived(&self) -> usize {
        self.arrived.min(self.need)
    }

    /// Whether all bytes that were needed are here.
    pub(super) fn is_complete(&self) -> bool {
        self.arrived >= self.need
    }
}

/// The pages of a read, cut: what lies in front of its first operation, its pieces, what lies behind the last.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) front: Vec<Page<Filling>>,
    pub(super) pieces: Vec<Piece>,
    pub(super) back: Vec<Page<Filling>>,
}

impl Cut {
    /// Cuts `span` along page boundaries into operations of [`OPERATION_BYTES`].
    pub(super) fn new(span: &Span, mut pages: Vec<Page<Filling>>, page_bytes: usize, source: &Source) -> Cut {
        let first = span.at / page_bytes;
        let last = (span.at + span.ask).div_ceil(page_bytes);
        let back = pages.split_off(last.min(pages.len()));
        let mut rest = pages.split_off(first.min(pages.len())).into_iter();
        let per_piece = (OPERATION_BYTES / page_bytes).max(1);
        let (mut done, mut at) = (0, span.at % page_bytes);
        let mut pieces = Vec::with_capacity((last - first).div_ceil(per_piece));
        while done < span.ask {
            let run: Box<[_]> = rest.by_ref().take(per_piece).collect();
            let ask = (run.len() * page_bytes).saturating_sub(at).min(span.ask - done);
            if ask == 0 {
                break;
            }
            pieces.push(Piece {
                index: pieces.len(),
                pages: run,
                offset: span.offset + done as u64,
                at,
                ask,
                need: span.need.saturating_sub(done).min(ask),
                arrived: 0,
                interrupts: 0,
                source: source.clone(),
            });
            done += ask;
            at = 0;
        }
        Cut { front: pages, pieces, back }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Slab;

    const ALIGNMENT: Option<usize> = Some(512);

    fn landing(slab: &Slab, pages: usize, len: usize) -> Landing {
        Landing::new(slab.take(pages).unwrap(), len)
    }

    fn source() -> Source {
        let file = Arc::new(tempfile::tempfile().unwrap());
        Source { direct: Some(Arc::clone(&file)), buffered: file }
    }

    #[test]
    fn widens_to_alignment_and_says_where_the_payload_is() {
        let slab = Slab::new(1 << 20, 4096).unwrap();
        let span = Span::of(&landing(&slab, 3, 5000), 1000, ALIGNMENT);
        let wanted = Span { offset: 512, at: 0, ask: 5632, need: 5488, reread: 488, lead: 488, aligned: true };
        assert_eq!(span, wanted);
        assert_eq!((span.payload(400), span.payload(500), span.payload(5632)), (0, 12, 5000));
    }

    #[test]
    fn reads_exactly_where_there_is_no_room_to_widen() {
        let slab = Slab::new(1 << 20, 4096).unwrap();
        let span = Span::of(&landing(&slab, 1, 4000), 1000, ALIGNMENT);
        let wanted = Span { offset: 1000, at: 0, ask: 4000, need: 4000, reread: 0, lead: 0, aligned: false };
        assert_eq!(span, wanted);
        assert!(!Span::of(&landing(&slab, 4, 4000), 1000, None).aligned);
        assert!(!Span::of(&landing(&slab, 4, 4000), 1000, Some(8192)).aligned, "a page is no multiple of it");
    }

    #[test]
    fn goes_on_from_what_has_landed() {
        let slab = Slab::new(1 << 20, 4096).unwrap();
        let mut cut = landing(&slab, 3, 5000);
        let pages = cut.take_pages();
        cut.put_pages(pages, 488);
        cut.advance(700);
        let span = Span::of(&cut, 1000, ALIGNMENT);
        // 1000 + 700 = 3 * 512 + 164, and 488 + 700 = 2 * 512 + 164.
        let wanted = Span { offset: 1536, at: 1024, ask: 4608, need: 4464, reread: 164, lead: 488, aligned: true };
        assert_eq!(span, wanted);
        let pages = cut.take_pages();
        cut.put_pages(pages, 0);
        let span = Span::of(&cut, 1000, ALIGNMENT);
        assert_eq!((span.offset, span.at, span.ask, span.aligned), (1700, 700, 4300, false));
    }

    #[test]
    fn cuts_along_pages_and_loses_none() {
        let slab = Slab::new(8 << 20, 64 << 10).unwrap();
        let mut landing = landing(&slab, 40, 2_100_000);
        landing.push(&vec![0; 70_000]);
        let span = Span::of(&landing, 0, ALIGNMENT);
        let cut = Cut::new(&span, landing.take_pages(), 64 << 10, &source());
        assert_eq!((cut.front.len(), cut.pieces.len()), (1, 2));
        assert_eq!(cut.pieces.iter().map(|piece| piece.ask).sum::<usize>(), span.ask);
        assert_eq!(cut.pieces.iter().map(|piece| piece.need).sum::<usize>(), span.need);
        let (_, offset, range) = cut.pieces[0].operation();
        assert_eq!((offset, range.start, range.end), (69_632, 69_632 - 65_536, 1 << 20));
        let (_, offset, range) = cut.pieces[1].operation();
        assert_eq!((offset, range.start), (65_536 + (1 << 20), 0));
        let in_pieces: usize = cut.pieces.iter().map(|piece| piece.pages.len()).sum();
        assert_eq!(cut.front.len() + in_pieces + cut.back.len(), 40);
    }

    #[test]
    fn a_short_read_goes_on_and_an_unaligned_one_goes_on_buffered() {
        let slab = Slab::new(1 << 20, 65_536).unwrap();
        let mut landing = landing(&slab, 1, 50_000);
        let span = Span::of(&landing, 0, ALIGNMENT);
        let mut cut = Cut::new(&span, landing.take_pages(), 65_536, &source());
        let piece = &mut cut.pieces[0];
        assert!(matches!(piece.advance(Ok(1024)), Step::Again) && piece.source.direct.is_some());
        assert_eq!(piece.operation().1, 1024);
        assert!(matches!(piece.advance(Err(io::Error::from_raw_os_error(4))), Step::Again));
        assert!(matches!(piece.advance(Ok(100)), Step::Again) && piece.source.direct.is_none());
        assert_eq!((piece.operation().1, piece.arrived(), piece.is_complete()), (1124, 1124, false));
        assert!(matches!(piece.advance(Ok(48_876)), Step::Complete));
        assert!(piece.is_complete());
    }

    #[test]
    fn the_end_of_the_file_and_endless_interrupts_are_failures() {
        let slab = Slab::new(1 << 20, 65_536).unwrap();
        let mut landing = landing(&slab, 1, 50_000);
        let span = Span::of(&landing, 0, None);
        let mut cut = Cut::new(&span, landing.take_pages(), 65_536, &source());
        let piece = &mut cut.pieces[0];
        assert!(matches!(piece.advance(Ok(0)), Step::Failed(Failure::EndOfFile)));
        let interrupted = || Err(io::ErrorKind::Interrupted.into());
        assert!(matches!(piece.advance(interrupted()), Step::Failed(_)), "no errno, nothing to go by");
        let results = (0..=INTERRUPTS).map(|_| piece.advance(Err(io::Error::from_raw_os_error(4))));
        assert_eq!(results.filter(|step| matches!(step, Step::Failed(_))).count(), 1);
    }
}
