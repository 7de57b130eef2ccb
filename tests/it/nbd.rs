//! Network Block Device, with the programs of QEMU and of libnbd at the other end.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use diskimage::io::{ReadAt, WriteAt};
use diskimage::{Converter, Format, OpenOptions, nbd};

use crate::cli::{IMGCONV, fail, succeed};
use crate::support::pattern::Pattern;
use crate::support::tools::{find, needs_qemu, output, qemu_img, run};
use crate::support::{TempDir, assert_same, content, open_raw, qcow2};

/// Leaves the test when one of these programs is missing.
macro_rules! needs {
    ($test:expr, $($program:expr),*) => {
        $(if find($test, &[$program]).is_none() { return; })*
    };
}

mod writable;

/// A server in another process, which is ended with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Waits until it ends by itself.
    #[track_caller]
    fn ends(&mut self) {
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

/// `qemu-nbd` on the socket "s" in the directory, and the URI of its export.
#[track_caller]
fn qemu_nbd(dir: &TempDir, args: &[&str], file: &Path) -> (Process, String) {
    let socket = dir.join("s");
    let mut command = Command::new("qemu-nbd");
    command.arg("-k").arg(&socket).args(args).arg(file).stdin(Stdio::null()).stderr(Stdio::null());
    let process = Process(command.spawn().unwrap());
    let start = Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "qemu-nbd {args:?} does not start");
        thread::sleep(Duration::from_millis(5));
    }
    (process, nbd::unix_uri(&socket, ""))
}

/// `imgconv serve`, and the URI that it prints.
#[track_caller]
fn serve(dir: &TempDir, args: &[&str]) -> (Process, String) {
    let mut command = Command::new(IMGCONV);
    command.arg("serve").args(args).current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut uri = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut uri).unwrap();
    assert!(uri.starts_with("nbd"), "{uri}");
    (Process(child), uri.trim_end().to_owned())
}

/// Offset and length of each range of data or zeros in a map, and whether it is zeros.
fn zeros(map: &[u8]) -> Vec<(u64, u64, bool)> {
    let map: Vec<serde_json::Value> = serde_json::from_slice(map).unwrap();
    let mut runs = Vec::<(u64, u64, bool)>::new();
    for entry in &map {
        let (start, len) = (entry["start"].as_u64().unwrap(), entry["length"].as_u64().unwrap());
        let zero = entry["zero"].as_bool().unwrap();
        match runs.last_mut() {
            Some(last) if last.2 == zero => last.1 += len,
            _ => runs.push((start, len, zero)),
        }
    }
    runs
}

fn guest() -> Vec<u8> {
    [Pattern::Islands.make(3 << 20), vec![0; 6 << 20], Pattern::Dense.make(1 << 20)].concat()
}

/// A qcow2 image of the guest data.
fn image(dir: &TempDir, guest: &[u8]) -> PathBuf {
    let raw = dir.file("source.raw", guest);
    let path = dir.join("source.qcow2");
    qcow2("").convert(&open_raw(&raw), &path).unwrap();
    path
}

#[test]
fn exports_of_qemu_are_read() {
    needs_qemu!("exports_of_qemu_are_read");
    needs!("exports_of_qemu_are_read", "qemu-nbd");
    let guest = guest();
    for args in [&["-r", "-t"][..], &["-r", "-t", "-e", "4"], &["-t", "-e", "0"]] {
        let dir = TempDir::new();
        let path = image(&dir, &guest);
        let (_server, uri) = qemu_nbd(&dir, &[args, &["-f", "qcow2"]].concat(), &path);
        let qemu = format!("nbd:unix:{}", dir.join("s").display());
        succeed(&dir, &["convert", "-m", "4", &uri, "copy.raw"]);
        assert_same(&fs::read(dir.join("copy.raw")).unwrap(), &guest, &format!("{args:?}"));
        assert_eq!(succeed(&dir, &["compare", &qemu, "source.raw"]), "Images are identical.\n");
        let info: serde_json::Value = serde_json::from_str(&succeed(&dir, &["info", "--output=json", &uri])).unwrap();
        assert_eq!((&info["filename"], &info["format"]), (&uri.as_str().into(), &"raw".into()));
        // The map is that of the server.
        let theirs = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
        assert_eq!(zeros(succeed(&dir, &["map", "--output=json", &uri]).as_bytes()), zeros(&theirs));
        assert!(fail(&dir, 63, &["check", &uri]).contains("raw: checks are not supported"));
    }
}

