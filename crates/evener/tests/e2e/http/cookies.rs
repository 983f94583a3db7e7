//! Several pools of one service that are sticky by cookies: each pool has a separate cookie, and a client stays with its
//! server in each pool.

use crate::harness::Evener;
use crate::harness::origin::{Message, Origin, Wire};
use crate::http::http2::client::{Front, within};
use std::collections::BTreeMap;

const STICKY: &str = "sticky = { by = \"cookie\" }";

fn pool(name: &str, origins: &[Origin], sticky: &str) -> String {
    let servers: String = origins.iter().map(|origin| format!("\"127.0.0.1:{}\", ", origin.port)).collect();
    format!("pool \"{name}\" {{ {servers} {sticky} }}\n")
}

fn service(listen: u16, routes: &str) -> String {
    format!(
        "service \"s\" {{ listen = \"127.0.0.1:{listen}\", protocol = \"http\", pool = \"www\", {routes} }}\n"
    )
}

/// The cookies of a client.
#[derive(Default)]
struct Jar(BTreeMap<String, String>);

impl Jar {
    /// Stores the cookie of a `Set-Cookie` field.
    fn store(&mut self, set_cookie: &str) {
        let pair = set_cookie.split(';').next().unwrap_or_default();
        if let Some((name, value)) = pair.split_once('=') {
            self.0.insert(name.into(), value.into());
        }
    }

    /// The value of the `Cookie` field.
    fn field(&self) -> String {
        let pairs: Vec<String> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join("; ")
    }

    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    /// Sends a request with the cookies, and stores the cookie that the response sets.
    fn request(&mut self, port: u16, path: &str) -> Message {
        let line = format!("Cookie: {}\r\n", self.field());
        let response = Wire::to(port).ask("GET", path, if self.0.is_empty() { "" } else { &line }).unwrap();
        self.store(response.field("Set-Cookie"));
        response
    }
}

#[test]
fn each_pool_of_a_service_has_a_separate_cookie() {
    let (www, api) = (["a", "b", "c"].map(Origin::named), ["d", "e", "f"].map(Origin::named));
    let config = format!(
        "{}{}{}",
        pool("www", &www, STICKY),
        pool("the api", &api, STICKY),
        service(0, "routes = { { path = \"/api\", pool = \"the api\" } }")
    );
    let evener = Evener::run(&config);
    let listen = evener.port("s");
    let mut servers = Vec::new();
    for _ in 0..4 {
        let mut jar = Jar::default();
        let expected = ["/", "/api"].map(|path| jar.request(listen, path).text());
        assert_eq!(jar.names(), ["EVENER_the%20api", "EVENER_www"]);
        for _ in 0..6 {
            for (path, server) in [("/api", &expected[1]), ("/", &expected[0])] {
                let response = jar.request(listen, path);
                assert_eq!((&response.text(), response.field("Set-Cookie")), (server, ""));
            }
        }
        servers.extend(expected);
    }
    servers.sort_unstable();
    servers.dedup();
    assert!(servers.len() > 2, "{servers:?}");
}

#[test]
fn clients_of_http_2_stay_with_their_server_in_both_pools() {
    let (www, api) = (["a", "b", "c"].map(Origin::named), ["d", "e", "f"].map(Origin::named));
    let ports: Vec<u16> = www.iter().map(|origin| origin.port).collect();
    let more = format!("{STICKY}, routes = {{ {{ path = \"/api\", pool = \"api\" }} }}");
    let front = Front::run_ports(&ports, &pool("api", &api, STICKY), &more);
    within(async {
        let client = front.client().await;
        let mut jar = Jar::default();
        let mut servers = Vec::new();
        for path in ["/", "/api"] {
            let response = client.request("GET", path, &[("cookie", &jar.field())]).await.unwrap();
            jar.store(response.field("set-cookie"));
            servers.push(response.text());
        }
        assert_eq!(jar.names(), ["EVENER_api", "EVENER_s"]);
        for _ in 0..6 {
            for (path, server) in ["/", "/api"].iter().zip(&servers) {
                let response = client.request("GET", path, &[("cookie", &jar.field())]).await.unwrap();
                assert_eq!((&response.text(), response.field("set-cookie")), (server, ""));
            }
        }
    });
}

#[test]
fn a_client_stays_with_its_server_when_a_reload_adds_a_sticky_pool() {
    let (www, api) = (["a", "b", "c"].map(Origin::named), ["d", "e", "f"].map(Origin::named));
    let pools = format!("{}{}", pool("www", &www, STICKY), pool("api", &api, STICKY));
    let evener = Evener::run(&format!("{pools}{}", service(0, "")));
    let listen = evener.port("s");
    let mut jar = Jar::default();
    let www_server = jar.request(listen, "/").text();
    assert_eq!(jar.names(), ["EVENER"]);
    evener.reload(&format!("{pools}{}", service(0, "routes = { { path = \"/api\", pool = \"api\" } }")));
    let api_server = jar.request(listen, "/api").text();
    assert_eq!(jar.names(), ["EVENER", "EVENER_api"]);
    for _ in 0..6 {
        assert_eq!(jar.request(listen, "/").text(), www_server);
        assert_eq!(jar.request(listen, "/api").text(), api_server);
    }
    assert_eq!(jar.names(), ["EVENER", "EVENER_api"]);
}

#[test]
fn configured_cookie_names_are_used_and_a_shared_pool_has_one_cookie() {
    let named = |name: &str| format!("sticky = {{ by = \"cookie\", name = \"{name}\" }}");
    let [a, b, c] = ["a", "b", "c"].map(|name| [Origin::named(name)]);
    let routes = "routes = { { path = \"/b\", pool = \"b\" }, { path = \"/c\", pool = \"c\" } }";
    let config = format!(
        "{}{}{}{}service \"other\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", pool = \"c\" }}\n",
        pool("www", &a, &named("EVENER")),
        pool("b", &b, &named("B")),
        pool("c", &c, STICKY),
        service(0, routes),
    );
    let evener = Evener::run(&config);
    let first = evener.port("s");
    let second = evener.port("other");
    let cookies = |port, path| {
        let mut jar = Jar::default();
        jar.request(port, path);
        jar.names().join(" ")
    };
    assert_eq!(
        [cookies(first, "/"), cookies(first, "/b"), cookies(first, "/c")],
        ["EVENER", "B", "EVENER_c"]
    );
    assert_eq!(cookies(second, "/"), "EVENER_c", "a pool must have the same cookie in every service");
    // No other pool uses the default name now.
    evener.reload(&config.replace(&named("EVENER"), &named("A")));
    assert_eq!([cookies(first, "/"), cookies(first, "/c")], ["A", "EVENER"]);
}
