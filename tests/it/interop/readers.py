#!/usr/bin/env python3
"""Reads disk images with other people's libraries that have a binding for Python, for the tests.

    readers.py LIBRARY                               succeeds if its modules are there
    readers.py LIBRARY sizes FORMAT IMAGE...         the size of each disk in bytes, on a line of its own
    readers.py LIBRARY disks FORMAT IMAGE...         the same, and the SHA-256 of its bytes
    readers.py LIBRARY chain FORMAT IMAGE PARENT...  the same of one disk, whose parents are given in order

LIBRARY is libyal (on PyPI libvmdk-python and libvhdi-python) or dissect (dissect.hypervisor); FORMAT is vmdk, vpc, vdi
or vhdx. With libluksde (libluksde-python) or dissect-fve (dissect.fve) FORMAT is luks, with libmodi (libmodi-python) it is dmg. dissect looks for the parents of a VHDX itself.
"""

import hashlib
import sys
from pathlib import Path

# Of the encrypted volumes of the tests.
PASSPHRASE = "correct horse battery staple\n"
MODULES = {"libluksde": ["pyluksde"], "libmodi": ["pymodi"], "dissect-fve": ["dissect.fve.luks"],
           "libyal": ["pyvmdk", "pyvhdi"], "dissect": [f"dissect.hypervisor.disk.{name}" for name in ("vmdk", "vhd", "vdi", "vhdx")]}


def open_libyal(format, image, parent):
    """Returns the disk, its size, and how many bytes to read at once."""
    if format in ("vpc", "vhdx"):
        import pyvhdi

        disk = pyvhdi.file()
        disk.open(image)
        if parent:
            disk.set_parent(parent)
    else:
        import pyvmdk

        disk = pyvmdk.handle()
        disk.open(image)
        disk.open_extent_data_files()
    return disk, disk.get_media_size(), 1 << 20


def open_dissect(format, image, parent):
    if format == "vpc":
        from dissect.hypervisor.disk.vhd import VHD

        disk = VHD(open(image, "rb"))
    elif format == "vhdx":
        from dissect.hypervisor.disk.vhdx import VHDX

        disk = layer = VHDX(Path(image))
        step = disk.block_size
        # A read must not go beyond a block of any of them: it takes the following ones for its neighbours in the file.
        while layer := layer.parent:
            step = min(step, layer.block_size)
        return disk, disk.size, step
    elif format == "vmdk":
        from dissect.hypervisor.disk.vmdk import VMDK

        disk = VMDK(Path(image))
    else:
        from dissect.hypervisor.disk.vdi import VDI

        vdi = VDI(open(image, "rb"), parent)
        # A read must not go beyond a block: it takes the following ones for its neighbours in the file.
        return vdi.open(), vdi.size, vdi.block_size
    return disk, disk.size, 1 << 20


def open_libluksde(format, image, parent):
    import pyluksde

    disk = pyluksde.volume()
    disk.set_password(PASSPHRASE)
    disk.open(image)
    return disk, disk.get_size(), 1 << 20


def open_dissect_fve(format, image, parent):
    from dissect.fve.luks import LUKS

    volume = LUKS(open(image, "rb"))
    volume.unlock_with_passphrase(PASSPHRASE)
    disk = volume.open()
    return disk, disk.seek(0, 2), 1 << 20


def open_libmodi(format, image, parent):
    import pymodi

    disk = pymodi.handle()
    disk.open(image)
    return disk, disk.get_media_size(), 1 << 20


OPEN = {"libmodi": open_libmodi, "libyal": open_libyal, "dissect": open_dissect, "libluksde": open_libluksde, "dissect-fve": open_dissect_fve}


def digest(disk, size, step):
    sha256 = hashlib.sha256()
    for offset in range(0, size, step):
        length = min(step, size - offset)
        disk.seek(offset)
        piece = disk.read(length)
        if len(piece) != length:
            sys.exit(f"{len(piece)} bytes of {length} at {offset}")
        sha256.update(piece)
    return sha256.hexdigest()


def main(library, command=None, format=None, *images):
    for module in MODULES[library]:
        __import__(module)
    if command == "chain":
        disk = None
        for image in reversed(images):
            disk, size, step = OPEN[library](format, image, disk)
        print(size, digest(disk, size, step))
    elif command:
        for image in images:
            disk, size, step = OPEN[library](format, image, None)
            print(size, *[digest(disk, size, step)] if command == "disks" else [], flush=True)


main(*sys.argv[1:])
