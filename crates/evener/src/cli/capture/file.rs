//! Files of captured packets: pcapng (draft-ietf-opsawg-pcapng) with the two interfaces "before" and "after" and a
//! comment at each packet, or pcap without interfaces and comments.

use evener_xdp::capture::{Frame, Sample};
use std::io::{self, Write};
use std::path::Path;
use std::time::UNIX_EPOCH;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const LINK_ETHERNET: u16 = 1;
const OPTION_COMMENT: u16 = 1;
const OPTION_NAME: u16 = 2;
const OPTION_RESOLUTION: u16 = 9;
const OPTION_APPLICATION: u16 = 4;
/// Magic number of pcap with times in nanoseconds.
const PCAP_NANOSECONDS: u32 = 0xa1b2_3c4d;

/// Format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Pcapng,
    Pcap,
}

impl Format {
    /// Returns the format that the name of a file stands for.
    pub(super) fn of(path: &Path) -> Self {
        if path.extension().is_some_and(|extension| extension == "pcap") { Self::Pcap } else { Self::Pcapng }
    }
}

/// Writer of a file.
pub(super) struct CaptureFile<W> {
    out: W,
    format: Format,
}

impl<W: Write> CaptureFile<W> {
    /// Begins a file. `bytes` is the maximum number of stored bytes of a packet.
    pub(super) fn begin(out: W, format: Format, bytes: u32) -> io::Result<Self> {
        let mut file = Self { out, format };
        match format {
            Format::Pcap => {
                let mut header = Vec::new();
                header.extend(PCAP_NANOSECONDS.to_le_bytes());
                header.extend([2, 0, 4, 0]);
                header.extend([0; 8]);
                header.extend(bytes.to_le_bytes());
                header.extend(u32::from(LINK_ETHERNET).to_le_bytes());
                file.out.write_all(&header)?;
            }
            Format::Pcapng => {
                let mut section = Vec::new();
                section.extend(0x1a2b_3c4d_u32.to_le_bytes());
                section.extend([1, 0, 0, 0]);
                section.extend(u64::MAX.to_le_bytes());
                let application = concat!("evener ", env!("CARGO_PKG_VERSION"));
                add_options(&mut section, &[(OPTION_APPLICATION, application.as_bytes())]);
                file.block(SECTION_HEADER, &section)?;
                for name in ["before", "after"] {
                    let mut interface = Vec::new();
                    interface.extend(LINK_ETHERNET.to_le_bytes());
                    interface.extend([0; 2]);
                    interface.extend(bytes.to_le_bytes());
                    // Times are in units of 10^-9 s.
                    add_options(&mut interface, &[(OPTION_NAME, name.as_bytes()), (OPTION_RESOLUTION, &[9])]);
                    file.block(INTERFACE_DESCRIPTION, &interface)?;
                }
            }
        }
        file.out.flush()?;
        Ok(file)
    }

    /// Writes both stages of a packet.
    pub(super) fn add(&mut self, sample: &Sample, comment: &str) -> io::Result<()> {
        self.frame(0, &sample.before, comment)?;
        if let Some(after) = &sample.after {
            self.frame(1, after, comment)?;
        }
        self.out.flush()
    }

    fn frame(&mut self, interface: u32, frame: &Frame, comment: &str) -> io::Result<()> {
        let time = frame.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut block = Vec::new();
        if self.format == Format::Pcap {
            block.extend((time.as_secs() as u32).to_le_bytes());
            block.extend(time.subsec_nanos().to_le_bytes());
            block.extend((frame.bytes.len() as u32).to_le_bytes());
            block.extend(frame.length.to_le_bytes());
            block.extend(&frame.bytes);
            return self.out.write_all(&block);
        }
        let nanos = time.as_nanos() as u64;
        for word in [interface, (nanos >> 32) as u32, nanos as u32, frame.bytes.len() as u32, frame.length] {
            block.extend(word.to_le_bytes());
        }
        block.extend(&frame.bytes);
        pad(&mut block);
        add_options(&mut block, &[(OPTION_COMMENT, comment.as_bytes())]);
        self.block(ENHANCED_PACKET, &block)
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        let length = (body.len() as u32 + 12).to_le_bytes();
        self.out.write_all(&[&kind.to_le_bytes(), &length, body, &length].concat())
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn add_options(block: &mut Vec<u8>, options: &[(u16, &[u8])]) {
    for (code, value) in options {
        block.extend(code.to_le_bytes());
        block.extend((value.len() as u16).to_le_bytes());
        block.extend(*value);
        pad(block);
    }
    // The end of the options.
    block.extend([0; 4]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn sample() -> Sample {
        let frame = |byte| Frame {
            time: UNIX_EPOCH + Duration::new(1_700_000_000, 5),
            length: 100,
            bytes: vec![byte; 61],
        };
        Sample { before: frame(1), after: Some(frame(2)), action: "tx", reason: None }
    }

    fn written(format: Format) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut file = CaptureFile::begin(&mut bytes, format, 256).unwrap();
        file.add(&sample(), "service web").unwrap();
        bytes
    }

    #[test]
    fn blocks_of_pcapng_have_their_length_at_both_ends() {
        let bytes = written(Format::Pcapng);
        let mut rest = &bytes[..];
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            let length = word(4) as usize;
            assert_eq!((length % 4, word(length - 4) as usize), (0, length));
            kinds.push(word(0));
            rest = &rest[length..];
        }
        let packets = [ENHANCED_PACKET, ENHANCED_PACKET];
        assert_eq!(kinds[..3], [SECTION_HEADER, INTERFACE_DESCRIPTION, INTERFACE_DESCRIPTION]);
        assert_eq!(kinds[3..], packets);
    }

    #[test]
    fn pcap_has_a_header_and_a_record_for_each_stage() {
        assert_eq!(written(Format::Pcap).len(), 24 + 2 * (16 + 61));
    }

    #[test]
    fn the_extension_selects_the_format() {
        let format = |name: &str| Format::of(Path::new(name));
        let formats = ["a.pcap", "a.pcapng", "-"].map(format);
        assert_eq!(formats, [Format::Pcap, Format::Pcapng, Format::Pcapng]);
    }
}
