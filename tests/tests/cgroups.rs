//! Cgroups end to end, in hierarchies of v1 and v2 as this machine has them mounted: membership,
//! properties, directories, by every mode of --manage-cgroups, and --cgroup-root.
//!
//! Cgroups are the machine's, not the sandbox's: each test has directories of its own and takes
//! them away again.

use anyhow::{Context, Result, ensure};
use crust_tests::{guest::Guest, proc_snapshot::tree, sandbox::Sandbox, sandbox_test, tools::text};
use nix::sys::signal::Signal;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

/// What the property had when the guest was dumped, and what it is changed to.
const DUMPED: &str = "77";
const CHANGED: &str = "55";

/// A hierarchy in which tests may make cgroups.
struct Hierarchy {
    mountpoint: PathBuf,
    /// A property that any number can be written to, of any directory but the topmost.
    property: &'static str,
}

impl Hierarchy {
    /// What --cgroup-root takes; v2 has no controller's name.
    fn moved_to(&self, name: &str) -> String {
        let controller = match self.property {
            "pids.max" => "pids",
            _ => "",
        };
        format!("{controller}:/{name}-moved")
    }
}

/// The directory of one test in each hierarchy; gone when dropped.
struct Groups {
    hierarchies: Vec<Hierarchy>,
    name: String,
}

