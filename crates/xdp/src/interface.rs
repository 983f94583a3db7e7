//! Network interfaces as the kernel describes them (rtnetlink).

use crate::netlink::{Attributes, FLAG_DUMP, Refused, Request, Socket};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const FIXED: usize = 16;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_FLAGS: u16 = 3;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
const IFF_UP: u32 = 1;

/// `XDP_FLAGS_UPDATE_IF_NOEXIST`: fail if there is a program.
const FLAG_IF_NO_EXIST: u32 = 1;
/// `XDP_FLAGS_SKB_MODE`.
pub(crate) const FLAG_GENERIC: u32 = 2;
/// `XDP_FLAGS_DRV_MODE`.
pub(crate) const FLAG_NATIVE: u32 = 4;

/// Place at which an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver of the interface.
    Native,
    /// In the network stack.
    Generic,
    /// In the hardware.
    Offloaded,
}

impl AttachMode {
    /// Returns the name of the mode, as iproute2 has it in words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offloaded => "offloaded",
        }
    }
}

/// An interface of the network namespace of the calling thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Index, unique in the namespace for as long as it runs.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// True if it is switched on.
    pub is_up: bool,
    /// Kind of a virtual interface, such as `veth`.
    pub kind: Option<String>,
    /// Index of the other end of a veth pair, or of the interface below.
    pub peer: Option<u32>,
    /// True if `peer` is in another network namespace.
    pub is_peer_elsewhere: bool,
    /// XDP programs, with their mode and id.
    pub programs: Vec<(AttachMode, u32)>,
}

impl Interface {
    /// Returns the interface of a name, if there is one.
    ///
    /// # Errors
    /// The kernel refuses the request.
    pub fn by_name(name: &str) -> io::Result<Option<Self>> {
        if name.is_empty() || name.len() > 15 || name.contains('\0') {
            return Ok(None);
        }
        let mut text = name.as_bytes().to_vec();
        text.push(0);
        Self::one(&Request::new(GET_LINK, 0, &[0; FIXED]).attribute(IFLA_IFNAME, &text))
    }

    /// Returns the interface of an index, if there is one.
    ///
    /// # Errors
    /// The kernel refuses the request.
    pub fn by_index(index: u32) -> io::Result<Option<Self>> {
        Self::one(&Request::new(GET_LINK, 0, &fixed_part(index)))
    }

    /// Returns all interfaces.
    ///
    /// # Errors
    /// The kernel refuses the request.
    pub fn all() -> io::Result<Vec<Self>> {
        let mut socket = Socket::open(libc::NETLINK_ROUTE)?;
        let messages = socket.request(&Request::new(GET_LINK, FLAG_DUMP, &[0; FIXED]));
        Ok(messages?.iter().filter_map(|bytes| Self::parse(bytes)).collect())
    }

    /// Returns the mode in which a program runs, if it does.
    pub(crate) fn mode_of(&self, program: u32) -> Option<AttachMode> {
        self.programs.iter().find(|(_, id)| *id == program).map(|(mode, _)| *mode)
    }

    /// Returns the other end of a veth pair, if it is in the same network namespace.
    pub(crate) fn peer_here(&self) -> Option<Self> {
        let index = self.peer.filter(|_| !self.is_peer_elsewhere)?;
        Self::by_index(index).ok().flatten()
    }

    fn one(request: &Request) -> io::Result<Option<Self>> {
        match Socket::open(libc::NETLINK_ROUTE)?.request(request) {
            Ok(messages) => Ok(messages.first().and_then(|bytes| Self::parse(bytes))),
            Err(refused) => match io::Error::from(refused) {
                error if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
                error => Err(error),
            },
        }
    }

    fn parse(message: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(message.get(at..at + 4)?.try_into().ok()?));
        let attributes = Attributes::new(message, FIXED);
        let xdp = attributes.nested(IFLA_XDP);
        Some(Self {
            index: word(4)?,
            name: attributes.text(IFLA_IFNAME)?,
            mtu: attributes.u32(IFLA_MTU).unwrap_or_default(),
            is_up: word(8)? & IFF_UP != 0,
            kind: attributes.nested(IFLA_LINKINFO).text(IFLA_INFO_KIND),
            peer: attributes.u32(IFLA_LINK),
            is_peer_elsewhere: attributes.find(IFLA_LINK_NETNSID).is_some(),
            programs: programs(xdp),
        })
    }
}

fn programs(xdp: Attributes<'_>) -> Vec<(AttachMode, u32)> {
    let several = [
        (AttachMode::Native, IFLA_XDP_DRV_PROG_ID),
        (AttachMode::Generic, IFLA_XDP_SKB_PROG_ID),
        (AttachMode::Offloaded, IFLA_XDP_HW_PROG_ID),
    ];
    let found: Vec<_> =
        several.into_iter().filter_map(|(mode, attribute)| Some((mode, xdp.u32(attribute)?))).collect();
    if !found.is_empty() {
        return found;
    }
    let mode = match xdp.u8(IFLA_XDP_ATTACHED) {
        Some(1) => AttachMode::Native,
        Some(2) => AttachMode::Generic,
        Some(3) => AttachMode::Offloaded,
        _ => return Vec::new(),
    };
    xdp.u32(IFLA_XDP_PROG_ID).map(|id| (mode, id)).into_iter().collect()
}

fn fixed_part(index: u32) -> [u8; FIXED] {
    let mut fixed = [0; FIXED];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed
}

/// Attaches a program without a link, which makes the kernel say why it refuses. Returns the reason, or `None` if
/// the kernel took the program; then it is taken away again.
pub(crate) fn reason_of_refusal(index: u32, program: BorrowedFd<'_>, mode: u32) -> Option<String> {
    let set = |fd: i32, flags: u32| -> Result<(), Refused> {
        let attributes: [(u16, &[u8]); 2] =
            [(IFLA_XDP_FD, &fd.to_ne_bytes()), (IFLA_XDP_FLAGS, &flags.to_ne_bytes())];
        let request = Request::new(SET_LINK, 0, &fixed_part(index)).nested(IFLA_XDP, &attributes);
        Socket::open(libc::NETLINK_ROUTE)?.request(&request).map(|_| ())
    };
    match set(program.as_raw_fd(), mode | FLAG_IF_NO_EXIST) {
        Ok(()) => {
            // The program must not stay without a link, which ends with the pin.
            let _ = set(-1, mode);
            None
        }
        Err(refused) => Some(refused.to_string()),
    }
}
