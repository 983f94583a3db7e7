//! Lines of request logs: the facts about one request and its response, and the formats in which they are
//! written. Text from clients is bounded and escaped, so that no client can forge a line. Writing the lines is
//! the task of the program.

mod codes;
mod escape;
mod field;
mod json;
mod template;
mod text;

pub use field::Field;
pub use template::{Template, TemplateError};
pub use text::RequestText;

use crate::address::Target;
use crate::reason::Cause;
use crate::spec::Protocol;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Format of the lines of a request log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestLogFormat {
    /// The format of pen, written when a request is sent to a server: `client epoch server request`.
    Pen,
    /// One JSON object a line.
    Json,
    /// A named or custom format with placeholders.
    Template(Arc<Template>),
}

/// Format of readable lines.
const TEXT: &str = "{time} {client} \"{request}\" {status} duration={duration} response_bytes={response_bytes} \
    request_bytes={request_bytes} host={host} service={service} pool={pool} server={server} retries={retries} \
    reason={reason}";
/// Format of readable lines about connections and flows.
const CONNECTION: &str = "{time} {client} port={client_port} duration={duration} connected={connected} \
    first_byte={first_byte} bytes_in={bytes_in} bytes_out={bytes_out} service={service} pool={pool} server={server} \
    retries={retries} reason={reason}";
/// Format of readable lines about queries of DNS.
const QUERY: &str = "{time} {client} \"{request}\" {status} duration={duration} bytes_in={bytes_in} \
    bytes_out={bytes_out} service={service} pool={pool} server={server} retries={retries} reason={reason}";
/// NCSA common log format.
const COMMON: &str = "{client} - - [{time_common}] \"{request}\" {status_common} {response_bytes}";
/// NCSA combined log format.
const COMBINED: &str = "{client} - - [{time_common}] \"{request}\" {status_common} {response_bytes} \
    \"{referer}\" \"{user_agent}\"";

impl RequestLogFormat {
    /// Names of the formats, the default format of HTTP first.
    pub const NAMES: [&str; 5] = ["text", "json", "common", "combined", "pen"];

    /// The default format of HTTP.
    #[must_use]
    pub fn text() -> Self {
        Self::named("text").unwrap_or(Self::Json)
    }

    /// Returns the format with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let template = |text| Template::parse(text).ok().map(|template| Self::Template(Arc::new(template)));
        match name {
            "text" => template(TEXT),
            "common" => template(COMMON),
            "combined" => template(COMBINED),
            "json" => Some(Self::Json),
            "pen" => Some(Self::Pen),
            _ => None,
        }
    }

    /// Returns the format with this name for a protocol. The formats of Apache and nginx are for HTTP only, and the
    /// format of pen is for TCP and HTTP.
    #[must_use]
    pub fn of_protocol(name: &str, protocol: Protocol) -> Option<Self> {
        let template = |text| Template::parse(text).ok().map(|template| Self::Template(Arc::new(template)));
        match (name, protocol) {
            (_, Protocol::Http) | ("json", _) | ("pen", Protocol::Tcp) => Self::named(name),
            ("text", Protocol::Dns) => template(QUERY),
            ("text", Protocol::Tcp | Protocol::Udp) => template(CONNECTION),
            _ => None,
        }
    }

    /// Returns the name of the format, or the text of a custom format.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Pen => "pen",
            Self::Json => "json",
            Self::Template(template) => match template.text() {
                TEXT | CONNECTION | QUERY => "text",
                COMMON => "common",
                COMBINED => "combined",
                text => text,
            },
        }
    }

    /// Appends the line of a request, with its line end. The format of pen has no such line, because its lines
    /// are written before the response.
    pub fn write(&self, record: &Record<'_>, line: &mut Vec<u8>) {
        match self {
            Self::Pen => return,
            Self::Json => json::write(record, line),
            Self::Template(template) => template.write(record, line),
        }
        line.push(b'\n');
    }
}

