//! The dispatcher: instruction boundaries, chains of blocks, and what stops them.

use crate::code::key;
use crate::cpu::{Activity, Cpu, ExitInfo, Pending, Signals, shadow, vector};
use crate::flags::bits;
use crate::op::{Flow, OpRef};

/// Instructions of one chain, but for those of its last block. It bounds the time to the next look at timers,
/// and the stack where the compiler did not turn the last calls of handlers into jumps.
const CHAIN: u64 = if cfg!(debug_assertions) { 64 } else { 4096 };

/// DR6 bits.
mod dr6 {
    pub const BS: u64 = 1 << 14;
    /// Of the pending debug exceptions only: a breakpoint that was hit is enabled.
    pub const ENABLED: u64 = 1 << 12;
    /// Bits that read as one.
    pub const FIXED: u64 = 0xffff_0ff0;
}

/// What came of looking for events between two instructions.
#[derive(Debug)]
pub(crate) enum Due {
    /// There are none.
    Nothing,
    /// One was delivered to the guest.
    Delivered,
    /// One is a VM exit.
    Exit(ExitInfo),
}

impl Cpu {
    /// Executes instructions until a VM exit. The processor is in VMX non-root operation, or (in tests
    /// and bare use) outside VMX, where only [`Cpu::run_for`]'s limit ends it.
    pub(crate) fn run_guest(&mut self) -> ExitInfo {
        loop {
            if let Some(exit) = self.run_for(u64::MAX) {
                return exit;
            }
        }
    }

    /// Executes at least one and about `instructions` instructions, or up to a VM exit. Outside non-root
    /// operation it also ends when the processor halts or shuts down.
    pub fn run_for(&mut self, instructions: u64) -> Option<ExitInfo> {
        let end = self.icount.saturating_add(instructions);
        // An exit operation that wanted a link would get one to wherever execution goes on now.
        self.code.patch = None;
        self.code.key = self.code_key();
        loop {
            if self.needs_boundary() {
                if !self.nonroot && self.activity != Activity::Active {
                    // Outside VMX operation there is nothing that would wake it.
                    return None;
                }
                if let Some(exit) = self.boundary() {
                    return Some(exit);
                }
            }
            if self.activity != Activity::Active {
                return None;
            }
            let flow = self.dispatch();
            let stopped = match flow {
                Flow::Stop => self.take_pending(),
                Flow::Sync => {
                    self.code.key = self.code_key();
                    None
                }
                Flow::Lookup | Flow::Link | Flow::Native => None,
            };
            if stopped.is_some() {
                return stopped;
            }
            if self.icount >= end {
                return None;
            }
        }
    }

    /// Runs one chain; a link is made where the last one wanted it.
    #[inline]
    fn dispatch(&mut self) -> Flow {
        let single = self.single();
        let mut block_key = self.code.key;
        self.chain_end = self.icount + CHAIN;
        if single {
            block_key |= key::SINGLE;
            self.chain_end = self.icount;
            // A shadow of the instruction before ends with this one.
            self.shadow_is_new = false;
        }
        self.code.stats.dispatches += 1;
        if self.mmu.links_worn() {
            self.flush_code();
        }
        let patch = self.code.patch.take();
        let first = match self.block_at(self.rip, block_key) {
            Ok(first) => first,
            Err(_) => return Flow::Stop,
        };
        if let Some(exit) = patch
            && !single
        {
            self.link_if_same_page(exit, first);
        }
        let flow = (first.run)(self, first);
        if single {
            self.after_single(flow);
        }
        flow
    }

    /// Links, unless the target is a block that must be looked up (one that runs into another page).
    fn link_if_same_page(&mut self, exit: OpRef, first: OpRef) {
        if self.code.linkable(first) && self.code.alive(exit) {
            self.code.link(exit, first);
        }
    }

    /// Whether only one instruction may run before the next boundary is looked at.
    #[inline(always)]
    pub(crate) fn single(&self) -> bool {
        self.shadow & (shadow::STI | shadow::MOV_SS) != 0
            || self.rflags & bits::TF != 0
            || self.dr[7] & 0xff != 0
            || self.vmx.monitor_trap
            || self.mmu.replay.pending()
    }

    /// The bookkeeping after a lone instruction: shadows end, traps become pending.
    fn after_single(&mut self, flow: Flow) {
        let completed = flow != Flow::Stop;
        if completed {
            self.mmu.replay.clear();
            if !self.shadow_is_new {
                self.shadow &= !(shadow::STI | shadow::MOV_SS);
            }
            self.shadow_is_new = false;
            if self.step_pending {
                self.pending_debug |= dr6::BS;
            }
            self.vmx.trap_pending |= self.vmx.monitor_trap;
        } else {
            // What a faulting instruction hit on its way is hit again when it is restarted.
            self.pending_debug = self.debug_before;
        }
        self.step_pending = false;
    }

