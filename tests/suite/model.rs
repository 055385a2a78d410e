//! A model of the apply, to be read beside `src/apply/mod.rs`: its steps have the names of the code.
//!
//! The model follows one number through everything that can happen to it, in every order: [`Event`] lists what can happen, and
//! [`State::after`] says what it does. A breadth-first search visits every state that can be reached, and checks the promises in
//! each. No bound limits how often something happens. There is no time either: what can happen next, happens at once or never.
//!
//! Then the search runs once for each way to break the protocol ([`Break`]). It must find a history that breaks a promise, so no
//! part of the protocol can be left out. It prints the shortest history; see it with `--nocapture`.
//!
//! The model assumes this of Asterisk; other tests try it on a real one (`lasting`, `killed`, `hammering`, `histories`, `reloads`):
//!
//! - It handles a REGISTER, from the authentication to the row, in one task of one queue.
//! - It runs one reload at a time, and drops a second one: so it says whether one is running. A reload reads the file once for each type.
//! - It runs "commit, begin, delete, commit, begin" in one command under one lock, and prints `committed` only if it has committed.
//! - If its commit fails, or if it is killed, its database goes back to the last commit.

use std::collections::{HashMap, VecDeque};

use Break::*;
use Event::*;
use Owner::*;
use Step::*;
use Then::*;

/// Those who have the number, one after another. Each has a secret of their own, and a phone that never forgets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Owner {
    Alice,
    Bob,
    Carol,
}

const OWNERS: [Owner; 3] = [Alice, Bob, Carol];

/// What Asterisk loads from our file, type by type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Type {
    Endpoint,
    Auth,
    Aor,
}

const TYPES: [Type; 3] = [Type::Endpoint, Type::Auth, Type::Aor];

/// Some of the owners' phones: those that have a row, say.
type Phones = [bool; OWNERS.len()];

const NONE: Phones = [false; OWNERS.len()];

/// Everything that decides what can happen next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct State {
    /// On the disk: the owner who has the number's section in our endpoints file.
    file: Option<Owner>,
    /// On the disk: the rows (registrations) in Asterisk's database, as last committed.
    committed: Phones,
    /// In Asterisk: the owner from whose section each type was loaded.
    in_force: [Option<Owner>; TYPES.len()],
    /// In Asterisk: the types that the running reload, or the start, has yet to read.
    to_read: [bool; TYPES.len()],
    /// In Asterisk: what it has read from the file, and not put in force yet.
    read: Option<(Type, Option<Owner>)>,
    /// In Asterisk: the REGISTERs that were authenticated, and have no row yet. Each phone has a queue.
    accepted: Phones,
    /// In Asterisk: the rows as it sees them. Where they differ from `committed`, its transaction is open.
    rows: Phones,
    /// Another process reads Asterisk's database, so a commit fails.
    reader: bool,
    /// The apply that runs.
    apply: Option<Apply>,
    /// The last apply that succeeded was for this owner, and none has begun for anybody else.
    served: Option<Owner>,
    /// An apply removed a registration of the owner in `served`.
    own_removed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Apply {
    /// Who has the number in the snapshot of the database, if anybody.
    owner: Option<Owner>,
    /// Whether the number changes hands.
    changing: bool,
    /// The step that comes next.
    step: Step,
}

/// The steps of an apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Look,
    /// The end of `look`, if the number changes hands: `wait_until_none_runs`.
    SeeNoReload,
    Prepare,
    RemoveObjectsRename,
    RemoveObjectsReload,
    RemoveObjectsSeeNone,
    WorkOffQueues(Owner),
    DeleteAndCommit,
    /// Not in the protocol, but in the one that is broken by [`TwoCommands`].
    CommitAsASecondCommand,
    SeeNoContactLeft,
    GiveRename,
    GiveReload,
    EvictWithoutUser,
    Prove,
}

/// What an apply does after a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Next(Step),
    /// Tries the step again later.
    Waits,
    /// It has failed or succeeded.
    Ends,
}

