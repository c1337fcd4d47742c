//! Which devices containers may use, in cgroup v2: a program that the kernel asks at every `open` and `mknod` of a
//! device in the cgroup. (In v1 libcontainer writes `devices.allow`; what it has for v2 would bring a C library
//! for a program of thirty instructions.)
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html#device-controller>,
//! <https://docs.kernel.org/bpf/libbpf/program_types.html>

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use crate::spec::devices::Device;

/// Kinds and rights as the kernel numbers them in `include/uapi/linux/bpf.h`.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MAKE_NODE: i32 = 1;
const READ: i32 = 2;

/// Character devices, by major and, if not all, minor number. As other runtimes have it.
const ALLOWED: [(i32, Option<i32>); 10] = [
    (1, Some(3)),    // null
    (1, Some(5)),    // zero
    (1, Some(7)),    // full
    (1, Some(8)),    // random
    (1, Some(9)),    // urandom
    (5, Some(0)),    // tty
    (5, Some(1)),    // console
    (5, Some(2)),    // ptmx
    (136, None),     // pts/…
    (10, Some(200)), // net/tun
];

/// The program, once it was needed. One serves all containers.
#[derive(Default)]
pub(super) struct Devices(OnceLock<OwnedFd>);

impl Devices {
    /// Confines a cgroup that has no processes yet. With disks of its own it has a program of its own.
    pub fn confine(&self, cgroup: &Path, disks: &[Device]) -> io::Result<()> {
        let of_disks;
        let program = match self.0.get() {
            _ if !disks.is_empty() => {
                of_disks = load(&program(disks))?;
                &of_disks
            }
            Some(program) => program,
            None => {
                let loaded = load(&program(&[]))?;
                self.0.get_or_init(|| loaded)
            }
        };
        let dir = std::fs::File::open(cgroup)?;
        let attach = Attach {
            target: dir.as_raw_fd() as u32,
            program: program.as_raw_fd() as u32,
            kind: BPF_CGROUP_DEVICE,
            // What cgroups above forbid stays forbidden, and those below may forbid more.
            flags: BPF_F_ALLOW_MULTI,
        };
        bpf(BPF_PROG_ATTACH, &attach).map(drop)
    }
}

/// Whether this process is root of a machine. Root of a user namespace may neither make devices nor load the
/// program, and needs none.
pub(super) fn are_ours() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().collect::<Vec<_>>() == ["0", "0", "4294967295"]
}

/// One instruction. <https://docs.kernel.org/bpf/standardization/instruction-set.html>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// The destination in the lower half, the source in the upper.
    registers: u8,
    offset: i16,
    value: i32,
}

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const SET: u8 = 0xb7;
const COPY: u8 = 0xbf;
const EXIT: u8 = 0x95;

/// Whoever runs it finds in register 1 three words: kind and rights asked for, major, minor. It answers in
/// register 0.
fn program(disks: &[Device]) -> Vec<Instruction> {
    const KIND: u8 = 3;
    const RIGHTS: u8 = 2;
    const MAJOR: u8 = 4;
    const MINOR: u8 = 5;
    let plain = |code, register, value| Instruction { code, registers: register, offset: 0, value };
    let load = |register, offset| Instruction {
        code: LOAD_WORD,
        registers: register | 1 << 4,
        offset,
        value: 0,
    };
    let unless = |register, value, skip| Instruction {
        code: JUMP_UNLESS_EQUAL,
        registers: register,
        offset: skip,
        value,
    };
    let answer = |allowed| [plain(SET, 0, allowed), plain(EXIT, 0, 0)];
    let mut all = vec![
        load(RIGHTS, 0),
        load(MAJOR, 4),
        load(MINOR, 8),
        Instruction { code: COPY, registers: KIND | RIGHTS << 4, offset: 0, value: 0 },
        plain(AND, KIND, 0xffff),
        plain(SHIFT_RIGHT, RIGHTS, 16),
        // Making is no using: what is made of any number is asked for again when it is opened.
        unless(RIGHTS, MAKE_NODE, 2),
    ];
    all.extend(answer(1));
    for disk in disks {
        let (major, minor) = disk.numbers();
        let rest = i16::from(disk.is_read_only());
        all.push(unless(KIND, BLOCK, 4 + rest));
        all.push(unless(MAJOR, major, 3 + rest));
        all.push(unless(MINOR, minor, 2 + rest));
        all.extend(disk.is_read_only().then(|| unless(RIGHTS, READ, 2)));
        all.extend(answer(1));
    }
    all.push(unless(KIND, CHARACTER, 0));
    let forbid = all.len() - 1;
    for (major, minor) in ALLOWED {
        let rest = if minor.is_some() { 3 } else { 2 };
        all.push(unless(MAJOR, major, rest));
        all.extend(minor.map(|minor| unless(MINOR, minor, 2)));
        all.extend(answer(1));
    }
    all[forbid].offset = (all.len() - forbid - 1) as i16;
    all.extend(answer(0));
    all
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The beginning of the kernel's `union bpf_attr` as loading has it; what follows may be left out.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
}

