//! A processor in root operation with one VMCS, and a guest in 64-bit or real-address mode behind EPT.

#[path = "../common/mode.rs"]
mod mode;

use std::sync::Arc;

use iced_x86::code_asm::CodeAssembler;
use trapline_memory::arena::{Arena, ArenaOptions};
use trapline_softcpu::Cpu;
use trapline_softcpu::cpu::reg;
use trapline_softcpu::cpuid::Model;
use trapline_softcpu::vmx::VmResult;
use trapline_vmx::controls::{EntryControls, ExitControls, PinControls, PrimaryControls, SecondaryControls};
use trapline_vmx::exit::InterruptionInfo;
use trapline_vmx::{BasicReason, Field};

// Host-physical places.
pub const VMXON: u64 = 0x1000;
pub const VMCS: u64 = 0x2000;
pub const MSR_BITMAP: u64 = 0x3000;
pub const IO_BITMAP_A: u64 = 0x4000;
pub const IO_BITMAP_B: u64 = 0x5000;
pub const VIRTUAL_APIC: u64 = 0x6000;
pub const PML: u64 = 0x7000;
pub const VE_AREA: u64 = 0x8000;
pub const MSR_AREA: u64 = 0x9000;
/// EPT tables: PML4, PDPT, PD, and two page tables for 4 MiB.
pub const EPT: u64 = 0x1_0000;
/// A second set of EPT tables.
pub const EPT2: u64 = 0x1_8000;
/// Guest-physical 0 is here.
pub const GUEST: u64 = 0x40_0000;

// Guest-physical places; the first 2 MiB are mapped at the same linear addresses.
pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const STACK: u64 = 0x9000;
pub const PML4: u64 = 0x1_0000;
/// The page table of the first 2 MiB.
pub const PT: u64 = 0x1_3000;
pub const CODE: u64 = 0x2_0000;
pub const HANDLERS: u64 = 0x2_8000;
pub const DATA: u64 = 0x3_0000;
/// Not mapped in EPT.
pub const DEVICE: u64 = 0x18_0000;
/// Not mapped in the guest's page table.
pub const HOLE: u64 = 0x19_0000;

/// EPT leaf: all rights, write-back.
pub const EPT_RWX: u64 = 0x37;
/// Shortcuts to type bits of interruption information.
pub const HARDWARE: u32 = 3 << 8;
pub const VALID: u32 = 1 << 31;
pub const HAS_ERROR: u32 = 1 << 11;

pub struct Machine {
    pub cpu: Cpu,
    pub arena: Arc<Arena>,
    launched: bool,
}

/// Outside VMX operation.
pub fn bare() -> Machine {
    let arena = Arc::new(Arena::new(16 << 20, &ArenaOptions::default()).unwrap());
    let mut cpu = Cpu::new(arena.clone(), Arc::new(Model::max()));
    mode::apply(&mut cpu);
    Machine { cpu, arena, launched: false }
}

/// In root operation, with a current VMCS that is all zero.
pub fn root() -> Machine {
    let mut m = bare();
    m.cpu.enter_root_mode(0);
    let revision = u64::from(m.cpu.vmx.caps.revision);
    m.arena.write_u64(VMXON, revision).unwrap();
    m.cpu.vmxon(VMXON).unwrap();
    m.new_vmcs();
    m
}

/// A guest in 64-bit mode.
pub fn long() -> Machine {
    let mut m = root();
    to_long(&mut m);
    m
}

