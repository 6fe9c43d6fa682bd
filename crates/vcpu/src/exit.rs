//! Entries and exits, by value.

use std::fmt;

use trapline_device::{AccessSize, Nanos};

/// What goes in with [`Vcpu::run`](crate::Vcpu::run).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The answer to the last exit; see [`Exit::expects`].
    pub answer: Answer,
    /// A vector acknowledged from the 8259A, to inject as an ExtINT interrupt. Only while
    /// [`Vcpu::ready_for_extint`](crate::Vcpu::ready_for_extint) is true.
    pub extint: Option<u8>,
    /// Exit with [`Exit::InterruptWindow`] as soon as an ExtINT can be injected.
    pub want_window: bool,
    /// Exit with [`Exit::Deadline`] when the machine clock reaches this moment. The soft engine does,
    /// at the edge of a basic block; KVM ignores it (a thread with a timer kicks instead).
    pub deadline: Option<Nanos>,
}

impl From<Answer> for Entry {
    fn from(answer: Answer) -> Self {
        Self { answer, ..Self::default() }
    }
}

/// The answer to an exit that reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// Nothing was asked.
    #[default]
    None,
    /// The value read, for [`Exit::PioRead`] and [`Exit::MmioRead`]; bits above the size are ignored.
    Value(u64),
    /// The data was written to [`Vcpu::io_data`](crate::Vcpu::io_data), for [`Exit::PioReadBlock`].
    Block,
}

impl Answer {
    /// In words, for errors.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "no answer",
            Self::Value(_) => "a value",
            Self::Block => "a block",
        }
    }
}

/// Why [`Vcpu::run`](crate::Vcpu::run) returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// IN: the next entry must bring [`Answer::Value`].
    PioRead {
        /// Port number.
        port: u16,
        /// Width: at most 4 bytes.
        size: AccessSize,
    },
    /// OUT.
    PioWrite {
        /// Port number.
        port: u16,
        /// Width: at most 4 bytes.
        size: AccessSize,
        /// What is written; bits above the size are zero.
        value: u32,
    },
    /// INS, repeated: fill [`Vcpu::io_data`](crate::Vcpu::io_data) with `count` elements of `size`, then
    /// enter with [`Answer::Block`]. An engine may hand over a long REP in several pieces, and may
    /// report a single element as [`Exit::PioRead`].
    PioReadBlock {
        /// Port number.
        port: u16,
        /// Width of one element: at most 4 bytes.
        size: AccessSize,
        /// Elements: at least 1.
        count: u32,
    },
    /// OUTS, repeated: `count` elements of `size` are in [`Vcpu::io_data`](crate::Vcpu::io_data). May
    /// come in pieces, as for [`Exit::PioReadBlock`].
    PioWriteBlock {
        /// Port number.
        port: u16,
        /// Width of one element: at most 4 bytes.
        size: AccessSize,
        /// Elements: at least 1.
        count: u32,
    },
    /// A read where no memory slot is: the next entry must bring [`Answer::Value`]. An access that
    /// crosses a page, or is wider than 8 bytes, comes as several.
    MmioRead {
        /// Guest-physical address.
        addr: u64,
        /// Width.
        size: AccessSize,
    },
    /// A write where no memory slot is, or to a read-only one.
    MmioWrite {
        /// Guest-physical address.
        addr: u64,
        /// Width.
        size: AccessSize,
        /// What is written; bits above the size are zero.
        value: u64,
    },
    /// HLT, in a machine without local APICs. With local APICs the engine waits inside
    /// [`Vcpu::run`](crate::Vcpu::run): only an interrupt or a kick ends the wait.
    Halt,
    /// Triple fault: the processor is in shutdown (SDM vol. 3 §6.15, interrupt 8).
    Shutdown,
    /// Somebody used the [`Kicker`](crate::Kicker), or a signal arrived.
    Interrupted,
    /// [`Entry::deadline`] has come.
    Deadline,
    /// [`Entry::want_window`] was set and an ExtINT can be injected now.
    InterruptWindow,
    /// The guest signalled the end of a level-triggered interrupt that came from the IOAPIC.
    IoapicEoi {
        /// Its vector.
        vector: u8,
    },
    /// A debug event that [`Vcpu::set_guest_debug`](crate::Vcpu::set_guest_debug) asked for.
    Debug {
        /// 1 (#DB: step or hardware breakpoint) or 3 (#BP: INT3).
        exception: u32,
        /// Linear address of the instruction (of the INT3 itself for #BP).
        pc: u64,
        /// DR6 as the exception would have set it.
        dr6: u64,
        /// DR7 in force.
        dr7: u64,
    },
    /// VM entry failed: the guest state is one that a processor refuses.
    FailEntry {
        /// The engine's reason: the VM-instruction error or the exit reason of the failed entry.
        reason: u64,
    },
    /// The engine cannot go on, such as an instruction that its emulator does not know.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*`; 0 for an exit reason that this crate does not know, then in `data[0]`.
        suberror: u32,
        /// The first words of what the engine says about it.
        data: [u64; 4],
    },
    /// The guest asked for a reset, power-off or the like through a paravirtual interface.
    SystemEvent {
        /// `KVM_SYSTEM_EVENT_*`.
        kind: u32,
    },
}

