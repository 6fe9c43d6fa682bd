//! The board `pc`: an i440FX and PIIX3 with IDE disks, started by firmware or straight at a kernel.
//!
//! | device | PCI | ports or address | interrupt |
//! |---|---|---|---|
//! | i440FX host bridge | 00:00.0 8086:1237 | 0xcf8, 0xcfc | |
//! | PIIX3 ISA bridge | 00:01.0 8086:7000 | | PIRQ A to D to the ISA interrupts that firmware chooses |
//! | PIIX3 IDE | 00:01.1 8086:7010 | 0x1f0, 0x3f6, 0x170, 0x376, BAR 4 | IRQ 14, IRQ 15 |
//! | PIIX4 power management | 00:01.3 8086:7113 | events, control, timer at PMBASE; SMBus at SMBBA | IRQ 9 (SCI) |
//! | VGA with the Bochs VBE extensions | 00:02.0 1234:1111 | 0x3b0 to 0x3df, 0x1ce, 0xa0000, BARs 0 and 2 | |
//! | GPE0, SMI command | | 0xafe0, 0xb2 | |
//! | 8259A pair, ELCR | | 0x20, 0xa0, 0x4d0 | INTR to LINT0 of vCPU 0 |
//! | IOAPIC, 24 pins | | 0xfec0_0000 | by message |
//! | 8254 and port 0x61 | | 0x40, 0x61 | IRQ 0 (IOAPIC pin 2) |
//! | keyboard controller | | 0x60, 0x64 | IRQ 1, IRQ 12 |
//! | real-time clock with CMOS memory | | 0x70 | IRQ 8 |
//! | POST code, system control port A | | 0x80, 0x92 | |
//! | HPET | | 0xfed0_0000 | IRQ 0 and 8 in their place, IOAPIC pins 16 to 23 |
//! | 8237A pair, registers only | | 0x00, 0xc0, 0x81 | |
//! | 16550A, COM1 | | 0x3f8 | IRQ 4 |
//! | parallel port, LPT1 | | 0x378 | IRQ 7 |
//! | debug console | | 0x402 | |
//! | exit port of test guests | | 0x501 | |
//! | fw_cfg | | 0x510, 0x514 | |
//! | reset control | | 0xcf9 | |
//! | with [`MachineConfig::testdev`](crate::MachineConfig::testdev): as on the board [`microvm`](crate::microvm) | | | |
//!
//! # Memory
//!
//! RAM begins at 0, leaves out 0xc000_0000 to 4 GiB, and goes on from there. The firmware ROM ends at 4 GiB;
//! its last 128 KiB are also seen below 1 MiB, until the PAM registers of the host bridge show RAM there: each
//! of their 13 segments is read from ROM or RAM, and written to RAM or nowhere. UEFI firmware has a flash chip for
//! its variables right below its image. 0xa0000 to 0xbffff is not RAM
//! but where SMRAM is opened. Devices' DMA always reaches the RAM behind ROM and display.
//!
//! # Start and reset
//!
//! With firmware the boot processor starts at the reset vector, and firmware finds tables in fw_cfg, and a kernel if
//! it is given one: UEFI starts it itself, a BIOS by an option ROM ([`trapline_boot::firmware`]). A kernel
//! without firmware is started as its boot protocol says; the board has then assigned BARs and interrupts, put
//! the display into text mode and written the tables, as firmware does. When the guest resets the machine, by
//! 0xcf9, 0x92, the keyboard controller or a triple fault, it starts again: devices and processors are as after
//! power-on, memory keeps its contents, and a kernel without firmware is loaded anew. [`PcConfig::reboot`] is for a
//! run that ends instead.
//!
//! A guest that suspends itself to RAM (ACPI S3) sleeps without processors until the power button is pressed or the
//! real-time clock's alarm interrupts. Then devices and processors are reset, and firmware, or the board in its
//! place, goes on at the waking vector. With [`MachineConfig::icount`](crate::MachineConfig::icount) it is not
//! offered.
//!
//! # What is not there
//!
//! System management mode: the power management function says, as QEMU's does without SMM, that it is set up
//! already. DMA transfers of the 8237As. Floppy and super-I/O: their ports, like all that nobody claims, read
//! all-ones and ignore writes. Address line 20 always works.

