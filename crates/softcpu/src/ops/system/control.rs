//! Control and debug registers.

use trapline_vmx::controls::{PrimaryControls, SecondaryControls};
use trapline_vmx::exit::{CrAccess, CrAccessKind, MovDr};

use super::operand_linear;
use crate::cpu::{Cpu, Pending, Stop, attr, cr0, cr4, efer, seg};
use crate::handler;
use crate::int::Int;
use crate::mmu::Kind;
use crate::op::Op;
use crate::vmx::reason;

/// Bits of CR0 that exist.
const CR0_BITS: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;
/// Bits of CR4 whose change makes cached translations wrong.
const CR4_PAGING: u64 =
    cr4::PSE | cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP | cr4::PKE | cr4::PKS | cr4::LA57;
/// Bits of DR6 that can be written.
const DR6_BITS: u64 = 0xe00f;
/// Bits of DR6 that read as one.
const DR6_ONES: u64 = 0xffff_0ff0;
/// Bits of DR7 that can be written.
const DR7_BITS: u64 = 0xffff_23ff;
/// DR7.GD: the next access to a debug register raises #DB.
const DR7_GD: u64 = 1 << 13;

impl Cpu {
    /// Forgets the translations of every address space of the current VPID.
    pub(crate) fn forget_translations(&mut self) {
        let vpid = u32::from(self.vmx.vpid);
        self.mmu.forget_spaces(|key| key >> 12 == vpid);
    }

    /// Loads the PDPTE registers if PAE paging is (about to be) on with these registers.
    fn load_pdptes(&mut self, cr0: u64, cr3: u64, cr4: u64) -> Result<(), Stop> {
        let pae = cr0 & cr0::PG != 0 && cr4 & cr4::PAE != 0 && self.efer & efer::LME == 0;
        if !pae {
            return Ok(());
        }
        let Some(pdptes) = self.read_pdptes(cr3) else {
            // An EPT violation on the way is pending already; everything else is #GP.
            if matches!(self.pending, Pending::Exit(_)) {
                return Err(Stop);
            }
            return Err(self.gp(0));
        };
        let reserved = !((1u64 << self.model.phys_bits()) - 1) | 0x1e6;
        if pdptes.iter().any(|p| p & 1 != 0 && p & reserved != 0) {
            return Err(self.gp(0));
        }
        self.mmu.pdptes = pdptes;
        Ok(())
    }

