#!/bin/sh
# Recreates the seeds of the fuzz targets with qemu-img, qemu-io, cryptsetup, lvm2, mtools and mkfs: the smallest image of each kind. Those of the target
# `open` are in a directory for each format, and in `any`.
set -eu
cd "$(dirname "$0")"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
rm -rf guest_*
rm -rf any bochs cloop compressed deflate dmg inflate luks nbd_client nbd_server package parallels qcow qcow2 qed raw vdi vhdx vmdk vpc roundtrip
mkdir any bochs cloop compressed deflate dmg inflate luks nbd_client nbd_server package parallels qcow qcow2 qed raw vdi vhdx vmdk vpc roundtrip

# Guest bytes: text, zeros, a repeated byte.
{ seq 1 128; head -c 1024 /dev/zero; yes x | head -c 1024; } | head -c 2560 >"$tmp/disk"

python3 nbd.py

gzip -nc "$tmp/disk" >compressed/gzip
{ gzip -nc "$tmp/disk"; gzip -nc1 "$tmp/disk"; } >compressed/gzip-joined
bzip2 -c1 "$tmp/disk" >compressed/bzip2
xz -c0 "$tmp/disk" >compressed/xz
xz -c0 -T2 --block-size=1000 "$tmp/disk" >compressed/xz-blocks
xz -c0 --check=sha256 --x86 --lzma2=preset=0 "$tmp/disk" >compressed/xz-filter
{ xz -c0 "$tmp/disk"; head -c 8 /dev/zero; xz -c0 --check=crc32 "$tmp/disk"; } >compressed/xz-joined
zstd -qc1 "$tmp/disk" >compressed/zstd
{ zstd -qc1 "$tmp/disk"; pzstd -qc "$tmp/disk"; } >compressed/zstd-joined

image() { # name, arguments of qemu-img convert
    name=$1
    shift
    qemu-img convert -f raw -O qcow2 "$@" "$tmp/disk" "qcow2/$name"
}
image version-2 -o compat=0.10,cluster_size=512
image version-3 -o cluster_size=512
image zlib -c -o cluster_size=512
image zstd -c -o cluster_size=512,compression_type=zstd
image lazy-refcounts -o cluster_size=512,lazy_refcounts=on
image refcount-bits-1 -o cluster_size=512,refcount_bits=1
image snapshot -o cluster_size=512
qemu-img snapshot -c first qcow2/snapshot
qemu-io -f qcow2 -c 'write -P 7 0 512' qcow2/snapshot >/dev/null
image bitmap -o cluster_size=512
qemu-img bitmap --add -g 512 qcow2/bitmap dirty
image zeros -o cluster_size=512
qemu-io -f qcow2 -c 'write -z 0 512' -c 'write -z -u 512 512' qcow2/zeros >/dev/null
image extended-l2 -o cluster_size=16k,extended_l2=on
qemu-io -f qcow2 -c 'write -z 0 512' qcow2/extended-l2 >/dev/null
qemu-img create -q -f qcow2 -u -b base.raw -F raw -o cluster_size=512 qcow2/backing 2560
(cd "$tmp" && qemu-img create -q -f qcow2 -o cluster_size=512,data_file=data.raw image 2560)
cp "$tmp/image" qcow2/data-file

# LUKS volumes of the passphrase "123456". The payload of version 1 is moved to the end of the first key slot.
luks() { # name, arguments of cryptsetup luksFormat
    name=$1
    shift
    head -c 1M /dev/zero >"$tmp/$name"
    printf 123456 | cryptsetup luksFormat --batch-mode --key-file=- --key-size=128 "$@" "$tmp/$name"
}
luks version-1 --type=luks1 --cipher=aes-cbc-essiv:sha256 --pbkdf-force-iterations=1000
printf '\0\0\0\210' | dd of="$tmp/version-1" bs=1 seek=104 conv=notrunc status=none
head -c $(((136 + 5) * 512)) "$tmp/version-1" >luks/version-1
for kdf in argon2id pbkdf2; do
    cost='--pbkdf-force-iterations=4 --pbkdf-memory=64 --pbkdf-parallel=1'
    [ $kdf != pbkdf2 ] || cost=--pbkdf-force-iterations=1000
    luks version-2-$kdf --type=luks2 --cipher=aes-cbc-essiv:sha256 --pbkdf=$kdf $cost \
        --luks2-metadata-size=16k --luks2-keyslots-size=128k --offset=320
    head -c $(((320 + 8) * 512)) "$tmp/version-2-$kdf" >luks/version-2-$kdf
