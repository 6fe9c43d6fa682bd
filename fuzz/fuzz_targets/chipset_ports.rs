//! Any script on the UART, the RTC, the i8042, the ACPI power-management block, the HPET, the parallel port, the
//! DMA controllers, the SMBus, flash, and the devices of one or two registers.
#![no_main]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use trapline_chipset::hpet::LegacyLines;
use trapline_chipset::{
    A20Gate, AcpiPm, AcpiPmConfig, DebugCon, DebugExit, Dma, Hpet, I8042, Key, MouseButtons, Parallel,
    PcTestdev, Pflash, Port92, PostCode, ResetControl, Rtc, Smbus, SystemEvent, SystemEvents, Uart, pflash,
};
use trapline_device::DmaMemory;
use trapline_fuzz::script::{Extent, Step, run};

#[derive(arbitrary::Arbitrary, Debug)]
enum Input {
    Uart(Vec<Step>),
    Rtc(Vec<Step>),
    I8042(Vec<Step>),
    AcpiPm(Vec<Step>),
    Hpet(Vec<Step>),
    Parallel(Vec<Step>),
    Dma(Vec<Step>),
    Smbus(Vec<Step>),
    Pflash(Vec<Step>),
    Port92(Vec<Step>),
    ResetControl(Vec<Step>),
    PostCode(Vec<Step>),
    DebugExit(Vec<Step>),
    DebugCon(Vec<Step>),
    PcTestdev(Vec<Step>),
}

/// Resets and power-offs that nobody heeds.
struct Ignored;

impl SystemEvents for Ignored {
    fn raise(&self, _: SystemEvent) {}
}

fn uart(steps: &[Step]) {
    run(
        steps,
        Extent { regions: 1, offsets: 9 },
        |world| Uart::new("serial0", world.line(1), Box::new(std::io::sink())),
        |uart, bytes| match bytes {
            [0..0x20, ..] => drop(uart.receive_break()),
            _ => assert!(uart.receive(&bytes) <= bytes.len()),
        },
    );
}

fn rtc(steps: &[Step]) {
    run(
        steps,
        Extent { regions: 1, offsets: 3 },
        |world| Rtc::new(world.line(1), world.clock.clone(), Duration::new(1_795_392_000, 999_999_999)),
        |rtc, [what, a, b, c]| match what % 3 {
            0 => rtc.set_cmos(a, b),
            1 => rtc.set_memory_size(u64::from(a) << (b % 56), u64::from(c) << (b % 56)),
            _ => rtc.set_time(Duration::from_secs(u64::from(a) << (b % 64))),
        },
    );
}

fn i8042(steps: &[Step]) {
    let events: Arc<dyn SystemEvents> = Arc::new(Ignored);
    run(
        steps,
        Extent { regions: 2, offsets: 2 },
        |world| {
            let a20 = Arc::new(A20Gate::new(events.clone()));
            I8042::new(world.line(1), world.line(12), a20, events.clone())
        },
        |ps2, [what, a, b, c]| match what % 3 {
            0 => ps2.set_mouse_buttons(MouseButtons::from_bits_truncate(a)),
            1 => {
                let scale = |d: u8| (i32::from(d) - 128) << (d % 24);
                ps2.move_mouse(scale(a), scale(b), scale(c));
            }
            _ => {
                let prefix = if b & 1 == 0 { 0 } else { 0xe000 };
                let key = Key::from_set1(u16::from(a) | prefix).unwrap_or(Key::PAUSE);
                let _ = ps2.key(key, c & 1 == 0);
            }
        },
    );
}

fn acpi_pm(steps: &[Step]) {
    let events: Arc<dyn SystemEvents> = Arc::new(Ignored);
    run(
        steps,
        Extent { regions: 5, offsets: 6 },
        |world| AcpiPm::new(AcpiPmConfig::default(), world.line(1), world.clock.clone(), events.clone()),
        |pm, [what, gpe, ..]| match what % 6 {
            0 => pm.press_power_button(),
            1 => pm.press_sleep_button(),
            2 => pm.rtc_alarm(),
            3 => pm.wake(),
            4 => {
                pm.reset_by_wake();
                assert!(!pm.acpi_enabled());
            }
            _ => pm.raise_gpe(gpe),
        },
    );
}

