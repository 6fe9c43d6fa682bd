//! Guest segment registers (27.3.1.2).

use super::{CheckResult, Env, Rule, cr, require};
use crate::controls::{EntryControls, SecondaryControls};
use crate::field::Field;
use crate::region::Vmcs;
use crate::state::{AccessRights, Segment};

const RFLAGS_VM: u64 = 1 << 17;

/// CS first: the rules of the others refer to it.
const CODE_AND_DATA: [Segment; 6] =
    [Segment::Cs, Segment::Ss, Segment::Ds, Segment::Es, Segment::Fs, Segment::Gs];

/// What a data segment register is: access rights of ring 3, 64 KBytes, read/write, accessed.
const VIRTUAL_8086_RIGHTS: u64 = 0xf3;

struct Context<'a> {
    vmcs: &'a Vmcs,
    unrestricted: bool,
    ia32e: bool,
    protected: bool,
    cs: AccessRights,
    ss: AccessRights,
}

pub(super) fn rights(vmcs: &Vmcs, segment: Segment) -> AccessRights {
    AccessRights::from_bits(vmcs.read32(Field::guest_access_rights(segment)))
}

pub(super) fn check(vmcs: &Vmcs, env: &Env<'_>) -> CheckResult {
    let context = Context {
        vmcs,
        unrestricted: vmcs.secondary_controls().contains(SecondaryControls::UNRESTRICTED_GUEST),
        ia32e: vmcs.entry_controls().contains(EntryControls::IA32E_MODE_GUEST),
        protected: vmcs.read(Field::GuestCr0) & cr::CR0_PE != 0,
        cs: rights(vmcs, Segment::Cs),
        ss: rights(vmcs, Segment::Ss),
    };
    let virtual_8086 = vmcs.read(Field::GuestRflags) & RFLAGS_VM != 0;
    let ldtr = rights(vmcs, Segment::Ldtr);
    selectors(&context, virtual_8086, ldtr)?;
    bases(vmcs, env, ldtr)?;
    if virtual_8086 {
        virtual_8086_segments(vmcs)?;
    } else {
        context.code_and_data()?;
    }
    context.tr()?;
    if ldtr.usable() { context.ldtr(ldtr) } else { Ok(()) }
}

fn selectors(context: &Context<'_>, virtual_8086: bool, ldtr: AccessRights) -> CheckResult {
    const TI: u64 = 1 << 2;
    let vmcs = context.vmcs;
    let ok = vmcs.read(Field::GuestTrSelector) & TI == 0;
    require(ok, Rule::TrSelectorTi, vmcs, Field::GuestTrSelector)?;
    let ok = ldtr.unusable() || vmcs.read(Field::GuestLdtrSelector) & TI == 0;
    require(ok, Rule::LdtrSelectorTi, vmcs, Field::GuestLdtrSelector)?;
    if !virtual_8086 && !context.unrestricted {
        let ok = (vmcs.read(Field::GuestSsSelector) ^ vmcs.read(Field::GuestCsSelector)) & 3 == 0;
        require(ok, Rule::SsRpl, vmcs, Field::GuestSsSelector)?;
    }
    Ok(())
}

fn bases(vmcs: &Vmcs, env: &Env<'_>, ldtr: AccessRights) -> CheckResult {
    let canonical =
        |field| require(env.is_canonical(vmcs.read(field)), Rule::SegmentBaseCanonical, vmcs, field);
    for field in [Field::GuestTrBase, Field::GuestFsBase, Field::GuestGsBase] {
        canonical(field)?;
    }
    if ldtr.usable() {
        canonical(Field::GuestLdtrBase)?;
    }
    for segment in [Segment::Cs, Segment::Ss, Segment::Ds, Segment::Es] {
        let field = Field::guest_base(segment);
        let checked = segment == Segment::Cs || rights(vmcs, segment).usable();
        require(!checked || vmcs.read(field) >> 32 == 0, Rule::SegmentBaseHigh, vmcs, field)?;
    }
    Ok(())
}

fn virtual_8086_segments(vmcs: &Vmcs) -> CheckResult {
    for segment in CODE_AND_DATA {
        let base = Field::guest_base(segment);
        let ok = vmcs.read(base) == vmcs.read(Field::guest_selector(segment)) << 4;
        require(ok, Rule::Virtual8086Base, vmcs, base)?;
        let limit = Field::guest_limit(segment);
        require(vmcs.read(limit) == 0xffff, Rule::Virtual8086Limit, vmcs, limit)?;
        let field = Field::guest_access_rights(segment);
        let ok = vmcs.read(field) == VIRTUAL_8086_RIGHTS;
        require(ok, Rule::Virtual8086AccessRights, vmcs, field)?;
    }
    Ok(())
}

