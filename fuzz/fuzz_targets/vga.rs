//! Any script on a VGA: its ports, its memory window, its framebuffer, its registers in memory, its
//! configuration space; and what a display server does between.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use trapline_device::test::FakeClock;
use trapline_device::{AccessSize, Device, MmioIo, PortIo, SaveRestore};
use trapline_display::{FRAMEBUFFER, MONO_PORTS, PORTS, REGISTERS, ROM, VBE_PORTS, Vga, VgaConfig, WINDOW};
use trapline_fuzz::script::Size;
use trapline_memory::DeviceMemory;
use trapline_pci::PciFunction;

const MEMORY: u64 = 256 << 10;

/// The VGA's ports and a register behind an index, most often.
#[derive(arbitrary::Arbitrary, Clone, Debug)]
enum Step {
    /// Index and data of sequencer, graphics controller, CRTC.
    Indexed(u8, u8, u8),
    Attribute(u8, u8),
    Misc(u8),
    /// Index and data of the VBE extensions.
    Vbe(u8, u16),
    In(u8, u8, Size),
    Out(u8, u8, Size, u32),
    OutBlock(u8, Vec<u8>),
    Load(u8, u32, Size),
    Store(u8, u32, Size, u64),
    Fill(u32, u8, u8),
    Config(u8, Size, Option<u32>),
    Pass(u32),
    Render,
    Damage,
    Reset,
    Move,
}

fn make(clock: &Arc<FakeClock>) -> Vga {
    let memory = DeviceMemory::standalone(MEMORY).expect("the host has 256 KiB");
    let rom = Some(vec![0x55; 0x900]);
    let config = VgaConfig { memory, rom, monitor: (1024, 768), clock: clock.clone() };
    let mut vga = Vga::new(config).expect("a possible VGA");
    // Colour, memory enabled, not blank.
    PortIo::write(&mut vga, PORTS, 2, AccessSize::Byte, 3);
    PortIo::write(&mut vga, PORTS, 0, AccessSize::Byte, 0x20);
    vga
}

/// A port region and its length.
fn ports(which: u8) -> (usize, u16) {
    [(PORTS, 32), (MONO_PORTS, 12), (VBE_PORTS, 4)][usize::from(which % 3)]
}

/// A memory region and its length.
fn memory(which: u8) -> (usize, u64) {
    [(WINDOW, 128 << 10), (FRAMEBUFFER, MEMORY), (REGISTERS, 4096), (ROM, 4096)][usize::from(which % 4)]
}

/// The bus passes no access that reaches beyond its region.
fn inside(offset: u64, len: u64, size: AccessSize) -> u64 {
    (offset % len).min(len - size.bytes() as u64)
}

fn step(vga: &mut Vga, clock: &Arc<FakeClock>, step: &Step) {
    match *step {
        Step::Indexed(which, index, value) => {
            let port = [4, 14, 20][usize::from(which % 3)];
            let value = u32::from(index % 25) | u32::from(value) << 8;
            PortIo::write(vga, PORTS, port, AccessSize::Word, value);
        }
        Step::Attribute(index, value) => {
            PortIo::read(vga, PORTS, 26, AccessSize::Byte);
            PortIo::write(vga, PORTS, 0, AccessSize::Byte, index.into());
            PortIo::write(vga, PORTS, 0, AccessSize::Byte, value.into());
        }
        Step::Misc(value) => PortIo::write(vga, PORTS, 2, AccessSize::Byte, value.into()),
        Step::Vbe(index, value) => {
            PortIo::write(vga, VBE_PORTS, 0, AccessSize::Word, (index % 12).into());
            PortIo::write(vga, VBE_PORTS, 1, AccessSize::Word, value.into());
        }
        Step::In(which, offset, size) => {
            let ((region, len), size) = (ports(which), AccessSize::from(size).min(AccessSize::Dword));
            PortIo::read(vga, region, inside(offset.into(), len.into(), size) as u16, size);
        }
        Step::Out(which, offset, size, value) => {
            let ((region, len), size) = (ports(which), AccessSize::from(size).min(AccessSize::Dword));
            let offset = inside(offset.into(), len.into(), size) as u16;
            PortIo::write(vga, region, offset, size, value & size.ones() as u32);
        }
        Step::OutBlock(offset, ref data) => {
            PortIo::write_block(vga, PORTS, u16::from(offset % 32), AccessSize::Byte, data);
        }
        Step::Load(which, offset, size) => {
            let ((region, len), size) = (memory(which), size.into());
            MmioIo::read(vga, region, inside(offset.into(), len, size), size);
        }
        Step::Store(which, offset, size, value) => {
            let ((region, len), size) = (memory(which), AccessSize::from(size));
            MmioIo::write(vga, region, inside(offset.into(), len, size), size, value & size.ones());
        }
        Step::Fill(offset, len, value) => {
            for at in 0..u64::from(len) {
                let offset = (u64::from(offset) + at) % (128 << 10);
                MmioIo::write(vga, WINDOW, offset, AccessSize::Byte, value.into());
            }
        }
        Step::Config(offset, size, value) => {
            let size = AccessSize::from(size).min(AccessSize::Dword);
            let offset = u16::from(offset) & !(size.bytes() as u16 - 1);
            match value {
                Some(value) => vga.config_write(offset, size, value & size.ones() as u32),
                None => drop(vga.config_read(offset, size)),
            }
        }
        Step::Pass(by) => clock.advance(by.into()),
        Step::Render => {
            let frame = vga.render();
            assert_eq!(frame.pixels().len(), frame.width() as usize * frame.height() as usize * 3);
            assert!(frame.width() <= 4608 && frame.height() <= 4096);
            drop(vga.text());
        }
        Step::Damage => drop(vga.take_damage()),
        Step::Reset => vga.reset(),
        Step::Move => {
            let state = postcard::to_stdvec(&vga.save()).expect("a state is plain data");
            let mut other = make(clock);
            other.restore(postcard::from_bytes(&state).expect("as it was written")).expect("a valid state");
            let again = postcard::to_stdvec(&other.save()).expect("a state is plain data");
            assert_eq!(state, again, "a restored device is another");
            *vga = other;
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let clock = Arc::new(FakeClock::default());
    let mut vga = make(&clock);
    // Pictures and states are large: a few of them are enough.
    let mut large = 0;
    for each in &steps {
        large += u32::from(matches!(each, Step::Render | Step::Move));
        if large <= 4 || !matches!(each, Step::Render | Step::Move) {
            step(&mut vga, &clock, each);
        }
    }
});
