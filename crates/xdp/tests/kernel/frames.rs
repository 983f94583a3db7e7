//! Frames on an interface, below the network stack (packet sockets).

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Offset of the payload of UDP.
const PAYLOAD: usize = 14 + 20 + 8;

/// A packet socket of an interface.
pub(crate) struct Wire(OwnedFd);

impl Wire {
    pub(crate) fn new(interface: &str) -> Self {
        let index = evener_xdp::interface::Interface::by_name(interface).unwrap().unwrap().index;
        let protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, protocol.into()) };
        assert!(fd >= 0, "a packet socket");
        // SAFETY: zeros are a value of the struct.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_protocol = protocol;
        address.sll_ifindex = i32::try_from(index).unwrap();
        let size = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
        // SAFETY: the address and its size belong together; the descriptor is new.
        let socket = unsafe {
            assert_eq!(libc::bind(fd, std::ptr::from_ref(&address).cast(), size), 0, "bound to {interface}");
            OwnedFd::from_raw_fd(fd)
        };
        let wire = Self(socket);
        let bytes: libc::c_int = 64 << 20;
        wire.option(libc::SO_RCVBUFFORCE, &bytes);
        wire.option(libc::SO_RCVTIMEO, &libc::timeval { tv_sec: 0, tv_usec: 200_000 });
        wire
    }

    fn option<T>(&self, name: libc::c_int, value: &T) {
        let size = libc::socklen_t::try_from(size_of::<T>()).unwrap();
        // SAFETY: the value and its size belong together.
        let set = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                name,
                std::ptr::from_ref(value).cast(),
                size,
            )
        };
        assert_eq!(set, 0, "socket option {name}");
    }

    /// Sends a UDP packet from a port, with a number as its payload.
    pub(crate) fn send(&self, port: u16, number: u32) {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        frame.extend([0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        frame.extend(port.to_be_bytes());
        frame.extend([0, 53, 0, 12, 0, 0]);
        frame.extend(number.to_be_bytes());
        // SAFETY: the pointer and the length belong together.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(usize::try_from(sent), Ok(frame.len()), "{}", std::io::Error::last_os_error());
    }

    /// Returns the number in the next packet from a port; `None` if there is none for a while.
    pub(crate) fn receive(&self, port: u16) -> Option<u32> {
        let mut frame = [0; 2048];
        loop {
            // SAFETY: the pointer and the length belong together.
            let received =
                unsafe { libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
            let received = usize::try_from(received).ok()?;
            let is_wanted =
                received >= PAYLOAD + 4 && frame[12..14] == [8, 0] && frame[34..36] == port.to_be_bytes();
            if is_wanted {
                return Some(u32::from_be_bytes(frame[PAYLOAD..PAYLOAD + 4].try_into().unwrap()));
            }
        }
    }
}