/// The format of what is exported is detected as that of a file.
#[test]
fn images_are_read_through_a_server() {
    needs_qemu!("images_are_read_through_a_server");
    needs!("images_are_read_through_a_server", "qemu-nbd");
    let (dir, guest) = (TempDir::new(), guest());
    let path = image(&dir, &guest);
    qemu_img(&[&"snapshot", &"-c", &"before", &path]);
    let (_server, uri) = qemu_nbd(&dir, &["-r", "-t", "-f", "raw"], &path);
    succeed(&dir, &["convert", &uri, "copy.raw"]);
    assert_same(&fs::read(dir.join("copy.raw")).unwrap(), &guest, "copy");
    succeed(&dir, &["convert", "-l", "before", &uri, "before.raw"]);
    assert_same(&fs::read(dir.join("before.raw")).unwrap(), &guest, "snapshot");
    assert!(succeed(&dir, &["info", &uri]).contains("file format: qcow2"));
    assert!(succeed(&dir, &["info", "--backing-chain", &uri]).contains("file format: qcow2"));
    assert!(succeed(&dir, &["snapshot", "-l", &uri]).contains("before"));
    assert!(succeed(&dir, &["check", &uri]).contains("No errors"));
    assert!(succeed(&dir, &["map", &uri]).contains(&uri));
    // The name is that of the server, also where the image is not valid.
    let message = fail(&dir, 1, &["info", "-f", "vhdx", &uri]);
    assert!(message.contains(&uri), "{message}");
    // Files beside an export are not opened.
    qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &"-F", &"qcow2", &"-b", &"source.qcow2", &dir.join("overlay.qcow2")]);
    fs::remove_file(dir.join("s")).unwrap();
    let (_other, uri) = qemu_nbd(&dir, &["-r", "-t", "-f", "raw"], &dir.join("overlay.qcow2"));
    let message = fail(&dir, 1, &["convert", "--references", "any", &uri, "x.raw"]);
    assert!(message.contains("was not opened by path"), "{message}");
}

#[test]
fn exports_of_qemu_are_written() {
    needs_qemu!("exports_of_qemu_are_written");
    needs!("exports_of_qemu_are_written", "qemu-nbd");
    let guest = guest();
    for (server, args, discards) in [
        (&["-f", "raw"][..], &[][..], false),
        (&["-f", "raw", "-e", "4"], &["-m", "4"], false),
        (&["-f", "raw", "--discard=unmap"], &["-n"], true),
        (&["-f", "raw"], &["-n", "-O", "raw", "-S", "0"], false),
    ] {
        let dir = TempDir::new();
        image(&dir, &guest);
        let old = vec![0xee; guest.len() + 1000];
        let target = dir.file("target.raw", &old);
        let (mut process, uri) = qemu_nbd(&dir, server, &target);
        succeed(&dir, &[&["convert"], args, &["source.qcow2", &uri]].concat());
        process.ends();
        let new = fs::read(&target).unwrap();
        assert_same(&new[..guest.len()], &guest, &format!("{args:?}"));
        // Of a disk that is not in whole sectors, a new one is padded; of an existing one nothing else is changed.
        assert_same(&new[guest.len()..], &old[guest.len()..], &format!("{args:?}: the rest"));
        if discards {
            let space = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&target).unwrap()) * 512;
            assert!(space < 5 << 20, "{space} bytes are allocated");
        }
    }
}

/// As to a block device.
#[test]
fn images_are_written_through_a_server() {
    needs_qemu!("images_are_written_through_a_server");
    needs!("images_are_written_through_a_server", "qemu-nbd");
    let (dir, guest) = (TempDir::new(), guest());
    image(&dir, &guest);
    let target = dir.file("target", &vec![0xee; 32 << 20]);
    let (mut process, uri) = qemu_nbd(&dir, &["-f", "raw"], &target);
    succeed(&dir, &["convert", "-c", "-O", "qcow2", "source.qcow2", &uri]);
    process.ends();
    qemu_img(&[&"compare", &"-q", &"-f", &"qcow2", &target, &dir.join("source.qcow2")]);
}

