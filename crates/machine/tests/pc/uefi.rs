//! What firmware finds, and UEFI firmware itself.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use trapline_device::AccessSize::{Byte, Dword, Word};
use trapline_machine::pc::{Firmware, GuestAccess, Start, Variables};
use trapline_machine::{MachineConfig, Outcome, Pc, PcConfig, Serial};
use trapline_vcpu::Accel;

use crate::harness::*;

/// Longer than OVMF takes to its shell, unoptimised and on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

fn config(firmware: Firmware) -> PcConfig {
    let mut config = PcConfig::new(Start::Firmware(firmware));
    config.machine =
        MachineConfig { memory: 16 * MIB, accel: Accel::Soft, serial: Serial::Null, ..Default::default() };
    config
}

/// A ROM of a page, with flash of four blocks below it.
fn with_flash(dir: &Path) -> Firmware {
    let (image, template) = (dir.join("code"), dir.join("template"));
    std::fs::write(&image, [0xcc; 0x1000]).unwrap();
    std::fs::write(&template, [0xff; 0x4000]).unwrap();
    Firmware { variables: Some(Variables::Volatile(template)), ..Firmware::new(image) }
}

const FLASH: u64 = (1 << 32) - 0x5000;

/// Programs a byte, as OVMF does.
fn program(access: &mut GuestAccess<'_>, offset: u64, byte: u8) {
    for value in [0x10, byte, 0xff] {
        access.memory_write(FLASH + offset, Byte, value.into()).unwrap();
    }
}

#[test]
fn flash_is_memory_that_takes_commands() {
    let dir = tempfile::tempdir().unwrap();
    let mut pc = Pc::new(config(with_flash(dir.path()))).unwrap();
    let mut access = pc.access();
    program(&mut access, 0x1003, b'v');
    assert_eq!(access.memory_read(FLASH + 0x1000, Dword), 0x76ff_ffff);
    // Other states are read from the device, and the array is back after them.
    access.memory_write(FLASH, Byte, 0x90).unwrap();
    assert_eq!(access.memory_read(FLASH, Word), 0x1889);
    access.memory_write(FLASH, Byte, 0xff).unwrap();
    assert_eq!(access.memory_read(FLASH, Word), 0xffff);
    // The image above takes none.
    access.memory_write(FLASH + 0x4000, Byte, 0x90).unwrap();
    assert_eq!(access.memory_read(FLASH + 0x4000, Word), 0xcccc);
}

#[test]
fn variables_are_kept_in_a_file_made_from_the_template() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vars");
    let firmware = with_flash(dir.path()).keeping_variables(&file);
    let mut pc = Pc::new(config(firmware.clone())).unwrap();
    program(&mut pc.access(), 0x2000, b'k');
    // One machine at a time.
    let error = Pc::new(config(firmware.clone())).err().unwrap().to_string();
    assert!(error.contains("in use by another machine"), "{error}");
    drop(pc);
    let content = std::fs::read(&file).unwrap();
    assert_eq!((content.len(), content[0x1fff], content[0x2000]), (0x4000, 0xff, b'k'));
    let mut pc = Pc::new(config(firmware)).unwrap();
    assert_eq!(pc.access().memory_read(FLASH + 0x2000, Byte), u64::from(b'k'));
    // The template is as it was; a volatile copy leaves no trace.
    let mut pc = Pc::new(config(with_flash(dir.path()))).unwrap();
    program(&mut pc.access(), 0, 0);
    assert!(std::fs::read(dir.path().join("template")).unwrap().iter().all(|byte| *byte == 0xff));
}

#[test]
fn variables_that_cannot_be_are_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |path: &str, content: Option<&[u8]>| {
        let path = dir.path().join(path);
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let plain = Firmware { variables: None, ..with_flash(dir.path()) };
        let error = Pc::new(config(plain.keeping_variables(path))).err().unwrap().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    };
    // Without a template there is nothing to make a file from.
    assert!(refused("nowhere", None).contains("No such file"));
    assert!(refused("odd", Some(&[0; 100])).contains("expected a multiple of 4 KiB"));
    assert!(refused("empty", Some(&[])).contains("expected a multiple of 4 KiB"));
}

