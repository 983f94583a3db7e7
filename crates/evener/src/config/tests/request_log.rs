//! Messages about `request_log`, and its forms.

use super::{check_cases, load_text};
use evener_core::spec::LogDestination;

const OF_A_REQUEST_LOG: &str = r#"
request_log = {}
    service `s`: request_log has no destination: write { file = "requests.log", format = "json" } or { udp = "10.0.0.9:10000" }
request_log = 5
    service `s`: request_log must be a file or a table such as { file = "requests.log", format = "json" }, got 5
request_log = { file = "a.log", udp = "10.0.0.9:10000" }
    service `s`: request_log has a file and an address: remove `file` or `udp`
request_log = { udp = "collector" }
    service `s`: request_log.udp must be an address such as "10.0.0.9:10000", got "collector"
request_log = { fiel = "a.log" }
    service `s`: unknown key `request_log.fiel`; did you mean `file`?
request_log = { file = "a.log", format = "combined" }
    service `s`: request_log.format "combined" needs protocol = "http": write "text", "json" or a text with placeholders
protocol = "udp", request_log = { file = "a.log", format = "pen" }
    service `s`: request_log.format "pen" needs protocol = "tcp" or "http"
request_log = { file = "a.log", sample = 0.5 }
    service `s`: request_log.sample is not available with the format "pen": write format = "text" or "json"
request_log = { file = "a.log", format = "json", sample = 2 }
    service `s`: request_log.sample must be between 0 and 1, got 2
request_log = { file = "a.log", format = "json", sample = 0 }
    service `s`: request_log.sample must be between 0.000001 and 1, got 0
request_log = { file = "a.log", syslog = "/dev/log" }
    service `s`: request_log has several destinations: remove all but one of `file`, `udp`, `syslog`
protocol = "http", request_log = { file = "a.log", format = "jsno" }
    service `s`: request_log.format must be "text", "json", "common", "combined", "pen" or a text with placeholders such as "{client} {status}", got "jsno"; did you mean "json"?
protocol = "http", request_log = { file = "a.log", format = "{client" }
    service `s`: request_log.format is not valid: `{` without `}`: write {{ for a brace
protocol = "http", request_log = { file = "a.log", format = "{clinet} {status}" }
    service `s`: request_log.format has an unknown placeholder `{clinet}`; did you mean `client`? The placeholders are {time}, {time_common}, {epoch}, {service}, {client}, {client_port}, {request}, {method}, {target}, {protocol}, {malformed}, {host}, {status}, {status_common}, {reason}, {detail}, {pool}, {server}, {server_address}, {retries}, {request_bytes}, {response_bytes}, {bytes_in}, {bytes_out}, {connected}, {first_byte}, {duration}, {tls}, {sni}, {user_agent}, {referer}
"#;

#[test]
fn each_mistake_in_a_request_log_has_its_message() {
    let start = "service \"s\" { listen = \"127.0.0.1:1\", \"10.0.0.1:1\",";
    check_cases(OF_A_REQUEST_LOG, |case| format!("{start} {case} }}"));
}

#[test]
fn the_default_format_depends_on_the_protocol_and_the_destination() {
    let check = |settings: &str, destination: LogDestination, format: &str| {
        let text = format!("service \"s\" {{ listen = \"127.0.0.1:1\", \"10.0.0.1:1\", {settings} }}");
        let log = load_text(&text).unwrap().spec.services[0].request_log.clone().unwrap();
        assert_eq!((log.destination, log.format.name()), (destination, format), "{settings}");
    };
    let file = |path: &str| LogDestination::File(path.into());
    let udp = LogDestination::Udp("10.0.0.9:514".parse().unwrap());
    check("request_log = \"/a.log\"", file("/a.log"), "pen");
    check("protocol = \"http\", request_log = \"/a.log\"", file("/a.log"), "text");
    check("protocol = \"http\", request_log = { file = \"/a.log\" }", file("/a.log"), "text");
    check("protocol = \"http\", request_log = \"-\"", file("/dev/stdout"), "text");
    check("protocol = \"http\", request_log = { udp = \"10.0.0.9:514\" }", udp.clone(), "pen");
    check("protocol = \"http\", request_log = { udp = \"10.0.0.9:514\", format = \"json\" }", udp, "json");
    check("protocol = \"dns\", request_log = \"/a.log\"", file("/a.log"), "text");
    check("protocol = \"udp\", request_log = \"/a.log\"", file("/a.log"), "text");
    check("request_log = { syslog = \"/dev/log\" }", LogDestination::Syslog("/dev/log".into()), "text");
    check("request_log = { file = \"/a.log\", format = \"pen\" }", file("/a.log"), "pen");
    let custom = "protocol = \"http\", request_log = { file = \"-\", format = \"{client} {status}\" }";
    check(custom, file("/dev/stdout"), "{client} {status}");
}
