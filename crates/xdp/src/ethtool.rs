//! Reports of the driver of an interface: its name, queues and offloads (ethtool ioctls), and its XDP features
//! (the netlink family `netdev`, from Linux 6.3).

use crate::netlink::{Attributes, Request, Socket};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const GET_DRIVER: u32 = 0x03;
const GET_STRINGS: u32 = 0x1b;
const GET_SET_INFO: u32 = 0x37;
const GET_FEATURES: u32 = 0x3a;
const GET_CHANNELS: u32 = 0x3c;
const FEATURE_NAMES: u32 = 4;
const NAME_LENGTH: usize = 32;
/// Features that are read of a driver at most.
const FEATURES_MAX: u32 = 1024;

const GENERIC_CONTROL: u16 = 0x10;
const GENERIC_HEADER: usize = 4;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const DEVICE_GET: u8 = 1;
const DEVICE_IFINDEX: u16 = 1;
const DEVICE_XDP_FEATURES: u16 = 3;

/// Numbers of queues of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    /// Queues that receive.
    pub receive: u32,
    /// Queues that send.
    pub send: u32,
    /// Possible queues that receive.
    pub receive_max: u32,
}

/// XDP features of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures(u64);

impl XdpFeatures {
    const NAMES: [(u64, &'static str); 7] = [
        (1, "basic"),
        (2, "redirect"),
        (4, "redirect target"),
        (8, "zero copy"),
        (16, "hardware offload"),
        (32, "fragmented buffers"),
        (64, "fragmented redirects"),
    ];

    /// Returns whether programs can run in the driver.
    #[must_use]
    pub fn is_native(self) -> bool {
        self.0 & 1 != 0
    }

    /// Returns the names of the features.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(bit, _)| self.0 & bit != 0).map(|(_, name)| name)
    }
}

/// The driver of an interface of the calling thread's network namespace.
#[derive(Debug)]
pub(crate) struct Driver {
    socket: OwnedFd,
    interface: [libc::c_char; libc::IFNAMSIZ],
}

impl Driver {
    pub(crate) fn of(interface: &str) -> io::Result<Self> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::socket(libc::AF_INET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor, which nothing else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut name = [0; libc::IFNAMSIZ];
        for (to, from) in name[..libc::IFNAMSIZ - 1].iter_mut().zip(interface.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        Ok(Self { socket, interface: name })
    }

    /// Runs a command. The buffer begins with the command and has room for the response.
    fn command(&self, buffer: &mut [u32]) -> io::Result<()> {
        // SAFETY: zeros are a value of the struct.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = self.interface;
        request.ifr_ifru.ifru_data = buffer.as_mut_ptr().cast();
        // SAFETY: the callers' buffers are as long as the response to their command.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Returns the name of the driver.
    pub(crate) fn name(&self) -> io::Result<String> {
        let mut buffer = [0; 64];
        buffer[0] = GET_DRIVER;
        self.command(&mut buffer)?;
        Ok(text(&bytes(&buffer[1..9])))
    }

    /// Returns the numbers of queues.
    pub(crate) fn queues(&self) -> io::Result<Queues> {
        let mut buffer = [0; 16];
        buffer[0] = GET_CHANNELS;
        self.command(&mut buffer)?;
        let [_, receive_max, _, _, combined_max, receive, send, _, combined, ..] = buffer;
        Ok(Queues {
            receive: receive + combined,
            send: send + combined,
            receive_max: receive_max + combined_max,
        })
    }

    /// Returns the names of the features that are on, such as `rx-lro`.
    pub(crate) fn features(&self) -> io::Result<Vec<String>> {
        // The command, a reserved word, a mask of 64 bits, and one number.
        let mut info = [GET_SET_INFO, 0, 1 << FEATURE_NAMES, 0, 0];
        self.command(&mut info)?;
        let count = info[4].min(FEATURES_MAX);
        let mut names = vec![0; 3 + count as usize * NAME_LENGTH / 4];
        names[..3].copy_from_slice(&[GET_STRINGS, FEATURE_NAMES, count]);
        self.command(&mut names)?;
        let blocks = count.div_ceil(32);
        let mut features = vec![0; 2 + blocks as usize * 4];
        features[..2].copy_from_slice(&[GET_FEATURES, blocks]);
        self.command(&mut features)?;
        // Of each block: available, requested, active, never changed.
        let is_active = |at: usize| features[2 + at / 32 * 4 + 2] >> (at % 32) & 1 == 1;
        let names = bytes(&names[3..]);
        let all = names.chunks_exact(NAME_LENGTH).enumerate();
        Ok(all.filter(|(at, _)| is_active(*at)).map(|(_, name)| text(name)).collect())
    }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Returns the XDP features of an interface; `None` if the kernel does not report them.
pub(crate) fn xdp_features(index: u32) -> Option<XdpFeatures> {
    let mut socket = Socket::open(libc::NETLINK_GENERIC).ok()?;
    let request =
        Request::new(GENERIC_CONTROL, 0, &[GET_FAMILY, 1, 0, 0]).attribute(FAMILY_NAME, b"netdev\0");
    let messages = socket.request(&request).ok()?;
    let family = Attributes::new(messages.first()?, GENERIC_HEADER).u16(FAMILY_ID)?;
    let request =
        Request::new(family, 0, &[DEVICE_GET, 1, 0, 0]).attribute(DEVICE_IFINDEX, &index.to_ne_bytes());
    let messages = socket.request(&request).ok()?;
    Attributes::new(messages.first()?, GENERIC_HEADER).u64(DEVICE_XDP_FEATURES).map(XdpFeatures)
}
