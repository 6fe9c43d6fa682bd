//! Firmware configuration: what firmware, and some operating systems, ask the machine for, as QEMU's
//! `fw_cfg` (QEMU `docs/specs/fw_cfg.rst`).
//!
//! | region | ports on a PC | registers |
//! |---|---|---|
//! | [`PORTS`] | 0x510, 2 ports | selector (16 bits, write only); data, read byte by byte, at the second |
//! | [`DMA`] | 0x514, 8 ports | address of a request, big-endian; a write to the lower half starts it |
//!
//! An *item* has a number, its key. A *file* is an item with a name, listed in the [`FILE_DIR`] item; the
//! files' keys follow their names' order, from [`FILE_FIRST`] on. Behind an item's end, and from items that do
//! not exist, reads give zeroes. Bit 14 of a key is ignored.
//!
//! A DMA request is `control`, `length` (32 bits each) and `address` (64 bits), big-endian: it selects, then
//! reads, writes or skips, and is done before the instruction that started it ends. Then `control` is zero, or
//! bit 0 (error): the request or its buffer is not memory, or what is to be written is not writable or too
//! long. Files can be written that were made so ([`FwCfg::add_writable_file`]), by DMA alone, without changing
//! their length; [`FwCfg::file`] shows the host what they hold. A reset leaves that as it is.
//!
//! Deviation: a read that goes more than 1 MiB beyond an item's end is an error, and nothing is transferred.
//! That bounds what a request costs.
//!
//! ```
//! use std::sync::Arc;
//! use trapline_chipset::{FwCfg, fw_cfg};
//! use trapline_device::{AccessSize, PortIo};
//!
//! let mut fw_cfg = FwCfg::new();
//! fw_cfg.add(fw_cfg::NB_CPUS, 2u16.to_le_bytes());
//! fw_cfg.add_file("opt/org.example/motto", "festina lente")?;
//!
//! fw_cfg.write(fw_cfg::PORTS, 0, AccessSize::Word, fw_cfg::FILE_FIRST.into());
//! let mut text = [0; 13];
//! fw_cfg.read_block(fw_cfg::PORTS, 1, AccessSize::Byte, &mut text);
//! assert_eq!(&text, b"festina lente");
//! # Ok::<(), fw_cfg::FwCfgError>(())
//! ```

mod pc;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trapline_device::{
    AccessSize, Device, DmaMemory, MmioIo, Poll, PortIo, RestoreError, SaveRestore, read_each, write_each,
};

pub use pc::{BootDevice, BootMenu, E820Entry, E820Kind, NumaNode, PcItems};

use crate::bytewise::check;

/// Region of the selector and the data port, 2 ports.
pub const PORTS: usize = 0;
/// Region of the DMA address register, 8 ports.
pub const DMA: usize = 1;

/// Key of the signature, the four letters "QEMU".
pub const SIGNATURE: u16 = 0x00;
/// Key of the features, 32 bits: bit 0, the ports; bit 1, DMA.
pub const ID: u16 = 0x01;
/// Key of the machine's UUID, 16 bytes.
pub const UUID: u16 = 0x02;
/// Key of the size of RAM in bytes, 64 bits.
pub const RAM_SIZE: u16 = 0x03;
/// Key of a flag, 16 bits: there is no display.
pub const NOGRAPHIC: u16 = 0x04;
/// Key of the number of processors, 16 bits.
pub const NB_CPUS: u16 = 0x05;
/// Key of the address that a kernel is to be loaded at, 32 bits.
pub const KERNEL_ADDR: u16 = 0x07;
/// Key of the kernel's size, 32 bits.
pub const KERNEL_SIZE: u16 = 0x08;
/// Key of the address that an initial RAM disk is to be loaded at, 32 bits.
pub const INITRD_ADDR: u16 = 0x0a;
/// Key of the initial RAM disk's size, 32 bits.
pub const INITRD_SIZE: u16 = 0x0b;
/// Key of the NUMA nodes: their number, each processor's node, each node's memory; 64 bits each.
pub const NUMA: u16 = 0x0d;
/// Key of a flag, 16 bits: show a boot menu.
pub const BOOT_MENU: u16 = 0x0e;
/// Key of the limit of processors' APIC IDs, 16 bits: one more than the largest there may be.
pub const MAX_CPUS: u16 = 0x0f;
/// Key of a kernel's entry point, 32 bits.
pub const KERNEL_ENTRY: u16 = 0x10;
/// Key of the kernel, for Linux without its setup part.
pub const KERNEL_DATA: u16 = 0x11;
/// Key of the initial RAM disk.
pub const INITRD_DATA: u16 = 0x12;
/// Key of the address that the command line is to be loaded at, 32 bits.
pub const CMDLINE_ADDR: u16 = 0x13;
/// Key of the command line's size with its NUL, 32 bits.
pub const CMDLINE_SIZE: u16 = 0x14;
/// Key of the command line, NUL-terminated.
pub const CMDLINE_DATA: u16 = 0x15;
/// Key of the address that the setup part of a Linux kernel is to be loaded at, 32 bits.
pub const SETUP_ADDR: u16 = 0x16;
/// Key of the setup part's size, 32 bits.
pub const SETUP_SIZE: u16 = 0x17;
/// Key of the setup part of a Linux kernel.
pub const SETUP_DATA: u16 = 0x18;
/// Key of the directory of files.
pub const FILE_DIR: u16 = 0x19;
/// Key of the first file.
pub const FILE_FIRST: u16 = 0x20;
/// Key of a flag, 32 bits: ISA interrupt 0 arrives at pin 2 of the I/O APIC.
pub const IRQ0_OVERRIDE: u16 = 0x8002;

