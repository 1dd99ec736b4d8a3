//! The happens-before checker: what orders two uses of the same memory, decided when they are enqueued, whatever the timing.
//!
//! Each stream has a vector clock: how far into every other stream all that it is given from now on comes after. Enqueueing
//! ticks the stream's own entry; recording an event keeps the clock with the record; a wait for the event joins it into the waiting
//! stream's; so do the rules of the legacy default stream. Two uses of one byte, one of them a write, must be ordered by
//! these clocks, or they are a race, which is reported with the names of both.
//!
//! **The host**'s threads have clocks, too: how far into each stream a thread has *observed* that all is done. What a thread
//! enqueues comes after what it has observed itself. Observations are:
//! - `cuEventQuery` and `cuEventSynchronize` that say success, for what came before the event's record that they speak of, and
//!   what that came after; nothing for an event that was never recorded;
//! - `cuStreamQuery` and `cuStreamSynchronize` that say success, for all that was in the stream;
//! - `cuCtxSynchronize`, for all of the device's streams;
//! - a copy to pageable memory, which returns when it is done, for what came before it in its stream;
//! - any call that says that the device has failed, for all of its streams: it has stopped.
//!
//! That a copy *is* over is no observation, and neither is a time that has gone by, or bytes that are there.
//!
//! Threads tell each other what they have observed through channels and locks, which the double cannot see. So what a thread
//! *enqueues* counts on its own observations only, and on all that there were when it first called the driver: a consumer whose stream
//! does not wait for a batch is found out although the thread that copied it knows that it has landed. Code that hands such knowledge
//! from thread to thread, and then enqueues on the strength of it, would be reported wrongly; there is none here. What the host *does to
//! memory* counts on the observations of all threads: pages go from thread to thread, and the compiler holds safe code to the rules
//! between them. A thread that writes to a page by luck of another one's observation goes unnoticed.
//!
//! **What the host itself does** to memory is a use like any other: freeing device memory and
//! unregistering host memory; writes that the tests announce (`Double::host_writes`); and every write that the guard catches.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::device::thread;
use crate::faults::{Guard, SETTINGS};
use crate::guard::Guarded;

/// Reports that are kept of one device: the first ones say it all.
const REPORTS_MAX: usize = 200;

/// The one of this process: addresses are unique over all devices, and events are waited for across them.
pub(crate) fn checker() -> MutexGuard<'static, Checker> {
    static CHECKER: LazyLock<Mutex<Checker>> = LazyLock::new(Mutex::default);
    CHECKER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far into each stream, by the stream's number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clock(BTreeMap<u32, u64>);

impl Clock {
    fn join(&mut self, other: &Clock) {
        for (stream, index) in &other.0 {
            let own = self.0.entry(*stream).or_default();
            *own = (*own).max(*index);
        }
    }

    fn covers(&self, stream: u32, index: u64) -> bool {
        self.0.get(&stream).is_some_and(|own| *own >= index)
    }
}

/// Something that was enqueued.
pub(crate) struct Op {
    pub(crate) device: usize,
    stream: u32,
    index: u64,
    clock: Clock,
    name: String,
    /// Whether its own parts are in no order: those of a batch, both ends of a copy.
    is_unordered: bool,
    /// Whether it was said that the host writes to what this reads: once is enough, for all the pages there are.
    is_told: AtomicBool,
}

impl Op {
    fn is_after(&self, other: &Op) -> bool {
        self.clock.covers(other.stream, other.index)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (number {} in stream {})", self.name, self.index, self.stream)
    }
}

/// What is done to memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Use::Read { "reads" } else { "writes" })
    }
}

struct Access {
    op: Arc<Op>,
    end: usize,
    how: Use,
    /// Host memory that is read-only until this is over.
    guarded: Option<Guarded>,
}

#[derive(Default)]
pub(crate) struct Checker {
    /// What any thread has observed.
    host: Clock,
    /// What each thread has observed, by its number.
    threads: HashMap<usize, Clock>,
    streams: HashMap<u32, Clock>,
    /// By first address, and a number that tells those of one address apart.
    accesses: BTreeMap<(usize, u64), Access>,
    /// Bytes of the longest of them.
    longest: usize,
    number: u64,
    /// Kernels whose twins have yet to say what they use.
    late: HashMap<u64, Arc<Op>>,
    reports: HashMap<usize, Vec<String>>,
    /// How many of them somebody has been told.
    told: HashMap<usize, usize>,
    /// Accesses when they were last looked through.
    looked_through: usize,
    /// Pages that the guard has protected at some time.
    ever_guarded: Vec<Range<usize>>,
}