mod access;
mod address_map;
mod config;
mod devices;
mod direct;
mod drives;
mod flash;
mod host;
mod screen;
mod state;
mod suspend;
mod tables;

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use trapline_boot::RamRange;
use trapline_chipset::{AcpiPmConfig, FwCfg};
use trapline_device::bus::Swap;
use trapline_device::{Clock, DmaMemory, SaveRestore};
use trapline_memory::{GuestRam, RamConfig};
use trapline_pci::{BusLayout, Effects, I440Fx};
use trapline_vcpu::VcpuState;

pub use access::GuestAccess;
pub use config::{BootDevice, Firmware, PcConfig, Start, VgaOptions};
pub use drives::{DRIVES, DriveConfig, DriveError, DriveKind};
pub use flash::Variables;
pub use screen::Screen;
pub(crate) use state::PcStates;

use crate::chassis::{Chassis, Core, Wiring, lock, make_ram};
use crate::control::Outcome;
use crate::devices::{Devices, shared};
use crate::event_loop::Watch;
use crate::remote::Remote;
use crate::state::MachineState;
use crate::stats::Stats;
use crate::testdev::Testdev;
use crate::{Error, Result};
use address_map::AddressMap;
use devices::{Parts, PcDevices, make_vga};
use drives::Drives;
use flash::Flash;
use host::Host;

/// Subsystem vendor and number of the chipset's functions: firmware knows a virtual machine by it.
const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);
/// Device 1 of the first bus: the PIIX3 with its functions.
const SOUTH: u8 = 1;
const IDE_FUNCTION: u8 = 1;
const PM_FUNCTION: u8 = 3;
/// Device 2 of the first bus.
const DISPLAY: u8 = 2;
/// Where the power management registers are unless firmware puts them elsewhere: PMBASE.
const PM_BASE: u16 = 0x600;
const GPE0: u16 = 0xafe0;
const SMI_CMD: u16 = 0xb2;
const FW_CFG: u16 = 0x510;
const FW_CFG_DMA: u16 = 0x514;
const DEBUG_CONSOLE: u16 = 0x402;
const LPT1: u16 = 0x378;
const HPET: u32 = 0xfed0_0000;
/// SLP_TYP of S5, as the tables of this chipset's firmware have it.
const SLP_TYP_S5: u8 = 0;
/// Largest firmware: below it are the devices under 4 GiB.
const MAX_FIRMWARE: u64 = 8 << 20;

/// A machine of the board `pc`, ready to run.
pub struct Pc {
    chassis: Chassis,
    ram: GuestRam,
    /// Where the RAM is.
    ranges: Vec<RamRange>,
    host: Arc<Host>,
    devices: PcDevices,
    drives: Drives,
    start: Start,
    reboot: bool,
    /// Whether the guest can suspend itself to RAM.
    s3: bool,
    clock: Arc<dyn Clock>,
    /// The processors after power-on.
    power_on: Vec<VcpuState>,
}

