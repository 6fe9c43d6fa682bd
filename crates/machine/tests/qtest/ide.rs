//! Scripts for the IDE function: drivers' steps on both channels, and steps that no driver would take.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::bench::{Bench, Drives, cdrom, hard_disk};
use crate::board::Board;
use crate::machine::{Dword, Log, Machine, Word};
use crate::qemu::Qemu;

const IDE: u8 = 1 << 3 | 1;
const BUS_MASTER: u16 = 0xc000;
/// Sectors of the hard disks.
pub const SECTORS: u64 = 8192;
/// Sectors of 2,048 bytes on the discs.
pub const DISC: u64 = 400;
pub const OTHER_DISC: u64 = 250;
/// Where descriptors, and data that is moved by DMA, are.
const TABLE: u64 = 0x10_0000;
pub const DATA: u64 = 0x20_0000;
/// How often a status is looked at before a machine counts as stuck.
const TRIES: u32 = 300_000;

/// What there is at the four places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Empty,
    Disk,
    Cd,
    EmptyCd,
}

/// The drives of both channels.
pub type Places = [[Place; 2]; 2];

/// Which drives there are, and their images on the host.
pub struct Setup {
    places: Places,
    on_board: bool,
    _folder: TempDir,
    disk: PathBuf,
    disc: PathBuf,
    other: PathBuf,
}

/// A disk whose every 512 bytes say their number.
pub fn numbered(sectors: u64) -> Vec<u8> {
    (0..sectors).flat_map(|lba| (lba ^ 0x5a5a_0000).to_le_bytes().repeat(64)).collect()
}

impl Setup {
    /// `on_board`: the disks are on the board `pc`, otherwise on the bench.
    pub fn new(places: Places, on_board: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, sectors| {
            let path = folder.path().join(name);
            File::create(&path).unwrap().write_all(&numbered(sectors)).unwrap();
            path
        };
        Self {
            places,
            on_board,
            disk: file("disk", SECTORS),
            disc: file("disc", DISC * 4),
            other: file("other", OTHER_DISC * 4),
            _folder: folder,
        }
    }

    /// A pair of machines with these drives: ours first.
    pub fn machines(&self) -> (Box<dyn Machine>, Box<dyn Machine>) {
        let drives: Drives = self.places.map(|channel| {
            channel.map(|place| match place {
                Place::Empty => None,
                Place::Disk => Some(hard_disk(&numbered(SECTORS))),
                Place::Cd => Some(cdrom(Some(&numbered(DISC * 4)))),
                Place::EmptyCd => Some(cdrom(None)),
            })
        });
        let mut arguments = Vec::new();
        for (i, place) in self.places.into_iter().flatten().enumerate() {
            let (bus, unit) = (i / 2, i % 2);
            // Changes of a disk go to a file that is gone with QEMU.
            let disk = format!("if=none,id=disk{i},format=raw,snapshot=on,file={}", self.disk.display());
            let device = |kind: &str, drive: &str| format!("{kind},bus=ide.{bus},unit={unit}{drive}");
            match place {
                Place::Empty => continue,
                Place::Disk => {
                    arguments.extend(["-drive".into(), disk]);
                    arguments.extend(["-device".into(), device("ide-hd", &format!(",drive=disk{i}"))]);
                }
                Place::Cd => {
                    let disc = format!("if=none,id=disc,format=raw,readonly=on,file={}", self.disc.display());
                    arguments.extend(["-drive".into(), disc]);
                    arguments.extend(["-device".into(), device("ide-cd", ",id=cd,drive=disc")]);
                }
                Place::EmptyCd => arguments.extend(["-device".into(), device("ide-cd", ",id=cd")]),
            }
        }
        let mut ours: Box<dyn Machine> = if self.on_board {
            let disks = self.places.into_iter().flatten().zip(0..).filter(|(place, _)| *place == Place::Disk);
            Box::new(Board::new(&disks.map(|(_, i)| (i, &*self.disk)).collect::<Vec<_>>()))
        } else {
            Box::new(Bench::new(drives, Duration::ZERO))
        };
        let mut qemu: Box<dyn Machine> = Box::new(Qemu::start(&arguments));
        for machine in [&mut ours, &mut qemu] {
            machine.config_write(IDE, 0x40, Dword, 0x8000_8000);
            machine.config_write(IDE, 0x20, Dword, BUS_MASTER.into());
            machine.config_write(IDE, 0x04, Word, 5);
            for channel in 0..2 {
                power_up(&mut **machine, channel, self);
            }
        }
        (ours, qemu)
    }

