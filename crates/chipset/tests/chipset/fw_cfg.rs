//! fw_cfg, driven as firmware drives it.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use trapline_chipset::FwCfg;
use trapline_chipset::fw_cfg::{
    self, BootDevice, BootMenu, E820Entry, E820Kind, FwCfgError, NumaNode, PcItems,
};
use trapline_device::AccessSize::{Byte, Dword, Word};
use trapline_device::{DmaMemory, PortIo, SaveRestore};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{Ports, through_a_file};

const READ: u32 = 0x02;
const SKIP: u32 = 0x04;
const SELECT: u32 = 0x08;
const WRITE: u32 = 0x10;
const ERROR: u32 = 0x01;

const MEMORY: u64 = 4 << 20;
/// Where requests lie.
const REQUEST: u64 = 0x1000;

/// Firmware: a device with DMA, and memory.
struct Firmware {
    dev: FwCfg,
    memory: Arc<GuestMemoryMmap>,
}

impl Firmware {
    fn new() -> Self {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap());
        Self { dev: FwCfg::with_dma(memory.clone()), memory }
    }

    fn select(&mut self, key: u16) {
        self.dev.write(fw_cfg::PORTS, 0, Word, key.into());
    }

    fn bytes(&mut self, key: u16, count: usize) -> Vec<u8> {
        self.select(key);
        (0..count).map(|_| self.dev.inb(fw_cfg::PORTS, 1)).collect()
    }

    /// Key and size of a file.
    fn find(&mut self, name: &str) -> Option<(u16, usize)> {
        self.directory().into_iter().find(|file| file.0 == name).map(|(_, key, size)| (key, size))
    }

    fn file(&mut self, name: &str) -> Vec<u8> {
        let (key, size) = self.find(name).unwrap();
        self.bytes(key, size)
    }

    /// Name, key and size of every file.
    fn directory(&mut self) -> Vec<(String, u16, usize)> {
        let count = u32::from_be_bytes(self.bytes(fw_cfg::FILE_DIR, 4).try_into().unwrap());
        let entry = |_| {
            let mut entry = [0; 64];
            self.dev.read_block(fw_cfg::PORTS, 1, Byte, &mut entry);
            let (size, rest) = entry.split_first_chunk().unwrap();
            let (key, rest) = rest.split_first_chunk().unwrap();
            assert_eq!(rest[..2], [0, 0]);
            let name = std::ffi::CStr::from_bytes_until_nul(&rest[2..]).unwrap();
            let name = name.to_str().unwrap().to_owned();
            (name, u16::from_be_bytes(*key), u32::from_be_bytes(*size) as usize)
        };
        (0..count).map(entry).collect()
    }

    fn poke(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    fn peek(&self, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Writes a request and starts it; returns what its control field holds then.
    fn dma(&mut self, control: u32, length: u32, address: u64) -> u32 {
        let request = [&control.to_be_bytes()[..], &length.to_be_bytes(), &address.to_be_bytes()].concat();
        self.poke(REQUEST, &request);
        self.dev.write(fw_cfg::DMA, 4, Dword, (REQUEST as u32).to_be());
        u32::from_be_bytes(self.peek(REQUEST, 4).try_into().unwrap())
    }
}

#[test]
fn signature_and_features_tell_that_it_is_there() {
    let mut guest = Firmware::new();
    assert_eq!(guest.bytes(fw_cfg::SIGNATURE, 4), b"QEMU");
    assert_eq!(guest.bytes(fw_cfg::ID, 4), [3, 0, 0, 0]);
    assert_eq!(guest.dev.read(fw_cfg::DMA, 0, Dword).to_le_bytes(), *b"QEMU");
    assert_eq!(guest.dev.read(fw_cfg::DMA, 4, Dword).to_le_bytes(), *b" CFG");
    assert_eq!(guest.dev.inb(fw_cfg::DMA, 7), b'G');

    let mut plain = FwCfg::new();
    plain.write(fw_cfg::PORTS, 0, Word, fw_cfg::ID.into());
    assert_eq!(plain.inb(fw_cfg::PORTS, 1), 1);
    assert_eq!(plain.read(fw_cfg::DMA, 0, Dword), u32::MAX);
    plain.write(fw_cfg::DMA, 4, Dword, 0x1000);
}

#[test]
fn an_item_is_read_from_its_start_and_ends_in_zeros() {
    let mut guest = Firmware::new();
    guest.dev.add(fw_cfg::NB_CPUS, 4u16.to_le_bytes());
    assert_eq!(guest.bytes(fw_cfg::SIGNATURE, 6), b"QEMU\0\0");
    assert_eq!(guest.bytes(fw_cfg::NB_CPUS, 4), [4, 0, 0, 0]);
    assert_eq!(guest.bytes(0x1234, 2), [0, 0]);
    // Bit 14 of the selector is ignored; bit 15 makes another item.
    assert_eq!(guest.bytes(fw_cfg::NB_CPUS | 0x4000, 1), [4]);
    assert_eq!(guest.bytes(fw_cfg::NB_CPUS | 0x8000, 1), [0]);
    // REP INSB, in two pieces and beyond the end.
    guest.select(fw_cfg::SIGNATURE);
    let (mut head, mut tail) = ([0xff; 3], [0xff; 3]);
    guest.dev.read_block(fw_cfg::PORTS, 1, Byte, &mut head);
    guest.dev.read_block(fw_cfg::PORTS, 1, Byte, &mut tail);
    assert_eq!((&head, &tail), (b"QEM", b"U\0\0"));
}

#[test]
fn files_are_listed_in_order_of_their_names() {
    let mut guest = Firmware::new();
    assert_eq!(guest.directory(), []);
    guest.dev.add_file("opt/b", "second").unwrap();
    guest.dev.add_file("etc/z", "").unwrap();
    guest.dev.add_file("opt/a", vec![7; 300]).unwrap();
    let name = |name: &str, key, size| (name.to_owned(), key, size);
    assert_eq!(guest.directory(), [name("etc/z", 0x20, 0), name("opt/a", 0x21, 300), name("opt/b", 0x22, 6)]);
    assert_eq!(guest.bytes(0x21, 301), [[7; 300].as_slice(), &[0]].concat());
    assert_eq!(guest.bytes(0x22, 6), b"second");
}

#[test]
fn files_that_the_directory_cannot_hold_are_refused() {
    let mut dev = FwCfg::new();
    let longest = "n".repeat(fw_cfg::MAX_NAME);
    dev.add_file(&longest, "").unwrap();
    for name in ["", "a\nb", "ä", &format!("{longest}n")] {
        assert_eq!(dev.add_file(name, ""), Err(FwCfgError::Name(name.to_owned())));
    }
    assert_eq!(dev.add_writable_file(&longest, ""), Err(FwCfgError::Duplicate(longest.clone())));
}

#[test]
fn a_generated_file_is_made_when_it_is_selected() {
    let mut guest = Firmware::new();
    let mut contents = vec![Some(b"too long".to_vec()), None, Some(b"new".to_vec())];
    guest.dev.add_generated_file("opt/g", "first", move || contents.pop().flatten()).unwrap();
    let (key, size) = guest.find("opt/g").unwrap();
    assert_eq!(guest.bytes(key, size), b"new\0\0");
    assert_eq!(guest.bytes(key, size), b"new\0\0");
    assert_eq!(guest.bytes(key, size), b"too l");
    // By DMA, too; and only then.
    assert_eq!(guest.dma(u32::from(key) << 16 | SELECT | READ, 5, 0x2000), 0);
    assert_eq!(guest.find("opt/g"), Some((key, 5)));
    assert_eq!(guest.peek(0x2000, 5), b"too l");
}

#[test]
fn dma_reads_into_memory() {
    let mut guest = Firmware::new();
    guest.dev.add_file("opt/text", "0123456789").unwrap();
    let key = u32::from(fw_cfg::FILE_FIRST);
    assert_eq!(guest.dma(key << 16 | SELECT | READ, 4, 0x2000), 0);
    assert_eq!(guest.peek(0x2000, 5), b"0123\0");
    // The next request goes on from there; ports do, too.
    assert_eq!(guest.dma(SKIP, 2, 0), 0);
    assert_eq!(guest.dma(READ, 2, 0x2000), 0);
    assert_eq!(guest.peek(0x2000, 2), b"67");
    assert_eq!(guest.dev.inb(fw_cfg::PORTS, 1), b'8');
    // Zeroes behind the end.
    guest.poke(0x2000, &[0xff; 4]);
    assert_eq!(guest.dma(READ, 3, 0x2000), 0);
    assert_eq!(guest.peek(0x2000, 4), b"9\0\0\xff");
    assert_eq!(guest.dma(SKIP, u32::MAX, 0), 0);
    // Selecting alone.
    assert_eq!(guest.dma(SELECT, 0, 0), 0);
    assert_eq!(guest.dev.inb(fw_cfg::PORTS, 1), b'Q');
    // The control field alone says what is done: nothing.
    assert_eq!(guest.dma(0, 4, 0x2000), 0);
    assert_eq!(guest.dev.inb(fw_cfg::PORTS, 1), b'E');
}

#[test]
fn a_request_above_4_gib_is_started_by_two_writes() {
    let high = 1u64 << 32;
    let ranges = [(GuestAddress(0), 0x10000), (GuestAddress(high), 0x10000)];
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap());
    let mut dev = FwCfg::with_dma(memory.clone());
    let request = [&(SELECT | READ).to_be_bytes()[..], &4u32.to_be_bytes(), &(high + 64).to_be_bytes()];
    memory.write_slice(&request.concat(), GuestAddress(high + 16)).unwrap();
    dev.write(fw_cfg::DMA, 0, Dword, 1u32.to_be());
    dev.write(fw_cfg::DMA, 4, Dword, 16u32.to_be());
    let mut text = [0; 4];
    memory.read_slice(&mut text, GuestAddress(high + 64)).unwrap();
    assert_eq!(&text, b"QEMU");
    // The upper half is zero again afterwards.
    memory.write_slice(&request.concat(), GuestAddress(16)).unwrap();
    memory.write_slice(&[0; 4], GuestAddress(high + 64)).unwrap();
    dev.write(fw_cfg::DMA, 4, Dword, 16u32.to_be());
    memory.read_slice(&mut text, GuestAddress(high + 64)).unwrap();
    assert_eq!(&text, b"QEMU");
}

