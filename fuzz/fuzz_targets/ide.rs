//! Any script on the IDE controller: disks and CD-ROMs, by PIO and by DMA, with descriptors anywhere in memory and
//! outside of it.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use trapline_device::test::Recorder;
use trapline_device::{AccessSize, Device, IrqLine, PortIo, SaveRestore};
use trapline_disk::storage::MemStorage;
use trapline_disk::{Disk, RawDisk};
use trapline_fuzz::script::Size;
use trapline_ide::{
    BUS_MASTER, Drive, DriveIdentity, IDETIM, IdeConfig, Io, PRIMARY_COMMAND, PRIMARY_CONTROL, PiixIde,
    SECONDARY_COMMAND, SECONDARY_CONTROL,
};
use trapline_pci::PciFunction;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const RAM: usize = 1 << 20;
const REGIONS: [usize; 5] =
    [PRIMARY_COMMAND, PRIMARY_CONTROL, SECONDARY_COMMAND, SECONDARY_CONTROL, BUS_MASTER];
/// Ports of each.
const PORTS: [u16; 5] = [8, 1, 8, 1, 16];

#[derive(Arbitrary, Debug)]
enum Step {
    Read(u8, u8, Size),
    Write(u8, u8, Size, u32),
    ReadBlock(bool, u16),
    WriteBlock(bool, u16, u8),
    /// A command with its registers.
    Command { second: bool, device: u8, registers: [u8; 5], before: Option<[u8; 5]>, command: u8 },
    /// A packet, with its registers.
    Packet { second: bool, device: u8, features: u8, limit: u16, packet: [u8; 12] },
    /// A descriptor in memory.
    Descriptor { at: u16, address: u32, count: u16, flags: u8 },
    /// The bus master starts at a table.
    Start { second: bool, table: u32, command: u8 },
    Config(u8, Size, u32),
    /// Another disc, or none.
    Disc(bool, Option<u8>),
    Move,
    Reset,
}

fn disk(sectors: u64, read_only: bool) -> Arc<dyn Disk> {
    let storage = Arc::new(MemStorage::new(vec![0x5a; sectors as usize * 512]));
    Arc::new(RawDisk::new(storage, read_only, false).expect("a small disk"))
}

/// Two disks, one of them for reading only, and two CD-ROMs, one of them empty.
fn controller(disks: &[Arc<dyn Disk>; 3], memory: &Arc<GuestMemoryMmap<()>>) -> PiixIde {
    let irqs = Arc::new(Recorder::default());
    let identity = || DriveIdentity::new("FUZZ");
    let [first, second, disc] = disks.each_ref().map(|disk| Io::Blocking(disk.clone()));
    let mut ide = PiixIde::new(IdeConfig {
        subsystem: (0, 0),
        memory: memory.clone(),
        irqs: [IrqLine::new(irqs.clone(), 14), IrqLine::new(irqs, 15)],
        drives: [
            [Some(Drive::disk(first, identity())), Some(Drive::cdrom(Some(disc), identity()))],
            [Some(Drive::cdrom(None, identity())), Some(Drive::disk(second, identity()))],
        ],
    })
    .expect("bar 4 is valid");
    ide.config_write(IDETIM, AccessSize::Dword, 0x8000_8000);
    ide.config_write(4, AccessSize::Word, 5);
    ide
}

fn block(second: bool) -> usize {
    if second { SECONDARY_COMMAND } else { PRIMARY_COMMAND }
}

fn set(ide: &mut PiixIde, second: bool, offset: u16, value: u8) {
    ide.write(block(second), offset, AccessSize::Byte, value.into());
}

/// A region, and an offset in it that leaves room for the access.
fn place(region: u8, offset: u8, size: Size) -> (usize, u16, AccessSize) {
    let i = usize::from(region) % REGIONS.len();
    let size = AccessSize::from(size).min(AccessSize::Dword);
    let (ports, bytes) = (PORTS[i], size.bytes() as u16);
    if bytes > ports {
        return (REGIONS[i], 0, AccessSize::Byte);
    }
    (REGIONS[i], u16::from(offset) % (ports - bytes + 1), size)
}

