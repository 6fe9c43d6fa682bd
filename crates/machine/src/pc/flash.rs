//! The flash chip that keeps the variables of UEFI firmware.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use trapline_chipset::Pflash;
use trapline_chipset::pflash::{BLOCK, FlashStore, FlashView, PflashConfig};
use trapline_device::DmaMemory;
use trapline_memory::{DeviceMemory, GuestRam, Slot};
use trapline_pci::{BusLayout, Effects};

use crate::chassis::lock;
use crate::devices::shared;
use crate::{Error, Result};

/// Where a UEFI firmware keeps its variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Variables {
    /// In memory, at first those of this file. They are gone when the machine is.
    Volatile(PathBuf),
    /// In a file. If it does not exist, it is made as a copy of the template.
    File {
        /// The file.
        path: PathBuf,
        /// What it begins as.
        template: Option<PathBuf>,
    },
}

impl Variables {
    /// The content, and the file that keeps it.
    fn open(&self) -> Result<(Vec<u8>, Option<File>)> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|e| Error::Variables { path: path.to_owned(), why: e.to_string() })
        };
        let (path, template) = match self {
            Self::Volatile(template) => return Ok((read(template)?, None)),
            Self::File { path, template } => (path, template),
        };
        let failed = |why: String| Error::Variables { path: path.clone(), why };
        if let Some(template) = template.as_ref().filter(|_| !path.exists()) {
            std::fs::write(path, read(template)?).map_err(|e| failed(e.to_string()))?;
        }
        let open = OpenOptions::new().read(true).write(true).open(path);
        let file = open.map_err(|e| failed(e.to_string()))?;
        match file.try_lock() {
            Ok(()) => Ok((read(path)?, Some(file))),
            Err(TryLockError::WouldBlock) => Err(failed("in use by another machine".to_owned())),
            Err(TryLockError::Error(e)) => Err(failed(e.to_string())),
        }
    }
}

/// The chip and its place.
#[derive(Clone)]
pub(crate) struct Flash {
    pub(crate) chip: Arc<Mutex<Pflash>>,
    /// The cells as memory, where the guest sees them.
    slot: Slot,
    view: Arc<View>,
}

impl Flash {
    /// A chip that ends at `end`.
    pub(crate) fn new(
        ram: &mut GuestRam,
        variables: &Variables,
        end: u64,
        effects: &Effects,
    ) -> Result<Self> {
        /// More than any firmware has.
        const MOST: u64 = 8 << 20;
        let (content, file) = variables.open()?;
        let size = content.len() as u64;
        if size == 0 || size > MOST || !size.is_multiple_of(BLOCK) {
            let (Variables::Volatile(path) | Variables::File { path, .. }) = variables;
            let why = format!("{size} bytes; expected a multiple of 4 KiB, at most 8 MiB");
            return Err(Error::Variables { path: path.clone(), why });
        }
        let memory = ram.add_device_memory(size)?;
        memory.write(0, &content);
        let slot = Slot { read_only: true, ..memory.map(end - size) };
        let view = Arc::new(View { array: AtomicBool::new(true), effects: effects.clone() });
        let chip = Pflash::new(PflashConfig {
            name: "flash",
            cells: Arc::new(Cells(memory)),
            size,
            writable: true,
            view: view.clone(),
            store: file.map(|file| Box::new(file) as Box<dyn FlashStore>),
        });
        Ok(Self { chip: shared(chip), slot, view })
    }

    /// The cells, while they are shown.
    pub(crate) fn slot(&self) -> Option<Slot> {
        self.view.array.load(Ordering::Acquire).then_some(self.slot)
    }

    /// What answers where the cells are not shown, and to writes.
    pub(crate) fn wire(&self, layout: &mut BusLayout) -> Result<()> {
        Ok(layout.mmio.register(self.slot.gpa, self.slot.size, self.chip.clone(), 0, "flash")?)
    }

    /// Makes everything durable that the firmware has kept.
    pub(crate) fn flush(&self) -> Result<()> {
        lock(&self.chip).flush().map_err(Error::host("variables of the firmware"))
    }
}

/// Whether the guest sees the cells.
struct View {
    array: AtomicBool,
    effects: Effects,
}

impl FlashView for View {
    fn set_array(&self, array: bool) {
        self.array.store(array, Ordering::Release);
        self.effects.memory();
    }
}

/// The chip's side of the cells.
struct Cells(DeviceMemory);

impl DmaMemory for Cells {
    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        self.0.read(address, data).is_some()
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        self.0.write(address, data).is_some()
    }
}