#[test]
fn targets_that_cannot_be_written_are_refused() {
    needs_qemu!("targets_that_cannot_be_written_are_refused");
    needs!("targets_that_cannot_be_written_are_refused", "qemu-nbd");
    let (dir, guest) = (TempDir::new(), guest());
    image(&dir, &guest);
    let small = dir.file("small.raw", &[7; 1 << 20]);
    let (_server, uri) = qemu_nbd(&dir, &["-t", "-f", "raw"], &small);
    let message = fail(&dir, 1, &["convert", "source.qcow2", &uri]);
    assert!(
        message.contains(&uri) && message.contains("the export has 1048576 bytes, and 10485760 are needed"),
        "{message}"
    );
    for args in [&["--no-clobber"][..], &["-B", "source.qcow2"], &["-O", "ova"]] {
        let message = fail(&dir, 1, &[&["convert"], args, &["source.qcow2", &uri]].concat());
        assert!(message.contains("as TARGET"), "{message}");
    }
    assert!(fs::read(&small).unwrap().iter().all(|byte| *byte == 7));
    fs::remove_file(dir.join("s")).unwrap();
    let (_other, uri) = qemu_nbd(&dir, &["-r", "-t", "-f", "raw"], &dir.join("source.raw"));
    let message = fail(&dir, 1, &["convert", "source.qcow2", &uri]);
    assert!(message.contains("read-only"), "{message}");
}

/// With block sizes that do not suit anybody, from several threads.
#[test]
fn block_sizes_of_the_server_are_kept() {
    needs!("block_sizes_of_the_server_are_kept", "qemu-nbd");
    let dir = TempDir::new();
    let len = 1 << 20;
    let target = dir.file("target.raw", &vec![0xee; len]);
    // The alignment of the layer below the export is that of its blocks.
    let options = format!(
        "driver=blkdebug,align=4096,max-transfer=65536,image.driver=raw,image.file.filename={}",
        target.display()
    );
    let (mut process, uri) = qemu_nbd(&dir, &["--image-opts", "-e", "3"], Path::new(&options));
    let client = nbd::connect(&uri).unwrap();
    let data = Pattern::Dense.make(300_000);
    thread::scope(|scope| {
        for part in 0..3 {
            let (client, data) = (&client, &data);
            scope.spawn(move || {
                let range = part * 100_000..(part + 1) * 100_000;
                for at in range.step_by(10_000) {
                    client.write_all_at(&data[at..at + 10_000], 777 + at as u64).unwrap();
                }
            });
        }
    });
    client.zero_range(500_000..600_001).unwrap();
    client.sync().unwrap();
    let mut read = vec![0; 400_001];
    client.read_exact_at(&mut read, 300_001).unwrap();
    drop(client);
    process.ends();
    let mut expected = vec![0xee; len];
    expected[777..300_777].copy_from_slice(&data);
    expected[500_000..600_001].fill(0);
    assert_same(&fs::read(&target).unwrap(), &expected, "written");
    assert_same(&read, &expected[300_001..700_002], "read");
}

#[test]
fn clients_of_others_read_our_export() {
    needs_qemu!("clients_of_others_read_our_export");
    needs!("clients_of_others_read_our_export", "nbdinfo", "nbdcopy");
    let (dir, guest) = (TempDir::new(), guest());
    let path = image(&dir, &guest);
    let (mut server, uri) = serve(&dir, &["--socket", "s", "--export-name", "my disk", "source.qcow2"]);
    assert!(uri.starts_with("nbd+unix:///my%20disk?socket="), "{uri}");
    let info: serde_json::Value = serde_json::from_slice(&run("nbdinfo", &["--json", &uri])).unwrap();
    let export = &info["exports"][0];
    assert_eq!(info["structured"], true);
    assert_eq!((&export["export-size"], &export["is_read_only"]), (&guest.len().into(), &true.into()));
    assert_eq!((&export["can_multi_conn"], &export["contexts"][0]), (&true.into(), &"base:allocation".into()));
    let list: serde_json::Value = serde_json::from_slice(&run("nbdinfo", &["--list", "--json", &uri])).unwrap();
    assert_eq!(list["exports"][0]["export-name"], "my disk");
    // The map of the disk is the one that qemu has of it.
    let map = |file: &str, format: &str| zeros(&run("qemu-img", &["map", "--output=json", "-f", format, file]));
    assert_eq!(map(&uri, "raw"), map(path.to_str().unwrap(), "qcow2"));
    // Several connections with many requests each, a few clients at once.
    thread::scope(|scope| {
        for number in 0..3 {
            let (dir, uri, guest) = (&dir, &uri, &guest);
            scope.spawn(move || {
                let copy = dir.join(&format!("copy-{number}"));
                let small = ["--connections=4", "--requests=8", "--request-size=65536", "--threads=4"];
                run("nbdcopy", &[&small[..], &[uri, copy.to_str().unwrap()]].concat());
                assert_same(&fs::read(copy).unwrap(), guest, "nbdcopy");
            });
        }
    });
    qemu_img(&[&"convert", &"-f", &"raw", &"-O", &"qcow2", &uri, &dir.join("by-qemu.qcow2")]);
    qemu_img(&[&"compare", &"-q", &"-f", &"raw", &uri, &dir.join("by-qemu.qcow2")]);
    let written = output("qemu-io", &["-f", "raw", "-c", "write 0 512", &uri]);
    assert!(!written.status.success());
    let missing = uri.replace("my%20disk", "other");
    assert!(!output("nbdinfo", &[&missing]).status.success());
    let pid = server.0.id().to_string();
    run("kill", &["-TERM", &pid]);
    server.ends();
    assert!(!dir.join("s").exists(), "the socket remains");
}

