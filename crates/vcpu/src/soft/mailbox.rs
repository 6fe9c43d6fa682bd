//! What other threads want of a vCPU: its local APIC, events, kicks, and how it waits for them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use trapline_irqchip::lapic::{Delivered, Ipi, LocalApic};
use trapline_irqchip::message::{DeliveryMode, Message, lowest_priority};
use trapline_softcpu::cpu::Signals;

use super::lock;
use crate::vcpu::Kick;

/// What is on its way to a vCPU.
#[derive(Default)]
pub(super) struct Inbox {
    /// `None` in a machine without local APICs.
    pub lapic: Option<LocalApic>,
    /// NMIs: one pending, or one being latched behind it.
    pub nmi: u8,
    /// INIT.
    pub init: bool,
    /// The vector of a SIPI that came after the last INIT.
    pub sipi: Option<u8>,
    /// To be woken from HLT, or not to begin to wait: a hypercall.
    pub unhalted: bool,
}

/// The side of a vCPU that other threads see.
pub(super) struct Mailbox {
    /// Its APIC ID.
    pub id: u32,
    /// The processor's.
    pub signals: Arc<Signals>,
    inbox: Mutex<Inbox>,
    /// Something came while the vCPU was waiting.
    arrived: Condvar,
    kicked: AtomicBool,
}

impl Mailbox {
    pub fn new(id: u32, lapic: Option<LocalApic>) -> Self {
        Self {
            id,
            signals: Arc::default(),
            inbox: Mutex::new(Inbox { lapic, ..Inbox::default() }),
            arrived: Condvar::new(),
            kicked: AtomicBool::new(false),
        }
    }

    /// The inbox. Not to be held while another vCPU's is taken.
    pub fn inbox(&self) -> MutexGuard<'_, Inbox> {
        lock(&self.inbox)
    }

    /// Waits for something to come, at most for so long.
    pub fn wait<'a>(&self, inbox: MutexGuard<'a, Inbox>, most: Duration) -> MutexGuard<'a, Inbox> {
        self.arrived.wait_timeout(inbox, most).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Makes the vCPU look at its inbox, wherever it is. The inbox must be free.
    pub fn notify(&self) {
        self.signals.raise(Signals::INTERRUPT);
        // Who is about to wait holds the lock from the last look until the wait has begun.
        drop(self.inbox());
        self.arrived.notify_all();
    }

    /// Whether there was a kick that no run has reported yet; there is none from here on.
    pub fn take_kick(&self) -> bool {
        // The common case needs no write.
        self.kicked.load(Ordering::SeqCst) && self.kicked.swap(false, Ordering::SeqCst)
    }

    /// Delivers to the local APIC, and tells the vCPU if that changed anything.
    pub fn deliver(&self, delivery: DeliveryMode, vector: u8, level: bool) {
        {
            let mut inbox = self.inbox();
            let Some(lapic) = &mut inbox.lapic else { return };
            match lapic.deliver(delivery, vector, level) {
                // SMIs are not modelled; an ExtINT message means something with an 8259A at hand only.
                Delivered::Dropped | Delivered::Smi | Delivered::ExtInt => return,
                Delivered::Requested => {}
                Delivered::Nmi => inbox.nmi = (inbox.nmi + 1).min(2),
                Delivered::Init => {
                    inbox.init = true;
                    inbox.sipi = None;
                }
                Delivered::StartUp(page) => inbox.sipi = Some(page),
            }
        }
        self.notify();
    }
}

impl Kick for Mailbox {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.notify();
    }
}

/// Delivers a message to whom it is for.
pub(super) fn send_message(to: &[Arc<Mailbox>], message: &Message) {
    let matches = |mailbox: &&Arc<Mailbox>| {
        let inbox = mailbox.inbox();
        let address = inbox.lapic.as_ref().map(LocalApic::address);
        address.is_some_and(|a| a.matches(message.destination, message.mode) && a.accepts(message.delivery))
    };
    let reached = to.iter().filter(matches);
    let send = |mailbox: &Mailbox| mailbox.deliver(message.delivery, message.vector, message.level);
    if message.lowest_priority {
        if let Some(one) = idlest(reached) {
            send(one);
        }
    } else {
        reached.for_each(|mailbox| send(mailbox));
    }
}

/// Delivers an IPI of vCPU `from`.
pub(super) fn send_ipi(to: &[Arc<Mailbox>], from: u32, ipi: &Ipi) {
    let matches = |mailbox: &&Arc<Mailbox>| {
        let inbox = mailbox.inbox();
        let address = inbox.lapic.as_ref().map(LocalApic::address);
        address.is_some_and(|a| ipi.reaches(&a, mailbox.id == from))
    };
    let reached = to.iter().filter(matches);
    let send = |mailbox: &Mailbox| mailbox.deliver(ipi.delivery, ipi.vector, false);
    if ipi.delivery == DeliveryMode::LowestPriority {
        if let Some(one) = idlest(reached) {
            send(one);
        }
    } else {
        reached.for_each(|mailbox| send(mailbox));
    }
}

/// The one of lowest priority.
fn idlest<'a>(among: impl Iterator<Item = &'a Arc<Mailbox>>) -> Option<&'a Arc<Mailbox>> {
    lowest_priority(among.map(|mailbox| {
        let priority = mailbox.inbox().lapic.as_ref().map_or(u8::MAX, LocalApic::arbitration_priority);
        (mailbox, priority)
    }))
}