done

# VMDKs of five sectors, in grains of one and tables of four. What others write begins with 64 KiB of zeros at least.
le() { # bytes, number
    for shift in 0 8 16 24 32 40 48 56; do
        [ $shift -lt $(($1 * 8)) ] || break
        printf "\\$(printf %03o $(($2 >> shift & 255)))"
    done
}
sector() { # name: fills the last one
    truncate -s %512 "vmdk/$1"
}
header() { # version, flags, sectors of the descriptor, redundant directory, directory, algorithm
    printf KDMV && le 4 "$1" && le 4 "$2" && le 8 5 && le 8 1 && le 8 $(($3 ? 1 : 0)) && le 8 "$3" && le 4 4
    le 8 "$4" && le 8 "$5" && le 8 1 && printf '\0\n \r\n' && le 2 "$6" && head -c 433 /dev/zero
}
table() { # name, entries
    name=$1
    shift
    for entry; do le 4 "$entry"; done >>"vmdk/$name"
    sector "$name"
}
descriptor() { # createType, extents
    printf 'version=1\nCID=00000001\nparentCID=ffffffff\ncreateType="%s"\n%s\n' "$1" "$2"
    printf 'ddb.adapterType="lsilogic"\nddb.encoding="UTF-8"\n'
}
grains() { # name, numbers of sectors: deflated, behind markers
    name=$1
    shift
    for grain; do
        dd if="$tmp/disk" skip="$grain" count=1 conv=sync status=none | gzip -nc | tail -c +11 | head -c -8 >"$tmp/payload"
        { le 8 "$grain" && le 4 "$(stat -c %s "$tmp/payload")" && cat "$tmp/payload"; } >>"vmdk/$name"
        sector "$name"
    done
}
header 1 3 1 0 2 0 >vmdk/empty
descriptor monolithicSparse 'RW 5 SPARSE "empty"' >>vmdk/empty
sector empty
table empty 0 0
header 2 7 0 1 4 0 >vmdk/sparse
for copy in 0 3; do
    table sparse $((copy + 2)) $((copy + 3))
    table sparse 7 8 1 0
    table sparse 9
done
dd if="$tmp/disk" count=3 conv=sync status=none >>vmdk/sparse
header 3 $((0x30001)) 1 0 -1 1 >vmdk/stream
descriptor streamOptimized 'RW 5 SPARSE "stream"' >>vmdk/stream
sector stream
grains stream 0 1
table stream 1 0 0 1
table stream 2 3 0 0
grains stream 4
table stream 1 0 0 1
table stream 6
table stream 1 0 0 2
table stream 5 8
table stream 1 0 0 3
header 3 $((0x30001)) 1 0 10 1 >>vmdk/stream
truncate -s +512 vmdk/stream
header 3 $((0x30001)) 0 0 1 1 >vmdk/tables-in-front
table tables-in-front 2 3
table tables-in-front 4 0 0 0
table tables-in-front 5
grains tables-in-front 0 4
descriptor custom 'RW 3 ZERO
RDONLY 2 ZERO' >vmdk/zeros
descriptor monolithicFlat 'RW 5 FLAT "disk-flat.vmdk" 0' >vmdk/flat
{ printf COWD && le 4 1 && le 4 3 && le 4 5 && le 4 1 && le 4 4 && le 4 1 && head -c 2020 /dev/zero; } >vmdk/esx
table esx 5
table esx 6 7 0 0 8
dd if="$tmp/disk" count=3 conv=sync status=none >>vmdk/esx

