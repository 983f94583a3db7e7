//! Counters and rates of a service or destination.

/// Counters since the creation or the last zeroing, and rates of the last seconds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Statistics {
    /// Connections
    pub connections: u64,
    /// Packets from clients
    pub packets_in: u64,
    /// Packets to clients; the kernel sees none with direct routing or a tunnel
    pub packets_out: u64,
    /// Bytes from clients
    pub bytes_in: u64,
    /// Bytes to clients
    pub bytes_out: u64,
    /// Connections a second
    pub connection_rate: u64,
    /// Packets from clients a second
    pub packet_rate_in: u64,
    /// Packets to clients a second
    pub packet_rate_out: u64,
    /// Bytes from clients a second
    pub byte_rate_in: u64,
    /// Bytes to clients a second
    pub byte_rate_out: u64,
}
