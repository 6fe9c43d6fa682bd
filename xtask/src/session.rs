//! Talking to a virtual machine over its console: wait for a text, type an answer, run commands in its shell.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{console, tools};

/// A running virtual machine whose standard input and output are the guest's console. It is ended with the
/// value.
pub struct Session {
    child: Child,
    input: ChildStdin,
    output: mpsc::Receiver<Vec<u8>>,
    /// What came and was not asked for yet.
    pending: Vec<u8>,
    start: Instant,
    limit: Duration,
}

/// Prints `@@END` and the exit status of what ran before; typed so that its echo is no match.
const END: &str = "printf '\\n@@%s %d@@\\n' END $?";

impl Session {
    /// Starts a virtual machine that must be done after `limit`. With `echo` its console is shown as it comes.
    pub fn start(command: &mut Command, package: &str, limit: Duration, echo: bool) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let start = Instant::now();
        let mut child = command.spawn().map_err(|error| tools::missing(command, package, error))?;
        let input = child.stdin.take().context("no standard input")?;
        let mut stdout = child.stdout.take().context("no standard output")?;
        let (sender, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut piece) {
                if echo {
                    let mut out = std::io::stdout().lock();
                    out.write_all(&piece[..count]).and_then(|()| out.flush()).ok();
                }
                if sender.send(piece[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, input, output, pending: Vec::new(), start, limit })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU seconds that the virtual machine has used.
    pub fn cpu(&self) -> f64 {
        console::cpu_seconds(self.child.id()).unwrap_or_default()
    }

    /// Seconds since the start.
    pub fn wall(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Waits for a text on the console; returns what came before it.
    pub fn expect(&mut self, text: &str) -> Result<String> {
        let mut from = 0;
        loop {
            let found = self.pending[from..].windows(text.len()).position(|part| part == text.as_bytes());
            if let Some(at) = found {
                let before = String::from_utf8_lossy(&self.pending[..from + at]).into_owned();
                self.pending.drain(..from + at + text.len());
                return Ok(before);
            }
            from = (self.pending.len() + 1).saturating_sub(text.len()).max(from);
            if !self.receive()? {
                bail!("the virtual machine ended before the console showed {text:?}{}", self.tail());
            }
        }
    }

    /// Takes in more of the console; false at its end.
    fn receive(&mut self) -> Result<bool> {
        match self.output.recv_timeout(self.limit.saturating_sub(self.start.elapsed())) {
            Ok(piece) => self.pending.extend(piece),
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
            Err(RecvTimeoutError::Timeout) => {
                bail!("not done within {} s{}", self.limit.as_secs(), self.tail())
            }
        }
        Ok(true)
    }

    /// The last line on the console, for messages.
    fn tail(&self) -> String {
        let text = String::from_utf8_lossy(&self.pending);
        match text.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => format!("; its last line: {:?}", line.trim()),
            None => String::new(),
        }
    }

    /// Types a text.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let written = self.input.write_all(text.as_bytes()).and_then(|()| self.input.flush());
        written.context("the virtual machine takes no input")
    }

    /// Logs in as root, and leaves a shell that neither prompts nor echoes.
    pub fn log_in(&mut self, password: &str) -> Result<()> {
        self.expect("login: ")?;
        self.send("root\r")?;
        self.expect("Password: ")?;
        self.send(&format!("{password}\r"))?;
        self.take_shell()
    }

    /// Makes of the shell that is about to prompt one that echoes and prompts no more.
    pub fn take_shell(&mut self) -> Result<()> {
        self.expect("# ")?;
        // Kernel messages would come in between. Nothing more is typed before the shell that edits lines is gone:
        // it has the terminal in a mode of its own.
        let shell = "exec env PS1= LC_ALL=C sh -c 'printf \"@@%s\\n\" READY; exec sh'";
        self.send(&format!("dmesg -n 1; stty -echo; {shell}\r"))?;
        self.expect("@@READY\r\n").map(drop)
    }

    /// Runs a command in the guest's shell; returns its output and exit status.
    pub fn run(&mut self, command: &str) -> Result<(String, i32)> {
        self.send(&format!("{command}\n{END}\n"))?;
        let output = self.expect("\r\n@@END ")?.replace("\r\n", "\n");
        let status = self.expect("@@\r\n")?;
        Ok((output, status.parse().context("the guest's shell answered with no exit status")?))
    }

    /// Ends the virtual machine as it is.
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Waits for the end of the virtual machine.
    pub fn finish(mut self) -> Result<ExitStatus> {
        while self.receive()? {
            // Else all of the console would be kept.
            let cut = self.pending.len().saturating_sub(4096);
            self.pending.drain(..cut);
        }
        let left = self.limit.saturating_sub(self.start.elapsed());
        let status = console::wait(&mut self.child, left)?;
        status.with_context(|| format!("the virtual machine did not end within {} s", self.limit.as_secs()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: u64) -> Session {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Session::start(&mut command, "sh", Duration::from_secs(limit), false).unwrap()
    }

    #[test]
    fn a_dialogue() {
        let mut session =
            sh("printf 'a login: '; read name; printf 'hello %s\\r\\nand more' $name; exit 3", 20);
        assert_eq!(session.expect("login: ").unwrap(), "a ");
        session.send("root\n").unwrap();
        assert_eq!(session.expect("\r\n").unwrap(), "hello root");
        assert_eq!(session.finish().unwrap().code(), Some(3));
    }

    #[test]
    fn an_end_and_a_hang_are_told_apart_and_show_the_last_line() {
        let error = sh("printf 'panic\\r\\n'", 20).expect("login: ").unwrap_err().to_string();
        assert_eq!(
            error,
            "the virtual machine ended before the console showed \"login: \"; its last line: \"panic\""
        );
        let mut session = sh("echo waiting; exec sleep 60", 1);
        let error = session.expect("login: ").unwrap_err().to_string();
        assert_eq!(error, "not done within 1 s; its last line: \"waiting\"");
    }

    #[test]
    fn commands_bring_output_and_status() {
        // A shell behind something that ends lines as a terminal does.
        let shell = "while IFS= read -r line; do (exit $s); eval \"$line\"; s=$?; done";
        let mut session = sh(&format!("bash -c '{}' | sed -u 's/$/\\r/'", shell.replace('\'', "'\\''")), 20);
        assert_eq!(session.run("echo one; echo two; false").unwrap(), ("one\ntwo\n".into(), 1));
        assert_eq!(session.run("true").unwrap(), (String::new(), 0));
    }
}
