//! Scripted clients, good and bad; and the client of this crate with the server, over sockets.

use std::io::Cursor;
#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::format::Format;
use crate::image::OpenOptions;
use crate::io::{MemFile, ReadAt};
use crate::nbd::protocol::{
    self as protocol, Request, chunk, command, command_flag, error, info, option, reply, state,
};

/// A disk of 3 MiB and 512 bytes in a qcow2 image: data in its second MiB and its last sector.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; (3 << 20) + 512];
    disk[1 << 20..2 << 20].iter_mut().enumerate().for_each(|(at, byte)| *byte = (at % 251) as u8 + 1);
    disk[3 << 20..].fill(9);
    disk
}

fn image_file() -> Vec<u8> {
    let raw = OpenOptions::new().format(Format::RAW).open_source(Arc::new(MemFile::from(disk()))).unwrap();
    let file = Arc::new(MemFile::new());
    crate::convert::Converter::new(Format::QCOW2).convert_to(&raw, file.clone()).unwrap();
    file.to_vec()
}

fn server() -> Server {
    let image = OpenOptions::new().open_source(Arc::new(MemFile::from(image_file()))).unwrap();
    Server::new(image).unwrap().export_name("disk").unwrap()
}

/// The bytes of a client, and what the server answers.
#[derive(Clone, Default)]
struct Script(Vec<u8>);

struct Play<'a>(Cursor<&'a [u8]>, Vec<u8>);

