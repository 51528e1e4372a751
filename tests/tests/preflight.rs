//! `--check`: everything that stands against a dump or a restore in one list, with the tree and
//! the images untouched, for people and for programs.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    corpus::recorded,
    edited::{edit, processor_with_everything},
    guest::Guest,
    proc_snapshot::Snapshot,
    sandbox::Sandbox,
    sandbox_test,
    tools::{Outcome, text},
};
use serde_json::Value;
use std::{fs, path::Path, process::Command};

/// The report of a check with `--json`.
fn report(outcome: &Outcome) -> Result<Value> {
    serde_json::from_slice(&outcome.stdout).with_context(|| outcome.report())
}

/// The codes of its findings with their objects and texts.
fn findings(report: &Value) -> Vec<(String, String)> {
    let list = report.get("findings").and_then(Value::as_array);
    let word = |finding: &Value, key: &str| {
        finding
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    list.into_iter()
        .flatten()
        .map(|finding| {
            let told = [word(finding, "object"), word(finding, "what")].join(": ");
            (word(finding, "code"), told)
        })
        .collect()
}

fn expect_finding(report: &Value, code: &str, words: &[&str]) -> Result<()> {
    let found = findings(report)
        .into_iter()
        .any(|(found, told)| found == code && words.iter().all(|word| told.contains(word)));
    ensure!(found, "no {code} with {words:?} in {report:#}");
    Ok(())
}

fn check_dump(sandbox: &Sandbox, guest: &Guest, dir: &Path, options: &[&str]) -> Result<Outcome> {
    let before = Snapshot::of_tree(guest.pid)?;
    let pid = guest.pid.to_string();
    let arguments = [&["--check", "-t", &pid, "-D", text(dir)?], options].concat();
    let outcome = sandbox.run("crust-dump", &arguments, None)?;
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    Ok(outcome)
}

fn check_restore(sandbox: &Sandbox, images: &Path, options: &[&str]) -> Result<Outcome> {
    let arguments = [&["--check", "-D", text(images)?], options].concat();
    sandbox.run("crust-restore", &arguments, None)
}

/// crust-restore below a command that takes something away from it.
fn check_below(sandbox: &Sandbox, images: &Path, wrapper: &[&str]) -> Result<Outcome> {
    let (program, arguments) = wrapper.split_first().context("no wrapper")?;
    let mut command = Command::new(program);
    command.args(arguments).arg(sandbox.binary("crust-restore"));
    command.args(["--check", "--json", "-D", text(images)?]);
    sandbox.run_command(command, None)
}

sandbox_test! {
    fn nothing_against_a_dump(sandbox) {
        let guest = sandbox.start("mem_shared")?;
        let images = sandbox.images("none")?;
        let told = check_dump(sandbox, &guest, &images, &[])?.succeeded()?;
        let said = String::from_utf8_lossy(&told.stdout).into_owned();
        ensure!(said.contains("needs CAP_CHECKPOINT_RESTORE: the file mapped at"), "{said}");
        ensure!(said.contains("crust-dump: nothing stands against it"), "{said}");
        let report = report(&check_dump(sandbox, &guest, &images, &["--json"])?.succeeded()?)?;
        ensure!(report["ok"] == true && report["frozen_us"].is_u64(), "{report:#}");
        ensure!(fs::read_dir(&images)?.next().is_none(), "a check has written into the images");
        guest.expect_ok(sandbox)
    }

    /// Each refusal with the option that would allow it, beside what is wrong with the directory.
    fn everything_against_a_dump_in_one_list(sandbox) {
        let guest = sandbox.start("unsupported")?;
        let missing = sandbox.dir("parent")?.join("missing");
        let outcome = check_dump(sandbox, &guest, &missing, &["--json"])?.exited_with(1)?;
        let report = report(&outcome)?;
        ensure!(report["ok"] == false, "{report:#}");
        expect_finding(&report, "images-dir", &["missing", "No such file"])?;
        for line in guest.lines()? {
            let (what, fd) = line.split_once(' ').unwrap_or_default();
            if fd.parse::<i32>().is_ok_and(|fd| fd >= 0) {
                expect_finding(&report, "refused", &[&format!("fd {fd}"), what])?;
            }
        }
        guest.expect_ok(sandbox)
    }

    fn the_option_that_would_allow_it(sandbox) {
        let guest = sandbox.start("locks")?;
        let images = sandbox.images("locks")?;
        let refused = check_dump(sandbox, &guest, &images, &["--json"])?.exited_with(1)?;
        let report = report(&refused)?;
        let hints = report["findings"].as_array().context("no findings")?;
        let names_it = |finding: &Value| {
            finding["try"].as_str().is_some_and(|hint| hint.contains("--file-locks"))
        };
        ensure!(!hints.is_empty() && hints.iter().all(names_it), "{report:#}");
        check_dump(sandbox, &guest, &images, &["--file-locks"])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    fn a_tree_that_cannot_be_frozen(sandbox) {
        let guest = sandbox.start("traced")?;
        let images = sandbox.images("traced")?;
        let outcome = check_dump(sandbox, &guest, &images, &["--json"])?.exited_with(1)?;
        expect_finding(&report(&outcome)?, "traced", &["traced by process"])?;
        guest.expect_ok(sandbox)
    }

    fn nothing_against_a_restore(sandbox) {
        let guest = sandbox.start("threads")?;
        let images = sandbox.images("good")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        let report = report(&check_restore(sandbox, &images, &["--json"])?.succeeded()?)?;
        let needs = report["capabilities"].as_array().context("no capabilities")?;
        let chosen_pids = needs.iter().any(|need| {
            need["capability"] == "CAP_CHECKPOINT_RESTORE" && need["present"] == true
        });
        ensure!(chosen_pids, "{report:#}");
        sandbox.assert_only(&[])?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    /// The living original holds pid and ports, and a file is gone: one list.
    fn everything_against_a_restore_in_one_list(sandbox) {
        let guest = sandbox.start("tcp_listen")?;
        let images = sandbox.images("busy")?;
        sandbox.dump(guest.pid, &images, &["--leave-running"])?.succeeded()?;
        let program = sandbox.install_guest("tcp_listen")?;
        let aside = program.with_extension("aside");
        fs::rename(&program, &aside)?;
        let outcome = check_restore(sandbox, &images, &["--json"])?.exited_with(1)?;
        let report = report(&outcome)?;
        let pid = guest.pid.to_string();
        expect_finding(&report, "pid-busy", &[&format!("pid {pid}"), "tcp_listen"])?;
        expect_finding(&report, "port-busy", &["tcp port", &format!("process {pid} (tcp_listen)")])?;
        expect_finding(&report, "file", &["bin/tcp_listen is gone"])?;
        // A restore says the same before its first step.
        let restore = sandbox.restore(&images, &[])?.exited_with(1)?;
        restore.says(&[&format!("pid {pid}"), "tcp port", "is gone", "reasons"])?;
        fs::rename(&aside, &program)?;
        sandbox.assert_only(&[guest.pid])?;
        guest.expect_ok(sandbox)
    }

    fn capabilities_and_limits_that_are_missing(sandbox) {
        let guest = sandbox.start("files")?;
        let images = sandbox.images("poor")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        let without = ["setpriv", "--bounding-set", "-sys_admin,-checkpoint_restore"];
        let poor = check_below(sandbox, &images, &without)?.exited_with(1)?;
        let told = report(&poor)?;
        expect_finding(&told, "capability", &["CAP_CHECKPOINT_RESTORE", "chosen pids"])?;
        let low = check_below(sandbox, &images, &["prlimit", "--nofile=10:10"])?;
        let told = report(&low.exited_with(1)?)?;
        expect_finding(&told, "limit", &["RLIMIT_NOFILE"])?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    /// Images of a processor with everything: what this one lacks is told by name.
    fn processor_features_that_are_missing(sandbox) {
        let (images, _) = sandbox.unpack(&recorded("cpuinfo"))?;
        processor_with_everything(sandbox, &images)?;
        let outcome = check_restore(sandbox, &images, &["--json"])?.exited_with(1)?;
        expect_finding(&report(&outcome)?, "cpu", &["processor feature 3dnow"])?;
        check_restore(sandbox, &images, &["--cpu-cap=none"])?.succeeded()?;
        Ok(())
    }

    /// The same of a dump of our own, for which the option is given.
    fn the_processor_of_a_dump_of_our_own(sandbox) {
        let guest = sandbox.start("loop")?;
        let images = sandbox.images("processor")?;
        sandbox.dump_and_kill(&guest, &images, &["--cpu-cap"])?;
        let check = |option: &str| check_restore(sandbox, &images, &["--json", option]);
        check("--cpu-cap=all")?.succeeded()?;
        let cpuinfo = images.join("cpuinfo.img");
        let good = fs::read(&cpuinfo)?;
        edit(sandbox, &cpuinfo, |json| {
            let processor = json.pointer_mut("/entries/0/x86_entry/0").context("no processor")?;
            processor["model"] = 255.into();
            processor["xsave_size"] = 0x7fff_ffff.into();
            Ok(())
        })?;
        let told = report(&check("--cpu-cap=all")?.exited_with(1)?)?;
        expect_finding(&told, "cpu", &["processor: family", "model 255"])?;
        expect_finding(&told, "cpu", &["processor state", "2147483647 bytes"])?;
        check("--cpu-cap=ins")?.succeeded()?;
        processor_with_everything(sandbox, &images)?;
        let told = report(&check("--cpu-cap=ins")?.exited_with(1)?)?;
        expect_finding(&told, "cpu", &["processor feature 3dnow"])?;
        let told = report(&check("--cpu-cap=sse")?.exited_with(1)?)?;
        expect_finding(&told, "usage", &["--cpu-cap", "sse"])?;
        fs::write(&cpuinfo, good)?;
        sandbox.restore(&images, &["--cpu-cap=all"])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    fn images_that_are_no_dump(sandbox) {
        let images = sandbox.images("empty")?;
        let outcome = check_restore(sandbox, &images, &["--json"])?.exited_with(1)?;
        expect_finding(&report(&outcome)?, "incomplete", &["inventory.img"])
    }
}
