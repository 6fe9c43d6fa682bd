//! Which engine to use.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, kvm_regs};
use trapline_memory::{GuestRam, RamConfig};

use crate::kvm::KvmVm;
use crate::soft::SoftVm;
use crate::{Engine, Entry, Error, Exit, Result, Vm, VmConfig};

/// What the user asked for: `--accel`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accel {
    /// KVM where it runs guest code natively, else the soft engine.
    #[default]
    Auto,
    /// KVM or an error.
    Kvm,
    /// The soft engine.
    Soft,
}

impl FromStr for Accel {
    type Err = UnknownAccel;

    fn from_str(s: &str) -> std::result::Result<Self, UnknownAccel> {
        match s {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "soft" => Ok(Self::Soft),
            other => Err(UnknownAccel(other.to_owned())),
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        })
    }
}

/// Not a name of an [`Accel`].
#[derive(Debug, thiserror::Error)]
#[error("no accelerator is called {0:?}: auto, kvm or soft")]
pub struct UnknownAccel(String);

/// The engine chosen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The engine.
    pub engine: Engine,
    /// Why, in one line for the user.
    pub why: String,
}

/// Picks the engine for `accel`. For [`Accel::Auto`] a short loop is timed: some `/dev/kvm` (of sandboxes
/// and nested machines) answer like KVM, but execute guest code by emulation, slower than the soft engine.
///
/// # Errors
/// When [`Accel::Kvm`] was asked for and cannot be used here.
pub fn choose(accel: Accel) -> Result<Choice> {
    let (engine, why) = match accel {
        Accel::Soft => (Engine::Soft, "asked for".into()),
        Accel::Kvm => {
            KvmVm::new(&VmConfig::default())?;
            let slow = kvm_emulates().then_some("; it only emulates guest code here, helped by softcpu");
            (Engine::Kvm, format!("asked for{}", slow.unwrap_or_default()))
        }
        Accel::Auto => match probe() {
            Ok(Speed { ns, native: true }) => {
                (Engine::Kvm, format!("runs guest code natively ({ns:.1} ns an instruction)"))
            }
            Ok(Speed { ns, native: false }) => {
                (Engine::Soft, format!("kvm only emulates guest code here ({ns:.0} ns an instruction)"))
            }
            Err(e) => (Engine::Soft, e.to_string()),
        },
    };
    Ok(Choice { engine, why: format!("{engine}: {why}") })
}

/// Makes a virtual machine on `engine`.
///
/// # Errors
/// When the engine cannot be used here, or not with this configuration.
pub fn create_vm(engine: Engine, config: &VmConfig) -> Result<Arc<dyn Vm>> {
    match engine {
        Engine::Kvm => Ok(Arc::new(KvmVm::new(config)?)),
        Engine::Soft => Ok(Arc::new(SoftVm::new(config)?)),
    }
}

/// Whether the kernel emulates all guest code.
pub(crate) fn kvm_emulates() -> bool {
    probe().is_ok_and(|speed| !speed.native)
}

/// What the probe found.
#[derive(Clone, Copy)]
struct Speed {
    /// Nanoseconds for one instruction.
    ns: f64,
    native: bool,
}

/// Loop iterations of the probe, of two instructions each: well below a millisecond natively.
const ITERATIONS: u64 = 100_000;
/// An engine that has not finished by now is emulating.
const PATIENCE: Duration = Duration::from_millis(20);
/// On a busy host a native run may take long, too: the best of so many counts.
const TRIES: u32 = 3;

/// Times a loop; the same result from the second call on, but for errors.
fn probe() -> Result<Speed> {
    static FOUND: OnceLock<Speed> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(*found);
    }
    let mut best = run_loop()?;
    for _ in 1..TRIES {
        if !best.native {
            let again = run_loop()?;
            best = Speed { ns: best.ns.min(again.ns), native: again.native };
        }
    }
    Ok(*FOUND.get_or_init(|| best))
}

/// Times a loop in 64-bit mode in a throw-away machine.
fn run_loop() -> Result<Speed> {
    const PML4: u64 = 0x1000;
    const PDPT: u64 = 0x2000;
    const PD: u64 = 0x3000;
    const CODE: u64 = 0x4000;
    // again: dec ecx; jnz again; hlt
    const LOOP: [u8; 5] = [0xff, 0xc9, 0x75, 0xfc, 0xf4];

    let unusable = |what: &str| Error::Unavailable { engine: Engine::Kvm, why: format!("probe: {what}") };
    let vm = KvmVm::new(&VmConfig { local_apic: false, ..VmConfig::default() })?;
    let ram = GuestRam::new(&RamConfig::new(2 << 20)).map_err(|e| unusable(&e.to_string()))?;
    for (at, entry) in [(PML4, PDPT | 3), (PDPT, PD | 3), (PD, 0x83)] {
        ram.arena().write_u64(at, entry).ok_or_else(|| unusable("memory"))?;
    }
    ram.arena().write_bytes(CODE, &LOOP).ok_or_else(|| unusable("memory"))?;
    vm.set_memory(ram.arena(), ram.slots())?;
    let mut vcpu = vm.create_vcpu(0)?;
    let leaves = CpuId::from_entries(&vm.host_cpuid()?).map_err(|_| unusable("cpuid"))?;
    vcpu.set_cpuid(&leaves)?;
    let mut sregs = vcpu.sregs()?;
    (sregs.cr3, sregs.cr4, sregs.efer, sregs.cr0) = (PML4, 0x20, 0x500, 0x8000_0011);
    (sregs.cs.type_, sregs.cs.l, sregs.cs.db, sregs.cs.base, sregs.cs.selector) = (11, 1, 0, 0, 8);
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rip: CODE, rcx: ITERATIONS, rflags: 2, ..Default::default() })?;

    let (finished, timer) = mpsc::channel::<()>();
    let kicker = vcpu.kicker();
    let timer = thread::spawn(move || {
        if timer.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            kicker.kick();
        }
    });
    let start = Instant::now();
    let exit = vcpu.run(Entry::default())?;
    let elapsed = start.elapsed();
    drop(finished);
    if timer.join().is_err() {
        return Err(unusable("timer"));
    }
    let done = ITERATIONS.saturating_sub(vcpu.regs()?.rcx).max(1) * 2;
    let ns = elapsed.as_nanos() as f64 / done as f64;
    match exit {
        Exit::Halt => Ok(Speed { ns, native: elapsed < PATIENCE }),
        Exit::Interrupted => Ok(Speed { ns, native: false }),
        other => Err(unusable(&format!("{other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for accel in [Accel::Auto, Accel::Kvm, Accel::Soft] {
            assert_eq!(accel.to_string().parse::<Accel>().unwrap(), accel);
        }
        assert!("KVM".parse::<Accel>().is_err());
    }

    #[test]
    fn a_choice_gives_its_reason() {
        let auto = choose(Accel::Auto).unwrap();
        eprintln!("{}", auto.why);
        assert!(auto.why.starts_with(&format!("{}: ", auto.engine)));
        assert_eq!(choose(Accel::Soft).unwrap().engine, Engine::Soft);
        match choose(Accel::Kvm) {
            Ok(choice) => assert_eq!(choice.engine, Engine::Kvm),
            Err(e) => assert_eq!((auto.engine, auto.why), (Engine::Soft, format!("soft: {e}"))),
        }
    }
}
