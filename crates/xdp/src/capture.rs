//! Captures of packets before and after rewriting, from the pinned maps. A capture works without a running process of
//! the plane, and ends by itself soon after its own process has ended.

use crate::contract::{
    self, CAPTURE_AFTER, CAPTURE_BYTES, Captured, Config, ENDPOINT_VIP, REASONS, SERVICE_CAPTURED, Service,
};
use aya::Pod;
use aya::maps::{Array, Map, MapData, MapError, RingBuf};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Time after which the program ends a capture that its process does not renew.
const LEASE: Duration = Duration::from_secs(3);
/// Captured packets whose decision has not been read yet.
const WAITING_MAX: usize = 4096;
const XDP_ACTIONS: [&str; 5] = ["aborted", "drop", "pass", "tx", "redirect"];

/// Extent of a capture.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// One packet in so many is captured.
    pub every: u32,
    /// Bytes of each packet that are stored.
    pub bytes: u32,
}

/// A capture cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The maps are not there.
    #[error(
        "no XDP plane is pinned in {0}: run a configuration with a service of the plane, or name another directory"
    )]
    NotPinned(String),
    /// The kernel refuses access to a map.
    #[error("the map {0} cannot be used: {1}")]
    Map(&'static str, MapError),
    /// No service has the address.
    #[error("no service of the XDP plane listens on {0}")]
    NoService(SocketAddr),
    /// There is one capture at most.
    #[error("process {0} captures already")]
    Busy(u32),
}

/// A packet at one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Time at which the program ran.
    pub time: SystemTime,
    /// Length of the packet.
    pub length: u32,
    /// The first bytes of the packet.
    pub bytes: Vec<u8>,
}

/// A captured packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The packet as it arrived.
    pub before: Frame,
    /// The packet as it left; `None` if it was dropped.
    pub after: Option<Frame>,
    /// The decision: `tx`, `redirect`, `pass`, `drop`.
    pub action: &'static str,
    /// Reason, as in `enum reason`.
    pub reason: Option<u8>,
}

/// A capture of the packets of one service. It ends when this value is dropped.
pub struct Capture {
    capturing: Array<MapData, contract::Capture>,
    services: Array<MapData, Service>,
    ring: RingBuf<MapData>,
    settings: contract::Capture,
    waiting: BTreeMap<u32, Frame>,
    /// Real time minus the time of the program's clock, in nanoseconds.
    clock_offset: u64,
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Capture").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // The program ends the capture itself if this fails.
        self.settings.until_ns = 0;
        let _ = self.capturing.set(0, self.settings, 0);
        let _ = self.mark(false);
    }
}

impl Capture {
    /// Begins a capture of the service that listens on an address. `pin` is the directory of the maps.
    ///
    /// # Errors
    /// The plane is not there, no service has the address, or another process captures.
    pub fn begin(pin: &Path, address: SocketAddr, extent: Extent) -> Result<Self, CaptureError> {
        let settings: Array<_, Config> = array(pin, "settings")?;
        settings.get(&0, 0).map_err(|error| CaptureError::Map("settings", error))?;
        let service = service_slot(pin, address)?.ok_or(CaptureError::NoService(address))?;
        let capturing: Array<_, contract::Capture> = array(pin, "capturing")?;
        let other = capturing.get(&0, 0).map_err(|error| CaptureError::Map("capturing", error))?;
        if other.until_ns > monotonic_ns() && other.process != std::process::id() {
            return Err(CaptureError::Busy(other.process));
        }
        let ring = Map::RingBuf(map(pin, "captures")?);
        let ring = RingBuf::try_from(ring).map_err(|error| CaptureError::Map("captures", error))?;
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut capture = Self {
            capturing,
            services: array(pin, "services")?,
            ring,
            settings: contract::Capture {
                service,
                every: extent.every,
                bytes: extent.bytes.min(CAPTURE_BYTES),
                process: std::process::id(),
                ..contract::Capture::default()
            },
            waiting: BTreeMap::new(),
            clock_offset: (since_epoch.as_nanos() as u64).saturating_sub(monotonic_ns()),
        };
        // Packets of an earlier capture.
        while capture.ring.next().is_some() {}
        capture.renew()?;
        Ok(capture)
    }

    /// Renews the time limit of the capture. Call it about once a second.
    ///
    /// # Errors
    /// The kernel refuses access to a map.
    pub fn renew(&mut self) -> Result<(), CaptureError> {
        self.settings.until_ns = monotonic_ns() + LEASE.as_nanos() as u64;
        self.capturing.set(0, self.settings, 0).map_err(|error| CaptureError::Map("capturing", error))?;
        self.mark(true).map_err(|error| CaptureError::Map("services", error))
    }

    /// Sets or clears the flag of the service. A new configuration clears it, so it is set again with each renewal.
    /// The service is written only if the flag differs. A configuration that is written between the reading and the
    /// writing here, within microseconds, would be lost until the service changes again.
    fn mark(&mut self, captured: bool) -> Result<(), MapError> {
        let mut service = self.services.get(&self.settings.service, 0)?;
        let flags =
            if captured { service.flags | SERVICE_CAPTURED } else { service.flags & !SERVICE_CAPTURED };
        if service.id != 0 && flags != service.flags {
            service.flags = flags;
            self.services.set(self.settings.service, service, 0)?;
        }
        Ok(())
    }

