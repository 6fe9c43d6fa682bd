//! Identities: vendor and device numbers, class codes.

/// Vendor number of Intel.
pub const VENDOR_INTEL: u16 = 0x8086;
/// Vendor number of Red Hat, used for virtio devices and as the subsystem vendor of virtual machines.
pub const VENDOR_RED_HAT: u16 = 0x1af4;
/// Vendor number of Bochs and QEMU's standard VGA.
pub const VENDOR_BOCHS: u16 = 0x1234;
/// What an absent function reads as vendor number.
pub const VENDOR_NONE: u16 = 0xffff;

/// A class code (PCI Local Bus 3.0, appendix D).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClassCode {
    /// Base class, at offset 0x0b.
    pub base: u8,
    /// Sub-class, at offset 0x0a.
    pub sub: u8,
    /// Programming interface, at offset 0x09.
    pub interface: u8,
}

impl ClassCode {
    /// A class code of its three parts.
    pub const fn new(base: u8, sub: u8, interface: u8) -> Self {
        Self { base, sub, interface }
    }

    /// SCSI controller.
    pub const SCSI: Self = Self::new(0x01, 0x00, 0x00);
    /// IDE controller in compatibility mode that masters the bus.
    pub const IDE: Self = Self::new(0x01, 0x01, 0x80);
    /// SATA controller, AHCI 1.0.
    pub const AHCI: Self = Self::new(0x01, 0x06, 0x01);
    /// NVM Express controller.
    pub const NVME: Self = Self::new(0x01, 0x08, 0x02);
    /// Ethernet controller.
    pub const ETHERNET: Self = Self::new(0x02, 0x00, 0x00);
    /// VGA-compatible display controller.
    pub const VGA: Self = Self::new(0x03, 0x00, 0x00);
    /// Display controller that is not VGA-compatible.
    pub const DISPLAY: Self = Self::new(0x03, 0x80, 0x00);
    /// Host bridge.
    pub const HOST_BRIDGE: Self = Self::new(0x06, 0x00, 0x00);
    /// PCI-to-ISA bridge.
    pub const ISA_BRIDGE: Self = Self::new(0x06, 0x01, 0x00);
    /// PCI-to-PCI bridge.
    pub const PCI_BRIDGE: Self = Self::new(0x06, 0x04, 0x00);
    /// Other bridge; the PIIX4's power management function.
    pub const OTHER_BRIDGE: Self = Self::new(0x06, 0x80, 0x00);
    /// 16550-compatible serial port.
    pub const SERIAL_16550: Self = Self::new(0x07, 0x00, 0x02);
    /// USB controller, UHCI.
    pub const UHCI: Self = Self::new(0x0c, 0x03, 0x00);
    /// USB controller, xHCI.
    pub const XHCI: Self = Self::new(0x0c, 0x03, 0x30);
    /// Fits no other class.
    pub const UNASSIGNED: Self = Self::new(0xff, 0x00, 0x00);
}

/// What a function says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor number.
    pub vendor: u16,
    /// Device number.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class code.
    pub class: ClassCode,
    /// Subsystem vendor and subsystem number; `(0, 0)` for none. Bridges (type 1) have none.
    pub subsystem: (u16, u16),
}
