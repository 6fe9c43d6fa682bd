//! The software TLB: direct-mapped, with separate read, write and execute tags, each tagged with an
//! address-space number, so that a change of address space is a change of one number.

#![allow(unsafe_code)]

use std::ptr::NonNull;

use super::PAGE;

/// Entries of one set; there is one set for each way that privilege changes what is accessible.
pub(super) const SETS: usize = 2048;

/// Epochs of links before they are counted anew: what fits beside a view in 16 bits.
const EPOCHS: u16 = 1 << 14;

/// Which rights an access is made with; each has its own part of the TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum View {
    /// Privilege level 3.
    User = 0,
    /// Privilege levels 0–2, and implicit supervisor accesses.
    Supervisor = 1,
    /// Supervisor with RFLAGS.AC set while CR4.SMAP is on.
    SupervisorAc = 2,
    /// Privilege level 3 with alignment checks, and whatever else must see every access: never filled.
    Checked = 3,
}

/// One entry. A tag is the linear page number's address with the address-space number in its low 12
/// bits; [`TlbEntry::NONE`] matches nothing.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct TlbEntry {
    pub r: u64,
    pub w: u64,
    pub x: u64,
    /// Host address minus linear address.
    pub addend: u64,
}

impl TlbEntry {
    /// No tag has this value: address-space number 0xfff is never given out.
    pub const NONE: u64 = u64::MAX;
    const EMPTY: Self = Self { r: Self::NONE, w: Self::NONE, x: Self::NONE, addend: 0 };
}

// SAFETY: `part` points into the box that the table owns.
unsafe impl Send for Tlb {}

/// The rights of a translation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rights {
    pub read: bool,
    pub write: bool,
    pub execute: bool,
}

/// The table.
pub(super) struct Tlb {
    entries: Box<[TlbEntry; 4 * SETS]>,
    /// The part of the current view: `SETS` entries inside `entries`.
    part: NonNull<TlbEntry>,
    view: View,
    /// Regions of 2 MiB (by hash) from which a part of a large page was cached: an INVLPG there flushes
    /// everything, since the other parts cannot be found.
    large: Box<[u64; 64]>,
    /// Pages (by hash) that links between blocks lead to: an INVLPG there ends all such links.
    linked: Box<[u64; 64]>,
    /// Counts the times when links ended, from 1.
    epoch: u16,
    /// What a link must have been made under to be good now: the epoch and the view. 0 when epochs have run out.
    era: u16,
}

impl Tlb {
    /// Where `part` and `era` lie, for host code.
    pub const PART: usize = std::mem::offset_of!(Self, part);
    pub const ERA: usize = std::mem::offset_of!(Self, era);

    pub fn new() -> Self {
        let entries = vec![TlbEntry::EMPTY; 4 * SETS].into_boxed_slice();
        let Ok(mut entries) = <Box<[TlbEntry; 4 * SETS]>>::try_from(entries) else {
            unreachable!("the length is the array's")
        };
        let part = NonNull::from(&mut entries[0]);
        let (large, linked) = (Box::new([0; 64]), Box::new([0; 64]));
        let mut tlb = Self { entries, part, view: View::User, large, linked, epoch: 1, era: 0 };
        tlb.set_view(View::Supervisor);
        tlb
    }

    /// Makes `view` the one that [`Tlb::entry`] looks into.
    pub fn set_view(&mut self, view: View) {
        self.view = view;
        self.part = NonNull::from(&mut self.entries[view as usize * SETS]);
        self.set_era();
    }

    fn set_era(&mut self) {
        self.era = if self.epoch == EPOCHS { 0 } else { self.epoch << 2 | self.view as u16 };
    }

    /// What links between blocks that are made now are good for, and those made earlier must match; 0 matches
    /// none.
    #[inline(always)]
    pub fn era(&self) -> u16 {
        self.era
    }

    /// A link leads to `lin`.
    pub fn note_link(&mut self, lin: u64) {
        let bit = link_bit(lin);
        self.linked[bit >> 6] |= 1 << (bit & 63);
    }

    /// Ends all links.
    fn end_links(&mut self) {
        self.linked.fill(0);
        self.epoch = (self.epoch + 1).min(EPOCHS);
        self.set_era();
    }

    /// Whether no more links can be made until [`Tlb::new_links`].
    pub fn links_worn(&self) -> bool {
        self.epoch == EPOCHS
    }

    /// No link is left anywhere.
    pub fn new_links(&mut self) {
        self.epoch = 1;
        self.set_era();
    }

    /// The current view.
    pub fn view(&self) -> View {
        self.view
    }

