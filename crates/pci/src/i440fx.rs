//! The i440FX host bridge, 8086:1237 (Intel 82441FX PMC datasheet).

use serde::{Deserialize, Serialize};
use trapline_device::AccessSize::{self, Byte, Dword, Word};
use trapline_device::{Device, MmioIo, Poll, PortIo, RestoreError, SaveRestore};

use crate::config::{ConfigSpace, ConfigState};
use crate::effects::{Effects, Shadow, Smram};
use crate::{ClassCode, Command, Identity, PciFunction, Status, VENDOR_INTEL};

/// Offset of PAM0; PAM6 is at 0x5f.
pub const PAM0: u16 = 0x59;
/// Offset of the system management RAM control register.
pub const SMRAM: u16 = 0x72;

const PAM_REGISTERS: u16 = 7;
const DRAM_ROW_BOUNDARY: u16 = 0x60;

const SMRAM_OPEN: u8 = 1 << 6;
const SMRAM_CLOSED: u8 = 1 << 5;
const SMRAM_LOCKED: u8 = 1 << 4;
const SMRAM_ENABLED: u8 = 1 << 3;
/// C_BASE_SEG: the only value it can have, 0xa0000.
const SMRAM_BASE: u8 = 0b010;

/// The host bridge: function 0 of device 0 on the first bus.
///
/// It decodes no BARs. Its PAM registers and its SMRAM register are reported as
/// [`Effect::Shadow`](crate::Effect::Shadow) and [`Effect::Smram`](crate::Effect::Smram); the other
/// registers of the datasheet (DRAM rows and timing, error handling) are stored and have no effect.
/// It starts with all segments decoded to the bus.
#[derive(Debug)]
pub struct I440Fx {
    config: ConfigSpace,
    effects: Effects,
}

/// PAM segment `index`, 0 to 12: where it is, its register, the shift of its bits in it. PAM0 has one
/// segment in its upper half.
fn segment(index: u16) -> (u64, u64, u16, u32) {
    match index {
        0 => (0xf_0000, 0x1_0000, PAM0, 4),
        _ => {
            let at = index - 1;
            (0xc_0000 + 0x4000 * u64::from(at), 0x4000, PAM0 + 1 + at / 2, u32::from(at % 2) * 4)
        }
    }
}

const SEGMENTS: u16 = 13;