    /// Writes CR0 with the checks of MOV to CR0, and does what follows from it.
    ///
    /// # Errors
    /// #GP(0) for combinations that are not allowed.
    pub fn set_cr0(&mut self, v: u64) -> Result<(), Stop> {
        let bad = v >> 32 != 0
            || v & (cr0::PG | cr0::PE) == cr0::PG
            || v & (cr0::NW | cr0::CD) == cr0::NW
            || self.nonroot && !self.allows_cr0(v);
        if bad {
            return Err(self.gp(0));
        }
        let new = v & CR0_BITS | cr0::ET;
        let changed = new ^ self.cr0;
        let mut lma = self.efer & efer::LMA;
        if changed & cr0::PG != 0 {
            lma = self.switch_paging(new)?;
        }
        if changed & (cr0::PG | cr0::CD | cr0::NW) != 0 {
            self.load_pdptes(new, self.cr3, self.cr4)?;
        }
        self.cr0 = new;
        self.efer = self.efer & !efer::LMA | lma;
        if changed & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.paging_changed();
            self.forget_translations();
        }
        self.mode_changed();
        Ok(())
    }

    /// The checks of a change of CR0.PG; returns the LMA that comes of it.
    fn switch_paging(&mut self, new: u64) -> Result<u64, Stop> {
        let code64 = self.seg[seg::CS].attr & attr::L != 0;
        if new & cr0::PG == 0 {
            if self.lma() && self.long64 || self.cr4 & cr4::PCIDE != 0 {
                return Err(self.gp(0));
            }
            return Ok(0);
        }
        if self.efer & efer::LME == 0 {
            return Ok(0);
        }
        let tss16 = self.seg[seg::TR].attr & 0xd == 1;
        if self.cr4 & cr4::PAE == 0 || code64 || tss16 {
            return Err(self.gp(0));
        }
        Ok(efer::LMA)
    }

    /// Whether non-root operation allows this CR0 (SDM vol. 3 §24.8).
    fn allows_cr0(&self, v: u64) -> bool {
        let mut fixed0 = self.vmx.caps.cr0_fixed0;
        if self.vmx.ctl.secondary.contains(SecondaryControls::UNRESTRICTED_GUEST) {
            fixed0 &= !(cr0::PE | cr0::PG);
        }
        v & fixed0 == fixed0
    }

    /// Writes CR3 with the checks of MOV to CR3; bit 63 with PCIDs keeps what is cached.
    ///
    /// # Errors
    /// #GP(0) for reserved bits or PDPTEs.
    pub fn set_cr3(&mut self, v: u64) -> Result<(), Stop> {
        let pcide = self.cr4 & cr4::PCIDE != 0;
        let keep = pcide && v >> 63 != 0;
        let new = if pcide { v & !(1 << 63) } else { v };
        if self.lma() && new >> self.model.phys_bits() != 0 {
            return Err(self.gp(0));
        }
        self.load_pdptes(self.cr0, new, self.cr4)?;
        self.cr3 = new;
        self.paging_changed();
        self.select_address_space(!keep);
        Ok(())
    }

    /// Writes CR4 with the checks of MOV to CR4, and does what follows from it.
    ///
    /// # Errors
    /// #GP(0) for reserved bits and combinations that are not allowed.
    pub fn set_cr4(&mut self, v: u64) -> Result<(), Stop> {
        let changed = v ^ self.cr4;
        let mut allowed = self.model.cr4_allowed();
        let mut fixed0 = 0;
        if self.nonroot {
            allowed |= cr4::VMXE;
            fixed0 = self.vmx.caps.cr4_fixed0;
        }
        let set = changed & v;
        let bad = v & !allowed != 0
            || v & fixed0 != fixed0
            || self.lma() && (v & cr4::PAE == 0 || changed & cr4::LA57 != 0)
            || set & cr4::PCIDE != 0 && (!self.lma() || self.cr3 & 0xfff != 0);
        if bad {
            return Err(self.gp(0));
        }
        if changed & (cr4::PAE | cr4::PSE | cr4::PGE | cr4::SMEP) != 0 {
            self.load_pdptes(self.cr0, self.cr3, v)?;
        }
        self.cr4 = v;
        if changed & CR4_PAGING != 0 {
            self.paging_changed();
            self.forget_translations();
            self.select_address_space(false);
        }
        self.mode_changed();
        Ok(())
    }

    /// Writes CR8.
    ///
    /// # Errors
    /// #GP(0) for reserved bits.
    pub fn set_cr8(&mut self, v: u64) -> Result<(), Stop> {
        if v > 15 {
            return Err(self.gp(0));
        }
        if self.virtual_tpr().is_some() {
            self.set_virtual_tpr((v as u8) << 4);
            return Ok(());
        }
        self.cr8 = v;
        Ok(())
    }

    /// CR0 as the running software reads it.
    pub(crate) fn visible_cr0(&self) -> u64 {
        if !self.nonroot {
            return self.cr0;
        }
        let mask = self.vmx.cr0_mask;
        self.cr0 & !mask | self.vmx.cr0_shadow & mask
    }

    fn visible_cr4(&self) -> u64 {
        if !self.nonroot {
            return self.cr4;
        }
        let mask = self.vmx.cr4_mask;
        self.cr4 & !mask | self.vmx.cr4_shadow & mask
    }

    pub(super) fn primary(&self, control: PrimaryControls) -> bool {
        self.nonroot && self.vmx.ctl.primary.contains(control)
    }

    pub(in crate::ops) fn secondary(&self, control: SecondaryControls) -> bool {
        self.nonroot && self.vmx.ctl.secondary.contains(control)
    }

    /// #GP(0) unless at privilege level 0.
    #[inline]
    pub(in crate::ops) fn need_cpl0(&mut self) -> Result<(), Stop> {
        if self.cpl == 0 { Ok(()) } else { Err(self.gp(0)) }
    }

    fn cr_exit(&mut self, cr: u8, kind: CrAccessKind, register: u8) -> Stop {
        let q = CrAccess::new().with_cr(cr).with_kind(kind).with_register(register & 15);
        self.instruction_exit(reason::CR_ACCESS, q.into_bits(), 0)
    }

    fn move_to_cr(&mut self, cr: u8, register: u8, v: u64) -> Result<(), Stop> {
        let exits = self.nonroot
            && match cr {
                0 => (v ^ self.vmx.cr0_shadow) & self.vmx.cr0_mask != 0,
                3 => {
                    let (targets, n) = &self.vmx.cr3_targets;
                    self.primary(PrimaryControls::CR3_LOAD_EXITING) && !targets[..*n].contains(&v)
                }
                4 => (v ^ self.vmx.cr4_shadow) & self.vmx.cr4_mask != 0,
                8 => self.primary(PrimaryControls::CR8_LOAD_EXITING),
                _ => false,
            };
        if exits {
            return Err(self.cr_exit(cr, CrAccessKind::MovTo, register));
        }
        let (mask0, mask4) = if self.nonroot { (self.vmx.cr0_mask, self.vmx.cr4_mask) } else { (0, 0) };
        match cr {
            0 => self.set_cr0(self.cr0 & mask0 | v & !mask0),
            2 => {
                self.cr2 = v;
                Ok(())
            }
            3 => self.set_cr3(v),
            4 => self.set_cr4(self.cr4 & mask4 | v & !mask4),
            _ => self.set_cr8(v),
        }
    }

    /// LMSW: the low four bits; PE cannot be cleared.
    fn load_msw(&mut self, op: &Op, v: u16, linear: Option<u64>) -> Result<(), Stop> {
        let new = u64::from(v) & 15;
        if self.nonroot {
            let (mask, shadow) = (self.vmx.cr0_mask, self.vmx.cr0_shadow);
            let pe = mask & cr0::PE != 0 && new & !shadow & cr0::PE != 0;
            if pe || (new ^ shadow) & mask & 14 != 0 {
                let q = CrAccess::new()
                    .with_kind(CrAccessKind::Lmsw)
                    .with_lmsw_memory(linear.is_some())
                    .with_lmsw_source(v);
                let _ = op;
                let s = self.instruction_exit(reason::CR_ACCESS, q.into_bits(), 0);
                if let Pending::Exit(e) = &mut self.pending {
                    e.linear = linear.unwrap_or(0);
                }
                return Err(s);
            }
            let owned = mask & 15;
            return self.set_cr0(self.cr0 & !15 | self.cr0 & (owned | cr0::PE) | new & !owned);
        }
        self.set_cr0(self.cr0 & !14 | new)
    }

    /// The checks of every access to a debug register; returns which one is meant.
    fn debug_register(&mut self, op: &Op, from: bool) -> Result<usize, Stop> {
        self.need_cpl0()?;
        let n = op.aux as u8 & 7;
        if self.primary(PrimaryControls::MOV_DR_EXITING) {
            let q = MovDr::new().with_dr(n).with_from_dr(from).with_register(op.r1 & 15);
            return Err(self.instruction_exit(reason::MOV_DR, q.into_bits(), 0));
        }
        if matches!(n, 4 | 5) && self.cr4 & cr4::DE != 0 {
            return Err(self.ud());
        }
        if self.dr[7] & DR7_GD != 0 {
            return Err(self.raise_debug(1 << 13));
        }
        Ok(usize::from(if matches!(n, 4 | 5) { n + 2 } else { n }))
    }

    /// Writes DR7 and does what follows from it.
    pub fn set_dr7(&mut self, v: u64) {
        let old = std::mem::replace(&mut self.dr[7], v & DR7_BITS | 0x400);
        if (old & 0xff == 0) != (self.dr[7] & 0xff == 0) {
            // With breakpoints on, every access takes the slow path, which looks for them.
            self.mmu.flush_all();
        }
    }
}

