//! `mergelogs -p penlog [options] server:logfile ...`: merges the logs of several web servers by time, and
//! replaces pen's address in each line by the address of the client. Each file is read once, and only entries
//! that are near in time are in memory.

mod pen_log;
mod web_log;

use super::lines::{self, LineRead};
use anyhow::{Context, bail};
use pen_log::{PenLog, WINDOW_BYTES_MAX, Window};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::ExitCode;
use web_log::WebLine;

const USAGE: &str = "Usage: mergelogs -p penlog [-cd] [-j jitter] [-t seconds] server:logfile ...

  -c                do not cache pen's log: search all of it for each line
  -d                say on stderr how each client was found
  -p penlog         log file from pen
  -j jitter         how many seconds the clocks may differ [600]
  -t seconds        how far this machine's time is ahead of UTC
  server:logfile    address of a web server, and its log file";

/// Maximum length of a line; longer lines are dropped.
const LINE_BYTES_MAX: usize = 64 << 10;

const JITTER_DEFAULT: i64 = 600;

/// Maximum value of `-j` and `-t`: a century.
const SECONDS_MAX: i64 = 100 * 366 * 86_400;

/// A parsed command line.
#[derive(Debug)]
struct Options {
    pen: PathBuf,
    cache: bool,
    debug: bool,
    jitter: i64,
    ahead: i64,
    webs: Vec<(Vec<u8>, PathBuf)>,
}

/// Runs the program.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    match Options::parse(arguments) {
        Ok(options) => super::exit_code("mergelogs", merge(&options)),
        Err(error) => super::usage_error("mergelogs", USAGE, &error),
    }
}

impl Options {
    fn parse(arguments: Vec<OsString>) -> anyhow::Result<Self> {
        use lexopt::prelude::*;
        let mut parser = lexopt::Parser::from_args(arguments);
        let (mut pen, mut cache, mut debug) = (None, true, false);
        let (mut jitter, mut ahead, mut webs) = (JITTER_DEFAULT, 0, Vec::new());
        while let Some(argument) = parser.next()? {
            match argument {
                Short('c') => cache = false,
                Short('d') => debug = true,
                Short('j') => jitter = super::number(&mut parser, 0..=SECONDS_MAX).context("-j")?,
                Short('p') => pen = Some(parser.value()?.into()),
                Short('t') => ahead = super::number(&mut parser, -SECONDS_MAX..=SECONDS_MAX).context("-t")?,
                Value(word) => webs.push(server_and_file(&word)?),
                other => return Err(other.unexpected().into()),
            }
        }
        let pen = pen.context("-p is missing: give pen's log")?;
        if webs.is_empty() {
            bail!("give at least one server with its log: SERVER:LOGFILE");
        }
        Ok(Self { pen, cache, debug, jitter, ahead, webs })
    }
}

/// Parses `server:logfile`. IPv6 addresses are in brackets because of their colons.
fn server_and_file(word: &OsString) -> anyhow::Result<(Vec<u8>, PathBuf)> {
    let bytes = word.as_bytes();
    let bracketed = bytes.strip_prefix(b"[").and_then(|rest| {
        let end = rest.windows(2).position(|two| two == b"]:")?;
        Some((&rest[..end], &rest[end + 2..]))
    });
    let split = || bytes.iter().position(|byte| *byte == b':').map(|at| (&bytes[..at], &bytes[at + 1..]));
    let Some((server, file)) = bracketed.or_else(split) else {
        bail!("`{}` is not SERVER:LOGFILE", word.display());
    };
    Ok((server.to_vec(), OsString::from_vec(file.to_vec()).into()))
}

fn merge(options: &Options) -> anyhow::Result<()> {
    let mut clients = Clients::open(options)?;
    let mut webs = options.webs.iter().map(WebLog::open).collect::<anyhow::Result<Vec<_>>>()?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut line = Vec::new();
    // Lines with the same time are written in the order of the logs.
    while let Some(web) = webs.iter_mut().filter(|web| web.next.is_some()).min_by_key(|web| web.time()) {
        let Some(entry) = web.next.take() else { break };
        let client = clients.find(&web.server, &entry)?;
        entry.emit(client.as_deref().unwrap_or(&web.server), &mut line);
        out.write_all(&line)?;
        web.advance()?;
    }
    out.flush()?;
    let dropped: u64 = webs.iter().map(|web| web.dropped).sum();
    if dropped > 0 {
        eprintln!("mergelogs: {dropped} lines were dropped: they are not lines of a web server's log");
    }
    Ok(())
}

/// The log of a web server, with its next line.
#[derive(Debug)]
struct WebLog {
    server: Vec<u8>,
    path: PathBuf,
    reader: BufReader<File>,
    line: Vec<u8>,
    next: Option<WebLine>,
    dropped: u64,
}

impl WebLog {
    fn open((server, path): &(Vec<u8>, PathBuf)) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open the log {}", path.display()))?;
        let mut web = Self {
            server: server.clone(),
            path: path.clone(),
            reader: BufReader::new(file),
            line: Vec::new(),
            next: None,
            dropped: 0,
        };
        web.advance()?;
        Ok(web)
    }

    fn time(&self) -> Option<i64> {
        self.next.as_ref().map(WebLine::time)
    }

    /// Advances to the next valid line.
    fn advance(&mut self) -> anyhow::Result<()> {
        loop {
            let read = lines::read(&mut self.reader, LINE_BYTES_MAX, &mut self.line);
            self.next = match read.with_context(|| format!("cannot read the log {}", self.path.display()))? {
                LineRead::End => return Ok(()),
                LineRead::Whole => WebLine::parse(&self.line),
                LineRead::Cut => None,
            };
            if self.next.is_some() {
                return Ok(());
            }
            self.dropped += 1;
        }
    }
}

/// Finds the clients in pen's log.
#[derive(Debug)]
struct Clients<'a> {
    options: &'a Options,
    window: Window<BufReader<File>>,
}

impl<'a> Clients<'a> {
    fn open(options: &'a Options) -> anyhow::Result<Self> {
        let log = PenLog::open(&options.pen).with_context(|| Self::failure("open", options))?;
        Ok(Self { options, window: Window::new(log, options.jitter, WINDOW_BYTES_MAX) })
    }

    fn failure(action: &str, options: &Options) -> String {
        format!("cannot {action} pen's log {}", options.pen.display())
    }

    /// Returns the client of the request in this line, according to pen's log.
    fn find(&mut self, server: &[u8], line: &WebLine) -> anyhow::Result<Option<Box<[u8]>>> {
        let key = line.key(server);
        // pen logs times of this machine's clock, minus -t; web servers log local times.
        let time = line.standard_local_time() + self.options.ahead;
        let found = self.nearest(&key, time).with_context(|| Self::failure("read", self.options))?;
        if self.options.debug {
            let found_text = found.as_ref().map_or_else(
                || "is not in pen's log".to_owned(),
                |(client, off)| format!("is of {}, {off} s off", client.escape_ascii()),
            );
            eprintln!("mergelogs: {} {found_text}", key.escape_ascii());
        }
        Ok(found.map(|(client, _)| client))
    }

    fn nearest(&mut self, key: &[u8], time: i64) -> io::Result<Option<(Box<[u8]>, u64)>> {
        if self.options.cache {
            let found = self.window.nearest(key, time)?;
            return Ok(found.map(|(client, off)| (client.into(), off)));
        }
        PenLog::open(&self.options.pen)?.nearest(key, time)
    }
}
