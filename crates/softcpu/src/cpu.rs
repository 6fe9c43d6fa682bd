//! The processor's state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use trapline_memory::arena::Arena;

use crate::code::CodeCache;
use crate::cpuid::Model;
use crate::flags::{Flags, bits};
use crate::fpu::{Mxcsr, X87};
use crate::mmu::Mmu;
use crate::msr::Msrs;
use crate::ops::system::misc::Entropy;
use crate::shared::{Inbox, Shared};
use crate::sse::Xmm;
use crate::vmx::Vmx;

/// Register slot that always holds zero: an absent base or index.
pub const RZERO: u8 = 16;
/// Register slot that holds RIP of the running block's first instruction.
pub const RBLOCK: u8 = 17;
/// Numbers of the general registers that instructions name implicitly.
#[allow(missing_docs)]
pub mod reg {
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RBX: u8 = 3;
    pub const RSP: u8 = 4;
    pub const RBP: u8 = 5;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
    pub const R11: u8 = 11;
}

/// Segment register numbers, as indices of [`Cpu::seg`].
#[allow(missing_docs)]
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
    pub const LDTR: usize = 6;
    pub const TR: usize = 7;
}

/// A segment register: selector and the cached descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// Linear address of offset 0.
    pub base: u64,
    /// Last valid offset, after granularity.
    pub limit: u32,
    /// Access rights in the VMCS format (SDM vol. 3 §25.4.1): type 3–0, S 4, DPL 6–5, P 7, AVL 12, L 13,
    /// D/B 14, G 15, unusable 16.
    pub attr: u32,
}

/// Bits of [`Segment::attr`].
#[allow(missing_docs)]
pub mod attr {
    pub const ACCESSED: u32 = 1;
    pub const WRITABLE: u32 = 2;
    pub const READABLE: u32 = 2;
    pub const EXPAND_DOWN: u32 = 4;
    pub const CONFORMING: u32 = 4;
    pub const CODE: u32 = 8;
    pub const S: u32 = 1 << 4;
    pub const P: u32 = 1 << 7;
    pub const L: u32 = 1 << 13;
    pub const DB: u32 = 1 << 14;
    pub const G: u32 = 1 << 15;
    pub const UNUSABLE: u32 = 1 << 16;
}

impl Segment {
    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        (self.attr >> 5 & 3) as u8
    }

    /// A segment as real mode has it.
    pub fn real(selector: u16) -> Self {
        Self { selector, base: u64::from(selector) << 4, limit: 0xffff, attr: 0x93 }
    }

    /// Whether the descriptor cache holds nothing usable (null selector loaded).
    pub fn unusable(&self) -> bool {
        self.attr & attr::UNUSABLE != 0
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Linear base.
    pub base: u64,
    /// Last valid offset.
    pub limit: u16,
}

/// CR0 bits.
#[allow(missing_docs)]
pub mod cr0 {
    pub const PE: u64 = 1;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits.
#[allow(missing_docs)]
pub mod cr4 {
    pub const VME: u64 = 1;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const VMXE: u64 = 1 << 13;
    pub const SMXE: u64 = 1 << 14;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
    pub const PKS: u64 = 1 << 24;
}

/// IA32_EFER bits.
#[allow(missing_docs)]
pub mod efer {
    pub const SCE: u64 = 1;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// Exception vectors.
#[allow(missing_docs)]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
    pub const VE: u8 = 20;
}

/// How an event came about: the interruption types of the VMCS (SDM vol. 3 §25.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum EventKind {
    External = 0,
    Nmi = 2,
    HardwareException = 3,
    SoftwareInterrupt = 4,
    PrivilegedSoftwareException = 5,
    SoftwareException = 6,
}

/// An exception or interrupt on its way to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Vector.
    pub vector: u8,
    /// Kind.
    pub kind: EventKind,
    /// Error code to push.
    pub error: Option<u32>,
    /// Length of the INT n, INT3, INTO or INT1 instruction, 0 otherwise.
    pub len: u8,
    /// CR2 of a page fault; pending DR6 bits of a debug exception.
    pub payload: u64,
}

