//! The VMCS as data: everything about Intel VT-x that is format and rule, and nothing that executes.
//!
//! It serves both sides. A processor in software keeps [`Vmcs`]es, answers VMREAD and VMWRITE, runs the
//! [`checks`] of VM entry and builds the [`exit`] information; a hypervisor writes fields and controls and
//! decodes what comes back. The section numbers are those of the Intel SDM, volume 3, in the editions with
//! VM entries in chapter 27.
//!
//! - [`field`]: every field of Appendix B: encoding, width, area.
//! - [`region`]: a VMCS as the processor's working copy, its form in memory, and a readable dump.
//! - [`caps`]: the capability MSRs, and what a processor in software advertises.
//! - [`controls`]: VM-execution, VM-exit and VM-entry controls as flags.
//! - [`state`]: segment access rights, activity, interruptibility, pending debug exceptions.
//! - [`exit`]: exit reasons, qualifications, interruption and instruction information, VM-instruction
//!   errors.
//! - [`checks`]: the checks of VM entry on controls, host state and guest state.
//!
//! The crate needs neither an operating system nor an allocator.
//!
//! # Left out
//!
//! - VM entries and exits themselves, loading and saving state, and the contents of what the VMCS points
//!   at: bitmaps, MSR areas, EPT tables, the virtual-APIC page.
//! - VM-entry checks of FRED state, and of the entries of MSR areas; loading the executive VMCS under the
//!   dual-monitor treatment of SMM. [`Capabilities::software`] advertises neither FRED nor dual monitor.
//! - LAM: bits 62:61 of CR3 are checked as reserved.
//! - The 32-bit form of a VMCS: natural-width fields always have 64 bits.
//!
//! # Example
//!
//! ```
//! use trapline_vmx::checks::{self, Env, Rule};
//! use trapline_vmx::controls::ExitControls;
//! use trapline_vmx::exit::{BasicReason, IoAccess, VmInstructionError};
//! use trapline_vmx::{Capabilities, Field, Vmcs};
//!
//! let caps = Capabilities::software();
//! let mut vmcs = Vmcs::new();
//!
//! // A hypervisor sets controls as the capability MSRs allow them.
//! vmcs.write(Field::PinControls, caps.pin.adjust(0).into());
//! vmcs.write(Field::PrimaryControls, caps.primary.adjust(0).into());
//! vmcs.write(Field::EntryControls, caps.entry.adjust(0).into());
//! let exit = caps.exit.adjust(ExitControls::HOST_ADDRESS_SPACE_SIZE.bits());
//! vmcs.vmwrite(0x400c, exit.into(), &caps)?;
//! assert_eq!(vmcs.vmwrite(0x7ffe, 0, &caps), Err(VmInstructionError::UnsupportedComponent));
//!
//! // The processor checks them: these pass, but nobody set up the host state.
//! let memory = |_address| u64::MAX;
//! let env = Env::new(&caps, 40, &memory);
//! assert_eq!(checks::controls(&vmcs, &env), Ok(()));
//! let error = checks::host_state(&vmcs, &env).unwrap_err();
//! assert_eq!((error.rule, error.field), (Rule::HostCr0, Field::HostCr0));
//! assert_eq!(error.instruction_error(), Some(VmInstructionError::InvalidHostState));
//! println!("{error}");
//!
//! // A VM exit, as the processor reports it…
//! let io = IoAccess::new().with_size(1).with_port(0x80).with_immediate(true);
//! vmcs.write(Field::ExitReason, BasicReason::Io.exit().into_bits().into());
//! vmcs.write(Field::ExitQualification, io.into_bits());
//!
//! // …and as the hypervisor reads it.
//! assert_eq!(vmcs.exit_reason().basic(), Some(BasicReason::Io));
//! let io = IoAccess::from_bits(vmcs.read(Field::ExitQualification));
//! assert_eq!((io.port(), io.size(), io.input()), (0x80, Some(1), false));
//! # Ok::<(), VmInstructionError>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

pub mod caps;
pub mod checks;
pub mod controls;
pub mod exit;
pub mod field;
pub mod region;
pub mod state;

pub use caps::Capabilities;
pub use checks::CheckError;
pub use exit::{BasicReason, VmInstructionError};
pub use field::Field;
pub use region::{LaunchState, REGION_SIZE, Vmcs};
