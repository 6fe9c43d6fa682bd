#!/bin/sh
# mmdebstrap's essential hook; $1 is the new system, before its kernel is installed.
# The initramfs gets the drivers of a PC's disks instead of all there are: a sixth of the size, read by GRUB
# sector by sector. ext4 is built into Debian's cloud kernel and is named for the others.
set -eu
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
echo 'MODULES=list' >"$1/etc/initramfs-tools/conf.d/trapline"
printf '%s\n' ata_piix ata_generic sd_mod sr_mod ext4 >"$1/usr/share/initramfs-tools/modules.d/trapline"
