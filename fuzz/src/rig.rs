//! A small machine for the processor: memory with descriptor and page tables, and software in any mode on it,
//! bare or as a VMX guest behind EPT.

use std::sync::Arc;

use arbitrary::Arbitrary;
use trapline_memory::arena::{Arena, ArenaOptions};
use trapline_softcpu::Cpu;
use trapline_softcpu::cpu::{Segment, Table, reg, seg};
use trapline_softcpu::cpuid::Model;
use trapline_vmx::Field as F;
use trapline_vmx::controls::{EntryControls, ExitControls, PinControls, PrimaryControls, SecondaryControls};

const ARENA: u64 = 4 << 20;
/// Where a guest's memory begins in the arena; it is 1 MiB.
pub const GUEST: u64 = 2 << 20;
const VMXON: u64 = 0x1000;
const VMCS: u64 = 0x2000;
const MSR_BITMAP: u64 = 0x3000;
const IO_BITMAP_A: u64 = 0x4000;
const IO_BITMAP_B: u64 = 0x5000;
const VIRTUAL_APIC: u64 = 0x6000;
const PML: u64 = 0x7000;
const VE_AREA: u64 = 0x8000;
const APIC_ACCESS: u64 = 0xb000;
const EPT: u64 = 0x1_0000;

// Physical places of the software, the same in linear addresses.
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const STACK: u64 = 0x9000;
const PML4: u64 = 0x1_0000;
const PAGE_DIRECTORY: u64 = 0x1_4000;
/// Where the software begins.
pub const CODE: u64 = 0x2_0000;
/// Where its data are.
pub const DATA: u64 = 0x3_0000;
/// Not in EPT.
pub const DEVICE: u64 = 0x8_0000;
/// Not in the page tables.
pub const HOLE: u64 = 0x9_0000;

/// A mode to begin in.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Mode {
    Real,
    Protected,
    /// Protected mode with 32-bit paging.
    Paged,
    Virtual8086,
    Long,
    /// 64-bit mode at privilege level 3.
    LongUser,
    Compatibility,
}

impl Mode {
    fn long(self) -> bool {
        matches!(self, Mode::Long | Mode::LongUser | Mode::Compatibility)
    }

    fn cpl(self) -> u8 {
        if matches!(self, Mode::LongUser | Mode::Virtual8086) { 3 } else { 0 }
    }

    /// Code and data segments: selector, base, limit, rights.
    fn segments(self) -> [Segment; 2] {
        let flat = |selector, attr| Segment { selector, base: 0, limit: u32::MAX, attr };
        let real = |address: u64, attr| Segment { attr, ..Segment::real((address >> 4) as u16) };
        match self {
            Mode::Real => [real(CODE, 0x9b), real(DATA, 0x93)],
            Mode::Virtual8086 => [real(CODE, 0xf3), real(DATA, 0xf3)],
            Mode::Protected | Mode::Paged | Mode::Compatibility => [flat(0x28, 0xc09b), flat(0x10, 0xc093)],
            Mode::Long => [flat(8, 0xa09b), flat(0x10, 0xc093)],
            Mode::LongUser => [flat(0x33, 0xa0fb), flat(0x3b, 0xc0f3)],
        }
    }

    fn control_registers(self) -> [u64; 4] {
        // CR0, CR3, CR4, EFER.
        match self {
            Mode::Real => [0x30, 0, 0x600, 0],
            Mode::Protected => [0x31, 0, 0x600, 0],
            Mode::Paged | Mode::Virtual8086 => [0x8001_0031, PAGE_DIRECTORY, 0x610, 0],
            _ => [0x8001_0031, PML4, 0x4_06a0, 0xd01],
        }
    }

    fn rip(self) -> u64 {
        if matches!(self, Mode::Real | Mode::Virtual8086) { 0 } else { CODE }
    }

    fn rflags(self) -> u64 {
        if self == Mode::Virtual8086 { 0x2_3002 } else { 2 }
    }
}

