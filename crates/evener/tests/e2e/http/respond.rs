//! `respond`: a service that sends a local response to every request.

use crate::harness::Evener;
use crate::harness::origin::{Origin, Wire};
use crate::http::http2::client::{Front, within};

const BODY: &str = "<h1>It works</h1>\n";

fn service(listen: u16, respond: &str) -> String {
    format!(
        "service \"s\" {{ listen = \"127.0.0.1:{listen}\", protocol = \"http\", respond = {{ {respond} }} }}"
    )
}

#[test]
fn every_request_gets_the_configured_response_and_the_connection_stays_open() {
    let respond = format!("type = \"text/html\", body = {BODY:?}");
    let evener = Evener::run(&service(0, &respond));
    let listen = evener.port("s");
    let mut client = Wire::to(listen);
    for method in ["GET", "DELETE", "OPTIONS", "GET"] {
        let response = client.ask(method, "/any/where?x", "").unwrap();
        assert_eq!((response.status(), response.field("Content-Type")), (200, "text/html"), "{method}");
        assert_eq!((response.text().as_str(), response.closes()), (BODY, false), "{method}");
    }
    let header = client.ask("HEAD", "/", "").unwrap();
    assert_eq!((header.status(), header.field("Content-Length")), (200, "18"));
    // Two pipelined requests: no body follows the header section of the response to HEAD.
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(client.response("HEAD").unwrap().body.is_empty());
    assert_eq!(client.response("GET").unwrap().text(), BODY);
    // The body of a request is not read, so the connection is closed after the response.
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello").unwrap();
    let response = client.response("POST").unwrap();
    assert_eq!((response.text().as_str(), response.closes()), (BODY, true));
    assert!(client.is_over());
    assert_eq!(evener.service_counter("s", "requests_local"), 8);
    assert_eq!(evener.service_counter("s", "requests"), 8);
}

#[test]
fn denied_clients_are_routed_to_the_denied_pool_and_not_to_the_local_response() {
    let refused = Origin::named("refused");
    let config = |setting: &str| {
        format!(
            "local r = pool \"r\" {{ \"127.0.0.1:{}\" }}
             service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", {setting},
               access = {{ {{ deny = \"127.0.0.1\" }} }}, denied = r }}",
            refused.port
        )
    };
    let evener = Evener::run(&config("respond = { body = \"hi\" }"));
    let listen = evener.port("s");
    let request = || Wire::to(listen).ask("GET", "/", "").unwrap();
    assert_eq!((request().status(), request().text().as_str()), (200, "refused"));
    evener.reload(&config("redirect = \"https\""));
    assert_eq!((request().status(), request().text().as_str()), (200, "refused"));
}

#[test]
fn connect_and_denied_clients_do_not_get_the_configured_response() {
    let config = service(0, "body = \"hi\"");
    let evener = Evener::run(&config);
    let listen = evener.port("s");
    let mut client = Wire::to(listen);
    client.send("CONNECT a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n").unwrap();
    assert_eq!(client.response("CONNECT").unwrap().status(), 400);
    evener.reload(&config.replace("respond", "deny = \"127.0.0.1\", denied = \"reject\", respond"));
    assert_eq!(Wire::to(listen).ask("GET", "/", "").unwrap().status(), 403);
    evener.reload(
        &config
            .replace("\"hi\"", "\"another\", status = 503")
            .replace("respond", "health = \"/up\", respond"),
    );
    let mut client = Wire::to(listen);
    let response = client.ask("GET", "/", "").unwrap();
    assert_eq!((response.status(), response.text().as_str()), (503, "another"));
    // A service that needs no servers is healthy.
    assert_eq!(client.ask("GET", "/up", "").unwrap().status(), 200);
}

#[test]
fn statuses_that_permit_no_body_are_sent_without_a_body() {
    for status in [204, 205, 304] {
        let evener = Evener::run(&service(0, &format!("status = {status}, body = \"never sent\"")));
        let listen = evener.port("s");
        let mut client = Wire::to(listen);
        for _ in 0..2 {
            let response = client.ask("GET", "/", "").unwrap();
            assert_eq!((response.status(), response.text().as_str()), (status, ""));
            assert_eq!(response.fields("Content-Length"), if status == 205 { vec!["0"] } else { vec![] });
        }
    }
}

#[test]
fn clients_of_http_2_get_the_configured_response() {
    for (status, body) in [(200, BODY), (204, "")] {
        let respond = format!("respond = {{ status = {status}, type = \"text/html\", body = {body:?} }}");
        let front = Front::run_ports(&[], "", &respond);
        within(async {
            let client = front.client().await;
            for method in ["GET", "HEAD", "PUT"] {
                let response = client.request(method, "/a?b=c", &[]).await.unwrap();
                let expected = if method == "HEAD" { "" } else { body };
                assert_eq!((response.status(), response.text().as_str()), (status, expected), "{method}");
                let (kind, length) = if status == 204 { ("", "") } else { ("text/html", "18") };
                assert_eq!(
                    (response.field("content-type"), response.field("content-length")),
                    (kind, length)
                );
            }
            let response = client.put("POST", "/", &[], vec![0; 300_000].into()).await.unwrap();
            assert_eq!((response.status(), response.text().as_str()), (status, body));
            assert_eq!(client.get("/").await.status(), status);
        });
    }
}
