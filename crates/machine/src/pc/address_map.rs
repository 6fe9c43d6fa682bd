//! What the guest finds at which physical address: RAM, ROM, the memory of devices, or a device to exit to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use trapline_device::bus::MmioBusBuilder;
use trapline_device::{AccessSize, Device, DmaMemory, MmioIo, Poll, PortIo};
use trapline_memory::Slot;
use trapline_pci::{Shadow, Smram};

use crate::Result;
use crate::devices::shared;

/// Where the display's memory is, and behind it system management RAM.
const LEGACY_VIDEO: u64 = 0xa_0000;
/// Where the segments of the PAM registers begin.
const SEGMENTS: u64 = 0xc_0000;
const MIB: u64 = 1 << 20;
/// From here to 4 GiB are I/O APIC, HPET, local APICs, pages of the engine's, and ROM.
const FIXED: u64 = 0xfec0_0000;

/// The memory of a PC, without what its host bridge and PCI functions change.
pub(crate) struct AddressMap {
    /// RAM and ROMs at their full addresses.
    fixed: Vec<Slot>,
    /// The end of the firmware ROM as it is seen below 1 MiB.
    alias: Option<Slot>,
    writes: Arc<WriteOnly>,
}

impl AddressMap {
    /// `slots` are RAM, which reaches from 0 to above 1 MiB, and ROMs. The last 128 KiB of the ROM that ends
    /// at 4 GiB, if there is one, are also seen below 1 MiB.
    pub(crate) fn new(slots: &[Slot], memory: Arc<dyn DmaMemory>) -> Self {
        let rom = slots.iter().find(|slot| slot.read_only && slot.end() == 1 << 32);
        let alias = rom.map(|rom| {
            let size = rom.size.min(128 << 10);
            Slot { gpa: MIB - size, size, hpa: rom.hpa + (rom.size - size), ..*rom }
        });
        let writes = Arc::new(WriteOnly { segments: AtomicU16::new(0), memory });
        Self { fixed: slots.to_vec(), alias, writes }
    }

    /// What lies where while the host bridge decodes like this. `devices` are the slots of devices' memory.
    pub(crate) fn slots(&self, shadows: &[Shadow], smram: Smram, devices: &[Slot]) -> Vec<Slot> {
        let mut slots = Vec::new();
        for slot in &self.fixed {
            slots.extend(part(slot, 0, LEGACY_VIDEO));
            if smram.enabled && smram.open {
                slots.extend(part(slot, LEGACY_VIDEO, SEGMENTS));
            }
            for shadow in shadows.iter().filter(|shadow| shadow.read_ram) {
                let ram = part(slot, shadow.start, shadow.start + shadow.len);
                slots.extend(ram.map(|ram| Slot { read_only: !shadow.write_ram, ..ram }));
            }
            slots.extend(part(slot, MIB, u64::MAX));
        }
        // One slot a segment, so that those that do not change stay in place.
        for shadow in shadows.iter().filter(|shadow| !shadow.read_ram) {
            let rom = self.alias.and_then(|rom| part(&rom, shadow.start, shadow.start + shadow.len));
            slots.extend(rom);
        }
        // RAM goes before a BAR that a guest has put over it, and so do the BAR that was there first and what
        // has fixed addresses.
        let overlaps = |slot: &Slot, start, end| slot.gpa < end && start < slot.end();
        for device in devices {
            if !overlaps(device, FIXED, 1 << 32)
                && !overlaps(device, 0, MIB)
                && !slots.iter().any(|slot| overlaps(slot, device.gpa, device.end()))
            {
                slots.push(*device);
            }
        }
        slots.sort_by_key(|slot| slot.gpa);
        let write_only = shadows.iter().filter(|shadow| shadow.write_ram && !shadow.read_ram);
        let bits = write_only.fold(0, |bits, shadow| bits | WriteOnly::bits(shadow));
        self.writes.segments.store(bits, Ordering::Release);
        slots
    }

    /// What answers in the segments of the PAM registers where no slot does.
    pub(crate) fn wire(&self, mmio: &mut MmioBusBuilder) -> Result<()> {
        let device = shared(Segments(self.writes.clone()));
        Ok(mmio.register(SEGMENTS, MIB - SEGMENTS, device, 0, "shadow")?)
    }
}

/// The part of `slot` from `start` to `end`.
fn part(slot: &Slot, start: u64, end: u64) -> Option<Slot> {
    let (from, to) = (slot.gpa.max(start), slot.end().min(end));
    (from < to).then(|| Slot { gpa: from, size: to - from, hpa: slot.hpa + (from - slot.gpa), ..*slot })
}

/// Segments that are read from ROM and written to RAM: the guest's writes to them exit.
struct WriteOnly {
    /// One bit for each 16 KiB from [`SEGMENTS`] on.
    segments: AtomicU16,
    memory: Arc<dyn DmaMemory>,
}

impl WriteOnly {
    fn bits(shadow: &Shadow) -> u16 {
        let first = (shadow.start - SEGMENTS) >> 14;
        (0..shadow.len >> 14).fold(0, |bits, at| bits | 1 << (first + at))
    }
}

struct Segments(Arc<WriteOnly>);

impl MmioIo for Segments {
    fn read(&mut self, _region: usize, _offset: u64, size: AccessSize) -> u64 {
        size.ones()
    }