fn to_long(m: &mut Machine) {
    use Field as F;
    m.controls();
    m.tables(EPT, GUEST);
    m.guest_tables();
    for (field, value) in [
        (F::GuestCr0, 0x8001_0033),
        (F::GuestCr3, PML4),
        (F::GuestCr4, 0x26a0),
        (F::GuestEfer, 0xd01),
        (F::GuestCsSelector, 0x08),
        (F::GuestSsSelector, 0x10),
        (F::GuestTrSelector, 0x18),
        (F::GuestCsAccessRights, 0xa09b),
        (F::GuestCsLimit, 0xffff_ffff),
        (F::GuestSsAccessRights, 0xc093),
        (F::GuestSsLimit, 0xffff_ffff),
        (F::GuestTrAccessRights, 0x8b),
        (F::GuestTrLimit, 0x67),
        (F::GuestTrBase, TSS),
        (F::GuestGdtrBase, GDT),
        (F::GuestGdtrLimit, 0x2f),
        (F::GuestIdtrBase, IDT),
        (F::GuestIdtrLimit, 0xfff),
        (F::GuestRip, CODE),
        (F::GuestRsp, STACK),
        (F::GuestRflags, 2),
        (F::GuestDr7, 0x400),
    ] {
        m.set(field, value);
    }
    for rights in [F::GuestDsAccessRights, F::GuestEsAccessRights, F::GuestFsAccessRights] {
        m.set(rights, 1 << 16);
    }
    m.set(F::GuestGsAccessRights, 1 << 16);
    m.set(F::GuestLdtrAccessRights, 1 << 16);
    m.entry(EntryControls::IA32E_MODE_GUEST);
}

/// An unrestricted guest in real-address mode at CODE, its stack segment at 0.
pub fn real() -> Machine {
    use Field as F;
    let mut m = root();
    m.controls();
    m.tables(EPT, GUEST);
    m.secondary(SecondaryControls::UNRESTRICTED_GUEST);
    for (selector, base, limit, rights) in [
        (F::GuestEsSelector, F::GuestEsBase, F::GuestEsLimit, F::GuestEsAccessRights),
        (F::GuestCsSelector, F::GuestCsBase, F::GuestCsLimit, F::GuestCsAccessRights),
        (F::GuestSsSelector, F::GuestSsBase, F::GuestSsLimit, F::GuestSsAccessRights),
        (F::GuestDsSelector, F::GuestDsBase, F::GuestDsLimit, F::GuestDsAccessRights),
        (F::GuestFsSelector, F::GuestFsBase, F::GuestFsLimit, F::GuestFsAccessRights),
        (F::GuestGsSelector, F::GuestGsBase, F::GuestGsLimit, F::GuestGsAccessRights),
    ] {
        m.set(selector, 0);
        m.set(base, 0);
        m.set(limit, 0xffff);
        m.set(rights, 0x93);
    }
    for (field, value) in [
        (F::GuestCr0, 0x30),
        (F::GuestCr4, 0x2000),
        (F::GuestEfer, 0),
        (F::GuestCsSelector, CODE >> 4),
        (F::GuestCsBase, CODE),
        (F::GuestCsAccessRights, 0x9b),
        (F::GuestTrAccessRights, 0x8b),
        (F::GuestTrLimit, 0x67),
        (F::GuestLdtrAccessRights, 1 << 16),
        (F::GuestIdtrLimit, 0x3ff),
        (F::GuestRip, 0),
        (F::GuestRsp, STACK),
        (F::GuestRflags, 2),
        (F::GuestDr7, 0x400),
    ] {
        m.set(field, value);
    }
    m
}

/// A guest in 32-bit protected mode without paging, at privilege level 0.
pub fn protected() -> Machine {
    use Field as F;
    let mut m = real();
    m.write(GDT + 8, 0x00cf_9b00_0000_ffff);
    m.write(GDT + 0x10, 0x00cf_9300_0000_ffff);
    m.write(GDT + 0x18, 0x0000_8b00_3000_0067);
    for (selector, limit, rights) in [
        (F::GuestEsSelector, F::GuestEsLimit, F::GuestEsAccessRights),
        (F::GuestSsSelector, F::GuestSsLimit, F::GuestSsAccessRights),
        (F::GuestDsSelector, F::GuestDsLimit, F::GuestDsAccessRights),
        (F::GuestFsSelector, F::GuestFsLimit, F::GuestFsAccessRights),
        (F::GuestGsSelector, F::GuestGsLimit, F::GuestGsAccessRights),
    ] {
        m.set(selector, 0x10);
        m.set(limit, 0xffff_ffff);
        m.set(rights, 0xc093);
    }
    for (field, value) in [
        (F::GuestCr0, 0x31),
        (F::GuestCsSelector, 8),
        (F::GuestCsBase, 0),
        (F::GuestCsLimit, 0xffff_ffff),
        (F::GuestCsAccessRights, 0xc09b),
        (F::GuestTrSelector, 0x18),
        (F::GuestTrBase, TSS),
        (F::GuestGdtrBase, GDT),
        (F::GuestGdtrLimit, 0x2f),
        (F::GuestIdtrBase, IDT),
        (F::GuestIdtrLimit, 0x7ff),
        (F::GuestRip, CODE),
    ] {
        m.set(field, value);
    }
    m
}

