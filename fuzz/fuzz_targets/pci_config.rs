//! Any script of configuration, port and memory accesses on a PC's bridges and a bridge of PCI's own.
#![no_main]

use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use trapline_pci::test::Bench;
use trapline_pci::{BusId, ClassCode, DevFn, I440Fx, Identity, IntxRouter, PciBridge, Piix3, Piix4Pm};

fuzz_target!(|script: &[u8]| {
    let mut bench = Bench::new();
    let router = IntxRouter::new((0..16).map(|_| bench.line()).collect());
    let host = Arc::new(Mutex::new(I440Fx::new((0, 0), bench.effects())));
    let isa = Arc::new(Mutex::new(Piix3::new((0, 0), router)));
    let pm = Arc::new(Mutex::new(Piix4Pm::new((0, 0), bench.line())));
    let class = ClassCode::PCI_BRIDGE;
    let id = Identity { vendor: 0x1b36, device: 1, revision: 0, class, subsystem: (0, 0) };
    let port = Arc::new(Mutex::new(PciBridge::root_port("port", id).expect("the identity is a bridge's")));
    {
        let mut root = bench.root().lock().expect("no other thread");
        root.add(BusId::ROOT, DevFn::new(0, 0), host).expect("free");
        root.add(BusId::ROOT, DevFn::new(0, 1), isa).expect("free");
        root.add(BusId::ROOT, DevFn::new(0, 3), pm).expect("free");
        let behind = root.add_bridge(BusId::ROOT, DevFn::new(2, 0), port).expect("free");
        let inner = Arc::new(Mutex::new(PciBridge::new("inner", id)));
        root.add_bridge(behind, DevFn::new(0, 0), inner).expect("free");
    }
    bench.place().expect("there is room for bridges");
    bench.run_script(script);
});
