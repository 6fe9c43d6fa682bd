//! Flash, as OVMF and Linux's MTD drive it.

use std::io::{self, ErrorKind, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use trapline_chipset::Pflash;
use trapline_chipset::pflash::{BLOCK, FlashStore, FlashView, PflashConfig};
use trapline_device::AccessSize::{Byte, Dword, Qword, Word};
use trapline_device::{Device, DmaMemory, MmioIo, SaveRestore};

use crate::through_a_file;

const SIZE: u64 = 16 * BLOCK;

/// The cells.
struct Cells(Mutex<Vec<u8>>);

impl DmaMemory for Cells {
    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let cells = self.0.lock().unwrap();
        let part = cells.get(address as usize..).and_then(|rest| rest.get(..data.len()));
        part.map(|part| data.copy_from_slice(part)).is_some()
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        let mut cells = self.0.lock().unwrap();
        let part = cells.get_mut(address as usize..).and_then(|rest| rest.get_mut(..data.len()));
        part.map(|part| part.copy_from_slice(data)).is_some()
    }
}

/// What the board hears: how often the view changed; odd while the array is hidden.
#[derive(Default)]
struct View(AtomicU64);

impl FlashView for View {
    fn set_array(&self, array: bool) {
        let changes = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        assert_eq!(array, changes.is_multiple_of(2));
    }
}

/// A store that fails.
struct Full;

