//! The order of a plan. Rooms push steps as they come to them; what must be before what is said by
//! phases, by slots, by who makes whom, and by the order in which a room pushed the steps of one
//! task. Within that the order of pushing stays, so that the same images give the same plan.
//!
//! A cycle, or a slot that nobody fills in time, is a fault of a room or of the images: it is told
//! with the entries that take part, and nothing is run.

use super::slots::slots_of;
use super::step::{Actor, Op, Phase, Routine, SlotId, Step};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

/// Why there is no order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Steps that wait for each other, as `actor phase: origin`.
    #[error("steps wait for each other: {}", .0.join(" <- "))]
    Cycle(Vec<String>),
    /// A slot that is used but filled by nobody, or by somebody in a later phase.
    #[error("{user} needs slot {}, which {giver}", .slot.0)]
    Unfilled {
        /// The slot.
        slot: SlotId,
        /// The step that uses it.
        user: String,
        /// Who fills it too late, or that nobody does.
        giver: String,
    },
    /// A slot that two steps fill.
    #[error("slot {} is filled by {first} and by {second}", .slot.0)]
    FilledTwice {
        /// The slot.
        slot: SlotId,
        /// The first step.
        first: String,
        /// The second step.
        second: String,
    },
}

/// Puts steps into the order in which they run: by phase, then a stable topological order.
pub fn in_order(steps: Vec<Step>) -> Result<Vec<Step>, OrderError> {
    let givers = givers_of(&steps)?;
    check_slots(&steps, &givers)?;
    let before = edges(&steps, &givers);
    let order = sort(&steps, &before)?;
    let mut steps: Vec<Option<Step>> = steps.into_iter().map(Some).collect();
    Ok(order
        .into_iter()
        .filter_map(|at| steps.get_mut(at)?.take())
        .collect())
}

fn tell(step: &Step) -> String {
    format!("{} in {:?}: {}", step.actor, step.phase, step.origin)
}

fn givers_of(steps: &[Step]) -> Result<HashMap<SlotId, usize>, OrderError> {
    let mut givers = HashMap::new();
    for (at, step) in steps.iter().enumerate() {
        for slot in slots_of(step).gives {
            if let Some(first) = givers.insert(slot, at) {
                return Err(OrderError::FilledTwice {
                    slot,
                    first: tell(&steps[first]),
                    second: tell(step),
                });
            }
        }
    }
    Ok(givers)
}

fn check_slots(steps: &[Step], givers: &HashMap<SlotId, usize>) -> Result<(), OrderError> {
    for step in steps {
        for slot in slots_of(step).needs {
            let giver = match givers.get(&slot) {
                Some(&at) if steps[at].phase <= step.phase => continue,
                Some(&at) => format!("only {} fills", tell(&steps[at])),
                None => "nobody fills".to_owned(),
            };
            let user = tell(step);
            return Err(OrderError::Unfilled { slot, user, giver });
        }
    }
    Ok(())
}

/// Who comes before whom inside a phase, as (earlier, later).
fn edges(steps: &[Step], givers: &HashMap<SlotId, usize>) -> Vec<(usize, usize)> {
    let mut edges = Vec::new();
    let makers = makers_of(steps);
    // The steps of one task are a story: descriptor 0 is taken, mapped and closed in this order.
    let mut last_of: HashMap<(Phase, Actor), usize> = HashMap::new();
    // The broker has many stories at once, one for each slot: socket, options, bind, listen.
    let mut last_on: HashMap<(Phase, SlotId), usize> = HashMap::new();
    let mut users: HashMap<(Phase, SlotId), Vec<usize>> = HashMap::new();
    for (at, step) in steps.iter().enumerate() {
        let slots = slots_of(step);
        for slot in &slots.needs {
            edges.extend(givers.get(slot).map(|&giver| (giver, at)));
        }
        if let Some(&maker) = makers.get(&step.actor) {
            edges.push((maker, at));
        }
        if step.actor == Actor::Broker {
            for slot in slots
                .needs
                .iter()
                .filter(|slot| is_descriptor(steps, givers, **slot))
            {
                edges.extend(
                    last_on
                        .insert((step.phase, *slot), at)
                        .map(|last| (last, at)),
                );
            }
        } else if let Some(last) = last_of.insert((step.phase, step.actor), at) {
            edges.push((last, at));
        }
        for slot in &slots.needs {
            let users = users.entry((step.phase, *slot)).or_default();
            if matches!(step.op, Op::Routine(Routine::Close { .. })) {
                edges.extend(users.iter().map(|&user| (user, at)));
            }
            users.push(at);
        }
    }
    edges.retain(|&(from, to)| from != to && steps[from].phase == steps[to].phase);
    edges
}