    fn disc(&self, other: bool) -> &Path {
        if other { &self.other } else { &self.disc }
    }
}

/// The command block of a channel, but for the data port.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    pub command: u8,
    pub features: u8,
    /// Written first to count, LBA low, mid and high, for commands of 48 bits.
    pub before: Option<[u8; 4]>,
    /// Count, LBA low, mid and high.
    pub now: [u8; 4],
    pub device: u8,
}

/// A region of memory in a descriptor table.
#[derive(Clone, Copy)]
pub struct Region {
    pub address: u32,
    pub count: u16,
    pub last: bool,
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}+{:#x}{}", self.address, self.count, if self.last { " last" } else { "" })
    }
}

#[derive(Clone, Debug)]
pub enum Step {
    /// A command, and what has to follow it is left to other steps.
    Command { channel: u16, task: Task },
    /// Words are read from the data port, at either width.
    Read { channel: u16, words: u16, wide: bool },
    /// Words are written to the data port.
    Write { channel: u16, words: u16, wide: bool, seed: u16 },
    /// The data phase is carried through, as a driver does that acknowledges each block.
    Finish { channel: u16, seed: u16 },
    /// A packet by PIO or DMA, to drive 0 or 1, with its whole data phase.
    Packet { channel: u16, drive: u8, packet: [u8; 12], limit: u16, dma: bool },
    /// The status register is read: the interrupt is acknowledged.
    Status { channel: u16 },
    /// A register of the command block is written: 1 to 6.
    Register { channel: u16, offset: u16, value: u8 },
    /// Interrupts are off while a command and its data phase are carried through.
    Polled { channel: u16, task: Task, seed: u16 },
    /// Registers 2 to 5 are written twice, and read with HOB and without.
    Hob { channel: u16, before: [u8; 4], now: [u8; 4] },
    /// Both edges of SRST.
    SoftReset { channel: u16 },
    /// A descriptor table is written, and the bus master pointed at it.
    Table { channel: u16, regions: Vec<Region>, short: bool },
    /// The bus master starts.
    Start { channel: u16, to_memory: bool },
    /// The bus master stops, and its status is written.
    Stop { channel: u16, status: u8 },
    /// Memory is compared.
    Look,
    /// CD-ROMs are asked until they have nothing to tell.
    Attend,
    /// Another disc, the first one, or none.
    Disc(Option<bool>),
}

/// What is known of a machine between steps.
#[derive(Default)]
pub struct State {
    /// A DMA command was given.
    dma: [bool; 2],
    /// Registers whose content no standard defines since a command moved sectors: by channel, a bit for each.
    undefined: [u8; 2],
    /// The command given last.
    command: [u8; 2],
    /// The packet given last.
    packet: u8,
    /// The drive has moved less than it was asked for and waits for the rest. QEMU's has forgotten the command.
    short: [bool; 2],
}

/// Count and LBA. While sectors are moved, and when all were moved, they are what the drive likes.
const MOVED_BY_TRANSFERS: u8 = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6;

fn moves_sectors(command: u8) -> bool {
    const COMMANDS: [u8; 22] = [
        0x20, 0x21, 0x24, 0x25, 0x29, 0x30, 0x31, 0x34, 0x35, 0x39, 0x3d, 0x40, 0x41, 0x42, 0xc4, 0xc5, 0xc8,
        0xc9, 0xca, 0xcb, 0xce, 0x06,
    ];
    COMMANDS.contains(&command)
}