/// A register operand of MOV CR and MOV DR: 64 bits in 64-bit mode, else 32.
fn source(cpu: &Cpu, op: &Op) -> u64 {
    if cpu.long64 { u64::get(cpu, op.r1) } else { u32::get(cpu, op.r1).zx() }
}

fn mov_to_cr_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.need_cpl0()?;
    let v = source(cpu, op);
    cpu.move_to_cr(op.aux as u8, op.r1, v)
}
handler!(sync: mov_to_cr_work => mov_to_cr);

fn mov_from_cr_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.need_cpl0()?;
    let cr = op.aux as u8;
    let exits = match cr {
        3 => cpu.primary(PrimaryControls::CR3_STORE_EXITING),
        8 => cpu.primary(PrimaryControls::CR8_STORE_EXITING),
        _ => false,
    };
    if exits {
        return Err(cpu.cr_exit(cr, CrAccessKind::MovFrom, op.r1));
    }
    let v = match cr {
        0 => cpu.visible_cr0(),
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.visible_cr4(),
        _ => cpu.virtual_tpr().map_or(cpu.cr8, |tpr| u64::from(tpr >> 4)),
    };
    if cpu.long64 {
        v.put(cpu, op.r1)
    } else {
        (v as u32).put(cpu, op.r1)
    }
    Ok(())
}
handler!(next: mov_from_cr_work => mov_from_cr);

