//! Any script on fw_cfg, with requests in memory that is partly missing and changes under the device's hands.
#![no_main]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use trapline_chipset::FwCfg;
use trapline_chipset::fw_cfg::PcItems;
use trapline_device::DmaMemory;
use trapline_fuzz::script::{Extent, Step, run};

const SIZE: usize = 0x1000;

#[derive(arbitrary::Arbitrary, Debug)]
struct Input {
    /// What memory holds at first, over and over.
    content: Vec<u8>,
    /// For each access in turn: whether there is memory.
    present: Vec<bool>,
    steps: Vec<Step>,
}

/// Memory whose addresses wrap every 4 KiB, so that requests are found wherever a script looks.
struct Hostile {
    content: Mutex<Vec<u8>>,
    present: Vec<bool>,
    accesses: AtomicUsize,
}

impl Hostile {
    fn access(&self, address: u64, len: usize, mut byte: impl FnMut(usize, &mut u8)) -> bool {
        let n = self.accesses.fetch_add(1, Ordering::Relaxed);
        let present = self.present.is_empty() || self.present[n % self.present.len()];
        let mut content = self.content.lock().expect("no panic before");
        for i in 0..len {
            byte(i, &mut content[(address as usize).wrapping_add(i) % SIZE]);
        }
        present && address.checked_add(len as u64).is_some()
    }
}

impl DmaMemory for Hostile {
    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        self.access(address, data.len(), |i, byte| data[i] = *byte)
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        self.access(address, data.len(), |i, byte| *byte = data[i])
    }
}

fuzz_target!(|input: Input| {
    let Input { content, present, steps } = input;
    let content =
        if content.is_empty() { vec![0; SIZE] } else { content.into_iter().cycle().take(SIZE).collect() };
    let memory = Arc::new(Hostile { content: Mutex::new(content), present, accesses: AtomicUsize::new(0) });
    run(
        &steps,
        Extent { regions: 3, offsets: 9 },
        |_| {
            let mut dev = FwCfg::with_dma(memory.clone());
            dev.add_pc(&PcItems::new(2, 1 << 30)).expect("an empty directory");
            dev.add_file("opt/fixed", vec![1; 300]).expect("a good name");
            dev.add_writable_file("opt/written", vec![2; 300]).expect("a good name");
            dev
        },
        |dev, _| {
            assert_eq!(dev.file("opt/fixed").expect("it was added"), [1; 300]);
            assert_eq!(dev.file("opt/written").expect("it was added").len(), 300);
        },
    );
});