/// Facts about one request and its response, or about one connection, query or flow.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Time at which the request was received, since 1970 in UTC.
    pub received_at: Duration,
    /// Name of the service.
    pub service: &'a str,
    /// Address of the client, as a trusted proxy reported it or else of the connection.
    pub client: IpAddr,
    /// Port of the client, if the address is of the connection.
    pub client_port: Option<u16>,
    /// Text of the request; empty for connections and flows.
    pub request: &'a RequestText,
    /// Status of the response, of DNS the response code; `None` if the client received no response.
    pub status: Option<u16>,
    /// Cause of a local response, or of an incomplete exchange.
    pub cause: Option<Cause>,
    /// Server that was tried last.
    pub server: Option<RecordServer<'a>>,
    /// Number of further tries after the first one failed.
    pub retries: u32,
    /// Number of bytes of the request's body, or from the client.
    pub request_bytes: u64,
    /// Number of bytes of the response's body, or to the client.
    pub response_bytes: u64,
    /// Time until a connection to the server was open, with the time in a queue and for failed tries.
    pub connected: Option<Duration>,
    /// Time until the header section of the response came, or the first byte of the server.
    pub first_byte: Option<Duration>,
    /// Time until the end of the response.
    pub duration: Duration,
    /// Version of TLS with the client.
    pub tls: Option<&'a str>,
    /// Server name in the ClientHello.
    pub sni: Option<&'a str>,
}

