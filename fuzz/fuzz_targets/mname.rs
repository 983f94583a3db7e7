//! Any bytes of a backend are refused, are an incomplete frame, or begin with a frame. Fewer bytes than the
//! frame has are incomplete, and the parsed frame can be written as the same bytes.
#![no_main]

use evener_core::wire::mname::{self, DATAGRAM_BYTES_MAX, Frame};
use libfuzzer_sys::fuzz_target;

/// Type, address, port and length.
const FIXED_BYTES: usize = 16;

fn write(frame: &Frame<'_>) -> Vec<u8> {
    let numbers = match frame {
        Frame::Hello => vec![1001],
        Frame::OutboundUdp { to, data } => {
            vec![1002, to.ip().to_bits(), u32::from(to.port()), data.len() as u32]
        }
        Frame::TcpOk => vec![1003],
        Frame::Heartbeat => vec![1004],
    };
    let mut bytes: Vec<u8> = numbers.into_iter().flat_map(u32::to_le_bytes).collect();
    if let Frame::OutboundUdp { data, .. } = frame {
        bytes.extend_from_slice(data);
    }
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let needed = match mname::parse(bytes) {
        Ok(None) => {
            assert!(
                bytes.len() < FIXED_BYTES + DATAGRAM_BYTES_MAX,
                "no more than the largest frame is needed"
            );
            bytes.len()
        }
        Ok(Some((frame, length))) => {
            assert_eq!(write(&frame), bytes[..length]);
            length
        }
        // A fault stays a fault when more bytes follow.
        Err(_) => {
            let more = [bytes, &[0; FIXED_BYTES]].concat();
            assert!(mname::parse(&more).is_err());
            return;
        }
    };
    for length in 0..needed {
        assert!(matches!(mname::parse(&bytes[..length]), Ok(None)), "{length} bytes");
    }
});
