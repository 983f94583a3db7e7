//! Values in the notation of other programs.

use super::check_cases;

const OF_A_SERVICE: &str = r#"
unix_mode = 384
    service `s`: unix_mode must be a file mode in quotes, got 384: write "0600"
unix_mode = 600
    service `s`: unix_mode must be a file mode in quotes, got 600: write "0600"
unix_mode = 99999
    service `s`: unix_mode must be a file mode such as "0660", got 99999
protocol = "http", routes = { { path = "*", pool = pool "p" { "10.0.0.1:1" } } }
    service `s`: routes.path must be a prefix of the path, not a regular expression, got "*": write "/" for all paths
protocol = "http", routes = { { path = "/a/*/b", pool = pool "p" { "10.0.0.1:1" } } }
    service `s`: routes.path must have no *, which is not a wildcard, got "/a/*/b": write "/a", which includes all
protocol = "http", routes = { { path = "/*.php", pool = pool "p" { "10.0.0.1:1" } } }
    service `s`: routes.path must have no *, which is not a wildcard, got "/*.php": write "/", which includes all
protocol = "http", per_client = { request_rate = "10r/s" }
    service `s`: per_client.request_rate must be a rate such as "20/s", "100/m" or "1000/h", got "10r/s": write "10/s"
protocol = "http", header_bytes_max = "32k"
    service `s`: header_bytes_max must be a number of bytes from 1024 to 65536, got "32k": write 32768
protocol = "http", header_bytes_max = "1M"
    service `s`: header_bytes_max must be a number of bytes from 1024 to 65536, got "1M"
allow = "::ffff:10.0.0.0/104"
    service `s`: `::ffff:10.0.0.0/104` is an IPv4 prefix in the form of IPv6: write 10.0.0.0/8
"#;

#[test]
fn notations_of_other_programs_are_corrected() {
    check_cases(OF_A_SERVICE, |case| {
        format!("service \"s\" {{ listen = \"127.0.0.1:1\", \"10.0.0.1:80\", {case} }}")
    });
}