fn hpet(steps: &[Step]) {
    run(
        steps,
        Extent { regions: 1, offsets: 0x170 },
        |world| {
            let routes = [2, 20, 31].map(|line: u8| (line, world.line(line.into()))).to_vec();
            Hpet::new(world.clock.clone(), routes, LegacyLines::new(world.line(0), world.line(8)))
        },
        |_, _| {},
    );
}

/// The cells of a flash chip.
struct Cells(Mutex<[u8; 2 * pflash::BLOCK as usize]>);

impl DmaMemory for Cells {
    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let cells = self.0.lock().expect("no panic before");
        let part = cells.get(address as usize..).and_then(|rest| rest.get(..data.len()));
        part.map(|part| data.copy_from_slice(part)).is_some()
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        let mut cells = self.0.lock().expect("no panic before");
        let part = cells.get_mut(address as usize..).and_then(|rest| rest.get_mut(..data.len()));
        part.map(|part| part.copy_from_slice(data)).is_some()
    }
}

/// A board that shows what the chip says.
struct View;

impl pflash::FlashView for View {
    fn set_array(&self, _: bool) {}
}

fn pflash(steps: &[Step]) {
    let cells = Arc::new(Cells(Mutex::new([0xff; 2 * pflash::BLOCK as usize])));
    run(
        steps,
        Extent { regions: 1, offsets: 2 * pflash::BLOCK + 4 },
        |_| {
            Pflash::new(pflash::PflashConfig {
                name: "vars",
                cells: cells.clone(),
                size: 2 * pflash::BLOCK,
                writable: true,
                view: Arc::new(View),
                store: None,
            })
        },
        |flash, _| flash.flush().expect("there is no store"),
    );
}

fuzz_target!(|input: Input| match input {
    Input::Uart(steps) => uart(&steps),
    Input::Rtc(steps) => rtc(&steps),
    Input::I8042(steps) => i8042(&steps),
    Input::AcpiPm(steps) => acpi_pm(&steps),
    Input::Hpet(steps) => hpet(&steps),
    Input::Parallel(steps) => run(
        &steps,
        Extent { regions: 1, offsets: 9 },
        |world| Parallel::new("lpt1", world.line(7), Box::new(std::io::sink())),
        |_, _| {},
    ),
    Input::Dma(steps) => run(&steps, Extent { regions: 4, offsets: 33 }, |_| Dma::new(), |_, _| {}),
    Input::Pflash(steps) => pflash(&steps),
    Input::Port92(steps) => run(
        &steps,
        Extent { regions: 1, offsets: 2 },
        |_| Port92::new(Arc::new(A20Gate::new(Arc::new(Ignored))), Arc::new(Ignored)),
        |_, _| {},
    ),
    Input::ResetControl(steps) => {
        run(&steps, Extent { regions: 1, offsets: 2 }, |_| ResetControl::new(Arc::new(Ignored)), |_, _| {});
    }
    Input::PostCode(steps) => run(&steps, Extent { regions: 1, offsets: 2 }, |_| PostCode::new(), |_, _| {}),
    Input::DebugExit(steps) => {
        run(&steps, Extent { regions: 1, offsets: 5 }, |_| DebugExit::new(Arc::new(Ignored)), |_, _| {});
    }
    Input::DebugCon(steps) => run(
        &steps,
        Extent { regions: 1, offsets: 2 },
        |_| DebugCon::new(Box::new(std::io::sink())),
        |_, _| {},
    ),
    Input::PcTestdev(steps) => run(
        &steps,
        Extent { regions: 4, offsets: 0x1004 },
        |world| PcTestdev::new(world.outside.clone()),
        |_, _| {},
    ),
    Input::Smbus(steps) => run(&steps, Extent { regions: 1, offsets: 17 }, |_| Smbus::new(), |_, _| {}),
});
