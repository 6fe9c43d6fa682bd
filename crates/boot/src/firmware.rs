//! A Linux kernel that firmware starts, from items of fw_cfg (QEMU `docs/specs/fw_cfg.rst`; Linux
//! `Documentation/arch/x86/boot.rst`, the 16-bit entry).
//!
//! [`FirmwareKernel::load`] makes the items. UEFI firmware takes the kernel from them as an EFI program. A BIOS
//! needs help: [`option_rom`] is an option ROM of our own that offers itself as a device to boot from, loads the
//! items by DMA and enters the kernel's setup code in real mode. SeaBIOS runs it from the file
//! [`OPTION_ROM_FILE`].
//!
//! Left out: Multiboot and other kernels that are no bzImage.

use iced_x86::code_asm::*;
use vm_memory::ByteValued;

use crate::bzimage::{read_header, setup_size};
use crate::ram::{self, layout};
use crate::source::Source;
use crate::{Error, RamRange, Request, check_command_line};

/// Name of the file of [`option_rom`].
pub const OPTION_ROM_FILE: &str = "genroms/linuxboot.bin";

/// Where the setup code goes: below 1 MiB, with its heap and stack behind it.
const SETUP: u32 = 0x1_0000;
/// Offset of the end of its heap, where its stack begins.
const HEAP_END: u32 = 0xfff0;
/// The most bytes of setup code: the rest of its 64 KiB is for heap and stack.
const MOST_SETUP: u64 = 0x8000;
/// What firmware keeps for itself at the end of RAM below 4 GiB.
const FIRMWARE_RAM: u64 = 1 << 20;

/// Offsets in the setup code's header.
const HEADER: usize = 0x1f1;
/// `CAN_USE_HEAP` of `loadflags`.
const CAN_USE_HEAP: u8 = 0x80;
/// "Undefined" boot loader type.
const LOADER_UNDEFINED: u8 = 0xff;

/// Bytes, and the physical address that they are to be loaded at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The address.
    pub address: u32,
    /// The bytes.
    pub data: Vec<u8>,
}

/// A kernel as fw_cfg has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareKernel {
    /// The setup part of the file, with the fields that a boot loader fills in.
    pub setup: Item,
    /// The rest of the file: the protected-mode kernel.
    pub kernel: Item,
    /// The initial RAM disk; without bytes if there is none.
    pub initrd: Item,
    /// The command line with its NUL.
    pub command_line: Item,
}

impl FirmwareKernel {
    /// Reads a bzImage, an initrd and a command line for a machine with this RAM. Of `request` only these three
    /// count.
    ///
    /// # Errors
    /// As [`load`](crate::load).
    pub fn load(request: &Request, ram: &[RamRange]) -> Result<Self, Error> {
        let source = Source::open("kernel", request.kernel)?;
        let mut magic = [0; 4];
        source.read("setup header", 0x202, &mut magic)?;
        if &magic != b"HdrS" {
            let reason = "firmware starts bzImages only, and it has no Linux setup header".to_owned();
            return Err(Error::Unsupported { path: request.kernel.to_owned(), reason });
        }
        let mut header = read_header(&source)?;
        let split = setup_size(&header);
        source.check("protected-mode kernel", split, 1)?;
        if split > MOST_SETUP {
            let reason = format!("its setup code has {split} bytes, at most {MOST_SETUP} are possible");
            return Err(Error::Unsupported { path: request.kernel.to_owned(), reason });
        }
        let mut setup = whole("setup code", &source, 0, split)?;
        let kernel = whole("protected-mode kernel", &source, split, source.len() - split)?;
        let version = header.version;
        let limit = if version >= 0x0206 { header.cmdline_size as usize } else { 255 };
        check_command_line(request.command_line, limit)?;
        let mut command_line = request.command_line.as_bytes().to_vec();
        command_line.push(0);

        // The kernel unpacks itself to its preferred address, from where it is loaded.
        let end = layout::HIGH_MEMORY + kernel.len() as u64;
        let unpacked = match version >= 0x020a {
            true => header.pref_address.saturating_add(header.init_size.into()),
            false => 0,
        };
        let taken = [(layout::HIGH_MEMORY, end.max(unpacked))];
        let initrd = match request.initrd {
            Some(path) => initrd(path, ram, u64::from(header.initrd_addr_max) + 1, &taken)?,
            None => Item { address: 0, data: Vec::new() },
        };
        header.type_of_loader = LOADER_UNDEFINED;
        header.loadflags |= CAN_USE_HEAP;
        header.heap_end_ptr = (HEAP_END - 0x200) as u16;
        header.cmd_line_ptr = layout::COMMAND_LINE as u32;
        header.ramdisk_image = initrd.address;
        header.ramdisk_size = initrd.data.len() as u32;
        // Only as much of the header as this kernel has.
        let own = 0x202 + usize::from(setup[0x201]) - HEADER;
        let bytes = header.as_slice();
        let own = own.min(bytes.len());
        setup[HEADER..HEADER + own].copy_from_slice(&bytes[..own]);
        Ok(Self {
            setup: Item { address: SETUP, data: setup },
            kernel: Item { address: layout::HIGH_MEMORY as u32, data: kernel },
            initrd,
            command_line: Item { address: layout::COMMAND_LINE as u32, data: command_line },
        })
    }
}

