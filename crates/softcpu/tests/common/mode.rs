//! How guests' code runs.

use trapline_softcpu::Cpu;

/// Whether this test target runs blocks of 64-bit code as host code, from their first time on. The others have the
/// interpreter alone.
pub const NATIVE: bool = matches!(env!("CARGO_CRATE_NAME").as_bytes(), b"native");

/// Has a processor run code as this test target does.
pub fn apply(cpu: &mut Cpu) {
    run_natively(cpu, NATIVE);
}

/// Has a processor make host code at once, or never.
pub fn run_natively(cpu: &mut Cpu, native: bool) {
    let made = cpu.translate_after(native.then_some(0));
    assert_eq!(made, native && cfg!(target_arch = "x86_64"));
}
