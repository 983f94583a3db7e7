//! The thread of the plane. Nothing else writes into the maps.

use super::{PlaneOptions, Report, Services, Setup};
use crate::associations::{AssociationFilter, Associations, Done, Reader};
use crate::attach::{AttachError, Attachment, Change, Links, WantedInterface};
use crate::contents::kernel::Kernel;
use crate::contents::{Contents, Wanted};
use crate::contract::{EVENT_CRITICAL, EVENT_DEBUG, EVENT_ERROR, EVENT_INFO, EVENT_TRACE, EVENT_WARNING};
use crate::counting::{Counting, ServersLive};
use crate::defence::DarkAddresses;
use crate::events::EventReader;
use crate::load::takeover::Origin;
use crate::load::{Installed, LoadError, Sizes};
use crate::neighbours::{HopReport, Neighbours};
use crate::pin::Directory;
use evener_core::Time;
use evener_core::service::ServiceLive;
use evener_core::spec::{XdpEventLevel, XdpSpec};
use evener_core::table::ServiceTable;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Interval of counting.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// Interval of looking for interfaces that are missing.
const INTERFACES_EVERY: Duration = Duration::from_secs(2);

/// A loaded program with what was written into its maps.
struct Running {
    spec: XdpSpec,
    kernel: Kernel,
    links: Links,
    /// This process created the maps, and no configuration uses them yet.
    is_new: bool,
    contents: Contents,
    neighbours: Neighbours,
    counting: Counting,
    associations: Reader,
    events: Option<EventReader>,
}

/// Names of interfaces.
type Names = Vec<Arc<str>>;

/// An interface with the result of attaching the program to it.
type Attached = (String, Result<Attachment, AttachError>);

pub(super) struct Runner {
    options: PlaneOptions,
    wake: Arc<OwnedFd>,
    running: Option<Running>,
    /// The services in use.
    services: Services,
    /// Interfaces of the configuration in use, and of the next one.
    interfaces: Vec<Arc<str>>,
    next_interfaces: Vec<Arc<str>>,
    /// Interfaces with a problem that was reported.
    troubled: BTreeMap<String, String>,
    /// The last problem that was reported.
    problem: Option<String>,
    next_count: Time,
    next_interfaces_check: Time,
}

impl Running {
    fn open(spec: &XdpSpec, now: Time) -> Result<Self, LoadError> {
        let directory = Directory::open(&spec.pin)?;
        let sizes = Sizes { flows_v4: spec.flows, flows_v6: spec.flows };
        let Installed { maps, links, origin } = Installed::open(directory, sizes)?;
        let mut kernel = Kernel::new(maps)?;
        let found = kernel.found()?;
        let contents = Contents::taken_over(found, now);
        let mut neighbours = Neighbours::open().map_err(LoadError::Takeover)?;
        neighbours.begin_with(contents.hops());
        let counting = Counting::default();
        let events = kernel.maps().take_events().map(EventReader::new);
        let (is_new, associations) = (origin == Origin::New, Reader::default());
        let spec = spec.clone();
        Ok(Self { spec, kernel, links, is_new, contents, neighbours, counting, associations, events })
    }

    /// Writes the settings of the whole program.
    fn write_settings(&mut self, spec: &XdpSpec) -> Result<(), LoadError> {
        let settings = &mut self.kernel.maps().settings;
        let before = settings.get(&0, 0)?;
        let mut after = before;
        after.event_level = match spec.events {
            XdpEventLevel::Critical => EVENT_CRITICAL,
            XdpEventLevel::Error => EVENT_ERROR,
            XdpEventLevel::Warning => EVENT_WARNING,
            XdpEventLevel::Info => EVENT_INFO,
            XdpEventLevel::Debug => EVENT_DEBUG,
            XdpEventLevel::Trace => EVENT_TRACE,
        };
        after.events_per_second = spec.events_per_second;
        if after.key == 0 {
            after.key = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0).max(1);
        }
        if after != before {
            settings.set(0, after, 0)?;
        }
        self.spec = spec.clone();
        Ok(())
    }

    fn wanted<'a>(&self, tables: impl IntoIterator<Item = &'a ServiceTable>) -> Wanted {
        Wanted::derive(tables, self.spec.events >= XdpEventLevel::Debug)
    }

    /// Writes the services. Returns the reports about next hops.
    fn apply(&mut self, services: &Services, now: impl Fn() -> Time) -> Result<Vec<HopReport>, String> {
        let mut wanted = self.wanted(services.services.iter().map(|(table, _)| table));
        wanted.set_local_addresses(self.neighbours.local_addresses());
        wanted.set_tunnel_sources(|server| self.neighbours.source_to(server));
        let reports = self.neighbours.prepare(wanted.routed(), &now);
        let hops = self.neighbours.hops();
        let applied = self.contents.apply(wanted, hops, now(), &mut self.kernel);
        applied.map_err(|error| error.to_string())?;
        let lives: HashMap<Arc<str>, Arc<ServiceLive>> =
            services.services.iter().map(|(_, live)| (live.name.clone(), Arc::clone(live))).collect();
        let servers: &ServersLive = &services.servers;
        let counted = self.counting.configure(&self.contents, &lives, servers, self.kernel.maps());
        counted.map_err(|error| error.to_string())?;
        Ok(reports)
    }
}

