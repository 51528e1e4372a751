//! SysV shared memory, semaphores and message queues of an ipc namespace: read without changing
//! anything, and made again under their own ids.
//!
//! All calls act on the ipc namespace of the calling thread; `namespace::inside` gives a
//! thread that has entered another. An id is chosen by writing it to kernel/{shm,sem,msg}_next_id (Linux 3.9,
//! CONFIG_CHECKPOINT_RESTORE; Documentation/admin-guide/sysctl/kernel.rst). Messages are read with
//! MSG_COPY, which takes none out (msgrcv(2)).

use nix::errno::Errno;
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};

type Result<T> = std::result::Result<T, Errno>;

const SHM_STAT: i32 = 13;
const SHM_INFO: i32 = 14;
const MSG_STAT: i32 = 11;
const MSG_INFO: i32 = 12;
const SEM_STAT: i32 = 18;
const SEM_INFO: i32 = 19;
const MSG_COPY: i32 = 0o40000;
/// In the mode of a segment that goes with its last attachment.
pub const SHM_DEST: u32 = 0o1000;

/// struct ipc_perm, with the id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Perm {
    /// The id.
    pub id: i32,
    /// The key, 0 for IPC_PRIVATE.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Creator.
    pub cuid: u32,
    /// The creator's group.
    pub cgid: u32,
    /// Permission bits, and SHM_DEST.
    pub mode: u32,
}

/// A segment of shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Whose it is.
    pub perm: Perm,
    /// Bytes, not rounded to pages.
    pub size: u64,
    /// How many mappings there are of it, anywhere.
    pub attaches: u64,
}

/// A set of semaphores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SemSet {
    /// Whose it is.
    pub perm: Perm,
    /// The values.
    pub values: Vec<u16>,
}

/// A queue of messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Whose it is.
    pub perm: Perm,
    /// How many bytes it may hold.
    pub qbytes: u64,
    /// Type and text of each message, the oldest first.
    pub messages: Vec<(i64, Vec<u8>)>,
}

fn perm(id: i32, found: &libc::ipc_perm) -> Perm {
    Perm {
        id,
        key: found.__key,
        uid: found.uid,
        gid: found.gid,
        cuid: found.cuid,
        cgid: found.cgid,
        mode: found.mode.into(),
    }
}

