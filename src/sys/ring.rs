//! io_uring reads into buffers that belong to the ring until the kernel is done with them.
//!
//! A buffer goes in by value and comes out by value, with the completion. No handle on a read in flight exists, so
//! nothing that is dropped elsewhere can free memory that the kernel still writes to.

use std::fs::File;
use std::io;
use std::ops::{DerefMut, Range};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};
use rustix::event::{EventfdFlags, eventfd};

/// How long dropping a ring waits for the kernel; what is in flight after that is leaked, never freed.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause when the kernel has no room to take an operation right now.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
/// Tries to make room in the submission queue; with the pause, about a second.
const PUSHES: usize = 1000;
const WAKE: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;

/// One ring, used by the thread that made it. `B` is a buffer, `T` what the caller wants back with it.
pub(crate) struct Ring<B, T> {
    uring: IoUring,
    flights: Vec<Option<Flight<B, T>>>,
    vacant: Vec<usize>,
    wake: Arc<OwnedFd>,
    wake_armed: bool,
}

/// A read to start.
pub(crate) struct RingRead<B, T> {
    pub(crate) file: Arc<File>,
    /// First byte, from the start of the file.
    pub(crate) offset: u64,
    pub(crate) buffers: Box<[B]>,
    /// Bytes to fill, counted through all buffers.
    pub(crate) span: Range<usize>,
    pub(crate) tag: T,
}

/// A read that has ended: the buffers are the caller's again.
pub(crate) struct RingDone<B, T> {
    pub(crate) buffers: Box<[B]>,
    pub(crate) tag: T,
    /// Bytes read; 0 is the end of the file.
    pub(crate) result: io::Result<usize>,
}

/// Ends the wait of the thread that drives a ring, from any thread.
#[derive(Clone, Debug)]
pub(crate) struct RingWaker(Arc<OwnedFd>);

struct Flight<B, T> {
    /// From `Box::into_raw`; whole again only after the completion. If that never comes this is never freed.
    buffers: NonNull<[B]>,
    /// What the kernel was told, kept in place as long as the read.
    slices: Vec<libc::iovec>,
    file: Arc<File>,
    tag: T,
}

impl RingWaker {
    pub(crate) fn wake(&self) {
        // The descriptor does not block: a full counter means that the thread is already being woken.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

impl<B: DerefMut<Target = [u8]> + Send + 'static, T> Ring<B, T> {
    /// A ring for up to `depth` reads in flight.
    ///
    /// # Errors
    /// The errno of the kernel's refusal; `Unsupported` where it cannot wait with a deadline (before 5.11).
    pub(crate) fn new(depth: usize) -> io::Result<Self> {
        let entries = u32::try_from(depth + 1).map_err(|_| io::ErrorKind::InvalidInput)?;
        // Completions are then handled when this thread asks for them, not by interrupting it (6.1 and later).
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_clamp()
            .dontfork()
            .build(entries)
            .or_else(|_| IoUring::builder().setup_clamp().dontfork().build(entries))?;
        if !uring.params().is_feature_ext_arg() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Ring {
            uring,
            flights: (0..depth).map(|_| None).collect(),
            vacant: (0..depth).rev().collect(),
            wake: Arc::new(wake),
            wake_armed: false,
        })
    }

    pub(crate) fn waker(&self) -> RingWaker {
        RingWaker(Arc::clone(&self.wake))
    }

    /// Whether one more read may start.
    pub(crate) fn has_room(&self) -> bool {
        !self.vacant.is_empty()
    }

    /// Takes a read; the kernel sees it at the next [`Ring::wait`].
    ///
    /// # Errors
    /// Gives the read back when there is no room, when the span does not lie inside the buffers, or when the kernel
    /// takes no entries any more.
    pub(crate) fn submit(&mut self, read: RingRead<B, T>) -> Result<(), RingRead<B, T>> {
        let bytes = read.buffers.iter().map(|buffer| buffer.len()).sum();
        if read.span.is_empty() || read.span.end > bytes {
            return Err(read);
        }
        let Some(slot) = self.vacant.pop() else { return Err(read) };
        let RingRead { file, offset, buffers, span, tag } = read;
        let mut buffers = NonNull::from(Box::leak(buffers));
        // SAFETY: leaked just now, so valid, and this is the only pointer to it. It is not looked at again until the
        // completion, so the addresses taken here stay good.
        let slices = iovecs(unsafe { buffers.as_mut() }, span.clone());
        let fd = types::Fd(file.as_raw_fd());
        let entry = match &slices[..] {
            [one] => opcode::Read::new(fd, one.iov_base.cast(), one.iov_len as u32).offset(offset).build(),
            many => opcode::Readv::new(fd, many.as_ptr(), many.len() as u32).offset(offset).build(),
        };
        let flight = Flight { buffers, slices, file, tag };
        if !self.push(&entry.user_data(slot as u64)) {
            self.vacant.push(slot);
            let file = Arc::clone(&flight.file);
            let RingDone { buffers, tag, .. } = flight.land(0);
            return Err(RingRead { file, offset, buffers, span, tag });
        }
        self.flights[slot] = Some(flight);
        Ok(())
    }

