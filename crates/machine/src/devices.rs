//! The devices that every board has, most of them where a PC has them.

use std::sync::{Arc, Mutex};

use trapline_boot::RamRange;
use trapline_chipset::{
    A20Gate, AcpiPm, AcpiPmConfig, DebugExit, FwCfg, I8042, Port92, PostCode, ResetControl, Rtc,
    SystemEvents, Uart, fw_cfg, hpet::LegacyLines, i8042,
};
use trapline_device::bus::{MmioBusBuilder, PioBusBuilder, SharedDevice};
use trapline_device::{AccessSize, Device, IrqLine, IrqSink, PortIo};
use trapline_irqchip::ioapic::IoApic;
use trapline_irqchip::pic::PicPair;
use trapline_irqchip::pit::Pit;

use crate::Result;
use crate::chassis::{Core, lock};
use crate::console::Flusher;
use crate::irq::IsaLines;
use crate::testdev::Testdev;
use crate::timers::Timed;

pub(crate) const IOAPIC: u32 = 0xfec0_0000;
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
pub(crate) const COM1: u16 = 0x3f8;

const IRQ_TIMER: u32 = 0;
const IRQ_KEYBOARD: u32 = 1;
pub(crate) const IRQ_COM1: u32 = 4;
const IRQ_RTC: u32 = 8;
pub(crate) const IRQ_SCI: u32 = 9;
const IRQ_MOUSE: u32 = 12;

/// The devices, for those who know them by their kind.
pub(crate) struct Devices {
    pub(crate) pic: PicPair,
    pub(crate) ioapic: IoApic,
    pub(crate) pit: Arc<Mutex<Timed<Pit>>>,
    pub(crate) rtc: Arc<Mutex<Timed<Rtc>>>,
    pub(crate) pm: Arc<Mutex<Timed<AcpiPm>>>,
    pub(crate) uart: Arc<Mutex<Uart>>,
    pub(crate) i8042: Arc<Mutex<I8042>>,
    pub(crate) port92: Arc<Mutex<Port92>>,
    pub(crate) reset: Arc<Mutex<ResetControl>>,
    pub(crate) debug_exit: Arc<Mutex<DebugExit>>,
    pub(crate) post: Arc<Mutex<PostCode>>,
    pub(crate) console: Arc<Mutex<Flusher>>,
    pub(crate) testdev: Option<Testdev>,
    pub(crate) fw_cfg: Option<Arc<Mutex<FwCfg>>>,
    /// The ISA interrupt lines: each drives an input of the 8259A pair and one of the IOAPIC.
    pub(crate) lines: Arc<dyn IrqSink>,
    /// Interrupts 0 and 8, which an HPET can take over.
    pub(crate) legacy: Arc<LegacyLines>,
}

/// A device that is on a bus and known by its kind.
pub(crate) fn shared<D>(device: D) -> Arc<Mutex<D>> {
    Arc::new(Mutex::new(device))
}

impl Devices {
    pub(crate) fn new(core: &Core, pm: AcpiPmConfig) -> Self {
        let Core { clock, control, touched, .. } = core;
        let pic = PicPair::new(IrqLine::new(core.intr.clone(), 0));
        let ioapic = IoApic::new(core.msi_sink());
        let lines = core.traced_lines(Arc::new(IsaLines { pic: pic.sink(), ioapic: ioapic.sink() }));
        let irq = |pin| IrqLine::new(lines.clone(), pin);
        let legacy = LegacyLines::new(irq(IRQ_TIMER), irq(IRQ_RTC));
        let events: Arc<dyn SystemEvents> = control.clone();
        let a20 = Arc::new(A20Gate::new(events.clone()));
        let pm = AcpiPm::new(pm, irq(IRQ_SCI), clock.clone(), events.clone());
        let output = Box::new(core.console.clone());
        let pm = Timed::new(pm, touched);
        let rtc = Timed::new(Rtc::new(legacy.line(1), clock.clone(), core.today), touched);
        let alarmed = pm.clone();
        lock(&rtc).set_alarm_hook(Box::new(move || lock(&alarmed).rtc_alarm()));
        Self {
            pit: Timed::new(Pit::new(clock.clone(), legacy.line(0)), touched),
            rtc,
            pm,
            uart: shared(Uart::new("serial0", irq(IRQ_COM1), output)),
            i8042: shared(I8042::new(irq(IRQ_KEYBOARD), irq(IRQ_MOUSE), a20.clone(), events.clone())),
            port92: shared(Port92::new(a20, events.clone())),
            reset: shared(ResetControl::new(events.clone())),
            debug_exit: shared(DebugExit::new(events)),
            post: shared(PostCode::new()),
            console: shared(core.console.flusher()),
            testdev: None,
            fw_cfg: None,
            pic,
            ioapic,
            lines,
            legacy,
        }
    }

