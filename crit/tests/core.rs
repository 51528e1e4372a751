//! `crit core`: gdb opens the core and sees each thread's registers, its memory and the vectors the
//! images hold.

mod common;

use common::{arg, crit, dump};
use std::path::Path;
use std::process::Command;

fn gdb(core: &Path, commands: &[String]) -> String {
    let mut gdb = Command::new("gdb");
    gdb.args(["-q", "-batch", "-nx"]);
    commands.iter().for_each(|command| {
        gdb.args(["-ex", command]);
    });
    let output = gdb.args(["-c", arg(core)]).output().expect("gdb runs");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn value(dir: &Path, image: &str, path: &str) -> u64 {
    let text = String::from_utf8(crit(&["get", arg(&dir.join(image)), path])).unwrap();
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("{image} {path}: {text}"))
}

#[test]
fn gdb_sees_threads_registers_and_memory() {
    if Command::new("gdb").arg("--version").output().is_err() {
        eprintln!("skipped: gdb is not installed");
        return;
    }
    let dir = dump("threads").join("img");
    let pid = value(&dir, "pstree.img", "[0].pid").to_string();
    let threads = String::from_utf8(crit(&[
        "get",
        arg(&dir.join("pstree.img")),
        "[0].threads[*]",
    ]))
    .unwrap();
    let out = tempfile::tempdir().unwrap();
    let core = out.path().join("core");
    crit(&["core", arg(&dir), "-p", &pid, "-o", arg(&core)]);

    let mut commands = vec![
        "info auxv".to_owned(),
        "info proc mappings".to_owned(),
        "info threads".to_owned(),
    ];
    for number in 1..=threads.lines().count() {
        commands.push(format!("thread {number}"));
        commands.push("printf \"T rip %lx rsp %lx r12 %lx fs %lx mxcsr %x top %lx\\n\", $rip, $rsp, $r12, $fs_base, $mxcsr, *(unsigned long*)$rsp".to_owned());
        commands.push("printf \"X %lx %lx\\n\", $ymm0.v4_int64[0], $ymm0.v4_int64[2]".to_owned());
    }
    let said = gdb(&core, &commands);
    for tid in threads.lines() {
        let image = format!("core-{tid}.img");
        let register = |name: &str| value(&dir, &image, &format!("[0].thread_info.gpregs.{name}"));
        let mxcsr = value(&dir, &image, "[0].thread_info.fpregs.mxcsr");
        let sp = register("sp");
        let top = crit(&["mem", arg(&dir), "-p", &pid, "read", &sp.to_string(), "8"]);
        let top = u64::from_le_bytes(top.try_into().unwrap());
        let line = format!(
            "T rip {:x} rsp {sp:x} r12 {:x} fs {:x} mxcsr {mxcsr:x} top {top:x}",
            register("ip"),
            register("r12"),
            register("fs_base")
        );
        assert!(said.contains(&line), "{line}\nnot in\n{said}");
        assert!(said.contains(&format!("LWP {tid}")), "{said}");
        let words = |field: &str| -> Vec<u64> {
            let path = format!("[0].thread_info.fpregs.{field}");
            let text = String::from_utf8(crit(&["get", arg(&dir.join(&image)), &path])).unwrap();
            text.lines().map(|line| line.parse().unwrap()).collect()
        };
        let (xmm, ymm) = (words("xmm_space[*]"), words("xsave.ymmh_space[*]"));
        let line = format!("X {:x} {:x}", xmm[0] | xmm[1] << 32, ymm[0] | ymm[1] << 32);
        assert!(said.contains(&line), "{line}\nnot in\n{said}");
    }
    assert!(said.contains("/tmp/crust-golden/bin/threads"), "{said}");
    let entry = String::from_utf8(crit(&[
        "get",
        arg(&dir.join(format!("mm-{pid}.img"))),
        "[0].mm_saved_auxv[*]",
    ]))
    .unwrap();
    let auxv: Vec<u64> = entry.lines().map(|line| line.parse().unwrap()).collect();
    let at_entry = auxv.chunks(2).find(|pair| pair[0] == 9).expect("AT_ENTRY")[1];
    assert!(
        said.lines()
            .any(|line| line.contains("AT_ENTRY") && line.contains(&format!("{at_entry:#x}"))),
        "{said}"
    );
}

#[test]
fn a_zombie_has_no_core() {
    let dir = dump("tree").join("img");
    let zombie = String::from_utf8(crit(&[
        "query",
        arg(&dir),
        "-r",
        "first(.tasks[] | select(.state == \"zombie\") | .pid)",
    ]))
    .unwrap();
    let out = tempfile::tempdir().unwrap();
    let error = common::fail(
        &[
            "core",
            arg(&dir),
            "-p",
            zombie.trim(),
            "-o",
            arg(&out.path().join("core")),
        ],
        b"",
        1,
    );
    assert!(error.contains("has no memory in this dump"), "{error}");
    assert!(!out.path().join("core").exists());
}
