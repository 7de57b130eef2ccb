//! Directories that cannot be synced.

use rustix::io::Errno;

use super::*;
use crate::testing::TempDir;

#[test]
fn only_errors_of_the_storage_fail_the_sync_of_a_directory() {
    let refusals = [Errno::INVAL, Errno::OPNOTSUPP, Errno::NOTSUP, Errno::BADF, Errno::NOSYS, Errno::ACCESS];
    for errno in refusals {
        assert!(ignore_refusal(Err(errno.into())).is_ok(), "{errno}");
    }
    for errno in [Errno::IO, Errno::NOSPC, Errno::ROFS, Errno::NOENT] {
        assert!(ignore_refusal(Err(errno.into())).is_err(), "{errno}");
    }
    let dir = TempDir::new();
    sync_directory(dir.path()).unwrap();
    assert!(sync_directory(&dir.join("none")).is_err());
}
