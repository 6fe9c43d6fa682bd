//! Programs of 64-bit code made of the input, run in step by an interpreting processor and one with host code, as
//! `crates/softcpu/tests/lockstep` does: the same state after every run.
#![no_main]

#[path = "../../crates/softcpu/tests/common/mod.rs"]
mod common;
#[path = "../../crates/softcpu/tests/vmx/harness.rs"]
#[allow(dead_code)]
mod harness;
#[path = "../../crates/softcpu/tests/lockstep/program.rs"]
mod program;
#[path = "../../crates/softcpu/tests/lockstep/rig.rs"]
mod rig;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| rig::run(input));
