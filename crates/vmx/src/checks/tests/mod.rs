//! Each rule broken alone, from a VMCS that passes.

extern crate alloc;

mod controls;
mod guest;
mod host;
mod random;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::ToString;
use alloc::vec::Vec;

use super::*;
use crate::caps::Allowed;
use crate::controls::{
    EntryControls, ExitControls, PinControls, PrimaryControls, SecondaryControls, TertiaryControls,
};
use crate::exit::{EntryFailure, VmInstructionError};
use crate::state::Segment;

/// A processor and the VMCS that it enters with.
struct World {
    vmcs: Vmcs,
    caps: Capabilities,
    smm: bool,
    ia32e_mode: bool,
    /// Physical memory, 8 bytes a cell; zero elsewhere.
    memory: BTreeMap<u64, u64>,
}

const CURRENT: u64 = 0x10_0000;
const EXECUTIVE: u64 = 0x10_1000;
const MAXPHYADDR: u8 = 40;
/// The lowest address beyond physical memory.
const BEYOND: u64 = 1 << MAXPHYADDR;
/// The lowest address that is not canonical.
const NOT_CANONICAL: u64 = 1 << 47;

impl World {
    fn set(&mut self, field: Field, value: u64) -> &mut Self {
        self.vmcs.write(field, value);
        self
    }

    fn or(&mut self, field: Field, bits: u64) -> &mut Self {
        self.set(field, self.vmcs.read(field) | bits)
    }

    fn clear(&mut self, field: Field, bits: u64) -> &mut Self {
        self.set(field, self.vmcs.read(field) & !bits)
    }

    fn pin(&mut self, controls: PinControls) -> &mut Self {
        self.or(Field::PinControls, controls.bits().into())
    }

    fn primary(&mut self, controls: PrimaryControls) -> &mut Self {
        self.or(Field::PrimaryControls, controls.bits().into())
    }

    fn secondary(&mut self, controls: SecondaryControls) -> &mut Self {
        self.or(Field::SecondaryControls, controls.bits().into())
    }

    fn without(&mut self, controls: SecondaryControls) -> &mut Self {
        self.clear(Field::SecondaryControls, controls.bits().into())
    }

    fn tertiary(&mut self, controls: TertiaryControls) -> &mut Self {
        self.primary(PrimaryControls::TERTIARY_CONTROLS).or(Field::TertiaryControls, controls.bits())
    }

    fn exit(&mut self, controls: ExitControls) -> &mut Self {
        self.or(Field::ExitControls, controls.bits().into())
    }

    fn entry(&mut self, controls: EntryControls) -> &mut Self {
        self.or(Field::EntryControls, controls.bits().into())
    }

    /// Allows every control and takes every feature.
    fn everything(&mut self) -> &mut Self {
        let caps = &mut self.caps;
        for allowed in
            [&mut caps.pin, &mut caps.primary, &mut caps.secondary, &mut caps.exit, &mut caps.entry]
        {
            *allowed = Allowed::new(allowed.must_be_one, !0);
        }
        caps.tertiary = !0;
        caps.secondary_exit = !0;
        caps.vm_functions = 1;
        caps.cr4_fixed1 |= cr::CR4_CET;
        self
    }

    /// Enters from SMM.
    fn in_smm(&mut self) -> &mut Self {
        self.smm = true;
        self.everything()
    }

    fn check(&self) -> CheckResult {
        let read = |address: u64| self.memory.get(&address).copied().unwrap_or(0);
        let mut env = Env::new(&self.caps, MAXPHYADDR, &read);
        env.smm = self.smm;
        env.ia32e_mode = self.ia32e_mode;
        env.current_vmcs = CURRENT;
        env.executive_vmcs = EXECUTIVE;
        super::controls(&self.vmcs, &env)?;
        host_state(&self.vmcs, &env)?;
        guest_state(&self.vmcs, &env)
    }
}

