//! The end of the process. A report that nobody has read makes it a failure: a test that does not ask passes on luck otherwise.

use std::io::Write;
use std::sync::Once;
use std::time::{Duration, Instant};

use crate::checker::checker;
use crate::device::Device;
use crate::driver::is_of_this_process;

/// The exit status of a process that leaves reports unread, whatever it said itself.
pub const UNREAD: i32 = 86;

/// How long work under way may take to make its own reports.
const PATIENCE: Duration = Duration::from_secs(10);

/// Has the end of the process look for reports, once.
pub(crate) fn look_at_the_end() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a function that stays where it is: this library is never unloaded.
        unsafe { libc::atexit(at_the_end) };
    });
}

extern "C" fn at_the_end() {
    // A child that was forked off has copies of what its parent answers for.
    if !is_of_this_process() {
        return;
    }
    let deadline = Instant::now() + PATIENCE;
    while !Device::all().all(|device| device.tables().all_streams().all(|stream| stream.is_idle())) {
        if Instant::now() > deadline {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let untold = checker().untold();
    if !untold.is_empty() {
        let _ = write!(std::io::stderr(), "driver double: the process ends, and nobody has read:\n{untold}");
        // SAFETY: ends the process, which was ending.
        unsafe { libc::_exit(UNREAD) };
    }
}