impl Event {
    /// A fault: the instruction is restarted, with RFLAGS.RF set so that it hits no breakpoint again.
    pub(crate) fn is_fault(&self) -> bool {
        self.kind == EventKind::HardwareException && self.vector != vector::DB
    }
}

/// A VM exit on its way: what the exit-information fields will say (SDM vol. 3 §28.2).
#[derive(Clone, Copy, Debug, Default)]
pub struct ExitInfo {
    /// Basic exit reason.
    pub reason: u16,
    /// Exit qualification.
    pub qualification: u64,
    /// VM-exit instruction information.
    pub instruction_info: u32,
    /// Guest linear address.
    pub linear: u64,
    /// Guest-physical address.
    pub physical: u64,
    /// VM-exit interruption information; valid if bit 31 is set.
    pub interruption: u32,
    /// VM-exit interruption error code.
    pub error: u32,
    /// True for exits caused by an instruction: its length is reported.
    pub by_instruction: bool,
}

/// Why an instruction did not complete.
#[derive(Clone, Copy, Debug)]
pub enum Pending {
    /// Nothing.
    None,
    /// An exception or software interrupt to deliver.
    Event(Event),
    /// A VM exit.
    Exit(ExitInfo),
}

/// Says that an instruction did not complete; the details are in [`Cpu::pending`]. Handlers hand it on
/// with `?`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop;

/// Activity state (VMCS encoding).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Activity {
    #[default]
    Active = 0,
    Hlt = 1,
    Shutdown = 2,
    WaitForSipi = 3,
}

/// Interruptibility: blocking by STI, by MOV SS, by NMI (VMCS encoding).
#[allow(missing_docs)]
pub mod shadow {
    pub const STI: u32 = 1;
    pub const MOV_SS: u32 = 2;
    pub const NMI: u32 = 8;
}

/// Asynchronous events: one word that any thread may set bits of and the processor looks at on block
/// edges.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Signals(AtomicU32);

impl Signals {
    /// An external interrupt line is up: a VM exit if external-interrupt exiting is on. Stays up until
    /// [`Signals::clear`].
    pub const INTERRUPT: u32 = 1;
    /// An NMI.
    pub const NMI: u32 = 2;
    /// Another processor or a device changed code or page tables that this one may have cached.
    pub const CODE: u32 = 4;
    /// An INIT signal: a VM exit in non-root operation, unless the processor waits for a SIPI.
    pub const INIT: u32 = 8;
    /// A startup IPI, see [`Signals::raise_sipi`].
    pub const SIPI: u32 = 16;
    const INTERRUPT_VECTOR: u32 = 16;
    const SIPI_VECTOR: u32 = 24;

    /// Raises [`Signals::INTERRUPT`], and says which vector the interrupt controller gives when it is
    /// acknowledged. Only needed where the processor itself acknowledges: with "acknowledge interrupt on
    /// exit", and without external-interrupt exiting.
    pub fn raise_interrupt(&self, vector: u8) {
        self.replace(Self::INTERRUPT, Self::INTERRUPT_VECTOR, vector);
    }

    /// Raises [`Signals::SIPI`] with its vector.
    pub fn raise_sipi(&self, vector: u8) {
        self.replace(Self::SIPI, Self::SIPI_VECTOR, vector);
    }