/// Reads a part of a file that firmware will have to load below 4 GiB.
fn whole(part: &'static str, source: &Source, offset: u64, size: u64) -> Result<Vec<u8>, Error> {
    source.check(part, offset, size)?;
    if u32::try_from(size).is_err() {
        let reason = format!("its {part} has {size} bytes, firmware loads at most 4 GiB");
        return Err(Error::Unsupported { path: source.path().to_owned(), reason });
    }
    let mut bytes = vec![0; size as usize];
    source.read(part, offset, &mut bytes)?;
    Ok(bytes)
}

/// The initrd, as high as kernel and firmware let it be.
fn initrd(
    path: &std::path::Path,
    ram: &[RamRange],
    kernel_limit: u64,
    taken: &[(u64, u64)],
) -> Result<Item, Error> {
    let source = Source::open("initrd", path)?;
    let size = source.len();
    if size == 0 {
        let reason = "the file is empty".to_owned();
        return Err(Error::Open { role: "initrd", path: path.to_owned(), reason });
    }
    let low_end = ram.iter().map(RamRange::end).filter(|end| *end <= 1 << 32).max().unwrap_or(0);
    let limit = kernel_limit.min(low_end.saturating_sub(FIRMWARE_RAM));
    let address = ram::highest_fit(ram, size, limit, taken).map_err(|available| Error::InitrdTooLarge {
        path: path.to_owned(),
        size,
        available,
        limit,
    })?;
    Ok(Item { address: address as u32, data: whole("content", &source, 0, size)? })
}

// Keys of fw_cfg.
const KERNEL_ADDR: u32 = 0x07;
const KERNEL_SIZE: u32 = 0x08;
const INITRD_ADDR: u32 = 0x0a;
const INITRD_SIZE: u32 = 0x0b;
const KERNEL_DATA: u32 = 0x11;
const INITRD_DATA: u32 = 0x12;
const CMDLINE_ADDR: u32 = 0x13;
const CMDLINE_SIZE: u32 = 0x14;
const CMDLINE_DATA: u32 = 0x15;
const SETUP_ADDR: u32 = 0x16;
const SETUP_SIZE: u32 = 0x17;
const SETUP_DATA: u32 = 0x18;
/// fw_cfg's ports: selector, and the lower half of the DMA address; data is behind the selector.
const SELECTOR: u32 = 0x510;
const DMA: u32 = 0x518;
const DMA_SELECT_READ: u32 = 0x0a;
const DMA_ERROR_ONLY: u32 = 0x0100_0000;

/// Where the ROM's code has its stack, and above it a DMA request.
const STACK: u32 = 0x7c00;
const REQUEST: u32 = 0x7c00;

const ROM_SIZE: usize = 512;
/// Offset of the Plug and Play header, and its length.
const PNP: usize = 0x20;
const PNP_LEN: usize = 0x20;
const NAME: usize = PNP + PNP_LEN;
/// Offset of the code: initialisation first, which returns at once.
const CODE: usize = 0x60;

/// An option ROM that boots the kernel of fw_cfg: a Plug and Play boot device without hardware (BIOS Boot
/// Specification 1.01, 3.2; Plug and Play BIOS Specification 1.0A, 3.1), 512 bytes long.
///
/// Its bootstrap entry loads the items to the addresses that fw_cfg says, by DMA, and jumps to the setup code.
/// Where there is no kernel, or fw_cfg reports an error, it returns to the firmware.
///
/// # Panics
/// Never: its code is always the same.
pub fn option_rom() -> Vec<u8> {
    let (code, boot) = assemble().unwrap_or_default();
    assert!(!code.is_empty() && CODE + code.len() < ROM_SIZE, "the option rom is always the same");
    let mut rom = vec![0; ROM_SIZE];
    let mut put = |at: usize, bytes: &[u8]| rom[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0x55, 0xaa, (ROM_SIZE / 512) as u8]);
    put(3, &[0xe9]); // jmp
    put(4, &((CODE - 6) as u16).to_le_bytes());
    put(0x1a, &(PNP as u16).to_le_bytes());
    put(PNP, b"$PnP\x01");
    put(PNP + 5, &[(PNP_LEN / 16) as u8]);
    put(PNP + 0x10, &(NAME as u16).to_le_bytes()); // product name
    put(PNP + 0x12, &[0, 0, 0]); // no class
    put(PNP + 0x1a, &(boot as u16).to_le_bytes()); // bootstrap entry vector
    put(NAME, b"Linux from fw_cfg\0");
    put(CODE, &code);
    rom[PNP + 9] = crate::acpi::checksum(&rom[PNP..PNP + PNP_LEN]);
    rom[ROM_SIZE - 1] = crate::acpi::checksum(&rom);
    rom
}

