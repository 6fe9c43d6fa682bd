//! The board `pc`, as it is sold: with its engine, and disks in files.

use std::path::Path;

use tempfile::TempDir;
use trapline_disk::{Format, OpenOptions};
use trapline_machine::pc::{DriveConfig, Firmware, Start};
use trapline_machine::{MachineConfig, Pc, PcConfig, Serial};
use trapline_vcpu::Accel;
use vm_memory::{Bytes, GuestAddress};

use crate::machine::{AccessSize, Machine};

/// A machine that does not run.
pub struct Board {
    pc: Pc,
    /// Holds its firmware.
    _folder: TempDir,
}

impl Board {
    /// A board with 16 MiB of memory, and hard disks whose changes are thrown away, at these of the four places.
    pub fn new(disks: &[(usize, &Path)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("rom");
        std::fs::write(&image, vec![0; 0x1_0000]).unwrap();
        let mut config = PcConfig::new(Start::Firmware(Firmware::new(image)));
        let memory = 16 << 20;
        config.machine =
            MachineConfig { memory, accel: Accel::Soft, serial: Serial::Null, ..MachineConfig::default() };
        config.drives = disks
            .iter()
            .map(|(place, path)| {
                let mut options = OpenOptions::new(*path);
                (options.format, options.snapshot) = (Some(Format::Raw), true);
                DriveConfig { index: Some(*place), ..DriveConfig::disk(options) }
            })
            .collect();
        let mut board = Self { pc: Pc::new(config).unwrap(), _folder: folder };
        // IRQ 14 and 15 by level: then the interrupt request register shows the lines.
        board.outb(0x4d1, 0xc0);
        board
    }
}

impl Machine for Board {
    fn inp(&mut self, port: u16, size: AccessSize) -> u32 {
        let mut access = self.pc.access();
        let value = access.port_read(port, size);
        access.wait_for_disks();
        value
    }

    fn out(&mut self, port: u16, size: AccessSize, value: u32) {
        let mut access = self.pc.access();
        access.port_write(port, size, value).unwrap();
        access.wait_for_disks();
    }

    fn read(&mut self, address: u64, data: &mut [u8]) {
        self.pc.ram().memory().read_slice(data, GuestAddress(address)).unwrap();
    }

    fn write(&mut self, address: u64, data: &[u8]) {
        self.pc.ram().memory().write_slice(data, GuestAddress(address)).unwrap();
    }

    /// The levels of interrupts 14 and 15.
    fn lines(&mut self) -> u32 {
        self.outb(0xa0, 0x0a); // OCW3: the interrupt request register is read next
        u32::from(self.inb(0xa0) & 0xc0) << 8
    }

    fn change_disc(&mut self, _: Option<&Path>) {
        unreachable!("scripts for the board have no discs");
    }
}