    /// Waits for packets, up to a time limit.
    pub fn wait(&self, time: Duration) {
        let mut fds = [PollFd::new(&self.ring, PollFlags::IN)];
        let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, Some(&time));
    }

    /// Returns the next captured packet with its decision.
    pub fn next_sample(&mut self) -> Option<Sample> {
        loop {
            let (header, frame) = parse(&self.ring.next()?, self.clock_offset)?;
            if header.stage == CAPTURE_AFTER {
                // Without the stage before, the packet was captured for an earlier capture.
                if let Some(before) = self.waiting.remove(&header.number) {
                    return Some(sample(&header, before, frame));
                }
            } else {
                if self.waiting.len() == WAITING_MAX {
                    self.waiting.pop_first();
                }
                self.waiting.insert(header.number, frame);
            }
        }
    }
}

fn sample(header: &Captured, before: Frame, after: Frame) -> Sample {
    Sample {
        before,
        after: (header.length > 0).then_some(after),
        action: XDP_ACTIONS.get(usize::from(header.action)).copied().unwrap_or("unknown"),
        reason: (usize::from(header.reason) < REASONS).then_some(header.reason),
    }
}

/// Splits a record of the ring.
fn parse(record: &[u8], clock_offset: u64) -> Option<(Captured, Frame)> {
    let (header, bytes) = record.split_at_checked(size_of::<Captured>())?;
    // SAFETY: the slice has the length of the struct, which consists of integers.
    let header = unsafe { header.as_ptr().cast::<Captured>().read_unaligned() };
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(header.time_ns.saturating_add(clock_offset));
    let bytes = bytes.get(..header.stored as usize)?.to_vec();
    Some((header, Frame { time, length: header.length, bytes }))
}

fn map(pin: &Path, name: &'static str) -> Result<MapData, CaptureError> {
    MapData::from_pin(pin.join(name)).map_err(|error| match error {
        MapError::SyscallError(ref call) if call.io_error.kind() == std::io::ErrorKind::NotFound => {
            CaptureError::NotPinned(pin.display().to_string())
        }
        error => CaptureError::Map(name, error),
    })
}

fn array<T: Pod>(pin: &Path, name: &'static str) -> Result<Array<MapData, T>, CaptureError> {
    Array::try_from(Map::Array(map(pin, name)?)).map_err(|error| CaptureError::Map(name, error))
}

/// Returns the slot of the service that listens on an address, with any protocol.
fn service_slot(pin: &Path, wanted: SocketAddr) -> Result<Option<u32>, CaptureError> {
    let slot = if wanted.is_ipv4() {
        let buckets: Array<_, contract::BucketV4> = array(pin, "endpoints_v4")?;
        let entries = buckets.iter().filter_map(Result::ok).flat_map(|bucket| bucket.entries);
        let found = |entry: &contract::EndpointV4| {
            entry.kind == ENDPOINT_VIP
                && entry.port == wanted.port().to_be()
                && address(4, [entry.address, 0, 0, 0]) == wanted.ip()
        };
        entries.into_iter().find(found).map(|entry| entry.a)
    } else {
        let buckets: Array<_, contract::BucketV6> = array(pin, "endpoints_v6")?;
        let entries = buckets.iter().filter_map(Result::ok).flat_map(|bucket| bucket.entries);
        let found = |entry: &contract::EndpointV6| {
            entry.kind == ENDPOINT_VIP
                && entry.port == wanted.port().to_be()
                && address(6, entry.address) == wanted.ip()
        };
        entries.into_iter().find(found).map(|entry| entry.a)
    };
    Ok(slot)
}

/// Returns the address of these words.
fn address(family: u8, words: [u32; 4]) -> IpAddr {
    if family == 4 {
        return Ipv4Addr::from(words[0].to_ne_bytes()).into();
    }
    let mut octets = [0; 16];
    for (octets, word) in octets.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *octets = word.to_ne_bytes();
    }
    octets.into()
}

/// Returns the time of the program's clock.
fn monotonic_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(header: &Captured, bytes: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        record.extend(header.time_ns.to_ne_bytes());
        for word in [header.service, header.number, header.length, header.stored] {
            record.extend(word.to_ne_bytes());
        }
        record.extend([header.stage, header.reason, header.action, 0, 0, 0, 0, 0]);
        record.extend(bytes);
        record
    }

    #[test]
    fn a_record_has_a_header_and_the_stored_bytes() {
        let header =
            Captured { time_ns: 5, number: 256, length: 90, stored: 3, stage: 1, ..Captured::default() };
        let whole = record(&header, &[1, 2, 3, 4]);
        let (found, frame) = parse(&whole, 10).unwrap();
        assert_eq!(found, header);
        assert_eq!((frame.length, frame.bytes), (90, vec![1, 2, 3]));
        assert_eq!(frame.time, SystemTime::UNIX_EPOCH + Duration::from_nanos(15));
        for length in 0..size_of::<Captured>() + 3 {
            assert!(parse(&whole[..length], 10).is_none(), "{length} bytes of a record");
        }
    }
}
