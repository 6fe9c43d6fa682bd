//! What the firmware of a PC asks for. Looked at: SeaBIOS 1.16 and the OVMF of edk2 2022.11.

use std::fmt;
use std::time::Duration;

use super::{
    BOOT_MENU, FwCfg, FwCfgError, IRQ0_OVERRIDE, MAX_CPUS, NB_CPUS, NOGRAPHIC, NUMA, RAM_SIZE, UUID,
};

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// First address.
    pub address: u64,
    /// Length in bytes.
    pub length: u64,
    /// What is there.
    pub kind: E820Kind,
}

/// What a range of addresses holds, with the numbers of the INT 15h E820h interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// RAM.
    Ram = 1,
    /// Not for operating systems.
    Reserved = 2,
}

/// A device to boot from. It is displayed as the Open Firmware path that firmware looks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootDevice {
    /// A disk or CD of an IDE controller on the first PCI bus.
    Ide {
        /// The controller's device number.
        device: u8,
        /// The controller's function.
        function: u8,
        /// 0 or 1.
        channel: u8,
        /// 0 (master) or 1.
        drive: u8,
    },
    /// A block device that is a PCI function itself (virtio-blk).
    Block {
        /// Device number.
        device: u8,
        /// Function.
        function: u8,
    },
    /// A network adapter.
    Network {
        /// Device number.
        device: u8,
        /// Function.
        function: u8,
    },
    /// The option ROM in the fw_cfg file `genroms/NAME`.
    Rom(String),
}

impl fmt::Display for BootDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// A PCI function: without `,0` for function 0.
        fn unit(device: u8, function: u8) -> String {
            if function == 0 { format!("{device:x}") } else { format!("{device:x},{function:x}") }
        }
        match self {
            Self::Ide { device, function, channel, drive } => {
                let controller = unit(*device, *function);
                write!(f, "/pci@i0cf8/ide@{controller}/drive@{channel:x}/disk@{drive:x}")
            }
            Self::Block { device, function } => {
                write!(f, "/pci@i0cf8/scsi@{}/disk@0,0", unit(*device, *function))
            }
            Self::Network { device, function } => {
                write!(f, "/pci@i0cf8/ethernet@{}/ethernet-phy@0", unit(*device, *function))
            }
            Self::Rom(name) => write!(f, "/rom@genroms/{name}"),
        }
    }
}

/// A boot menu for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootMenu {
    /// How long the firmware waits for a key, up to 65 s.
    pub wait: Duration,
}

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumaNode {
    /// Its memory in bytes.
    pub memory: u64,
    /// APIC IDs of its processors.
    pub cpus: Vec<u16>,
}

/// The items and files of a PC, but for ACPI and SMBIOS tables (files `etc/acpi/…`, `etc/table-loader`,
/// `etc/smbios/…`) and kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcItems {
    /// Processors that are there at the start.
    pub cpus: u16,
    /// One more than the largest APIC ID that there may be.
    pub max_cpus: u16,
    /// RAM in bytes.
    pub ram_size: u64,
    /// RAM, and addresses that are in use, in ascending order.
    pub e820: Vec<E820Entry>,
    /// There is a display.
    pub graphics: bool,
    /// ISA interrupt 0 arrives at pin 2 of the I/O APIC.
    pub irq0_override: bool,
    /// Identifies the machine, in the order of its textual form.
    pub uuid: Option<[u8; 16]>,
    /// Devices to boot from, best first. Without any the firmware has its own order.
    pub boot_order: Vec<BootDevice>,
    /// Boot from nothing but `boot_order`.
    pub boot_strict: bool,
    /// Offer a boot menu.
    pub boot_menu: Option<BootMenu>,
    /// How long to wait before trying again when nothing boots; `None`: for ever. In milliseconds up to
    /// 2^31.
    pub boot_fail_wait: Option<Duration>,
    /// Suspend to RAM (S3) can be entered.
    pub s3: bool,
    /// Suspend to disk (S4) can be entered.
    pub s4: bool,
    /// PCI root buses beside bus 0.
    pub extra_pci_roots: u64,
    /// NUMA nodes; none where memory is uniform.
    pub numa: Vec<NumaNode>,
}

