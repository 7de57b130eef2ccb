//! Landlock for files and TCP, and a filter of system calls. Both set `no_new_privs`.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};
use seccompiler::{BpfProgram, apply_filter, sock_filter};

use super::Needs;

/// What the program reads of the system itself: its own state, and how many threads and how much memory it has.
const SYSTEM: [&str; 4] = ["/proc/self", "/proc/meminfo", "/sys/devices/system/cpu", "/sys/fs/cgroup"];

/// Enough for [`When::Require`](super::When): every way to open, create, rename and shorten files (Linux 6.2).
const REQUIRED: ABI = ABI::V3;

/// Gives up what is not in `needs`, as far as the kernel can, or with `all` completely.
pub fn restrict(needs: &Needs, all: bool) -> Result<(), String> {
    // The filter comes last: it leaves the system calls of Landlock alone, but a container may have forbidden one and not the other.
    let files = restrict_files(needs, all).map_err(|error| format!("Landlock: {error}"));
    let calls = restrict_calls(needs.network).map_err(|error| format!("seccomp: {error}"));
    files.and(calls)
}

fn restrict_files(needs: &Needs, all: bool) -> Result<(), RulesetError> {
    let level = if all { CompatLevel::HardRequirement } else { CompatLevel::BestEffort };
    let mut ruleset = Ruleset::default()
        .set_compatibility(level)
        .handle_access(AccessFs::from_all(REQUIRED))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .scope(Scope::from_all(ABI::V6))?;
    if !needs.network {
        ruleset = ruleset.handle_access(AccessNet::from_all(ABI::V4))?;
    }
    let mut rules = ruleset.create()?;
    // No right to execute.
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let change = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSock
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::IoctlDev;
    for path in SYSTEM.iter().map(Path::new).chain(needs.read.iter().map(|path| &**path)) {
        rules = allow(rules, path, read)?;
    }
    for path in &needs.change {
        rules = allow(rules, path, change)?;
    }
    rules.restrict_self().map(|_| ())
}

/// Adds the rights to what is at `path`. Where nothing is, nothing will be opened; descriptors of this process, such as pipes, need no right.
fn allow(rules: RulesetCreated, path: &Path, rights: BitFlags<AccessFs>) -> Result<RulesetCreated, RulesetError> {
    let Ok(file_type) = fs::metadata(path).map(|metadata| metadata.file_type()) else { return Ok(rules) };
    let is_device = file_type.is_block_device() || file_type.is_char_device();
    let rights = match (file_type.is_dir(), file_type.is_file() || is_device) {
        (true, _) => rights,
        (false, true) => rights & AccessFs::from_file(ABI::V5),
        (false, false) => return Ok(rules),
    };
    // The ioctls that tell the size of a device do not write.
    let rights = if is_device { rights | AccessFs::IoctlDev } else { rights };
    let (Ok(more), Ok(file)) = (rules.try_clone(), PathFd::new(path)) else { return Ok(rules) };
    // One that is refused, for a file that no directory has, leaves the others.
    Ok(more.add_rule(PathBeneath::new(file, rights)).unwrap_or(rules))
}

/// System calls that neither the program nor its libraries make, and that lead out of the process or deep into the kernel. A list of
/// what is allowed instead would be one of what each version of the C library calls.
const FORBIDDEN: &[libc::c_long] = &[
    // Other programs and processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Files by other ways than their names, and other views of them.
    libc::SYS_open_by_handle_at,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mknodat,
    // Large interfaces of the kernel.
    libc::SYS_bpf,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_personality,
    // The machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_acct,
    libc::SYS_quotactl,
];

/// Sockets of every kind: Landlock knows TCP alone.
const SOCKETS: &[libc::c_long] =
    &[libc::SYS_socket, libc::SYS_socketpair, libc::SYS_connect, libc::SYS_bind, libc::SYS_listen];

/// The number of this architecture in what a filter sees (`AUDIT_ARCH_…` of `<linux/audit.h>`): that of ELF, 64 bits, little-endian.
const ARCHITECTURE: u32 = 0xc000_0000
    | if cfg!(target_arch = "x86_64") {
        62
    } else if cfg!(target_arch = "aarch64") {
        183
    } else {
        243
    };

/// Installs the filter.
///
/// It is not compiled by the crate: that makes five instructions of each number, and the kernel runs the filter for every number there
/// is, which took half a millisecond at each start.
fn restrict_calls(network: bool) -> Result<(), seccompiler::Error> {
    let sockets = SOCKETS.iter().filter(|_| !network);
    apply_filter(&filter(FORBIDDEN.iter().chain(sockets).copied()))
}

