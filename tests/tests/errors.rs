//! Bad input: each is refused with a message that names what is wrong, a failed dump leaves the
//! tree running as it was, a failed restore leaves no task.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    guest::Guest,
    proc_snapshot::Snapshot,
    sandbox::Sandbox,
    sandbox_test,
    tools::{Outcome, text},
};
use nix::mount::{MsFlags, mount};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

/// A dump that must fail: the guest must not notice. Gives what the dump said.
fn refused_dump(
    sandbox: &Sandbox,
    guest: &Guest,
    pid: i32,
    images: &Path,
    options: &[&str],
) -> Result<Outcome> {
    let before = Snapshot::of_tree(guest.pid)?;
    let outcome = sandbox.dump(pid, images, options)?.exited_with(1)?;
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    guest.expect_ok(sandbox)?;
    Ok(outcome)
}

/// A small tmpfs of its own.
fn mounted(sandbox: &Sandbox, name: &str, flags: MsFlags, data: &str) -> Result<PathBuf> {
    let dir = sandbox.dir(name)?;
    mount(Some("tmpfs"), &dir, Some("tmpfs"), flags, Some(data))
        .with_context(|| format!("mount a tmpfs on {}", dir.display()))?;
    Ok(dir)
}

/// A dumped and dead guest, to be restored from images that are then damaged.
fn dumped(sandbox: &Sandbox, name: &str) -> Result<(Guest, PathBuf)> {
    let guest = sandbox.start(name)?;
    let images = sandbox.images("damaged")?;
    sandbox.dump_and_kill(&guest, &images, &[])?;
    Ok((guest, images))
}

fn refused_restore(sandbox: &Sandbox, images: &Path, words: &[&str]) -> Result<()> {
    let outcome = sandbox.restore(images, &[])?.exited_with(1)?;
    outcome.says(words)?;
    ensure!(
        outcome.last_line().len() > 20,
        "no sentence for the user\n{}",
        outcome.report()
    );
    sandbox.assert_only(&[]).with_context(|| outcome.report())
}

/// Restores once per image with that image changed, then once more with all of them good.
fn each_image_damaged(sandbox: &Sandbox, damage: impl Fn(&[u8]) -> Vec<u8>) -> Result<()> {
    let (guest, images) = dumped(sandbox, "files")?;
    let mut names = Vec::new();
    for entry in fs::read_dir(&images)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    names.retain(|name| name.ends_with(".img"));
    ensure!(names.len() > 8, "the dump has only {names:?}");
    for name in &names {
        let path = images.join(name);
        let good = fs::read(&path)?;
        fs::write(&path, damage(&good))?;
        // Images that no restore needs may be damaged without harm.
        if name.starts_with("timens-0") || name.starts_with("cgroup") {
            fs::write(&path, good)?;
            continue;
        }
        refused_restore(sandbox, &images, &[name])
            .with_context(|| format!("restore with {name} damaged"))?;
        fs::write(&path, good)?;
    }
    sandbox.restore(&images, &[])?.succeeded()?;
    guest.expect_ok(sandbox)
}