impl Checker {
    /// What was found on a device, a line each. From now on it counts as told.
    pub(crate) fn reports(&mut self, device: usize) -> String {
        let reports = self.reports.get(&device).map_or(&[][..], Vec::as_slice);
        self.told.insert(device, reports.len());
        reports.join("\n")
    }

    /// What nobody has asked for, a line each.
    pub(crate) fn untold(&self) -> String {
        let of_device = |(device, reports): (&usize, &Vec<String>)| {
            let told = self.told.get(device).copied().unwrap_or(0);
            reports[told..].iter().map(|report| format!("device {device}: {report}\n")).collect::<String>()
        };
        self.reports.iter().map(of_device).collect()
    }

    pub(crate) fn report(&mut self, device: usize, what: impl Into<String>) {
        let reports = self.reports.entry(device).or_default();
        if reports.len() < REPORTS_MAX {
            reports.push(what.into());
        }
    }

    /// Something is put at the end of a stream.
    pub(crate) fn enqueue(&mut self, device: usize, stream: u32, name: String, is_unordered: bool) -> Arc<Op> {
        let observed = self.threads.entry(thread()).or_insert_with(|| self.host.clone());
        let clock = self.streams.entry(stream).or_default();
        clock.join(observed);
        let index = clock.0.entry(stream).or_default();
        *index += 1;
        Arc::new(Op {
            device,
            stream,
            index: *index,
            name,
            is_unordered,
            is_told: AtomicBool::default(),
            clock: clock.clone(),
        })
    }

    /// A stream waits for all that another one has been given.
    pub(crate) fn follow(&mut self, stream: u32, other: u32) {
        let clock = self.streams.get(&other).cloned().unwrap_or_default();
        self.wait(stream, &clock);
    }

    /// A stream waits for a record.
    pub(crate) fn wait(&mut self, stream: u32, record: &Clock) {
        self.streams.entry(stream).or_default().join(record);
    }

    /// An event is recorded: what it stands for.
    pub(crate) fn record(&mut self, stream: u32) -> Clock {
        let observed = self.threads.entry(thread()).or_insert_with(|| self.host.clone());
        let clock = self.streams.entry(stream).or_default();
        clock.join(observed);
        clock.clone()
    }

    /// This thread has seen that what the record stands for is done.
    pub(crate) fn observe(&mut self, record: &Clock) {
        self.threads.entry(thread()).or_insert_with(|| self.host.clone()).join(record);
        self.host.join(record);
        self.unguard();
    }

    /// This thread has seen that all is done that the streams were given.
    pub(crate) fn observe_streams(&mut self, streams: impl Iterator<Item = u32>) {
        for stream in streams {
            let clock = self.streams.get(&stream).cloned().unwrap_or_default();
            self.observe(&clock);
        }
    }

    /// A thread has ended: nothing is enqueued on the strength of what it knew.
    pub(crate) fn end_thread(&mut self, thread: usize) {
        self.threads.remove(&thread);
    }

    /// What `op` does to memory: checked against all that is known, and kept. `guarded` is its memory where that is the host's.
    pub(crate) fn access(&mut self, op: &Arc<Op>, range: Range<usize>, how: Use, guarded: Option<Guarded>) {
        if range.is_empty() {
            return;
        }
        let races = self.overlapping(&range, how).filter_map(|(start, other)| {
            let same = Arc::ptr_eq(op, &other.op);
            let is_ordered = if same { !op.is_unordered } else { op.is_after(&other.op) || other.op.is_after(op) };
            (!is_ordered).then(|| {
                let both = start.max(range.start)..other.end.min(range.end);
                let (bytes, at, rest) =
                    (both.len(), both.start, if same { "both in no order" } else { "nothing orders them" });
                format!("race: {op} {how} {bytes} bytes at {at:#x} that {} {}: {rest}", other.op, other.how)
            })
        });
        if let Some(race) = races.last() {
            self.report(op.device, race);
        }
        if let Some(guarded) = &guarded {
            self.note_guarded(guarded.pages());
        }
        self.number += 1;
        self.longest = self.longest.max(range.len());
        let access = Access { op: Arc::clone(op), end: range.end, how, guarded };
        self.accesses.insert((range.start, self.number), access);
        self.look_through();
    }

    /// What the host does to memory: it must have observed the end of everything that conflicts.
    pub(crate) fn host_access(&mut self, device: usize, range: &Range<usize>, how: Use, what: &str) {
        let race = self.overlapping(range, how).find(|(_, access)| !self.is_observed(access)).map(|(start, access)| {
            let both = start.max(range.start)..access.end.min(range.end);
            let (bytes, at, doing) = (both.len(), both.start, access.how);
            format!(
                "race: {what} {bytes} bytes at {at:#x} that {} {doing}: the host has not observed its end",
                access.op
            )
        });
        if let Some(race) = race {
            self.report(device, race);
        }
    }