impl Runner {
    pub(super) fn new(options: PlaneOptions, wake: Arc<OwnedFd>) -> Self {
        Self {
            options,
            wake,
            running: None,
            services: Services::default(),
            interfaces: Vec::new(),
            next_interfaces: Vec::new(),
            troubled: BTreeMap::new(),
            problem: None,
            next_count: Time::ZERO,
            next_interfaces_check: Time::ZERO,
        }
    }

    fn now(&self) -> Time {
        Time::since_origin(self.options.origin.elapsed())
    }

    fn report(&self, report: Report) {
        (self.options.report)(report);
    }

    /// Reports a problem once.
    fn report_problem(&mut self, result: Result<(), String>) {
        let problem = result.err();
        if self.problem != problem
            && let Some(problem) = &problem
        {
            self.report(Report::Problem(problem.clone()));
        }
        self.problem = problem;
    }

    pub(super) fn prepare(&mut self, setup: Setup) -> Result<(), Vec<String>> {
        if setup.interfaces.is_empty() {
            self.next_interfaces.clear();
            return Ok(());
        }
        let now = self.now();
        let before = self.running.as_ref().map(|running| running.spec.clone());
        let keeps_pin = before.as_ref().is_some_and(|old| old.pin == setup.spec.pin);
        let fits = keeps_pin && before.as_ref().is_some_and(|old| old.flows == setup.spec.flows);
        self.check_room(&setup, keeps_pin, now)?;
        let attached = self.links();
        // New maps take the place of the present ones, and a smaller map loses associations, so all else has to be
        // possible before.
        let tried = if keeps_pin { Some(self.attach(&setup)?) } else { None };
        if !fits {
            // The lock of the old directory ends first; its program goes on.
            self.running = None;
            match Running::open(&setup.spec, now) {
                Ok(running) => self.running = Some(running),
                Err(error) => {
                    self.restore(before, &attached);
                    return Err(vec![error.to_string()]);
                }
            }
        }
        let (names, results) = match tried.filter(|_| fits).map_or_else(|| self.attach(&setup), Ok) {
            Ok(attached) => attached,
            Err(problems) => {
                if !fits && before.is_some() {
                    self.restore(before, &attached);
                }
                return Err(problems);
            }
        };
        let Some(running) = &mut self.running else { return Ok(()) };
        running.write_settings(&setup.spec).map_err(|error| vec![error.to_string()])?;
        // A link may change before the services follow, and the attachment itself is such a change: the program stays
        // where it is attached until then.
        self.interfaces = names;
        self.next_interfaces = setup.interfaces;
        self.report_interfaces(results);
        Ok(())
    }

    /// Checks that the maps have room for the services, in place of the present ones or in other maps.
    fn check_room(&mut self, setup: &Setup, keeps_maps: bool, now: Time) -> Result<(), Vec<String>> {
        let wanted = Wanted::derive(&setup.services, setup.spec.events >= XdpEventLevel::Debug);
        let checked = match self.running.as_mut().filter(|_| keeps_maps) {
            Some(running) => running.contents.check(&wanted, now),
            None => Contents::default().check(&wanted, now),
        };
        checked.map_err(|error| vec![error.to_string()])
    }

    /// Returns the interfaces at which the program is attached.
    fn links(&self) -> Names {
        self.running.iter().flat_map(|running| running.links.names().map(Arc::from)).collect()
    }

