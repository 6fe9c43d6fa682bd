//! Exit qualifications (Intel SDM vol. 3, 28.2.1).

use bitfield_struct::bitfield;

/// How an instruction accessed a control register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum CrAccessKind {
    /// MOV to CR.
    MovTo = 0,
    /// MOV from CR.
    MovFrom = 1,
    /// CLTS.
    Clts = 2,
    /// LMSW.
    Lmsw = 3,
}

impl CrAccessKind {
    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::MovTo,
            1 => Self::MovFrom,
            2 => Self::Clts,
            _ => Self::Lmsw,
        }
    }

    const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// Control-register access (table 28-3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct CrAccess {
    /// Bits 3:0: number of the control register; 0 for CLTS and LMSW.
    #[bits(4)]
    pub cr: u8,
    /// Bits 5:4: access type.
    #[bits(2)]
    pub kind: CrAccessKind,
    /// Bit 6: LMSW's operand is in memory.
    pub lmsw_memory: bool,
    __: bool,
    /// Bits 11:8: general-purpose register of MOV CR.
    #[bits(4)]
    pub register: u8,
    #[bits(4)]
    __: u8,
    /// Bits 31:16: LMSW's source.
    pub lmsw_source: u16,
    __: u32,
}

/// MOV DR (table 28-4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct MovDr {
    /// Bits 2:0: number of the debug register.
    #[bits(3)]
    pub dr: u8,
    __: bool,
    /// Bit 4: MOV from DR, not to DR.
    pub from_dr: bool,
    #[bits(3)]
    __: u8,
    /// Bits 11:8: general-purpose register.
    #[bits(4)]
    pub register: u8,
    #[bits(52)]
    __: u64,
}

/// I/O instruction (table 28-5).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IoAccess {
    /// Bits 2:0: size in bytes less one: 0, 1 or 3.
    #[bits(3)]
    pub size_minus_one: u8,
    /// Bit 3: IN, not OUT.
    pub input: bool,
    /// Bit 4: string instruction.
    pub string: bool,
    /// Bit 5: REP prefix.
    pub rep: bool,
    /// Bit 6: the port is an immediate operand, not DX.
    pub immediate: bool,
    #[bits(9)]
    __: u16,
    /// Bits 31:16: port.
    pub port: u16,
    __: u32,
}

impl IoAccess {
    /// Size in bytes, if it is 1, 2 or 4.
    pub const fn size(self) -> Option<u8> {
        match self.size_minus_one() {
            n @ (0 | 1 | 3) => Some(n + 1),
            _ => None,
        }
    }

    /// With an access of `bytes`: 1, 2 or 4.
    pub const fn with_size(self, bytes: u8) -> Self {
        self.with_size_minus_one(bytes.wrapping_sub(1) & 7)
    }
}

/// EPT violation (table 28-7).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EptViolation {
    /// Bit 0: a data read.
    pub read: bool,
    /// Bit 1: a data write.
    pub write: bool,
    /// Bit 2: an instruction fetch.
    pub fetch: bool,
    /// Bit 3: the EPT entries allow reads.
    pub readable: bool,
    /// Bit 4: the EPT entries allow writes.
    pub writable: bool,
    /// Bit 5: the EPT entries allow fetches (by supervisor-mode linear addresses, with mode-based execute
    /// control).
    pub executable: bool,
    /// Bit 6: the EPT entries allow fetches by user-mode linear addresses.
    pub user_executable: bool,
    /// Bit 7: the guest-linear address field is valid.
    pub linear_valid: bool,
    /// Bit 8: the access was to the translation of the linear address, not to a paging structure.
    pub final_translation: bool,
    /// Bit 9: advanced information: a user-mode linear address.
    pub user_linear: bool,
    /// Bit 10: advanced information: a read/write page.
    pub writable_linear: bool,
    /// Bit 11: advanced information: an execute-disable page.
    pub execute_disabled_linear: bool,
    /// Bit 12: NMI unblocking due to IRET.
    pub nmi_unblocking: bool,
    /// Bit 13: a shadow-stack access.
    pub shadow_stack: bool,
    /// Bit 14: bit 60 of the EPT entry: supervisor shadow-stack page.
    pub supervisor_shadow_stack: bool,
    /// Bit 15: guest-paging verification.
    pub paging_verification: bool,
    /// Bit 16: asynchronous to the instruction.
    pub asynchronous: bool,
    #[bits(47)]
    __: u64,
}

