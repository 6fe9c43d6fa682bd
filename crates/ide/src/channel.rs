//! A channel: two drives on one cable, and their bus master.

use trapline_device::{AccessSize, DmaMemory, IrqLine};

use crate::bus_master::{BusMaster, Moved};
use crate::drive::{Drive, Phase};
use crate::regs::{COMMAND, Control, DATA, DEVICE, DEVICE_DEV, Status, cmd};

/// One channel.
pub(crate) struct Channel {
    pub drives: [Option<Drive>; 2],
    /// Drive 1 is selected.
    pub second: bool,
    pub control: Control,
    pub bus_master: BusMaster,
    /// The function may master the PCI bus.
    pub mastering: bool,
    /// The level of the line.
    pub line_level: bool,
    pub irq: IrqLine,
}

impl Channel {
    pub fn new(drives: [Option<Drive>; 2], irq: IrqLine) -> Self {
        let (control, bus_master) = (Control::empty(), BusMaster::new());
        Self { drives, second: false, control, bus_master, mastering: false, line_level: false, irq }
    }

    pub fn power_on(&mut self) {
        self.drives.iter_mut().flatten().for_each(Drive::power_on);
        (self.second, self.control) = (false, Control::empty());
        self.bus_master = BusMaster::new();
        self.drive_line();
    }

    fn selected(&mut self) -> Option<&mut Drive> {
        let [first, second] = &mut self.drives;
        if self.second { second.as_mut() } else { first.as_mut() }
    }

    /// The interrupt line follows the selected drive; the bus master takes note of its rise.
    pub fn drive_line(&mut self) {
        let control = self.control;
        let level = self.selected().is_some_and(|drive| drive.drives_intrq(control));
        if level && !self.line_level {
            self.bus_master.interrupt();
        }
        if level != self.line_level {
            self.line_level = level;
            self.irq.set(level);
        }
    }

    /// Drives the line anew after a restore. That is no interrupt to the bus master, whose saved
    /// status has it already.
    pub fn line_restored(&mut self) {
        let control = self.control;
        self.line_level = self.selected().is_some_and(|drive| drive.drives_intrq(control));
        self.irq.set(self.line_level);
    }

    /// A command block register other than the data port.
    pub fn read(&mut self, offset: u16) -> u8 {
        if offset == COMMAND {
            let value = self.alternate_status();
            if let Some(drive) = self.selected() {
                drive.intrq = false;
            }
            self.drive_line();
            return value;
        }
        // Drive 0 answers for an absent drive 1, but for the status (ATA/ATAPI-6, single device configurations).
        let hob = self.control.contains(Control::HOB);
        let [first, second] = &self.drives;
        let drive = if self.second { second.as_ref().or(first.as_ref()) } else { first.as_ref() };
        drive.map_or(0, |drive| drive.regs.read(offset, hob))
    }

    /// The alternate status register: the status, and no interrupt is acknowledged.
    pub fn alternate_status(&mut self) -> u8 {
        self.selected().map_or(0, |drive| drive.regs.status.bits())
    }

    /// A command block register other than the data port.
    pub fn write(&mut self, offset: u16, value: u8, memory: &dyn DmaMemory) {
        if self.control.contains(Control::SRST) {
            return;
        }
        // A write to any register ends the reading of previous contents (ATA8-ACS §6.1).
        self.control.remove(Control::HOB);
        if offset == COMMAND {
            self.command(value, memory);
            return;
        }
        let busy = Status::BSY | Status::DRQ;
        if self.selected().is_some_and(|drive| drive.regs.status.intersects(busy)) {
            return;
        }
        if offset == DEVICE {
            self.second = value & DEVICE_DEV != 0;
        }
        for drive in self.drives.iter_mut().flatten() {
            drive.regs.write(offset, value);
        }
        self.drive_line();
    }

    fn command(&mut self, code: u8, memory: &dyn DmaMemory) {
        if code == cmd::EXECUTE_DIAGNOSTIC {
            self.execute_diagnostic();
        } else if let Some(drive) = self.selected() {
            drive.command(code);
        }
        self.pump(memory);
    }

    /// EXECUTE DEVICE DIAGNOSTIC goes to both drives; drive 0 answers.
    fn execute_diagnostic(&mut self) {
        let busy = Status::BSY | Status::DRQ;
        if self.drives.iter().flatten().any(|drive| drive.regs.status.intersects(busy)) {
            return;
        }
        for drive in self.drives.iter_mut().flatten() {
            drive.cancel();
            drive.diagnose();
        }
        self.second = false;
        if let Some(drive) = self.selected() {
            drive.intrq = true;
        }
    }

