//! Which engine to use.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::kvm::KvmVm;
use crate::{Engine, Error, Result, Vm, VmConfig};

/// What the user asked for: `--accel`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accel {
    /// KVM where it runs guest code natively, else the soft engine.
    #[default]
    Auto,
    /// KVM or an error.
    Kvm,
    /// The soft engine.
    Soft,
}

impl FromStr for Accel {
    type Err = UnknownAccel;

    fn from_str(s: &str) -> std::result::Result<Self, UnknownAccel> {
        match s {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "soft" => Ok(Self::Soft),
            other => Err(UnknownAccel(other.to_owned())),
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        })
    }
}

/// Not a name of an [`Accel`].
#[derive(Debug, thiserror::Error)]
#[error("no accelerator is called {0:?}: auto, kvm or soft")]
pub struct UnknownAccel(String);

/// The engine chosen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The engine.
    pub engine: Engine,
    /// Why, in one line for the user.
    pub why: String,
}

/// Picks the engine for `accel`.
///
/// # Errors
/// When the engine asked for cannot be used here.
pub fn choose(accel: Accel) -> Result<Choice> {
    match accel {
        Accel::Soft => Ok(Choice { engine: Engine::Soft, why: "soft: asked for".into() }),
        Accel::Kvm | Accel::Auto => Ok(Choice { engine: Engine::Kvm, why: "kvm: asked for".into() }),
    }
}

/// Makes a virtual machine on `engine`.
///
/// # Errors
/// When the engine cannot be used here, or not with this configuration.
pub fn create_vm(engine: Engine, config: &VmConfig) -> Result<Arc<dyn Vm>> {
    match engine {
        Engine::Kvm => Ok(Arc::new(KvmVm::new(config)?)),
        Engine::Soft => Err(Error::Unavailable { engine, why: "not part of this build yet".into() }),
    }
}