impl Read for Play<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Play<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.1.extend(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Script {
    fn new(flags: u32) -> Script {
        Script(flags.to_be_bytes().to_vec())
    }

    fn and(mut self, part: impl AsRef<[u8]>) -> Script {
        self.0.extend(part.as_ref());
        self
    }

    fn option(self, option: u32, data: &[u8]) -> Script {
        self.and(protocol::OPTION_MAGIC.to_be_bytes())
            .and(option.to_be_bytes())
            .and((data.len() as u32).to_be_bytes())
            .and(data)
    }

    fn structured(self) -> Script {
        self.option(option::STRUCTURED_REPLY, b"")
    }

    fn go(self) -> Script {
        self.option(option::GO, b"\0\0\0\x04disk\0\0")
    }

    fn request(self, command: u16, offset: u64, len: u32) -> Script {
        self.request_with(0, command, offset, len)
    }

    fn request_with(self, flags: u16, command: u16, offset: u64, len: u32) -> Script {
        self.and(Request { flags, command, cookie: 42, offset, len }.to_bytes())
    }

    /// What the server sends after its greeting, and how it ends.
    fn play(&self) -> (Vec<u8>, io::Result<()>) {
        let mut play = Play(Cursor::new(&self.0), Vec::new());
        let end = server().serve_stream(&mut play);
        assert_eq!(play.1[..18], *b"NBDMAGICIHAVEOPT\0\x03");
        (play.1.split_off(18), end)
    }

    /// What the server sends after `before`.
    #[track_caller]
    fn plays_after(&self, before: &Script) -> Vec<u8> {
        let (answer, end) = self.play();
        end.unwrap();
        let (start, _) = before.play();
        assert_eq!(answer[..start.len()], start);
        answer[start.len()..].to_vec()
    }
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let numbers = [option, kind, data.len() as u32].map(u32::to_be_bytes).concat();
    [&protocol::OPTION_REPLY_MAGIC.to_be_bytes()[..], &numbers, data].concat()
}

fn simple_reply(error: u32) -> Vec<u8> {
    [&protocol::SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &error.to_be_bytes(), &42_u64.to_be_bytes()].concat()
}

fn chunk_of(flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let head = [flags, kind].map(u16::to_be_bytes).concat();
    let len = (payload.len() as u32).to_be_bytes();
    [&protocol::STRUCTURED_REPLY_MAGIC.to_be_bytes()[..], &head, &42_u64.to_be_bytes(), &len, payload].concat()
}

const SIZE: u64 = (3 << 20) + 512;
/// HAS_FLAGS, READ_ONLY, SEND_FLUSH, CAN_MULTI_CONN.
const FLAGS: u16 = 0b1_0000_0111;

fn export() -> Vec<u8> {
    [&SIZE.to_be_bytes()[..], &FLAGS.to_be_bytes()].concat()
}

#[test]
fn options_are_answered() {
    let go = |option| {
        let blocks =
            [&info::BLOCK_SIZE.to_be_bytes()[..], &[1, 65536, 32 << 20].map(u32::to_be_bytes).concat()].concat();
        [
            option_reply(option, reply::INFO, &[&[0, 0][..], &export()].concat()),
            option_reply(option, reply::INFO, &blocks),
            option_reply(option, reply::ACK, b""),
        ]
        .concat()
    };
    let named = |option| {
        let name = option_reply(option, reply::INFO, b"\0\x01disk");
        let answer = go(option);
        [&answer[..32], &name, &answer[32..]].concat()
    };
    let contexts = |option: u32, id: u8| {
        let context = [&[0, 0, 0, id][..], b"base:allocation"].concat();
        [option_reply(option, reply::META_CONTEXT, &context), option_reply(option, reply::ACK, b"")].concat()
    };
    let (set, list) = (option::SET_META_CONTEXT, option::LIST_META_CONTEXT);
    let allocation = b"\0\0\0\x04disk\0\0\0\x02\0\0\0\x03x:y\0\0\0\x0fbase:allocation";
    for (number, data, answer) in [
        (option::LIST, &b""[..], {
            let export = option_reply(option::LIST, reply::SERVER, b"\0\0\0\x04disk");
            [export, option_reply(option::LIST, reply::ACK, b"")].concat()
        }),
        (option::LIST, b"x", option_reply(option::LIST, reply::ERR_INVALID, b"invalid data")),
        (option::INFO, b"\0\0\0\x04disk\0\0", go(option::INFO)),
        (option::INFO, b"\0\0\0\0\0\x02\0\x01\0\x03", named(option::INFO)),
        (option::INFO, b"\0\0\0\x01x\0\0", option_reply(option::INFO, reply::ERR_UNKNOWN, b"no such export")),
        (option::INFO, b"\0\0\0\x04disk\0\x01", option_reply(option::INFO, reply::ERR_INVALID, b"invalid data")),
        (option::INFO, b"\0\0\0\x04disk\0\0\0", option_reply(option::INFO, reply::ERR_INVALID, b"invalid data")),
        (option::INFO, b"\xff\xff\xff\xffdisk", option_reply(option::INFO, reply::ERR_INVALID, b"invalid data")),
        (option::INFO, b"", option_reply(option::INFO, reply::ERR_INVALID, b"invalid data")),
        (set, allocation, contexts(set, 1)),
        (set, b"\0\0\0\0\0\0\0\0", option_reply(set, reply::ACK, b"")),
        (set, b"\0\0\0\0\0\0\0\x01\0\0\0\x05base:", option_reply(set, reply::ACK, b"")),
        (set, b"\0\0\0\0\xff\xff\xff\xff", option_reply(set, reply::ERR_INVALID, b"invalid data")),
        (set, b"\0\0\0\x01x\0\0\0\0", option_reply(set, reply::ERR_UNKNOWN, b"no such export")),
        (list, b"\0\0\0\0\0\0\0\0", contexts(list, 0)),
        (list, b"\0\0\0\0\0\0\0\x01\0\0\0\x05base:", contexts(list, 0)),
        // STARTTLS, and an unknown one.
        (5, b"", option_reply(5, reply::ERR_UNSUP, b"unknown option")),
        (77, b"data", option_reply(77, reply::ERR_UNSUP, b"unknown option")),
    ] {
        let start = Script::new(3).structured();
        let abort = |script: Script| script.option(option::ABORT, b"");
        let (answered, end) = abort(start.clone().option(number, data)).play();
        end.unwrap();
        let ack = option_reply(option::STRUCTURED_REPLY, reply::ACK, b"");
        let expected = [ack, answer, option_reply(option::ABORT, reply::ACK, b"")].concat();
        assert_eq!(answered, expected, "option {number} {:?}", String::from_utf8_lossy(data));
    }
    let early = Script::new(3).option(set, allocation).option(option::ABORT, b"").play().0;
    assert_eq!(early[..32], option_reply(set, reply::ERR_INVALID, b"invalid data"));
}

#[test]
fn the_oldest_clients_can_read() {
    for (flags, zeroes) in [(0, 124), (1, 124), (3, 0)] {
        let start = Script::new(flags).option(option::EXPORT_NAME, b"disk");
        let (answer, _) = start.play();
        assert_eq!(answer, [export(), vec![0; zeroes]].concat());
        let read = start.clone().request(command::READ, SIZE - 3, 3).plays_after(&start);
        assert_eq!(read, [simple_reply(0), vec![9; 3]].concat());
    }
    // There is no answer to a wrong name.
    assert!(Script::new(3).option(option::EXPORT_NAME, b"x").play().0.is_empty());
}

#[test]
fn reads_have_data_and_holes() {
    let start = Script::new(3).structured().go();
    let disk = disk();
    let data = |flags, from: u64, to: u64| {
        chunk_of(flags, chunk::OFFSET_DATA, &[&from.to_be_bytes(), &disk[from as usize..to as usize]].concat())
    };
    let hole = |flags, from: u64, len: u32| {
        chunk_of(flags, chunk::OFFSET_HOLE, &[&from.to_be_bytes()[..], &len.to_be_bytes()].concat())
    };
    const MIB: u64 = 1 << 20;
    for (from, len, answer) in [
        (0, 4096, hole(1, 0, 4096)),
        (MIB, 10, data(1, MIB, MIB + 10)),
        (MIB - 1, 2, data(1, MIB - 1, MIB + 1)),
        (
            0,
            SIZE as u32,
            [hole(0, 0, 1 << 20), data(0, MIB, 2 * MIB), hole(0, 2 * MIB, 1 << 20), data(1, 3 * MIB, SIZE)].concat(),
        ),
    ] {
        assert_eq!(start.clone().request(command::READ, from, len).plays_after(&start), answer);
    }
}

#[test]
fn block_status_is_that_of_the_image() {
    let context = b"\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation";
    let start = Script::new(3).structured().option(option::SET_META_CONTEXT, context).go();
    let extents = |list: &[(u32, u32)]| {
        let numbers = list.iter().flat_map(|(len, flags)| [*len, *flags]);
        let payload: Vec<_> = [1].into_iter().chain(numbers).flat_map(u32::to_be_bytes).collect();
        chunk_of(chunk::DONE, chunk::BLOCK_STATUS, &payload)
    };
    let hole = state::HOLE | state::ZERO;
    let all = start.clone().request(command::BLOCK_STATUS, 0, SIZE as u32).plays_after(&start);
    assert_eq!(all, extents(&[(1 << 20, hole), (1 << 20, 0), (1 << 20, hole), (512, 0)]));
    let part = start.clone().request(command::BLOCK_STATUS, (1 << 20) + 5, 7).plays_after(&start);
    assert_eq!(part, extents(&[(7, 0)]));
    let one = Request {
        flags: command_flag::REQ_ONE,
        command: command::BLOCK_STATUS,
        cookie: 42,
        offset: 5,
        len: SIZE as u32 - 5,
    };
    assert_eq!(start.clone().and(one.to_bytes()).plays_after(&start), extents(&[((1 << 20) - 5, hole)]));
    // Without the context.
    let start = Script::new(3).structured().go();
    let refused = start.clone().request(command::BLOCK_STATUS, 0, 1).plays_after(&start);
    assert_eq!(refused[4..8], [0, 1, 0x80, 1]);
}

#[test]
fn the_list_of_extents_is_bounded() {
    /// Data in every other sector.
    struct Stripes;
    impl ReadAt for Stripes {
        fn size(&self) -> io::Result<u64> {
            Ok(1 << 30)
        }

        fn read_at(&self, buf: &mut [u8], _: u64) -> io::Result<usize> {
            buf.fill(7);
            Ok(buf.len())
        }

        fn next_data(&self, offset: u64) -> io::Result<Option<std::ops::Range<u64>>> {
            let start = offset.next_multiple_of(1024);
            Ok(Some(start..start + 512))
        }
    }
    let context = b"\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation";
    let script = Script::new(3).structured().option(option::SET_META_CONTEXT, context).go();
    let play = |script: &Script| {
        let mut play = Play(Cursor::new(&script.0), Vec::new());
        Server::new(OpenOptions::new().format(Format::RAW).open_source(Arc::new(Stripes)).unwrap())
            .unwrap()
            .export_name("disk")
            .unwrap()
            .serve_stream(&mut play)
            .unwrap();
        play.1.len()
    };
    let before = play(&script);
    assert_eq!(play(&script.clone().request(command::BLOCK_STATUS, 0, 1 << 30)) - before, 20 + 4 + 8 * (8 << 10));
}

#[test]
fn other_requests_are_refused() {
    let start = Script::new(3).go();
    for (script, code) in [
        (start.clone().request(command::WRITE, 0, 3).and(b"abc"), error::EPERM),
        (start.clone().request(command::TRIM, 0, 512), error::EPERM),
        (start.clone().request(command::WRITE_ZEROES, 0, 512), error::EPERM),
        (start.clone().request(77, 0, 0), error::EINVAL),
        (start.clone().request(command::READ, SIZE, 1), error::EINVAL),
        (start.clone().request(command::READ, u64::MAX, u32::MAX), error::EINVAL),
        (start.clone().request(command::READ, 0, 0), error::EINVAL),
        (start.clone().request(command::READ, 0, u32::MAX), error::EINVAL),
        (start.clone().request(command::BLOCK_STATUS, 0, 1), error::EINVAL),
        (start.clone().request(command::FLUSH, 0, 0), 0),
    ] {
        // The connection goes on.
        let script = script.request(command::READ, SIZE - 1, 1).request(command::DISCONNECT, 0, 0).and(b"ignored");
        assert_eq!(script.plays_after(&start), [simple_reply(code), simple_reply(0), vec![9]].concat());
    }
}

#[test]
fn a_long_read_is_refused() {
    let zeros = Arc::new(crate::testing::SparseFile::default());
    crate::io::WriteAt::set_len(&*zeros, 1 << 40).unwrap();
    let server = Server::new(OpenOptions::new().format(Format::RAW).open_source(zeros).unwrap()).unwrap();
    let script = Script::new(3).option(option::GO, b"\0\0\0\0\0\0");
    let script = script.request(command::READ, 0, (32 << 20) + 1);
    let mut play = Play(Cursor::new(&script.0), Vec::new());
    server.serve_stream(&mut play).unwrap();
    assert_eq!(play.1[play.1.len() - 16..], simple_reply(error::EOVERFLOW));
}

#[test]
fn bad_clients_are_disconnected() {
    let start = Script::new(3).go();
    let huge = [&protocol::OPTION_MAGIC.to_be_bytes()[..], &[0, 0, 0, 3], &u32::MAX.to_be_bytes()].concat();
    for (script, reason) in [
        (Script::new(0xffff_ffff), "unknown client flags"),
        (Script::new(0).option(option::LIST, b""), "without fixed newstyle"),
        (Script::new(3).and([7; 16]), "magic number of an option"),
        (Script::new(3).and(huge), "an option with 4294967295 bytes"),
        (Script(b"GET / HTTP/1.1\r\n\r\n".to_vec()), "unknown client flags"),
        (start.clone().and([7; 28]), "magic number of a request"),
        (start.clone().request(command::WRITE, 0, u32::MAX), "a write of 4294967295 bytes"),
        (start.clone().request(command::WRITE, 0, 4).and(b"abc"), "the peer closed the connection"),
        (start.clone().and([0x25, 0x60]), "the peer closed the connection"),
        (Script::new(3), "the peer closed the connection"),
    ] {
        let end = script.play().1.unwrap_err().to_string();
        assert!(end.contains(reason), "{reason}: {end}");
    }
}

/// An image of which a part cannot be read.
fn damaged() -> (Server, Arc<AtomicUsize>) {
    struct Damaged;
    impl ReadAt for Damaged {
        fn size(&self) -> io::Result<u64> {
            Ok(4 << 20)
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            if offset + buf.len() as u64 > 1 << 20 {
                return Err(io::Error::other("a secret path"));
            }
            buf.fill(7);
            Ok(buf.len())
        }
    }
    let image = OpenOptions::new().format(Format::RAW).open_source(Arc::new(Damaged)).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let report = move |error: &Error| {
        assert!(error.to_string().contains("a secret path"));
        counted.fetch_add(1, Ordering::Relaxed);
    };
    (Server::new(image).unwrap().on_error(report), count)
}

#[test]
fn an_unreadable_range_is_an_error() {
    let go = b"\0\0\0\0\0\0";
    let play = |script: Script| {
        let (server, count) = damaged();
        let mut play = Play(Cursor::new(&script.0), Vec::new());
        let end = server.serve_stream(&mut play);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        assert!(!play.1.windows(6).any(|text| text == b"secret"));
        (play.1, end)
    };
    // The error is the last chunk, after those with data.
    let structured = Script::new(3).structured().option(option::GO, go);
    let (answer, end) = play(structured.request(command::READ, 0, 2 << 20));
    end.unwrap();
    let message = b"the image cannot be read";
    let error = [&error::EIO.to_be_bytes()[..], &(message.len() as u16).to_be_bytes(), message].concat();
    assert!(answer.ends_with(&[vec![7; 1 << 20], chunk_of(chunk::DONE, chunk::ERROR, &error)].concat()));
    // A simple reply has its error first, or ends with the connection.
    let simple = Script::new(3).option(option::GO, go);
    let (answer, end) = play(simple.clone().request(command::READ, 2 << 20, 512));
    end.unwrap();
    assert!(answer.ends_with(&simple_reply(error::EIO)));
    let (answer, end) = play(simple.request(command::READ, 0, 2 << 20));
    assert!(end.is_err());
    assert!(answer.ends_with(&[simple_reply(0), vec![7; 1 << 20]].concat()));
}

#[test]
fn names_of_exports_are_bounded() {
    let image = || OpenOptions::new().open_source(Arc::new(MemFile::from(image_file()))).unwrap();
    let named = |name: String| Server::new(image()).unwrap().export_name(name).map(drop);
    named("x".repeat(4096)).unwrap();
    assert!(named("x".repeat(4097)).is_err());
    assert!(named("a\0".into()).is_err());
}

/// A stream that counts what is read from it.
#[cfg(unix)]
struct Counted(UnixStream, Arc<AtomicUsize>);

#[cfg(unix)]
impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.0.read(buf)?;
        self.1.fetch_add(len, Ordering::Relaxed);
        Ok(len)
    }
}

