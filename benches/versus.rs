//! Whole conversions by `imgconv`, in turns with the same ones by `qemu-img convert`:
//!
//! ```text
//! cargo bench --features cli --bench versus -- [--rounds N] [--size SIZE] [--data SIZE] [--only WORD] [--from DIR]
//!     [--dir DIR] [--disk system|dense|empty|islands] [--svg FILE] [--peers PROGRAM]
//! ```
//!
//! The table is in Markdown; `--svg` also draws how many times as fast each conversion is.
//!
//! The disk has 8 GiB (`--size`) and holds about 1 GiB (`--data`) of the files of `/usr` (`--from`), taken evenly from all of
//! it, in an ext4 file system. Other disks are dense, with no more than that much of random bytes; empty; or of islands, each
//! 4 KiB of random bytes, spread evenly. All images are on a tmpfs (`--dir`), so that programs are measured and not a disk, and each
//! program is measured as its user runs it: by its defaults, and `qemu-img` also by the flags that suit it best. A plain
//! copier, which is a part of this bench, shows what the machine can do at all. With `--peers`, the program of `benches/peers`, other
//! crates convert as well, what they can. Absolute times depend on the machine and its load: only ratios are comparable.

#[path = "common/places.rs"]
mod places;
#[path = "common/svg.rs"]
mod svg;

use std::error::Error;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{available_parallelism, scope};
use std::time::{Duration, Instant};

use diskimage::driver::ExtentKind;
use diskimage::{Image, parse_size};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const IMGCONV: &str = env!("CARGO_BIN_EXE_imgconv");

/// The file with the secret of encrypted images, beside them.
const SECRET: &str = "secret";

/// No round of a conversion begins after this time.
const ENOUGH: Duration = Duration::from_secs(60);

/// From what, to what.
const CASES: [(Kind, Kind); 24] = [
    (RAW, QCOW2),
    (QCOW2, RAW),
    (RAW, ZLIB),
    (RAW, ZSTD),
    (ZLIB, RAW),
    (ZSTD, RAW),
    (ZLIB, ZLIB),
    (RAW, VMDK),
    (VMDK, RAW),
    (RAW, STREAM),
    (STREAM, RAW),
    (STREAM, ZLIB),
    (ZLIB, STREAM),
    (RAW, VPC),
    (VPC, RAW),
    (RAW, VHDX),
    (VHDX, RAW),
    (RAW, VHDX_FIXED),
    (RAW, VDI),
    (VDI, RAW),
    (RAW, LUKS),
    (LUKS, RAW),
    (RAW, QCOW2_LUKS),
    (QCOW2_LUKS, RAW),
];

/// Those that do nothing but move bytes.
const COPIES: [(Kind, Kind); 9] = [
    (RAW, QCOW2),
    (QCOW2, RAW),
    (RAW, VPC),
    (VPC, RAW),
    (RAW, VHDX),
    (VHDX, RAW),
    (RAW, VHDX_FIXED),
    (RAW, VDI),
    (VDI, RAW),
];

/// The other crates.
const PEERS: [&str; 2] = ["imago", "virtdisk"];

/// A kind of image, and the arguments that make both programs write it.
#[derive(Clone, Copy, PartialEq)]
struct Kind {
    name: &'static str,
    format: &'static str,
    args: &'static [&'static str],
    /// The option with the ID of the secret of a source, if it is encrypted.
    key: Option<&'static str>,
}

const RAW: Kind = Kind { name: "raw", format: "raw", args: &[], key: None };
const QCOW2: Kind = Kind { name: "qcow2", format: "qcow2", args: &[], key: None };
const ZLIB: Kind = Kind { name: "qcow2-zlib", format: "qcow2", args: &["-c"], key: None };
const ZSTD: Kind =
    Kind { name: "qcow2-zstd", format: "qcow2", args: &["-c", "-o", "compression_type=zstd"], key: None };
const VMDK: Kind = Kind { name: "vmdk", format: "vmdk", args: &[], key: None };
const VPC: Kind = Kind { name: "vpc", format: "vpc", args: &[], key: None };
const VHDX: Kind = Kind { name: "vhdx", format: "vhdx", args: &[], key: None };
const VHDX_FIXED: Kind = Kind { name: "vhdx-fixed", format: "vhdx", args: &["-o", "subformat=fixed"], key: None };
const VDI: Kind = Kind { name: "vdi", format: "vdi", args: &[], key: None };
const STREAM: Kind =
    Kind { name: "vmdk-stream", format: "vmdk", args: &["-o", "subformat=streamOptimized"], key: None };