fn perform(ide: &mut PiixIde, disks: &[Arc<dyn Disk>; 3], memory: &Arc<GuestMemoryMmap<()>>, step: Step) {
    match step {
        Step::Read(region, offset, size) => {
            let (region, offset, size) = place(region, offset, size);
            ide.read(region, offset, size);
        }
        Step::Write(region, offset, size, value) => {
            let (region, offset, size) = place(region, offset, size);
            ide.write(region, offset, size, value);
        }
        Step::ReadBlock(second, words) => {
            ide.read_block(block(second), 0, AccessSize::Word, &mut vec![0; 2 * usize::from(words)]);
        }
        Step::WriteBlock(second, words, byte) => {
            ide.write_block(block(second), 0, AccessSize::Word, &vec![byte; 2 * usize::from(words)]);
        }
        Step::Command { second, device, registers, before, command } => {
            set(ide, second, 6, device);
            for values in before.iter().chain([&registers]) {
                (1..).zip(values).for_each(|(offset, value)| set(ide, second, offset, *value));
            }
            set(ide, second, 7, command);
        }
        Step::Packet { second, device, features, limit, packet } => {
            let [low, high] = limit.to_le_bytes();
            for (offset, value) in [(6, device), (1, features), (4, low), (5, high), (7, 0xa0)] {
                set(ide, second, offset, value);
            }
            ide.write_block(block(second), 0, AccessSize::Word, &packet);
        }
        Step::Descriptor { at, address, count, flags } => {
            let entry = u64::from(address) | u64::from(count) << 32 | u64::from(flags) << 56;
            let at = u64::from(at) * 8;
            memory.write_obj(entry, GuestAddress(at)).expect("all of these are in memory");
        }
        Step::Start { second, table, command } => {
            let offset = if second { 8 } else { 0 };
            ide.write(BUS_MASTER, offset + 4, AccessSize::Dword, table);
            ide.write(BUS_MASTER, offset + 2, AccessSize::Byte, 6);
            ide.write(BUS_MASTER, offset, AccessSize::Byte, command.into());
        }
        Step::Config(offset, size, value) => {
            let size = AccessSize::from(size).min(AccessSize::Dword);
            let offset = u16::from(offset) & !(size.bytes() as u16 - 1);
            ide.config_write(offset, size, value);
        }
        Step::Disc(second, disc) => {
            let disc = disc.map(|sectors| Io::Blocking(disk(u64::from(sectors) * 4, true)));
            let (channel, position) = if second { (1, 0) } else { (0, 1) };
            assert!(ide.change_disc(channel, position, disc), "there is a CD-ROM");
        }
        Step::Move => {
            let state = postcard::to_stdvec(&ide.save()).expect("a state is plain data");
            let mut other = controller(disks, memory);
            // The disc may have been changed since.
            if other.restore(postcard::from_bytes(&state).expect("as it was written")).is_ok() {
                let again = postcard::to_stdvec(&other.save()).expect("a state is plain data");
                assert_eq!(state, again, "a restored controller is another");
            }
        }
        Step::Reset => ide.reset(),
    }
}

fuzz_target!(|script: Vec<Step>| {
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).expect("little memory"));
    let disks = [disk(256, false), disk(64, true), disk(128, true)];
    let mut ide = controller(&disks, &memory);
    for step in script {
        perform(&mut ide, &disks, &memory, step);
    }
    // A soft reset brings every drive back.
    ide.config_write(IDETIM, AccessSize::Dword, 0x8000_8000);
    for (command, control, status) in
        [(PRIMARY_COMMAND, PRIMARY_CONTROL, 0x50), (SECONDARY_COMMAND, SECONDARY_CONTROL, 0)]
    {
        ide.write(control, 0, AccessSize::Byte, 4);
        ide.write(control, 0, AccessSize::Byte, 0);
        ide.write(command, 6, AccessSize::Byte, 0xa0);
        assert_eq!(ide.read(command, 7, AccessSize::Byte), status);
    }
});