/// The key and size of a file in fw_cfg.
fn find(access: &mut GuestAccess<'_>, name: &str) -> (u16, usize) {
    access.port_write(0x510, Word, 0x19).unwrap();
    let mut count = [0; 4];
    access.port_read_block(0x511, Byte, &mut count);
    for _ in 0..u32::from_be_bytes(count) {
        let mut entry = [0; 64];
        access.port_read_block(0x511, Byte, &mut entry);
        if entry[8..].split(|byte| *byte == 0).next() == Some(name.as_bytes()) {
            let size = u32::from_be_bytes(entry[..4].try_into().unwrap());
            return (u16::from_be_bytes([entry[4], entry[5]]), size as usize);
        }
    }
    panic!("no file {name}");
}

fn file(access: &mut GuestAccess<'_>, name: &str) -> Vec<u8> {
    let (key, size) = find(access, name);
    access.port_write(0x510, Word, key.into()).unwrap();
    let mut content = vec![0; size];
    access.port_read_block(0x511, Byte, &mut content);
    content
}

/// The ports of the FADT: PM1a event, PM1a control, PM timer.
fn fadt_ports(tables: &[u8]) -> [u32; 3] {
    let at = (0..tables.len()).step_by(64).find(|&at| tables[at..].starts_with(b"FACP")).unwrap();
    [56, 64, 76].map(|field| u32::from_le_bytes(tables[at + field..][..4].try_into().unwrap()))
}

#[test]
fn acpi_tables_say_where_the_firmware_has_put_power_management() {
    let dir = tempfile::tempdir().unwrap();
    let mut pc = Pc::new(config(with_flash(dir.path()))).unwrap();
    let mut access = pc.access();
    assert_eq!(fadt_ports(&file(&mut access, "etc/acpi/tables")), [0x600, 0x604, 0x608]);
    let mut config_write = |register: u32, value: u8| {
        access.port_write(0xcf8, Dword, 1 << 31 | 0xb00 | register & !3).unwrap();
        access.port_write(0xcfc + (register & 3) as u16, Byte, value.into()).unwrap();
    };
    config_write(0x41, 0xb0); // PMBASE 0xb000
    config_write(0x80, 0x01);
    assert_eq!(fadt_ports(&file(&mut access, "etc/acpi/tables")), [0xb000, 0xb004, 0xb008]);
    for name in ["etc/acpi/rsdp", "etc/table-loader", "etc/smbios/smbios-anchor", "etc/smbios/smbios-tables"]
    {
        assert!(!file(&mut access, name).is_empty(), "{name}");
    }
}

/// Starts OVMF, types a line at each prompt of its shell, and returns what it said until it powered off.
fn shell(firmware: Firmware, lines: &'static [&str]) -> String {
    let output = Output::default();
    let (keyboard, mut typist) = std::io::pipe().unwrap();
    let mut config = config(firmware);
    config.machine.memory = 128 * MIB;
    config.machine.serial = Serial::Custom { output: Box::new(output.clone()), input: Some(keyboard.into()) };
    let mut pc = Pc::new(config).unwrap();
    let said = output.clone();
    let (alive, ended) = std::sync::mpsc::channel::<()>();
    let typing = std::thread::spawn(move || {
        // Until everything is typed, or the machine is gone.
        let mut left = lines.iter().enumerate().peekable();
        while left.peek().is_some()
            && ended.recv_timeout(Duration::from_millis(100)).is_err_and(|why| !is_gone(why))
        {
            let prompts = said.text().matches("Shell> ").count();
            if let Some((_, line)) = left.next_if(|(at, _)| *at < prompts) {
                typist.write_all(line.as_bytes()).unwrap();
            }
        }
        typist
    });
    let (outcome, late) = watched(pc.remote(), PATIENCE, || pc.run());
    drop(alive);
    typing.join().unwrap();
    assert!(!late, "it said {}\n{}", output.text(), pc.stats());
    assert_eq!(outcome.unwrap(), Outcome::PowerOff, "{}", output.text());
    output.text()
}

#[test]
fn ovmf_keeps_its_shells_variables() {
    let firmware: Firmware = "ovmf".parse().unwrap();
    if !firmware.image.exists() {
        return eprintln!("skipped: no {} (package ovmf)", firmware.image.display());
    }
    let dir = tempfile::tempdir().unwrap();
    let firmware = firmware.keeping_variables(dir.path().join("vars.fd"));
    let said = shell(firmware.clone(), &["set trapline kept\r", "reset -s\r"]);
    assert!(said.contains("UEFI Interactive Shell"), "{said}");
    let said = shell(firmware, &["set trapline\r", "reset -s\r"]);
    assert!(said.contains("kept"), "{said}");
}

fn is_gone(why: std::sync::mpsc::RecvTimeoutError) -> bool {
    why == std::sync::mpsc::RecvTimeoutError::Disconnected
}