#[derive(Clone, Copy)]
enum Event {
    /// An apply begins. Since the last one the database may have changed in any way: users were deleted and created, or a backup
    /// has brought an earlier owner back.
    ApplyBegins(Option<Owner>),
    /// The apply takes its next step, if it can.
    ApplyContinues,
    /// The portal is killed, or the apply gives up.
    ApplyEnds,
    /// A phone's REGISTER has the secret that is in force.
    Accepts(Owner),
    /// A REGISTER that was accepted gets its row. (In Asterisk that also removes the number's other row.)
    Stores(Owner),
    /// A phone unregisters, or its registration expires.
    Disappears(Owner),
    /// An administrator runs a reload.
    Reloads,
    /// The running reload reads the file for one type.
    Reads(Type),
    /// It puts what it has read in force.
    TakesEffect,
    /// It refuses the file for one type, and keeps what is in force.
    Refuses(Type),
    /// Asterisk commits by itself, or fails to and rolls back.
    Commits,
    /// Asterisk is killed and starts again. It answers the portal's commands before it has loaded the file.
    AsteriskDies,
    ReaderComes,
    ReaderGoes,
}

/// Ways to break the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    NothingTakenAway,
    QueuesNotWaitedFor,
    TwoCommands,
    VerdictIgnored,
    GivenBeforeEvicted,
    /// A number whose secret is neither in force nor in the file is taken as handed over already.
    NotInForceIsHandedOver,
    /// A reload that Asterisk dropped, because another was running, is not sent again.
    DroppedReloadForgotten,
    /// A reload may be running that read the file before an earlier apply renamed it and was killed.
    RunningReloadOverlooked,
    /// Every number is taken as changing hands.
    EveryNumberChangesHands,
}

impl State {
    /// Alice has the number, and no phone has registered yet.
    fn first() -> Self {
        Self { file: Some(Alice), in_force: [Some(Alice); TYPES.len()], served: Some(Alice), ..Self::default() }
    }

    /// The state after an event, or nothing if it can't happen now.
    fn after(mut self, event: Event, broken: Option<Break>) -> Option<Self> {
        let can_happen = match event {
            ApplyBegins(owner) => {
                let may_begin = self.apply.is_none();
                self.begin(owner);
                may_begin
            }
            ApplyContinues => self.apply.is_some_and(|mut apply| {
                let then = self.take_step(&mut apply, broken);
                self.apply = if let Next(step) = then { Some(Apply { step, ..apply }) } else { None };
                then != Waits
            }),
            ApplyEnds => self.apply.take().is_some(),
            // Asterisk needs the AOR a moment later; the model does not ask whether it is there.
            Accepts(owner) => {
                let [endpoint, auth, _] = self.in_force;
                self.accepted[owner as usize] = true;
                endpoint.is_some() && auth == Some(owner)
            }
            Stores(owner) => {
                let waits = self.accepted[owner as usize];
                self.accepted[owner as usize] = false;
                self.rows[owner as usize] = true;
                waits
            }
            Disappears(owner) => {
                let was_there = self.rows[owner as usize];
                self.rows[owner as usize] = false;
                was_there
            }
            Reloads => self.reload(),
            Reads(kind) => {
                let is_next = self.to_read[kind as usize] && self.read.is_none();
                self.to_read[kind as usize] = false;
                self.read = Some((kind, self.file));
                is_next
            }
            TakesEffect => self.read.take().is_some_and(|(kind, owner)| {
                self.in_force[kind as usize] = owner;
                true
            }),
            Refuses(kind) => std::mem::take(&mut self.to_read[kind as usize]),
            Commits => {
                if !self.commit() {
                    self.rows = self.committed;
                }
                true
            }
            AsteriskDies => {
                self.in_force = [None; TYPES.len()];
                self.to_read = [true; TYPES.len()];
                self.read = None;
                self.accepted = NONE;
                self.rows = self.committed;
                true
            }
            ReaderComes => !std::mem::replace(&mut self.reader, true),
            ReaderGoes => std::mem::replace(&mut self.reader, false),
        };
        can_happen.then_some(self)
    }

