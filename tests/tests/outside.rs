//! What a tree holds of the outside: pipes, sockets, files that the user names for the dump
//! (`--external`, `--ext-unix-sk`) or replaces at the restore (`--inherit-fd`); and how we tell
//! others of our run: action scripts, `--status-fd`.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    guest::Guest,
    sandbox::Sandbox,
    sandbox_test,
    tools::{Outcome, text},
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::stat::fstat;
use std::{
    fs::{self, File},
    io::{Read, Write, pipe},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::{UnixDatagram, UnixStream},
        },
    },
    path::Path,
    process::{Command, Stdio},
};

/// crust-restore, detached, with this standard input.
fn restore(
    sandbox: &Sandbox,
    images: &Path,
    stdin: impl Into<Stdio>,
    options: &[&str],
) -> Result<Outcome> {
    let mut command = Command::new(sandbox.binary("crust-restore"));
    command.args(["-d", "-v4", "-o", "restore.log", "-D", text(images)?]);
    command.args(options);
    let mut outcome = sandbox.run_with(command, stdin.into())?;
    outcome.log = fs::read_to_string(images.join("restore.log")).unwrap_or_default();
    Ok(outcome)
}

fn inode(fd: impl AsFd) -> Result<u64> {
    Ok(fstat(fd).context("fstat")?.st_ino)
}

fn a_pipe(sandbox: &Sandbox) -> Result<()> {
    let (reader, writer) = pipe()?;
    let key = format!("pipe:[{}]", inode(&reader)?);
    let guest = sandbox.start_reading("outside", reader, &["read"])?;
    let images = sandbox.images("outside")?;
    sandbox.dump_and_kill(&guest, &images, &[])?;
    drop(writer);
    let (reader, mut writer) = pipe()?;
    let inherit = format!("fd[0]:{key}");
    restore(sandbox, &images, reader, &["--inherit-fd", &inherit])?.succeeded()?;
    writer.write_all(b"hello")?;
    guest.expect_ok(sandbox)
}

fn a_stream(sandbox: &Sandbox) -> Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let own = inode(&theirs)?;
    let guest = sandbox.start_reading("outside", OwnedFd::from(theirs), &["reply"])?;
    let images = sandbox.images("outside")?;
    let refused = sandbox.dump(guest.pid, &images, &[])?.exited_with(1)?;
    refused.says(&["outside the tree", "--ext-unix-sk"])?;
    let external = format!("unix[{}]", inode(&ours)?);
    sandbox.dump_and_kill(&guest, &images, &["--external", &external])?;
    drop(ours);
    let key = format!("socket:[{own}]");
    let refused = sandbox.restore(&images, &[])?.exited_with(1)?;
    refused.says(&["--inherit-fd", &key])?;
    let (mut ours, theirs) = UnixStream::pair()?;
    let theirs: OwnedFd = theirs.into();
    let inherit = format!("fd[0]:{key}");
    restore(sandbox, &images, theirs, &["--inherit-fd", &inherit])?.succeeded()?;
    ours.write_all(b"hello")?;
    guest.expect_ok(sandbox)?;
    let mut reply = String::new();
    ours.read_to_string(&mut reply)?;
    ensure!(reply == "reply", "{reply}");
    Ok(())
}