fn mov_to_dr_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let n = cpu.debug_register(op, false)?;
    let v = source(cpu, op);
    if n >= 6 && v >> 32 != 0 {
        return Err(cpu.gp(0));
    }
    match n {
        6 => cpu.dr[6] = v & DR6_BITS | DR6_ONES,
        7 => cpu.set_dr7(v),
        _ => cpu.dr[n] = v,
    }
    Ok(())
}
handler!(sync: mov_to_dr_work => mov_to_dr);

fn mov_from_dr_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let n = cpu.debug_register(op, true)?;
    let v = cpu.dr[n];
    if cpu.long64 {
        v.put(cpu, op.r1)
    } else {
        (v as u32).put(cpu, op.r1)
    }
    Ok(())
}
handler!(next: mov_from_dr_work => mov_from_dr);

fn clts_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.need_cpl0()?;
    if cpu.nonroot && cpu.vmx.cr0_mask & cr0::TS != 0 {
        if cpu.vmx.cr0_shadow & cr0::TS != 0 {
            return Err(cpu.cr_exit(0, CrAccessKind::Clts, 0));
        }
        return Ok(());
    }
    cpu.cr0 &= !cr0::TS;
    Ok(())
}
handler!(sync: clts_work => clts);

fn lmsw_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.need_cpl0()?;
    if op.is_register() {
        let v = u16::get(cpu, op.r1);
        return cpu.load_msw(op, v, None);
    }
    let lin = operand_linear(cpu, op, 2, Kind::Read)?;
    let v: u16 = cpu.load(lin)?;
    cpu.load_msw(op, v, Some(lin))
}
handler!(sync: lmsw_work => lmsw);

fn smsw_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.need_no_umip()?;
    let v = cpu.visible_cr0();
    super::store_selector(cpu, op, v)
}
handler!(next: smsw_work => smsw);
