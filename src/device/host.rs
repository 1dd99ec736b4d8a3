//! Slots in plain memory: for machines without a GPU, for tests, and for whoever wants batches on the host.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam_channel::Receiver;

use super::finish::host::HostSteps;
use super::finish::{Finishing, Turn};
use super::home::Home;
use super::slot::{Place, stranger};
use super::{Backend, DeviceSlot, Engine, Segment, Wake};
use crate::error::{Error, Kind, Result};
use crate::memory::{CopyHold, Slab};
use crate::sys::map::{Chunk, Map};

/// The host's own memory.
pub(super) struct HostBackend;

impl Backend for HostBackend {
    fn name(&self) -> String {
        "host memory".into()
    }

    fn open(&self, slab: &Slab, slots: usize, slot_bytes: usize, wake: Wake) -> Result<Box<dyn Engine>> {
        if slots == 0 || slot_bytes == 0 {
            return Err(Error::new(Kind::Config, format!("{slots} slots of {slot_bytes} bytes")));
        }
        let (home, arrivals) = Home::new(slots, wake);
        // The first batch should not wait for the kernel to find and clear huge pages; slots that are generous beyond reason stay lazy.
        let touch = slots.saturating_mul(slot_bytes) <= slab.pages() * slab.page_bytes();
        let free = (0..slots).map(|_| HostSlot::new(slot_bytes, touch)).collect::<Result<_>>()?;
        Ok(Box::new(HostEngine { free, arrivals, home, steps: HostSteps::default(), spare: Vec::new() }))
    }
}

/// Memory of one batch. Unless it was touched, only what was written to once is resident.
pub(super) struct HostSlot {
    memory: Chunk,
    bytes: usize,
}

impl HostSlot {
    fn new(bytes: usize, touch: bool) -> Result<HostSlot> {
        // A mapping for each, so that a slot which outlives its siblings does not keep theirs.
        let mut map = Map::lazy(bytes)?;
        if touch {
            map.touch();
        }
        let whole = map.bytes();
        let memory = map.into_chunks(whole).pop().ok_or_else(|| Error::new(Kind::Io, "an empty mapping"))?;
        Ok(HostSlot { memory, bytes })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[..self.bytes]
    }

    pub(super) fn range(&self, at: usize, len: usize) -> Result<&[u8]> {
        let end = at.checked_add(len);
        end.and_then(|end| self.bytes().get(at..end)).ok_or_else(|| outside(at, len, self.bytes))
    }

    fn write(&mut self, to: usize, from: &[u8]) -> Result<()> {
        let bytes = self.bytes;
        let end = to.checked_add(from.len());
        let place = end.and_then(|end| self.memory[..bytes].get_mut(to..end));
        place.ok_or_else(|| outside(to, from.len(), bytes))?.copy_from_slice(from);
        Ok(())
    }
}

fn outside(at: usize, len: usize, bytes: usize) -> Error {
    Error::new(Kind::Config, format!("{len} bytes at offset {at} pass the end of a slot of {bytes}"))
}

struct HostEngine {
    free: VecDeque<HostSlot>,
    arrivals: Receiver<HostSlot>,
    home: Arc<Home<HostSlot>>,
    steps: HostSteps,
    /// The last list of holds, to be used again.
    spare: Vec<CopyHold>,
}

impl HostEngine {
    fn ours<'s>(&self, slot: &'s mut DeviceSlot) -> Result<&'s mut HostSlot> {
        match slot.place_mut() {
            Some(Place::Host(slot, home)) if Arc::ptr_eq(home, &self.home) => Ok(slot),
            _ => Err(stranger()),
        }
    }
}

impl Engine for HostEngine {
    fn acquire(&mut self) -> Result<Option<DeviceSlot>> {
        self.home.loss()?;
        self.free.extend(self.arrivals.try_iter());
        // The last one back is the likeliest to be in a cache, and others may never have been touched.
        let slot = self.free.pop_back();
        Ok(slot.map(|slot| DeviceSlot::new(Place::Host(slot, Arc::clone(&self.home)))))
    }

