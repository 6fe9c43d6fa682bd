//! The virtual processor.

use std::fmt;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, kvm_debugregs, kvm_fpu, kvm_guest_debug, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

use crate::{Answer, Engine, Entry, Exit, ExitStats, Result};

/// A virtual processor. It belongs to the thread that runs it; other threads hold its [`Kicker`].
///
/// State goes in and out between runs as KVM's structures, whichever the engine. It is complete only
/// when no exit is pending: an exit that asks for an answer, or of which the instruction has not
/// retired, must be finished by [`Vcpu::complete`] (or the next [`Vcpu::run`]) first.
pub trait Vcpu: Send {
    /// The number it was made with: its APIC ID.
    fn id(&self) -> u32;
    /// Which engine runs it.
    fn engine(&self) -> Engine;

    /// Enters the guest until something has to be done about it. The answer in `entry` is consumed,
    /// whatever the exit.
    ///
    /// # Errors
    /// [`Error::Answer`](crate::Error::Answer), with nothing done, when the last exit expects another
    /// kind of answer; otherwise the host's failure.
    fn run(&mut self, entry: Entry) -> Result<Exit>;

    /// Finishes the instruction of the last exit without executing another one. `Some` when the same
    /// instruction goes on with a further exit (an access in several parts): answer that too.
    ///
    /// # Errors
    /// As for [`Vcpu::run`].
    fn complete(&mut self, answer: Answer) -> Result<Option<Exit>>;

    /// The data of a pending [`Exit::PioReadBlock`] or [`Exit::PioWriteBlock`]: count × size bytes, the
    /// first element first. Empty at other times.
    fn io_data(&mut self) -> &mut [u8];

    /// Whether [`Entry::extint`] would be taken now: RFLAGS.IF, no shadow, nothing injected yet, and
    /// with a local APIC, LINT0 open for ExtINT. Valid after a run.
    fn ready_for_extint(&self) -> bool;

    /// A handle that makes [`Vcpu::run`] return from any thread.
    fn kicker(&self) -> Kicker;

    /// Exits so far.
    fn stats(&self) -> &ExitStats;

    /// Counts beyond [`Vcpu::stats`] that this engine keeps, for the user to read: the soft engine's VM exits
    /// by basic reason, those it handled itself too.
    fn detail(&self) -> Vec<(String, u64)>;

    /// Makes a non-maskable interrupt pending.
    ///
    /// # Errors
    /// When the engine refuses.
    fn inject_nmi(&mut self) -> Result<()>;

    /// Switches single-stepping, INT3 interception and hardware breakpoints for the host on or off
    /// (`KVM_GUESTDBG_*`); the events come as [`Exit::Debug`].
    ///
    /// # Errors
    /// When the engine refuses.
    fn set_guest_debug(&mut self, debug: &kvm_guest_debug) -> Result<()>;

    /// The guest-physical address behind a linear address, under the current paging mode, or `None` if
    /// it is not mapped. Permissions are not looked at, accessed bits may be set.
    ///
    /// # Errors
    /// When the engine cannot say.
    fn translate(&self, linear: u64) -> Result<Option<u64>>;

