//! A bootable disk: a partition table with GRUB's BIOS images around it.
//!
//! The firmware loads the first sector. GRUB's `boot.img` there loads one more sector, the first of `core.img`;
//! that one (`diskboot.img`) loads the rest by a list of blocks at its own end. `core.img` lies in the gap
//! before the first partition. The fields are those that `grub-install` fills in:
//!
//! | image | offset | field |
//! |---|---|---|
//! | `boot.img` | 0x5c | sector of `core.img`, 64 bits |
//! | `boot.img` | 0x66 | two bytes of code that trust the drive number of the firmware; NOPs let it be corrected |
//! | `core.img` | 0x1f4 | the block list's first entry: start sector (64 bits), sectors (16), segment to load at (16) |

use anyhow::{Result, bail, ensure};

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// First sector of the partition: 1 MiB, where partitions are aligned to.
pub const PARTITION: u32 = 2048;
/// Sector of `core.img`.
const CORE: u64 = 1;
/// `core.img` is loaded at 0x8000 and must end below 0x78000.
const MAX_CORE: usize = 0x7_0000;

const KERNEL_SECTOR: usize = 0x5c;
const DRIVE_CHECK: usize = 0x66;
const DISK_SIGNATURE: usize = 0x1b8;
const PARTITION_TABLE: usize = 0x1be;
const BLOCK_LIST: usize = SECTOR - 12;
/// Partition type of Linux file systems.
const LINUX: u8 = 0x83;
/// Cylinder, head and sector of what lies behind the reach of CHS: use the LBA fields.
const BEYOND_CHS: [u8; 3] = [0xfe, 0xff, 0xff];

/// The disk up to its partition, which is `sectors` long.
pub fn head(boot: &[u8], core: &[u8], sectors: u32) -> Result<Vec<u8>> {
    let mut head = vec![0; PARTITION as usize * SECTOR];
    let (first, rest) = head.split_at_mut(SECTOR);
    boot_sector(first, boot, sectors)?;
    embed(rest, core)?;
    Ok(head)
}

fn boot_sector(sector: &mut [u8], boot: &[u8], sectors: u32) -> Result<()> {
    ensure!(boot.len() == SECTOR && boot[510..] == [0x55, 0xaa], "GRUB's boot.img is no boot sector");
    sector.copy_from_slice(boot);
    sector[KERNEL_SECTOR..][..8].copy_from_slice(&CORE.to_le_bytes());
    sector[DRIVE_CHECK..][..2].copy_from_slice(&[0x90, 0x90]);
    sector[DISK_SIGNATURE..][..4].copy_from_slice(b"TRAP");
    sector[PARTITION_TABLE..510].fill(0);

    let entry = &mut sector[PARTITION_TABLE..][..16];
    entry[0] = 0x80; // active
    entry[1..4].copy_from_slice(&BEYOND_CHS);
    entry[4] = LINUX;
    entry[5..8].copy_from_slice(&BEYOND_CHS);
    entry[8..12].copy_from_slice(&PARTITION.to_le_bytes());
    entry[12..].copy_from_slice(&sectors.to_le_bytes());
    Ok(())
}

fn embed(gap: &mut [u8], core: &[u8]) -> Result<()> {
    if core.len() <= SECTOR || core.len() > MAX_CORE.min(gap.len()) {
        bail!("GRUB's core.img has {} bytes, which does not fit", core.len());
    }
    // grub-mkimage has filled in all of the entry but the place on the disk, and an end mark before it.
    let rest = core.len().div_ceil(SECTOR) - 1;
    let length = u16::from_le_bytes([core[BLOCK_LIST + 8], core[BLOCK_LIST + 9]]);
    ensure!(usize::from(length) == rest, "GRUB's core.img does not begin with diskboot.img");
    gap[..core.len()].copy_from_slice(core);
    gap[BLOCK_LIST..][..8].copy_from_slice(&(CORE + 1).to_le_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot() -> Vec<u8> {
        let mut boot = vec![0xcc; SECTOR];
        boot[510..].copy_from_slice(&[0x55, 0xaa]);
        boot
    }

    /// A core image of 1,300 bytes: its first sector and 2 more.
    fn core(length: u8) -> Vec<u8> {
        let mut core = vec![0x11; 1300];
        core[SECTOR - 24..SECTOR].fill(0);
        core[SECTOR - 4..SECTOR].copy_from_slice(&[length, 0, 0x20, 0x08]);
        core
    }

    #[test]
    fn boot_code_points_to_the_core_image_and_that_to_its_rest() {
        let head = head(&boot(), &core(2), 4096).unwrap();
        assert_eq!(head.len(), 1 << 20);
        assert_eq!(head[0x5c..0x64], [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(head[0x66..0x68], [0x90, 0x90]);
        assert_eq!(head[0], 0xcc, "the rest of the code stays");
        // Start 2, length 2, segment 0x820; the end mark in front.
        let list = &head[2 * SECTOR - 24..2 * SECTOR];
        assert_eq!(list[..12], [0; 12]);
        assert_eq!(list[12..], [2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0x20, 0x08]);
        assert_eq!(head[SECTOR + 1299], 0x11);
        assert_eq!(head[SECTOR + 1300], 0);
    }

    #[test]
    fn there_is_one_active_linux_partition_at_1_mib() {
        let head = head(&boot(), &core(2), 0x0012_3456).unwrap();
        let table = &head[0x1be..0x200];
        assert_eq!(
            table[..16],
            [0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff, 0, 8, 0, 0, 0x56, 0x34, 0x12, 0]
        );
        assert_eq!(table[16..64], [0; 48]);
        assert_eq!(table[64..], [0x55, 0xaa]);
    }

    #[test]
    fn other_files_are_refused() {
        assert!(head(&boot()[..511], &core(2), 1).unwrap_err().to_string().contains("boot.img"));
        assert!(head(&[0; SECTOR], &core(2), 1).unwrap_err().to_string().contains("boot.img"));
        assert!(head(&boot(), &core(3), 1).unwrap_err().to_string().contains("diskboot.img"));
        assert!(head(&boot(), &[0; 0x7_0001], 1).unwrap_err().to_string().contains("does not fit"));
        assert!(head(&boot(), &[0; SECTOR], 1).unwrap_err().to_string().contains("does not fit"));
    }
}