    /// Hands over what was submitted and waits up to `patience` for a completion or a wake-up. All completions there
    /// are go to `done`.
    ///
    /// # Errors
    /// When the ring itself is broken; single reads fail in their [`RingDone`].
    pub(crate) fn wait(&mut self, patience: Duration, done: &mut Vec<RingDone<B, T>>) -> io::Result<()> {
        if !self.wake_armed {
            let poll = opcode::PollAdd::new(types::Fd(self.wake.as_raw_fd()), libc::POLLIN as u32);
            self.wake_armed = self.push(&poll.build().user_data(WAKE));
        }
        self.enter(patience)?;
        self.reap(done);
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<RingDone<B, T>>) {
        while let Some(entry) = self.uring.completion().next() {
            match entry.user_data() {
                CANCEL => {}
                WAKE => {
                    self.wake_armed = false;
                    let _ = rustix::io::read(&*self.wake, &mut [0u8; 8]);
                }
                slot => {
                    let slot = slot as usize;
                    let Some(flight) = self.flights.get_mut(slot).and_then(Option::take) else { continue };
                    self.vacant.push(slot);
                    done.push(flight.land(entry.result()));
                }
            }
        }
    }
}

impl<B, T> Ring<B, T> {
    /// Queues an entry for the next `enter`; false when the kernel takes no entries any more.
    fn push(&mut self, entry: &io_uring::squeue::Entry) -> bool {
        for _ in 0..PUSHES {
            // SAFETY: the entry names a descriptor and memory that a `Flight` (or, for the wake-up, the ring) keeps
            // until the completion with this user data was seen; cancellations name no memory.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return true;
            }
            // Full of entries that the kernel has not seen yet: it takes them here.
            if self.uring.submit().is_err() {
                std::thread::sleep(BUSY_PAUSE);
            }
        }
        false
    }

    fn enter(&mut self, patience: Duration) -> io::Result<()> {
        let timeout = types::Timespec::from(patience);
        let args = types::SubmitArgs::new().timespec(&timeout);
        let Err(error) = self.uring.submitter().submit_with_args(1, &args) else { return Ok(()) };
        match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR) => Ok(()),
            Some(libc::EAGAIN | libc::EBUSY) => {
                std::thread::sleep(BUSY_PAUSE);
                Ok(())
            }
            _ => Err(error),
        }
    }
}

impl<B, T> Flight<B, T> {
    /// The kernel has completed this read.
    fn land(self, result: i32) -> RingDone<B, T> {
        // SAFETY: the pointer is from a `Box<[B]>` that `submit` gave up, it is made whole here only, and the
        // completion says that the kernel no longer writes to it.
        let buffers = unsafe { Box::from_raw(self.buffers.as_ptr()) };
        let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        RingDone { buffers, tag: self.tag, result }
    }
}

impl<B, T> Drop for Ring<B, T> {
    /// Cancels what is in flight and waits for it, up to [`DRAIN`].
    fn drop(&mut self) {
        let deadline = Instant::now() + DRAIN;
        for slot in 0..self.flights.len() {
            if self.flights[slot].is_some() {
                self.push(&opcode::AsyncCancel::new(slot as u64).build().user_data(CANCEL));
            }
        }
        while self.flights.iter().any(Option::is_some) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.enter(left).is_err() {
                break;
            }
            while let Some(entry) = self.uring.completion().next() {
                let slot = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
                if let Some(flight) = self.flights.get_mut(slot).and_then(Option::take) {
                    drop(flight.land(entry.result()));
                }
            }
        }
        // The kernel may write to what is left at any time: it stays allocated for ever. Only the tags go, so that
        // whoever waits for them hears of it.
        for Flight { buffers: _, slices, file, tag } in self.flights.drain(..).flatten() {
            std::mem::forget((slices, file));
            drop(tag);
        }
    }
}