    /// Attaches the program to the interfaces of a configuration, in addition to the present ones. Returns all
    /// interfaces. If one is refused, the present ones stay alone.
    fn attach(&mut self, setup: &Setup) -> Result<(Names, Vec<Attached>), Vec<String>> {
        let present = self.links();
        let mut names = present.clone();
        names.extend(setup.interfaces.iter().filter(|name| !present.contains(name)).cloned());
        let Some(running) = &mut self.running else { return Ok((names, Vec::new())) };
        let results = running.set_interfaces(&names, &setup.spec);
        let problems: Vec<String> = results
            .iter()
            .filter(|(name, _)| setup.interfaces.iter().any(|wanted| **wanted == **name))
            .filter_map(|(_, result)| result.as_ref().err().map(ToString::to_string))
            .collect();
        if problems.is_empty() {
            return Ok((names, results));
        }
        let spec = running.spec.clone();
        running.set_interfaces(&present, &spec);
        if present.is_empty() && running.is_new {
            self.remove();
        }
        Err(problems)
    }

    /// Returns to the maps of an earlier configuration, after a later one was refused.
    fn restore(&mut self, before: Option<XdpSpec>, attached: &[Arc<str>]) {
        self.running = None;
        let Some(before) = before else { return };
        let (now, origin) = (self.now(), self.options.origin);
        let restored =
            Running::open(&before, now).map_err(|error| error.to_string()).and_then(|mut running| {
                running.set_interfaces(attached, &before);
                let applied = running.apply(&self.services, || Time::since_origin(origin.elapsed()));
                self.running = Some(running);
                applied
            });
        self.report_problem(restored.map(drop));
    }

    pub(super) fn configure(&mut self, services: &Services) -> Result<(), String> {
        let origin = self.options.origin;
        self.interfaces = self.next_interfaces.clone();
        let Some(running) = &mut self.running else { return Ok(()) };
        let reports = running.apply(services, || Time::since_origin(origin.elapsed()))?;
        running.is_new = false;
        self.services = services.clone();
        self.report_hops(reports);
        if self.interfaces.is_empty() {
            // No service is left.
            self.remove();
            return Ok(());
        }
        self.set_interfaces();
        self.on_time();
        Ok(())
    }

    pub(super) fn update(&mut self, services: &Services) {
        let origin = self.options.origin;
        let Some(running) = &mut self.running else { return };
        match running.apply(services, || Time::since_origin(origin.elapsed())) {
            Ok(reports) => {
                self.services = services.clone();
                self.report_problem(Ok(()));
                self.report_hops(reports);
            }
            Err(problem) => self.report_problem(Err(problem)),
        }
    }

    /// Begins a list of associations.
    pub(super) fn list(&mut self, filter: AssociationFilter, most: usize, done: Done) {
        match &mut self.running {
            Some(running) => running.associations.list(running.contents.index(), filter, most, done),
            None => done(Associations::default()),
        }
    }

    fn set_interfaces(&mut self) {
        let Some(running) = &mut self.running else { return };
        let spec = running.spec.clone();
        let results = running.set_interfaces(&self.interfaces, &spec);
        let indices = results.iter().filter_map(|(_, result)| Some(result.as_ref().ok()?.index));
        let dark = running.write_dark(indices.collect());
        self.report_interfaces(results);
        if dark.is_err() {
            self.report_problem(dark);
        }
    }

    /// Reports interfaces to which the program was attached, and problems once.
    fn report_interfaces(&mut self, results: Vec<Attached>) {
        for (interface, result) in results {
            match result {
                Ok(Attachment { mode, not_native, change, .. }) => {
                    let was_troubled = self.troubled.remove(&interface).is_some();
                    if change != Change::None || was_troubled {
                        self.report(Report::Attached { interface, mode: mode.name(), not_native });
                    }
                }
                Err(error) => {
                    let error = error.to_string();
                    if self.troubled.get(&interface) != Some(&error) {
                        self.report(Report::Problem(error.clone()));
                        self.troubled.insert(interface, error);
                    }
                }
            }
        }
    }

    fn report_hops(&self, reports: Vec<HopReport>) {
        for report in reports {
            self.report(match report {
                HopReport::Missing(address, why) => Report::NoNextHop(address, why),
                HopReport::Found(address) => Report::NextHop(address),
            });
        }
    }

