//! Running other programs: cargo, apt, gcc.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The workspace root.
pub fn root() -> &'static Path {
    // xtask lies one level below it.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The folder for downloads and built guest files: `$TRAPLINE_CACHE`, or `.cache` in the workspace.
pub fn cache() -> Result<PathBuf> {
    let folder = std::env::var_os("TRAPLINE_CACHE").map_or_else(|| root().join(".cache"), PathBuf::from);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {folder:?}"))?;
    folder.canonicalize().with_context(|| format!("cannot open {folder:?}"))
}

/// A folder in the cache for unfinished work; gone with the value.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes an empty one. What processes left that were ended in the middle of theirs goes too.
    pub fn new(purpose: &str) -> Result<Self> {
        let cache = cache()?;
        for entry in std::fs::read_dir(&cache)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner =
                name.strip_prefix(SCRATCH).and_then(|rest| rest.rsplit_once('-')?.1.parse::<u32>().ok());
            if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                std::fs::remove_dir_all(entry.path()).ok();
            }
        }
        let folder = cache.join(format!("{SCRATCH}{purpose}-{}", std::process::id()));
        std::fs::create_dir(&folder).with_context(|| format!("cannot create {folder:?}"))?;
        Ok(Self(folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

const SCRATCH: &str = "scratch-";

/// A cargo command in the workspace.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Runs a command whose output goes to the terminal; `package` is what to install if it is missing.
pub fn run(command: &mut Command, package: &str) -> Result<()> {
    let status = command.status().map_err(|error| missing(command, package, error))?;
    if !status.success() {
        bail!("{} failed ({status})", line(command));
    }
    Ok(())
}

/// Runs a command and returns its standard output.
pub fn output(command: &mut Command, package: &str) -> Result<String> {
    let output = command.output().map_err(|error| missing(command, package, error))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let errors = errors.trim().replace('\n', "; ");
        let separator = if errors.is_empty() { "" } else { ": " };
        bail!("{} failed ({}){separator}{errors}", line(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Says what to install when a program is not there.
pub fn missing(command: &Command, package: &str, error: std::io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy();
    if error.kind() == ErrorKind::NotFound {
        anyhow::anyhow!("{program} is missing; install it (Debian: apt-get install {package})")
    } else {
        anyhow::anyhow!("cannot run {program}: {error}")
    }
}

/// A command as it would be typed, without quoting and without the program's folder.
pub fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(command.get_program());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Builds an example in release mode and returns its executable.
pub fn build_example(name: &str) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        target: Option<Target>,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    let mut command =
        cargo(&["build", "--release", "--example", name, "--message-format", "json-render-diagnostics"]);
    command.stderr(std::process::Stdio::inherit());
    let messages = output(&mut command, "cargo")?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| message.reason == "compiler-artifact")
        .filter(|message| {
            let target = message.target.as_ref();
            target
                .is_some_and(|target| target.name == name && target.kind.iter().any(|kind| kind == "example"))
        })
        .find_map(|message| message.executable)
        .with_context(|| format!("cargo built no example {name}"))
}
