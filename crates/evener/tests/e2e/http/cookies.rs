//! Several pools of one service that are sticky by cookies: each has a cookie of its own, and a client stays with its
//! server of each.

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

/// The cookies that a client keeps.
#[derive(Default)]
struct Jar(BTreeMap<String, String>);

impl Jar {
    fn keep(&mut self, set_cookie: &str) {
        let pair = set_cookie.split(';').next().unwrap_or_default();
        if let Some((name, value)) = pair.split_once('=') {
            self.0.insert(name.into(), value.into());
        }
    }

    fn field(&self) -> String {
        let pairs: Vec<String> = self.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join("; ")
    }

    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    /// Asks with the cookies, and keeps what is set.
    fn ask(&mut self, port: u16, path: &str) -> Message {
        let line = format!("Cookie: {}\r\n", self.field());
        let response = Wire::to(port).ask("GET", path, if self.0.is_empty() { "" } else { &line }).unwrap();
        self.keep(response.field("Set-Cookie"));
        response
    }
}

#[test]
fn each_pool_of_a_service_has_a_cookie_of_its_own() {
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
        let homes = ["/", "/api"].map(|path| jar.ask(listen, path).text());
        assert_eq!(jar.names(), ["EVENER_the%20api", "EVENER_www"]);
        for _ in 0..6 {
            for (path, home) in [("/api", &homes[1]), ("/", &homes[0])] {
                let response = jar.ask(listen, path);
                assert_eq!((&response.text(), response.field("Set-Cookie")), (home, ""));
            }
        }
        servers.extend(homes);
    }
    servers.sort_unstable();
    servers.dedup();
    assert!(servers.len() > 2, "{servers:?}");
}

#[test]
fn clients_of_http_2_keep_both_cookies() {
    let (www, api) = (["a", "b", "c"].map(Origin::named), ["d", "e", "f"].map(Origin::named));
    let ports: Vec<u16> = www.iter().map(|origin| origin.port).collect();
    let more = format!("{STICKY}, routes = {{ {{ path = \"/api\", pool = \"api\" }} }}");
    let front = Front::run_ports(&ports, &pool("api", &api, STICKY), &more);
    within(async {
        let client = front.client().await;
        let mut jar = Jar::default();
        let mut homes = Vec::new();
        for path in ["/", "/api"] {
            let response = client.ask("GET", path, &[("cookie", &jar.field())]).await.unwrap();
            jar.keep(response.field("set-cookie"));
            homes.push(response.text());
        }
        assert_eq!(jar.names(), ["EVENER_api", "EVENER_s"]);
        for _ in 0..6 {
            for (path, home) in ["/", "/api"].iter().zip(&homes) {
                let response = client.ask("GET", path, &[("cookie", &jar.field())]).await.unwrap();
                assert_eq!((&response.text(), response.field("set-cookie")), (home, ""));
            }
        }
    });
}

#[test]
fn a_client_stays_when_another_sticky_pool_comes_to_the_service() {
    let (www, api) = (["a", "b", "c"].map(Origin::named), ["d", "e", "f"].map(Origin::named));
    let pools = format!("{}{}", pool("www", &www, STICKY), pool("api", &api, STICKY));
    let evener = Evener::run(&format!("{pools}{}", service(0, "")));
    let listen = evener.port("s");
    let mut jar = Jar::default();
    let home = jar.ask(listen, "/").text();
    assert_eq!(jar.names(), ["EVENER"]);
    evener.reload(&format!("{pools}{}", service(0, "routes = { { path = \"/api\", pool = \"api\" } }")));
    let other = jar.ask(listen, "/api").text();
    assert_eq!(jar.names(), ["EVENER", "EVENER_api"]);
    for _ in 0..6 {
        assert_eq!(jar.ask(listen, "/").text(), home);
        assert_eq!(jar.ask(listen, "/api").text(), other);
    }
    assert_eq!(jar.names(), ["EVENER", "EVENER_api"]);
}

#[test]
fn names_that_are_given_stay_and_pools_of_several_services_share_theirs() {
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
    let one = evener.port("s");
    let two = evener.port("other");
    let set = |port, path| {
        let mut jar = Jar::default();
        jar.ask(port, path);
        jar.names().join(" ")
    };
    assert_eq!([set(one, "/"), set(one, "/b"), set(one, "/c")], ["EVENER", "B", "EVENER_c"]);
    assert_eq!(set(two, "/"), "EVENER_c", "a pool has one cookie, whatever the service");
    // No other pool has the plain name any more.
    evener.reload(&config.replace(&named("EVENER"), &named("A")));
    assert_eq!([set(one, "/"), set(one, "/c")], ["A", "EVENER"]);
}
