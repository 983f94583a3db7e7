//! Files that list servers.

use super::{Listed, Scan};
use evener_core::server_list;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Age from which an unchanged time of modification proves that a file did not change: the clock of a file
/// system has steps.
const CLOCK_STEP: Duration = Duration::from_secs(2);

/// Identity of the contents of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Reads a list of servers, unless it has the stamp `known`. May block.
pub(super) fn read(path: &Path, port: Option<u16>, known: Option<Stamp>) -> (Scan, Option<Stamp>) {
    match read_changed(path, known) {
        Ok(None) => (Scan::Unchanged, known),
        Ok(Some((text, stamp))) => (parse(&text, port), stamp),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            (Scan::Failed("the file does not exist".into()), None)
        }
        Err(error) => (Scan::Failed(error.to_string()), None),
    }
}

fn parse(bytes: &[u8], port: Option<u16>) -> Scan {
    let Ok(text) = std::str::from_utf8(bytes) else { return Scan::Failed("it is not UTF-8".into()) };
    match server_list::parse(text, port) {
        Ok(servers) => Scan::listed(servers.iter().map(Listed::of_list).collect()),
        Err(error) => Scan::Failed(error.to_string()),
    }
}

/// Contents of a file with their stamp, which is absent if the file changed so recently that another change may
/// not alter it.
type Contents = (Vec<u8>, Option<Stamp>);

fn read_changed(path: &Path, known: Option<Stamp>) -> io::Result<Option<Contents>> {
    // A pipe or a device could block forever.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let file = File::open(path)?;
    let meta = file.metadata()?;
    let stamp = Stamp {
        device: meta.dev(),
        inode: meta.ino(),
        bytes: meta.len(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    };
    if known == Some(stamp) {
        return Ok(None);
    }
    let is_settled = meta
        .modified()
        .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > CLOCK_STEP));
    let mut bytes = Vec::new();
    file.take(server_list::BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some((bytes, Some(stamp).filter(|_| is_settled))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_again_only_if_it_changed() {
        let path = std::env::temp_dir().join(format!("evener-list-{}", std::process::id()));
        let write = |text: &str, age: u64| {
            std::fs::write(&path, text).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        };
        let problem = |known: Option<Stamp>| read(&path, None, known).0.problem().map(str::to_owned);
        assert_eq!(problem(None).as_deref(), Some("the file does not exist"));
        write("10.0.0.1:80", 60);
        let (scan, stamp) = read(&path, None, None);
        assert_eq!(scan.servers().map(<[Listed]>::len), Some(1));
        assert!(stamp.is_some());
        assert_eq!(read(&path, None, stamp), (Scan::Unchanged, stamp));
        write("10.0.0.2:80", 30);
        assert_eq!(read(&path, None, stamp).0.servers().map(<[Listed]>::len), Some(1));
        write("10.0.0.3:80", 0);
        assert_eq!(read(&path, None, stamp).1, None, "a file that has just changed has no stamp");
        write("x", 60);
        assert_eq!(problem(None).as_deref(), Some("line 1: `x` is not an IP address"));
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(problem(None).as_deref(), Some("it is not UTF-8"));
        std::fs::remove_file(&path).unwrap();
        let (directory, _) = read(&std::env::temp_dir(), None, None);
        assert_eq!(directory.problem(), Some("it is not a regular file"));
    }
}