/// Ids by index: `stat` tells what is at an index, EINVAL that there is nothing.
fn all<T>(last: Result<i32>, mut stat: impl FnMut(i32) -> Result<T>) -> Result<Vec<T>> {
    let mut found = Vec::new();
    for index in 0..=last?.max(-1) {
        match stat(index) {
            Ok(object) => found.push(object),
            Err(Errno::EINVAL | Errno::EIDRM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}

fn shm_ctl(id: i32, cmd: i32) -> Result<(i32, libc::shmid_ds)> {
    // SAFETY: all zeros is a struct of numbers.
    let mut ds: libc::shmid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: every command used fills at most a shmid_ds; shm_info is smaller.
    let got = unsafe { libc::shmctl(id, cmd, &mut ds) };
    Ok((Errno::result(got)?, ds))
}

/// All segments.
pub fn segments() -> Result<Vec<Segment>> {
    let last = shm_ctl(0, SHM_INFO).map(|(last, _)| last);
    all(last, |index| {
        let (id, ds) = shm_ctl(index, SHM_STAT)?;
        Ok(segment_of(id, &ds))
    })
}

/// The segment with an id; EINVAL if there is none.
pub fn segment(id: i32) -> Result<Segment> {
    shm_ctl(id, libc::IPC_STAT).map(|(_, ds)| segment_of(id, &ds))
}

fn segment_of(id: i32, ds: &libc::shmid_ds) -> Segment {
    Segment {
        perm: perm(id, &ds.shm_perm),
        size: ds.shm_segsz as u64,
        attaches: ds.shm_nattch,
    }
}

/// A segment as a file, whose offsets are those of the segment. The descriptor is no attachment.
pub fn open_segment(id: i32) -> Result<OwnedFd> {
    // SAFETY: a new mapping where the kernel likes; no memory in use is touched.
    let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
    if at as isize == -1 {
        return Err(Errno::last());
    }
    let size = segment(id).map(|segment| segment.size.next_multiple_of(4096));
    let opened = size.and_then(|size| {
        let start = at as u64;
        let path = format!("/proc/self/map_files/{start:x}-{:x}\0", start + size);
        // SAFETY: the path ends with a zero byte and outlives the call.
        Errno::result(unsafe { libc::open(path.as_ptr().cast(), libc::O_RDWR | libc::O_CLOEXEC) })
    });
    // SAFETY: the mapping made above, to which nothing refers.
    unsafe { libc::shmdt(at) };
    // SAFETY: open has just given us this descriptor.
    opened.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a segment under its id. The mode's SHM_DEST is left to [`remove_segment`].
pub fn make_segment(wanted: &Perm, size: u64) -> Result<()> {
    choose_id("shm", wanted.id)?;
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | (wanted.mode & 0o777) as i32;
    // SAFETY: numbers only.
    let id = Errno::result(unsafe { libc::shmget(wanted.key, size as usize, flags) })?;
    if id != wanted.id {
        remove_segment(id)?;
        return Err(Errno::EEXIST);
    }
    own_segment(wanted)
}

/// Gives a segment its owner and mode.
pub fn own_segment(wanted: &Perm) -> Result<()> {
    let (_, mut ds) = shm_ctl(wanted.id, libc::IPC_STAT)?;
    take_owner(&mut ds.shm_perm, wanted);
    // SAFETY: IPC_SET reads a shmid_ds.
    Errno::result(unsafe { libc::shmctl(wanted.id, libc::IPC_SET, &mut ds) }).map(drop)
}

/// Removes a segment, when its last attachment goes.
pub fn remove_segment(id: i32) -> Result<()> {
    // SAFETY: IPC_RMID takes no memory.
    Errno::result(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) }).map(drop)
}

fn take_owner(perm: &mut libc::ipc_perm, wanted: &Perm) {
    perm.uid = wanted.uid;
    perm.gid = wanted.gid;
    perm.mode = (wanted.mode & 0o777) as _;
}

/// All sets of semaphores.
pub fn sem_sets() -> Result<Vec<SemSet>> {
    let stat = |id: i32, cmd: i32| -> Result<(i32, libc::semid_ds)> {
        // SAFETY: all zeros is a struct of numbers.
        let mut ds: libc::semid_ds = unsafe { std::mem::zeroed() };
        // SAFETY: the commands used fill at most a semid_ds; seminfo is smaller.
        let got = unsafe { libc::semctl(id, 0, cmd, &mut ds) };
        Ok((Errno::result(got)?, ds))
    };
    let last = stat(0, SEM_INFO).map(|(last, _)| last);
    all(last, |index| {
        let (id, ds) = stat(index, SEM_STAT)?;
        let mut values = vec![0u16; ds.sem_nsems as usize];
        // SAFETY: GETALL writes one short for each semaphore; their number never changes.
        let got = unsafe { libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()) };
        Errno::result(got)?;
        Ok(SemSet {
            perm: perm(id, &ds.sem_perm),
            values,
        })
    })
}

/// Makes a set of semaphores under its id, with its values.
pub fn make_sem_set(set: &SemSet) -> Result<()> {
    choose_id("sem", set.perm.id)?;
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | (set.perm.mode & 0o777) as i32;
    let count = i32::try_from(set.values.len()).map_err(|_| Errno::E2BIG)?;
    // SAFETY: numbers only.
    let id = Errno::result(unsafe { libc::semget(set.perm.key, count, flags) })?;
    if id != set.perm.id {
        // SAFETY: IPC_RMID takes no memory.
        unsafe { libc::semctl(id, 0, libc::IPC_RMID) };
        return Err(Errno::EEXIST);
    }
    let mut values = set.values.clone();
    // SAFETY: SETALL reads one short for each semaphore, of which the set has just so many.
    Errno::result(unsafe { libc::semctl(id, 0, libc::SETALL, values.as_mut_ptr()) })?;
    // SAFETY: all zeros is a struct of numbers.
    let mut ds: libc::semid_ds = unsafe { std::mem::zeroed() };
    take_owner(&mut ds.sem_perm, &set.perm);
    // SAFETY: IPC_SET reads a semid_ds.
    Errno::result(unsafe { libc::semctl(id, 0, libc::IPC_SET, &mut ds) }).map(drop)
}

/// All queues with copies of their messages.
pub fn queues() -> Result<Vec<Queue>> {
    let stat = |id: i32, cmd: i32| -> Result<(i32, libc::msqid_ds)> {
        // SAFETY: all zeros is a struct of numbers.
        let mut ds: libc::msqid_ds = unsafe { std::mem::zeroed() };
        // SAFETY: the commands used fill at most a msqid_ds; msginfo is smaller.
        let got = unsafe { libc::msgctl(id, cmd, &mut ds) };
        Ok((Errno::result(got)?, ds))
    };
    let last = stat(0, MSG_INFO).map(|(last, _)| last);
    all(last, |index| {
        let (id, ds) = stat(index, MSG_STAT)?;
        let copies = (0..ds.msg_qnum as i64).map(|at| copy_message(id, at, ds.__msg_cbytes));
        Ok(Queue {
            perm: perm(id, &ds.msg_perm),
            qbytes: ds.msg_qbytes,
            messages: copies.collect::<Result<_>>()?,
        })
    })
}

/// The message at an index of a queue that holds no more than so many bytes.
fn copy_message(id: i32, index: i64, most: u64) -> Result<(i64, Vec<u8>)> {
    const TYPE: usize = size_of::<i64>();
    let mut buffer = vec![0u8; TYPE + most as usize];
    let flags = libc::IPC_NOWAIT | MSG_COPY;
    // SAFETY: the kernel writes the type and at most `most` bytes behind it.
    let got = unsafe { libc::msgrcv(id, buffer.as_mut_ptr().cast(), most as usize, index, flags) };
    let len = Errno::result(got)? as usize;
    let text = buffer.split_off(TYPE);
    let mtype = i64::from_ne_bytes(buffer.try_into().map_err(|_| Errno::EPROTO)?);
    Ok((mtype, text.into_iter().take(len).collect()))
}

/// Makes a queue under its id, with its messages.
pub fn make_queue(queue: &Queue) -> Result<()> {
    choose_id("msg", queue.perm.id)?;
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | (queue.perm.mode & 0o777) as i32;
    // SAFETY: numbers only.
    let id = Errno::result(unsafe { libc::msgget(queue.perm.key, flags) })?;
    if id != queue.perm.id {
        // SAFETY: IPC_RMID takes no memory.
        unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
        return Err(Errno::EEXIST);
    }
    // SAFETY: all zeros is a struct of numbers.
    let mut ds: libc::msqid_ds = unsafe { std::mem::zeroed() };
    take_owner(&mut ds.msg_perm, &queue.perm);
    ds.msg_qbytes = queue.qbytes;
    // Before the messages: the queue may be larger than the namespace's default.
    // SAFETY: IPC_SET reads a msqid_ds.
    Errno::result(unsafe { libc::msgctl(id, libc::IPC_SET, &mut ds) })?;
    for (mtype, text) in &queue.messages {
        let mut buffer = mtype.to_ne_bytes().to_vec();
        buffer.extend_from_slice(text);
        // SAFETY: the buffer has the type and as many bytes as are told behind it.
        let sent =
            unsafe { libc::msgsnd(id, buffer.as_ptr().cast(), text.len(), libc::IPC_NOWAIT) };
        Errno::result(sent)?;
    }
    Ok(())
}

/// The next object of a kind gets this id if it is free.
fn choose_id(kind: &str, id: i32) -> Result<()> {
    fs::write(format!("/proc/sys/kernel/{kind}_next_id"), id.to_string())
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a namespace of our own, if we may make one.
    #[test]
    fn objects_come_back_as_they_were() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root for an ipc namespace");
            return;
        }
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).expect("unshare");
            let wanted = Perm {
                id: 32770,
                key: 77,
                uid: 5,
                gid: 6,
                mode: 0o640,
                ..Perm::default()
            };
            make_segment(&wanted, 10000).expect("a segment");
            let found = segments().expect("segments");
            assert_eq!(found.len(), 1);
            let perm = Perm {
                cuid: 0,
                cgid: 0,
                ..wanted
            };
            assert_eq!(
                found[0],
                Segment {
                    perm,
                    size: 10000,
                    attaches: 0
                }
            );
            let file = fs::File::from(open_segment(wanted.id).expect("opened"));
            std::os::unix::fs::FileExt::write_all_at(&file, b"kept", 8190).expect("write");
            assert_eq!(segment(wanted.id).expect("there").attaches, 0);
            let set = SemSet {
                perm: Perm { id: 3, ..perm },
                values: vec![3, 1, 4],
            };
            make_sem_set(&set).expect("a set");
            assert_eq!(sem_sets().expect("sets"), [set]);
            let queue = Queue {
                perm: Perm { id: 1, ..perm },
                qbytes: 12345,
                messages: vec![(7, b"seven".to_vec()), (2, Vec::new())],
            };
            make_queue(&queue).expect("a queue");
            assert_eq!(queues().expect("queues"), std::slice::from_ref(&queue));
            assert_eq!(queues().expect("still there"), [queue]);
        });
        thread.join().expect("no failure");
    }
}
