//! `attach` and `detach`: make our snippet a guest's hookscript, and give back the one that it had.

use crate::cli::{Attach, Detach, Guests, Manner};
use crate::commands::confirm::confirm;
use crate::commands::session;
use crate::commands::snippet::{Place, elsewhere, not_on_path};
use crate::exit::{Coded, Exit};
use crate::hook::attach;
use crate::hook::attach::{Decision, Extent, Facts, Hookscript, Step, with_earlier};
use crate::hook::earlier;
use crate::hook::snippet::is_ours;
use crate::pve::guest::Guest;
use crate::pve::load::load;
use crate::pve::node::{all_guests, node_name, quorate};
use crate::pve::snippet;
use crate::pve::storage::{self, StorageConfig};
use crate::reading::{Reading, error_text};
use crate::report::attach::{Outcome, Report, Row};
use crate::report::json::printed;
use crate::report::text;
use crate::settings::{Mode, Settings};
use crate::sys::process::{Failed, Runner, System};
use crate::sys::root::Root;
use anyhow::{Result, bail};
use std::collections::BTreeSet;

/// Makes our snippet the hookscript of the guests named, and shows what was done to each.
pub fn attach(root: &Root, options: &Attach) -> Result<Exit> {
    let here = Here::read(root, &options.guests)?;
    let against = Place::on(&here.storages, &options.storage)?.1;
    let mut work = Work::plan(&here, |facts| attach::attach(facts, &options.storage, &here.extent))?;
    let places = work.places(&here.storages, &here.asked_elsewhere(&options.storage)?)?;
    let missing = places.iter().filter_map(|place| match place.is_there(root) {
        Ok(true) => None,
        Ok(false) => Some(Ok(place.clone())),
        Err(error) => Some(Err(error)),
    });
    let missing = missing.collect::<Result<Vec<Place>>>()?;
    let placed = |text: &str| {
        let told = |place: &Place| {
            let text = if missing.contains(place) { text } else { "is at" };
            place.placed(format!("{text} {}", place.path))
        };
        places.iter().map(told).collect::<Vec<_>>()
    };
    if !places.is_empty() {
        work.report.snippets = placed("is to be written to");
        work.report.notes.extend(against.into_iter().chain(not_on_path(root)));
        work.prepare = !missing.is_empty();
    }
    work.elsewhere(&here, "attach");
    if options.manner.dry_run {
        work.report.nodes = elsewhere(&places, &System, &here.extent.node);
    }
    let install = || missing.iter().try_for_each(|place| place.install(root));
    let finish = |report: &mut Report| {
        report.nodes = elsewhere(&places, &System, &here.extent.node);
        report.snippets = placed("was written to");
    };
    work.run(root, &options.manner, "attached", install, finish)
}

/// Gives the guests named their earlier hookscript back, or none.
pub fn detach(root: &Root, options: &Detach) -> Result<Exit> {
    let here = Here::read(root, &options.guests)?;
    let mut work = Work::plan(&here, |facts| attach::detach(facts, &here.extent))?;
    if here.extent.all {
        work.guests.retain(|(_, decision)| !matches!(decision, Decision::Nothing(_)));
    }
    work.elsewhere(&here, "detach");
    work.run(root, &options.manner, "detached", || Ok(()), |_| ())
}

/// What is read before anything is decided.
struct Here<'a> {
    root: &'a Root,
    vmids: Vec<u32>,
    others: usize,
    storages: StorageConfig,
    settings: Settings,
    extent: Extent,
}

impl<'a> Here<'a> {
    fn read(root: &'a Root, guests: &Guests) -> Result<Self> {
        let node = node_name(root)?;
        if quorate(root) == Reading::Known(false) {
            let why = "the cluster has no quorum: /etc/pve cannot be written, so nothing was changed";
            return Err(Coded::error(Exit::Refused, why));
        }
        let mut vmids = session::vmids(root, guests)?;
        let others = if guests.all { all_guests(root)?.len().saturating_sub(vmids.len()) } else { 0 };
        vmids.sort_unstable();
        vmids.dedup();
        let (storages, settings) = (storage::load(root)?, Settings::load(root)?);
        Ok(Self { root, vmids, others, storages, settings, extent: Extent { node, all: guests.all } })
    }