/// Server of a request.
#[derive(Clone, Copy, Debug)]
pub struct RecordServer<'a> {
    /// Name of the pool.
    pub pool: &'a str,
    /// Name of the server in its pool.
    pub name: &'a str,
    /// Address of the server.
    pub address: &'a Target,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Reason;
    use proptest::prelude::*;

    const FORGED: &[u8] = b"x\"\n192.0.2.99 \"GET /forged HTTP/1.1\" 200\x1b[31m\\ \xc3\xa9\xff";

    fn record<'a>(request: &'a RequestText, server: &'a Target) -> Record<'a> {
        Record {
            received_at: Duration::from_micros(1_763_870_000_123_456),
            service: "web",
            client: "::ffff:192.0.2.7".parse().unwrap(),
            client_port: Some(51_234),
            request,
            status: Some(200),
            cause: None,
            server: Some(RecordServer { pool: "www", name: "a", address: server }),
            retries: 1,
            request_bytes: 3,
            response_bytes: 1234,
            connected: Some(Duration::from_micros(412)),
            first_byte: Some(Duration::from_millis(12)),
            duration: Duration::from_micros(1_012_345),
            tls: Some("TLSv1.3"),
            sni: Some("a.example"),
        }
    }

    fn written(format: &RequestLogFormat, record: &Record<'_>) -> String {
        let mut line = Vec::new();
        format.write(record, &mut line);
        let text = String::from_utf8(line).expect("lines are ASCII");
        assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n')), "{text:?}");
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        text.trim_end().to_owned()
    }

    fn request() -> RequestText {
        RequestText::new(b"GET /a?b=c HTTP/1.1").with_fields(
            b"a.example",
            b"curl/8.14.1",
            b"https://b.example/",
        )
    }

    #[track_caller]
    fn check(format: &str, change: impl FnOnce(&mut Record<'_>), request: &RequestText, expected: &str) {
        let format = RequestLogFormat::named(format).unwrap_or_else(|| {
            RequestLogFormat::Template(Arc::new(Template::parse(format).expect("a valid template")))
        });
        let server = Target::Ip("10.0.0.51:80".parse().unwrap());
        let mut record = record(request, &server);
        change(&mut record);
        assert_eq!(written(&format, &record), expected);
    }

    #[test]
    fn named_formats_have_all_their_fields() {
        check(
            "text",
            |_| {},
            &request(),
            "2025-11-23T03:53:20.123Z 192.0.2.7 \"GET /a?b=c HTTP/1.1\" 200 duration=1.012345 response_bytes=1234 \
             request_bytes=3 host=a.example service=web pool=www server=a retries=1 reason=-",
        );
        let common = "192.0.2.7 - - [23/Nov/2025:03:53:20 +0000] \"GET /a?b=c HTTP/1.1\" 200 1234";
        check("common", |_| {}, &request(), common);
        check("combined", |_| {}, &request(), &format!("{common} \"https://b.example/\" \"curl/8.14.1\""));
        check(
            "json",
            |_| {},
            &request(),
            "{\"time\":\"2025-11-23T03:53:20.123Z\",\"service\":\"web\",\"client\":\"192.0.2.7\",\
             \"client_port\":51234,\"method\":\"GET\",\"target\":\"/a?b=c\",\"protocol\":\"HTTP/1.1\",\
             \"malformed\":null,\"host\":\"a.example\",\"status\":200,\"reason\":null,\"detail\":null,\"pool\":\"www\",\
             \"server\":\"a\",\"server_address\":\"10.0.0.51:80\",\"retries\":1,\"request_bytes\":3,\
             \"response_bytes\":1234,\"connected\":0.000412,\"first_byte\":0.012000,\"duration\":1.012345,\
             \"tls\":\"TLSv1.3\",\"sni\":\"a.example\",\"user_agent\":\"curl/8.14.1\",\
             \"referer\":\"https://b.example/\"}",
        );
    }

    #[test]
    fn codes_of_haproxy_and_nginx_are_understood() {
        let haproxy = "%ci:%cp [%tr] %ft %b/%s %Tc/%Tr/%Ta %ST %B %U %rc 100%% %{+Q}r %[ssl_fc_sni] %sslv";
        let line = "192.0.2.7:51234 [23/Nov/2025:03:53:20.123] web www/a 0/11/1012 200 1234 3 1 100% \
                    \"GET /a?b=c HTTP/1.1\" a.example TLSv1.3";
        check(haproxy, |_| {}, &request(), line);
        let nginx = "$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent \
                     \"$http_referer\" \"$http_user_agent\" ${request_time}s $upstream_addr $upstream_connect_time";
        let line = "192.0.2.7 - - [23/Nov/2025:03:53:20 +0000] \"GET /a?b=c HTTP/1.1\" 200 1234 \
                    \"https://b.example/\" \"curl/8.14.1\" 1.012s 10.0.0.51:80 0.000";
        check(nginx, |_| {}, &request(), line);
        let unconnected = |record: &mut Record<'_>| (record.connected, record.first_byte) = (None, None);
        check("%Tc/%Tr %HM %HU %HV", unconnected, &request(), "-1/-1 GET /a?b=c HTTP/1.1");
        check("$upstream_connect_time;$host", unconnected, &request(), "-;a.example");
        let forged = RequestText::new(b"GET /\"\n HTTP/1.1");
        check("%{+Q}r", |_| {}, &forged, "\"GET /\\x22\\x0A HTTP/1.1\"");
        for (format, code) in [("%ci %zz", "`%zz`"), ("$remote_addr $uri", "`$uri`"), ("%", "no placeholder")]
        {
            let error = Template::parse(format).unwrap_err().to_string();
            assert!(error.contains(code), "{format}: {error}");
        }
        // Signs beside fields in braces are text.
        check("{status} 5% $1", |_| {}, &request(), "200 5% $1");
    }

    #[test]
    fn missing_values_are_marked() {
        let none = RequestText::new(b"");
        let empty = |record: &mut Record<'_>| {
            (record.status, record.server) = (None, None);
            record.cause = Some(Cause::with(Reason::ClientClosed, "some \"words\""));
            (record.client_port, record.connected, record.first_byte) = (None, None, None);
            (record.tls, record.sni) = (None, None);
        };
        check(
            "text",
            empty,
            &none,
            "2025-11-23T03:53:20.123Z 192.0.2.7 \"-\" - duration=1.012345 response_bytes=1234 request_bytes=3 \
             host=- service=web pool=- server=- retries=1 reason=client_closed",
        );
        check(
            "combined",
            empty,
            &none,
            "192.0.2.7 - - [23/Nov/2025:03:53:20 +0000] \"-\" 499 1234 \"-\" \"-\"",
        );
        check(
            "json",
            empty,
            &none,
            "{\"time\":\"2025-11-23T03:53:20.123Z\",\"service\":\"web\",\"client\":\"192.0.2.7\",\
             \"client_port\":null,\"method\":null,\"target\":null,\"protocol\":null,\"malformed\":null,\
             \"host\":null,\"status\":null,\"reason\":\"client_closed\",\"detail\":\"some \\\"words\\\"\",\"pool\":null,\"server\":null,\
             \"server_address\":null,\"retries\":1,\"request_bytes\":3,\"response_bytes\":1234,\
             \"connected\":null,\"first_byte\":null,\"duration\":1.012345,\"tls\":null,\"sni\":null,\
             \"user_agent\":null,\"referer\":null}",
        );
    }

    #[test]
    fn text_of_a_client_forges_neither_lines_nor_fields() {
        let forged = RequestText::new(FORGED).with_fields(FORGED, FORGED, FORGED);
        let quoted = "x\\x22\\x0A192.0.2.99 \\x22GET /forged HTTP/1.1\\x22 200\\x1B[31m\\x5C \\xC3\\xA9\\xFF";
        check("\"{user_agent}\" {status}", |_| {}, &forged, &format!("\"{quoted}\" 200"));
        check("{user_agent} {status}", |_| {}, &forged, &format!("{} 200", quoted.replace(' ', "\\x20")));
        check("\"{request}\"", |_| {}, &forged, &format!("\"{quoted}\""));
        let format = RequestLogFormat::Json;
        let server = Target::Unix("/run/\"a\n".into());
        let json = written(&format, &record(&forged, &server));
        let escaped = "x\\\"\\u000a192.0.2.99 \\\"GET /forged HTTP/1.1\\\" 200\\u001b[31m\\\\ \\u00e9\\ufffd";
        for name in ["malformed", "host", "user_agent", "referer"] {
            assert!(json.contains(&format!("\"{name}\":\"{escaped}\"")), "{name} in {json}");
        }
        assert!(json.contains("\"server_address\":\"/run/\\\"a\\u000a\""), "{json}");
        assert!(json.contains("\"method\":null,\"target\":null,\"protocol\":null"), "{json}");
    }

    proptest! {
        #[test]
        fn any_bytes_of_a_client_make_one_line_with_the_same_number_of_quotes(
            line in proptest::collection::vec(any::<u8>(), 0..400),
            field in proptest::collection::vec(prop_oneof![Just(b'"'), Just(b'\\'), Just(b'\n'), any::<u8>()], 0..40),
        ) {
            let request = RequestText::new(&line).with_fields(&field, &field, &field);
            let server = Target::Ip("10.0.0.51:80".parse().unwrap());
            for (name, quotes) in [("text", 2), ("common", 2), ("combined", 6)] {
                let text = written(&RequestLogFormat::named(name).unwrap(), &record(&request, &server));
                prop_assert_eq!(text.matches('"').count(), quotes, "{}", text);
            }
            written(&RequestLogFormat::Json, &record(&request, &server));
        }
    }

    #[test]
    fn lines_are_bounded() {
        let long = vec![b'\n'; 1 << 20];
        let line = [b"GET /".as_slice(), &vec![b'x'; 1 << 20], b" HTTP/1.1"].concat();
        let request = RequestText::new(&line).with_fields(&long, &long, &long);
        let server = Target::Ip("10.0.0.51:80".parse().unwrap());
        for name in RequestLogFormat::NAMES.into_iter().filter(|name| *name != "pen") {
            let text = written(&RequestLogFormat::named(name).unwrap(), &record(&request, &server));
            assert!(text.len() < 16 * 1024, "a line of {name} has {} bytes", text.len());
            if name != "json" {
                assert!(text.contains("xxx... HTTP/1.1\""), "{text}");
            }
        }
        let garbage = RequestText::new(&long);
        let text = written(&RequestLogFormat::text(), &record(&garbage, &server));
        assert!(text.contains("\\x0A...\"") && text.len() < 4 * 1024, "{text}");
    }

    #[test]
    fn custom_formats_have_placeholders_and_braces() {
        check(
            "{client}:{client_port} {{{method}}} {epoch}",
            |_| {},
            &request(),
            "192.0.2.7:51234 {GET} 1763870000",
        );
        check("{target} {protocol} {tls} {sni}", |_| {}, &request(), "/a?b=c HTTP/1.1 TLSv1.3 a.example");
        check(
            "{connected} {first_byte} {server_address}",
            |_| {},
            &request(),
            "0.000412 0.012000 10.0.0.51:80",
        );
    }

    #[test]
    fn every_field_has_a_unique_name_and_a_description() {
        let names: Vec<&str> = Field::ALL.iter().map(|field| field.name()).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), names.len());
        for field in Field::ALL {
            assert_eq!(Field::named(field.name()), Some(*field));
        }
    }

    #[test]
    fn a_format_has_the_name_by_which_it_is_chosen() {
        for name in RequestLogFormat::NAMES {
            assert_eq!(RequestLogFormat::named(name).unwrap().name(), name);
        }
        assert_eq!(RequestLogFormat::named("apache"), None);
    }
}
