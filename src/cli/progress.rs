//! Progress bars on stderr that vanish when it is no terminal, and the two signals that end work early.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::base::{Progress, Unit};

/// The bar of the running phase.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: Mutex<ProgressBar>,
    quiet: bool,
}

impl Bar {
    pub(crate) fn new(quiet: bool) -> Self {
        Self { bar: Mutex::new(ProgressBar::hidden()), quiet }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    fn bar(&self) -> MutexGuard<'_, ProgressBar> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Bar {
    fn begin(&self, label: &str, total: u64, unit: Unit) {
        if self.quiet {
            return;
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
        let counts = match unit {
            Unit::Bytes => "{binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
            Unit::Tokens => "{human_pos}/{human_len} tokens  {per_sec:>12}",
            Unit::Steps => "{human_pos}/{human_len} steps",
            Unit::Items => "{human_pos}/{human_len}",
        };
        let template = format!("{{prefix:.bold}} {{wide_bar:.cyan/dim}} {counts}  {{eta}} left  {{msg}}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style.progress_chars("━━╌"));
        }
        bar.set_prefix(label.to_owned());
        *self.bar() = bar;
    }

    fn set(&self, done: u64) {
        let bar = self.bar();
        bar.set_position(done);
        bar.reset_eta();
    }

    fn advance(&self, n: u64) {
        self.bar().inc(n);
    }

    fn note(&self, text: &str) {
        self.bar().set_message(text.to_owned());
    }

    fn line(&self, text: &str) {
        if !self.quiet {
            self.bar().suspend(|| super::render::to_stderr(text));
        }
    }

    fn warn(&self, text: &str) {
        if !self.quiet {
            self.bar().suspend(|| super::render::warn(text));
        }
    }

    fn end(&self) {
        self.bar().finish_and_clear();
    }

    fn cancelled(&self) -> bool {
        stop_flag().load(Ordering::Relaxed)
    }
}

/// Set by the first Ctrl-C or SIGTERM; a second one ends the process at once.
fn stop_flag() -> &'static Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // Registered first, so that it sees the flag as the signal before this one left it.
            drop(signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag)));
            drop(signal_hook::flag::register(signal, Arc::clone(&flag)));
        }
        flag
    })
}

/// From here on signals stop work between units that can be kept.
pub(crate) fn catch_signals() {
    let _ = stop_flag();
}
