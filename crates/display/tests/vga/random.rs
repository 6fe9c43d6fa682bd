//! Whatever a guest does: nothing panics, the picture has an end, a moved device behaves like one that was
//! not, and the memory window agrees with a plain description of it.

use std::sync::Arc;

use proptest::prelude::*;
use trapline_device::test::FakeClock;
use trapline_device::{AccessSize, MmioIo, PortIo, SaveRestore};
use trapline_display::{PORTS, Vga, VgaConfig, WINDOW};
use trapline_memory::DeviceMemory;
use trapline_pci::PciFunction;

/// An access: region, offset, width, and what to write.
type Step = (usize, u64, usize, Option<u32>);

fn vga(clock: &Arc<FakeClock>) -> Vga {
    let memory = DeviceMemory::standalone(256 << 10).unwrap();
    let config = VgaConfig { memory, rom: Some(vec![1; 100]), monitor: (640, 480), clock: clock.clone() };
    let mut vga = Vga::new(config).unwrap();
    vga.config_write(4, AccessSize::Word, 3);
    vga
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Regions 8 to 10 are ports, the others memory.
    let offset = prop_oneof![0..0x40u64, 0x400..0x620u64, any::<u64>()];
    let value = proptest::option::weighted(0.8, prop_oneof![0..0x1000u32, any::<u32>()]);
    proptest::collection::vec((0..12usize, offset, 0..4usize, value), 1..200)
}

fn run(vga: &mut Vga, clock: &FakeClock, (region, offset, size, value): Step) -> u64 {
    clock.advance(12_345);
    let size = [AccessSize::Byte, AccessSize::Word, AccessSize::Dword, AccessSize::Qword][size];
    if (8..11).contains(&region) {
        let (len, size) = ([12, 32, 4][region - 8], size.min(AccessSize::Dword));
        let offset = (offset % len).min(len - size.bytes() as u64) as u16;
        match value {
            Some(value) => PortIo::write(vga, region, offset, size, value),
            None => return PortIo::read(vga, region, offset, size).into(),
        }
    } else {
        let len = [256 << 10, 0, 4096, 0, 0, 0, 2048, 0, 0, 0, 0, 128 << 10][region];
        let offset = (offset % u64::max(len, 8)).min(u64::max(len, 8) - size.bytes() as u64);
        match value {
            Some(value) => MmioIo::write(vga, region, offset, size, u64::from(value) * 0x1_0000_0001),
            None => return MmioIo::read(vga, region, offset, size),
        }
    }
    0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_moved_device_goes_on_like_the_one_that_stayed(before in steps(), after in steps()) {
        let clock = Arc::new(FakeClock::default());
        let (mut stayed, mut moved) = (vga(&clock), vga(&clock));
        for step in before {
            run(&mut stayed, &clock, step);
        }
        let state = postcard::to_stdvec(&stayed.save()).unwrap();
        moved.restore(postcard::from_bytes(&state).unwrap()).unwrap();
        for step in after {
            let other = Arc::new(FakeClock::default());
            let (one, two) = (run(&mut stayed, &other, step), run(&mut moved, &other, step));
            prop_assert_eq!(one, two, "{:?}", step);
        }
        prop_assert_eq!(stayed.save(), moved.save());
        let frame = stayed.render();
        prop_assert_eq!(frame.pixels().len(), frame.width() as usize * frame.height() as usize * 3);
        prop_assert!(frame.width() <= 4608 && frame.height() <= 4096);
        prop_assert_eq!(stayed.text(), moved.text());
        stayed.take_damage();
    }

    /// Write mode 0 and read mode 0, by the definition: each plane by itself.
    #[test]
    fn planar_writes_agree_with_their_definition(
        registers in any::<[u8; 6]>(),
        writes in proptest::collection::vec((0..64u16, any::<u8>()), 1..40),
    ) {
        let [set, enable, rotate, mask, map, read] = registers;
        let clock = Arc::new(FakeClock::default());
        let mut vga = vga(&clock);
        let mut out = |port: u16, index: u8, value: u8| {
            PortIo::write(&mut vga, PORTS, port - 0x3c0, AccessSize::Word, u16::from_le_bytes([index, value]).into());
        };
        for (port, index, value) in [
            (0x3c4, 2, map), (0x3c4, 4, 6), (0x3ce, 0, set), (0x3ce, 1, enable), (0x3ce, 3, rotate),
            (0x3ce, 4, read), (0x3ce, 5, 0), (0x3ce, 6, 5), (0x3ce, 8, mask),
        ] {
            out(port, index, value);
        }
        PortIo::write(&mut vga, PORTS, 2, AccessSize::Byte, 3);
        let mut planes = [[0u8; 64]; 4];
        for (at, data) in writes {
            let read_back = MmioIo::read(&mut vga, WINDOW, at.into(), AccessSize::Byte) as u8;
            prop_assert_eq!(read_back, planes[usize::from(read & 3)][usize::from(at)]);
            MmioIo::write(&mut vga, WINDOW, at.into(), AccessSize::Byte, data.into());
            for (p, plane) in planes.iter_mut().enumerate() {
                let latch = plane[usize::from(at)];
                let mut value = data.rotate_right(u32::from(rotate & 7));
                if enable >> p & 1 != 0 {
                    value = if set >> p & 1 != 0 { 0xff } else { 0 };
                }
                value = match rotate >> 3 & 3 {
                    0 => value,
                    1 => value & latch,
                    2 => value | latch,
                    _ => value ^ latch,
                };
                if map >> p & 1 != 0 {
                    plane[usize::from(at)] = value & mask | latch & !mask;
                }
            }
        }
    }
}
