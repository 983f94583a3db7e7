//! The dashboard in Chromium: it loads, shows live figures, drains a server, plans, and complains of nothing.

use super::remote::{api_port, write_tokens};
use crate::harness::browser::Browser;
use crate::harness::{BINARY, Directory, Evener, Server, wait_until, who};
use std::path::Path;

const TOKEN: &str = "0123456789abcdef-ops";

/// JavaScript that finds the row of a server.
fn row(server: &str) -> String {
    format!("document.querySelector('[data-server=\"{server}\"]')")
}

#[test]
fn an_operator_sees_and_drains_servers() {
    let directory = Directory::new();
    let tokens = write_tokens(&directory, "tokens", &format!("ops {TOKEN}\n"), 0o600);
    let (a, b) = (Server::named("a"), Server::named("b"));
    let evener = Evener::run(&format!(
        "admin {{ listen = \"127.0.0.1:0\", token_file = \"{tokens}\" }}
         local web = pool \"web\" {{ \"127.0.0.1:{}\", \"127.0.0.1:{}\", check = check.tcp {{ every = \"100ms\" }} }}
         service \"www\" {{ listen = \"127.0.0.1:0\", pool = web }}",
        a.port, b.port
    ));
    let browser = Browser::start((1200, 1000));
    browser.open(&format!("http://127.0.0.1:{}/", api_port(&evener)));
    browser.expect("the form for the token", "!document.getElementById('login').hidden");
    browser.run(&format!(
        "document.getElementById('token').value = '{TOKEN}'; document.querySelector('#login button').click()"
    ));
    browser.expect("the service", "document.getElementById('services').textContent.includes('www')");
    let row_of_a = row(&format!("web/127.0.0.1:{}", a.port));
    browser.expect("a server that is up", &format!("{row_of_a}.querySelector('.state.up')"));
    let port = evener.port("www");
    let rate = "document.querySelector('#services [data-title=Rate]').textContent";
    wait_until("a rate", || {
        who(port);
        (browser.run(&format!("return parseFloat({rate}) > 0")) == serde_json::json!(true)).then_some(())
    });
    browser.run(&format!("{row_of_a}.querySelector('[data-key$=\" drain\"]').click()"));
    browser.expect("the drained server", &format!("{row_of_a}.querySelector('.state.drain')"));
    assert_eq!([who(port), who(port)], ["b", "b"]);
    browser.expect("the event", "document.getElementById('events').textContent.includes('drain')");
    browser.run(&format!("{row_of_a}.querySelector('[data-key$=\" ready\"]').click()"));
    browser.expect("the server again", &format!("{row_of_a}.querySelector('.state.up')"));
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let pictures = Path::new(BINARY).ancestors().nth(2).unwrap().join("dashboard");
    browser.picture(&pictures.join("wide.png"));
    browser.resize((400, 900));
    browser
        .expect("a page that is no wider than a phone", "document.documentElement.scrollWidth <= innerWidth");
    browser.picture(&pictures.join("phone.png"));
}

#[test]
fn the_page_holds_no_data_and_nothing_of_another_origin() {
    let directory = Directory::new();
    let tokens = write_tokens(&directory, "tokens", &format!("ops {TOKEN}\n"), 0o600);
    let evener = Evener::run(&format!(
        "admin {{ listen = \"127.0.0.1:0\", token_file = \"{tokens}\" }}
         service \"secret-name\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:1\" }}"
    ));
    let port = api_port(&evener);
    for path in ["/", "/dashboard.css", "/dashboard.js"] {
        let response = super::remote::request(port, "GET", path, &[&format!("Host: 127.0.0.1:{port}")]);
        assert!(response.starts_with("HTTP/1.1 200 "), "{path}: {response}");
        assert!(
            response.contains("content-security-policy: default-src 'none'; script-src 'self'"),
            "{response}"
        );
        let body = response.split_once("\r\n\r\n").unwrap().1;
        assert!(!body.contains("secret-name") && !body.contains("https://"), "{path}");
    }
}
