//! Scripted servers, good and bad: their bytes are recorded, and the client's requests compared.

use std::io::Cursor;
use std::sync::Arc;

use super::*;
use crate::nbd::protocol::error as error_values;
use crate::nbd::protocol::{self as protocol, Request, chunk, info, option, reply, state};

/// A stream that plays what a server sends, and records what the client sends.
struct Script {
    server: Cursor<Vec<u8>>,
    client: Arc<Mutex<Vec<u8>>>,
}

impl Read for Script {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.server.read(buf)
    }
}

impl Write for Script {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.client.lock().unwrap().extend(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The bytes of a server.
#[derive(Clone, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn hello(flags: u16) -> Bytes {
        let mut bytes = [protocol::MAGIC, protocol::OPTION_MAGIC].map(u64::to_be_bytes).concat();
        bytes.extend(flags.to_be_bytes());
        Bytes(bytes)
    }

    fn and(mut self, part: impl AsRef<[u8]>) -> Bytes {
        self.0.extend(part.as_ref());
        self
    }

    fn option(self, option: u32, kind: u32, data: &[u8]) -> Bytes {
        self.and(protocol::OPTION_REPLY_MAGIC.to_be_bytes())
            .and([option, kind, data.len() as u32].map(u32::to_be_bytes).concat())
            .and(data)
    }

    /// Structured replies and extents are refused.
    fn plain(self) -> Bytes {
        self.option(option::STRUCTURED_REPLY, reply::ERR_UNSUP, b"")
    }

    /// Structured replies, and extents with the context ID 7.
    fn structured(self) -> Bytes {
        self.option(option::STRUCTURED_REPLY, reply::ACK, b"")
            .option(option::SET_META_CONTEXT, reply::META_CONTEXT, b"\0\0\0\x07base:allocation")
            .option(option::SET_META_CONTEXT, reply::ACK, b"")
    }

