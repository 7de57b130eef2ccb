//! Images on HTTP servers: good, slow, broken and lying ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::pattern::Pattern;
use crate::support::server::{Answer, Request, Server};
use crate::support::{Random, TempDir, assert_same, content, convert, format, qcow2, qcow2_bytes, raw};
use diskimage::remote::{self, Remote};
use diskimage::{Error, ErrorKind, OpenOptions, Result};

const MIB: usize = 1 << 20;
const ETAG: &str = "\"version 1\"";

/// A server of one file with ranges and an ETag.
fn good(file: Vec<u8>) -> Server {
    Server::start(move |_, request| Answer::part(&file, request).with("ETag", ETAG))
}

fn as_raw() -> OpenOptions {
    OpenOptions::new().format(format("raw"))
}

/// Reads all of the raw disk at the URL with several threads.
fn read(url: &str) -> Result<Vec<u8>> {
    let image = as_raw().open_url(url)?;
    let out = Arc::new(diskimage::io::MemFile::new());
    raw().sparse(0).threads(4).convert_to(&image, out.clone())?;
    Ok(out.to_vec())
}

/// The error of reading the raw disk at the URL.
#[track_caller]
fn failure(server: &Server) -> String {
    read(&server.url("/disk.raw")).unwrap_err().to_string()
}

#[test]
fn a_disk_is_read_once_in_large_runs() {
    let file = Random::new(1).bytes(20 * MIB + 12345);
    let server = good(file.clone());
    for threads in [1, 4] {
        let before = server.requests().len();
        let image = as_raw().open_url(&server.url("/disk.raw?x=1#y")).unwrap();
        assert_same(&convert(&raw().threads(threads), &image).0, &file, "content");
        let requests = server.requests().split_off(before);
        let bytes: usize = requests.iter().map(|request| request.range().unwrap().len()).sum();
        assert!(bytes < file.len() + 2 * MIB, "{threads}: {bytes} of {}", file.len());
        assert!(requests.len() < 40, "{threads}: {}", requests.len());
        assert!(requests.iter().all(|request| request.path == "/disk.raw?x=1"));
        // All but the first are of the version that was opened.
        assert!(requests[1..].iter().all(|request| request.header("if-range") == Some(ETAG)));
    }
}

#[test]
fn only_what_is_needed_is_fetched() {
    // 64 MiB of which 1 MiB has data.
    let mut guest = vec![0; 64 * MIB];
    guest[40 * MIB..41 * MIB].copy_from_slice(&Pattern::Dense.make(MIB));
    let file = qcow2_bytes(&qcow2("preallocation=full"), &guest);
    assert!(file.len() > 60 * MIB);
    let server = good(file);
    let image = OpenOptions::new().open_url(&server.url("/disk.qcow2")).unwrap();
    let mut part = vec![0; MIB];
    image.read_exact_at(&mut part, 40 << 20).unwrap();
    assert_same(&part, &guest[40 * MIB..41 * MIB], "part");
    let bytes: usize = server.requests().iter().map(|request| request.range().unwrap().len()).sum();
    assert!(bytes < 6 * MIB, "{bytes}");
    assert_eq!(image.file_path(0, Default::default()).unwrap().to_str(), Some(server.url("/disk.qcow2").as_str()));
}

#[test]
fn random_reads_give_the_bytes_of_the_file() {
    let file = Random::new(2).bytes(5 * MIB + 77);
    let server = good(file.clone());
    let Ok(Remote::File(source)) = remote::open(&server.url("/"), None) else { panic!("no file") };
    assert_eq!(source.size().unwrap(), file.len() as u64);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (source, file) = (&source, &file);
            scope.spawn(move || {
                let mut random = Random::new(seed);
                for _ in 0..100 {
                    let start = random.below(file.len() as u64) as usize;
                    let len = (random.below(700_000) as usize).min(file.len() - start);
                    let mut buf = vec![0; len];
                    source.read_exact_at(&mut buf, start as u64).unwrap();
                    assert_same(&buf, &file[start..start + len], "random");
                }
            });
        }
    });
    let mut end = [7; 9];
    assert_eq!(source.read_at(&mut end, file.len() as u64).unwrap(), 0);
    assert_eq!(source.read_at(&mut end, u64::MAX).unwrap(), 0);
    assert_eq!(source.read_at(&mut end, file.len() as u64 - 3).unwrap(), 3);
}

