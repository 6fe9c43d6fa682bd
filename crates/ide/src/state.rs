//! Saved state.

use serde::{Deserialize, Serialize};
use trapline_device::{RestoreError, SaveRestore};
use trapline_pci::ConfigState;

use crate::ata::Settings;
use crate::atapi::Cd;
use crate::bus_master::BusMaster;
use crate::channel::Channel;
use crate::controller::PiixIde;
use crate::drive::{Drive, Job, Phase, STAGE_MAX, Stage};
use crate::regs::{Control, Error};
use crate::taskfile::TaskFile;

/// Saved state of a [`PiixIde`]. The disks' contents are not in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PiixIdeState {
    config: ConfigState,
    channels: [ChannelState; 2],
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ChannelState {
    drives: [Option<DriveState>; 2],
    second: bool,
    control: Control,
    bus_master: BusMaster,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DriveState {
    regs: TaskFile,
    intrq: bool,
    phase: Phase,
    job: Job,
    stage: Vec<u8>,
    pos: usize,
    block_end: usize,
    settings: Settings,
    cd: Option<Cd>,
    /// To tell drives apart: sectors of a disk, 0 for a CD-ROM.
    sectors: u64,
}

fn refuse(what: &str) -> RestoreError {
    RestoreError { device: "piix3-ide", what: what.into() }
}

fn save_drive(drive: &Drive) -> DriveState {
    let sectors = size_of(drive);
    // What the drive is, and its disk, are wiring; operations are named anew.
    let Drive { regs, intrq, phase, job, stage, settings, cd, identity: _, io: _, in_flight, next_id: _ } =
        drive;
    let mut state = DriveState {
        regs: regs.clone(),
        intrq: *intrq,
        phase: *phase,
        job: job.clone(),
        stage: stage.bytes().to_vec(),
        pos: stage.pos,
        block_end: stage.block_end,
        settings: settings.clone(),
        cd: cd.clone(),
        sectors,
    };
    if in_flight.is_some() {
        // Not quiesced: the bytes are with the engine. The guest will see a command that failed.
        state.regs.fail(Error::ABRT);
        state.intrq = true;
        (state.phase, state.job) = (Phase::Idle, Job::None);
    }
    if state.phase == Phase::Idle {
        // What is left in the buffer means nothing.
        state.stage.clear();
        (state.pos, state.block_end) = (0, 0);
    }
    state
}

/// Sectors of a disk; 0 for a CD-ROM, whose disc may have been changed.
fn size_of(drive: &Drive) -> u64 {
    if drive.cd.is_some() { 0 } else { drive.sectors() }
}

fn check_drive(drive: &Drive, state: &DriveState) -> Result<(), RestoreError> {
    let sectors = size_of(drive);
    if state.cd.is_some() != drive.cd.is_some() || state.sectors != sectors {
        return Err(refuse("another kind or size of drive"));
    }
    let staged = state.stage.len();
    if staged > STAGE_MAX || state.block_end > staged || state.pos > state.block_end {
        return Err(refuse("a position outside of the buffer"));
    }
    if state.phase == Phase::Busy || state.phase == Phase::Idle && state.job != Job::None {
        return Err(refuse("a command under way that cannot be"));
    }
    let job_valid = match &state.job {
        Job::Sectors(job) => state.cd.is_none() && job.is_valid(drive.sectors(), staged),
        Job::Trim { .. } => false,
        Job::Cd(job) => state.cd.is_some() && job.is_valid(staged),
        Job::TrimRanges => state.cd.is_none(),
        Job::None | Job::Reply | Job::Flush => true,
    };
    if !job_valid || !state.settings.is_valid() {
        return Err(refuse("values out of range"));
    }
    Ok(())
}

fn restore_drive(drive: &mut Drive, state: DriveState) {
    drive.cancel();
    let DriveState { regs, intrq, phase, job, stage, pos, block_end, settings, cd, sectors: _ } = state;
    drive.stage = Stage::default();
    drive.stage.fill(&stage);
    (drive.stage.pos, drive.stage.block_end) = (pos, block_end);
    (drive.regs, drive.intrq, drive.phase, drive.job) = (regs, intrq, phase, job);
    (drive.settings, drive.cd) = (settings, cd);
}

fn save_channel(channel: &Channel) -> ChannelState {
    // Mastering follows the configuration space, the line's level the drives.
    let Channel {
        drives: [first, second],
        second: selected,
        control,
        bus_master,
        mastering: _,
        line_level: _,
        irq: _,
    } = channel;
    ChannelState {
        drives: [first.as_ref().map(save_drive), second.as_ref().map(save_drive)],
        second: *selected,
        control: *control,
        bus_master: bus_master.clone(),
    }
}

fn check_channel(channel: &Channel, state: &ChannelState) -> Result<(), RestoreError> {
    if !state.bus_master.is_valid() {
        return Err(refuse("bus master registers out of range"));
    }
    channel.drives.iter().zip(&state.drives).try_for_each(|(drive, state)| match (drive, state) {
        (Some(drive), Some(state)) => check_drive(drive, state),
        (None, None) => Ok(()),
        _ => Err(refuse("other drives")),
    })
}

impl SaveRestore for PiixIde {
    type State = PiixIdeState;

    /// Call [`PiixIde::quiesce`] before. A command that is still at its disk is saved as failed.
    fn save(&self) -> PiixIdeState {
        let Self { config, channels: [primary, secondary], memory: _ } = self;
        PiixIdeState { config: config.save(), channels: [save_channel(primary), save_channel(secondary)] }
    }

    fn restore(&mut self, state: PiixIdeState) -> Result<(), RestoreError> {
        let PiixIdeState { config, channels } = state;
        for (channel, state) in self.channels.iter().zip(&channels) {
            check_channel(channel, state)?;
        }
        self.config.restore(config)?;
        for (channel, state) in self.channels.iter_mut().zip(channels) {
            let ChannelState { drives, second, control, bus_master } = state;
            for (drive, state) in channel.drives.iter_mut().flatten().zip(drives.into_iter().flatten()) {
                restore_drive(drive, state);
            }
            (channel.second, channel.control, channel.bus_master) = (second, control, bus_master);
            channel.line_restored();
        }
        self.follow_config();
        Ok(())
    }
}