fn a_datagram_socket(sandbox: &Sandbox) -> Result<()> {
    let dir = sandbox.dir("datagrams")?;
    let path = dir.join("log");
    let receiver = UnixDatagram::bind(&path)?;
    // Ours alone, or the guest would have the receiver in its tree.
    fcntl(&receiver, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let null = File::open("/dev/null")?;
    let guest = sandbox.start_reading("outside", null, &["nothing", text(&path)?])?;
    let images = sandbox.images("outside")?;
    let refused = sandbox.dump(guest.pid, &images, &[])?.exited_with(1)?;
    refused.says(&["--ext-unix-sk"])?;
    sandbox.dump_and_kill(&guest, &images, &["--ext-unix-sk"])?;
    let refused = sandbox.restore(&images, &[])?.exited_with(1)?;
    refused.says(&["--ext-unix-sk"])?;
    sandbox.restore(&images, &["-x"])?.succeeded()?;
    guest.expect_ok(sandbox)?;
    let mut room = [0; 16];
    let len = receiver.recv(&mut room)?;
    ensure!(&room[..len] == b"datagram", "{len} bytes");
    Ok(())
}

/// The mount of a descriptor of our own, as mountinfo numbers it.
fn mount_of(file: &File) -> Result<u32> {
    use std::os::fd::AsRawFd;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let line = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    Ok(line.context("fdinfo has no mnt_id")?.trim().parse()?)
}

fn a_file(sandbox: &Sandbox) -> Result<()> {
    let dir = sandbox.dir("files")?;
    let (old, new) = (dir.join("old"), dir.join("new"));
    fs::write(&old, "not me")?;
    fs::write(&new, "hello")?;
    let file = File::open(&old)?;
    let key = format!("file[{:x}:{:x}]", mount_of(&file)?, file.metadata()?.ino());
    let guest = sandbox.start_reading("outside", file, &["read"])?;
    let images = sandbox.images("outside")?;
    sandbox.dump_and_kill(&guest, &images, &["--external", &key])?;
    fs::remove_file(&old)?;
    let refused = sandbox.restore(&images, &[])?.exited_with(1)?;
    refused.says(&["--inherit-fd", &key])?;
    let inherit = format!("fd[0]:{key}");
    let missing = restore(
        sandbox,
        &images,
        Stdio::null(),
        &["--inherit-fd", "fd[977]:x"],
    )?;
    missing.exited_with(1)?;
    comes_back_with(sandbox, &guest, &images, &new, &inherit)
}

/// The guest comes back with `new` in the place that `inherit` names, and finds what it expects.
fn comes_back_with(
    sandbox: &Sandbox,
    guest: &Guest,
    images: &Path,
    new: &Path,
    inherit: &str,
) -> Result<()> {
    let new = File::open(new)?;
    restore(sandbox, images, new, &["--inherit-fd", inherit])?.succeeded()?;
    guest.expect_ok(sandbox)
}

/// A file of the dump is replaced by its path.
fn a_path(sandbox: &Sandbox) -> Result<()> {
    let dir = sandbox.dir("files")?;
    let (old, new) = (dir.join("old"), dir.join("new"));
    fs::write(&old, "not me")?;
    fs::write(&new, "hello")?;
    let guest = sandbox.start_reading("outside", File::open(&old)?, &["read"])?;
    let images = sandbox.images("outside")?;
    sandbox.dump_and_kill(&guest, &images, &[])?;
    let inherit = format!("fd[0]:{}", text(&old)?.trim_start_matches('/'));
    comes_back_with(sandbox, &guest, &images, &new, &inherit)
}

/// Every script sees its stage, where the images are, and the root once there is one; one that
/// fails fails the run, and nothing is left.
fn action_scripts(sandbox: &Sandbox) -> Result<()> {
    let dir = sandbox.dir("scripts")?;
    let script = dir.join("script");
    let seen = dir.join("seen");
    fs::write(
        &script,
        format!(
            "#!/bin/sh\necho $CRTOOLS_SCRIPT_ACTION ${{CRTOOLS_INIT_PID:-none}} >> {seen}\n\
             test -d \"$CRTOOLS_IMAGE_DIR\" && test ! -e {dir}/fail-$CRTOOLS_SCRIPT_ACTION\n",
            seen = text(&seen)?,
            dir = text(&dir)?,
        ),
    )?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let option = ["--action-script", text(&script)?];
    let guest = sandbox.start("loop")?;
    let pid = guest.pid;
    let images = sandbox.images("scripts")?;
    let expect_seen = |stages: &[&str]| -> Result<()> {
        let told = fs::read_to_string(&seen)?;
        let lines: Vec<&str> = told.lines().collect();
        ensure!(lines == stages, "scripts saw {lines:?}, not {stages:?}");
        Ok(fs::remove_file(&seen)?)
    };
    let with_pid = |stage: &str| format!("{stage} {pid}");
    fs::write(dir.join("fail-post-dump"), "")?;
    sandbox
        .dump(pid, &images, &option)?
        .exited_with(1)?
        .says(&["post-dump", "failed"])?;
    ensure!(
        !images.join("inventory.img").exists(),
        "a failed dump has an inventory"
    );
    fs::remove_file(dir.join("fail-post-dump"))?;
    fs::remove_file(&seen)?;
    sandbox.dump_and_kill(&guest, &images, &option)?;
    expect_seen(&[&with_pid("pre-dump"), &with_pid("post-dump")])?;
    for stage in [
        "pre-restore",
        "post-restore",
        "network-unlock",
        "pre-resume",
    ] {
        fs::write(dir.join(format!("fail-{stage}")), "")?;
        sandbox
            .restore(&images, &option)?
            .exited_with(1)?
            .says(&[stage, "failed"])?;
        sandbox.assert_only(&[])?;
        fs::remove_file(dir.join(format!("fail-{stage}")))?;
    }
    fs::remove_file(&seen)?;
    sandbox.restore(&images, &option)?.succeeded()?;
    expect_seen(&[
        "pre-restore none",
        &with_pid("post-restore"),
        &with_pid("network-unlock"),
        &with_pid("pre-resume"),
        &with_pid("post-resume"),
    ])?;
    guest.expect_ok(sandbox)
}

/// Both tools write one zero byte when their work begins.
fn status_fd(sandbox: &Sandbox) -> Result<()> {
    let guest = sandbox.start("loop")?;
    let images = sandbox.images("status")?;
    let told = |name: &str, arguments: &[&str]| -> Result<()> {
        let (mut reader, writer) = pipe()?;
        let mut command = Command::new(sandbox.binary(name));
        command
            .args(["-D", text(&images)?, "--status-fd", "0"])
            .args(arguments);
        // The pipe's writing end as standard input: --status-fd takes any descriptor.
        sandbox.run_with(command, writer.into())?.succeeded()?;
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        ensure!(bytes == [0], "{name} wrote {bytes:?}");
        Ok(())
    };
    let pid = guest.pid.to_string();
    told("crust-dump", &["-t", &pid])?;
    sandbox.reap(&[guest.pid])?;
    told("crust-restore", &["-d"])?;
    guest.expect_ok(sandbox)
}

sandbox_test! {
    fn pipe_from_outside(sandbox) { a_pipe(sandbox) }
    fn stream_from_outside(sandbox) { a_stream(sandbox) }
    fn datagrams_to_outside(sandbox) { a_datagram_socket(sandbox) }
    fn file_from_outside(sandbox) { a_file(sandbox) }
    fn path_replaced(sandbox) { a_path(sandbox) }
    fn scripts(sandbox) { action_scripts(sandbox) }
    fn status(sandbox) { status_fd(sandbox) }
}
