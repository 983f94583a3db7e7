//! `tcp.connect`, `udp.exchange` and `dns.query`.

use super::{Outcome, RECEIVED_BYTES_MAX, bytes_to_send, failure, operate, timeout};
use crate::check;
use crate::config::functions::bounds::fail;
use crate::config::functions::{CALL_CONNECTIONS_MAX, CONNECTIONS_MAX};
use evener_core::spec::CheckTls;
use evener_core::wire::dns;
use hickory_resolver::proto::op::Message;
use mlua::{IntoLua, IntoLuaMulti, Lua, MultiValue, Table, UserData, UserDataMethods, Value};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Mutex, OwnedSemaphorePermit};

/// Largest datagram (RFC 768).
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// Longest text that `expect` takes.
const EXPECTED_BYTES_MAX: usize = 4096;
/// Name server, if the system names none.
const NAME_SERVER: &str = "127.0.0.1:53";

/// A stream to a server.
pub(super) enum Connected {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Connected {
    async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes).await,
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    async fn receive(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer).await,
            Self::Tls(stream) => stream.read(buffer).await,
        }
    }
}

/// Connects to an address such as `10.0.0.1:80` or `app.example:80`.
pub(super) async fn connect(target: &str, tls: Option<CheckTls>) -> Outcome<Connected> {
    let stream =
        TcpStream::connect(target).await.map_err(|error| format!("connect: {}", check::in_words(&error)))?;
    match tls {
        None => Ok(Connected::Plain(stream)),
        Some(tls) => Ok(Connected::Tls(Box::new(check::start_tls(stream, &tls, target).await?))),
    }
}

/// Reads `verify`, `sni` and `ca` of the options of an operation.
pub(super) fn tls_of(lua: &Lua, options: Option<&Table>) -> mlua::Result<CheckTls> {
    let Some(options) = options else { return Ok(CheckTls::default()) };
    let verify: Value = options.raw_get("verify")?;
    let ca_file: Option<String> = options.raw_get("ca")?;
    if ca_file.as_ref().is_some_and(|file| !file.starts_with('/')) {
        return Err(fail(lua, "ca must be an absolute path"));
    }
    Ok(CheckTls { sni: options.raw_get("sni")?, insecure: verify.as_boolean() == Some(false), ca_file })
}

/// Permits for a connection: one of all functions, and one of its call.
type Permits = [OwnedSemaphorePermit; 2];

/// A stream, and bytes that were received and not yet taken.
struct Buffered {
    opened: Option<(Connected, Permits)>,
    received: Vec<u8>,
}

/// A socket that is closed at the end of its call, before Lua collects the connection.
pub(in crate::config::functions) struct Socket(Mutex<Buffered>);

impl Socket {
    /// Closes the socket. An operation that uses it ends with the call, too.
    pub(in crate::config::functions) fn close(&self) {
        if let Ok(mut buffered) = self.0.try_lock() {
            buffered.opened = None;
        }
    }

    pub(in crate::config::functions) fn is_closed(&self) -> bool {
        self.0.try_lock().is_ok_and(|buffered| buffered.opened.is_none())
    }
}

/// Takes the permits for a connection.
fn permits(lua: &Lua) -> Outcome<Permits> {
    let runtime = crate::config::functions::bounds::runtime(lua);
    let call = runtime.as_ref().and_then(|runtime| runtime.current());
    let (Some(runtime), Some(call)) = (runtime, call) else { return Err("no function runs".into()) };
    let of_call = call.connection_permit().ok_or_else(|| {
        format!(
            "this call has {CALL_CONNECTIONS_MAX} connections, the maximum: close those that are not needed"
        )
    })?;
    let of_all = Arc::clone(&runtime.connections).try_acquire_owned();
    let of_all = of_all.map_err(|_| format!("functions have {CONNECTIONS_MAX} connections, the maximum"))?;
    Ok([of_all, of_call])
}

/// A connection.
#[derive(Clone)]
struct Connection {
    inner: Arc<Socket>,
    timeout: Duration,
}

/// Part of the received bytes that a function takes.
enum Wanted {
    /// Bytes to the end of a text.
    Through(Vec<u8>),
    Bytes(usize),
    Any,
}

impl Wanted {
    /// Returns the number of bytes to take, if they were received. A text does not end within the first bytes, which
    /// were searched before.
    fn length(&self, received: &[u8], searched: usize) -> Option<usize> {
        match self {
            Self::Through(text) => {
                let from = (searched + 1).saturating_sub(text.len()).min(received.len());
                memchr::memmem::find(&received[from..], text).map(|at| from + at + text.len())
            }
            Self::Bytes(count) => (received.len() >= *count).then_some(*count),
            Self::Any => (!received.is_empty()).then_some(received.len()),
        }
    }
}

