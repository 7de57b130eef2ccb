"""Seeds of the targets nbd_client and nbd_server: sessions, as the peer sends them."""
import struct

SIZE = 65536


def write(name, *parts):
    with open(name, "wb") as file:
        file.write(b"".join(parts))


def reply(option, kind, data=b""):
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


def go(flags, minimum):
    export = struct.pack(">HQH", 0, SIZE, flags)
    return reply(7, 3, export) + reply(7, 3, struct.pack(">HIII", 3, minimum, 4096, 1 << 25)) + reply(7, 1)


def chunk(cookie, flags, kind, payload=b""):
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, len(payload)) + payload


def simple(cookie, error=0):
    return struct.pack(">IIQ", 0x67446698, error, cookie)


hello = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)
# HAS_FLAGS, SEND_FLUSH, SEND_TRIM, SEND_WRITE_ZEROES.
flags = 0x65
write(
    "nbd_client/structured", hello, reply(8, 1), reply(10, 4, struct.pack(">I", 1) + b"base:allocation"), reply(10, 1), go(flags, 1),
    chunk(1, 0, 1, struct.pack(">Q", 0) + b"QFI\xfbabcd"), chunk(1, 1, 2, struct.pack(">QI", 8, 8)),
    chunk(2, 1, 5, struct.pack(">5I", 1, 4096, 0, SIZE - 4096, 3)),
    chunk(3, 1, 1, struct.pack(">Q", SIZE - 600) + bytes(600)),
    *(chunk(cookie, 1, 0) for cookie in range(4, 8)),
    chunk(8, 1, 0x8002, struct.pack(">IH", 5, 5) + b"error" + struct.pack(">Q", 0)),
)
write(
    "nbd_client/plain", hello, reply(8, 1 << 31 | 1, b"no"), go(flags, 512),
    simple(1) + bytes(512), simple(2) + bytes(512), simple(3) + bytes(512), simple(4) + bytes(512), simple(5), simple(6, 22), simple(7),
)
write("nbd_client/refused", hello, reply(8, 1), reply(10, 1 << 31 | 1), reply(7, 1 << 31 | 6, b"no such export"))
write("nbd_client/oldest", hello[:16], bytes(2), struct.pack(">QH", SIZE, 1), bytes(124), simple(1, 5), simple(2) + bytes(600))


def option(number, data=b""):
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def request(kind, offset, length, flags=0):
    return struct.pack(">IHHQQI", 0x25609513, flags, kind, 42, offset, length)


disk = struct.pack(">I", 4) + b"disk"
context = disk + struct.pack(">II", 1, 15) + b"base:allocation"
write(
    "nbd_server/structured", struct.pack(">I", 3), option(3), option(8), option(9, disk + bytes(4)), option(10, context),
    option(6, disk + struct.pack(">HHH", 2, 1, 3)), option(7, disk + bytes(2)),
    request(7, 0, SIZE), request(7, 0, SIZE, 8), request(0, 4000, 2000), request(0, 10000, 512), request(0, SIZE, 1), request(3, 0, 0), request(2, 0, 0),
)
write(
    "nbd_server/plain", struct.pack(">I", 0), option(1, b"disk"),
    request(0, 4000, 2000), request(1, 0, 4) + b"data", request(4, 0, 512), request(6, 0, 512), request(77, 0, 0),
)
write("nbd_server/abort", struct.pack(">I", 1), option(5), option(99, b"data"), option(2))
