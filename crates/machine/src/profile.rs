//! Where a vCPU's time goes: by the reason of an exit and the device that it concerned.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use trapline_device::bus::{MmioBus, PioBus};
use trapline_vcpu::{Exit, ExitKind};

/// What is counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// An access to the region that starts here.
    Region(ExitKind, u64),
    /// An access that nobody claims, or no access.
    Other(ExitKind),
}

/// Exits of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileRow {
    /// Their reason.
    pub kind: ExitKind,
    /// The region accessed: its name, and its first port or address. `None`: nobody claims what was accessed,
    /// or nothing was.
    pub region: Option<(String, u64)>,
    /// How many.
    pub count: u64,
    /// Time that the board took to serve them.
    pub time: Duration,
}

/// Where the time of a machine's vCPUs went.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    rows: HashMap<Key, ProfileRow>,
    /// Processor time of the vCPUs' threads.
    cpu: Duration,
}

/// The region that an exit accesses: its name, and its first port or address.
pub(crate) fn accessed<'a>(exit: &Exit, ports: &'a PioBus, mmio: &'a MmioBus) -> Option<(&'a str, u64)> {
    match *exit {
        Exit::PioRead { port, .. }
        | Exit::PioWrite { port, .. }
        | Exit::PioReadBlock { port, .. }
        | Exit::PioWriteBlock { port, .. } => ports.region_of(port).map(|(name, at)| (name, at.into())),
        Exit::MmioRead { addr, .. } | Exit::MmioWrite { addr, .. } => mmio.region_of(addr),
        _ => None,
    }
}

impl Profile {
    /// Counts an exit that took from `start` until now to serve.
    pub(crate) fn record(&mut self, exit: &Exit, start: Instant, ports: &PioBus, mmio: &MmioBus) {
        let (kind, region) = (exit.kind(), accessed(exit, ports, mmio));
        let key = region.map_or(Key::Other(kind), |(_, start)| Key::Region(kind, start));
        let row = self.rows.entry(key).or_insert_with(|| {
            let region = region.map(|(name, start)| (name.to_owned(), start));
            ProfileRow { kind, region, count: 0, time: Duration::ZERO }
        });
        row.count += 1;
        row.time += start.elapsed();
    }

    /// Adds processor time that a vCPU's thread has used.
    pub(crate) fn add_cpu(&mut self, time: Duration) {
        self.cpu += time;
    }

    /// Adds what another vCPU did.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (key, row) in &other.rows {
            let sum = self.rows.entry(*key).or_insert_with(|| ProfileRow {
                count: 0,
                time: Duration::ZERO,
                ..row.clone()
            });
            sum.count += row.count;
            sum.time += row.time;
        }
        self.cpu += other.cpu;
    }

    /// Processor time of the vCPUs' threads: guest, engine and board together.
    pub fn cpu(&self) -> Duration {
        self.cpu
    }

    /// What there was, the most expensive first.
    pub fn rows(&self) -> Vec<&ProfileRow> {
        let mut rows: Vec<_> = self.rows.values().collect();
        rows.sort_by(|a, b| (b.time, b.count).cmp(&(a.time, a.count)).then_with(|| a.region.cmp(&b.region)));
        rows
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.cpu.as_secs_f64();
        let share = |time: Duration| if all > 0.0 { 100.0 * time.as_secs_f64() / all } else { 0.0 };
        writeln!(f, "{:<18}{:<34}{:>12}{:>12}{:>8}", "exit", "device", "count", "time", "share")?;
        let mut line = |reason: &str, device: &str, count: &str, time: Duration| {
            let (seconds, share) = (time.as_secs_f64(), share(time));
            writeln!(f, "{reason:<18}{device:<34}{count:>12}{seconds:>10.3} s{share:>6.1} %")
        };
        let mut served = Duration::ZERO;
        for ProfileRow { kind, region, count, time } in self.rows() {
            let device = region.as_ref().map_or_else(String::new, |(name, at)| format!("{name} at {at:#x}"));
            line(kind.name(), &device, &count.to_string(), *time)?;
            served += *time;
        }
        line("guest and engine", "", "", self.cpu.saturating_sub(served))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use trapline_device::AccessSize::Byte;
    use trapline_device::{IrqLine, test::Recorder};
    use trapline_irqchip::pic::PicPair;

    #[test]
    fn exits_are_counted_by_reason_and_device() {
        let pic = PicPair::new(IrqLine::new(Arc::new(Recorder::default()), 0));
        let mut ports = PioBus::builder();
        ports.register(0x20, 2, Arc::new(Mutex::new(pic)), 0, "pic0").unwrap();
        let (ports, mmio) = (ports.build(), MmioBus::builder().build());
        let mut profile = Profile::default();
        let start = Instant::now();
        for exit in [
            Exit::PioRead { port: 0x21, size: Byte },
            Exit::PioRead { port: 0x20, size: Byte },
            Exit::PioRead { port: 0x80, size: Byte },
            Exit::Deadline,
        ] {
            profile.record(&exit, start, &ports, &mmio);
        }
        let mut twice = profile.clone();
        twice.merge(&profile);
        let mut counts: Vec<_> =
            twice.rows().iter().map(|row| (row.kind.name(), row.region.clone(), row.count)).collect();
        counts.sort_unstable();
        let pic0 = Some(("pic0".to_owned(), 0x20));
        assert_eq!(counts, [("deadline", None, 2), ("pio_read", None, 2), ("pio_read", pic0, 4)]);
        let text = twice.to_string();
        assert!(text.contains("pic0 at 0x20") && text.contains("guest and engine"), "{text}");
    }
}
