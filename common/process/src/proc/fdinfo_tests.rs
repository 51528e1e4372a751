//! Captured fdinfo texts of 6.18, and in the shape of older kernels where that differs.

use super::super::locks::LockKind;
use super::*;

fn parse(head: &str, tail: &str) -> Result<Fdinfo, ParseError> {
    parse_fdinfo(format!("{head}{tail}").as_bytes())
}

/// What 6.18 prints first for everything.
const HEAD: &str = "pos:\t6024\nflags:\t02100002\nmnt_id:\t27\nino:\t10067975\n";
/// The same of 3.10.
const OLD: &str = "pos:\t0\nflags:\t02\n";

#[test]
fn the_common_head() -> Result<(), ParseError> {
    let info = parse(HEAD, "")?;
    assert_eq!((info.pos, info.flags), (6024, 0o2100002));
    assert!(info.cloexec());
    assert_eq!(info.status_flags(), 0o100002);
    assert_eq!((info.mnt_id, info.ino), (Some(27), Some(10067975)));
    assert_eq!(parse_fdinfo_flags(HEAD.as_bytes()), Ok(info.flags));
    assert!(parse_fdinfo_flags(b"pos:\t0\n").is_err());
    let old = parse(OLD, "")?;
    assert!(!old.cloexec());
    assert_eq!((old.mnt_id, old.ino), (None, None));
    Ok(())
}

#[test]
fn locks() -> Result<(), ParseError> {
    let info = parse(
        HEAD,
        "lock:\t1: FLOCK  ADVISORY  WRITE 5823 fe:00:10010644 0 EOF\n\
         lock:\t2: POSIX  ADVISORY  WRITE 5823 fe:00:10010644 3 7\n\
         lock:\t3: OFDLCK ADVISORY  READ -1 fe:00:10010644 10 14\n",
    )?;
    let kinds: Vec<_> = info.locks.iter().map(|lock| lock.kind).collect();
    assert_eq!(kinds, [LockKind::Flock, LockKind::Posix, LockKind::Ofd]);
    Ok(())
}

#[test]
fn eventfd_new_and_old() -> Result<(), ParseError> {
    let info = parse(
        HEAD,
        "eventfd-count:               1f\neventfd-id: 1\neventfd-semaphore: 1\n",
    )?;
    let new = EventfdInfo {
        count: 0x1f,
        id: Some(1),
        semaphore: Some(true),
    };
    assert_eq!(info.eventfd, Some(new));
    let old = parse(OLD, "eventfd-count: ffffffffffffffff\n")?;
    assert_eq!(
        old.eventfd.map(|e| (e.count, e.semaphore)),
        Some((u64::MAX, None))
    );
    Ok(())
}

#[test]
fn epoll_new_and_old() -> Result<(), ParseError> {
    let info = parse(
        HEAD,
        "tfd:        3 events:       19 data:                3  pos:0 ino:40e sdev:10\n\
         tfd:       17 events: 80000019 data: ffffffffffffffff\n",
    )?;
    let file = EpollFile {
        pos: 0,
        ino: 0x40e,
        sdev: 0x10,
    };
    let target = |fd, events, data, file| EpollTarget {
        fd,
        events,
        data,
        file,
    };
    assert_eq!(
        info.epoll,
        [
            target(3, 0x19, 3, Some(file)),
            target(17, 0x80000019, u64::MAX, None)
        ]
    );
    Ok(())
}

#[test]
fn timerfd() -> Result<(), ParseError> {
    let info = parse(
        HEAD,
        "clockid: 1\nticks: 2\nsettime flags: 03\nit_value: (99, 999957684)\n\
         it_interval: (1, 5)\n",
    )?;
    let timerfd = TimerfdInfo {
        clock_id: 1,
        ticks: 2,
        settime_flags: 3,
        value: (99, 999957684),
        interval: (1, 5),
    };
    assert_eq!(info.timerfd, Some(timerfd));
    Ok(())
}

#[test]
fn inotify_with_and_without_handle() -> Result<(), ParseError> {
    let info = parse(
        HEAD,
        "inotify wd:1 ino:3c4a7 sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8 \
         fhandle-type:1 f_handle:a7c4030000000000\n\
         inotify wd:a ino:1 sdev:1 mask:fff ignored_mask:0 \n",
    )?;
    let [first, second] = info.inotify.as_slice() else {
        panic!("two watches, not {}", info.inotify.len());
    };
    assert_eq!((first.wd, first.ino, first.sdev), (1, 0x3c4a7, 0xfe00000));
    let handle = Handle {
        handle_type: 1,
        bytes: vec![0xa7, 0xc4, 3, 0, 0, 0, 0, 0],
    };
    assert_eq!(first.handle, Some(handle));
    assert_eq!((second.wd, second.mask, &second.handle), (10, 0xfff, &None));
    Ok(())
}