/// Debug exception (table 28-1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DebugException {
    /// Bits 3:0: breakpoint conditions that were met.
    #[bits(4)]
    pub breakpoints: u8,
    #[bits(7)]
    __: u8,
    /// Bit 11: bus lock.
    pub bus_lock: bool,
    __: bool,
    /// Bit 13: access to a debug register while DR7.GD was 1.
    pub debug_register_access: bool,
    /// Bit 14: single step, or taken branch.
    pub single_step: bool,
    __: bool,
    /// Bit 16: in an RTM region.
    pub rtm: bool,
    #[bits(47)]
    __: u64,
}

/// What made a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TaskSwitchSource {
    /// CALL.
    Call = 0,
    /// IRET.
    Iret = 1,
    /// JMP.
    Jmp = 2,
    /// Task gate in the IDT.
    TaskGate = 3,
}

impl TaskSwitchSource {
    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Call,
            1 => Self::Iret,
            2 => Self::Jmp,
            _ => Self::TaskGate,
        }
    }

    const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// Task switch (table 28-2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct TaskSwitch {
    /// Bits 15:0: selector of the task-state segment to which the guest switches.
    pub selector: u16,
    #[bits(14)]
    __: u16,
    /// Bits 31:30: what made the switch.
    #[bits(2)]
    pub source: TaskSwitchSource,
    __: u32,
}

/// How the APIC-access page was accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ApicAccessKind {
    /// Linear access: data read.
    Read = 0,
    /// Linear access: data write.
    Write = 1,
    /// Linear access: instruction fetch.
    Fetch = 2,
    /// Linear access during event delivery.
    EventDelivery = 3,
    /// Linear access for monitoring.
    Monitor = 4,
    /// Guest-physical access during event delivery.
    PhysicalEventDelivery = 10,
    /// Guest-physical access for monitoring or trace.
    PhysicalMonitor = 11,
    /// Guest-physical access for an instruction.
    PhysicalInstruction = 15,
}

/// APIC access (table 28-6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ApicAccess {
    /// Bits 11:0: offset in the page; linear accesses only.
    #[bits(12)]
    pub offset: u16,
    /// Bits 15:12: access type, [`ApicAccessKind`].
    #[bits(4)]
    pub kind_number: u8,
    /// Bit 16: asynchronous to the instruction.
    pub asynchronous: bool,
    #[bits(47)]
    __: u64,
}

impl ApicAccess {
    /// An access of this kind.
    pub const fn access(kind: ApicAccessKind, offset: u16) -> Self {
        Self::new().with_kind_number(kind as u8).with_offset(offset & 0xfff)
    }

    /// The access type, if it is not a reserved one.
    pub const fn kind(self) -> Option<ApicAccessKind> {
        Some(match self.kind_number() {
            0 => ApicAccessKind::Read,
            1 => ApicAccessKind::Write,
            2 => ApicAccessKind::Fetch,
            3 => ApicAccessKind::EventDelivery,
            4 => ApicAccessKind::Monitor,
            10 => ApicAccessKind::PhysicalEventDelivery,
            11 => ApicAccessKind::PhysicalMonitor,
            15 => ApicAccessKind::PhysicalInstruction,
            _ => return None,
        })
    }
}

