//! The measured programs of HTTP: Evener, haproxy in mode http, and nginx. Each has one thread, the same
//! certificate, pooled connections to the servers, and X-Forwarded-For.

use super::peers::{Ground, Peer, WEB_PORTS, web_servers};
use crate::shell;
use std::process::Command;

/// Transport of the clients.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    Clear,
    Tls,
}

/// Programs for HTTP without TLS.
pub(super) fn clear() -> Vec<Peer> {
    vec![
        Peer::new("evener", 18_120, |ground, port| evener(ground, port, Layer::Clear)),
        Peer::new("haproxy", 18_121, |ground, port| haproxy(ground, port, Layer::Clear)),
        Peer::new("nginx", 18_122, |ground, port| nginx(ground, port, Layer::Clear)),
    ]
}

/// Programs for HTTP over TLS.
pub(super) fn tls() -> Vec<Peer> {
    vec![
        Peer::new("evener", 18_130, |ground, port| evener(ground, port, Layer::Tls)),
        Peer::new("haproxy", 18_131, |ground, port| haproxy(ground, port, Layer::Tls)),
        Peer::new("nginx", 18_132, |ground, port| nginx(ground, port, Layer::Tls)),
    ]
}

/// Makes the certificate that all programs use: ECDSA on P-256, as certification authorities issue today.
pub(super) fn make_certificate(ground: &Ground) -> anyhow::Result<()> {
    let file = |name: &str| ground.directory.join(name).display().to_string();
    let (key, certificate) = (file("site.key"), file("site.crt"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    openssl.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "30"]);
    openssl.args(["-keyout", &key, "-out", &certificate]).stderr(std::process::Stdio::null());
    shell::run(&mut openssl)?;
    let both = std::fs::read_to_string(&certificate)? + &std::fs::read_to_string(&key)?;
    Ok(std::fs::write(file("site.pem"), both)?)
}

fn evener(ground: &Ground, port: u16, layer: Layer) -> anyhow::Result<Command> {
    let mut command = Command::new(&ground.binary);
    command.args(["http", &format!("127.0.0.1:{port}")]).args(web_servers());
    let socket = ground.directory.join(format!("evener-{port}.sock"));
    command.args(["--workers", "1", "--log-level", "warn", "--admin"]).arg(socket);
    if layer == Layer::Tls {
        command.arg("--tls").arg(ground.directory.join("site.pem"));
    }
    Ok(command)
}

fn haproxy(ground: &Ground, port: u16, layer: Layer) -> anyhow::Result<Command> {
    let [a, b] = web_servers();
    let tls = match layer {
        Layer::Clear => String::new(),
        Layer::Tls => format!("ssl crt {} alpn h2,http/1.1", ground.directory.join("site.pem").display()),
    };
    let text = format!(
        "global\n nbthread 1\n maxconn {}\ndefaults\n mode http\n timeout connect 5s\n timeout client 60s\n \
         timeout server 60s\n option forwardfor\n http-reuse always\nfrontend f\n bind 127.0.0.1:{port} backlog 4096 {tls}\n \
         default_backend b\nbackend b\n balance roundrobin\n server a {a}\n server b {b}\n",
        ground.connections_max
    );
    let file = ground.write(&format!("haproxy-http-{port}.cfg"), &text)?;
    let mut command = Command::new("haproxy");
    command.args(["-db", "-f"]).arg(file);
    Ok(command)
}

fn nginx(ground: &Ground, port: u16, layer: Layer) -> anyhow::Result<Command> {
    let directory = ground.directory.display();
    let tls = match layer {
        Layer::Clear => (String::new(), ""),
        Layer::Tls => (
            format!(
                "ssl_certificate {directory}/site.crt; ssl_certificate_key {directory}/site.key; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:s:10m;"
            ),
            "ssl http2",
        ),
    };
    let servers: String = WEB_PORTS.map(|port| format!("server 127.0.0.1:{port}; ")).concat();
    let text = format!(
        "worker_processes 1;\ndaemon off;\nuser root;\npid {directory}/h{port}.pid;\nerror_log {directory}/h{port}.log;\n\
         events {{ worker_connections {}; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; proxy_temp_path {directory}/p{port}; client_body_temp_path {directory}/b{port};\n\
         upstream u {{ {servers} keepalive 256; keepalive_requests 1000000000; }}\n\
         server {{ listen 127.0.0.1:{port} backlog=4096 {}; {}\n location / {{ proxy_pass http://u; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_set_header Host $host;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }} }}\n",
        ground.connections_max * 2,
        tls.1,
        tls.0,
    );
    let file = ground.write(&format!("nginx-http-{port}.conf"), &text)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(file);
    Ok(command)
}
