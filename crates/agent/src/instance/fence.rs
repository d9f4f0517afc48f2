//! The fence: no process of this pod may write any more.

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};
use std::{collections::HashSet, time::Duration};

/// SIGKILL to every process of the PID namespace but this one, until none runs.
///
/// An immediate stop would be no fence: a stopped postmaster does not obey, and busy backends of a dead one still commit.
/// Only PID 1 of a container does this: elsewhere the signal would reach strangers.
pub fn kill_everything() {
    if std::process::id() != 1 {
        tracing::error!("not PID 1: nothing is killed");
        return;
    }
    // A fork may slip between two signals; a second round reaches its child. ESRCH: nobody is left.
    for _ in 0..1000 {
        match kill(Pid::from_raw(-1), Signal::SIGKILL) {
            Err(Errno::ESRCH) => return,
            Err(error) => tracing::error!(%error, "fencing"),
            Ok(()) => {}
        }
        if only_zombies_left() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    tracing::error!("some processes do not die; ending the container");
    std::process::exit(1);
}

/// Whether every other process has ended. Zombies write nothing; they are collected by whoever waits for them.
fn only_zombies_left() -> bool {
    let Ok(entries) = std::fs::read_dir("/proc") else { return false };
    let mut pids =
        entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()).filter(|p| *p != 1);
    pids.all(|pid| {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
        // The name in parentheses may contain anything; the state follows the last one.
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
    })
}

/// Collects one orphan that ended; `false`: there is none. Children in `own` are left to those who wait for them.
pub fn reap_one(own: &HashSet<i32>) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let pid = match waitid(Id::All, flags) {
        Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => pid,
        _ => return false,
    };
    if own.contains(&pid.as_raw()) {
        return false;
    }
    waitpid(pid, Some(WaitPidFlag::WNOHANG)).is_ok()
}
