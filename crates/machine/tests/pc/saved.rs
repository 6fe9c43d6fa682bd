//! A machine saved in mid-run goes on in another one.

use std::time::Duration;

use trapline_device::AccessSize::{Byte, Dword, Word};
use trapline_machine::{MachineState, Outcome, Pc};
use trapline_vcpu::Accel;

use crate::harness::*;

/// The state and the memory of one machine go to another.
fn hand_over(from: &Pc, to: &mut Pc) {
    let state = postcard::to_stdvec(&from.save().unwrap()).unwrap();
    let mut memory = vec![0; from.ram().size() as usize];
    from.ram().arena().read_bytes(0, &mut memory).unwrap();
    to.ram().arena().write_bytes(0, &memory).unwrap();
    to.restore(postcard::from_bytes::<MachineState>(&state).unwrap()).unwrap();
}

#[test]
fn a_saved_machine_goes_on_elsewhere() {
    on_every_engine(|accel| {
        let make = || machine(accel, direct(alphabet), |_, _| {});
        let mut first = make();
        let (remote, watched) = (first.pc.remote(), first.serial.clone());
        let stop = std::thread::spawn(move || {
            while watched.text().len() < 5 {
                std::thread::sleep(Duration::from_millis(1));
            }
            remote.quit();
        });
        assert_eq!(first.pc.run().unwrap(), Outcome::UserQuit, "{accel}");
        stop.join().unwrap();
        let mut second = make();
        hand_over(&first.pc, &mut second.pc);
        let ran = finish(second);
        assert_eq!(ran.outcome, Outcome::DebugExit(26 << 1 | 1), "{accel}");
        let all = first.serial.text() + &ran.output;
        assert_eq!(all, "abcdefghijklmnopqrstuvwxyz", "{accel}");
    });
}

#[test]
fn the_address_map_and_a_half_read_sector_are_kept() {
    let start = |dir: &std::path::Path| rom(|a| a.hlt())(dir);
    let make = || {
        machine(Accel::Soft, start, |config, dir| {
            let path = dir.join("disk.img");
            let image: Vec<u8> = (0..0x10_0000_u32).map(|at| (at / 2) as u8).collect();
            std::fs::write(&path, image).unwrap();
            config.drives.push(raw(path));
        })
    };
    let (mut first, mut second) = (make(), make());
    let mut access = first.pc.access();
    let mut config_write = |function: u32, register: u32, size, value| {
        access.port_write(0xcf8, Dword, 1 << 31 | function << 8 | register & !3).unwrap();
        access.port_write(0xcfc + (register & 3) as u16, size, value).unwrap();
    };
    config_write(0, PAM0, Byte, PAM_RAM);
    config_write(PM, 0x40, Dword, 0xb001);
    config_write(PM, 0x80, Byte, 1);
    config_write(SOUTH | 1, 0x40, Word, 0x8000); // IDE: decode the primary channel
    config_write(SOUTH | 1, 0x04, Word, 1);
    access.memory_write(0xf_0000, Dword, 0x600d_cafe).unwrap();
    for (port, value) in [(2, 1), (3, 1), (4, 0), (5, 0), (6, 0xe0), (7, 0x20)] {
        access.port_write(0x1f0 + port, Byte, value).unwrap();
    }
    access.wait_for_disks();
    for word in 0..100_u32 {
        assert_eq!(access.port_read(0x1f0, Word) & 0xff, word & 0xff);
    }
    hand_over(&first.pc, &mut second.pc);
    let mut access = second.pc.access();
    assert_eq!(access.memory_read(0xf_0000, Dword), 0x600d_cafe);
    assert_eq!(access.port_read(0xb004, Word), 1);
    for word in 100..256_u32 {
        assert_eq!(access.port_read(0x1f0, Word) & 0xff, word & 0xff);
    }
    assert_eq!(access.port_read(0x1f7, Byte), 0x50);
}

#[test]
fn a_state_of_another_machine_is_refused() {
    let plain = || machine(Accel::Soft, direct(|a| a.hlt()), |_, _| {}).pc;
    let mut without_vga = machine(Accel::Soft, direct(|a| a.hlt()), |config, _| config.vga = None).pc;
    let error = without_vga.restore(plain().save().unwrap()).unwrap_err();
    assert!(error.to_string().contains("vga"), "{error}");
    let mut two = machine(Accel::Soft, direct(|a| a.hlt()), |config, _| config.machine.cpus = 2).pc;
    let error = two.restore(plain().save().unwrap()).unwrap_err();
    assert!(error.to_string().contains("1 processors"), "{error}");
}
