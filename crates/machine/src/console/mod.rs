//! Where a serial port leads to on the host.

mod escape;
mod input;
mod output;

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;

pub(crate) use input::Input;
pub(crate) use output::{Console, Flusher};

use crate::host::{self, RawTerminal};
use crate::{Error, OutputFile, Result};
use output::Sink;

/// The host's end of a serial port.
#[derive(Default)]
pub enum Serial {
    /// Standard input and output. A terminal is switched to raw mode while the guest runs. Ctrl-A X ends
    /// the run, Ctrl-A Ctrl-A sends one Ctrl-A; also when the input is no terminal.
    #[default]
    Stdio,
    /// Output goes to a file, which is emptied when the machine first runs; there is no input.
    File(PathBuf),
    /// A new pseudo-terminal: see [`Microvm::serial_path`](crate::Microvm::serial_path). Output that
    /// nobody reads is dropped once its buffer is full.
    Pty,
    /// A Unix domain socket that somebody listens at. When the other end closes it, the run ends as for
    /// [`Serial::Stdio`].
    Unix(PathBuf),
    /// Output is dropped; there is no input.
    Null,
    /// Handles of the caller's.
    Custom {
        /// Takes what the guest sends. It should not block.
        output: Box<dyn Write + Send>,
        /// What is typed: a pipe, a socket, a file. Ctrl-A is treated as for [`Serial::Stdio`].
        input: Option<OwnedFd>,
    },
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Pty => f.write_str("pty"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Null => f.write_str("null"),
            Self::Custom { .. } => f.write_str("custom"),
        }
    }
}

/// Not a name of a [`Serial`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no serial port is called {0:?}: stdio, file:PATH, pty, unix:PATH or null")]
pub struct UnknownSerial(String);

impl FromStr for Serial {
    type Err = UnknownSerial;

    fn from_str(s: &str) -> std::result::Result<Self, UnknownSerial> {
        match (s, s.split_once(':')) {
            ("stdio", _) => Ok(Self::Stdio),
            ("pty", _) => Ok(Self::Pty),
            ("null", _) => Ok(Self::Null),
            (_, Some(("file", path))) if !path.is_empty() => Ok(Self::File(path.into())),
            (_, Some(("unix", path))) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err(UnknownSerial(s.to_owned())),
        }
    }
}

/// An opened [`Serial`].
pub(crate) struct Port {
    pub(crate) output: Sink,
    pub(crate) input: Option<InputFile>,
    /// The file behind the output, to be emptied when the machine first runs.
    pub(crate) file: Option<OutputFile>,
    /// The path of the other end of a pseudo-terminal.
    pub(crate) path: Option<String>,
    /// The other end, held open so that output does not fail while nobody else has it open.
    pub(crate) peer: Option<File>,
}

/// A file that input comes from.
pub(crate) struct InputFile {
    pub(crate) file: File,
    /// Ctrl-A is looked for.
    pub(crate) escapes: bool,
}

impl InputFile {
    /// The raw mode that this input wants while the guest runs.
    pub(crate) fn raw_mode(&self) -> Result<Option<RawTerminal>> {
        match self.escapes && self.file.is_terminal() {
            true => RawTerminal::enter(&self.file).map(Some).map_err(Error::host("raw terminal mode")),
            false => Ok(None),
        }
    }
}

impl Serial {
    pub(crate) fn open(self) -> Result<Port> {
        let port = |output, input| Port { output, input, file: None, path: None, peer: None };
        match self {
            Self::Stdio => {
                let own =
                    |fd: io::Result<OwnedFd>| fd.map(File::from).map_err(Error::host("standard streams"));
                let file = own(io::stdin().as_fd().try_clone_to_owned())?;
                let output = own(io::stdout().as_fd().try_clone_to_owned())?;
                Ok(port(Sink::Patient(output), Some(InputFile { file, escapes: true })))
            }
            Self::File(path) => {
                let what = format!("cannot write serial output to {}", path.display());
                let open = || OutputFile::open(&path).and_then(|file| Ok((file.try_clone()?, file)));
                let (output, file) = open().map_err(Error::host(what))?;
                Ok(Port { file: Some(file), ..port(Sink::Other(Box::new(output)), None) })
            }
            Self::Pty => {
                let (master, slave, path) = host::open_pty().map_err(Error::host("pseudo-terminal"))?;
                let output = master.try_clone().map_err(Error::host("pseudo-terminal"))?;
                let input = Some(InputFile { file: master, escapes: false });
                let output = Sink::Other(Box::new(output));
                Ok(Port { path: Some(path), peer: Some(slave), ..port(output, input) })
            }
            Self::Unix(path) => {
                let what = format!("cannot connect the serial port to {}", path.display());
                let socket = UnixStream::connect(&path).map_err(Error::host(what))?;
                let file = File::from(OwnedFd::from(socket));
                let output = file.try_clone().map_err(Error::host("socket"))?;
                Ok(port(Sink::Patient(output), Some(InputFile { file, escapes: false })))
            }
            Self::Null => Ok(port(Sink::Other(Box::new(io::sink())), None)),
            Self::Custom { output, input } => {
                let input = input.map(|fd| InputFile { file: File::from(fd), escapes: true });
                Ok(port(Sink::Other(output), input))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        for name in ["stdio", "file:/tmp/a:b c", "pty", "unix:/run/s", "null"] {
            assert_eq!(format!("{:?}", name.parse::<Serial>().unwrap()), name);
        }
        for name in ["", "file:", "unix:", "tty", "STDIO", "stdio:x"] {
            assert!(name.parse::<Serial>().is_err(), "{name}");
        }
    }
}
