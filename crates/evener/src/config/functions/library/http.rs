//! `http.get(url, options)` and `http.post(url, body, options)`.

use super::net::{Connected, connect, tls_of};
use super::{Outcome, RECEIVED_BYTES_MAX, bytes_to_send, failure, operate, timeout};
use crate::config::functions::bounds::fail;
use evener_core::spec::CheckTls;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use mlua::{IntoLua, Lua, Table, Value};
use tokio::task::JoinSet;

/// Longest URL.
const URL_BYTES_MAX: usize = 8 << 10;
/// Maximum number of header fields that a function sets.
const HEADERS_MAX: usize = 100;
/// Maximum length of their names and values.
const HEADER_BYTES_MAX: usize = 64 << 10;

struct Response {
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

/// Options of requests.
const OPTIONS: [&str; 5] = ["method", "headers", "verify", "sni", "ca"];

pub(super) fn library(lua: &Lua) -> mlua::Result<Table> {
    let http = lua.create_table()?;
    let get = lua.create_async_function(|lua, (url, options): (String, Option<Table>)| {
        request(&lua, "GET", &url, Ok(Vec::new()), options.as_ref())
    })?;
    http.raw_set("get", get)?;
    let post =
        lua.create_async_function(|lua, (url, body, options): (String, mlua::LuaString, Option<Table>)| {
            let body = bytes_to_send(&lua, "http.post", &body);
            request(&lua, "POST", &url, body, options.as_ref())
        })?;
    http.raw_set("post", post)?;
    Ok(http)
}

fn request(
    lua: &Lua,
    method: &str,
    url: &str,
    body: mlua::Result<Vec<u8>>,
    options: Option<&Table>,
) -> impl Future<Output = mlua::Result<Value>> + Send + use<> {
    let prepared = body.and_then(|body| prepare(lua, method, url, body, options));
    let lua = lua.clone();
    let begun = match prepared {
        Ok((request, authority, tls)) => {
            let limit = timeout(&lua, ("http", &OPTIONS), options);
            Ok(operate(&lua, "http", limit, exchange(request, authority, tls)))
        }
        Err(error) => Err(error),
    };
    async move {
        match begun?.await? {
            Err(why) => failure(&lua, &why),
            Ok(Response { status, headers, body }) => {
                let table = lua.create_table()?;
                table.raw_set("ok", (200..400).contains(&status))?;
                table.raw_set("status", status)?;
                table.raw_set("body", lua.create_string(body)?)?;
                let all = lua.create_table()?;
                for (name, value) in headers {
                    all.raw_set(name, lua.create_string(value)?)?;
                }
                table.raw_set("headers", all)?;
                if !(200..400).contains(&status) {
                    table.raw_set("error", format!("status {status}"))?;
                }
                table.into_lua(&lua)
            }
        }
    }
}

type Prepared = (Request<Full<Bytes>>, String, Option<CheckTls>);

fn prepare(
    lua: &Lua,
    method: &str,
    url: &str,
    body: Vec<u8>,
    options: Option<&Table>,
) -> mlua::Result<Prepared> {
    let refused = |why: String| fail(lua, why);
    if url.len() > URL_BYTES_MAX {
        return Err(refused(format!("a URL has at most {URL_BYTES_MAX} bytes, got {}", url.len())));
    }
    let uri: Uri = url.parse().map_err(|_| refused(format!("not a URL: {url:?}")))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(refused(format!("a URL begins with http:// or https://, got {url:?}")));
    };
    let (port, tls) = match scheme {
        "http" => (80, None),
        "https" => (443, Some(tls_of(lua, options)?)),
        _ => return Err(refused(format!("a URL begins with http:// or https://, got {url:?}"))),
    };
    let target = match authority.port_u16() {
        Some(_) => authority.as_str().to_owned(),
        None => format!("{}:{port}", authority.host()),
    };
    let given: Option<String> = options.map(|options| options.raw_get("method")).transpose()?.flatten();
    let method = given.unwrap_or_else(|| method.to_owned());
    let method: Method = method.parse().map_err(|_| refused(format!("not a method: {method:?}")))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().map_err(|_| refused(format!("not a URL: {url:?}")))?;
    let headers = request.headers_mut();
    let agent = concat!("evener/", env!("CARGO_PKG_VERSION"));
    headers
        .insert("host", HeaderValue::from_str(authority.as_str()).map_err(|_| refused("bad host".into()))?);
    headers.insert("user-agent", HeaderValue::from_static(agent));
    let given: Option<Table> = options.map(|options| options.raw_get("headers")).transpose()?.flatten();
    let mut room = HEADER_BYTES_MAX;
    for (count, pair) in given.iter().flat_map(Table::pairs::<String, String>).enumerate() {
        let (name, value) = pair?;
        let left = room.checked_sub(name.len() + value.len());
        room = left.filter(|_| count < HEADERS_MAX).ok_or_else(|| {
            refused(format!("a request has at most {HEADERS_MAX} headers of {HEADER_BYTES_MAX} bytes in all"))
        })?;
        let parsed = (name.parse::<HeaderName>().ok(), HeaderValue::from_str(&value).ok());
        let (Some(parsed), Some(value)) = parsed else {
            return Err(refused(format!("not a header: {name:?}")));
        };
        headers.try_insert(parsed, value).map_err(|_| refused("too many headers".into()))?;
    }
    Ok((request, target, tls))
}

async fn exchange(request: Request<Full<Bytes>>, target: String, tls: Option<CheckTls>) -> Outcome<Response> {
    let stream = connect(&target, tls).await?;
    match stream {
        Connected::Plain(stream) => send(request, stream).await,
        Connected::Tls(stream) => send(request, stream).await,
    }
}

async fn send<S>(request: Request<Full<Bytes>>, stream: S) -> Outcome<Response>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| format!("http: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // The connection ends with this function.
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let response = sender.send_request(request).await.map_err(failed)?;
    let (parts, mut incoming) = response.into_parts();
    let mut body = Vec::new();
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame.map_err(failed)?.into_data() else { continue };
        let room = RECEIVED_BYTES_MAX - body.len();
        if data.len() > room {
            return Err(format!("http: the body is longer than {RECEIVED_BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&data);
    }
    let headers = parts.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    Ok(Response { status: parts.status.as_u16(), headers: headers.collect(), body })
}