impl FlashStore for Full {
    fn write(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Bench {
    cells: Arc<Cells>,
    view: Arc<View>,
    flash: Pflash,
}

impl Bench {
    fn with(writable: bool, store: Option<Box<dyn FlashStore>>) -> Self {
        let cells = Arc::new(Cells(Mutex::new(vec![0xff; SIZE as usize])));
        let view = Arc::new(View::default());
        let flash = Pflash::new(PflashConfig {
            name: "vars",
            cells: cells.clone(),
            size: SIZE,
            writable,
            view: view.clone(),
            store,
        });
        Self { cells, view, flash }
    }

    fn new() -> Self {
        Self::with(true, None)
    }

    fn get(&mut self, offset: u64) -> u8 {
        self.flash.read(0, offset, Byte) as u8
    }

    fn put(&mut self, offset: u64, value: u8) {
        self.flash.write(0, offset, Byte, value.into());
    }

    /// Programs bytes one by one, as OVMF does, and returns to the array.
    fn program(&mut self, offset: u64, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            self.put(at, 0x10);
            self.put(at, *byte);
        }
        self.put(offset + bytes.len() as u64 - 1, 0xff);
    }

    fn cells(&self, offset: u64, len: usize) -> Vec<u8> {
        self.cells.0.lock().unwrap()[offset as usize..][..len].to_vec()
    }
}

#[test]
fn ovmf_takes_it_for_a_flash() {
    let mut bench = Bench::new();
    bench.cells.write(7, &[0xaa]);
    // The command is not stored, and the array is back: neither RAM nor ROM without commands.
    bench.put(7, 0x50);
    assert_eq!(bench.get(7), 0xaa);
    bench.put(7, 0x70);
    assert_eq!(bench.get(7), 0x00);
    assert!(!bench.flash.shows_array());
    bench.put(7, 0xff);
    assert!(bench.flash.shows_array());
    assert_eq!((bench.get(7), bench.view.0.load(Ordering::Relaxed)), (0xaa, 2));
}

#[test]
fn programming_clears_bits_and_erasing_sets_them() {
    let mut bench = Bench::new();
    bench.program(BLOCK + 3, b"variable");
    assert_eq!(bench.cells(BLOCK + 2, 10), b"\xffvariable\xff");
    bench.program(BLOCK + 3, &[0x0f]);
    assert_eq!(bench.get(BLOCK + 3), b'v' & 0x0f);
    // The neighbours of an erased block stay.
    bench.program(2 * BLOCK, b"next");
    bench.put(BLOCK + 100, 0x20);
    assert_eq!(bench.get(0) & 0x80, 0x80);
    bench.put(BLOCK + 100, 0xd0);
    assert_eq!(bench.get(0), 0x80);
    bench.put(0, 0xff);
    assert_eq!(bench.cells(BLOCK, BLOCK as usize), vec![0xff; BLOCK as usize]);
    assert_eq!(bench.cells(2 * BLOCK, 4), b"next");
    // A wide write programs all its bytes.
    bench.put(64, 0x40);
    bench.flash.write(0, 64, Dword, 0x6463_6261);
    bench.put(64, 0xff);
    assert_eq!(bench.flash.read(0, 64, Qword), 0xffff_ffff_6463_6261);
    assert_eq!(bench.flash.read(0, 66, Word), 0x6463);
}

#[test]
fn a_buffer_is_programmed_at_once() {
    let mut bench = Bench::new();
    bench.put(0x100, 0xe8);
    assert_eq!(bench.get(0x100) & 0x80, 0x80); // a buffer is free
    bench.put(0x100, 3);
    for (at, byte) in (0x110..).zip(*b"abcd") {
        bench.put(at, byte);
    }
    assert_eq!(bench.cells(0x110, 4), [0xff; 4]);
    bench.put(0x100, 0xd0);
    assert_eq!(bench.get(0), 0x80);
    bench.put(0, 0xff);
    assert_eq!(bench.cells(0x10f, 6), b"\xffabcd\xff");
    // Bytes of another buffer's range, or no confirmation: nothing is programmed.
    for (offset, last) in [(0x1ff, 0xd0), (0x180, 0x12)] {
        bench.put(offset, 0xe8);
        bench.put(offset, 1);
        bench.put(offset, 0);
        bench.put(offset + 1, 0);
        bench.put(offset, last);
        bench.put(offset, 0x70);
        assert_eq!(bench.get(0) & 0xb0, 0xb0, "{offset:#x}");
        bench.put(0, 0x50);
        assert_eq!(bench.cells(offset, 2), [0xff; 2]);
    }
    // Left in the middle.
    bench.put(0x100, 0xe8);
    bench.put(0x100, 0);
    bench.put(0x120, 0);
    bench.put(0x100, 0xff);
    assert!(bench.flash.shows_array());
    assert_eq!(bench.get(0x120), 0xff);
}

#[test]
fn identifiers_and_the_query_table_name_the_chip() {
    let mut bench = Bench::new();
    bench.put(0, 0x90);
    assert_eq!([0, 1, 2].map(|at| bench.get(BLOCK + at)), [0x89, 0x18, 0]);
    bench.put(0x55, 0x98);
    assert_eq!(bench.flash.read(0, 0x10, Dword), u64::from(u32::from_le_bytes(*b"QRY\x01")));
    assert_eq!(bench.get(0x27), 16); // 64 KiB
    assert_eq!(bench.get(0x2a), 8); // 256 bytes a buffer
    // One region: 16 blocks of 16 times 256 bytes.
    assert_eq!([0x2c, 0x2d, 0x2e, 0x2f, 0x30].map(|at| bench.get(at)), [1, 15, 0, 16, 0]);
    let extended = u64::from(bench.get(0x15));
    assert_eq!([0, 1, 2].map(|at| bench.get(extended + at)), *b"PRI");
    bench.put(0, 0xf0);
    assert_eq!(bench.get(0x10), 0xff);
}

#[test]
fn commands_out_of_sequence_are_errors_until_cleared() {
    let mut bench = Bench::new();
    bench.put(0, 0x20);
    bench.put(0, 0x12);
    assert_eq!(bench.get(0), 0xb0);
    bench.put(0, 0x50);
    bench.put(0, 0x70);
    assert_eq!(bench.get(0), 0x00);
    for lock in [0x01, 0xd0] {
        bench.put(0, 0x60);
        bench.put(0, lock);
        assert_eq!(bench.get(0), 0x80);
    }
    // Given up.
    bench.put(0, 0x20);
    bench.put(0, 0xff);
    assert!(bench.flash.shows_array());
    // Unknown commands show the array.
    bench.put(0, 0x70);
    bench.put(0, 0x33);
    assert!(bench.flash.shows_array());
}

#[test]
fn a_read_only_chip_says_so() {
    let mut bench = Bench::with(false, None);
    bench.put(0, 0x10);
    bench.put(0, 0x00);
    assert_eq!(bench.get(0), 0x90);
    bench.put(0, 0x50);
    bench.put(0, 0x20);
    bench.put(0, 0xd0);
    assert_eq!(bench.get(0), 0xa0);
    assert_eq!(bench.cells(0, 4), [0xff; 4]);
}

#[test]
fn beyond_its_end_there_is_nothing() {
    let mut bench = Bench::new();
    bench.put(0, 0x10);
    bench.flash.write(0, SIZE - 4, Qword, 0);
    assert_eq!(bench.get(0), 0x90);
    bench.put(0, 0xff);
    assert_eq!(bench.flash.read(0, SIZE - 4, Qword), u64::MAX);
    assert_eq!(bench.cells(SIZE - 4, 4), [0xff; 4]);
}

#[test]
fn the_file_has_what_was_programmed_when_the_array_is_back() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(SIZE).unwrap();
    let mut bench = Bench::with(true, Some(Box::new(file.reopen().unwrap())));
    let content = || {
        let mut content = Vec::new();
        file.reopen().unwrap().read_to_end(&mut content).unwrap();
        content
    };
    bench.put(BLOCK, 0x10);
    bench.put(BLOCK, b'x');
    assert_eq!(content()[BLOCK as usize], 0);
    bench.put(BLOCK, 0xff);
    // The whole block, and no other.
    assert_eq!(content()[BLOCK as usize..][..3], *b"x\xff\xff");
    assert_eq!((content()[0], content()[2 * BLOCK as usize], content().len() as u64), (0, 0, SIZE));
    // A machine that ends in the middle.
    bench.put(5 * BLOCK, 0x10);
    bench.put(5 * BLOCK, b'y');
    bench.flash.flush().unwrap();
    assert_eq!(content()[5 * BLOCK as usize], b'y');
}