#[cfg(unix)]
impl Write for Counted {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(unix)]
#[test]
fn holes_are_not_sent() {
    use crate::nbd::Client;

    let (ours, theirs) = UnixStream::pair().unwrap();
    let serving = thread::spawn(move || server().serve_stream(theirs));
    let count = Arc::new(AtomicUsize::new(0));
    let client = Arc::new(Client::from_stream(Counted(ours, count.clone()), "disk").unwrap());
    let image = OpenOptions::new().format(Format::RAW).open_source(client.clone()).unwrap();
    let copy = Arc::new(MemFile::new());
    let report = crate::convert::Converter::new(Format::RAW).threads(2).convert_to(&image, copy.clone()).unwrap();
    assert!(copy.to_vec() == disk());
    assert_eq!(report.data_bytes, (1 << 20) + 512);
    let received = count.load(Ordering::Relaxed);
    assert!(((1 << 20) + 512..(1 << 20) + 2000).contains(&received), "{received} bytes");
    drop((image, client));
    serving.join().unwrap().unwrap();
}

#[cfg(unix)]
#[test]
fn any_range_reads_as_the_image_does() {
    use crate::nbd::Client;
    use proptest::prelude::*;

    let (ours, theirs) = UnixStream::pair().unwrap();
    let serving = thread::spawn(move || server().serve_stream(theirs));
    let client = Client::from_stream(ours, "").unwrap();
    let disk = disk();
    proptest!(|(offset in 0..SIZE + 10, len in 0..2_000_000_usize)| {
        let mut buf = vec![0xee; len];
        let end = (offset as usize + len).min(disk.len());
        match client.read_exact_at(&mut buf, offset) {
            Ok(()) => prop_assert!(len == 0 || disk.get(offset as usize..offset as usize + len) == Some(&buf)),
            Err(error) => {
                prop_assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
                prop_assert!(offset + len as u64 > SIZE);
                if let Some(rest) = disk.get(offset as usize..end) {
                    prop_assert!(buf.starts_with(rest));
                }
            }
        }
    });
    drop(client);
    serving.join().unwrap().unwrap();
}

