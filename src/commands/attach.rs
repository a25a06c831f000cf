//! `attach` and `detach`: make our snippet a guest's hookscript, and give back the one that it had.

use crate::attach::{self, Decision, Extent, Facts, Hookscript, Step, with_earlier};
use crate::chain::{self, is_ours};
use crate::cli::{Attach, Detach, Guests, Manner};
use crate::commands::confirm::confirm;
use crate::commands::session;
use crate::commands::snippet::{Place, not_on_path};
use crate::exit::{Coded, Exit};
use crate::process::{Failed, Runner, System};
use crate::pve::guest::Guest;
use crate::pve::load::load;
use crate::pve::node::{all_guests, node_name, quorate};
use crate::pve::snippet;
use crate::pve::storage::{self, StorageConfig};
use crate::reading::Reading;
use crate::report::attach::{Outcome, Report, Row};
use crate::report::json::printed;
use crate::report::{plain, text};
use crate::root::Root;
use crate::settings::{Mode, Settings};
use anyhow::{Result, bail};

/// Attaches guests.
pub fn attach(root: &Root, options: &Attach) -> Result<Exit> {
    let here = Here::read(root, &options.guests)?;
    let (place, against) = Place::on(&here.storages, &options.storage)?;
    let there = place.is_there(root)?;
    let decide = |facts: &Facts| attach::attach(facts, &place.volid, &here.extent);
    let mut work = Work::plan(&here, decide)?;
    let attached =
        |(_, decision): &(Facts, Decision)| matches!(decision, Decision::Change(_) | Decision::Nothing(_));
    let needed = work.guests.iter().any(attached);
    if needed {
        let text = if there { "is at" } else { "is to be written to" };
        work.report.snippet = Some(place.placed(format!("{text} {}", place.path)));
        work.report.notes.extend(against.into_iter().chain(not_on_path(root)));
        work.prepare = !there;
    }
    work.elsewhere(&here, "attach");
    if needed && options.manner.dry_run {
        work.report.nodes = place.elsewhere(&System, &here.extent.node);
    }
    let install = || {
        if needed && !there { place.install(root) } else { Ok(()) }
    };
    let finish = |report: &mut Report| {
        if needed {
            report.nodes = place.elsewhere(&System, &here.extent.node);
            if !there {
                report.snippet = Some(place.placed(format!("was written to {}", place.path)));
            }
        }
    };
    work.run(root, &options.manner, "attached", install, finish)
}

/// Detaches guests.
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

    fn facts(&self, vmid: u32) -> Result<Facts> {
        let guest = load(self.root, vmid)?.0;
        let storages = guest.disks.iter().map(|disk| &disk.storage);
        let off = self.settings.for_guest(vmid, storages).mode == Mode::Off;
        let (earlier, unreadable) = match chain::remembered(self.root, vmid) {
            Ok(earlier) => (earlier, None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        Ok(Facts {
            vmid,
            kind: guest.kind,
            lock: guest.locked().map(str::to_owned),
            has_rbd: !guest.disks.is_empty(),
            off,
            hookscript: self.hookscript(&guest),
            earlier,
            unreadable,
            node: guest.node,
            name: guest.name,
        })
    }

    fn hookscript(&self, guest: &Guest) -> Option<Hookscript> {
        let volid = guest.hookscript.clone()?;
        let path = snippet::path(&self.storages, &volid);
        let named = snippet::parse(&volid).is_some_and(|(_, name)| name == chain::NAME);
        let ours = named || path.as_ref().is_ok_and(|path| is_ours(&self.root.path(path)));
        let trouble = path.and_then(|path| snippet::check(self.root, &path, &volid)).err();
        Some(Hookscript { volid, ours, trouble })
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
                carry_out(root, facts, steps, done, row);
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

fn carry_out(root: &Root, facts: &Facts, steps: &[Step], done: &str, row: &mut Row) {
    let result = steps.iter().try_for_each(|step| take(root, facts, step));
    match result.and_then(|()| verify(root, facts, steps)) {
        Ok(earlier) => {
            row.outcome = Outcome::Done;
            row.text = describe(done, steps, earlier.as_deref());
        }
        Err(error) => {
            if steps.iter().any(|step| matches!(step, Step::Remember(_))) {
                if let Err(error) = put_back(root, facts) {
                    errln!("rbd-preflight: {}", plain(&format!("{error:#}")));
                }
            }
            (row.outcome, row.text) = failure(&error);
        }
    }
}

fn take(root: &Root, facts: &Facts, step: &Step) -> Result<()> {
    match step {
        Step::Remember(volid) => chain::remember(root, facts.vmid, volid),
        Step::Forget => chain::forget(root, facts.vmid),
        Step::Set(_) | Step::Delete => match step.command(facts.kind, facts.vmid) {
            Some(command) => System.run(&command)?.check().map(drop),
            None => Ok(()),
        },
    }
}

/// What was remembered before is remembered again, if PVE has really not taken our snippet: a command may fail
/// after it did its work.
fn put_back(root: &Root, facts: &Facts) -> Result<()> {
    let before = facts.hookscript.as_ref().map(|script| &script.volid);
    if load(root, facts.vmid)?.0.hookscript.as_ref() != before {
        return Ok(());
    }
    match &facts.earlier {
        Some(volid) => chain::remember(root, facts.vmid, volid),
        None => chain::forget(root, facts.vmid),
    }
}

/// The config says what it should; the earlier script that is remembered now.
fn verify(root: &Root, facts: &Facts, steps: &[Step]) -> Result<Option<String>> {
    let wanted = steps.iter().find_map(|step| match step {
        Step::Set(volid) => Some(Some(volid)),
        Step::Delete => Some(None),
        Step::Remember(_) | Step::Forget => None,
    });
    if let Some(wanted) = wanted {
        let found = load(root, facts.vmid)?.0;
        if found.hookscript.as_ref() != wanted {
            let found = found.hookscript.as_deref().unwrap_or("none");
            bail!("PVE reported success, but its config names the hookscript {found}");
        }
    }
    chain::remembered(root, facts.vmid)
}

fn describe(done: &str, steps: &[Step], earlier: Option<&str>) -> String {
    match steps {
        [Step::Forget] => "was not attached; what was remembered of it is forgotten".to_owned(),
        [Step::Set(volid), Step::Forget] => format!("{done}; its hookscript is {volid} again"),
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
        _ => (Outcome::Failed, format!("{error:#}")),
    }
}

fn last_line(text: &str) -> &str {
    text.trim_end().lines().last().unwrap_or_default()
}
