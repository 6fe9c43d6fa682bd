//! What a crash of the virtual machine leaves of its disk image, at moments that nobody chose.
//!
//! A process that is stopped has written what it would have written when killed then: its file is copied and
//! looked at. So one boot is enough for many moments. A real `kill -9` ends another.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::session::Session;
use crate::{disk, tools};

/// Longest time between two looks.
const PAUSE: Duration = Duration::from_millis(300);
/// Until the guest has begun to write.
const WARM_UP: Duration = Duration::from_millis(500);

/// Writes, flushes, overwrites and deletes files of 64 KiB to 3 MiB, for ever.
const WRITER: &str = "(i=0; while :; do i=$(((i + 7) % 23)); \
    dd if=/dev/zero bs=64k count=$((i * 2 + 1)) conv=fsync,notrunc of=/root/w$((i % 5)) 2>/dev/null; \
    [ $((i % 3)) = 0 ] && rm -f /root/w$((i % 4)); done) &";

/// Looks at the image at `moments` moments while the guest writes.
pub fn sample(session: &mut Session, overlay: &disk::Overlay, moments: u32) -> Result<()> {
    session.run(WRITER)?;
    let pid = session.pid();
    let mut random = Random::new();
    let copy = overlay.path().with_file_name("crash.qcow2");
    for moment in 1..=moments {
        std::thread::sleep(random.up_to(PAUSE));
        signal(pid, "STOP")?;
        let result = stopped(pid).and_then(|()| Ok(fs::copy(overlay.path(), &copy)?));
        signal(pid, "CONT")?;
        result?;
        check(&copy).with_context(|| format!("moment {moment} of {moments}"))?;
    }
    let (output, status) = session.run("kill $! && wait; rm -f /root/w*")?;
    ensure!(status == 0, "the guest's writing ended with {status}: {}", output.trim());
    Ok(())
}

/// Kills the virtual machine while the guest writes. Afterwards the image must be in order, and the file system
/// in it one that its journal repairs.
pub fn kill(mut session: Session, overlay: &disk::Overlay) -> Result<()> {
    session.run(WRITER)?;
    std::thread::sleep(WARM_UP + Random::new().up_to(PAUSE));
    let status = session.kill()?;
    ensure!(status.code().is_none(), "the virtual machine ended with {status} while the guest was writing");
    check(overlay.path())?;

    let mut command = disk::program("e2fsck");
    command.arg("-fy").arg(overlay.partition()?);
    let output = command.output().map_err(|error| tools::missing(&command, "e2fsprogs", error))?;
    // 1: something was repaired, as replaying the journal is.
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(matches!(output.status.code(), Some(0 | 1)), "e2fsck cannot repair the file system:\n{text}");
    Ok(())
}

/// Whether QEMU finds the image in order; clusters that nobody uses are allowed.
fn check(image: &Path) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["check", "-q", "-f", "qcow2"]).arg(image);
    let output = command.output().map_err(|error| tools::missing(&command, "qemu-utils", error))?;
    if !sound(output.status) {
        let text = [output.stdout, output.stderr].concat();
        bail!("qemu-img check: {}", String::from_utf8_lossy(&text).trim().replace('\n', "; "));
    }
    Ok(())
}

/// qemu-img's 3 stands for leaks alone.
fn sound(status: ExitStatus) -> bool {
    matches!(status.code(), Some(0 | 3))
}

fn signal(pid: u32, name: &str) -> Result<()> {
    // The shell's own: a small system may have no other.
    tools::output(Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]), "dash").map(drop)
}

/// Waits until every thread has stopped.
fn stopped(pid: u32) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        let mut threads = fs::read_dir(format!("/proc/{pid}/task"))?;
        // The state is the field behind the name, which is in parentheses.
        let all = threads.all(|thread| {
            let stat = thread.and_then(|thread| fs::read_to_string(thread.path().join("stat")));
            stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
        });
        if all {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    bail!("the virtual machine did not stop")
}

/// Moments that differ from run to run: a linear congruential generator begun with the time.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64))
    }

    fn up_to(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        limit.mul_f64((self.0 >> 33) as f64 / f64::from(1_u32 << 31))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_process_is_seen_to_stop() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        signal(child.id(), "STOP").unwrap();
        let result = stopped(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        result.unwrap();
    }

    #[test]
    fn leaks_are_allowed_and_damage_is_not() {
        use std::os::unix::process::ExitStatusExt;
        let code = |code: i32| ExitStatus::from_raw(code << 8);
        assert!(sound(code(0)) && sound(code(3)));
        assert!(!sound(code(2)) && !sound(code(1)) && !sound(ExitStatus::from_raw(9)));
    }

    #[test]
    fn moments_differ_and_stay_below_the_limit() {
        let mut random = Random(1);
        let limit = Duration::from_millis(300);
        let moments: std::collections::BTreeSet<_> = (0..20).map(|_| random.up_to(limit)).collect();
        assert!(moments.len() > 15 && moments.iter().all(|moment| *moment < limit));
    }
}
