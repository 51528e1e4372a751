//! The order of a plan. Rooms push steps as they come to them; what must be before what is said by
//! phases, by slots, by who makes whom, and by the order in which a room pushed the steps of one
//! task. Within that the order of pushing stays, so that the same images give the same plan.
//!
//! A cycle, or a slot that nobody fills in time, is a fault of a room or of the images: it is told
//! with the entries that take part, and nothing is run.

use super::routine::Routine;
use super::slots::{gives, needs};
use super::step::{Actor, Op, SlotId, Step};
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
///
/// Rooms push nearly everything in an order in which it can run, and then that is the order: the
/// edges of a phase are only gathered if one of them leads backwards.
pub fn in_order(steps: Vec<Step>) -> Result<Vec<Step>, OrderError> {
    let givers = Givers::of(&steps)?;
    givers.check(&steps)?;
    let makers = makers_of(&steps);
    let mut order: Vec<usize> = (0..steps.len()).collect();
    order.sort_by_key(|&at| steps[at].phase);
    for phase in order.chunk_by_mut(|&a, &b| steps[a].phase == steps[b].phase) {
        if !runs_as_pushed(&steps, phase, &givers, &makers) {
            sort(&steps, phase, &givers, &makers)?;
        }
    }
    Ok(permuted(steps, &order))
}

/// Brings each step of `order` to its place, without a second list of them.
fn permuted(mut steps: Vec<Step>, order: &[usize]) -> Vec<Step> {
    let mut place: Vec<usize> = vec![0; order.len()];
    for (to, &from) in order.iter().enumerate() {
        place[from] = to;
    }
    for at in 0..steps.len() {
        while place[at] != at {
            let to = place[at];
            steps.swap(at, to);
            place.swap(at, to);
        }
    }
    steps
}

fn tell(step: &Step) -> String {
    format!("{} in {:?}: {}", step.actor, step.phase, step.origin)
}

/// The step that fills each slot, by the number of the slot.
struct Givers(Vec<Option<usize>>);

impl Givers {
    fn of(steps: &[Step]) -> Result<Givers, OrderError> {
        let mut givers = Givers(Vec::new());
        let mut twice = None;
        for (at, step) in steps.iter().enumerate() {
            gives(step, &mut |slot| {
                if let Some(first) = givers.insert(slot, at) {
                    twice.get_or_insert((slot, first, at));
                }
            });
        }
        match twice {
            None => Ok(givers),
            Some((slot, first, second)) => Err(OrderError::FilledTwice {
                slot,
                first: tell(&steps[first]),
                second: tell(&steps[second]),
            }),
        }
    }

    /// Slots are numbered from 0 by the planner, so the list has no more places than needed.
    fn insert(&mut self, slot: SlotId, at: usize) -> Option<usize> {
        let index = slot.0 as usize;
        if self.0.len() <= index {
            self.0.resize(index + 1, None);
        }
        self.0[index].replace(at)
    }

    fn get(&self, slot: SlotId) -> Option<usize> {
        self.0.get(slot.0 as usize).copied().flatten()
    }

    /// Every slot that is needed is filled in time.
    fn check(&self, steps: &[Step]) -> Result<(), OrderError> {
        for step in steps {
            let mut wrong = None;
            needs(step, &mut |slot| {
                let in_time = self
                    .get(slot)
                    .is_some_and(|giver| steps[giver].phase <= step.phase);
                if !in_time {
                    wrong.get_or_insert(slot);
                }
            });
            if let Some(slot) = wrong {
                let giver = match self.get(slot) {
                    Some(at) => format!("only {} fills", tell(&steps[at])),
                    None => "nobody fills".to_owned(),
                };
                let user = tell(step);
                return Err(OrderError::Unfilled { slot, user, giver });
            }
        }
        Ok(())
    }