fn command_block(channel: u16) -> u16 {
    if channel == 0 { 0x1f0 } else { 0x170 }
}

fn control_block(channel: u16) -> u16 {
    if channel == 0 { 0x3f6 } else { 0x376 }
}

fn bus_master(channel: u16) -> u16 {
    BUS_MASTER + 8 * channel
}

fn is_dma(task: &Task) -> bool {
    let dma = [0xc8, 0xc9, 0xca, 0xcb, 0x25, 0x35, 0x3d, 0x06];
    dma.contains(&task.command) || task.command == 0xa0 && task.features & 1 != 0
}

/// Waits until nothing is under way, as a driver that polls.
fn settle(machine: &mut dyn Machine, state: &State, channel: u16, log: &mut Log) {
    let i = usize::from(channel);
    for _ in 0..TRIES {
        let status = machine.inb(control_block(channel));
        let moving = state.dma[i]
            && status & 0x08 != 0
            && machine.inb(bus_master(channel)) & 1 != 0
            && machine.inb(bus_master(channel) + 2) & 1 != 0;
        let waits = state.dma[i] && status & 0x88 == 0x88 && machine.inb(bus_master(channel)) & 1 == 0;
        if waits || status & 0x80 == 0 && !moving {
            return;
        }
    }
    log.see("never at rest, channel", channel, 1_u8);
}

/// A status, as far as it has to be the same: bit 4, seek complete, is obsolete, and every drive's own. QEMU's
/// CD-ROM is busy while it waits for the bus master.
fn seen_status(status: u8) -> u8 {
    if status & 0x88 == 0x88 { status & !0x90 } else { status & !0x10 }
}

/// An error register, as far as it has to be the same: a sector that is not on the disk is IDNF or ABRT.
fn seen_error(error: u8) -> u8 {
    if error == 0x10 { 0x04 } else { error }
}

/// All registers whose reading changes nothing.
fn look(machine: &mut dyn Machine, state: &State, places: Places, log: &mut Log) {
    for channel in 0..2 {
        let i = usize::from(channel);
        let status = machine.inb(control_block(channel));
        if !state.short[i] {
            log.see("status", channel, seen_status(status));
        }
        let device = machine.inb(command_block(channel) + 6);
        let drive = usize::from(device >> 4 & 1);
        let undefined = match places[i][drive] {
            // Drive 0 answers for an absent drive 1 (ATA/ATAPI-6, single device configurations); QEMU's absent drive has registers.
            Place::Empty if places[i] != [Place::Empty; 2] => 0x3e,
            _ if state.short[i] || state.dma[i] && status & 0x08 != 0 => 0xff,
            _ if status & 1 == 0 => state.undefined[i],
            _ => 0,
        };
        for offset in (1..7).filter(|offset| undefined >> offset & 1 == 0) {
            let port = command_block(channel) + offset;
            let value = machine.inb(port);
            log.see("register", port, if offset == 1 { seen_error(value) } else { value });
        }
        log.see("bmic", channel, machine.inb(bus_master(channel)));
        // QEMU's CD-ROM does not tell that the table was longer than the transfer.
        let active = if state.command[i] == 0xa0 { 1 } else { 0 };
        log.see("bmis", channel, machine.inb(bus_master(channel) + 2) & !active);
    }
    log.see("interrupts", 0_u32, machine.lines() & 0xc000);
}

fn give(machine: &mut dyn Machine, state: &mut State, channel: u16, task: &Task) {
    let base = command_block(channel);
    machine.outb(base + 6, task.device);
    machine.outb(base + 1, task.features);
    for values in task.before.iter().chain([&task.now]) {
        for (offset, value) in (2..).zip(values) {
            machine.outb(base + offset, *value);
        }
    }
    machine.outb(base + 7, task.command);
    state.dma[usize::from(channel)] = is_dma(task);
    state.command[usize::from(channel)] = task.command;
    let undefined = &mut state.undefined[usize::from(channel)];
    *undefined = match task.command {
        command if moves_sectors(command) => MOVED_BY_TRANSFERS,
        // The diagnostic code after DEVICE RESET, which QEMU does not show.
        0x08 => 1 << 1,
        _ => 0,
    };
}

