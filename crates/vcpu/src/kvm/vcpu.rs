//! A vCPU of the kernel's.

use std::sync::Arc;

use kvm_bindings::*;
use kvm_ioctls::VcpuFd;

use super::assist::Assist;
use super::kick::KickState;
use super::run::Pending;
use super::sys::{self, RunPage};
use super::vm::Inner;
use crate::fpu;
use crate::{Answer, Engine, Entry, Error, Exit, ExitStats, Kicker, Result, Vcpu};

/// A vCPU of the kernel's.
pub(super) struct KvmVcpu {
    id: u32,
    fd: VcpuFd,
    page: RunPage,
    kick: Arc<KickState>,
    pending: Pending,
    /// Made when the kernel gives up on an instruction for the first time.
    assist: Option<Box<Assist>>,
    /// What of its execution the host wants to see.
    debug: kvm_guest_debug,
    /// KVM_RUN has not returned since the assistant changed the state.
    changed: bool,
    stats: ExitStats,
    /// The guest's memory must outlive the vCPU that can write to it.
    vm: Arc<Inner>,
}

impl KvmVcpu {
    pub(super) fn new(vm: Arc<Inner>, id: u32, fd: VcpuFd) -> Result<Self> {
        let page = RunPage::map(&fd, vm.fd.run_size())
            .map_err(|source| Error::Os { what: "mmap of kvm_run", source })?;
        let kick = Arc::new(KickState::new(page.immediate_exit())?);
        Ok(Self {
            id,
            fd,
            page,
            kick,
            pending: Pending::Nothing,
            assist: None,
            debug: kvm_guest_debug::default(),
            changed: false,
            stats: ExitStats::default(),
            vm,
        })
    }

    /// What kicks it.
    pub(super) fn kick(&self) -> &Arc<KickState> {
        &self.kick
    }

    /// KVM_RUN until there is something for the board.
    fn enter(&mut self) -> Result<Exit> {
        loop {
            self.changed = false;
            let fd = &mut self.fd;
            let inside = self.vm.gate.enter();
            let ran = self.kick.around(|| fd.run().map(drop));
            drop(inside);
            match ran {
                Ok(()) => {}
                Err(e) if e.errno() == libc::EINTR => {
                    self.pending = Pending::Nothing;
                    if self.kick.acknowledge() {
                        continue;
                    }
                    return Ok(Exit::Interrupted);
                }
                // A vCPU that waited for INIT or SIPI got it.
                Err(e) if e.errno() == libc::EAGAIN => {
                    self.pending = Pending::Nothing;
                    continue;
                }
                Err(e) => return Err(Error::os("KVM_RUN")(e)),
            }
            let exit = match self.take_exit()? {
                Some(failure @ Exit::InternalError { suberror: KVM_INTERNAL_ERROR_EMULATION, .. }) => {
                    self.help_out(failure)?
                }
                exit => exit,
            };
            if let Some(exit) = exit {
                return Ok(exit);
            }
        }
    }

    /// Has an instruction executed that the kernel gave up on with `failure`.
    fn help_out(&mut self, failure: Exit) -> Result<Option<Exit>> {
        let made = match self.assist.take() {
            Some(assist) => Ok(assist),
            None => self.new_assist(),
        };
        let mut assist = match made {
            Ok(assist) => assist,
            Err(e) => {
                tracing::error!("vcpu {}: kvm gave up, and softcpu cannot help: {e}", self.id);
                return Ok(Some(failure));
            }
        };
        let (debug, local_apic) = (self.debug, self.vm.need_local_apic().is_ok());
        let exit = assist.begin(self, failure, &debug, local_apic);
        (self.assist, self.changed) = (Some(assist), true);
        exit
    }

    fn new_assist(&self) -> Result<Box<Assist>> {
        let cpuid = self.cpuid()?;
        Ok(Box::new(Assist::new(&*self.vm.assistant(&cpuid)?, self.id, &cpuid)?))
    }

    /// Takes in the answer to the last exit. `Some`: the same instruction goes on with another exit.
    fn answer(&mut self, answer: Answer) -> Result<Option<Exit>> {
        match self.assist.take_if(|assist| assist.under_way()) {
            Some(mut assist) => {
                let exit = assist.go_on(self, answer);
                self.assist = Some(assist);
                exit
            }
            None => self.pending.answer(answer, &mut self.page),
        }
    }

