//! Suites that are Linux user programs: run in a guest on an emulator, or on the host itself.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Args, Which};
use crate::{console, debian, demo, initramfs, tools};

/// Stand before and after each program's output on a guest's console; the second with the exit status.
const BEGIN: &str = "@@BEGIN";
const END: &str = "@@END ";

/// What one command printed.
#[derive(Debug, Default, PartialEq)]
pub struct Output {
    /// Its lines.
    pub lines: Vec<String>,
    /// Its exit status as the shell says it; `None` if it did not come to its end.
    pub status: Option<i32>,
}

/// What one emulator made of all commands.
pub struct Outputs {
    /// Which it is.
    pub which: Which,
    /// One for each command.
    pub outputs: Vec<Output>,
    /// Wall-clock seconds, the guest's boot included.
    pub seconds: f64,
}

/// Compiles a program of ours in `guest/`.
pub fn program(name: &str, options: &[&str]) -> Result<Vec<u8>> {
    let out = tools::cache()?.join(name);
    let source = tools::root().join("xtask/guest").join(format!("{name}.c"));
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-Wall"]).args(options).arg("-o").arg(&out).arg(source);
    tools::run(&mut gcc, "gcc libc6-dev")?;
    std::fs::read(&out).with_context(|| format!("cannot read {out:?}"))
}

/// Runs `commands` on each of `on`: in one guest, where `files` lie in `/files`, or on the host, where words
/// that name them are replaced by where they are.
pub fn run(
    args: &Args,
    on: &[Which],
    files: &[(String, Vec<u8>)],
    commands: &[Vec<String>],
) -> Result<Vec<Outputs>> {
    on.iter()
        .map(|which| match which {
            Which::Host => on_host(args, files, commands),
            _ => in_guest(args, *which, files, commands),
        })
        .collect()
}

fn in_guest(
    args: &Args,
    which: Which,
    files: &[(String, Vec<u8>)],
    commands: &[Vec<String>],
) -> Result<Outputs> {
    const APPEND: &str = "console=ttyS0 panic=-1 quiet";
    let initrd = initramfs::commands(files, commands, (BEGIN, END))?;
    let (kernel, initrd) = (debian::kernel()?, demo::write_initrd("conformance", &initrd)?);
    let mut command = match which {
        Which::Qemu => {
            let mut command = Command::new("qemu-system-x86_64");
            command.args(["-accel", "tcg,thread=single", "-cpu", "max", "-m", "512", "-no-reboot"]);
            command.arg("-kernel").arg(kernel).arg("-initrd").arg(&initrd);
            command.args(["-append", APPEND, "-nographic"]);
            command
        }
        _ => {
            let mut command = demo::microvm(&kernel, &initrd, APPEND, "512M")?;
            command.args(["--accel", "soft", "--cpu", "max"]);
            command
        }
    };
    eprintln!("{}: {}", which.name(), tools::line(&command));
    let run = console::watch(&mut command, "qemu-system-x86", Duration::from_secs(args.timeout), false)?;
    if let Some(folder) = &args.logs {
        super::write_log(folder, "console", which, &run)?;
    }
    let outputs = split(run.lines.iter().map(|line| line.text.as_str()), commands.len());
    Ok(Outputs { which, outputs, seconds: run.wall })
}

fn on_host(args: &Args, files: &[(String, Vec<u8>)], commands: &[Vec<String>]) -> Result<Outputs> {
    let folder = tools::cache()?.join(format!("host.{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {folder:?}"))?;
    for (name, content) in files {
        let path = folder.join(name);
        std::fs::write(&path, content)
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {path:?}"))?;
    }
    let place = |word: &String| match word.strip_prefix("/files/") {
        Some(name) => folder.join(name).into_os_string(),
        None => word.into(),
    };
    let mut all = Outputs { which: Which::Host, outputs: Vec::new(), seconds: 0.0 };
    for words in commands {
        let mut words = words.iter().map(place);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        let run = console::watch(&mut command, "libc6", Duration::from_secs(args.timeout), false)?;
        let status = run.status.map(|s| s.code().or(s.signal().map(|n| 128 + n)).unwrap_or(-1));
        all.seconds += run.wall;
        all.outputs.push(Output { lines: run.lines.into_iter().map(|line| line.text).collect(), status });
    }
    std::fs::remove_dir_all(&folder).ok();
    Ok(all)
}

/// Cuts the console into what each of `count` commands printed.
fn split<'a>(lines: impl Iterator<Item = &'a str>, count: usize) -> Vec<Output> {
    let mut outputs: Vec<Output> = Vec::new();
    let mut open = false;
    for line in lines {
        if line.contains(BEGIN) {
            outputs.push(Output::default());
            open = true;
        } else if let (true, Some(output)) = (open, outputs.last_mut()) {
            match line.split_once(END) {
                Some((rest, status)) => {
                    // The last line of a program may have had no end.
                    output.lines.extend((!rest.is_empty()).then(|| rest.to_owned()));
                    output.status = status.trim().parse().ok();
                    open = false;
                }
                None => output.lines.push(line.to_owned()),
            }
        }
    }
    outputs.resize_with(count, Output::default);
    outputs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_cut_out_of_the_console() {
        let console = ["boot", "@@BEGIN", "a", "b@@END 0", "@@BEGIN", "@@END 3", "@@BEGIN", "c"];
        let output =
            |lines: &[&str], status| Output { lines: lines.iter().map(|l| l.to_string()).collect(), status };
        let expected =
            [output(&["a", "b"], Some(0)), output(&[], Some(3)), output(&["c"], None), output(&[], None)];
        assert_eq!(split(console.into_iter(), 4), expected);
    }
}
