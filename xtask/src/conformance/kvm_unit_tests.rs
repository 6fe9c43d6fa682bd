//! kvm-unit-tests: flat kernels that print a line a check, listed in `unittests.cfg`.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use super::report::{Case, End, Report};
use super::{Args, Which};
use crate::{console, tools};

/// One entry of `unittests.cfg`.
#[derive(Clone, Debug, Default, PartialEq)]
struct Entry {
    name: String,
    file: String,
    smp: u32,
    args: String,
    qemu: Vec<String>,
    arch: String,
    groups: Vec<String>,
    check: bool,
    accel: String,
}

impl Entry {
    /// Whether it can run here: nothing that needs KVM, its modules' parameters, Hyper-V, nested
    /// virtualization or further devices, and nothing that is not run by default.
    fn wanted(&self, arch: &str) -> bool {
        let out = ["vmx", "svm", "hyperv", "nodefault"];
        let nested = self.file.starts_with("vmx") || self.file.starts_with("svm");
        !nested
            && !self.qemu.iter().any(|word| word == "-device")
            && !self.check
            && self.accel != "kvm"
            && (self.arch.is_empty() || self.arch == arch)
            && !self.groups.iter().any(|group| out.contains(&group.as_str()))
    }

    /// The value of a QEMU option.
    fn option(&self, name: &str) -> Option<&str> {
        let at = self.qemu.iter().position(|word| word == name)?;
        self.qemu.get(at + 1).map(String::as_str)
    }

    /// The example that runs it: `microvm`, unless the test suspends the machine to RAM.
    fn board(&self) -> &'static str {
        if self.name == "s3" { "pc" } else { "microvm" }
    }

    /// Feature switches and vendor of the processor model; the model itself is always `max`, of Intel if the
    /// list does not say.
    fn features(&self) -> Vec<&str> {
        let model = self.option("-cpu").unwrap_or("max");
        let mut features: Vec<&str> =
            model.split(',').skip(1).filter(|part| part.starts_with(['+', '-', 'v'])).collect();
        if !features.iter().any(|part| part.starts_with("vendor=")) {
            features.push("vendor=GenuineIntel");
        }
        features
    }

    /// MiB of memory.
    fn memory(&self) -> String {
        let size = self.option("-m").unwrap_or("256");
        if size.ends_with(|c: char| c.is_ascii_digit()) { format!("{size}M") } else { size.to_uppercase() }
    }
}

/// Reads `unittests.cfg`.
fn parse(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            entries.push(Entry { name: name.into(), smp: 1, ..Entry::default() });
            continue;
        }
        let (Some((key, value)), Some(entry)) = (line.split_once('='), entries.last_mut()) else { continue };
        let value = value.trim();
        match key.trim() {
            "file" => entry.file = value.into(),
            "smp" => entry.smp = value.parse().unwrap_or(1),
            "test_args" => entry.args = value.trim_matches(['\'', '"']).into(),
            "qemu_params" | "extra_params" => entry.qemu = value.split_whitespace().map(Into::into).collect(),
            "arch" => entry.arch = value.into(),
            "groups" => entry.groups = value.split_whitespace().map(Into::into).collect(),
            "check" => entry.check = true,
            "accel" => entry.accel = value.into(),
            _ => {}
        }
    }
    entries
}

/// Runs the suite that was built in `--suite-dir` for the architecture that its `config.mak` names.
pub fn run(args: &Args) -> Result<Vec<Report>> {
    let folder = &args.suite_dir;
    let read = |path: PathBuf| {
        let hint = "expected a folder in which kvm-unit-tests was configured and built";
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {path:?}: {hint}"))
    };
    let config = read(folder.join("config.mak"))?;
    let setting = |name: &str| config.lines().find_map(|line| line.strip_prefix(name));
    let arch = setting("ARCH=").context("config.mak names no ARCH")?;
    let source = folder.join(setting("SRCDIR=").unwrap_or("."));
    let entries = parse(&read(source.join("x86/unittests.cfg"))?);
    let entries: Vec<Entry> = entries
        .into_iter()
        .filter(|entry| entry.wanted(arch))
        .filter(|entry| args.only.as_ref().is_none_or(|only| entry.name.contains(only.as_str())))
        .filter(|entry| folder.join("x86").join(&entry.file).exists())
        .collect();
    if entries.is_empty() {
        bail!("no test to run");
    }
    let ours_too = args.on.contains(&Which::Trapline);
    let mut boards = HashMap::new();
    for board in entries.iter().filter(|_| ours_too).map(Entry::board) {
        if !boards.contains_key(board) {
            boards.insert(board, tools::build_example(board)?);
        }
    }
    let scratch = tools::Scratch::new("kvm-unit-tests")?;
    let complaints = scratch.path().join("stderr");
    let mut reports = Vec::new();
    for which in args.emulators() {
        let mut cases = Vec::new();
        for entry in &entries {
            let flat = folder.join("x86").join(&entry.file);
            let command = match which {
                Which::Trapline => ours(&boards[entry.board()], entry, &flat),
                Which::Qemu => qemu(entry, &flat),
                Which::Host => bail!("kvm-unit-tests are kernels: they run on trapline and qemu"),
            };
            eprintln!("{} {arch}: {}", which.name(), entry.name);
            cases.push(run_one(command, entry, which, args, &complaints)?);
        }
        reports.push(Report { emulator: which.name(), cases });
    }
    Ok(reports)
}