    fn go(self, size: u64, flags: u16, blocks: Option<[u32; 3]>) -> Bytes {
        let export = [&info::EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat();
        let mut bytes = self.option(option::GO, reply::INFO, &export).option(option::GO, reply::INFO, b"\0\x02about");
        if let Some(blocks) = blocks {
            let blocks = [&info::BLOCK_SIZE.to_be_bytes()[..], &blocks.map(u32::to_be_bytes).concat()].concat();
            bytes = bytes.option(option::GO, reply::INFO, &blocks);
        }
        bytes.option(option::GO, reply::ACK, b"")
    }

    fn simple(self, cookie: u64, error: u32) -> Bytes {
        self.and(protocol::SIMPLE_REPLY_MAGIC.to_be_bytes()).and(error.to_be_bytes()).and(cookie.to_be_bytes())
    }

    fn chunk(self, cookie: u64, flags: u16, kind: u16, payload: &[u8]) -> Bytes {
        self.and(protocol::STRUCTURED_REPLY_MAGIC.to_be_bytes())
            .and(flags.to_be_bytes())
            .and(kind.to_be_bytes())
            .and(cookie.to_be_bytes())
            .and((payload.len() as u32).to_be_bytes())
            .and(payload)
    }

    fn data(self, cookie: u64, flags: u16, offset: u64, data: &[u8]) -> Bytes {
        self.chunk(cookie, flags, chunk::OFFSET_DATA, &[&offset.to_be_bytes(), data].concat())
    }

    fn hole(self, cookie: u64, flags: u16, offset: u64, len: u32) -> Bytes {
        self.chunk(cookie, flags, chunk::OFFSET_HOLE, &[&offset.to_be_bytes()[..], &len.to_be_bytes()].concat())
    }

    fn extents(self, cookie: u64, context: u32, extents: &[(u32, u32)]) -> Bytes {
        let extents = extents.iter().flat_map(|(len, flags)| [*len, *flags]);
        let payload: Vec<_> = [context].into_iter().chain(extents).flat_map(u32::to_be_bytes).collect();
        self.chunk(cookie, chunk::DONE, chunk::BLOCK_STATUS, &payload)
    }

    fn client(self) -> Result<Client> {
        self.recorded().0
    }

    /// The client, and what it sends.
    fn recorded(self) -> (Result<Client>, Arc<Mutex<Vec<u8>>>) {
        let sent = Arc::<Mutex<Vec<u8>>>::default();
        let script = Script { server: Cursor::new(self.0), client: sent.clone() };
        (Client::from_stream(script, "disk"), sent)
    }
}

const FIXED: u16 = 3;
const PLAIN: u16 = transmission::HAS_FLAGS | transmission::SEND_FLUSH;
const SIZE: u64 = 1 << 20;

fn structured() -> Bytes {
    Bytes::hello(FIXED).structured().go(SIZE, PLAIN, Some([1, 4096, 32 << 20]))
}

fn plain(flags: u16, blocks: [u32; 3]) -> Bytes {
    Bytes::hello(FIXED).plain().go(SIZE, flags, Some(blocks))
}

#[test]
fn exports_are_negotiated() {
    let plain =
        Export { size: SIZE, flags: PLAIN, min_block: 512, max_payload: 32 << 20, structured: false, context: None };
    let by_name = [&SIZE.to_be_bytes()[..], &PLAIN.to_be_bytes()].concat();
    for (bytes, export) in [
        (structured(), Export { min_block: 1, structured: true, context: Some(7), ..plain }),
        (Bytes::hello(FIXED).plain().go(SIZE, PLAIN, None), plain),
        (Bytes::hello(FIXED).plain().go(SIZE + 1, PLAIN, None), Export { size: SIZE + 1, min_block: 1, ..plain }),
        (
            Bytes::hello(FIXED).plain().go(SIZE, PLAIN, Some([4096, 4096, u32::MAX])),
            Export { min_block: 4096, ..plain },
        ),
        (Bytes::hello(FIXED).plain().go(SIZE, PLAIN, Some([512, 4096, 1000])), Export { max_payload: 512, ..plain }),
        // A server without NBD_OPT_GO, one without options, and one without contexts.
        (Bytes::hello(FIXED).plain().option(option::GO, reply::ERR_UNSUP, b"?").and(&by_name), plain),
        (Bytes::hello(0).and(&by_name).and([0; 124]), plain),
        (
            Bytes::hello(FIXED)
                .option(option::STRUCTURED_REPLY, reply::ACK, b"")
                .option(option::SET_META_CONTEXT, reply::ERR_UNSUP, b"")
                .go(SIZE, PLAIN, None),
            Export { structured: true, ..plain },
        ),
    ] {
        let client = bytes.client().unwrap();
        assert_eq!(client.export, export);
        assert_eq!(client.size().unwrap(), export.size);
    }
}

#[test]
fn bad_servers_are_refused_with_the_reason() {
    let hello = || Bytes::hello(FIXED);
    let long =
        [protocol::OPTION_REPLY_MAGIC.to_be_bytes(), (u64::from(option::STRUCTURED_REPLY) << 32 | 1).to_be_bytes()]
            .concat();
    let mut endless = hello().plain();
    for _ in 0..2000 {
        endless = endless.option(option::GO, reply::INFO, b"\0\x02");
    }
    let go = |size, flags, blocks| hello().plain().go(size, flags, blocks);
    for (bytes, reason) in [
        (Bytes::default(), "the peer closed the connection"),
        (Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), "not an NBD server"),
        (Bytes([protocol::MAGIC, protocol::OLDSTYLE_MAGIC].map(u64::to_be_bytes).concat()), "oldstyle"),
        (Bytes([protocol::MAGIC, 1].map(u64::to_be_bytes).concat()), "not an NBD server"),
        (hello().and([0; 20]), "magic number of an option reply"),
        (hello().and(&long).and(u32::MAX.to_be_bytes()), "an option reply of 4294967295 bytes"),
        (hello().option(option::GO, reply::ACK, b""), "option 8 was sent, option 7 answered"),
        (hello().option(option::STRUCTURED_REPLY, reply::ERR_TLS_REQD, b""), "requires TLS"),
        (hello().option(option::STRUCTURED_REPLY, 99, b""), "unexpected option reply 0x63"),
        (hello().plain().option(option::GO, reply::ERR_UNKNOWN, b"who?\x1b[m"), "no such export: who?[m"),
        (hello().plain().option(option::GO, reply::ERR_POLICY, b""), "policy"),
        (hello().plain().option(option::GO, reply::ACK, b""), "no size"),
        (hello().plain().option(option::GO, reply::INFO, b"\0\0\0"), "truncated information"),
        (hello().plain().option(option::GO, reply::ERR_UNSUP, b""), "no such export"),
        (Bytes::hello(0), "no such export"),
        (endless, "too many replies"),
        (go(1 << 63, PLAIN, None), "less than 2^63"),
        (go(SIZE, 0, None), "NBD_FLAG_HAS_FLAGS"),
        (go(SIZE, PLAIN, Some([0, 0, 0])), "block sizes"),
        (go(SIZE, PLAIN, Some([3, 4096, 4096])), "block sizes"),
        (go(SIZE, PLAIN, Some([1 << 17, 1 << 17, 1 << 20])), "block sizes"),
        (go(SIZE, PLAIN, Some([4096, 4096, 512])), "block sizes"),
        (
            hello().option(option::STRUCTURED_REPLY, reply::ACK, b"").option(
                option::SET_META_CONTEXT,
                reply::META_CONTEXT,
                b"\0",
            ),
            "context without an ID",
        ),
    ] {
        let error = bytes.client().unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
        assert!(error.starts_with("NBD export 'disk': opening the export: "), "{error}");
    }
}