impl Groups {
    /// None, with a note, where there are no cgroups that we may make.
    fn new() -> Result<Option<Groups>> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mut hierarchies = Vec::new();
        for line in mounts.lines() {
            let (front, back) = line.split_once(" - ").context("a line without a type")?;
            let mountpoint = front.split(' ').nth(4).context("no mount point")?.into();
            let options = back.rsplit(' ').next().unwrap_or_default();
            let property = match back.split(' ').next() {
                Some("cgroup") if options.split(',').any(|option| option == "pids") => "pids.max",
                Some("cgroup2") => "cgroup.max.descendants",
                _ => continue,
            };
            let whole = front.split(' ').nth(3) == Some("/");
            if whole {
                hierarchies.push(Hierarchy {
                    mountpoint,
                    property,
                });
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let groups = Groups {
            hierarchies,
            name: format!("crust-test-{now}"),
        };
        if let Err(error) = groups.make() {
            println!("SKIPPED: cannot make a cgroup: {error:#}");
            return Ok(None);
        }
        if groups.hierarchies.is_empty() {
            println!("SKIPPED: no hierarchy of cgroups is mounted as a whole");
            return Ok(None);
        }
        Ok(Some(groups))
    }

    fn dirs<'a>(&'a self, below: &'a str) -> impl Iterator<Item = (PathBuf, &'static str)> + 'a {
        self.hierarchies.iter().map(move |hierarchy| {
            let dir = hierarchy.mountpoint.join(format!("{}{below}", self.name));
            (dir, hierarchy.property)
        })
    }

    fn make(&self) -> Result<()> {
        for (dir, _) in self.dirs("") {
            fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        }
        Ok(())
    }

    fn set(&self, value: &str) -> Result<()> {
        for (dir, property) in self.dirs("") {
            fs::write(dir.join(property), value)?;
        }
        Ok(())
    }

    fn enter(&self, pid: i32, below: &str) -> Result<()> {
        for (dir, _) in self.dirs(below) {
            fs::create_dir_all(&dir)?;
            fs::write(dir.join("cgroup.procs"), pid.to_string())
                .with_context(|| format!("put {pid} into {}", dir.display()))?;
        }
        Ok(())
    }

    fn remove(&self) {
        for below in ["/sub", "", "-moved/sub", "-moved"] {
            for (dir, _) in self.dirs(below) {
                // It may not be there, or still hold a task that is on its way out.
                let _ = fs::remove_dir(dir);
            }
        }
    }

    fn exist(&self, below: &str) -> bool {
        self.dirs(below).any(|(dir, _)| dir.exists())
    }

    /// The guest is in these directories, and the property has this value.
    fn expect(&self, pid: i32, below: &str, value: &str) -> Result<()> {
        let member = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let path = format!(":/{}{below}", self.name);
        let found = member.lines().filter(|line| line.ends_with(&path)).count();
        ensure!(
            found == self.hierarchies.len(),
            "task {pid} is not in {path}:\n{member}"
        );
        for (dir, property) in self.dirs(below) {
            let is = fs::read_to_string(dir.join(property))?;
            ensure!(
                is.trim() == value,
                "{} is {is}, not {value}",
                dir.join(property).display()
            );
        }
        Ok(())
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A guest dumped in cgroups of its own, which are gone then.
fn dumped(sandbox: &Sandbox, groups: &Groups, options: &[&str]) -> Result<(Guest, PathBuf)> {
    let guest = sandbox.start("loop")?;
    groups.set(DUMPED)?;
    groups.enter(guest.pid, "")?;
    let images = sandbox.images("cgroups")?;
    sandbox.dump_and_kill(&guest, &images, options)?;
    groups.remove();
    ensure!(!groups.exist(""), "the cgroups are still in use");
    Ok((guest, images))
}

/// A cgroup that can be frozen; gone when dropped.
struct Freezer {
    dir: PathBuf,
    file: &'static str,
    /// Frozen and thawed.
    words: [&'static str; 2],
}

/// One of v1 and one of v2, as far as there are.
fn freezers() -> Result<Vec<Freezer>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let mut freezers = Vec::new();
    for line in mounts.lines() {
        let (front, back) = line.split_once(" - ").context("a line without a type")?;
        let mountpoint = Path::new(front.split(' ').nth(4).context("no mount point")?);
        let options = back.rsplit(' ').next().unwrap_or_default();
        let is_v1 = options.split(',').any(|option| option == "freezer");
        let (file, words) = match back.split(' ').next() {
            Some("cgroup") if is_v1 => ("freezer.state", ["FROZEN", "THAWED"]),
            Some("cgroup2") => ("cgroup.freeze", ["1", "0"]),
            _ => continue,
        };
        let dir = mountpoint.join(format!("crust-test-frozen-{now}"));
        match fs::create_dir(&dir) {
            Ok(()) => freezers.push(Freezer { dir, file, words }),
            Err(error) => println!("SKIPPED {}: {error}", dir.display()),
        }
    }
    Ok(freezers)
}

impl Freezer {
    fn set(&self, frozen: bool) -> Result<()> {
        let [on, off] = self.words;
        Ok(fs::write(
            self.dir.join(self.file),
            if frozen { on } else { off },
        )?)
    }

    fn is_frozen(&self) -> Result<bool> {
        let word = fs::read_to_string(self.dir.join(self.file))?;
        Ok(word.trim() != self.words[1])
    }

    /// Nobody is left in it.
    fn empty(&self) -> Result<()> {
        let left = fs::read_to_string(self.dir.join("cgroup.procs"))?;
        ensure!(
            left.is_empty(),
            "tasks are left in {}: {left}",
            self.dir.display()
        );
        Ok(())
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = self.set(false);
        let _ = fs::remove_dir(&self.dir);
    }
}

fn last_thread(pid: i32) -> Result<i32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"))?;
    let tids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    tids.max().context("no thread")
}

fn end(sandbox: &Sandbox, guest: &Guest) -> Result<()> {
    let pids = tree(guest.pid)?;
    guest.signal(Signal::SIGKILL)?;
    sandbox.reap(&pids)
}