/// A 64-bit guest with EPT, from a 64-bit host.
fn long_mode() -> World {
    use Field as F;
    let caps = Capabilities::software();
    let mut world = World { vmcs: Vmcs::new(), caps, smm: false, ia32e_mode: true, memory: BTreeMap::new() };
    for (field, allowed) in [
        (F::PinControls, world.caps.pin),
        (F::PrimaryControls, world.caps.primary),
        (F::ExitControls, world.caps.exit),
        (F::EntryControls, world.caps.entry),
    ] {
        world.set(field, allowed.adjust(0).into());
    }
    world
        .pin(PinControls::EXTERNAL_INTERRUPT_EXITING | PinControls::NMI_EXITING)
        .primary(PrimaryControls::SECONDARY_CONTROLS | PrimaryControls::HLT_EXITING)
        .secondary(SecondaryControls::ENABLE_EPT | SecondaryControls::ENABLE_VPID)
        .exit(ExitControls::HOST_ADDRESS_SPACE_SIZE | ExitControls::LOAD_EFER | ExitControls::LOAD_PAT)
        .entry(EntryControls::IA32E_MODE_GUEST | EntryControls::LOAD_EFER | EntryControls::LOAD_PAT)
        .entry(EntryControls::LOAD_DEBUG_CONTROLS);
    for (field, value) in [
        (F::Vpid, 1),
        (F::EptPointer, 0x20_005e),
        (F::HostCr0, 0x8001_0033),
        (F::HostCr3, 0x30_0000),
        (F::HostCr4, 0x2020),
        (F::HostEfer, 0xd00),
        (F::HostPat, 0x0007_0406_0007_0406),
        (F::HostCsSelector, 0x08),
        (F::HostSsSelector, 0x10),
        (F::HostTrSelector, 0x18),
        (F::HostRip, 0xffff_8000_0000_0000),
        (F::GuestCr0, 0x8001_0033),
        (F::GuestCr3, 0x30_0000),
        (F::GuestCr4, 0x2020),
        (F::GuestEfer, 0xd00),
        (F::GuestPat, 0x0007_0406_0007_0406),
        (F::GuestDr7, 0x400),
        (F::GuestCsSelector, 0x08),
        (F::GuestSsSelector, 0x10),
        (F::GuestTrSelector, 0x18),
        (F::GuestCsAccessRights, 0xa09b),
        (F::GuestCsLimit, 0xffff_ffff),
        (F::GuestSsAccessRights, 0xc093),
        (F::GuestSsLimit, 0xffff_ffff),
        (F::GuestTrAccessRights, 0x8b),
        (F::GuestTrLimit, 0x67),
        (F::GuestRip, 0xffff_8000_0000_0000),
        (F::GuestRflags, 0x202),
        (F::VmcsLinkPointer, u64::MAX),
    ] {
        world.set(field, value);
    }
    for segment in [Segment::Ds, Segment::Es, Segment::Fs, Segment::Gs, Segment::Ldtr] {
        world.set(Field::guest_access_rights(segment), 1 << 16);
    }
    world
}

/// A guest in real-address mode at the reset vector, unrestricted.
fn real_mode() -> World {
    use Field as F;
    let mut world = long_mode();
    world
        .secondary(SecondaryControls::UNRESTRICTED_GUEST)
        .clear(F::EntryControls, EntryControls::IA32E_MODE_GUEST.bits().into())
        .set(F::GuestCr0, 0x30)
        .set(F::GuestCr4, 0x2000)
        .set(F::GuestEfer, 0)
        .set(F::GuestRip, 0xfff0)
        .set(F::GuestRflags, 2);
    for segment in [Segment::Cs, Segment::Ss, Segment::Ds, Segment::Es, Segment::Fs, Segment::Gs] {
        world
            .set(Field::guest_selector(segment), 0)
            .set(Field::guest_limit(segment), 0xffff)
            .set(Field::guest_access_rights(segment), 0x93);
    }
    world.set(F::GuestCsSelector, 0xf000).set(F::GuestCsBase, 0xffff_0000);
    world.set(F::GuestCsAccessRights, 0x9b);
    world
}

