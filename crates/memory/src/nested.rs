//! Two-dimensional walks: guest linear address through the guest's tables and an EPT to the memory below.
//!
//! The tables of the guest lie at guest-physical addresses, so each access of the guest walk is
//! translated by an EPT walk first: [`GuestTables`] is a [`TableMemory`] that does so. It stacks: for a
//! nested guest, the memory below is again a `GuestTables`, over the EPT of the level below.

use crate::ept::{self, EptAccess, EptFault, EptLeaf, EptMode, EptQualification};
use crate::paging::{self, Access, Leaf, PagingMode, WalkError};
use crate::table::{PageSize, TableMemory};

/// Why a two-dimensional walk gave no translation: a page fault of the guest's own, or
/// [`WalkError::Memory`] with an EPT violation or misconfiguration.
pub type Fault<E> = WalkError<EptFault<E>>;

/// Guest-physical memory as a [`TableMemory`].
#[derive(Clone, Copy, Debug)]
pub struct GuestTables<'a, M> {
    mem: &'a M,
    ept: &'a EptMode,
    /// Access that a read makes.
    read: EptAccess,
    /// Bits added to the qualification of violations.
    context: EptQualification,
}

impl<'a, M: TableMemory> GuestTables<'a, M> {
    /// For the walk of guest paging structures on behalf of a linear address: violations have bit 7
    /// (linear address valid) set and bit 8 (final translation) clear, and reads count as writes if the
    /// EPTP enables accessed and dirty flags.
    #[inline]
    pub fn new(mem: &'a M, ept: &'a EptMode) -> Self {
        let read =
            if ept.accessed_dirty() { EptAccess::READ.union(EptAccess::WRITE) } else { EptAccess::READ };
        Self { mem, ept, read, context: EptQualification::LINEAR_VALID }
    }

    /// For accesses that no linear address stands behind: PDPTE loads, VMCS and EPT of a nested guest.
    #[inline]
    pub fn without_linear(mem: &'a M, ept: &'a EptMode) -> Self {
        Self { mem, ept, read: EptAccess::READ, context: EptQualification::empty() }
    }

    #[inline]
    fn translate(&self, gpa: u64, access: EptAccess) -> Result<u64, EptFault<M::Error>> {
        let leaf = ept::walk(self.mem, self.ept, gpa, access).map_err(|fault| with(fault, self.context))?;
        Ok(leaf.hpa)
    }
}

impl<M: TableMemory> TableMemory for GuestTables<'_, M> {
    type Error = EptFault<M::Error>;

    #[inline]
    fn read(&self, pa: u64) -> Result<u64, Self::Error> {
        self.mem.read(self.translate(pa, self.read)?).map_err(EptFault::Memory)
    }

    #[inline]
    fn write(&self, pa: u64, value: u64) -> Result<(), Self::Error> {
        self.mem.write(self.translate(pa, EptAccess::WRITE)?, value).map_err(EptFault::Memory)
    }

    #[inline]
    fn compare_exchange(&self, pa: u64, current: u64, new: u64) -> Result<Result<u64, u64>, Self::Error> {
        let hpa = self.translate(pa, self.read | EptAccess::WRITE)?;
        self.mem.compare_exchange(hpa, current, new).map_err(EptFault::Memory)
    }

    #[inline]
    fn fetch_or(&self, pa: u64, bits: u64) -> Result<u64, Self::Error> {
        let hpa = self.translate(pa, self.read | EptAccess::WRITE)?;
        self.mem.fetch_or(hpa, bits).map_err(EptFault::Memory)
    }
}

/// The result of a two-dimensional walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The translation of the very address asked for.
    pub hpa: u64,
    /// The smaller of the two pages it lies in: what a TLB entry may cover.
    pub page_size: PageSize,
    /// The guest's translation.
    pub guest: Leaf,
    /// The EPT's translation of `guest.gpa`.
    pub ept: EptLeaf,
}

impl Translation {
    /// Whether a write needs no further walk to have dirty flags set, on either level.
    #[inline]
    pub const fn dirty(&self) -> bool {
        self.guest.dirty && self.ept.dirty
    }

    /// What both levels allow in user or supervisor mode, with EFLAGS.AC as given.
    #[inline]
    pub fn rights(&self, paging: &PagingMode, ept: &EptMode, user: bool, ac: bool) -> paging::Rights {
        let guest = self.guest.rights(paging, user, ac);
        let perms = self.ept.perms;
        let execute = if ept.mode_based_execute && self.guest.user {
            ept::EptPerms::USER_EXECUTE
        } else {
            ept::EptPerms::EXECUTE
        };
        paging::Rights {
            read: guest.read && perms.contains(ept::EptPerms::READ),
            write: guest.write && perms.contains(ept::EptPerms::WRITE),
            execute: guest.execute && perms.contains(execute),
        }
    }
}

/// Translates a guest linear address to an address in `mem`.
///
/// # Errors
/// A page fault; a violation or misconfiguration, with bits 7 and 8 of the qualification set as for an
/// access to a linear address; what `mem` returned.
#[inline]
pub fn translate<M: TableMemory>(
    mem: &M,
    ept: &EptMode,
    paging: &PagingMode,
    gva: u64,
    access: Access,
) -> Result<Translation, Fault<M::Error>> {
    let guest = paging::walk(&GuestTables::new(mem, ept), paging, gva, access)?;
    let mut wanted = if access.fetch {
        EptAccess::FETCH
    } else if access.write {
        EptAccess::WRITE
    } else {
        EptAccess::READ
    };
    wanted.set(EptAccess::USER, guest.user);
    let context = EptQualification::LINEAR_VALID | EptQualification::FINAL;
    let leaf =
        ept::walk(mem, ept, guest.gpa, wanted).map_err(|fault| WalkError::Memory(with(fault, context)))?;
    Ok(Translation { hpa: leaf.hpa, page_size: guest.page_size.min(leaf.page_size), guest, ept: leaf })
}

/// Adds what the EPT walk itself cannot know to a violation.
#[inline]
fn with<E>(fault: EptFault<E>, context: EptQualification) -> EptFault<E> {
    match fault {
        EptFault::Violation { gpa, qualification } => {
            EptFault::Violation { gpa, qualification: qualification | context }
        }
        other => other,
    }
}
