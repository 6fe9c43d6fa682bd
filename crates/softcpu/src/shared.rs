//! What the processors of one machine tell each other about decoded code.
//!
//! Each processor has a code cache of its own. A page with code in any of them is marked in
//! [`PageFlags`], and nobody has a write tag for it in the TLB: so every write to it is seen, and told to
//! the others, who drop what they decoded. A processor that still had a write tag when a page was marked
//! cannot know whether it wrote there in the meantime: it says that it did.
//!
//! Left open: between the marking and the other processor's next block edge or VM exit, that other one can
//! write through its old tag and tell the first through memory; the first may run what it decoded before until
//! the note arrives, even across a serialising instruction. Telling it by an interrupt is safe: that takes a
//! VM exit. (Waiting for the others before a page is first decoded would close this too, but costs a time
//! slice for each page where there are more processors than the host has.)

use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use crate::cpu::{Cpu, Signals};
use crate::mmu::PAGE;

/// What is known of each host-physical page.
#[derive(Debug)]
pub struct PageFlags(Box<[AtomicU8]>);

impl PageFlags {
    /// Somebody has decoded code from this page: writes must be seen.
    pub const CODE: u8 = 1;

    fn new(bytes: u64) -> Self {
        Self((0..bytes.div_ceil(PAGE)).map(|_| AtomicU8::new(0)).collect())
    }

    /// The flags of the page of `hpa`.
    #[inline]
    pub fn get(&self, hpa: u64) -> u8 {
        self.0.get((hpa / PAGE) as usize).map_or(0, |f| f.load(Ordering::SeqCst))
    }

    /// Sets flags; says which were set before.
    fn set(&self, hpa: u64, flags: u8) -> u8 {
        self.0.get((hpa / PAGE) as usize).map_or(0, |f| f.fetch_or(flags, Ordering::SeqCst))
    }

    fn clear(&self, hpa: u64, flags: u8) {
        if let Some(f) = self.0.get((hpa / PAGE) as usize) {
            f.fetch_and(!flags, Ordering::SeqCst);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Note {
    /// Bytes that may hold code were written.
    Written { hpa: u64, len: u64 },
    /// The page has been marked: write tags must go.
    Watched { hpa: u64 },
}

/// Where one processor receives notes.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    signals: Arc<Signals>,
    notes: Mutex<Vec<Note>>,
}

/// Shared by the processors of a machine, and by whoever else writes to its memory.
#[derive(Debug)]
pub struct Shared {
    flags: PageFlags,
    inboxes: Mutex<Vec<Arc<Inbox>>>,
}

impl Shared {
    /// For a machine with `bytes` of host-physical memory.
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { flags: PageFlags::new(bytes), inboxes: Mutex::default() })
    }

    /// Adds a processor.
    pub(crate) fn join(&self, signals: Arc<Signals>) -> Arc<Inbox> {
        let inbox = Arc::new(Inbox { signals, notes: Mutex::default() });
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner).push(inbox.clone());
        inbox
    }

    pub(crate) fn leave(&self, inbox: &Arc<Inbox>) {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner).retain(|i| !Arc::ptr_eq(i, inbox));
    }

    /// Whether the page of `hpa` holds decoded code of any processor.
    #[inline]
    pub fn has_code(&self, hpa: u64) -> bool {
        self.flags.get(hpa) & PageFlags::CODE != 0
    }

    /// Tells every processor that a device wrote `len` bytes at host-physical `hpa`. Cheap where there is
    /// no code.
    pub fn device_wrote(&self, hpa: u64, len: u64) {
        let end = hpa.saturating_add(len.max(1));
        let mut at = hpa;
        while at < end {
            let n = (PAGE - at % PAGE).min(end - at);
            if self.has_code(at) {
                self.tell(None, Note::Written { hpa: at, len: n });
            }
            at += n;
        }
    }

    fn tell(&self, but: Option<&Arc<Inbox>>, note: Note) {
        let inboxes = self.inboxes.lock().unwrap_or_else(PoisonError::into_inner);
        for inbox in inboxes.iter().filter(|i| but.is_none_or(|b| !Arc::ptr_eq(i, b))) {
            inbox.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
            inbox.signals.raise(Signals::CODE);
        }
    }

    fn alone(&self) -> bool {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner).len() <= 1
    }

    /// Nobody has code in this page any more: only sure when there is one processor.
    pub(crate) fn unwatch(&self, hpa: u64) -> bool {
        let alone = self.alone();
        if alone {
            self.flags.clear(hpa, PageFlags::CODE);
        }
        alone
    }
}

impl Cpu {
    /// Marks the page of `hpa` as holding code, before it is read for decoding.
    pub(crate) fn watch_code(&mut self, hpa: u64) {
        if self.shared.flags.set(hpa, PageFlags::CODE) & PageFlags::CODE != 0 {
            // No write tag was given out since the flag was set.
            return;
        }
        self.mmu.protect(hpa);
        self.shared.tell(Some(&self.inbox), Note::Watched { hpa });
    }

    /// This processor has written without a write tag. Only now may the others be told: who decodes the
    /// page again before the write would keep the old code. And only now may the mark be looked at: who
    /// marks the page after this reads what was written.
    #[cold]
    pub(crate) fn written(&mut self, hpa: u64, len: usize) {
        fence(Ordering::SeqCst);
        if self.shared.has_code(hpa) {
            self.code_written(hpa, len);
        }
    }

    /// This processor has written to a page that holds code.
    fn code_written(&mut self, hpa: u64, len: usize) {
        self.shared.tell(Some(&self.inbox), Note::Written { hpa, len: len as u64 });
        self.drop_code(hpa, len as u64);
    }

    /// Acts on what others have told. At an instruction boundary.
    pub(crate) fn read_notes(&mut self) {
        self.signals.clear(Signals::CODE);
        let notes = std::mem::take(&mut *self.inbox.notes.lock().unwrap_or_else(PoisonError::into_inner));
        for note in notes {
            match note {
                Note::Written { hpa, len } => self.drop_code(hpa, len),
                Note::Watched { hpa } => {
                    if self.mmu.protect(hpa) {
                        let page = hpa & !(PAGE - 1);
                        self.shared.tell(Some(&self.inbox), Note::Written { hpa: page, len: PAGE });
                    }
                }
            }
        }
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        self.shared.leave(&self.inbox);
    }
}
