//! What can go wrong on the host's side.

use std::io;

/// An error of the host: never the consequence of what a guest did.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine cannot be used here.
    #[error("{engine} engine is not available: {why}")]
    Unavailable {
        /// Which engine.
        engine: crate::Engine,
        /// Why, in words.
        why: String,
    },
    /// The engine does not offer this.
    #[error("not supported by the {engine} engine: {what}")]
    Unsupported {
        /// Which engine.
        engine: crate::Engine,
        /// What was asked for.
        what: &'static str,
    },
    /// A request to the operating system failed.
    #[error("{what}: {source}")]
    Os {
        /// The request, such as `KVM_CREATE_VCPU`.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// A memory slot that cannot be.
    #[error("memory slot at {gpa:#x}: {what}")]
    Slot {
        /// Its guest-physical address.
        gpa: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The [`Answer`](crate::Answer) of an entry is not the one the last exit asked for.
    #[error("the last exit asks for {expected}, the entry brings {got}")]
    Answer {
        /// What the exit asked for.
        expected: &'static str,
        /// What came.
        got: &'static str,
    },
    /// A model-specific register that the engine refused.
    #[error("model-specific register {index:#x} was refused")]
    Msr {
        /// Its index.
        index: u32,
    },
    /// An interrupt route or event that was never registered, or a pin that is not there.
    #[error("no such {what}: {id}")]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// Under which number.
        id: u64,
    },
}

impl Error {
    /// Wraps the error of a system request.
    pub(crate) fn os(what: &'static str) -> impl FnOnce(vmm_sys_util::errno::Error) -> Self {
        move |e| Self::Os { what, source: e.into() }
    }
}

/// Result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;
