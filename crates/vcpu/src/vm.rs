//! The virtual machine: what all its vCPUs share.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{CpuId, kvm_clock_data};
use trapline_device::{AccessSize, Clock, HostClock, Msi, MsiSink};
use trapline_memory::{Arena, DirtyTracker, Slot};
use vmm_sys_util::eventfd::EventFd;

use crate::{CpuModel, InstructionClock, Result, Vcpu};

/// What executes the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Engine {
    /// The kernel's hypervisor, on the processor's own virtualization.
    Kvm,
    /// `softcpu`: the processor and its VT-x in software.
    Soft,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        })
    }
}

/// How guest addresses become addresses of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Paging {
    /// By a second table walk of the processor, as the engine has it (EPT; KVM: what the host has).
    #[default]
    Ept,
    /// By shadow tables that the engine makes of the guest's own: how hypervisors did it on processors with
    /// VT-x and no EPT. The soft engine only.
    Shadow,
}

impl FromStr for Paging {
    type Err = UnknownPaging;

    fn from_str(s: &str) -> std::result::Result<Self, UnknownPaging> {
        match s {
            "ept" => Ok(Self::Ept),
            "shadow" => Ok(Self::Shadow),
            other => Err(UnknownPaging(other.to_owned())),
        }
    }
}

impl fmt::Display for Paging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ept => "ept",
            Self::Shadow => "shadow",
        })
    }
}

/// Not a name of a [`Paging`].
#[derive(Debug, thiserror::Error)]
#[error("no way of paging is called {0:?}: ept or shadow")]
pub struct UnknownPaging(String);

/// How many interrupt pins the board's IOAPIC has.
pub const IOAPIC_PINS: u32 = 24;

/// What a virtual machine is made with.
#[derive(Clone)]
pub struct VmConfig {
    /// Give each vCPU a local APIC. Without, there is one vCPU, HLT exits, and interrupts come by
    /// [`Entry::extint`](crate::Entry::extint) alone.
    pub local_apic: bool,
    /// Offer VMX to the guest in [`Vm::supported_cpuid`].
    pub nested: bool,
    /// Entries of a dirty ring per vCPU, a power of two, in place of the dirty bitmap. An engine
    /// without rings refuses it.
    pub dirty_ring: Option<u32>,
    /// The machine's clock: what [`Entry::deadline`](crate::Entry::deadline) and the soft engine's
    /// timers run on. Not looked at with [`VmConfig::icount`].
    pub clock: Arc<dyn Clock>,
    /// How guest addresses are translated.
    pub paging: Paging,
    /// Whether the soft engine leaves all of the guest's code to its interpreter. Otherwise it makes host code of
    /// what runs often, where the host allows that.
    pub interpret: bool,
    /// The processor that the soft engine shows to the guest; `None`: its default. KVM shows the host's
    /// processor, less the features that this model does not have.
    pub cpu: Option<CpuModel>,
    /// Wall-clock time since 1970 when the machine's clock was zero: what the paravirtual wall clock of the soft
    /// engine says. `None`: the host's real time.
    pub wall_clock: Option<Duration>,
    /// Deterministic mode of the soft engine: time is this clock, which the one vCPU drives by counting
    /// its instructions. KVM refuses it, and so is a second vCPU refused.
    pub icount: Option<Arc<InstructionClock>>,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            local_apic: true,
            nested: false,
            dirty_ring: None,
            clock: Arc::new(HostClock::new()),
            paging: Paging::default(),
            interpret: false,
            cpu: None,
            wall_clock: None,
            icount: None,
        }
    }
}

impl fmt::Debug for VmConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmConfig")
            .field("local_apic", &self.local_apic)
            .field("nested", &self.nested)
            .field("dirty_ring", &self.dirty_ring)
            .field("paging", &self.paging)
            .field("interpret", &self.interpret)
            .field("cpu", &self.cpu)
            .field("wall_clock", &self.wall_clock)
            .field("icount", &self.icount)
            .finish_non_exhaustive()
    }
}

/// Where an eventfd listens for guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoEvent {
    /// The address written to.
    pub address: IoEventAddress,
    /// Only writes of this width and value; `None`: any write to the address.
    pub matches: Option<(AccessSize, u64)>,
}

/// See [`IoEvent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoEventAddress {
    /// A port.
    Pio(u16),
    /// A guest-physical address.
    Mmio(u64),
}

/// The name of an eventfd-driven interrupt: see [`Vm::create_irqfd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IrqfdId(pub(crate) u32);