    /// Where all guests are meant: our snippet's names on this storage that guests of other nodes ask for. They may
    /// come here, and do not start where the snippet has no file of that name. One that cannot be read asks for none.
    fn asked_elsewhere(&self, storage: &str) -> Result<Vec<String>> {
        if !self.extent.all {
            return Ok(Vec::new());
        }
        let others = all_guests(self.root)?.into_iter().filter(|guest| guest.node != self.extent.node);
        let asked = others.filter_map(|guest| session::guest(self.root, guest.vmid).ok()?.hookscript);
        Ok(asked
            .filter(|volid| crate::hook::snippet::ours(volid).is_some_and(|ours| ours.storage == storage))
            .collect())
    }

    fn facts(&self, vmid: u32) -> Result<Facts> {
        let guest = load(self.root, vmid)?.0;
        let storages = guest.disks.iter().map(|disk| &disk.storage);
        let off = self.settings.for_guest(vmid, storages).mode == Mode::Off;
        Ok(Facts {
            vmid,
            kind: guest.kind,
            lock: guest.locked().map(str::to_owned),
            has_rbd: !guest.disks.is_empty(),
            off,
            hookscript: self.hookscript(&guest),
            left_behind: earlier::left_behind(self.root, vmid).map_err(|error| error_text(&error)),
            node: guest.node,
            name: guest.name,
        })
    }

    fn hookscript(&self, guest: &Guest) -> Option<Hookscript> {
        let volid = guest.hookscript.clone()?;
        let path = snippet::path(&self.storages, &volid);
        let named = crate::hook::snippet::ours(&volid);
        let ours = named.is_some() || path.as_ref().is_ok_and(|path| is_ours(&self.root.path(path)));
        let trouble = path.and_then(|path| snippet::check(self.root, &path, &volid)).err();
        Some(Hookscript { volid, ours, earlier: named.and_then(|ours| ours.earlier), trouble })
    }
}

/// What is to be done, and the report that it becomes.
struct Work {
    guests: Vec<(Facts, Decision)>,
    report: Report,
    /// There is something to do besides the guests.
    prepare: bool,
}

impl Work {
    fn plan(here: &Here<'_>, decide: impl Fn(&Facts) -> Decision) -> Result<Self> {
        let mut guests = Vec::new();
        for vmid in &here.vmids {
            let facts = here.facts(*vmid)?;
            let decision = decide(&facts);
            guests.push((facts, decision));
        }
        Ok(Self { guests, report: Report::default(), prepare: false })
    }

    /// Where the snippet is to be under the names that the guests ask for, or are to ask for.
    fn places(&self, storages: &StorageConfig, elsewhere: &[String]) -> Result<Vec<Place>> {
        let names = self.guests.iter().filter_map(|(facts, decision)| {
            let has = facts.hookscript.as_ref().map(|script| &script.volid);
            match decision {
                Decision::Change(steps) => steps.iter().find_map(Step::sets).or(has),
                Decision::Nothing(_) => has,
                Decision::Skip(_) | Decision::Refuse(_) => None,
            }
        });
        let names = names.filter(|volid| crate::hook::snippet::ours(volid).is_some());
        let names: BTreeSet<&String> = names.chain(elsewhere).collect();
        names.into_iter().map(|volid| Place::of(storages, volid)).collect()
    }

    fn elsewhere(&mut self, here: &Here<'_>, command: &str) {
        if here.others > 0 {
            let guests = text::count(here.others, "guest");
            self.report.notes.push(format!(
                "On other nodes: {guests}; `rbd-preflight {command} --all` there does the same for them."
            ));
        }
    }