    fn replace(&self, bit: u32, shift: u32, vector: u8) {
        let new = |old: u32| Some(old & !(0xff << shift) | bit | u32::from(vector) << shift);
        // The closure always gives a value.
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, new);
    }

    /// Acknowledges the external interrupt: it goes down.
    pub(crate) fn take_interrupt(&self) -> u8 {
        let old = self.0.fetch_and(!(Self::INTERRUPT | 0xff << Self::INTERRUPT_VECTOR), Ordering::SeqCst);
        (old >> Self::INTERRUPT_VECTOR) as u8
    }

    /// Takes the startup IPI, if there is one.
    pub(crate) fn take_sipi(&self) -> Option<u8> {
        let old = self.0.fetch_and(!(Self::SIPI | 0xff << Self::SIPI_VECTOR), Ordering::SeqCst);
        (old & Self::SIPI != 0).then_some((old >> Self::SIPI_VECTOR) as u8)
    }

    /// Raises `bits`.
    pub fn raise(&self, bits: u32) {
        self.0.fetch_or(bits, Ordering::SeqCst);
    }

    /// Takes `bits` down; says which were up.
    pub fn clear(&self, bits: u32) -> u32 {
        // A vector without its signal must not keep the word from being zero.
        let mut also = bits;
        if bits & Self::INTERRUPT != 0 {
            also |= 0xff << Self::INTERRUPT_VECTOR;
        }
        if bits & Self::SIPI != 0 {
            also |= 0xff << Self::SIPI_VECTOR;
        }
        self.0.fetch_and(!also, Ordering::SeqCst) & bits
    }

    /// What is up now.
    #[inline(always)]
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One logical processor.
// What every block touches comes first and together. In the compiler's own order it lies all over the structure, and
// programs take up to a third longer.
#[repr(C, align(64))]
pub struct Cpu {
    /// General registers 0–15, then [`RZERO`] and [`RBLOCK`]; the rest is padding so that an operand
    /// byte can be masked rather than checked.
    pub regs: [u64; 32],
    /// Arithmetic flags.
    pub flags: Flags,
    /// RFLAGS without the arithmetic flags; bit 1 is set.
    pub rflags: u64,
    /// RIP, valid between blocks. Inside one, see [`Cpu::ip`].
    pub rip: u64,
    /// Keeps RIP to the code segment's width: all-ones in 64-bit mode.
    pub ip_mask: u64,
    /// Instructions executed.
    pub icount: u64,
    /// The count of instructions at which the chain returns to the dispatcher.
    pub chain_end: u64,
    /// Current privilege level.
    pub cpl: u8,
    /// Whether the code segment is 64-bit.
    pub long64: bool,
    /// VMX non-root operation: sensitive operations are checked against [`Cpu::vmx`].
    pub nonroot: bool,
    /// Blocking by STI, MOV SS and NMI ([`shadow`]).
    pub shadow: u32,
    /// Length of the last instruction that stopped.
    pub(crate) last_len: u8,
    /// [`Cpu::pending_debug`] when the instruction under way began.
    pub(crate) debug_before: u64,
    /// The instruction under way is an IRET that has ended blocking by NMI.
    pub(crate) nmi_unblocked: bool,
    /// The shadow was set by the very last instruction.
    pub(crate) shadow_is_new: bool,
    /// RFLAGS.TF was set when the instruction under way began.
    pub(crate) step_pending: bool,
    /// Segment bases as effective addresses add them: 0 in 64-bit mode but for FS and GS.
    pub ea_base: [u64; 8],
    /// Asynchronous events.
    pub signals: Arc<Signals>,
    /// What the processors of the machine share.
    pub shared: Arc<Shared>,
    pub(crate) inbox: Arc<Inbox>,
    /// Linear-address translation and access.
    pub mmu: Mmu,
    /// What stopped the last instruction.
    pub pending: Pending,
    /// Segment registers, LDTR and TR.
    pub seg: [Segment; 8],
    /// GDTR.
    pub gdtr: Table,
    /// IDTR.
    pub idtr: Table,
    /// Control register 0.
    pub cr0: u64,
    /// Page-fault linear address.
    pub cr2: u64,
    /// Page-table base and PCID.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Task priority, when no TPR shadow or APIC is in the way.
    pub cr8: u64,
    /// Extended control register 0.
    pub xcr0: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// Protection-key rights for user pages.
    pub pkru: u32,
    /// Debug registers 0–3, 6, 7 (4 and 5 unused).
    pub dr: [u64; 8],
    /// Debug conditions seen but not delivered yet (VMCS pending debug exceptions).
    pub pending_debug: u64,
    /// The event being delivered, for IDT-vectoring information and double faults.
    pub delivering: Option<Event>,
    /// The next task switch in non-root operation happens instead of exiting: so that who handles the exit
    /// need not emulate it, but enters again.
    pub task_switch_granted: bool,
    /// Active, halted, …
    pub activity: Activity,
    /// x87 unit.
    pub x87: X87,
    /// SSE registers.
    pub xmm: [Xmm; 32],
    /// SSE control and status.
    pub mxcsr: Mxcsr,
    /// Model-specific registers that are only storage.
    pub msr: Msrs,
    /// What CPUID says and which features work.
    pub model: Arc<Model>,
    /// Decoded code.
    pub code: CodeCache,
    /// VMX operation.
    pub vmx: Box<Vmx>,
    /// Host-physical memory.
    pub arena: Arc<Arena>,
    /// Where the time-stamp counter comes from.
    pub time: Time,
    /// Where RDRAND takes its numbers from.
    pub(crate) entropy: Entropy,
}

