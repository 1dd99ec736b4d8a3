//! A real fork, for tests of what is left of a library in a child.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Runs `work` in a process forked off this one, with a copy of its memory and none of its threads, and gives what it
/// returned. The child leaves without running anything else: no destructors, no other tests.
///
/// # Errors
/// When it has not answered after `patience` (it is killed then), or ended without an answer, and how.
///
/// # Panics
/// When there can be no other process.
pub fn in_a_child(patience: Duration, work: impl FnOnce() -> String) -> Result<String, String> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0, "a pipe");
    // SAFETY: both were made above, and are owned by nobody else.
    let (mut answers, mut answer) = unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) };
    // SAFETY: the child has this thread alone, with locks as they were; glibc puts the allocator's right. It does
    // what the test asks and leaves.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "a fork");
    if child == 0 {
        let said = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| "it panicked".into());
        let _ = answer.write_all(said.as_bytes());
        // SAFETY: ends the process, and runs nothing that belongs to the parent.
        unsafe { libc::_exit(0) };
    }
    drop(answer);
    let answered = waits_for(&answers, Instant::now() + patience);
    if !answered {
        // SAFETY: a child of ours that nobody has waited for.
        unsafe { libc::kill(child, libc::SIGKILL) };
    }
    let mut said = String::new();
    let _ = answers.read_to_string(&mut said);
    let mut status = 0;
    // SAFETY: as above, and a place for the answer.
    unsafe { libc::waitpid(child, &mut status, 0) };
    match status {
        0 if !said.is_empty() => Ok(said),
        _ if !answered => Err(format!("no answer within {patience:?}")),
        status => Err(format!("it ended with status {status:#x} after {said:?}")),
    }
}

/// Whether there is something to read, or nobody left to write.
fn waits_for(pipe: &File, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut asked = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor to ask about.
        let ready = unsafe { libc::poll(&mut asked, 1, left.as_millis() as libc::c_int) };
        if ready > 0 {
            return true;
        }
        if left.is_zero() {
            return false;
        }
    }
}