/// As if the connection were lost: an error at each place, never data.
#[test]
fn a_server_may_stop_anywhere() {
    let whole = structured().data(1, 0, 0, b"abc").hole(1, chunk::DONE, 3, 2).extents(2, 7, &[(10, 0), (20, 3)]);
    let attempt = |len: usize| {
        let client = Bytes(whole.0[..len].to_vec()).client()?;
        let mut buf = [0xff; 5];
        client.read_exact_at(&mut buf, 0).map_err(Error::io("reading", 0))?;
        let data = client.next_data(4).map_err(Error::io("looking for data", 4))?;
        Ok::<_, Error>((buf, data))
    };
    for len in 0..whole.0.len() {
        assert!(attempt(len).is_err(), "{len}");
    }
    assert_eq!(attempt(whole.0.len()).unwrap(), (*b"abc\0\0", Some(4..14)));
}

#[test]
fn chunks_may_come_in_any_order() {
    let client = structured().data(1, 0, 104, b"ef").hole(1, 0, 102, 2).data(1, 0, 100, b"ab").chunk(1, 1, 0, b"");
    let mut buf = [0xff; 6];
    client.client().unwrap().read_exact_at(&mut buf, 100).unwrap();
    assert_eq!(&buf, b"ab\0\0ef");
}

#[test]
fn bad_replies_close_the_connection() {
    let error_chunk = |len: u16| [&5_u32.to_be_bytes()[..], &len.to_be_bytes(), b"why"].concat();
    for (bytes, reason) in [
        (structured(), "the peer closed the connection"),
        (structured().and([7; 40]), "magic number of a reply is 0x7070707"),
        (structured().data(2, 1, 0, b"abcd"), "a reply to another request"),
        (structured().data(1, 1, 0, b"abc"), "without all of the data"),
        (structured().chunk(1, 1, 0, b""), "without all of the data"),
        (structured().simple(1, 0).and(b"abcd"), "without all of the data"),
        (structured().data(1, 0, 0, b"abcd").data(1, 1, 3, b"d"), "twice"),
        (structured().data(1, 1, 1, b"abcd"), "not asked for"),
        (structured().hole(1, 1, 0, u32::MAX), "not asked for"),
        (structured().hole(1, 1, u64::MAX, 4), "not asked for"),
        (structured().data(1, 1, 0, b""), "unexpected chunk"),
        (structured().chunk(1, 1, 77, b"1234"), "unexpected chunk of type 77"),
        (structured().chunk(1, 0, 0, b""), "unexpected chunk of type 0"),
        (structured().extents(1, 7, &[(1, 0)]), "unexpected chunk of type 5"),
        (structured().chunk(1, 1, chunk::ERROR, b"123"), "an error chunk of 3 bytes"),
        (structured().chunk(1, 1, chunk::ERROR, &[0; 9000]), "an error chunk of 9000 bytes"),
        (structured().chunk(1, 1, chunk::ERROR, &error_chunk(4)), "longer than its chunk"),
        (structured().chunk(1, 1, chunk::ERROR, &[0; 6]), "without an error"),
        (plain(PLAIN, [1, 1, 4096]).data(1, 1, 0, b"abcd"), "not negotiated"),
    ] {
        let client = bytes.client().unwrap();
        let error = client.read_exact_at(&mut [0; 4], 0).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
        let error = client.read_exact_at(&mut [0; 4], 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected, "{reason}");
    }
}

#[test]
fn an_endless_reply_is_refused() {
    /// Chunks of an error, without end.
    struct Endless(Cursor<Vec<u8>>, Vec<u8>, usize);
    impl Read for Endless {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buf)? {
                0 => {
                    let rest = &self.1[self.2 % self.1.len()..];
                    let len = rest.len().min(buf.len());
                    buf[..len].copy_from_slice(&rest[..len]);
                    self.2 += len;
                    Ok(len)
                }
                len => Ok(len),
            }
        }
    }
    impl Write for Endless {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let chunk = Bytes::default().chunk(1, 0, chunk::ERROR, &[0, 0, 0, 5, 0, 0]);
    let client = Client::from_stream(Endless(Cursor::new(structured().0), chunk.0, 0), "").unwrap();
    let error = client.read_exact_at(&mut [0; 4], 0).unwrap_err().to_string();
    assert!(error.contains("too many chunks"), "{error}");
}

