//! Interrupt controllers and the interval timer: 8259A, IOAPIC, local APIC, 8254
