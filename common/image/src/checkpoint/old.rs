//! State of tasks that older versions kept in images of their own.
//!
//! Today credentials, signal actions, timers, limits and pending signals are fields of the core,
//! areas are fields of the mm. Where such a field is absent and the old image is there, it is
//! filled from that image; a field that is present always wins. The rest of Crust only knows
//! today's form.

use super::Loader;
use crate::{error::Result, ids::VirtPid, kind::Kind};
use crust_proto::criu::{
    CoreEntry, CredsEntry, ItimerEntry, MmEntry, PosixTimerEntry, RlimitEntry, SiginfoEntry,
    SignalQueueEntry, TaskCoreEntry, TaskRlimitsEntry, TaskTimersEntry, ThreadCoreEntry,
};

/// Completes the core of a leader.
pub fn complete_leader(loader: &Loader<'_>, pid: VirtPid, core: &mut CoreEntry) -> Result<()> {
    let id = Some(u64::from(pid.get()));
    let CoreEntry {
        tc, thread_core, ..
    } = core;
    if let Some(tc) = tc {
        complete_task(loader, id, tc)?;
    }
    let (Some(tc), Some(thread)) = (tc, thread_core) else {
        return Ok(());
    };
    share_with_thread(tc, thread);
    complete_thread_core(loader, id, id, thread)
}

/// Completes the core of another thread of task `pid`.
pub fn complete_thread(
    loader: &Loader<'_>,
    pid: VirtPid,
    tid: VirtPid,
    leader: &CoreEntry,
    core: &mut CoreEntry,
) -> Result<()> {
    let Some(thread) = &mut core.thread_core else {
        return Ok(());
    };
    if let Some(tc) = &leader.tc {
        share_with_thread(tc, thread);
    }
    let (pid, tid) = (u64::from(pid.get()), u64::from(tid.get()));
    complete_thread_core(loader, Some(pid), Some(tid), thread)
}

/// Completes the areas of a task.
pub fn complete_mm(loader: &Loader<'_>, pid: VirtPid, mm: &mut MmEntry) -> Result<()> {
    if mm.vmas.is_empty() {
        mm.vmas = loader.entries(Kind::Vmas, Some(pid.get().into()))?;
    }
    Ok(())
}

fn complete_task(loader: &Loader<'_>, pid: Option<u64>, tc: &mut TaskCoreEntry) -> Result<()> {
    if tc.sigactions.is_empty() {
        tc.sigactions = loader.entries(Kind::Sigact, pid)?;
    }
    if tc.timers.is_none() {
        tc.timers = load_timers(loader, pid)?;
    }
    if tc.rlimits.is_none() {
        let rlimits: Vec<RlimitEntry> = loader.entries(Kind::Rlimit, pid)?;
        tc.rlimits = (!rlimits.is_empty()).then_some(TaskRlimitsEntry { rlimits });
    }
    if tc.signals_s.is_none() {
        tc.signals_s = load_signals(loader, Kind::SignalShared, pid)?;
    }
    Ok(())
}

/// What was once task-wide and is now kept by thread.
fn share_with_thread(tc: &TaskCoreEntry, thread: &mut ThreadCoreEntry) {
    thread.cg_set = thread.cg_set.or(tc.cg_set);
    if thread.seccomp_mode.is_none() && tc.old_seccomp_mode.is_some() {
        thread.seccomp_mode = tc.old_seccomp_mode;
        thread.seccomp_filter = thread.seccomp_filter.or(tc.old_seccomp_filter);
    }
}

fn complete_thread_core(
    loader: &Loader<'_>,
    pid: Option<u64>,
    tid: Option<u64>,
    thread: &mut ThreadCoreEntry,
) -> Result<()> {
    if thread.creds.is_none() {
        // One for the task: older versions wanted all threads to have the same.
        thread.creds = loader.entry_of::<CredsEntry>(Kind::Creds, pid)?;
    }
    if thread.signals_p.is_none() {
        thread.signals_p = load_signals(loader, Kind::SignalPrivate, tid)?;
    }
    Ok(())
}

fn load_timers(loader: &Loader<'_>, pid: Option<u64>) -> Result<Option<TaskTimersEntry>> {
    let Some(mut reader) = loader.open(Kind::Itimers, pid)? else {
        return Ok(None);
    };
    let itimers: Vec<ItimerEntry> = reader.rest()?;
    let [real, virt, prof] = itimers.as_slice() else {
        let what = format!("{} interval timers where a task has 3", itimers.len());
        return Err(reader.frame_error(what));
    };
    let posix: Vec<PosixTimerEntry> = loader.entries(Kind::PosixTimers, pid)?;
    Ok(Some(TaskTimersEntry {
        real: *real,
        virt: *virt,
        prof: *prof,
        posix,
    }))
}

fn load_signals(
    loader: &Loader<'_>,
    kind: Kind,
    id: Option<u64>,
) -> Result<Option<SignalQueueEntry>> {
    let Some(mut reader) = loader.open(kind, id)? else {
        return Ok(None);
    };
    let signals: Vec<SiginfoEntry> = reader.rest()?;
    Ok(Some(SignalQueueEntry { signals }))
}
