//! A virtual machine of the soft engine.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_clock_data, kvm_cpuid_entry2};
use trapline_device::{Msi, MsiSink, Nanos};
use trapline_irqchip::lapic::{Ipi, LocalApic};
use trapline_irqchip::message::{DeliveryMode, Message};
use trapline_memory::{Arena, DirtyTracker, Slot};
use trapline_softcpu::cpu::Signals;
use trapline_softcpu::cpuid::{CpuidContext, Model};
use vmm_sys_util::eventfd::EventFd;

use super::irqfd::{IoEvents, Irqfds};
use super::mailbox::{self, Mailbox};
use super::memory::Memory;
use super::vcpu::SoftVcpu;
use super::{lock, msr, pv};
use crate::cpuid::{self, Offer};
use crate::gate::Gate;
use crate::{Engine, Error, IOAPIC_PINS, IoEvent, IrqfdId, Result, Vcpu, Vm, VmConfig};

/// A virtual machine of the soft engine.
pub(crate) struct SoftVm(pub(super) Arc<Machine>);

/// What the machine, its vCPUs and its message sinks share.
pub(super) struct Machine {
    pub config: VmConfig,
    pub model: Arc<Model>,
    /// Where the time-stamp counter starts.
    pub start: Instant,
    pub gate: Gate<Memory>,
    /// Guest writes that signal an eventfd.
    pub io_events: Arc<RwLock<IoEvents>>,
    /// In the order in which they were made; APIC IDs are not reused.
    mailboxes: RwLock<Vec<Arc<Mailbox>>>,
    pins: Mutex<[Option<Msi>; IOAPIC_PINS as usize]>,
    /// Vectors of the level-triggered messages among `pins`.
    level_vectors: [AtomicU64; 4],
    irqfds: OnceLock<Arc<Irqfds>>,
    /// Paravirtual clock less [`Machine::ticks`].
    clock_offset: AtomicI64,
    /// Goes up each time that it is set.
    clock_setting: AtomicU64,
    /// What the guest has written to the register of the wall clock, which is one for all processors.
    wall_clock_register: AtomicU64,
}

impl SoftVm {
    pub(crate) fn new(config: &VmConfig) -> Result<Self> {
        Self::with_events(config, Arc::default())
    }

    /// A machine whose guest's writes signal the eventfds of `io_events`.
    pub(super) fn with_events(config: &VmConfig, io_events: Arc<RwLock<IoEvents>>) -> Result<Self> {
        if config.dirty_ring.is_some() {
            return Err(Error::Unsupported { engine: Engine::Soft, what: "dirty ring" });
        }
        if config.nested {
            return Err(Error::Unsupported { engine: Engine::Soft, what: "nested virtualization" });
        }
        let mut config = config.clone();
        if let Some(icount) = &config.icount {
            config.clock = icount.clone();
        }
        Ok(Self(Arc::new(Machine {
            model: Arc::new(config.cpu.clone().unwrap_or_default()),
            start: Instant::now(),
            gate: Gate::new(Memory::empty(config.paging)?),
            io_events,
            mailboxes: RwLock::default(),
            pins: Mutex::new([None; IOAPIC_PINS as usize]),
            level_vectors: [const { AtomicU64::new(0) }; 4],
            irqfds: OnceLock::new(),
            clock_offset: AtomicI64::new(0),
            clock_setting: AtomicU64::new(0),
            wall_clock_register: AtomicU64::new(0),
            config,
        })))
    }
}

impl Drop for SoftVm {
    fn drop(&mut self) {
        if let Some(irqfds) = self.0.irqfds.get() {
            irqfds.stop();
        }
    }
}

impl Machine {
    pub fn need_local_apic(&self) -> Result<()> {
        if self.config.local_apic {
            return Ok(());
        }
        Err(Error::Unsupported { engine: Engine::Soft, what: "a machine without local APICs" })
    }

    /// The machine's clock.
    pub fn now(&self) -> Nanos {
        self.config.clock.now()
    }

