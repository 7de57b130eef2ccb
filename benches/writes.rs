//! Writes into a new qcow2 image, as of a virtual machine, in turns with imago and with `qemu-img bench`:
//!
//! ```text
//! cargo build --release --ignore-rust-version --manifest-path benches/peers/Cargo.toml
//! cargo bench --all-features --bench writes -- [--rounds N] [--dir DIR] [--peers PROGRAM]
//! ```
//!
//! The image is on a tmpfs (`--dir`), and new for each run. Each program runs in a process of its own. The time is that from the first write to the
//! end of a flush, by the clock; qemu has as many requests under way as the others have threads. The fastest of all rounds counts, so that other load
//! on the machine disturbs little.

#[path = "common/places.rs"]
mod places;
#[path = "common/writes.rs"]
mod writes;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use diskimage::{Converter, Format, OpenOptions};
use writes::{PATTERNS, SIZE, measure};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const PROGRAMS: [&str; 3] = ["this crate", "imago", "qemu-img bench"];

struct Settings {
    rounds: usize,
    dir: PathBuf,
    peers: PathBuf,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--measure", pattern, threads, image] => {
            let (_, len, step) = PATTERNS[pattern.parse::<usize>()?];
            let disk = OpenOptions::new().open_disk(image)?;
            let write = |buf: &[u8], offset| disk.write_all_at(buf, offset).unwrap();
            println!("{}", measure((len, step), threads.parse()?, write, || disk.flush().unwrap()));
            Ok(disk.close()?)
        }
        words if words.contains(&"--bench") => table(&Settings::parse(words)?),
        // Such as `cargo test --all-targets`.
        _ => {
            println!("this runs as: cargo bench --all-features --bench writes");
            Ok(())
        }
    }
}

impl Settings {
    fn parse(words: &[&str]) -> Result<Settings> {
        let mut settings = Settings { rounds: 5, dir: places::tmpfs(), peers: places::peers() };
        let mut words = words.iter().filter(|word| **word != "--bench");
        while let Some(option) = words.next() {
            let value = words.next().ok_or_else(|| format!("{option} needs a value"))?;
            match *option {
                "--rounds" => settings.rounds = value.parse::<usize>()?.max(1),
                "--dir" => settings.dir = value.into(),
                "--peers" => settings.peers = value.into(),
                _ => return Err(format!("{option} is unknown; see the head of benches/writes.rs").into()),
            }
        }
        Ok(settings)
    }
}

fn table(settings: &Settings) -> Result<()> {
    let image = settings.dir.join(format!("diskimage-writes-{}", std::process::id()));
    println!("MiB written in a second\n");
    println!("| writes | threads | {} |", PROGRAMS.join(" | "));
    println!("|---|---|---|---|---|");
    for (number, (name, ..)) in PATTERNS.iter().enumerate() {
        for threads in [1, 4] {
            let mut best = [None::<f64>; PROGRAMS.len()];
            for _ in 0..settings.rounds {
                for (program, best) in best.iter_mut().enumerate() {
                    Converter::new(Format::QCOW2).create(SIZE, &image)?;
                    let seconds = run(settings, program, number, threads, &image);
                    fs::remove_file(&image)?;
                    *best = seconds?.into_iter().chain(*best).reduce(f64::min);
                }
            }
            let columns =
                best.map(|best| best.map_or("-".into(), |best| format!("{:.0}", SIZE as f64 / best / 1048576.0)));
            println!("| {name} | {threads} | {} |", columns.join(" | "));
        }
    }
    Ok(())
}

/// The seconds that a program takes; `None` without the program.
fn run(settings: &Settings, program: usize, number: usize, threads: u64, image: &Path) -> Result<Option<f64>> {
    let (_, len, step) = PATTERNS[number];
    let mut command = match program {
        0 => {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["--measure", &number.to_string(), &threads.to_string()]).arg(image);
            command
        }
        1 => {
            let mut command = Command::new(&settings.peers);
            command.args(["write", &number.to_string(), &threads.to_string()]).arg(image);
            command
        }
        _ => {
            let count = SIZE / len as u64;
            let mut command = Command::new("qemu-img");
            command.args(["bench", "-w", "-f", "qcow2", "-t", "writeback", "--flush-interval", &count.to_string()]);
            command.args(["-c", &count.to_string(), "-d", &threads.to_string(), "-s", &len.to_string()]);
            command.args(["-S", &step.to_string()]).arg(image);
            command
        }
    };
    let output = match command.output() {
        Err(_) if program > 0 => return Ok(None),
        output => output?,
    };
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    // qemu: "Run completed in 1.234 seconds."
    let text = String::from_utf8(output.stdout)?;
    let seconds = text.rsplit("completed in ").next().and_then(|text| text.split_whitespace().next()?.parse().ok());
    Ok(Some(seconds.ok_or_else(|| format!("no time in: {text}"))?))
}
