//! What a conversion costs beside its data: instructions of user code, counted by callgrind, for disks that grow while their data stays the
//! same, and the other way round.
//!
//! ```text
//! cargo bench --bench growth -- [--only WORD] [--clusters COUNT] [--size SIZE] [--dir DIR] [--time]
//! ```
//!
//! Each image is written from a raw disk, and read, by one thread; both are files on a tmpfs (`--dir`), and the data is clusters of 64 KiB, 500 of
//! them (`--clusters`), spread evenly over the disk, which has 64 GiB (`--size`), or less for a format with a limit. The counts do not depend on
//! the load of the machine. With `--time`, valgrind is not used, and the table has milliseconds of CPU time.

#[path = "common/mod.rs"]
mod common;
#[path = "common/cpu.rs"]
mod cpu;
#[path = "common/places.rs"]
mod places;

use std::error::Error;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{Kind, Null};
use cpu::cpu;
use diskimage::io::ReadAt;
use diskimage::{Converter, Format, OpenOptions};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const GIB: u64 = 1 << 30;
/// Bytes of data at once.
const CLUSTER: u64 = 64 << 10;
/// Bytes of the smallest disk, or of that of a format with a limit.
const SIZES: [u64; 2] = [64 * GIB, 20 * GIB];

struct Settings {
    only: String,
    dir: PathBuf,
    clusters: u64,
    size: Option<u64>,
    time: bool,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--measure", "write", name, size, clusters, image] => {
            measure(|| write(name, size.parse()?, clusters.parse()?, Path::new(image)))
        }
        ["--measure", "read", name, image] => measure(|| read(name, Path::new(image))),
        words if words.contains(&"--bench") => bench(&Settings::parse(words)?),
        // Such as `cargo test --all-targets`.
        _ => {
            println!("this runs as: cargo bench --bench growth");
            Ok(())
        }
    }
}

impl Settings {
    fn parse(words: &[&str]) -> Result<Settings> {
        let mut settings =
            Settings { only: String::new(), dir: places::tmpfs(), clusters: 500, size: None, time: false };
        let mut words = words.iter().filter(|word| **word != "--bench");
        while let Some(option) = words.next() {
            if *option == "--time" {
                settings.time = true;
                continue;
            }
            let value = words.next().ok_or_else(|| format!("{option} needs a value"))?;
            match *option {
                "--only" => settings.only = (*value).to_owned(),
                "--dir" => settings.dir = value.into(),
                "--clusters" => settings.clusters = value.parse::<u64>()?.max(1),
                "--size" => settings.size = Some(diskimage::parse_size(value)?),
                _ => return Err(format!("{option} is unknown; see the head of benches/growth.rs").into()),
            }
        }
        Ok(settings)
    }
}

/// A raw disk with clusters of data, spread evenly.
struct Scattered {
    size: u64,
    /// Bytes from one cluster to the next.
    every: u64,
}

impl Scattered {
    fn new(size: u64, clusters: u64) -> Scattered {
        Scattered { size, every: size / clusters / CLUSTER * CLUSTER }
    }
}

impl ReadAt for Scattered {
    fn size(&self) -> std::io::Result<u64> {
        Ok(self.size)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        buf.fill(u8::from(offset % self.every < CLUSTER));
        Ok(buf.len())
    }

    fn next_data(&self, offset: u64) -> std::io::Result<Option<Range<u64>>> {
        let start = if offset % self.every < CLUSTER { offset } else { offset.next_multiple_of(self.every) };
        Ok((start < self.size).then(|| start..(start / self.every * self.every + CLUSTER).min(self.size)))
    }
}

fn write(name: &str, size: u64, clusters: u64, image: &Path) -> Result<()> {
    let raw = OpenOptions::new().format(Format::RAW).open_source(Arc::new(Scattered::new(size, clusters)))?;
    Kind::by_name(name).converter().convert(&raw, image)?;
    Ok(())
}

fn read(name: &str, image: &Path) -> Result<()> {
    let image = OpenOptions::new().format(Kind::by_name(name).format).open(image)?;
    Converter::new(Format::RAW).threads(1).convert_to(&image, Arc::new(Null))?;
    Ok(())
}

/// Runs `work`, which is what callgrind counts, and prints its milliseconds of CPU time.
fn measure(work: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = cpu();
    counted(work)?;
    println!("{:.1}", (cpu() - before) / 1e3);
    Ok(())
}

#[inline(never)]
fn counted(work: impl FnOnce() -> Result<()>) -> Result<()> {
    std::hint::black_box(work())
}

fn bench(settings: &Settings) -> Result<()> {
    let space = settings.dir.join("diskimage-growth");
    if space.exists() {
        // Of a run that was killed.
        fs::remove_dir_all(&space)?;
    }
    fs::create_dir(&space)?;
    let result = table(settings, &space);
    fs::remove_dir_all(&space)?;
    result
}

fn table(settings: &Settings, space: &Path) -> Result<()> {
    println!("{}\n", if settings.time { "Milliseconds of CPU time" } else { "Millions of instructions" });
    println!("| format | smallest | | size x 1 | x 10 | x 100 | data x 10 |");
    println!("|---|---|---|---|---|---|---|");
    // All of LUKS is data.
    let kinds =
        Kind::all().into_iter().filter(|kind| kind.name.contains(&settings.only) && kind.format.name() != "luks");
    for kind in kinds {
        let fits = |size: &u64| kind.converter().create_to(100 * size, Arc::new(Null)).is_ok();
        let Some(smallest) = settings.size.into_iter().chain(SIZES).find(fits) else { continue };
        let clusters = settings.clusters;
        let rows = [(1, 1), (10, 1), (100, 1), (1, 10)].map(|(growth, more)| {
            let image = space.join("image");
            let (size, clusters) = ((smallest * growth).to_string(), (clusters * more).to_string());
            let written = run(settings, space, &["write", &kind.name, &size, &clusters], &image)?;
            let read = run(settings, space, &["read", &kind.name], &image)?;
            fs::remove_file(&image)?;
            Ok::<_, Box<dyn Error>>([written, read])
        });
        let rows = rows.into_iter().collect::<Result<Vec<_>>>()?;
        for (index, action) in ["written", "read"].into_iter().enumerate() {
            let cells: Vec<_> = rows.iter().map(|row| format!("{:.0}", row[index])).collect();
            println!("| {} | {} GiB | {action} | {} |", kind.name, smallest / GIB, cells.join(" | "));
        }
    }
    Ok(())
}

/// What one conversion costs.
fn run(settings: &Settings, space: &Path, words: &[&str], image: &Path) -> Result<f64> {
    let program = std::env::current_exe()?;
    let counts = space.join("counts");
    let mut command = if settings.time { Command::new(program) } else { Command::new("valgrind") };
    if !settings.time {
        // The instructions that the C library sets and copies memory with repeat, and each repetition would count.
        let plain = "glibc.cpu.x86_rep_stosb_threshold=0x7fffffff:glibc.cpu.x86_rep_movsb_threshold=0x7fffffff";
        command.env("GLIBC_TUNABLES", plain).args(["--tool=callgrind", "--toggle-collect=*counted*"]);
        command.arg(format!("--callgrind-out-file={}", counts.display())).arg(std::env::current_exe()?);
    }
    let output = command.arg("--measure").args(words).arg(image).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    if settings.time {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?);
    }
    let counts = fs::read_to_string(counts)?;
    let total = counts.lines().find_map(|line| line.strip_prefix("summary:")).ok_or("callgrind counted nothing")?;
    Ok(total.trim().parse::<f64>()? / 1e6)
}
