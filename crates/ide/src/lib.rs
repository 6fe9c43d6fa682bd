//! IDE: disks (ATA) and CD-ROMs (ATAPI) behind a PIIX3 bus-master controller, 8086:7010.
//!
//! [`PiixIde`] is a PCI function with two channels of two [`Drive`]s each. The channels answer at the
//! compatibility ports (0x1f0 and 0x3f6, 0x170 and 0x376) while their decode enable bit in
//! [`IDETIM`] is set; the bus master registers are BAR 4. Their interrupts are the two lines of
//! [`IdeConfig`], on a PC ISA interrupts 14 and 15; the function has no PCI interrupt pin.
//!
//! A drive reaches its disk by [`Io`]: at once on the thread that touches the register, or through a
//! `trapline_disk::Engine`. Then whatever the engine cannot serve at once leaves the drive busy, and
//! the board calls [`PiixIde::complete`] when the engine's event is readable. That holds for PIO as
//! for DMA. Before a snapshot call [`PiixIde::quiesce`].
//!
//! # What is modelled
//!
//! - **ATA** (ATA8-ACS, older commands ATA/ATAPI-5): IDENTIFY DEVICE; READ and WRITE SECTORS,
//!   MULTIPLE and DMA, with their EXT and FUA forms; READ VERIFY; SET MULTIPLE; SET FEATURES (write
//!   cache, transfer mode, look-ahead); FLUSH CACHE (EXT); SEEK, RECALIBRATE, INITIALIZE DEVICE
//!   PARAMETERS, EXECUTE DEVICE DIAGNOSTIC, READ NATIVE MAX ADDRESS (EXT); power management; SMART
//!   status, data without attributes, log directory; DATA SET MANAGEMENT with TRIM. CHS, 28-bit and
//!   48-bit addresses; SRST, nIEN, HOB.
//! - **ATAPI** (SFF-8020i, MMC-6): PACKET by PIO with byte-count limit and by DMA; TEST UNIT READY,
//!   REQUEST SENSE, INQUIRY, START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL, READ CAPACITY, READ(10),
//!   READ(12), READ CD, SEEK(10), READ TOC, READ DISC INFORMATION, GET CONFIGURATION, GET EVENT
//!   STATUS NOTIFICATION, MODE SENSE(10), MECHANISM STATUS, SET CD SPEED.
//! - **Bus master** (SFF-8038i): physical region descriptors, and the three ways in which a
//!   transfer can end; a descriptor table ends at a 64 KiB boundary.
//!
//! # Deviations and what is left out
//!
//! - IDENTIFY offers multiword DMA 0 to 2 and Ultra DMA 0 to 5, as a drive newer than its controller
//!   does. The PIIX3 has no Ultra DMA timing: a driver of it chooses multiword DMA 2. Timing
//!   registers are stored and do not change speed.
//! - An empty channel, and an absent drive 0 beside a drive 1, read as zero. For an absent drive 1,
//!   drive 0 answers, with a status of zero.
//! - BMIC's direction bit is stored: the command decides. Regions of memory may cross 64 KiB.
//! - After too short a table, and after unreachable memory (BMIS error), the drive waits for a reset
//!   as on hardware.
//! - A command on sectors that are not on the disk fails with IDNF before any is transferred. The
//!   LBA registers move on at the end of a command, not with each block.
//! - The blocks of a PIO write are gathered, up to 256 KiB, and written at once. So DRQ and the interrupt of
//!   a block say only that the drive has it, as with any drive that has a buffer. The interrupt at the end of
//!   the command comes when the disk has taken all of it, durably if the command or a switched-off write
//!   cache asks for that. A reset in the middle drops what was gathered and not yet written: each sector of
//!   the command is then old or new.
//! - What a disk fails to write is reported with ABRT, at the first of the sectors that were written at once
//!   (1 MiB at most by DMA); UNC is for reads.
//! - Raw sectors of READ CD have zeroes for error detection and correction codes; no audio tracks,
//!   no sub-channels, one session; no MODE SELECT, no writing.
//! - NCQ, security, host protected area (SET MAX), device configuration overlay, APM and acoustic
//!   management, IDLE timers, self-tests, logs beside the directory, 8-bit data transfers, native PCI
//!   mode.
//!
//! # Example
//!
//! ```
//! use std::sync::{Arc, Mutex};
//!
//! use trapline_device::AccessSize::{Byte, Word};
//! use trapline_device::{IrqLine, test::Recorder};
//! use trapline_disk::RawDisk;
//! use trapline_ide::{Drive, DriveIdentity, IDETIM, IDETIM_DECODE, IdeConfig, Io, PiixIde};
//! use trapline_pci::{regs, test::Bench};
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//!
//! let disk = Arc::new(RawDisk::in_memory(1 << 20)?);
//! let irqs = Arc::new(Recorder::default());
//! let ide = PiixIde::new(IdeConfig {
//!     subsystem: (0, 0),
//!     memory: Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?),
//!     irqs: [IrqLine::new(irqs.clone(), 14), IrqLine::new(irqs.clone(), 15)],
//!     drives: [[Some(Drive::disk(Io::Blocking(disk), DriveIdentity::new("0001"))), None], [None, None]],
//! })?;
//! let mut bench = Bench::new();
//! bench.plug(Arc::new(Mutex::new(ide)));
//!
//! // As firmware does it: decode the primary channel, then IDENTIFY DEVICE.
//! bench.write(IDETIM, Word, IDETIM_DECODE.into());
//! bench.write(regs::COMMAND, Word, 1);
//! bench.io_write(0x1f6, Byte, 0xa0);
//! bench.io_write(0x1f7, Byte, 0xec);
//! assert!(irqs.level(14));
//! assert_eq!(bench.io_read(0x1f7, Byte), 0x58); // ready, seek complete, data request
//! assert!(!irqs.level(14));
//! let words: Vec<u32> = (0..256).map(|_| bench.io_read(0x1f0, Word)).collect();
//! assert_eq!(words[60], 2048); // sectors
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod ata;
mod atapi;
mod bus_master;
mod channel;
mod controller;
mod drive;
mod io;
pub mod regs;
mod state;
mod taskfile;

pub use controller::{
    BUS_MASTER, IDETIM, IDETIM_DECODE, IdeConfig, PRIMARY_COMMAND, PRIMARY_CONTROL, PiixIde,
    SECONDARY_COMMAND, SECONDARY_CONTROL,
};
pub use drive::{Drive, DriveIdentity};
pub use io::Io;
pub use state::PiixIdeState;