#[test]
fn only_writable_files_are_written_and_keep_their_length() {
    let mut guest = Firmware::new();
    guest.dev.add_file("opt/fixed", "abcd").unwrap();
    guest.dev.add_writable_file("opt/written", "abcd").unwrap();
    let (fixed, written) = (0x20u32, 0x21u32);
    guest.poke(0x2000, b"WXYZ");
    assert_eq!(guest.dma(fixed << 16 | SELECT | WRITE, 2, 0x2000), ERROR);
    assert_eq!(guest.dma(u32::from(fw_cfg::ID) << 16 | SELECT | WRITE, 4, 0x2000), ERROR);
    assert_eq!(guest.dma(0x1234 << 16 | SELECT | WRITE, 1, 0x2000), ERROR);
    assert_eq!(guest.dma(written << 16 | SELECT | WRITE, 5, 0x2000), ERROR);
    assert_eq!(guest.file("opt/written"), b"abcd");
    assert_eq!(guest.dma(written << 16 | SELECT | SKIP, 1, 0), 0);
    assert_eq!(guest.dma(WRITE, 2, 0x2000), 0);
    assert_eq!(guest.dma(WRITE, 2, 0x2000), ERROR);
    assert_eq!(guest.file("opt/written"), b"aWXd");
    assert_eq!(guest.dev.file("opt/written").unwrap(), b"aWXd");
    assert_eq!(guest.file("opt/fixed"), b"abcd");
    // The ports do not write.
    guest.select(written as u16 | 0x4000);
    guest.dev.outb(fw_cfg::PORTS, 1, b'!');
    assert_eq!(guest.file("opt/written"), b"aWXd");
}