/// The processor and its memory.
pub struct Rig {
    /// The processor.
    pub cpu: Cpu,
    /// Its memory.
    pub arena: Arc<Arena>,
    mode: Mode,
    /// Where the software's physical address 0 is.
    base: u64,
}

impl Rig {
    /// A processor in `mode`, outside VMX operation; time goes by instructions.
    pub fn bare(model: &Arc<Model>, mode: Mode) -> Self {
        let arena = Arc::new(Arena::new(ARENA, &ArenaOptions::default()).expect("4 MiB"));
        let mut cpu = Cpu::new(arena.clone(), model.clone());
        cpu.time.icount_shift = Some(0);
        let mut rig = Self { cpu, arena, mode, base: 0 };
        rig.tables();
        let cpu = &mut rig.cpu;
        [cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer] = mode.control_registers();
        let [code, data] = mode.segments();
        cpu.seg[..6].fill(data);
        cpu.seg[seg::CS] = code;
        cpu.seg[seg::TR] = Segment { selector: 0x18, base: TSS, limit: 0xfff, attr: 0x8b };
        cpu.gdtr = Table { base: GDT, limit: 0x7f };
        cpu.idtr = Table { base: IDT, limit: 0xfff };
        cpu.cpl = mode.cpl();
        cpu.rip = mode.rip();
        cpu.set_rflags(mode.rflags());
        cpu.mmu.flush_all();
        cpu.mode_changed();
        rig.cpu.regs[usize::from(reg::RSP)] = STACK;
        rig
    }

    /// A processor in VMX root operation with a VMCS for a guest in `mode`.
    pub fn guest(model: &Arc<Model>, mode: Mode) -> Self {
        let arena = Arc::new(Arena::new(ARENA, &ArenaOptions::default()).expect("4 MiB"));
        let mut cpu = Cpu::new(arena.clone(), model.clone());
        cpu.time.icount_shift = Some(0);
        cpu.enter_root_mode(0);
        let revision = u64::from(cpu.vmx.caps.revision);
        let mut rig = Self { cpu, arena, mode, base: GUEST };
        rig.poke(VMXON, revision);
        rig.poke(VMCS, revision);
        rig.cpu.vmxon(VMXON).expect("the state is right for it");
        rig.cpu.vmclear(VMCS).expect("a region");
        rig.cpu.vmptrld(VMCS).expect("a region");
        rig.tables();
        rig.ept();
        rig.host_state();
        rig.guest_state();
        rig
    }

    fn poke(&self, hpa: u64, value: u64) {
        self.arena.write_u64(hpa, value).expect("inside the arena");
    }

    /// Writes bytes of the software's memory; what is beyond its end is left out.
    pub fn write(&mut self, pa: u64, bytes: &[u8]) {
        let room = (0x10_0000u64).saturating_sub(pa).min(bytes.len() as u64) as usize;
        self.arena.write_bytes(self.base + pa, &bytes[..room]).expect("inside the arena");
        self.cpu.memory_changed(self.base + pa, room as u64);
    }

    fn word(&mut self, pa: u64, value: u64) {
        self.write(pa, &value.to_le_bytes());
    }

    /// A gate for `vector`: an interrupt gate, or a real-mode vector, to this offset in the code.
    ///
    /// It leads through a NOP and a jump: where a handler's first instruction faults, and the next one's, no
    /// instruction would ever complete, and limits are counts of completed instructions.
    pub fn gate(&mut self, vector: u8, handler: u16) {
        let vector = u64::from(vector);
        let to = 0x1000 + vector as u16 * 8;
        let rel = i32::from(handler) - i32::from(to);
        if self.mode == Mode::Real {
            let [low, high, ..] = (rel - 4).to_le_bytes();
            self.write(CODE + u64::from(to), &[0x90, 0xe9, low, high]);
        } else {
            let [a, b, c, d] = (rel - 6).to_le_bytes();
            self.write(CODE + u64::from(to), &[0x90, 0xe9, a, b, c, d]);
        }
        let at = CODE + u64::from(to);
        if self.mode == Mode::Real {
            return self.write(4 * vector, &((CODE << 12) as u32 | u32::from(to)).to_le_bytes());
        }
        let selector = if self.mode.long() { 8 } else { 0x28 };
        let gate = at & 0xffff | selector << 16 | 0xee << 40 | (at >> 16) << 48;
        if self.mode.long() {
            self.word(IDT + 16 * vector, gate);
        } else {
            self.word(IDT + 8 * vector, gate);
        }
    }

