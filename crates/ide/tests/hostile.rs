//! Random scripts, and saved states.

mod common;

use std::sync::Arc;

use common::{Byte, Dword, Pc, Word, disk_drive, numbered, sectors, slow_engine};
use proptest::prelude::*;
use trapline_device::{Device, SaveRestore};
use trapline_disk::Disk;
use trapline_ide::{BUS_MASTER, Drive, DriveIdentity, Io, PRIMARY_COMMAND, PRIMARY_CONTROL, PiixIdeState};
use trapline_pci::PciFunction;
use vm_memory::{Bytes, GuestAddress};

fn board(disk: Arc<dyn Disk>, engine: bool) -> Pc {
    let io = if engine { Io::Engine(slow_engine(disk)) } else { Io::Blocking(disk) };
    let disc = Some(Io::Blocking(numbered(64) as Arc<dyn Disk>));
    let cd = Drive::cdrom(disc, DriveIdentity::new("CD"));
    Pc::new(Some(Drive::disk(io, DriveIdentity::new("D"))), Some(cd))
}

/// Commands that exist, which random bytes would seldom hit.
const COMMANDS: [u8; 24] = [
    0x20, 0x24, 0x25, 0x29, 0x30, 0x34, 0x35, 0x39, 0x40, 0x42, 0x06, 0x90, 0x91, 0xa0, 0xa0, 0xa1, 0xb0,
    0xc4, 0xc5, 0xc6, 0xc8, 0xca, 0xec, 0xef,
];
const PACKETS: [u8; 18] = [
    0x00, 0x03, 0x12, 0x1b, 0x1e, 0x25, 0x28, 0x2b, 0x43, 0x46, 0x4a, 0x51, 0x5a, 0xa8, 0xbb, 0xbd, 0xbe,
    0x28,
];

