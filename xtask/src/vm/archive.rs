//! Archives of the kernel's initial file system (cpio, format `newc`).

/// Mode bits of a directory and of a file.
const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// An archive that is being written.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory. Its parent must have been added before.
    pub(super) fn directory(&mut self, name: &str) {
        self.entry(name, &[], DIRECTORY | 0o755);
    }

    /// Adds a file.
    pub(super) fn file(&mut self, name: &str, content: &[u8], mode: u32) {
        self.entry(name, content, FILE | mode);
    }

    /// Returns the archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", &[], 0);
        self.bytes
    }

    fn entry(&mut self, name: &str, content: &[u8], mode: u32) {
        self.entries += 1;
        let length = |bytes: usize| u32::try_from(bytes).expect("a small file");
        // Inode, mode, user, group, links, time, size, four device numbers, length of the name, checksum.
        let size = length(content.len());
        let numbers = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length(name.len() + 1), 0];
        self.bytes.extend(b"070701");
        for number in numbers {
            self.bytes.extend(format!("{number:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
