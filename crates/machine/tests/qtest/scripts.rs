//! Which scripts the IDE function gets.

use proptest::prelude::*;

use crate::ide::{DATA, DISC, OTHER_DISC, Region, SECTORS, Step, Task};

/// A task of a disk: sectors that are on it, or, now and then, all are not. Of a range that begins on the disk
/// and ends beyond it, QEMU moves the first part; of writes it takes the data first, of DMA it says no before
/// the bus master starts; VERIFY it does not check.
fn task(commands: &'static [u8], drive: u8) -> impl Strategy<Value = Task> {
    let count = prop_oneof![8 => 1..6_u16, 1 => 6..40_u16];
    let on = (0..SECTORS, count).prop_map(|(lba, count)| (lba.min(SECTORS - u64::from(count)), count));
    let off = (SECTORS..1 << 28, 0..3_u16);
    let what = (prop::sample::select(commands), prop_oneof![12 => on, 1 => off]);
    (what, any::<u8>(), any::<bool>()).prop_map(move |((command, (lba, count)), features, chs)| {
        let read = matches!(command, 0x20 | 0x21 | 0x24 | 0x29 | 0xc4);
        let (lba, count) = if read { (lba, count) } else { (lba % (SECTORS - 40), count.max(1)) };
        let ([l0, l1, l2, l3, ..], [n0, n1]) = (lba.to_le_bytes(), count.to_le_bytes());
        let select = drive << 4;
        if matches!(command, 0x24 | 0x25 | 0x27 | 0x29 | 0x34 | 0x35 | 0x39 | 0x3d | 0x42 | 0xce) {
            let before = Some([n1, l3, 0, 0]);
            return Task { command, features, before, now: [n0, l0, l1, l2], device: 0x40 | select };
        }
        let now = [n0, l0, l1, l2];
        let lba_mode = Task { command, features, before: None, now, device: 0xe0 | select | l3 & 15 };
        if !chs || lba >= SECTORS {
            return lba_mode;
        }
        let now = [n0, (lba % 63) as u8 + 1, (lba / 1008) as u8, 0];
        Task { now, device: 0xa0 | select | (lba / 63 % 16) as u8, ..lba_mode }
    })
}

/// Commands that move sectors by PIO, or none.
const BY_PIO: &[u8] =
    &[0x20, 0x20, 0x21, 0x24, 0x24, 0x29, 0xc4, 0x30, 0x30, 0x31, 0x34, 0x39, 0xc5, 0x40, 0x41, 0x42, 0x70];
/// Commands that move sectors by DMA.
const BY_DMA: &[u8] = &[0xc8, 0xc9, 0x25, 0xca, 0xcb, 0x35];

/// Commands that do not move sectors, with features and count.
const OTHERS: &[(u8, u8, u8)] = &[
    (0xec, 0, 0),
    (0xec, 0, 0),
    (0xef, 0x03, 0x20),
    (0xef, 0x03, 0x22),
    (0xef, 0x03, 0x42),
    (0xef, 0x03, 0x45),
    (0xef, 0x02, 0),
    (0xef, 0x82, 0),
    (0xef, 0xaa, 0),
    (0xef, 0x55, 0),
    (0xef, 0xcc, 0),
    (0xef, 0xee, 0),
    (0xc6, 0, 0),
    (0xc6, 0, 1),
    (0xc6, 0, 2),
    (0xc6, 0, 3),
    (0xc6, 0, 8),
    (0xc6, 0, 16),
    (0xc6, 0, 32),
    (0xe7, 0, 0),
    (0xea, 0, 0),
    (0x10, 0, 0),
    (0x90, 0, 0),
    (0xf8, 0, 0),
    (0xe1, 0, 0),
    (0xe3, 0, 0),
    (0x95, 0, 0),
    (0x97, 0, 0),
    (0xe5, 0, 0),
    (0x98, 0, 0),
    (0x00, 0, 0),
    (0x08, 0, 0),
    (0xa0, 0, 0),
    (0xa1, 0, 0),
    (0x03, 0, 0),
    (0x80, 0, 0),
    (0xff, 0, 0),
];

/// EXECUTE DEVICE DIAGNOSTIC is for a lone drive: with two, QEMU's drive 1 keeps its registers.
fn other(drive: u8, drives: u8) -> impl Strategy<Value = Task> {
    let others: Vec<_> =
        OTHERS.iter().copied().filter(|(command, ..)| *command != 0x90 || drives == 1).collect();
    (prop::sample::select(others), any::<[u8; 3]>(), any::<bool>()).prop_map(
        move |((command, features, count), [low, mid, high], lba)| {
            let device = 0xa0 | drive << 4 | if lba { 0x40 } else { 0 };
            Task { command, features, before: None, now: [count, low, mid, high], device }
        },
    )
}

/// SMART with its key, or without.
fn smart(drive: u8) -> impl Strategy<Value = Task> {
    (
        prop::sample::select(&[0xd8_u8, 0xd9, 0xda, 0xda, 0xff][..]),
        prop::sample::select(&[0x4f_u8, 0x4f, 0][..]),
    )
        .prop_map(move |(features, mid)| {
            let now = [0, 0, mid, 0xc2];
            Task { command: 0xb0, features, before: None, now, device: 0xa0 | drive << 4 }
        })
}

