//! The 16550A. Names of registers and bits as in the PC16550D datasheet.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use trapline_chipset::{ModemInputs, Uart};
use trapline_device::test::Recorder;
use trapline_device::{AccessSize, Device, IrqLine, PortIo, SaveRestore};

use crate::{Broken, Ports, Screen, through_a_file};

const RBR_THR: u16 = 0;
const IER: u16 = 1;
const IIR_FCR: u16 = 2;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
const MSR: u16 = 6;
const SCR: u16 = 7;

const ERBFI: u8 = 0x01;
const ETBEI: u8 = 0x02;
const ELSI: u8 = 0x04;
const EDSSI: u8 = 0x08;
const DLAB: u8 = 0x80;
const RTS: u8 = 0x02;
const OUT2: u8 = 0x08;
const LOOP: u8 = 0x10;
const DR: u8 = 0x01;
const OE: u8 = 0x02;
const FE: u8 = 0x08;
const BI: u8 = 0x10;
const THRE: u8 = 0x20;
const TEMT: u8 = 0x40;
const FIFO_ERROR: u8 = 0x80;
const IRQ: u32 = 4;

struct Bench {
    uart: Uart,
    pic: Arc<Recorder>,
    screen: Screen,
}

impl Bench {
    fn new() -> Self {
        let pic = Arc::new(Recorder::default());
        let screen = Screen::default();
        let uart = Uart::new("serial0", IrqLine::new(pic.clone(), IRQ), Box::new(screen.clone()));
        Self { uart, pic, screen }
    }

    /// With these interrupts enabled.
    fn interrupting(ier: u8) -> Self {
        let mut bench = Self::new();
        bench.out(IER, ier);
        bench
    }

    fn inp(&mut self, offset: u16) -> u8 {
        self.uart.inb(0, offset)
    }

    fn inp_n(&mut self, offset: u16, n: usize) {
        (0..n).for_each(|_| _ = self.inp(offset));
    }

    fn out(&mut self, offset: u16, value: u8) {
        self.uart.outb(0, offset, value);
    }

    fn irq(&self) -> bool {
        self.pic.level(IRQ)
    }

    fn edges(&self) -> usize {
        self.pic.rising_edges(IRQ)
    }
}

#[test]
fn master_reset_values() {
    let mut b = Bench::interrupting(0x0f);
    b.out(LCR, 0x1b);
    b.out(IIR_FCR, 0xc1);
    b.out(SCR, 0x55);
    b.uart.receive(b"abc");
    b.uart.reset();
    assert_eq!(b.inp(IER), 0);
    assert_eq!(b.inp(IIR_FCR), 0x01);
    assert_eq!(b.inp(LCR), 0);
    assert_eq!(b.inp(MCR), 0);
    assert_eq!(b.inp(LSR), THRE | TEMT);
    assert_eq!(b.inp(MSR) & 0x0f, 0);
    assert!(!b.irq());
}

#[test]
fn registers_hold_their_writable_bits() {
    let mut b = Bench::new();
    for (offset, mask) in [(IER, 0x0f), (LCR, 0x7f), (MCR, 0x1f), (SCR, 0xff)] {
        for value in [0xff, 0x00, 0x55] {
            b.out(offset, value & !(if offset == LCR { DLAB } else { 0 }));
            assert_eq!(b.inp(offset), value & mask, "offset {offset}");
        }
    }
    let lsr = b.inp(LSR);
    b.out(LSR, !lsr);
    assert_eq!(b.inp(LSR), lsr);
}

#[test]
fn dlab_opens_the_divisor_latch() {
    let mut b = Bench::new();
    b.out(IER, 0x05);
    b.out(LCR, DLAB | 0x03);
    b.out(RBR_THR, 0x01); // 115200 baud
    b.out(IER, 0x00);
    assert_eq!((b.inp(RBR_THR), b.inp(IER)), (0x01, 0x00));
    b.out(IER, 0x12);
    b.out(LCR, 0x03);
    assert_eq!(b.inp(IER), 0x05);
    b.out(LCR, DLAB);
    assert_eq!((b.inp(RBR_THR), b.inp(IER)), (0x01, 0x12));
    assert_eq!(b.screen.take(), b"");
}

