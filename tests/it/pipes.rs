//! The program with pipes as source and target.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::cli::{IMGCONV, fail, succeed};
use crate::support::pattern::{Pattern, Random};
use crate::support::{TempDir, assert_same};

/// Starts the program with a pipe on each side.
fn spawn(dir: &TempDir, args: &[&str]) -> Child {
    let mut command = Command::new(IMGCONV);
    command.args(args).current_dir(dir.path()).env("SOURCE_DATE_EPOCH", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs the program with these bytes on its standard input, in these pieces.
fn run_with(dir: &TempDir, args: &[&str], pieces: &[&[u8]]) -> Output {
    let mut child = spawn(dir, args);
    let mut stdin = child.stdin.take().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            for piece in pieces {
                // A program that has seen enough does not read on.
                if stdin.write_all(piece).and_then(|()| stdin.flush()).is_err() {
                    return;
                }
                if pieces.len() > 1 {
                    thread::sleep(Duration::from_micros(200));
                }
            }
        });
        child.wait_with_output().unwrap()
    })
}

/// Standard output of a run that has to succeed, with nothing else said.
#[track_caller]
fn pass(dir: &TempDir, args: &[&str], stdin: &[u8]) -> Vec<u8> {
    let done = run_with(dir, args, &[stdin]);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.is_empty(), "{args:?}: {said}");
    done.stdout
}

/// The one line that a run that has to fail says, with nothing on standard output.
#[track_caller]
fn refuse(dir: &TempDir, args: &[&str], stdin: &[u8]) -> String {
    let done = run_with(dir, args, &[stdin]);
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!((done.status.code(), said.lines().count()), (Some(1), 1), "{args:?}: {said}");
    assert_same(&done.stdout, &[], &format!("{args:?}: standard output"));
    said
}

const STREAM: [&str; 4] = ["-O", "vmdk", "-o", "subformat=streamOptimized,cid=12345678"];

/// Writes a disk as `source.raw` and `stream.vmdk`, and returns the bytes of the stream.
fn stream(dir: &TempDir, guest: &[u8]) -> Vec<u8> {
    dir.file("source.raw", guest);
    pass(dir, &[&["convert"], &STREAM[..], &["source.raw", "stream.vmdk"]].concat(), &[]);
    fs::read(dir.join("stream.vmdk")).unwrap()
}

#[test]
fn a_pipe_gets_the_bytes_of_a_file() {
    let dir = TempDir::new();
    for (pattern, size) in [(Pattern::Sparse, 5 << 20), (Pattern::Tail, 1 << 20), (Pattern::Empty, 1 << 20)] {
        let guest = pattern.make(size);
        let image = stream(&dir, &guest);
        for threads in ["1", "5"] {
            let what = format!("{pattern:?}, {threads} threads");
            let convert = ["convert", "-m", threads];
            assert_same(
                &pass(&dir, &[&convert[..], &STREAM, &["source.raw", "-"]].concat(), &[]),
                &image,
                &format!("{what}: stream out"),
            );
            assert_same(
                &pass(&dir, &[&convert[..], &["-O", "raw", "stream.vmdk", "-"]].concat(), &[]),
                &guest,
                &format!("{what}: raw out"),
            );
            let both = [&convert[..], &["-f", "vmdk", "-O", "raw", "-", "-"]].concat();
            assert_same(&pass(&dir, &both, &image), &guest, &format!("{what}: raw from pipe to pipe"));
            let both = [&convert[..], &["-f", "vmdk"], &STREAM, &["-", "-"]].concat();
            assert_same(&pass(&dir, &both, &image), &image, &format!("{what}: stream from pipe to pipe"));
            for target in ["out.raw", "out.qcow2"] {
                succeed(&dir, &[&convert[..], &["stream.vmdk", target]].concat());
                let from_file = fs::read(dir.join(target)).unwrap();
                pass(&dir, &[&convert[..], &["-f", "vmdk", "-", target]].concat(), &image);
                assert_same(&fs::read(dir.join(target)).unwrap(), &from_file, &format!("{what}: {target}"));
            }
        }
    }
}