    /// The entry where the current view's translation of `lin` would be.
    #[inline(always)]
    pub fn entry(&self, lin: u64) -> &TlbEntry {
        let index = (lin >> 12) as usize & (SETS - 1);
        // SAFETY: `part` points to `SETS` entries of the box, which is never replaced; shared access
        // here is through `&self`, writes go through `&mut self`.
        unsafe { self.part.add(index).as_ref() }
    }

    pub fn fill(&mut self, lin: u64, view: View, asid: u64, addend: u64, rights: Rights, large: Option<u32>) {
        if let Some(shift) = large {
            let bit = large_bit(lin, shift);
            self.large[bit >> 6] |= 1 << (bit & 63);
        }
        let tag = lin & !(PAGE - 1) | asid;
        let e = &mut self.entries[(lin >> 12) as usize & (SETS - 1) | (view as usize * SETS)];
        let tag_if = |on: bool| if on { tag } else { TlbEntry::NONE };
        let (r, w, x) = (tag_if(rights.read), tag_if(rights.write), tag_if(rights.execute));
        if e.addend == addend && (e.r == tag || e.w == tag || e.x == tag) {
            // The same page for another kind of access: keep what is known.
            if rights.read {
                e.r = r;
            }
            if rights.write {
                e.w = w;
            }
            if rights.execute {
                e.x = x;
            }
        } else {
            *e = TlbEntry { r, w, x, addend };
        }
    }

    /// Forgets one page in all views. Says whether it may have been part of a large page, so that
    /// everything must go.
    pub fn forget(&mut self, lin: u64) -> bool {
        for view in 0..4 {
            self.entries[(lin >> 12) as usize & (SETS - 1) | (view * SETS)] = TlbEntry::EMPTY;
        }
        let bit = link_bit(lin);
        if self.linked[bit >> 6] >> (bit & 63) & 1 != 0 {
            self.end_links();
        }
        let hit = |bit: usize| self.large[bit >> 6] >> (bit & 63) & 1 != 0;
        hit(large_bit(lin, 21)) || hit(large_bit(lin, 30))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries.fill(TlbEntry::EMPTY);
        self.forget_large();
        self.end_links();
    }

    /// All cached parts of large pages have become unreachable.
    pub fn forget_large(&mut self) {
        self.large.fill(0);
    }

    /// Takes the write tags of every entry whose host page is `host`; says whether there were any.
    pub fn protect(&mut self, host: u64) -> bool {
        let mut any = false;
        for e in self.entries.iter_mut().filter(|e| e.w != TlbEntry::NONE) {
            if (e.w & !(PAGE - 1)).wrapping_add(e.addend) == host {
                e.w = TlbEntry::NONE;
                any = true;
            }
        }
        any
    }
}

fn link_bit(lin: u64) -> usize {
    (lin >> 12 ^ lin >> 24) as usize & 4095
}

fn large_bit(lin: u64, shift: u32) -> usize {
    // Two halves of the filter, so that a 1 GiB page does not look like its first 2 MiB.
    if shift >= 30 { 2048 | (lin >> 30) as usize & 2047 } else { (lin >> 21) as usize & 2047 }
}

/// What makes an address space: VPID and PCID, and the EPT pointer.
pub(super) type Space = (u32, u64);

/// Of no address space: a key has 28 bits.
const NO_SPACE: Space = (u32::MAX, 0);

/// Address-space numbers for the address spaces that were used lately.
pub(super) struct Asids {
    known: [(Space, u16); 16],
    turn: usize,
    next: u16,
}

impl Asids {
    /// The number reserved for [`TlbEntry::NONE`].
    const LIMIT: u16 = 0xfff;

    pub fn new() -> Self {
        Self { known: [(NO_SPACE, 0); 16], turn: 0, next: 0 }
    }

    /// The number of `key`; `fresh` gives it a new one, which is how an address space is
    /// flushed. `None` when numbers have run out: clear the TLB and ask again.
    pub fn get(&mut self, key: Space, fresh: bool) -> Option<u64> {
        let at = self.known.iter().position(|k| k.0 == key);
        if let (Some(at), false) = (at, fresh) {
            return Some(u64::from(self.known[at].1));
        }
        if self.next == Self::LIMIT {
            *self = Self::new();
            return None;
        }
        let at = at.unwrap_or_else(|| {
            self.turn = (self.turn + 1) % self.known.len();
            self.turn
        });
        self.known[at] = (key, self.next);
        self.next += 1;
        Some(u64::from(self.known[at].1))
    }

    /// Forgets the numbers of all spaces that `which` selects.
    pub fn forget(&mut self, which: impl Fn(u32, u64) -> bool) {
        for k in self.known.iter_mut().filter(|k| which(k.0.0, k.0.1)) {
            k.0 = NO_SPACE;
        }
    }
}