// Deriving a key takes as long as the creator wants; here it is to take no time.
const LUKS: Kind =
    Kind { name: "luks", format: "luks", args: &["-o", "key-secret=sec0,iter-time=10"], key: Some("key-secret") };
const QCOW2_LUKS: Kind = Kind {
    name: "qcow2-luks",
    format: "qcow2",
    args: &["-o", "encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10"],
    key: Some("encrypt.key-secret"),
};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    let result = match words.as_slice() {
        ["--measure", ..] => measured(&args[1..]),
        ["--copy", source, target] => copy(Path::new(source), Path::new(target)),
        words if words.contains(&"--bench") => Settings::parse(words).and_then(|settings| bench(&settings)),
        // Such as `cargo test --all-targets`.
        _ => {
            println!("this runs as: cargo bench --features cli --bench versus");
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("versus: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Settings {
    rounds: usize,
    size: u64,
    data: u64,
    /// Only the cases with this in their name.
    only: String,
    from: PathBuf,
    dir: PathBuf,
    disk: Disk,
    svg: Option<PathBuf>,
    peers: Option<PathBuf>,
}

/// What is on the disk.
#[derive(Clone, Copy, PartialEq)]
enum Disk {
    System,
    Dense,
    Empty,
    Islands,
}

impl Disk {
    const NAMES: [(&'static str, Disk); 4] =
        [("system", Disk::System), ("dense", Disk::Dense), ("empty", Disk::Empty), ("islands", Disk::Islands)];
}

impl Settings {
    fn parse(words: &[&str]) -> Result<Settings> {
        let dir = places::tmpfs();
        let mut settings = Settings {
            rounds: 5,
            size: 8 << 30,
            data: 1 << 30,
            only: String::new(),
            from: "/usr".into(),
            dir,
            disk: Disk::System,
            svg: None,
            peers: None,
        };
        let mut words = words.iter().filter(|word| **word != "--bench");
        while let Some(option) = words.next() {
            let value = words.next().ok_or_else(|| format!("{option} needs a value"))?;
            match *option {
                "--rounds" => settings.rounds = value.parse::<usize>()?.max(1),
                "--size" => settings.size = parse_size(value)?,
                "--data" => settings.data = parse_size(value)?,
                "--only" => settings.only = (*value).to_owned(),
                "--from" => settings.from = value.into(),
                "--dir" => settings.dir = value.into(),
                "--svg" => settings.svg = Some(value.into()),
                "--peers" => settings.peers = Some(value.into()),
                "--disk" => {
                    let named = Disk::NAMES.iter().find(|(name, _)| name == value);
                    settings.disk = named.ok_or_else(|| format!("--disk {value} is unknown"))?.1;
                }
                _ => return Err(format!("{option} is unknown; see the head of benches/versus.rs").into()),
            }
        }
        Ok(settings)
    }
}

/// A directory of our own that does not outlive us.
struct Workspace(PathBuf);

impl Workspace {
    fn new(parent: &Path) -> Result<Workspace> {
        let path = parent.join("diskimage-versus");
        if path.exists() {
            // Of a run that was killed.
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir(&path)?;
        Ok(Workspace(path))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn bench(settings: &Settings) -> Result<()> {
    let has_qemu = runs(Command::new("qemu-img").arg("--version"));
    if !has_qemu {
        println!("qemu-img is missing: nothing to compare with, only imgconv and the plain copier are measured.\n");
    }
    let space = Workspace::new(&settings.dir)?;
    let raw = space.file("source.raw");
    match settings.disk {
        Disk::System => copy(&source_disk(settings)?, &raw)?,
        disk => write_disk(disk, settings, &raw)?,
    }
    fs::write(space.file(SECRET), "secret")?;
    let (gib, cores) = (allocated(&raw)? as f64 / f64::from(1 << 30), available_parallelism()?);
    println!("{} bytes of disk, {gib:.2} GiB of data, in {}, {cores} cores", settings.size, settings.dir.display());
    println!(
        "median of up to {} rounds in turns, of fewer after {} s; ratios are the medians of each round's\n",
        settings.rounds,
        ENOUGH.as_secs()
    );
    let (title, line) = if settings.peers.is_some() { (" other crates |", "---|") } else { ("", "") };
    println!("| conversion | imgconv | qemu-img | ratio | `-W -m 16` | ratio | file size | plain copier |{title}");
    println!("|---|---|---|---|---|---|---|---|{line}");
    let mut bars = Vec::new();
    for (from, to) in CASES {
        let name = format!("{} to {}", from.name, to.name);
        // Volumes have no holes: four of the size of the disk are for those who ask for them, with `--size`.
        let is_dense = from == LUKS || to == LUKS;
        if name.contains(&settings.only) && !(is_dense && settings.only.is_empty()) {
            let source = space.file(&format!("source.{}", from.name));
            if !source.exists() {
                // By the other program, as most images in the world are.
                run(&mut convert(if has_qemu { "qemu-img" } else { IMGCONV }, RAW, from, &[], &raw, &source))?;
            }
            let (row, ratios) = measure_case(settings, has_qemu, (from, to), &source, &space)?;
            println!("| {name} | {row} |");
            bars.push((name, ratios));
        }
    }
    if let Some(path) = &settings.svg {
        fs::write(path, svg::chart("times as fast as qemu-img", ["default flags", "-W -m 16"], &bars))?;
    }
    Ok(())
}

/// Measures one conversion, and returns its row of the table and the two ratios in it.
fn measure_case(
    settings: &Settings,
    has_qemu: bool,
    (from, to): (Kind, Kind),
    source: &Path,
    space: &Workspace,
) -> Result<(String, [Option<f64>; 2])> {
    let target = |name: &str| space.file(&format!("target.{name}"));
    let contestant = |name: &str, command: Command| Contestant { target: target(name), command, runs: Vec::new() };
    let mut ours = contestant("imgconv", convert(IMGCONV, from, to, &[], source, &target("imgconv")));
    let mut others: Vec<Option<Contestant>> = [("qemu", &[][..]), ("best", &["-W", "-m", "16"][..])]
        .map(|(name, flags)| {
            has_qemu.then(|| contestant(name, convert("qemu-img", from, to, flags, source, &target(name))))
        })
        .into();
    others.push(COPIES.contains(&(from, to)).then(|| {
        let mut copier = Command::new(std::env::current_exe().unwrap_or_default());
        copier.arg("--copy").args([source, &target("copier")]);
        contestant("copier", copier)
    }));
    let mut peers = Vec::new();
    for name in PEERS {
        let peer = settings.peers.as_deref().and_then(|program| convert_by_peer(program, name, from, to));
        if let Some(mut command) = peer {
            command.args([from.format.as_ref(), source.as_os_str(), to.format.as_ref(), target(name).as_os_str()]);
            peers.push((name, contestant(name, command)));
        }
    }
    let started = Instant::now();
    for round in 0..settings.rounds {
        // Where a round takes long, the ratio is so far from 1 that others would say the same.
        if round > 0 && started.elapsed() > ENOUGH {
            break;
        }
        ours.run()?;
        for other in others.iter_mut().flatten() {
            other.run()?;
        }
        // What a crate cannot do shows when it is asked to.
        peers.retain_mut(|(_, peer)| peer.run().is_ok());
    }

    let program = if has_qemu { "qemu-img" } else { IMGCONV };
    let mut compare = match from.key.or(to.key) {
        None => Command::new(program),
        // It finds the format and the secret of each image.
        Some(_) => Command::new(IMGCONV),
    };
    compare.arg("compare");
    if from.key.or(to.key).is_some() {
        compare.arg("--secret-file").arg(space.file(SECRET));
    }
    run(compare.args([source, &ours.target])).map_err(|e| format!("the result differs from its source: {e}"))?;
    let size = |contestant: &Contestant| Ok::<_, Box<dyn Error>>(allocated(&contestant.target)? as f64);
    let ratios = [0, 1].map(|index| others[index].as_ref().map(|other| other.ratio(&ours)));
    let mut row = ours.summary();
    for other in &others[..2] {
        row += &match other {
            Some(other) => {
                format!(" | {} | {:.2}", other.summary(), other.ratio(&ours))
            }
            None => " | - | -".to_owned(),
        };
    }
    row += &match &others[0] {
        Some(qemu) => format!(" | {:.2} of qemu-img's", size(&ours)? / size(qemu)?),
        None => " | -".to_owned(),
    };
    row += &match &others[2] {
        Some(copier) => format!(" | {}; imgconv takes {:.2} of its time", copier.summary(), ours.ratio(copier)),
        None => " | -".to_owned(),
    };
    if settings.peers.is_some() {
        row += " | ";
        for (name, peer) in &peers {
            let mut compare = Command::new(IMGCONV);
            compare.args(["compare", "-F", to.format]).args([source, &peer.target]);
            let fault = if runs(&mut compare) { "" } else { ", with another content" };
            row += &format!("{name} {}, {:.2}{fault}. ", peer.summary(), peer.ratio(&ours));
        }
    }
    for contestant in others.iter().flatten().chain([&ours]).chain(peers.iter().map(|(_, peer)| peer)) {
        fs::remove_file(&contestant.target)?;
    }
    Ok((row, ratios))
}

/// A program that makes `target`, and how its runs went.
struct Contestant {
    command: Command,
    target: PathBuf,
    runs: Vec<Run>,
}

/// What one run took: seconds of the clock, seconds of all cores together, and KiB of memory at the peak.
struct Run {
    seconds: f64,
    cpu: f64,
    peak: f64,
}

impl Contestant {
    /// Runs it once, as the child of a small process that knows the peak memory of its only child.
    fn run(&mut self) -> Result<()> {
        if self.target.exists() {
            fs::remove_file(&self.target)?;
        }
        let mut measured = Command::new(std::env::current_exe()?);
        measured.arg("--measure").arg(self.command.get_program()).args(self.command.get_args());
        let report = run(&mut measured)?;
        let numbers: Vec<f64> = report.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?;
        let [seconds, cpu, peak] = numbers[..] else { return Err(format!("no measure: {report:?}").into()) };
        self.runs.push(Run { seconds, cpu, peak });
        Ok(())
    }

    /// The medians, and the highest peak, for the table.
    fn summary(&self) -> String {
        let seconds = median(self.runs.iter().map(|run| run.seconds));
        let cpu = median(self.runs.iter().map(|run| run.cpu));
        let peak = self.runs.iter().map(|run| run.peak / 1024.0).fold(0.0, f64::max);
        format!("{seconds:.2} s, CPU {cpu:.2} s, {peak:.0} MiB")
    }

    /// How many times longer this one takes than `other`.
    fn ratio(&self, other: &Contestant) -> f64 {
        median(self.runs.iter().zip(&other.runs).map(|(ours, theirs)| ours.seconds / theirs.seconds))
    }
}

fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    (numbers[(numbers.len() - 1) / 2] + numbers[numbers.len() / 2]) / 2.0
}

fn convert(program: &str, from: Kind, to: Kind, flags: &[&str], source: &Path, target: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["convert", "-O", to.format]).args(to.args).args(flags);
    if from.key.or(to.key).is_some() {
        command.arg("--object").arg(format!("secret,id=sec0,file={}", source.with_file_name(SECRET).display()));
    }
    match from.key {
        None => command.args(["-f", from.format]).arg(source),
        Some(key) => command.arg("--image-opts").arg(format!(
            "driver={},file.filename={},{key}=sec0",
            from.format,
            source.display()
        )),
    };
    command.arg(target);
    command
}

/// The command of a crate for a conversion, without the images; none for what no crate can do: compression, encryption, kinds of a format.
fn convert_by_peer(program: &Path, name: &str, from: Kind, to: Kind) -> Option<Command> {
    let mut command = Command::new(program);
    command.args(["convert", name]);
    (from.key.is_none() && to.args.is_empty()).then_some(command)
}

/// Runs a program and returns what it prints.
fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{command:?}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn runs(command: &mut Command) -> bool {
    run(command).is_ok()
}

/// What the small process does: runs the program, and prints the [`Run`].
fn measured(args: &[OsString]) -> Result<()> {
    let (program, args) = args.split_first().ok_or("--measure needs a program")?;
    let begin = Instant::now();
    run(Command::new(program).args(args))?;
    let seconds = begin.elapsed().as_secs_f64();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let cpu = (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6;
    println!("{seconds} {cpu} {}", usage.max_rss());
    Ok(())
}

/// Copies the stored bytes of an uncompressed image to where they are on its disk: positioned I/O on all cores, and no
/// look at the bytes.
fn copy(source: &Path, target: &Path) -> Result<()> {
    const PIECE: u64 = 2 << 20;
    let image = Image::open(source)?;
    let mut pieces = Vec::new();
    for span in image.spans(0..u64::MAX) {
        let span = span?;
        if let ExtentKind::Data(at) = span.kind {
            let starts = (0..span.len).step_by(PIECE as usize);
            pieces.extend(starts.map(|by| (at.offset + by, span.offset + by, PIECE.min(span.len - by) as usize)));
        }
    }
    let (source, target) = (File::open(source)?, File::create(target)?);
    target.set_len(image.virtual_size())?;
    let next = AtomicUsize::new(0);
    let work = || -> std::io::Result<()> {
        let mut buf = vec![0; PIECE as usize];
        while let Some(&(from, to, len)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            source.read_exact_at(&mut buf[..len], from)?;
            target.write_all_at(&buf[..len], to)?;
        }
        Ok(())
    };
    scope(|scope| {
        let threads: Vec<_> = (0..available_parallelism()?.get()).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| Ok(thread.join().map_err(|_| "a thread panicked")??))
    })
}

fn allocated(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}

/// Writes a disk that no file system is on.
fn write_disk(disk: Disk, settings: &Settings, path: &Path) -> Result<()> {
    const ISLAND: u64 = 4096;
    let (piece, step, size) = match disk {
        Disk::Islands => {
            let count = (settings.data / ISLAND).max(1);
            (ISLAND, (settings.size / count / ISLAND * ISLAND).max(ISLAND), settings.size)
        }
        Disk::Dense => (1 << 20, 1 << 20, settings.data),
        Disk::Empty | Disk::System => (0, 1 << 20, settings.size),
    };
    let file = File::create(path)?;
    file.set_len(size)?;
    let (mut bytes, mut state) = (vec![0; piece as usize], 1_u64);
    for at in (0..size).step_by(step as usize) {
        for word in bytes.chunks_mut(8) {
            // Xorshift, of Marsaglia.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_ne_bytes()[..word.len()]);
        }
        let len = piece.min(size - at) as usize;
        file.write_all_at(&bytes[..len], at)?;
    }
    Ok(())
}

/// The disk to convert: a file system with this machine's files, kept for the next run.
fn source_disk(settings: &Settings) -> Result<PathBuf> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let from = settings.from.to_string_lossy().replace('/', "-");
    let disk = cache.join(format!("versus{from}-{}-{}.raw", settings.size, settings.data));
    if disk.exists() {
        return Ok(disk);
    }
    let (files, new) = (cache.join("versus-files"), cache.join("versus-new.raw"));
    if files.exists() {
        fs::remove_dir_all(&files)?;
    }
    fs::create_dir_all(&files)?;
    let total = total_size(&settings.from)?.max(1);
    let mut sample = Sample { share: settings.data as f64 / total as f64, seen: 0, taken: 0 };
    sample.take(&settings.from, &files)?;
    File::create(&new)?.set_len(settings.size)?;
    let mut mke2fs = Command::new("mke2fs");
    // Where it is when the PATH is not that of root.
    mke2fs.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    if let Err(error) = run(mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).args([&files, &new])) {
        println!("No file system could be made, so the disk holds the files one after the other: {error}\n");
        concatenate(&files, &File::options().write(true).open(&new)?, &mut 0)?;
    }
    fs::remove_dir_all(&files)?;
    fs::rename(&new, &disk)?;
    Ok(disk)
}

/// Copies a share of the files of a directory, evenly in the order of their names.
struct Sample {
    share: f64,
    seen: u64,
    taken: u64,
}

impl Sample {
    fn take(&mut self, from: &Path, to: &Path) -> Result<()> {
        for (path, metadata) in entries(from)? {
            let copy = to.join(path.file_name().unwrap_or_default());
            if metadata.is_dir() {
                fs::create_dir(&copy)?;
                self.take(&path, &copy)?;
            } else if metadata.is_file() {
                self.seen += metadata.len();
                // Includes the file if that brings the total closer to the share than omitting it.
                let due = self.seen as f64 * self.share;
                if (self.taken + metadata.len() / 2) as f64 <= due && fs::copy(&path, &copy).is_ok() {
                    self.taken += metadata.len();
                }
            }
        }
        Ok(())
    }
}

fn total_size(directory: &Path) -> Result<u64> {
    let mut total = 0;
    for (path, metadata) in entries(directory)? {
        total += if metadata.is_dir() { total_size(&path)? } else { metadata.len() };
    }
    Ok(total)
}

/// Writes files one after the other, with holes between them.
fn concatenate(files: &Path, disk: &File, at: &mut u64) -> Result<()> {
    for (path, metadata) in entries(files)? {
        if metadata.is_dir() {
            concatenate(&path, disk, at)?;
        } else {
            let bytes = fs::read(&path)?;
            disk.write_all_at(&bytes, *at)?;
            *at += (bytes.len() as u64 * 2).next_multiple_of(4096);
        }
    }
    Ok(())
}

fn entries(directory: &Path) -> Result<Vec<(PathBuf, fs::Metadata)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        entries.push((entry.path(), entry.metadata()?));
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(entries)
}