#[test]
fn output_does_not_depend_on_the_size_of_reads() {
    let dir = TempDir::new();
    let guest = Pattern::Incompressible.make(400 << 10);
    let image = stream(&dir, &guest);
    let mut random = Random::new(1);
    let mut pieces = Vec::new();
    let mut rest = &image[..];
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at((1 + random.below(2000) as usize).min(rest.len()));
        pieces.push(piece);
        rest = behind;
    }
    let done = run_with(&dir, &["convert", "-f", "vmdk", "-O", "raw", "-", "-"], &pieces);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_same(&done.stdout, &guest, "in pieces");
}

/// Files as standard input and output: the shell's `<` and `>>`.
#[test]
fn redirected_files_are_read_as_streams() {
    let dir = TempDir::new();
    let guest = Pattern::Islands.make(1 << 20);
    stream(&dir, &guest);
    dir.file("out", b"before");
    let run = Command::new(IMGCONV)
        .args(["convert", "-f", "vmdk", "-O", "raw", "-", "-"])
        .stdin(File::open(dir.join("stream.vmdk")).unwrap())
        .stdout(File::options().append(true).open(dir.join("out")).unwrap())
        .status();
    assert!(run.unwrap().success());
    assert_same(&fs::read(dir.join("out")).unwrap(), &[b"before", &guest[..]].concat(), "appended");
}

/// Images that cannot be read in order are copied first, or read as files.
#[test]
fn any_format_from_standard_input() {
    let dir = TempDir::new();
    let guest = Pattern::Islands.make((1 << 20) + 300);
    dir.file("source.raw", &guest);
    succeed(&dir, &["convert", "-q", "source.raw", "disk.qcow2"]);
    succeed(&dir, &["convert", "-q", "source.raw", "disk.vhdx"]);
    // Its grains have no order.
    succeed(&dir, &["convert", "-q", "source.raw", "disk.vmdk"]);
    dir.file("empty", b"");
    let names = dir.names();
    for (format, file) in [("raw", "source.raw"), ("qcow2", "disk.qcow2"), ("vhdx", "disk.vhdx"), ("vmdk", "disk.vmdk")]
    {
        let run = |stdin: Stdio, tmpdir: Option<&Path>| {
            let mut command = Command::new(IMGCONV);
            command.args(["convert", "-q", "-f", format, "-O", "qcow2", "-", "out"]).current_dir(dir.path());
            command.stdin(stdin).env_remove("TMPDIR").env("SOURCE_DATE_EPOCH", "1");
            if let Some(tmpdir) = tmpdir {
                command.env("TMPDIR", tmpdir);
            }
            let done = command.output().unwrap();
            (done.status.code(), String::from_utf8(done.stderr).unwrap())
        };
        let from_pipe = |tmpdir| {
            let mut cat = Command::new("cat").arg(dir.join(file)).stdout(Stdio::piped()).spawn().unwrap();
            let done = run(cat.stdout.take().unwrap().into(), tmpdir);
            cat.wait().unwrap();
            done
        };
        let check = |done: (Option<i32>, String), expected: &[u8]| {
            assert_eq!(done, (Some(0), String::new()), "{format}");
            succeed(&dir, &["convert", "-O", "raw", "out", "back"]);
            let back = fs::read(dir.join("back")).unwrap();
            assert_same(&back[..expected.len()], expected, format);
            assert!(back.len() < expected.len() + 512);
            fs::remove_file(dir.join("out")).unwrap();
            fs::remove_file(dir.join("back")).unwrap();
            assert_eq!(dir.names(), names);
        };
        check(from_pipe(None), &guest);
        check(from_pipe(Some(dir.path())), &guest);
        check(run(File::open(dir.join(file)).unwrap().into(), None), &guest);
        // What somebody else has read of the file is not part of the image.
        let mut skipped = File::open(dir.join(file)).unwrap();
        skipped.read_exact(&mut [0; 100]).unwrap();
        let done = run(skipped.into(), None);
        if format == "raw" {
            check(done, &guest[100..]);
        } else {
            assert_eq!(done.0, Some(1), "the image begins with its header");
        }
        let (code, said) = from_pipe(Some(Path::new("/nonexistent")));
        assert!(code == Some(1) && said.contains("/nonexistent"), "{said}");
        let (code, said) = run(File::open(dir.join("empty")).unwrap().into(), None);
        assert!(code == Some(1) && said.contains("standard input: the input is empty"), "{said}");
        assert_eq!(dir.names(), names);
    }
}