impl Exit {
    /// The kind of answer the next entry must bring: `Answer::Value(0)` stands for any value.
    pub fn expects(&self) -> Answer {
        match self {
            Self::PioRead { .. } | Self::MmioRead { .. } => Answer::Value(0),
            Self::PioReadBlock { .. } => Answer::Block,
            _ => Answer::None,
        }
    }

    /// The reason alone, for counting.
    pub fn kind(&self) -> ExitKind {
        match self {
            Self::PioRead { .. } => ExitKind::PioRead,
            Self::PioWrite { .. } => ExitKind::PioWrite,
            Self::PioReadBlock { .. } => ExitKind::PioReadBlock,
            Self::PioWriteBlock { .. } => ExitKind::PioWriteBlock,
            Self::MmioRead { .. } => ExitKind::MmioRead,
            Self::MmioWrite { .. } => ExitKind::MmioWrite,
            Self::Halt => ExitKind::Halt,
            Self::Shutdown => ExitKind::Shutdown,
            Self::Interrupted => ExitKind::Interrupted,
            Self::Deadline => ExitKind::Deadline,
            Self::InterruptWindow => ExitKind::InterruptWindow,
            Self::IoapicEoi { .. } => ExitKind::IoapicEoi,
            Self::Debug { .. } => ExitKind::Debug,
            Self::FailEntry { .. } => ExitKind::FailEntry,
            Self::InternalError { .. } => ExitKind::InternalError,
            Self::SystemEvent { .. } => ExitKind::SystemEvent,
        }
    }
}

macro_rules! exit_kinds {
    ($($kind:ident = $name:literal),* $(,)?) => {
        /// The reason of an [`Exit`], without its particulars.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[allow(missing_docs)]
        pub enum ExitKind { $($kind),* }

        impl ExitKind {
            /// Every kind, in declaration order.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// A short stable name, such as `"pio_read"`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name),* }
            }
        }
    };
}

exit_kinds! {
    PioRead = "pio_read", PioWrite = "pio_write",
    PioReadBlock = "pio_read_block", PioWriteBlock = "pio_write_block",
    MmioRead = "mmio_read", MmioWrite = "mmio_write",
    Halt = "halt", Shutdown = "shutdown", Interrupted = "interrupted", Deadline = "deadline",
    InterruptWindow = "interrupt_window", IoapicEoi = "ioapic_eoi", Debug = "debug",
    FailEntry = "fail_entry", InternalError = "internal_error", SystemEvent = "system_event",
}

impl fmt::Display for ExitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How often a vCPU exited, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExitStats {
    counts: [u64; ExitKind::ALL.len()],
}

impl ExitStats {
    /// Counts one exit.
    pub fn record(&mut self, kind: ExitKind) {
        if let Some(n) = self.counts.get_mut(kind as usize) {
            *n += 1;
        }
    }

    /// Exits of this kind.
    pub fn count(&self, kind: ExitKind) -> u64 {
        self.counts.get(kind as usize).copied().unwrap_or(0)
    }

    /// Exits of all kinds.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Every kind with its count, zeros too.
    pub fn iter(&self) -> impl Iterator<Item = (ExitKind, u64)> + '_ {
        ExitKind::ALL.iter().map(|&kind| (kind, self.count(kind)))
    }
}
