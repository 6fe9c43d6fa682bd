//! What a run has cost.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use trapline_device::bus::RegionStats;
use trapline_vcpu::{ExitStats, Vcpu};

use crate::profile::Profile;

/// What a machine did so far.
#[derive(Clone, Debug)]
pub struct Stats {
    /// The engine, and why it was chosen.
    pub engine: String,
    /// Time spent running.
    pub wall: Duration,
    /// Processor time that the process used meanwhile.
    pub cpu: Duration,
    /// Exits of each vCPU.
    pub exits: Vec<ExitStats>,
    /// What the engine counts beyond that, for all vCPUs: see [`Vcpu::detail`](trapline_vcpu::Vcpu::detail).
    pub detail: BTreeMap<String, u64>,
    /// Accesses of port regions.
    pub ports: Vec<RegionStats>,
    /// Accesses of memory-mapped regions.
    pub mmio: Vec<RegionStats>,
    /// Where the time of the vCPUs went, with [`MachineConfig::profile`](crate::MachineConfig::profile).
    pub profile: Option<Profile>,
}

/// The sum of what each vCPU counts.
pub(crate) fn detail(vcpus: &[Box<dyn Vcpu>]) -> BTreeMap<String, u64> {
    let mut sum = BTreeMap::new();
    for (name, count) in vcpus.iter().flat_map(|vcpu| vcpu.detail()) {
        *sum.entry(name).or_default() += count;
    }
    sum
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "engine  {}", self.engine)?;
        writeln!(f, "wall    {:.3} s", self.wall.as_secs_f64())?;
        writeln!(f, "cpu     {:.3} s", self.cpu.as_secs_f64())?;
        for (id, exits) in self.exits.iter().enumerate() {
            writeln!(f, "exits   vcpu {id}: {}", exits.total())?;
            for (kind, count) in exits.iter().filter(|(_, count)| *count > 0) {
                writeln!(f, "        {:<18}{count:>12}", kind.name())?;
            }
        }
        for (name, count) in &self.detail {
            writeln!(f, "detail  {name:<40}{count:>12}")?;
        }
        if let Some(profile) = &self.profile {
            // It names the same regions, those that have moved meanwhile too.
            return write!(f, "{profile}");
        }
        for (title, regions) in [("ports", &self.ports), ("mmio", &self.mmio)] {
            let used = regions.iter().filter(|region| region.reads + region.writes > 0);
            for region in used {
                let RegionStats { name, start, len, reads, writes } = region;
                writeln!(
                    f,
                    "{title:<8}{name:<12} {start:#10x}+{len:<#7x}{reads:>12} read {writes:>12} written"
                )?;
            }
        }
        Ok(())
    }
}