/// A filter that refuses `calls` with `EPERM` (seccomp(2), and the classic BPF of the kernel's `networking/filter`).
fn filter(calls: impl Iterator<Item = libc::c_long>) -> BpfProgram {
    /// Offsets in `struct seccomp_data`.
    const NUMBER: u32 = 0;
    const ARCH: u32 = 4;
    /// Numbers from here on are those of x32 (syscall(2)).
    const X32: u32 = 0x4000_0000;
    let instruction = |code: u32, k: u32| sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let load = |offset| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let end = |result| instruction(libc::BPF_RET | libc::BPF_K, result);
    let refuse = || end(libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs());
    // Skips the refusal that follows it, or does not.
    let test = |comparison, k, skips_if: bool| sock_filter {
        jt: skips_if.into(),
        jf: (!skips_if).into(),
        ..instruction(libc::BPF_JMP | comparison | libc::BPF_K, k)
    };
    let mut program = vec![load(ARCH), test(libc::BPF_JEQ, ARCHITECTURE, true), refuse()];
    program.extend([load(NUMBER), test(libc::BPF_JGE, X32, false), refuse()]);
    for call in calls.filter_map(|call| u32::try_from(call).ok()) {
        program.extend([test(libc::BPF_JEQ, call, false), refuse()]);
    }
    program.push(end(libc::SECCOMP_RET_ALLOW));
    program
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::TcpStream;
    use std::os::unix::net::UnixDatagram;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    /// The directory that the child process has as the only one.
    const DIRECTORY: &str = "IMGCONV_TEST_SANDBOX";

    /// The sandbox is for the rest of a process, so that this test starts itself again.
    #[test]
    fn what_is_not_needed_is_refused() {
        let module = module_path!();
        let name = format!("{}::what_is_not_needed_is_refused", module.split_once("::").unwrap().1);
        match std::env::var_os(DIRECTORY) {
            Some(directory) => in_sandbox(&PathBuf::from(directory)),
            None => {
                let directory = std::env::temp_dir().join(format!("imgconv-sandbox-{}", std::process::id()));
                fs::create_dir(&directory).unwrap();
                fs::write(directory.join("image"), "content").unwrap();
                let mut child = Command::new(std::env::current_exe().unwrap());
                let output = child.args([&name, "--exact", "--nocapture"]).env(DIRECTORY, &directory).output();
                fs::remove_dir_all(&directory).unwrap();
                let output = output.unwrap();
                let text = String::from_utf8_lossy(&output.stdout);
                assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
                assert!(text.contains("1 passed"), "{text}");
                if !text.contains("entered") {
                    eprintln!("SKIPPED: {text}");
                }
            }
        }
    }

    fn in_sandbox(directory: &Path) {
        let target = directory.join("new");
        fs::create_dir(&target).unwrap();
        let mut needs = Needs::default();
        needs.read(directory.join("image"));
        needs.change_in(&target);
        if let Err(problem) = restrict(&needs, true) {
            println!("this kernel has no sandbox: {problem}");
            return;
        }
        println!("entered");
        assert_eq!(fs::read(directory.join("image")).unwrap(), b"content");
        fs::write(target.join("temporary"), "more").unwrap();
        fs::rename(target.join("temporary"), target.join("image")).unwrap();

        let denied = |error: io::Error| assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        denied(fs::read("/etc/passwd").unwrap_err());
        denied(fs::read_dir(directory).unwrap_err());
        denied(fs::write(directory.join("image"), "changed").unwrap_err());
        denied(fs::OpenOptions::new().append(true).open(directory.join("image")).unwrap_err());
        denied(fs::write(directory.join("other"), "").unwrap_err());
        denied(fs::remove_file(directory.join("image")).unwrap_err());
        denied(Command::new("/bin/true").status().unwrap_err());
        denied(Command::new(std::env::current_exe().unwrap()).status().unwrap_err());
        denied(TcpStream::connect("127.0.0.1:9").unwrap_err());
        denied(UnixDatagram::unbound().unwrap_err());
        // Threads have the same.
        std::thread::spawn(|| fs::read("/etc/passwd").unwrap_err()).join().map(denied).unwrap();
        fs::rename(target.join("image"), directory.join("moved")).unwrap_err();
        fs::remove_file(target.join("image")).unwrap();
    }
}
