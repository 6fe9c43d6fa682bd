//! What a machine leaves on its disks, also when it is killed while its guest writes.
//!
//! The guest is a ROM of a few instructions. It writes *extents* of 64 sectors for ever, by DMA (32 KiB) and by PIO
//! (the first eight sectors) in turn. Command number N goes to the extent `extent(N)`, and each doubleword of it is
//! N. After each sixteenth command it flushes the drive's cache, and then writes N, four bytes, to the debug console:
//! what it says there is a promise of the machine.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use tempfile::TempDir;
use trapline::disk::{Format, OpenOptions};

/// Extents on the disk, and sectors in each.
const EXTENTS: usize = 512;
const SECTORS: usize = 64;
const EXTENT: usize = SECTORS * 512;
const SIZE: usize = EXTENTS * EXTENT;
/// What PIO writes of an extent.
const BY_PIO: usize = 8 * 512;
/// Commands between two flushes.
const FLUSH_EACH: u32 = 16;
const HASH: u32 = 0x9e37_79b1;
const PATIENCE: Duration = Duration::from_secs(120);

/// Where command number `n` writes.
fn extent(n: u32) -> usize {
    (n.wrapping_mul(HASH) >> (32 - EXTENTS.trailing_zeros())) as usize
}

const PRD_TABLE: i32 = 0x600;
const BUFFER: i32 = 0x1_0000;
const BUS_MASTER: i32 = 0xc000;
/// What the guest ends with when it is done; one more when a command failed.
const DONE: i32 = 0x10;
/// The exit code of its machine then.
const EXIT_CODE: Option<i32> = Some(DONE << 1 | 1);

/// The guest; it ends after command number `last`.
fn guest(last: u32) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    let (mut again, mut written, mut failed) = (a.create_label(), a.create_label(), a.create_label());
    let (mut pio, mut sector, mut unflushed) = (a.create_label(), a.create_label(), a.create_label());
    a.cli()?;
    a.cld()?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    // Both channels decoded, the bus master at its place, I/O and bus mastering on.
    for (register, value) in [(0x40, 0x8000_8000_u32), (0x20, BUS_MASTER as u32), (0x04, 5)] {
        out32(&mut a, 0xcf8, 0x8000_0900 | register)?;
        out32(&mut a, 0xcfc, value)?;
    }
    a.mov(dword_ptr(PRD_TABLE), BUFFER)?;
    a.mov(dword_ptr(PRD_TABLE + 4), EXTENT as u32 | 1 << 31)?;
    out32(&mut a, BUS_MASTER + 4, PRD_TABLE as u32)?;
    a.mov(ax, BUFFER >> 4)?;
    a.mov(es, ax)?;
    a.mov(ds, ax)?;
    a.mov(ebp, 1)?; // the number

    a.set_label(&mut again)?;
    a.mov(eax, ebp)?;
    a.xor(di, di)?;
    a.mov(cx, (EXTENT / 4) as i32)?;
    a.rep().stosd()?;
    a.imul_3(ebx, ebp, HASH as i32)?;
    a.shr(ebx, 32 - EXTENTS.trailing_zeros())?;
    a.shl(ebx, SECTORS.trailing_zeros())?;
    // Device, then LBA from its third byte down.
    for (port, shift) in [(0x1f6, 24), (0x1f5, 16), (0x1f4, 8), (0x1f3, 0)] {
        a.mov(eax, ebx)?;
        a.shr(eax, shift)?;
        if port == 0x1f6 {
            a.or(al, 0xe0)?;
        }
        a.mov(dx, port)?;
        a.out(dx, al)?;
    }
    a.test(bp, 1)?;
    a.jz(pio)?;

    out8(&mut a, 0x1f2, SECTORS as i32)?;
    out8(&mut a, 0x1f7, 0xca)?; // WRITE DMA
    out8(&mut a, BUS_MASTER, 1)?;
    wait(&mut a, 0x88, 0x00, failed)?; // neither busy nor wanting data
    out8(&mut a, BUS_MASTER, 0)?;
    out8(&mut a, BUS_MASTER + 2, 6)?;
    a.jmp(written)?;

    a.set_label(&mut pio)?;
    out8(&mut a, 0x1f2, (BY_PIO / 512) as i32)?;
    out8(&mut a, 0x1f7, 0x30)?; // WRITE SECTORS
    a.xor(si, si)?;
    a.mov(bx, (BY_PIO / 512) as i32)?;
    a.set_label(&mut sector)?;
    wait(&mut a, 0x88, 0x08, failed)?; // it wants data
    a.mov(dx, 0x1f0)?;
    a.mov(cx, 256)?;
    a.rep().outsw()?;
    a.dec(bx)?;
    a.jnz(sector)?;
    wait(&mut a, 0x88, 0x00, failed)?;

    a.set_label(&mut written)?;
    a.test(bp, FLUSH_EACH as i32 - 1)?;
    a.jnz(unflushed)?;
    out8(&mut a, 0x1f7, 0xe7)?; // FLUSH CACHE
    wait(&mut a, 0x88, 0x00, failed)?;
    a.mov(eax, ebp)?;
    a.mov(dx, 0x402)?;
    for _ in 0..4 {
        a.out(dx, al)?;
        a.shr(eax, 8)?;
    }
    a.set_label(&mut unflushed)?;
    a.cmp(ebp, last as i32)?;
    a.lea(ebp, dword_ptr(ebp + 1))?;
    a.jne(again)?;
    // The exit port of test guests.
    let mut end = a.create_label();
    out8(&mut a, 0x501, DONE)?;
    a.jmp(end)?;
    a.set_label(&mut failed)?;
    out8(&mut a, 0x501, DONE + 1)?;
    a.set_label(&mut end)?;
    a.hlt()?;
    a.jmp(end)?;
    a.assemble(0)
}

