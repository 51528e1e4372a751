//! Memory in huge pages. The machine must let us have some: they are taken from its free memory
//! for the time of the test (vm.nr_overcommit_hugepages), none are reserved.

use anyhow::{Context, Result, ensure};
use crust_tests::{round_trip, sandbox::Sandbox, sandbox_test, tools::text};
use std::fs;

const OVERCOMMIT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages";
/// 48 MiB: each guest has at most ten pages at a time, and its image loads a few more.
const PAGES: u64 = 24;

fn with_huge_pages(
    sandbox: &Sandbox,
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
        guest: "hugetlb",
        ..Default::default()
    };
    test(sandbox, &case)
}

sandbox_test! {
    /// Too few of them are found before anything is made.
    fn too_few_are_told(sandbox) {
        with_huge_pages(sandbox, |sandbox, case| {
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

    fn private_and_shared_pages(sandbox) {
        with_huge_pages(sandbox, round_trip::restored)?;
        with_huge_pages(sandbox, round_trip::left_running)
    }
}
