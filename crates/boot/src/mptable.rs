//! MultiProcessor table (Intel MultiProcessor Specification 1.4) for kernels without ACPI: processors, one
//! ISA bus, one I/O APIC, the 16 ISA interrupts (IRQ 0 at pin 2 where configured) and the local interrupts.
//!
//! Left out: PCI buses and interrupts, and processors with APIC IDs above 254, which the format cannot name.
//!
//! ```
//! use trapline_boot::{acpi::{AcpiConfig, IoApic}, mptable};
//!
//! let io_apic = Some(IoApic { id: 1, address: 0xfec0_0000, gsi_base: 0 });
//! let table = mptable::build(&AcpiConfig { io_apic, ..AcpiConfig::default() }, 0x9_fc00)?;
//! assert!(table.starts_with(b"_MP_"));
//! # Ok::<(), trapline_boot::Error>(())
//! ```

use vm_memory::GuestMemory;

use crate::Error;
use crate::acpi::{AcpiConfig, checksum};
use crate::ram::{self, layout};

/// Length of the floating pointer structure.
const POINTER_LEN: usize = 16;
/// Length of the configuration table header.
const HEADER_LEN: usize = 44;
/// Version field for 1.4.
const VERSION: u8 = 4;

/// Writes the floating pointer and the table into the extended BIOS data area and returns their address.
///
/// # Errors
/// If they do not fit there (about 40 processors), or the board cannot be described.
pub fn write<M: GuestMemory>(memory: &M, config: &AcpiConfig) -> Result<u64, Error> {
    let table = build(config, layout::EBDA)?;
    if table.len() > 1024 {
        let reason = format!("{} bytes of mp table, the extended bios data area has 1024", table.len());
        return Err(Error::Tables(reason));
    }
    ram::write(memory, layout::EBDA, &table)?;
    Ok(layout::EBDA)
}

/// The floating pointer structure for `address`, and the configuration table right behind it.
///
/// # Errors
/// If there is no I/O APIC, or an APIC ID above 254, or the address is not a multiple of 16 below 4 GiB.
pub fn build(config: &AcpiConfig, address: u64) -> Result<Vec<u8>, Error> {
    let fail = |reason: &str| Err(Error::Tables(reason.into()));
    let Some(io_apic) = config.io_apic else { return fail("an mp table needs an i/o apic") };
    if config.apic_ids.is_empty() || config.apic_ids.iter().any(|&id| id > 254) {
        return fail("an mp table needs processors, with apic ids of at most 254");
    }
    let base = match u32::try_from(address) {
        Ok(base) if base.is_multiple_of(16) && base < 0xff00_0000 => base,
        _ => return fail("an mp table must be 16-byte aligned and below 4 GiB"),
    };

    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for (index, &id) in config.apic_ids.iter().enumerate() {
        add(&processor(id as u8, index == 0));
    }
    add(b"\x01\x00ISA   ");
    let [a, b, c, d] = io_apic.address.to_le_bytes();
    add(&[2, io_apic.id, 0x11, 1, a, b, c, d]); // enabled
    for irq in (0..16u8).filter(|&irq| irq != 2) {
        let pin = if irq == 0 && config.timer_override { 2 } else { irq };
        // Vectored interrupt; the ISA bus's own polarity and trigger mode, the SCI is level and active high.
        let flags = if irq == config.sci { 0b1101 } else { 0 };
        add(&[3, 0, flags, 0, 0, irq, io_apic.id, pin]);
    }
    add(&[4, 3, 0, 0, 0, 0, 0xff, 0]); // ExtINT at LINT0 of all processors
    add(&[4, 1, 0, 0, 0, 0, 0xff, 1]); // NMI at LINT1

    let mut table = b"PCMP".to_vec();
    table.extend(((HEADER_LEN + entries.len()) as u16).to_le_bytes());
    table.extend([VERSION, 0]);
    table.extend(b"TRAPLINETRAPLINE    "); // OEM and product
    table.extend([0; 6]); // no OEM table
    table.extend(count.to_le_bytes());
    table.extend(config.local_apic_address.to_le_bytes());
    table.extend([0; 4]); // no extended table
    table.extend(entries);
    table[7] = checksum(&table);

    let mut out = b"_MP_".to_vec();
    out.extend((base + POINTER_LEN as u32).to_le_bytes());
    out.extend([1, VERSION, 0, 0, 0, 0, 0, 0]); // one paragraph; a table is present; no PIC mode
    out[10] = checksum(&out);
    out.extend(table);
    Ok(out)
}

/// Processor entry: enabled, the first one starts; family 6 with an FPU and an APIC on the chip.
fn processor(apic_id: u8, boot: bool) -> [u8; 20] {
    const INTEGRATED_APIC_VERSION: u8 = 0x14;
    let mut entry = [0; 20];
    entry[1] = apic_id;
    entry[2] = INTEGRATED_APIC_VERSION;
    entry[3] = 1 | u8::from(boot) << 1;
    entry[4..8].copy_from_slice(&0x600u32.to_le_bytes());
    entry[8..12].copy_from_slice(&0x201u32.to_le_bytes());
    entry
}
