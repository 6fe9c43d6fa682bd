//! What a CD-ROM tells of itself: INQUIRY, MODE SENSE, GET CONFIGURATION, MECHANISM STATUS.

use super::sense::Sense;
use super::{Cd, Transport};
use crate::ata::put_text;
use crate::drive::Drive;

/// Sectors of the longest CD, 80 minutes: a larger disc is a DVD.
const CD_SECTORS: u32 = 80 * 60 * 75;
const PROFILE_CD_ROM: u16 = 0x0008;
const PROFILE_DVD_ROM: u16 = 0x0010;

/// A length field, the bytes behind it following.
fn be16(n: usize) -> [u8; 2] {
    u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes()
}

impl Drive {
    /// INQUIRY (SPC-3 §6.4): standard data only.
    pub(super) fn inquiry(&mut self, packet: &[u8; 12], transport: Transport) {
        let [_, flags, page, high, low, ..] = *packet;
        if flags & 1 != 0 || page != 0 {
            return self.cd_check(Sense::BAD_FIELD);
        }
        // CD-ROM, removable, ATAPI version and response format, additional length.
        let mut data = vec![0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0];
        for (len, text) in [(8, "TRAPLINE"), (16, &*self.identity.model), (4, &*self.identity.firmware)] {
            let mut field = vec![b' '; len];
            put_text(&mut field, text);
            data.extend(field);
        }
        self.cd_reply(&data, u16::from_be_bytes([high, low]).into(), transport);
    }

    /// MODE SENSE(10) (SPC-3 §6.10): read error recovery, and capabilities and mechanical status.
    pub(super) fn mode_sense(&mut self, packet: &[u8; 12], transport: Transport) {
        let [_, _, page, _, _, _, _, high, low, ..] = *packet;
        if page >> 6 == 3 {
            return self.cd_check(Sense::NOT_SAVED);
        }
        let wanted = page & 0x3f;
        let recovery = vec![0x01, 6, 0, 5, 0, 0, 0, 0];
        let locked = if self.tray_locked() { 2 } else { 0 };
        // Reads CD-R, CD-RW and DVD; a tray that locks and ejects; 5,645 KB/s, 128 KiB of buffer.
        let status = 0x29 | locked;
        let capabilities =
            vec![0x2a, 18, 0x0b, 0, 0x70, 0, status, 0, 0x16, 0x0d, 0, 0, 0, 128, 0x16, 0x0d, 0, 0, 0, 0];
        let mut pages: Vec<Vec<u8>> = vec![recovery, capabilities];
        pages.retain(|page| wanted == 0x3f || page.first() == Some(&wanted));
        if pages.is_empty() {
            return self.cd_check(Sense::BAD_FIELD);
        }
        if page >> 6 == 1 {
            // Nothing can be changed.
            pages.iter_mut().for_each(|page| page.iter_mut().skip(2).for_each(|byte| *byte = 0));
        }
        let body = pages.concat();
        let medium = if self.cd_capacity().is_some() { 0x01 } else { 0x70 };
        let [l1, l0] = be16(body.len() + 6);
        let mut data = vec![l1, l0, medium, 0, 0, 0, 0, 0];
        data.extend(body);
        self.cd_reply(&data, u16::from_be_bytes([high, low]).into(), transport);
    }

    /// GET CONFIGURATION (MMC-6 §6.6).
    pub(super) fn get_configuration(&mut self, packet: &[u8; 12], transport: Transport) {
        let [_, which, start1, start0, _, _, _, high, low, ..] = *packet;
        let start = u16::from_be_bytes([start1, start0]);
        let profile = match self.cd_capacity() {
            None => 0,
            Some(sectors) if sectors > CD_SECTORS => PROFILE_DVD_ROM,
            Some(_) => PROFILE_CD_ROM,
        };
        let (cd, dvd) = (profile == PROFILE_CD_ROM, profile == PROFILE_DVD_ROM);
        let mut features: Vec<(u16, u8, bool, Vec<u8>)> = vec![
            (0x0000, 0, true, vec![0, 0x10, dvd.into(), 0, 0, 0x08, cd.into(), 0]),
            (0x0001, 1, true, vec![0, 0, 0, 2, 0, 0, 0, 0]), // core: ATAPI
            (0x0002, 0, true, vec![0; 4]),                   // morphing: polled events
            (0x0003, 0, true, vec![0x29, 0, 0, 0]),          // tray, locks, ejects
            (0x0010, 0, cd || dvd, vec![0, 0, 8, 0, 0, 1, 0, 0]), // random readable, 2,048 bytes
            (0x001e, 0, cd, vec![0; 4]),
            (0x001f, 0, dvd, vec![0; 4]),
        ];
        match which & 3 {
            0 => features.retain(|feature| feature.0 >= start),
            1 => features.retain(|feature| feature.0 >= start && feature.2),
            2 => features.retain(|feature| feature.0 == start),
            _ => return self.cd_check(Sense::BAD_FIELD),
        }
        let mut body = Vec::new();
        for (code, version, current, data) in features {
            let persistent = code <= 3;
            body.extend(code.to_be_bytes());
            body.push(version << 2 | u8::from(persistent) << 1 | u8::from(current));
            body.push(data.len().min(255) as u8);
            body.extend(data);
        }
        let [l1, l0] = be16(body.len() + 4);
        let [p1, p0] = profile.to_be_bytes();
        let mut data = vec![0, 0, l1, l0, 0, 0, p1, p0];
        data.extend(body);
        self.cd_reply(&data, u16::from_be_bytes([high, low]).into(), transport);
    }

    /// MECHANISM STATUS (MMC-6 §6.10): no changer.
    pub(super) fn mechanism_status(&mut self, packet: &[u8; 12], transport: Transport) {
        let open = self.cd.as_ref().is_some_and(|cd: &Cd| cd.open);
        let data = [0, u8::from(open) << 4, 0, 0, 0, 1, 0, 0];
        let [_, _, _, _, _, _, _, _, high, low, ..] = *packet;
        self.cd_reply(&data, u16::from_be_bytes([high, low]).into(), transport);
    }
}
