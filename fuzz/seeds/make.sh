#!/bin/sh
# Makes the seeds of the fuzz targets anew, with qemu-img and qemu-io: an image of each kind, as small as that kind can be.
set -eu
cd "$(dirname "$0")"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
rm -rf open_any open_qcow2 open_raw roundtrip
mkdir open_any open_qcow2 open_raw roundtrip

# Guest bytes: text, zeros, a repeated byte.
{ seq 1 128; head -c 1024 /dev/zero; yes x | head -c 1024; } | head -c 2560 >"$tmp/disk"

image() { # name, arguments of qemu-img convert
    name=$1
    shift
    qemu-img convert -f raw -O qcow2 "$@" "$tmp/disk" "open_qcow2/$name"
}
image version-2 -o compat=0.10,cluster_size=512
image version-3 -o cluster_size=512
image zlib -c -o cluster_size=512
image zstd -c -o cluster_size=512,compression_type=zstd
image lazy-refcounts -o cluster_size=512,lazy_refcounts=on
image refcount-bits-1 -o cluster_size=512,refcount_bits=1
image snapshot -o cluster_size=512
qemu-img snapshot -c first open_qcow2/snapshot
qemu-io -f qcow2 -c 'write -P 7 0 512' open_qcow2/snapshot >/dev/null
image bitmap -o cluster_size=512
qemu-img bitmap --add -g 512 open_qcow2/bitmap dirty
image zeros -o cluster_size=512
qemu-io -f qcow2 -c 'write -z 0 512' -c 'write -z -u 512 512' open_qcow2/zeros >/dev/null
image extended-l2 -o cluster_size=16k,extended_l2=on
qemu-io -f qcow2 -c 'write -z 0 512' open_qcow2/extended-l2 >/dev/null
qemu-img create -q -f qcow2 -u -b base.raw -F raw -o cluster_size=512 open_qcow2/backing 2560
(cd "$tmp" && qemu-img create -q -f qcow2 -o cluster_size=512,data_file=data.raw image 2560)
cp "$tmp/image" open_qcow2/data-file

cp "$tmp/disk" open_raw/text
printf '\125\252' | dd of=open_raw/boot-sector bs=1 seek=510 status=none
cp open_qcow2/version-3 open_qcow2/zstd open_qcow2/snapshot open_raw/boot-sector open_any

# Eight bytes that choose options, then runs: a kind, a length of two bytes, and for kind 3 the bytes.
printf '\0\1\4\0\0\0\0\2\0\0\020\1\0\020\2\0\020' >roundtrip/plain
printf '\3\1\4\0\0\0\1\1\1\0\020\0\0\020\2\0\020' >roundtrip/zlib
printf '\3\1\4\0\1\0\1\1\1\0\020\0\0\020\2\0\020' >roundtrip/zstd
printf '\5\1\4\1\0\0\2\1\3\6\0abcdef\0\0\100\1\0\1' >roundtrip/extended-l2
printf '\1\0\0\0\0\203\3\1\1\0\020\0\0\020' >roundtrip/preallocated
