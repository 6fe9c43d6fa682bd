#!/bin/sh
# Makes the root partition from the system in root.tar, and takes boot.img and core.img out of it.
# Runs in an empty folder with root.tar and grub.cfg in it, as root or in a user namespace.
# $1: partition image, $2: its size in KiB, $3: file system UUID
set -eu
root=tree
trap 'rm -rf "$root"' EXIT
mkdir "$root"
tar -C "$root" --numeric-owner --xattrs --xattrs-include='*' -xf root.tar

echo trapline >"$root/etc/hostname"
printf '127.0.0.1 localhost trapline\n::1 localhost\n' >"$root/etc/hosts"
: >"$root/etc/resolv.conf"
echo "UUID=$3 / ext4 errors=remount-ro 0 1" >"$root/etc/fstab"
# An identity of its own: without one, each boot from the unchanged image would be a first boot.
echo 7261706c696e6500000000000000da7a >"$root/etc/machine-id"
# The password is "trapline"; few rounds, because each costs the login time.
chroot "$root" usermod -p '$6$rounds=1000$trapline$mBZgs6VxK8aVC9/ncwpvuFHEUL3f7.4HSZtFzusQudjYyusDRbzf6X3bzj2LxapYwmPQOYsn5cWpFc85sTeTq.' root
# What would start work of its own in the middle of somebody's measurement.
chroot "$root" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer smartmontools.service

# What grub-install does but for writing to the disk.
mkdir -p "$root/boot/grub/i386-pc"
sed "s/@UUID@/$3/" grub.cfg >"$root/boot/grub/grub.cfg"
cp "$root"/usr/lib/grub/i386-pc/*.mod "$root"/usr/lib/grub/i386-pc/*.lst "$root/boot/grub/i386-pc/"
chroot "$root" grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -o /boot/grub/i386-pc/core.img \
    biosdisk part_msdos ext2 normal
cp "$root/usr/lib/grub/i386-pc/boot.img" "$root/boot/grub/i386-pc/core.img" .

# All tables are written now, so that the guest's kernel does not do it later.
mke2fs -q -t ext4 -F -L trapline -U "$3" -E "hash_seed=$3,lazy_itable_init=0,lazy_journal_init=0,nodiscard" \
    -J size=16 -m 1 -d "$root" "$1" "$2k"