#[cfg(unix)]
mod sockets {
    use super::*;
    use crate::nbd;
    use crate::testing::TempDir;

    /// A server in a thread, on a Unix socket.
    struct Running {
        dir: TempDir,
        stop: Arc<AtomicBool>,
        thread: thread::JoinHandle<Result<()>>,
    }

    impl Running {
        fn start(server: Server) -> Running {
            let (dir, stop) = (TempDir::new(), Arc::new(AtomicBool::new(false)));
            let listener = UnixListener::bind(dir.join("s")).unwrap();
            let server = server.cancel(stop.clone());
            let thread = thread::spawn(move || server.serve_unix(listener));
            Running { dir, stop, thread }
        }

        fn uri(&self) -> String {
            nbd::unix_uri(self.dir.join("s"), "disk")
        }

        fn stop(self) {
            self.stop.store(true, Ordering::Relaxed);
            self.thread.join().unwrap().unwrap();
        }
    }

    #[test]
    fn many_clients_read_at_once() {
        let running = Running::start(server());
        let disk = disk();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let image = OpenOptions::new().format(Format::RAW);
                    let image = image.open_source(Arc::new(nbd::connect(&running.uri()).unwrap())).unwrap();
                    let copy = Arc::new(MemFile::new());
                    crate::convert::Converter::new(Format::RAW).threads(4).convert_to(&image, copy.clone()).unwrap();
                    assert!(copy.to_vec() == disk);
                });
            }
        });
        running.stop();
    }

    /// One that says nothing, one that is silent after the handshake, one with garbage, and one that leaves at once.
    #[test]
    fn bad_clients_do_not_disturb_others() {
        let running = Running::start(server());
        let path = running.dir.join("s");
        let silent = UnixStream::connect(&path).unwrap();
        let idle = nbd::connect(&running.uri()).unwrap();
        let mut garbage = UnixStream::connect(&path).unwrap();
        garbage.write_all(&[0xff; 1000]).unwrap();
        drop(UnixStream::connect(&path).unwrap());
        let client = nbd::connect(&running.uri()).unwrap();
        let mut byte = [0];
        client.read_exact_at(&mut byte, SIZE - 1).unwrap();
        assert_eq!(byte, [9]);
        // The server ends although these are connected.
        running.stop();
        assert!(client.read_exact_at(&mut byte, 0).is_err());
        drop((silent, idle, garbage));
    }

    #[test]
    fn connections_are_bounded() {
        let running = Running::start(server().connections(1));
        let first = nbd::connect(&running.uri()).unwrap();
        let mut second = UnixStream::connect(running.dir.join("s")).unwrap();
        second.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(second.read(&mut [0; 18]).is_err(), "a second client is served");
        second.set_read_timeout(None).unwrap();
        drop(first);
        second.read_exact(&mut [0; 18]).unwrap();
        running.stop();
    }

    /// A client that wants more connections than the server allows goes on with those that it has.
    #[test]
    fn a_client_does_with_fewer_connections() {
        let running = Running::start(server().connections(2));
        let image = OpenOptions::new().format(Format::RAW);
        let image = image.open_source(Arc::new(nbd::connect(&running.uri()).unwrap())).unwrap();
        let copy = Arc::new(MemFile::new());
        crate::convert::Converter::new(Format::RAW).threads(4).convert_to(&image, copy.clone()).unwrap();
        assert!(copy.to_vec() == disk());
        drop(image);
        running.stop();
    }

    #[test]
    fn a_server_ends_after_its_last_client() {
        let running = Running::start(server().once(true));
        // One that does not open the export does not count.
        let mut scan = UnixStream::connect(running.dir.join("s")).unwrap();
        scan.read_exact(&mut [0; 18]).unwrap();
        drop(scan);
        let (first, second) = (nbd::connect(&running.uri()).unwrap(), nbd::connect(&running.uri()).unwrap());
        drop(first);
        second.read_exact_at(&mut [0], 0).unwrap();
        drop(second);
        running.thread.join().unwrap().unwrap();
    }
}

