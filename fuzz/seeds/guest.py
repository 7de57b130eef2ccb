"""Prints a disk as the target `guest` takes it (tests/fuzzing/guest.rs): the sectors that are not zeros."""
import struct
import sys

SECTOR = 512
disk = open(sys.argv[1], "rb").read()
sectors = [disk[at:at + SECTOR] for at in range(0, len(disk), SECTOR)]


def kind(sector):
    units = struct.unpack("<256H", sector)
    if sector.count(sector[0]) == SECTOR:
        return "zeros" if sector[0] == 0 else sector[:1]
    # Letters that are their own upper case: most of a table of NTFS that nothing reads.
    is_table = sum(b == a + 1 for a, b in zip(units, units[1:])) > 100
    return "zeros" if is_table else "data"


out, at = b"\0" + struct.pack("<I", len(sectors)), 0
while at < len(sectors):
    end = at + 1
    while end < len(sectors) and kind(sectors[end]) == kind(sectors[at]) and end - at < 0x7fff:
        end += 1
    if kind(sectors[at]) == "data":
        out += struct.pack("<IH", at, end - at) + b"".join(sectors[at:end])
    elif kind(sectors[at]) != "zeros":
        out += struct.pack("<IH", at, 0x8000 | end - at) + kind(sectors[at])
    at = end
sys.stdout.buffer.write(out)
