//! `crit diff`: nothing for a copy, and exactly what was changed for a changed one.

mod common;

use common::{arg, copy_of, crit, crit_with, dump, dumps};

fn diff(left: &std::path::Path, right: &std::path::Path) -> (i32, String) {
    let output = crit_with(&["diff", arg(left), arg(right)], b"");
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr),
    )
}

#[test]
fn a_dump_is_like_itself() {
    for dump in dumps() {
        let dir = dump.join("img");
        let parent = dir.join("parent");
        if parent.exists() && !parent.is_symlink() {
            continue; // A collection that was copied without its links.
        }
        assert_eq!(diff(&dir, &dir), (0, String::new()), "{}", dir.display());
    }
}

#[test]
fn each_change_is_told() {
    let source = dump("mem_shared").join("img");
    let copy = copy_of(&dump("mem_shared"));
    let pid =
        String::from_utf8(crit(&["get", arg(&source.join("pstree.img")), "[0].pid"])).unwrap();
    let pid = pid.trim();
    crit(&[
        "set",
        arg(&copy.path().join("files.img")),
        "[reg.name=/dev/null].reg.name",
        "/dev/zero",
    ]);
    crit(&[
        "set",
        arg(&copy.path().join(format!("core-{pid}.img"))),
        "[0].tc.comm",
        "other",
        "[0].thread_core.creds.euid",
        "7",
    ]);
    let maps = String::from_utf8(crit(&["mem", arg(&source), "-p", pid, "maps"])).unwrap();
    let stack = maps.lines().find(|line| line.contains("[stack]")).unwrap();
    let end = u64::from_str_radix(stack.split(['-', ' ']).nth(1).unwrap(), 16).unwrap();
    crit(&[
        "mem",
        arg(copy.path()),
        "-p",
        pid,
        "write",
        &(end - 16).to_string(),
        "--hex",
        "ffff",
    ]);
    let (status, said) = diff(&source, copy.path());
    assert_eq!(status, 1);
    for wanted in [
        format!("tasks.{pid}.comm: mem_shared -> other"),
        format!("tasks.{pid}.creds.{pid}.euid: 0 -> 7"),
        format!("tasks.{pid}.fds.0.file.entry.name: /dev/null -> /dev/zero"),
        format!(
            "tasks.{pid}.pages.{:x}-{end:x}: 1 pages -> other content",
            end - 4096
        ),
    ] {
        assert!(
            said.lines().any(|line| line == wanted),
            "{wanted}\nnot in\n{said}"
        );
    }
    let json = crit_with(&["diff", "--json", arg(&source), arg(copy.path())], b"");
    let list: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(list.as_array().unwrap().len(), said.lines().count());
}

#[test]
fn what_is_missing_has_a_side_and_trouble_is_2() {
    let copy = copy_of(&dump("tree"));
    let source = dump("tree").join("img");
    let last =
        String::from_utf8(crit(&["get", arg(&source.join("pstree.img")), "[-1].pid"])).unwrap();
    crit(&["del", arg(&copy.path().join("pstree.img")), "[-1]"]);
    let (status, said) = diff(&source, copy.path());
    assert!(
        status == 1 && said.contains(&format!("- tasks.{}: {{", last.trim())),
        "{said}"
    );
    let (_, said) = diff(copy.path(), &source);
    assert!(
        said.contains(&format!("+ tasks.{}: {{", last.trim())),
        "{said}"
    );
    assert_eq!(diff(&source, std::path::Path::new("/nonexistent")).0, 2);
}
