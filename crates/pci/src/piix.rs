//! The PIIX3 ISA bridge, 8086:7000, and the PIIX4 power management function, 8086:7113 (Intel
//! 82371SB and 82371AB datasheets).

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trapline_device::AccessSize::{self, Byte, Dword, Word};
use trapline_device::{Device, IrqLine, MmioIo, Poll, PortIo, RestoreError, SaveRestore};

use crate::bar::FIRST_OWN_REGION;
use crate::config::{ConfigSpace, ConfigState};
use crate::intx::{IntxPin, IntxRouter, PIRQ_DISABLED};
use crate::regs::INTERRUPT_LINE;
use crate::{AddressRange, ClassCode, Command, Identity, PciFunction, Status, VENDOR_INTEL};

/// Offset of PIRQRC A; B, C and D follow.
pub const PIRQRC: u16 = 0x60;

/// The ISA bridge: function 0 of device 1 on an i440FX's first bus.
///
/// Its PIRQ route registers steer an [`IntxRouter`]. The others (ISA recovery timing, X-bus chip
/// selects, DMA, system management) are stored and have no effect.
pub struct Piix3 {
    config: ConfigSpace,
    router: Arc<IntxRouter>,
}

impl Piix3 {
    /// A bridge that steers `router`. `subsystem` as for [`I440Fx::new`](crate::I440Fx::new).
    pub fn new(subsystem: (u16, u16), router: Arc<IntxRouter>) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR_INTEL,
            device: 0x7000,
            revision: 0,
            class: ClassCode::ISA_BRIDGE,
            subsystem,
        });
        let on = Command::IO | Command::MEMORY | Command::BUS_MASTER;
        config.define_command(on, Command::SPECIAL_CYCLES);
        config.define_status(Status::DEVSEL_MEDIUM);
        config.define_bus_timing(0, 0);
        // ISA I/O recovery timer, X-bus chip select.
        config.define(0x4c, Byte, 0x4d, 0xff);
        config.define(0x4e, Word, 0x0003, 0x01ff);
        for pirq in 0..4 {
            config.define(PIRQRC + pirq, Byte, PIRQ_DISABLED.into(), 0x8f);
        }
        // Top of memory, miscellaneous status, motherboard IRQ route and DMA channels.
        config.define(0x69, Byte, 0x02, 0xfe);
        config.define(0x6a, Word, 0x0000, 0x8010);
        config.define(0x70, Byte, 0x80, 0xef);
        config.define(0x76, Word, 0x0c0c, 0x8f8f);
        // Programmable chip select, APIC base address, deterministic latency.
        config.define(0x78, Word, 0x0002, 0xffff);
        config.define(0x80, Byte, 0x00, 0x7f);
        config.define(0x82, Byte, 0x00, 0x0f);
        // SMI control and enable, system events, fast-off timer, SMI request, clock throttling.
        config.define(0xa0, Byte, 0x08, 0x1f);
        config.define(0xa2, Word, 0x0000, 0x01ff);
        config.define(0xa4, Dword, 0x0000_0000, 0xe000_ffff);
        config.define(0xa8, Byte, 0x0f, 0xff);
        config.define(0xaa, Word, 0x0000, 0x01ff);
        config.define(0xac, Byte, 0x00, 0xff);
        config.define(0xae, Byte, 0x00, 0xff);
        let bridge = Self { config, router };
        bridge.route();
        bridge
    }

    fn route(&self) {
        for pirq in 0..4_u8 {
            self.router.set_route(pirq, self.config.get(PIRQRC + u16::from(pirq), Byte) as u8);
        }
    }
}

impl PciFunction for Piix3 {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_write(&mut self, offset: u16, size: AccessSize, value: u32) {
        self.config.write(offset, size, value);
        if offset & !3 == PIRQRC {
            self.route();
        }
    }
}

/// Region of the PM1a event block: 4 ports at PMBASE.
pub const PM_EVENT: usize = FIRST_OWN_REGION;
/// Region of the PM1a control block: 2 ports at PMBASE + 4.
pub const PM_CONTROL: usize = FIRST_OWN_REGION + 1;
/// Region of the power management timer: 4 ports at PMBASE + 8.
pub const PM_TIMER: usize = FIRST_OWN_REGION + 2;
/// Region of the SMBus host controller: 16 ports from SMBBA.
pub const SMBUS: usize = FIRST_OWN_REGION + 3;

/// Offset of DEVACTB, device activity B.
pub const DEVACTB: u16 = 0x58;
/// DEVACTB: a write to the SMI command port makes an SMI.
const APMC_EN: u32 = 1 << 25;

const PMBASE: u16 = 0x40;
const PMREGMISC: u16 = 0x80;
const SMBBA: u16 = 0x90;
const SMBHSTCFG: u16 = 0xd2;