/// Disks, as drivers use them: each command is carried through; now and then steps that no driver takes.
pub fn disk(channel: u16, drives: u8, hostile: bool) -> impl Strategy<Value = Vec<Step>> {
    let given = (0..drives).prop_flat_map(
        move |drive| prop_oneof![6 => task(BY_PIO, drive), 4 => other(drive, drives), 1 => smart(drive)],
    );
    let driven = (given, any::<u16>(), 0..4_u8).prop_map(move |(task, seed, how)| match how {
        0 => vec![Step::Polled { channel, task, seed }],
        1 => vec![Step::Command { channel, task }, Step::Status { channel }, Step::Finish { channel, seed }],
        _ => vec![Step::Command { channel, task }, Step::Finish { channel, seed }],
    });
    let odd = prop_oneof![
        (1..7_u16, any::<u8>()).prop_map(move |(offset, value)| Step::Register { channel, offset, value }),
        Just(Step::SoftReset { channel }),
        any::<([u8; 4], [u8; 4])>().prop_map(move |(before, now)| Step::Hob { channel, before, now }),
        (1..300_u16, any::<bool>()).prop_map(move |(words, wide)| Step::Read { channel, words, wide }),
        (1..300_u16, any::<bool>(), any::<u16>()).prop_map(move |(words, wide, seed)| Step::Write {
            channel,
            words,
            wide,
            seed
        }),
        Just(Step::Status { channel }),
    ];
    let odd = odd.prop_map(|step| vec![step]);
    let step = prop_oneof![6 => driven, if hostile { 6 } else { 1 } => odd];
    prop::collection::vec(step, 1..40).prop_map(|steps| steps.concat())
}

fn table(len: u32, hostile: bool) -> impl Strategy<Value = Vec<Region>> {
    // Regions of whole sectors, or cut anywhere; together as long as the transfer, shorter or longer.
    let cut = if hostile { 2..600_u32 } else { 512..4096_u32 };
    let longer = if hostile { -1024..1024_i64 } else { 0..1_i64 };
    (prop::collection::vec(cut, 1..6), longer).prop_map(move |(cuts, longer)| {
        let mut left = u32::try_from((i64::from(len) + longer).max(2)).unwrap() & !1;
        let mut address = DATA as u32;
        let mut regions = Vec::new();
        for cut in cuts.iter().cycle() {
            let count = (cut & !1).min(left).max(2);
            left = left.saturating_sub(count);
            regions.push(Region { address, count: count as u16, last: left == 0 });
            address += count;
            if left == 0 {
                break;
            }
        }
        regions
    })
}

/// Sectors of a task.
fn count(task: &Task) -> u32 {
    match (task.now[0], task.before) {
        (0, Some(_)) => 0x1_0000,
        (0, None) => 256,
        (n, before) => u32::from(n) + before.map_or(0, |before| u32::from(before[0]) << 8),
    }
}

/// Disks by DMA.
pub fn dma(channel: u16, drives: u8, hostile: bool) -> impl Strategy<Value = Vec<Step>> {
    let given = (0..drives).prop_flat_map(|drive| task(BY_DMA, drive));
    let driven = given.prop_flat_map(move |task| {
        let read = matches!(task.command, 0xc8 | 0xc9 | 0x25);
        // The bus master is started after the command, or before it.
        (table(count(&task) * 512, hostile), any::<bool>()).prop_map(move |(regions, early)| {
            let start = Step::Start { channel, to_memory: read };
            let command = Step::Command { channel, task };
            let (first, second) = if early { (start, command) } else { (command, start) };
            let [status, stop] = [Step::Status { channel }, Step::Stop { channel, status: 6 }];
            let len: u32 = regions.iter().map(|region| u32::from(region.count)).sum();
            let short = len < count(&task) * 512;
            let table = Step::Table { channel, regions, short };
            let mut steps = vec![table, first, second, Step::Look, status, stop];
            if hostile {
                steps.push(Step::SoftReset { channel });
            }
            steps
        })
    });
    prop::collection::vec(driven, 1..16).prop_map(|steps| steps.concat())
}

