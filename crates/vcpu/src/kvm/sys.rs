//! Everything `unsafe` of the KVM engine: the mappings of a vCPU's file, the memory slots, and the few
//! requests that `kvm-ioctls` has no safe call for.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use kvm_bindings::*;
use kvm_ioctls::{VcpuFd, VmFd};
use trapline_memory::{Arena, Slot};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_iow_nr};

use super::run::RawExit;
use crate::slots::PAGE_SIZE;

ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);

/// A shared mapping of a part of a vCPU's file.
struct Mapping {
    addr: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory shared with the kernel; its owner types below say who may touch
// which part of it, and from which thread.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &impl AsRawFd, offset: usize, len: usize) -> io::Result<Self> {
        // SAFETY: a new shared mapping at an address of the kernel's choice disturbs no other memory.
        let addr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let addr = NonNull::new(addr.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { addr, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever could reach into it held a reference to `self`.
        unsafe { libc::munmap(self.addr.as_ptr().cast(), self.len) };
    }
}

/// A vCPU's `struct kvm_run` and the I/O data behind it, in a mapping of its own (not the one that
/// `kvm-ioctls` makes references into). All but [`ImmediateExit`] is the vCPU thread's alone.
pub(super) struct RunPage(Arc<Mapping>);

/// The `immediate_exit` byte of a [`RunPage`], for any thread.
pub(super) struct ImmediateExit(Arc<Mapping>);

impl RunPage {
    pub(super) fn map(vcpu: &VcpuFd, size: usize) -> io::Result<Self> {
        if size < size_of::<kvm_run>() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Mapping::new(vcpu, 0, size).map(|m| Self(Arc::new(m)))
    }

    pub(super) fn immediate_exit(&self) -> ImmediateExit {
        ImmediateExit(Arc::clone(&self.0))
    }

    fn run(&self) -> *mut kvm_run {
        self.0.addr.as_ptr().cast()
    }

    pub(super) fn set_request_interrupt_window(&mut self, on: bool) {
        // SAFETY: the field lies in the mapping (its length was checked); the kernel reads it during
        // KVM_RUN only, which is not now, since that borrows the vCPU.
        unsafe { (&raw mut (*self.run()).request_interrupt_window).write_volatile(on.into()) };
    }

    pub(super) fn ready_for_interrupt_injection(&self) -> bool {
        // SAFETY: as in `set_request_interrupt_window`, for a read.
        unsafe { (&raw const (*self.run()).ready_for_interrupt_injection).read_volatile() != 0 }
    }

    /// The exit that the kernel left in the page.
    pub(super) fn exit(&self) -> RawExit {
        let run = self.run();
        // SAFETY: as in `set_request_interrupt_window`; every member of the union is plain data in the
        // 256 bytes that the union has, so that reading the wrong one would give a wrong number, no more.
        unsafe {
            let reason = (&raw const (*run).exit_reason).read_volatile();
            let any = &raw const (*run).__bindgen_anon_1;
            match reason {
                KVM_EXIT_IO => RawExit::Io((&raw const (*any).io).read_volatile()),
                KVM_EXIT_MMIO => RawExit::Mmio((&raw const (*any).mmio).read_volatile()),
                KVM_EXIT_DEBUG => RawExit::Debug((&raw const (*any).debug.arch).read_volatile()),
                KVM_EXIT_FAIL_ENTRY => {
                    let at = &raw const (*any).fail_entry.hardware_entry_failure_reason;
                    RawExit::FailEntry(at.read_volatile())
                }
                KVM_EXIT_INTERNAL_ERROR => RawExit::Internal((&raw const (*any).internal).read_volatile()),
                KVM_EXIT_SYSTEM_EVENT => {
                    RawExit::SystemEvent((&raw const (*any).system_event.type_).read_volatile())
                }
                KVM_EXIT_IOAPIC_EOI => RawExit::Eoi((&raw const (*any).eoi.vector).read_volatile()),
                other => RawExit::Plain(other),
            }
        }
    }

    /// Puts the answer to a read into `kvm_run.mmio.data`.
    pub(super) fn set_mmio_data(&mut self, data: [u8; 8]) {
        // SAFETY: as in `set_request_interrupt_window`.
        unsafe { (&raw mut (*self.run()).__bindgen_anon_1.mmio.data).write_volatile(data) };
    }

    /// `len` bytes at `offset` from the start of the page; `None` if they are not behind `struct
    /// kvm_run`, in the mapping.
    pub(super) fn io_data(&mut self, offset: u64, len: usize) -> Option<&mut [u8]> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(len)?;
        if offset < size_of::<kvm_run>() || end > self.0.len {
            return None;
        }
        // SAFETY: the range lies in the mapping and apart from `struct kvm_run`, where ImmediateExit
        // reaches; the kernel writes to it during KVM_RUN only; `&mut self` keeps all others out.
        unsafe { Some(std::slice::from_raw_parts_mut(self.0.addr.as_ptr().add(offset), len)) }
    }
}