/// The time-stamp counter's source. It ticks at 1 GHz: one tick is a nanosecond.
#[derive(Clone, Debug)]
pub struct Time {
    start: std::time::Instant,
    /// Deterministic mode: nanoseconds come from the instruction count, this many instructions each
    /// 2^`shift` nanoseconds.
    pub icount_shift: Option<u8>,
    /// Added to the raw counter (IA32_TIME_STAMP_COUNTER writes).
    pub offset: u64,
}

impl Time {
    /// A counter that starts at zero now.
    pub fn new() -> Self {
        Self { start: std::time::Instant::now(), icount_shift: None, offset: 0 }
    }

    /// A counter that reads the time since `start`.
    pub fn since(start: std::time::Instant) -> Self {
        Self { start, icount_shift: None, offset: 0 }
    }
}

impl Default for Time {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// A processor after power-up (SDM vol. 3 §10.1.1), outside VMX operation.
    pub fn new(arena: Arc<Arena>, model: Arc<Model>) -> Self {
        let shared = Shared::new(arena.len());
        Self::in_machine(arena, model, shared)
    }

    /// One of several processors that share `arena` and, made for it, `shared`.
    pub fn in_machine(arena: Arc<Arena>, model: Arc<Model>, shared: Arc<Shared>) -> Self {
        Self::with_signals(arena, model, shared, Arc::default())
    }

    /// [`Cpu::in_machine`] with [`Cpu::signals`] that somebody has already.
    pub fn with_signals(
        arena: Arc<Arena>,
        model: Arc<Model>,
        shared: Arc<Shared>,
        signals: Arc<Signals>,
    ) -> Self {
        let inbox = shared.join(signals.clone());
        let mut cpu = Self {
            regs: [0; 32],
            flags: Flags::default(),
            rflags: bits::FIXED,
            rip: 0,
            ip_mask: 0xffff,
            icount: 0,
            chain_end: 0,
            cpl: 0,
            long64: false,
            nonroot: false,
            shadow: 0,
            last_len: 0,
            debug_before: 0,
            nmi_unblocked: false,
            shadow_is_new: false,
            step_pending: false,
            ea_base: [0; 8],
            signals,
            shared,
            inbox,
            mmu: Mmu::new(&arena),
            pending: Pending::None,
            seg: [Segment::default(); 8],
            gdtr: Table::default(),
            idtr: Table::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            xcr0: 1,
            efer: 0,
            pkru: 0,
            dr: [0; 8],
            pending_debug: 0,
            delivering: None,
            task_switch_granted: false,
            activity: Activity::Active,
            x87: X87::default(),
            xmm: [Xmm::default(); 32],
            mxcsr: Mxcsr::default(),
            msr: Msrs::default(),
            model,
            code: CodeCache::new(&arena),
            vmx: Box::default(),
            arena,
            time: Time::new(),
            entropy: Entropy::default(),
        };
        cpu.translate_after(Some(crate::native::THRESHOLD));
        cpu.reset();
        cpu
    }

