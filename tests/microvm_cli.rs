//! The command line of the example `microvm`: what it refuses, and how it ends.

mod common;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// The example, built.
fn microvm() -> Command {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    Command::new(BUILT.get_or_init(|| common::build_example("microvm")))
}

fn run(args: &[&str]) -> Output {
    microvm().args(args).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn what_is_wrong_is_said_in_one_line_and_the_exit_code_is_1() {
    let mut text = tempfile_with(b"#!/bin/sh\n");
    let text = text.path();
    let cases: &[(&[&str], &str)] = &[
        (&[], "--kernel"),
        (&["--kernel", "/nowhere/vmlinuz"], "no such file"),
        (&["--kernel", text], "a script"),
        (&["--kernel", text, "--memory", "0"], "zero"),
        (&["--kernel", text, "--memory", "30T"], "more than"),
        (&["--kernel", text, "--memory", "99999999T"], "too large"),
        (&["--kernel", text, "--memory", "much"], "512M"),
        (&["--kernel", text, "--cpus", "0"], "processors"),
        (&["--kernel", text, "--accel", "magic"], "auto, kvm or soft"),
        (&["--kernel", text, "--serial", "magic"], "stdio"),
        (&["--kernel", text, "--trace", "all"], "exits=FILE"),
        (&["--kernel", text, "--trace", "exits=/nowhere/trace"], "a script"),
        (&["--kernel", text, "--nonsense"], "--nonsense"),
        (&["nonsense"], "nonsense"),
    ];
    for (args, expected) in cases {
        let output = run(args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.starts_with("error: ") && said.contains(expected), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn help_is_no_error() {
    let output = run(&["--help"]);
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("--initrd"));
}

/// A file that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn path(&mut self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn tempfile_with(content: &[u8]) -> Scratch {
    let path = std::env::temp_dir().join(format!("trapline-cli-{}", std::process::id()));
    std::fs::File::create(&path).unwrap().write_all(content).unwrap();
    Scratch(path)
}