#[test]
fn empty_files_and_missing_ones() {
    let server = good(Vec::new());
    let Ok(Remote::File(source)) = remote::open(&server.url("/"), None) else { panic!("no file") };
    assert_eq!(source.size().unwrap(), 0);
    let server = Server::start(|_, _| Answer::status(404));
    let error = read(&server.url("/disk.raw")).unwrap_err();
    assert!(error.to_string().contains("/disk.raw: opening: the server answers 404"), "{error}");
    assert_eq!(server.requests().len(), 1);
    // Nobody listens at a port that was given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert_eq!(read(&format!("http://127.0.0.1:{port}/x")).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn slow_servers_and_cut_connections() {
    let file = Random::new(3).bytes(4 * MIB + 5);
    let served = file.clone();
    // Each connection ends after 300 kB at most, in the middle of blocks.
    let server = Server::start(move |number, request| Answer {
        cut: Some(100_000 + number % 3 * 100_000),
        is_slow: number % 5 == 0,
        ..Answer::part(&served, request).with("ETag", ETAG)
    });
    assert_same(&read(&server.url("/disk.raw")).unwrap(), &file, "cut");
    // A server that is busy for a moment, or closes without a byte of the file: not more often than a request is repeated.
    let served = file.clone();
    let server = Server::start(move |number, request| match number {
        1 | 5 => Answer::status(503),
        2 | 3 | 6 => Answer { cut: Some(0), ..Answer::part(&served, request) },
        _ => Answer::part(&served, request),
    });
    assert_same(&read(&server.url("/disk.raw")).unwrap(), &file, "busy");
}

#[test]
fn a_server_that_never_answers_in_full_is_given_up() {
    let file = vec![7; 2 * MIB];
    let server = Server::start(move |number, request| Answer {
        cut: if number == 0 { None } else { Some(0) },
        ..Answer::part(&file, request)
    });
    let Ok(Remote::File(source)) = remote::open(&server.url("/"), None) else { panic!("no file") };
    assert!(source.read_exact_at(&mut [0; 10], MIB as u64).is_err());
    // The first request, and one with its repetitions.
    assert_eq!(server.requests().len(), 1 + 6);
}