/// As attaching has it.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_bytes: 0,
        log: 0,
    };
    let fd = bpf(BPF_PROG_LOAD, &load)?;
    // SAFETY: the kernel has just made the descriptor, for this call alone; it is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads as many bytes as it is told that there are, and of what they point at the
    // instructions and the license, which outlive the call.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    i32::try_from(answer).ok().filter(|n| *n >= 0).ok_or_else(io::Error::last_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn asked(kind: i32, rights: i32, major: i32, minor: i32) -> i32 {
        run(&program(&[]), kind, rights, major, minor)
    }

    fn run(program: &[Instruction], kind: i32, rights: i32, major: i32, minor: i32) -> i32 {
        let (mut at, mut registers) = (0, [0i32; 11]);
        loop {
            let Instruction { code, registers: r, offset, value } = program[at];
            let (to, from) = (usize::from(r & 15), usize::from(r >> 4));
            match code {
                LOAD_WORD => {
                    assert_eq!(from, 1);
                    registers[to] = [kind | rights << 16, major, minor][offset as usize / 4];
                }
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                SET => registers[to] = value,
                COPY => registers[to] = registers[from],
                JUMP_UNLESS_EQUAL if registers[to] != value => at += offset as usize,
                JUMP_UNLESS_EQUAL => {}
                EXIT => return registers[0],
                other => panic!("{other:#x}"),
            }
            at += 1;
        }
    }

    #[test]
    fn what_may_be_used() {
        let (read, write) = (READ, 4);
        assert_eq!(asked(CHARACTER, read | write, 1, 3), 1, "null");
        assert_eq!(asked(CHARACTER, read, 1, 9), 1, "urandom");
        assert_eq!(asked(CHARACTER, write, 136, 77), 1, "a terminal");
        assert_eq!(asked(CHARACTER, read, 1, 1), 0, "the machine's memory");
        assert_eq!(asked(CHARACTER, read, 10, 200), 1, "tun");
        assert_eq!(asked(CHARACTER, read, 10, 229), 0, "fuse");
        assert_eq!(asked(BLOCK, read, 1, 3), 0, "a block device of the same numbers");
        assert_eq!(asked(BLOCK, MAKE_NODE, 8, 0), 1, "making a disk's node");
        assert_eq!(asked(BLOCK, MAKE_NODE | read, 8, 0), 0, "and reading it");
        assert_eq!(asked(BLOCK, write, 8, 0), 0, "a disk");
    }

    #[test]
    fn disks_of_its_own() {
        let (read, write) = (READ, 4);
        let program = program(&[
            Device::test(7, 1, false),
            Device::test(8, 2, true),
            Device::test(9, 3, false),
        ]);
        let asked = |kind, rights, major, minor| run(&program, kind, rights, major, minor);
        for (major, minor) in [(7, 1), (9, 3)] {
            assert_eq!(asked(BLOCK, read | write, major, minor), 1);
            assert_eq!(asked(CHARACTER, read, major, minor), 0);
        }
        assert_eq!((asked(BLOCK, read, 8, 2), asked(BLOCK, write, 8, 2)), (1, 0));
        assert_eq!((asked(BLOCK, read, 7, 2), asked(BLOCK, read, 8, 1)), (0, 0));
        assert_eq!(asked(CHARACTER, read | write, 1, 3), 1);
    }
}
