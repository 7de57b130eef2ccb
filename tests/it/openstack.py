"""Calls qemu-img from PATH as OpenStack's Nova and Glance do, with their libraries, and prints what they see as JSON.

    openstack.py probe
    openstack.py run DIRECTORY
"""
import json
import os
import sys

from oslo_concurrency import processutils
from oslo_utils import imageutils

LIMITS = processutils.ProcessLimits(cpu_time=60, address_space=1 << 30)


def info(path, *options):
    """nova.privsep.qemu: everything on standard error is a failure for Glance."""
    command = ["env", "LC_ALL=C", "LANG=C", "qemu-img", "info", path, "--force-share", "--output=json", *options]
    out, err = processutils.execute(*command, prlimit=LIMITS)
    assert not err, err
    image = imageutils.QemuImgInfo(out, format="json")
    snapshots = [snapshot["name"] for snapshot in image.snapshots]
    specific = image.format_specific["type"] if image.format_specific else None
    return [image.file_format, image.virtual_size, image.cluster_size, image.backing_file, image.encrypted, snapshots, specific]


def convert(source, target, *options):
    out, err = processutils.trycmd("qemu-img", "convert", *options, source, target)
    assert not out and not err, out + err


def run():
    seen = {}
    for target in ["qcow2", "vmdk", "vpc", "vhdx", "vdi", "raw"]:
        convert("disk.raw", target, "-t", "none", "-O", target, "-f", "raw")
        seen[target] = info(target)
        convert(target, "back.raw", "-t", "none", "-O", "raw", "-f", target)
        with open("disk.raw", "rb") as disk, open("back.raw", "rb") as back:
            # Of a VHD the size is rounded.
            assert back.read().startswith(disk.read()), target
    backing = "backing_file=" + os.path.abspath("qcow2") + ",backing_fmt=qcow2"
    out, err = processutils.execute("qemu-img", "create", "-f", "qcow2", "-o", backing, "overlay", "1073741824")
    assert not err, err
    seen["overlay"] = info("overlay", "-f", "qcow2")
    for path, options in [("missing", []), ("disk.raw", ["-f", "qcow2"])]:
        try:
            info(path, *options)
        except processutils.ProcessExecutionError as error:
            seen[path] = [error.exit_code, error.stderr]
    return json.dumps(seen).replace(os.getcwd(), "")


if sys.argv[1] == "run":
    os.chdir(sys.argv[2])
    print(run())
