//! The host bridge's part: PCI functions on the buses, and memory as the bridge decodes it.

use std::sync::{Arc, Mutex};

use trapline_chipset::AcpiPm;
use trapline_device::bus::{MmioBus, PioBus, Swap};
use trapline_display::{FRAMEBUFFER, Vga};
use trapline_memory::{Arena, Slot};
use trapline_pci::{BusLayout, Effect, Effects, I440Fx, PciFunction, SharedRoot, Space};

use crate::Result;
use crate::chassis::lock;
use crate::control::Outcome;
use crate::pc::address_map::AddressMap;
use crate::pc::flash::Flash;
use crate::pc::suspend::SLP_TYP_S3;
use crate::run::{Board, Shared};
use crate::timers::Timed;

/// Where the guest's PCI functions and memory are, and what changes it.
pub(crate) struct Host {
    pub(crate) root: SharedRoot,
    pub(crate) bridge: Arc<Mutex<I440Fx>>,
    pub(crate) vga: Option<Arc<Mutex<Vga>>>,
    pub(crate) flash: Option<Flash>,
    pub(crate) layout: BusLayout,
    pub(crate) map: AddressMap,
    pub(crate) arena: Arc<Arena>,
    pub(crate) pm: Arc<Mutex<Timed<AcpiPm>>>,
    /// Whether the guest can suspend itself to RAM.
    pub(crate) s3: bool,
    /// Taken first, applied first.
    pub(crate) applying: Mutex<()>,
}

impl Host {
    /// What lies where in memory now.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        let (shadows, smram) = {
            let bridge = lock(&self.bridge);
            (bridge.shadows().collect::<Vec<_>>(), bridge.smram())
        };
        let mut devices = self.video_memory();
        devices.extend(self.flash.as_ref().and_then(Flash::slot));
        self.map.slots(&shadows, smram, &devices)
    }

    /// The display's memory, where its BAR shows it.
    fn video_memory(&self) -> Vec<Slot> {
        let Some(vga) = &self.vga else { return Vec::new() };
        let vga = lock(vga);
        let claim = vga.config().claims().into_iter().find(|claim| claim.region == FRAMEBUFFER);
        match claim {
            Some(claim) => vec![vga.memory().map(claim.range.start)],
            None => {
                vga.memory().unmap();
                Vec::new()
            }
        }
    }

    /// The buses as they are now.
    pub(crate) fn buses(&self) -> (PioBus, MmioBus) {
        let mappings = lock(&self.root).mappings();
        (self.layout.build_pio(&mappings), self.layout.build_mmio(&mappings))
    }

    /// Carries out what has gathered in `effects`.
    pub(crate) fn apply(
        &self,
        effects: &Effects,
        ports: &Swap<PioBus>,
        mmio: &Swap<MmioBus>,
        vm: &dyn trapline_vcpu::Vm,
    ) -> Result<()> {
        let _applying = lock(&self.applying);
        let taken = effects.take();
        self.layout.apply(&taken, &self.root, ports, mmio);
        if taken.iter().any(|effect| self.concerns_slots(effect)) {
            vm.set_memory(&self.arena, &self.slots())?;
        }
        Ok(())
    }
}

impl Host {
    fn concerns_slots(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Shadow(_) | Effect::Smram(_) | Effect::Memory => true,
            // Only the display has memory, and no function besides it a prefetchable BAR 0.
            Effect::Bar(change) => {
                let memory = |range: &trapline_pci::AddressRange| range.space == Space::Memory;
                change.region == FRAMEBUFFER && [change.old, change.new].iter().flatten().any(memory)
            }
        }
    }
}

impl Board for Arc<Host> {
    fn apply_effects(&self, shared: &Shared) -> Result<()> {
        self.apply(&shared.effects, &shared.ports, &shared.mmio, &*shared.vm)
    }

    fn sleep(&self, shared: &Shared, slp_typ: u8) {
        match slp_typ {
            SLP_TYP_S3 if self.s3 => shared.control.finish(Ok(Outcome::Suspended)),
            // Others are not offered: they are over at once.
            _ => lock(&self.pm).wake(),
        }
    }
}
