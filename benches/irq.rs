//! An interrupt's way through the local APIC: accepted, offered, acknowledged, ended.
//!
//! These are the four calls that the soft engine makes for each interrupt it injects, so they bound how cheap
//! an interrupt can be. *Idle* finds nothing else requested or in service; *nested* has the interrupt preempt
//! one of lower priority, with another requested behind it, which the searches for the highest vector have to
//! tell apart. *Nothing pending* is what a look costs when there is no interrupt: the most frequent of all.

use std::hint::black_box;

use criterion::Criterion;
use trapline::irqchip::lapic::{Delivered, LocalApic};

fn apic() -> LocalApic {
    let mut apic = LocalApic::new(0, true);
    apic.virtual_wire();
    apic
}

/// From accept to end of interrupt.
fn serve(apic: &mut LocalApic, vector: u8) -> Option<u8> {
    assert_eq!(apic.accept(vector, false), Delivered::Requested);
    let pending = apic.pending()?;
    apic.ack(pending);
    apic.eoi();
    Some(pending)
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let mut group = c.benchmark_group("local apic");

    let mut idle = apic();
    assert_eq!(serve(&mut idle, 0x80), Some(0x80));
    group.bench_function("accept, ack, eoi: idle", |b| b.iter(|| serve(&mut idle, black_box(0x80))));

    let mut nested = apic();
    let _ = nested.accept(0x50, false);
    nested.ack(0x50);
    let _ = nested.accept(0x30, false);
    assert_eq!(serve(&mut nested, 0x80), Some(0x80));
    group.bench_function("accept, ack, eoi: nested", |b| b.iter(|| serve(&mut nested, black_box(0x80))));

    let quiet = apic();
    group.bench_function("nothing pending", |b| b.iter(|| black_box(&quiet).pending()));

    group.finish();
    c.final_summary();
}