    /// The memory is gone: what comes to its address is other memory.
    pub(crate) fn forget(&mut self, range: &Range<usize>) {
        let is_in = |start: usize, end: usize| start < range.end && range.start < end;
        let mut gone = Vec::new();
        self.accesses.retain(|(start, _), access| {
            let keep = !is_in(*start, access.end);
            if !keep {
                gone.extend(access.guarded.take());
            }
            keep
        });
        let still: Vec<&Guarded> = self.accesses.values().filter_map(|access| access.guarded.as_ref()).collect();
        gone.iter().for_each(|guarded| guarded.lift(&still));
        self.ever_guarded.retain(|pages| !is_in(pages.start, pages.end));
    }

    /// A kernel that will say only when it runs what it uses.
    pub(crate) fn begin_late(&mut self, op: &Arc<Op>) -> u64 {
        self.number += 1;
        self.late.insert(self.number, Arc::clone(op));
        self.number
    }

    pub(crate) fn end_late(&mut self, number: u64) {
        self.late.remove(&number);
    }

    /// The host has written to an address and found it read-only. Says whether it is one of those that the guard protects, or
    /// did a moment ago; a report is made where a copy reads that very byte, and not merely its neighbours on the page.
    pub(crate) fn host_wrote(&mut self, address: usize) -> bool {
        let reader = self.overlapping(&(address..address + 1), Use::Write).find(|(_, access)| {
            let is_told = access.op.is_told.load(Ordering::Acquire);
            access.guarded.is_some() && access.how == Use::Read && !self.is_observed(access) && !is_told
        });
        if let Some((_, access)) = reader {
            access.op.is_told.store(true, Ordering::Release);
            let (device, op) = (access.op.device, &access.op);
            let text =
                format!("race: the host writes at {address:#x} what {op} reads: the host has not observed its end");
            self.report(device, text);
        }
        self.ever_guarded.iter().any(|pages| pages.contains(&address))
    }

    /// Accesses to a part of `range` that conflict with this one, and where they begin.
    fn overlapping(&self, range: &Range<usize>, how: Use) -> impl Iterator<Item = (usize, &Access)> {
        let (from, to) = (range.start.saturating_sub(self.longest), range.end);
        let begin = range.start;
        self.accesses
            .range((from, 0)..(to, 0))
            .filter(move |(_, access)| access.end > begin && (how == Use::Write || access.how == Use::Write))
            .map(|((start, _), access)| (*start, access))
    }

    fn is_observed(&self, access: &Access) -> bool {
        self.is_over(&access.op)
    }

    /// Whether the host has observed its end.
    pub(crate) fn is_over(&self, op: &Op) -> bool {
        self.host.covers(op.stream, op.index)
    }

    /// Drops accesses that nothing can race with any more, when there are twice as many as there were left the last time.
    fn look_through(&mut self) {
        if self.accesses.len() < (2 * self.looked_through).max(256) {
            return;
        }
        let (threads, late) = (&self.threads, &self.late);
        self.accesses.retain(|_, access| {
            let op = &access.op;
            let is_known = threads.values().all(|clock| clock.covers(op.stream, op.index));
            !is_known || access.guarded.is_some() || late.values().any(|kernel| !kernel.is_after(op))
        });
        self.longest = self.accesses.iter().map(|((start, _), access)| access.end - start).max().unwrap_or(0);
        self.looked_through = self.accesses.len();
    }

    /// Keeps the pages, as few ranges.
    fn note_guarded(&mut self, pages: &Range<usize>) {
        match self.ever_guarded.iter_mut().find(|known| known.start <= pages.end && pages.start <= known.end) {
            Some(known) => *known = known.start.min(pages.start)..known.end.max(pages.end),
            None => self.ever_guarded.push(pages.clone()),
        }
    }

    /// Lets the host write again where all copies have been observed to be over.
    fn unguard(&mut self) {
        if SETTINGS.guard == Guard::Off {
            return;
        }
        let mut over = Vec::new();
        let host = &self.host;
        for access in self.accesses.values_mut() {
            if host.covers(access.op.stream, access.op.index) {
                over.extend(access.guarded.take());
            }
        }
        if !over.is_empty() {
            let still: Vec<&Guarded> = self.accesses.values().filter_map(|access| access.guarded.as_ref()).collect();
            over.iter().for_each(|guarded| guarded.lift(&still));
        }
    }
}
