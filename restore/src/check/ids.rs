//! User and group ids that this user namespace does not have, and groups that it cannot set:
//! where an ordinary user restores, in a user namespace of its own (user_namespaces(7)).

use super::Subject;
use crate::plan::step::{Arg, Call, Op};
use crust_cli::code::Code;
use crust_cli::finding::Finding;
use std::collections::BTreeSet;
use std::fs;

const HOW: &str = "restore in a user namespace that has it: unshare --user --map-current-user \
    --keep-caps --pid --fork --mount-proc";

/// Ids of a kind that are mapped: the first and how many, as in uid_map.
type Map = Vec<(u64, u64)>;

/// Each id that cannot be given to a task, once.
pub fn check(subject: &Subject<'_>) -> Vec<Finding> {
    let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let denied = read("setgroups").trim() == "deny";
    let (users, groups) = (parse_map(&read("uid_map")), parse_map(&read("gid_map")));
    let calls = subject.steps.iter().filter_map(|step| match &step.op {
        Op::Call(call) | Op::LastCall(call) => Some(call),
        _ => None,
    });
    let mut found = BTreeSet::new();
    for call in calls {
        let (kind, map) = match call.name {
            "setresuid" | "setfsuid" => ("user", &users),
            "setresgid" | "setfsgid" => ("group", &groups),
            "setgroups" if denied => {
                found.insert(("groups", 0));
                continue;
            }
            _ => continue,
        };
        let unmapped = numbers(call).filter(|id| !is_mapped(map, *id));
        found.extend(unmapped.map(|id| (kind, id)));
    }
    found.into_iter().map(finding).collect()
}

fn finding((kind, id): (&str, u64)) -> Finding {
    if kind == "groups" {
        let what = "cannot be set in this user namespace (/proc/self/setgroups says deny), and are \
            not those of crust-restore, as far as it can see them";
        return Finding::error(Code::Privilege, "supplementary groups", what).remedy(
            "run as root, or in a user namespace whose groups root or newgidmap has mapped",
        );
    }
    let what = "is not mapped in this user namespace";
    Finding::error(Code::Privilege, format!("{kind} id {id}"), what).remedy(HOW)
}

fn numbers(call: &Call) -> impl Iterator<Item = u64> {
    call.args.iter().filter_map(|arg| match arg {
        Arg::Int(id) => u64::try_from(*id).ok(),
        _ => None,
    })
}

fn is_mapped(map: &Map, id: u64) -> bool {
    // A kernel without user namespaces has no such file, and all ids.
    map.is_empty()
        || map
            .iter()
            .any(|(first, count)| id >= *first && id - first < *count)
}

/// Lines of "first-here first-outside count".
fn parse_map(text: &str) -> Map {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let first = words.next()?.parse().ok()?;
        Some((first, words.nth(1)?.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_looked_up_in_the_map() {
        let all = parse_map("         0          0 4294967295\n");
        assert!(is_mapped(&all, 0) && is_mapped(&all, 65534));
        let one = parse_map("      1000       1000          1\n         5      100000  2\n");
        let mapped: Vec<u64> = [0, 4, 5, 6, 7, 999, 1000, 1001]
            .into_iter()
            .filter(|id| is_mapped(&one, *id))
            .collect();
        assert_eq!(mapped, [5, 6, 1000]);
        assert!(is_mapped(&parse_map(""), 7));
    }

    #[test]
    fn findings_name_the_id_and_the_way() {
        let told = finding(("user", 1000)).to_string();
        assert!(told.starts_with("user id 1000: is not mapped"), "{told}");
        assert!(told.contains("--map-current-user"), "{told}");
        assert!(finding(("groups", 0)).to_string().contains("setgroups"));
    }
}
