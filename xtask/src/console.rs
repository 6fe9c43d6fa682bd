//! Watching a virtual machine's console, with the CPU time its process has used at each line.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::tools;

/// One line of console output.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The text, without line end.
    pub text: String,
    /// User and system seconds of the process until then, all threads.
    pub cpu: f64,
    /// Wall-clock seconds since its start.
    pub wall: f64,
}

/// A finished run.
pub struct Run {
    /// The console.
    pub lines: Vec<Line>,
    /// How the process ended; `None` if it was stopped after the time limit.
    pub status: Option<ExitStatus>,
    /// CPU seconds in total.
    pub cpu: f64,
    /// Wall-clock seconds in total.
    pub wall: f64,
}

/// Runs a virtual machine whose standard output is the guest's console, for at most `limit`. With `echo` the
/// console is shown as it comes.
pub fn watch(command: &mut Command, package: &str, limit: Duration, echo: bool) -> Result<Run> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().map_err(|error| tools::missing(command, package, error))?;
    let pid = child.id();
    let stdout = child.stdout.take().context("no standard output")?;
    let (sender, receiver) = mpsc::channel();
    let reader = std::thread::spawn(move || read_console(stdout, pid, start, echo, &sender));

    let mut lines = Vec::new();
    let timed_out = loop {
        let left = limit.saturating_sub(start.elapsed());
        match receiver.recv_timeout(left) {
            Ok(line) => lines.push(line),
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => break true,
        }
    };
    if timed_out {
        child.kill().ok();
    }
    // The console is closed: what the process has used by now is all but what its exit takes.
    let cpu = reader.join().ok().flatten().unwrap_or_default();
    let wall = start.elapsed().as_secs_f64();
    let left = limit.saturating_sub(start.elapsed());
    let status = if timed_out { child.wait().map(|_| None) } else { wait(&mut child, left) };
    lines.extend(receiver.try_iter());
    Ok(Run { lines, status: status.context("cannot wait for the virtual machine")?, cpu, wall })
}

/// Waits for a process that has closed its output, but not for ever.
pub fn wait(child: &mut std::process::Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends each line with its times; returns the CPU time at the end.
fn read_console(
    stdout: std::process::ChildStdout,
    pid: u32,
    start: Instant,
    echo: bool,
    sender: &mpsc::Sender<Line>,
) -> Option<f64> {
    let mut reader = BufReader::new(stdout);
    let mut last = cpu_seconds(pid);
    let mut raw = Vec::new();
    while reader.read_until(b'\n', &mut raw).is_ok_and(|count| count > 0) {
        last = cpu_seconds(pid).or(last);
        if echo {
            let mut out = std::io::stdout().lock();
            out.write_all(&raw).and_then(|()| out.flush()).ok();
        }
        let text = String::from_utf8_lossy(&raw).trim_end_matches(['\r', '\n']).to_owned();
        let line = Line { text, cpu: last.unwrap_or_default(), wall: start.elapsed().as_secs_f64() };
        if sender.send(line).is_err() {
            break;
        }
        raw.clear();
    }
    cpu_seconds(pid).or(last)
}

/// User and system time of a process and its threads, ended ones included (`/proc/PID/stat`).
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    stat_seconds(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 14 and 15 of the line, in clock ticks of 1/100 s.
fn stat_seconds(stat: &str) -> Option<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    // The name in field 2 may hold anything, even parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_status_and_times_come_back() {
        let run =
            watch(&mut sh("echo one; printf 'two\\r\\nthree'; exit 7"), "sh", Duration::from_secs(20), false);
        let run = run.unwrap();
        let text: Vec<_> = run.lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(text, ["one", "two", "three"]);
        assert_eq!(run.status.unwrap().code(), Some(7));
        assert!(run.wall >= run.lines[0].wall && run.cpu >= run.lines[0].cpu);
    }

    #[test]
    fn a_hang_is_ended() {
        let run =
            watch(&mut sh("echo here; exec sleep 60"), "sh", Duration::from_millis(300), false).unwrap();
        assert!(run.status.is_none() && run.wall < 30.0);
        assert_eq!(run.lines.len(), 1);
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = watch(&mut Command::new("no-such-vmm"), "some-package", Duration::from_secs(1), false);
        let text = error.err().unwrap().to_string();
        assert_eq!(text, "no-such-vmm is missing; install it (Debian: apt-get install some-package)");
    }

    #[test]
    fn stat_lines_with_odd_names_are_read() {
        let stat = "1 (a) b) S 0 1 1 0 -1 4 0 0 0 0 250 50 9 9 20 0 1 0";
        assert_eq!(stat_seconds(stat), Some(3.0));
        assert_eq!(stat_seconds("nonsense"), None);
    }
}