/// Packets, with allocation lengths that cut answers short now and then.
fn packet() -> impl Strategy<Value = [u8; 12]> {
    let lba = prop_oneof![8 => 0..DISC as u32 - 12, 1 => DISC as u32..DISC as u32 + 3, 1 => any::<u32>()];
    let read = (prop::sample::select(&[0x28_u8, 0x28, 0xa8, 0xbe][..]), lba, 0..5_u8);
    let read = read.prop_map(|(code, lba, n)| {
        let [a, b, c, d] = lba.to_be_bytes();
        // QEMU does not look where no sectors are to be read from.
        let n = if lba > OTHER_DISC as u32 { n.max(1) } else { n };
        match code {
            0x28 => [0x28, 0, a, b, c, d, 0, 0, n, 0, 0, 0],
            0xa8 => [0xa8, 0, a, b, c, d, 0, 0, 0, n, 0, 0],
            _ => [0xbe, 0, a, b, c, d, 0, 0, n, 0x10, 0, 0],
        }
    });
    let other = prop::sample::select(
        &[
            [0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],       // TEST UNIT READY
            [0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],       // TEST UNIT READY
            [0x12, 0, 0, 0, 36, 0, 0, 0, 0, 0, 0, 0],      // INQUIRY
            [0x12, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0],       // INQUIRY
            [0x1b, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],       // START STOP UNIT: start
            [0x1b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],       // START STOP UNIT: stop
            [0x1e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],       // ALLOW MEDIUM REMOVAL
            [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],       // READ CAPACITY
            [0x2b, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0],       // SEEK(10)
            [0x2b, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],       // SEEK(10), beyond the end
            [0x43, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0],      // READ TOC
            [0x43, 2, 0, 0, 0, 0, 1, 3, 0x24, 0, 0, 0],    // READ TOC, MSF
            [0x43, 0, 0, 0, 0, 0, 0xaa, 0, 12, 0, 0, 0],   // READ TOC, lead-out
            [0x43, 2, 0, 0, 0, 0, 0, 1, 0, 0x80, 0, 0],    // READ TOC, full
            [0x46, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0],       // GET CONFIGURATION
            [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0, 0, 0],    // GET EVENT STATUS NOTIFICATION, media
            [0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8, 0, 0, 0],    // GET EVENT STATUS NOTIFICATION, asynchronous
            [0x51, 0, 0, 0, 0, 0, 0, 0, 34, 0, 0, 0],      // READ DISC INFORMATION
            [0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 16, 0, 0, 0],   // MODE SENSE(10), capabilities
            [0x5a, 0, 0x01, 0, 0, 0, 0, 0, 16, 0, 0, 0],   // MODE SENSE(10), error recovery
            [0x5a, 0, 0xea, 0, 0, 0, 0, 0, 128, 0, 0, 0],  // MODE SENSE(10), saved values
            [0xbb, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0], // SET CD SPEED
            [0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0],       // MECHANISM STATUS
            [0xbe, 0, 0, 0, 0, 3, 0, 0, 1, 0xf8, 0, 0],    // READ CD, whole sector
            [0xf7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],       // none
        ][..],
    );
    prop_oneof![3 => read, 5 => other]
}

/// A CD-ROM: packets by PIO and DMA, commands of ATA, discs that come and go.
pub fn cdrom(channel: u16, drive: u8) -> impl Strategy<Value = Vec<Step>> {
    let limit = prop::sample::select(&[0xfffe_u16, 0xffff, 2048, 2048, 512, 250, 64, 65][..]);
    let by_pio = (packet(), limit)
        .prop_map(move |(packet, limit)| vec![Step::Packet { channel, drive, packet, limit, dma: false }]);
    let by_dma = packet().prop_map(move |packet| {
        let region = Region { address: DATA as u32, count: 0x4000, last: true };
        vec![
            Step::Table { channel, regions: vec![region], short: false },
            Step::Packet { channel, drive, packet, limit: 0, dma: true },
            Step::Start { channel, to_memory: true },
            Step::Look,
            Step::Status { channel },
            Step::Stop { channel, status: 6 },
        ]
    });
    // After DEVICE RESET QEMU's drive 1 says that it is drive 0.
    let commands: &[u8] = if drive == 0 { &[0xec, 0xa1, 0x20, 0x00, 0x08] } else { &[0xec, 0xa1, 0x20] };
    let ata = (prop::sample::select(commands), any::<u16>()).prop_map(move |(command, seed)| {
        let task = Task { command, features: 0, before: None, now: [0, 0, 0, 0], device: 0xa0 | drive << 4 };
        vec![Step::Command { channel, task }, Step::Finish { channel, seed }]
    });
    let disc =
        prop::sample::select(&[None, Some(false), Some(true)][..]).prop_map(|disc| vec![Step::Disc(disc)]);
    let reset = Just(vec![Step::SoftReset { channel }]);
    let pio = move |packet| Step::Packet { channel, drive, packet, limit: 2048, dma: false };
    let prevent = |on| [0x1e, 0, 0, 0, on, 0, 0, 0, 0, 0, 0, 0];
    let locked = packet().prop_map(move |packet| vec![pio(prevent(1)), pio(packet), pio(prevent(0))]);
    // The tray goes out and in. QEMU has neither an event for that nor a unit attention, does not tell MECHANISM
    // STATUS that the tray is out, and has another sense key for a locked one.
    let eject = |action| [0x1b, 0, 0, 0, action, 0, 0, 0, 0, 0, 0, 0];
    let ejected = prop::sample::select(&[0x00_u8, 0x25, 0x43, 0x51][..]).prop_map(move |code| {
        let ask = [code, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0];
        vec![pio(eject(2)), pio(ask), pio(eject(3)), Step::Attend]
    });
    let step =
        prop_oneof![8 => by_pio, 4 => by_dma, 2 => ata, 1 => disc, 1 => reset, 1 => locked, 1 => ejected];
    prop::collection::vec(step, 1..40).prop_map(|steps| steps.concat())
}