/// The code, and the offset of its bootstrap entry in the ROM.
fn assemble() -> Result<(Vec<u8>, usize), IcedError> {
    let mut a = CodeAssembler::new(16)?;
    let [mut boot, mut fetch, mut more, mut load, mut nothing, mut wait, mut failed] =
        [(); 7].map(|()| a.create_label());
    // Initialisation: nothing to do.
    a.xor(ax, ax)?;
    a.retf()?;

    a.set_label(&mut boot)?;
    a.cli()?;
    a.cld()?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    // Back to the firmware by its stack, if it comes to that.
    a.mov(bx, sp)?;
    a.mov(cx, ss)?;
    a.mov(ss, ax)?;
    a.mov(sp, STACK)?;
    a.push(cx)?;
    a.push(bx)?;
    for (size, address, data) in [
        (SETUP_SIZE, SETUP_ADDR, SETUP_DATA),
        (KERNEL_SIZE, KERNEL_ADDR, KERNEL_DATA),
        (INITRD_SIZE, INITRD_ADDR, INITRD_DATA),
        (CMDLINE_SIZE, CMDLINE_ADDR, CMDLINE_DATA),
    ] {
        a.mov(ax, size)?;
        a.call(fetch)?;
        a.mov(edi, eax)?;
        a.mov(ax, address)?;
        a.call(fetch)?;
        a.mov(ecx, data << 16 | DMA_SELECT_READ)?;
        a.call(load)?;
        if size == SETUP_SIZE || size == KERNEL_SIZE {
            // These two must be there.
            a.test(edi, edi)?;
            a.jz(failed)?;
        }
    }
    // The setup code, with all segments its own, and its stack at the end of its heap.
    a.mov(ax, SETUP_ADDR)?;
    a.call(fetch)?;
    a.shr(eax, 4)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(fs, ax)?;
    a.mov(gs, ax)?;
    a.mov(ss, ax)?;
    a.mov(esp, HEAP_END)?;
    a.add(ax, 0x20)?;
    a.push(ax)?;
    a.push(0)?;
    a.retf()?;

    a.set_label(&mut failed)?;
    a.mov(sp, STACK - 4)?;
    a.pop(bx)?;
    a.pop(cx)?;
    a.mov(ss, cx)?;
    a.mov(sp, bx)?;
    a.sti()?;
    a.retf()?;

    // EAX: the 32-bit item of key AX. Changes DX, SI.
    a.set_label(&mut fetch)?;
    a.mov(dx, SELECTOR)?;
    a.out(dx, ax)?;
    a.inc(dx)?;
    a.mov(si, 4)?;
    a.set_label(&mut more)?;
    a.in_(al, dx)?;
    a.ror(eax, 8)?;
    a.dec(si)?;
    a.jnz(more)?;
    a.ret()?;

    // Reads EDI bytes by the request ECX to address EAX. Changes EAX, ECX, DX.
    a.set_label(&mut load)?;
    a.test(edi, edi)?;
    a.jz(nothing)?;
    a.bswap(eax)?;
    a.mov(dword_ptr(REQUEST + 12), eax)?;
    a.xor(eax, eax)?;
    a.mov(dword_ptr(REQUEST + 8), eax)?;
    a.mov(eax, edi)?;
    a.bswap(eax)?;
    a.mov(dword_ptr(REQUEST + 4), eax)?;
    a.bswap(ecx)?;
    a.mov(dword_ptr(REQUEST), ecx)?;
    a.mov(eax, REQUEST)?;
    a.bswap(eax)?;
    a.mov(dx, DMA)?;
    a.out(dx, eax)?;
    a.set_label(&mut wait)?;
    a.mov(eax, dword_ptr(REQUEST))?;
    a.cmp(eax, DMA_ERROR_ONLY)?;
    a.je(failed)?;
    a.test(eax, eax)?;
    a.jnz(wait)?;
    a.set_label(&mut nothing)?;
    a.ret()?;

    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = a.assemble_options(CODE as u64, options)?;
    let entry = result.label_ip(&boot)? as usize;
    Ok((result.inner.code_buffer, entry))
}