    /// Whether a slot holds a descriptor, not only the fact that a step is done.
    fn is_descriptor(&self, steps: &[Step], slot: SlotId) -> bool {
        self.get(slot)
            .is_some_and(|giver| steps[giver].done != Some(slot))
    }
}

/// Whether nothing in a phase waits for what was pushed behind it. The other edges follow the
/// order of pushing by themselves.
fn runs_as_pushed(
    steps: &[Step],
    phase: &[usize],
    givers: &Givers,
    makers: &HashMap<Actor, usize>,
) -> bool {
    phase.iter().all(|&at| {
        let step = &steps[at];
        let is_later = |other: usize| other > at && steps[other].phase == step.phase;
        let mut forward = true;
        needs(step, &mut |slot| {
            forward &= !givers.get(slot).is_some_and(is_later);
        });
        let maker = match step.actor {
            Actor::Broker => None,
            actor => makers.get(&actor).copied(),
        };
        forward && !maker.is_some_and(is_later)
    })
}

/// Who comes before whom inside a phase, as (earlier, later).
fn edges(
    steps: &[Step],
    phase: &[usize],
    givers: &Givers,
    makers: &HashMap<Actor, usize>,
) -> Vec<(usize, usize)> {
    let mut edges = Vec::new();
    // The steps of one task are a story: descriptor 0 is taken, mapped and closed in this order.
    let mut last_of: HashMap<Actor, usize> = HashMap::new();
    // The broker has many stories at once, one for each slot: socket, options, bind, listen.
    let mut last_on: HashMap<SlotId, usize> = HashMap::new();
    let mut users: HashMap<SlotId, Vec<usize>> = HashMap::new();
    for &at in phase {
        let step = &steps[at];
        edges.extend(makers.get(&step.actor).map(|&maker| (maker, at)));
        let is_broker = step.actor == Actor::Broker;
        if !is_broker {
            edges.extend(last_of.insert(step.actor, at).map(|last| (last, at)));
        }
        needs(step, &mut |slot| {
            edges.extend(givers.get(slot).map(|giver| (giver, at)));
            if is_broker && givers.is_descriptor(steps, slot) {
                edges.extend(last_on.insert(slot, at).map(|last| (last, at)));
            }
            let users = users.entry(slot).or_default();
            if matches!(step.op, Op::Routine(Routine::Close { .. })) {
                edges.extend(users.iter().map(|&user| (user, at)));
            }
            users.push(at);
        });
    }
    edges.retain(|&(from, to)| from != to && steps[from].phase == steps[to].phase);
    edges
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

/// Sorts the steps of one phase, given in the order of pushing.
fn sort(
    steps: &[Step],
    phase: &mut [usize],
    givers: &Givers,
    makers: &HashMap<Actor, usize>,
) -> Result<(), OrderError> {
    let edges = edges(steps, phase, givers, makers);
    let mut later: HashMap<usize, Vec<usize>> = HashMap::new();
    let mut waits: HashMap<usize, usize> = HashMap::new();
    for &(from, to) in &edges {
        later.entry(from).or_default().push(to);
        *waits.entry(to).or_default() += 1;
    }
    let free = phase.iter().filter(|at| !waits.contains_key(at));
    let mut ready: BinaryHeap<Reverse<usize>> = free.copied().map(Reverse).collect();
    let mut order = Vec::with_capacity(phase.len());
    while let Some(Reverse(at)) = ready.pop() {
        order.push(at);
        for &next in later.get(&at).into_iter().flatten() {
            if let Some(waiting) = waits.get_mut(&next) {
                *waiting -= 1;
                if *waiting == 0 {
                    ready.push(Reverse(next));
                }
            }
        }
    }
    if order.len() < phase.len() {
        return Err(cycle(steps, &edges, &order));
    }
    phase.copy_from_slice(&order);
    Ok(())
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
    use super::super::step::{Call, Origin, Phase, Ret};
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
        take.op = Op::take(SlotId(0), 0);
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