/// A 32-bit guest in protected mode with PAE paging, from memory: no EPT.
fn pae() -> World {
    use Field as F;
    let mut world = long_mode();
    world
        .without(SecondaryControls::ENABLE_EPT)
        .clear(F::EntryControls, EntryControls::IA32E_MODE_GUEST.bits().into())
        .set(F::GuestEfer, 0)
        .set(F::GuestCr3, 0x30_0020)
        .set(F::GuestRip, 0x1000)
        .set(F::GuestCsAccessRights, 0xc09b);
    world.memory.insert(0x30_0020, 0x40_0001);
    world
}

/// A guest in virtual-8086 mode.
fn virtual_8086() -> World {
    let mut world = pae();
    world.set(Field::GuestRflags, 0x2_0202).set(Field::GuestRip, 0x100);
    for segment in [Segment::Cs, Segment::Ss, Segment::Ds, Segment::Es, Segment::Fs, Segment::Gs] {
        world
            .set(Field::guest_selector(segment), 0x1234)
            .set(Field::guest_base(segment), 0x1_2340)
            .set(Field::guest_limit(segment), 0xffff)
            .set(Field::guest_access_rights(segment), 0xf3);
    }
    world
}

/// The rule that a change of a good VMCS breaks, and the field that shows it.
type Case = (Rule, Field, fn() -> World, fn(&mut World));

fn run(cases: &[Case]) {
    for (number, (rule, field, base, change)) in cases.iter().enumerate() {
        let mut world = base();
        assert_eq!(world.check(), Ok(()), "the base of case {number}: {rule:?}");
        change(&mut world);
        let error = world.check().expect_err(&alloc::format!("case {number}: {rule:?} is not checked"));
        assert_eq!((error.rule, error.field), (*rule, *field), "case {number}: {error}");
    }
}

/// A change of a good VMCS that breaks nothing.
type Allowance = (&'static str, fn() -> World, fn(&mut World));

fn pass(cases: &[Allowance]) {
    for (what, base, change) in cases {
        let mut world = base();
        change(&mut world);
        assert_eq!(world.check(), Ok(()), "{what}");
    }
}

#[test]
fn every_rule_has_a_case() {
    let cases = controls::CASES.iter().chain(host::CASES).chain(guest::CASES).chain(guest::SEGMENT_CASES);
    let covered: BTreeSet<Rule> = cases.map(|case| case.0).collect();
    let missing: Vec<_> = Rule::ALL.iter().filter(|rule| !covered.contains(rule)).collect();
    assert!(missing.is_empty(), "rules without a case: {missing:?}");
}

#[test]
fn errors_say_what_failed_on_one_line() {
    let mut world = long_mode();
    world.set(Field::GuestRflags, 0);
    let error = world.check().unwrap_err();
    assert_eq!(
        error.to_string(),
        "RFLAGS has a reserved bit set, or bit 1 clear: guest RFLAGS is 0x0 (sdm vol. 3, 27.3.1.4)"
    );
}

#[test]
fn errors_show_as_vmfail_or_as_an_exit() {
    let error = |rule| CheckError { rule, field: Field::GuestRip, value: 0 };
    for (rule, instruction, failure) in [
        (Rule::VpidZero, Some(VmInstructionError::InvalidControls), EntryFailure::General),
        (Rule::HostCr0, Some(VmInstructionError::InvalidHostState), EntryFailure::General),
        (Rule::GuestCr0, None, EntryFailure::General),
        (Rule::Pdpte, None, EntryFailure::Pdpte),
        (Rule::NmiBlockedBySti, None, EntryFailure::NmiInjection),
        (Rule::NmiBlockedByMovSs, None, EntryFailure::General),
        (Rule::LinkPointerAddress, None, EntryFailure::LinkPointer),
        (Rule::LinkPointerRevision, None, EntryFailure::LinkPointer),
    ] {
        assert_eq!(error(rule).instruction_error(), instruction, "{rule:?}");
        assert_eq!(error(rule).entry_failure(), failure, "{rule:?}");
    }
}
