//! What an access changes outside of its device: returned, not performed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::function::lock;
use crate::{AddressRange, Bdf};

/// A range of a function that moved, appeared or vanished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BarChange {
    /// The function, under its bus number of that moment.
    pub function: Bdf,
    /// The device's name.
    pub name: String,
    /// Its region: see [`Claim::region`](crate::Claim::region).
    pub region: usize,
    /// Where it was when the board last looked; `None` if nowhere.
    pub old: Option<AddressRange>,
    /// Where it is now; `None` if nowhere.
    pub new: Option<AddressRange>,
}

/// How a host bridge decodes a part of the memory under 1 MiB: from a PAM register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shadow {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Reads come from RAM; otherwise from the ROM on the bus.
    pub read_ram: bool,
    /// Writes go to RAM; otherwise to the bus, where a ROM ignores them.
    pub write_ram: bool,
}

/// How a host bridge decodes system management RAM at 0xa0000 (128 KiB): from the SMRAM register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Smram {
    /// The RAM is there for a processor in system management mode; otherwise it is unreachable and
    /// the range is always the display's.
    pub enabled: bool,
    /// It is there outside system management mode too.
    pub open: bool,
    /// In system management mode, data accesses go to the display all the same; code comes from RAM.
    pub closed: bool,
    /// Until the next reset the register cannot change and the RAM not be opened.
    pub locked: bool,
}

/// What a board has to do after an access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A range moved: rebuild the port or memory bus, see [`BusLayout`](crate::BusLayout).
    Bar(BarChange),
    /// A part of the memory under 1 MiB became RAM or ROM.
    Shadow(Shadow),
    /// System management RAM opened or closed.
    Smram(Smram),
    /// A device beside PCI shows or hides memory of its own, such as the array of a flash chip: the board
    /// asks its devices.
    Memory,
}

/// Collects effects until the board takes them: a handle, shared by a topology, its host bridge and
/// the board.
///
/// Effects on the same thing are merged into one from the first state to the last, so that the
/// queue is never longer than there are things, whatever a guest does.
///
/// A board with several vCPUs takes effects under the lock under which it applies them: what is
/// taken first must be applied first.
#[derive(Clone, Debug, Default)]
pub struct Effects(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    pending: AtomicBool,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// With the topological place of the function, which unlike its bus number does not change.
    bars: Vec<((usize, u8), BarChange)>,
    shadows: Vec<Shadow>,
    smram: Option<Smram>,
    memory: bool,
}

impl Queue {
    fn is_empty(&self) -> bool {
        let Self { bars, shadows, smram, memory } = self;
        bars.is_empty() && shadows.is_empty() && smram.is_none() && !memory
    }
}

impl Effects {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is anything to take: one atomic read, to ask after each access.
    pub fn pending(&self) -> bool {
        self.0.pending.load(Ordering::Acquire)
    }

    /// Takes what has gathered.
    pub fn take(&self) -> Vec<Effect> {
        let mut queue = lock(&self.0.queue);
        self.0.pending.store(false, Ordering::Release);
        let Queue { bars, shadows, smram, memory } = std::mem::take(&mut *queue);
        let bars = bars.into_iter().map(|(_, change)| Effect::Bar(change));
        let shadows = shadows.into_iter().map(Effect::Shadow);
        bars.chain(shadows).chain(smram.map(Effect::Smram)).chain(memory.then_some(Effect::Memory)).collect()
    }

    /// Adds [`Effect::Memory`].
    pub fn memory(&self) {
        lock(&self.0.queue).memory = true;
        self.0.pending.store(true, Ordering::Release);
    }

    pub(crate) fn bar(&self, place: (usize, u8), change: BarChange) {
        let mut queue = lock(&self.0.queue);
        let same = |(at, old): &&mut ((usize, u8), BarChange)| *at == place && old.region == change.region;
        match queue.bars.iter_mut().find(same) {
            Some((_, old)) => *old = BarChange { old: old.old, ..change },
            None => queue.bars.push((place, change)),
        }
        // A BAR that is back where it was has not moved.
        queue.bars.retain(|(_, change)| change.old != change.new);
        self.0.pending.store(!queue.is_empty(), Ordering::Release);
    }

    pub(crate) fn shadow(&self, shadow: Shadow) {
        let mut queue = lock(&self.0.queue);
        match queue.shadows.iter_mut().find(|old| old.start == shadow.start) {
            Some(old) => *old = shadow,
            None => queue.shadows.push(shadow),
        }
        self.0.pending.store(true, Ordering::Release);
    }

    pub(crate) fn smram(&self, smram: Smram) {
        lock(&self.0.queue).smram = Some(smram);
        self.0.pending.store(true, Ordering::Release);
    }
}
