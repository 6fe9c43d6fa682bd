//! Model-specific registers.

use crate::cpu::Cpu;

/// Registers that are only storage.
#[derive(Clone, Debug, Default)]
pub struct Msrs {
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
}

/// RDMSR or WRMSR would raise #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("general protection")]
pub struct MsrError;

impl Cpu {
    /// RDMSR.
    pub fn read_msr(&mut self, _index: u32) -> Result<u64, MsrError> {
        Err(MsrError)
    }
    /// WRMSR.
    pub fn write_msr(&mut self, _index: u32, _value: u64) -> Result<(), MsrError> {
        Err(MsrError)
    }
}
