//! A timer of the kernel that a tokio task can wait for: the runtime's own timers go by whole milliseconds.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Goes off once for each time that it is set; setting it again replaces the time.
#[derive(Debug)]
pub(crate) struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    /// A timer that is not set. To be called within a tokio runtime that has I/O enabled.
    pub(crate) fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        // SAFETY: an `OwnedFd` is open and stays the same descriptor until it is dropped, which only the `AsyncFd`
        // that owns it does.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        Ok(Timer(timer))
    }

    /// Goes off after `wait`, at once for zero.
    pub(crate) fn set(&self, wait: Duration) -> io::Result<()> {
        // Zero would disarm it; a second's count above i64::MAX is a wait without end either way.
        let wait = wait.max(Duration::from_nanos(1));
        let it_value =
            Timespec { tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX), tv_nsec: wait.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    /// Waits until it has gone off since this was last asked.
    pub(crate) async fn expired(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let read = rustix::io::read(self.0.get_ref(), &mut [0; 8]);
            match read {
                // How often it went off is of no interest.
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn goes_off_after_the_last_time_set_and_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let timer = Timer::new().unwrap();
            let started = Instant::now();
            timer.set(Duration::from_secs(60)).unwrap();
            timer.set(Duration::from_millis(5)).unwrap();
            timer.expired().await.unwrap();
            let waited = started.elapsed();
            assert!(waited >= Duration::from_millis(5) && waited < Duration::from_secs(5), "{waited:?}");
            timer.set(Duration::ZERO).unwrap();
            timer.expired().await.unwrap();
            let again = tokio::time::timeout(Duration::from_millis(20), timer.expired()).await;
            assert!(again.is_err(), "went off twice");
        });
    }
}