#[test]
fn pauses_end_when_the_caller_cancels() {
    let server = Server::start(|_, _| Answer::status(503));
    let cancel = Arc::new(AtomicBool::new(true));
    let error = OpenOptions::new().cancel(cancel).open_url(&server.url("/")).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn answers_of_another_range_are_errors() {
    type Lie = fn(&[u8], &Request) -> Answer;
    let lies: [(&str, Lie); 8] = [
        ("another start", |file, request| {
            let range = request.range().unwrap();
            let end = range.end.min(file.len());
            let text = format!("bytes {}-{}/{}", range.start - 1, end - 2, file.len());
            Answer::part(file, request).with("Content-Range", text)
        }),
        ("a shorter range", |file, request| {
            let mut answer = Answer::part(file, request);
            let (start, len) = (request.range().unwrap().start, answer.body.len() - 1);
            answer.body.truncate(len);
            answer.with("Content-Range", format!("bytes {start}-{}/{}", start + len - 1, file.len()))
        }),
        ("no range", |file, request| Answer { headers: Vec::new(), ..Answer::part(file, request) }),
        ("no numbers", |file, request| Answer::part(file, request).with("Content-Range", "bytes a-b/c")),
        ("the end before the start", |file, request| {
            Answer::part(file, request).with("Content-Range", format!("bytes 9-3/{}", file.len()))
        }),
        ("huge numbers", |file, request| {
            let max = u64::MAX;
            Answer::part(file, request).with("Content-Range", format!("bytes {max}-{max}/{max}"))
        }),
        ("an unknown size", |file, request| {
            let range = request.range().unwrap();
            Answer::part(file, request).with("Content-Range", format!("bytes {}-{}/*", range.start, range.end - 1))
        }),
        ("a longer body", |file, request| {
            let mut answer = Answer::part(file, request);
            answer.body.push(1);
            answer
        }),
    ];
    for (what, lie) in lies {
        let file = vec![7; 2 * MIB];
        let server = Server::start(
            move |number, request| if number == 0 { Answer::part(&file, request) } else { lie(&file, request) },
        );
        let error = failure(&server);
        assert!(error.contains("the server answers with another range"), "{what}: {error}");
        assert!(server.requests().len() < 10, "{what}: not repeated");
    }
    // Chunked, so that no length tells it.
    let file = vec![7; MIB];
    let server = Server::start(move |number, request| match (number, Answer::part(&file, request)) {
        (0, answer) => answer,
        (_, mut answer) => {
            answer.body.push(1);
            answer.with("Transfer-Encoding", "chunked")
        }
    });
    assert!(failure(&server).contains("more than was asked for"));
}

#[test]
fn a_file_that_changes_is_an_error() {
    type Change = fn(Answer, &[u8]) -> Answer;
    let changes: [(&str, Change); 5] = [
        ("all of it, as If-Range asks for", |_, file| Answer::whole(file).with("ETag", "\"version 2\"")),
        ("another ETag", |answer, _| answer.with("ETag", "\"version 2\"")),
        ("another date", |answer, _| answer.with("Last-Modified", "Tue, 02 Jan 2024 00:00:00 GMT")),
        ("another size", |answer, file| {
            let range = answer.headers.iter().find(|(name, _)| *name == "Content-Range").unwrap().1.clone();
            answer.with("Content-Range", range.replace(&format!("/{}", file.len()), &format!("/{}", file.len() + 1)))
        }),
        ("a shorter file", |_, _| Answer::status(416).with("Content-Range", "bytes */5")),
    ];
    for (what, change) in changes {
        let file = Random::new(4).bytes(3 * MIB);
        let server = Server::start(move |number, request| {
            let answer = Answer::part(&file, request).with("ETag", ETAG);
            let answer = answer.with("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT");
            if number < 2 { answer } else { change(answer, &file) }
        });
        let error = failure(&server);
        assert!(error.contains("the file on the server has changed"), "{what}: {error}");
    }
}

#[test]
fn servers_without_ranges_are_read_as_a_stream() {
    let dir = TempDir::new();
    let guest = Pattern::Dense.make(3 * MIB);
    let stream = convert(&crate::support::vmdk("subformat=streamOptimized"), &crate::support::raw_image(&guest)).0;
    let file = stream.clone();
    let server = Server::start(move |_, _| Answer::whole(&file));
    let options = OpenOptions::new().temporary_directory(dir.path());
    let image = options.open_url(&server.url("/disk.vmdk")).unwrap();
    assert_same(&convert(&raw(), &image).0, &guest, "streamOptimized");
    // Chunked answers have no length, but an end.
    let file = guest.clone();
    let server = Server::start(move |_, _| Answer::whole(&file).with("Transfer-Encoding", "chunked"));
    let image = as_raw().temporary_directory(dir.path()).open_url(&server.url("/disk.raw")).unwrap();
    assert_same(&content(&image).unwrap(), &guest, "chunked");
    assert_eq!(server.requests().len(), 1);
    assert!(options.url_source(&server.url("/disk.raw")).is_err());
    // What is cut off is an error.
    for chunked in [false, true] {
        let file = guest.clone();
        let server = Server::start(move |_, _| {
            let answer = Answer { cut: Some(MIB), ..Answer::whole(&file) };
            if chunked { answer.with("Transfer-Encoding", "chunked") } else { answer }
        });
        let opened = as_raw().temporary_directory(dir.path()).open_url(&server.url("/disk.raw"));
        assert!(opened.is_err(), "{chunked}");
    }
    let server = Server::start(|_, _| Answer::whole(&[7; 1000]).with("Connection", "close"));
    let error = as_raw().open_url(&server.url("/disk.raw")).unwrap_err();
    assert!(error.to_string().contains("does not state the length"), "{error}");
}

#[test]
fn redirects_are_followed_and_bounded() {
    let file = Random::new(5).bytes(MIB);
    let served = file.clone();
    let server = Server::start(move |_, request| match request.path.as_str() {
        "/disk.raw" => Answer::status(302).with("Location", "/other"),
        "/loop" => Answer::status(302).with("Location", "/loop"),
        "/file" => Answer::status(302).with("Location", "file:///etc/passwd"),
        _ => Answer::part(&served, request),
    });
    assert_same(&read(&server.url("/disk.raw")).unwrap(), &file, "redirected");
    let before = server.requests().len();
    let error = read(&server.url("/loop")).unwrap_err();
    assert!(error.to_string().contains("redirects more than"), "{error}");
    assert!(server.requests().len() - before < 12);
    // Whatever it is taken for, no file of this machine is read.
    let before = server.requests().len();
    assert!(read(&server.url("/file")).is_err() || server.requests().len() > before + 1);
}

#[test]
fn passwords_are_sent_and_not_shown() {
    let file = vec![7; MIB];
    let elsewhere = good(file.clone());
    let target = elsewhere.url("/disk.raw");
    // "me:p@ss" in base64.
    let server = Server::start(move |_, request| match request.header("authorization") {
        Some("Basic bWU6cEBzcw==") if request.path == "/elsewhere" => {
            Answer::status(302).with("Location", target.clone())
        }
        Some("Basic bWU6cEBzcw==") => Answer::part(&file, request),
        _ => Answer::status(401),
    });
    assert_eq!(read(&server.url_as("me:p%40ss", "/disk.raw")).unwrap().len(), MIB);
    assert_eq!(read(&server.url_as("me:p%40ss", "/elsewhere")).unwrap().len(), MIB);
    assert!(elsewhere.requests().iter().all(|request| request.header("authorization").is_none()));
    let error = read(&server.url_as("me:wrong", "/disk.raw?token=secret")).unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(text.contains("401") && !text.contains("wrong") && !text.contains("secret"), "{text}");
}

#[test]
fn a_page_of_an_error_is_no_disk() {
    let server = good(b"<!DOCTYPE html><html>Not found</html>".to_vec());
    assert!(OpenOptions::new().open_url(&server.url("/disk.qcow2")).is_err());
    let server = good(vec![7; 100_000]);
    let error = OpenOptions::new().open_url(&server.url("/disk.qcow2")).unwrap_err();
    assert!(error.to_string().contains("the extension is that of qcow2"), "{error}");
    assert_eq!(OpenOptions::new().open_url(&server.url("/disk.img")).unwrap().virtual_size(), 100_000);
}

#[test]
fn an_image_of_a_url_opens_no_file() {
    let dir = TempDir::new();
    dir.file("base.raw", &[7; MIB]);
    let base = crate::support::open_raw(&dir.join("base.raw"));
    let overlay = dir.join("overlay.qcow2");
    qcow2("backing_fmt=raw").backing(base, dir.join("base.raw").as_path()).create(MIB as u64, &overlay).unwrap();
    let server = good(std::fs::read(overlay).unwrap());
    let options = OpenOptions::new().reference_policy(diskimage::ReferencePolicy::Any);
    assert_eq!(options.open_url(&server.url("/overlay.qcow2")).unwrap_err().kind(), ErrorKind::Reference);
}

#[test]
fn several_connections_are_used() {
    // Each answer waits until another request has come, or for a bounded number of turns.
    let file = Random::new(6).bytes(16 * MIB);
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (served, seen) = (file.clone(), most.clone());
    let server = Server::start(move |_, request| {
        let now = running.fetch_add(1, Ordering::SeqCst) + 1;
        seen.fetch_max(now, Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(20));
        running.fetch_sub(1, Ordering::SeqCst);
        Answer::part(&served, request)
    });
    assert_same(&read(&server.url("/disk.raw")).unwrap(), &file, "content");
    let most = most.load(Ordering::SeqCst);
    assert!((2..=8).contains(&most), "{most}");
}

#[cfg(feature = "cli")]
mod cli {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use diskimage::inspect::{Policy, Verdict};

    use super::*;
    use crate::cli::{IMGCONV, fail, succeed};
    use crate::support::tools::{find, run};

    /// Ends with the test.
    struct Process(Child);

    impl Drop for Process {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn https_with_a_certificate_that_is_trusted_or_not() {
        let (Some(openssl), Some(python)) = (find("https", &["openssl"]), find("https", &["python3"])) else { return };
        let (dir, guest) = (TempDir::new(), Pattern::Dense.make(MIB));
        dir.file("disk.qcow2", &qcow2_bytes(&qcow2(""), &guest));
        let (key, certificate) = (dir.join("key.pem"), dir.join("cert.pem"));
        let (key, certificate) = (key.to_str().unwrap(), certificate.to_str().unwrap());
        let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        let names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"];
        let not_root = ["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", certificate];
        run(&openssl, &[&new[..], &names, &not_root].concat());
        let mut server = Command::new(python);
        server.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/https.py")).current_dir(dir.path());
        let mut server = Process(server.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        let mut port = String::new();
        BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let url = format!("https://localhost:{}/disk.qcow2", port.trim());
        for (trusted, target) in [(true, "trusted.raw"), (false, "other.raw")] {
            let mut command = Command::new(IMGCONV);
            command.args(["convert", &url, target]).current_dir(dir.path());
            if trusted {
                command.env("SSL_CERT_FILE", certificate);
            }
            let done = command.output().unwrap();
            let said = String::from_utf8_lossy(&done.stderr);
            assert_eq!(done.status.success(), trusted, "{said}");
            assert!(trusted || said.contains("certificate"), "{said}");
            assert_eq!(dir.join(target).exists(), trusted);
        }
        assert_same(&std::fs::read(dir.join("trusted.raw")).unwrap(), &guest, "https");
    }

    #[test]
    fn commands_take_urls() {
        let dir = TempDir::new();
        let guest = Pattern::Islands.make(3 * MIB);
        let raw_file = dir.file("disk.raw", &guest);
        assert!(raw_file.exists());
        let server = good(qcow2_bytes(&qcow2(""), &guest));
        let url = &server.url_as("me:secret", "/disk.qcow2");
        succeed(&dir, &["convert", url, "out.raw"]);
        assert_same(&std::fs::read(dir.join("out.raw")).unwrap(), &guest, "convert");
        succeed(&dir, &["compare", url, "disk.raw"]);
        succeed(&dir, &["check", url]);
        for args in [
            &["info", url][..],
            &["info", "--output", "json", url],
            &["map", url],
            &["convert", "--output", "json", url, "json.raw"],
        ] {
            let text = succeed(&dir, args);
            assert!(text.contains(&server.url("/disk.qcow2")) && !text.contains("secret"), "{args:?}: {text}");
        }
        // And of a server without ranges.
        let file = qcow2_bytes(&qcow2(""), &guest);
        let whole = Server::start(move |_, _| Answer::whole(&file));
        for url in [url, &whole.url("/disk.qcow2")] {
            assert_eq!(succeed(&dir, &["inspect", "--policy", "strict", url]), "safe: qcow2, 3 MiB\n");
        }
        let missing = Server::start(|_, _| Answer::status(404));
        let judged = Policy::default().judge_url(&OpenOptions::new(), &missing.url("/disk.qcow2"));
        assert_eq!((judged.verdict, judged.findings[0].check), (Verdict::Unknown, "readable"));
        // As one of several sources.
        succeed(&dir, &["convert", url, "disk.raw", "both.raw"]);
        assert_same(&std::fs::read(dir.join("both.raw")).unwrap(), &[&guest[..], &guest].concat(), "both");
        assert!(fail(&dir, 1, &["convert", "disk.raw", url]).contains("TARGET is a URL"));
        let message = fail(&dir, 1, &["convert", &server.url_as("me:secret", "/disk.vhd"), "x.raw", "-f", "vpc"]);
        assert!(message.contains("/disk.vhd") && !message.contains("secret"), "{message}");
        assert!(!dir.join("x.raw").exists());
    }
}