#[test]
fn a_refused_request_leaves_the_connection() {
    let message = [&5_u32.to_be_bytes()[..], &[0, 3], b"bad", &7_u64.to_be_bytes()].concat();
    let offset_error = chunk::IS_ERROR + 2;
    let bytes = structured()
        .data(1, 0, 0, b"ab")
        .chunk(1, chunk::DONE, offset_error, &message)
        .simple(2, error_values::EINVAL)
        .data(3, 1, 0, b"abcd");
    let client = bytes.client().unwrap();
    let error = client.read_exact_at(&mut [0; 4], 0).unwrap_err();
    assert_eq!(error.to_string(), "the server reports: input/output error: bad");
    let error = client.read_exact_at(&mut [0; 4], 0).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    let mut buf = [0; 4];
    client.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"abcd");
}

#[test]
fn holes_are_asked_for_once() {
    let (zero, hole) = (state::ZERO, state::HOLE);
    let bytes = structured().extents(1, 7, &[(4096, 0), (4096, zero | hole), (4096, hole), (8192, zero)]).extents(
        2,
        7,
        &[(1 << 20, zero)],
    );
    let (client, sent) = bytes.recorded();
    let client = client.unwrap();
    let before = sent.lock().unwrap().len();
    assert_eq!(client.next_data(0).unwrap(), Some(0..4096));
    assert_eq!(client.next_data(4096).unwrap(), Some(8192..12288));
    assert_eq!(client.next_data(5000).unwrap(), Some(8192..12288));
    assert_eq!(client.next_data(12288).unwrap(), None);
    assert_eq!(client.next_data(SIZE).unwrap(), None);
    let sent = sent.lock().unwrap();
    let requests = requests(&sent[before..]);
    let at = |cookie, offset| Request {
        flags: 0,
        command: command::BLOCK_STATUS,
        cookie,
        offset,
        len: (SIZE - offset) as u32,
    };
    assert_eq!(requests, [at(1, 0), at(2, 20480)]);
}