#[test]
fn fanotify_marks() -> Result<(), ParseError> {
    let info = parse(
        HEAD,
        "fanotify flags:10 event-flags:8000\n\
         fanotify sdev:fe00000 mflags:0 mask:2 ignored_mask:0\n\
         fanotify mnt_id:1b mflags:40 mask:2 ignored_mask:1\n\
         fanotify mnt_ns:4026531832 mflags:0 mask:1000000 ignored_mask:0\n\
         fanotify ino:3c4a7 sdev:fe00000 mflags:0 mask:2 ignored_mask:0 fhandle-bytes:8 \
         fhandle-type:1 f_handle:a7c4030000000000\n",
    )?;
    let fanotify = info.fanotify.unwrap_or_default();
    assert_eq!((fanotify.flags, fanotify.event_flags), (0x10, 0x8000));
    let [fs, mount, ns, inode] = fanotify.marks.as_slice() else {
        panic!("four marks, not {}", fanotify.marks.len());
    };
    assert_eq!(fs.object, FanotifyObject::Filesystem(0xfe00000));
    assert_eq!(mount.object, FanotifyObject::Mount(27));
    assert_eq!((mount.mark_flags, mount.ignored_mask), (0x40, 1));
    assert_eq!(ns.object, FanotifyObject::MountNamespace(4026531832));
    let FanotifyObject::Inode { ino, handle, .. } = &inode.object else {
        panic!("the last mark sits on an inode: {inode:?}");
    };
    assert_eq!((*ino, handle.is_some()), (0x3c4a7, true));
    Ok(())
}

#[test]
fn the_small_kinds() -> Result<(), ParseError> {
    assert_eq!(
        parse(HEAD, "sigmask:\t0000000000004201\n")?.sigmask,
        Some(0x4201)
    );
    let pidfd = parse(HEAD, "Pid:\t5823\nNSpid:\t5823\t7\n")?.pidfd;
    assert_eq!(
        pidfd.map(|p| (p.pid, p.ns_pid)),
        Some((5823, vec![5823, 7]))
    );
    let dead = parse(HEAD, "Pid:\t-1\nNSpid:\t-1\n")?.pidfd;
    assert_eq!(dead.map(|p| p.pid), Some(-1));
    assert_eq!(parse(HEAD, "tty-index:\t4\n")?.tty_index, Some(4));
    assert_eq!(parse(HEAD, "scm_fds: 2\n")?.scm_fds, Some(2));
    assert_eq!(
        parse(HEAD, "iff:\ttun0\n")?.tun_iff.as_deref(),
        Some(&b"tun0"[..])
    );
    let uring = parse(HEAD, "SqMask:\t0x7\nPollList:\nNAPI:\tdisabled\n")?;
    assert_eq!(uring.other.len(), 3);
    Ok(())
}

#[test]
fn what_is_missing_or_broken_is_named() {
    for (tail, what) in [
        ("tfd: 3 events: 19\n", "data:"),
        ("tfd: 3 events: 19 data: 3 pos:0 ino:zz sdev:1\n", "ino:"),
        ("it_value: 99, 5)\n", "time"),
        ("inotify wd:1 ino:1 sdev:1 mask:2\n", "ignored_mask:"),
        (
            "inotify wd:1 ino:1 sdev:1 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a7\n",
            "f_handle:",
        ),
        ("fanotify x:1\n", "ino:"),
        ("eventfd-count: x\n", "eventfd-count"),
        ("lock:\t1: FLOCK\n", "lock mode"),
        ("Pid:\t\n", "Pid"),
    ] {
        let error = parse(HEAD, tail).err();
        assert_eq!(error.map(|e| (e.line, e.what)), Some((5, what)));
    }
    assert_eq!(parse_fdinfo(b"").err().map(|e| e.what), Some("pos"));
    assert_eq!(
        parse_fdinfo(b"pos:\t0\n").err().map(|e| e.what),
        Some("flags")
    );
    assert_eq!(
        parse("pos:\t0\nflags:\t08\n", "").err().map(|e| e.line),
        Some(2)
    );
}
