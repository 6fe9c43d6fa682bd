//! CD-ROMs, as firmware, GRUB, Linux and Windows drive them.

mod common;

use common::{Byte, Pc, numbered, sectors};
use trapline_ide::{BUS_MASTER, Io};

const READY: [u8; 1] = [0x00];

fn read10(lba: u32, n: u16) -> Vec<u8> {
    [&[0x28, 0][..], &lba.to_be_bytes(), &[0], &n.to_be_bytes()].concat()
}

/// The power-on unit attention is out of the way.
fn ready(sectors: u64) -> Pc {
    let pc = Pc::with_disc(sectors);
    assert!(pc.ask(&READY, 0).is_empty());
    assert_eq!((pc.status(), pc.get(1)), (0x51, 0x60), "unit attention");
    assert_eq!(pc.sense(), (6, 0x29, 0));
    pc
}

#[test]
fn identify_aborts_with_the_signature_and_identify_packet_answers() {
    let pc = Pc::with_disc(10);
    pc.control(4);
    pc.control(0);
    assert_eq!(pc.status(), 0x00, "not ready for disk commands");
    pc.set(7, 0xec);
    assert_eq!((pc.status(), pc.get(1)), (0x51, 0x04));
    assert_eq!((pc.get(4), pc.get(5)), (0x14, 0xeb));
    pc.set(7, 0xa1);
    assert!(pc.irq());
    assert_eq!(pc.status(), 0x58);
    assert_eq!(pc.insw(512)[..2], [0xc0, 0x85]);
    pc.set(7, 0x08);
    assert_eq!((pc.status(), pc.get(4)), (0x00, 0x14), "device reset");
}

#[test]
fn a_disc_is_found_and_read() {
    let pc = ready(300);
    assert!(pc.ask(&READY, 0).is_empty());
    assert_eq!(pc.status(), 0x50);
    let inquiry = pc.ask(&[0x12, 0, 0, 0, 36], 36);
    assert_eq!((inquiry.len(), &inquiry[..2], &inquiry[8..16]), (36, &[5, 0x80][..], &b"TRAPLINE"[..]));
    assert_eq!(pc.ask(&[0x12, 0, 0, 0, 5], 36).len(), 5, "cut to the allocation length");
    assert_eq!(pc.ask(&[0x25], 8), [0, 0, 1, 43, 0, 0, 8, 0], "the last sector and 2,048 bytes");
    assert_eq!(pc.ask(&read10(16, 1), 2048), sectors(64, 4));
    assert_eq!(pc.ask(&read10(1, 40), 0xfffe), sectors(4, 160));
    let read12 = [0xa8, 0, 0, 0, 0, 9, 0, 0, 0, 2];
    assert_eq!(pc.ask(&read12, 0x800), sectors(36, 8));
    assert_eq!(pc.ask(&read10(0, 0), 0), [], "no sectors are no error");
}

#[test]
fn blocks_keep_the_byte_count_limit() {
    let pc = ready(20);
    pc.packet(&read10(2, 1), false, 1001);
    let mut data = Vec::new();
    for n in [1000, 1000, 48] {
        assert_eq!(pc.status(), 0x58);
        assert_eq!(u16::from_le_bytes([pc.get(4), pc.get(5)]), n);
        data.extend(pc.insw(n.into()));
    }
    assert_eq!((pc.status(), pc.get(2)), (0x50, 3));
    assert_eq!(data, sectors(8, 4));
    pc.packet(&read10(0, 1), false, 0);
    assert_eq!((pc.status(), pc.get(1)), (0x51, 0x04), "blocks of nothing");
}

#[test]
fn dma_reads_answers_and_sectors() {
    let pc = ready(300);
    pc.table(&[(0x10_0000, 0, false), (0x11_0000, 0, false), (0x12_0000, 0, true)]);
    pc.packet(&read10(100, 96), true, 0);
    assert!(!pc.irq());
    pc.start(true);
    assert!(pc.irq());
    assert_eq!((pc.bmis(), pc.status(), pc.get(2)), (0x04, 0x50, 3));
    assert_eq!(pc.ram(0x10_0000, 96 * 2048), sectors(400, 384));
    pc.out(BUS_MASTER, 0, Byte, 0);
    pc.table(&[(0x20_0000, 8, true)]);
    pc.packet(&[0x25], true, 0);
    pc.start(true);
    assert_eq!(pc.bmis(), 0x04);
    assert_eq!(pc.ram(0x20_0000, 8), [0, 0, 1, 43, 0, 0, 8, 0]);
}

#[test]
fn errors_have_sense_data_once() {
    let pc = ready(20);
    for (packet, sense) in [
        (read10(20, 1), (5, 0x21, 0)),
        (read10(u32::MAX, 2), (5, 0x21, 0)),
        (vec![0xf7], (5, 0x20, 0)),
        (vec![0x12, 1], (5, 0x24, 0)),
        (vec![0x5a, 0, 0xff, 0, 0, 0, 0, 0, 8], (5, 0x39, 0)),
    ] {
        assert!(pc.ask(&packet, 512).is_empty());
        assert_eq!((pc.status(), pc.get(1)), (0x51, 0x50), "{packet:x?}");
        assert_eq!(pc.sense(), sense, "{packet:x?}");
        assert_eq!(pc.sense(), (0, 0, 0));
    }
}