# VHDs of five sectors, in blocks of two. What others write has blocks of 2 MiB.
be() { # bytes, number
    for shift in 56 48 40 32 24 16 8 0; do
        [ $shift -lt $(($1 * 8)) ] || continue
        printf "\\$(printf %03o $(($2 >> shift & 255)))"
    done
}
sealed() { # offset of the checksum in what comes on the standard input
    cat >"$tmp/part"
    sum=$(od -An -v -tu1 "$tmp/part" | awk '{ for (i = 1; i <= NF; i++) sum += $i } END { printf "%.0f", 4294967295 - sum }')
    head -c "$1" "$tmp/part" && be 4 "$sum" && tail -c +$(($1 + 5)) "$tmp/part"
}
footer() { # kind, creator
    { printf conectix && be 4 2 && be 4 65536 && be 8 $(($1 == 2 ? -1 : 512)) && be 4 1 && printf "$2" && be 4 655360
    printf Wi2k && be 8 2560 && be 8 2560 && be 4 0 && be 4 "$1" && be 4 0 && be 8 1 && be 8 2
    head -c 428 /dev/zero; } | sealed 64
}
dynamic() { # kind
    footer "$1" 'win '
    { printf cxsparse && be 8 -1 && be 8 1536 && be 4 65536 && be 4 3 && be 4 1024 && be 4 0 && be 8 3 && be 8 4 && be 8 0
    printf '\0b\0a\0s\0e' && head -c 504 /dev/zero
    printf W2ru && be 4 512 && be 4 8 && be 4 0 && be 8 1600 && printf MacX && be 4 512 && be 4 16 && be 4 0 && be 8 1616
    head -c 400 /dev/zero; } | sealed 36
    be 4 4 && be 4 -1 && be 4 7 && head -c 52 /dev/zero && printf 'b\0a\0s\0e\0\0\0\0\0\0\0\0\0file:///a%%20base'
    head -c 416 /dev/zero
    for sectors in 0 4; do
        printf '\240' && head -c 511 /dev/zero
        dd if="$tmp/disk" skip="$sectors" count=2 conv=sync status=none
    done
    head -c 512 /dev/zero
}
{ dd if="$tmp/disk" conv=sync status=none && footer 2 'vpc '; } >vpc/fixed
head -c 3071 vpc/fixed >vpc/old-footer
{ dynamic 3 && footer 3 'win '; } >vpc/dynamic
dynamic 3 >vpc/without-footer
{ dynamic 4 && footer 4 'win '; } >vpc/differencing

# VDIs of five sectors, in blocks of one: block 2 is free, block 3 is zeros.
vdi() { # kind, bytes before each block
    { echo '<<< seed >>>' && head -c 51 /dev/zero && le 4 $((0xbeda107f)) && le 4 65537 && le 4 400 && le 4 "$1" && le 4 0
    head -c 256 /dev/zero && le 4 512 && le 4 1024 && le 8 0 && le 4 0 && le 4 512 && le 4 0 && le 8 2500 && le 4 512
    le 4 "$2" && le 4 5 && le 4 3 && le 8 1 && le 8 2 && le 8 3 && le 8 4 && le 8 $(($1 > 2)) && le 8 0 && le 8 0 && le 8 0
    le 8 0 && le 4 0 && le 4 512 && head -c 40 /dev/zero
    le 4 1 && le 4 0 && le 4 -1 && le 4 -2 && le 4 2 && head -c 492 /dev/zero
    for block in 1 0 4; do
        head -c "$2" /dev/zero && dd if="$tmp/disk" skip=$block count=1 conv=sync status=none
    done; }
}
vdi 1 0 >vdi/dynamic
vdi 2 0 >vdi/static
vdi 1 12 >vdi/block-extra
vdi 4 0 >vdi/differencing

# VHDX: a number that chooses an image, and changes to that (tests/fuzzing/vhdx.rs): an offset, a length, and so many bytes.
printf '\0' >vhdx/dynamic
printf '\1' >vhdx/sectors-of-4k
printf '\2' >vhdx/differencing
printf '\14' >vhdx/log
printf '\5' >vhdx/log-sectors-of-4k
printf '\16' >vhdx/differencing-log
printf '\11' >vhdx/small-sectors-of-4k
change() { # offset, number of eight bytes
    le 4 "$1" && le 1 8 && le 8 "$2"
}
{ printf '\0' && change $((0x300000)) $((0x500006)) && change $((0x300008)) $((0x400006)) && change $((0x300010)) 1; } >vhdx/other-order
{ printf '\10' && change $((0x10008)) 9 && change $((0x10030)) 0; } >vhdx/higher-sequence-number
{ printf '\0' && change $((0x30010)) 1 && change $((0x40010)) 1; } >vhdx/unknown-region
{ printf '\4' && change $((0x101010)) 9; } >vhdx/torn-log
{ printf '\0' && le 4 $((0x4ff000)) && le 1 0; } >vhdx/cut-off

