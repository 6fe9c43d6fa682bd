//! QEMU as a machine, through its qtest protocol: a line for each access, and lines for the interrupts that
//! rise and fall.
//!
//! The machine never runs: no processor executes anything, and virtual time stands still.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::machine::{AccessSize, Machine};

const PROGRAM: &str = "qemu-system-x86_64";
/// How long QEMU may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether there is a QEMU; says so if not.
pub fn is_installed() -> bool {
    let probe = Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = probe.is_ok_and(|status| status.success());
    if !found {
        eprintln!("skipped: {PROGRAM} is not installed; nothing is compared with QEMU");
    }
    found
}

/// A QEMU process, killed with the value.
pub struct Qemu {
    child: Child,
    qtest: BufReader<UnixStream>,
    monitor: BufReader<UnixStream>,
    lines: u32,
    /// Holds the sockets.
    _folder: TempDir,
}

impl Qemu {
    /// The machine "pc" with 16 MiB of memory and what `arguments` add.
    pub fn start(arguments: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (qtest_path, monitor_path) = (folder.path().join("qtest"), folder.path().join("qmp"));
        let (qtest, monitor) =
            (UnixListener::bind(&qtest_path).unwrap(), UnixListener::bind(&monitor_path).unwrap());
        let unix = |path: &Path| format!("unix:{}", path.display());
        let mut child = Command::new(PROGRAM)
            .args(["-machine", "pc,vmport=off", "-accel", "tcg", "-S", "-m", "16", "-nodefaults"])
            .args(["-display", "none", "-qtest-log", "none"])
            .args(["-qtest", &unix(&qtest_path), "-qmp", &unix(&monitor_path)])
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let qtest = accept(&qtest, &mut child);
        let monitor = accept(&monitor, &mut child);
        let mut qemu = Self { child, qtest, monitor, lines: 0, _folder: folder };
        let mut greeting = String::new();
        qemu.monitor.read_line(&mut greeting).unwrap();
        qemu.monitor(r#"{"execute":"qmp_capabilities"}"#);
        qemu.command("irq_intercept_in ioapic");
        qemu
    }

    /// A command of the qtest protocol; what follows OK in the answer.
    pub fn command(&mut self, command: &str) -> String {
        self.qtest.get_mut().write_all(format!("{command}\n").as_bytes()).unwrap();
        loop {
            let mut line = String::new();
            self.qtest.read_line(&mut line).unwrap();
            let mut words = line.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (Some("IRQ"), Some(edge), Some(pin)) => self.edge(edge, pin.parse().unwrap()),
                (Some("OK"), value, _) => return value.unwrap_or_default().to_owned(),
                _ => panic!("QEMU's answer to {command:?} is {line:?}"),
            }
        }
    }

    fn edge(&mut self, edge: &str, pin: u32) {
        let bit = 1 << pin;
        self.lines = if edge == "raise" { self.lines | bit } else { self.lines & !bit };
    }

    fn number(&mut self, command: &str) -> u64 {
        let answer = self.command(command);
        u64::from_str_radix(answer.trim_start_matches("0x"), 16).unwrap()
    }

    /// A command of the monitor protocol, whose answer must be a success.
    pub fn monitor(&mut self, command: &str) {
        self.monitor.get_mut().write_all(format!("{command}\n").as_bytes()).unwrap();
        loop {
            let mut line = String::new();
            self.monitor.read_line(&mut line).unwrap();
            let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert!(answer.get("error").is_none(), "QEMU's answer to {command} is {line}");
            if answer.get("return").is_some() {
                return;
            }
        }
    }
}

fn accept(listener: &UnixListener, child: &mut Child) -> BufReader<UnixStream> {
    listener.set_nonblocking(true).unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            return BufReader::new(stream);
        }
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none() && Instant::now() < end, "QEMU does not start: {ended:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn suffix(size: AccessSize) -> char {
    match size {
        AccessSize::Byte => 'b',
        AccessSize::Word => 'w',
        AccessSize::Dword | AccessSize::Qword => 'l',
    }
}

impl Machine for Qemu {
    fn inp(&mut self, port: u16, size: AccessSize) -> u32 {
        self.number(&format!("in{} {port:#x}", suffix(size))) as u32
    }

    fn out(&mut self, port: u16, size: AccessSize, value: u32) {
        self.command(&format!("out{} {port:#x} {:#x}", suffix(size), u64::from(value) & size.ones()));
    }

    fn read(&mut self, address: u64, data: &mut [u8]) {
        let answer = self.command(&format!("read {address:#x} {:#x}", data.len()));
        let digits = answer.trim_start_matches("0x").as_bytes();
        for (byte, pair) in data.iter_mut().zip(digits.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        }
    }

    fn write(&mut self, address: u64, data: &[u8]) {
        let digits: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
        self.command(&format!("write {address:#x} {:#x} 0x{digits}", data.len()));
    }

    fn lines(&mut self) -> u32 {
        self.lines & 0xffff
    }

    fn change_disc(&mut self, disc: Option<&Path>) {
        match disc {
            Some(path) => self.monitor(&format!(
                r#"{{"execute":"blockdev-change-medium","arguments":{{"id":"cd","filename":"{}","format":"raw","force":true}}}}"#,
                path.display()
            )),
            None => self.monitor(r#"{"execute":"eject","arguments":{"id":"cd","force":true}}"#),
        }
    }
}
