//! Golden plans of files: from images that CRIU wrote, the steps that files ask for, as text.
//! `UPDATE_PLANS=1` writes the texts anew; the difference is then for a person to judge.

use crate::plan::golden::{data, planned};
use std::fs;

/// Images whose entries ask for steps of these rooms.
const IMAGES: [&str; 10] = [
    "(files.img",
    "(fdinfo-",
    "(fs-",
    "(remap-fpath.img",
    "(pipes-data.img",
    "(fifo-data.img",
    "(sk-queues.img",
    "(filelocks.img",
    "(memfd.img",
    "(utsns-",
];

/// Compares the steps with the text of its file, line by line.
fn golden(set: &str) {
    let text = planned(set).unwrap_or_else(|refusals| panic!("{set}: {refusals:#?}"));
    let is_ours = |line: &&str| {
        let origin = line.rsplit_once("  # ").map(|(_, origin)| origin);
        line.starts_with("==")
            || IMAGES
                .iter()
                .any(|image| origin.is_some_and(|it| it.contains(image)))
    };
    let steps: Vec<&str> = text.lines().filter(is_ours).collect();
    let file = data().join("plans/files").join(format!("{set}.txt"));
    if std::env::var_os("UPDATE_PLANS").is_some() {
        fs::write(&file, steps.join("\n") + "\n").expect("writes the plan");
    }
    let golden =
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    for (at, (golden, now)) in golden.lines().zip(&steps).enumerate() {
        assert_eq!(golden, *now, "{set}: line {}", at + 1);
    }
    assert_eq!(
        golden.lines().count(),
        steps.len(),
        "{set}: number of lines"
    );
}

macro_rules! golden_plans {
    ($($name:ident: $set:literal,)*) => {
        $(#[test] fn $name() { golden($set); })*
    };
}

golden_plans! {
    regular_files: "files",
    fifos: "fifo",
    ghosts: "ghost",
    links: "link_remap",
    a_zombie_below_proc: "proc_zombie",
    memfds: "memfd",
    epoll: "epoll",
    timers: "timerfd",
    pidfds: "pidfd",
    stream_sockets: "unix_stream",
    descriptors_in_flight: "unix_scm",
    directories: "rootdir",
    locks: "locks",
    inotify: "inotify",
    descriptors_of_namespaces: "nsfd",
    fanotify: "fanotify",
    terminals: "pty",
    connections: "tcp_est",
    netlink_and_packet_sockets: "netlink",
}

#[test]
fn every_file_that_cannot_be_is_told() {
    let refusals = planned("tun").expect_err("a tun device");
    let told: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    let devices = told
        .iter()
        .filter(|why| why.contains("does not say what interface"));
    assert_eq!(devices.count(), 1, "{told:?}");
}
