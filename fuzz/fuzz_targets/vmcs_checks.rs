//! Any VMCS on any processor: through the checks of VM entry, the dump, VMREAD and VMWRITE, and through its
//! region in memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trapline_vmx::checks::{self, Env};
use trapline_vmx::exit::{BasicReason, ExitReason};
use trapline_vmx::{Capabilities, Field, REGION_SIZE, Vmcs};

/// A processor, the controls as a hypervisor would adjust them or not, fields to change, encodings.
#[derive(arbitrary::Arbitrary, Debug)]
struct Input<'a> {
    widths: (u8, u8),
    environment: [bool; 5],
    adjust: bool,
    caps: Option<[u64; 4]>,
    memory: u64,
    fields: Vec<(u8, u64)>,
    encodings: Vec<(u16, u64)>,
    region: &'a [u8],
}

fn capabilities(bits: Option<[u64; 4]>) -> Capabilities {
    let mut caps = Capabilities::software();
    if let Some([controls, more, basic, misc]) = bits {
        caps.primary.may_be_one |= controls as u32;
        caps.secondary.may_be_one |= (controls >> 32) as u32;
        caps.entry.may_be_one |= more as u32;
        caps.exit.may_be_one |= (more >> 32) as u32;
        (caps.basic, caps.misc) = (basic, misc);
        (caps.tertiary, caps.secondary_exit, caps.vm_functions) = (misc, more, basic);
        caps.ept_vpid = controls ^ more;
    }
    caps
}

fuzz_target!(|input: Input<'_>| {
    let caps = capabilities(input.caps);
    for index in 0x480..0x494 {
        let _ = caps.msr(index);
    }
    let mut bytes = [0; REGION_SIZE];
    for (to, from) in bytes.iter_mut().zip(input.region) {
        *to = *from;
    }
    let mut vmcs = Vmcs::load(&bytes);
    for &(slot, value) in &input.fields {
        if let Some(field) = Field::from_slot(usize::from(slot) % Field::COUNT) {
            vmcs.write(field, value);
        }
    }
    for &(encoding, value) in &input.encodings {
        let _ = vmcs.vmwrite(encoding.into(), value, &caps);
        let _ = vmcs.vmread(encoding.into(), &caps);
    }
    if input.adjust {
        for (field, allowed) in [
            (Field::PinControls, caps.pin),
            (Field::PrimaryControls, caps.primary),
            (Field::SecondaryControls, caps.secondary),
            (Field::ExitControls, caps.exit),
            (Field::EntryControls, caps.entry),
        ] {
            vmcs.write(field, allowed.adjust(vmcs.read32(field)).into());
        }
    }
    let read = |address: u64| input.memory.rotate_left(address as u32);
    let mut env = Env::new(&caps, input.widths.0, &read);
    env.linear_width = input.widths.1;
    [env.ia32e_mode, env.smm, env.sgx, env.rtm, _] = input.environment;
    for result in
        [checks::controls(&vmcs, &env), checks::host_state(&vmcs, &env), checks::guest_state(&vmcs, &env)]
    {
        if let Err(error) = result {
            assert!(error.to_string().contains(error.rule.section()));
            let _ = (error.instruction_error(), error.entry_failure());
        }
    }
    assert!(!vmcs.to_string().is_empty());
    vmcs.store(&mut bytes);
    assert!(Vmcs::load(&bytes) == vmcs);
    let reason = ExitReason::from_bits(vmcs.read32(Field::ExitReason));
    let _: Option<BasicReason> = reason.basic();
});
