//! The 82093AA, through its registers.

use std::sync::Arc;

use trapline_device::test::Recorder;
use trapline_device::{AccessSize, Device, Msi, SaveRestore};
use trapline_irqchip::ioapic::IoApic;
use trapline_irqchip::message::{DeliveryMode, DestinationMode, Message};

struct Chip {
    chip: IoApic,
    bus: Arc<Recorder>,
}

const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const MASKED: u64 = 1 << 16;

impl Chip {
    fn new() -> Self {
        let bus = Arc::new(Recorder::default());
        Self { chip: IoApic::new(bus.clone()), bus }
    }

    fn write(&mut self, register: u8, value: u32) {
        let mmio = self.chip.mmio().unwrap();
        mmio.write(0, 0, AccessSize::Dword, register.into());
        mmio.write(0, 0x10, AccessSize::Dword, value.into());
    }

    fn read(&mut self, register: u8) -> u32 {
        let mmio = self.chip.mmio().unwrap();
        mmio.write(0, 0, AccessSize::Dword, register.into());
        mmio.read(0, 0x10, AccessSize::Dword) as u32
    }

    fn entry(&mut self, pin: u8) -> u64 {
        u64::from(self.read(0x11 + 2 * pin)) << 32 | u64::from(self.read(0x10 + 2 * pin))
    }

    fn set_entry(&mut self, pin: u8, entry: u64) {
        self.write(0x11 + 2 * pin, (entry >> 32) as u32);
        self.write(0x10 + 2 * pin, entry as u32);
    }

    fn vectors(&self) -> Vec<u8> {
        self.bus.take_messages().into_iter().map(|msi| msi.data as u8).collect()
    }
}

#[test]
fn identification_version_and_arbitration() {
    let mut c = Chip::new();
    assert_eq!(c.read(0x01), 0x0017_0020);
    c.write(0x00, 0xffff_ffff);
    assert_eq!(c.read(0x00), 0x0f00_0000);
    assert_eq!(c.read(0x02), 0x0f00_0000, "loaded with the ID");
    c.write(0x01, 0);
    assert_eq!(c.read(0x01), 0x0017_0020);
    assert_eq!(c.read(0x03), 0);
    assert_eq!(c.read(0x40), 0);
}

#[test]
fn entries_start_masked_and_keep_their_read_only_bits() {
    let mut c = Chip::new();
    for pin in 0..24 {
        assert_eq!(c.entry(pin), MASKED);
    }
    c.set_entry(23, u64::MAX);
    assert_eq!(c.entry(23), 0xff00_0000_0001_afff);
    c.chip.reset();
    assert_eq!(c.entry(23), MASKED);
}

#[test]
fn an_edge_is_a_message() {
    let mut c = Chip::new();
    // Lowest priority, logical destination 0x03, vector 0x31.
    c.set_entry(4, 0x03 << 56 | 1 << 11 | 1 << 8 | 0x31);
    c.chip.line(4).set(true);
    let sent = c.bus.take_messages();
    assert_eq!(sent, [Msi { address: 0xfee0_300c, data: 0x0131 }]);
    assert_eq!(
        Message::from_msi(sent[0]).unwrap(),
        Message {
            destination: 3,
            mode: DestinationMode::Logical,
            delivery: DeliveryMode::LowestPriority,
            vector: 0x31,
            level: false,
            lowest_priority: true,
        }
    );
    c.chip.line(4).set(true);
    c.chip.line(4).set(false);
    assert!(c.bus.take_messages().is_empty(), "one edge, one message");
}

#[test]
fn an_edge_on_a_masked_pin_is_lost() {
    let mut c = Chip::new();
    c.set_entry(1, MASKED | 0x40);
    c.chip.line(1).set(true);
    c.set_entry(1, 0x40);
    assert!(c.vectors().is_empty());
    c.chip.line(1).set(false);
    c.chip.line(1).set(true);
    assert_eq!(c.vectors(), [0x40]);
}

#[test]
fn a_level_is_delivered_once_until_its_eoi() {
    let mut c = Chip::new();
    c.set_entry(11, LEVEL | 0x51);
    c.chip.line(11).set(true);
    assert_eq!(c.bus.take_messages(), [Msi { address: 0xfee0_0000, data: 0xc051 }]);
    assert_ne!(c.entry(11) & REMOTE_IRR, 0);
    c.chip.line(11).set(false);
    c.chip.line(11).set(true);
    assert!(c.vectors().is_empty());
    c.chip.end_of_interrupt(0x52);
    assert!(c.vectors().is_empty(), "another vector");
    c.chip.end_of_interrupt(0x51);
    assert_eq!(c.vectors(), [0x51], "still asserted");
    c.chip.line(11).set(false);
    c.chip.end_of_interrupt(0x51);
    assert!(c.vectors().is_empty());
    assert_eq!(c.entry(11) & REMOTE_IRR, 0);
}

