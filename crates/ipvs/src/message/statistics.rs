//! Attributes of statistics.

use super::attributes::Attributes;
use crate::model::Statistics;

/// Reads statistics of 64 bits, or of 32 bits from a kernel that has no others.
pub(super) fn parse(attributes: &Attributes, wide: u16, narrow: u16) -> Statistics {
    let Ok(nested) = attributes.nested(wide).or_else(|_| attributes.nested(narrow)) else {
        return Statistics::default();
    };
    let number = |kind| nested.integer(kind).unwrap_or_default();
    Statistics {
        connections: number(1),
        packets_in: number(2),
        packets_out: number(3),
        bytes_in: number(4),
        bytes_out: number(5),
        connection_rate: number(6),
        packet_rate_in: number(7),
        packet_rate_out: number(8),
        byte_rate_in: number(9),
        byte_rate_out: number(10),
    }
}
