//! The topology: buses, the functions on them, the bridges between them.

use std::collections::BTreeMap;
use std::sync::Arc;

use trapline_device::AccessSize;
use trapline_device::bus::SharedDevice;

use crate::config::HeaderType;
use crate::effects::{BarChange, Effects};
use crate::function::{PciFunction, SharedFunction, lock};
use crate::regs::{BRIDGE_CONTROL, HEADER_TYPE, MULTI_FUNCTION, SECONDARY_BUS_RESET};
use crate::{AddressRange, Bdf, Claim, DevFn};

/// A bus of a [`PciRoot`]. Unlike its number, which configuration software gives it, it never
/// changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BusId(pub(crate) usize);

impl BusId {
    /// The first bus, number 0.
    pub const ROOT: Self = Self(0);
}

/// Why the topology cannot be changed so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// There is no such bus, or its bridge was removed.
    #[error("there is no such bus")]
    NoBus,
    /// There is a function already.
    #[error("there is a function at {0} already")]
    Taken(DevFn),
    /// There is no function.
    #[error("there is no function at {0}")]
    Absent(DevFn),
    /// A bridge was given to `add`, or what is no bridge to `add_bridge`.
    #[error("the function at {0} has the other header type")]
    HeaderType(DevFn),
    /// 256 buses are all there can be.
    #[error("there are too many buses")]
    TooManyBuses,
}

/// A range with the device that answers there.
#[derive(Clone)]
pub struct Mapping {
    /// Who answers.
    pub device: SharedDevice,
    /// As which of its regions.
    pub region: usize,
    /// Where.
    pub range: AddressRange,
    /// What to call the region.
    pub name: String,
}

/// The functions of a machine, by bus, device and function number.
///
/// Functions are added and removed at any time, as hot plugging does. Configuration accesses go
/// through [`PciRoot::config_read`] and [`PciRoot::config_write`]; what they change of the address
/// map is in [`PciRoot::effects`] afterwards.
pub struct PciRoot {
    pub(crate) buses: Vec<Option<Bus>>,
    effects: Effects,
}

pub(crate) struct Bus {
    /// The bridge that leads here; `None` for the first bus.
    upstream: Option<(BusId, DevFn)>,
    pub(crate) slots: BTreeMap<DevFn, Slot>,
}

pub(crate) struct Slot {
    pub(crate) function: SharedFunction,
    name: String,
    /// The bus behind a bridge.
    pub(crate) secondary: Option<BusId>,
    /// What was reachable when last looked at.
    claims: Vec<Claim>,
    redirects: BTreeMap<usize, (SharedDevice, usize)>,
}

impl PciRoot {
    /// A topology of one empty bus. `effects` is shared with the host bridge and the board.
    pub fn new(effects: Effects) -> Self {
        Self { buses: vec![Some(Bus { upstream: None, slots: BTreeMap::new() })], effects }
    }

    /// Where changes of the address map are reported.
    pub fn effects(&self) -> &Effects {
        &self.effects
    }

    /// Adds a function.
    ///
    /// # Errors
    /// When there is no such bus, the place is taken, or the function is a bridge.
    pub fn add(&mut self, bus: BusId, at: DevFn, function: SharedFunction) -> Result<(), TopologyError> {
        self.insert(bus, at, function, HeaderType::Function, None)?;
        self.update(bus, at);
        Ok(())
    }

    /// Adds a bridge, and the bus behind it.
    ///
    /// # Errors
    /// When there is no such bus, the place is taken, the function is no bridge, or there are 256
    /// buses.
    pub fn add_bridge(
        &mut self,
        bus: BusId,
        at: DevFn,
        bridge: SharedFunction,
    ) -> Result<BusId, TopologyError> {
        let free = self.buses.iter().position(Option::is_none);
        let secondary = BusId(free.unwrap_or(self.buses.len()));
        if secondary.0 > 0xff {
            return Err(TopologyError::TooManyBuses);
        }
        self.insert(bus, at, bridge, HeaderType::Bridge, Some(secondary))?;
        let behind = Some(Bus { upstream: Some((bus, at)), slots: BTreeMap::new() });
        match self.buses.get_mut(secondary.0) {
            Some(entry) => *entry = behind,
            None => self.buses.push(behind),
        }
        self.update(bus, at);
        Ok(secondary)
    }

