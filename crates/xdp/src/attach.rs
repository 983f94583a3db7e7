//! Attaches the program to interfaces by links, which are pinned and outlive the process.
//!
//! A link belongs to an interface, not to its name: it ends with the interface. `Links::set` compares the wanted
//! interfaces with what is there, so it also repairs what changed since the last call.

use crate::check;
use crate::foreign;
use crate::interface::{AttachMode, FLAG_GENERIC, FLAG_NATIVE, Interface, reason_of_refusal};
use crate::load::LoadError;
use crate::load::takeover::Source;
use crate::pin::{Directory, PinError};
use crate::sys;
use evener_core::spec::XdpMode;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// The program cannot be attached to an interface.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no interface of this name.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// Another program is attached there.
    #[error("interface {interface} has another XDP program: {program}; detach it first")]
    Foreign {
        /// The interface.
        interface: String,
        /// The program, and whose it is.
        program: String,
    },
    /// The kernel refuses to attach the program.
    #[error("interface {interface} does not take the program in {} mode: {reason}", mode.name())]
    Refused {
        /// The interface.
        interface: String,
        /// The mode.
        mode: AttachMode,
        /// The reason, in the kernel's words if it gave one.
        reason: String,
    },
    /// The program behind the link is still another one.
    #[error("interface {interface} runs the program with id {found} instead of {expected}")]
    NotReplaced {
        /// The interface.
        interface: String,
        /// Id of the program that runs.
        found: u32,
        /// Id of the loaded program.
        expected: u32,
    },
    /// The pin directory.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Any other failure.
    #[error("interface {interface}: {error}")]
    Io {
        /// The interface.
        interface: String,
        /// The failure.
        error: io::Error,
    },
}

/// An interface on which the program is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedInterface {
    /// Name of the interface.
    pub name: String,
    /// Mode.
    pub mode: XdpMode,
}

/// Change of an interface by [`Links::set`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The program runs there already.
    None,
    /// The program was attached.
    Attached,
    /// The program of an earlier process was replaced, between two packets.
    Replaced,
}

/// The program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Index of the interface.
    pub index: u32,
    /// Mode.
    pub mode: AttachMode,
    /// Reason against the native mode, if it was tried and refused.
    pub not_native: Option<String>,
    /// Last change.
    pub change: Change,
    /// Circumstances in which packets are lost, such as a veth peer without a program.
    pub warnings: Vec<String>,
}

impl Attachment {
    fn new(interface: &Interface, mode: AttachMode, not_native: Option<String>, change: Change) -> Self {
        let peer = (mode == AttachMode::Native).then(|| check::silent_peer(interface)).flatten();
        Self { index: interface.index, mode, not_native, change, warnings: peer.into_iter().collect() }
    }
}

#[derive(Debug)]
struct Link {
    link: OwnedFd,
    not_native: Option<String>,
}

/// The interface of a link, compared with the name that it had.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Whereabouts {
    /// The interface has its name, or the kernel did not report it. A link that is dropped by mistake would detach the
    /// program.
    Unchanged,
    /// The interface has another name.
    Renamed(String),
    /// The link has no interface any more.
    Gone,
}

impl Whereabouts {
    /// Finds the interface of a link by its index, which is 0 if the link has none.
    fn of_link(
        name: &str,
        index: io::Result<u32>,
        name_of: impl FnOnce(u32) -> io::Result<Option<String>>,
    ) -> Self {
        let found = index.and_then(|index| if index == 0 { Ok(None) } else { name_of(index) });
        match found {
            Err(_) => Self::Unchanged,
            Ok(None) => Self::Gone,
            Ok(Some(found)) if found == name => Self::Unchanged,
            Ok(Some(found)) => Self::Renamed(found),
        }
    }
}

/// The interfaces of the program.
#[derive(Debug)]
pub struct Links {
    directory: Directory,
    program: OwnedFd,
    program_id: u32,
    links: BTreeMap<String, Link>,
    sources: Vec<Source>,
}

impl Links {
    pub(crate) fn new(
        directory: Directory,
        program: OwnedFd,
        sources: Vec<Source>,
    ) -> Result<Self, LoadError> {
        let program_id = sys::program_info(program.as_fd()).map_err(LoadError::Takeover)?.id;
        let mut links = BTreeMap::new();
        for (name, link) in directory.links()? {
            links.insert(name, Link { link, not_native: None });
        }
        Ok(Self { directory, program, program_id, links, sources })
    }

