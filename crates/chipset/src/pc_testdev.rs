//! The test device that bare-metal test guests expect on a PC, as QEMU's `pc-testdev`.
//!
//! | region | usually at | what it is |
//! |---|---|---|
//! | [`LATCH`] | ports 0xe0 to 0xe3 | a 32-bit latch, accessible at every width |
//! | [`FLUSH`] | ports 0xe4 to 0xe7 | takes a guest-physical address whose mapping the host is to forget for a moment |
//! | [`BYTES`] | ports 0xe8 to 0xeb | the latch again, byte by byte |
//! | [`LINES`] | ports 0x2000 to 0x2017 | drives interrupt input n of the board: non-zero is high |
//! | [`MEMORY`] | 0xff00_0000, 64 KiB | plain storage, reached through MMIO exits |
//!
//! Nothing is to be done for [`FLUSH`]: the guest must not notice the forgetting. Reads of [`FLUSH`] and
//! [`LINES`] give zero.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trapline_device::{
    AccessSize, Device, IrqSink, MmioIo, Poll, PortIo, RestoreError, SaveRestore, read_each, write_each,
};

/// Port region of the latch, 4 ports.
pub const LATCH: usize = 0;
/// Port region of the address to flush, 4 ports.
pub const FLUSH: usize = 1;
/// Port region of the latch in bytes, 4 ports.
pub const BYTES: usize = 2;
/// Port region of the interrupt lines, one port a line.
pub const LINES: usize = 3;
/// MMIO region of the storage.
pub const MEMORY: usize = 0;

/// How many interrupt lines there are.
pub const LINE_COUNT: u16 = 24;
/// Bytes of [`MEMORY`].
pub const MEMORY_SIZE: usize = 64 << 10;

/// A test device.
pub struct PcTestdev {
    lines: Arc<dyn IrqSink>,
    driven: u32,
    latch: [u8; 4],
    memory: Vec<u8>,
}

impl PcTestdev {
    /// A device that drives pins 0 to 23 of `lines`. Latch and storage are zero.
    pub fn new(lines: Arc<dyn IrqSink>) -> Self {
        Self { lines, driven: 0, latch: [0; 4], memory: vec![0; MEMORY_SIZE] }
    }

    fn drive(&mut self, line: u32, level: bool) {
        let bit = 1 << line;
        self.driven = if level { self.driven | bit } else { self.driven & !bit };
        self.lines.set(line, level);
    }
}

impl PortIo for PcTestdev {
    fn read(&mut self, region: usize, offset: u16, size: AccessSize) -> u32 {
        match region {
            LATCH | BYTES => {
                let bytes = self.latch.iter().skip(offset.into()).take(size.bytes());
                bytes.rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
            }
            _ => 0,
        }
    }

    fn write(&mut self, region: usize, offset: u16, size: AccessSize, value: u32) {
        match region {
            LATCH | BYTES => {
                let bytes = self.latch.iter_mut().skip(offset.into()).take(size.bytes());
                bytes.zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
            }
            LINES if offset < LINE_COUNT => {
                self.drive(offset.into(), value & size.ones() as u32 != 0);
            }
            _ => {}
        }
    }

    fn read_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &mut [u8]) {
        read_each(self, region, offset, size, data);
    }

    fn write_block(&mut self, region: usize, offset: u16, size: AccessSize, data: &[u8]) {
        write_each(self, region, offset, size, data);
    }
}

impl MmioIo for PcTestdev {
    fn read(&mut self, _region: usize, offset: u64, size: AccessSize) -> u64 {
        let start = usize::try_from(offset).unwrap_or(MEMORY_SIZE);
        let bytes = self.memory.iter().skip(start).take(size.bytes());
        bytes.rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn write(&mut self, _region: usize, offset: u64, size: AccessSize, value: u64) {
        let start = usize::try_from(offset).unwrap_or(MEMORY_SIZE);
        let bytes = self.memory.iter_mut().skip(start).take(size.bytes());
        bytes.zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }
}

impl Device for PcTestdev {
    fn name(&self) -> &str {
        "pc-testdev"
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        Some(self)
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        None
    }

