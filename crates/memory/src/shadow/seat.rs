//! A processor that runs on shadow tables: when it is in the guest, and what it may keep cached.

use super::watch::Presence;
use std::sync::Arc;

/// How many address spaces a processor can keep translations of at a time.
pub const SPACES: usize = 16;

/// What to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The CR3 to run with: the top of 4-level or 5-level tables if the guest uses such, else of PAE tables.
    pub cr3: u64,
    /// What to tag cached translations with (a VPID for each): below [`SPACES`].
    pub space: usize,
    /// What is cached with this tag must be forgotten first.
    pub forget: bool,
}

/// What a processor must forget at INVLPG, of the address space that it ran on last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forget {
    /// Nothing, beyond what the next entry asks for.
    Nothing,
    /// The page.
    Page,
    /// All of the address space.
    Space,
}

/// What was removed of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removed {
    Nothing,
    /// The translation of one page of 4 KiB, at one address.
    Page,
    More,
}

/// How the tables stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Age {
    /// What was cached before this epoch must be forgotten before the guest is entered.
    pub flush_epoch: u64,
    /// How often something was removed. When the guest does something that makes a processor forget
    /// translations, what was cached while this was less must be forgotten.
    pub removals: u64,
}

/// What is cached of an address space.
#[derive(Clone, Copy, Debug)]
struct Space {
    root: u64,
    age: Age,
    /// When it was entered last.
    used: u64,
}

/// No address space.
const NO_ROOT: u64 = u64::MAX;

/// A processor that runs on shadow tables.
#[derive(Debug)]
pub struct Seat {
    presence: Arc<Presence>,
    /// What it ran on last, and the epoch, if that may be right again.
    last: Option<(Run, u64)>,
    spaces: [Space; SPACES],
    /// The one entered last.
    current: usize,
    entries: u64,
    /// The guest did something that makes a processor forget translations.
    flushing: bool,
}

impl Seat {
    pub(super) fn new(presence: Arc<Presence>) -> Self {
        let space = Space { root: NO_ROOT, age: Age::default(), used: 0 };
        Self { presence, last: None, spaces: [space; SPACES], current: 0, entries: 0, flushing: false }
    }

    /// Enters the guest as the last time, if that is right and nothing has happened since. The guest's
    /// paging mode must be that of the last [`Shadow::enter`](super::Shadow::enter).
    #[inline]
    pub fn enter_again(&self) -> Option<Run> {
        let (run, epoch) = self.last?;
        self.presence.try_enter(epoch).then_some(run)
    }

    /// Has left the guest.
    #[inline]
    pub fn leave(&self) {
        self.presence.leave();
    }

    /// Enters the guest on a root; `epoch` is the present one.
    pub(super) fn enter(&mut self, root: u64, cr3: u64, age: Age, epoch: u64) -> Run {
        self.entries += 1;
        self.presence.run_on(root);
        let known = self.spaces.iter().position(|space| space.root == root);
        let (space, fresh) = match known {
            Some(space) => (space, false),
            None => (self.oldest(), true),
        };
        let flushing = std::mem::take(&mut self.flushing);
        let cached = &mut self.spaces[space];
        let forget = fresh
            || cached.age.flush_epoch < age.flush_epoch
            || flushing && cached.age.removals != age.removals;
        if forget {
            (cached.root, cached.age) = (root, age);
        }
        cached.used = self.entries;
        self.current = space;
        self.last = Some((Run { cr3, space, forget: false }, epoch));
        // Epochs begin under the lock of the tables only, which is held.
        self.presence.try_enter(epoch);
        Run { cr3, space, forget }
    }

    fn oldest(&self) -> usize {
        let oldest = self.spaces.iter().enumerate().min_by_key(|(_, space)| space.used);
        oldest.map_or(0, |(at, _)| at)
    }

    pub(super) fn flush(&mut self) {
        self.flushing = true;
        self.last = None;
    }

    /// INVLPG took something away, or not; the tables stood so before and stand so after it.
    pub(super) fn invlpg(&mut self, removed: Removed, before: Age, after: Age) -> Forget {
        if self.flushing {
            // Everything is compared at the next entry.
            return Forget::Nothing;
        }
        let cached = &mut self.spaces[self.current];
        let in_line = cached.age.removals == before.removals;
        match removed {
            Removed::Nothing if in_line => Forget::Nothing,
            Removed::Page if in_line => {
                cached.age.removals = after.removals;
                Forget::Page
            }
            _ => {
                // The epoch is looked at when the guest is entered.
                cached.age.removals = after.removals;
                Forget::Space
            }
        }
    }
}
