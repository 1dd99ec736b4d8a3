//! Bars on standard error, where that is a terminal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use farfeed::ByteSize;
use farfeed::loader::{BuildStep, IndexProgress};
use indicatif::{DecimalBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a bar is drawn.
const DRAWS_PER_S: u8 = 10;

/// A bar drawn by `template`; none where `quiet`.
pub(crate) fn bar(quiet: bool, template: &str) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(DRAWS_PER_S) };
    let bar = ProgressBar::with_draw_target(None, target);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar
}

/// A bar for an index that is being made.
pub(crate) fn index_bar(quiet: bool) -> ProgressBar {
    bar(quiet, "indexing {bar:20} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {msg}")
}

/// Moves a bar of [`index_bar`].
pub(crate) fn show_index(bar: &ProgressBar, so_far: &IndexProgress) {
    bar.set_length(so_far.bytes_total);
    bar.set_position(so_far.bytes);
    let samples = HumanCount(so_far.samples);
    bar.set_message(format!("{} of {} shards, {samples} samples", so_far.shards, so_far.shards_total));
}

/// How long opening a dataset may take before it is explained.
const QUIET_START: Duration = Duration::from_secs(3);

/// What is said while a dataset is opened.
pub(crate) struct Opening {
    quiet: bool,
    /// Something was said, or need not be.
    told: Arc<AtomicBool>,
    /// Bytes of host memory that are waited for; 0 while it is the store.
    memory: Arc<AtomicU64>,
}

impl Opening {
    /// `quiet` where no human looks on.
    pub(crate) fn new(quiet: bool) -> Self {
        Opening { quiet, told: Arc::default(), memory: Arc::default() }
    }

    /// For an index that may have to be made on the fly: says so once, and shows how far it is.
    pub(crate) fn on_index(&self) -> impl Fn(IndexProgress) + Send + Sync + 'static {
        let (quiet, told, bar) = (self.quiet, Arc::clone(&self.told), index_bar(self.quiet));
        move |so_far| {
            if !told.swap(true, Ordering::Relaxed) && !quiet {
                let all = DecimalBytes(so_far.bytes_total);
                eprintln!("farfeed: no index beside the shards, so all {all} are read once; `farfeed index` keeps it");
            }
            show_index(&bar, &so_far);
            if so_far.shards == so_far.shards_total {
                bar.finish_and_clear();
            }
        }
    }

    /// To be called when the store has answered.
    pub(crate) fn heard(&self) -> impl Fn() + Send + Sync + 'static {
        let told = Arc::clone(&self.told);
        move || told.store(true, Ordering::Relaxed)
    }

    /// For [`farfeed::loader::LoaderBuilder::on_build_step`]: what is waited for.
    pub(crate) fn on_step(&self) -> impl Fn(BuildStep) + Send + Sync + 'static {
        let memory = Arc::clone(&self.memory);
        move |step| {
            let bytes = if let BuildStep::Memory(size) = step { size.as_bytes() } else { 0 };
            memory.store(bytes, Ordering::Relaxed);
        }
    }

    /// Does `work`; where it takes long says what is waited for: a store is asked again and again, for up to `patience`.
    pub(crate) fn watch<T>(&self, patience: Duration, work: impl FnOnce() -> T) -> T {
        let (done, ended) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let silent = matches!(ended.recv_timeout(QUIET_START), Err(RecvTimeoutError::Timeout));
                if silent && !self.quiet && !self.told.swap(true, Ordering::Relaxed) {
                    eprintln!("farfeed: {}", waited_for(self.memory.load(Ordering::Relaxed), patience));
                }
            });
            let outcome = work();
            drop(done);
            outcome
        })
    }
}

fn waited_for(memory: u64, patience: Duration) -> String {
    match memory {
        0 => format!("no answer from the store yet; it is asked again for up to {} s", patience.as_secs()),
        bytes => format!("{} of host memory are being set aside; --host-memory sets how much", ByteSize::bytes(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_waited_for() {
        let opening = Opening::new(true);
        let step = opening.on_step();
        let said = || waited_for(opening.memory.load(Ordering::Relaxed), Duration::from_secs(120));
        assert!(said().contains("the store") && said().contains("120 s"));
        step(BuildStep::Memory(ByteSize::gib(4)));
        assert!(said().starts_with("4096.0 MiB of host memory"), "{}", said());
        step(BuildStep::Store);
        assert!(said().contains("the store"));
    }
}
