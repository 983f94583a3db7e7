//! `evener capture`: writes sampled packets of an XDP service into a file, before and after rewriting.

mod comment;
mod file;

use super::duration;
use crate::admin::client::Client;
use crate::state::View;
use anyhow::{Context, bail};
use clap::Args;
use evener_core::spec::XdpSpec;
use evener_xdp::capture::{Capture, Extent};
use file::{CaptureFile, Format};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Interval in which the time limit of the capture is renewed.
const RENEWAL: Duration = Duration::from_secs(1);

/// Extent of a capture.
#[derive(Args, Debug)]
pub(super) struct CaptureCommand {
    /// The service, or an address that it listens on (then no instance needs to run)
    service: String,
    /// The file: pcapng, or pcap if its name ends with .pcap; - for standard output
    #[arg(short, long = "write", value_name = "FILE")]
    write: PathBuf,
    /// End after this number of packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    time: Option<Duration>,
    /// Capture one packet in N
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    every: u32,
    /// Bytes of each packet to store
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(14..=2048))]
    bytes: u32,
    /// Directory of the plane's maps
    #[arg(long, value_name = "DIR")]
    pin: Option<PathBuf>,
    /// Admin socket of the instance (default: that of the only running instance)
    #[arg(long, value_name = "PATH", env = "EVENER_SOCKET")]
    socket: Option<PathBuf>,
}

impl CaptureCommand {
    /// Captures until the number of packets, the time or a signal.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let address = self.address().await?;
        let pin = self.pin.clone().unwrap_or_else(|| XdpSpec::default().pin);
        let extent = Extent { every: self.every, bytes: self.bytes };
        let capture = Capture::begin(&pin, address, extent)?;
        let out = open(&self.write)?;
        let file = CaptureFile::begin(BufWriter::new(out), Format::of(&self.write), self.bytes)?;
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let (stop, stopped) = std::sync::mpsc::channel();
        let mut reading = tokio::task::spawn_blocking(move || self.read(capture, file, &stopped));
        let packets = tokio::select! {
            packets = &mut reading => packets,
            _ = interrupt.recv() => { drop(stop); reading.await }
            _ = terminate.recv() => { drop(stop); reading.await }
        };
        let packets = packets.context("the capture failed")??;
        eprintln!("{packets} {} captured", if packets == 1 { "packet" } else { "packets" });
        Ok(())
    }

    /// Returns an address that the service listens on.
    async fn address(&self) -> anyhow::Result<SocketAddr> {
        if let Ok(address) = self.service.parse() {
            return Ok(address);
        }
        let view: View = Client::find(self.socket.as_deref())?.get("/v1/status").await?;
        view.listen_address(&self.service).map_err(anyhow::Error::msg)
    }

    /// Writes packets until the end of the capture, or until `stopped` is closed. Returns the number of packets.
    fn read<W: Write>(
        &self,
        mut capture: Capture,
        mut file: CaptureFile<W>,
        stopped: &std::sync::mpsc::Receiver<()>,
    ) -> anyhow::Result<u64> {
        let end = self.time.map(|time| Instant::now() + time);
        let mut renewed = Instant::now();
        let mut packets = 0;
        loop {
            while let Some(sample) = capture.next_sample() {
                file.add(&sample, &comment::of(&self.service, &sample))
                    .context("the file cannot be written")?;
                packets += 1;
                if self.count.is_some_and(|count| packets >= count) {
                    return Ok(packets);
                }
            }
            let is_over = end.is_some_and(|end| Instant::now() >= end);
            if is_over || stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Disconnected) {
                return Ok(packets);
            }
            if renewed.elapsed() >= RENEWAL {
                capture.renew()?;
                renewed = Instant::now();
            }
            capture.wait(Duration::from_millis(100));
        }
    }
}

fn open(path: &Path) -> anyhow::Result<Box<dyn Write + Send>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(io::stdout()));
    }
    if path.is_dir() {
        bail!("{} is a directory", path.display());
    }
    Ok(Box::new(File::create(path).with_context(|| format!("{} cannot be written", path.display()))?))
}