/// The most files: generic keys end at 0x3fff.
pub const MAX_FILES: usize = 0x4000 - FILE_FIRST as usize;
/// The longest file name in bytes.
pub const MAX_NAME: usize = 55;

/// What the DMA address register reads, "QEMU CFG".
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";
/// Bit 14 of a selector once announced a write.
const WRITE_CHANNEL: u16 = 0x4000;
const ID_TRADITIONAL: u32 = 1;
const ID_DMA: u32 = 2;

const CONTROL_ERROR: u32 = 1 << 0;
const CONTROL_READ: u32 = 1 << 1;
const CONTROL_SKIP: u32 = 1 << 2;
const CONTROL_SELECT: u32 = 1 << 3;
const CONTROL_WRITE: u32 = 1 << 4;

/// The most zeroes that one request gets behind an item's end.
const MAX_ZEROES: usize = 1 << 20;
const ZEROES: [u8; 4096] = [0; 4096];

/// Why a file cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FwCfgError {
    /// The name cannot be in the directory.
    #[error("fw_cfg file name {0:?}: it must have 1 to {MAX_NAME} printable ascii characters")]
    Name(String),
    /// Two files of one name.
    #[error("fw_cfg has a file {0:?} already")]
    Duplicate(String),
    /// A size that 32 bits cannot say.
    #[error("fw_cfg file {name:?} has {size} bytes, at most 4 GiB less one are possible")]
    Size {
        /// The file.
        name: String,
        /// Its size.
        size: u64,
    },
    /// Too many files.
    #[error("fw_cfg has room for {MAX_FILES} files")]
    Full,
}

/// Makes a file's content anew, or says that it is what it was.
type Generate = Box<dyn FnMut() -> Option<Vec<u8>> + Send>;

struct File {
    name: String,
    data: Vec<u8>,
    writable: bool,
    generate: Option<Generate>,
}

/// A firmware configuration device. All items are to be added before a guest runs.
pub struct FwCfg {
    memory: Option<Arc<dyn DmaMemory>>,
    items: BTreeMap<u16, Vec<u8>>,
    /// In order of their names, which is the order of their keys.
    files: Vec<File>,
    selected: u16,
    position: usize,
    dma_high: u32,
}

impl FwCfg {
    /// A device with signature, features and an empty directory, without DMA.
    pub fn new() -> Self {
        let mut this = Self {
            memory: None,
            items: BTreeMap::new(),
            files: Vec::new(),
            selected: SIGNATURE,
            position: 0,
            dma_high: 0,
        };
        this.add(SIGNATURE, *b"QEMU");
        this.add(ID, ID_TRADITIONAL.to_le_bytes());
        this.list_files();
        this
    }

    /// The same with DMA to and from `memory`.
    pub fn with_dma(memory: Arc<dyn DmaMemory>) -> Self {
        let mut this = Self { memory: Some(memory), ..Self::new() };
        this.add(ID, (ID_TRADITIONAL | ID_DMA).to_le_bytes());
        this
    }

    /// Adds or replaces an item. Keys of files are not for this.
    pub fn add(&mut self, key: u16, data: impl Into<Vec<u8>>) {
        self.items.insert(key & !WRITE_CHANNEL, data.into());
    }

    /// Adds a file that the guest can read.
    ///
    /// # Errors
    /// See [`FwCfgError`].
    pub fn add_file(&mut self, name: &str, data: impl Into<Vec<u8>>) -> Result<(), FwCfgError> {
        self.insert(name, data.into(), false)
    }

