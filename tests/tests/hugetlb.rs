//! Memory in huge pages. The machine must let us have some: they are taken from its free memory
//! for the time of the test (vm.nr_overcommit_hugepages), none are reserved.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    round_trip,
    sandbox::{GOLDEN, Sandbox},
    sandbox_test,
    tools::text,
};
use nix::mount::{MsFlags, mount};
use std::{fs, path::Path};

const OVERCOMMIT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages";
/// 96 MiB: each guest has at most ten pages at a time, its image loads a few more, and the tests run
/// at the same time.
const PAGES: u64 = 48;

fn with_huge_pages(
    sandbox: &Sandbox,
    guest: &'static str,
    test: impl Fn(&Sandbox, &round_trip::Case) -> Result<()>,
) -> Result<()> {
    let allowed = || -> Result<u64> { Ok(fs::read_to_string(OVERCOMMIT)?.trim().parse()?) };
    match allowed() {
        Err(error) => {
            println!("SKIPPED hugetlb: {OVERCOMMIT}: {error:#}");
            return Ok(());
        }
        // Another test may have raised it; nobody takes it back, or that one would fail.
        Ok(pages) if pages < PAGES => fs::write(OVERCOMMIT, PAGES.to_string())?,
        Ok(_) => {}
    }
    let case = round_trip::Case {
        guest,
        ..Default::default()
    };
    test(sandbox, &case)
}

sandbox_test! {
    /// Too few of them are found before anything is made.
    fn too_few_are_told(sandbox) {
        with_huge_pages(sandbox, "hugetlb", |sandbox, case| {
            let guest = sandbox.start(case.guest)?;
            let images = sandbox.images("first")?;
            sandbox.dump_and_kill(&guest, &images, &[])?;
            let mut edit = sandbox.run("crit", &["decode", "-i", text(&images.join("memfd.img"))?], None)?.succeeded()?.stdout;
            let mut json: serde_json::Value = serde_json::from_slice(&edit)?;
            let size = json.pointer_mut("/entries/0/size").context("a memfd has no size")?;
            *size = (1u64 << 40).into();
            edit = serde_json::to_vec(&json)?;
            let edited = images.join("edited.json");
            fs::write(&edited, edit)?;
            sandbox.run("crit", &["encode", "-i", text(&edited)?, "-o", text(&images.join("memfd.img"))?], None)?.succeeded()?;
            fs::remove_file(&edited)?;
            let outcome = sandbox.restore(&images, &[])?.exited_with(1)?;
            let told = "huge pages of 2048 KiB";
            ensure!(outcome.log.contains(told), "{}", outcome.log);
            sandbox.assert_only(&[])
        })
    }

    fn files_of_hugetlbfs(sandbox) {
        let directory = Path::new(GOLDEN).join("huge");
        fs::create_dir_all(&directory)?;
        let (kind, size) = (Some("hugetlbfs"), Some("pagesize=2M"));
        mount(kind, &directory, kind, MsFlags::empty(), size).context("mount a hugetlbfs")?;
        with_huge_pages(sandbox, "hugetlbfs", round_trip::restored)?;
        with_huge_pages(sandbox, "hugetlbfs", round_trip::left_running)?;
        with_huge_pages(sandbox, "hugetlbfs", round_trip::restored_twice)
    }

    fn private_and_shared_pages(sandbox) {
        with_huge_pages(sandbox, "hugetlb", round_trip::restored)?;
        with_huge_pages(sandbox, "hugetlb", round_trip::left_running)
    }
}