/// Whether a slot holds a descriptor, not only the fact that a step is done.
fn is_descriptor(steps: &[Step], givers: &HashMap<SlotId, usize>, slot: SlotId) -> bool {
    givers
        .get(&slot)
        .is_some_and(|&giver| steps[giver].done != Some(slot))
}

/// The step that makes each task and thread.
fn makers_of(steps: &[Step]) -> HashMap<Actor, usize> {
    let mut makers = HashMap::new();
    for (at, step) in steps.iter().enumerate() {
        match (&step.op, step.actor) {
            (Op::Fork { pid, .. }, _) => makers.insert(Actor::Task(*pid), at),
            (Op::Thread { tid }, Actor::Task(pid)) => {
                makers.insert(Actor::Thread { pid, tid: *tid }, at)
            }
            _ => None,
        };
    }
    makers
}

fn sort(steps: &[Step], edges: &[(usize, usize)]) -> Result<Vec<usize>, OrderError> {
    let mut later: Vec<Vec<usize>> = vec![Vec::new(); steps.len()];
    let mut waits = vec![0_usize; steps.len()];
    for &(from, to) in edges {
        later[from].push(to);
        waits[to] += 1;
    }
    let key = |at: usize| Reverse((steps[at].phase, at));
    let mut ready: BinaryHeap<Reverse<(Phase, usize)>> = (0..steps.len())
        .filter(|&at| waits[at] == 0)
        .map(key)
        .collect();
    let mut order = Vec::with_capacity(steps.len());
    while let Some(Reverse((_, at))) = ready.pop() {
        order.push(at);
        for &next in &later[at] {
            waits[next] -= 1;
            if waits[next] == 0 {
                ready.push(key(next));
            }
        }
    }
    if order.len() < steps.len() {
        return Err(cycle(steps, edges, &order));
    }
    // No edge leads from one phase to another: they only have to be put one behind the other.
    order.sort_by_key(|&at| steps[at].phase);
    Ok(order)
}

/// One cycle among the steps that found no place.
fn cycle(steps: &[Step], edges: &[(usize, usize)], placed: &[usize]) -> OrderError {
    let placed: BTreeSet<usize> = placed.iter().copied().collect();
    let mut waits_for: BTreeMap<usize, usize> = BTreeMap::new();
    for &(from, to) in edges {
        if !placed.contains(&from) && !placed.contains(&to) {
            waits_for.insert(to, from);
        }
    }
    // Every step left waits for another one left, so following that leads into a cycle.
    let mut seen = Vec::new();
    let mut at = waits_for.keys().next().copied();
    while let Some(step) = at {
        if let Some(start) = seen.iter().position(|&earlier| earlier == step) {
            seen.drain(..start);
            break;
        }
        seen.push(step);
        at = waits_for.get(&step).copied();
    }
    OrderError::Cycle(seen.iter().map(|&at| tell(&steps[at])).collect())
}

#[cfg(test)]
mod tests {
    use super::super::step::{Call, Origin, Ret};
    use super::*;
    use crust_image::ids::VirtPid;

    fn step(phase: Phase, actor: Actor, what: &str) -> Step {
        Step {
            phase,
            actor,
            op: Op::Call(Call::new("getpid", 39, vec![])),
            after: vec![],
            done: None,
            origin: Origin {
                image: "test.img".into(),
                entry: None,
                what: what.into(),
            },
        }
    }

    fn pid(number: u32) -> VirtPid {
        VirtPid::new(number).expect("a valid pid")
    }

