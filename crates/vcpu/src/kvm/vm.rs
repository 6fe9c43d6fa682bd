//! A virtual machine of the kernel's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use kvm_bindings::*;
use kvm_ioctls::{Cap, Kvm, NoDatamatch, VmFd};
use trapline_device::{AccessSize, Msi, MsiSink};
use trapline_memory::{Arena, DirtyTracker, Slot};
use vmm_sys_util::eventfd::EventFd;

use super::irq::Routes;
use super::kick::KickState;
use super::memory::Slots;
use super::vcpu::KvmVcpu;
use crate::accel::kvm_emulates;
use crate::cpuid::{self, Offer};
use crate::gate::Gate;
use crate::slots::PAGE_SIZE;
use crate::soft::{Assistant, IoEvents};
use crate::{
    CpuModel, Engine, Error, IOAPIC_PINS, IoEvent, IoEventAddress, IrqfdId, Paging, Result, Vcpu, Vm,
    VmConfig,
};

/// Where processors without unrestricted guest mode get a page table and a TSS for real mode.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = 0xfeff_d000;

/// A virtual machine of the kernel's.
pub(crate) struct KvmVm(Arc<Inner>);

/// What the machine, its vCPUs and its message sinks share.
pub(super) struct Inner {
    pub(super) fd: VmFd,
    kvm: Kvm,
    config: VmConfig,
    slots: Mutex<Slots>,
    /// The kernel changes a slot by removing and adding it: no vCPU may be inside then.
    pub(super) gate: Gate<()>,
    kicks: Mutex<Vec<Arc<KickState>>>,
    routes: Mutex<Routes>,
    /// The ioeventfds that the kernel has: the assistant signals them too.
    io_events: Arc<RwLock<IoEvents>>,
}

impl KvmVm {
    pub(crate) fn new(config: &VmConfig) -> Result<Self> {
        let unsupported = |what| Err(Error::Unsupported { engine: Engine::Kvm, what });
        if config.icount.is_some() {
            return unsupported("time that counts instructions");
        }
        if config.paging == Paging::Shadow {
            return unsupported("shadow paging, which is the soft engine's");
        }
        let unavailable = |why: String| Error::Unavailable { engine: Engine::Kvm, why };
        let kvm = Kvm::new().map_err(|e| unavailable(format!("/dev/kvm: {}", std::io::Error::from(e))))?;
        if kvm.get_api_version() != KVM_API_VERSION as i32 {
            return Err(unavailable(format!("API version {}", kvm.get_api_version())));
        }
        for cap in [Cap::UserMemory, Cap::ReadonlyMem, Cap::ImmediateExit, Cap::SplitIrqchip, Cap::SignalMsi]
        {
            if !kvm.check_extension(cap) {
                return Err(unavailable(format!("the kernel lacks {cap:?}")));
            }
        }
        let fd = kvm.create_vm().map_err(Error::os("KVM_CREATE_VM"))?;
        if kvm.check_extension_raw(KVM_CAP_EXIT_ON_EMULATION_FAILURE.into()) > 0 {
            // Else programs of the guest get #UD for what the kernel's emulator does not know.
            let mut exit = kvm_enable_cap { cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE, ..Default::default() };
            exit.args[0] = 1;
            fd.enable_cap(&exit).map_err(Error::os("KVM_CAP_EXIT_ON_EMULATION_FAILURE"))?;
        }
        fd.set_identity_map_address(IDENTITY_MAP).map_err(Error::os("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TSS).map_err(Error::os("KVM_SET_TSS_ADDR"))?;
        if let Some(entries) = config.dirty_ring {
            enable_dirty_ring(&kvm, &fd, entries)?;
        }
        if config.local_apic {
            let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
            split.args[0] = IOAPIC_PINS.into();
            fd.enable_cap(&split).map_err(Error::os("KVM_CAP_SPLIT_IRQCHIP"))?;
        }
        Ok(Self(Arc::new(Inner {
            fd,
            kvm,
            config: config.clone(),
            slots: Mutex::new(Slots::new(config.dirty_ring.is_some())),
            gate: Gate::new(()),
            kicks: Mutex::default(),
            routes: Mutex::default(),
            io_events: Arc::default(),
        })))
    }
}

impl KvmVm {
    /// What the kernel supports, less what this crate does not.
    pub(crate) fn host_cpuid(&self) -> Result<Vec<kvm_cpuid_entry2>> {
        let Inner { kvm, config, .. } = &*self.0;
        let host = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let offer = Offer {
            nested: config.nested,
            local_apic: config.local_apic,
            x2apic: true,
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            hypervisor: true,
        };
        Ok(cpuid::filter(&host.map_err(Error::os("KVM_GET_SUPPORTED_CPUID"))?, offer))
    }
}

fn enable_dirty_ring(kvm: &Kvm, fd: &VmFd, entries: u32) -> Result<()> {
    let bytes = u64::from(entries) * size_of::<kvm_dirty_gfn>() as u64;
    let most = kvm.check_extension_int(Cap::DirtyLogRing);
    if most <= 0 {
        return Err(Error::Unsupported { engine: Engine::Kvm, what: "dirty ring" });
    }
    if !entries.is_power_of_two() || bytes < PAGE_SIZE || bytes > most as u64 {
        return Err(Error::Unsupported { engine: Engine::Kvm, what: "dirty ring of this size" });
    }
    let mut cap = kvm_enable_cap { cap: KVM_CAP_DIRTY_LOG_RING, ..Default::default() };
    cap.args[0] = bytes;
    fd.enable_cap(&cap).map_err(Error::os("KVM_CAP_DIRTY_LOG_RING"))
}

/// The data stays consistent at every step, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(super) fn need_local_apic(&self) -> Result<()> {
        if self.config.local_apic {
            return Ok(());
        }
        Err(Error::Unsupported { engine: Engine::Kvm, what: "a machine without local APICs" })
    }