    /// Initialises the 8259A pair as a PC's firmware does: IRQ 0 to 7 at vectors 08h to 0fh, IRQ 8 to 15 at 70h
    /// to 77h. None is masked, but no device asks before it was set up.
    pub(crate) fn set_up_pic(&self) {
        const MASTER: [u8; 4] = [0x11, 0x08, 1 << 2, 0x01]; // ICW1 to ICW4: cascade at pin 2
        const SLAVE: [u8; 4] = [0x11, 0x70, 2, 0x01];
        let mut pic = self.pic.clone();
        for (region, words) in [(0, MASTER), (1, SLAVE)] {
            for (offset, word) in [0, 1, 1, 1].into_iter().zip(words) {
                pic.write(region, offset, AccessSize::Byte, word.into());
            }
        }
    }

    /// Tells the CMOS memory how much RAM there is.
    pub(crate) fn set_memory_size(&self, ram: &[RamRange]) {
        let (low, high): (Vec<_>, Vec<_>) = ram.iter().partition(|range| range.base < 1 << 32);
        let sum = |ranges: Vec<&RamRange>| ranges.iter().map(|range| range.size).sum();
        lock(&self.rtc).set_memory_size(sum(low), sum(high));
    }

    /// The devices that time drives.
    pub(crate) fn timed(&self) -> Vec<SharedDevice> {
        vec![self.pit.clone(), self.rtc.clone(), self.pm.clone(), self.console.clone()]
    }

    /// Puts the devices on the buses: all but power management and reset control, which boards have in
    /// different places.
    pub(crate) fn wire(&self, ports: &mut PioBusBuilder, mmio: &mut MmioBusBuilder) -> Result<()> {
        let pic: SharedDevice = shared(self.pic.clone());
        ports.register(0x20, 2, pic.clone(), 0, "pic0")?;
        ports.register(0xa0, 2, pic.clone(), 1, "pic1")?;
        ports.register(0x4d0, 2, pic, 2, "elcr")?;
        ports.register(0x40, 4, self.pit.clone(), 0, "pit")?;
        ports.register(0x61, 1, self.pit.clone(), 1, "port61")?;
        ports.register(0x60, 1, self.i8042.clone(), i8042::DATA, "i8042-data")?;
        ports.register(0x64, 1, self.i8042.clone(), i8042::COMMAND, "i8042-cmd")?;
        ports.register(0x70, 2, self.rtc.clone(), 0, "rtc")?;
        ports.register(0x80, 1, self.post.clone(), 0, "post")?;
        ports.register(0x92, 1, self.port92.clone(), 0, "port92")?;
        ports.register(COM1, 8, self.uart.clone(), 0, "serial0")?;
        ports.register(0x501, 4, self.debug_exit.clone(), 0, "debug-exit")?;
        mmio.register(IOAPIC.into(), 0x1000, shared(self.ioapic.clone()), 0, "ioapic")?;
        if let Some(fw_cfg) = &self.fw_cfg {
            ports.register(0x510, 2, fw_cfg.clone(), fw_cfg::PORTS, "fw-cfg")?;
        }
        if let Some(testdev) = &self.testdev {
            ports.register(0xf4, 4, self.debug_exit.clone(), 0, "isa-debug-exit")?;
            testdev.wire(ports, mmio)?;
        }
        Ok(())
    }

    /// Puts every device into its power-on state, or the one at the end of S3. The real-time clock goes on, as its
    /// battery sees to.
    pub(crate) fn reset(&mut self, from_s3: bool) {
        let Self {
            pic,
            ioapic,
            pit,
            rtc,
            pm,
            uart,
            i8042,
            port92,
            reset,
            debug_exit,
            post,
            console: _,
            testdev,
            fw_cfg,
            lines: _,
            legacy: _,
        } = self;
        lock(pit).reset();
        lock(rtc).reset();
        match from_s3 {
            true => lock(pm).reset_by_wake(),
            false => lock(pm).reset(),
        }
        lock(uart).reset();
        lock(i8042).reset();
        lock(port92).reset();
        lock(reset).reset();
        lock(debug_exit).reset();
        lock(post).reset();
        if let Some(testdev) = testdev {
            lock(&testdev.dev).reset();
        }
        if let Some(fw_cfg) = fw_cfg {
            lock(fw_cfg).reset();
        }
        // Last, so that lines which the others drove meanwhile leave no trace.
        ioapic.reset();
        pic.reset();
    }
}
