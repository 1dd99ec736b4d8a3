//! Bars on standard error, where that is a terminal.

use farfeed::loader::IndexProgress;
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

/// For loaders that may have to make an index on the fly: says so once, and shows how far it is.
pub(crate) fn on_the_fly(quiet: bool) -> impl Fn(IndexProgress) + Send + Sync + 'static {
    let bar = index_bar(quiet);
    let told = std::sync::Once::new();
    move |so_far| {
        told.call_once(|| {
            if !quiet {
                let all = DecimalBytes(so_far.bytes_total);
                eprintln!("farfeed: no index beside the shards, so all {all} are read once; `farfeed index` keeps it");
            }
        });
        show_index(&bar, &so_far);
        if so_far.shards == so_far.shards_total {
            bar.finish_and_clear();
        }
    }
}