impl Machine {
    /// Makes a VMCS that is all zero the current one.
    fn new_vmcs(&mut self) {
        self.cpu.vmclear(VMCS).unwrap();
        self.arena.write_bytes(VMCS, &[0; 4096]).unwrap();
        self.arena.write_u64(VMCS, u64::from(self.cpu.vmx.caps.revision)).unwrap();
        self.cpu.vmclear(VMCS).unwrap();
        self.cpu.vmptrld(VMCS).unwrap();
        self.launched = false;
    }

    /// From [`long`] to there again, with what guest memory holds beside tables.
    #[allow(dead_code)]
    pub fn restart_long(&mut self) {
        self.cpu.mmu.flush_all();
        self.new_vmcs();
        to_long(self);
    }

    pub fn set(&mut self, field: Field, value: u64) {
        self.cpu.vmcs_write(field, value);
    }

    pub fn get(&self, field: Field) -> u64 {
        self.cpu.vmcs_read(field)
    }

    pub fn or(&mut self, field: Field, bits: u64) {
        self.set(field, self.get(field) | bits);
    }

    pub fn clear(&mut self, field: Field, bits: u64) {
        self.set(field, self.get(field) & !bits);
    }

    pub fn pin(&mut self, c: PinControls) {
        self.or(Field::PinControls, c.bits().into());
    }

    pub fn primary(&mut self, c: PrimaryControls) {
        self.or(Field::PrimaryControls, c.bits().into());
    }

    pub fn no_primary(&mut self, c: PrimaryControls) {
        self.clear(Field::PrimaryControls, c.bits().into());
    }

    pub fn secondary(&mut self, c: SecondaryControls) {
        self.or(Field::SecondaryControls, c.bits().into());
    }

    pub fn exit_controls(&mut self, c: ExitControls) {
        self.or(Field::ExitControls, c.bits().into());
    }

    pub fn entry(&mut self, c: EntryControls) {
        self.or(Field::EntryControls, c.bits().into());
    }

    /// Controls and host state that both guests share.
    fn controls(&mut self) {
        use Field as F;
        let caps = self.cpu.vmx.caps.clone();
        self.set(F::PinControls, caps.pin.adjust(0).into());
        self.set(F::PrimaryControls, caps.primary.adjust(0).into());
        self.set(F::ExitControls, caps.exit.adjust(0).into());
        self.set(F::EntryControls, caps.entry.adjust(0).into());
        self.pin(PinControls::EXTERNAL_INTERRUPT_EXITING | PinControls::NMI_EXITING);
        self.primary(
            PrimaryControls::SECONDARY_CONTROLS
                | PrimaryControls::HLT_EXITING
                | PrimaryControls::MSR_BITMAPS
                | PrimaryControls::UNCONDITIONAL_IO_EXITING,
        );
        self.no_primary(PrimaryControls::CR3_LOAD_EXITING | PrimaryControls::CR3_STORE_EXITING);
        self.secondary(SecondaryControls::ENABLE_EPT | SecondaryControls::ENABLE_VPID);
        self.secondary(SecondaryControls::ENABLE_RDTSCP | SecondaryControls::ENABLE_INVPCID);
        self.exit_controls(
            ExitControls::HOST_ADDRESS_SPACE_SIZE
                | ExitControls::LOAD_EFER
                | ExitControls::SAVE_EFER
                | ExitControls::LOAD_PAT
                | ExitControls::SAVE_PAT
                | ExitControls::SAVE_DEBUG_CONTROLS,
        );
        let entry = EntryControls::LOAD_EFER | EntryControls::LOAD_PAT | EntryControls::LOAD_DEBUG_CONTROLS;
        self.entry(entry);
        for (field, value) in [
            (F::VmcsLinkPointer, u64::MAX),
            (F::Vpid, 1),
            (F::EptPointer, EPT | 0x1e),
            (F::MsrBitmap, MSR_BITMAP),
            (F::IoBitmapA, IO_BITMAP_A),
            (F::IoBitmapB, IO_BITMAP_B),
            (F::VirtualApicAddress, VIRTUAL_APIC),
            (F::PmlAddress, PML),
            (F::VirtualizationExceptionAddress, VE_AREA),
            (F::TscMultiplier, 1 << 48),
            (F::HostCr0, 0x8001_0033),
            (F::HostCr3, 0x30_0000),
            (F::HostCr4, 0x2620),
            (F::HostEfer, 0xd01),
            (F::HostPat, 0x0007_0406_0007_0406),
            (F::HostCsSelector, 0x08),
            (F::HostSsSelector, 0x10),
            (F::HostTrSelector, 0x18),
            (F::HostRip, 0xffff_8000_0000_0000),
            (F::HostRsp, 0x1234),
            (F::GuestPat, 0x0007_0406_0007_0406),
        ] {
            self.set(field, value);
        }
    }

