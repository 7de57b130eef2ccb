//! Progress: a bar on a terminal, lines of JSON for programs, and one line for each SIGUSR1, as qemu-img prints it.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use diskimage::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::failure::Failure;
use crate::signals;

/// Delay of the bar with [`When::Delayed`].
const DELAY: Duration = Duration::from_secs(1);
/// Least time between two lines of JSON.
const INTERVAL: Duration = Duration::from_millis(500);

/// `--progress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Style {
    Bar,
    Json,
}

/// When to show which progress. Without a terminal on standard error, a bar never appears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Never,
    Delayed,
    Immediately,
    /// Lines of JSON on standard error.
    Lines,
}

/// Shows progress.
#[derive(Clone)]
pub struct Bar(Arc<Display>);

struct Display {
    bar: Option<Shown>,
    lines: Option<Mutex<Lines>>,
    /// Set by SIGUSR1.
    requested: Arc<AtomicBool>,
}

/// A bar that is hidden until it is due.
struct Shown {
    bar: ProgressBar,
    due: Instant,
}

/// What the last line said.
struct Lines {
    at: Instant,
    done: u64,
}

impl Bar {
    /// From now on SIGUSR1 shows the progress, whatever is shown otherwise.
    pub fn new(when: When) -> Result<Self, Failure> {
        let now = Instant::now();
        let due = match when {
            When::Delayed => Some(now + DELAY),
            When::Immediately => Some(now),
            When::Never | When::Lines => None,
        };
        Ok(Bar(Arc::new(Display {
            bar: due.filter(|_| io::stderr().is_terminal()).map(Shown::due),
            lines: (when == When::Lines).then(|| Mutex::new(Lines { at: now, done: 0 })),
            requested: signals::progress_requests()?,
        })))
    }

    /// Updates what is shown.
    pub fn update(&self, progress: Progress) {
        let Display { bar, lines, requested } = &*self.0;
        if let Some(shown) = bar {
            shown.update(progress);
        }
        if let Some(lines) = lines {
            let line = lines.lock().unwrap_or_else(PoisonError::into_inner).update(progress, Instant::now());
            line.iter().for_each(|line| print(line));
        }
        if requested.swap(false, Ordering::Relaxed) {
            let print = || print(&percentage(progress));
            bar.as_ref().map_or_else(print, |shown| shown.bar.suspend(print));
        }
    }

    /// Removes the bar from the terminal, before other output.
    pub fn clear(&self) {
        if let Some(shown) = &self.0.bar {
            shown.bar.finish_and_clear();
        }
    }
}

/// A closed standard error cannot be reported anywhere.
fn print(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// The progress as qemu-img prints it.
fn percentage(Progress { done, total, .. }: Progress) -> String {
    let percent = if total == 0 { 100.0 } else { done as f64 * 100.0 / total as f64 };
    format!("    ({percent:.2}/100%)")
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

impl Lines {
    /// The line that is due: after some time, and at the end.
    fn update(&mut self, Progress { done, total, .. }: Progress, now: Instant) -> Option<String> {
        let time = now.saturating_duration_since(self.at);
        if time < INTERVAL && done < total {
            return None;
        }
        // A conversion that is tried again begins again.
        let bytes = done.saturating_sub(self.done);
        let rate = bytes as f64 / time.as_secs_f64().max(0.001);
        *self = Lines { at: now, done };
        Some(json!({ "done": done, "total": total, "rate": rate.round() as u64 }).to_string())
    }
}

#[cfg(test)]
mod tests {
    use diskimage::io::MemFile;
    use diskimage::{Converter, Format, OpenOptions};

    use super::*;

    /// Progress of a disk of 4 MiB, by chunks of 1 MiB.
    fn progress() -> Vec<Progress> {
        let disk = Arc::new(MemFile::from(vec![7; 4 << 20]));
        let disk = OpenOptions::new().format(Format::RAW).open_source(disk).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = seen.clone();
        let converter = Converter::new(Format::RAW).threads(1).progress(move |now| all.lock().unwrap().push(now));
        converter.convert_to(&disk, Arc::new(MemFile::new())).unwrap();
        let seen = seen.lock().unwrap().clone();
        assert_eq!(seen.len(), 4);
        seen
    }

    #[test]
    fn lines_are_due_after_some_time_and_at_the_end() {
        let start = Instant::now();
        let mut lines = Lines { at: start, done: 0 };
        let steps: Vec<_> = [100, 500, 999, 1000]
            .into_iter()
            .zip(progress())
            .map(|(millis, progress)| lines.update(progress, start + Duration::from_millis(millis)))
            .collect();
        let line = |done: u64, rate: u64| Some(format!(r#"{{"done":{done},"total":4194304,"rate":{rate}}}"#));
        assert_eq!(steps, [None, line(2 << 20, 4 << 20), None, line(4 << 20, 4 << 20)]);
    }

    #[test]
    fn percentages_are_those_of_qemu_img() {
        assert_eq!(
            progress().into_iter().map(percentage).collect::<Vec<_>>(),
            ["    (25.00/100%)", "    (50.00/100%)", "    (75.00/100%)", "    (100.00/100%)"]
        );
    }
}