    /// Returns the pin directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the id of the loaded program.
    #[must_use]
    pub fn program_id(&self) -> u32 {
        self.program_id
    }

    /// Returns the names of the interfaces that have a link, including links of an earlier process.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.links.keys().map(String::as_str)
    }

    /// Attaches the program to the wanted interfaces and detaches it from all others. A program of an earlier
    /// process is replaced between two packets. Call it again when interfaces change: it does nothing where
    /// nothing changed.
    ///
    /// Associations that an earlier program made in maps that were replaced are copied when the program runs
    /// everywhere.
    pub fn set(&mut self, wanted: &[WantedInterface]) -> Vec<(String, Result<Attachment, AttachError>)> {
        self.rename_links();
        let results: Vec<_> =
            wanted.iter().map(|wanted| (wanted.name.clone(), self.attach(wanted))).collect();
        let unwanted: Vec<String> = self
            .links
            .keys()
            .filter(|name| !wanted.iter().any(|wanted| wanted.name == **name))
            .cloned()
            .collect();
        for name in unwanted {
            let _ = self.detach(&name);
        }
        self.copy_again();
        results
    }

    /// Detaches the program from an interface.
    ///
    /// # Errors
    /// The pin cannot be removed.
    pub fn detach(&mut self, name: &str) -> Result<(), PinError> {
        if let Some(link) = self.links.remove(name) {
            // A link without its interface cannot be detached any more.
            let _ = sys::detach_link(link.link.as_fd());
            self.directory.unpin_link(name)?;
        }
        Ok(())
    }

    /// Copies associations from maps that were replaced, once no program uses these any more.
    fn copy_again(&mut self) {
        let runs_everywhere = self.links.values().all(|link| {
            sys::link_info(link.link.as_fd()).is_ok_and(|info| {
                info.is_none_or(|info| info.ifindex == 0 || info.program_id == self.program_id)
            })
        });
        if runs_everywhere {
            for source in std::mem::take(&mut self.sources) {
                let _ = source.copy_again(&self.directory);
            }
        }
    }

    /// Follows interfaces that got another name, and forgets links whose interface is gone.
    fn rename_links(&mut self) {
        for (name, link) in std::mem::take(&mut self.links) {
            let index = sys::link_info(link.link.as_fd()).map(|info| info.map_or(0, |info| info.ifindex));
            let name_of = |index| Ok(Interface::by_index(index)?.map(|interface| interface.name));
            match Whereabouts::of_link(&name, index, name_of) {
                Whereabouts::Renamed(to) if self.directory.pin_link(link.link.as_fd(), &to).is_ok() => {
                    let _ = self.directory.unpin_link(&name);
                    self.links.insert(to, link);
                }
                Whereabouts::Unchanged | Whereabouts::Renamed(_) => {
                    self.links.insert(name, link);
                }
                Whereabouts::Gone => {
                    let _ = self.directory.unpin_link(&name);
                }
            }
        }
    }

    fn attach(&mut self, wanted: &WantedInterface) -> Result<Attachment, AttachError> {
        let name = &wanted.name;
        let failed = |error| AttachError::Io { interface: name.clone(), error };
        let interface = find(name)?;
        let Some(link) = self.links.get(name) else { return self.create(&interface, wanted.mode) };
        let info = sys::link_info(link.link.as_fd()).map_err(failed)?;
        let Some(mode) = info.and_then(|info| interface.mode_of(info.program_id)) else {
            // The link was detached by another program.
            self.detach(name)?;
            return self.create(&find(name)?, wanted.mode);
        };
        if suits(mode, wanted.mode) {
            return self.replace(&interface, mode);
        }
        // An interface has one mode at a time: packets go to the network stack until the program is attached again.
        self.detach(name)?;
        let interface = find(name)?;
        self.create(&interface, wanted.mode).inspect_err(|_| {
            // Rather the mode before than none.
            let before = if mode == AttachMode::Generic { XdpMode::Generic } else { XdpMode::Native };
            let _ = self.create(&interface, before);
        })
    }

    /// Replaces the program behind a link, unless it is the loaded program.
    fn replace(&self, interface: &Interface, mode: AttachMode) -> Result<Attachment, AttachError> {
        let link = &self.links[&interface.name];
        let failed = |error| AttachError::Io { interface: interface.name.clone(), error };
        let behind = || -> Result<u32, AttachError> {
            Ok(sys::link_info(link.link.as_fd()).map_err(failed)?.map_or(0, |info| info.program_id))
        };
        let mut change = Change::None;
        if behind()? != self.program_id {
            sys::update_link(link.link.as_fd(), self.program.as_fd()).map_err(failed)?;
            change = Change::Replaced;
        }
        let found = behind()?;
        if found != self.program_id {
            let interface = interface.name.clone();
            return Err(AttachError::NotReplaced { interface, found, expected: self.program_id });
        }
        Ok(Attachment::new(interface, mode, link.not_native.clone(), change))
    }

    fn create(&mut self, interface: &Interface, wanted: XdpMode) -> Result<Attachment, AttachError> {
        if let Some((_, id)) = interface.programs.first() {
            let program = foreign::describe(*id, interface.index);
            return Err(AttachError::Foreign { interface: interface.name.clone(), program });
        }
        let (link, mode, not_native) = match wanted {
            XdpMode::Native => (self.link(interface, AttachMode::Native)?, AttachMode::Native, None),
            XdpMode::Generic => (self.link(interface, AttachMode::Generic)?, AttachMode::Generic, None),
            XdpMode::Auto => match self.link(interface, AttachMode::Native) {
                Ok(link) => (link, AttachMode::Native, None),
                Err(AttachError::Refused { reason, .. }) => {
                    (self.link(interface, AttachMode::Generic)?, AttachMode::Generic, Some(reason))
                }
                Err(error) => return Err(error),
            },
        };
        self.directory.pin_link(link.as_fd(), &interface.name)?;
        self.links.insert(interface.name.clone(), Link { link, not_native: not_native.clone() });
        Ok(Attachment::new(interface, mode, not_native, Change::Attached))
    }

    fn link(&self, interface: &Interface, mode: AttachMode) -> Result<OwnedFd, AttachError> {
        let flags = if mode == AttachMode::Native { FLAG_NATIVE } else { FLAG_GENERIC };
        match sys::create_link(self.program.as_fd(), interface.index, flags) {
            Ok(link) => Ok(link),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                Err(AttachError::NoInterface(interface.name.clone()))
            }
            Err(error) => {
                let reason = reason_of_refusal(interface.index, self.program.as_fd(), flags);
                let reason = reason.unwrap_or_else(|| error.to_string());
                Err(AttachError::Refused { interface: interface.name.clone(), mode, reason })
            }
        }
    }
}