    /// Whether anything at all must be looked at before the next instruction.
    #[inline(always)]
    pub(crate) fn needs_boundary(&self) -> bool {
        self.signals.get() != 0
            || self.single()
            || self.rflags & bits::RF != 0
            || self.pending_debug != 0
            || self.activity != Activity::Active
            || self.vmx.watches(self.icount)
    }

    /// Everything that can happen between two instructions.
    #[cold]
    fn boundary(&mut self) -> Option<ExitInfo> {
        // What happens here may go somewhere else than the last block's exit.
        self.code.patch = None;
        self.mmu.replay.rewind();
        if self.signals.get() & Signals::CODE != 0 {
            self.read_notes();
        }
        // An instruction that waits for a device is between no two instructions: it goes on first.
        if !self.mmu.replay.pending() {
            loop {
                match self.next_due() {
                    Due::Exit(exit) => return Some(exit),
                    Due::Delivered => self.code.key = self.code_key(),
                    Due::Nothing if self.activity == Activity::Active => break,
                    // Nobody would ever wake a bare processor: see `run_for`.
                    Due::Nothing if !self.nonroot => return None,
                    // Nothing to do until a signal; the time-out serves the timers.
                    Due::Nothing => std::thread::park_timeout(std::time::Duration::from_micros(200)),
                }
            }
        }
        self.step_pending = self.rflags & bits::TF != 0;
        self.debug_before = self.pending_debug;
        self.rflags &= !bits::RF;
        None
    }

    /// The event of highest priority that is due before the next instruction, delivered or as a VM exit
    /// (SDM vol. 3 table 6-2 and §26.2, §27.7).
    fn next_due(&mut self) -> Due {
        if let Some(exit) = self.urgent_exit() {
            return Due::Exit(exit);
        }
        let executes = matches!(self.activity, Activity::Active | Activity::Hlt);
        let traps = self.pending_debug & (dr6::ENABLED | dr6::BS) != 0;
        if traps && executes && self.shadow & shadow::MOV_SS == 0 {
            let hit = std::mem::take(&mut self.pending_debug) & (0xf | dr6::BS);
            return self.debug_trap(hit);
        }
        match self.asynchronous() {
            Due::Nothing => {}
            due => return due,
        }
        let breakpoints = self.activity == Activity::Active
            && self.dr[7] & 0xff != 0
            && self.rflags & bits::RF == 0
            && self.shadow & shadow::MOV_SS == 0;
        if breakpoints {
            let hit = self.code_breakpoint();
            if hit != 0 {
                return self.debug_trap(hit);
            }
        }
        Due::Nothing
    }

    /// Which instruction breakpoints match the next instruction.
    fn code_breakpoint(&self) -> u64 {
        let lin = self.ea_base[crate::cpu::seg::CS].wrapping_add(self.rip);
        (0..4)
            .filter(|i| {
                let enabled = self.dr[7] >> (2 * i) & 3 != 0;
                enabled && self.dr[7] >> (16 + 4 * i) & 3 == 0 && self.dr[*i as usize] == lin
            })
            .fold(0, |hit, i| hit | 1 << i)
    }

    /// Delivers #DB for the DR6 conditions `hit`.
    fn debug_trap(&mut self, hit: u64) -> Due {
        self.raise_debug(hit);
        self.take_pending().map_or(Due::Delivered, Due::Exit)
    }

    /// Makes #DB pending; DR6 is written when it is delivered.
    pub(crate) fn raise_debug(&mut self, hit: u64) -> crate::cpu::Stop {
        let s = self.raise(vector::DB, None);
        if let Pending::Event(e) = &mut self.pending {
            e.payload = hit;
        }
        s
    }

    /// Handles what stopped an instruction: delivers an event, or returns the VM exit.
    #[inline(never)]
    pub(crate) fn take_pending(&mut self) -> Option<ExitInfo> {
        let exit = match std::mem::replace(&mut self.pending, Pending::None) {
            Pending::None => None,
            Pending::Exit(exit) => Some(exit),
            Pending::Event(event) => match self.intercept_event(&event) {
                // Whoever handles the exit may let the instruction go on: its device accesses stay answered.
                Some(exit) => Some(exit),
                None => {
                    self.mmu.replay.clear();
                    self.deliver(event)
                }
            },
        };
        self.code.key = self.code_key();
        exit
    }

    /// DR6 and DR7.GD after a debug exception with conditions `hit`.
    pub(crate) fn record_debug(&mut self, hit: u64) {
        self.dr[7] &= !(1 << 13);
        self.dr[6] = self.dr[6] & !0xf | hit & (0xf | 7 << 13) | dr6::FIXED;
    }
}