    /// What the time-stamp counters of all processors have before scaling: nanoseconds since the machine was
    /// made, or those that instructions have taken.
    pub fn ticks(&self) -> Nanos {
        match &self.config.icount {
            Some(icount) => trapline_device::Clock::now(&**icount),
            None => u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// The paravirtual clock at this reading of [`Machine::ticks`].
    pub fn clock_at(&self, ticks: Nanos) -> Nanos {
        ticks.wrapping_add_signed(self.clock_offset())
    }

    pub fn clock_offset(&self) -> i64 {
        self.clock_offset.load(Ordering::SeqCst)
    }

    /// Changes each time that the paravirtual clock is set.
    pub fn clock_setting(&self) -> u64 {
        self.clock_setting.load(Ordering::SeqCst)
    }

    pub fn wall_clock_register(&self) -> u64 {
        self.wall_clock_register.load(Ordering::Relaxed)
    }

    pub fn set_wall_clock_register(&self, value: u64) {
        self.wall_clock_register.store(value, Ordering::Relaxed);
    }

    /// Whether guests are offered what KVM offers its own.
    pub fn paravirtual(&self) -> bool {
        self.model.has("kvm") && self.model.has("hypervisor")
    }

    /// Wakes a processor from HLT, or from the next one.
    pub fn unhalt(&self, id: u32) {
        self.with_mailboxes(|all| {
            if let Some(mailbox) = all.iter().find(|mailbox| mailbox.id == id) {
                mailbox.inbox().unhalted = true;
                mailbox.notify();
            }
        });
    }

    /// Delivers an interrupt to one processor. Whether its local APIC accepts such.
    pub fn send_to(&self, id: u32, delivery: DeliveryMode, vector: u8) -> bool {
        self.with_mailboxes(|all| {
            let Some(mailbox) = all.iter().find(|mailbox| mailbox.id == id) else { return false };
            let accepts =
                mailbox.inbox().lapic.as_ref().is_some_and(|lapic| lapic.address().accepts(delivery));
            if accepts {
                mailbox.deliver(delivery, vector, false);
            }
            accepts
        })
    }

    /// Delivers a message; one that nobody accepts is dropped.
    pub fn send(&self, msi: Msi) {
        if let Some(message) = Message::from_msi(msi) {
            self.with_mailboxes(|all| mailbox::send_message(all, &message));
        }
    }

    /// Delivers an IPI of vCPU `from`. That one's inbox must be free.
    pub fn send_ipi(&self, from: u32, ipi: &Ipi) {
        self.with_mailboxes(|all| mailbox::send_ipi(all, from, ipi));
    }

    fn with_mailboxes<R>(&self, f: impl FnOnce(&[Arc<Mailbox>]) -> R) -> R {
        f(&self.mailboxes.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes every vCPU leave the guest.
    pub fn expel(&self) {
        self.with_mailboxes(|all| all.iter().for_each(|m| m.signals.raise(Signals::INTERRUPT)));
    }

    /// Whether the end of this level-triggered interrupt concerns the board's IOAPIC.
    pub fn is_ioapic_level(&self, vector: u8) -> bool {
        let word = self.level_vectors.get(usize::from(vector >> 6));
        word.is_some_and(|w| w.load(Ordering::Relaxed) >> (vector & 63) & 1 != 0)
    }

    /// Makes a mailbox; `None` if there is one with this ID.
    pub fn add_mailbox(&self, id: u32) -> Option<Arc<Mailbox>> {
        let mut all = self.mailboxes.write().unwrap_or_else(PoisonError::into_inner);
        if all.iter().any(|m| m.id == id) {
            return None;
        }
        let lapic = self.config.local_apic.then(|| LocalApic::new(id, id == 0));
        let mailbox = Arc::new(Mailbox::new(id, lapic));
        all.push(mailbox.clone());
        Some(mailbox)
    }
}

impl MsiSink for Machine {
    fn signal(&self, msi: Msi) {
        self.send(msi);
    }
}

impl Vm for SoftVm {
    fn engine(&self) -> Engine {
        Engine::Soft
    }

    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>> {
        if id >= 255 {
            return Err(Error::NotFound { what: "vcpu number below 255", id: id.into() });
        }
        if id > 0 && !self.0.config.local_apic {
            return Err(Error::NotFound { what: "second vcpu without local APICs", id: id.into() });
        }
        if id > 0 && self.0.config.icount.is_some() {
            return Err(Error::Unsupported {
                engine: Engine::Soft,
                what: "a second vcpu where time counts instructions",
            });
        }
        let mailbox =
            self.0.add_mailbox(id).ok_or(Error::NotFound { what: "free vcpu number", id: id.into() })?;
        Ok(Box::new(SoftVcpu::new(self.0.clone(), mailbox)?))
    }

    fn set_memory(&self, arena: &Arc<Arena>, slots: &[Slot]) -> Result<()> {
        self.0.gate.change(|| self.0.expel(), |memory| memory.set(arena, slots))
    }

    fn collect_dirty(&self, tracker: &DirtyTracker) -> Result<()> {
        self.0.gate.change(|| self.0.expel(), |memory| memory.collect_dirty(tracker))
    }

    fn signal_msi(&self, msi: Msi) -> Result<()> {
        self.0.need_local_apic()?;
        self.0.send(msi);
        Ok(())
    }

    fn msi_sink(&self) -> Arc<dyn MsiSink> {
        self.0.clone()
    }

    fn set_ioapic_route(&self, pin: u32, msi: Option<Msi>) -> Result<()> {
        self.0.need_local_apic()?;
        let mut pins = lock(&self.0.pins);
        let place = pins.get_mut(pin as usize);
        *place.ok_or(Error::NotFound { what: "ioapic pin", id: pin.into() })? = msi;
        let level = pins.iter().flatten().filter_map(|msi| Message::from_msi(*msi)).filter(|m| m.level);
        let mut words = [0u64; 4];
        for message in level {
            if let Some(word) = words.get_mut(usize::from(message.vector >> 6)) {
                *word |= 1 << (message.vector & 63);
            }
        }
        for (to, from) in self.0.level_vectors.iter().zip(words) {
            to.store(from, Ordering::Relaxed);
        }
        Ok(())
    }

    fn register_ioeventfd(&self, fd: &EventFd, event: IoEvent) -> Result<()> {
        self.0.io_events.write().unwrap_or_else(PoisonError::into_inner).add(fd, event)
    }

    fn unregister_ioeventfd(&self, _fd: &EventFd, event: IoEvent) -> Result<()> {
        self.0.io_events.write().unwrap_or_else(PoisonError::into_inner).remove(event)
    }

    fn create_irqfd(&self, fd: &EventFd, msi: Msi) -> Result<IrqfdId> {
        self.0.need_local_apic()?;
        let irqfds = match self.0.irqfds.get() {
            Some(irqfds) => irqfds,
            None => {
                let started = Irqfds::start(&self.0)?;
                // Another thread may have been faster: its one is used, ours ends.
                if let Err(ours) = self.0.irqfds.set(started) {
                    ours.stop();
                }
                self.0.irqfds.get().ok_or(Error::NotFound { what: "irqfd thread", id: 0 })?
            }
        };
        irqfds.add(fd, msi)
    }

    fn set_irqfd_msi(&self, id: IrqfdId, msi: Msi) -> Result<()> {
        self.0.irqfds.get().ok_or(Error::NotFound { what: "irqfd", id: id.0.into() })?.set(id, msi)
    }

    fn remove_irqfd(&self, id: IrqfdId) -> Result<()> {
        self.0.irqfds.get().ok_or(Error::NotFound { what: "irqfd", id: id.0.into() })?.remove(id)
    }

    fn supported_cpuid(&self) -> Result<CpuId> {
        let leaves = model_leaves(&self.0.model);
        let model = CpuId::from_entries(&leaves);
        let offer = Offer {
            nested: false,
            local_apic: self.0.config.local_apic && self.0.model.has("apic"),
            x2apic: self.0.model.has("x2apic"),
            tsc_deadline: self.0.model.has("tsc-deadline"),
            hypervisor: self.0.model.has("hypervisor"),
        };
        let mut leaves = cpuid::filter(&model.map_err(|_| no_room(leaves.len()))?, offer);
        if self.0.paravirtual() {
            leaves.extend(pv::leaves(self.0.config.local_apic));
        }
        CpuId::from_entries(&leaves).map_err(|_| no_room(leaves.len()))
    }

    fn saved_msrs(&self) -> Result<Vec<u32>> {
        let mut saved = msr::saved();
        if self.0.paravirtual() {
            saved.extend(pv::msr::SAVED);
        }
        Ok(saved)
    }

    fn clock(&self) -> Result<kvm_clock_data> {
        let clock = self.0.clock_at(self.0.ticks());
        Ok(kvm_clock_data { clock, ..Default::default() })
    }

    fn set_clock(&self, clock: &kvm_clock_data) -> Result<()> {
        let offset = clock.clock.wrapping_sub(self.0.ticks()) as i64;
        self.0.clock_offset.store(offset, Ordering::SeqCst);
        // Processors look at it before each entry.
        self.0.clock_setting.fetch_add(1, Ordering::SeqCst);
        self.0.expel();
        Ok(())
    }
}

fn no_room(leaves: usize) -> Error {
    Error::NotFound { what: "room for cpuid leaf", id: leaves as u64 }
}

/// Every leaf that a model answers, for one processor alone.
fn model_leaves(model: &Model) -> Vec<kvm_cpuid_entry2> {
    let context = CpuidContext::default();
    let mut leaves = Vec::new();
    for first in [0u32, 0x8000_0000] {
        let [last, ..] = model.cpuid(first, 0, &context);
        for function in first..=last.min(first + 0xff) {
            // Leaves with subleaves, and how many are worth asking for.
            let indices = match function {
                4 => 5,
                7 => 3,
                0xb => 3,
                0xd => 63,
                _ => 0,
            };
            for index in 0..=indices {
                let [eax, ebx, ecx, edx] = model.cpuid(function, index, &context);
                let flags = if indices > 0 { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
                let entry =
                    kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() };
                if index == 0 || [eax, ebx, edx] != [0; 3] {
                    leaves.push(entry);
                }
            }
        }
    }
    leaves
}