/// Both edges of SRST. Against ATA/ATAPI-6, QEMU interrupts at its end, and leaves drive 1 selected if it
/// was: that is acknowledged, and undone.
fn soft_reset(machine: &mut dyn Machine, state: &mut State, channel: u16, log: &mut Log) {
    let i = usize::from(channel);
    machine.outb(control_block(channel), 4);
    machine.outb(control_block(channel), 0);
    (state.dma[i], state.undefined[i], state.short[i]) = (false, 0, false);
    settle(machine, state, channel, log);
    machine.outb(command_block(channel) + 6, 0xa0);
    machine.inb(command_block(channel) + 7);
    machine.outb(bus_master(channel) + 2, 4);
}

/// Brings the drives of a channel to where both machines are the same. QEMU shows a packet drive as ready at
/// power-on, which is no unit attention to it, and forgets a transfer mode that was set before the first
/// IDENTIFY.
fn power_up(machine: &mut dyn Machine, channel: u16, setup: &Setup) {
    let (mut state, mut log) = (State::default(), Log::default());
    for (command, features, count) in [(0xec, 0, 0), (0xa1, 0, 0), (0xef, 3, 0x22)] {
        for drive in 0..2 {
            soft_reset(machine, &mut state, channel, &mut log);
            let (now, device) = ([count, 0, 0, 0], 0xa0 | drive << 4);
            let task = Task { command, features, before: None, now, device };
            give(machine, &mut state, channel, &task);
        }
    }
    soft_reset(machine, &mut state, channel, &mut log);
    take_attentions(machine, &mut state, setup, false);
    soft_reset(machine, &mut state, channel, &mut log);
}

/// Asks CD-ROMs until they have no unit attention left, and no media event if `events` are to go too.
fn take_attentions(machine: &mut dyn Machine, state: &mut State, setup: &Setup, events: bool) {
    const TEST_UNIT_READY: [u8; 12] = [0; 12];
    const REQUEST_SENSE: [u8; 12] = [3, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0];
    const GET_EVENT_STATUS: [u8; 12] = [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0, 0, 0];
    let mut packets = [TEST_UNIT_READY, REQUEST_SENSE].repeat(3);
    packets.extend(events.then_some(GET_EVENT_STATUS));
    for (place, i) in setup.places.into_iter().flatten().zip(0..) {
        for packet in packets.iter().filter(|_| matches!(place, Place::Cd | Place::EmptyCd)) {
            let drive = i as u8 % 2;
            let step = Step::Packet { channel: i / 2, drive, packet: *packet, limit: 2048, dma: false };
            perform(machine, state, &step, setup, &mut Log::default());
        }
    }
}

/// Sends a packet.
fn send(
    machine: &mut dyn Machine,
    state: &mut State,
    (channel, drive): (u16, u8),
    packet: [u8; 12],
    limit: u16,
    dma: bool,
) {
    let [low, high] = limit.to_le_bytes();
    let (now, device) = ([0, 0, low, high], 0xa0 | drive << 4);
    state.packet = packet[0];
    give(machine, state, channel, &Task { command: 0xa0, features: dma.into(), before: None, now, device });
    settle(machine, state, channel, &mut Log::default());
    for pair in packet.chunks(2) {
        machine.out(command_block(channel), Word, u16::from_le_bytes([pair[0], pair[1]]).into());
    }
}

/// REQUEST SENSE after a failure: key and code. The qualifier is every drive's own.
fn see_sense(machine: &mut dyn Machine, state: &mut State, (channel, drive): (u16, u8), log: &mut Log) {
    machine.inb(command_block(channel) + 7);
    let packet = [3, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0];
    send(machine, state, (channel, drive), packet, 18, false);
    settle(machine, state, channel, log);
    let sense: Vec<u32> = (0..9).map(|_| machine.inp(command_block(channel), Word)).collect();
    log.see("sense key", channel, sense[1] & 0xf);
    log.see("sense code", channel, sense[6] & 0xff);
    settle(machine, state, channel, log);
    machine.inb(command_block(channel) + 7);
}