#[test]
fn the_eoi_register_ends_an_interrupt() {
    let mut c = Chip::new();
    c.set_entry(9, LEVEL | 0x61);
    c.chip.line(9).set(true);
    c.chip.line(9).set(false);
    c.chip.mmio().unwrap().write(0, 0x40, AccessSize::Dword, 0x61);
    assert_eq!(c.entry(9) & REMOTE_IRR, 0);
}

#[test]
fn an_asserted_level_is_delivered_when_unmasked() {
    let mut c = Chip::new();
    c.set_entry(10, MASKED | LEVEL | 0x62);
    c.chip.line(10).set(true);
    assert!(c.vectors().is_empty());
    c.set_entry(10, LEVEL | 0x62);
    assert_eq!(c.vectors(), [0x62]);
    // Masking does not clear remote IRR; becoming an edge does.
    c.set_entry(10, MASKED | LEVEL | 0x62);
    assert_ne!(c.entry(10) & REMOTE_IRR, 0);
    c.set_entry(10, MASKED | 0x62);
    assert_eq!(c.entry(10) & REMOTE_IRR, 0);
}

#[test]
fn a_pin_masked_by_its_handler_still_gets_its_eoi() {
    let mut c = Chip::new();
    c.set_entry(10, LEVEL | 0x62);
    c.chip.line(10).set(true);
    c.set_entry(10, MASKED | LEVEL | 0x62);
    assert!(c.chip.routes()[10].is_some(), "who passes on EOIs must know the vector");
    c.chip.end_of_interrupt(0x62);
    assert_eq!(c.entry(10) & REMOTE_IRR, 0);
    assert!(c.chip.routes()[10].is_none());
    c.vectors();
    c.set_entry(10, LEVEL | 0x62);
    assert_eq!(c.vectors(), [0x62]);
}

#[test]
fn nmi_init_and_extint_are_always_edges() {
    for (mode, delivery) in [(4, DeliveryMode::Nmi), (5, DeliveryMode::Init), (7, DeliveryMode::ExtInt)] {
        let mut c = Chip::new();
        c.set_entry(0, mode << 8 | LEVEL);
        c.chip.line(0).set(true);
        let message = Message::from_msi(c.bus.take_messages()[0]).unwrap();
        assert_eq!((message.delivery, message.level), (delivery, false));
        assert_eq!(c.entry(0) & REMOTE_IRR, 0);
    }
    // Reserved delivery modes deliver nothing.
    for mode in [3, 6] {
        let mut c = Chip::new();
        c.set_entry(0, mode << 8 | 0x40);
        c.chip.line(0).set(true);
        assert!(c.vectors().is_empty());
    }
}

#[test]
fn registers_are_32_bits_wide() {
    let mut c = Chip::new();
    c.set_entry(0, MASKED | 0x40);
    let mmio = c.chip.mmio().unwrap();
    mmio.write(0, 0, AccessSize::Byte, 0x10);
    mmio.write(0, 0x10, AccessSize::Byte, 0);
    mmio.write(0, 0x12, AccessSize::Word, 0);
    mmio.write(0, 0x800, AccessSize::Dword, 0);
    assert_eq!(mmio.read(0, 0x10, AccessSize::Dword), MASKED | 0x40);
    assert_eq!(mmio.read(0, 0x12, AccessSize::Word) & 0xffff, 1);
    assert_eq!(mmio.read(0, 0x00, AccessSize::Dword), 0x10);
    assert_eq!(mmio.read(0, 0xffc, AccessSize::Dword), 0);
}

#[test]
fn routes_follow_the_entries() {
    let mut c = Chip::new();
    assert!(c.chip.routes().iter().all(Option::is_none));
    let before = c.chip.routes_generation();
    c.set_entry(7, 5 << 56 | LEVEL | 0x71);
    assert_ne!(c.chip.routes_generation(), before);
    assert_eq!(c.chip.routes()[7], Some(Msi { address: 0xfee0_5000, data: 0xc071 }));
}

#[test]
fn state_goes_on_where_it_was() {
    let mut c = Chip::new();
    c.set_entry(11, LEVEL | 0x51);
    c.chip.line(11).set(true);
    c.write(0, 0x0300_0000);
    let state: <IoApic as SaveRestore>::State =
        postcard::from_bytes(&postcard::to_stdvec(&c.chip.save()).unwrap()).unwrap();
    let mut d = Chip::new();
    d.chip.restore(state).unwrap();
    assert_eq!(d.read(0), 0x0300_0000);
    assert!(d.vectors().is_empty());
    d.chip.end_of_interrupt(0x51);
    assert_eq!(d.vectors(), [0x51]);
}