#[test]
fn snapshots_chains_and_packages_are_exported() {
    needs_qemu!("snapshots_chains_and_packages_are_exported");
    let (dir, guest) = (TempDir::new(), guest());
    let path = image(&dir, &guest);
    qemu_img(&[&"snapshot", &"-c", &"before", &path]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 5 4M 1M", path.to_str().unwrap()]);
    let mut changed = guest.clone();
    changed[4 << 20..5 << 20].fill(5);
    let overlay = dir.join("overlay.qcow2");
    qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &"-F", &"qcow2", &"-b", &"source.qcow2", &overlay]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 6 0 1M", overlay.to_str().unwrap()]);
    let mut top = changed.clone();
    top[..1 << 20].fill(6);
    succeed(&dir, &["convert", "source.qcow2", "vm.ova"]);
    for (args, expected) in [
        (&["-l", "before", "source.qcow2"][..], &guest),
        (&["source.qcow2"], &changed),
        (&["--references", "beside", "overlay.qcow2"], &top),
        (&["vm.ova"], &changed),
    ] {
        let (mut server, uri) = serve(&dir, &[&["--port", "0", "--once"], args].concat());
        let image = OpenOptions::new().format(Format::RAW);
        let image = image.open_source(Arc::new(nbd::connect(&uri).unwrap())).unwrap();
        assert_same(&content(&image).unwrap(), expected, &format!("{args:?}"));
        drop(image);
        server.ends();
    }
    assert!(fail(&dir, 1, &["serve", "--port", "0", "overlay.qcow2"]).contains("--references"));
}

/// A relay between a client and a server, which counts the bytes of the server.
struct Relay {
    socket: PathBuf,
    received: Arc<AtomicU64>,
}