/// Words that a script writes.
fn word(seed: u16, i: u16) -> u16 {
    seed.wrapping_add(i).wrapping_mul(0x9e37)
}

/// Words of IDENTIFY DEVICE and IDENTIFY PACKET DEVICE that must be the same. The others are names, features
/// that one of the drives does not have, and settings (geometry, MULTIPLE) that QEMU shows as they were at first.
const IDENTITY: [u16; 22] =
    [0, 1, 3, 6, 47, 51, 53, 60, 61, 63, 64, 65, 66, 67, 68, 80, 83, 86, 88, 100, 101, 102];
/// Packets whose answers have names and features: INQUIRY, GET CONFIGURATION, MODE SENSE(10).
const OWN_ANSWERS: [u8; 3] = [0x12, 0x46, 0x5a];
/// Packets whose answers differ in some bit; by DMA they are not compared.
const SOMEWHAT_OWN_ANSWERS: [u8; 5] = [0x12, 0x46, 0x5a, 0x43, 0x4a];
const PACKET_IDENTITY: [u16; 5] = [0, 63, 64, 71, 88];

fn read_data(machine: &mut dyn Machine, state: &State, channel: u16, words: u16, wide: bool, log: &mut Log) {
    let port = command_block(channel);
    let (width, step) = if wide { (Dword, 2) } else { (Word, 1) };
    for i in (0..words).step_by(step) {
        let value = machine.inp(port, width);
        match state.command[usize::from(channel)] {
            0xec if !IDENTITY.contains(&i) => {}
            0xa1 if !PACKET_IDENTITY.contains(&i) => {}
            0xa0 if OWN_ANSWERS.contains(&state.packet) => {}
            // GET EVENT STATUS NOTIFICATION: QEMU does not count the rest of the header.
            0xa0 if state.packet == 0x4a && i == 0 => {}
            // READ TOC: whether the disc may be copied.
            0xa0 if state.packet == 0x43 => log.see("table of contents", i, value & !0x0200_0200),
            _ => log.see("data", i, value),
        }
    }
}

fn write_data(machine: &mut dyn Machine, channel: u16, words: u16, wide: bool, seed: u16) {
    let port = command_block(channel);
    for i in (0..words).step_by(if wide { 2 } else { 1 }) {
        let (low, high) = (u32::from(word(seed, i)), u32::from(word(seed, i + 1)));
        if wide {
            machine.out(port, Dword, high << 16 | low);
        } else {
            machine.out(port, Word, low);
        }
    }
}

/// Carries a PIO data phase through. Blocks are of whole sectors for disks, of the byte count for packets.
fn finish(machine: &mut dyn Machine, state: &State, channel: u16, seed: u16, packet: bool, log: &mut Log) {
    let base = command_block(channel);
    for block in 0..300_u32 {
        settle(machine, state, channel, log);
        log.see("interrupt of block", block, machine.lines() & (0x4000 << channel));
        let status = machine.inb(base + 7);
        log.see("status of block", block, seen_status(status));
        if status & 0x88 != 0x08 {
            return;
        }
        let words = if packet {
            let count = u16::from_le_bytes([machine.inb(base + 4), machine.inb(base + 5)]);
            log.see("byte count", block, count);
            log.see("reason", block, machine.inb(base + 2) & 7);
            count.div_ceil(2).max(1)
        } else {
            256
        };
        // Who takes the data the other way than the drive wants gets nowhere: both ways.
        read_data(machine, state, channel, words, false, log);
        if machine.inb(control_block(channel)) & 0x88 == 0x08 {
            write_data(machine, channel, words, false, seed);
        }
    }
}

