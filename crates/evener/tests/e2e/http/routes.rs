//! Routes of a service with local responses: requests that match a route go to its pool, and all others get the redirect or
//! the configured response.

use crate::harness::Evener;
use crate::harness::origin::{Origin, Wire, http_service, run_http};
use crate::http::http2::client::{Front, within};

const ACME: &str = "/.well-known/acme-challenge";

fn config(listen: u16, acme: &Origin, setting: &str) -> String {
    format!(
        "service \"s\" {{ listen = \"127.0.0.1:{listen}\", protocol = \"http\", {setting}, health = \"/up\", routes = {{\n\
         {{ path = \"{ACME}\", pool = pool \"acme\" {{ \"127.0.0.1:{}\" }} }} }} }}",
        acme.port
    )
}

#[test]
fn a_route_takes_precedence_over_redirect_and_respond() {
    let acme = Origin::named("acme");
    let evener = Evener::run(&config(0, &acme, "redirect = \"https\""));
    let listen = evener.port("s");
    let request = |target: &str| Wire::to(listen).ask("GET", target, "").unwrap();
    let is_acme =
        |target: &str| assert_eq!((request(target).status(), request(target).text().as_str()), (200, "acme"));
    let challenges =
        [ACME, &format!("{ACME}/token"), &format!("{ACME}?a"), &format!("http://b.example{ACME}/x")];
    challenges.into_iter().for_each(is_acme);
    for other in ["/", "/.well-known", "/.well-known/acme-challenges/x"] {
        let response = request(other);
        assert_eq!(
            (response.status(), response.field("Location")),
            (308, format!("https://test{other}").as_str())
        );
    }
    assert_eq!(request("/up").status(), 200);
    // CONNECT gets neither the route nor the redirect.
    let connect = || {
        let client = Wire::to(listen);
        client.send("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n").unwrap();
        { client }.response("CONNECT").unwrap().status()
    };
    assert_eq!(connect(), 400);
    evener.reload(&config(0, &acme, "respond = { body = \"here\" }"));
    challenges.into_iter().for_each(is_acme);
    assert_eq!((request("/").status(), request("/").text().as_str()), (200, "here"));
    assert_eq!(connect(), 400);
    evener.reload(&config(0, &acme, "redirect = \"https\"").replace("path =", "host = \"test\", path ="));
    is_acme(ACME);
    assert_eq!(
        request(&format!("http://b.example{ACME}/x")).status(),
        308,
        "the route must not match another host"
    );
}

#[test]
fn a_route_takes_precedence_over_redirect_and_respond_for_clients_of_http_2() {
    let acme = Origin::named("acme");
    let before = format!("pool \"acme\" {{ \"127.0.0.1:{}\" }}", acme.port);
    let routes = format!("routes = {{ {{ path = \"{ACME}\", pool = \"acme\" }} }}");
    for (setting, status) in [("redirect = \"https\"", 308), ("respond = { status = 404 }", 404)] {
        let front = Front::run_ports(&[], &before, &format!("{setting}, {routes}"));
        within(async {
            let client = front.client().await;
            for _ in 0..2 {
                assert_eq!(client.get(&format!("{ACME}/token")).await.text(), "acme");
                assert_eq!(client.get("/").await.status(), status);
            }
        });
    }
}

#[test]
fn an_absolute_target_may_have_a_query_and_no_path() {
    let origin = Origin::start(|wire, request| {
        let received = format!("{} {} {}", request.method(), request.target(), request.field("Host"));
        wire.reply("200 OK", "", received.as_bytes())
    });
    let (evener, port) = run_http(&[&origin], "");
    let request = |line: &str| {
        let client = Wire::to(port);
        client.send(format!("{line} HTTP/1.1\r\nHost: other\r\n\r\n")).unwrap();
        { client }.response("GET").unwrap()
    };
    for (line, received) in [
        ("GET http://a.test?q=1", "GET /?q=1 a.test"),
        ("GET http://a.test:81?", "GET /? a.test:81"),
        ("POST HTTPS://[::1]?a/b?c", "POST /?a/b?c [::1]"),
        ("OPTIONS http://a.test?q", "OPTIONS /?q a.test"),
        ("OPTIONS http://a.test", "OPTIONS * a.test"),
        ("GET http://a.test", "GET / a.test"),
    ] {
        assert_eq!(request(line).text(), received, "{line}");
    }
    for line in ["GET http://?q=1", "GET ?q=1", "GET http://a.test?q=1#x"] {
        assert_eq!(request(line).status(), 400, "{line}");
    }
    // Routes and redirects use the path `/`.
    let routes =
        format!("routes = {{ {{ path = \"/x\", pool = pool \"x\" {{ \"127.0.0.1:{}\" }} }} }}", origin.port);
    evener.reload(&http_service(port, &[], &format!("redirect = \"https\", {routes}")));
    assert_eq!(request("GET http://a.test?/x").field("Location"), "https://a.test/?/x");
}