impl Pc {
    /// Makes the machine.
    ///
    /// # Errors
    /// When the engine cannot be used, the memory cannot be had, or something is wrong with the files.
    pub fn new(config: PcConfig) -> Result<Self> {
        let PcConfig { machine, start, drives, boot, vga, debug_console, printer, reboot } = config;
        let (cpus, testdev) = (machine.cpus, machine.testdev);
        // Asleep nobody counts instructions, which time does then.
        let s3 = machine.icount.is_none();
        let mut ram = make_ram(&machine, &RamConfig::new(machine.memory))?;
        let ranges: Vec<_> =
            ram.slots().iter().map(|slot| RamRange { base: slot.gpa, size: slot.size }).collect();
        let effects = Effects::new();
        let flash = match &start {
            Start::Firmware(firmware) => add_firmware(&mut ram, firmware, &effects)?,
            Start::Kernel(_) => None,
        };
        let drives = Drives::open(drives, machine.icount.is_some())?;

        let dma: Arc<dyn DmaMemory> = Arc::new(ram.memory().clone());
        let map = AddressMap::new(ram.slots(), dma.clone());
        let bridge = I440Fx::new(SUBSYSTEM, effects.clone());
        let slots = map.slots(&bridge.shadows().collect::<Vec<_>>(), bridge.smram(), &[]);
        let core = Core::new(machine, ram.arena(), &slots)?;
        if let Some(tracks) = &core.tracks {
            drives.trace(tracks);
        }
        let clock = core.clock.clone();
        let msrs = core.vm.saved_msrs()?;
        let power_on = core.vcpus.iter().map(|vcpu| VcpuState::save(&**vcpu, &msrs));
        let power_on = power_on.collect::<trapline_vcpu::Result<_>>()?;
        let vga = vga.map(|options| make_vga(&options, &core, &mut ram)).transpose()?;

        let pm = AcpiPmConfig {
            timer_32bit: true,
            always_enabled: true,
            slp_typ_s5: SLP_TYP_S5,
            ..AcpiPmConfig::default()
        };
        let mut common = Devices::new(&core, pm);
        if testdev {
            common.testdev = Some(Testdev::new(common.lines.clone()));
        }
        common.set_memory_size(&ranges);
        tables::set_cmos(&common, &drives, &boot, cpus);
        let mut fw_cfg = FwCfg::with_dma(dma.clone());
        let board = tables::Board { cpus, vga: vga.is_some(), s3, ram: ranges.clone() };
        let mut items = tables::pc_items(&board, &drives, &boot);
        if let Start::Firmware(Firmware { kernel: Some(kernel), .. }) = &start {
            items.boot_order.insert(0, tables::add_kernel(&mut fw_cfg, kernel, &ranges)?);
        }
        fw_cfg.add_pc(&items)?;

        let parts = Parts {
            bridge,
            effects: effects.clone(),
            vga,
            flash: flash.clone(),
            drives: &drives,
            memory: dma,
            debug_console,
            printer,
        };
        let (devices, root) = PcDevices::new(&core, &common, parts)?;
        tables::add_tables(&mut fw_cfg, board, devices.pm_function.clone())?;
        common.fw_cfg = Some(shared(fw_cfg));
        let mut layout = BusLayout::default();
        common.wire(&mut layout.pio, &mut layout.mmio)?;
        devices.wire(&mut layout, &common)?;
        map.wire(&mut layout.mmio)?;
        let host = Arc::new(Host {
            root,
            bridge: devices.bridge.clone(),
            vga: devices.vga.clone(),
            flash,
            layout,
            map,
            arena: ram.arena().clone(),
            pm: common.pm.clone(),
            s3,
            applying: Mutex::default(),
        });
        let (ports, mmio) = host.buses();
        let watches = drives.events()?.into_iter().map(|event| {
            let (ide, fd) = (devices.ide.clone(), event.as_raw_fd());
            let ready = move || {
                let _open = &event;
                lock(&ide).complete();
            };
            Watch { fd, ready: Box::new(ready) }
        });
        let wiring = Wiring {
            ports: Arc::new(Swap::new(ports)),
            mmio: Arc::new(Swap::new(mmio)),
            effects,
            board: Box::new(host.clone()),
            timed: devices.timed(),
            watches: watches.collect(),
        };
        let chassis = Chassis::new(core, common, wiring)?;
        let mut pc = Self { chassis, ram, ranges, host, devices, drives, start, reboot, s3, clock, power_on };
        pc.reset()?;
        Ok(pc)
    }

    /// Runs the guest until it ends, or somebody ends it. The calling thread serves the host's side; each
    /// processor gets a thread of its own. At the end everything that the guest has written is on its disks.
    ///
    /// After [`Outcome::UserQuit`] the machine can be run on.
    ///
    /// # Errors
    /// When the host fails. The state of the guest is then undefined.
    pub fn run(&mut self) -> Result<Outcome> {
        let outcome = self.run_through_resets();
        lock(&self.devices.ide).quiesce();
        let flushed =
            self.drives.flush().and_then(|()| self.devices.flash.as_ref().map_or(Ok(()), Flash::flush));
        outcome.and_then(|outcome| flushed.map(|()| outcome))
    }

    fn run_through_resets(&mut self) -> Result<Outcome> {
        loop {
            match self.chassis.run()? {
                Outcome::Reset | Outcome::Shutdown if self.reboot => self.reset()?,
                Outcome::Suspended => match self.sleep()? {
                    Outcome::Suspended => self.wake()?,
                    outcome => return Ok(outcome),
                },
                outcome => return Ok(outcome),
            }
        }
    }

    /// Puts the machine, which does not run, into the state after power-on. Memory keeps its contents, as far
    /// as a kernel without firmware is not loaded over them.
    ///
    /// # Errors
    /// When the engine refuses, or the kernel's files have gone.
    pub fn reset(&mut self) -> Result<()> {
        self.power_on(false)?;
        self.start()
    }

