//! `penctl`: sends one command to the control port, and prints the response.

use super::settings::port_number;
use crate::output;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

const USAGE: &str = "usage: penctl host:port|/path/to/socket command";
/// Maximum length of a command with its newline, as in pen's penctl.
const COMMAND_BYTES_MAX: usize = 1023;
/// Maximum number of bytes of a response that are printed in one step.
const PIECE_BYTES: usize = 8192;

/// Runs the program.
pub(in crate::compat) fn main(arguments: &[OsString]) -> ExitCode {
    let words: Vec<String> = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    match &words[..] {
        [only] if only == "--help" || only == "-h" => {
            println!(
                "{USAGE}\n\nSends a command to a running `evener pen` (or pen) that was started with -C."
            );
            ExitCode::SUCCESS
        }
        [] | [_] => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
        [address, command @ ..] => match run_command(address, &command.join(" ")) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
    }
}

fn run_command(address: &str, command: &str) -> Result<(), String> {
    if command.len() + 1 > COMMAND_BYTES_MAX {
        return Err(format!("the command is longer than {COMMAND_BYTES_MAX} bytes"));
    }
    if address.contains('/') {
        let failed = |error: std::io::Error| format!("error connecting to server {address}: {error}");
        return exchange(UnixStream::connect(address).map_err(failed)?, command);
    }
    // The last colon separates the port, so that ::1:10080 works as it does when pen listens there.
    let (host, port) = address.rsplit_once(':').ok_or("no port given: write host:port")?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let port = port_number(port).ok_or_else(|| format!("`{port}` is not a port"))?;
    let failed = |error: std::io::Error| format!("error connecting to server {address}: {error}");
    exchange(TcpStream::connect((host, port)).map_err(failed)?, command)
}

fn exchange(mut stream: impl Read + Write, command: &str) -> Result<(), String> {
    let sent = stream.write_all(format!("{command}\n").as_bytes());
    sent.map_err(|error| format!("error writing to socket: {error}"))?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(read) => output::bytes_to_stdout(&piece[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("error reading from socket: {error}")),
        }
    }
}
