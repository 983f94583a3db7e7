//! Functions of the configuration that change the servers of their pool.

use crate::harness::{Evener, Server, wait_until, who};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A server that sends its name to clients that send nothing, and responds to requests of HTTP while it is well.
fn web(name: &'static str, is_well: &Arc<AtomicBool>) -> Server {
    let is_well = Arc::clone(is_well);
    Server::start(move |mut stream| {
        let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
        let _ = match stream.read(&mut [0; 1024]) {
            Ok(1..) if is_well.load(Ordering::Relaxed) => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            }
            Ok(1..) => Ok(()),
            _ => stream.write_all(format!("{name} 127.0.0.1\n").as_bytes()),
        };
    })
}

fn names(evener: &Evener, pool: &str) -> BTreeSet<String> {
    evener.servers_of(pool).into_keys().collect()
}

fn await_servers(evener: &Evener, ports: &[u16]) {
    let expected: BTreeSet<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    wait_until(&format!("the servers {expected:?}"), || (names(evener, "web") == expected).then_some(()));
}

#[test]
fn a_check_removes_its_server_and_adds_another_one_as_the_documentation_shows() {
    let well = Arc::new(AtomicBool::new(true));
    let (first, second, third) = (web("first", &well), Server::named("second"), Server::named("third"));
    let config = format!(
        "service \"web\" {{
           plane = \"proxy\",
           listen = \"127.0.0.1:0\",
           server \"127.0.0.1:{}\" {{
             check = check.script {{ every = \"50ms\", run = function(server, pool)
               if not http.get(\"http://\" .. server.address .. \"/\").ok then pool:remove(server) end
               if #pool < 2 then pool:add(\"127.0.0.1:{}\") end
             end }},
           }},
           server \"127.0.0.1:{}\",
         }}",
        first.port, third.port, second.port
    );
    let evener = Evener::run(&config);
    let served = || -> BTreeSet<String> { (0..6).map(|_| who(evener.port("web"))).collect() };
    wait_until("the first check", || {
        (evener.server(&format!("127.0.0.1:{}", first.port))["verdict"] == "up").then_some(())
    });
    assert_eq!(served(), BTreeSet::from(["first".into(), "second".into()]));
    well.store(false, Ordering::Relaxed);
    await_servers(&evener, &[second.port, third.port]);
    assert_eq!(served(), BTreeSet::from(["second".into(), "third".into()]));
    evener.expect_log("change=removed");
    evener.expect_log("change=added");
    let source = evener.server(&format!("127.0.0.1:{}", third.port))["source"].to_string();
    assert!(source.contains("script ") && source.contains(".lua:7"), "{source}");
    let changes = evener.status()["scripts"]["changes"].clone();
    assert_eq!(changes[0]["change"], "added", "{changes}");
    assert_eq!(changes[1]["change"], "removed", "{changes}");
    assert!(changes[1]["script"].as_str().unwrap().contains(".lua:6"), "{changes}");
    // A reload gives the server of the file back, and its check removes it again.
    evener.reload(&format!("{config}\n-- changed"));
    wait_until("the removal after the reload", || (evener.log_count("change=removed") >= 2).then_some(()));
    await_servers(&evener, &[second.port, third.port]);
}

#[test]
fn a_function_changes_weights_and_states_and_refuses_what_a_configuration_refuses() {
    let evener = Evener::run(
        "local web = pool \"web\" { \"127.0.0.1:1\", \"127.0.0.1:2\", passive = false }
         service \"s\" { listen = \"127.0.0.1:0\", pool = web }
         every(\"20ms\", function()
           web[1].weight = 3
           web:drain(\"127.0.0.1:2\")
           web:add(\"127.0.0.1:3\", { weight = 70000 })
         end)",
    );
    evener.expect_log("change=\"weight 1 -> 3\"");
    evener.expect_log("change=drain");
    evener.expect_log("weight must be");
    assert_eq!(evener.server("127.0.0.1:1")["weight"], 3);
    assert_eq!(evener.server("127.0.0.1:2")["state"], "drain");
    assert_eq!(names(&evener, "web").len(), 2);
}

#[test]
fn a_service_whose_name_is_an_address_listens_there() {
    let server = Server::named("only");
    let port = crate::harness::reserved_port();
    let config = format!("service \"127.0.0.1:{port}\" {{ server \"127.0.0.1:{}\" {{}} }}", server.port);
    let _evener = Evener::run(&config);
    assert_eq!(who(port), "only");
}