/// The part `span` of the concatenated buffers.
///
/// The addresses stay good as long as nobody looks at the buffers: they come from a `&mut` borrow of memory that the
/// caller owns outright (`B: 'static`), and which is as good as borrowed until then.
fn iovecs<B: DerefMut<Target = [u8]>>(buffers: &mut [B], span: Range<usize>) -> Vec<libc::iovec> {
    let mut start = 0;
    let mut slices = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        let bytes = buffer.len();
        let (from, to) = (span.start.max(start), span.end.min(start + bytes));
        if from < to {
            let part = &mut buffer[from - start..to - start];
            slices.push(libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() });
        }
        start += bytes;
    }
    slices
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::ops::Deref;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A buffer that counts how often it was freed.
    struct Counted(Vec<u8>, Arc<AtomicUsize>);

    impl Deref for Counted {
        type Target = [u8];
        fn deref(&self) -> &[u8] {
            &self.0
        }
    }

    impl DerefMut for Counted {
        fn deref_mut(&mut self) -> &mut [u8] {
            &mut self.0
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A ring, or `None` where the kernel refuses one: the pread backend serves there.
    fn ring(depth: usize) -> Option<Ring<Counted, u32>> {
        Ring::new(depth).ok()
    }

    fn pipe() -> (Arc<File>, File) {
        let (reader, writer) = std::io::pipe().unwrap();
        (Arc::new(File::from(OwnedFd::from(reader))), File::from(OwnedFd::from(writer)))
    }

    fn read(file: &Arc<File>, freed: &Arc<AtomicUsize>, tag: u32) -> RingRead<Counted, u32> {
        let buffers = Box::new([Counted(vec![0; 4], Arc::clone(freed)), Counted(vec![0; 4], Arc::clone(freed))]);
        // A pipe has no positions: u64::MAX is "wherever it stands".
        RingRead { file: Arc::clone(file), offset: u64::MAX, buffers, span: 2..7, tag }
    }

    fn wait(ring: &mut Ring<Counted, u32>) -> Vec<RingDone<Counted, u32>> {
        let mut done = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(10);
        while done.is_empty() && Instant::now() < deadline {
            ring.wait(Duration::from_millis(50), &mut done).unwrap();
        }
        done
    }

    #[test]
    fn a_buffer_is_given_back_with_its_bytes_and_not_before() {
        let Some(mut ring) = ring(2) else { return };
        let (freed, (reader, mut writer)) = (Arc::new(AtomicUsize::new(0)), pipe());
        assert!(ring.submit(read(&reader, &freed, 7)).is_ok());
        let mut done = Vec::new();
        ring.wait(Duration::from_millis(20), &mut done).unwrap();
        assert!(done.is_empty() && freed.load(Ordering::SeqCst) == 0, "nothing was written yet");
        writer.write_all(b"abcde").unwrap();
        let done = wait(&mut ring).pop().unwrap();
        assert_eq!((done.tag, done.result.unwrap(), freed.load(Ordering::SeqCst)), (7, 5, 0));
        assert_eq!((&done.buffers[0][..], &done.buffers[1][..]), (&b"\0\0ab"[..], &b"cde\0"[..]));
        drop(done.buffers);
        assert_eq!(freed.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_full_ring_and_a_wrong_span_give_the_read_back() {
        let Some(mut ring) = ring(1) else { return };
        let (freed, (reader, _writer)) = (Arc::new(AtomicUsize::new(0)), pipe());
        let mut wrong = read(&reader, &freed, 1);
        wrong.span = 2..9;
        assert!(ring.submit(wrong).is_err());
        assert!(ring.submit(read(&reader, &freed, 2)).is_ok());
        assert!(!ring.has_room() && ring.submit(read(&reader, &freed, 3)).is_err());
    }

    #[test]
    fn dropping_the_ring_cancels_and_then_frees() {
        let Some(mut ring) = ring(4) else { return };
        let (freed, (reader, mut writer)) = (Arc::new(AtomicUsize::new(0)), pipe());
        for tag in 0..4 {
            assert!(ring.submit(read(&reader, &freed, tag)).is_ok());
        }
        ring.wait(Duration::from_millis(20), &mut Vec::new()).unwrap();
        let before = Instant::now();
        drop(ring);
        assert!(before.elapsed() < DRAIN, "a pipe's read can be cancelled");
        assert_eq!(freed.load(Ordering::SeqCst), 8);
        writer.write_all(b"nobody reads this").unwrap();
    }

    #[test]
    fn a_waker_ends_a_wait() {
        let Some(mut ring) = ring(1) else { return };
        let waker = ring.waker();
        for _ in 0..3 {
            let waker = waker.clone();
            let started = Instant::now();
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                waker.wake();
            });
            ring.wait(Duration::from_secs(20), &mut Vec::new()).unwrap();
            assert!(started.elapsed() < Duration::from_secs(10));
            thread.join().unwrap();
        }
    }
}
