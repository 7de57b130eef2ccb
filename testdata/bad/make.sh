#!/bin/bash
# Makes the images of this directory: synthetic content, qemu-img, and one field spoiled.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# put FILE OFFSET BYTES: overwrites bytes, given as printf takes them.
put() { printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }
keep() { gzip -9nc "$work/$1" >"$1.gz"; }
# u64 FILE OFFSET: the big-endian number there, without its flag bits.
u64() { echo $((0x$(dd if="$1" bs=1 skip="$2" count=8 status=none | od -An -tx1 | tr -d ' \n') & 0x00ffffffffffffff)); }

for number in $(seq 2000); do echo "line $number of a text that compresses"; done >"$work/text"
truncate -s 256K "$work/text"
make() { qemu-img convert -q -O qcow2 -o "cluster_size=4k$2" $3 -f raw "$work/text" "$work/$1"; }

make cluster-bits-40.qcow2 "" ""
put "$work/cluster-bits-40.qcow2" 20 '\0\0\0\x28'
keep cluster-bits-40.qcow2

make l2-entry-past-end.qcow2 "" ""
l2=$(u64 "$work/l2-entry-past-end.qcow2" "$(u64 "$work/l2-entry-past-end.qcow2" 40)")
put "$work/l2-entry-past-end.qcow2" $((l2 + 24)) '\x80\0\0\x01\0\0\0\0'
keep l2-entry-past-end.qcow2

make two-clusters-in-one-place.qcow2 "" ""
dd if="$work/two-clusters-in-one-place.qcow2" of="$work/two-clusters-in-one-place.qcow2" \
    bs=1 skip=$((l2)) seek=$((l2 + 16)) count=8 conv=notrunc status=none
keep two-clusters-in-one-place.qcow2

make reserved-bit.qcow2 "" ""
put "$work/reserved-bit.qcow2" $((l2 + 31)) '\x02'
keep reserved-bit.qcow2

make cut-off.qcow2 "" ""
truncate -s 40000 "$work/cut-off.qcow2"
keep cut-off.qcow2

for compression in zlib zstd; do
    image=bad-$compression-payload.qcow2
    make "$image" ",compression_type=$compression" -c
    l2=$(u64 "$work/$image" "$(u64 "$work/$image" 40)")
    payload=$(($(u64 "$work/$image" $((l2 + 8))) & 0x3ffffffffffff))
    put "$work/$image" "$payload" '\xff\xff\xff\xff\xff\xff\xff\xff'
    keep "$image"
done

make unknown-feature.qcow2 "" ""
put "$work/unknown-feature.qcow2" 72 '\x80'
keep unknown-feature.qcow2

qemu-img create -q -u -f qcow2 -o cluster_size=4k,backing_file=absent.raw,backing_fmt=raw "$work/no-backing-file.qcow2" 1M
keep no-backing-file.qcow2

(cd "$work" && qemu-img create -q -f qcow2 -o cluster_size=4k,data_file=absent.raw no-data-file.qcow2 1M)
keep no-data-file.qcow2
