//! The devices, driven through their ports.

mod acpi_pm;
mod fw_cfg;
mod hpet;
mod i8042;
mod legacy;
mod pflash;
mod random;
mod rtc;
mod small;
mod uart;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use trapline_chipset::{SystemEvent, SystemEvents};
use trapline_device::{AccessSize, PortIo};

/// Byte access to ports, as IN and OUT.
trait Ports {
    fn inb(&mut self, region: usize, offset: u16) -> u8;
    fn outb(&mut self, region: usize, offset: u16, value: u8);
}

impl<D: PortIo> Ports for D {
    fn inb(&mut self, region: usize, offset: u16) -> u8 {
        self.read(region, offset, AccessSize::Byte) as u8
    }

    fn outb(&mut self, region: usize, offset: u16, value: u8) {
        self.write(region, offset, AccessSize::Byte, value.into());
    }
}

/// Notes system events.
#[derive(Default)]
struct Events(Mutex<Vec<SystemEvent>>);

impl Events {
    fn take(&self) -> Vec<SystemEvent> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl SystemEvents for Events {
    fn raise(&self, event: SystemEvent) {
        self.0.lock().unwrap().push(event);
    }
}

/// A host output that keeps what it gets.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Screen {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A host output that always fails with this.
struct Broken(io::ErrorKind);

impl Write for Broken {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The state as it comes back from a file.
fn through_a_file<S: serde::Serialize + serde::de::DeserializeOwned>(state: &S) -> S {
    postcard::from_bytes(&postcard::to_stdvec(state).unwrap()).unwrap()
}