    /// EPT tables at `root` that map 4 MiB from guest-physical 0 at host-physical `to`, but for DEVICE.
    pub fn tables(&mut self, root: u64, to: u64) {
        let table = |n: u64| root + n * 0x1000;
        // Bit 10 counts only with mode-based execute control.
        self.arena.write_u64(root, table(1) | 0x407).unwrap();
        self.arena.write_u64(table(1), table(2) | 0x407).unwrap();
        for half in 0..2 {
            self.arena.write_u64(table(2) + 8 * half, table(3 + half) | 0x407).unwrap();
        }
        for page in 0..1024u64 {
            let gpa = page << 12;
            let entry = if gpa == DEVICE { 0 } else { (to + gpa) | EPT_RWX };
            self.arena.write_u64(table(3) + 8 * page, entry).unwrap();
        }
    }

    /// The EPT leaf of `gpa`.
    pub fn ept_entry(gpa: u64) -> u64 {
        EPT + 0x3000 + (gpa >> 12) * 8
    }

    pub fn set_ept(&mut self, gpa: u64, entry: u64) {
        self.arena.write_u64(Self::ept_entry(gpa), entry).unwrap();
    }

    /// The guest's page tables, GDT and TSS.
    pub fn guest_tables(&mut self) {
        self.write(PML4, (PML4 + 0x1000) | 7);
        self.write(PML4 + 0x1000, (PML4 + 0x2000) | 7);
        self.write(PML4 + 0x2000, PT | 7);
        for page in 0..512u64 {
            let lin = page << 12;
            self.write(PT + 8 * page, if lin == HOLE { 0 } else { lin | 7 });
        }
        self.write(GDT + 8, 0x00af_9b00_0000_ffff);
        self.write(GDT + 0x10, 0x00cf_9300_0000_ffff);
        self.write(GDT + 0x18, 0x0000_8b00_3000_0067);
        // IST 1.
        self.write(TSS + 36, 0x7000);
    }

    /// Writes guest-physical memory.
    pub fn write(&mut self, gpa: u64, value: u64) {
        self.arena.write_bytes(GUEST + gpa, &value.to_le_bytes()).unwrap();
    }

