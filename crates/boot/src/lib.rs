//! Loading kernels: bzImage, ELF, PVH; command line, e820 and ACPI tables