#[test]
fn a_format_with_a_signature_is_detected_on_standard_input() {
    let dir = TempDir::new();
    let guest = Pattern::Islands.make(1 << 20);
    dir.file("source.raw", &guest);
    for name in ["disk.qcow2", "disk.vhdx", "disk.vmdk", "disk.vdi"] {
        succeed(&dir, &["convert", "source.raw", name]);
        pass(&dir, &["convert", "-", "out.raw"], &fs::read(dir.join(name)).unwrap());
        assert_same(&fs::read(dir.join("out.raw")).unwrap(), &guest, name);
    }
    assert!(refuse(&dir, &["convert", "-", "new.qcow2"], &guest).contains("set it with -f, as -f raw"));
}

#[test]
fn a_truncated_stream_leaves_no_files() {
    let dir = TempDir::new();
    let image = stream(&dir, &Pattern::Dense.make(2 << 20));
    dir.file("out.raw", b"old");
    let names = dir.names();
    let len = image.len();
    // The last sector is the end-of-stream marker, the one before it the footer.
    for cut in [0, 1, 511, 512, 1000, len / 2, len - 1500, len - 1024, len - 512, len - 1] {
        let said = refuse(&dir, &["convert", "-f", "vmdk", "-", "out.raw"], &image[..cut]);
        assert!(said.contains("standard input"), "{cut}: {said}");
        assert_eq!(dir.names(), names, "{cut}");
        assert_eq!(fs::read(dir.join("out.raw")).unwrap(), b"old", "{cut}");
    }
}

#[test]
fn formats_without_streaming_are_refused() {
    let dir = TempDir::new();
    let image = stream(&dir, &Pattern::Dense.make(1 << 20));
    let names = dir.names();
    for (args, stdin, word) in [
        (&["-", "x.raw"][..], &vec![7; 4096], "-f raw"),
        (&["-f", "vmdk", "-l", "1", "-", "x.raw"], &image, "-l"),
        (&["-f", "qcow2", "-", "x.raw"], &image, "standard input: qcow2"),
        (&["-f", "raw", "-", "x.raw"], &Vec::new(), "standard input: the input is empty"),
        (&["-f", "vhdx", "-", "x.raw"], &image, "standard input: vhdx"),
        (&["-f", "vmdk", "-", "x.raw"], &vec![7; 4096], "standard input: vmdk"),
        (&["source.raw", "-"], &image, "-O"),
        (&["-O", "raw", "--output", "json", "source.raw", "-"], &image, "--output json"),
        (&["-O", "raw", "--no-clobber", "source.raw", "-"], &image, "--no-clobber"),
        (&["-O", "qcow2", "-B", "source.raw", "-F", "raw", "source.raw", "-"], &image, "-B"),
        (&["-O", "qcow2", "-o", "cluster_size=1", "source.raw", "-"], &image, "cluster_size"),
        (&["-O", "vdi", "-c", "source.raw", "-"], &image, "vdi"),
        (&["-O", "qcow2", "--spool-dir", "missing", "source.raw", "-"], &image, "missing: creating a temporary file"),
        (&["-O", "vmdk", "-o", "subformat=monolithicFlat", "source.raw", "-"], &image, "monolithicFlat"),
        (&["-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", "source.raw", "-"], &image, "twoGbMaxExtentSparse"),
    ] {
        let said = refuse(&dir, &[&["convert"], args].concat(), stdin);
        assert!(said.contains(word), "{args:?}: {said}");
    }
    for args in
        [&["info", "-"][..], &["check", "-"], &["map", "-"], &["compare", "source.raw", "-"], &["create", "-", "1M"]]
    {
        let exit = if args[0] == "compare" { 2 } else { 1 };
        assert!(fail(&dir, exit, args).contains("./-"), "{args:?}");
    }
    assert_eq!(dir.names(), names);
    succeed(&dir, &["convert", "-O", "raw", "source.raw", "./-"]);
    succeed(&dir, &["compare", "source.raw", "./-"]);
}