impl Buffered {
    async fn take(&mut self, wanted: &Wanted) -> Outcome<Vec<u8>> {
        let mut searched = 0;
        loop {
            if let Some(length) = wanted.length(&self.received, searched) {
                return Ok(self.received.drain(..length).collect());
            }
            searched = self.received.len();
            if self.received.len() >= RECEIVED_BYTES_MAX {
                return Err(format!("more than {RECEIVED_BYTES_MAX} bytes without the expected text"));
            }
            let (stream, _) = self.opened.as_mut().ok_or("the connection is closed")?;
            let mut piece = [0; 4096];
            match stream.receive(&mut piece).await {
                Ok(0) => return Err(self.unlike("the server closed the connection")),
                Ok(length) => self.received.extend_from_slice(&piece[..length]),
                Err(error) => return Err(check::in_words(&error)),
            }
        }
    }

    fn unlike(&self, why: &str) -> String {
        let shown = String::from_utf8_lossy(&self.received[..self.received.len().min(32)]);
        if shown.is_empty() { why.to_owned() } else { format!("{why} after {shown:?}") }
    }
}

impl Connection {
    /// Takes received bytes. Returns them, or nil and the reason of the failure.
    fn take(
        lua: Lua,
        this: &Self,
        wanted: mlua::Result<Wanted>,
        limit: mlua::Result<Duration>,
    ) -> impl Future<Output = mlua::Result<MultiValue>> + Send + use<> {
        let inner = Arc::clone(&this.inner);
        let begun = wanted.map(|wanted| {
            operate(&lua, "tcp", limit, async move { inner.0.lock().await.take(&wanted).await })
        });
        async move {
            match begun?.await? {
                Ok(bytes) => lua.create_string(bytes)?.into_lua_multi(&lua),
                Err(why) => (Value::Nil, why).into_lua_multi(&lua),
            }
        }
    }

    fn limit(&self, lua: &Lua, options: Option<&Table>) -> mlua::Result<Duration> {
        match options {
            Some(_) => timeout(lua, ("a connection", &[]), options),
            None => Ok(self.timeout),
        }
    }
}

impl UserData for Connection {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_async_method("send", |lua, this, bytes: mlua::LuaString| {
            let (inner, limit) = (Arc::clone(&this.inner), Ok(this.timeout));
            let begun = bytes_to_send(&lua, "send", &bytes).map(|bytes| {
                operate(&lua, "tcp", limit, async move {
                    match &mut inner.0.lock().await.opened {
                        Some((stream, _)) => {
                            stream.send(&bytes).await.map_err(|error| check::in_words(&error))
                        }
                        None => Err("the connection is closed".into()),
                    }
                })
            });
            async move {
                match begun?.await? {
                    Ok(()) => true.into_lua_multi(&lua),
                    Err(why) => (Value::Nil, why).into_lua_multi(&lua),
                }
            }
        });
        methods.add_async_method("expect", |lua, this, (text, options): (mlua::LuaString, Option<Table>)| {
            let limit = this.limit(&lua, options.as_ref());
            let wanted = match text.as_bytes().len() {
                0..=EXPECTED_BYTES_MAX => Ok(Wanted::Through(text.as_bytes().to_vec())),
                _ => Err(fail(&lua, format!("expect takes a text of at most {EXPECTED_BYTES_MAX} bytes"))),
            };
            Self::take(lua, &this, wanted, limit)
        });
        methods.add_async_method("receive", |lua, this, (count, options): (Option<usize>, Option<Table>)| {
            let limit = this.limit(&lua, options.as_ref());
            let wanted = match count {
                Some(count) if count > RECEIVED_BYTES_MAX => {
                    Err(fail(&lua, format!("receive takes at most {RECEIVED_BYTES_MAX} bytes")))
                }
                Some(count) => Ok(Wanted::Bytes(count)),
                None => Ok(Wanted::Any),
            };
            Self::take(lua, &this, wanted, limit)
        });
        methods.add_async_method("line", |lua, this, options: Option<Table>| {
            let limit = this.limit(&lua, options.as_ref());
            Self::take(lua, &this, Ok(Wanted::Through(b"\n".to_vec())), limit)
        });
        methods.add_async_method("close", |_, this, ()| {
            let inner = Arc::clone(&this.inner);
            async move {
                inner.0.lock().await.opened = None;
                Ok(())
            }
        });
    }
}

