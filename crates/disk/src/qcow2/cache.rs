//! A bounded write-back cache of metadata tables, each one cluster large.

use std::collections::HashMap;
use std::ops::Range;

use crate::contract::Result;
use crate::storage::{Storage, read_exact, write};

/// Bytes of tables that a cache holds, if that is at least [`MIN_TABLES`].
const CACHE_BYTES: usize = 8 << 20;
const MIN_TABLES: usize = 4;
/// Looking for the oldest table goes through all of them.
const MAX_TABLES: usize = 1024;

struct Table {
    bytes: Box<[u8]>,
    /// What differs from the file, in whole 512-byte sectors.
    dirty: Range<usize>,
    used: u64,
}

/// Tables by their offset in the file.
pub struct TableCache {
    tables: HashMap<u64, Table>,
    table_bytes: usize,
    max: usize,
    clock: u64,
    what: &'static str,
}

impl TableCache {
    pub fn new(table_bytes: usize, what: &'static str) -> Self {
        let max = (CACHE_BYTES / table_bytes).clamp(MIN_TABLES, MAX_TABLES);
        Self { tables: HashMap::new(), table_bytes, max, clock: 0, what }
    }

    /// The table at `offset` if it is held.
    pub fn get(&mut self, offset: u64) -> Option<&[u8]> {
        self.clock += 1;
        let table = self.tables.get_mut(&offset)?;
        table.used = self.clock;
        Some(&table.bytes)
    }

    pub fn contains(&self, offset: u64) -> bool {
        self.tables.contains_key(&offset)
    }

    /// Makes room for one more; false if everything held is dirty.
    pub fn make_room(&mut self) -> bool {
        while self.tables.len() >= self.max {
            let clean = self.tables.iter().filter(|(_, table)| table.dirty.is_empty());
            let Some((&oldest, _)) = clean.min_by_key(|(_, table)| table.used) else { return false };
            self.tables.remove(&oldest);
        }
        true
    }

    /// Reads the table at `offset`. Room must have been made.
    pub fn load(&mut self, storage: &dyn Storage, offset: u64) -> Result<()> {
        let mut bytes = vec![0; self.table_bytes].into_boxed_slice();
        read_exact(storage, offset, &mut bytes, self.what)?;
        self.clock += 1;
        self.tables.insert(offset, Table { bytes, dirty: 0..0, used: self.clock });
        Ok(())
    }

    /// Adds a new table that is not in the file yet. Room must have been made.
    pub fn insert(&mut self, offset: u64, bytes: Box<[u8]>) {
        self.clock += 1;
        self.tables.insert(offset, Table { dirty: 0..bytes.len(), bytes, used: self.clock });
    }

    /// Changes bytes of a table that is held.
    pub fn update(&mut self, offset: u64, at: usize, bytes: &[u8]) {
        let Some(table) = self.tables.get_mut(&offset) else { return };
        let end = at + bytes.len();
        table.bytes[at..end].copy_from_slice(bytes);
        let (start, end) = (at & !511, end.next_multiple_of(512).min(table.bytes.len()));
        table.dirty = match table.dirty.is_empty() {
            true => start..end,
            false => table.dirty.start.min(start)..table.dirty.end.max(end),
        };
    }

    pub fn is_dirty(&self) -> bool {
        self.tables.values().any(|table| !table.dirty.is_empty())
    }

    /// Writes what is dirty, in order of offset.
    pub fn write_dirty(&mut self, storage: &dyn Storage) -> Result<()> {
        let dirty = self.tables.iter_mut().filter(|(_, table)| !table.dirty.is_empty());
        let mut dirty: Vec<_> = dirty.collect();
        dirty.sort_unstable_by_key(|(offset, _)| **offset);
        for (offset, table) in dirty {
            write(storage, offset + table.dirty.start as u64, &table.bytes[table.dirty.clone()])?;
            table.dirty = 0..0;
        }
        Ok(())
    }

    /// Forgets a table whose cluster is given back.
    pub fn forget(&mut self, offset: u64) {
        self.tables.remove(&offset);
    }
}