    fn insert(
        &mut self,
        bus: BusId,
        at: DevFn,
        function: SharedFunction,
        header: HeaderType,
        secondary: Option<BusId>,
    ) -> Result<(), TopologyError> {
        let slots =
            &mut self.buses.get_mut(bus.0).and_then(Option::as_mut).ok_or(TopologyError::NoBus)?.slots;
        if slots.contains_key(&at) {
            return Err(TopologyError::Taken(at));
        }
        let name = {
            let function = lock(&*function);
            if function.config().header_type() != header {
                return Err(TopologyError::HeaderType(at));
            }
            function.name().to_owned()
        };
        let slot = Slot { function, name, secondary, claims: Vec::new(), redirects: BTreeMap::new() };
        slots.insert(at, slot);
        Ok(())
    }

    /// Removes a function; with a bridge goes everything behind it. Its ranges are reported as gone.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove(&mut self, bus: BusId, at: DevFn) -> Result<SharedFunction, TopologyError> {
        let secondary = self.slot(bus, at).ok_or(TopologyError::Absent(at))?.secondary;
        if let Some(behind) = secondary {
            for devfn in self.places_on(behind) {
                self.remove(behind, devfn)?;
            }
        }
        self.settle(bus, at, Vec::new());
        if let Some(entry) = secondary.and_then(|behind| self.buses.get_mut(behind.0)) {
            *entry = None;
        }
        let slots = self.buses.get_mut(bus.0).and_then(Option::as_mut).map(|bus| &mut bus.slots);
        let slot = slots.and_then(|slots| slots.remove(&at)).ok_or(TopologyError::Absent(at))?;
        Ok(slot.function)
    }

    /// The function at a place.
    pub fn function(&self, bus: BusId, at: DevFn) -> Option<&SharedFunction> {
        Some(&self.slot(bus, at)?.function)
    }

    /// The bus behind the bridge at a place.
    pub fn secondary(&self, bus: BusId, at: DevFn) -> Option<BusId> {
        self.slot(bus, at)?.secondary
    }

    /// All functions, with their places.
    pub fn functions(&self) -> impl Iterator<Item = (BusId, DevFn, &SharedFunction)> {
        let buses = self.buses.iter().enumerate().filter_map(|(id, bus)| Some((BusId(id), bus.as_ref()?)));
        buses.flat_map(|(id, bus)| bus.slots.iter().map(move |(at, slot)| (id, *at, &slot.function)))
    }

    /// The device numbers from the first bus down to device `device` on `bus`: the path that
    /// [`IntxRouter::line`](crate::IntxRouter::line) takes.
    pub fn path(&self, bus: BusId, device: u8) -> Vec<u8> {
        let mut path = vec![device];
        let mut bus = bus;
        while let Some((above, bridge)) = self.bus(bus).and_then(|bus| bus.upstream) {
            path.push(bridge.device());
            bus = above;
        }
        path.reverse();
        path
    }

    /// Makes `device` answer for region `region` of a function, as region `index` of its own. For
    /// functions that only say where another device's registers are, as the PIIX4's does for ACPI.
    ///
    /// # Errors
    /// When there is no such function.
    pub fn redirect(
        &mut self,
        (bus, at): (BusId, DevFn),
        region: usize,
        device: SharedDevice,
        index: usize,
    ) -> Result<(), TopologyError> {
        let slot = self.slot_mut(bus, at).ok_or(TopologyError::Absent(at))?;
        slot.redirects.insert(region, (device, index));
        Ok(())
    }

    pub(crate) fn bus(&self, bus: BusId) -> Option<&Bus> {
        self.buses.get(bus.0)?.as_ref()
    }

    pub(crate) fn slot(&self, bus: BusId, at: DevFn) -> Option<&Slot> {
        self.bus(bus)?.slots.get(&at)
    }

    fn slot_mut(&mut self, bus: BusId, at: DevFn) -> Option<&mut Slot> {
        self.buses.get_mut(bus.0)?.as_mut()?.slots.get_mut(&at)
    }

    pub(crate) fn places_on(&self, bus: BusId) -> Vec<DevFn> {
        self.bus(bus).map(|bus| bus.slots.keys().copied().collect()).unwrap_or_default()
    }

    /// The bus that has number `number` now: a configuration cycle goes down from bridge to bridge,
    /// each of which passes what lies from its secondary to its subordinate bus number.
    pub fn bus_by_number(&self, number: u8) -> Option<BusId> {
        let mut at = BusId::ROOT;
        if number == 0 {
            return Some(at);
        }
        loop {
            let bridges = self.bus(at)?.slots.values().filter_map(|slot| Some((slot, slot.secondary?)));
            let (secondary, behind) = bridges
                .map(|(slot, behind)| (lock(&*slot.function).config().bus_numbers(), behind))
                .find(|(numbers, _)| {
                    numbers.secondary != 0 && (numbers.secondary..=numbers.subordinate).contains(&number)
                })
                .map(|(numbers, behind)| (numbers.secondary, behind))?;
            at = behind;
            if secondary == number {
                return Some(at);
            }
        }
    }

    /// The number that `bus` has now, as its bridge says.
    pub fn bus_number(&self, bus: BusId) -> u8 {
        let upstream = self.bus(bus).and_then(|bus| bus.upstream);
        let bridge = upstream.and_then(|(above, at)| self.function(above, at));
        bridge.map_or(0, |bridge| lock(&**bridge).config().bus_numbers().secondary)
    }

    /// A configuration read of `size` (at most four bytes) at `offset` of `function`'s space. An
    /// absent function reads all-ones; so does what crosses a doubleword, which no cycle can.
    pub fn config_read(&self, function: Bdf, offset: u16, size: AccessSize) -> u32 {
        let ones = size.min(AccessSize::Dword).ones() as u32;
        let Some(bus) = self.bus_by_number(function.bus).filter(|_| in_doubleword(offset, size)) else {
            return ones;
        };
        let Some(slot) = self.slot(bus, function.devfn) else { return ones };
        let value = lock(&*slot.function).config_read(offset, size);
        let header = HEADER_TYPE.checked_sub(offset).filter(|byte| usize::from(*byte) < size.bytes());
        let multi = header.filter(|_| self.shares_device(bus, function.devfn));
        (value | multi.map_or(0, |byte| u32::from(MULTI_FUNCTION) << (8 * byte))) & ones
    }

    /// Whether `at` is function 0 of a device that has others: there software looks for the bit.
    fn shares_device(&self, bus: BusId, at: DevFn) -> bool {
        let last = DevFn::from_byte(at.to_byte() | 7);
        at.function() == 0 && self.bus(bus).is_some_and(|bus| bus.slots.range(at..=last).nth(1).is_some())
    }

    /// A configuration write of `size` (at most four bytes) at `offset` of `function`'s space.
    /// Ignored where [`PciRoot::config_read`] reads all-ones.
    pub fn config_write(&mut self, function: Bdf, offset: u16, size: AccessSize, value: u32) {
        let Some(bus) = self.bus_by_number(function.bus).filter(|_| in_doubleword(offset, size)) else {
            return;
        };
        let Some(slot) = self.slot(bus, function.devfn) else { return };
        let value = value & size.ones() as u32;
        let in_reset = |function: &dyn PciFunction| {
            let control = function.config().get(BRIDGE_CONTROL, AccessSize::Word) as u16;
            control & SECONDARY_BUS_RESET != 0
        };
        let secondary = slot.secondary;
        let mut reset = false;
        {
            let mut target = lock(&*slot.function);
            let before = in_reset(&*target);
            target.config_write(offset, size, value);
            reset |= !before && in_reset(&*target);
        }
        if let Some(behind) = secondary.filter(|_| reset) {
            self.reset_bus(behind);
        }
        self.update(bus, function.devfn);
    }

    /// Resets the functions on a bus and behind its bridges.
    fn reset_bus(&self, bus: BusId) {
        for slot in self.bus(bus).into_iter().flat_map(|bus| bus.slots.values()) {
            lock(&*slot.function).reset();
            if let Some(behind) = slot.secondary {
                self.reset_bus(behind);
            }
        }
    }

    /// Resets every function, and reports what that changes of the address map.
    pub fn reset(&mut self) {
        self.reset_bus(BusId::ROOT);
        self.refresh();
    }

    /// Looks at every function's claims anew. For a board that reset or restored functions by
    /// itself; what moved is reported.
    pub fn refresh(&mut self) {
        for at in self.places_on(BusId::ROOT) {
            self.update(BusId::ROOT, at);
        }
    }

    /// Looks at a function's claims anew, and at those of everything behind it.
    fn update(&mut self, bus: BusId, at: DevFn) {
        let Some(slot) = self.slot(bus, at) else { return };
        let secondary = slot.secondary;
        let claims = lock(&*slot.function).config().claims();
        let claims = claims.into_iter().filter(|claim| self.reachable(bus, &claim.range)).collect();
        self.settle(bus, at, claims);
        if let Some(behind) = secondary {
            for at in self.places_on(behind) {
                self.update(behind, at);
            }
        }
    }

    /// Whether all bridges above `bus` forward `range`.
    fn reachable(&self, bus: BusId, range: &AddressRange) -> bool {
        let mut bus = bus;
        while let Some((above, at)) = self.bus(bus).and_then(|bus| bus.upstream) {
            let Some(bridge) = self.function(above, at) else { return false };
            if !lock(&**bridge).config().forwards(range) {
                return false;
            }
            bus = above;
        }
        true
    }

    /// Takes over what a function claims now, and reports the difference.
    fn settle(&mut self, bus: BusId, at: DevFn, claims: Vec<Claim>) {
        let number = self.bus_number(bus);
        let effects = self.effects.clone();
        let Some(slot) = self.slot_mut(bus, at) else { return };
        if slot.claims == claims {
            return;
        }
        let before = std::mem::replace(&mut slot.claims, claims);
        let find = |claims: &[Claim], region| claims.iter().find(|c| c.region == region).map(|c| c.range);
        let mut regions: Vec<usize> = before.iter().chain(&slot.claims).map(|claim| claim.region).collect();
        regions.sort_unstable();
        regions.dedup();
        for region in regions {
            let (old, new) = (find(&before, region), find(&slot.claims, region));
            if old != new {
                let function = Bdf { bus: number, devfn: at };
                let change = BarChange { function, name: slot.name.clone(), region, old, new };
                effects.bar((bus.0, at.to_byte()), change);
            }
        }
    }

    /// What answers where now, by place in the topology.
    pub fn mappings(&self) -> Vec<Mapping> {
        let slots = self.buses.iter().flatten().flat_map(|bus| bus.slots.values());
        let claims = slots.flat_map(|slot| slot.claims.iter().map(move |claim| (slot, claim)));
        claims
            .map(|(slot, claim)| {
                let own = || (Arc::clone(&slot.function) as SharedDevice, claim.region);
                let (device, region) = slot.redirects.get(&claim.region).cloned().unwrap_or_else(own);
                let name = format!("{}:{}", slot.name, claim.region);
                Mapping { device, region, range: claim.range, name }
            })
            .collect()
    }
}

/// Whether an access lies within a doubleword.
fn in_doubleword(offset: u16, size: AccessSize) -> bool {
    usize::from(offset & 3) + size.bytes() <= 4
}