    /// A descriptor that the software's own ones leave free.
    pub fn descriptor(&mut self, n: u8, bits: u64) {
        self.word(GDT + 0x48 + u64::from(n % 7) * 8, bits);
    }

    fn tables(&mut self) {
        for (n, bits) in [
            (1, 0x00af_9b00_0000_ffff),
            (2, 0x00cf_9300_0000_ffff),
            (3, 0x0000_8b00_3000_0fff),
            (5, 0x00cf_9b00_0000_ffff),
            (6, 0x00af_fb00_0000_ffff),
            (7, 0x00cf_f300_0000_ffff),
            (8, 0x0000_9b02_0000_ffff),
        ] {
            self.word(GDT + 8 * n, bits);
        }
        // RSP0 and IST 1, or ESP0 and SS0.
        let stack = if self.mode.long() { [0, STACK, 0x7000] } else { [0, STACK | 0x10 << 32, 0] };
        let [_, first, ist] = stack;
        self.write(TSS + 4, &first.to_le_bytes());
        self.write(TSS + 36, &ist.to_le_bytes());
        self.word(PML4, (PML4 + 0x1000) | 7);
        self.word(PML4 + 0x1000, (PML4 + 0x2000) | 7);
        self.word(PML4 + 0x2000, (PML4 + 0x3000) | 7);
        for page in 0..256u64 {
            let pa = page << 12;
            self.word(PML4 + 0x3000 + 8 * page, if pa == HOLE { 0 } else { pa | 7 });
        }
        // 4 MiB at 0.
        self.word(PAGE_DIRECTORY, 0x87);
    }

    fn ept(&self) {
        for level in 0..3 {
            self.poke(EPT + 0x1000 * level, (EPT + 0x1000 * (level + 1)) | 0x407);
        }
        for page in 0..256 {
            let gpa = page << 12;
            self.poke(EPT + 0x3000 + 8 * page, if gpa == DEVICE { 0 } else { (GUEST + gpa) | 0x437 });
        }
    }

    /// Sets a field of the VMCS.
    pub fn set(&mut self, field: F, value: impl Into<u64>) {
        self.cpu.vmcs_write(field, value.into());
    }

    /// A field of the VMCS.
    pub fn get(&self, field: F) -> u64 {
        self.cpu.vmcs_read(field)
    }