/// What about the guest state made a VM entry fail (27.8): the exit qualification with exit reason 33.
/// With exit reason 34 the qualification is the number, from 1, of the entry in the MSR-load area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u64)]
pub enum EntryFailure {
    /// None of the others.
    General = 0,
    /// Loading the PDPTEs.
    Pdpte = 2,
    /// Injecting an NMI into a guest that blocks by STI.
    NmiInjection = 3,
    /// The VMCS link pointer.
    LinkPointer = 4,
}

impl EntryFailure {
    /// The failure an exit qualification names.
    pub const fn from_qualification(qualification: u64) -> Option<Self> {
        Some(match qualification {
            0 => Self::General,
            2 => Self::Pdpte,
            3 => Self::NmiInjection,
            4 => Self::LinkPointer,
            _ => return None,
        })
    }

    /// The exit qualification.
    pub const fn qualification(self) -> u64 {
        self as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_and_debug_registers() {
        // mov cr4, rbx
        let mov = CrAccess::new().with_cr(4).with_kind(CrAccessKind::MovTo).with_register(3);
        assert_eq!(mov.into_bits(), 0x304);
        // lmsw word [mem] with 0x1234
        let lmsw =
            CrAccess::new().with_kind(CrAccessKind::Lmsw).with_lmsw_memory(true).with_lmsw_source(0x1234);
        assert_eq!(lmsw.into_bits(), 0x1234_0070);
        // mov rax, dr7
        assert_eq!(MovDr::new().with_dr(7).with_from_dr(true).into_bits(), 0x17);
    }

    #[test]
    fn io_instructions() {
        // rep insw from DX = 0x1f0
        let insw =
            IoAccess::new().with_size(2).with_input(true).with_string(true).with_rep(true).with_port(0x1f0);
        assert_eq!(insw.into_bits(), 0x01f0_0039);
        assert_eq!(insw.size(), Some(2));
        // out 0x80, al
        let out = IoAccess::from_bits(0x0080_0040);
        assert_eq!((out.size(), out.input(), out.immediate(), out.port()), (Some(1), false, true, 0x80));
        assert_eq!(IoAccess::from_bits(2).size(), None);
    }

    #[test]
    fn other_qualifications() {
        let write = EptViolation::new().with_write(true).with_readable(true).with_linear_valid(true);
        assert_eq!(write.with_final_translation(true).into_bits(), 0x18a);
        assert_eq!(DebugException::new().with_single_step(true).with_breakpoints(2).into_bits(), 0x4002);
        assert_eq!(DebugException::new().with_debug_register_access(true).into_bits(), 0x2000);
        let task = TaskSwitch::new().with_selector(0x28).with_source(TaskSwitchSource::Jmp);
        assert_eq!(task.into_bits(), 0x8000_0028);
        let apic = ApicAccess::access(ApicAccessKind::Write, 0xb0);
        assert_eq!(apic.into_bits(), 0x10b0);
        assert_eq!(apic.kind(), Some(ApicAccessKind::Write));
        assert_eq!(ApicAccess::from_bits(0x5000).kind(), None);
    }

    proptest! {
        #[test]
        fn any_bits_decode(bits: u64) {
            let cr = CrAccess::from_bits(bits);
            prop_assert_eq!(CrAccess::new().with_kind(cr.kind()).kind(), cr.kind());
            let task = TaskSwitch::from_bits(bits);
            prop_assert_eq!(TaskSwitch::new().with_source(task.source()).source(), task.source());
            if let Some(size) = IoAccess::from_bits(bits).size() {
                prop_assert_eq!(IoAccess::new().with_size(size).size(), Some(size));
            }
            if let Some(kind) = ApicAccess::from_bits(bits).kind() {
                prop_assert_eq!(ApicAccess::access(kind, bits as u16).kind(), Some(kind));
            }
            if let Some(failure) = EntryFailure::from_qualification(bits & 7) {
                prop_assert_eq!(failure.qualification(), bits & 7);
            }
        }
    }
}
