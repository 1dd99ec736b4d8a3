//! What a batch says of itself, in lists that go round: the copier fills them, the consumer reads them, and letting go of the batch brings them
//! back. A warm loader makes none anew.

use std::ops::Deref;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::column::Column;
use crate::dataset::SampleId;
use crate::sys::process::Birthplace;

/// Which samples are in a batch, and where its columns lie.
#[derive(Default)]
pub(super) struct Lists {
    pub(super) rows: Vec<SampleId>,
    /// By column, in the order in which fields were asked for.
    pub(super) layout: Vec<Column>,
}

impl Lists {
    /// The memory of a column's own list, emptied.
    pub(super) fn take_memory(&mut self, column: usize) -> Vec<usize> {
        let mut memory = match self.layout.get_mut(column) {
            Some(Column::Dense { shape: list, .. } | Column::Ragged { bounds: list, .. }) => std::mem::take(list),
            None => Vec::new(),
        };
        memory.clear();
        memory
    }

    /// Sets a column; one behind the other, at first.
    pub(super) fn set(&mut self, number: usize, column: Column) {
        match self.layout.get_mut(number) {
            Some(place) => *place = column,
            None => self.layout.push(column),
        }
    }
}

/// Lists that nobody uses. Room for those of every slot: a batch has one of each.
pub(super) struct Shelf {
    returns: Sender<Lists>,
    spare: Receiver<Lists>,
    born: Birthplace,
}

impl Shelf {
    pub(super) fn new(slots: usize) -> Arc<Shelf> {
        let (returns, spare) = bounded(slots);
        Arc::new(Shelf { returns, spare, born: Birthplace::here() })
    }

    /// Lists with what was in them last, or new ones.
    pub(super) fn take(self: &Arc<Self>) -> Lent {
        Lent { lists: self.spare.try_recv().unwrap_or_default(), home: Arc::clone(self) }
    }
}

/// Lists in use, which go back when this is dropped.
pub(super) struct Lent {
    pub(super) lists: Lists,
    home: Arc<Shelf>,
}

impl Deref for Lent {
    type Target = Lists;

    fn deref(&self) -> &Lists {
        &self.lists
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // In a forked child the channel may have stopped in the middle of a step.
        if self.home.born.is_here() {
            let _ = self.home.returns.try_send(std::mem::take(&mut self.lists));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_go_round_with_their_memory() {
        let shelf = Shelf::new(1);
        let mut lent = shelf.take();
        lent.lists.rows.extend([1, 2, 3]);
        let bounds = Vec::with_capacity(100);
        lent.lists.set(0, Column::Ragged { values_at: 0, values_len: 0, offsets_at: 0, bounds });
        let another = shelf.take();
        assert!(another.rows.is_empty() && another.layout.is_empty());
        drop((lent, another));
        let mut again = shelf.take();
        assert_eq!(again.rows, [1, 2, 3]);
        assert_eq!([0, 1].map(|column| again.lists.take_memory(column).capacity()), [100, 0]);
        assert!(shelf.take().rows.is_empty(), "there was room for one");
    }
}