/// The PIIX4's power management function, as an i440FX machine shows it to operating systems that
/// look for ACPI: function 3 of device 1.
///
/// It holds no ACPI registers; it says where they are. The ports at PMBASE are the fixed ranges
/// [`PM_EVENT`], [`PM_CONTROL`] and [`PM_TIMER`], those at SMBBA are [`SMBUS`]: direct them with
/// [`PciRoot::redirect`](crate::PciRoot::redirect) to the devices that have these registers. Until
/// then they read all-ones.
///
/// The other registers of the datasheet (device monitors, general-purpose I/O) are stored and have no
/// effect.
pub struct Piix4Pm {
    config: ConfigSpace,
}

impl Piix4Pm {
    /// A function with nothing decoded. Its pin is INTA#, which a PC wires to the SCI, ISA interrupt
    /// 9, and not to a PIRQ: `sci` is the line that the ACPI device drives too, or any; the function
    /// itself never interrupts.
    pub fn new(subsystem: (u16, u16), sci: IrqLine) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR_INTEL,
            device: 0x7113,
            revision: 3,
            class: ClassCode::OTHER_BRIDGE,
            subsystem,
        });
        config.wire_intx(IntxPin::A, sci);
        config.define_command(Command::empty(), Command::IO);
        config.define_status(Status::FAST_BACK_TO_BACK | Status::DEVSEL_MEDIUM);
        config.define_bus_timing(0, 0);
        config.define(INTERRUPT_LINE, Byte, 9, 0xff);
        config.define(PMBASE, Dword, 1, 0xffc0);
        // Count A and B, general-purpose I/O, device resources and activity A to J.
        for offset in (0x44..0x80).step_by(4) {
            config.define(offset, Dword, 0, u32::MAX);
        }
        config.define(PMREGMISC, Byte, 0, 0x01);
        config.define(SMBBA, Dword, 1, 0xfff0);
        config.define(SMBHSTCFG, Byte, 0, 0x0f);
        config.define(SMBHSTCFG + 1, Dword, 0, 0x00ff_ffff);
        Self { config }
    }

    /// The function of a machine without system management mode: it says from the start, by APMC_EN in
    /// [`DEVACTB`], that SMIs are set up, so that firmware does not try to. QEMU's does the same.
    pub fn without_smm(subsystem: (u16, u16), sci: IrqLine) -> Self {
        let mut function = Self::new(subsystem, sci);
        function.config.define(DEVACTB, Dword, APMC_EN, u32::MAX);
        function
    }

    /// The first port of the power management registers, where they are decoded: PMBASE.
    pub fn pm_base(&self) -> Option<u16> {
        let enabled = self.config.get(PMREGMISC, Byte) & 1 != 0;
        let base = (self.config.get(PMBASE, Dword) & 0xffc0) as u16;
        (enabled && base != 0).then_some(base)
    }

    fn decode(&mut self) {
        let (enabled, base) = (self.pm_base().is_some(), u64::from(self.pm_base().unwrap_or(0)));
        let smbus_enabled = self.config.get(SMBHSTCFG, Byte) & 1 != 0;
        let smbus = u64::from(self.config.get(SMBBA, Dword) & 0xfff0);
        let ranges = [
            (PM_EVENT, enabled, base, 0, 4),
            (PM_CONTROL, enabled, base, 4, 2),
            (PM_TIMER, enabled, base, 8, 4),
            (SMBUS, smbus_enabled, smbus, 0, 16),
        ];
        for (region, enabled, base, offset, len) in ranges {
            let range = AddressRange::io(base + offset, len).filter(|_| enabled && base != 0);
            self.config.set_fixed_range(region, range);
        }
    }
}

impl PciFunction for Piix4Pm {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_write(&mut self, offset: u16, size: AccessSize, value: u32) {
        self.config.write(offset, size, value);
        self.decode();
    }
}

/// The `Device` face of a function that has registers in configuration space only.
macro_rules! config_only {
    ($type:ty, $name:literal, $after:ident) => {
        impl Device for $type {
            fn name(&self) -> &str {
                $name
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
                self.config.reset();
                self.$after();
            }
        }
    };
}

config_only!(Piix3, "piix3", route);
config_only!(Piix4Pm, "piix4-pm", decode);

/// Saved state of a [`Piix3`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piix3State {
    config: ConfigState,
}

impl SaveRestore for Piix3 {
    type State = Piix3State;

    fn save(&self) -> Piix3State {
        let Self { config, router: _ } = self;
        Piix3State { config: config.save() }
    }

    /// The router follows; the functions behind it drive their lines when they are restored.
    fn restore(&mut self, state: Piix3State) -> Result<(), RestoreError> {
        self.config.restore(state.config)?;
        self.route();
        Ok(())
    }
}

/// Saved state of a [`Piix4Pm`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piix4PmState {
    config: ConfigState,
}

impl SaveRestore for Piix4Pm {
    type State = Piix4PmState;

    fn save(&self) -> Piix4PmState {
        let Self { config } = self;
        Piix4PmState { config: config.save() }
    }

    fn restore(&mut self, state: Piix4PmState) -> Result<(), RestoreError> {
        self.config.restore(state.config)?;
        self.decode();
        Ok(())
    }
}
