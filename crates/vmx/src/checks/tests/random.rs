//! Any VMCS contents on any processor: an answer, never a panic.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn any_contents_are_answered(
        values in proptest::collection::vec(any::<u64>(), Field::COUNT),
        controls: [u32; 6],
        widths in (0u8..=80, 0u8..=80),
        flags: [bool; 5],
        memory: u64,
    ) {
        let mut world = long_mode();
        world.everything();
        for (field, value) in Field::all().zip(values) {
            world.set(field, value);
        }
        // Controls as the hypervisor would adjust them, so that the checks behind are reached.
        let caps = if flags[0] { world.caps.clone() } else { Capabilities::software() };
        for (field, allowed, bits) in [
            (Field::PinControls, caps.pin, controls[0]),
            (Field::PrimaryControls, caps.primary, controls[1]),
            (Field::SecondaryControls, caps.secondary, controls[2]),
            (Field::ExitControls, caps.exit, controls[3]),
            (Field::EntryControls, caps.entry, controls[4]),
        ] {
            world.set(field, allowed.adjust(bits).into());
        }
        let read = |_| memory;
        let mut env = Env::new(&caps, widths.0, &read);
        env.linear_width = widths.1;
        (env.smm, env.ia32e_mode, env.sgx, env.rtm) = (flags[1], flags[2], flags[3], flags[4]);
        for result in
            [super::super::controls(&world.vmcs, &env), host_state(&world.vmcs, &env), guest_state(&world.vmcs, &env)]
        {
            if let Err(error) = result {
                let text = error.to_string();
                prop_assert!(!text.contains('\n') && text.contains(error.rule.section()));
                let _ = (error.instruction_error(), error.entry_failure());
            }
        }
        prop_assert!(!world.vmcs.to_string().is_empty());
    }

    /// One wild field in a good VMCS: whatever the value, the entry passes or a rule is named.
    #[test]
    fn one_wild_field(slot in 0..Field::COUNT, value: u64, bit in 0u32..64, base in 0usize..4) {
        let base = [long_mode, real_mode, pae, virtual_8086][base];
        let field = Field::from_slot(slot).unwrap();
        for value in [value, 1 << bit, base().vmcs.read(field) ^ 1 << bit] {
            let mut world = base();
            world.set(field, value);
            let unchanged = world.vmcs == base().vmcs;
            prop_assert!(!unchanged || world.check().is_ok());
            if field.is_read_only() {
                prop_assert_eq!(world.check(), Ok(()));
            }
        }
    }
}
