//! The checks of examples/scripts, against servers that speak the first messages of each protocol.

use crate::harness::{Evener, Server, wait_until};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;

/// Runs a recipe with the two servers, and expects that the first is up and the second down for a reason.
fn expect(recipe: &str, port: u16, (good, bad): (&Server, &Server), reason: &str) {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/scripts");
    let text = fs::read_to_string(examples.join(format!("{recipe}.lua"))).unwrap();
    let config = text
        .replace(&format!("192.0.2.1:{port}"), "127.0.0.1:0")
        .replace(&format!("10.0.0.1:{port}"), &format!("127.0.0.1:{}", good.port))
        .replace(&format!("10.0.0.2:{port}"), &format!("127.0.0.1:{}", bad.port))
        .replace("check.script {", "check.script { every = \"50ms\", rise = 1, fall = 1,");
    let evener = Evener::run(&config);
    let await_verdict = |server: &Server, verdict: &str| {
        let name = format!("127.0.0.1:{}", server.port);
        wait_until(&format!("{recipe}: {name} to be {verdict}"), || {
            (evener.server(&name)["verdict"] == verdict).then_some(())
        });
        evener.server(&name)["reason"].as_str().unwrap_or_default().to_owned()
    };
    await_verdict(good, "up");
    let seen = await_verdict(bad, "down");
    assert!(seen.contains(reason), "{recipe}: {seen}");
    assert_eq!(evener.log_count("script_failed"), 0, "{recipe}");
}

fn exact<const N: usize>(stream: &mut TcpStream) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).ok().map(|()| bytes)
}

fn postgres(is_in_recovery: u8) -> Server {
    Server::start(move |mut stream| {
        let _ = (|| {
            let length = u32::from_be_bytes(exact(&mut stream)?) as usize - 4;
            let mut startup = vec![0; length];
            stream.read_exact(&mut startup).ok()?;
            assert_eq!(&startup[..4], &196_608_u32.to_be_bytes());
            assert_eq!(&startup[4..], b"user\0postgres\0database\0postgres\0\0");
            // AuthenticationOk, ParameterStatus, BackendKeyData, ReadyForQuery.
            stream.write_all(b"R\0\0\0\x08\0\0\0\0").ok()?;
            stream.write_all(b"S\0\0\0\x16server_version\x0017\0").ok()?;
            stream.write_all(b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I").ok()?;
            let header: [u8; 5] = exact(&mut stream)?;
            assert_eq!(header[0], b'Q');
            let mut query = vec![0; u32::from_be_bytes(header[1..].try_into().unwrap()) as usize - 4];
            stream.read_exact(&mut query).ok()?;
            assert_eq!(query, b"select pg_is_in_recovery()\0");
            // RowDescription of a column, DataRow, CommandComplete, ReadyForQuery.
            let column = b"pg_is_in_recovery\0\0\0\0\0\0\0\0\0\0\x10\0\x01\xff\xff\xff\xff\0\0";
            stream.write_all(b"T").ok()?;
            stream.write_all(&(column.len() as u32 + 6).to_be_bytes()).ok()?;
            stream.write_all(b"\0\x01").ok()?;
            stream.write_all(column).ok()?;
            stream.write_all(&[b'D', 0, 0, 0, 11, 0, 1, 0, 0, 0, 1, is_in_recovery]).ok()?;
            stream.write_all(b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I").ok()
        })();
    })
}

#[test]
fn the_primary_of_postgres_is_up() {
    expect("postgres", 5432, (&postgres(b'f'), &postgres(b't')), "in recovery");
    let refusing = Server::start(|mut stream| {
        let _ = stream.write_all(b"E\0\0\0\x22SFATAL\0Mno pg_hba.conf entry\0\0");
        let _ = stream.read(&mut [0; 64]);
    });
    expect("postgres", 5432, (&postgres(b'f'), &refusing), "no pg_hba.conf entry");
}

/// A server that reads a line, and sends bytes.
fn after_line(response: &'static [u8]) -> Server {
    Server::start(move |stream| {
        let mut line = String::new();
        let mut reader = BufReader::new(&stream);
        if reader.read_line(&mut line).is_ok() {
            let _ = (&stream).write_all(response);
        }
    })
}

#[test]
fn the_master_of_redis_is_up() {
    let master = after_line(b"*3\r\n$6\r\nmaster\r\n:3129659\r\n*0\r\n");
    let replica =
        after_line(b"*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:6379\r\n$9\r\nconnected\r\n:3167038\r\n");
    expect("redis", 6379, (&master, &replica), "role slave");
    let locked = after_line(b"-NOAUTH Authentication required.\r\n");
    expect("redis", 6379, (&master, &locked), "NOAUTH Authentication required.");
}

/// A server that sends bytes, and then reads.
fn preamble(bytes: &'static [u8]) -> Server {
    Server::start(move |mut stream| {
        let _ = stream.write_all(bytes);
        let _ = stream.read(&mut [0; 64]);
    })
}

#[test]
fn a_mail_server_with_a_banner_is_up() {
    let good = preamble(b"220-mail.example.org\r\n220 ESMTP ready\r\n");
    expect("smtp", 25, (&good, &preamble(b"554 no service\r\n")), "banner 554 no service");
}

#[test]
fn a_mysql_server_that_greets_is_up() {
    let good = preamble(
        b"\x4a\0\0\0\x0a8.0.36\0\x0b\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08\0\xff\xff\xff\x02\0\xff\xdf\x15\0\0\0\0\0\0\0\0\0\0\
          \x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\0caching_sha2_password\0",
    );
    let full = preamble(b"\x17\0\0\0\xff\x10\x04Too many connections");
    expect("mysql", 3306, (&good, &full), "Too many connections");
}

#[test]
fn an_ldap_server_that_accepts_an_anonymous_bind_is_up() {
    let responding = |response: &'static [u8]| {
        Server::start(move |mut stream| {
            let bind: Option<[u8; 14]> = exact(&mut stream);
            if bind.is_some_and(|bind| bind == *b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\0\x80\0") {
                let _ = stream.write_all(response);
            }
        })
    };
    let good = responding(b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\0\x04\0\x04\0");
    // The same form with long lengths, as OpenLDAP and Active Directory send: 48 is inappropriateAuthentication.
    let bad = responding(b"\x30\x84\0\0\0\x10\x02\x01\x01\x61\x84\0\0\0\x07\x0a\x01\x30\x04\0\x04\0");
    expect("ldap", 389, (&good, &bad), "result 48");
}

fn grpc(status: u8) -> Server {
    Server::start(move |stream| {
        stream.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::from_std(stream).unwrap();
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                assert_eq!(request.headers()["content-type"], "application/grpc");
                let response = hyper::Response::builder().header("content-type", "application/grpc");
                let mut body = respond.send_response(response.body(()).unwrap(), false).unwrap();
                let message = vec![0, 0, 0, 0, 2, 8, status];
                body.send_data(message.into(), false).unwrap();
                let mut trailers = hyper::HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                body.send_trailers(trailers).unwrap();
            }
        });
    })
}

#[test]
fn a_grpc_server_that_serves_is_up() {
    expect("grpc", 50051, (&grpc(1), &grpc(2)), "status 2");
}

#[test]
fn each_recipe_has_a_test() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/scripts");
    let files = fs::read_dir(examples).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = files.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["grpc.lua", "ldap.lua", "mysql.lua", "postgres.lua", "redis.lua", "smtp.lua"]);
}
