//! Disks that clients of others write through our server.

use super::*;
use crate::cli::imgconv;
use crate::support::tools::check_with_qemu_as;

const SIZE: usize = 10 << 20;

/// The extension of each format that can be written in place, and its name in qemu-img.
const FORMATS: [(&str, &str); 7] = [
    ("qcow2", "qcow2"),
    ("raw", "raw"),
    ("vdi", "vdi"),
    ("vhdx", "vhdx"),
    ("vhd", "vpc"),
    ("vmdk", "vmdk"),
    ("qed", "qed"),
];

#[test]
fn clients_of_others_write_our_export() {
    needs_qemu!("clients_of_others_write_our_export");
    needs!("clients_of_others_write_our_export", "nbdinfo", "nbdcopy");
    for (extension, format) in FORMATS {
        let (dir, mut expected) = (TempDir::new(), guest());
        let source = dir.file("source.img", &expected);
        let name = format!("disk.{extension}");
        let image = dir.join(&name);
        succeed(&dir, &["create", "-q", "-f", format, &name, &SIZE.to_string()]);
        let (mut server, uri) = serve(&dir, &["--rw", "--socket", "s", "--once", &name]);
        let info: serde_json::Value = serde_json::from_slice(&run("nbdinfo", &["--json", &uri])).unwrap();
        let export = &info["exports"][0];
        for flag in ["can_fua", "can_flush", "can_trim", "can_zero", "can_multi_conn"] {
            assert_eq!(export[flag], true, "{name}: {flag}");
        }
        server.ends();
        let (mut server, uri) = serve(&dir, &["--rw", "--socket", "s", &name]);
        let small = ["--connections=4", "--requests=8", "--request-size=65536", "--threads=4", "--flush"];
        run("nbdcopy", &[&small[..], &[source.to_str().unwrap(), &uri]].concat());
        change(&uri, &mut expected);
        // Nobody else has it meanwhile.
        let other = imgconv(&dir, &["convert", "-O", "raw", &name, "copy.raw"]);
        assert_eq!(other.status.code(), Some(1), "{name}: read while clients write it");
        run("kill", &["-TERM", &server.0.id().to_string()]);
        server.ends();
        let after = dir.file("expected.raw", &expected);
        qemu_img(&[&"compare", &"-q", &"-f", &"raw", &"-F", &format, &after, &image]);
        // qemu-img has no checks of the others.
        if !["raw", "vpc"].contains(&format) {
            check_with_qemu_as(format, &image);
        }
    }
}

/// Changes a disk by each request that changes one, and asks for the result.
fn change(uri: &str, expected: &mut [u8]) {
    let commands = [
        "write -P 7 100 70001",
        "write -f -P 8 0 512",
        "write -z 1M 513k",
        "write -z -u 2M 1M",
        "discard 3M 1M",
        "write -P 9 3M 1M",
        "flush",
        "read -P 7 512 69589",
        "read -P 0 2M 1M",
        "read -P 9 3M 1M",
    ];
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let done = output("qemu-io", &["-f", "raw"].into_iter().chain(commands).chain([uri]).collect::<Vec<_>>());
    let text = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && !text.contains("fail"), "{text}");
    expected[100..70_101].fill(7);
    expected[..512].fill(8);
    expected[1 << 20..(1 << 20) + (513 << 10)].fill(0);
    expected[2 << 20..3 << 20].fill(0);
    expected[3 << 20..4 << 20].fill(9);
}

/// An overlay gets what is written, and its backing file stays as it is.
#[test]
fn overlays_are_written_through_our_export() {
    needs_qemu!("overlays_are_written_through_our_export");
    let (dir, mut expected) = (TempDir::new(), guest());
    let base = image(&dir, &expected);
    let before = fs::read(&base).unwrap();
    qemu_img(&[&"create", &"-q", &"-f", &"qcow2", &"-F", &"qcow2", &"-b", &"source.qcow2", &dir.join("top.qcow2")]);
    let (mut server, uri) = serve(&dir, &["--rw", "--socket", "s", "--references", "beside", "top.qcow2"]);
    change(&uri, &mut expected);
    run("kill", &["-TERM", &server.0.id().to_string()]);
    server.ends();
    let after = dir.file("expected.raw", &expected);
    qemu_img(&[&"compare", &"-q", &"-f", &"raw", &"-F", &"qcow2", &after, &dir.join("top.qcow2")]);
    assert_same(&fs::read(&base).unwrap(), &before, "the backing file");
    assert!(fail(&dir, 1, &["serve", "--rw", "--port", "0", "top.qcow2"]).contains("--references"));
    assert!(fail(&dir, 1, &["serve", "--rw", "nbd://localhost:1/"]).contains("file"));
    assert!(fail(&dir, 1, &["serve", "--rw", "-l", "a", "source.qcow2"]).contains("--snapshot"));
}