impl I440Fx {
    /// A host bridge that reports to `effects`. `subsystem` is `(0, 0)` on a real one; SeaBIOS knows
    /// a virtual machine by `(0x1af4, 0x1100)`.
    pub fn new(subsystem: (u16, u16), effects: Effects) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR_INTEL,
            device: 0x1237,
            revision: 2,
            class: ClassCode::HOST_BRIDGE,
            subsystem,
        });
        config.define_command(Command::MEMORY | Command::BUS_MASTER, Command::PARITY | Command::SERR);
        config.define_status(Status::FAST_BACK_TO_BACK | Status::DEVSEL_MEDIUM);
        config.define_bus_timing(0, 0xf8);
        // PMCCFG, deturbo counter, DBX buffer control, auxiliary control, DRAM control and timing.
        config.define(0x50, Word, 0x0000, 0xff77);
        config.define(0x52, Byte, 0x00, 0xff);
        config.define(0x53, Byte, 0x80, 0xe7);
        config.define(0x54, Word, 0x0000, 0xffff);
        config.define(0x57, Byte, 0x01, 0xff);
        config.define(0x58, Byte, 0x10, 0xff);
        for register in 0..PAM_REGISTERS {
            let writable = if register == 0 { 0x30 } else { 0x33 };
            config.define(PAM0 + register, Byte, 0, writable);
        }
        // One row of 8 MiB, as after reset; and fixed DRAM hole control.
        config.define(DRAM_ROW_BOUNDARY, Dword, 0x0101_0101, u32::MAX);
        config.define(DRAM_ROW_BOUNDARY + 4, Dword, 0x0101_0101, u32::MAX);
        config.define(0x68, Byte, 0x00, 0xc0);
        // Multi-transaction timer, CPU latency timer.
        config.define(0x70, Byte, 0x00, 0xf8);
        config.define(0x71, Byte, 0x10, 0x1f);
        let writable = SMRAM_OPEN | SMRAM_CLOSED | SMRAM_LOCKED | SMRAM_ENABLED;
        config.define(SMRAM, Byte, SMRAM_BASE.into(), writable.into());
        // Error command, error status, turbo reset control.
        config.define(0x90, Byte, 0x00, 0xfb);
        config.define(0x91, Byte, 0x00, 0x00);
        config.define_clearable(0x91, Byte, 0x11);
        config.define(0x93, Byte, 0x00, 0x0d);
        Self { config, effects }
    }

    /// How each PAM segment is decoded now, in order of the registers: 0xf0000 first, then from
    /// 0xc0000 up.
    pub fn shadows(&self) -> impl Iterator<Item = Shadow> + '_ {
        (0..SEGMENTS).map(|index| {
            let (start, len, register, shift) = segment(index);
            let bits = self.config.get(register, Byte) >> shift;
            Shadow { start, len, read_ram: bits & 1 != 0, write_ram: bits & 2 != 0 }
        })
    }

    /// How system management RAM is decoded now.
    pub fn smram(&self) -> Smram {
        let register = self.config.get(SMRAM, Byte) as u8;
        Smram {
            enabled: register & SMRAM_ENABLED != 0,
            open: register & SMRAM_OPEN != 0,
            closed: register & SMRAM_CLOSED != 0,
            locked: register & SMRAM_LOCKED != 0,
        }
    }

    /// Reports what differs from `shadows` and `smram`.
    fn report(&self, shadows: &[Shadow], smram: Smram) {
        for (new, old) in self.shadows().zip(shadows) {
            if new != *old {
                self.effects.shadow(new);
            }
        }
        if self.smram() != smram {
            self.effects.smram(self.smram());
        }
    }

    /// Carries out a change, and reports what it changed.
    fn watch<T>(&mut self, change: impl FnOnce(&mut Self) -> T) -> T {
        let (shadows, smram) = (self.shadows().collect::<Vec<_>>(), self.smram());
        let result = change(self);
        self.report(&shadows, smram);
        result
    }
}

impl PciFunction for I440Fx {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_write(&mut self, offset: u16, size: AccessSize, value: u32) {
        self.watch(|bridge| {
            let before = bridge.config.get(SMRAM, Byte) as u8;
            bridge.config.write(offset, size, value);
            let mut after = bridge.config.get(SMRAM, Byte) as u8;
            if before & SMRAM_LOCKED != 0 {
                // D_LCK makes D_LCK, D_OPEN, G_SMRAME and C_BASE_SEG read-only; D_CLS is not.
                after = before & !SMRAM_CLOSED | after & SMRAM_CLOSED;
            } else if after & SMRAM_LOCKED != 0 {
                after &= !SMRAM_OPEN;
            }
            bridge.config.set(SMRAM, Byte, after.into());
        });
    }
}

impl Device for I440Fx {
    fn name(&self) -> &str {
        "i440fx"
    }

    fn pio(&mut self) -> Option<&mut dyn PortIo> {
        None
    }

    fn mmio(&mut self) -> Option<&mut dyn MmioIo> {
        None
    }

    fn poll(&mut self) -> Option<&mut dyn Poll> {
        None
    }

    fn reset(&mut self) {
        self.watch(|bridge| bridge.config.reset());
    }
}

/// Saved state of an [`I440Fx`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I440FxState {
    config: ConfigState,
}

impl SaveRestore for I440Fx {
    type State = I440FxState;

    fn save(&self) -> I440FxState {
        let Self { config, effects: _ } = self;
        I440FxState { config: config.save() }
    }

    /// What differs from the present state is reported.
    fn restore(&mut self, state: I440FxState) -> Result<(), RestoreError> {
        self.watch(|bridge| bridge.config.restore(state.config))
    }
}
