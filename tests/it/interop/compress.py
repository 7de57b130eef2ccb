#!/usr/bin/env python3
"""Compresses pieces with other people's libraries, for the tests.

    compress.py CODEC        succeeds if the library is there and the input is empty

CODEC is zlib, bzip2, xz or lzfse (on PyPI lzfse). Standard input has pieces, each behind its length in four bytes, little-endian;
standard output gets as many payloads in the same form.
"""

import bz2
import lzma
import struct
import sys
import zlib


def compressor(codec):
    if codec == "lzfse":
        import lzfse

        return lzfse.compress
    return {"zlib": lambda piece: zlib.compress(piece, 9), "bzip2": bz2.compress,
            "xz": lambda piece: lzma.compress(piece, check=lzma.CHECK_CRC32, preset=6)}[codec]


compress = compressor(sys.argv[1])
data = sys.stdin.buffer.read()
at = 0
while at < len(data):
    length, = struct.unpack_from("<I", data, at)
    payload = compress(data[at + 4:at + 4 + length])
    sys.stdout.buffer.write(struct.pack("<I", len(payload)) + payload)
    at += 4 + length
