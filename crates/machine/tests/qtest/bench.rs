//! Our devices, wired as on a PC.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use trapline_chipset::{
    A20Gate, AcpiPm, AcpiPmConfig, I8042, Port92, Rtc, SystemEvent, SystemEvents, Uart, acpi_pm, i8042,
};
use trapline_device::bus::{MmioBus, PioBus, Swap};
use trapline_device::test::{FakeClock, Recorder};
use trapline_device::{Clock, Device, IrqLine, IrqSink};
use trapline_disk::{Disk, RawDisk, storage::MemStorage};
use trapline_ide::{Drive, DriveIdentity, IdeConfig, Io, PiixIde};
use trapline_irqchip::ioapic::IoApic;
use trapline_irqchip::pic::PicPair;
use trapline_irqchip::pit::Pit;
use trapline_pci::piix::{PM_CONTROL, PM_EVENT, PM_TIMER};
use trapline_pci::{
    BusId, BusLayout, CONFIG_PORTS, CONFIG_PORTS_LEN, ConfigPorts, DevFn, Effects, I440Fx, IntxRouter,
    PciRoot, Piix3, Piix4Pm, SharedRoot,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::machine::{AccessSize, Machine};

/// Bytes of guest memory.
const RAM: usize = 16 << 20;
/// QEMU's subsystem numbers.
const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);

/// Resets and power-offs that nobody heeds: scripts do not ask for them.
struct Ignored;

impl SystemEvents for Ignored {
    fn raise(&self, _: SystemEvent) {}
}

/// The ISA interrupts: to the 8259A pair and the I/O APIC, and to who asks for the levels.
struct Lines {
    pic: Arc<dyn IrqSink>,
    ioapic: Arc<dyn IrqSink>,
    levels: AtomicU32,
}

impl IrqSink for Lines {
    fn set(&self, pin: u32, level: bool) {
        let bit = 1 << pin;
        if level {
            self.levels.fetch_or(bit, Ordering::SeqCst);
        } else {
            self.levels.fetch_and(!bit, Ordering::SeqCst);
        }
        self.pic.set(pin, level);
        self.ioapic.set(if pin == 0 { 2 } else { pin }, level);
    }
}

fn shared<D>(device: D) -> Arc<Mutex<D>> {
    Arc::new(Mutex::new(device))
}

/// The drives of both channels.
pub type Drives = [[Option<Drive>; 2]; 2];

/// The devices.
pub struct Bench {
    memory: Arc<GuestMemoryMmap<()>>,
    lines: Arc<Lines>,
    layout: BusLayout,
    root: SharedRoot,
    ports: Swap<PioBus>,
    mmio: Swap<MmioBus>,
    ide: Arc<Mutex<PiixIde>>,
    clock: Arc<FakeClock>,
    timed: Vec<Arc<Mutex<dyn Device>>>,
}

impl Bench {
    pub fn new(drives: Drives, today: Duration) -> Self {
        let clock = Arc::new(FakeClock::default());
        let cpu = Arc::new(Recorder::default());
        let pic = PicPair::new(IrqLine::new(cpu.clone(), 0));
        let ioapic = IoApic::new(cpu);
        let lines = Arc::new(Lines { pic: pic.sink(), ioapic: ioapic.sink(), levels: AtomicU32::new(0) });
        let irq = |pin| IrqLine::new(lines.clone(), pin);
        let events: Arc<dyn SystemEvents> = Arc::new(Ignored);
        let a20 = Arc::new(A20Gate::new(events.clone()));
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap());
        let pit = shared(Pit::new(clock.clone(), irq(0)));
        let rtc = shared(Rtc::new(irq(8), clock.clone(), today));
        let pm = shared(AcpiPm::new(AcpiPmConfig::default(), irq(9), clock.clone(), events.clone()));
        let i8042 = shared(I8042::new(irq(1), irq(12), a20.clone(), events.clone()));

        let mut layout = BusLayout::default();
        let pio = &mut layout.pio;
        let pic = shared(pic);
        pio.register(0x20, 2, pic.clone(), 0, "pic0").unwrap();
        pio.register(0xa0, 2, pic.clone(), 1, "pic1").unwrap();
        pio.register(0x4d0, 2, pic, 2, "elcr").unwrap();
        pio.register(0x40, 4, pit.clone(), 0, "pit").unwrap();
        pio.register(0x61, 1, pit.clone(), 1, "port61").unwrap();
        pio.register(0x60, 1, i8042.clone(), i8042::DATA, "i8042-data").unwrap();
        pio.register(0x64, 1, i8042, i8042::COMMAND, "i8042-cmd").unwrap();
        pio.register(0x70, 2, rtc.clone(), 0, "rtc").unwrap();
        pio.register(0x92, 1, shared(Port92::new(a20, events)), 0, "port92").unwrap();
        let uart = Uart::new("serial0", irq(4), Box::new(std::io::sink()));
        pio.register(0x3f8, 8, shared(uart), 0, "serial0").unwrap();
        pio.register(0xb2, 2, pm.clone(), acpi_pm::SMI_CMD, "smi").unwrap();
        layout.mmio.register(0xfec0_0000, 0x1000, shared(ioapic), 0, "ioapic").unwrap();