    /// Adds a file that the guest can overwrite by DMA.
    ///
    /// # Errors
    /// See [`FwCfgError`].
    pub fn add_writable_file(&mut self, name: &str, data: impl Into<Vec<u8>>) -> Result<(), FwCfgError> {
        self.insert(name, data.into(), true)
    }

    /// Adds a file whose content depends on what the guest has done before it reads it, such as where it has put
    /// a device. `generate` is called whenever the guest selects the file, with the device locked, and returns
    /// the new content, or `None` if it has not changed. The file keeps the length of `data`: what is longer is
    /// cut, what is shorter padded with zeroes.
    ///
    /// # Errors
    /// See [`FwCfgError`].
    pub fn add_generated_file(
        &mut self,
        name: &str,
        data: impl Into<Vec<u8>>,
        generate: impl FnMut() -> Option<Vec<u8>> + Send + 'static,
    ) -> Result<(), FwCfgError> {
        self.insert(name, data.into(), false)?;
        if let Some(file) = self.files.iter_mut().find(|file| file.name == name) {
            file.generate = Some(Box::new(generate));
        }
        Ok(())
    }

    /// What a file holds now.
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.iter().find(|file| file.name == name).map(|file| file.data.as_slice())
    }

    fn insert(&mut self, name: &str, data: Vec<u8>, writable: bool) -> Result<(), FwCfgError> {
        let printable = name.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        if !printable || !(1..=MAX_NAME).contains(&name.len()) {
            return Err(FwCfgError::Name(name.to_owned()));
        }
        if u32::try_from(data.len()).is_err() {
            return Err(FwCfgError::Size { name: name.to_owned(), size: data.len() as u64 });
        }
        if self.files.len() == MAX_FILES {
            return Err(FwCfgError::Full);
        }
        match self.files.binary_search_by_key(&name, |file| &file.name) {
            Ok(_) => return Err(FwCfgError::Duplicate(name.to_owned())),
            Err(at) => self.files.insert(at, File { name: name.to_owned(), data, writable, generate: None }),
        }
        self.list_files();
        Ok(())
    }

    /// Writes the directory.
    fn list_files(&mut self) {
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for (key, file) in (FILE_FIRST..).zip(&self.files) {
            directory.extend((file.data.len() as u32).to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            directory.extend(file.name.bytes().chain(std::iter::repeat(0)).take(MAX_NAME + 1));
        }
        self.add(FILE_DIR, directory);
    }

    fn file_index(key: u16) -> Option<usize> {
        key.checked_sub(FILE_FIRST).map(usize::from)
    }

    /// The selected item; what does not exist is empty.
    fn item(&self) -> &[u8] {
        let file = Self::file_index(self.selected).and_then(|at| self.files.get(at));
        let item = file.map(|file| &file.data).or_else(|| self.items.get(&self.selected));
        item.map_or(&[], Vec::as_slice)
    }

    fn select(&mut self, key: u16) {
        (self.selected, self.position) = (key & !WRITE_CHANNEL, 0);
        let file = Self::file_index(self.selected).and_then(|at| self.files.get_mut(at));
        let Some(file) = file else { return };
        if let Some(mut data) = file.generate.as_mut().and_then(|generate| generate()) {
            data.resize(file.data.len(), 0);
            file.data = data;
        }
    }

    /// Moves the position on by at most `count` bytes, and returns those that it passed.
    fn advance(&mut self, count: usize) -> &[u8] {
        let start = self.position;
        self.position = start.saturating_add(count).min(self.item().len());
        self.item().get(start..self.position).unwrap_or_default()
    }

    /// Carries out the request at `address`.
    fn request(&mut self, address: u64) {
        let Some(memory) = self.memory.clone() else { return };
        let mut request = [0; 16];
        let done =
            memory.read(address, &mut request) && self.transfer(&*memory, u128::from_be_bytes(request));
        let control = if done { 0 } else { CONTROL_ERROR };
        // Where there is no memory, nobody waits for the answer.
        memory.write(address, &control.to_be_bytes());
    }

    fn transfer(&mut self, memory: &dyn DmaMemory, request: u128) -> bool {
        let (control, length, address) = ((request >> 96) as u32, (request >> 64) as u32, request as u64);
        let length = length as usize;
        if control & CONTROL_SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        if control & CONTROL_READ != 0 {
            self.read_to(memory, address, length)
        } else if control & CONTROL_WRITE != 0 {
            self.write_from(memory, address, length)
        } else {
            if control & CONTROL_SKIP != 0 {
                self.advance(length);
            }
            true
        }
    }

    fn read_to(&mut self, memory: &dyn DmaMemory, address: u64, length: usize) -> bool {
        let left = self.item().len().saturating_sub(self.position);
        let mut zeroes = length.saturating_sub(left);
        if zeroes > MAX_ZEROES {
            return false;
        }
        let data = self.advance(length);
        let mut at = address.checked_add(data.len() as u64);
        let mut ok = data.is_empty() || memory.write(address, data);
        while let Some(here) = at.filter(|_| ok && zeroes > 0) {
            let part = ZEROES.get(..zeroes).unwrap_or(&ZEROES);
            ok = memory.write(here, part);
            zeroes -= part.len();
            at = here.checked_add(part.len() as u64);
        }
        ok && zeroes == 0
    }

    fn write_from(&mut self, memory: &dyn DmaMemory, address: u64, length: usize) -> bool {
        let Some(end) = self.position.checked_add(length) else { return false };
        let file = Self::file_index(self.selected).and_then(|at| self.files.get_mut(at));
        let Some(file) = file.filter(|file| file.writable) else { return false };
        let Some(data) = file.data.get_mut(self.position..end) else { return false };
        self.position = end;
        data.is_empty() || memory.read(address, data)
    }

    fn read_dma_register(offset: u16) -> u32 {
        u64::from_le_bytes(DMA_SIGNATURE).checked_shr(8 * u32::from(offset)).unwrap_or(0) as u32
    }

    fn write_dma_register(&mut self, offset: u16, size: AccessSize, value: u32) {
        match (offset, size) {
            (0, AccessSize::Dword) => self.dma_high = value.swap_bytes(),
            (4, AccessSize::Dword) => {
                let high = std::mem::take(&mut self.dma_high);
                self.request(u64::from(high) << 32 | u64::from(value.swap_bytes()));
            }
            _ => {}
        }
    }
}