    fn host_state(&mut self) {
        for (field, value) in [
            (F::VmcsLinkPointer, u64::MAX),
            (F::Vpid, 1),
            (F::MsrBitmap, MSR_BITMAP),
            (F::IoBitmapA, IO_BITMAP_A),
            (F::IoBitmapB, IO_BITMAP_B),
            (F::VirtualApicAddress, VIRTUAL_APIC),
            (F::ApicAccessAddress, APIC_ACCESS),
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

    fn guest_state(&mut self) {
        let mode = self.mode;
        let [code, data] = mode.segments();
        for (segment, [selector, base, limit, rights]) in [
            (data, [F::GuestEsSelector, F::GuestEsBase, F::GuestEsLimit, F::GuestEsAccessRights]),
            (code, [F::GuestCsSelector, F::GuestCsBase, F::GuestCsLimit, F::GuestCsAccessRights]),
            (data, [F::GuestSsSelector, F::GuestSsBase, F::GuestSsLimit, F::GuestSsAccessRights]),
            (data, [F::GuestDsSelector, F::GuestDsBase, F::GuestDsLimit, F::GuestDsAccessRights]),
            (data, [F::GuestFsSelector, F::GuestFsBase, F::GuestFsLimit, F::GuestFsAccessRights]),
            (data, [F::GuestGsSelector, F::GuestGsBase, F::GuestGsLimit, F::GuestGsAccessRights]),
        ] {
            self.set(selector, segment.selector);
            self.set(base, segment.base);
            self.set(limit, segment.limit);
            self.set(rights, segment.attr);
        }
        let [cr0, cr3, cr4, efer] = mode.control_registers();
        for (field, value) in [
            (F::GuestCr0, cr0),
            (F::GuestCr3, cr3),
            (F::GuestCr4, cr4 | 0x2000),
            (F::GuestEfer, efer),
            (F::GuestTrSelector, 0x18),
            (F::GuestTrBase, TSS),
            (F::GuestTrLimit, 0xfff),
            (F::GuestTrAccessRights, 0x8b),
            (F::GuestLdtrAccessRights, 1 << 16),
            (F::GuestGdtrBase, GDT),
            (F::GuestGdtrLimit, 0x7f),
            (F::GuestIdtrBase, if mode == Mode::Real { 0 } else { IDT }),
            (F::GuestIdtrLimit, 0xfff),
            (F::GuestRip, mode.rip()),
            (F::GuestRsp, STACK),
            (F::GuestRflags, mode.rflags()),
            (F::GuestDr7, 0x400),
        ] {
            self.set(field, value);
        }
    }

    /// Controls that go together, from bits that need not. HLT and MWAIT exit: time goes by instructions.
    pub fn controls(&mut self, bits: [u32; 4]) {
        use PrimaryControls as P;
        use SecondaryControls as S;
        let caps = self.cpu.vmx.caps.clone();
        let mut pin = PinControls::EXTERNAL_INTERRUPT_EXITING | PinControls::PREEMPTION_TIMER;
        let virtual_nmis = bits[2] & 1 != 0;
        pin.set(PinControls::NMI_EXITING, virtual_nmis || bits[2] & 2 != 0);
        pin.set(PinControls::VIRTUAL_NMIS, virtual_nmis);
        let mut primary =
            P::from_bits_retain(bits[0]) | P::SECONDARY_CONTROLS | P::HLT_EXITING | P::MWAIT_EXITING;
        primary.set(P::NMI_WINDOW_EXITING, virtual_nmis && bits[2] & 4 != 0);
        let mut secondary = S::from_bits_retain(bits[1]) | S::ENABLE_EPT | S::UNRESTRICTED_GUEST;
        if !primary.contains(P::TPR_SHADOW) || secondary.contains(S::VIRTUALIZE_APIC_ACCESSES) {
            secondary.remove(S::VIRTUALIZE_X2APIC);
        }
        let exit = ExitControls::HOST_ADDRESS_SPACE_SIZE
            | ExitControls::SAVE_DEBUG_CONTROLS
            | ExitControls::LOAD_EFER
            | ExitControls::SAVE_EFER;
        let mut entry = EntryControls::LOAD_EFER | EntryControls::LOAD_DEBUG_CONTROLS;
        entry.set(EntryControls::IA32E_MODE_GUEST, self.get(F::GuestEfer) & 0x400 != 0);
        self.set(F::PinControls, caps.pin.adjust(pin.bits()));
        self.set(F::PrimaryControls, caps.primary.adjust(primary.bits()));
        self.set(F::SecondaryControls, caps.secondary.adjust(secondary.bits()));
        self.set(F::ExitControls, caps.exit.adjust(exit.bits()));
        self.set(F::EntryControls, caps.entry.adjust(entry.bits()));
        self.set(F::EptPointer, EPT | 0x1e | u64::from(bits[2] & 0x40));
        self.set(F::PmlIndex, bits[2] >> 8 & 0x3ff);
        self.set(F::ExceptionBitmap, bits[3]);
        self.set(F::PleGap, 100u32);
        self.set(F::PleWindow, 1000u32);
        self.set(F::PreemptionTimer, 100u32);
    }
}
