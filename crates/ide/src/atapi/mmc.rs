//! Command packets: which there are, and those about the disc (MMC-6 §6).

use super::read::msf;
use super::sense::Sense;
use super::{MediaEvent, Transport};
use crate::drive::Drive;

const TEST_UNIT_READY: u8 = 0x00;
const REQUEST_SENSE: u8 = 0x03;
const INQUIRY: u8 = 0x12;
const START_STOP_UNIT: u8 = 0x1b;
const PREVENT_ALLOW: u8 = 0x1e;
const READ_CAPACITY: u8 = 0x25;
const READ_10: u8 = 0x28;
const SEEK_10: u8 = 0x2b;
const READ_TOC: u8 = 0x43;
const GET_CONFIGURATION: u8 = 0x46;
const GET_EVENT_STATUS: u8 = 0x4a;
const READ_DISC_INFORMATION: u8 = 0x51;
const MODE_SENSE_10: u8 = 0x5a;
const READ_12: u8 = 0xa8;
const SET_CD_SPEED: u8 = 0xbb;
const MECHANISM_STATUS: u8 = 0xbd;
const READ_CD: u8 = 0xbe;

impl Drive {
    pub(super) fn packet(&mut self, packet: &[u8; 12], transport: Transport) {
        let [code, ..] = *packet;
        // These never report a unit attention (MMC-6 §4.1.6.1 and SPC-3 §5.6).
        match code {
            REQUEST_SENSE => return self.request_sense(packet, transport),
            INQUIRY => return self.inquiry(packet, transport),
            GET_CONFIGURATION => return self.get_configuration(packet, transport),
            GET_EVENT_STATUS => return self.get_event_status(packet, transport),
            _ => {}
        }
        if let Some(attention) = self.cd.as_mut().and_then(|cd| cd.attention.take()) {
            return self.cd_check(attention);
        }
        match code {
            START_STOP_UNIT => self.start_stop_unit(packet),
            PREVENT_ALLOW => self.prevent_allow(packet),
            MODE_SENSE_10 => self.mode_sense(packet, transport),
            MECHANISM_STATUS => self.mechanism_status(packet, transport),
            SET_CD_SPEED => self.cd_finish(),
            TEST_UNIT_READY
            | READ_CAPACITY
            | READ_10
            | READ_12
            | READ_CD
            | SEEK_10
            | READ_TOC
            | READ_DISC_INFORMATION => match self.cd_capacity() {
                Some(capacity) => self.disc_packet(packet, capacity, transport),
                None => {
                    let open = self.cd.as_ref().is_some_and(|cd| cd.open);
                    self.cd_check(if open { Sense::TRAY_OPEN } else { Sense::NO_DISC });
                }
            },
            _ => self.cd_check(Sense::BAD_COMMAND),
        }
    }

    /// Commands that need a disc.
    fn disc_packet(&mut self, packet: &[u8; 12], capacity: u32, transport: Transport) {
        let [code, _, a, b, c, d, e, f, g, h, ..] = *packet;
        let lba = u32::from_be_bytes([a, b, c, d]);
        match code {
            READ_CAPACITY => {
                let [l3, l2, l1, l0] = capacity.saturating_sub(1).to_be_bytes();
                self.cd_reply(&[l3, l2, l1, l0, 0, 0, 8, 0], 8, transport);
            }
            READ_10 => self.cd_read(lba, u16::from_be_bytes([f, g]).into(), false, transport),
            READ_12 => self.cd_read(lba, u32::from_be_bytes([e, f, g, h]), false, transport),
            READ_CD => self.read_cd(packet, transport),
            SEEK_10 if lba >= capacity => self.cd_check(Sense::OUT_OF_RANGE),
            READ_TOC => self.read_toc(packet, capacity, transport),
            READ_DISC_INFORMATION => {
                // One finished session with one track.
                let mut data = [0_u8; 34];
                data.iter_mut().zip([0, 32, 0x0e, 1, 1, 1, 1, 0x20]).for_each(|(to, from)| *to = from);
                self.cd_reply(&data, u16::from_be_bytes([f, g]).into(), transport);
            }
            _ => self.cd_finish(),
        }
    }