    fn write(&mut self, _region: usize, offset: u64, size: AccessSize, value: u64) {
        let bytes = value.to_le_bytes();
        for (at, byte) in (offset..).zip(bytes).take(size.bytes()) {
            if self.0.segments.load(Ordering::Acquire) >> (at >> 14) & 1 != 0 {
                self.0.memory.write(SEGMENTS + at, &[byte]);
            }
        }
    }
}

impl Device for Segments {
    fn name(&self) -> &str {
        "shadow"
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        None
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        Some(self)
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        None
    }

    /// What it does follows from the host bridge.
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use trapline_device::bus::MmioBus;
    use trapline_memory::{GuestRam, RamConfig};

    const F: u64 = 0xf_0000;

    fn shadow(start: u64, len: u64, read_ram: bool, write_ram: bool) -> Shadow {
        Shadow { start, len, read_ram, write_ram }
    }

    /// All segments to the bus, but for `change`.
    fn shadows(change: Shadow) -> Vec<Shadow> {
        let mut all = vec![shadow(F, 0x1_0000, false, false)];
        all.extend((0..12).map(|i| shadow(SEGMENTS + 0x4000 * i, 0x4000, false, false)));
        all.iter_mut().filter(|old| old.start == change.start).for_each(|old| *old = change);
        all
    }

    fn at(slots: &[Slot], gpa: u64) -> Option<(u64, bool)> {
        let slot = slots.iter().find(|slot| slot.gpa <= gpa && gpa < slot.end())?;
        Some((slot.hpa + (gpa - slot.gpa), slot.read_only))
    }

    fn board() -> (GuestRam, AddressMap, u64) {
        let mut ram = GuestRam::new(&RamConfig::new(4 << 20)).unwrap();
        ram.add_rom((1 << 32) - 0x4_0000, &vec![0xcc; 0x4_0000]).unwrap();
        let rom = ram.hpa((1 << 32) - 0x4_0000).unwrap();
        let map = AddressMap::new(ram.slots(), Arc::new(ram.memory().clone()));
        (ram, map, rom)
    }

    #[test]
    fn a_segment_is_rom_or_ram_as_the_host_bridge_says() {
        let (_ram, map, rom) = board();
        // The last 128 KiB of the ROM begin at its middle; RAM lies at the same address in the arena.
        for (read_ram, write_ram, expected) in [
            (false, false, (rom + 0x3_0000, true)),
            (false, true, (rom + 0x3_0000, true)),
            (true, false, (F, true)),
            (true, true, (F, false)),
        ] {
            let all = shadows(shadow(F, 0x1_0000, read_ram, write_ram));
            let slots = map.slots(&all, Smram::default(), &[]);
            assert_eq!(at(&slots, F), Some(expected), "{read_ram} {write_ram}");
            assert_eq!(at(&slots, 0xe_ffff), Some((rom + 0x2_ffff, true)));
            // No ROM there, and the display's place.
            assert_eq!((at(&slots, SEGMENTS), at(&slots, LEGACY_VIDEO)), (None, None));
            assert_eq!(at(&slots, 0x9_ffff), Some((0x9_ffff, false)));
            assert_eq!(at(&slots, MIB), Some((MIB, false)));
            assert_eq!(at(&slots, 0xffff_ffff), Some((rom + 0x3_ffff, true)));
        }
    }

    #[test]
    fn system_management_ram_is_seen_while_it_is_open() {
        let (_ram, map, _) = board();
        let all = shadows(shadow(F, 0x1_0000, false, false));
        let open = Smram { enabled: true, open: true, ..Smram::default() };
        assert_eq!(at(&map.slots(&all, open, &[]), LEGACY_VIDEO), Some((LEGACY_VIDEO, false)));
    }

    #[test]
    fn writes_reach_ram_behind_rom_where_the_host_bridge_says() {
        let (ram, map, _) = board();
        let mut mmio = MmioBus::builder();
        map.wire(&mut mmio).unwrap();
        let mmio = mmio.build();
        map.slots(&shadows(shadow(0xe_c000, 0x4000, false, true)), Smram::default(), &[]);
        mmio.write(0xe_fffc, AccessSize::Qword, 0x8877_6655_4433_2211);
        let mut seen = [0; 8];
        ram.arena().read_bytes(0xe_fffc, &mut seen).unwrap();
        assert_eq!(seen, [0x11, 0x22, 0x33, 0x44, 0, 0, 0, 0], "the other segment takes no writes");
        assert_eq!(mmio.read(0xc_0000, AccessSize::Word), 0xffff);
    }

    #[test]
    fn a_bar_over_ram_is_not_seen() {
        let (_ram, map, _) = board();
        let all = shadows(shadow(F, 0x1_0000, false, false));
        let device = |gpa| Slot { gpa, size: 2 * MIB, hpa: 0, read_only: false, log_dirty: false };
        let devices = [3 * MIB, 0xe000_0000, 0xfeb0_0000, 0xfff0_0000, 0xa_0000].map(device);
        let slots = map.slots(&all, Smram::default(), &devices);
        assert_eq!(at(&slots, 3 * MIB), Some((3 * MIB, false)));
        assert_eq!(at(&slots, LEGACY_VIDEO), None);
        assert_eq!(
            (at(&slots, 5 * MIB), at(&slots, 0xfeb0_0000), at(&slots, 0xfee0_0000)),
            (None, None, None)
        );
        assert_eq!(at(&slots, 0xe000_0000), Some((0, false)));
        assert!(slots.is_sorted_by(|one, next| one.end() <= next.gpa));
    }
}
