//! Any bytes of a backend are refused, wanted more of within a frame's length, or make a frame that is told by no fewer bytes
//! and says all that is in them.
#![no_main]

use evener_core::wire::mname::{self, DATAGRAM_BYTES_MAX, Frame};
use libfuzzer_sys::fuzz_target;

/// Type, address, port and length.
const HEAD_BYTES: usize = 16;

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
    let told = match mname::parse(bytes) {
        Ok(None) => {
            assert!(bytes.len() < HEAD_BYTES + DATAGRAM_BYTES_MAX, "more than a frame is wanted");
            bytes.len()
        }
        Ok(Some((frame, length))) => {
            assert_eq!(write(&frame), bytes[..length]);
            length
        }
        // A fault stays one, whatever follows.
        Err(_) => {
            let more = [bytes, &[0; HEAD_BYTES]].concat();
            assert!(mname::parse(&more).is_err());
            return;
        }
    };
    for length in 0..told {
        assert!(matches!(mname::parse(&bytes[..length]), Ok(None)), "{length} bytes");
    }
});