#[test]
fn bad_extents_are_errors_and_unknown_ones_data() {
    for (bytes, reason) in [
        (structured().extents(1, 8, &[(4096, 0)]), "not asked for"),
        (structured().extents(1, 7, &[(0, 0)]), "an extent of 0 bytes"),
        (structured().extents(1, 7, &[]), "unexpected chunk"),
        (structured().chunk(1, 1, chunk::BLOCK_STATUS, &[0; 13]), "unexpected chunk"),
        (structured().chunk(1, 1, chunk::NONE, b""), "without extents"),
    ] {
        let error = bytes.client().unwrap().next_data(0).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let refused = structured().simple(1, error_values::EIO).client().unwrap();
    assert_eq!(refused.next_data(100).unwrap(), Some(100..u64::MAX));
    let without = plain(PLAIN, [1, 1, 4096]).client().unwrap();
    assert_eq!(without.next_data(100).unwrap(), Some(100..u64::MAX));
}

/// The requests without payload in what a client sent.
fn requests(mut bytes: &[u8]) -> Vec<Request> {
    std::iter::from_fn(|| Request::read(&mut bytes).ok()).collect()
}

#[test]
fn requests_keep_to_the_block_sizes() {
    let block = |byte: u8| vec![byte; 512];
    // Reads of a block, of two blocks which is the longest payload, and of a block again.
    let bytes = plain(PLAIN, [512, 512, 1024])
        .simple(1, 0)
        .and(block(1))
        .simple(2, 0)
        .and([block(2), block(3)].concat())
        .simple(3, 0)
        .and(block(4));
    let (client, sent) = bytes.recorded();
    let client = client.unwrap();
    let before = sent.lock().unwrap().len();
    let mut buf = vec![0; 1500];
    client.read_exact_at(&mut buf, 200).unwrap();
    assert_eq!(buf, [vec![1; 312], block(2), block(3), vec![4; 164]].concat());
    let ranges: Vec<_> = requests(&sent.lock().unwrap()[before..]).iter().map(|r| (r.offset, r.len)).collect();
    assert_eq!(ranges, [(0, 512), (512, 1024), (1536, 512)]);
}

#[test]
fn a_part_of_a_block_is_replaced() {
    let bytes = plain(PLAIN, [8, 8, 16]).simple(1, 0).and(*b"abcdefgh").simple(2, 0).simple(3, 0).simple(4, 0);
    let bytes = bytes.simple(5, 0).and(*b"ijklmnop").simple(6, 0);
    let (client, sent) = bytes.recorded();
    let client = client.unwrap();
    let before = sent.lock().unwrap().len();
    let data: Vec<u8> = (b'A'..=b'Z').collect();
    client.write_all_at(&data, 6).unwrap();
    let write =
        |cookie, offset, len| Request { flags: 0, command: command::WRITE, cookie, offset, len }.to_bytes().to_vec();
    let read =
        |cookie, offset| Request { flags: 0, command: command::READ, cookie, offset, len: 8 }.to_bytes().to_vec();
    let expected = [
        read(1, 0),
        write(2, 0, 8),
        b"abcdefAB".to_vec(),
        write(3, 8, 16),
        b"CDEFGHIJKLMNOPQR".to_vec(),
        write(4, 24, 8),
        b"STUVWXYZ".to_vec(),
    ]
    .concat();
    assert_eq!(sent.lock().unwrap()[before..], expected);
    // Within one block.
    let before = sent.lock().unwrap().len();
    client.write_all_at(b"12", 11).unwrap();
    assert_eq!(sent.lock().unwrap()[before..], [read(5, 8), write(6, 8, 8), b"ijk12nop".to_vec()].concat());
}

#[test]
fn zeros_are_written_in_the_cheapest_way() {
    let flags = PLAIN | transmission::SEND_WRITE_ZEROES | transmission::SEND_TRIM;
    let bytes = plain(flags, [1, 4096, 4096]).simple(1, 0).simple(2, error_values::EINVAL).simple(3, 0).simple(4, 0);
    let (client, sent) = bytes.recorded();
    let client = client.unwrap();
    let before = sent.lock().unwrap().len();
    client.zero_range(10..100).unwrap();
    // The server refuses these, and gets them as data.
    client.zero_range(0..3).unwrap();
    client.trim(20..30).unwrap();
    let request = |command, cookie, offset, len| Request { flags: 0, command, cookie, offset, len }.to_bytes().to_vec();
    let expected = [
        request(command::WRITE_ZEROES, 1, 10, 90),
        request(command::WRITE_ZEROES, 2, 0, 3),
        request(command::WRITE, 3, 0, 3),
        vec![0; 3],
        request(command::TRIM, 4, 20, 10),
    ]
    .concat();
    assert_eq!(sent.lock().unwrap()[before..], expected);

    // Without these requests there is data, or nothing.
    let (client, sent) = plain(PLAIN, [1, 4096, 4096]).simple(1, 0).recorded();
    let client = client.unwrap();
    let before = sent.lock().unwrap().len();
    client.trim(20..30).unwrap();
    client.zero_range(5..7).unwrap();
    assert_eq!(sent.lock().unwrap()[before..], [request(command::WRITE, 1, 5, 2), vec![0; 2]].concat());
}

#[test]
fn writes_stay_in_the_export() {
    let client = plain(PLAIN, [1, 4096, 4096]).client().unwrap();
    let too_long = |error: io::Error| assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    too_long(client.write_all_at(&[0; 2], SIZE - 1).unwrap_err());
    too_long(client.write_all_at(&[0; 2], u64::MAX).unwrap_err());
    too_long(client.zero_range(0..SIZE + 1).unwrap_err());
    too_long(client.set_len(SIZE + 1).unwrap_err());
    client.set_len(SIZE).unwrap();
    assert_eq!(client.read_at(&mut [0; 4], SIZE).unwrap(), 0);

    let client = plain(PLAIN | transmission::READ_ONLY, [1, 4096, 4096]).client().unwrap();
    assert!(client.is_read_only());
    for refused in [client.write_all_at(&[0], 0), client.zero_range(0..1), client.trim(0..1), client.set_len(0)] {
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
}

#[test]
fn a_flush_is_sent_if_the_server_has_one() {
    let (client, sent) = plain(PLAIN, [1, 4096, 4096]).simple(1, 0).recorded();
    let client = client.unwrap();
    let before = sent.lock().unwrap().len();
    client.sync().unwrap();
    assert_eq!(requests(&sent.lock().unwrap()[before..])[0].command, command::FLUSH);
    drop(client);
    assert_eq!(requests(&sent.lock().unwrap()[before..])[1].command, command::DISCONNECT);
    plain(transmission::HAS_FLAGS, [1, 4096, 4096]).client().unwrap().sync().unwrap();
}