impl ImmediateExit {
    /// Makes the next KVM_RUN return before it enters the guest, or not.
    pub(super) fn set(&self, on: bool) {
        let run = self.0.addr.as_ptr().cast::<kvm_run>();
        // SAFETY: the byte lies in the mapping, which lives as long as `self`; all access to it from this
        // process through this mapping is atomic.
        let byte = unsafe { AtomicU8::from_ptr(&raw mut (*run).immediate_exit) };
        byte.store(on.into(), Ordering::SeqCst);
    }
}

/// The dirty ring of one vCPU (`KVM_CAP_DIRTY_LOG_RING`).
pub(super) struct DirtyRing {
    entries: Mapping,
    count: u32,
    next: u32,
}

const GFN_DIRTY: u32 = 1;
const GFN_RESET: u32 = 2;

impl DirtyRing {
    /// `count` is a power of two.
    pub(super) fn map(vcpu: &VcpuFd, count: u32) -> io::Result<Self> {
        let offset = KVM_DIRTY_LOG_PAGE_OFFSET as usize * PAGE_SIZE as usize;
        let len = count as usize * size_of::<kvm_dirty_gfn>();
        Ok(Self { entries: Mapping::new(vcpu, offset, len)?, count, next: 0 })
    }

    /// Hands every published entry to `found(slot, page in slot)` and gives it back to the kernel, which
    /// reuses it after [`reset_dirty_rings`].
    pub(super) fn harvest(&mut self, mut found: impl FnMut(u32, u64)) -> usize {
        for harvested in 0..self.count as usize {
            let index = (self.next % self.count) as usize;
            // SAFETY: index < count, so the entry lies in the mapping.
            let entry = unsafe { self.entries.addr.as_ptr().cast::<kvm_dirty_gfn>().add(index) };
            // SAFETY: the word lies in the mapping and both sides access it atomically.
            let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry).flags) };
            if flags.load(Ordering::Acquire) & GFN_DIRTY == 0 {
                return harvested;
            }
            // SAFETY: the kernel published the entry and leaves it alone until it is marked for reset.
            let (slot, page) = unsafe {
                ((&raw const (*entry).slot).read_volatile(), (&raw const (*entry).offset).read_volatile())
            };
            found(slot, page);
            flags.store(GFN_RESET, Ordering::Release);
            self.next = self.next.wrapping_add(1);
        }
        self.count as usize
    }
}

/// Write-protects the harvested pages again.
pub(super) fn reset_dirty_rings(vm: &VmFd) -> errno::Result<()> {
    // SAFETY: the request takes no argument and touches no memory of this process.
    if unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) } < 0 { Err(errno::Error::last()) } else { Ok(()) }
}

/// Injects an external interrupt.
pub(super) fn interrupt(vcpu: &VcpuFd, vector: u8) -> errno::Result<()> {
    let irq = kvm_interrupt { irq: vector.into() };
    // SAFETY: the kernel reads one kvm_interrupt from the reference.
    if unsafe { ioctl_with_ref(vcpu, KVM_INTERRUPT(), &irq) } < 0 {
        Err(errno::Error::last())
    } else {
        Ok(())
    }
}

/// Makes `slot` of `arena` the kernel's slot `id`, or changes the flags of one that it is already.
pub(super) fn set_slot(vm: &VmFd, id: u32, arena: &Arena, slot: &Slot) -> errno::Result<()> {
    if slot.hpa.checked_add(slot.size).is_none_or(|end| end > arena.len()) {
        return Err(errno::Error::new(libc::EFAULT));
    }
    let mut flags = 0;
    if slot.read_only {
        flags |= KVM_MEM_READONLY;
    }
    if slot.log_dirty {
        flags |= KVM_MEM_LOG_DIRTY_PAGES;
    }
    let region = kvm_userspace_memory_region {
        slot: id,
        flags,
        guest_phys_addr: slot.gpa,
        memory_size: slot.size,
        userspace_addr: arena.base() as u64 + slot.hpa,
    };
    // SAFETY: the range was checked to lie in the arena, which is shared memory for guests to write to;
    // the caller holds on to the arena until the slot is removed from the kernel or the VM is gone.
    unsafe { vm.set_user_memory_region(region) }
}

/// Takes a slot away.
pub(super) fn remove_slot(vm: &VmFd, id: u32) -> errno::Result<()> {
    let region = kvm_userspace_memory_region { slot: id, ..Default::default() };
    // SAFETY: removing gives the guest less, not more.
    unsafe { vm.set_user_memory_region(region) }
}

/// Sets the XSAVE area.
pub(super) fn set_xsave(vcpu: &VcpuFd, xsave: &kvm_xsave) -> errno::Result<()> {
    // SAFETY: the kernel reads 4 KiB, the size of the structure, unless the process asked for dynamic
    // features (AMX) for its guests, which this crate never does.
    unsafe { vcpu.set_xsave(xsave) }
}

/// This thread's id.
pub(super) fn gettid() -> libc::pid_t {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::gettid() }
}

/// Sends `signal` to one thread of this process; if it is gone, nothing happens.
pub(super) fn signal_thread(tid: libc::pid_t, signal: libc::c_int) {
    // SAFETY: the request touches no memory; the process has a handler for the signal.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal) };
}