# Packages: a number that chooses what follows (tests/fuzzing/packages.rs): an archive, a descriptor or a manifest.
packed() { # name, options of tar
    name=$1
    shift
    { printf '\0' && tar -C "$tmp" -b 1 --mtime=@0 --owner=0 --group=0 --mode=644 --numeric-owner -cf - "$@" disk.img; } >"package/$name"
}
{ head -c 512 "$tmp/disk" && head -c 65536 /dev/zero && head -c 512 "$tmp/disk"; } | dd of="$tmp/disk.img" conv=sparse bs=512 status=none
cp --sparse=always "$tmp/disk.img" "$tmp/sparse.img" && mv "$tmp/sparse.img" "$tmp/disk.img"
packed sparse-old -S --format=oldgnu
packed sparse-0.0 -S --format=posix --sparse-version=0.0 --pax-option=delete=?time
packed sparse-0.1 -S --format=posix --sparse-version=0.1 --pax-option=delete=?time
packed sparse-1.0 -S --format=posix --sparse-version=1.0 --pax-option=delete=?time
head -c 1024 "$tmp/disk" >"$tmp/disk.img"
packed ustar --format=ustar
packed v7 --format=v7
packed long-name --format=gnu --transform="s,^,$(printf '%0120d' 0)/,"
envelope='<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"><References><File href="a.img" id="f" size="1024"/></References>
<DiskSection><Disk capacity="1" capacityAllocationUnits="byte * 2^10" diskId="d" fileRef="f"/></DiskSection><VirtualHardwareSection>
<Item><HostResource>ovf:/disk/d</HostResource><ResourceType>17</ResourceType></Item></VirtualHardwareSection></Envelope>'
printf '\1%s' "$envelope" >package/descriptor
printf '\2%s' "$envelope" >package/descriptor-beside
printf '\3SHA1 (a.img) = %040d\r\nSHA256(vm.ovf)= %064d\n' 0 0 >package/manifest

# QED, qcow, Parallels.
old() { # format, name, arguments of qemu-img convert
    format=$1 name=$2
    shift 2
    qemu-img convert -f raw -O "$format" "$@" "$tmp/disk" "$format/$name"
}
old qed plain -o cluster_size=4k,table_size=2
qemu-img create -q -f qed -u -b base.raw -F raw -o cluster_size=4k,table_size=2 qed/backing 9000
cp qed/plain qed/zeros
qemu-io -f qed -c 'write -z 0 2560' qed/zeros >/dev/null
old qcow plain
# qemu-img fails after it has written all of it.
old qcow compressed -c || true
qemu-img create -q -f qcow -u -b base.raw -F raw qcow/backing 2560
old parallels clusters -o cluster_size=512
old parallels odd -o cluster_size=1536
{ printf WithoutFreeSpace && le 4 2 && le 4 16 && le 4 1 && le 4 3 && le 4 2 && le 8 5 && le 4 0 && le 4 0 && le 4 0 && le 8 0
le 4 1 && le 4 4 && head -c 440 /dev/zero && cat "$tmp/disk"; } >parallels/sectors
{ printf WithouFreSpacExt && le 4 2 && le 4 16 && le 4 1 && le 4 1 && le 4 5 && le 8 5 && le 4 $((0x312e3276)) && le 4 1 && le 4 0 && le 8 1
for entry in 2 0 3 0 4; do le 4 $entry; done && head -c 428 /dev/zero
le 4 $((0x23dcea87)) && le 4 $((0xab234cef)) && head -c 16 /dev/zero && le 8 $((0x20385fae252cb34a)) && le 8 1 && le 8 40
le 8 5 && head -c 16 /dev/zero && le 4 1 && le 4 1 && le 8 1 && head -c 424 /dev/zero && head -c 1536 "$tmp/disk"; } >parallels/bitmap