    fn run(
        mut self,
        root: &Root,
        manner: &Manner,
        done: &str,
        prepare: impl FnOnce() -> Result<()>,
        finish: impl FnOnce(&mut Report),
    ) -> Result<Exit> {
        self.report.guests =
            self.guests.iter().map(|(facts, decision)| planned(facts, decision, done)).collect();
        if manner.dry_run {
            show(&self.report, manner, &self.report.script());
            return Ok(Exit::Ready);
        }
        if self.prepare || self.report.guests.iter().any(|row| row.outcome == Outcome::Planned) {
            confirm(manner.yes, || format!("This will be done:\n{}", self.report.script()))?;
        }
        prepare()?;
        for ((facts, decision), row) in self.guests.iter().zip(&mut self.report.guests) {
            if let Decision::Change(steps) = decision {
                take_all(root, facts, steps, done, row);
            }
        }
        finish(&mut self.report);
        show(&self.report, manner, &self.report.text());
        Ok(self.report.exit())
    }
}

fn show(report: &Report, manner: &Manner, text: &str) {
    if manner.json {
        outln!("{}", printed(&report.json()));
    } else {
        out!("{text}");
    }
}

fn planned(facts: &Facts, decision: &Decision, done: &str) -> Row {
    let (outcome, text, steps) = match decision {
        Decision::Change(steps) => (Outcome::Planned, format!("to be {done}"), steps.as_slice()),
        Decision::Nothing(why) => (Outcome::Unchanged, why.clone(), &[][..]),
        Decision::Skip(why) => (Outcome::Skipped, why.clone(), &[][..]),
        Decision::Refuse(why) => (Outcome::Refused, why.clone(), &[][..]),
    };
    let commands = steps.iter().map(|step| step.line(facts.kind, facts.vmid)).collect();
    Row { guest: facts.clone(), outcome, text, commands }
}

fn take_all(root: &Root, facts: &Facts, steps: &[Step], done: &str, row: &mut Row) {
    let result = steps.iter().try_for_each(|step| take(root, facts, step));
    match result.and_then(|()| verify(root, facts, steps)) {
        Ok(earlier) => {
            row.outcome = Outcome::Done;
            row.text = describe(done, steps, earlier.as_deref());
        }
        Err(error) => (row.outcome, row.text) = failure(&error),
    }
}

fn take(root: &Root, facts: &Facts, step: &Step) -> Result<()> {
    match step {
        Step::Forget => earlier::forget(root, facts.vmid),
        Step::Set(_) | Step::Delete => match step.command(facts.kind, facts.vmid) {
            Some(command) => System.run(&command)?.check().map(drop),
            None => Ok(()),
        },
    }
}

/// The config says what it should; the earlier script that is called by what it says.
fn verify(root: &Root, facts: &Facts, steps: &[Step]) -> Result<Option<String>> {
    let found = load(root, facts.vmid)?.0.hookscript;
    let wanted = steps.iter().find_map(|step| match step {
        Step::Set(volid) => Some(Some(volid)),
        Step::Delete => Some(None),
        Step::Forget => None,
    });
    if wanted.is_some_and(|wanted| found.as_ref() != wanted) {
        let found = found.as_deref().unwrap_or("none");
        bail!("PVE reported success, but its config names the hookscript {found}");
    }
    Ok(found.and_then(|volid| crate::hook::snippet::ours(&volid)?.earlier))
}

fn describe(done: &str, steps: &[Step], earlier: Option<&str>) -> String {
    match steps {
        [Step::Forget] => format!(
            "what an earlier version remembered for its number is forgotten; {}",
            with_earlier("nothing else was changed", earlier)
        ),
        [Step::Set(volid), ..] if crate::hook::snippet::ours(volid).is_none() => {
            format!("{done}; its hookscript is {volid} again")
        }
        _ => with_earlier(done, earlier),
    }
}

/// PVE's words for a lock that it did not get in time (`PVE::Tools::lock_file_full`).
fn failure(error: &anyhow::Error) -> (Outcome, String) {
    match error.downcast_ref::<Failed>() {
        Some(failed) if failed.stderr.contains("can't lock file") => (
            Outcome::Busy,
            format!(
                "another task is busy with it (PVE waited 10 s for its config's lock); try again when that is over. \
                 PVE said: {}",
                last_line(&failed.stderr)
            ),
        ),
        _ => (Outcome::Failed, error_text(error)),
    }
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().last().unwrap_or_default()
}
