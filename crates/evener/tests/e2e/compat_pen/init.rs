//! The init script of a popular guide (unchanged in `init/pend` and `init/pen.conf`), run with Evener in place
//! of pen. Each test has separate namespaces, so that it can use the paths, the addresses and the port of the
//! guide.

use crate::harness::{BINARY, Directory, have, have_root, wait_until};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// A machine with the addresses, the web servers and the script of the guide.
struct Machine {
    holder: Child,
    /// First process of the namespaces.
    first: u32,
    directory: Directory,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The end of the first process ends all processes of its namespace.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        if std::thread::panicking() {
            for log in ["var/log/pen.log", "51.log", "nginx"] {
                eprintln!("{log}:\n{}", self.read(log));
            }
        }
    }
}

/// Script that sets up the machine. Directories of the test become /etc, /run and /var of the machine. Web
/// servers and clients are in another network namespace.
const MOUNTS: &str = r#"
set -e
mkdir -p etc/init.d run var/log var/www/html/pen
for file in passwd group nsswitch.conf hosts services; do [ ! -e /etc/$file ] || cp /etc/$file etc/; done
ln -s /run var/run
cp "$SCRIPT/pend" etc/init.d/pend
cp "$SCRIPT/pen.conf" etc/pen.conf
chmod 755 etc/init.d/pend
mount --bind "$BINARY" /usr/bin/pen
mount --bind etc /etc
mount --bind run /run
mount --bind var /var
unshare --net sleep 180 &
until [ "$(readlink /proc/$!/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do :; done
echo $! > others
others="nsenter --target $! --net ip"
ip link add name eth0 type veth peer name eth0 netns $!
ip address add 10.0.0.30/24 dev eth0
for last in 51 52 53 7 8; do $others address add 10.0.0.$last/24 dev eth0; done
for link in lo eth0; do ip link set $link up; $others link set $link up; done
touch ready
exec sleep 180
"#;

/// Configuration of a web server that logs the client's address from the X-Forwarded-For header of 10.0.0.30.
const WEB: &str = "daemon off; master_process off; pid AT/NN.pid; error_log AT/nginx;
events { worker_connections 256; }
http {
  client_body_temp_path AT/NN.body; proxy_temp_path AT/NN.proxy; fastcgi_temp_path AT/NN.fastcgi;
  uwsgi_temp_path AT/NN.uwsgi; scgi_temp_path AT/NN.scgi;
  real_ip_header X-Forwarded-For; set_real_ip_from 10.0.0.30;
  log_format forwarded '$remote_addr $request_method $uri [$http_x_forwarded_for] $http_x_forwarded_proto';
  access_log AT/NN.log forwarded;
  server {
    listen 10.0.0.NN:80;
    location /slow { limit_rate 200k; alias AT/large; }
    location / { return 200 \"NN\\n\"; }
  }
}
";

impl Machine {
    fn new() -> Option<Self> {
        let programs = ["/lib/lsb/init-functions", "pen", "nginx", "curl", "ip", "unshare", "nsenter"];
        if !programs.into_iter().all(have) || !have_root() {
            return None;
        }
        let directory = Directory::new();
        fs::write(directory.file("large"), vec![b'x'; 1 << 20]).unwrap();
        let holder = Command::new("unshare")
            .args(["--mount", "--pid", "--net", "--fork", "--mount-proc", "--kill-child", "sh", "-c", MOUNTS])
            .current_dir(directory.file(""))
            .env("BINARY", BINARY)
            .env("SCRIPT", Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/compat_pen/init"))
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", holder.id());
        let first = wait_until("the first process", || {
            fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok()
        });
        let machine = Self { holder, first, directory };
        wait_until("the machine", || machine.directory.file("ready").exists().then_some(()));
        for number in ["51", "52", "53"] {
            machine.start_web(number);
        }
        Some(machine)
    }

    fn start_web(&self, number: &str) {
        let at = self.directory.file("").display().to_string();
        let config = WEB.replace("AT", at.trim_end_matches('/')).replace("NN", number);
        let file = self.directory.write(&format!("{number}.conf"), &config).display().to_string();
        let output = self.elsewhere(&["sh", "-c", &format!("nginx -c {file} >/dev/null 2>&1 &")]);
        assert!(output.status.success());
        wait_until("a web server", || (self.curl(number, &[]) == format!("{number}\n")).then_some(()));
    }

    fn command(&self, words: &[&str]) -> Output {
        let first = self.first.to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &first, "--mount", "--pid", "--net", "--"]).args(words);
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a command in the network namespace of web servers and clients.
    fn elsewhere(&self, words: &[&str]) -> Output {
        let others = self.read("others");
        self.command(&[&["nsenter", "--target", others.trim(), "--net", "--"], words].concat())
    }

    fn pend(&self, word: &str) -> (i32, String) {
        let output = self.command(&["/etc/init.d/pend", word]);
        let printed = [&output.stdout[..], &output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&printed).into_owned())
    }

    fn expect(&self, word: &str, status: i32, part: &str) {
        let (code, printed) = self.pend(word);
        assert!(code == status && printed.contains(part), "{word}: {code} {printed}");
    }

    /// Returns the response of an address in 10.0.0.0/24.
    fn curl(&self, last: &str, more: &[&str]) -> String {
        let url = format!("http://10.0.0.{last}/");
        let words: Vec<&str> = ["curl", "-s", "--noproxy", "*", "-m", "10", &url]
            .into_iter()
            .chain(more.iter().copied())
            .collect();
        String::from_utf8(self.elsewhere(&words).stdout).unwrap()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.directory.file(name)).unwrap_or_default()
    }

    /// Returns the pid of pen in the namespace of the machine.
    fn pid(&self) -> String {
        self.read("run/pen.pid")
    }

    /// Waits for a text in the logs of the web servers.
    fn expect_seen(&self, part: &str) {
        let logs = || ["51.log", "52.log", "53.log"].map(|name| self.read(name)).concat();
        let until = std::time::Instant::now() + crate::harness::DEADLINE;
        while !logs().contains(part) {
            assert!(std::time::Instant::now() < until, "{part} is not in:\n{}", logs());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[test]
fn the_init_script_starts_stops_and_reports_pen() {
    let Some(machine) = Machine::new() else { return };
    machine.expect("status", 0, "Pend is not running");
    machine.expect("start", 0, "Starting light weight simple load balancer: pen.\n");
    // pen serves as soon as the script has ended: the test does not wait.
    let chosen: Vec<String> = (0..6).map(|_| machine.curl("30", &[])).collect();
    assert_eq!(chosen, ["51\n", "52\n", "53\n", "51\n", "52\n", "53\n"]);
    machine.expect("status", 0, "Pend is running");
    let pid = machine.pid();
    machine.expect("start", 0, "Starting light weight simple load balancer: pen.\n");
    assert_eq!(machine.pid(), pid, "a second start changes nothing");
    machine.expect("restart", 0, "Starting");
    assert!(machine.pid() != pid && !machine.pid().is_empty());
    assert_eq!(machine.curl("30", &[]), "51\n");
    machine.expect("stop", 0, "Stopping");
    wait_until("the end", || machine.curl("30", &[]).is_empty().then_some(()));
    wait_until("the script to report the end", || {
        machine.pend("status").1.contains("Pend is not running").then_some(())
    });
    assert!(!machine.directory.file("run/pen.pid").exists());
    machine.expect("nonsense", 1, "Usage");
}

#[test]
fn web_servers_see_the_true_client_despite_spoofed_headers() {
    let Some(machine) = Machine::new() else { return };
    machine.expect("start", 0, "Starting light weight simple load balancer: pen.\n");
    let from_7 = ["--interface", "10.0.0.7"];
    let request = |path: &str, more: &[&str]| {
        let url = format!("http://10.0.0.30{path}");
        let words = [&["curl", "-sf", "--noproxy", "*", "-m", "10"], &from_7[..], more, &[&url]].concat();
        assert!(machine.elsewhere(&words).status.success(), "{path}");
    };
    request("/get", &[]);
    machine.expect_seen("10.0.0.7 GET /get [10.0.0.7] http\n");
    request("/put", &["-X", "PUT", "-d", "body"]);
    machine.expect_seen("10.0.0.7 PUT /put [10.0.0.7] http\n");
    request("/spoofed", &["-H", "X-Forwarded-For: 10.66.66.66", "-H", "x-forwarded-proto: https"]);
    machine.expect_seen("10.0.0.7 GET /spoofed [10.0.0.7] http\n");
    // The header is set in every request of a connection, not only in the first.
    request("/one", &["-X", "DELETE", "http://10.0.0.30/two", "http://10.0.0.30/three"]);
    machine.expect_seen("10.0.0.7 DELETE /two [10.0.0.7] http\n");
    machine.expect_seen("10.0.0.7 DELETE /three [10.0.0.7] http\n");
    // The log has lines in the format of pen.
    wait_until("the log", || {
        let log = machine.read("var/log/pen.log");
        let line = log.lines().find(|line| line.contains("GET /spoofed"))?.to_owned();
        let words: Vec<&str> = line.split(' ').collect();
        assert!(words[0] == "10.0.0.7" && words[2].starts_with("10.0.0.5"), "{line}");
        assert!(words[1].parse::<u64>().unwrap() > 1_700_000_000 && words[3] == "GET", "{line}");
        Some(())
    });
}

#[test]
fn the_status_page_is_written_on_request() {
    let Some(machine) = Machine::new() else { return };
    machine.expect("start", 0, "Starting light weight simple load balancer: pen.\n");
    machine.curl("30", &["--interface", "10.0.0.8"]);
    assert!(machine.command(&["kill", "-USR1", &machine.pid()]).status.success());
    let page = wait_until("the page", || {
        Some(machine.read("var/www/html/pen/webstats.html")).filter(|page| page.ends_with("</html>\n"))
    });
    for part in ["Pen status page", "10.0.0.51", "10.0.0.52", "10.0.0.53", "<td>10.0.0.8</td>", "256 max"] {
        assert!(page.contains(part), "{part}: {page}");
    }
}

#[test]
fn clients_do_not_notice_a_web_server_that_stops() {
    let Some(machine) = Machine::new() else { return };
    machine.expect("start", 0, "Starting light weight simple load balancer: pen.\n");
    let stopped = machine.read("52.pid");
    assert!(machine.command(&["kill", "-KILL", stopped.trim()]).status.success());
    wait_until("the end of the web server", || machine.curl("52", &[]).is_empty().then_some(()));
    let chosen: String = (0..20).map(|_| machine.curl("30", &[])).collect();
    assert!(chosen.lines().count() == 20 && !chosen.contains("52"), "{chosen}");
}

#[test]
fn a_restart_does_not_wait_for_transfers_and_does_not_cut_them() {
    let Some(machine) = Machine::new() else { return };
    machine.expect("start", 0, "Starting light weight simple load balancer: pen.\n");
    let pid = machine.pid();
    let slow = machine.directory.file("slow");
    let length = || fs::metadata(&slow).map_or(0, |meta| meta.len());
    std::thread::scope(|scope| {
        // The transfer takes longer than the script waits, and less than the drain timeout.
        let fetched = scope.spawn(|| {
            let url = "http://10.0.0.30/slow";
            machine.elsewhere(&["curl", "-sf", "--noproxy", "*", "-o", &slow.display().to_string(), url])
        });
        wait_until("the transfer to begin", || (length() > 0).then_some(()));
        machine.expect("restart", 0, "Starting");
        assert_ne!(machine.pid(), pid);
        assert!(!machine.curl("30", &[]).is_empty(), "the new process serves");
        assert!(!fetched.is_finished(), "the old process still transfers when the new one has started");
        assert!(fetched.join().unwrap().status.success());
    });
    assert_eq!(length(), 1 << 20);
    machine.expect("status", 0, "Pend is running");
    assert!(!machine.curl("30", &[]).is_empty(), "the new process serves after the end of the old one");
}
