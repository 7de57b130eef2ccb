//! Reads of 4 KiB at random guest offsets, as of a virtual machine or a file system, in turns with other crates:
//!
//! ```text
//! cargo build --release --ignore-rust-version --manifest-path benches/peers/Cargo.toml
//! cargo bench --bench random -- [--rounds N] [--reads N] [--only WORD] [--dir DIR] [--peers PROGRAM]
//! ```
//!
//! Each crate opens the same images, on a tmpfs (`--dir`), in a process of its own. A column has the microseconds of a read: of CPU time, and by the
//! clock for all threads together. The fastest of all rounds counts, so that other load on the machine disturbs little.

#[path = "common/mod.rs"]
mod common;
#[path = "common/places.rs"]
mod places;
#[path = "common/random_reads.rs"]
mod random_reads;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Kind, disk, open};
use diskimage::io::MemFile;
use diskimage::{Converter, Format, Image, OpenOptions, Options, ReferencePolicy};
use random_reads::{Cost, measure};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Bytes of the disks with data.
const SIZE: usize = 256 << 20;
/// Bytes of the disk that has tables and no data.
const PREALLOCATED: u64 = 16 << 30;
/// Blocks of 4 KiB in a cluster.
const CLUSTER: usize = 16;

const PEERS: [&str; 2] = ["imago", "virtdisk"];

struct Settings {
    rounds: usize,
    reads: u64,
    only: String,
    dir: PathBuf,
    peers: PathBuf,
}

/// An image, and the file that backs it.
struct Case {
    format: Format,
    compressed: bool,
    files: Vec<PathBuf>,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--measure", format, threads, reads, image, ..] => {
            println!("{}", own(format, threads.parse()?, reads.parse()?, Path::new(image))?);
            Ok(())
        }
        words if words.contains(&"--bench") => bench(&Settings::parse(words)?),
        // Such as `cargo test --all-targets`.
        _ => {
            println!("this runs as: cargo bench --bench random");
            Ok(())
        }
    }
}

impl Settings {
    fn parse(words: &[&str]) -> Result<Settings> {
        let mut settings =
            Settings { rounds: 5, reads: 200_000, only: String::new(), dir: places::tmpfs(), peers: places::peers() };
        let mut words = words.iter().filter(|word| **word != "--bench");
        while let Some(option) = words.next() {
            let value = words.next().ok_or_else(|| format!("{option} needs a value"))?;
            match *option {
                "--rounds" => settings.rounds = value.parse::<usize>()?.max(1),
                "--reads" => settings.reads = value.parse::<u64>()?.max(1),
                "--only" => settings.only = (*value).to_owned(),
                "--dir" => settings.dir = value.into(),
                "--peers" => settings.peers = value.into(),
                _ => return Err(format!("{option} is unknown; see the head of benches/random.rs").into()),
            }
        }
        Ok(settings)
    }
}

fn bench(settings: &Settings) -> Result<()> {
    let space = settings.dir.join("diskimage-random");
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
    if !settings.peers.exists() {
        println!("{} is missing: only this crate is measured.\n", settings.peers.display());
    }
    println!("Microseconds of a read, CPU time (by the clock)\n");
    println!("| image | threads | this crate | {} |", PEERS.join(" | "));
    println!("|---|---|---|---|---|");
    for name in names().into_iter().filter(|name| name.contains(&settings.only)) {
        let case = Case::new(&name, space)?;
        for threads in [1, 2] {
            let reads = if case.compressed { settings.reads / 20 } else { settings.reads };
            let mut best = [None; 1 + PEERS.len()];
            for _ in 0..settings.rounds {
                for (index, best) in best.iter_mut().enumerate() {
                    let mut command = match index.checked_sub(1) {
                        None => Command::new(std::env::current_exe()?),
                        Some(peer) if settings.peers.exists() => {
                            let mut command = Command::new(&settings.peers);
                            command.arg(PEERS[peer]);
                            command
                        }
                        Some(_) => continue,
                    };
                    if index == 0 {
                        command.arg("--measure");
                    }
                    command.args([case.format.name(), &threads.to_string(), &reads.to_string()]).args(&case.files);
                    let output = command.output()?;
                    if index == 0 && !output.status.success() {
                        return Err(String::from_utf8_lossy(&output.stderr).into());
                    }
                    // A peer cannot read every image.
                    if let Ok(cost) = String::from_utf8_lossy(&output.stdout).parse() {
                        *best = Some(best.map_or(cost, |other| fastest(cost, other)));
                    }
                }
            }
            let columns =
                best.map(|cost| cost.map_or("-".into(), |Cost { cpu, elapsed }| format!("{cpu:.2} ({elapsed:.2})")));
            println!("| {name} | {threads} | {} |", columns.join(" | "));
        }
        for file in &case.files {
            fs::remove_file(file)?;
        }
    }
    Ok(())
}

fn fastest(a: Cost, b: Cost) -> Cost {
    Cost { cpu: a.cpu.min(b.cpu), elapsed: a.elapsed.min(b.elapsed) }
}

/// The reads of this crate.
fn own(format: &str, threads: u64, reads: u64, image: &Path) -> Result<Cost> {
    let format = Format::by_name(format)?;
    let image = OpenOptions::new().format(format).reference_policy(ReferencePolicy::Any).open(image)?;
    Ok(measure(image.virtual_size(), threads, reads, |buf, offset| image.read_exact_at(buf, offset).unwrap()))
}

fn names() -> Vec<String> {
    let own = ["qcow2-preallocated", "qcow2-chain"].map(String::from);
    Kind::all().into_iter().map(|kind| kind.name).filter(|name| name != "luks").chain(own).collect()
}

impl Case {
    /// Writes the images.
    fn new(name: &str, space: &Path) -> Result<Case> {
        let file = space.join(name);
        match name {
            "qcow2-preallocated" => {
                let mut options = Options::new();
                options.set("preallocation", "metadata");
                Converter::new(Format::QCOW2).options(options).create(PREALLOCATED, &file)?;
                Ok(Case { format: Format::QCOW2, compressed: false, files: vec![file] })
            }
            "qcow2-chain" => {
                let base = space.join("base");
                let lower = disk(SIZE, |block| (block / CLUSTER).is_multiple_of(2));
                let upper = open(Format::RAW, MemFile::from(disk(SIZE, |block| block / CLUSTER % 4 != 1)));
                let convert = |image: &Image, path: &Path| Converter::new(Format::QCOW2).convert(image, path);
                convert(&open(Format::RAW, MemFile::from(lower)), &base)?;
                Converter::new(Format::QCOW2).backing(Image::open(&base)?, "base").convert(&upper, &file)?;
                Ok(Case { format: Format::QCOW2, compressed: false, files: vec![file, base] })
            }
            _ => {
                let kind = Kind::by_name(name);
                kind.converter().convert(&open(Format::RAW, MemFile::from(disk(SIZE, |_| true))), &file)?;
                Ok(Case { format: kind.format, compressed: kind.is_compressed(), files: vec![file] })
            }
        }
    }
}
