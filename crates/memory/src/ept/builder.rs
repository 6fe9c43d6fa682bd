//! Building and changing EPT tables.

use super::{EptEntry, EptPerms, LEVELS, MemoryType, eptp};
use crate::table::{PageAllocator, PageSize, TableMemory};

/// The attributes of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptAttributes {
    /// What is allowed.
    pub perms: EptPerms,
    /// The memory type of the leaves.
    pub memory_type: MemoryType,
    /// Ignore the guest's PAT.
    pub ignore_pat: bool,
    /// The largest leaf to use: [`PageSize::Size4K`], [`PageSize::Size2M`] or [`PageSize::Size1G`].
    pub max_page: PageSize,
}

impl EptAttributes {
    /// Write-back memory in the largest leaves that fit.
    pub const fn new(perms: EptPerms) -> Self {
        Self { perms, memory_type: MemoryType::WriteBack, ignore_pat: false, max_page: PageSize::Size1G }
    }

    const fn bits(&self) -> u64 {
        let ignore_pat = if self.ignore_pat { EptEntry::IGNORE_PAT.bits() } else { 0 };
        self.perms.bits() | (self.memory_type as u64) << 3 | ignore_pat
    }
}

/// Why EPT tables could not be changed. What was done before the error stays done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError<E> {
    /// An address or the size is no multiple of 4 KiB.
    #[error("range {gpa:#x}+{size:#x} is not a whole number of 4 KiB pages")]
    Misaligned {
        /// Start of the range.
        gpa: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// The range ends beyond 48 bits of guest-physical or 52 bits of host-physical address.
    #[error("range {gpa:#x}+{size:#x} is beyond the address width")]
    TooHigh {
        /// Start of the range.
        gpa: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// Writable but not readable, or without any right: not a mapping that EPT can express.
    #[error("permissions {0:?} cannot be expressed")]
    Perms(EptPerms),
    /// There is no page left for another table.
    #[error("no page left for a table")]
    NoPage,
    /// A table could not be accessed.
    #[error("table access failed")]
    Memory(E),
}

/// One leaf, as [`EptBuilder::for_each_leaf`] shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptLeafEntry {
    /// The first guest-physical address that it maps.
    pub gpa: u64,
    /// What `gpa` is mapped to.
    pub hpa: u64,
    /// How much it maps.
    pub page_size: PageSize,
    /// The whole entry.
    pub entry: EptEntry,
}

/// An EPT hierarchy and the means to change it.
///
/// Entries are changed atomically, and flags that a processor sets at the same time are not lost. But a
/// processor may go on using cached translations until it is told otherwise (INVEPT), and tables that a
/// change made useless are given back at once: stop the processors first, or keep them from walking.
#[derive(Debug)]
pub struct EptBuilder<M, A> {
    mem: M,
    pages: A,
    root: u64,
    accessed_dirty: bool,
}

/// What to do with the entries of a range.
#[derive(Clone, Copy)]
enum Change {
    Map { offset: u64, attributes: EptAttributes },
    Unmap,
    Protect(EptPerms),
    Split(PageSize),
}

type Step<E> = Result<(), MapError<E>>;

impl<M: TableMemory, A: PageAllocator> EptBuilder<M, A> {
    /// An empty hierarchy. `accessed_dirty` goes into the EPTP.
    ///
    /// # Errors
    /// No page for the top table, or it could not be written.
    pub fn new(mem: M, pages: A, accessed_dirty: bool) -> Result<Self, MapError<M::Error>> {
        let mut builder = Self { mem, pages, root: 0, accessed_dirty };
        builder.root = builder.new_table(|_| 0)?;
        Ok(builder)
    }

    /// The EPTP of this hierarchy.
    pub fn eptp(&self) -> u64 {
        eptp(self.root, self.accessed_dirty)
    }