/// A virtual machine. All calls may come from any thread.
pub trait Vm: Send + Sync {
    /// Which engine runs it.
    fn engine(&self) -> Engine;

    /// Makes a vCPU in its power-on state (SDM vol. 3 table 10-1; vCPU 0 runnable, others waiting for
    /// INIT and SIPI), without CPUID leaves: see [`Vcpu::set_cpuid`]. `id` is its APIC ID: below 255.
    ///
    /// # Errors
    /// When the id is taken or too high, or the engine has no resources.
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>>;

    /// Replaces the memory layout by `slots` of `arena` (those of a
    /// [`GuestRam`](trapline_memory::GuestRam)). A slot that was there already stays in place, also if
    /// its `log_dirty` changed. vCPUs may run meanwhile: they are kept out of the guest until it is done.
    ///
    /// Where no slot is, and for writes to a read-only one, the guest exits.
    ///
    /// # Errors
    /// When slots are unaligned, overlap or reach out of the arena, or the engine refuses one; the
    /// layout is then undefined until the next successful call.
    fn set_memory(&self, arena: &Arc<Arena>, slots: &[Slot]) -> Result<()>;

    /// Records in `tracker` the pages that the guest wrote, since the last call, in slots that log; they
    /// are clean from here on.
    ///
    /// # Errors
    /// When the engine cannot say.
    fn collect_dirty(&self, tracker: &DirtyTracker) -> Result<()>;

    /// Delivers a message to the local APICs. One that no APIC accepts is dropped.
    ///
    /// # Errors
    /// When the machine has no local APICs.
    fn signal_msi(&self, msi: Msi) -> Result<()>;

    /// [`Vm::signal_msi`] as a handle for devices.
    fn msi_sink(&self) -> Arc<dyn MsiSink>;

    /// Tells the engine what an IOAPIC pin is programmed to send (`None`: masked), so that it knows
    /// which end-of-interrupts to report by [`Exit::IoapicEoi`](crate::Exit::IoapicEoi): those of
    /// level-triggered messages. The board delivers the interrupt itself, by [`Vm::signal_msi`].
    ///
    /// # Errors
    /// When there is no such pin or the machine has no local APICs.
    fn set_ioapic_route(&self, pin: u32, msi: Option<Msi>) -> Result<()>;

    /// From now on a guest write that `event` describes writes 1 to `fd` instead of exiting.
    ///
    /// # Errors
    /// When such an event is registered already.
    fn register_ioeventfd(&self, fd: &EventFd, event: IoEvent) -> Result<()>;

    /// Undoes [`Vm::register_ioeventfd`].
    ///
    /// # Errors
    /// When it was not registered.
    fn unregister_ioeventfd(&self, fd: &EventFd, event: IoEvent) -> Result<()>;

    /// From now on each write to `fd` delivers `msi`; the engine consumes the counter.
    ///
    /// # Errors
    /// When the engine has no more routes or the machine has no local APICs.
    fn create_irqfd(&self, fd: &EventFd, msi: Msi) -> Result<IrqfdId>;

    /// Changes what an irqfd delivers.
    ///
    /// # Errors
    /// When there is no such irqfd.
    fn set_irqfd_msi(&self, id: IrqfdId, msi: Msi) -> Result<()>;

    /// Undoes [`Vm::create_irqfd`]; the counter of the eventfd is left alone from here on.
    ///
    /// # Errors
    /// When there is no such irqfd.
    fn remove_irqfd(&self, id: IrqfdId) -> Result<()>;

    /// The CPUID leaves that guests of this engine can be given, before topology: pass them through
    /// [`cpuid::for_vcpu`](crate::cpuid::for_vcpu).
    ///
    /// # Errors
    /// When the engine cannot say.
    fn supported_cpuid(&self) -> Result<CpuId>;

    /// The model-specific registers that make up a vCPU's saved state.
    ///
    /// # Errors
    /// When the engine cannot say.
    fn saved_msrs(&self) -> Result<Vec<u32>>;

    /// The paravirtual clock, in nanoseconds since the machine was made.
    ///
    /// # Errors
    /// When the engine cannot say.
    fn clock(&self) -> Result<kvm_clock_data>;

    /// Sets the paravirtual clock; part of restoring a machine.
    ///
    /// # Errors
    /// When the engine refuses.
    fn set_clock(&self, clock: &kvm_clock_data) -> Result<()>;
}
