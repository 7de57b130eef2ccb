//! Disks far larger than their content: cost is proportional to stored data.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::support::{TempDir, qcow2, raw, vdi, vhdx, vmdk, vpc};
use diskimage::{Comparison, Image, compare};

const SIZE: u64 = 64 << 40;

/// A place for files of 64 TiB, which many file systems do not take.
fn place(test: &str) -> Option<TempDir> {
    let tmpfs = Path::new("/dev/shm");
    let dir = if tmpfs.is_dir() { TempDir::under(tmpfs) } else { TempDir::new() };
    let takes = std::fs::File::create(dir.join("probe")).and_then(|file| file.set_len(SIZE));
    if let Err(error) = takes {
        eprintln!("SKIPPED: {test}: no place for a sparse file of 64 TiB: {error}");
        return None;
    }
    std::fs::remove_file(dir.join("probe")).unwrap();
    Some(dir)
}

fn stored(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// qcow2 to qcow2 to raw to qcow2; all of them small and the same.
fn round(dir: &TempDir, first: &Path, options: &str) -> Vec<PathBuf> {
    let [second, flat, third] = ["second.qcow2", "flat.raw", "third.qcow2"].map(|name| dir.join(name));
    let open = |path: &Path| Image::open(path).unwrap();
    qcow2(options).convert(&open(first), &second).unwrap();
    raw().convert(&open(&second), &flat).unwrap();
    qcow2(options).convert(&crate::support::open_raw(&flat), &third).unwrap();
    assert_eq!(std::fs::metadata(&flat).unwrap().len(), SIZE);
    let paths = vec![second, flat, third];
    for path in &paths {
        assert_eq!(compare(&open(first), &open(path)).unwrap(), Comparison::Identical, "{path:?}");
        assert!(stored(path) <= 8 << 20, "{path:?} takes {} bytes", stored(path));
    }
    paths
}

#[test]
fn an_empty_disk_of_64_tib() {
    let Some(dir) = place("an empty disk of 64 TiB") else { return };
    let first = dir.join("first.qcow2");
    // Clusters of 64 KiB need an L1 table of a MiB for this.
    for options in ["", "cluster_size=2M"] {
        qcow2(options).create(SIZE, &first).unwrap();
        assert_eq!(Image::open(&first).unwrap().virtual_size(), SIZE);
        let paths = round(&dir, &first, options);
        assert_eq!(stored(&paths[1]), 0);
    }
}

#[test]
fn one_cluster_at_the_end_of_64_tib() {
    let Some(dir) = place("one cluster at the end of 64 TiB") else { return };
    let source = dir.join("source.raw");
    let file = std::fs::File::create(&source).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(&[0xab; 65536], SIZE - 65536).unwrap();
    let first = dir.join("first.qcow2");
    let report = qcow2("").convert(&crate::support::open_raw(&source), &first).unwrap();
    assert_eq!(report.data_bytes, 65536);
    let paths = round(&dir, &first, "");
    let mut end = [0; 65537];
    Image::open(&paths[2]).unwrap().read_exact_at(&mut end, SIZE - 65537).unwrap();
    assert!(end[0] == 0 && end[1..].iter().all(|&byte| byte == 0xab));
    assert_eq!(stored(&paths[1]), 65536);
}

#[test]
fn a_vmdk_of_64_tib() {
    let Some(dir) = place("a VMDK of 64 TiB") else { return };
    let (source, stream, flat) = (dir.join("source.raw"), dir.join("stream.vmdk"), dir.join("flat.raw"));
    let file = std::fs::File::create(&source).unwrap();
    file.set_len(SIZE).unwrap();
    for stored_bytes in [0, 65536] {
        file.write_all_at(&vec![0xab; stored_bytes], SIZE - stored_bytes as u64).unwrap();
        let report = vmdk("subformat=streamOptimized").convert(&crate::support::open_raw(&source), &stream).unwrap();
        assert_eq!(report.data_bytes, stored_bytes as u64);
        // A directory of 8 MiB and one table.
        assert!(stored(&stream) <= 9 << 20, "{}", stored(&stream));
        raw().convert(&Image::open(&stream).unwrap(), &flat).unwrap();
        assert_eq!((std::fs::metadata(&flat).unwrap().len(), stored(&flat)), (SIZE, stored_bytes as u64));
        let compared = compare(&crate::support::open_raw(&source), &Image::open(&stream).unwrap()).unwrap();
        assert_eq!(compared, Comparison::Identical);
    }
    // This kind sets each table aside, twice.
    let sparse = dir.join("sparse.vmdk");
    vmdk("").create(SIZE, &sparse).unwrap();
    assert!(stored(&sparse) <= 17 << 20, "{}", stored(&sparse));
    let image = Image::open(&sparse).unwrap();
    assert_eq!(image.virtual_size(), SIZE);
    let mut end = [0xee; 512];
    image.read_exact_at(&mut end, SIZE - 512).unwrap();
    assert_eq!(end, [0; 512]);
    drop(image);
    assert_eq!(vmdk("").create(SIZE + 512, &sparse).unwrap_err().kind().as_str(), "limit");
}

#[test]
fn a_sparse_vmdk_of_64_tib_and_back() {
    const SIZE: u64 = 64 << 40;
    let Some(dir) = place("a sparse VMDK of 64 TiB") else { return };
    let (source, sparse, flat) = (dir.join("source.raw"), dir.join("sparse.vmdk"), dir.join("flat.raw"));
    let file = std::fs::File::create(&source).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(&[0xab; 65536], SIZE - 65536).unwrap();
    vmdk("").convert(&crate::support::open_raw(&source), &sparse).unwrap();
    assert!(stored(&sparse) <= 17 << 20, "{}", stored(&sparse));
    raw().convert(&Image::open(&sparse).unwrap(), &flat).unwrap();
    assert_eq!((std::fs::metadata(&flat).unwrap().len(), stored(&flat)), (SIZE, 65536));
}

#[test]
fn a_vdi_of_64_tib_and_back() {
    let Some(dir) = place("a VDI of 64 TiB") else { return };
    let (source, image, flat) = (dir.join("source.raw"), dir.join("image.vdi"), dir.join("flat.raw"));
    let file = std::fs::File::create(&source).unwrap();
    file.set_len(SIZE).unwrap();
    // The map alone has 2 MiB then.
    for list in ["block_size=128M", "block_size=128M,static=on"] {
        for stored_bytes in [0, 65536] {
            file.write_all_at(&vec![0xab; stored_bytes], SIZE - stored_bytes as u64).unwrap();
            vdi(list).convert(&crate::support::open_raw(&source), &image).unwrap();
            assert!(stored(&image) <= 4 << 20, "{list}: {}", stored(&image));
            raw().convert(&Image::open(&image).unwrap(), &flat).unwrap();
            assert_eq!((std::fs::metadata(&flat).unwrap().len(), stored(&flat)), (SIZE, stored_bytes as u64));
            let compared = compare(&crate::support::open_raw(&source), &Image::open(&image).unwrap()).unwrap();
            assert_eq!(compared, Comparison::Identical);
        }
        file.set_len(0).unwrap();
        file.set_len(SIZE).unwrap();
    }
    // With blocks of a MiB it has 256.
    vdi("").create(SIZE, &image).unwrap();
    assert_eq!(Image::open(&image).unwrap().virtual_size(), SIZE);
    assert_eq!(vdi("").create(1 << 50, &image).unwrap_err().kind().as_str(), "limit");
}

#[test]
fn a_vhdx_of_64_tib_and_back() {
    let Some(dir) = place("a VHDX of 64 TiB") else { return };
    let (source, image, flat) = (dir.join("source.raw"), dir.join("image.vhdx"), dir.join("flat.raw"));
    let file = std::fs::File::create(&source).unwrap();
    file.set_len(SIZE).unwrap();
    // A table of 16 MiB, one of 2 MiB, and one for sectors of 4 KiB.
    for (list, most) in [
        ("", 52 << 20),
        ("block_size=256M", 8 << 20),
        ("block_size=256M,logical_sector_size=4096,block_state_zero=off", 8 << 20),
        ("subformat=fixed,block_size=256M", 8 << 20),
    ] {
        for stored_bytes in [0, 65536] {
            file.write_all_at(&vec![0xab; stored_bytes], SIZE - stored_bytes as u64).unwrap();
            vhdx(list).convert(&crate::support::open_raw(&source), &image).unwrap();
            assert!(stored(&image) <= most, "{list}: {}", stored(&image));
            let opened = Image::open(&image).unwrap();
            assert_eq!((opened.format().name(), opened.virtual_size()), ("vhdx", SIZE), "{list}");
            raw().convert(&opened, &flat).unwrap();
            assert_eq!((std::fs::metadata(&flat).unwrap().len(), stored(&flat)), (SIZE, stored_bytes as u64), "{list}");
            let compared = compare(&crate::support::open_raw(&source), &opened).unwrap();
            assert_eq!(compared, Comparison::Identical, "{list}");
            let report = diskimage::OpenOptions::new().check(&image).unwrap();
            assert_eq!((report.corruptions, report.leaks), (0, 0), "{list}: {:?}", report.messages);
        }
        file.set_len(0).unwrap();
        file.set_len(SIZE).unwrap();
    }
    assert_eq!(vhdx("").create(SIZE + 512, &image).unwrap_err().kind().as_str(), "limit");
}

#[test]
fn a_vpc_of_2040_gib_and_a_fixed_one_of_64_tib() {
    let Some(dir) = place("a VHD of 64 TiB") else { return };
    let (source, image, flat) = (dir.join("source.raw"), dir.join("image.vhd"), dir.join("flat.raw"));
    for (size, list) in [(2040 << 30, ""), (SIZE - 4096, "subformat=fixed"), (32767 << 30, "preset=azure")] {
        let file = std::fs::File::create(&source).unwrap();
        file.set_len(size).unwrap();
        for stored_bytes in [0, 65536] {
            file.write_all_at(&vec![0xab; stored_bytes], size - stored_bytes as u64).unwrap();
            vpc(list).convert(&crate::support::open_raw(&source), &image).unwrap();
            // A table of 4 MiB.
            assert!(stored(&image) <= 5 << 20, "{list}: {}", stored(&image));
            let opened = Image::open(&image).unwrap();
            assert_eq!((opened.format().name(), opened.virtual_size()), ("vpc", size));
            raw().convert(&opened, &flat).unwrap();
            assert_eq!((std::fs::metadata(&flat).unwrap().len(), stored(&flat)), (size, stored_bytes as u64));
            let compared = compare(&crate::support::open_raw(&source), &opened).unwrap();
            assert_eq!(compared, Comparison::Identical);
        }
    }
    assert_eq!(vpc("").create((2040 << 30) + 512, &image).unwrap_err().kind().as_str(), "limit");
    assert_eq!(vpc("preset=azure").create((32767 << 30) + 1, &image).unwrap_err().kind().as_str(), "option");
}
