//! Scripts: what guest, host and time do to a device on ports or in memory.

use std::sync::Arc;

use arbitrary::Arbitrary;
use trapline_device::test::{FakeClock, Recorder};
use trapline_device::{AccessSize, Clock, Device, IrqLine, SaveRestore};

/// No script gets past this time, so that it does not wrap.
const LAST: u64 = 1 << 60;

/// Width of an access.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Size {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes.
    Dword,
    /// 8 bytes, in memory only.
    Qword,
}

impl From<Size> for AccessSize {
    fn from(size: Size) -> Self {
        match size {
            Size::Byte => AccessSize::Byte,
            Size::Word => AccessSize::Word,
            Size::Dword => AccessSize::Dword,
            Size::Qword => AccessSize::Qword,
        }
    }
}

/// Where an access goes; both numbers are cut to what the device has.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Place {
    region: u8,
    offset: u16,
    size: Size,
}

/// A step of a script.
#[derive(Arbitrary, Clone, Debug)]
pub enum Step {
    /// IN, or a load.
    Read(Place),
    /// OUT, or a store.
    Write(Place, u32),
    /// A store of a small value.
    WriteByte(Place, u8),
    /// REP INS of this many elements.
    ReadBlock(Place, u8),
    /// REP OUTS.
    WriteBlock(Place, [u8; 12]),
    /// The host does something to the device.
    Host([u8; 4]),
    /// Time passes: a number of nanoseconds, shifted.
    Pass(u16, u8),
    /// Time passes to the next deadline.
    PassToDeadline,
    /// RESET#.
    Reset,
    /// The device moves to another machine.
    Move,
}

/// What is around a device.
#[derive(Default)]
pub struct World {
    /// Time.
    pub clock: Arc<FakeClock>,
    /// Where its interrupts go.
    pub outside: Arc<Recorder>,
}

impl World {
    /// An interrupt line.
    pub fn line(&self, pin: u32) -> IrqLine {
        IrqLine::new(self.outside.clone(), pin)
    }

    fn pass<D: Device>(&self, device: &mut D, by: u64) {
        self.clock.advance(by.min(LAST - self.clock.now()));
        let now = self.clock.now();
        if let Some(poll) = device.poll() {
            poll.poll(now);
            let next = poll.deadline();
            // Or a board would poll forever.
            assert!(next.is_none_or(|next| next > now), "polled for nothing at {now}: {next:?}");
        }
    }
}

/// A device's extent: regions, and offsets in each.
pub struct Extent {
    /// How many regions it has.
    pub regions: usize,
    /// How many offsets are tried.
    pub offsets: u64,
}

/// Runs a script on the device that `make` makes.
pub fn run<D: Device + SaveRestore>(
    steps: &[Step],
    extent: Extent,
    make: impl Fn(&World) -> D,
    host: impl Fn(&mut D, [u8; 4]),
) {
    let world = World::default();
    let mut device = make(&world);
    for step in steps {
        match *step {
            Step::Host(bytes) => host(&mut device, bytes),
            Step::Pass(by, shift) => world.pass(&mut device, u64::from(by) << (shift % 48)),
            Step::PassToDeadline => {
                if let Some(at) = device.poll().and_then(|poll| poll.deadline()) {
                    world.pass(&mut device, at.saturating_sub(world.clock.now()));
                }
            }
            Step::Reset => device.reset(),
            Step::Move => {
                let state = postcard::to_stdvec(&device.save()).expect("a state is plain data");
                let mut other = make(&world);
                other
                    .restore(postcard::from_bytes(&state).expect("as it was written"))
                    .expect("a valid state");
                let again = postcard::to_stdvec(&other.save()).expect("a state is plain data");
                assert_eq!(state, again, "a restored device is another");
                device = other;
            }
            Step::Read(place) => access(&mut device, &extent, place, None),
            Step::Write(place, value) => access(&mut device, &extent, place, Some(value)),
            Step::WriteByte(place, value) => access(&mut device, &extent, place, Some(value.into())),
            Step::ReadBlock(place, n) => {
                block(&mut device, &extent, place, &mut vec![0; usize::from(n)], false)
            }
            Step::WriteBlock(place, mut data) => block(&mut device, &extent, place, &mut data, true),
        }
        world.outside.take_messages();
    }
}

/// One access, through the face that the device has.
fn access<D: Device>(device: &mut D, extent: &Extent, place: Place, write: Option<u32>) {
    let region = usize::from(place.region) % extent.regions;
    let offset = u64::from(place.offset) % extent.offsets;
    let size = AccessSize::from(place.size);
    if let Some(pio) = device.pio() {
        let size = size.min(AccessSize::Dword);
        match write {
            Some(value) => pio.write(region, offset as u16, size, value & size.ones() as u32),
            None => drop(pio.read(region, offset as u16, size)),
        }
    } else if let Some(mmio) = device.mmio() {
        match write {
            Some(value) => mmio.write(region, offset, size, u64::from(value) & size.ones()),
            None => drop(mmio.read(region, offset, size)),
        }
    }
}

/// A block of accesses to one port, whole elements only, as the bus makes them.
fn block<D: Device>(device: &mut D, extent: &Extent, place: Place, data: &mut [u8], write: bool) {
    let Some(pio) = device.pio() else { return };
    let region = usize::from(place.region) % extent.regions;
    let offset = (u64::from(place.offset) % extent.offsets) as u16;
    let size = AccessSize::from(place.size).min(AccessSize::Dword);
    let whole = data.len() / size.bytes() * size.bytes();
    if write {
        pio.write_block(region, offset, size, &data[..whole]);
    } else {
        pio.read_block(region, offset, size, &mut data[..whole]);
    }
}