    fn signal_msi(&self, msi: Msi) -> Result<()> {
        self.need_local_apic()?;
        let msi = kvm_msi {
            address_lo: msi.address as u32,
            address_hi: (msi.address >> 32) as u32,
            data: msi.data,
            ..Default::default()
        };
        self.fd.signal_msi(msi).map(drop).map_err(Error::os("KVM_SIGNAL_MSI"))
    }

    /// The processor that guests are shown; `None`: the host's. Where all code is emulated, `softcpu` has
    /// to help out often, and only what it knows can be shown.
    fn model(&self) -> Option<CpuModel> {
        self.config.cpu.clone().or_else(|| kvm_emulates().then(CpuModel::default))
    }

    /// The machine that executes what the kernel gives up on.
    pub(super) fn assistant(&self, cpuid: &CpuId) -> Result<Arc<Assistant>> {
        let make = |arena: &Arc<Arena>, slots: &[Slot]| {
            Assistant::new(arena, slots, cpuid, Arc::clone(&self.io_events))
        };
        lock(&self.slots).assistant(make)
    }

    /// Makes room in full dirty rings.
    pub(super) fn harvest_dirty_rings(&self) -> Result<()> {
        lock(&self.slots).harvest_rings(&self.fd)
    }
}

impl MsiSink for Inner {
    fn signal(&self, msi: Msi) {
        if let Err(e) = self.signal_msi(msi) {
            tracing::warn!("message {msi:x?} is lost: {e}");
        }
    }
}