#[test]
fn a_file_that_takes_nothing_is_a_programming_error() {
    let mut bench = Bench::with(true, Some(Box::new(Full)));
    bench.program(0, b"a");
    bench.put(0, 0x70);
    assert_eq!(bench.get(0), 0x90);
    assert!(bench.flash.flush().is_err());
    bench.put(0, 0xff);
    assert_eq!(bench.get(0), b'a');
}

#[test]
fn reset_shows_the_array() {
    let mut bench = Bench::new();
    bench.put(0, 0xe8);
    bench.put(0, 5);
    bench.put(0, 0);
    bench.flash.reset();
    assert!(bench.flash.shows_array());
    bench.put(0, 0x70);
    assert_eq!(bench.get(0), 0x80);
}

#[test]
fn a_saved_chip_goes_on_in_the_middle_of_a_buffer() {
    let (mut here, mut there) = (Bench::new(), Bench::new());
    here.put(0, 0xe8);
    here.put(0, 1);
    here.put(0x40, b'o');
    there.flash.restore(through_a_file(&here.flash.save())).unwrap();
    assert!(!there.flash.shows_array());
    there.put(0x41, b'k');
    there.put(0, 0xd0);
    there.put(0, 0xff);
    assert_eq!(there.cells(0x40, 2), b"ok");
    // What the state is (9 waits for the confirmation of a buffer), status, buffer, unsaved blocks.
    let mut restore = |state: u8, status: u8, buffer: &[(u64, u8)], unsaved: &[u64]| {
        let bytes = postcard::to_stdvec(&(state, status, buffer, unsaved)).unwrap();
        there.flash.restore(postcard::from_bytes(&bytes).unwrap()).map_err(|error| error.to_string())
    };
    let wrong = |what: &str| Err(format!("saved state of pflash: {what}"));
    restore(9, 0xb0, &[(0, 0); 256], &[BLOCK, 0]).unwrap();
    assert_eq!(restore(0, 0x01, &[], &[]), wrong("status has bits that are never set"));
    assert_eq!(restore(9, 0x80, &[(0, 0); 257], &[]), wrong("more bytes than the buffer holds"));
    assert_eq!(restore(0, 0x80, &[], &[SIZE]), wrong("unsaved blocks that do not exist"));
    assert_eq!(restore(0, 0x80, &[], &[1]), wrong("unsaved blocks that do not exist"));
}

proptest! {
    /// Whatever is written: the view is told the truth, blocks that nobody erased only lose bits.
    #[test]
    fn any_script(
        script in prop::collection::vec((0..SIZE + 8, 0..4usize, prop_oneof![
            Just(0x10u64), Just(0x20), Just(0xd0), Just(0xe8), Just(0xff), Just(0x70), 0..4u64, any::<u64>()
        ]), 0..300),
        cut in 0..300usize,
    ) {
        let mut bench = Bench::new();
        for (n, (offset, size, value)) in script.into_iter().enumerate() {
            if n == cut {
                let mut there = Bench::new();
                there.cells.write(0, &bench.cells(0, SIZE as usize));
                there.flash.restore(through_a_file(&bench.flash.save())).unwrap();
                prop_assert_eq!(there.flash.save(), bench.flash.save());
                bench = there;
            }
            let size = [Byte, Word, Dword, Qword][size];
            let seen = bench.flash.read(0, offset, size);
            prop_assert_eq!(seen & !size.ones(), 0);
            bench.flash.write(0, offset, size, value & size.ones());
            let hidden = bench.view.0.load(Ordering::Relaxed) % 2 == 1;
            prop_assert_eq!(bench.flash.shows_array(), !hidden);
        }
    }
}
