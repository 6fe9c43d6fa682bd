//! What bare-metal test kernels written for QEMU expect of a machine, beside the exit port.

use std::sync::{Arc, Mutex};

use trapline_chipset::{FwCfg, PcTestdev, fw_cfg, pc_testdev};
use trapline_device::IrqSink;
use trapline_device::bus::{MmioBusBuilder, PioBusBuilder};

use crate::Result;
use crate::devices::shared;

const MEMORY: u64 = 0xff00_0000;

/// What test kernels expect.
pub(crate) struct Testdev {
    pub(crate) dev: Arc<Mutex<PcTestdev>>,
    pub(crate) fw_cfg: Arc<Mutex<FwCfg>>,
}

impl Testdev {
    pub(crate) fn new(lines: Arc<dyn IrqSink>, memory: u64, cpus: u32) -> Self {
        let mut fw_cfg = FwCfg::new();
        fw_cfg.add(fw_cfg::RAM_SIZE, memory.to_le_bytes());
        for key in [fw_cfg::NB_CPUS, fw_cfg::MAX_CPUS] {
            fw_cfg.add(key, (cpus as u16).to_le_bytes()); // at most MAX_CPUS
        }
        Self { dev: shared(PcTestdev::new(lines)), fw_cfg: shared(fw_cfg) }
    }

    pub(crate) fn wire(&self, ports: &mut PioBusBuilder, mmio: &mut MmioBusBuilder) -> Result<()> {
        let Self { dev, fw_cfg } = self;
        let lines = pc_testdev::LINE_COUNT.into();
        ports.register(0xe0, 4, dev.clone(), pc_testdev::LATCH, "testdev-latch")?;
        ports.register(0xe4, 4, dev.clone(), pc_testdev::FLUSH, "testdev-flush")?;
        ports.register(0xe8, 4, dev.clone(), pc_testdev::BYTES, "testdev-bytes")?;
        ports.register(0x2000, lines, dev.clone(), pc_testdev::LINES, "testdev-lines")?;
        ports.register(0x510, 2, fw_cfg.clone(), 0, "fw-cfg")?;
        let size = pc_testdev::MEMORY_SIZE as u64;
        mmio.register(MEMORY, size, dev.clone(), pc_testdev::MEMORY, "testdev-memory")?;
        Ok(())
    }
}