impl Vm for KvmVm {
    fn engine(&self) -> Engine {
        Engine::Kvm
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>> {
        if id >= 255 {
            return Err(Error::NotFound { what: "vcpu number below 255", id: id.into() });
        }
        let fd = self.0.fd.create_vcpu(id.into()).map_err(Error::os("KVM_CREATE_VCPU"))?;
        if let Some(entries) = self.0.config.dirty_ring {
            lock(&self.0.slots).add_ring(&fd, entries)?;
        }
        let vcpu = KvmVcpu::new(Arc::clone(&self.0), id, fd)?;
        lock(&self.0.kicks).push(vcpu.kick().clone());
        Ok(Box::new(vcpu))
    }

    fn set_memory(&self, arena: &Arc<Arena>, slots: &[Slot]) -> Result<()> {
        // The dirty ring names slots with 16 bits.
        let max = u32::try_from(self.0.kvm.get_nr_memslots()).unwrap_or(u32::MAX).min(0x1_0000);
        let expel = || lock(&self.0.kicks).iter().for_each(|kick| kick.expel());
        self.0.gate.change(expel, |()| lock(&self.0.slots).set(&self.0.fd, max, arena, slots))
    }

    fn collect_dirty(&self, tracker: &DirtyTracker) -> Result<()> {
        lock(&self.0.slots).collect_dirty(&self.0.fd, tracker)
    }

    fn signal_msi(&self, msi: Msi) -> Result<()> {
        self.0.signal_msi(msi)
    }

    fn msi_sink(&self) -> Arc<dyn MsiSink> {
        Arc::<Inner>::clone(&self.0)
    }

    fn set_ioapic_route(&self, pin: u32, msi: Option<Msi>) -> Result<()> {
        self.0.need_local_apic()?;
        lock(&self.0.routes).set_pin(&self.0.fd, pin, msi)
    }

    fn register_ioeventfd(&self, fd: &EventFd, event: IoEvent) -> Result<()> {
        let mut events = self.0.io_events.write().unwrap_or_else(PoisonError::into_inner);
        ioeventfd(&self.0.fd, fd, event, true)?;
        events.add(fd, event).inspect_err(|_| {
            let _ = ioeventfd(&self.0.fd, fd, event, false);
        })
    }

    fn unregister_ioeventfd(&self, fd: &EventFd, event: IoEvent) -> Result<()> {
        let mut events = self.0.io_events.write().unwrap_or_else(PoisonError::into_inner);
        ioeventfd(&self.0.fd, fd, event, false)?;
        events.remove(event)
    }

    fn create_irqfd(&self, fd: &EventFd, msi: Msi) -> Result<IrqfdId> {
        self.0.need_local_apic()?;
        lock(&self.0.routes).add(&self.0.fd, fd, msi)
    }

    fn set_irqfd_msi(&self, id: IrqfdId, msi: Msi) -> Result<()> {
        lock(&self.0.routes).set(&self.0.fd, id, msi)
    }

    fn remove_irqfd(&self, id: IrqfdId) -> Result<()> {
        lock(&self.0.routes).remove(&self.0.fd, id)
    }

    fn supported_cpuid(&self) -> Result<CpuId> {
        let mut leaves = self.host_cpuid()?;
        if let Some(model) = self.0.model() {
            cpuid::restrict(&mut leaves, &model);
        }
        if kvm_emulates() {
            // The kernel writes the instruction that this processor has in place of VMCALL and goes on
            // there, which its emulator takes for the same again.
            cpuid::without_hypercalls(&mut leaves);
        }
        CpuId::from_entries(&leaves)
            .map_err(|_| Error::NotFound { what: "room for cpuid leaf", id: leaves.len() as u64 })
    }

    fn saved_msrs(&self) -> Result<Vec<u32>> {
        let list = self.0.kvm.get_msr_index_list().map_err(Error::os("KVM_GET_MSR_INDEX_LIST"))?;
        Ok(list.as_slice().to_vec())
    }

    fn clock(&self) -> Result<kvm_clock_data> {
        self.0.fd.get_clock().map_err(Error::os("KVM_GET_CLOCK"))
    }

    fn set_clock(&self, clock: &kvm_clock_data) -> Result<()> {
        // Flags say what the kernel knew when it gave the time; it takes none of these back.
        let clock = kvm_clock_data { clock: clock.clock, ..Default::default() };
        self.0.fd.set_clock(&clock).map_err(Error::os("KVM_SET_CLOCK"))
    }
}

/// KVM_IOEVENTFD; `kvm-ioctls` takes the width from the type of the value.
fn ioeventfd(vm: &VmFd, fd: &EventFd, event: IoEvent, on: bool) -> Result<()> {
    let at = match event.address {
        IoEventAddress::Pio(port) => kvm_ioctls::IoEventAddress::Pio(port.into()),
        IoEventAddress::Mmio(addr) => kvm_ioctls::IoEventAddress::Mmio(addr),
    };
    macro_rules! request {
        ($value:expr) => {
            if on { vm.register_ioevent(fd, &at, $value) } else { vm.unregister_ioevent(fd, &at, $value) }
        };
    }
    let done = match event.matches {
        None => request!(NoDatamatch),
        Some((AccessSize::Byte, value)) => request!(value as u8),
        Some((AccessSize::Word, value)) => request!(value as u16),
        Some((AccessSize::Dword, value)) => request!(value as u32),
        Some((AccessSize::Qword, value)) => request!(value),
    };
    done.map_err(Error::os("KVM_IOEVENTFD"))
}