    /// The exit that KVM_RUN left; `None` if it was the engine's own business.
    fn take_exit(&mut self) -> Result<Option<Exit>> {
        let raw = self.page.exit();
        if let super::run::RawExit::Plain(KVM_EXIT_DIRTY_RING_FULL) = raw {
            self.pending = Pending::Nothing;
            self.vm.harvest_dirty_rings()?;
            return Ok(None);
        }
        let (pending, exit) = Pending::from_raw(raw, &mut self.page);
        self.pending = pending;
        Ok(exit)
    }

    fn count(&mut self, exit: Exit) -> Exit {
        self.stats.record(exit.kind());
        exit
    }
}

impl Vcpu for KvmVcpu {
    fn id(&self) -> u32 {
        self.id
    }

    fn engine(&self) -> Engine {
        Engine::Kvm
    }

    fn run(&mut self, entry: Entry) -> Result<Exit> {
        let part = self.answer(entry.answer)?;
        if let Some(vector) = entry.extint {
            sys::interrupt(&self.fd, vector).map_err(Error::os("KVM_INTERRUPT"))?;
        }
        self.page.set_request_interrupt_window(entry.want_window);
        let exit = match part {
            Some(exit) => exit,
            None => self.enter()?,
        };
        Ok(self.count(exit))
    }