/// A disk that can be full.
#[cfg(feature = "disk")]
#[derive(Debug)]
struct Full(MemFile, AtomicBool);

#[cfg(feature = "disk")]
impl ReadAt for Full {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
}

#[cfg(feature = "disk")]
impl crate::io::WriteAt for Full {
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        match self.1.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => self.0.write_all_at(buf, offset),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

#[cfg(feature = "disk")]
#[test]
fn disks_are_written() {
    const WRITABLE: u16 = 0b1_0110_1101;
    let file = Arc::new(Full(MemFile::from(vec![7; 4096]), AtomicBool::new(false)));
    let disk = OpenOptions::new().format(Format::RAW).open_disk_in(file.clone()).unwrap();
    let server = Server::writable(Arc::new(disk));
    let play = |script: &Script| {
        let mut play = Play(Cursor::new(&script.0), Vec::new());
        server.serve_stream(&mut play).unwrap();
        play.1.split_off(18)
    };
    let start = Script::new(3).option(option::EXPORT_NAME, b"");
    let export = [&4096_u64.to_be_bytes()[..], &WRITABLE.to_be_bytes()].concat();
    assert_eq!(play(&start), export);
    let answers = |script: &Script| play(script)[export.len()..].to_vec();
    let script = start
        .clone()
        .request_with(command_flag::FUA, command::WRITE, 1, 3)
        .and([1, 2, 3])
        .request(command::WRITE_ZEROES, 512, 512)
        .request_with(command_flag::NO_HOLE, command::WRITE_ZEROES, 1024, 100)
        .request_with(command_flag::FUA, command::TRIM, 2048, 512)
        .request(command::FLUSH, 0, 0);
    assert_eq!(answers(&script), simple_reply(0).repeat(5));
    let mut expected = vec![7; 4096];
    expected[1..4].copy_from_slice(&[1, 2, 3]);
    expected[512..1124].fill(0);
    let mut content = vec![0; 4096];
    file.read_exact_at(&mut content, 0).unwrap();
    content[2048..2560].fill(7);
    assert_eq!(content, expected);

    // What is refused changes nothing, and the data that comes with it is not taken for a request.
    let script = start
        .clone()
        .request(command::WRITE, 4095, 2)
        .and([1, 2])
        .request_with(command_flag::NO_HOLE, command::WRITE, 0, 1)
        .and([1])
        .request(command::TRIM, 4096, 1)
        .request(command::WRITE_ZEROES, u64::MAX, 2)
        .request_with(command_flag::REQ_ONE, command::TRIM, 0, 1);
    let errors = [error::ENOSPC, error::EINVAL, error::EINVAL, error::EINVAL, error::EINVAL];
    assert_eq!(answers(&script), errors.map(simple_reply).concat());
    file.1.store(true, Ordering::Relaxed);
    let script = start.request(command::WRITE, 0, 2).and([9, 9]).request(command::READ, 1, 1);
    assert_eq!(answers(&script), [simple_reply(error::ENOSPC), simple_reply(0), vec![1]].concat());
}
