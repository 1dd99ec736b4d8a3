//! One read on its way: from the store to a backend in pieces, and back whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::span::{Cut, Failure, Piece, Source, Span};
use crate::memory::{Filling, Page};

/// A read as a backend takes it: it owns the pages, so whoever loses interest frees nothing too early.
#[derive(Debug)]
pub(super) struct ReadTask {
    pub(super) source: Source,
    pub(super) span: Span,
    pub(super) pages: Vec<Page<Filling>>,
    pub(super) page_bytes: usize,
    /// Counts bytes that have landed, for whoever watches; it goes on from `filled`.
    pub(super) progress: Arc<AtomicU64>,
    pub(super) filled: usize,
    pub(super) asked: Instant,
    pub(super) reply: oneshot::Sender<Outcome>,
}

/// What a backend made of a read.
#[derive(Debug)]
pub(super) struct Outcome {
    /// All pages, in order.
    pub(super) pages: Vec<Page<Filling>>,
    /// Bytes from the front of the span that are here without a gap.
    pub(super) arrived: usize,
    pub(super) first_byte: Duration,
    pub(super) failure: Option<Failure>,
}

/// A read whose pieces are out.
#[derive(Debug)]
pub(super) struct Assembly {
    front: Vec<Page<Filling>>,
    back: Vec<Page<Filling>>,
    settled: Vec<Option<Piece>>,
    outstanding: usize,
    failure: Option<Failure>,
    span: Span,
    arrived: usize,
    progress: Arc<AtomicU64>,
    filled: usize,
    asked: Instant,
    first_byte: Option<Duration>,
    reply: Option<oneshot::Sender<Outcome>>,
}

impl Assembly {
    /// Cuts a read into pieces, to be read in this order and settled in any.
    pub(super) fn begin(task: ReadTask) -> (Assembly, Vec<Piece>) {
        let Cut { front, pieces, back } = Cut::new(&task.span, task.pages, task.page_bytes, &task.source);
        let mut assembly = Assembly {
            front,
            back,
            settled: pieces.iter().map(|_| None).collect(),
            outstanding: pieces.len(),
            failure: None,
            span: task.span,
            arrived: 0,
            filled: task.filled,
            progress: task.progress,
            asked: task.asked,
            first_byte: None,
            reply: Some(task.reply),
        };
        if pieces.is_empty() {
            assembly.finish();
        }
        (assembly, pieces)
    }

    /// Whether pieces that have not started may be left out: the read failed, or nobody waits for it any more.
    pub(super) fn is_over(&self) -> bool {
        self.failure.is_some() || self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// A piece comes back, complete or not. The last one sends the outcome.
    pub(super) fn settle(&mut self, piece: Piece, failure: Option<Failure>) {
        if piece.arrived() > 0 && self.first_byte.is_none() {
            self.first_byte = Some(self.asked.elapsed());
        }
        self.arrived += piece.arrived();
        self.progress.store((self.filled + self.span.payload(self.arrived)) as u64, Ordering::Relaxed);
        self.failure = self.failure.take().or(failure);
        let index = piece.index;
        if let Some(place) = self.settled.get_mut(index) {
            *place = Some(piece);
            self.outstanding -= 1;
        }
        if self.outstanding == 0 {
            self.finish();
        }
    }

    fn finish(&mut self) {
        let Some(reply) = self.reply.take() else { return };
        let mut pages = std::mem::take(&mut self.front);
        let (mut arrived, mut whole) = (0, true);
        for piece in self.settled.drain(..).flatten() {
            if whole {
                arrived += piece.arrived();
                whole = piece.is_complete();
            }
            pages.extend(piece.pages);
        }
        pages.append(&mut self.back);
        let first_byte = self.first_byte.unwrap_or_else(|| self.asked.elapsed());
        // Refused when the reader is gone: the outcome, and the pages with it, is freed here.
        let _ = reply.send(Outcome { pages, arrived, first_byte, failure: self.failure.take() });
    }
}