    fn copy(&mut self, slot: &mut DeviceSlot, segments: &[Segment<'_>]) -> Result<()> {
        let slot = self.ours(slot)?;
        segments.iter().try_for_each(|segment| slot.write(segment.to, segment.from))
    }

    fn put(&mut self, slot: &mut DeviceSlot, to: usize, bytes: &[u8]) -> Result<()> {
        self.ours(slot)?.write(to, bytes)
    }

    fn prepare(&mut self, steps: &[Finishing]) -> Result<()> {
        self.steps = HostSteps::new(steps);
        Ok(())
    }

    fn finish(&mut self, slot: &mut DeviceSlot, turn: Turn) -> Result<()> {
        let slot = self.ours(slot)?;
        let bytes = slot.bytes;
        self.steps.run(&mut slot.memory[..bytes], turn)
    }

    fn seal(&mut self, slot: &mut DeviceSlot, mut holds: Vec<CopyHold>) -> Result<()> {
        self.ours(slot)?;
        holds.clear();
        self.spare = holds;
        Ok(())
    }

    fn spare_holds(&mut self) -> Vec<CopyHold> {
        std::mem::take(&mut self.spare)
    }

    fn poll(&mut self) -> Result<usize> {
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::device::Device;
    use crate::memory::{Landed, Landing};

    const SLOT_BYTES: usize = 50_000;

    fn engine(slab: &Slab, slots: usize) -> (Box<dyn Engine>, Arc<AtomicUsize>) {
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        let wake: Wake = Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        (Device::host().backend().open(slab, slots, SLOT_BYTES, wake).unwrap(), woken)
    }

    fn landed(slab: &Slab, bytes: &[u8]) -> Landed {
        let mut landing = Landing::new(slab.take(bytes.len().div_ceil(slab.page_bytes())).unwrap(), bytes.len());
        assert_eq!(landing.push(bytes), bytes.len());
        landing.landed().unwrap()
    }

    #[test]
    fn gathers_scattered_samples_and_frees_their_pages() {
        let slab = Slab::new(16 * 4096, 4096).unwrap();
        let (mut engine, _) = engine(&slab, 1);
        let source: Vec<u8> = (0..40_000u32).map(|i| (i * 7 % 253) as u8).collect();
        let landed = landed(&slab, &source);
        // 400 samples of 100 bytes, in another order, most of them beside a page's edge at some point.
        let order: Vec<usize> = (0..400).map(|i| i * 37 % 400).collect();
        let mut segments = Vec::new();
        for (place, sample) in order.iter().enumerate() {
            let mut to = place * 100;
            for from in landed.slices(sample * 100, 100) {
                segments.push(Segment { from, to });
                to += from.len();
            }
        }
        assert!(segments.len() > 400, "some samples lie across pages");
        let mut slot = engine.acquire().unwrap().unwrap();
        engine.copy(&mut slot, &segments).unwrap();
        engine.put(&mut slot, 40_000, b"offsets").unwrap();
        engine.seal(&mut slot, vec![landed.hold()]).unwrap();
        drop(landed);
        assert_eq!(slab.usage().free, 16, "a sealed batch needs no pages on the host");
        assert_eq!(engine.poll().unwrap(), 0);
        slot.synchronize().unwrap();
        let want: Vec<u8> = order.iter().flat_map(|s| source[s * 100..s * 100 + 100].iter().copied()).collect();
        assert_eq!(slot.read_back(0, 40_000).unwrap(), want);
        let bytes = slot.bytes().unwrap();
        assert_eq!((&bytes[40_000..40_007], bytes.len()), (&b"offsets"[..], SLOT_BYTES));
        assert_eq!(slot.device_pointer(), bytes.as_ptr() as u64);
    }

    #[test]
    fn slots_come_back_only_by_release_and_wake_the_loader() {
        let slab = Slab::new(4096, 4096).unwrap();
        let (mut engine, woken) = engine(&slab, 2);
        let first = engine.acquire().unwrap().unwrap();
        let second = engine.acquire().unwrap().unwrap();
        assert_ne!(first.device_pointer(), second.device_pointer());
        assert!(engine.acquire().unwrap().is_none());
        let address = first.device_pointer();
        first.release(None).unwrap();
        assert_eq!(woken.load(Ordering::SeqCst), 1);
        let again = engine.acquire().unwrap().unwrap();
        assert_eq!(again.device_pointer(), address);
        std::thread::spawn(move || drop((again, second))).join().unwrap();
        assert_eq!(woken.load(Ordering::SeqCst), 3);
        assert!(engine.acquire().unwrap().is_some());
    }

    #[test]
    fn slots_outlive_their_engine() {
        let slab = Slab::new(4096, 4096).unwrap();
        let (mut engine, woken) = engine(&slab, 2);
        let mut slot = engine.acquire().unwrap().unwrap();
        let returned = engine.acquire().unwrap().unwrap();
        engine.put(&mut slot, 0, b"still here").unwrap();
        drop(returned);
        drop(engine);
        drop(slab);
        assert_eq!(slot.read_back(0, 10).unwrap(), b"still here");
        drop(slot);
        assert_eq!(woken.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let slab = Slab::new(4096, 4096).unwrap();
        let (mut engine, _) = engine(&slab, 1);
        let (mut other, _) = super::tests::engine(&slab, 1);
        let mut slot = engine.acquire().unwrap().unwrap();
        for to in [SLOT_BYTES - 3, usize::MAX - 1] {
            assert_eq!(engine.put(&mut slot, to, b"four").unwrap_err().kind(), Kind::Config);
            let segments = [Segment { from: b"four", to }];
            assert_eq!(engine.copy(&mut slot, &segments).unwrap_err().kind(), Kind::Config);
            assert_eq!(slot.read_back(to, 4).unwrap_err().kind(), Kind::Config);
        }
        assert_eq!(other.put(&mut slot, 0, b"four").unwrap_err().kind(), Kind::Config);
        let none = Device::host().backend().open(&slab, 0, 1, Arc::new(|| ()));
        assert_eq!(none.err().map(|error| error.kind()), Some(Kind::Config));
    }
}