pub(super) fn install(lua: &Lua) -> mlua::Result<()> {
    let globals = lua.globals();
    let tcp = lua.create_table()?;
    let connect = lua.create_async_function(|lua, (address, options): (String, Option<Table>)| {
        let limit = timeout(&lua, ("tcp.connect", &["tls", "verify", "sni", "ca"]), options.as_ref());
        let patience = limit.clone().unwrap_or_default();
        let is_tls = options.as_ref().and_then(|options| options.raw_get::<bool>("tls").ok()) == Some(true);
        let tls = is_tls.then(|| tls_of(&lua, options.as_ref())).transpose();
        let permits = permits(&lua);
        let begun = tls.map(|tls| {
            operate(&lua, "tcp", limit, async move {
                let permits = permits?;
                Ok((connect(&address, tls).await?, permits))
            })
        });
        async move {
            match begun?.await? {
                Ok(opened) => {
                    let buffered = Buffered { opened: Some(opened), received: Vec::new() };
                    let inner = Arc::new(Socket(Mutex::new(buffered)));
                    if let Some(call) =
                        crate::config::functions::bounds::runtime(&lua).and_then(|all| all.current())
                    {
                        call.add_socket(&inner);
                    }
                    Connection { inner, timeout: patience }.into_lua_multi(&lua)
                }
                Err(why) => (Value::Nil, why).into_lua_multi(&lua),
            }
        }
    })?;
    tcp.raw_set("connect", connect)?;
    globals.raw_set("tcp", tcp)?;
    let udp = lua.create_table()?;
    let exchange = lua.create_async_function(
        |lua, (address, bytes, options): (String, mlua::LuaString, Option<Table>)| {
            let limit = timeout(&lua, ("udp.exchange", &[]), options.as_ref());
            let begun = bytes_to_send(&lua, "udp.exchange", &bytes).map(|bytes| {
                operate(&lua, "udp", limit, async move { datagrams(&address, &bytes, |_| true).await })
            });
            async move {
                match begun?.await? {
                    Ok(bytes) => lua.create_string(bytes)?.into_lua_multi(&lua),
                    Err(why) => (Value::Nil, why).into_lua_multi(&lua),
                }
            }
        },
    )?;
    udp.raw_set("exchange", exchange)?;
    globals.raw_set("udp", udp)?;
    globals.raw_set("dns", dns_library(lua)?)
}

fn dns_library(lua: &Lua) -> mlua::Result<Table> {
    let library = lua.create_table()?;
    let query = lua.create_async_function(|lua, given: (String, Option<String>, Option<Table>)| {
        let (name, kind, options) = given;
        let kind = kind.unwrap_or_else(|| "A".into());
        let server: mlua::Result<Option<String>> =
            options.as_ref().map_or(Ok(None), |options| options.raw_get("server"));
        let parsed = server.and_then(|server| {
            let name = dns::parse_name(&name).map_err(|error| fail(&lua, format!("{name:?}: {error}")))?;
            let number =
                dns::type_number(&kind).ok_or_else(|| fail(&lua, format!("not a DNS type: {kind:?}")))?;
            let limit = timeout(&lua, ("dns.query", &["server"]), options.as_ref());
            Ok(operate(&lua, "dns", limit, resolve(name, number, server)))
        });
        async move {
            match parsed?.await? {
                Err(why) => failure(&lua, &why),
                Ok((rcode, records)) => {
                    let table = lua.create_table()?;
                    table.raw_set("ok", rcode == 0)?;
                    table.raw_set("rcode", dns::rcode_name(rcode).as_ref())?;
                    table.raw_set("records", records)?;
                    if rcode != 0 {
                        table.raw_set("error", dns::rcode_name(rcode).as_ref())?;
                    }
                    table.into_lua(&lua)
                }
            }
        }
    })?;
    library.raw_set("query", query)?;
    Ok(library)
}

/// Sends a datagram and returns the first response that is accepted.
async fn datagrams(address: &str, bytes: &[u8], accepts: impl Fn(&[u8]) -> bool) -> Outcome<Vec<u8>> {
    let failed = |error: std::io::Error| check::in_words(&error);
    let mut addresses = tokio::net::lookup_host(address).await.map_err(failed)?;
    let address: SocketAddr = addresses.next().ok_or("the name has no address")?;
    let local = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(local).await.map_err(failed)?;
    socket.connect(address).await.map_err(failed)?;
    socket.send(bytes).await.map_err(failed)?;
    let mut response = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let length = socket.recv(&mut response).await.map_err(failed)?;
        if accepts(&response[..length]) {
            return Ok(response[..length].to_vec());
        }
    }
}

async fn resolve(name: Vec<u8>, number: u16, server: Option<String>) -> Outcome<(u8, Vec<String>)> {
    let server = match server {
        Some(server) => server,
        None => system_name_server().await,
    };
    let mut query = Vec::new();
    let id = RandomState::new().hash_one(()) as u16;
    dns::emit_query(id, &name, number, &mut query);
    let parsed = dns::Query::parse(&query).map_err(|error| error.to_string())?;
    let is_response =
        |seen: &[u8]| seen.len() >= 12 && dns::id(seen) == id && parsed.matches_response(&query, seen);
    let response = datagrams(&server, &query, is_response).await?;
    let message = Message::from_vec(&response).map_err(|error| format!("dns: {error}"))?;
    let records = message.answers.iter().map(|record| record.data.to_string()).collect();
    Ok((dns::rcode(&response), records))
}

/// Returns the first name server of the system.
async fn system_name_server() -> String {
    let reading = tokio::task::spawn_blocking(|| std::fs::read_to_string("/etc/resolv.conf"));
    let text = reading.await.ok().and_then(Result::ok).unwrap_or_default();
    let named = text
        .lines()
        .find_map(|line| line.strip_prefix("nameserver")?.split_whitespace().next()?.parse().ok());
    named.map_or_else(|| NAME_SERVER.into(), |ip: std::net::IpAddr| SocketAddr::new(ip, 53).to_string())
}