    /// Puts devices, processors and the address map into their state after power-on, or after S3: what woke the
    /// machine is still to be read then.
    fn power_on(&mut self, from_s3: bool) -> Result<()> {
        // The host bridge looks after RAM while the machine sleeps, and keeps its registers. SeaBIOS goes on in the
        // RAM that shadows it.
        let bridge = from_s3.then(|| lock(&self.host.bridge).save());
        lock(&self.host.root).reset();
        self.devices.reset();
        self.chassis.devices.reset(from_s3);
        if let Some(bridge) = bridge {
            lock(&self.host.bridge).restore(bridge)?;
        }
        for (vcpu, state) in self.chassis.vcpus.iter_mut().zip(&self.power_on) {
            state.restore(&mut **vcpu)?;
        }
        if let Start::Kernel(_) = &self.start {
            direct::set_up_chipset(&self.host.root, &self.chassis.devices, &self.ranges)?;
            if let Some(vga) = &self.devices.vga {
                lock(vga).start_text();
            }
        }
        self.settle()
    }

    /// Carries out what the devices' state means for memory, buses and engine.
    fn settle(&self) -> Result<()> {
        let shared = &self.chassis.shared;
        self.host.apply(&shared.effects, &shared.ports, &shared.mmio, &*shared.vm)?;
        shared.routes.tell(&shared.ioapic, &*shared.vm)
    }

    /// After power-on or a reset: loads what there is instead of firmware.
    fn start(&mut self) -> Result<()> {
        if let Start::Kernel(kernel) = &self.start {
            let (cpus, vga) = (self.chassis.vcpus.len() as u32, self.devices.vga.is_some());
            let vcpu = self.chassis.vcpu0()?;
            let board = tables::Board { cpus, vga, s3: self.s3, ram: self.ranges.clone() };
            direct::load(self.ram.memory(), &board, kernel, vcpu)?;
        }
        Ok(())
    }

    /// Takes the state, between two runs: all but the contents of memory ([`Pc::ram`]), disks and flash.
    ///
    /// # Errors
    /// When the engine cannot tell a part of it.
    pub fn save(&self) -> Result<MachineState> {
        lock(&self.devices.ide).quiesce();
        Ok(self.chassis.save()?.with_pc(self.devices.save()))
    }

    /// Puts a state into a machine that was made from the same configuration and has not run yet. The
    /// contents of memory, disks and flash are the caller's to restore.
    ///
    /// # Errors
    /// When the state is not one that this machine can be in; it is of no use then.
    pub fn restore(&mut self, mut state: MachineState) -> Result<()> {
        self.devices.restore(state.take_pc().ok_or(Error::OtherDevices("pci"))?)?;
        lock(&self.host.root).refresh();
        self.chassis.restore(state)?;
        self.settle()
    }

    /// Accesses as a processor of the guest makes them, to a machine that does not run.
    pub fn access(&mut self) -> GuestAccess<'_> {
        GuestAccess::new(&self.chassis.shared, &self.host, &self.devices.ide)
    }

    /// The screen; `None` without a display.
    pub fn screen(&self) -> Option<Screen> {
        self.devices.vga.clone().map(Screen)
    }

    /// A handle to end the run, or press the power button, from elsewhere.
    pub fn remote(&self) -> Remote {
        self.chassis.remote()
    }

    /// The guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The path of the pseudo-terminal, for [`Serial::Pty`](crate::Serial::Pty).
    pub fn serial_path(&self) -> Option<&str> {
        self.chassis.serial_path()
    }

    /// The engine, and why it was chosen, in one line.
    pub fn engine(&self) -> &str {
        self.chassis.engine()
    }

    /// What the guest has cost so far.
    pub fn stats(&self) -> Stats {
        self.chassis.stats()
    }
}

/// Puts the firmware in front of 4 GiB, and the flash for its variables, if it has any, in front of that.
fn add_firmware(ram: &mut GuestRam, firmware: &Firmware, effects: &Effects) -> Result<Option<Flash>> {
    let Firmware { image: path, variables, kernel: _ } = firmware;
    let failed = |why: String| Error::Firmware { path: path.to_owned(), why };
    let image = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
    let size = image.len() as u64;
    if size == 0 || size > MAX_FIRMWARE || !size.is_multiple_of(4096) {
        return Err(failed(format!("{size} bytes; expected a multiple of 4 KiB, at most 8 MiB")));
    }
    let start = (1 << 32) - size;
    ram.add_rom(start, &image)?;
    variables.as_ref().map(|variables| Flash::new(ram, variables, start, effects)).transpose()
}