    /// Puts the architectural registers into their state after RESET#. Memory, time and VMX operation
    /// are left alone.
    pub fn reset(&mut self) {
        self.regs = [0; 32];
        self.regs[usize::from(reg::RDX)] = u64::from(self.model.signature());
        self.set_rflags(bits::FIXED);
        self.rip = 0xfff0;
        self.seg = [Segment::real(0); 8];
        self.seg[seg::CS] = Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, attr: 0x9b };
        self.seg[seg::LDTR].attr = 0x82;
        self.seg[seg::TR].attr = 0x8b;
        self.gdtr = Table { base: 0, limit: 0xffff };
        self.idtr = Table { base: 0, limit: 0xffff };
        (self.cr2, self.cr3, self.cr4, self.cr8, self.efer, self.pkru) = (0, 0, 0, 0, 0, 0);
        self.cr0 = cr0::CD | cr0::NW | cr0::ET;
        self.xcr0 = 1;
        self.dr = [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400];
        (self.shadow, self.pending_debug, self.delivering) = (0, 0, None);
        self.activity = Activity::Active;
        self.x87 = X87::default();
        self.xmm = [Xmm::default(); 32];
        self.mxcsr = Mxcsr::default();
        self.msr = Msrs::default();
        self.mode_changed();
        self.mmu.flush_all();
    }

    /// RFLAGS, whole.
    #[inline]
    pub fn get_rflags(&self) -> u64 {
        self.rflags | self.flags.get()
    }

    /// Sets RFLAGS, whole, without any check of privilege.
    #[inline]
    pub fn set_rflags(&mut self, v: u64) {
        self.flags.set(v);
        let old = self.rflags;
        self.rflags = v & bits::SYSTEM | bits::FIXED;
        if (old ^ self.rflags) & (bits::VM | bits::AC) != 0 {
            self.mode_changed();
        }
    }

    /// Works out what depends on mode, privilege and segments. To be called after a change of CR0, CR4,
    /// EFER, RFLAGS.VM or AC, CPL, or any segment register.
    pub fn mode_changed(&mut self) {
        let lma = self.efer & efer::LMA != 0;
        self.long64 = lma && self.seg[seg::CS].attr & attr::L != 0;
        self.ip_mask = if self.long64 {
            u64::MAX
        } else if self.seg[seg::CS].attr & attr::DB != 0 {
            0xffff_ffff
        } else {
            0xffff
        };
        for s in 0..8 {
            let flat = self.long64 && s < seg::FS;
            self.ea_base[s] = if flat { 0 } else { self.seg[s].base };
        }
        self.mmu_context_changed();
    }

    /// Protected mode, but not virtual-8086 mode.
    #[inline(always)]
    pub fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0 && self.rflags & bits::VM == 0
    }

    /// Virtual-8086 mode.
    #[inline(always)]
    pub fn v86(&self) -> bool {
        self.rflags & bits::VM != 0
    }

    /// IA-32e mode.
    #[inline(always)]
    pub fn lma(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// I/O privilege level.
    #[inline(always)]
    pub fn iopl(&self) -> u8 {
        (self.rflags >> 12 & 3) as u8
    }

    /// Cuts an instruction pointer to the code segment's width. A 16-bit pointer that runs past the
    /// segment's end stays visible to the limit check.
    #[inline(always)]
    pub fn wrap_ip(&self, ip: u64) -> u64 {
        if self.long64 { ip } else { ip & 0xffff_ffff }
    }

    /// The guest's time-stamp counter before VMX offsetting.
    pub fn raw_tsc(&self) -> u64 {
        let ns = match self.time.icount_shift {
            Some(shift) => self.icount << shift,
            None => self.time.start.elapsed().as_nanos() as u64,
        };
        ns.wrapping_add(self.time.offset)
    }

    /// Makes an exception pending: `return Err(cpu.raise(vector::UD, None))`.
    #[cold]
    #[inline(never)]
    pub fn raise(&mut self, vector: u8, error: Option<u32>) -> Stop {
        self.pending =
            Pending::Event(Event { vector, kind: EventKind::HardwareException, error, len: 0, payload: 0 });
        Stop
    }

    /// #UD.
    pub fn ud(&mut self) -> Stop {
        self.raise(vector::UD, None)
    }

    /// #GP with an error code.
    pub fn gp(&mut self, error: u32) -> Stop {
        self.raise(vector::GP, Some(error))
    }

    /// Makes a VM exit pending.
    #[cold]
    #[inline(never)]
    pub fn vm_exit(&mut self, info: ExitInfo) -> Stop {
        self.pending = Pending::Exit(info);
        Stop
    }
}
