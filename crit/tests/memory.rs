//! `crit mem`: the bytes a task had, found, changed and read again; through parents and shared
//! memory.

mod common;

use common::{arg, copy_of, crit, dump, dumps, fail, root_pid};
use std::fs;
use std::path::Path;

/// Start and end of the first area that `maps` lists with these words.
fn area(dir: &Path, pid: &str, words: &[&str]) -> (u64, u64) {
    let maps = String::from_utf8(crit(&["mem", arg(dir), "-p", pid, "maps"])).unwrap();
    let line = maps
        .lines()
        .find(|line| words.iter().all(|word| line.contains(word)))
        .unwrap_or_else(|| panic!("{words:?} in {maps}"));
    let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
    (
        u64::from_str_radix(start, 16).unwrap(),
        u64::from_str_radix(end, 16).unwrap(),
    )
}

fn read(dir: &Path, pid: &str, address: u64, length: u64) -> Vec<u8> {
    crit(&[
        "mem",
        arg(dir),
        "-p",
        pid,
        "read",
        &address.to_string(),
        &length.to_string(),
    ])
}

#[test]
fn what_is_searched_is_found_and_read() {
    let dir = dump("loop").join("img");
    let pid = root_pid(&dir);
    let found = String::from_utf8(crit(&[
        "mem",
        arg(&dir),
        "-p",
        &pid,
        "search",
        "--kind",
        "stack",
        "/tmp/crust-golden/bin/loop",
    ]))
    .unwrap();
    let address = found.lines().next().unwrap().split(' ').next().unwrap();
    let bytes = crit(&["mem", arg(&dir), "-p", &pid, "read", address, "26"]);
    assert_eq!(bytes, b"/tmp/crust-golden/bin/loop");
    let by_regex = String::from_utf8(crit(&[
        "mem",
        arg(&dir),
        "-p",
        &pid,
        "search",
        "--kind",
        "stack",
        "--regex",
        "/tmp/[a-z-]+/bin/l[o]{2}p",
    ]))
    .unwrap();
    assert!(by_regex.contains(address), "{by_regex}");
    let hex: String = b"bin/loop"
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let by_hex = String::from_utf8(crit(&[
        "mem",
        arg(&dir),
        "-p",
        &pid,
        "search",
        "--hex",
        &hex,
    ]))
    .unwrap();
    assert!(by_hex.lines().count() >= by_regex.lines().count());
    fail(
        &[
            "mem",
            arg(&dir),
            "-p",
            &pid,
            "search",
            "there is no such text in it",
        ],
        b"",
        1,
    );
    let error = fail(&["mem", arg(&dir), "-p", "1", "maps"], b"", 1);
    assert!(error.contains(&format!("its tasks are {pid}")), "{error}");
    let error = fail(&["mem", arg(&dir), "-p", &pid, "read", "0x10", "4"], b"", 1);
    assert!(error.contains("address 0x10 is in no area"), "{error}");
}

#[test]
fn the_auxiliary_vector_is_where_the_stack_has_it() {
    // mm_arg_start points at argv[0] in the task's memory.
    let dir = dump("loop").join("img");
    let pid = root_pid(&dir);
    let mm = dir.join(format!("mm-{pid}.img"));
    let start: u64 = String::from_utf8(crit(&["get", arg(&mm), "[0].mm_arg_start"]))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(read(&dir, &pid, start, 27), b"/tmp/crust-golden/bin/loop\0");
}