sandbox_test! {
    fn dump_of_a_pid_that_does_not_exist(sandbox) {
        let outcome = sandbox.dump(4_000_000, &sandbox.images("none")?, &[])?.exited_with(1)?;
        outcome.says(&["4000000", "No such process"])
    }

    fn dump_of_ourselves(sandbox) {
        let images = sandbox.images("self")?;
        let script = format!("exec \"$0\" -t $$ -D {}", text(&images)?);
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).arg(sandbox.binary("crust-dump"));
        sandbox.run_command(shell, None)?.exited_with(1)?.says(&["itself"])
    }

    /// The sandbox's init is an ancestor of the dumper: its tree holds the dumper.
    fn dump_of_our_own_ancestor(sandbox) {
        let outcome = sandbox.dump(1, &sandbox.images("ancestor")?, &[])?.exited_with(1)?;
        outcome.says(&["crust-dump"])
    }

    fn dump_of_a_zombie(sandbox) {
        let mut child = Command::new("true").spawn().context("start true")?;
        let pid = i32::try_from(child.id())?;
        let id = nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(pid));
        use nix::sys::wait::WaitPidFlag;
        nix::sys::wait::waitid(id, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
        let outcome = sandbox.dump(pid, &sandbox.images("zombie")?, &[])?.exited_with(1)?;
        child.wait()?;
        outcome.says(&[&pid.to_string(), "zombie"])
    }

    fn dump_of_a_task_traced_by_another(sandbox) {
        let guest = sandbox.start("traced")?;
        let line = guest.lines()?.into_iter().find(|line| line.starts_with("traced "));
        let traced: i32 = line.context("no pid")?.trim_start_matches("traced ").parse()?;
        let images = sandbox.images("traced")?;
        let tracer = guest.pid.to_string();
        let alone = sandbox.dump(traced, &images, &[])?.exited_with(1)?;
        alone.says(&[&traced.to_string(), "traced", &tracer])?;
        let whole = refused_dump(sandbox, &guest, guest.pid, &images, &[])?;
        whole.says(&[&traced.to_string(), "traced"])
    }

    fn images_directory_missing(sandbox) {
        let guest = sandbox.start("loop")?;
        let images = sandbox.dir("parent")?.join("missing");
        refused_dump(sandbox, &guest, guest.pid, &images, &[])?
            .says(&["missing", "No such file or directory"])?;
        sandbox.restore(&images, &[])?.exited_with(1)?.says(&["missing", "No such file"])
    }

    fn images_directory_read_only(sandbox) {
        let guest = sandbox.start("loop")?;
        let images = mounted(sandbox, "read-only", MsFlags::MS_RDONLY, "size=1m")?;
        refused_dump(sandbox, &guest, guest.pid, &images, &[])?
            .says(&["Read-only file system"])
    }

    fn images_directory_full(sandbox) {
        let guest = sandbox.start("mem_private")?;
        let images = mounted(sandbox, "full", MsFlags::empty(), "size=64k")?;
        refused_dump(sandbox, &guest, guest.pid, &images, &[])?
            .says(&["No space left on device"])?;
        // The inventory comes last, so what is there is no dump.
        ensure!(!images.join("inventory.img").exists(), "a failed dump left an inventory");
        sandbox.restore(&images, &[])?.exited_with(1)?.says(&["inventory"])
    }

    fn images_directory_full_while_the_tree_is_to_be_killed(sandbox) {
        let guest = sandbox.start("tree")?;
        let images = mounted(sandbox, "full", MsFlags::empty(), "size=64k")?;
        refused_dump(sandbox, &guest, guest.pid, &images, &[])?;
        sandbox.assert_only(&[])
    }

    /// What an older dump left in the directory is not mixed into the new one.
    fn images_directory_with_an_older_dump(sandbox) {
        let images = sandbox.images("used")?;
        let older = sandbox.start("tree")?;
        sandbox.dump(older.pid, &images, &["--leave-running"])?.succeeded()?;
        older.expect_ok(sandbox)?;
        let guest = sandbox.start("loop")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        let cores: Vec<_> = fs::read_dir(&images)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("core-"))
            .collect();
        ensure!(cores == [format!("core-{}.img", guest.pid)], "cores of two dumps: {cores:?}");
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    fn truncated_images(sandbox) {
        each_image_damaged(sandbox, |good| {
            good.get(..good.len() - 1).unwrap_or_default().to_vec()
        })
    }

    fn images_of_the_wrong_kind(sandbox) {
        // A pages file is raw: it has no head to be wrong, so it loses its second half here.
        each_image_damaged(sandbox, |good| match good.get(..4) {
            Some([0x19, 0x43, 0x56, 0x54]) => {
                let mut bad = good.to_vec();
                bad.splice(4..8, *b"nope");
                bad
            }
            _ => good.get(..good.len() / 2).unwrap_or_default().to_vec(),
        })
    }

    fn images_missing(sandbox) {
        let (guest, images) = dumped(sandbox, "loop")?;
        let pid = guest.pid;
        for name in [format!("core-{pid}.img"), format!("mm-{pid}.img"), "files.img".to_owned(),
            "pages-1.img".to_owned(), format!("ids-{pid}.img"), "pstree.img".to_owned(),
            "inventory.img".to_owned()]
        {
            let (path, aside) = (images.join(&name), images.join("aside"));
            fs::rename(&path, &aside).with_context(|| format!("the dump has no {name}"))?;
            refused_restore(sandbox, &images, &[&name])
                .with_context(|| format!("restore without {name}"))?;
            fs::rename(&aside, &path)?;
        }
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    fn pid_busy_at_restore(sandbox) {
        let guest = sandbox.start("loop")?;
        let images = sandbox.images("busy")?;
        sandbox.dump(guest.pid, &images, &["--leave-running"])?.succeeded()?;
        let outcome = sandbox.restore(&images, &[])?.exited_with(1)?;
        // The pid and the name of its holder.
        outcome.says(&[&guest.pid.to_string(), "loop"])?;
        sandbox.assert_only(&[guest.pid])?;
        guest.expect_ok(sandbox)
    }

    fn executable_of_another_size(sandbox) {
        let (_, images) = dumped(sandbox, "loop")?;
        let program = sandbox.install_guest("loop")?;
        let size = fs::metadata(&program)?.len();
        OpenOptions::new().write(true).open(&program)?.set_len(size + 1)?;
        refused_restore(sandbox, &images, &["bin/loop", "size", &size.to_string()])
    }

    fn executable_of_another_build_id(sandbox) {
        let program = sandbox.install_guest("loop")?;
        let (offset, byte) = build_id_byte(&program)?;
        let (_, images) = dumped(sandbox, "loop")?;
        let file = OpenOptions::new().write(true).open(&program)?;
        file.write_all_at(&[!byte], offset)?;
        refused_restore(sandbox, &images, &["bin/loop", "build-id"])
    }

    fn file_gone_since(sandbox) {
        let (_, images) = dumped(sandbox, "files")?;
        fs::remove_file("/tmp/crust-golden/files/append")?;
        refused_restore(sandbox, &images, &["/tmp/crust-golden/files/append", "No such file"])
    }

    /// Every descriptor that cannot be carried is in one list.
    fn unsupported_descriptors_are_listed_together(sandbox) {
        let guest = sandbox.start("unsupported")?;
        let mut wanted = vec![guest.pid.to_string()];
        for line in guest.lines()? {
            let (what, fd) = line.split_once(' ').unwrap_or_default();
            // A kernel without one of them gave no descriptor.
            if fd.parse::<i32>().is_ok_and(|fd| fd >= 0) {
                wanted.extend([what.to_owned(), fd.to_owned()]);
            }
        }
        ensure!(wanted.len() >= 5, "this kernel has fewer than two of them: {wanted:?}");
        let images = sandbox.images("unsupported")?;
        let outcome = refused_dump(sandbox, &guest, guest.pid, &images, &[])?;
        let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
        outcome.says(&wanted)?;
        ensure!(!images.join("pages-1.img").exists(), "pages were written before the refusal");
        Ok(())
    }

    /// Each ring with its own reason.
    fn rings_that_are_not_idle_are_refused(sandbox) {
        let guest = sandbox.start("uring_busy")?;
        let lines = guest.lines()?;
        let wanted: Vec<String> = lines
            .iter()
            .filter_map(|line| {
                let (fd, why) = line.split_once(' ')?;
                fd.parse::<i32>().ok()?;
                Some(format!("fd {fd} (anon_inode:[io_uring]): is an io_uring; {why}"))
            })
            .collect();
        ensure!(wanted.len() == 5, "{lines:?}");
        let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
        let images = sandbox.images("rings")?;
        refused_dump(sandbox, &guest, guest.pid, &images, &[])?.says(&wanted)
    }

    fn options_unknown_are_usage_errors(sandbox) {
        for tool in ["crust-dump", "crust-restore"] {
            let outcome = sandbox.run(tool, &["--no-such-option"], None)?.exited_with(2)?;
            outcome.says(&["--no-such-option"])?;
        }
        sandbox.run("crust-dump", &["-D", "/tmp"], None)?.exited_with(2)?.says(&["--tree"])
    }

    /// Known but not built: named and refused, before anything is touched.
    fn options_not_built_are_refused_by_name(sandbox) {
        let guest = sandbox.start("loop")?;
        let images = sandbox.images("option")?;
        let outcome = sandbox.dump(guest.pid, &images, &["--lazy-pages"])?;
        ensure!(!outcome.status.success(), "{}", outcome.report());
        outcome.says(&["--lazy-pages"])?;
        guest.expect_ok(sandbox)
    }

    fn log_and_statistics_are_written(sandbox) {
        let guest = sandbox.start("loop")?;
        let images = sandbox.images("statistics")?;
        let outcome = sandbox.dump(guest.pid, &images, &[])?.succeeded()?;
        sandbox.reap(&[guest.pid])?;
        for line in outcome.log.lines() {
            ensure!(is_log_line(line), "not a line of the log format: {line:?}");
        }
        let stats = images.join("stats-dump");
        let json = sandbox.run("crit", &["decode", "-i", text(&stats)?], None)?.succeeded()?;
        let json: serde_json::Value = serde_json::from_slice(&json.stdout)?;
        let count = |name: &str| {
            json.pointer(&format!("/entries/0/dump/{name}")).and_then(serde_json::Value::as_u64)
        };
        let written = count("pages_written").context("stats-dump has no pages_written")?
            + count("shpages_written").unwrap_or_default();
        let mut bytes = 0;
        for entry in fs::read_dir(&images)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("pages-") {
                bytes += entry.metadata()?.len();
            }
        }
        ensure!(written * 4096 == bytes, "{written} pages were written, but {bytes} bytes");
        sandbox.restore(&images, &[])?.succeeded()?;
        ensure!(images.join("stats-restore").exists(), "no stats-restore");
        guest.expect_ok(sandbox)
    }
}