#[test]
fn terminals_are_refused() {
    let dir = TempDir::new();
    dir.file("source.raw", &[1; 512]);
    let Ok(terminal) = File::options().read(true).write(true).open("/dev/ptmx") else {
        eprintln!("SKIPPED: there are no pseudo-terminals");
        return;
    };
    let run = |args: &[&str]| {
        let mut command = Command::new(IMGCONV);
        command.args(args).current_dir(dir.path()).stdin(terminal.try_clone().unwrap());
        let done = command.stdout(terminal.try_clone().unwrap()).stderr(Stdio::piped()).output().unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    for (args, stream) in [
        (["convert", "-f", "raw", "-O", "raw", "source.raw", "-"], "standard output is a terminal"),
        (["convert", "-f", "vmdk", "-O", "raw", "-", "x.raw"], "standard input is a terminal"),
    ] {
        let (code, said) = run(&args);
        assert!(code == Some(1) && said.contains(stream), "{args:?}: {said}");
    }
}

/// Also what cannot be written in one pass.
#[test]
fn every_image_of_one_file_is_written_to_a_pipe() {
    let dir = TempDir::new();
    dir.file("source.raw", &Pattern::Sparse.make((3 << 20) + 512));
    fs::create_dir(dir.join("spool")).unwrap();
    let names = dir.names();
    for args in [
        &["-O", "qcow2"][..],
        &["-O", "qcow2", "-c"],
        &["-O", "qcow2", "-c", "-o", "compression_type=zstd,cluster_size=4k"],
        &["-O", "qcow2", "-o", "preallocation=metadata,extended_l2=on"],
        &["-O", "vdi"],
        &["-O", "vdi", "-o", "static=on"],
        &["-O", "vpc"],
        &["-O", "vpc", "-o", "subformat=fixed"],
        &["-O", "vhdx"],
        &["-O", "vhdx", "-o", "subformat=fixed"],
        &["-O", "vmdk"],
        &["-O", "qed"],
        &["-O", "qcow"],
        &["-O", "qcow", "-c"],
        &["-O", "parallels"],
        &["-O", "raw", "-S", "0"],
        &["-O", "raw", "--compress-output", "zstd"],
    ] {
        let convert = [&["convert", "-q", "--spool-dir", "spool"], args].concat();
        // The name in the descriptor of a vmdk without a name.
        pass(&dir, &[&convert[..], &["source.raw", "disk.vmdk"]].concat(), &[]);
        let file = fs::read(dir.join("disk.vmdk")).unwrap();
        fs::remove_file(dir.join("disk.vmdk")).unwrap();
        for threads in ["1", "4"] {
            let piped = pass(&dir, &[&convert[..], &["-m", threads, "source.raw", "-"]].concat(), &[]);
            assert_same(&piped, &file, &format!("{args:?}, {threads} threads"));
        }
        assert_eq!((dir.names(), fs::read_dir(dir.join("spool")).unwrap().count()), (names.clone(), 0), "{args:?}");
    }
}

#[test]
fn an_encrypted_image_is_written_to_a_pipe() {
    let dir = TempDir::new();
    dir.file("source.raw", &Pattern::Sparse.make(1 << 20));
    dir.file("secret", b"secret");
    for (format, list) in [("luks", "iter-time=1"), ("qcow2", "encrypt.format=luks,encrypt.iter-time=1")] {
        let args = ["convert", "--secret-file", "secret", "-O", format, "-o", list, "source.raw", "-"];
        dir.file("piped", &pass(&dir, &args, &[]));
        succeed(&dir, &["compare", "-F", format, "--secret-file", "secret", "source.raw", "piped"]);
    }
}

/// A reader that closes the pipe early has an incomplete image, so a broken pipe is an error.
#[test]
fn a_closed_output_pipe_is_a_failure() {
    let dir = TempDir::new();
    stream(&dir, &Pattern::Incompressible.make(1 << 20));
    for args in [&["-O", "raw"][..], &STREAM, &["-O", "qcow2"]] {
        for taken in [0, 100_000] {
            let mut child = spawn(&dir, &[&["convert"], args, &["source.raw", "-"]].concat());
            let mut stdout = child.stdout.take().unwrap();
            stdout.read_exact(&mut vec![0; taken]).unwrap();
            drop(stdout);
            let done = child.wait_with_output().unwrap();
            let said = String::from_utf8(done.stderr).unwrap();
            assert_eq!((done.status.code(), said.lines().count()), (Some(1), 1), "{args:?}, {taken}: {said}");
            assert!(said.contains("standard output: writing") && said.contains("pipe"), "{said}");
        }
    }
}

fn kill(child: &Child, signal: &str) {
    let id = child.id().to_string();
    assert!(Command::new("sh").args(["-c", "kill -s $0 $1", signal, &id]).status().unwrap().success());
}

/// How the program ended, which it must within seconds.
fn ended(child: &mut Child) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begun.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            panic!("the signal did not end it");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn exit_code(status: ExitStatus) -> Option<i32> {
    status.code().or(status.signal().map(|signal| 128 + signal))
}

/// Waits until the process sleeps in the system, for its pipe.
fn wait_until_blocked(child: &Child) {
    let stat = format!("/proc/{}/stat", child.id());
    let begun = Instant::now();
    let mut asleep = 0;
    while asleep < 5 && begun.elapsed() < Duration::from_secs(20) {
        let line = fs::read_to_string(Path::new(&stat)).unwrap();
        asleep = if line.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S')) { asleep + 1 } else { 0 };
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_signal_interrupts_waiting_for_input() {
    let dir = TempDir::new();
    let image = stream(&dir, &Pattern::Dense.make(2 << 20));
    let names = dir.names();
    for (sent, signal, number) in [(0, "TERM", 15), (100, "HUP", 1), (image.len() / 2, "INT", 2)] {
        let mut child = spawn(&dir, &["convert", "-m", "3", "-f", "vmdk", "-", "out.raw"]);
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&image[..sent]).unwrap();
        wait_until_blocked(&child);
        kill(&child, signal);
        assert_eq!(exit_code(ended(&mut child)), Some(128 + number), "after {sent} bytes");
        assert_eq!(dir.names(), names, "after {sent} bytes");
        drop(stdin);
    }
}

#[test]
fn a_signal_interrupts_waiting_for_the_reader() {
    let dir = TempDir::new();
    stream(&dir, &Pattern::Incompressible.make(1 << 20));
    for (signal, number, format) in [("TERM", 15, "raw"), ("INT", 2, "raw"), ("INT", 2, "vdi")] {
        let mut child = spawn(&dir, &["convert", "-m", "3", "-O", format, "source.raw", "-"]);
        let stdout = child.stdout.take().unwrap();
        wait_until_blocked(&child);
        kill(&child, signal);
        assert_eq!(exit_code(ended(&mut child)), Some(128 + number));
        drop(stdout);
    }
}