# Bochs and cloop, of five sectors.
bochs() { # version, the rest of the header before the size
    printf 'Bochs Virtual HD Image' && head -c 10 /dev/zero && printf 'Redolog' && head -c 9 /dev/zero && printf 'Growing' && head -c 9 /dev/zero
    le 4 $(($1 << 16)) && le 4 128 && le 4 3 && le 4 1 && le 4 1024 && head -c "$2" /dev/zero && le 8 2560
    head -c $((36 - $2)) /dev/zero && le 4 1 && le 4 -1 && le 4 0
    le 1 1 && head -c 511 /dev/zero && head -c 1024 "$tmp/disk" && le 1 3 && head -c 511 /dev/zero && head -c 1024 "$tmp/disk"
}
bochs 1 0 >bochs/version-1
bochs 2 4 >bochs/version-2
{ printf '#!/bin/sh\n#V2.0 Format\n' && head -c 105 /dev/zero && printf '\0\0\2\0\0\0\0\3'
at=168
for sector in 0 1 4; do
    printf '\0\0\0\0\0\0' && printf "\\$(printf %03o $((at >> 8)))\\$(printf %03o $((at & 255)))"
    dd if="$tmp/disk" skip="$sector" count=1 conv=sync status=none | python3 -c 'import sys, zlib; sys.stdout.buffer.write(zlib.compress(sys.stdin.buffer.read()))' >"$tmp/payload.$sector"
    at=$((at + $(stat -c %s "$tmp/payload.$sector")))
done
printf '\0\0\0\0\0\0' && printf "\\$(printf %03o $((at >> 8)))\\$(printf %03o $((at & 255)))"
cat "$tmp/payload.0" "$tmp/payload.1" "$tmp/payload.4"; } >cloop/blocks

# dmg, of five sectors: a run of each codec that Python has, raw sectors and zeros; and one without block tables.
python3 - "$tmp/disk" <<'END'
import base64, bz2, lzma, struct, sys, zlib
disk = open(sys.argv[1], "rb").read().ljust(2560, b"\0")

