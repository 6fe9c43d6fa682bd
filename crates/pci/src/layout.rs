//! From a topology to the buses of the device crate.

use std::sync::Mutex;

use trapline_device::bus::{MmioBus, MmioBusBuilder, PioBus, PioBusBuilder, Swap};

use crate::effects::Effect;
use crate::function::lock;
use crate::{Mapping, PciRoot, Space};

/// Builds a machine's port and memory buses: what is always there, and what PCI functions claim.
///
/// Where two claim the same address, what is always there goes before PCI, and of two functions the
/// one on the lower bus, then at the lower device and function number. The loser is not reachable at
/// all until one of them moves; a guest that does this is told so in the log.
#[derive(Clone, Debug, Default)]
pub struct BusLayout {
    /// What is always there, in port space.
    pub pio: PioBusBuilder,
    /// What is always there, in memory space.
    pub mmio: MmioBusBuilder,
}

impl BusLayout {
    /// The port bus with those of `mappings` that are ports. Locks each device for a moment.
    pub fn build_pio(&self, mappings: &[Mapping]) -> PioBus {
        let mut builder = self.pio.clone();
        for mapping in mappings.iter().filter(|mapping| mapping.range.space == Space::Io) {
            let Mapping { device, region, range, name } = mapping;
            let (Ok(start), Ok(len)) = (u16::try_from(range.start), u32::try_from(range.len)) else {
                continue;
            };
            if let Err(error) = builder.register(start, len, device.clone(), *region, name) {
                tracing::debug!(%error, "pci range is not reachable");
            }
        }
        builder.build()
    }

    /// The memory bus with those of `mappings` that are memory. Locks each device for a moment.
    pub fn build_mmio(&self, mappings: &[Mapping]) -> MmioBus {
        let mut builder = self.mmio.clone();
        for mapping in mappings.iter().filter(|mapping| mapping.range.space == Space::Memory) {
            let Mapping { device, region, range, name } = mapping;
            let added = builder.register(range.start, range.len, device.clone(), *region, name);
            if let Err(error) = added {
                tracing::debug!(%error, "pci range is not reachable");
            }
        }
        builder.build()
    }

    /// Rebuilds those of the two buses that `effects` says have changed. Call it after the access has
    /// returned, never from inside a device, and one caller at a time.
    pub fn apply(&self, effects: &[Effect], root: &Mutex<PciRoot>, pio: &Swap<PioBus>, mmio: &Swap<MmioBus>) {
        let touches = |space| {
            effects.iter().any(|effect| match effect {
                Effect::Bar(change) => [change.old, change.new].iter().flatten().any(|r| r.space == space),
                _ => false,
            })
        };
        let (ports, memory) = (touches(Space::Io), touches(Space::Memory));
        if !ports && !memory {
            return;
        }
        // The topology is unlocked before devices are locked.
        let mappings = lock(root).mappings();
        if ports {
            pio.replace(self.build_pio(&mappings));
        }
        if memory {
            mmio.replace(self.build_mmio(&mappings));
        }
    }
}
