//! What EPT does beside translating: the page-modification log (SDM vol. 3 §29.3.6) and virtualization
//! exceptions (§26.5.7).

use std::cell::Cell;

use trapline_memory::ept::{EptEntry, EptMode};
use trapline_vmx::controls::SecondaryControls;
use trapline_vmx::{Field, Vmcs};

use super::{Controls, reason};
use crate::cpu::{Cpu, Event, EventKind, ExitInfo, Pending, cr0, vector};
use crate::mmu::PAGE;

/// Entries of a page-modification log.
const PML_ENTRIES: u16 = 512;

/// The page-modification log of the guest that runs.
#[derive(Debug)]
pub(crate) struct Pml {
    address: u64,
    index: Cell<u16>,
    full: Cell<bool>,
}

impl Pml {
    pub fn new(vmcs: &Vmcs, ctl: &Controls) -> Option<Self> {
        ctl.secondary.contains(SecondaryControls::ENABLE_PML).then(|| Self {
            address: vmcs.read(Field::PmlAddress),
            index: Cell::new(vmcs.read(Field::PmlIndex) as u16),
            full: Cell::new(false),
        })
    }

    /// The index as the VMCS has it.
    pub fn index(&self) -> u16 {
        self.index.get()
    }

    /// Whether there is room for another entry; if not, a VM exit is due ([`Pml::take_full`]).
    pub fn has_room(&self) -> bool {
        let room = self.index.get() < PML_ENTRIES;
        self.full.set(!room);
        room
    }

    /// Whether the log was found full since the last call.
    pub fn take_full(&self) -> bool {
        self.full.replace(false)
    }

    /// Logs a page that was made dirty.
    pub fn log(&self, arena: &trapline_memory::arena::Arena, gpa: u64) {
        let at = self.address.wrapping_add(u64::from(self.index.get()) * 8);
        // The address has been checked against the physical-address width only.
        let _ = arena.write_u64(at, gpa & !(PAGE - 1));
        self.index.set(self.index.get().wrapping_sub(1));
    }
}

impl Cpu {
    /// The VM exit of a full page-modification log.
    pub(crate) fn pml_exit(&self) -> ExitInfo {
        ExitInfo { reason: reason::PML_FULL, ..ExitInfo::default() }
    }

    /// Turns an EPT violation into a virtualization exception, if it is to be one: `true` if #VE is pending
    /// now.
    pub(crate) fn virtualization_exception(&mut self, mode: &EptMode, exit: &ExitInfo) -> bool {
        let Some(area) = self.vmx.ve_area else { return false };
        let free = self.arena.read_u64(area).is_some_and(|v| v >> 32 == 0);
        let converts = self.cr0 & cr0::PE != 0
            && self.delivering.is_none()
            && free
            && self.convertible(mode, exit.physical);
        if !converts {
            return false;
        }
        let words = [
            u64::from(reason::EPT_VIOLATION) | 0xffff_ffff << 32,
            exit.qualification,
            exit.linear,
            exit.physical,
            0,
        ];
        for (i, word) in words.into_iter().enumerate().take(4) {
            self.arena.write_u64(area + 8 * i as u64, word);
        }
        // The EPTP index is 16 bits wide.
        let _ = self.arena.write_bytes(area + 32, &[0; 2]);
        self.pending = Pending::Event(Event {
            vector: vector::VE,
            kind: EventKind::HardwareException,
            error: None,
            len: 0,
            payload: 0,
        });
        true
    }

    /// Whether the EPT entry that a violation at `gpa` is due to (the one that is not present, else the
    /// leaf) has its suppress-#VE bit clear.
    fn convertible(&self, mode: &EptMode, gpa: u64) -> bool {
        if gpa >> 48 != 0 {
            return false;
        }
        let mut table = EptEntry::from_bits_retain(mode.eptp).address();
        let mut entry = EptEntry::SUPPRESS_VE;
        for level in (0..4u32).rev() {
            let index = gpa >> (12 + 9 * level) & 0x1ff;
            entry = EptEntry::from_bits_retain(self.arena.read_u64(table + 8 * index).unwrap_or(u64::MAX));
            let rights = entry.bits() & if mode.mode_based_execute { 0x407 } else { 7 };
            if rights == 0 || level < 3 && entry.contains(EptEntry::LARGE) {
                break;
            }
            table = entry.address();
        }
        !entry.contains(EptEntry::SUPPRESS_VE)
    }
}