#[test]
fn hostile_requests_are_errors() {
    let mut guest = Firmware::new();
    guest.dev.add_file("opt/long", vec![1; 3 << 20]).unwrap();
    let key = u32::from(fw_cfg::FILE_FIRST);
    // The buffer is not memory, begins in it, wraps around.
    for address in [MEMORY, MEMORY - 4, u64::MAX - 3, u64::MAX, 1 << 63] {
        assert_eq!(guest.dma(key << 16 | SELECT | READ, 8, address), ERROR, "{address:#x}");
    }
    // Far beyond the end: nothing is transferred.
    guest.poke(0x2000, b"kept");
    assert_eq!(guest.dma(key << 16 | SELECT | READ, u32::MAX, 0x2000), ERROR);
    assert_eq!(guest.peek(0x2000, 4), b"kept");
    // The request is not memory, or only its beginning is.
    guest.dev.write(fw_cfg::DMA, 4, Dword, (MEMORY as u32).to_be());
    guest.dev.write(fw_cfg::DMA, 0, Dword, u32::MAX);
    guest.dev.write(fw_cfg::DMA, 4, Dword, u32::MAX);
    guest.dev.write(fw_cfg::DMA, 4, Dword, (MEMORY as u32 - 8).to_be());
    assert_eq!(guest.peek(MEMORY - 8, 4), ERROR.to_be_bytes());
    // It overwrites itself: the answer is last.
    let request = [&(SELECT | READ).to_be_bytes()[..], &4u32.to_be_bytes(), &REQUEST.to_be_bytes()];
    guest.poke(REQUEST, &request.concat());
    guest.dev.write(fw_cfg::DMA, 4, Dword, (REQUEST as u32).to_be());
    assert_eq!(guest.peek(REQUEST, 4), [0; 4]);
    // Accesses that are no request.
    guest.dev.write(fw_cfg::DMA, 4, Word, 0x10);
    guest.dev.write(fw_cfg::DMA, 1, Byte, 0x10);
    assert_eq!(guest.bytes(fw_cfg::SIGNATURE, 4), b"QEMU");
}

