//! The core over the raw driver; the integration tests have the other formats.

use std::sync::Arc;

use crate::disk::Disk;
use crate::format::Format;
use crate::image::OpenOptions;
use crate::io::MemFile;

fn raw(bytes: Vec<u8>) -> (Arc<MemFile>, Disk) {
    let file = Arc::new(MemFile::from(bytes));
    let disk = OpenOptions::new().format(Format::RAW).open_disk_in(file.clone()).unwrap();
    (file, disk)
}

#[test]
fn a_raw_disk_is_written_where_it_is() {
    let (file, disk) = raw((0..=255).cycle().take(2000).collect());
    let mut expected = file.to_vec();
    disk.write_all_at(b"some text", 1000).unwrap();
    expected[1000..1009].copy_from_slice(b"some text");
    disk.write_zeros(100..700).unwrap();
    expected[100..700].fill(0);
    disk.discard(1500..2000).unwrap();
    expected[1500..2000].fill(0);
    disk.flush().unwrap();
    assert!(file.to_vec() == expected);
    disk.resize(2500).unwrap();
    disk.write_all_at(&[9], 2499).unwrap();
    expected.resize(2499, 0);
    expected.push(9);
    assert!(file.to_vec() == expected);
    disk.resize(10).unwrap();
    disk.close().unwrap();
    assert!(file.to_vec() == expected[..10]);
}

#[test]
fn requests_beyond_the_end_are_refused() {
    let (file, disk) = raw(vec![7; 1000]);
    for offset in [1, 1000, u64::MAX] {
        assert_eq!(disk.write_all_at(&[0; 1000], offset).unwrap_err().kind().as_str(), "usage");
        assert_eq!(disk.read_exact_at(&mut [0; 1000], offset).unwrap_err().kind().as_str(), "usage");
        assert_eq!(disk.write_zeros(offset..u64::MAX).unwrap_err().kind().as_str(), "usage");
        assert_eq!(disk.discard(offset..u64::MAX).unwrap_err().kind().as_str(), "usage");
    }
    #[expect(clippy::reversed_empty_ranges)]
    disk.write_zeros(1000..999).unwrap();
    disk.write_all_at(&[], 1000).unwrap();
    assert_eq!(file.to_vec(), [7; 1000]);
}
