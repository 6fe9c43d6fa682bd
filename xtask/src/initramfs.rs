//! What runs in the guest.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::debian;

/// Printed once user space runs.
pub const BOOTED: &str = "@@BOOTED";

/// Mounts what programs need, then says who we are.
const PROLOGUE: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
/bin/busybox mount -t tmpfs none /tmp
echo @@BOOTED
/bin/busybox uname -a
";

const FACTS: &str = "/bin/busybox uptime
/bin/busybox grep -m1 'model name' /proc/cpuinfo
/bin/busybox grep MemTotal /proc/meminfo
";

// A session leader that opens a terminal gets it as controlling terminal: job control works.
const SHELL: &str = "export PATH=/bin HOME=/tmp PS1='guest# '
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox --install -s /bin
echo 'exit (or Ctrl-D) powers the machine off'
/bin/busybox setsid /bin/busybox sh -c 'exec /bin/busybox sh </dev/ttyS0 >/dev/ttyS0 2>&1'
";

const EPILOGUE: &str = "/bin/busybox poweroff -f\n";

/// The demonstration: a few facts about the machine, or a shell.
pub fn demo(shell: bool) -> Result<Vec<u8>> {
    let init = [PROLOGUE, FACTS, if shell { SHELL } else { "" }, EPILOGUE].concat();
    Ok(base(&init)?.finish()?)
}

/// The phases of the benchmark that `gbench` runs by itself.
const KERNELS: [&str; 17] = [
    "int", "cm", "ind", "fib", "fp", "x87", "simd", "sort", "memwalk", "memcpy", "repmovs", "syscall",
    "pgfault", "fork", "forkexec", "pipe", "smc",
];

/// The phases that run busybox: name and script.
const SCRIPTS: [(&str, &str); 5] = [
    (
        "sha256",
        "/bin/busybox sh -c 'for i in 1 2 3 4 5 6 7 8; do /bin/busybox cat /tmp/b; done | /bin/busybox sha256sum'",
    ),
    (
        "gzip9",
        "/bin/busybox sh -c '/bin/busybox cat /tmp/b /tmp/b | /bin/busybox gzip -9 | /bin/busybox sha256sum'",
    ),
    (
        "gunzip",
        "/bin/busybox sh -c 'for i in 1 2 3 4; do /bin/busybox gunzip -c /tmp/b.gz; done | /bin/busybox md5sum'",
    ),
    (
        "shell",
        "/bin/busybox sh -c 'i=0; while [ $i -lt 60000 ]; do i=$((i+1)); case $i in *7) x=$x;; esac; done; echo $i'",
    ),
    ("awk", "/bin/busybox awk 'BEGIN{for(i=0;i<200000;i++){s+=i%7;a[i%100]=s};print s}'"),
];

/// All phases, in the order they run.
pub fn phases() -> impl Iterator<Item = &'static str> {
    KERNELS.into_iter().chain(SCRIPTS.iter().map(|script| script.0))
}

/// The benchmark of the given phases (none: boot and power off). `scale` is the amount of work in percent;
/// the scripts do not scale. `programs` holds `gbench` and `gtrue`.
pub fn bench(wanted: &[&str], scale: u32, programs: &Path) -> Result<Vec<u8>> {
    let mut archive = base(&bench_init(wanted, scale))?;
    for name in ["gbench", "gtrue"] {
        let path = programs.join(name);
        let content = fs::read(&path).with_context(|| format!("cannot read {path:?}"))?;
        archive.executable(&format!("bin/{name}"), &content);
    }
    Ok(archive.finish()?)
}

fn bench_init(wanted: &[&str], scale: u32) -> String {
    let mut init = PROLOGUE.to_string();
    for name in KERNELS.iter().filter(|name| wanted.contains(name)) {
        init += &format!("/bin/gbench {name} {scale}\n");
    }
    if ["sha256", "gzip9", "gunzip"].iter().any(|name| wanted.contains(name)) {
        init += "/bin/busybox dd if=/bin/busybox of=/tmp/b bs=64k 2>/dev/null\n";
    }
    for (name, script) in SCRIPTS.iter().filter(|script| wanted.contains(&script.0)) {
        if *name == "gunzip" {
            init += "/bin/busybox gzip -c /tmp/b > /tmp/b.gz\n";
        }
        init += &format!("/bin/gbench run {name} {script}\n");
    }
    init + "echo @@DONE\n" + EPILOGUE
}

/// Runs commands, each between two markers, the second with the exit status, and powers off. `files` lie in
/// `/files`.
pub fn commands(
    files: &[(String, Vec<u8>)],
    commands: &[Vec<String>],
    (begin, end): (&str, &str),
) -> Result<Vec<u8>> {
    let run: String =
        commands.iter().map(|words| format!("echo {begin}\n{}\necho {end} $?\n", words.join(" "))).collect();
    let mut archive = base(&[PROLOGUE, &run, EPILOGUE].concat())?;
    archive.directory("files");
    for (name, content) in files {
        archive.executable(&format!("files/{name}"), content);
    }
    Ok(archive.finish()?)
}

/// An archive with busybox, the mount points, a few devices and `init`.
fn base(init: &str) -> Result<Archive> {
    let busybox = debian::busybox()?;
    let busybox = fs::read(&busybox).with_context(|| format!("cannot read {busybox:?}"))?;
    let mut archive = Archive::new();
    for name in ["bin", "dev", "proc", "sys", "tmp"] {
        archive.directory(name);
    }
    archive.device("dev/console", 5, 1).device("dev/null", 1, 3).device("dev/zero", 1, 5);
    archive.executable("bin/busybox", &busybox).executable("init", init.as_bytes());
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_22_phases_each_named_once() {
        let all: std::collections::BTreeSet<_> = phases().collect();
        assert_eq!((phases().count(), all.len()), (22, 22));
        let init = bench_init(&phases().collect::<Vec<_>>(), 50);
        assert_eq!(init.matches("/bin/gbench ").count(), 22);
        assert_eq!(init.matches(" 50\n").count(), 17);
    }

    #[test]
    fn a_selection_brings_what_it_needs() {
        let init = bench_init(&["gunzip"], 100);
        assert!(init.contains("dd if=") && init.contains("gzip -c /tmp/b >"));
        assert_eq!(init.matches("/bin/gbench ").count(), 1);
        assert!(!bench_init(&["int"], 100).contains("dd if="));
    }
}