    /// Maps `size` bytes at `gpa` to `hpa`, in the largest leaves that fit. What was mapped there before
    /// is replaced.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn map(&mut self, gpa: u64, hpa: u64, size: u64, attributes: EptAttributes) -> Step<M::Error> {
        let bits = attributes.perms.bits();
        if bits & 7 == 0 || bits & 3 == EptPerms::WRITE.bits() {
            return Err(MapError::Perms(attributes.perms));
        }
        if hpa & 0xfff != 0 {
            return Err(MapError::Misaligned { gpa: hpa, size });
        }
        if hpa.checked_add(size).is_none_or(|end| end > 1 << 52) {
            return Err(MapError::TooHigh { gpa: hpa, size });
        }
        self.change(gpa, size, Change::Map { offset: hpa.wrapping_sub(gpa), attributes })
    }

    /// Removes the mapping of a range. Holes in it are no error.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn unmap(&mut self, gpa: u64, size: u64) -> Step<M::Error> {
        self.change(gpa, size, Change::Unmap)
    }

    /// Changes what is allowed in a range; leaves that reach beyond it are split. Holes stay holes.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn protect(&mut self, gpa: u64, size: u64, perms: EptPerms) -> Step<M::Error> {
        if perms.bits() & 7 == 0 || perms.bits() & 3 == EptPerms::WRITE.bits() {
            return Err(MapError::Perms(perms));
        }
        self.change(gpa, size, Change::Protect(perms))
    }

    /// Splits the leaves of a range until none is larger than `page`; accessed and dirty flags are
    /// handed down. For dirty tracking page by page.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn split(&mut self, gpa: u64, size: u64, page: PageSize) -> Step<M::Error> {
        self.change(gpa, size, Change::Split(page))
    }

    /// Shows every leaf that overlaps a range, in ascending order.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn for_each_leaf(&self, gpa: u64, size: u64, mut show: impl FnMut(EptLeafEntry)) -> Step<M::Error> {
        let end = check_range(gpa, size)?;
        self.visit(self.root, LEVELS - 1, gpa, end, &mut |_, leaf| {
            show(leaf);
            Ok(())
        })
    }

    /// Clears the dirty flag of every leaf that overlaps a range and shows those that had it set. The
    /// processors must drop their cached translations before they can set it again.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn take_dirty(&self, gpa: u64, size: u64, mut show: impl FnMut(EptLeafEntry)) -> Step<M::Error> {
        let end = check_range(gpa, size)?;
        self.visit(self.root, LEVELS - 1, gpa, end, &mut |pa, leaf| {
            if leaf.entry.contains(EptEntry::DIRTY) {
                self.update(pa, leaf.entry.bits(), |bits| bits & !EptEntry::DIRTY.bits())?;
                show(leaf);
            }
            Ok(())
        })
    }

    fn change(&mut self, gpa: u64, size: u64, change: Change) -> Step<M::Error> {
        let end = check_range(gpa, size)?;
        self.change_table(self.root, LEVELS - 1, gpa, end, &change)
    }

    /// Applies a change to the entries of one table that translate something of `start..end`.
    fn change_table(
        &self,
        table: u64,
        level: usize,
        start: u64,
        end: u64,
        change: &Change,
    ) -> Step<M::Error> {
        for (pa, gpa) in entries(table, level, start, end) {
            let span = span(level);
            let old = self.read(pa)?;
            let whole = start <= gpa && gpa + span <= end;
            let present = old & 7 != 0;
            let leaf = present && is_leaf(old, level);
            match change {
                Change::Map { offset, attributes } => {
                    let hpa = gpa.wrapping_add(*offset);
                    if whole && leaf_fits(level, hpa, attributes.max_page) {
                        let large = if level == 0 { 0 } else { EptEntry::LARGE.bits() };
                        self.write(pa, hpa | attributes.bits() | large)?;
                        self.free(old, level)?;
                        continue;
                    }
                }
                Change::Unmap if whole && present => {
                    self.write(pa, 0)?;
                    self.free(old, level)?;
                    continue;
                }
                Change::Protect(perms) if whole && leaf => {
                    self.update(pa, old, |bits| bits & !EptPerms::all().bits() | perms.bits())?;
                    continue;
                }
                Change::Split(page) if leaf && span <= page.bytes() => continue,
                _ => {}
            }
            let below = if leaf {
                self.split_leaf(pa, old, level)?
            } else if present {
                EptEntry::from_bits_retain(old).address()
            } else if matches!(change, Change::Map { .. }) {
                let below = self.new_table(|_| 0)?;
                self.write(pa, below | EptPerms::RWX.bits())?;
                below
            } else {
                continue;
            };
            self.change_table(below, level - 1, start.max(gpa), end.min(gpa + span), change)?;
            if matches!(change, Change::Unmap) && self.is_empty(below)? {
                self.write(pa, 0)?;
                self.pages.free_page(below);
            }
        }
        Ok(())
    }

    /// Replaces a large leaf by a table of leaves that map the same.
    fn split_leaf(&self, pa: u64, old: u64, level: usize) -> Result<u64, MapError<M::Error>> {
        let mut old = old;
        loop {
            let step = span(level - 1);
            let first = if level == 1 { old & !EptEntry::LARGE.bits() } else { old };
            let below = self.new_table(|index| first + index * step)?;
            let new = below | EptPerms::RWX.bits();
            match self.mem.compare_exchange(pa, old, new).map_err(MapError::Memory)? {
                Ok(_) => return Ok(below),
                // A processor set a flag in between: the new table must have it too.
                Err(now) => {
                    self.pages.free_page(below);
                    old = now;
                }
            }
        }
    }

    /// Shows the leaves of one table, and of those below, that overlap `start..end`.
    fn visit(
        &self,
        table: u64,
        level: usize,
        start: u64,
        end: u64,
        show: &mut impl FnMut(u64, EptLeafEntry) -> Step<M::Error>,
    ) -> Step<M::Error> {
        for (pa, gpa) in entries(table, level, start, end) {
            let entry = EptEntry::from_bits_retain(self.read(pa)?);
            if entry.bits() & 7 == 0 {
                continue;
            }
            if is_leaf(entry.bits(), level) {
                let page_size = PageSize::at_level(level);
                show(pa, EptLeafEntry { gpa, hpa: entry.address(), page_size, entry })?;
            } else {
                let (start, end) = (start.max(gpa), end.min(gpa + span(level)));
                self.visit(entry.address(), level - 1, start, end, show)?;
            }
        }
        Ok(())
    }

    /// Changes an entry that read as `seen`, without losing flags set in between.
    fn update(&self, pa: u64, seen: u64, new: impl Fn(u64) -> u64) -> Step<M::Error> {
        let mut seen = seen;
        while let Err(now) = self.mem.compare_exchange(pa, seen, new(seen)).map_err(MapError::Memory)? {
            seen = now;
        }
        Ok(())
    }

    /// Gives back the tables below an entry of `level` that is no longer used.
    fn free(&self, entry: u64, level: usize) -> Step<M::Error> {
        if entry & 7 == 0 || is_leaf(entry, level) {
            return Ok(());
        }
        let table = EptEntry::from_bits_retain(entry).address();
        if level > 1 {
            for index in 0..512 {
                self.free(self.read(table + index * 8)?, level - 1)?;
            }
        }
        self.pages.free_page(table);
        Ok(())
    }

    fn new_table(&self, entry: impl Fn(u64) -> u64) -> Result<u64, MapError<M::Error>> {
        let table = self.pages.alloc_page().ok_or(MapError::NoPage)?;
        for index in 0..512 {
            self.write(table + index * 8, entry(index))?;
        }
        Ok(table)
    }

    fn is_empty(&self, table: u64) -> Result<bool, MapError<M::Error>> {
        for index in 0..512 {
            if self.read(table + index * 8)? != 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read(&self, pa: u64) -> Result<u64, MapError<M::Error>> {
        self.mem.read(pa).map_err(MapError::Memory)
    }

    fn write(&self, pa: u64, value: u64) -> Step<M::Error> {
        self.mem.write(pa, value).map_err(MapError::Memory)
    }
}

impl<M, A> EptBuilder<M, A> {
    /// The memory that the tables lie in.
    pub fn memory(&self) -> &M {
        &self.mem
    }
}

/// What one entry of `level` maps, in bytes.
const fn span(level: usize) -> u64 {
    1 << (12 + 9 * level)
}

const fn is_leaf(entry: u64, level: usize) -> bool {
    level == 0 || entry & EptEntry::LARGE.bits() != 0
}

fn leaf_fits(level: usize, hpa: u64, max_page: PageSize) -> bool {
    level == 0 || level < LEVELS - 1 && span(level) <= max_page.bytes() && hpa & (span(level) - 1) == 0
}

/// The entries of `table` that translate something of `start..end`, which lies within what the table
/// translates: their addresses, and the first guest-physical address that each translates.
fn entries(table: u64, level: usize, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
    let span = span(level);
    let mut gpa = start & !(span - 1);
    core::iter::from_fn(move || {
        (gpa < end).then(|| {
            let item = (table + (gpa / span % 512) * 8, gpa);
            gpa += span;
            item
        })
    })
}

fn check_range<E>(gpa: u64, size: u64) -> Result<u64, MapError<E>> {
    if (gpa | size) & 0xfff != 0 {
        return Err(MapError::Misaligned { gpa, size });
    }
    match gpa.checked_add(size) {
        Some(end) if end <= 1 << 48 => Ok(end),
        _ => Err(MapError::TooHigh { gpa, size }),
    }
}
