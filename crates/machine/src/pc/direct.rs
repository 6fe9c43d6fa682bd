//! A kernel started without firmware: the board does what firmware does before it.

use trapline_boot::{RamRange, Request, acpi, smbios};
use trapline_device::AccessSize::{self, Byte, Dword, Word};
use trapline_device::PortIo;
use trapline_ide::{IDETIM, IDETIM_DECODE};
use trapline_pci::piix::PIRQRC;
use trapline_pci::{AddressWindows, Bdf, Command, PAM0, SharedRoot, regs};
use trapline_vcpu::Vcpu;

use super::tables::{Board, LINK_IRQS, PCI_MEMORY_END, acpi_config, pci_memory_start, smbios_config};
use super::{IDE_FUNCTION, PM_BASE, PM_FUNCTION, SOUTH};
use crate::chassis::lock;
use crate::config::KernelConfig;
use crate::devices::Devices;
use crate::{Result, boot_state};

const PMBASE: u16 = 0x40;
const PMREGMISC: u16 = 0x80;
const SMBBA: u16 = 0x90;
const SMBHSTCFG: u16 = 0xd2;
/// Where the SMBus is.
const SMBUS_PORTS: u32 = 0x700;
/// ISA interrupts of PIRQ A to D.
const PIRQS: [u8; 4] = [LINK_IRQS[1], LINK_IRQS[1], LINK_IRQS[2], LINK_IRQS[2]];
/// Ports for BARs.
const PCI_PORTS: (u64, u64) = (0xc000, 0x4000);

/// Sets up the chipset as the kernel expects to find it: RAM below 1 MiB, BARs, interrupt routes, IDE ports,
/// power management.
pub(crate) fn set_up_chipset(root: &SharedRoot, devices: &Devices, ram: &[RamRange]) -> Result<()> {
    let mut root = lock(root);
    let mut write = |function: Bdf, offset: u16, size: AccessSize, value: u32| {
        root.config_write(function, offset, size, value);
    };
    let (host, isa) = (Bdf::new(0, 0, 0), Bdf::new(0, SOUTH, 0));
    for register in 0..7 {
        write(host, PAM0 + register, Byte, 0x33);
    }
    for (register, irq) in (PIRQRC..).zip(PIRQS) {
        write(isa, register, Byte, irq.into());
    }
    let ide = Bdf::new(0, SOUTH, IDE_FUNCTION);
    for channel in [0, 2] {
        write(ide, IDETIM + channel, Word, IDETIM_DECODE.into());
    }
    let pm = Bdf::new(0, SOUTH, PM_FUNCTION);
    write(pm, PMBASE, Dword, PM_BASE.into());
    write(pm, PMREGMISC, Byte, 1);
    write(pm, SMBBA, Dword, SMBUS_PORTS);
    write(pm, SMBHSTCFG, Byte, 1);
    let start = pci_memory_start(ram);
    let memory = (start, PCI_MEMORY_END + 1 - start);
    root.assign_addresses(&AddressWindows { io: PCI_PORTS, memory, memory_high: None })?;
    root.config_write(ide, regs::COMMAND, Word, (Command::IO | Command::BUS_MASTER).bits().into());
    root.assign_interrupt_lines(|path, pin| {
        let pirq = trapline_pci::pirq_of(*path.first()?, pin);
        PIRQS.get(usize::from(pirq)).copied()
    });
    // The interrupts of PIRQs are level-triggered.
    let elcr = PIRQS.iter().fold(0_u16, |bits, irq| bits | 1 << irq);
    let mut pic = devices.pic.clone();
    for (offset, byte) in (0..).zip(elcr.to_le_bytes()) {
        pic.write(2, offset, Byte, byte.into());
    }
    devices.set_up_pic();
    Ok(())
}

/// Loads the kernel and its tables, and puts the boot processor at its first instruction.
pub(crate) fn load(
    memory: &trapline_memory::GuestMemory,
    board: &Board,
    kernel: &KernelConfig,
    vcpu: &mut dyn Vcpu,
) -> Result<()> {
    let KernelConfig { kernel, initrd, cmdline } = kernel;
    let rsdp = acpi::write(memory, &acpi_config(board, PM_BASE))?;
    smbios::write(memory, &smbios_config(board))?;
    let request = Request {
        kernel,
        initrd: initrd.as_deref(),
        command_line: cmdline,
        rsdp: Some(rsdp),
        text_screen: board.vga,
        protocol: None,
    };
    let loaded = trapline_boot::load(memory, &board.ram, &request)?;
    boot_state::set_virtual_wire(vcpu)?;
    boot_state::set_entry(vcpu, &loaded.entry)?;
    Ok(())
}