    /// Does all work that is due.
    pub(super) fn on_time(&mut self) {
        let now = self.now();
        let Some(running) = &mut self.running else { return };
        let decisions = running.events.as_mut().map(|events| events.read(&running.contents));
        let (changed, reports) = running.neighbours.on_time(now);
        let mut result = Ok(());
        if changed {
            result = running.contents.set_hops(running.neighbours.hops(), &mut running.kernel);
        }
        if running.neighbours.take_addresses_changed() {
            let local = running.neighbours.local_addresses();
            let changed =
                running.contents.set_local(local, running.neighbours.hops(), now, &mut running.kernel);
            result = result.and(changed);
        }
        let timely = running.contents.on_time(running.neighbours.hops(), now, &mut running.kernel);
        let result = result.and(timely).map_err(|error| error.to_string());
        if self.next_count <= now {
            self.next_count = now + COUNT_EVERY;
            // A failure shows in the counters, which stop.
            let _ = running.counting.count(running.kernel.maps());
        }
        let counts = running.associations.on_time(running.kernel.maps(), now, || running.contents.index());
        if let Some(counts) = counts {
            running.counting.set_associations(&counts);
        }
        let links_changed = running.neighbours.take_links_changed();
        if result.is_err() {
            self.report_problem(result);
        }
        for decision in decisions.into_iter().flatten() {
            self.report(Report::Decision(Box::new(decision)));
        }
        self.report_hops(reports);
        let is_check_due = !self.troubled.is_empty() && self.next_interfaces_check <= now;
        if links_changed || is_check_due {
            self.next_interfaces_check = now + INTERFACES_EVERY;
            self.set_interfaces();
        }
    }

    /// Waits until a command, a change of the network or the next work.
    pub(super) fn wait(&mut self) {
        let now = self.now();
        let mut due = Time::NEVER;
        if let Some(running) = &self.running {
            due = running.neighbours.deadline().min(running.contents.deadline()).min(self.next_count);
            due = due.min(running.associations.deadline());
            if !self.troubled.is_empty() {
                due = due.min(self.next_interfaces_check);
            }
        }
        let timeout = (due != Time::NEVER).then(|| {
            let left = due.since(now) + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        if let Some(running) = &self.running {
            fds.push(PollFd::from_borrowed_fd(running.neighbours.as_fd(), PollFlags::IN));
            let events = running.events.as_ref();
            fds.extend(events.map(|events| PollFd::from_borrowed_fd(events.as_fd(), PollFlags::IN)));
        }
        let _ = poll(&mut fds, timeout.as_ref());
        let is_changed = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        let now = self.now();
        if let Some(running) = self.running.as_mut().filter(|_| is_changed) {
            running.neighbours.on_changes(now);
        }
    }

    /// Counts for the last time. The program and its maps stay.
    pub(super) fn stop(&mut self) {
        if let Some(running) = &mut self.running {
            let _ = running.counting.count(running.kernel.maps());
        }
    }

    /// Counts for the last time, and removes the program and its maps.
    fn remove(&mut self) {
        self.stop();
        self.running.take().into_iter().for_each(Running::remove);
        self.troubled.clear();
    }
}

impl Running {
    fn set_interfaces(&mut self, names: &[Arc<str>], spec: &XdpSpec) -> Vec<Attached> {
        let wanted: Vec<WantedInterface> =
            names.iter().map(|name| WantedInterface { name: name.to_string(), mode: spec.mode }).collect();
        self.links.set(&wanted)
    }

    /// Writes the dark addresses for these interfaces.
    fn write_dark(&mut self, indices: Vec<u32>) -> Result<(), String> {
        let tarpit = self.spec.tarpit.clone();
        let interfaces: BTreeMap<u32, [u8; 6]> =
            indices.into_iter().filter_map(|index| Some((index, self.neighbours.mac_of(index)?))).collect();
        let mut hosts: Vec<IpAddr> = self.contents.addresses().collect();
        hosts.extend(self.neighbours.local_addresses());
        let dark = tarpit.as_deref().map(|addresses| DarkAddresses {
            addresses,
            hosts: &hosts,
            interfaces: &interfaces,
        });
        self.kernel.write_dark(dark).map_err(|error| error.to_string())
    }

    /// Detaches the program and removes its maps.
    fn remove(self) {
        let names: Vec<String> = self.links.names().map(str::to_owned).collect();
        let directory = self.links.directory().to_owned();
        let mut links = self.links;
        names.iter().for_each(|name| drop(links.detach(name)));
        drop(links);
        if let Ok(Some(directory)) = Directory::open_present(&directory) {
            let _ = directory.remove();
        }
    }
}