fn find(name: &str) -> Result<Interface, AttachError> {
    let found = Interface::by_name(name);
    let found = found.map_err(|error| AttachError::Io { interface: name.to_owned(), error })?;
    found.ok_or_else(|| AttachError::NoInterface(name.to_owned()))
}

/// Returns whether a mode is a wanted one. An interface in generic mode keeps it with `Auto`: a change would lose
/// packets.
fn suits(mode: AttachMode, wanted: XdpMode) -> bool {
    match wanted {
        XdpMode::Auto => true,
        XdpMode::Native => mode == AttachMode::Native,
        XdpMode::Generic => mode == AttachMode::Generic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_stays_unless_the_kernel_reports_that_its_interface_is_gone() {
        let failure = || io::Error::from(io::ErrorKind::Interrupted);
        let check = |index: io::Result<u32>, name: io::Result<Option<&str>>, expected: Whereabouts| {
            let name = name.map(|name| name.map(str::to_owned));
            assert_eq!(Whereabouts::of_link("eth0", index, |_| name), expected);
        };
        check(Ok(2), Ok(Some("eth0")), Whereabouts::Unchanged);
        check(Ok(2), Ok(Some("wan")), Whereabouts::Renamed("wan".to_owned()));
        check(Ok(2), Ok(None), Whereabouts::Gone);
        check(Ok(0), Ok(Some("eth0")), Whereabouts::Gone);
        check(Err(failure()), Ok(None), Whereabouts::Unchanged);
        check(Ok(2), Err(failure()), Whereabouts::Unchanged);
    }
}
