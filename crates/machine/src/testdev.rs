//! What bare-metal test kernels written for QEMU expect of a machine, beside the exit port and fw_cfg.

use std::sync::{Arc, Mutex};

use trapline_chipset::{PcTestdev, pc_testdev};
use trapline_device::IrqSink;
use trapline_device::bus::{MmioBusBuilder, PioBusBuilder};

use crate::Result;
use crate::devices::shared;

const MEMORY: u64 = 0xff00_0000;

/// What test kernels expect.
pub(crate) struct Testdev {
    pub(crate) dev: Arc<Mutex<PcTestdev>>,
}

impl Testdev {
    pub(crate) fn new(lines: Arc<dyn IrqSink>) -> Self {
        Self { dev: shared(PcTestdev::new(lines)) }
    }

    pub(crate) fn wire(&self, ports: &mut PioBusBuilder, mmio: &mut MmioBusBuilder) -> Result<()> {
        let dev = &self.dev;
        let lines = pc_testdev::LINE_COUNT.into();
        ports.register(0xe0, 4, dev.clone(), pc_testdev::LATCH, "testdev-latch")?;
        ports.register(0xe4, 4, dev.clone(), pc_testdev::FLUSH, "testdev-flush")?;
        ports.register(0xe8, 4, dev.clone(), pc_testdev::BYTES, "testdev-bytes")?;
        ports.register(0x2000, lines, dev.clone(), pc_testdev::LINES, "testdev-lines")?;
        let size = pc_testdev::MEMORY_SIZE as u64;
        mmio.register(MEMORY, size, dev.clone(), pc_testdev::MEMORY, "testdev-memory")?;
        Ok(())
    }
}
