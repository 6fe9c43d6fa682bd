//! Suites that are Linux user programs: run in a guest on an emulator, or on the host itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Args, Which};
use crate::{console, debian, demo, initramfs, tools};

/// Stands before and after the program's output on a guest's console.
const BEGIN: &str = "@@BEGIN";
const END: &str = "@@END";

/// What a program printed.
pub struct Output {
    /// Its lines.
    pub lines: Vec<String>,
    /// Wall-clock seconds, the guest's boot included.
    pub seconds: f64,
    /// It came to its end.
    pub complete: bool,
}

/// Compiles a program of ours in `guest/`.
pub fn program(name: &str, options: &[&str]) -> Result<PathBuf> {
    let out = tools::cache()?.join(name);
    let source = tools::root().join("xtask/guest").join(format!("{name}.c"));
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-Wall"]).args(options).arg("-o").arg(&out).arg(source);
    tools::run(&mut gcc, "gcc libc6-dev")?;
    Ok(out)
}

/// Runs `program` with `arguments` on each emulator that was asked for. In the guest, `files` lie in
/// `/files`; on the host, arguments that name them are replaced by where they are.
pub fn run(
    args: &Args,
    program: &Path,
    kernel_options: &[&str],
    files: &[(&str, Vec<u8>)],
    arguments: &[&str],
) -> Result<Vec<(&'static str, Output)>> {
    let content = std::fs::read(program).with_context(|| format!("cannot read {program:?}"))?;
    let initrd = initramfs::program(&content, files, arguments, (BEGIN, END))?;
    let initrd = demo::write_initrd("conformance", &initrd)?;
    let append = ["console=ttyS0 panic=-1 quiet", &kernel_options.join(" ")].join(" ");
    let limit = Duration::from_secs(args.timeout);
    let mut outputs = Vec::new();
    for which in args.emulators() {
        let mut command = match which {
            Which::Trapline => {
                let mut command = demo::microvm(&debian::kernel()?, &initrd, &append, "512M")?;
                command.args(["--accel", "soft", "--cpu", "max"]);
                command
            }
            Which::Qemu => {
                let mut command = Command::new("qemu-system-x86_64");
                command.args(["-accel", "tcg,thread=single", "-cpu", "max", "-m", "512", "-no-reboot"]);
                command.arg("-kernel").arg(debian::kernel()?).arg("-initrd").arg(&initrd);
                command.args(["-append", &append, "-nographic"]);
                command
            }
            Which::Host => on_host(program, files, arguments)?,
        };
        eprintln!("{}: {}", which.name(), tools::line(&command));
        let run = console::watch(&mut command, "qemu-system-x86", limit, false)?;
        if let Some(folder) = &args.logs {
            super::write_log(folder, "console", which, &run)?;
        }
        let lines = run.lines.into_iter().map(|line| line.text);
        let (lines, complete) = match which {
            Which::Host => (lines.collect(), run.status.is_some_and(|s| s.success())),
            _ => between(lines),
        };
        outputs.push((which.name(), Output { lines, seconds: run.wall, complete }));
    }
    Ok(outputs)
}

/// The program as it is, with its files in the cache.
fn on_host(program: &Path, files: &[(&str, Vec<u8>)], arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(program);
    for argument in arguments {
        match files.iter().find(|(name, _)| argument.strip_prefix("/files/") == Some(*name)) {
            Some((name, content)) => {
                let path = tools::cache()?.join(name);
                std::fs::write(&path, content).with_context(|| format!("cannot write {path:?}"))?;
                command.arg(path)
            }
            None => command.arg(argument),
        };
    }
    Ok(command)
}

/// The lines between the markers, and whether the second one came.
fn between(lines: impl Iterator<Item = String>) -> (Vec<String>, bool) {
    let mut inside = lines.skip_while(|line| !line.contains(BEGIN)).skip(1);
    let mut out = Vec::new();
    for line in inside.by_ref() {
        if line.contains(END) {
            return (out, true);
        }
        out.push(line);
    }
    (out, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_out_of_the_console() {
        let lines = |text: &[&str]| between(text.iter().map(|line| line.to_string()));
        assert_eq!(
            lines(&["boot", "@@BEGIN", "a", "b", "@@END 0", "off"]),
            (vec!["a".into(), "b".into()], true)
        );
        assert_eq!(lines(&["@@BEGIN", "a"]), (vec!["a".into()], false));
        assert_eq!(lines(&["panic"]), (vec![], false));
    }
}
