//! The parsers of the XDP program, compiled natively: they read nothing outside of the packet, and all offsets that they
//! return are in the packet.
#![no_main]

use evener_xdp_native::{Layers, Parsed, QUIC_ID_MAX, parse, parse_inner, quic_server_id};
use libfuzzer_sys::fuzz_target;

const PAGE: usize = 4096;
/// Pages for a packet, between two pages that cannot be read.
const PAGES: usize = 2;

/// Memory whose neighbours cannot be read.
struct Guarded(*mut u8);

impl Guarded {
    fn new() -> Self {
        let length = (PAGES + 2) * PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(memory, libc::MAP_FAILED, "memory for a packet");
        let memory: *mut u8 = memory.cast();
        // SAFETY: the inner pages belong to the mapping.
        let opened = unsafe {
            libc::mprotect(memory.add(PAGE).cast(), PAGES * PAGE, libc::PROT_READ | libc::PROT_WRITE)
        };
        assert_eq!(opened, 0, "the inner pages can be written");
        Self(memory)
    }

    /// Copies a packet to the end of the memory, or to its beginning.
    fn copy(&mut self, packet: &[u8], is_at_end: bool) -> &[u8] {
        let offset = if is_at_end { (PAGES + 1) * PAGE - packet.len() } else { PAGE };
        // SAFETY: the packet is not longer than the inner pages, and nothing else refers to them.
        unsafe {
            let begin = self.0.add(offset);
            begin.copy_from_nonoverlapping(packet.as_ptr(), packet.len());
            std::slice::from_raw_parts(begin, packet.len())
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, to which nothing refers any more.
        unsafe { libc::munmap(self.0.cast(), (PAGES + 2) * PAGE) };
    }
}

thread_local! {
    static MEMORY: std::cell::RefCell<Guarded> = std::cell::RefCell::new(Guarded::new());
}

fuzz_target!(|packet: &[u8]| {
    let packet = &packet[..packet.len().min(PAGES * PAGE)];
    MEMORY.with_borrow_mut(|memory| {
        for is_at_end in [true, false] {
            let copied = memory.copy(packet, is_at_end);
            check(copied, parse(copied));
            for length in 0..=QUIC_ID_MAX + 1 {
                let id = quic_server_id(copied, length);
                assert!(id.is_none_or(|id| copied.windows(length).any(|bytes| bytes == id)), "an ID in the packet");
            }
            for family in [4, 6] {
                let (parsed, layers) = parse_inner(copied, family);
                check(copied, (parsed, layers));
                let is_known = !matches!(parsed, Parsed::Malformed);
                assert!(!is_known || layers.family == family, "{layers:?}");
            }
        }
    });
});

fn check(packet: &[u8], (parsed, layers): (Parsed, Layers)) {
    let (network, transport) = (usize::from(layers.network), usize::from(layers.transport));
    let header = match (parsed, layers.protocol) {
        (Parsed::Transport, 6) => 20,
        (Parsed::Transport, 17) => 8,
        (Parsed::Icmp, 1 | 58) => 8,
        (Parsed::Transport | Parsed::Icmp, protocol) => panic!("{parsed:?} with protocol {protocol}"),
        (Parsed::Fragment, _) => {
            assert_eq!(layers.fragmented, 1, "{layers:?}");
            0
        }
        (Parsed::Other | Parsed::Malformed, _) => return,
    };
    let least = if layers.family == 4 { 20 } else { 40 };
    assert!(transport >= network + least, "{layers:?}");
    assert!(transport + header <= packet.len(), "{layers:?} in {} bytes", packet.len());
    let version = packet[network] >> 4;
    assert_eq!(version, layers.family, "{layers:?}");
}
