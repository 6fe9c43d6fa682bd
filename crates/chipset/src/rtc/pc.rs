//! What a PC's firmware reads from CMOS memory, beside the clock: what QEMU and Bochs put there, and SeaBIOS
//! looks for.

use super::Rtc;

/// A class of devices to boot from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BootClass {
    /// Floppy disk.
    Floppy = 1,
    /// Hard disk.
    Disk = 2,
    /// CD-ROM.
    Cdrom = 3,
    /// Network, and other option ROMs.
    Network = 4,
}

/// How INT 13h addresses of cylinder, head and sector are translated for a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum DiskTranslation {
    /// Not at all: up to 504 MiB.
    #[default]
    None = 0,
    /// By logical blocks.
    Lba = 1,
    /// By doubling heads and halving cylinders ("large").
    Large = 2,
}

impl Rtc {
    /// Fills in the memory size fields that firmware reads: `below_4g` bytes of RAM from address 0, and
    /// `above_4g` bytes from 4 GiB. Sizes beyond what a field can say are cut to its largest value.
    pub fn set_memory_size(&mut self, below_4g: u64, above_4g: u64) {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        let base = below_4g.min(640 * KIB) / KIB;
        let extended = below_4g.saturating_sub(MIB) / KIB;
        let above_16m = below_4g.saturating_sub(16 * MIB) / (64 * KIB);
        let fields = [
            (0x15, 2, base),
            (0x17, 2, extended),
            (0x30, 2, extended),
            (0x34, 2, above_16m),
            (0x5b, 3, above_4g / (64 * KIB)),
        ];
        for (index, bytes, value) in fields {
            let value = value.min((1 << (8 * bytes)) - 1);
            for i in 0..bytes {
                self.set_cmos(index + i, (value >> (8 * i)) as u8);
            }
        }
    }

    /// Says that `count` processors will start, 1 to 256.
    pub fn set_processors(&mut self, count: u32) {
        self.set_cmos(0x5f, u8::try_from(count.saturating_sub(1)).unwrap_or(u8::MAX));
    }

    /// Sets the order in which firmware tries classes of devices, where it is given no better one: the first
    /// three of `order`.
    pub fn set_boot_order(&mut self, order: &[BootClass]) {
        let class = |at: usize| order.get(at).map_or(0, |class| *class as u8);
        self.set_cmos(0x3d, class(0) | class(1) << 4);
        // Bit 0 would let floppy disks without a signature boot.
        self.set_cmos(0x38, class(2) << 4);
    }

    /// Sets the translations of the disks of two IDE channels, in order.
    pub fn set_disk_translations(&mut self, disks: [DiskTranslation; 4]) {
        let bits = disks.iter().rev().fold(0, |bits, translation| bits << 2 | *translation as u8);
        self.set_cmos(0x39, bits);
    }
}
