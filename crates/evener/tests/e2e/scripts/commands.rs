//! Commands of the operator while functions check servers.

use crate::harness::{Evener, Server, wait_until};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

/// A web server whose response decides on the result of the check.
fn control(word: &Arc<Mutex<&'static str>>) -> Server {
    let word = Arc::clone(word);
    Server::start(move |mut stream| {
        let _ = stream.read(&mut [0; 1024]);
        let body = *word.lock().unwrap();
        let headers = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let _ = stream.write_all(format!("{headers}{body}").as_bytes());
    })
}

#[test]
fn commands_reloads_and_errors_do_not_disturb_each_other() {
    let word = Arc::new(Mutex::new("up"));
    let (control, server) = (control(&word), Server::named("server"));
    let config = format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\",
           check = check.script {{ every = \"20ms\", rise = 1, fall = 1, run = function()
             local word = http.get(\"http://127.0.0.1:{}/\").body
             if word == \"error\" then error(\"broken\") end
             return word == \"up\"
           end }} }}",
        server.port, control.port
    );
    let evener = Evener::run(&config);
    let name = format!("127.0.0.1:{}", server.port);
    let set_result = |result: &'static str| *word.lock().unwrap() = result;
    let is = |key: &str, value: &str| evener.server(&name)[key] == value;
    let command = |word: &str| {
        let output = evener.run_command(&[word, &name]);
        assert!(output.status.success(), "{word}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let mut reloads = 0;
    for (verdict, other) in [("up", "down"), ("down", "up")] {
        for (state, shown) in [("ready", "ready"), ("drain", "drain"), ("maintenance", "maintenance")] {
            for (is_reloaded, fails) in [(false, false), (true, false), (false, true), (true, true)] {
                let case = format!("{verdict}, {state}, reload {is_reloaded}, error {fails}");
                set_result(verdict);
                wait_until(&case, || is("verdict", verdict).then_some(()));
                command(state);
                if fails {
                    let before = evener.log_count("script_failed");
                    set_result("error");
                    // A server in maintenance is not checked.
                    if state != "maintenance" {
                        wait_until(&case, || (evener.log_count("script_failed") >= before + 2).then_some(()));
                    }
                }
                if is_reloaded {
                    reloads += 1;
                    evener.reload(&format!("{config}\n-- {reloads}"));
                }
                assert!(is("state", shown), "{case}: {}", evener.server(&name));
                if state != "maintenance" {
                    assert!(is("verdict", verdict), "{case}: {}", evener.server(&name));
                }
                command("ready");
                assert!(is("state", "ready"), "{case}");
                set_result(other);
                wait_until(&format!("{case}: {other}"), || is("verdict", other).then_some(()));
            }
        }
    }
}