impl Default for FwCfg {
    fn default() -> Self {
        Self::new()
    }
}

impl PortIo for FwCfg {
    fn read(&mut self, region: usize, offset: u16, size: AccessSize) -> u32 {
        match (region, size) {
            // Any byte of the two ports is the data port when read.
            (PORTS, AccessSize::Byte) => self.advance(1).first().copied().unwrap_or(0).into(),
            (DMA, _) if self.memory.is_some() => Self::read_dma_register(offset),
            _ => size.ones() as u32,
        }
    }

    fn write(&mut self, region: usize, offset: u16, size: AccessSize, value: u32) {
        match (region, offset, size) {
            (PORTS, 0, AccessSize::Word) => self.select(value as u16),
            (DMA, ..) => self.write_dma_register(offset, size, value),
            _ => {}
        }
    }

    fn read_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &mut [u8]) {
        if (region, size) != (PORTS, AccessSize::Byte) {
            return read_each(self, region, offset, size, data);
        }
        let bytes = self.advance(data.len());
        let (start, rest) = data.split_at_mut(bytes.len());
        start.copy_from_slice(bytes);
        rest.fill(0);
    }

    fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]) {
        write_each(self, region, offset, size, data);
    }
}

impl Device for FwCfg {
    fn name(&self) -> &str {
        "fw-cfg"
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        None
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        None
    }

    fn reset(&mut self) {
        self.select(SIGNATURE);
        self.dma_high = 0;
    }
}

/// Saved state of a [`FwCfg`]: not the items, which the machine's configuration gives, but for those that a
/// guest can write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwCfgState {
    selected: u16,
    position: u64,
    dma_high: u32,
    /// Writable files, in order of their keys.
    written: Vec<Vec<u8>>,
}

impl SaveRestore for FwCfg {
    type State = FwCfgState;

    fn save(&self) -> FwCfgState {
        let Self { memory: _, items: _, files, selected, position, dma_high } = self;
        FwCfgState {
            selected: *selected,
            position: *position as u64,
            dma_high: *dma_high,
            written: files.iter().filter(|file| file.writable).map(|file| file.data.clone()).collect(),
        }
    }

    fn restore(&mut self, state: FwCfgState) -> Result<(), RestoreError> {
        let FwCfgState { selected, position, dma_high, written } = state;
        let lengths = self.files.iter().filter(|file| file.writable).map(|file| file.data.len());
        check("fw-cfg", written.iter().map(Vec::len).eq(lengths), || {
            "its writable files are not those of this machine".to_owned()
        })?;
        for (file, data) in self.files.iter_mut().filter(|file| file.writable).zip(written) {
            file.data = data;
        }
        self.select(selected);
        self.advance(usize::try_from(position).unwrap_or(usize::MAX));
        self.dma_high = dma_high;
        Ok(())
    }
}