    fn reset(&mut self) {
        for line in 0..u32::from(LINE_COUNT) {
            if self.driven >> line & 1 != 0 {
                self.drive(line, false);
            }
        }
        self.latch = [0; 4];
        self.memory.fill(0);
    }
}

/// Saved state of a [`PcTestdev`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PcTestdevState {
    /// One bit a line, set while it is high.
    driven: u32,
    latch: [u8; 4],
    memory: Vec<u8>,
}

impl SaveRestore for PcTestdev {
    type State = PcTestdevState;

    fn save(&self) -> PcTestdevState {
        let Self { lines: _, driven, latch, memory } = self;
        PcTestdevState { driven: *driven, latch: *latch, memory: memory.clone() }
    }

    fn restore(&mut self, state: PcTestdevState) -> Result<(), RestoreError> {
        let PcTestdevState { driven, latch, memory } = state;
        if memory.len() != MEMORY_SIZE {
            return Err(RestoreError {
                device: "pc-testdev",
                what: format!("memory of {} bytes, expected 64 KiB", memory.len()),
            });
        }
        if driven >> LINE_COUNT != 0 {
            return Err(RestoreError {
                device: "pc-testdev",
                what: format!("lines {driven:#x}, there are 24"),
            });
        }
        // The inputs themselves are restored by whoever owns them.
        (self.driven, self.latch, self.memory) = (driven, latch, memory);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trapline_device::test::Recorder;

    fn device() -> (PcTestdev, Arc<Recorder>) {
        let lines = Arc::new(Recorder::default());
        (PcTestdev::new(lines.clone()), lines)
    }

    #[test]
    fn the_latch_takes_every_width_and_shows_in_bytes() {
        let (mut dev, _) = device();
        PortIo::write(&mut dev, LATCH, 0, AccessSize::Dword, 0x1234_5678);
        PortIo::write(&mut dev, LATCH, 1, AccessSize::Byte, 0xab);
        PortIo::write(&mut dev, LATCH, 2, AccessSize::Word, 0xcdef);
        assert_eq!(PortIo::read(&mut dev, LATCH, 0, AccessSize::Dword), 0xcdef_ab78);
        assert_eq!(PortIo::read(&mut dev, BYTES, 1, AccessSize::Byte), 0xab);
        assert_eq!(PortIo::read(&mut dev, LATCH, 2, AccessSize::Word), 0xcdef);
    }

    #[test]
    fn a_line_follows_what_is_written_and_falls_at_reset() {
        let (mut dev, lines) = device();
        PortIo::write(&mut dev, LINES, 14, AccessSize::Byte, 1);
        assert!(lines.level(14));
        PortIo::write(&mut dev, LINES, 14, AccessSize::Byte, 0);
        assert!(!lines.level(14));
        PortIo::write(&mut dev, LINES, 23, AccessSize::Byte, 1);
        dev.reset();
        assert!(!lines.level(23));
        PortIo::write(&mut dev, LINES, 24, AccessSize::Byte, 1); // no such line
        assert!(!lines.level(24));
    }

    #[test]
    fn storage_keeps_what_is_written_up_to_its_end() {
        let (mut dev, _) = device();
        MmioIo::write(&mut dev, MEMORY, 0xfffe, AccessSize::Dword, 0x1122_3344);
        assert_eq!(MmioIo::read(&mut dev, MEMORY, 0xfffe, AccessSize::Word), 0x3344);
        assert_eq!(MmioIo::read(&mut dev, MEMORY, u64::MAX, AccessSize::Qword), 0);
        let state = dev.save();
        dev.reset();
        assert_eq!(MmioIo::read(&mut dev, MEMORY, 0xfffe, AccessSize::Word), 0);
        dev.restore(state.clone()).unwrap();
        assert_eq!(dev.save(), state);
        dev.restore(PcTestdevState { memory: vec![], ..state }).unwrap_err();
    }
}