impl PcItems {
    /// A machine of uniform memory that boots from what it finds.
    pub fn new(cpus: u16, ram_size: u64) -> Self {
        Self {
            cpus,
            max_cpus: cpus,
            ram_size,
            e820: Vec::new(),
            graphics: true,
            irq0_override: true,
            uuid: None,
            boot_order: Vec::new(),
            boot_strict: false,
            boot_menu: None,
            boot_fail_wait: None,
            s3: false,
            s4: false,
            extra_pci_roots: 0,
            numa: Vec::new(),
        }
    }

    fn e820(&self) -> Vec<u8> {
        let entry = |entry: &E820Entry| {
            let mut bytes = entry.address.to_le_bytes().to_vec();
            bytes.extend(entry.length.to_le_bytes());
            bytes.extend((entry.kind as u32).to_le_bytes());
            bytes
        };
        self.e820.iter().flat_map(entry).collect()
    }

    fn numa(&self) -> Vec<u8> {
        let node_of = |cpu: u16| self.numa.iter().position(|node| node.cpus.contains(&cpu)).unwrap_or(0);
        let count = std::iter::once(self.numa.len() as u64);
        let nodes = (0..self.max_cpus).map(|cpu| node_of(cpu) as u64);
        let sizes = self.numa.iter().map(|node| node.memory);
        count.chain(nodes).chain(sizes).flat_map(u64::to_le_bytes).collect()
    }

    /// One device a line, and a NUL.
    fn boot_order(&self) -> Option<Vec<u8>> {
        let mut lines: Vec<String> = self.boot_order.iter().map(BootDevice::to_string).collect();
        lines.extend(self.boot_strict.then(|| "HALT".to_owned()));
        (!lines.is_empty()).then(|| (lines.join("\n") + "\0").into_bytes())
    }

    /// A byte for each of S0 to S5: bit 7, it can be entered; below, its `SLP_TYP`.
    fn system_states(&self) -> [u8; 6] {
        const CAN: u8 = 0x80;
        [CAN, 0, 0, 1 | if self.s3 { CAN } else { 0 }, 2 | if self.s4 { CAN } else { 0 }, CAN]
    }
}

impl FwCfg {
    /// Adds what `items` tells.
    ///
    /// # Errors
    /// If a file of one of the names is there already.
    pub fn add_pc(&mut self, items: &PcItems) -> Result<(), FwCfgError> {
        self.add(NB_CPUS, items.cpus.to_le_bytes());
        self.add(MAX_CPUS, items.max_cpus.to_le_bytes());
        self.add(RAM_SIZE, items.ram_size.to_le_bytes());
        self.add(NOGRAPHIC, u16::from(!items.graphics).to_le_bytes());
        self.add(IRQ0_OVERRIDE, u32::from(items.irq0_override).to_le_bytes());
        self.add(BOOT_MENU, u16::from(items.boot_menu.is_some()).to_le_bytes());
        self.add(NUMA, items.numa());
        if let Some(uuid) = items.uuid {
            self.add(UUID, uuid);
        }
        self.add_file("etc/e820", items.e820())?;
        self.add_file("etc/system-states", items.system_states())?;
        if let Some(order) = items.boot_order() {
            self.add_file("bootorder", order)?;
        }
        if let Some(menu) = items.boot_menu {
            let wait = u16::try_from(menu.wait.as_millis()).unwrap_or(u16::MAX);
            self.add_file("etc/boot-menu-wait", wait.to_le_bytes())?;
        }
        let wait = items.boot_fail_wait.map(|wait| i32::try_from(wait.as_millis()).unwrap_or(i32::MAX));
        self.add_file("etc/boot-fail-wait", wait.unwrap_or(-1).to_le_bytes())?;
        if items.extra_pci_roots > 0 {
            self.add_file("etc/extra-pci-roots", items.extra_pci_roots.to_le_bytes())?;
        }
        Ok(())
    }
}
