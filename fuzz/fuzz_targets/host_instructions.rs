//! Bytes as user-mode instructions on the host processor and on ours, as far as `crates/softcpu/tests/host` can run
//! them on both: the same registers, defined flags and memory.
#![no_main]

#[path = "../../crates/softcpu/tests/host/rig.rs"]
mod rig;

use std::cell::RefCell;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use trapline_softcpu::Cpu;
use trapline_softcpu::cpuid::Model;

use rig::{DATA, HOST_CODE, Host, Rng, compare, processor};

thread_local! {
    static BOTH: RefCell<(Cpu, Arc<Model>, Host)> = RefCell::new({
        let (cpu, model) = processor();
        (cpu, model, Host::new(HOST_CODE, DATA))
    });
}

/// Bytes of one instruction in the input, with what its state is made of.
const STEP: usize = 8 + 15;

fuzz_target!(|input: &[u8]| {
    BOTH.with_borrow_mut(|(cpu, model, host)| {
        for step in input.chunks_exact(STEP).take(64) {
            let (seed, bytes) = step.split_at(8);
            // The generator's state must not be zero.
            let seed = u64::from_le_bytes(seed.try_into().unwrap_or([1; 8])) | 1;
            if let Some(Err(difference)) = compare(cpu, host, model, bytes, &mut Rng(seed)) {
                panic!("{difference}");
            }
        }
    });
});