    fn begin(&mut self, owner: Option<Owner>) {
        self.apply = Some(Apply { owner, changing: false, step: Look });
        if self.served != owner {
            self.served = None;
        }
    }

    /// Whether the number changes hands: unless its secret is the one in force or, if none is in force, the one in our file.
    fn changes_hands(&self, owner: Owner, broken: Option<Break>) -> bool {
        let [_, secret_in_force, _] = self.in_force;
        match broken {
            Some(NothingTakenAway) => false,
            Some(EveryNumberChangesHands) => true,
            Some(NotInForceIsHandedOver) => secret_in_force.is_some_and(|had| had != owner),
            _ => secret_in_force.or(self.file) != Some(owner),
        }
    }

    /// One step of the apply.
    fn take_step(&mut self, apply: &mut Apply, broken: Option<Break>) -> Then {
        let breaks = |this: Break| broken == Some(this);
        let next_if = |is_so: bool, step: Step| if is_so { Next(step) } else { Ends };
        let next_once = |is_so: bool, step: Step| if is_so { Next(step) } else { Waits };
        match apply.step {
            Look => {
                apply.changing = apply.owner.is_some_and(|owner| self.changes_hands(owner, broken));
                Next(if apply.changing { SeeNoReload } else { Prepare })
            }
            SeeNoReload => next_once(!self.is_reloading() || breaks(RunningReloadOverlooked), Prepare),
            // Writes temporary files, which nobody reads.
            Prepare => Next(if apply.changing { RemoveObjectsRename } else { GiveRename }),

            // `Run::take_away`.
            RemoveObjectsRename if self.file.is_none() && self.none_in_force() => Next(WorkOffQueues(Alice)),
            RemoveObjectsRename => {
                self.file = None;
                Next(RemoveObjectsReload)
            }
            RemoveObjectsReload => next_once(self.reload() || breaks(DroppedReloadForgotten), RemoveObjectsSeeNone),
            RemoveObjectsSeeNone if self.is_reloading() && !breaks(DroppedReloadForgotten) => Waits,
            RemoveObjectsSeeNone => next_if(self.none_in_force(), WorkOffQueues(Alice)),
            WorkOffQueues(phone) => {
                let next = match phone {
                    Alice => WorkOffQueues(Bob),
                    Bob => WorkOffQueues(Carol),
                    Carol if breaks(GivenBeforeEvicted) => GiveRename,
                    Carol => DeleteAndCommit,
                };
                next_once(!self.accepted[phone as usize] || breaks(QueuesNotWaitedFor), next)
            }
            DeleteAndCommit => {
                self.delete();
                let is_committed = !breaks(TwoCommands) && self.commit();
                match broken {
                    Some(TwoCommands) => Next(CommitAsASecondCommand),
                    Some(VerdictIgnored) => Next(SeeNoContactLeft),
                    _ => Next(if is_committed { SeeNoContactLeft } else { DeleteAndCommit }),
                }
            }
            CommitAsASecondCommand => Next(if self.commit() { SeeNoContactLeft } else { DeleteAndCommit }),
            SeeNoContactLeft if breaks(GivenBeforeEvicted) => Next(Prove),
            SeeNoContactLeft => next_if(self.rows == NONE, GiveRename),

            // `Run::give`.
            GiveRename => {
                self.file = apply.owner;
                Next(GiveReload)
            }
            GiveReload if apply.changing && breaks(GivenBeforeEvicted) => next_once(self.reload(), DeleteAndCommit),
            GiveReload => next_once(self.reload(), EvictWithoutUser),
            EvictWithoutUser if self.is_reloading() => Waits,
            EvictWithoutUser => {
                if apply.owner.is_none() {
                    self.delete();
                    self.commit();
                }
                Next(Prove)
            }

            Prove => {
                if self.in_force == [apply.owner; TYPES.len()] {
                    self.served = apply.owner;
                }
                Ends
            }
        }
    }