#[test]
fn a_word_write_reaches_both_divisor_bytes() {
    let mut b = Bench::new();
    b.out(LCR, DLAB);
    b.uart.write(0, RBR_THR, AccessSize::Word, 0x1234);
    assert_eq!((b.inp(RBR_THR), b.inp(IER)), (0x34, 0x12));
    assert_eq!(b.uart.read(0, RBR_THR, AccessSize::Word), 0x1234);
}

#[test]
fn transmits_at_once() {
    let mut b = Bench::new();
    for &byte in b"login: " {
        b.out(RBR_THR, byte);
        assert_eq!(b.inp(LSR), THRE | TEMT);
    }
    b.uart.write_block(0, RBR_THR, AccessSize::Byte, b"root\n");
    assert_eq!(b.screen.take(), b"login: root\n");
}

#[test]
fn a_failing_host_is_no_business_of_the_guest() {
    for kind in
        [std::io::ErrorKind::BrokenPipe, std::io::ErrorKind::WouldBlock, std::io::ErrorKind::Interrupted]
    {
        let mut uart =
            Uart::new("serial0", IrqLine::new(Arc::new(Recorder::default()), IRQ), Box::new(Broken(kind)));
        uart.write_block(0, RBR_THR, AccessSize::Byte, b"lost");
        uart.outb(0, RBR_THR, b'x');
        assert_eq!(uart.inb(0, LSR), THRE | TEMT);
        assert_eq!(uart.lost_bytes(), 5);
    }
}

#[test]
fn thr_empty_interrupt_comes_with_enabling_and_goes_with_reading_iir() {
    let mut b = Bench::interrupting(ETBEI);
    assert!(b.irq());
    assert_eq!(b.inp(IIR_FCR), 0x02);
    assert!(!b.irq(), "reading IIR as the source clears it");
    assert_eq!(b.inp(IIR_FCR), 0x01);
    // Writing the bit again while set is no new enabling.
    b.out(IER, ETBEI);
    assert!(!b.irq());
    b.out(IER, 0);
    b.out(IER, ETBEI);
    assert!(b.irq());
}

#[test]
fn every_write_to_thr_is_an_edge() {
    let mut b = Bench::interrupting(ETBEI);
    let before = b.edges();
    b.out(RBR_THR, b'a');
    b.out(RBR_THR, b'b');
    assert_eq!(b.edges(), before + 2, "even when nobody reads IIR between");
    b.out(IER, 0);
    assert!(!b.irq());
    b.out(RBR_THR, b'c');
    assert!(!b.irq());
}

#[test]
fn reading_iir_for_another_source_keeps_thr_empty_pending() {
    let mut b = Bench::interrupting(ETBEI | ERBFI);
    b.uart.receive(b"x");
    assert_eq!(b.inp(IIR_FCR), 0x04);
    b.inp(RBR_THR);
    assert_eq!(b.inp(IIR_FCR), 0x02);
}

#[test]
fn interrupts_are_identified_by_priority() {
    let mut b = Bench::interrupting(ERBFI | ETBEI | ELSI | EDSSI);
    b.uart.set_modem_inputs(ModemInputs::empty());
    assert!(b.uart.receive_break());
    assert_eq!(b.inp(IIR_FCR), 0x06, "receiver line status");
    assert_eq!(b.inp(LSR) & (BI | FE | DR), BI | FE | DR);
    assert_eq!(b.inp(IIR_FCR), 0x04, "received data");
    assert_eq!(b.inp(RBR_THR), 0);
    assert_eq!(b.inp(IIR_FCR), 0x02, "transmitter holding register empty");
    assert_eq!(b.inp(IIR_FCR), 0x00, "modem status");
    assert!(b.irq());
    b.inp(MSR);
    assert_eq!(b.inp(IIR_FCR), 0x01);
    assert!(!b.irq());
}