    /// The general registers, RIP and RFLAGS.
    ///
    /// # Errors
    /// As for all state calls: when the engine refuses.
    fn regs(&self) -> Result<kvm_regs>;
    /// Sets [`Vcpu::regs`].
    ///
    /// # Errors
    /// When the engine refuses.
    fn set_regs(&mut self, regs: &kvm_regs) -> Result<()>;
    /// Segments, descriptor tables, control registers, EFER, APIC base.
    ///
    /// # Errors
    /// When the engine refuses.
    fn sregs(&self) -> Result<kvm_sregs>;
    /// Sets [`Vcpu::sregs`].
    ///
    /// # Errors
    /// When the engine refuses, such as for values that no processor can be in.
    fn set_sregs(&mut self, sregs: &kvm_sregs) -> Result<()>;
    /// x87 and SSE registers: a part of [`Vcpu::xsave`] in another shape.
    ///
    /// # Errors
    /// When the engine refuses.
    fn fpu(&self) -> Result<kvm_fpu>;
    /// Sets [`Vcpu::fpu`].
    ///
    /// # Errors
    /// When the engine refuses.
    fn set_fpu(&mut self, fpu: &kvm_fpu) -> Result<()>;
    /// The XSAVE area, standard format, 4 KiB.
    ///
    /// # Errors
    /// When the engine refuses.
    fn xsave(&self) -> Result<kvm_xsave>;
    /// Sets [`Vcpu::xsave`].
    ///
    /// # Errors
    /// When the engine refuses.
    fn set_xsave(&mut self, xsave: &kvm_xsave) -> Result<()>;
    /// XCR0.
    ///
    /// # Errors
    /// When the engine refuses.
    fn xcrs(&self) -> Result<kvm_xcrs>;
    /// Sets [`Vcpu::xcrs`].
    ///
    /// # Errors
    /// When the engine refuses.
    fn set_xcrs(&mut self, xcrs: &kvm_xcrs) -> Result<()>;
    /// DR0–DR3, DR6, DR7.
    ///
    /// # Errors
    /// When the engine refuses.
    fn debugregs(&self) -> Result<kvm_debugregs>;
    /// Sets [`Vcpu::debugregs`].
    ///
    /// # Errors
    /// When the engine refuses.
    fn set_debugregs(&mut self, debugregs: &kvm_debugregs) -> Result<()>;
    /// Model-specific registers; those that the vCPU does not have are left out of the result.
    ///
    /// # Errors
    /// When the engine refuses.
    fn msrs(&self, indices: &[u32]) -> Result<Vec<kvm_msr_entry>>;
    /// Writes model-specific registers, in order.
    ///
    /// # Errors
    /// [`Error::Msr`](crate::Error::Msr) names the first one refused; those before it are written.
    fn set_msrs(&mut self, msrs: &[kvm_msr_entry]) -> Result<()>;
    /// Pending and injected events, the interrupt shadow.
    ///
    /// # Errors
    /// When the engine refuses.
    fn events(&self) -> Result<kvm_vcpu_events>;
    /// Sets [`Vcpu::events`].
    ///
    /// # Errors
    /// When the engine refuses.
    fn set_events(&mut self, events: &kvm_vcpu_events) -> Result<()>;
    /// The local APIC's register page.
    ///
    /// # Errors
    /// When the machine has no local APICs.
    fn lapic(&self) -> Result<kvm_lapic_state>;
    /// Sets [`Vcpu::lapic`].
    ///
    /// # Errors
    /// When the machine has no local APICs, or the state is not one an APIC can be in.
    fn set_lapic(&mut self, lapic: &kvm_lapic_state) -> Result<()>;
    /// Runnable, halted, waiting for SIPI (`KVM_MP_STATE_*`). A machine without local APICs has one
    /// vCPU that is always runnable.
    ///
    /// # Errors
    /// When the engine refuses.
    fn mp_state(&self) -> Result<kvm_mp_state>;
    /// Sets [`Vcpu::mp_state`].
    ///
    /// # Errors
    /// When the engine refuses.
    fn set_mp_state(&mut self, mp_state: kvm_mp_state) -> Result<()>;
    /// The CPUID leaves the guest sees.
    ///
    /// # Errors
    /// When the engine refuses.
    fn cpuid(&self) -> Result<CpuId>;
    /// Sets [`Vcpu::cpuid`]; before the first run.
    ///
    /// # Errors
    /// When the engine refuses.
    fn set_cpuid(&mut self, cpuid: &CpuId) -> Result<()>;
    /// Frequency of the guest's time-stamp counter, in kHz.
    ///
    /// # Errors
    /// When the engine refuses.
    fn tsc_khz(&self) -> Result<u32>;
    /// Sets [`Vcpu::tsc_khz`].
    ///
    /// # Errors
    /// When the engine cannot scale to it.
    fn set_tsc_khz(&mut self, khz: u32) -> Result<()>;
}

/// What an engine puts behind a [`Kicker`].
pub(crate) trait Kick: Send + Sync {
    /// See [`Kicker::kick`].
    fn kick(&self);
}

/// Makes [`Vcpu::run`] of one vCPU return [`Exit::Interrupted`] soon, from any thread.
#[derive(Clone)]
pub struct Kicker(Arc<dyn Kick>);

impl Kicker {
    pub(crate) fn new(target: Arc<dyn Kick>) -> Self {
        Self(target)
    }

    /// Kicks. If the vCPU is not running, its next run returns at once: no kick is lost. Kicks that
    /// were not noticed yet count as one. A vCPU that is gone is not an error.
    pub fn kick(&self) {
        self.0.kick();
    }
}

impl fmt::Debug for Kicker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kicker")
    }
}