#[test]
fn a_page_of_the_dump_is_changed_in_place() {
    let dir = copy_of(&dump("loop"));
    let pid = root_pid(dir.path());
    let (start, _) = area(dir.path(), &pid, &["stack"]);
    let found = String::from_utf8(crit(&[
        "mem",
        arg(dir.path()),
        "-p",
        &pid,
        "search",
        "--kind",
        "stack",
        "bin/loop",
    ]))
    .unwrap();
    let address = u64::from_str_radix(
        found.split(' ').next().unwrap().trim_start_matches("0x"),
        16,
    )
    .unwrap();
    assert!(address > start);
    let before = crit(&[
        "decode",
        "-i",
        arg(&dir.path().join(format!("pagemap-{pid}.img"))),
    ]);
    crit(&[
        "mem",
        arg(dir.path()),
        "-p",
        &pid,
        "write",
        &address.to_string(),
        "--text",
        "BIN",
    ]);
    assert_eq!(read(dir.path(), &pid, address, 8), b"BIN/loop");
    assert_eq!(
        crit(&[
            "decode",
            "-i",
            arg(&dir.path().join(format!("pagemap-{pid}.img")))
        ]),
        before
    );
    crit(&[
        "mem",
        arg(dir.path()),
        "-p",
        &pid,
        "write",
        &address.to_string(),
        "--hex",
        "62696e",
    ]);
    for (name, path) in common::files(&dump("loop").join("img")) {
        assert!(
            fs::read(dir.path().join(&name)).unwrap() == fs::read(path).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn a_page_never_touched_gets_one() {
    let dir = copy_of(&dump("loop"));
    let pid = root_pid(dir.path());
    // The lowest page of the stack area was never used.
    let (start, end) = area(dir.path(), &pid, &["stack"]);
    assert_eq!(read(dir.path(), &pid, start, 4096), vec![0; 4096]);
    let rest = read(dir.path(), &pid, start + 8192, end - start - 8192);
    crit(&[
        "mem",
        arg(dir.path()),
        "-p",
        &pid,
        "write",
        &(start + 4090).to_string(),
        "--text",
        "over the joint",
    ]);
    assert_eq!(read(dir.path(), &pid, start + 4090, 14), b"over the joint");
    assert_eq!(
        read(dir.path(), &pid, start + 8192, end - start - 8192),
        rest
    );
    let check = String::from_utf8(crit(&["check", arg(dir.path())])).unwrap();
    assert!(check.contains("0 errors"), "{check}");
}

#[test]
fn a_chain_of_dumps_is_read_through() {
    let Some(top) = dumps()
        .into_iter()
        .find(|path| path.ends_with("parent_chain/3") && path.join("img/parent").is_symlink())
    else {
        panic!("the corpus in tests/data has a chain with its links");
    };
    let dir = top.join("img");
    let pid = root_pid(&dir);
    let pagemap = String::from_utf8(crit(&[
        "decode",
        "-i",
        arg(&dir.join(format!("pagemap-{pid}.img"))),
    ]))
    .unwrap();
    let pagemap: serde_json::Value = serde_json::from_str(&pagemap).unwrap();
    let runs = pagemap["entries"].as_array().unwrap();
    let in_parent = runs
        .iter()
        .find(|run| run["flags"].as_u64().is_some_and(|flags| flags & 1 == 1))
        .expect("a run in the parent");
    let (vaddr, pages) = (
        in_parent["vaddr"].as_u64().unwrap(),
        in_parent["nr_pages"].as_u64().unwrap(),
    );
    let bytes = read(&dir, &pid, vaddr, pages * 4096);
    assert!(bytes.iter().any(|byte| *byte != 0));
    let mut lower = Vec::new();
    for level in ["2", "1"] {
        lower.extend(fs::read(top.parent().unwrap().join(level).join("img/pages-1.img")).unwrap());
    }
    assert!(lower.chunks(4096).any(|page| page == &bytes[..4096]));
}

#[test]
fn shared_memory_is_read_and_written_where_it_lies() {
    let dir = copy_of(&dump("mem_shared"));
    let pid = root_pid(dir.path());
    let maps = String::from_utf8(crit(&["mem", arg(dir.path()), "-p", &pid, "maps"])).unwrap();
    let line = maps
        .lines()
        .find(|line| line.contains(" shared ") && line.contains("shared memory"))
        .expect("a shared area");
    let start = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
    let before = read(dir.path(), &pid, start, 4096);
    assert!(before.iter().any(|byte| *byte != 0));
    crit(&[
        "mem",
        arg(dir.path()),
        "-p",
        &pid,
        "write",
        &start.to_string(),
        "--text",
        "shared!",
    ]);
    assert_eq!(read(dir.path(), &pid, start, 7), b"shared!");
    assert_eq!(read(dir.path(), &pid, start + 7, 4089), before[7..]);
    // The other task sees it as well.
    let other = String::from_utf8(crit(&[
        "get",
        arg(&dir.path().join("pstree.img")),
        "[1].pid",
    ]))
    .unwrap();
    assert_eq!(read(dir.path(), other.trim(), start, 7), b"shared!");
}

#[test]
fn a_range_is_exported() {
    let dir = dump("loop").join("img");
    let pid = root_pid(&dir);
    let (start, end) = area(&dir, &pid, &["stack"]);
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("stack");
    crit(&[
        "mem",
        arg(&dir),
        "-p",
        &pid,
        "export",
        "--range",
        &format!("{start:x}-{end:x}"),
        "-o",
        arg(&file),
    ]);
    assert_eq!(
        fs::read(&file).unwrap(),
        read(&dir, &pid, start, end - start)
    );
}

/// Areas back to back, with a table that tells where each one is; a file for each; a range.
#[test]
fn areas_are_exported() {
    let dir = dump("loop").join("img");
    let pid = root_pid(&dir);
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("memory");
    let export = |more: &[&str]| {
        let start = ["mem", arg(&dir), "-p", &pid, "export", "-o"];
        String::from_utf8(crit(&[&start[..], more].concat())).unwrap()
    };
    let table = export(&[arg(&file), "--prot", "w"]);
    let mut whole = 0;
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let place = u64::from_str_radix(words[0].trim_start_matches("0x"), 16).unwrap();
        assert_eq!(place, whole, "{table}");
        let (start, end) = words[1].split_once('-').unwrap();
        let start = u64::from_str_radix(start, 16).unwrap();
        let end = u64::from_str_radix(end, 16).unwrap();
        assert!(words[2].contains('w'), "{line}");
        whole += end - start;
        let bytes = fs::read(&file).unwrap();
        let there = &bytes[place as usize..][..(end - start) as usize];
        assert!(there == read(&dir, &pid, start, end - start), "{line}");
    }
    assert!(
        table.contains("[stack]") && table.contains("[heap]"),
        "{table}"
    );
    assert_eq!(file.metadata().unwrap().len(), whole);

    let (start, end) = area(&dir, &pid, &["[stack]"]);
    export(&[arg(&file), "--name", "[stack]"]);
    assert!(fs::read(&file).unwrap() == read(&dir, &pid, start, end - start));
    let range = format!("{:x}-{:x}", end - 8192, end - 4096);
    export(&[arg(&file), "--range", &range]);
    assert!(fs::read(&file).unwrap() == read(&dir, &pid, end - 8192, 4096));

    let table = export(&[arg(out.path()), "--kind", "stack", "--kind", "heap"]);
    assert_eq!(table.lines().count(), 2, "{table}");
    let stack = out.path().join(format!("{start:x}-{end:x}.stack"));
    assert!(fs::read(stack).unwrap() == read(&dir, &pid, start, end - start));

    // All of it; what is not in the dump is told.
    let all = export(&[arg(&file)]);
    assert!(all.contains("[vdso]") && all.lines().count() > 8, "{all}");
    let error = fail(
        &[
            "mem",
            arg(&dir),
            "-p",
            &pid,
            "export",
            "--name",
            "nothing",
            "-o",
            arg(&file),
        ],
        b"",
        1,
    );
    assert!(error.contains("no such area"), "{error}");
}

/// Images of a machine with pages of 64 KiB: the auxiliary vector says so, and a run of one page is
/// 64 KiB of the pages file.
#[test]
fn other_page_sizes_are_honoured() {
    const PAGE: usize = 64 << 10;
    let dir = copy_of(&dump("loop"));
    let dir = dir.path();
    let pid = root_pid(dir);
    let (mm, pagemap) = (
        dir.join(format!("mm-{pid}.img")),
        dir.join(format!("pagemap-{pid}.img")),
    );
    let base: u64 = 0x10_0000_0000;
    let script = format!(
        "if .magic == \"MM\" then .entries[0] |= (
           (.mm_saved_auxv | [range(0; length; 2) as $i | .[$i], if .[$i] == 6 then {PAGE} else .[$i + 1] end]) as $auxv
           | .mm_saved_auxv = $auxv
           | .vmas = [{{start: {base}, end: {}, pgoff: 0, shmid: 0, prot: 3, flags: 34, status: 513, fd: -1}}])
         elif .magic == \"PAGEMAP\" then .entries = [.entries[0],
           {{vaddr: {base}, compat_nr_pages: 0, flags: 4, nr_pages: 1}},
           {{vaddr: {}, compat_nr_pages: 0, flags: 4, nr_pages: 2}}]
         else . end",
        base + 6 * PAGE as u64,
        base + 3 * PAGE as u64,
    );
    let on = ["--on", "mm-*.img", "--on", "pagemap-*.img"];
    crit(&[&["transform", arg(dir)], &on[..], &[&script]].concat());
    let bytes: Vec<u8> = (0..3 * PAGE).map(|at| (at / 251) as u8).collect();
    fs::write(dir.join("pages-1.img"), &bytes).unwrap();
    assert!(mm.exists() && pagemap.exists());

    let mut whole = bytes[..PAGE].to_vec();
    whole.extend(vec![0; 2 * PAGE]);
    whole.extend(&bytes[PAGE..]);
    whole.extend(vec![0; PAGE]);
    assert!(read(dir, &pid, base, whole.len() as u64) == whole);
    let rss = String::from_utf8(crit(&["x", arg(dir), "rss"])).unwrap();
    assert!(
        rss.contains(&format!("{base:x} / 1")) && rss.contains("/ 6 "),
        "{rss}"
    );
    // Both the areas and the length of the pages file fit, with pages of 64 KiB.
    let output = common::crit_with(&["check", arg(dir), "--quiet"], b"");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        !said.contains("pages-1") && !said.contains("vaddr") && !said.contains("vmas"),
        "{said}"
    );
    let place = (base + 5).to_string();
    let error = fail(
        &["mem", arg(dir), "-p", &pid, "write", &place, "--text", "x"],
        b"",
        1,
    );
    assert!(error.contains("pages of 65536 bytes"), "{error}");
}