    /// Begins a reload, unless one is running: then Asterisk drops it.
    fn reload(&mut self) -> bool {
        let begins = !self.is_reloading();
        if begins {
            self.to_read = [true; TYPES.len()];
        }
        begins
    }

    fn is_reloading(&self) -> bool {
        self.read.is_some() || self.to_read.contains(&true)
    }

    fn none_in_force(&self) -> bool {
        self.in_force.iter().all(Option::is_none)
    }

    fn delete(&mut self) {
        self.own_removed |= self.served.is_some_and(|owner| self.rows[owner as usize]);
        self.rows = NONE;
    }

    /// Returns whether it is committed. If somebody reads, the change stays pending.
    fn commit(&mut self) -> bool {
        if !self.reader {
            self.committed = self.rows;
        }
        !self.reader
    }

    /// The promise that does not hold in this state, if any.
    fn broken_promise(&self, broken: Option<Break>) -> Option<String> {
        let [endpoint, auth, aor] = self.in_force;
        if self.own_removed {
            return Some("an apply removed a registration of a number that did not change hands".to_owned());
        }
        if endpoint.is_some() && aor.is_some() {
            for phone in OWNERS.into_iter().filter(|&phone| self.rows[phone as usize]) {
                if let Some(owner) = [endpoint, auth].into_iter().flatten().find(|&owner| owner != phone) {
                    return Some(format!("a call for {owner:?} rings {phone:?}'s phone"));
                }
            }
        }
        // A history of a broken protocol should end with what somebody hears.
        (broken.is_none() && !self.is_clean()).then(|| "a wrong ring is possible".to_owned())
    }

    /// Why no phone rings for somebody else. As long as an owner's section is on the disk, read or in force, nobody else's
    /// registration is anywhere: no row, none that a rollback or a restart could bring back, and none yet to be stored.
    fn is_clean(&self) -> bool {
        let read = self.read.and_then(|(_, owner)| owner);
        let served = |owner| self.file == Some(owner) || read == Some(owner) || self.in_force.contains(&Some(owner));
        let registered =
            |phone| self.rows[phone as usize] || self.committed[phone as usize] || self.accepted[phone as usize];
        OWNERS.iter().all(|&owner| !served(owner) || OWNERS.iter().all(|&phone| phone == owner || !registered(phone)))
    }

    /// Whether an apply gives the number to `owner` if nothing disturbs it and Asterisk does what it has begun.
    fn an_undisturbed_apply_succeeds(mut self, owner: Owner) -> bool {
        self.reader = false;
        self.begin(Some(owner));
        let asterisk = [Stores(Alice), Stores(Bob), Stores(Carol), TakesEffect];
        let asterisk = asterisk.into_iter().chain(TYPES.map(Reads));
        let events: Vec<_> = asterisk.chain([ApplyContinues]).collect();
        while self.apply.is_some() {
            let next = events.iter().find_map(|&event| self.after(event, None));
            self = next.expect("an apply that is not disturbed never waits for ever");
        }
        self.served == Some(owner)
    }

    /// A line of a history.
    fn tell(&self, event: Event) -> String {
        match event {
            ApplyBegins(None) => "the number is free; an apply begins".to_owned(),
            ApplyBegins(Some(owner)) => format!("the number is {owner:?}'s; an apply begins"),
            ApplyContinues => format!("  apply: {:?}", self.apply.expect("it runs").step),
            ApplyEnds => "the portal is killed".to_owned(),
            Accepts(owner) => format!("    Asterisk accepts a REGISTER of {owner:?}'s phone"),
            Stores(owner) => format!("    Asterisk stores the registration of {owner:?}'s phone"),
            Disappears(owner) => format!("    {owner:?}'s phone unregisters"),
            Reloads => "an administrator begins a reload".to_owned(),
            Reads(kind) => format!("    Asterisk reads the file's {kind:?}"),
            TakesEffect => "    Asterisk puts it in force".to_owned(),
            Refuses(kind) => format!("    Asterisk refuses the file's {kind:?}"),
            Commits if self.reader => "    Asterisk's own commit fails: rollback".to_owned(),
            Commits => "    Asterisk commits".to_owned(),
            AsteriskDies => "Asterisk is killed and starts".to_owned(),
            ReaderComes => "somebody reads Asterisk's database".to_owned(),
            ReaderGoes => "nobody reads it any more".to_owned(),
        }
    }
}