    fn names(steps: &[Step]) -> Vec<&str> {
        steps.iter().map(|step| step.origin.what.as_str()).collect()
    }

    #[test]
    fn phases_come_first_and_pushing_order_stays() {
        let steps = vec![
            step(Phase::Fds, Actor::Broker, "late"),
            step(Phase::Open, Actor::Broker, "a"),
            step(Phase::Open, Actor::Broker, "b"),
        ];
        let ordered = in_order(steps).expect("no cycle");
        assert_eq!(names(&ordered), ["a", "b", "late"]);
    }

    #[test]
    fn a_slot_is_filled_before_it_is_used() {
        let mut user = step(Phase::Open, Actor::Broker, "user");
        user.after = vec![SlotId(1)];
        let mut giver = step(Phase::Open, Actor::Broker, "giver");
        giver.done = Some(SlotId(1));
        let ordered = in_order(vec![user, giver]).expect("no cycle");
        assert_eq!(names(&ordered), ["giver", "user"]);
    }

    #[test]
    fn the_steps_of_one_task_keep_their_order() {
        let task = Actor::Task(pid(5));
        let mut first = step(Phase::Memory, task, "first");
        first.after = vec![SlotId(1)];
        let second = step(Phase::Memory, task, "second");
        let mut giver = step(Phase::Memory, Actor::Broker, "giver");
        giver.done = Some(SlotId(1));
        let ordered = in_order(vec![first, second, giver]).expect("no cycle");
        assert_eq!(names(&ordered), ["giver", "first", "second"]);
    }

    #[test]
    fn a_task_acts_after_it_is_forked() {
        let child = step(Phase::Fork, Actor::Task(pid(6)), "child");
        let mut fork = step(Phase::Fork, Actor::Task(pid(5)), "fork");
        fork.op = Op::Fork {
            pid: pid(6),
            flags: 0,
            exit_signal: 17,
        };
        let ordered = in_order(vec![child, fork]).expect("no cycle");
        assert_eq!(names(&ordered), ["fork", "child"]);
    }

    #[test]
    fn a_close_waits_for_all_uses() {
        let mut open = step(Phase::Open, Actor::Broker, "open");
        open.op = Op::Call(Call::new("open", 2, vec![]).answers(Ret::Fd(SlotId(0))));
        let mut close = step(Phase::Memory, Actor::Broker, "close");
        close.op = Op::Routine(Routine::Close { slot: SlotId(0) });
        let mut take = step(Phase::Memory, Actor::Task(pid(5)), "take");
        take.op = Op::Take {
            slot: SlotId(0),
            at: 0,
        };
        take.after = vec![SlotId(1)];
        let mut late = step(Phase::Memory, Actor::Task(pid(6)), "late");
        late.done = Some(SlotId(1));
        let ordered = in_order(vec![open, take, close, late]).expect("no cycle");
        assert_eq!(names(&ordered), ["open", "late", "take", "close"]);
    }

    #[test]
    fn a_cycle_names_its_steps() {
        let mut a = step(Phase::Open, Actor::Broker, "a");
        (a.after, a.done) = (vec![SlotId(1)], Some(SlotId(0)));
        let mut b = step(Phase::Open, Actor::Broker, "b");
        (b.after, b.done) = (vec![SlotId(0)], Some(SlotId(1)));
        let error = in_order(vec![a, b]).expect_err("a cycle").to_string();
        assert!(
            error.contains("a (test.img)") && error.contains("b (test.img)"),
            "{error}"
        );
    }

    #[test]
    fn a_slot_filled_too_late_or_never_is_refused() {
        let mut user = step(Phase::Open, Actor::Broker, "user");
        user.after = vec![SlotId(1)];
        let error = in_order(vec![user.clone()])
            .expect_err("nobody")
            .to_string();
        assert!(error.contains("nobody fills"), "{error}");
        let mut giver = step(Phase::Fds, Actor::Broker, "giver");
        giver.done = Some(SlotId(1));
        let error = in_order(vec![user, giver])
            .expect_err("too late")
            .to_string();
        assert!(error.contains("only broker in Fds: giver"), "{error}");
    }
}