fn step(pc: &Pc, kind: u8, a: u8, value: u32) {
    let size = [Byte, Word, Dword][usize::from(a >> 5) % 3];
    let port = u16::from(a & 7);
    match kind % 16 {
        0 => drop(pc.inp(PRIMARY_COMMAND, port, if port == 7 { Byte } else { size })),
        1 | 2 => pc.out(PRIMARY_COMMAND, port, Byte, value),
        3 | 4 => pc.out(PRIMARY_COMMAND, 7, Byte, COMMANDS[usize::from(a) % COMMANDS.len()].into()),
        5 => pc.out(PRIMARY_CONTROL, 0, Byte, value & if a < 240 { 0x82 } else { 0xff }),
        6 => drop(pc.insw(usize::from(a) * 16)),
        7 => pc.outsw(&value.to_le_bytes().repeat(usize::from(a) * 4)),
        8 => {
            // A whole small command: numbers that are on the disk.
            for (port, value) in
                [(6, 0xe0 | a & 0x10), (2, value as u8 % 40), (3, (value >> 8) as u8), (4, 0), (5, 8)]
            {
                pc.set(port, value);
            }
            pc.set(7, COMMANDS[usize::from(a) % COMMANDS.len()]);
        }
        9 => {
            let [b0, b1, b2, b3] = value.to_le_bytes();
            let code = PACKETS[usize::from(a) % PACKETS.len()];
            pc.set(6, 0xb0);
            pc.set(1, b0 & 1);
            pc.set(7, 0xa0);
            pc.outsw(&[code, b0 & 3, b1 & 0x3f, 0, b0, b2 & 63, b3 & 3, 0, b3, 0x10, 0, 0]);
        }
        10 => pc.out(BUS_MASTER, u16::from(a & 15) & !3, size, value),
        11 => pc.start(a & 1 == 0),
        12 => pc.out(BUS_MASTER, 4, Dword, value & 0x7_fff8),
        // Descriptors with all kinds of addresses.
        13 => {
            let entry = u64::from(value) << (a & 15) | u64::from(a) << 56 | u64::from(value & 0xfff) << 32;
            let _ = pc.memory.write_obj(entry, GuestAddress(u64::from(value) & 0x7_fff8));
        }
        14 => pc.ide.lock().unwrap().config_write(4, Word, value & 7 | u32::from(a > 20) << 2),
        _ => pc.ide.lock().unwrap().complete(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn no_script_panics(engine: bool, script in prop::collection::vec((0..16_u8, any::<u8>(), any::<u32>()), 1..150)) {
        let pc = board(numbered(2048), engine);
        for (kind, a, value) in script {
            step(&pc, kind, a, value);
        }
        pc.ide.lock().unwrap().quiesce();
        pc.control(4);
        pc.control(0);
        pc.set(6, 0xa0);
        prop_assert_eq!(pc.status(), 0x50, "a reset brings it back");
        pc.ide.lock().unwrap().reset();
    }

    #[test]
    fn a_saved_controller_goes_on_as_the_first_would(
        script in prop::collection::vec((0..16_u8, any::<u8>(), any::<u32>()), 1..60),
        tail in prop::collection::vec((0..8_u8, any::<u8>(), any::<u32>()), 1..30),
    ) {
        let disk = numbered(2048);
        let (one, two) = (board(disk.clone(), false), board(disk, false));
        for (kind, a, value) in script {
            step(&one, kind, a, value);
        }
        let bytes = {
            let state = one.ide.lock().unwrap().save();
            postcard::to_stdvec(&state).unwrap()
        };
        let state: PiixIdeState = postcard::from_bytes(&bytes).unwrap();
        two.ide.lock().unwrap().restore(state.clone()).unwrap();
        prop_assert_eq!(&two.ide.lock().unwrap().save(), &state);
        prop_assert_eq!(one.irq(), two.irq());
        for (kind, a, value) in tail {
            // Reads only: both share the disk, and the second has its own memory.
            if let 0 | 6 = kind {
                step(&one, kind, a, value);
                step(&two, kind, a, value);
                prop_assert_eq!(one.ide.lock().unwrap().save(), two.ide.lock().unwrap().save());
            }
        }
    }

    #[test]
    fn random_states_are_refused_or_harmless(noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let pc = board(numbered(2048), false);
        pc.lba28(0x20, 5, 3);
        pc.insw(100);
        let mut bytes = postcard::to_stdvec(&pc.ide.lock().unwrap().save()).unwrap();
        for (at, value) in noise {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(state) = postcard::from_bytes::<PiixIdeState>(&bytes)
            && pc.ide.lock().unwrap().restore(state).is_ok()
        {
            pc.insw(4096);
            pc.outsw(&[0; 4096]);
            pc.start(true);
        }
    }
}

#[test]
fn a_read_goes_on_after_a_restore() {
    let disk = numbered(64);
    let one = Pc::new(Some(disk_drive(disk.clone())), None);
    one.lba28(0x20, 5, 3);
    one.status();
    let first = one.insw(700);
    let two = Pc::new(Some(disk_drive(disk)), None);
    let state = one.ide.lock().unwrap().save();
    two.ide.lock().unwrap().restore(state).unwrap();
    assert!(two.irq(), "the second sector's interrupt is pending");
    assert_eq!([first, two.insw(3 * 512 - 700)].concat(), sectors(5, 3));
    assert_eq!(two.status(), 0x50);
}

#[test]
fn a_write_goes_on_after_a_restore() {
    let (first, second) = (numbered(64), numbered(64));
    let one = Pc::new(Some(disk_drive(first.clone())), None);
    one.lba28(0x30, 5, 3);
    let data = sectors(1005, 3);
    let (begun, rest) = data.split_at(700);
    one.outsw(begun);
    let two = Pc::new(Some(disk_drive(second.clone())), None);
    let state = one.ide.lock().unwrap().save();
    two.ide.lock().unwrap().restore(state).unwrap();
    assert!(two.irq(), "the second sector's interrupt is pending");
    two.outsw(rest);
    assert_eq!(two.status(), 0x50);
    let content = |disk: &dyn Disk| {
        let mut content = vec![0; 5 * 512];
        disk.read(4 * 512, &mut content).unwrap();
        content
    };
    assert_eq!(content(first.as_ref()), sectors(4, 5), "nothing is written before all is there");
    assert_eq!(content(second.as_ref()), [sectors(4, 1), data, sectors(8, 1)].concat());
}

#[test]
fn a_state_of_another_disk_is_refused() {
    let state = Pc::with_disk().ide.lock().unwrap().save();
    let other = Pc::new(Some(disk_drive(numbered(8))), None);
    assert!(other.ide.lock().unwrap().restore(state.clone()).is_err());
    assert!(Pc::with_disc(8).ide.lock().unwrap().restore(state).is_err());
}

#[test]
fn a_state_taken_without_quiescing_has_the_command_fail() {
    let (one, two) = (board(numbered(2048), true), board(numbered(2048), true));
    one.lba28(0x20, 5, 1);
    assert_eq!(one.alternate(), 0x80);
    let state = one.ide.lock().unwrap().save();
    two.ide.lock().unwrap().restore(state).unwrap();
    assert!(two.irq());
    assert_eq!((two.status(), two.get(1)), (0x51, 0x04));
    // Quiesced, it goes on with the data.
    one.ide.lock().unwrap().quiesce();
    let state = one.ide.lock().unwrap().save();
    two.ide.lock().unwrap().restore(state).unwrap();
    assert_eq!(two.status(), 0x58);
    assert_eq!(two.insw(512), sectors(5, 1));
}