#[test]
fn what_the_firmware_of_a_pc_asks_for() {
    let mut guest = Firmware::new();
    let ide = BootDevice::Ide { device: 1, function: 1, channel: 1, drive: 0 };
    let items = PcItems {
        e820: vec![
            E820Entry { address: 0, length: 0xc000_0000, kind: E820Kind::Ram },
            E820Entry { address: 0xfeff_c000, length: 0x4000, kind: E820Kind::Reserved },
        ],
        boot_order: vec![
            ide,
            BootDevice::Block { device: 4, function: 0 },
            BootDevice::Network { device: 3, function: 1 },
            BootDevice::Rom("linux.bin".to_owned()),
        ],
        boot_strict: true,
        boot_menu: Some(BootMenu { wait: Duration::from_millis(2500) }),
        uuid: Some(*b"0123456789abcdef"),
        s3: true,
        extra_pci_roots: 1,
        numa: vec![
            NumaNode { memory: 1 << 30, cpus: vec![0, 2] },
            NumaNode { memory: 2 << 30, cpus: vec![1] },
        ],
        ..PcItems::new(3, 3 << 30)
    };
    guest.dev.add_pc(&items).unwrap();
    assert_eq!(guest.bytes(fw_cfg::NB_CPUS, 2), [3, 0]);
    assert_eq!(guest.bytes(fw_cfg::MAX_CPUS, 2), [3, 0]);
    assert_eq!(guest.bytes(fw_cfg::RAM_SIZE, 8), (3u64 << 30).to_le_bytes());
    assert_eq!(guest.bytes(fw_cfg::IRQ0_OVERRIDE, 4), [1, 0, 0, 0]);
    assert_eq!(guest.bytes(fw_cfg::BOOT_MENU, 2), [1, 0]);
    assert_eq!(guest.bytes(fw_cfg::UUID, 16), b"0123456789abcdef");
    let numa: Vec<u64> = [2, 0, 1, 0, 1 << 30, 2 << 30].to_vec();
    assert_eq!(
        guest.bytes(fw_cfg::NUMA, 48),
        numa.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<_>>()
    );

    let e820 = guest.file("etc/e820");
    assert_eq!(e820.len(), 40);
    assert_eq!(e820[..20], *b"\0\0\0\0\0\0\0\0\0\0\0\xc0\0\0\0\0\x01\0\0\0");
    assert_eq!(e820[36..], [2, 0, 0, 0]);
    assert_eq!(
        String::from_utf8(guest.file("bootorder")).unwrap(),
        "/pci@i0cf8/ide@1,1/drive@1/disk@0\n\
         /pci@i0cf8/scsi@4/disk@0,0\n\
         /pci@i0cf8/ethernet@3,1/ethernet-phy@0\n\
         /rom@genroms/linux.bin\n\
         HALT\0"
    );
    assert_eq!(guest.file("etc/boot-menu-wait"), 2500u16.to_le_bytes());
    assert_eq!(guest.file("etc/boot-fail-wait"), [0xff; 4]);
    assert_eq!(guest.file("etc/system-states"), [0x80, 0, 0, 0x81, 2, 0x80]);
    assert_eq!(guest.file("etc/extra-pci-roots"), 1u64.to_le_bytes());
    assert!(matches!(guest.dev.add_pc(&items), Err(FwCfgError::Duplicate(_))));

    // A plain machine lists no boot order of its own.
    let mut plain = Firmware::new();
    plain.dev.add_pc(&PcItems::new(1, 1 << 20)).unwrap();
    assert_eq!(plain.find("bootorder"), None);
    assert_eq!(plain.find("etc/boot-menu-wait"), None);
    assert_eq!(plain.bytes(fw_cfg::NUMA, 8), [0; 8]);
}