def image(name, kinds, in_resources=False):
    data, runs = b"", b""
    for sector, kind in enumerate(kinds):
        piece = disk[512 * sector:512 * sector + 512]
        # Literals of ADC; a block of LZFSE as it is.
        payload = {0: b"", 1: piece, 4: b"".join(b"\x9f" + piece[at:at + 32] for at in range(0, 512, 32)), 5: zlib.compress(piece, 9),
                   6: bz2.compress(piece, 1), 7: b"bvx-" + struct.pack("<I", 512) + piece + b"bvx$",
                   8: lzma.compress(piece, check=lzma.CHECK_CRC32)}[kind]
        runs += struct.pack(">IIQQQQ", kind | 0x80000000 if kind > 2 else kind, 0, sector, 1, len(data), len(payload))
        data += payload
    runs += struct.pack(">IIQQQQ", 0xffffffff, 0, len(kinds), 0, len(data), 0)
    table = struct.pack(">4sIQQQII", b"mish", 1, 0, len(kinds), 0, 1, 0) + bytes(160) + struct.pack(">I", len(runs) // 40) + runs
    plist = (b"<plist><dict><key>resource-fork</key><dict><key>blkx</key><array><dict><key>Data</key><data>" + base64.b64encode(table)
             + b"</data></dict></array></dict></dict></plist>")
    resources = struct.pack(">IIII", 16, 20 + len(table), 4 + len(table), 50) + struct.pack(">I", len(table)) + table
    resources += bytes(24) + struct.pack(">HHH4sHHHHIHH", 28, 50, 0, b"blkx", 0, 10, 0, 0xffff, 0, 0, 0)
    if in_resources:
        plist = b""
    else:
        resources = b""
    if not kinds:
        data, plist = disk, b""
    trailer = struct.pack(">4sIIIQQQQQII", b"koly", 4, 512, 1, 0, 0, len(data), len(data), len(resources), 1, 1) + bytes(152)
    trailer += struct.pack(">QQ", len(data) if plist else 0, len(plist)) + bytes(256) + struct.pack(">IQ", 1, 5) + bytes(12)
    open("dmg/" + name, "wb").write(data + resources + plist + trailer)

image("adc", [4, 4, 1, 0, 4])
image("zlib", [5, 5, 1, 0, 5])
image("bzip2", [6, 0, 1, 0, 6])
image("lzfse", [7, 7, 1, 0, 7])
image("xz", [8, 0, 1, 0, 8])
image("resources", [5, 5, 1, 0, 5], True)
image("without-tables", [])
END

cp "$tmp/disk" raw/text
printf '\125\252' | dd of=raw/boot-sector bs=1 seek=510 status=none
cp qcow2/version-3 qcow2/zstd qcow2/snapshot raw/boot-sector vmdk/stream any
cp vpc/dynamic any/vpc
cp vdi/dynamic any/vdi
cp qed/plain any/qed
cp qcow/compressed any/qcow
cp parallels/sectors any/parallels
cp bochs/version-1 any/bochs
cp cloop/blocks any/cloop
cp dmg/zlib any/dmg

# Level and wrapper, window and copies (tests/fuzzing/deflate.rs), and data.
{ printf '\005\006' && cat "$tmp/disk"; } >deflate/deflate
{ printf '\211\003' && seq 1 300; } >deflate/zlib
{ printf '\001\055' && seq 1 60; } >deflate/copies

# Wrapper, length of the output (tests/fuzzing/inflate.rs), and a stream: blocks of their own codes, of the fixed ones, and stored.
{ printf '\000\104\004' && seq 1 300 | gzip -n | tail -c +11; } >inflate/dynamic
{ printf '\000\006\000' && echo abcab | gzip -n | tail -c +11; } >inflate/fixed
{ printf '\001\011\000\170\234\001\011\000\366\377Wikipedia\021\346\003\230'; } >inflate/zlib

# 16 bytes choose format, settings and options (tests/fuzzing/roundtrip.rs); 200 leaves an option at its default, 255 a size.
# Then runs of guest bytes: a kind, a length of two bytes, and for kind 3 the bytes.
choices() { # format, settings, options
    for number; do printf "\\$(printf %03o "$number")"; done
    for _ in $(seq $((16 - $#))); do printf '\310'; done
}
runs='\1\0\020\1\0\020\2\0\020'
with_zeros='\3\6\0abcdef\0\0\200\1\7\1'
{ choices 0 2 200 0 && printf "$runs"; } >roundtrip/plain
{ choices 0 11 200 3 200 200 200 200 0 && printf "$runs"; } >roundtrip/zlib
{ choices 0 11 200 3 200 200 200 200 1 && printf "$runs"; } >roundtrip/zstd
{ choices 0 4 200 5 200 0 && printf "$with_zeros"; } >roundtrip/extended-l2
{ choices 0 6 0 1 200 200 200 3 && printf "$runs"; } >roundtrip/preallocated
{ choices 1 4 0 && printf "$runs"; } >roundtrip/vmdk
{ choices 1 2 1 && printf "$runs"; } >roundtrip/vmdk-stream
{ choices 1 4 1 1 7 200 200 200 2 8 && printf "$with_zeros"; } >roundtrip/vmdk-level
{ choices 2 4 0 && printf "$runs"; } >roundtrip/vpc
{ choices 2 2 1 1 255 && printf "$with_zeros"; } >roundtrip/vpc-fixed
{ choices 3 4 0 0 && printf "$runs"; } >roundtrip/vhdx
{ choices 3 2 1 1 1 1 && printf "$with_zeros"; } >roundtrip/vhdx-fixed
{ choices 4 4 1 0 && printf "$runs"; } >roundtrip/vdi
{ choices 4 2 0 1 && printf "$with_zeros"; } >roundtrip/vdi-static
{ choices 5 4 0 && printf "$runs"; } >roundtrip/qcow
{ choices 5 11 3 0 15 && printf "$with_zeros"; } >roundtrip/qcow-compressed
{ choices 6 4 0 0 && printf "$runs"; } >roundtrip/qed
{ choices 7 2 0 && printf "$with_zeros"; } >roundtrip/parallels
{ choices 8 2 2 && printf "$runs"; } >roundtrip/raw

# Guests: 0 and a disk, or the number of one of these disks, in the order of their names, and the position of a bit that is changed (tests/fuzzing/guest.rs).
# Each has a file in a directory, as far as that is easy, and is as small as the programs allow. The one of LVM needs a loop device.
guest() { # name
    mkdir "guest_$1"
    python3 guest.py "$tmp/$1" >"guest_$1/disk"
    count=$((${count:-0} + 1))
    { le 1 $count && le 4 2186; } >"guest_$1/bit"
}
mkdir "$tmp/tree" "$tmp/tree/d" && seq 1 2000 >"$tmp/tree/d/f"
size() { truncate -s "$2" "$tmp/$1"; }
size btrfs 16M && mkfs.btrfs -q -f -M -n 4096 --rootdir "$tmp/tree" "$tmp/btrfs" && guest btrfs
size exfat 4M && mkfs.exfat -c 512 "$tmp/exfat" >/dev/null && guest exfat
size ext2 256K && mke2fs -q -F -t ext2 -b 1024 -N 16 -d "$tmp/tree" "$tmp/ext2" && guest ext2
size ext4 512K && mke2fs -q -F -t ext4 -b 1024 -N 16 -O ^has_journal,^resize_inode -d "$tmp/tree" "$tmp/ext4" && guest ext4
fat() { # name, size, arguments of mkfs.vfat
    name=$1
    size "$1" "$2"
    shift 2
    mkfs.vfat "$@" "$tmp/$name" >/dev/null
    mmd -i "$tmp/$name" ::d && mcopy -i "$tmp/$name" "$tmp/tree/d/f" ::d/f
    guest "$name"
}
fat fat12 64K -F 12 -s 1
fat fat16 3M -F 16 -s 1
fat fat32 34M -F 32 -s 1
lvm() { # arguments
    program=$1
    shift
    $program --devices "$loop" --driverloaded n "$@" >/dev/null 2>&1
}
size lvm 2M && loop=$(losetup -f --show "$tmp/lvm")
lvm pvcreate --metadatasize 64k --dataalignment 64k "$loop"
lvm vgcreate -An -s 64k vg "$loop"
lvm lvcreate -An -an -Zn -y -n root -L 512k vg
lvm lvcreate -An -an -Zn -y -n swap -L 64k vg
lvm lvextend -An -L +64k vg/root
start=$(pvs --devices "$loop" --driverloaded n --noheadings --units b --nosuffix -o pe_start "$loop" 2>/dev/null)
losetup -d "$loop"
size root 576K && mke2fs -q -F -t ext2 -b 1024 -N 16 -d "$tmp/tree" "$tmp/root"
size swap 64K && mkswap "$tmp/swap" >/dev/null
extents() { # file, skipped, where, count
    dd if="$tmp/$1" of="$tmp/lvm" bs=64k skip="$2" seek=$((start / 65536 + $3)) count="$4" conv=notrunc status=none
}
extents root 0 0 8 && extents swap 0 8 1 && extents root 8 9 1 && guest lvm
size ntfs 2M && mkfs.ntfs -q -F -f -c 512 "$tmp/ntfs" 2>/dev/null && ntfscp -q "$tmp/ntfs" "$tmp/tree/d/f" f && guest ntfs
guest swap
printf '/\n0 0\nd--755 0 0\nf ---644 0 0 %s\n$\n' "$tmp/tree/d/f" >"$tmp/prototype"
xfs() { # name, arguments
    name=$1
    shift
    # As its own tests have it, it makes file systems that are smaller than is useful.
    size "$name" 16M && TEST_DIR=1 TEST_DEV=1 QA_CHECK_FS=1 mkfs.xfs -q -f -d agcount=1 -p "$tmp/prototype" "$@" "$tmp/$name" 2>/dev/null
    guest "$name"
}
xfs xfs4 -m crc=0
xfs xfs5 -m reflink=0