impl Relay {
    fn new(dir: &TempDir, server: PathBuf) -> Relay {
        let (socket, received) = (dir.join("relay"), Arc::new(AtomicU64::new(0)));
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let counted = received.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, UnixStream::connect(&server)) else { return };
                let (mut to_server, mut from_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from_client, &mut to_server);
                    let _ = to_server.shutdown(std::net::Shutdown::Write);
                });
                let counted = counted.clone();
                thread::spawn(move || {
                    let (mut from, mut to) = (server, client);
                    let mut buf = vec![0; 64 << 10];
                    while let Ok(len @ 1..) = from.read(&mut buf) {
                        counted.fetch_add(len as u64, Ordering::Relaxed);
                        if to.write_all(&buf[..len]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Relay { socket, received }
    }
}

#[test]
fn holes_are_not_read_over_the_wire() {
    needs_qemu!("holes_are_not_read_over_the_wire");
    needs!("holes_are_not_read_over_the_wire", "qemu-nbd");
    let dir = TempDir::new();
    let path = dir.join("large.qcow2");
    qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &path, &"1T"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 5 500G 1M", path.to_str().unwrap()]);
    let (_server, _) = qemu_nbd(&dir, &["-r", "-t", "-f", "qcow2"], &path);
    let relay = Relay::new(&dir, dir.join("s"));
    let uri = nbd::unix_uri(&relay.socket, "");
    succeed(&dir, &["convert", "-f", "raw", &uri, "copy.qcow2"]);
    let received = relay.received.load(Ordering::Relaxed);
    assert!((1 << 20..(1 << 20) + (64 << 10)).contains(&received), "{received} bytes");
    assert_eq!(succeed(&dir, &["compare", "large.qcow2", "copy.qcow2"]), "Images are identical.\n");
}

#[test]
fn servers_that_fail_are_named() {
    let dir = TempDir::new();
    let nothing = nbd::unix_uri(dir.join("nothing"), "x");
    let message = fail(&dir, 1, &["info", &nothing]);
    assert!(message.contains(&nothing) && message.contains("No such file"), "{message}");
    assert!(fail(&dir, 1, &["info", "nbd://localhost:x/"]).contains("invalid port"));
    // A file is named with its directory.
    dir.file("nbd:x", &[7; 512]);
    assert!(succeed(&dir, &["info", "./nbd:x"]).contains("file format: raw"));
    assert!(fail(&dir, 1, &["info", "nbd:x"]).contains("invalid NBD URI"));

    // One that closes the connection, and one that is no NBD server.
    for says in [&b""[..], b"SSH-2.0-OpenSSH_9.2 and more\r\n"] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = nbd::tcp_uri("127.0.0.1", listener.local_addr().unwrap().port(), "");
        let server = thread::spawn(move || listener.accept().unwrap().0.write_all(says).unwrap());
        let message = fail(&dir, 1, &["info", &uri]);
        let reason = if says.is_empty() { "closed the connection" } else { "not an NBD server" };
        assert!(message.contains(&uri) && message.contains(reason), "{message}");
        server.join().unwrap();
    }
}

/// A server that passes `len` bytes of that at `uri` to each client, and leaves the client to `then`.
fn relay(uri: &str, len: u64, then: impl Fn(TcpStream) + Clone + Send + 'static) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let relay = nbd::tcp_uri("127.0.0.1", listener.local_addr().unwrap().port(), "");
    let address = uri.trim_start_matches("nbd://").trim_end_matches('/').to_owned();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, server) = (client.unwrap(), TcpStream::connect(&address).unwrap());
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let then = then.clone();
            thread::spawn(move || std::io::copy(&mut from, &mut to));
            thread::spawn(move || {
                let _ = std::io::copy(&mut (&server).take(len), &mut client);
                then(client);
            });
        }
    });
    relay
}

/// A server that ends in the middle of a conversion.
#[test]
fn a_lost_connection_leaves_no_file() {
    let (dir, guest) = (TempDir::new(), Pattern::Dense.make(8 << 20));
    image(&dir, &guest);
    let (_server, uri) = serve(&dir, &["--port", "0", "source.qcow2"]);
    let relay = relay(&uri, 3 << 20, |client| client.shutdown(std::net::Shutdown::Both).unwrap());
    let message = fail(&dir, 1, &["convert", "-m", "1", &relay, "copy.raw"]);
    assert!(message.contains(&relay) && message.contains("closed the connection"), "{message}");
    assert!(!dir.join("copy.raw").exists());
}