#[test]
fn a_saved_state_goes_on_in_the_middle_of_an_item() {
    let make = || {
        let mut guest = Firmware::new();
        guest.dev.add_writable_file("opt/written", "abcdef").unwrap();
        guest
    };
    let (mut here, mut there) = (make(), make());
    here.poke(0x2000, b"12");
    assert_eq!(here.dma(0x20 << 16 | SELECT | WRITE, 2, 0x2000), 0);
    here.dev.write(fw_cfg::DMA, 0, Dword, 0x55);
    there.dev.restore(through_a_file(&here.dev.save())).unwrap();
    assert_eq!(there.dev.inb(fw_cfg::PORTS, 1), b'c');
    assert_eq!(there.file("opt/written"), b"12cdef");
    let error = FwCfg::new().restore(here.dev.save()).unwrap_err();
    assert_eq!(error.to_string(), "saved state of fw-cfg: its writable files are not those of this machine");
}

/// Memory of which any part may be missing at any time.
struct Flaky(std::sync::atomic::AtomicU64);

impl Flaky {
    fn here(&self, address: u64, len: usize) -> bool {
        let n = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 != 0 && address.checked_add(len as u64).is_some()
    }
}

impl DmaMemory for Flaky {
    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = (address as u8).wrapping_mul(31).wrapping_add(i as u8);
        }
        self.here(address, data.len())
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        self.here(address, data.len())
    }
}

proptest! {
    #[test]
    fn any_script_on_any_memory(
        script in proptest::collection::vec((0..2usize, 0..8u16, 0..3usize, any::<u32>()), 0..200),
    ) {
        let mut dev = FwCfg::with_dma(Arc::new(Flaky(0.into())));
        dev.add_file("opt/a", vec![1; 100]).unwrap();
        dev.add_writable_file("opt/b", vec![2; 100]).unwrap();
        for (region, offset, size, value) in script {
            let size = [Byte, Word, Dword][size];
            if value & 1 == 0 {
                dev.write(region, offset, size, value >> 1);
            } else {
                dev.read(region, offset, size);
            }
        }
        prop_assert_eq!(dev.file("opt/a").unwrap(), [1; 100]);
        prop_assert_eq!(dev.file("opt/b").unwrap().len(), 100);
    }
}
