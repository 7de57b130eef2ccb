//! `-p`: the progress as callers of qemu-img parse it.

use std::io::{self, Write};
use std::sync::Mutex;

use diskimage::Progress;

/// Prints `    (45.34/100%)` and a carriage return, at most every second, and at the end.
pub struct Printer(Option<Mutex<Shown>>);

#[derive(Default)]
struct Shown {
    /// The last hundredth of a percent.
    last: Option<u64>,
}

/// Hundredths of a percent between two lines.
const STEP: u64 = 100;

impl Printer {
    pub fn new(on: bool) -> Printer {
        let printer = Printer(on.then(Mutex::default));
        printer.show(0);
        printer
    }

    pub fn update(&self, progress: Progress) {
        self.of(progress.done, progress.total);
    }

    /// As [`update`](Self::update), from the number of bytes done and their total.
    pub fn of(&self, done: u64, total: u64) {
        self.show(u64::try_from(u128::from(done) * 10_000 / u128::from(total.max(1))).unwrap_or(10_000));
    }

    /// Everything is done, and results can be printed.
    pub fn complete(&self) {
        self.show(10_000);
    }

    /// Everything is done, which is printed again if it was, as callers of qemu-img see it. Ends the line.
    pub fn finish(&self) {
        if let Some(shown) = &self.0 {
            // The lock is only poisoned by a thread that panicked while it printed.
            if let Ok(mut shown) = shown.lock() {
                shown.last = None;
            }
            self.complete();
        }
        self.end_line();
    }

    pub fn end_line(&self) {
        if self.0.is_some() {
            // As for every progress: a closed standard output is no failure.
            let _ = io::stdout().write_all(b"\n");
            let _ = io::stdout().flush();
        }
    }

    fn show(&self, hundredths: u64) {
        let Some(shown) = &self.0 else { return };
        let Ok(mut shown) = shown.lock() else { return };
        let is_due = match shown.last {
            None => true,
            Some(last) => hundredths >= last + STEP || (hundredths == 10_000 && last != 10_000),
        };
        if is_due {
            shown.last = Some(hundredths);
            let _ = write!(io::stdout(), "    ({:.2}/100%)\r", hundredths as f64 / 100.0);
            let _ = io::stdout().flush();
        }
    }
}