/// xv6 leaves OUT2 off, and expects its interrupts.
#[test]
fn out2_does_not_gate_the_interrupt() {
    let mut b = Bench::new();
    b.out(MCR, 0);
    b.out(IER, ERBFI);
    b.uart.receive(b"x");
    assert!(b.irq());
    b.out(MCR, OUT2);
    assert!(b.irq());
    b.inp(RBR_THR);
    assert!(!b.irq());
}

#[test]
fn without_fifos_one_byte_fits() {
    let mut b = Bench::interrupting(ERBFI);
    assert_eq!(b.uart.receive(b"ab"), 1);
    assert_eq!(b.inp(IIR_FCR), 0x04);
    assert_eq!(b.inp(LSR) & DR, DR);
    assert_eq!(b.inp(RBR_THR), b'a');
    assert_eq!(b.inp(LSR) & DR, 0);
    assert!(!b.irq());
    assert_eq!(b.uart.receive(b"b"), 1);
    assert_eq!(b.inp(RBR_THR), b'b');
}

#[test]
fn fifo_trigger_levels_and_time_out() {
    for (code, level) in [(0, 1), (1, 4), (2, 8), (3, 14)] {
        let mut b = Bench::interrupting(ERBFI);
        b.out(IIR_FCR, 0x01 | code << 6);
        for n in 1..=16 {
            assert_eq!(b.uart.receive(&[n]), 1);
            let expected = if n < level { 0xcc } else { 0xc4 };
            assert_eq!(b.inp(IIR_FCR), expected, "{n} bytes, trigger level {level}");
        }
        assert_eq!(b.uart.receive(&[17]), 0);
        for n in 1..=16 {
            assert!(b.irq());
            assert_eq!(b.inp(RBR_THR), n);
        }
        assert!(!b.irq());
        assert_eq!(b.inp(IIR_FCR), 0xc1);
        assert_eq!(b.inp(LSR) & (DR | OE), 0, "a host that waits overruns nothing");
    }
}

#[test]
fn fifo_control() {
    let mut b = Bench::new();
    b.out(IIR_FCR, 0xc8); // without the enable bit, nothing is programmed
    assert_eq!(b.inp(IIR_FCR), 0x01);
    b.out(IIR_FCR, 0x01);
    b.uart.receive(b"abc");
    b.out(IIR_FCR, 0x05); // transmitter reset: not ours
    assert_eq!(b.inp(RBR_THR), b'a');
    b.out(IIR_FCR, 0x03); // receiver reset
    assert_eq!(b.inp(LSR) & DR, 0);
    b.uart.receive(b"def");
    b.out(IIR_FCR, 0x00); // leaving FIFO mode clears
    assert_eq!(b.inp(LSR) & DR, 0);
    assert_eq!(b.inp(IIR_FCR) & 0xc0, 0);
}

#[test]
fn reads_of_an_empty_receiver_do_nothing() {
    let mut b = Bench::interrupting(ERBFI);
    b.out(IIR_FCR, 0x01);
    assert_eq!(b.inp(RBR_THR), 0);
    assert_eq!(b.uart.receive(b"a"), 1);
    assert_eq!(b.inp(RBR_THR), b'a');
}

#[test]
fn string_input_drains_the_fifo() {
    let mut b = Bench::interrupting(ERBFI);
    b.out(IIR_FCR, 0x01);
    b.uart.receive(b"hello");
    let mut data = [0xff; 7];
    b.uart.read_block(0, RBR_THR, AccessSize::Byte, &mut data);
    assert_eq!(&data, b"hello\0\0");
    assert!(!b.irq());
    b.uart.read_block(0, SCR, AccessSize::Byte, &mut data);
    assert_eq!(data, [0; 7]);
}

