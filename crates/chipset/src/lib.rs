//! Legacy PC devices: 16550A, MC146818, i8042, ACPI PM, isa-debug-exit
