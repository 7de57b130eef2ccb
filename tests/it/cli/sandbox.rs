//! `--sandbox require`: every command that has a sandbox works in it. What it refuses is tested beside the code.

use std::fs;
use std::os::unix::fs::symlink;

use super::{fail, imgconv, succeed};
use crate::support::TempDir;
use crate::support::pattern::Pattern;

/// Whether this system has a sandbox.
fn is_there(dir: &TempDir) -> bool {
    let output = imgconv(dir, &["hash", "--sandbox", "require", "-f", "raw", "source.raw"]);
    let message = String::from_utf8_lossy(&output.stderr);
    if message.contains("--sandbox require: Landlock") || message.contains("not supported on this system") {
        eprintln!("SKIPPED: {message}");
        return false;
    }
    assert!(output.status.success(), "{message}");
    true
}

fn directory() -> TempDir {
    let dir = TempDir::new();
    dir.file("source.raw", &Pattern::Islands.make(1 << 20));
    dir.file("secret", b"secret");
    dir
}

#[test]
fn commands_work_in_the_sandbox() {
    let dir = directory();
    if !is_there(&dir) {
        return;
    }
    for name in ["elsewhere", "data", "spool"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    symlink("elsewhere/linked.qcow2", dir.join("link.qcow2")).unwrap();
    let base = dir.join("source.raw");
    let commands = [
        "convert -f raw source.raw disk.qcow2",
        "convert -f raw source.raw disk.qcow2",
        "convert -f raw --in-place source.raw disk.qcow2",
        "convert -f raw -n source.raw disk.qcow2",
        "convert -f raw source.raw link.qcow2",
        "convert -f raw source.raw elsewhere/other.vmdk -o subformat=twoGbMaxExtentSparse",
        "convert -f raw -o data_file=data/disk source.raw with-data.qcow2",
        "convert -f raw -B source.raw -F raw source.raw overlay.qcow2",
        "convert -f raw -O qcow2 -o backing_file=source.raw,backing_fmt=raw source.raw overlay2.qcow2",
        "convert --references beside overlay.qcow2 whole.qcow2",
        "convert --references any with-data.qcow2 whole.raw",
        "convert --references beside elsewhere/other.vmdk -O raw -m 4 --verify --hash sha256 --hash-file md5 back.raw",
        "convert --image-opts driver=qcow2,file.filename=disk.qcow2 opts.raw",
        "convert -f raw -n --target-image-opts source.raw driver=qcow2,file.filename=disk.qcow2",
        "convert -f raw -T none -t none source.raw direct.qcow2",
        "convert -O luks -o iter-time=10 --secret-file secret disk.qcow2 volume.luks",
        "convert --secret-file secret volume.luks plain.qcow2",
        "convert --object secret,id=a,file=secret volume.luks plain.qcow2",
        "convert -f raw source.raw disk.raw.gz",
        "convert --spool-dir spool disk.raw.gz unzipped.vdi",
        "convert -O ova disk.qcow2 vm.ova",
        "convert -O ovf disk.qcow2 vm/",
        "convert vm.ova -O qcow2 disks/",
        "convert --references beside vm -O raw from-ovf.raw",
        "convert -O gcp disk.qcow2 image.tar.gz",
        "sparsify disk.qcow2 sparse.qcow2",
        "info disk.qcow2",
        "info --guest disk.qcow2",
        "info --backing-chain --references beside overlay.qcow2",
        "info disk.raw.gz",
        "info vm.ova",
        "info --references beside vm",
        "check disk.qcow2",
        "compare disk.qcow2 source.raw",
        "compare --references beside overlay.qcow2 disk.raw.gz",
        "map --output json disk.qcow2",
        "measure -O qcow2 disk.qcow2",
        "measure -O qcow2 --size 1G",
        "inspect disk.qcow2",
        "snapshot -l disk.qcow2",
        "hash disk.qcow2",
        "hash --secret-file secret volume.luks",
    ];
    for command in commands {
        let mut args = vec!["--sandbox", "require"];
        args.extend(command.split(' '));
        let output = imgconv(&dir, &args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !error.contains("denied"), "{command}: {error}");
    }
    assert!(dir.join("elsewhere/linked.qcow2").is_file());
    for name in ["whole.qcow2", "whole.raw", "back.raw", "from-ovf.raw", "unzipped.vdi"] {
        succeed(&dir, &["compare", "-q", "-f", "raw", base.to_str().unwrap(), dir.join(name).to_str().unwrap()]);
    }
}

#[test]
fn the_sandbox_can_be_turned_off_but_not_required_of_every_command() {
    let dir = directory();
    for when in ["auto", "off"] {
        succeed(&dir, &["info", "--sandbox", when, "-f", "raw", "source.raw"]);
    }
    succeed(&dir, &["create", "-q", "-f", "qcow2", "disk.qcow2", "1M"]);
    for args in [&["resize", "disk.qcow2", "2M"][..], &["snapshot", "-c", "a", "disk.qcow2"], &["formats"]] {
        let args: Vec<_> = args.iter().copied().chain(["--sandbox", "require"]).collect();
        let message = fail(&dir, 1, &args);
        assert!(message.contains("--sandbox require: this command has no sandbox"), "{message}");
    }
}