/// What a restore in a mode is to do where the directories are missing, and where they are there
/// with another value: the value the property has then, or a refusal.
fn mode(sandbox: &Sandbox, mode: &str, missing: Option<&str>, present: Option<&str>) -> Result<()> {
    let Some(groups) = Groups::new()? else {
        return Ok(());
    };
    let (guest, images) = dumped(sandbox, &groups, &[])?;
    let option = format!("--manage-cgroups={mode}");
    for (is_there, expected) in [(false, missing), (true, present)] {
        if is_there {
            groups.make()?;
            groups.set(CHANGED)?;
        }
        let outcome = sandbox.restore(&images, &[&option])?;
        match expected {
            Some(value) => {
                outcome.succeeded()?;
                groups.expect(guest.pid, "", value)?;
                end(sandbox, &guest)?;
            }
            None => {
                outcome
                    .exited_with(1)?
                    .says(&[&groups.name, "--manage-cgroups"])?;
                sandbox.assert_only(&[])?;
                ensure!(
                    groups.exist("") == is_there,
                    "a refused restore made or removed cgroups"
                );
            }
        }
        groups.remove();
    }
    Ok(())
}

sandbox_test! {
    fn none(sandbox) { mode(sandbox, "none", None, Some(CHANGED)) }
    fn props(sandbox) { mode(sandbox, "props", None, Some(DUMPED)) }
    fn soft(sandbox) { mode(sandbox, "soft", Some(DUMPED), Some(CHANGED)) }
    fn full(sandbox) { mode(sandbox, "full", Some(DUMPED), Some(DUMPED)) }
    fn strict(sandbox) { mode(sandbox, "strict", Some(DUMPED), None) }

    /// Ignored by the restore: the tasks are where crust-restore is.
    fn ignore(sandbox) {
        let Some(groups) = Groups::new()? else {
            return Ok(());
        };
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let (guest, images) = dumped(sandbox, &groups, &[])?;
        sandbox.restore(&images, &["--manage-cgroups=ignore"])?.succeeded()?;
        ensure!(fs::read_to_string(format!("/proc/{}/cgroup", guest.pid))? == own);
        ensure!(!groups.exist(""), "cgroups were made");
        guest.expect_ok(sandbox)
    }

    /// Ignored by the dump: nothing is known of them.
    fn ignored_by_the_dump(sandbox) {
        let Some(groups) = Groups::new()? else {
            return Ok(());
        };
        let (guest, images) = dumped(sandbox, &groups, &["--manage-cgroups=ignore"])?;
        ensure!(!images.join("cgroup.img").exists(), "there is a cgroup.img");
        sandbox.restore(&images, &[])?.succeeded()?;
        ensure!(!groups.exist(""), "cgroups were made");
        guest.expect_ok(sandbox)
    }

    /// A child of the root in a cgroup below the root's, and all of it somewhere else.
    fn cgroup_root(sandbox) {
        let Some(groups) = Groups::new()? else {
            return Ok(());
        };
        let guest = sandbox.start("attrs")?;
        let child = *tree(guest.pid)?.last().context("no child")?;
        groups.set(DUMPED)?;
        groups.enter(guest.pid, "")?;
        groups.enter(child, "/sub")?;
        let images = sandbox.images("root")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        groups.remove();
        sandbox.restore(&images, &[])?.succeeded()?;
        groups.expect(guest.pid, "", DUMPED)?;
        groups.expect(child, "/sub", "max")?;
        end(sandbox, &guest)?;
        groups.remove();
        let mut options = Vec::new();
        for hierarchy in &groups.hierarchies {
            let option = ["--cgroup-root".to_owned(), hierarchy.moved_to(&groups.name)];
            options.extend(option);
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        sandbox.restore(&images, &options)?.succeeded()?;
        groups.expect(guest.pid, "-moved", DUMPED)?;
        groups.expect(child, "-moved/sub", "max")?;
        ensure!(!groups.exist(""), "the old cgroups were made too");
        guest.expect_ok(sandbox)
    }

    /// A thread in a cgroup below that of its task: v1 lets it, v2 in threaded cgroups.
    fn a_thread_in_another_cgroup(sandbox) {
        let Some(groups) = Groups::new()? else {
            return Ok(());
        };
        let guest = sandbox.start("threads")?;
        groups.set(DUMPED)?;
        groups.enter(guest.pid, "")?;
        let tid = last_thread(guest.pid)?;
        for (dir, property) in groups.dirs("/sub") {
            fs::create_dir(&dir)?;
            let is_v1 = property == "pids.max";
            if !is_v1 {
                fs::write(dir.join("cgroup.type"), "threaded")?;
            }
            let file = dir.join(if is_v1 { "tasks" } else { "cgroup.threads" });
            fs::write(&file, tid.to_string()).with_context(|| format!("write {}", file.display()))?;
        }
        for generation in ["first", "second"] {
            let images = sandbox.images(generation)?;
            sandbox.dump_and_kill(&guest, &images, &[])?;
            groups.remove();
            sandbox.restore(&images, &[])?.succeeded()?;
            groups.expect(guest.pid, "", DUMPED)?;
            let member = fs::read_to_string(format!("/proc/{}/task/{tid}/cgroup", guest.pid))?;
            let path = format!(":/{}/sub", groups.name);
            let found = member.lines().filter(|line| line.ends_with(&path)).count();
            ensure!(found == groups.hierarchies.len(), "thread {tid} is not in {path}:\n{member}");
        }
        guest.expect_ok(sandbox)
    }

    /// The tree forks all the time; it is frozen by the freezer of its cgroup, which is thawed then.
    fn a_fork_bomb_frozen_by_its_cgroup(sandbox) {
        for freezer in freezers()? {
            let scratch = Path::new("/tmp/crust-golden/bomb");
            let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", freezer.dir.display());
            let mut command = Command::new("sh");
            command.args(["-c", &enter, "sh"]).arg(sandbox.install_guest("bomb")?);
            command.arg(scratch).arg("forks");
            let bomb = sandbox.spawn("bomb", &command, scratch)?;
            bomb.wait_until_set_up(sandbox)?;
            let images = sandbox.images("frozen")?;
            let option = ["--leave-running", "--freeze-cgroup", text(&freezer.dir)?];
            sandbox.dump(bomb.pid, &images, &option)?.succeeded()?;
            ensure!(!freezer.is_frozen()?, "the cgroup is still frozen");
            bomb.expect_ok(sandbox)?;
            freezer.empty()?;
        }
        Ok(())
    }

    /// Frozen by somebody else, not the tree's, or none at all: refused by name, and left as it is.
    fn cgroups_that_do_not_freeze(sandbox) {
        for freezer in freezers()? {
            let guest = sandbox.start("loop")?;
            let images = sandbox.images("frozen")?;
            let dir = text(&freezer.dir)?;
            let dump = |options: &[&str]| sandbox.dump(guest.pid, &images, options);
            let other = dump(&["--freeze-cgroup", dir])?.exited_with(1)?;
            other.says(&[&guest.pid.to_string(), "is not in the cgroup", dir])?;
            let none = dump(&["--freeze-cgroup", "/proc"])?.exited_with(1)?;
            none.says(&["/proc", "freezer"])?;
            fs::write(freezer.dir.join("cgroup.procs"), guest.pid.to_string())?;
            freezer.set(true)?;
            for options in [vec!["--freeze-cgroup", dir], vec![]] {
                let frozen = dump(&options)?.exited_with(1)?;
                frozen.says(&[&guest.pid.to_string(), dir, "is frozen"])?;
                ensure!(freezer.is_frozen()?, "the dump has thawed it");
            }
            freezer.set(false)?;
            sandbox.dump_and_kill(&guest, &images, &["--freeze-cgroup", dir])?;
            freezer.empty()?;
        }
        Ok(())
    }

    /// Only what is asked for is carried: of one controller, one property, and back.
    fn properties_as_asked_for(sandbox) {
        let Some(groups) = Groups::new()? else {
            return Ok(());
        };
        let Some((dir, _)) = groups.dirs("").find(|(_, property)| *property == "pids.max") else {
            println!("SKIPPED: there is no pids hierarchy of v1");
            return Ok(());
        };
        let guest = sandbox.start("loop")?;
        groups.set(DUMPED)?;
        groups.enter(guest.pid, "")?;
        let stored = |name: &str, options: &[&str]| -> Result<String> {
            let images = sandbox.images(name)?;
            let options = [options, &["--leave-running"]].concat();
            sandbox.dump(guest.pid, &images, &options)?.succeeded()?;
            let image = images.join("cgroup.img");
            let decoded = sandbox.run("crit", &["decode", "-i", text(&image)?], None)?.succeeded()?;
            Ok(String::from_utf8_lossy(&decoded.stdout).into_owned())
        };
        let all = stored("all", &[])?;
        ensure!(all.contains("pids.max") && all.contains("cgroup.max.depth"), "{all}");
        let one = stored("one", &["--cgroup-dump-controller", "pids"])?;
        ensure!(one.contains("pids.max") && !one.contains("cgroup.max.depth"), "{one}");
        ensure!(!one.contains("cpu"), "{one}");
        let bare = stored("bare", &["--cgroup-props-ignore-default"])?;
        ensure!(!bare.contains("pids.max") && bare.contains("notify_on_release"), "{bare}");
        let said = "pids: - strategy: replace - properties: [pids.current]";
        let other = stored("other", &["--cgroup-props", said])?;
        ensure!(other.contains("pids.current") && !other.contains("pids.max"), "{other}");
        let file = sandbox.dir("props")?.join("props.yaml");
        fs::write(&file, said.replace("replace", "merge"))?;
        let merged = stored("merged", &["--cgroup-props-file", text(&file)?])?;
        ensure!(merged.contains("pids.current") && merged.contains("pids.max"), "{merged}");
        let images = sandbox.images("wrong")?;
        let wrong = sandbox.dump(guest.pid, &images, &["--cgroup-props", "pids: - strategy: x"])?;
        wrong.exited_with(2)?.says(&["--cgroup-props", "replace or merge", "'x'"])?;
        // By a yard, with the one hierarchy that is in it.
        let yard = sandbox.dir("yard")?;
        let pids = dir.parent().context("a mount point")?;
        std::os::unix::fs::symlink(pids, yard.join("pids"))?;
        let yarded = stored("yard", &["--cgroup-yard", text(&yard)?])?;
        ensure!(yarded.contains("pids.max") && !yarded.contains("cgroup.max.depth"), "{yarded}");
        let images = sandbox.images("last")?;
        sandbox.dump_and_kill(&guest, &images, &["--cgroup-dump-controller", "pids"])?;
        groups.remove();
        sandbox.restore(&images, &["--cgroup-yard", text(&yard)?])?.succeeded()?;
        let member = fs::read_to_string(format!("/proc/{}/cgroup", guest.pid))?;
        let path = format!(":/{}", groups.name);
        let found: Vec<_> = member.lines().filter(|line| line.ends_with(&path)).collect();
        ensure!(found.len() == 1 && found[0].contains(":pids:"), "{member}");
        guest.expect_ok(sandbox)
    }

    /// What a restore has made it takes away when it fails.
    fn a_failed_restore_leaves_no_cgroup(sandbox) {
        let Some(groups) = Groups::new()? else {
            return Ok(());
        };
        let (_, images) = dumped(sandbox, &groups, &[])?;
        let script = sandbox.dir("script")?.join("fails");
        fs::write(&script, "#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != pre-resume ]\n")?;
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
        let failing = ["--action-script", text(Path::new(&script))?];
        sandbox.restore(&images, &failing)?.exited_with(1)?;
        sandbox.assert_only(&[])?;
        ensure!(!groups.exist(""), "cgroups are left");
        Ok(())
    }
}
