//! The state of a machine that does not run, without its memory.

use kvm_bindings::kvm_clock_data;
use serde::{Deserialize, Serialize};
use trapline_chipset::{
    AcpiPm, DebugExit, FwCfg, I8042, PcTestdev, Port92, PostCode, ResetControl, Rtc, Uart,
};
use trapline_device::SaveRestore;
use trapline_irqchip::ioapic::IoApic;
use trapline_irqchip::pic::PicPair;
use trapline_irqchip::pit::Pit;
use trapline_vcpu::VcpuState;

use crate::chassis::{Chassis, lock};
use crate::devices::Devices;
use crate::pc::PcStates;
use crate::{Error, Result};

/// Saved state of a device.
pub(crate) type State<D> = <D as SaveRestore>::State;

/// Everything that a machine is made of, but for the contents of its memory, the files behind it, and keys
/// that the guest has not received yet.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    vcpus: Vec<VcpuState>,
    /// The paravirtual clock, where the engine has one.
    clock: Option<kvm_clock_data>,
    devices: DeviceStates,
    /// Those that only a PC has.
    pc: Option<PcStates>,
}

impl MachineState {
    /// The same with the state of a PC's devices.
    pub(crate) fn with_pc(self, pc: PcStates) -> Self {
        Self { pc: Some(pc), ..self }
    }

    /// Takes the state of a PC's devices.
    pub(crate) fn take_pc(&mut self) -> Option<PcStates> {
        self.pc.take()
    }
}

/// One field for each device of every board.
#[derive(Debug, Serialize, Deserialize)]
struct DeviceStates {
    pic: State<PicPair>,
    ioapic: State<IoApic>,
    pit: State<Pit>,
    rtc: State<Rtc>,
    pm: State<AcpiPm>,
    uart: State<Uart>,
    i8042: State<I8042>,
    port92: State<Port92>,
    reset: State<ResetControl>,
    debug_exit: State<DebugExit>,
    post: State<PostCode>,
    testdev: Option<State<PcTestdev>>,
    fw_cfg: Option<State<FwCfg>>,
}

impl Devices {
    fn save(&self) -> DeviceStates {
        // What the guest has sent goes out before it is saved: there is nothing to keep of the console.
        let Self {
            pic,
            ioapic,
            pit,
            rtc,
            pm,
            uart,
            i8042,
            port92,
            reset,
            debug_exit,
            post,
            console: _,
            testdev,
            fw_cfg,
            lines: _,
            legacy: _,
        } = self;
        DeviceStates {
            pic: pic.save(),
            ioapic: ioapic.save(),
            pit: lock(pit).save(),
            rtc: lock(rtc).save(),
            pm: lock(pm).save(),
            uart: lock(uart).save(),
            i8042: lock(i8042).save(),
            port92: lock(port92).save(),
            reset: lock(reset).save(),
            debug_exit: lock(debug_exit).save(),
            post: lock(post).save(),
            testdev: testdev.as_ref().map(|testdev| lock(&testdev.dev).save()),
            fw_cfg: fw_cfg.as_ref().map(|fw_cfg| lock(fw_cfg).save()),
        }
    }

    fn restore(&mut self, states: DeviceStates) -> Result<()> {
        let DeviceStates {
            pic,
            ioapic,
            pit,
            rtc,
            pm,
            uart,
            i8042,
            port92,
            reset,
            debug_exit,
            post,
            testdev,
            fw_cfg,
        } = states;
        lock(&self.pit).restore(pit)?;
        lock(&self.rtc).restore(rtc)?;
        lock(&self.pm).restore(pm)?;
        lock(&self.uart).restore(uart)?;
        lock(&self.i8042).restore(i8042)?;
        lock(&self.port92).restore(port92)?;
        lock(&self.reset).restore(reset)?;
        lock(&self.debug_exit).restore(debug_exit)?;
        lock(&self.post).restore(post)?;
        match (&self.testdev, testdev) {
            (Some(here), Some(testdev)) => lock(&here.dev).restore(testdev)?,
            (None, None) => {}
            _ => return Err(Error::OtherDevices("testdev")),
        }
        match (&self.fw_cfg, fw_cfg) {
            (Some(here), Some(fw_cfg)) => lock(here).restore(fw_cfg)?,
            (None, None) => {}
            _ => return Err(Error::OtherDevices("fw_cfg")),
        }
        // Last, so that lines which the others drove meanwhile leave no trace.
        self.ioapic.restore(ioapic)?;
        self.pic.restore(pic)?;
        Ok(())
    }
}

impl Chassis {
    /// Takes the state, between two runs.
    pub(crate) fn save(&self) -> Result<MachineState> {
        let msrs = self.shared.vm.saved_msrs()?;
        let vcpus = self.vcpus.iter().map(|vcpu| VcpuState::save(&**vcpu, &msrs));
        let vcpus = vcpus.collect::<trapline_vcpu::Result<_>>()?;
        let clock = match self.shared.vm.clock() {
            Err(trapline_vcpu::Error::Unsupported { .. }) => None,
            other => Some(other?),
        };
        Ok(MachineState { vcpus, clock, devices: self.devices.save(), pc: None })
    }

    /// Puts a state into a machine of the same configuration; devices of the board's own are restored already.
    pub(crate) fn restore(&mut self, state: MachineState) -> Result<()> {
        let MachineState { vcpus, clock, devices, pc: _ } = state;
        if vcpus.len() != self.vcpus.len() {
            return Err(Error::OtherMachine { saved: vcpus.len(), here: self.vcpus.len() });
        }
        self.devices.restore(devices)?;
        let shared = &self.shared;
        shared.routes.tell(&shared.ioapic, &*shared.vm)?;
        if let Some(mut clock) = clock {
            clock.flags = 0; // what the kernel reports, it does not take back
            shared.vm.set_clock(&clock)?;
        }
        for (vcpu, state) in self.vcpus.iter_mut().zip(&vcpus) {
            state.restore(&mut **vcpu)?;
        }
        Ok(())
    }
}