/// `(SS.UUUUUU) message`
fn is_log_line(line: &str) -> bool {
    let Some((time, _)) = line
        .strip_prefix('(')
        .and_then(|rest| rest.split_once(") "))
    else {
        return false;
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    time.trim_start()
        .split_once('.')
        .is_some_and(|(seconds, micros)| digits(seconds) && digits(micros) && micros.len() == 6)
}

/// Where the build id of an ELF file is (found by its note, type 3 of "GNU") with its first byte.
fn build_id_byte(program: &Path) -> Result<(u64, u8)> {
    let mut image = Vec::new();
    std::io::Read::read_to_end(&mut File::open(program)?, &mut image)?;
    let note = [&20u32.to_le_bytes()[..], &3u32.to_le_bytes(), b"GNU\0"].concat();
    let at = image.windows(note.len()).position(|window| window == note);
    let at = at.context("the guest was linked without a build id")? + note.len();
    Ok((
        u64::try_from(at)?,
        *image.get(at).context("the note ends early")?,
    ))
}

/// A kernel thread is visible from the first pid namespace only, so this runs outside a sandbox,
/// where a dump can only be refused.
#[test]
fn dump_of_a_kernel_thread() -> Result<()> {
    if let Some(reason) = crust_tests::sandbox::missing_privilege() {
        eprintln!("SKIPPED dump_of_a_kernel_thread: {reason}");
        return Ok(());
    }
    if fs::read_to_string("/proc/2/comm")
        .unwrap_or_default()
        .trim()
        != "kthreadd"
    {
        eprintln!("SKIPPED dump_of_a_kernel_thread: pid 2 is not kthreadd in this pid namespace");
        return Ok(());
    }
    let images = crust_tests::build::products_dir()?.join("kernel-thread");
    fs::create_dir_all(&images)?;
    let output = Command::new(crust_tests::build::binaries()?.join("crust-dump"))
        .args(["-t", "2", "-D", text(&images)?])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    ensure!(
        said.contains("kernel thread") && said.contains('2'),
        "{said}"
    );
    Ok(())
}