        let root = shared(PciRoot::new(Effects::new()));
        let config = shared(ConfigPorts::new(root.clone()));
        layout.pio.register(CONFIG_PORTS, CONFIG_PORTS_LEN, config, 0, "pci").unwrap();
        let router = IntxRouter::new((0..16).map(irq).collect());
        let ide = shared(
            PiixIde::new(IdeConfig {
                subsystem: SUBSYSTEM,
                memory: memory.clone(),
                irqs: [irq(14), irq(15)],
                drives,
            })
            .unwrap(),
        );
        {
            let mut root = root.lock().unwrap();
            let host = shared(I440Fx::new(SUBSYSTEM, root.effects().clone()));
            root.add(BusId::ROOT, DevFn::new(0, 0), host).unwrap();
            root.add(BusId::ROOT, DevFn::new(1, 0), shared(Piix3::new(SUBSYSTEM, router))).unwrap();
            root.add(BusId::ROOT, DevFn::new(1, 1), ide.clone()).unwrap();
            let at = DevFn::new(1, 3);
            root.add(BusId::ROOT, at, shared(Piix4Pm::new(SUBSYSTEM, irq(9)))).unwrap();
            for (region, block) in
                [(PM_EVENT, acpi_pm::PM1A_EVT), (PM_CONTROL, acpi_pm::PM1A_CNT), (PM_TIMER, acpi_pm::PM_TMR)]
            {
                root.redirect((BusId::ROOT, at), region, pm.clone(), block).unwrap();
            }
        }
        let (ports, mmio) = (Swap::new(layout.build_pio(&[])), Swap::new(layout.build_mmio(&[])));
        let timed: Vec<Arc<Mutex<dyn Device>>> = vec![pit, rtc, pm];
        Self { memory, lines, layout, root, ports, mmio, ide, clock, timed }
    }

    /// What a board does after each access.
    fn settle(&mut self) {
        let effects = self.root.lock().unwrap().effects().clone();
        if effects.pending() {
            self.layout.apply(&effects.take(), &self.root, &self.ports, &self.mmio);
        }
    }

    /// Time goes on to `now`; devices are called at their deadlines.
    pub fn advance_to(&mut self, now: u64) {
        loop {
            let due = |device: &Arc<Mutex<dyn Device>>| device.lock().unwrap().poll()?.deadline();
            let next = self.timed.iter().filter_map(due).min().filter(|next| *next <= now);
            self.clock.advance(next.unwrap_or(now).saturating_sub(self.clock.now()));
            if next.is_none() {
                return;
            }
            let at = self.clock.now();
            for device in &self.timed {
                if let Some(poll) = device.lock().unwrap().poll() {
                    poll.poll(at);
                }
            }
        }
    }
}

impl Machine for Bench {
    fn inp(&mut self, port: u16, size: AccessSize) -> u32 {
        let value = self.ports.load().read(port, size);
        self.settle();
        value
    }

    fn out(&mut self, port: u16, size: AccessSize, value: u32) {
        self.ports.load().write(port, size, value);
        self.settle();
    }

    fn read(&mut self, address: u64, data: &mut [u8]) {
        self.memory.read_slice(data, GuestAddress(address)).unwrap();
    }

    fn write(&mut self, address: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(address)).unwrap();
    }

    fn lines(&mut self) -> u32 {
        self.lines.levels.load(Ordering::SeqCst)
    }

    fn change_disc(&mut self, disc: Option<&Path>) {
        let disc = disc.map(|path| Io::Blocking(image(&std::fs::read(path).unwrap())));
        let mut ide = self.ide.lock().unwrap();
        assert!([(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().any(|(c, d)| ide.change_disc(
            c,
            d,
            disc.clone()
        )));
    }
}

/// A disk in memory.
pub fn image(content: &[u8]) -> Arc<dyn Disk> {
    let storage = Arc::new(MemStorage::new(content.to_vec()));
    Arc::new(RawDisk::new(storage, false, false).unwrap())
}

pub fn hard_disk(content: &[u8]) -> Drive {
    Drive::disk(Io::Blocking(image(content)), DriveIdentity::new("T1"))
}

pub fn cdrom(content: Option<&[u8]>) -> Drive {
    Drive::cdrom(content.map(|content| Io::Blocking(image(content))), DriveIdentity::new("T2"))
}