    fn complete(&mut self, answer: Answer) -> Result<Option<Exit>> {
        let part = self.answer(answer)?;
        if part.is_some() || matches!(self.pending, Pending::Nothing) {
            return Ok(part.map(|exit| self.count(exit)));
        }
        let fd = &mut self.fd;
        let inside = self.vm.gate.enter();
        let completed = self.kick.without_entering(|| fd.run().map(drop));
        drop(inside);
        let exit = match completed {
            Ok(()) => self.take_exit()?,
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                self.pending = Pending::Nothing;
                None
            }
            Err(e) => return Err(Error::os("KVM_RUN")(e)),
        };
        Ok(exit.map(|exit| self.count(exit)))
    }

    fn io_data(&mut self) -> &mut [u8] {
        if let Some(assist) = self.assist.as_mut().filter(|assist| assist.under_way()) {
            return assist.io_data();
        }
        match self.pending {
            Pending::Pio { offset, len, .. } => self.page.io_data(offset, len).unwrap_or_default(),
            _ => Default::default(),
        }
    }

    fn ready_for_extint(&self) -> bool {
        // What the kernel said last may not be true any more.
        !self.changed && self.page.ready_for_interrupt_injection()
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(self.kick.clone())
    }

    fn stats(&self) -> &ExitStats {
        &self.stats
    }

    fn detail(&self) -> Vec<(String, u64)> {
        self.assist.iter().flat_map(|assist| assist.counts()).collect()
    }

    fn inject_nmi(&mut self) -> Result<()> {
        self.fd.nmi().map_err(Error::os("KVM_NMI"))
    }

    fn set_guest_debug(&mut self, debug: &kvm_guest_debug) -> Result<()> {
        self.fd.set_guest_debug(debug).map_err(Error::os("KVM_SET_GUEST_DEBUG"))?;
        self.debug = *debug;
        Ok(())
    }

    fn translate(&self, linear: u64) -> Result<Option<u64>> {
        let t = self.fd.translate_gva(linear).map_err(Error::os("KVM_TRANSLATE"))?;
        Ok((t.valid != 0).then_some(t.physical_address))
    }

    fn regs(&self) -> Result<kvm_regs> {
        self.fd.get_regs().map_err(Error::os("KVM_GET_REGS"))
    }

    fn set_regs(&mut self, regs: &kvm_regs) -> Result<()> {
        self.fd.set_regs(regs).map_err(Error::os("KVM_SET_REGS"))
    }

    fn sregs(&self) -> Result<kvm_sregs> {
        self.fd.get_sregs().map_err(Error::os("KVM_GET_SREGS"))
    }

    fn set_sregs(&mut self, sregs: &kvm_sregs) -> Result<()> {
        self.fd.set_sregs(sregs).map_err(Error::os("KVM_SET_SREGS"))
    }

    fn fpu(&self) -> Result<kvm_fpu> {
        Ok(fpu::from_xsave(&self.xsave()?))
    }

    fn set_fpu(&mut self, fpu: &kvm_fpu) -> Result<()> {
        let mut xsave = self.xsave()?;
        fpu::to_xsave(fpu, &mut xsave);
        self.set_xsave(&xsave)
    }

    fn xsave(&self) -> Result<kvm_xsave> {
        self.fd.get_xsave().map_err(Error::os("KVM_GET_XSAVE"))
    }

    fn set_xsave(&mut self, xsave: &kvm_xsave) -> Result<()> {
        sys::set_xsave(&self.fd, xsave).map_err(Error::os("KVM_SET_XSAVE"))
    }

    fn xcrs(&self) -> Result<kvm_xcrs> {
        self.fd.get_xcrs().map_err(Error::os("KVM_GET_XCRS"))
    }

    fn set_xcrs(&mut self, xcrs: &kvm_xcrs) -> Result<()> {
        self.fd.set_xcrs(xcrs).map_err(Error::os("KVM_SET_XCRS"))
    }

    fn debugregs(&self) -> Result<kvm_debugregs> {
        self.fd.get_debug_regs().map_err(Error::os("KVM_GET_DEBUGREGS"))
    }

    fn set_debugregs(&mut self, debugregs: &kvm_debugregs) -> Result<()> {
        self.fd.set_debug_regs(debugregs).map_err(Error::os("KVM_SET_DEBUGREGS"))
    }

    fn msrs(&self, indices: &[u32]) -> Result<Vec<kvm_msr_entry>> {
        let mut read = Vec::with_capacity(indices.len());
        let mut left = indices;
        while !left.is_empty() {
            let batch = left.get(..KVM_MAX_MSR_ENTRIES).unwrap_or(left);
            let entries: Vec<_> =
                batch.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
            let mut msrs = Msrs::from_entries(&entries).map_err(|_| too_many("KVM_GET_MSRS"))?;
            let n = self.fd.get_msrs(&mut msrs).map_err(Error::os("KVM_GET_MSRS"))?;
            read.extend(msrs.as_slice().iter().take(n));
            // The kernel stops at the first register that it does not have: step over it.
            let skip = n + usize::from(n < batch.len());
            left = left.get(skip..).unwrap_or_default();
        }
        Ok(read)
    }

    fn set_msrs(&mut self, msrs: &[kvm_msr_entry]) -> Result<()> {
        for batch in msrs.chunks(KVM_MAX_MSR_ENTRIES) {
            let entries = Msrs::from_entries(batch).map_err(|_| too_many("KVM_SET_MSRS"))?;
            let n = self.fd.set_msrs(&entries).map_err(Error::os("KVM_SET_MSRS"))?;
            if let Some(refused) = batch.get(n) {
                return Err(Error::Msr { index: refused.index });
            }
        }
        Ok(())
    }

    fn events(&self) -> Result<kvm_vcpu_events> {
        self.fd.get_vcpu_events().map_err(Error::os("KVM_GET_VCPU_EVENTS"))
    }

    fn set_events(&mut self, events: &kvm_vcpu_events) -> Result<()> {
        self.fd.set_vcpu_events(events).map_err(Error::os("KVM_SET_VCPU_EVENTS"))
    }

    fn lapic(&self) -> Result<kvm_lapic_state> {
        self.vm.need_local_apic()?;
        self.fd.get_lapic().map_err(Error::os("KVM_GET_LAPIC"))
    }

    fn set_lapic(&mut self, lapic: &kvm_lapic_state) -> Result<()> {
        self.vm.need_local_apic()?;
        self.fd.set_lapic(lapic).map_err(Error::os("KVM_SET_LAPIC"))
    }

    fn mp_state(&self) -> Result<kvm_mp_state> {
        self.fd.get_mp_state().map_err(Error::os("KVM_GET_MP_STATE"))
    }

    fn set_mp_state(&mut self, mp_state: kvm_mp_state) -> Result<()> {
        // The kernel takes no state without local APICs: the only one there is needs no setting.
        if self.vm.need_local_apic().is_err() && mp_state.mp_state == KVM_MP_STATE_RUNNABLE {
            return Ok(());
        }
        self.fd.set_mp_state(mp_state).map_err(Error::os("KVM_SET_MP_STATE"))
    }

    fn cpuid(&self) -> Result<CpuId> {
        self.fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(Error::os("KVM_GET_CPUID2"))
    }

    fn set_cpuid(&mut self, cpuid: &CpuId) -> Result<()> {
        self.fd.set_cpuid2(cpuid).map_err(Error::os("KVM_SET_CPUID2"))
    }

    fn tsc_khz(&self) -> Result<u32> {
        self.fd.get_tsc_khz().map_err(Error::os("KVM_GET_TSC_KHZ"))
    }

    fn set_tsc_khz(&mut self, khz: u32) -> Result<()> {
        self.fd.set_tsc_khz(khz).map_err(Error::os("KVM_SET_TSC_KHZ"))
    }
}

fn too_many(what: &'static str) -> Error {
    Error::Os { what, source: std::io::Error::from_raw_os_error(libc::E2BIG) }
}
