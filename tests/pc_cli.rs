//! The command line of the example `pc`: its files for output, and what it says of files that it cannot use.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

const OLD: &str = "the log of another run, longer than what this one says\n";

/// Runs the example, in a folder.
fn pc(folder: &Path, args: &[&str]) -> Output {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let mut command = Command::new(BUILT.get_or_init(|| common::build_example("pc")));
    command.args(args).args(["--accel", "soft", "--memory", "4M"]).current_dir(folder);
    command.stdin(Stdio::null()).output().unwrap()
}

/// What it says of arguments that are wrong: one line.
fn refusal(folder: &Path, args: &[&str]) -> String {
    let output = pc(folder, args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    assert!(said.starts_with("error: ") && said.lines().count() == 1, "{args:?}: {said}");
    said.trim_end().to_owned()
}

/// A firmware image that says `x` on the serial port, the debug console and the parallel port, and ends.
fn rom(folder: &Path) {
    let mut rom = vec![0xf4; 0x1_0000];
    let code = [
        &[0xb0, b'x'][..],                     // MOV AL, 'x'
        &[0xba, 0xf8, 0x03, 0xee],             // MOV DX, 3f8h; OUT DX, AL
        &[0xba, 0x02, 0x04, 0xee],             // MOV DX, 402h; OUT DX, AL
        &[0xba, 0x78, 0x03, 0xee, 0x42, 0x42], // MOV DX, 378h; OUT DX, AL; INC DX twice
        &[0xb0, 0x0d, 0xee, 0xb0, 0x0c, 0xee], // a pulse of STROBE
        &[0xba, 0x01, 0x05, 0xb0, 0x10, 0xee], // MOV DX, 501h; MOV AL, 10h; OUT DX, AL
    ];
    let code = code.concat();
    rom[..code.len()].copy_from_slice(&code);
    rom[0xfff0..0xfff5].copy_from_slice(&[0xea, 0, 0, 0, 0xf0]); // JMP far f000h:0000h
    std::fs::write(folder.join("rom"), rom).unwrap();
}

#[test]
fn files_that_cannot_be_used_are_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    rom(folder);
    std::fs::write(folder.join("disk"), [0; 512]).unwrap();
    let disk = &["--disk", "file=disk,format=raw"][..];
    let cases: &[(&[&str], &str)] = &[
        (&["--firmware", "none"], "cannot use firmware none: No such file or directory (os error 2)"),
        (&["--vars", "no/vars"], "cannot use variables no/vars: No such file or directory (os error 2)"),
        (
            &["--disk", "file=none,format=raw"],
            "cannot open disk none: No such file or directory (os error 2)",
        ),
        (&["--cdrom", "none"], "cannot open disk none: No such file or directory (os error 2)"),
        (
            &["--disk", "file=disk"],
            "cannot open disk disk: the format of a writable disk must be named (raw or qcow2)",
        ),
        (&["--disk", "file=disk,format=qcow2"], "cannot open disk disk: not a qcow2 image"),
        (&[disk, disk].concat(), "cannot open disk disk: in use by another disk"),
        (&["--kernel", "none"], "cannot open kernel \"none\": no such file"),
        (&["--kernel", "rom"], "kernel \"rom\""),
        (
            &["--serial", "file:no/log"],
            "cannot write serial output to no/log: No such file or directory (os error 2)",
        ),
        (
            &["--trace", "exits=no/trace"],
            "cannot write the trace to no/trace: No such file or directory (os error 2)",
        ),
        (&["--parallel", "no/file"], "cannot write to no/file: No such file or directory (os error 2)"),
    ];
    for (args, expected) in cases {
        let firmware = if args.contains(&"--firmware") { &[][..] } else { &["--firmware", "rom"] };
        let said = refusal(folder, &[firmware, args].concat());
        assert!(said.starts_with(&format!("error: {expected}")), "{args:?}: {said}");
    }
}

#[test]
fn files_for_output_are_emptied_only_if_there_is_a_machine() {
    const FILES: [&str; 5] = ["serial", "trace", "screen", "debug", "printer"];
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    rom(folder);
    for name in FILES {
        std::fs::write(folder.join(name), OLD).unwrap();
    }
    let outputs = [
        ["--firmware", "rom"],
        ["--serial", "file:serial"],
        ["--trace", "exits=trace"],
        ["--screen-dump", "screen"],
        ["--debug-console", "debug"],
        ["--parallel", "printer"],
    ];
    let outputs = outputs.concat();
    let contents = || FILES.map(|name| std::fs::read(folder.join(name)).unwrap());
    // The last is looked for when all else is there.
    for wrong in [["--disk", "file=none,format=raw"], ["--cdrom", "none"], ["--kernel", "none"]] {
        let said = refusal(folder, &[&outputs[..], &wrong].concat());
        assert_eq!(said.matches("none").count(), 1, "{said}");
        assert_eq!(contents(), [OLD.as_bytes(); 5], "{wrong:?}");
    }
    let ran = pc(folder, &outputs);
    assert_eq!(ran.status.code(), Some(0x21), "{}", String::from_utf8_lossy(&ran.stderr));
    let [serial, trace, screen, debug, printer] = contents();
    assert_eq!([&serial[..], &debug, &printer], [b"x"; 3]);
    assert!(trace.starts_with(b"[\n{") && trace.ends_with(b"}\n]\n"));
    assert!(screen.starts_with(b"\x89PNG\r\n\x1a\n") && screen.ends_with(b"IEND\xaeB`\x82"));
}