fn ours(program: &Path, entry: &Entry, flat: &Path) -> Command {
    let mut model = "max".to_owned();
    for feature in entry.features() {
        model += match feature {
            "vendor=GenuineIntel" => ",vendor=intel",
            "vendor=AuthenticAMD" => ",vendor=amd",
            _ => ",",
        };
        if !feature.starts_with('v') {
            model += feature;
        }
    }
    let mut command = Command::new(program);
    command.args(["--accel", "soft", "--testdev", "--cpu", &model, "--memory", &entry.memory()]);
    command.args(["--cpus", &entry.smp.to_string(), "--append", &arguments(entry)]);
    command.arg("--kernel").arg(flat);
    command
}

fn qemu(entry: &Entry, flat: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-no-reboot", "-nodefaults", "-display", "none", "-serial", "stdio"]);
    command.args(["-device", "pc-testdev", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x4"]);
    let model: String = entry.features().iter().fold("max".into(), |model, feature| model + "," + feature);
    command.args(["-cpu", &model, "-m", &entry.memory(), "-smp", &entry.smp.to_string()]);
    if let Some(machine) = entry.option("-machine") {
        command.args(["-machine", machine]);
    }
    command.arg("-kernel").arg(flat);
    if !entry.args.is_empty() {
        command.args(["-append", &arguments(entry)]);
    }
    command
}

/// The command line, with the one substitution that the list uses.
fn arguments(entry: &Entry) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    entry.args.replace("`date +%s`", &now.to_string())
}

/// Runs one test; what the emulator itself says goes into `complaints`.
fn run_one(
    mut command: Command,
    entry: &Entry,
    which: Which,
    args: &Args,
    complaints: &Path,
) -> Result<Case> {
    let file = File::create(complaints).with_context(|| format!("cannot write {complaints:?}"))?;
    command.stderr(file);
    let run = console::watch(&mut command, "qemu-system-x86", Duration::from_secs(args.timeout), false)?;
    if let Some(folder) = &args.logs {
        super::write_log(folder, &entry.name, which, &run)?;
    }
    let mut case = Case { name: entry.name.clone(), seconds: run.wall, ..Case::default() };
    for line in &run.lines {
        verdict(&line.text, &mut case);
    }
    let text = std::fs::read(complaints).unwrap_or_default();
    case.end = match run.status {
        None => End::TimedOut,
        Some(status) => end(status.code(), &String::from_utf8_lossy(&text)),
    };
    Ok(case)
}

/// How a test ended, by the exit code and what the emulator said.
fn end(code: Option<i32>, complaints: &str) -> End {
    match code {
        // An emulator that gives up has the exit code of a test that succeeds.
        Some(1) => {
            match complaints.lines().find(|line| line.starts_with("error") || line.contains("panicked")) {
                Some(line) => End::Failed(line.into()),
                None => End::Done,
            }
        }
        // What the test gave to the exit device, shifted by one: 0 is success, 77 is "skipped".
        Some(155) => End::Skipped,
        Some(code) if code & 1 == 1 => End::Failed(format!("exit {}", code >> 1)),
        Some(code) => End::Failed(format!("status {code}")),
        None => End::Failed("signal".into()),
    }
}

/// Takes a line such as `PASS: name`. Figures in a name differ from run to run and are left out.
fn verdict(line: &str, case: &mut Case) {
    let steady = |name: &str| name.trim().split(|c: char| c.is_ascii_digit()).collect::<Vec<_>>().join("#");
    let (kind, name) = match line.split_once(':') {
        Some((kind, name)) => (kind.trim(), steady(name)),
        None => return,
    };
    match kind {
        "PASS" => case.passed.push(name),
        // Failures that the suite expects are failures all the same.
        "FAIL" | "XFAIL" => case.failed.push(name),
        "SKIP" => case.skipped += 1,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "# comment\n[apic]\nfile = apic.flat\nsmp = 2\nqemu_params = -cpu qemu64,+x2apic -m 2048\n\
        [args]\nfile = vmexit.flat\ntest_args = 'cpuid `date +%s`'\narch = x86_64\n[svm]\nfile = svm.flat\n\
        [pmu]\nfile = pmu.flat\naccel = kvm\n[big]\nfile = a.flat\ngroups = x nodefault\n";

    #[test]
    fn the_list_is_read_and_filtered() {
        let entries = parse(LIST);
        let wanted: Vec<_> = entries.iter().filter(|e| e.wanted("i386")).map(|e| e.name.as_str()).collect();
        assert_eq!(wanted, ["apic"]);
        assert!(entries[1].wanted("x86_64"));
        let apic = ours(Path::new("microvm"), &entries[0], Path::new("apic.flat"));
        let line = tools::line(&apic);
        assert!(line.contains("--cpu max,+x2apic,vendor=intel --memory 2048M --cpus 2"), "{line}");
        assert!(!arguments(&entries[1]).contains('`'));
    }

    #[test]
    fn an_emulator_that_gives_up_is_no_success() {
        let ends = [
            (Some(1), "", "ok"),
            (Some(1), "warning: no\nerror: cannot open a: gone\n", "error: cannot open a: gone"),
            (Some(155), "", "skipped"),
            (Some(77), "", "exit 38"),
            (Some(2), "", "status 2"),
            (None, "", "signal"),
        ];
        for (code, complaints, expected) in ends {
            assert_eq!(end(code, complaints).to_string(), expected);
        }
    }

    #[test]
    fn verdicts_are_counted() {
        let mut case = Case::default();
        for line in ["PASS: one 12", "FAIL: two", "SKIP: three", "SUMMARY: 3 tests", "noise"] {
            verdict(line, &mut case);
        }
        assert_eq!((case.passed.len(), case.failed.len(), case.skipped), (1, 1, 1));
        assert_eq!(case.passed[0], "one ##");
    }
}