    pub fn read(&self, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        self.arena.read_bytes(GUEST + gpa, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn assemble(&mut self, bits: u32, ip: u64, gpa: u64, f: impl FnOnce(&mut CodeAssembler)) {
        let mut a = CodeAssembler::new(bits).unwrap();
        f(&mut a);
        let bytes = a.assemble(ip).unwrap();
        self.arena.write_bytes(GUEST + gpa, &bytes).unwrap();
        self.cpu.memory_changed(GUEST + gpa, bytes.len() as u64);
    }

    /// Code of the 64-bit guest, which starts there.
    pub fn code(&mut self, f: impl FnOnce(&mut CodeAssembler)) {
        self.assemble(64, CODE, CODE, f);
        self.set(Field::GuestRip, CODE);
    }

    /// Code of the real-mode guest.
    pub fn code16(&mut self, f: impl FnOnce(&mut CodeAssembler)) {
        self.assemble(16, 0, CODE, f);
        self.set(Field::GuestRip, 0);
    }

    /// Code of the 32-bit guest.
    pub fn code32(&mut self, f: impl FnOnce(&mut CodeAssembler)) {
        self.assemble(32, CODE, CODE, f);
        self.set(Field::GuestRip, CODE);
    }

    /// An interrupt gate of the 64-bit guest, and its handler's code.
    pub fn handler(&mut self, vector: u64, f: impl FnOnce(&mut CodeAssembler)) {
        let at = HANDLERS + vector * 64;
        self.gate(vector, at, 0);
        self.assemble(64, at, at, f);
    }

    pub fn gate(&mut self, vector: u64, at: u64, ist: u64) {
        let low = at & 0xffff | 8 << 16 | ist << 32 | 0x8e << 40 | (at >> 16 & 0xffff) << 48;
        self.write(IDT + 16 * vector, low);
        self.write(IDT + 16 * vector + 8, at >> 32);
    }

    /// Where the handler of `vector` is.
    pub fn handler_at(vector: u64) -> u64 {
        HANDLERS + vector * 64
    }

    /// VMLAUNCH or VMRESUME.
    pub fn enter(&mut self) -> VmResult {
        if self.launched { self.cpu.vmresume() } else { self.cpu.vmlaunch() }
    }

    /// Enters the guest; the exit reason. Entry failures are shown with bit 31.
    pub fn run_raw(&mut self) -> u64 {
        if let Err(e) = self.enter() {
            panic!("{e}: {:?}", self.cpu.explain_entry());
        }
        self.note_launch();
        self.get(Field::ExitReason)
    }

    /// After an entry: whether the next one is a VMRESUME.
    pub fn note_launch(&mut self) {
        self.launched |= self.get(Field::ExitReason) >> 31 == 0;
    }

    /// Enters the guest; the basic exit reason.
    pub fn run(&mut self) -> BasicReason {
        let raw = self.run_raw();
        assert_eq!(raw >> 16, 0, "entry failed: {raw:#x}, {:?}", self.cpu.explain_entry());
        self.cpu.current_vmcs().unwrap().exit_reason().basic().unwrap()
    }

    /// Enters the guest, which ends with VMCALL.
    pub fn finish(&mut self) {
        let reason = self.run();
        assert_eq!(reason, BasicReason::Vmcall, "{}", self.describe());
    }

    pub fn describe(&self) -> String {
        format!(
            "rip {:#x}, qualification {:#x}, interruption {:#x}, vectoring {:#x}, gpa {:#x}",
            self.get(Field::GuestRip),
            self.get(Field::ExitQualification),
            self.get(Field::ExitInterruptionInfo),
            self.get(Field::IdtVectoringInfo),
            self.get(Field::GuestPhysicalAddress)
        )
    }

    /// Steps over the instruction that exited.
    pub fn skip(&mut self) {
        let len = self.get(Field::ExitInstructionLength);
        assert!((1..=15).contains(&len), "instruction length {len}");
        self.set(Field::GuestRip, self.get(Field::GuestRip) + len);
    }

    pub fn qualification(&self) -> u64 {
        self.get(Field::ExitQualification)
    }

    pub fn reg(&self, r: u8) -> u64 {
        self.cpu.regs[usize::from(r)]
    }

    pub fn rax(&self) -> u64 {
        self.reg(reg::RAX)
    }

    pub fn set_reg(&mut self, r: u8, value: u64) {
        self.cpu.regs[usize::from(r)] = value;
    }

    /// Has the next entry inject an event.
    pub fn inject(&mut self, info: InterruptionInfo, error: u32, len: u64) {
        self.set(Field::EntryInterruptionInfo, info.into_bits().into());
        self.set(Field::EntryExceptionErrorCode, error.into());
        self.set(Field::EntryInstructionLength, len);
    }

    pub fn interruption(&self) -> u32 {
        self.get(Field::ExitInterruptionInfo) as u32
    }

    pub fn vectoring(&self) -> u32 {
        self.get(Field::IdtVectoringInfo) as u32
    }
}
