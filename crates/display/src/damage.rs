//! What of the picture has changed: for a server that shows it elsewhere.

use std::ops::Range;

use crate::registers::Registers;
use crate::timing::Phase;
use crate::vbe::Vbe;
use crate::vga::Vga;

/// What of the picture has changed since it was taken last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Nothing.
    None,
    /// These lines, from the top.
    Lines(Range<u32>),
    /// All of it; it may have another size.
    All,
}

/// What the picture depends on beside the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    registers: Registers,
    vbe: Vbe,
    /// In text modes.
    phase: Option<Phase>,
}

impl Vga {
    /// What of the picture has changed since this was called last: for one caller, which renders it anew
    /// where it did. A mapped framebuffer must be in a slot that logs writes, and the engine's log be
    /// collected before: see [`DeviceMemory`](trapline_memory::DeviceMemory).
    pub fn take_damage(&mut self) -> Damage {
        let dirty = self.memory.take_dirty();
        let text = !self.vbe.enabled() && !self.registers.graphics.graphics_mode();
        let (registers, vbe) = (self.registers.clone(), self.vbe.clone());
        let now = Picture { registers, vbe, phase: text.then(|| self.phase()) };
        if self.seen.as_ref() != Some(&now) {
            self.seen = Some(now);
            return Damage::All;
        }
        if self.registers.blank() || dirty.is_empty() {
            return Damage::None;
        }
        let Some(mode) = self.vbe.mode() else {
            // The VGA's own modes reach 256 KiB, and little of it shows where on the screen it is.
            let seen = dirty.iter().any(|page| *page < 256 << 10);
            return if seen { Damage::All } else { Damage::None };
        };
        let planes = if self.vbe.planar() { 4 } else { 1 };
        let (start, pitch) = (u64::from(mode.start) * planes, u64::from(mode.pitch) * planes);
        let height = u64::from(mode.height);
        let line = |at: u64| at.saturating_sub(start) / pitch.max(1);
        let mut lines = None::<Range<u64>>;
        for page in dirty {
            let (first, end) = (line(page), line((page + 4096).saturating_sub(1)) + 1);
            if page + 4096 <= start || first >= height {
                continue;
            }
            let so_far = lines.unwrap_or(first..end);
            lines = Some(so_far.start.min(first)..so_far.end.max(end));
        }
        lines.map_or(Damage::None, |lines| Damage::Lines(lines.start as u32..lines.end.min(height) as u32))
    }
}
