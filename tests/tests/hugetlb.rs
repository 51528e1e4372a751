//! Memory in huge pages. The machine must let us have some: they are taken from its free memory
//! for the time of the test (vm.nr_overcommit_hugepages), none are reserved.

use anyhow::Result;
use crust_tests::{round_trip, sandbox::Sandbox, sandbox_test};
use std::fs;

const OVERCOMMIT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages";
/// 16 MiB: each guest has at most four pages at a time.
const PAGES: u64 = 8;

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
    fn private_pages(sandbox) {
        with_huge_pages(sandbox, round_trip::restored)?;
        with_huge_pages(sandbox, round_trip::left_running)
    }
}
