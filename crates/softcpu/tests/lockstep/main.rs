//! Random programs of 64-bit code, run in step by an interpreting processor and one with host code: after each run
//! of equal length, bare or as a VMX guest, everything that can be seen must be the same.
#![allow(clippy::duplicate_mod)] // Both machines have the module about how code runs.

#[path = "../common/mod.rs"]
mod common;
#[path = "../vmx/harness.rs"]
#[allow(dead_code)]
mod harness;
mod program;
mod rig;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_programs_run_in_step(input in prop::collection::vec(any::<u8>(), 64..6000)) {
        rig::run(&input);
    }
}
