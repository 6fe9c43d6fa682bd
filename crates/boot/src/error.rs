//! What can be wrong with a kernel, an initrd, a command line or the memory they should go to.

use std::path::PathBuf;

use thiserror::Error;

/// Why nothing was loaded. Every message is one line and says what would be right.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be opened or is not a regular file.
    #[error("cannot open {role} {path:?}: {reason}")]
    Open {
        /// `kernel` or `initrd`.
        role: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system, or the loader, has against it.
        reason: String,
    },
    /// The operating system failed to read an opened file, or the file shrank meanwhile.
    #[error("cannot read {role} {path:?}: {reason}")]
    Read {
        /// `kernel` or `initrd`.
        role: &'static str,
        /// The file.
        path: PathBuf,
        /// What failed.
        reason: String,
    },
    /// The file ends before something its own headers promise.
    #[error("{role} {path:?} is truncated: its {part} ends at byte {need}, the file has {have} bytes")]
    Truncated {
        /// `kernel` or `initrd`.
        role: &'static str,
        /// The file.
        path: PathBuf,
        /// The part that is not whole.
        part: &'static str,
        /// The length in bytes the file should have at least.
        need: u64,
        /// The length in bytes it has.
        have: u64,
    },
    /// The content is none of the formats that can be booted.
    #[error(
        "kernel {path:?} is {found}; expected a Linux bzImage (vmlinuz), an x86 ELF executable or a Multiboot kernel"
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it looks like instead.
        found: &'static str,
    },
    /// The format is known, but a header field makes the kernel unusable.
    #[error("kernel {path:?} cannot be booted: {reason}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field and what it should be.
        reason: String,
    },
    /// The kernel does not offer the boot protocol that was asked for.
    #[error("kernel {path:?} ({format}) has no {wanted} entry; it offers {offered}")]
    NoSuchEntry {
        /// The file.
        path: PathBuf,
        /// The format found.
        format: &'static str,
        /// The protocol asked for.
        wanted: &'static str,
        /// The protocols it can be started by.
        offered: &'static str,
    },
    /// The kernel's memory range is not all RAM, or is taken by boot data.
    #[error("kernel {path:?} needs guest memory {start:#x}-{end:#x} ({what}), but {reason}")]
    KernelPlacement {
        /// The file.
        path: PathBuf,
        /// The part of the kernel.
        what: &'static str,
        /// First byte needed.
        start: u64,
        /// First byte after it.
        end: u64,
        /// Why it cannot be had.
        reason: String,
    },
    /// The initrd does not fit beside the kernel.
    #[error(
        "initrd {path:?} is too large: {size} bytes, but only {available} bytes of guest RAM are free for it \
         below {limit:#x}; give the guest more memory or shrink the initrd"
    )]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        size: u64,
        /// The largest page-aligned hole, in bytes.
        available: u64,
        /// First address the kernel cannot take an initrd at.
        limit: u64,
    },
    /// The command line is longer than the kernel can take.
    #[error("kernel command line is {length} bytes long; this kernel takes at most {limit}")]
    CommandLineTooLong {
        /// Its length in bytes, without the closing NUL.
        length: usize,
        /// The kernel's limit in bytes, without the closing NUL.
        limit: usize,
    },
    /// A NUL would end the command line early.
    #[error("kernel command line has a NUL byte at offset {0}; remove it")]
    CommandLineNul(usize),
    /// Guest RAM lacks a range that the boot protocol fixes.
    #[error("guest memory {start:#x}-{end:#x} must be RAM: it holds the {what}")]
    NoRam {
        /// First byte.
        start: u64,
        /// First byte after.
        end: u64,
        /// What has to be there.
        what: &'static str,
    },
    /// More RAM ranges than the boot protocol can describe.
    #[error("the memory map has {0} entries; the zero page holds at most 128")]
    TooManyRanges(usize),
    /// An ACPI or MP description is not possible.
    #[error("cannot describe this machine to the guest: {0}")]
    Tables(String),
    /// Guest memory could not be written.
    #[error("cannot write guest memory at {address:#x}: {source}")]
    Memory {
        /// Guest-physical address.
        address: u64,
        /// The failure.
        source: vm_memory::GuestMemoryError,
    },
}

/// The text of an I/O error as the tail of a lower-case line.
pub(crate) fn io_reason(error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::NotFound {
        return "no such file".into();
    }
    let text = error.to_string();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}