    /// A write to the device control register.
    pub fn write_control(&mut self, value: u8) {
        let control = Control::from_bits_truncate(value);
        let was = self.control.contains(Control::SRST);
        let is = control.contains(Control::SRST);
        self.control = control;
        if is && !was {
            self.second = false;
            for drive in self.drives.iter_mut().flatten() {
                drive.cancel();
                drive.regs.status = Status::BSY;
            }
        } else if was && !is {
            self.drives.iter_mut().flatten().for_each(Drive::soft_reset);
        }
        self.drive_line();
    }

    /// The data port, as a stream of bytes. What the drive does not give reads zero.
    pub fn read_data(&mut self, data: &mut [u8], memory: &dyn DmaMemory) {
        let mut rest = data;
        while !rest.is_empty() {
            let Some(drive) = self.selected().filter(|drive| drive.pio(true)) else { break };
            let n = copy(rest, drive.stage.rest());
            rest = rest.get_mut(n..).unwrap_or_default();
            drive.moved(n);
        }
        rest.fill(0);
        self.pump(memory);
    }

    /// The data port. What the drive does not take is lost.
    pub fn write_data(&mut self, data: &[u8], memory: &dyn DmaMemory) {
        let mut rest = data;
        while !rest.is_empty() {
            let Some(drive) = self.selected().filter(|drive| drive.pio(false)) else { break };
            let n = copy(drive.stage.rest(), rest);
            rest = rest.get(n..).unwrap_or_default();
            drive.moved(n);
        }
        self.pump(memory);
    }

    /// Reads command block registers `offset` and up. Wide accesses to the data port are its own.
    pub fn read_port(&mut self, offset: u16, size: AccessSize, memory: &dyn DmaMemory) -> u32 {
        let mut bytes = [0_u8; 4];
        if offset == DATA && size != AccessSize::Byte {
            if let Some(bytes) = bytes.get_mut(..size.bytes()) {
                self.read_data(bytes, memory);
            }
        } else {
            for (i, byte) in bytes.iter_mut().enumerate().take(size.bytes()) {
                // The data port has no 8-bit form.
                let at = offset + i as u16;
                *byte = if at == DATA { 0xff } else { self.read(at) };
            }
        }
        u32::from_le_bytes(bytes)
    }

    pub fn write_port(&mut self, offset: u16, size: AccessSize, value: u32, memory: &dyn DmaMemory) {
        let bytes = value.to_le_bytes();
        let bytes = bytes.get(..size.bytes()).unwrap_or(&bytes);
        if offset == DATA && size != AccessSize::Byte {
            self.write_data(bytes, memory);
        } else {
            for (at, byte) in (offset..).zip(bytes).filter(|(at, _)| *at != DATA) {
                self.write(at, *byte, memory);
            }
        }
    }

    pub fn write_bus_master(&mut self, offset: u16, value: u8, memory: &dyn DmaMemory) {
        self.bus_master.write(offset, value);
        self.pump(memory);
    }

    /// Takes what the engines have done.
    pub fn complete(&mut self, memory: &dyn DmaMemory) {
        self.drives.iter_mut().flatten().for_each(Drive::complete);
        self.pump(memory);
    }

    /// Does whatever DMA can go on, then shows the interrupt.
    pub fn pump(&mut self, memory: &dyn DmaMemory) {
        while self.dma_step(memory) {}
        if self.selected().is_none_or(|drive| drive.phase == Phase::Idle) {
            self.bus_master.drive_done();
        }
        self.drive_line();
    }

    fn dma_step(&mut self, memory: &dyn DmaMemory) -> bool {
        if !self.mastering || !self.bus_master.is_active() {
            return false;
        }
        let [first, second] = &mut self.drives;
        let drive = if self.second { second.as_mut() } else { first.as_mut() };
        let Some(drive) = drive else { return false };
        let Phase::Data { to_host, dma: true } = drive.phase else { return false };
        let data = drive.stage.rest();
        let n = data.len();
        match self.bus_master.transfer(memory, to_host, data) {
            Moved::All => {
                drive.moved(n);
                true
            }
            // The drive waits for the rest, as on hardware: the host will see no interrupt.
            Moved::Short(part) => {
                drive.stage.pos += part;
                false
            }
            Moved::Fault => false,
        }
    }
}

/// Copies what fits: how many bytes that is.
fn copy(to: &mut [u8], from: &[u8]) -> usize {
    let n = to.len().min(from.len());
    if let (Some(to), Some(from)) = (to.get_mut(..n), from.get(..n)) {
        to.copy_from_slice(from);
    }
    n
}

impl Drive {
    /// Whether the data port is the way in this direction.
    fn pio(&self, to_host: bool) -> bool {
        self.phase == Phase::Data { to_host, dma: false }
    }
}