/// All that can happen, with or without kills and files that Asterisk refuses. Of the shortest histories, the search finds the one
/// with the first events.
fn events(owners: &[Owner], faults: bool) -> Vec<Event> {
    let mut events = Vec::new();
    events.extend(owners.iter().flat_map(|&owner| [Accepts(owner), Stores(owner), ApplyBegins(Some(owner))]));
    events.extend([ApplyBegins(None), ApplyContinues, TakesEffect]);
    events.extend(TYPES.map(Reads));
    events.extend([Commits, ReaderComes, ReaderGoes, Reloads]);
    events.extend(owners.iter().map(|&owner| Disappears(owner)));
    if faults {
        events.extend([ApplyEnds, AsteriskDies]);
        events.extend(TYPES.map(Refuses));
    }
    events
}

/// Visits all states, nearest first, until a promise is broken. Returns the states, or the shortest history.
fn search(events: &[Event], broken: Option<Break>) -> Result<Vec<State>, Vec<String>> {
    let mut came_from = HashMap::from([(State::first(), None)]);
    let mut to_visit = VecDeque::from([State::first()]);
    while let Some(state) = to_visit.pop_front() {
        if let Some(promise) = state.broken_promise(broken) {
            let mut history = vec![promise];
            let mut at = state;
            while let Some((before, event)) = came_from[&at] {
                history.push(State::tell(&before, event));
                at = before;
            }
            history.reverse();
            return Err(history);
        }
        for &event in events {
            if let Some(next) = state.after(event, broken) {
                came_from.entry(next).or_insert_with(|| {
                    to_visit.push_back(next);
                    Some((state, event))
                });
            }
        }
    }
    Ok(came_from.into_keys().collect())
}

#[test]
fn the_promises_hold_in_every_state() {
    let states = search(&events(&OWNERS, true), None);
    let states = states.unwrap_or_else(|history| panic!("a promise is broken:\n{}", history.join("\n")));
    println!("The promises hold in all {} states.", states.len());

    let has_taken_over = |state: &State| state.served == Some(Carol) && state.rows[Carol as usize];
    assert!(states.iter().any(has_taken_over), "no apply gives the number to Carol's phone");
    let mut before_an_apply = states.iter().filter(|state| state.apply.is_none());
    assert!(
        before_an_apply.all(|state| state.an_undisturbed_apply_succeeds(Bob)),
        "an apply does not repair everything"
    );
}

#[test]
fn each_part_of_the_protocol_is_needed() {
    const WRONG_RING: &str = "a call for ";
    for (broken, faults, promise) in [
        (NothingTakenAway, false, WRONG_RING),
        (QueuesNotWaitedFor, false, WRONG_RING),
        (TwoCommands, false, WRONG_RING),
        (VerdictIgnored, false, WRONG_RING),
        (GivenBeforeEvicted, false, WRONG_RING),
        (NotInForceIsHandedOver, false, WRONG_RING),
        (DroppedReloadForgotten, true, WRONG_RING),
        (RunningReloadOverlooked, true, WRONG_RING),
        (EveryNumberChangesHands, false, "an apply removed a registration of a number that did not change hands"),
    ] {
        let found = search(&events(&[Alice, Bob], faults), Some(broken));
        let history = found.expect_err("a broken protocol breaks no promise");
        println!("\n{broken:?}, {} events:\n{}", history.len() - 1, history.join("\n"));
        assert!(history[history.len() - 1].starts_with(promise), "{broken:?}");
    }
}