pub fn perform(machine: &mut dyn Machine, state: &mut State, step: &Step, setup: &Setup, log: &mut Log) {
    match *step {
        Step::Command { channel, ref task } => {
            give(machine, state, channel, task);
            settle(machine, state, channel, log);
        }
        Step::Read { channel, words, wide } => {
            read_data(machine, state, channel, words, wide, log);
            settle(machine, state, channel, log);
        }
        Step::Write { channel, words, wide, seed } => {
            write_data(machine, channel, words, wide, seed);
            settle(machine, state, channel, log);
        }
        Step::Finish { channel, seed } => finish(machine, state, channel, seed, false, log),
        Step::Polled { channel, ref task, seed } => {
            machine.outb(control_block(channel), 2);
            give(machine, state, channel, task);
            finish(machine, state, channel, seed, false, log);
            machine.outb(control_block(channel), 0);
        }
        Step::Packet { channel, drive, packet, limit, dma } => {
            send(machine, state, (channel, drive), packet, limit, dma);
            settle(machine, state, channel, log);
            if !dma {
                finish(machine, state, channel, 0, true, log);
            }
            if machine.inb(control_block(channel)) & 0x89 == 0x01 {
                look(machine, state, setup.places, log);
                see_sense(machine, state, (channel, drive), log);
            }
        }
        Step::Status { channel } => {
            let status = machine.inb(command_block(channel) + 7);
            if !state.short[usize::from(channel)] {
                log.see("status read", channel, seen_status(status));
            }
        }
        Step::Register { channel, offset, value } => {
            machine.outb(command_block(channel) + offset, value);
        }
        Step::Hob { channel, before, now } => {
            for values in [before, now] {
                (2..)
                    .zip(values)
                    .for_each(|(offset, value)| machine.outb(command_block(channel) + offset, value));
            }
            for control in [0x80, 0x00] {
                machine.outb(control_block(channel), control);
                (2..6_u16).for_each(|offset| {
                    log.see("register, HOB first", offset, machine.inb(command_block(channel) + offset));
                });
            }
        }
        Step::SoftReset { channel } => soft_reset(machine, state, channel, log),
        Step::Table { channel, ref regions, short } => {
            state.short[usize::from(channel)] = short;
            let table = TABLE + 0x1_0000 * u64::from(channel);
            for (i, region) in regions.iter().enumerate() {
                let [a, b, c, d] = region.address.to_le_bytes();
                let [e, f] = region.count.to_le_bytes();
                let entry = [a, b, c, d, e, f, 0, u8::from(region.last) << 7];
                machine.write(table + 8 * i as u64, &entry);
            }
            machine.out(bus_master(channel) + 4, Dword, table as u32);
        }
        Step::Start { channel, to_memory } => {
            machine.outb(bus_master(channel), if to_memory { 9 } else { 1 });
            settle(machine, state, channel, log);
        }
        Step::Look => {
            let mut data = vec![0; 0x8000];
            if state.short.contains(&true) || SOMEWHAT_OWN_ANSWERS.contains(&state.packet) {
                // QEMU moves nothing then.
                machine.write(DATA, &data);
            } else {
                machine.read(DATA, &mut data);
                log.see_bytes("memory", &data);
            }
        }
        Step::Stop { channel, status } => {
            machine.outb(bus_master(channel), 0);
            machine.outb(bus_master(channel) + 2, status);
        }
        Step::Attend => {
            take_attentions(machine, state, setup, true);
            (0..2).for_each(|channel| soft_reset(machine, state, channel, log));
        }
        Step::Disc(disc) => {
            machine.change_disc(disc.map(|other| setup.disc(other)));
            // QEMU's drive interrupts then, and reports first that there is no disc, then that there is another.
            (0..2).for_each(|channel| soft_reset(machine, state, channel, log));
            // Of a disc that is gone QEMU says that it is new.
            take_attentions(machine, state, setup, disc.is_none());
            (0..2).for_each(|channel| soft_reset(machine, state, channel, log));
        }
    }
    look(machine, state, setup.places, log);
}