#[test]
fn a_break_is_reported_when_it_is_at_the_top() {
    let mut b = Bench::interrupting(ELSI);
    b.out(IIR_FCR, 0x01);
    b.uart.receive(b"a");
    assert!(b.uart.receive_break());
    assert!(!b.irq());
    assert_eq!(b.inp(LSR), THRE | TEMT | DR | FIFO_ERROR);
    assert_eq!(b.inp(RBR_THR), b'a');
    assert!(b.irq());
    assert_eq!(b.inp(LSR), THRE | TEMT | DR | FIFO_ERROR | BI | FE);
    assert!(!b.irq());
    assert_eq!(b.inp(LSR), THRE | TEMT | DR, "reading LSR clears the errors");
    assert_eq!(b.inp(RBR_THR), 0);
}

#[test]
fn overrun_in_loop_back() {
    let mut b = Bench::new();
    b.out(MCR, LOOP);
    b.out(RBR_THR, b'a');
    b.out(RBR_THR, b'b');
    assert_eq!(b.inp(LSR) & (OE | DR), OE | DR);
    assert_eq!(b.inp(LSR) & OE, 0);
    assert_eq!(b.inp(RBR_THR), b'b', "the receiver buffer is overwritten");

    b.out(IIR_FCR, 0x01);
    for n in 0..17 {
        b.out(RBR_THR, n);
    }
    assert_eq!(b.inp(LSR) & OE, OE);
    for n in 0..16 {
        assert_eq!(b.inp(RBR_THR), n, "the fifo is kept");
    }
    assert_eq!(b.inp(LSR) & DR, 0);
    assert_eq!(b.screen.take(), b"", "nothing leaves in loop-back");
}

#[test]
fn loop_back_wraps_break_and_interrupts() {
    let mut b = Bench::interrupting(ELSI);
    b.out(MCR, LOOP | OUT2);
    b.out(LCR, 0x43);
    assert!(b.irq());
    assert_eq!(b.inp(LSR) & BI, BI);
}

#[test]
fn loop_back_wraps_the_modem_lines() {
    let mut b = Bench::new();
    b.out(MCR, LOOP);
    b.inp(MSR);
    // DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD; with the delta of each.
    for (mcr, msr) in [(0x01, 0x22), (0x02, 0x11), (0x04, 0x40), (0x08, 0x88)] {
        b.out(MCR, LOOP | mcr);
        assert_eq!(b.inp(MSR), msr, "MCR {mcr:#x}");
        assert_eq!(b.inp(MSR), msr & 0xf0, "deltas are cleared by reading");
        b.out(MCR, LOOP);
        b.inp(MSR);
    }
}

#[test]
fn modem_status_deltas() {
    let mut b = Bench::interrupting(EDSSI);
    assert_eq!(b.inp(MSR), 0xb0, "a peer that is ready");
    b.uart.set_modem_inputs(ModemInputs::RI);
    assert!(b.irq());
    assert_eq!(b.inp(MSR), 0x4b, "CTS, DSR, DCD fell; RI rose, which is no delta");
    assert!(!b.irq());
    b.uart.set_modem_inputs(ModemInputs::empty());
    assert_eq!(b.inp(MSR), 0x04, "trailing edge of RI");
}

#[test]
fn the_host_hears_of_room_once_the_fifo_is_empty() {
    let mut b = Bench::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    b.uart.set_room_hook(Box::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    }));
    b.out(IIR_FCR, 0x01);
    assert_eq!(b.uart.receive(b"0123"), 4);
    b.inp_n(RBR_THR, 4);
    assert_eq!(calls.load(Ordering::SeqCst), 0, "the host does not wait");
    assert_eq!(b.uart.receive(&[7; 20]), 16);
    assert_eq!(b.uart.room(), 0);
    b.inp_n(RBR_THR, 15);
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    b.inp(RBR_THR);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(b.uart.room(), 16);
    b.inp(RBR_THR);
    assert_eq!(calls.load(Ordering::SeqCst), 1);

    // In loop-back mode the line is cut off; leaving it makes room.
    b.out(MCR, LOOP);
    assert_eq!(b.uart.receive(b"x"), 0);
    b.out(MCR, 0);
    assert_eq!(calls.load(Ordering::SeqCst), 2);

    // So does going back to a state that had room.
    let empty = b.uart.save();
    b.uart.receive(&[7; 20]);
    b.uart.restore(empty).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