/// A server that stops answering, in the handshake or later.
#[test]
fn a_silent_server_does_not_keep_the_program_from_ending() {
    let (dir, guest) = (TempDir::new(), Pattern::Dense.make(8 << 20));
    image(&dir, &guest);
    let (_server, uri) = serve(&dir, &["--port", "0", "source.qcow2"]);
    let before = dir.names();
    for (len, program) in [(10, &["convert"][..]), (3 << 20, &["convert"]), (3 << 20, &["qemu-img", "convert"])] {
        let (silent, is_silent) = std::sync::mpsc::channel();
        let relay = relay(&uri, len, move |client| {
            silent.send(()).unwrap();
            // The connection remains open.
            std::mem::forget(client);
        });
        let mut command = Command::new(IMGCONV);
        command.args(program).args(["-m", "2", &relay, "copy.raw"]).current_dir(dir.path()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        is_silent.recv().unwrap();
        let id = child.id().to_string();
        assert!(Command::new("sh").args(["-c", "kill -s TERM $0", &id]).status().unwrap().success());
        let done = child.wait_with_output().unwrap();
        let message = String::from_utf8(done.stderr).unwrap();
        // Otherwise the message would be that the server does not answer.
        assert!(!message.contains("does not answer"), "{message}");
        assert_eq!(done.status.code(), Some(128 + 15), "{message}");
        assert!(message.contains("cancelled by signal 15"), "{message}");
        assert_eq!(dir.names(), before);
    }
}

/// From an export to another one, with our program on both sides.
#[test]
fn an_export_is_converted_to_another() {
    needs_qemu!("an_export_is_converted_to_another");
    needs!("an_export_is_converted_to_another", "qemu-nbd");
    let (dir, guest) = (TempDir::new(), guest());
    image(&dir, &guest);
    let target = dir.file("target.raw", &vec![0xee; guest.len()]);
    let (_source, from) = serve(&dir, &["--port", "0", "source.qcow2"]);
    let (mut process, to) = qemu_nbd(&dir, &["-f", "raw", "-e", "2"], &target);
    let source = OpenOptions::new().format(Format::RAW);
    let source = source.open_source(Arc::new(nbd::connect(&from).unwrap())).unwrap();
    let out = Arc::new(nbd::connect(&to).unwrap());
    let report = Converter::new(Format::RAW).threads(4).convert_to(&source, out.clone()).unwrap();
    assert!(report.data_bytes < 5 << 20, "{report:?}");
    drop(out);
    process.ends();
    assert_same(&fs::read(&target).unwrap(), &guest, "target");
}

/// A directory with the certificates of an authority, and of a server and a client that it has signed.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn certificates(openssl: &str) -> TempDir {
    let dir = TempDir::new();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let new = |name: &str, more: &[&str]| {
        let (subject, key, certificate) =
            (format!("/CN={name}"), path(&format!("{name}-key.pem")), path(&format!("{name}-cert.pem")));
        let args = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", &subject];
        run(openssl, &[&args[..], &["-keyout", &key, "-out", &certificate], more].concat());
    };
    let extension = |text| ["-addext", text];
    new("ca", &[extension("basicConstraints=critical,CA:TRUE"), extension("keyUsage=critical,keyCertSign")].concat());
    let (authority, key) = (path("ca-cert.pem"), path("ca-key.pem"));
    for (name, usage) in [("server", "extendedKeyUsage=serverAuth"), ("client", "extendedKeyUsage=clientAuth")] {
        let constraints = extension("basicConstraints=critical,CA:FALSE");
        let names = extension("subjectAltName=DNS:localhost,IP:127.0.0.1");
        let signed = ["-CA", &authority, "-CAkey", &key];
        let usages = [extension("keyUsage=digitalSignature,keyEncipherment"), extension(usage)].concat();
        new(name, &[&signed[..], &constraints, &names, &usages].concat());
    }
    dir
}