/// Whether G is what the limit demands: a limit in bytes has bits 31:20 clear, one in pages has bits 11:0
/// set.
fn granularity_fits(rights: AccessRights, limit: u64) -> bool {
    if rights.granularity() { limit & 0xfff == 0xfff } else { limit >> 20 == 0 }
}

impl Context<'_> {
    fn require(&self, ok: bool, rule: Rule, segment: Segment) -> CheckResult {
        require(ok, rule, self.vmcs, Field::guest_access_rights(segment))
    }

    /// CS, SS, DS, ES, FS and GS outside virtual-8086 mode.
    fn code_and_data(&self) -> CheckResult {
        for segment in CODE_AND_DATA {
            let rights = rights(self.vmcs, segment);
            if segment == Segment::Cs {
                self.code()?;
            } else if rights.unusable() {
                continue;
            }
            self.require(rights.code_or_data(), Rule::SegmentS, segment)?;
            match segment {
                Segment::Cs => {}
                Segment::Ss => {
                    self.require(matches!(rights.segment_type(), 3 | 7), Rule::SsType, segment)?;
                }
                _ => self.data(segment, rights)?,
            }
            self.common(segment, rights)?;
        }
        self.stack_dpl()
    }

    /// Present, reserved bits, granularity: of every segment register that is usable.
    fn common(&self, segment: Segment, rights: AccessRights) -> CheckResult {
        self.require(rights.present(), Rule::SegmentPresent, segment)?;
        self.require(rights.reserved_is_zero(), Rule::SegmentReserved, segment)?;
        let limit = self.vmcs.read(Field::guest_limit(segment));
        self.require(granularity_fits(rights, limit), Rule::SegmentGranularity, segment)
    }

    fn code(&self) -> CheckResult {
        let cs = self.cs;
        let type_ok = match cs.segment_type() {
            9 | 11 | 13 | 15 => true,
            3 => self.unrestricted,
            _ => false,
        };
        self.require(type_ok, Rule::CsType, Segment::Cs)?;
        let dpl_ok = match cs.segment_type() {
            3 => cs.dpl() == 0,
            9 | 11 => cs.dpl() == self.ss.dpl(),
            // Conforming.
            _ => cs.dpl() <= self.ss.dpl(),
        };
        self.require(dpl_ok, Rule::CsDpl, Segment::Cs)?;
        let ok = !(self.ia32e && cs.long() && cs.default_big());
        self.require(ok, Rule::CsLongAndBig, Segment::Cs)
    }

    /// SS's DPL is the CPL: it is checked even when SS is unusable.
    fn stack_dpl(&self) -> CheckResult {
        let dpl = self.ss.dpl();
        let rpl = (self.vmcs.read(Field::GuestSsSelector) & 3) as u8;
        let must_be_zero = self.cs.segment_type() == 3 || !self.protected;
        let ok = (self.unrestricted || dpl == rpl) && (!must_be_zero || dpl == 0);
        self.require(ok, Rule::SsDpl, Segment::Ss)
    }

    fn data(&self, segment: Segment, rights: AccessRights) -> CheckResult {
        const ACCESSED: u8 = 1;
        const READABLE: u8 = 2;
        let kind = rights.segment_type();
        let ok = kind & ACCESSED != 0 && (!rights.is_code() || kind & READABLE != 0);
        self.require(ok, Rule::DataSegmentType, segment)?;
        if !self.unrestricted && kind <= 11 {
            let rpl = (self.vmcs.read(Field::guest_selector(segment)) & 3) as u8;
            self.require(rights.dpl() >= rpl, Rule::DataSegmentDpl, segment)?;
        }
        Ok(())
    }

    fn tr(&self) -> CheckResult {
        let tr = rights(self.vmcs, Segment::Tr);
        self.require(tr.usable(), Rule::TrUnusable, Segment::Tr)?;
        // Busy 16-bit TSS outside IA-32e mode only; busy 32- or 64-bit TSS.
        let type_ok = match tr.segment_type() {
            3 => !self.ia32e,
            11 => true,
            _ => false,
        };
        self.require(type_ok, Rule::TrType, Segment::Tr)?;
        self.require(!tr.code_or_data(), Rule::SegmentS, Segment::Tr)?;
        self.common(Segment::Tr, tr)
    }

    fn ldtr(&self, ldtr: AccessRights) -> CheckResult {
        self.require(ldtr.segment_type() == 2, Rule::LdtrType, Segment::Ldtr)?;
        self.require(!ldtr.code_or_data(), Rule::SegmentS, Segment::Ldtr)?;
        self.common(Segment::Ldtr, ldtr)
    }
}