fn out8(a: &mut CodeAssembler, port: i32, value: i32) -> Result<(), IcedError> {
    a.mov(dx, port)?;
    a.mov(al, value)?;
    a.out(dx, al)
}

fn out32(a: &mut CodeAssembler, port: i32, value: u32) -> Result<(), IcedError> {
    a.mov(dx, port)?;
    a.mov(eax, value)?;
    a.out(dx, eax)
}

/// Waits until the status is `value` under `mask`; an error ends the guest.
fn wait(a: &mut CodeAssembler, mask: i32, value: i32, failed: CodeLabel) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(dx, 0x1f7)?;
    a.set_label(&mut again)?;
    a.in_(al, dx)?;
    a.test(al, 0x21)?; // error, device fault
    a.jnz(failed)?;
    a.and(al, mask)?;
    a.cmp(al, value)?;
    a.jne(again)
}

/// A firmware image with the guest in it.
fn rom(folder: &Path, last: u32) -> PathBuf {
    let mut rom = guest(last).unwrap();
    rom.resize(0x1_0000, 0xf4);
    rom[0xfff0..0xfff5].copy_from_slice(&[0xea, 0, 0, 0, 0xf0]); // JMP far f000h:0000h
    let path = folder.join("rom");
    std::fs::write(&path, rom).unwrap();
    path
}

/// The example `pc` with a disk.
fn machine(folder: &Path, last: u32, disk: &str) -> Command {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let mut command = Command::new(BUILT.get_or_init(|| common::build_example("pc")));
    command.arg("--firmware").arg(rom(folder, last)).arg("--debug-console").arg(folder.join("promises"));
    command.args(["--memory", "4M", "--accel", "soft", "--serial", "null", "--vga", "none", "--disk", disk]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// The last number that the guest was promised.
fn promised(folder: &Path) -> u32 {
    let said = std::fs::read(folder.join("promises")).unwrap_or_default();
    let whole = said.chunks_exact(4).last();
    whole.map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().unwrap()))
}

/// What is on a disk.
fn content(path: &Path, format: Format) -> Vec<u8> {
    let mut options = OpenOptions::new(path);
    (options.format, options.read_only) = (Some(format), true);
    let disk = trapline::disk::open(&options).unwrap();
    let mut content = vec![0; SIZE];
    disk.read(0, &mut content).unwrap();
    content
}

fn qemu_img(args: &[&str], images: &[&Path]) -> Option<i32> {
    Command::new("qemu-img")
        .args(args)
        .args(images)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .ok()?
        .code()
}

fn has_qemu_img() -> bool {
    let found = qemu_img(&["--version"], &[]) == Some(0);
    if !found {
        eprintln!("skipped in part: no qemu-img (package qemu-utils)");
    }
    found
}

/// What the disk holds when exactly the commands up to `last` were carried out.
fn expected(last: u32) -> Vec<u8> {
    let mut disk = vec![0; SIZE];
    for n in 1..=last {
        let len = if n % 2 == 1 { EXTENT } else { BY_PIO };
        let extent = &mut disk[extent(n) * EXTENT..][..len];
        extent.chunks_exact_mut(4).for_each(|word| word.copy_from_slice(&n.to_le_bytes()));
    }
    disk
}

/// Everything up to the promise is there; what is newer came from a later command. Later commands may have
/// been carried out in part.
fn check(content: &[u8], promise: u32, at_least: &[u8]) {
    let extents = content.chunks_exact(EXTENT).zip(at_least.chunks_exact(EXTENT)).enumerate();
    for (i, (seen, promised)) in extents.filter(|(_, (seen, promised))| seen != promised) {
        for (seen, promised) in seen.chunks_exact(4).zip(promised.chunks_exact(4)) {
            let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
            let (seen, promised) = (number(seen), number(promised));
            let later = seen > promise && extent(seen) == i;
            assert!(seen == promised || later, "extent {i}: {seen} for {promised}; {promise} was promised");
        }
    }
}

/// A disk image of some kind, as it is before the machine runs.
struct Kind {
    name: &'static str,
    format: Format,
    create: fn(&Path),
}

