//! The progress bar, for long work on a terminal.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::{Duration, Instant};

use diskimage::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Delay of the bar with [`When::Delayed`].
const DELAY: Duration = Duration::from_secs(1);

/// When to show a bar. Without a terminal on standard error, it never appears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Never,
    Delayed,
    Immediately,
}

/// A progress bar that is hidden until it is due.
#[derive(Clone)]
pub struct Bar(Option<Arc<Shown>>);

struct Shown {
    bar: ProgressBar,
    due: Instant,
}

impl Bar {
    pub fn new(when: When) -> Self {
        let delay = match when {
            When::Never => return Bar(None),
            When::Delayed => DELAY,
            When::Immediately => Duration::ZERO,
        };
        if !io::stderr().is_terminal() {
            return Bar(None);
        }
        Bar(Some(Arc::new(Shown::due(Instant::now() + delay))))
    }

    /// Updates the bar.
    pub fn update(&self, progress: Progress) {
        if let Some(shown) = &self.0 {
            shown.update(progress);
        }
    }

    /// Removes the bar from the terminal, before other output.
    pub fn clear(&self) {
        if let Some(shown) = &self.0 {
            shown.bar.finish_and_clear();
        }
    }
}

impl Shown {
    fn due(due: Instant) -> Self {
        const TEMPLATE: &str = "{percent:>3}% [{bar:30}] {binary_bytes} of {binary_total_bytes}, {eta} left";
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("=> "));
        }
        Shown { bar, due }
    }

    fn update(&self, Progress { done, total, .. }: Progress) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        if self.bar.is_hidden() && Instant::now() >= self.due {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_means_no_bar() {
        assert!(Bar::new(When::Never).0.is_none());
    }
}