/// The directory without the certificate of the client.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn without_identity(certificates: &TempDir) -> TempDir {
    let dir = TempDir::new();
    fs::copy(certificates.join("ca-cert.pem"), dir.join("ca-cert.pem")).unwrap();
    dir
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn servers_with_tls_are_read() {
    needs_qemu!("servers_with_tls_are_read");
    needs!("servers_with_tls_are_read", "qemu-nbd", "openssl");
    let (dir, guest) = (TempDir::new(), guest());
    let file = image(&dir, &guest);
    let (known, others) = (certificates("openssl"), certificates("openssl"));
    let unknown = without_identity(&known);
    let object = format!("tls-creds-x509,id=t,endpoint=server,dir={}", known.path().display());
    let args = ["--object", &object, "--tls-creds", "t", "-t", "-e", "8", "-r", "-f", "qcow2"];
    let (_server, plain) = qemu_nbd(&dir, &args, &file);
    let uri = |directory: &TempDir, host| nbd::tls_uri(&plain, Some(directory.path()), host).unwrap();
    for host in [None, Some("127.0.0.1")] {
        let client = Arc::new(nbd::connect(&uri(&known, host)).unwrap());
        let disk = OpenOptions::new().format(Format::RAW).open_source(client).unwrap();
        assert_same(&content(&disk).unwrap(), &guest, "over TLS");
    }
    for (uri, problem) in [
        (plain.clone(), "use nbds:"),
        (uri(&others, None), "certificate"),
        (uri(&known, Some("example.com")), "certificate"),
        (uri(&unknown, None), ""),
    ] {
        let message = fail(&dir, 1, &["info", &uri]);
        assert!(message.contains(problem), "{uri}: {message}");
    }
    // With the options of qemu-img.
    let object = format!("tls-creds-x509,id=t,endpoint=client,dir={}", known.path().display());
    let socket = dir.join("s");
    let node =
        format!("driver=nbd,server.type=unix,server.path={},tls-creds=t,tls-hostname=localhost", socket.display());
    let words = ["compare", "--object", &object, "--image-opts", &node, &node];
    for (program, first) in [("qemu-img", &[][..]), (IMGCONV, &["qemu-img"])] {
        let said = run(program, &[first, &words[..]].concat());
        assert_eq!(String::from_utf8(said).unwrap(), "Images are identical.\n", "{program}");
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn our_server_requires_tls() {
    needs!("our_server_requires_tls", "openssl", "nbdinfo");
    let (dir, guest) = (TempDir::new(), guest());
    image(&dir, &guest);
    let known = certificates("openssl");
    let unknown = without_identity(&known);
    let directory = known.path().to_str().unwrap();
    let (_server, uri) = serve(&dir, &["--port", "0", "--tls-certificates", directory, "source.qcow2"]);
    assert!(uri.starts_with("nbds://127.0.0.1:"), "{uri}");
    let with = |directory: &TempDir| nbd::tls_uri(&uri, Some(directory.path()), None).unwrap();
    let disk = OpenOptions::new().format(Format::RAW);
    let disk = disk.open_source(Arc::new(nbd::connect(&with(&known)).unwrap())).unwrap();
    assert_same(&content(&disk).unwrap(), &guest, "from our server");
    let size = run("nbdinfo", &["--size", &with(&known)]);
    assert_eq!(String::from_utf8(size).unwrap().trim(), guest.len().to_string());
    // Neither without TLS nor without a certificate.
    let plain = uri.replace("nbds:", "nbd:");
    assert!(fail(&dir, 1, &["info", &plain]).contains("use nbds:"));
    assert!(!output("nbdinfo", &["--size", &plain]).status.success());
    assert!(!output("nbdinfo", &["--size", &with(&unknown)]).status.success());
    fail(&dir, 1, &["info", &with(&unknown)]);
    // A server of its own certificate only has any client.
    fs::remove_file(known.join("ca-cert.pem")).unwrap();
    let (_server, uri) = serve(&dir, &["--port", "0", "--tls-certificates", directory, "source.qcow2"]);
    assert!(nbd::connect(&nbd::tls_uri(&uri, Some(unknown.path()), None).unwrap()).is_ok());
    // And one without TLS has none.
    let (_server, uri) = serve(&dir, &["--port", "0", "source.qcow2"]);
    let message = fail(&dir, 1, &["info", &nbd::tls_uri(&uri, Some(unknown.path()), None).unwrap()]);
    assert!(message.contains("does not support TLS"), "{message}");
    fail(&dir, 1, &["serve", "--port", "0", "--tls-certificates", "/nonexistent", "source.qcow2"]);
}

#[test]
fn the_states_of_a_metadata_context_are_those_of_qemu_img() {
    needs_qemu!("the states of a metadata context");
    needs!("the states of a metadata context", "qemu-nbd");
    let dir = TempDir::new();
    let path = image(&dir, &guest());
    run("qemu-img", &["bitmap".as_ref(), "--add".as_ref(), path.as_os_str(), "marks".as_ref()]);
    crate::support::tools::qemu_io(&path, &["write 1M 64k".into(), "write 9M 1M".into()]);
    let (_server, _) = qemu_nbd(&dir, &["-r", "-t", "-A", "-B", "marks", "-f", "qcow2"], &path);
    let socket = dir.join("s").display().to_string();
    for context in ["qemu:dirty-bitmap:marks", "qemu:allocation-depth"] {
        let name = format!("driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap={context}");
        for range in [&[][..], &["--start-offset=1000000", "--max-length=9000000"]] {
            let args = [&["map", "--output=json", "--image-opts", &name][..], range].concat();
            let theirs = String::from_utf8(run("qemu-img", &args)).unwrap();
            assert_eq!(succeed(&dir, &[&["qemu-img"], &args[..]].concat()), theirs, "{context} {range:?}");
        }
        assert!(fail(&dir, 1, &["qemu-img", "info", "--image-opts", &name]).contains("x-dirty-bitmap"));
    }
    let unknown = format!("driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:none");
    assert!(fail(&dir, 1, &["qemu-img", "map", "--image-opts", &unknown]).contains("metadata context"));
}
