//! eventfds: guest writes that signal one, and ones that interrupt the guest.

use iced_x86::code_asm::*;
use trapline_device::{AccessSize, Msi};
use trapline_vcpu::{Exit, IoEvent, IoEventAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::harness::*;

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

#[test]
fn ioeventfd_takes_the_writes_that_match() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            a.mov(rbx, MMIO)?;
            a.mov(word_ptr(rbx + 0x50), 1u32)?;
            a.mov(word_ptr(rbx + 0x50), 2u32)?;
            a.mov(dword_ptr(rbx + 0x50), 1u32)?;
            a.mov(ax, 7)?;
            a.mov(dx, 0xc010)?;
            a.out(dx, ax)?;
            a.out(dx, al)?;
            a.done()
        });
        let (queue1, any) = (eventfd(), eventfd());
        let queue1_event =
            IoEvent { address: IoEventAddress::Mmio(MMIO + 0x50), matches: Some((AccessSize::Word, 1)) };
        let any_event = IoEvent { address: IoEventAddress::Pio(0xc010), matches: None };
        machine.vm.register_ioeventfd(&queue1, queue1_event).unwrap();
        machine.vm.register_ioeventfd(&any, any_event).unwrap();
        assert!(machine.vm.register_ioeventfd(&queue1, queue1_event).is_err(), "registered already");
        let other_value = Exit::MmioWrite { addr: MMIO + 0x50, size: AccessSize::Word, value: 2 };
        assert_eq!(machine.step(), other_value);
        assert_eq!(queue1.read().unwrap(), 1);
        let other_width = Exit::MmioWrite { addr: MMIO + 0x50, size: AccessSize::Dword, value: 1 };
        assert_eq!(machine.step(), other_width);
        machine.finish();
        assert_eq!(any.read().unwrap(), 2, "two writes, of any width");
        assert!(queue1.read().is_err(), "no other write signalled it");

        machine.vm.unregister_ioeventfd(&queue1, queue1_event).unwrap();
        assert!(machine.vm.unregister_ioeventfd(&queue1, queue1_event).is_err());
        machine.jump(CODE, |_| {});
        let back = Exit::MmioWrite { addr: MMIO + 0x50, size: AccessSize::Word, value: 1 };
        assert_eq!(machine.step(), back);
    });
}

#[test]
fn irqfd_interrupts_with_the_message_of_its_route() {
    on_every_engine(|engine| {
        let mut machine = Machine::new(engine, Mode::Long, |a| {
            let mut again = a.create_label();
            a.mov(ebp, 0xfee0_0000u32)?;
            a.mov(dword_ptr(rbp + 0xf0), 0x1ffu32)?;
            a.out(0x81, al)?;
            a.sti()?;
            a.set_label(&mut again)?;
            a.hlt()?;
            a.jmp(again)?;
            for vector in [0x45u8, 0x46] {
                a.handler(vector)?;
                a.mov(dword_ptr(rbp + 0xb0), 0u32)?;
                a.mov(al, u32::from(vector))?;
                a.out(0x80, al)?;
                a.iretq()?;
            }
            Ok(())
        });
        let fd = eventfd();
        let to = |vector: u32| Msi { address: 0xfee0_0000, data: vector };
        let id = machine.vm.create_irqfd(&fd, to(0x45)).unwrap();
        let interrupted = |vector| Exit::PioWrite { port: 0x80, size: AccessSize::Byte, value: vector };
        assert!(matches!(machine.step(), Exit::PioWrite { port: 0x81, .. }));
        fd.write(1).unwrap();
        assert_eq!(machine.step(), interrupted(0x45));
        machine.vm.set_irqfd_msi(id, to(0x46)).unwrap();
        fd.write(1).unwrap();
        assert_eq!(machine.step(), interrupted(0x46));
        machine.vm.remove_irqfd(id).unwrap();
        fd.write(1).unwrap();
        assert_eq!(fd.read().unwrap(), 1, "nobody takes it any more");
        assert!(machine.vm.remove_irqfd(id).is_err());
        assert!(machine.vm.set_irqfd_msi(id, to(0x46)).is_err());
    });
}

#[test]
fn without_local_apics_there_is_nobody_to_interrupt() {
    on_every_engine(|engine| {
        let machine = Machine::without_apic(engine, Mode::Long, |a| a.hlt());
        let msi = Msi { address: 0xfee0_0000, data: 0x41 };
        assert!(machine.vm.signal_msi(msi).is_err());
        assert!(machine.vm.create_irqfd(&eventfd(), msi).is_err());
        assert!(machine.vm.set_ioapic_route(0, Some(msi)).is_err());
        assert!(machine.vcpu.lapic().is_err());
    });
}