/// What Linux's 8250 driver does to find out what it has (autoconfig, size_fifo, and the tests for
/// known bugs at start-up).
#[test]
fn linux_8250_autoconfig_finds_a_16550a() {
    let mut b = Bench::new();
    // Is there anything? IER keeps its low half.
    b.out(IER, 0);
    assert_eq!(b.inp(IER) & 0x0f, 0);
    b.out(IER, 0x0f);
    assert_eq!(b.inp(IER) & 0x0f, 0x0f);
    b.out(IER, 0);
    // Loop-back: RTS and OUT2 come back as CTS and DCD.
    b.out(MCR, LOOP | OUT2 | RTS);
    assert_eq!(b.inp(MSR) & 0xf0, 0x90);
    b.out(MCR, 0);
    // Which one? LCR 0xbf opens the enhanced registers of later chips; it must not here.
    b.out(LCR, 0xbf);
    b.out(IIR_FCR, 0);
    b.out(LCR, 0);
    b.out(IIR_FCR, 0x01);
    assert_eq!(b.inp(IIR_FCR) >> 6, 3, "16550A: FIFOs that work");
    for lcr in [0x80, 0xbf] {
        b.out(LCR, lcr);
        assert_ne!(b.inp(IIR_FCR), 0, "no enhanced feature register");
    }
    b.out(LCR, 0);
    b.out(IIR_FCR, 0x21);
    assert_eq!(b.inp(IIR_FCR) >> 5, 6, "no 64-byte FIFO");
    b.out(LCR, DLAB);
    b.out(IIR_FCR, 0x21);
    assert_eq!(b.inp(IIR_FCR) >> 5, 6, "no 16750");
    b.out(LCR, 0);
    b.out(IER, 0x40);
    assert_eq!(b.inp(IER) & 0x40, 0, "no XScale");
    b.out(IER, 0);
    // size_fifo: 256 bytes into loop-back, 16 come out.
    b.out(IIR_FCR, 0x07);
    b.out(MCR, LOOP);
    (0..=255).for_each(|n| b.out(RBR_THR, n));
    let mut count = 0;
    while b.inp(LSR) & DR != 0 {
        b.inp(RBR_THR);
        count += 1;
    }
    assert_eq!(count, 16);
    b.out(MCR, OUT2);
    // Start-up: the THRE interrupt must come back when enabled again, and with an empty transmitter.
    for _ in 0..2 {
        b.out(IER, ETBEI);
        assert_eq!(b.inp(IIR_FCR) & 0x0f, 0x02);
        b.out(IER, 0);
    }
}

#[test]
fn a_saved_port_goes_on_elsewhere() {
    let mut b = Bench::interrupting(ERBFI | ELSI);
    b.out(IIR_FCR, 0x81);
    b.out(SCR, 0x5a);
    b.uart.receive(b"ab");
    assert!(b.uart.receive_break());
    b.inp(RBR_THR);

    let mut other = Bench::new();
    other.uart.restore(through_a_file(&b.uart.save())).unwrap();
    assert!(other.irq());
    assert_eq!(other.uart.save(), b.uart.save());
    for offset in [SCR, IER, IIR_FCR, LSR, RBR_THR, LSR, IIR_FCR, RBR_THR, LSR, MSR, MCR] {
        assert_eq!(other.inp(offset), b.inp(offset), "offset {offset}");
    }
}

#[test]
fn impossible_states_are_refused() {
    let mut b = Bench::new();
    b.out(IIR_FCR, 0x01);
    b.uart.receive(b"0123456789");
    let mut bytes = postcard::to_stdvec(&b.uart.save()).unwrap();
    bytes[3] = 0; // fcr: ten bytes without a fifo
    let state = postcard::from_bytes(&bytes).unwrap();
    let error = Bench::new().uart.restore(state).unwrap_err();
    assert_eq!(error.to_string(), "saved state of uart: fifo holds 10 bytes, at most 1");
}