    fn request_sense(&mut self, packet: &[u8; 12], transport: Transport) {
        let [_, _, _, _, allocated, ..] = *packet;
        let Some(cd) = &mut self.cd else { return };
        let mut sense = std::mem::replace(&mut cd.sense, Sense::NONE);
        if sense == Sense::NONE {
            sense = cd.attention.take().unwrap_or(sense);
        }
        self.cd_reply(&sense.bytes(), allocated.into(), transport);
    }

    /// START STOP UNIT: bit 1 loads or ejects, bit 0 is the direction.
    fn start_stop_unit(&mut self, packet: &[u8; 12]) {
        let [_, _, _, _, action, ..] = *packet;
        let disc = self.io.is_some();
        let Some(cd) = &mut self.cd else { return };
        match action & 3 {
            2 if cd.locked => {
                cd.event = MediaEvent::EjectRequest;
                return self.cd_check(Sense::LOCKED);
            }
            2 if !cd.open => {
                cd.open = true;
                cd.event = if disc { MediaEvent::Removed } else { MediaEvent::None };
            }
            3 if cd.open => {
                cd.open = false;
                if disc {
                    cd.event = MediaEvent::New;
                    cd.attention = Some(Sense::CHANGED);
                }
            }
            _ => {}
        }
        self.cd_finish();
    }

    fn prevent_allow(&mut self, packet: &[u8; 12]) {
        let [_, _, _, _, prevent, ..] = *packet;
        if let Some(cd) = &mut self.cd {
            cd.locked = prevent & 1 != 0;
        }
        self.cd_finish();
    }

    /// GET EVENT STATUS NOTIFICATION: the media class, polled.
    fn get_event_status(&mut self, packet: &[u8; 12], transport: Transport) {
        const MEDIA: u8 = 4;
        let [_, polled, _, _, classes, _, _, high, low, ..] = *packet;
        if polled & 1 == 0 {
            return self.cd_check(Sense::BAD_FIELD);
        }
        let allocated = usize::from(u16::from_be_bytes([high, low]));
        let present = self.cd_capacity().is_some();
        let Some(cd) = &mut self.cd else { return };
        if classes >> MEDIA & 1 == 0 {
            return self.cd_reply(&[0, 2, 0x80, 1 << MEDIA], allocated, transport);
        }
        let event = if allocated > 4 { std::mem::replace(&mut cd.event, MediaEvent::None) } else { cd.event };
        let status = u8::from(present) << 1 | u8::from(cd.open);
        let data = [0, 6, MEDIA, 1 << MEDIA, event as u8, status, 0, 0];
        self.cd_reply(&data, allocated, transport);
    }

    /// READ TOC: one data track in one session.
    fn read_toc(&mut self, packet: &[u8; 12], capacity: u32, transport: Transport) {
        let [_, flags, format, _, _, _, track, high, low, control, ..] = *packet;
        let in_msf = flags & 2 != 0;
        // SFF-8020i has the format in the last byte.
        let format = if format & 0xf != 0 { format & 0xf } else { control >> 6 };
        let place = |lba: u32| {
            let [m, s, f] = msf(lba);
            if in_msf { [0, m, s, f] } else { lba.to_be_bytes() }
        };
        let entry = |track: u8, lba: u32| {
            let [a, b, c, d] = place(lba);
            vec![0, 0x14, track, 0, a, b, c, d]
        };
        let body = match format {
            0 if track <= 1 => [entry(1, 0), entry(0xaa, capacity)].concat(),
            0 if track == 0xaa => entry(0xaa, capacity),
            1 => entry(1, 0),
            2 => {
                let raw = |point: u8, [m, s, f]: [u8; 3]| vec![1, 0x14, 0, point, 0, 0, 0, 0, m, s, f];
                [raw(0xa0, [1, 0, 0]), raw(0xa1, [1, 0, 0]), raw(0xa2, msf(capacity)), raw(1, msf(0))]
                    .concat()
            }
            _ => return self.cd_check(Sense::BAD_FIELD),
        };
        let mut data = vec![0, (body.len() + 2).min(255) as u8, 1, 1];
        data.extend(body);
        self.cd_reply(&data, u16::from_be_bytes([high, low]).into(), transport);
    }
}