#[test]
fn read_cd_gives_data_or_whole_sectors() {
    let pc = ready(20);
    assert_eq!(pc.ask(&[0xbe, 0, 0, 0, 0, 3, 0, 0, 2, 0x10], 4096), sectors(12, 8));
    let raw = pc.ask(&[0xbe, 0, 0, 0, 0, 3, 0, 0, 1, 0xf8], 2352);
    assert_eq!((raw.len(), raw[0], raw[1], raw[11]), (2352, 0, 0xff, 0));
    assert_eq!(raw[12..16], [0, 0x02, 0x03, 1], "minute, second, frame in BCD; mode 1");
    assert_eq!(raw[16..2064], sectors(12, 4));
    assert!(pc.ask(&[0xbe, 4, 0, 0, 0, 3, 0, 0, 1, 0x10], 2048).is_empty());
    assert_eq!(pc.sense(), (5, 0x64, 0), "an audio sector");
}

#[test]
fn tables_pages_and_features() {
    let pc = ready(300);
    let toc = pc.ask(&[0x43, 0, 0, 0, 0, 0, 0, 0, 20], 20);
    assert_eq!(toc, [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 0, 1, 44]);
    let toc = pc.ask(&[0x43, 2, 0, 0, 0, 0, 0xaa, 0, 20], 20);
    assert_eq!(toc[8..], [0, 0, 6, 0], "the end at 00:06:00");
    assert_eq!(pc.ask(&[0x43, 0, 1, 0, 0, 0, 0, 0, 12], 12)[..4], [0, 10, 1, 1]);
    assert_eq!(pc.ask(&[0x43, 0, 2, 0, 0, 0, 0, 0, 255], 255).len(), 4 + 4 * 11);
    let page = pc.ask(&[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 128], 128);
    assert_eq!((page.len(), page[1], page[8], page[9]), (28, 26, 0x2a, 18));
    let all = pc.ask(&[0x46, 0, 0, 0, 0, 0, 0, 1, 0], 256);
    assert_eq!((all.len() - 4, all[7]), (usize::from(all[3]), 8), "the CD-ROM profile");
    let one = pc.ask(&[0x46, 2, 0, 3, 0, 0, 0, 1, 0], 256);
    assert_eq!(one[8..12], [0, 3, 3, 4]);
    assert_eq!(pc.ask(&[0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8], 8).len(), 8);
}

#[test]
fn discs_are_locked_ejected_and_changed() {
    let pc = ready(20);
    let events = [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8];
    assert_eq!(pc.ask(&events, 8), [0, 6, 4, 0x10, 0, 2, 0, 0], "a disc, and nothing happened");
    pc.ask(&[0x1e, 0, 0, 0, 1], 0);
    assert!(pc.ide.lock().unwrap().tray_locked(0, 0));
    pc.ask(&[0x1b, 0, 0, 0, 2], 0);
    assert_eq!(pc.sense(), (5, 0x53, 2));
    assert_eq!(pc.ask(&events, 8)[4..6], [1, 2], "an eject request");
    pc.ask(&[0x1e], 0);
    pc.ask(&[0x1b, 0, 0, 0, 2], 0);
    assert_eq!(pc.status(), 0x50);
    assert_eq!(pc.ask(&events, 8)[4..6], [3, 1], "removed, the tray is open");
    pc.ask(&READY, 0);
    assert_eq!(pc.sense(), (2, 0x3a, 2));
    pc.ask(&[0x1b, 0, 0, 0, 3], 0);
    pc.ask(&READY, 0);
    assert_eq!(pc.sense(), (6, 0x28, 0));

    assert!(pc.ide.lock().unwrap().change_disc(0, 0, None));
    pc.ask(&READY, 0);
    assert_eq!(pc.sense(), (2, 0x3a, 1));
    assert!(pc.ide.lock().unwrap().change_disc(0, 0, Some(Io::Blocking(numbered(28)))));
    assert_eq!(pc.ask(&events, 8)[4..6], [2, 2], "a new disc");
    pc.ask(&[0x25], 8);
    assert_eq!(pc.sense(), (6, 0x28, 0));
    assert_eq!(pc.ask(&[0x25], 8)[3], 6);
    assert!(!pc.ide.lock().unwrap().change_disc(1, 1, None), "there is no such drive");
}

#[test]
fn a_disc_taken_away_fails_the_command() {
    let pc = ready(20);
    pc.packet(&read10(0, 4), false, 2048);
    assert_eq!(pc.status(), 0x58);
    pc.ide.lock().unwrap().change_disc(0, 0, None);
    assert!(pc.irq());
    assert_eq!((pc.status(), pc.get(1)), (0x51, 0x20));
    assert_eq!(pc.sense(), (2, 0x3a, 1));
}