fn create_qcow2(path: &Path, cluster_size: u64, backing: Option<&str>) {
    use trapline::disk::qcow2::{CreateOptions, Qcow2Options};
    use trapline::disk::{CacheMode, HostFile, Qcow2Disk, RawDisk};
    std::fs::write(path, []).unwrap();
    let open =
        |path: &Path| std::sync::Arc::new(HostFile::open(path, false, CacheMode::Writeback, true).unwrap());
    let mut create = CreateOptions::new(SIZE as u64);
    (create.cluster_size, create.backing) = (cluster_size, backing.map(|name| (name.into(), "raw".into())));
    let base = backing.map(|name| {
        let disk = RawDisk::new(open(&path.with_file_name(name)), true, false).unwrap();
        std::sync::Arc::new(disk) as std::sync::Arc<dyn trapline::disk::Disk>
    });
    drop(Qcow2Disk::create(open(path), &create, &Qcow2Options::default(), base).unwrap());
}

fn create_raw(path: &Path) {
    std::fs::File::create(path).unwrap().set_len(SIZE as u64).unwrap();
}

const KINDS: [Kind; 4] = [
    Kind { name: "raw", format: Format::Raw, create: create_raw },
    Kind { name: "qcow2", format: Format::Qcow2, create: |path| create_qcow2(path, 0x1_0000, None) },
    Kind {
        name: "qcow2 of small clusters",
        format: Format::Qcow2,
        create: |path| create_qcow2(path, 4096, None),
    },
    Kind {
        name: "qcow2 over a base",
        format: Format::Qcow2,
        create: |path| {
            create_raw(&path.with_file_name("base"));
            create_qcow2(path, 0x1_0000, Some("base"));
        },
    },
];

fn image(kind: &Kind) -> (TempDir, PathBuf, String) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("image");
    (kind.create)(&path);
    let format = if kind.format == Format::Raw { "raw" } else { "qcow2" };
    let option = format!("file={},format={format}", path.display());
    (folder, path, option)
}

#[test]
fn a_killed_machine_has_kept_its_promises() {
    let qemu_img_there = has_qemu_img();
    for kind in &KINDS {
        for round in 0..5_u32 {
            let (folder, path, option) = image(kind);
            let mut child = machine(folder.path(), u32::MAX, &option).spawn().unwrap();
            // From its first promise on, for a while that differs.
            let start = Instant::now();
            while promised(folder.path()) == 0 {
                assert!(start.elapsed() < PATIENCE && child.try_wait().unwrap().is_none(), "no promise");
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(u64::from(round * 41 % 97 + round * 13)));
            child.kill().unwrap();
            child.wait().unwrap();

            let promise = promised(folder.path());
            assert!(promise > 0 && promise.is_multiple_of(FLUSH_EACH));
            if kind.format == Format::Qcow2 && qemu_img_there {
                let code = qemu_img(&["check", "-q", "-f", "qcow2"], &[&path]);
                assert!(
                    matches!(code, Some(0 | 3)),
                    "{}, round {round}: qemu-img check: {code:?}",
                    kind.name
                );
            }
            eprintln!("{}, round {round}: killed after {promise}", kind.name);
            check(&content(&path, kind.format), promise, &expected(promise));
        }
    }
}

#[test]
fn what_the_guest_wrote_is_what_the_host_would_have_written() {
    const LAST: u32 = 64 * FLUSH_EACH;
    let qemu_img_there = has_qemu_img();
    for kind in &KINDS {
        let (folder, path, option) = image(kind);
        let status = machine(folder.path(), LAST, &option).status().unwrap();
        assert_eq!(status.code(), EXIT_CODE, "{}: the guest's exit", kind.name);
        assert_eq!(promised(folder.path()), LAST);
        assert!(content(&path, kind.format) == expected(LAST), "{}: other content", kind.name);
        if qemu_img_there {
            let host = folder.path().join("host");
            std::fs::write(&host, expected(LAST)).unwrap();
            let format = if kind.format == Format::Raw { "raw" } else { "qcow2" };
            assert_eq!(qemu_img(&["compare", "-q", "-f", format, "-F", "raw"], &[&path, &host]), Some(0));
            if kind.format == Format::Qcow2 {
                assert_eq!(qemu_img(&["check", "-q", "-f", "qcow2"], &[&path]), Some(0), "{}", kind.name);
            }
        }
    }
}

#[test]
fn a_snapshot_leaves_the_image_as_it_was() {
    for kind in &KINDS {
        let (folder, path, option) = image(kind);
        let before = std::fs::read(&path).unwrap();
        let status = machine(folder.path(), 500, &format!("{option},snapshot=on")).status().unwrap();
        assert_eq!(status.code(), EXIT_CODE, "{}: the guest's exit", kind.name);
        let mut child = machine(folder.path(), u32::MAX, &format!("{option},snapshot=on")).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(std::fs::read(&path).unwrap() == before, "{}: the image has changed", kind.name);
    }
}
