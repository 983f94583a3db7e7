//! Access lists from files: long lists of prefixes, and countries of a database.

use crate::harness::{BINARY, DEADLINE, Directory, Evener, Server, line, python, reserved_port};
use crate::tcp::proxy_protocol::connect_from;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

fn service(listen: u16, server: &Server, more: &str) -> String {
    format!("service \"s\" {{ listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{}\", {more} }}", server.port)
}

/// Returns true if a client with this address is served.
fn is_served(from: &str, listen: u16) -> bool {
    line(&mut connect_from(from, listen)).starts_with("a ")
}

/// Runs `evener check` on a configuration. Returns `true` if it is valid, and the reported problems.
fn checked(directory: &Directory, config: &str) -> (bool, String) {
    let file = directory.write("checked.lua", config);
    let output = Command::new(BINARY).arg("check").arg(file).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Resident memory, in MiB.
fn memory_mib(evener: &Evener) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", evener.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// A million prefixes: every other address of 16 blocks of 127.0.0.0/8, and the same number of prefixes of
/// IPv6.
fn million() -> String {
    let mut text = String::from("# a million\n");
    for number in 0..500_000_u32 {
        let at = number * 2;
        writeln!(text, "127.{}.{}.{}", 32 + (at >> 16), (at >> 8) & 255, at & 255).unwrap();
        writeln!(text, "2001:db8:{:x}:{:x}::/64", number >> 16, number & 0xffff).unwrap();
    }
    text
}

#[test]
fn a_million_prefixes_are_loaded_and_applied() {
    let (a, directory) = (Server::named("a"), Directory::new());
    let list = directory.write("list", &million());
    let plain = Evener::run(&service(0, &a, ""));
    let began = Instant::now();
    let config = service(0, &a, &format!("deny = prefixes \"{}\"", list.display()));
    let evener = Evener::run(&config);
    let listen = evener.port("s");
    assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
    let grown = memory_mib(&evener).saturating_sub(memory_mib(&plain));
    println!("a million prefixes take {grown} MiB, and {:?} in this build", began.elapsed());
    // Each prefix takes 32 bytes (31 MiB were measured). The memory used for reading is returned to the system.
    assert!(grown < 100, "{grown} MiB");
    for block in [32, 39, 46] {
        for (from, denied) in [("0.0", true), ("0.1", false), ("7.254", true), ("255.255", false)] {
            let from = format!("127.{block}.{from}");
            assert_eq!(is_served(&from, listen), !denied, "{from}");
        }
    }
    assert!(
        is_served("127.0.0.1", listen) && is_served("127.48.0.0", listen),
        "addresses before and after the list must be served"
    );
    let is_refused = |client: &str| {
        let output = evener.run_command(&["explain", "s", client]);
        String::from_utf8_lossy(&output.stdout).contains("refuses this client")
    };
    assert!(is_refused("2001:db8:7:a11f::9") && is_refused("2001:db8:0:0:1::"));
    assert!(!is_refused("2001:db8:7:a120::9") && !is_refused("2001:db9::"));
    // A rule at run time does not copy the list, and a reload of the same list does not keep two copies.
    for turn in 0..20 {
        let from = format!("127.32.{turn}.0");
        assert!(evener.run_command(&["permit", "s", &from]).status.success());
        assert!(is_served(&from, listen));
    }
    let before = memory_mib(&evener);
    (0..3).for_each(|_| evener.reload(&config));
    let after = memory_mib(&evener);
    assert!(after < before + 150, "{before} MiB before reloads, {after} MiB after");
    assert!(!is_served("127.33.0.0", listen) && is_served("127.33.0.1", listen));
}

#[test]
fn a_file_of_prefixes_may_have_comments_and_invalid_lines_are_reported() {
    let (a, listen, directory) = (Server::named("a"), reserved_port(), Directory::new());
    directory.write(
        "list",
        "# refused\n\n  127.0.0.7   # a space before, a word after\r\n127.0.1.0/24#close\n\t127.0.2.9/32\n#127.0.0.8\n::1/128",
    );
    // A relative path starts at the directory of the configuration. Files and prefixes can be combined.
    let more =
        "deny = { prefixes \"list\", \"127.0.3.0/24\" }, allow = { \"127.0.1.128/25\", \"127.0.0.0/8\" }";
    let config = service(listen, &a, more);
    let file = directory.write("evener.lua", &config);
    let evener = Evener::start(Command::new(BINARY), directory, &["run", &file.display().to_string()]);
    let served =
        ["127.0.0.7", "127.0.0.8", "127.0.1.1", "127.0.1.200", "127.0.2.9", "127.0.2.8", "127.0.3.1"]
            .map(|from| is_served(from, listen));
    assert_eq!(served, [false, true, false, true, false, true, false]);
    // A reload reads the file again.
    evener.write("list", "127.0.0.8\n");
    evener.reload(&config);
    assert!(is_served("127.0.0.7", listen) && !is_served("127.0.0.8", listen));
    let path = evener.write("list", "127.0.0.8\nfoo\n127.0.0.1/33\n# fine\n1.2.3.4.5 # not fine\n");
    let output = evener.run_command(&["reload"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    let at = path.display();
    for expected in [
        format!("{at}:2: `foo` is neither an address nor a prefix"),
        format!("{at}:3: `127.0.0.1/33` is too long"),
        format!("{at}:5: `1.2.3.4.5` is neither an address nor a prefix"),
    ] {
        assert!(text.contains(&expected), "{expected}: {text}");
    }
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(!is_served("127.0.0.8", listen), "the running list must stay");
}

#[test]
fn an_unreadable_list_is_reported_with_its_line() {
    let (a, directory) = (Server::named("a"), Directory::new());
    let missing = checked(&directory, &format!("\n{}", service(1, &a, "deny = prefixes \"nowhere\"")));
    assert!(!missing.0 && missing.1.contains("checked.lua:2: "), "{}", missing.1);
    assert!(missing.1.contains("nowhere does not exist"), "{}", missing.1);
    let many: String = (0..1000).map(|n| format!("bad{n}\n")).collect();
    directory.write("bad", &many);
    let (valid, text) = checked(&directory, &service(1, &a, "allow = prefixes \"bad\""));
    assert!(!valid && text.contains("bad:1: `bad0`") && text.lines().count() < 20, "{text}");
    std::fs::write(directory.file("binary"), [0xff, 0xfe, b'\n']).unwrap();
    assert!(!checked(&directory, &service(1, &a, "allow = prefixes \"binary\"")).0);
    assert!(!checked(&directory, &service(1, &a, "allow = prefixes \".\"")).0, "a directory is not a list");
    directory.write("empty", "# no prefix\n");
    assert!(checked(&directory, &service(1, &a, "allow = prefixes \"empty\"")).0);
    for invalid in ["prefixes(7)", "prefixes {}", "7", "\"127.0.0\"", "country \"Sweden\"", "true"] {
        let (valid, text) = checked(&directory, &service(1, &a, &format!("deny = {invalid}")));
        assert!(!valid && text.contains("checked.lua:1: "), "{invalid}: {text}");
    }
}

/// Creates a database, in the usual format, in which parts of 127.0.0.0/8 and of 2001:db8::/32 belong to
/// countries. Returns `false` if Python is missing.
pub(crate) fn database(directory: &Directory, name: &str, version: u8) -> bool {
    let Some(python) = python() else { return false };
    let script = directory.write(
        "make.py",
        "import sys, netaddr\nfrom mmdb_writer import MMDBWriter\nversion = int(sys.argv[2])\n\
         w = MMDBWriter(ip_version=version, ipv4_compatible=version == 6, database_type='GeoLite2-Country')\n\
         def put(code, *networks):\n  w.insert_network(netaddr.IPSet(networks), {'country': {'iso_code': code, 'geoname_id': 7, 'names': {'en': code}}, 'continent': {'code': 'EU'}})\n\
         put('SE', '127.0.1.0/24', '127.0.2.0/25', '127.0.9.9/32')\nput('NO', '127.0.2.128/25', '127.0.4.0/22')\n\
         w.insert_network(netaddr.IPSet(['127.0.3.0/24']), {'continent': {'code': 'EU'}})\n\
         if version == 6: put('SE', '2001:db8:1::/48'); put('NO', '2001:db8:2::/48')\nw.to_db_file(sys.argv[1])\n",
    );
    let output =
        Command::new(python).arg(script).arg(directory.file(name)).arg(version.to_string()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    true
}

const CLIENTS: [&str; 7] =
    ["127.0.0.1", "127.0.1.1", "127.0.2.127", "127.0.2.128", "127.0.3.1", "127.0.6.1", "127.0.9.9"];

#[test]
fn clients_are_matched_by_their_country_in_the_database() {
    let (a, listen, directory) = (Server::named("a"), reserved_port(), Directory::new());
    for version in [4, 6] {
        if !database(&directory, "country.mmdb", version) {
            return;
        }
        let geoip = format!("geoip \"{}\"\n", directory.file("country.mmdb").display());
        let config = |more: &str| geoip.clone() + &service(listen, &a, more);
        let evener = Evener::run(&config("deny = country \"SE\""));
        let served = || CLIENTS.map(|from| is_served(from, listen));
        assert_eq!(served(), [true, false, false, true, true, true, false], "IPv{version}");
        evener.reload(&config("allow = country \"se\""));
        assert_eq!(served(), [false, true, true, false, false, false, true], "IPv{version}");
        evener.reload(&config("allow = { country \"SE\", country \"NO\", \"127.0.0.1\" }"));
        assert_eq!(served(), [true, true, true, true, false, true, true], "IPv{version}");
        // Prefixes take precedence over countries, even when they are shorter.
        evener.reload(&config(
            "allow = { \"127.0.0.0/23\", country \"NO\" }, deny = { country \"SE\", \"127.0.6.1\" }",
        ));
        assert_eq!(served(), [true, true, false, true, false, false, false], "IPv{version}");
        let is_refused = |client: &str| {
            let output = evener.run_command(&["explain", "s", client]);
            assert!(output.status.success());
            String::from_utf8_lossy(&output.stdout).contains("refuses this client")
        };
        let six = [is_refused("2001:db8:1::1"), is_refused("2001:db8:2::1"), is_refused("2001:db8:3::1")];
        assert_eq!(six, [true, version == 4, true], "IPv{version}");
        // Rules of the operator take precedence over the file.
        assert!(evener.run_command(&["permit", "s", "127.0.0.0/16"]).status.success());
        assert_eq!(served(), [true; 7]);
    }
}

#[test]
fn a_reload_loads_a_changed_database_and_a_damaged_database_changes_nothing() {
    let (a, directory) = (Server::named("a"), Directory::new());
    if !database(&directory, "country.mmdb", 6) {
        return;
    }
    let path = directory.file("country.mmdb");
    let config = format!("geoip \"{}\"\n{}", path.display(), service(0, &a, "deny = country \"SE\""));
    let evener = Evener::run(&config);
    let listen = evener.port("s");
    assert!(!is_served("127.0.1.1", listen));
    let whole = std::fs::read(&path).unwrap();
    for (what, bytes) in broken(&whole) {
        std::fs::write(&path, bytes).unwrap();
        let output = evener.run_command(&["reload"]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{what}");
        assert!(text.contains(&path.display().to_string()), "{what}: {text}");
        assert!(!is_served("127.0.1.1", listen), "{what}: the running database must stay");
    }
    std::fs::write(&path, &whole).unwrap();
    evener.reload(&config);
    assert!(!is_served("127.0.1.1", listen));
}

/// Files that are not a database: empty, text, truncated, or damaged.
fn broken(whole: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("empty", Vec::new()),
        ("text", b"this is not a database\n".repeat(100)),
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("without metadata", whole[..whole.len() - 200].to_vec()),
        ("zeros before the end", [&vec![0xff; whole.len() - 300][..], &whole[whole.len() - 300..]].concat()),
    ]
}

#[test]
fn a_damaged_database_never_crashes_the_program() {
    let (a, directory) = (Server::named("a"), Directory::new());
    if !database(&directory, "country.mmdb", 6) {
        return;
    }
    let path = directory.file("country.mmdb");
    let config = format!("geoip \"{}\"\n{}", path.display(), service(1, &a, "deny = country \"SE\""));
    let whole = std::fs::read(&path).unwrap();
    // The damaged bytes are spread over the tree, the data and the metadata.
    for turn in 0..60 {
        let mut damaged = whole.clone();
        let at = turn * whole.len() / 60;
        damaged[at] ^= 0x5a;
        std::fs::write(&path, damaged).unwrap();
        // The memory is limited, because an endless loop could take all memory of the machine.
        let mut bounded = Command::new("sh");
        bounded.args(["-c", "ulimit -v 4000000; exec timeout 20 \"$@\"", "sh", BINARY, "check"]);
        let output = bounded.arg(directory.write("damaged.lua", &config)).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        let is_handled = output.status.success() || text.starts_with("evener: ");
        assert!(is_handled && !text.contains("panicked"), "byte {at}: {} {text}", output.status);
    }
}

#[test]
fn invalid_countries_are_reported() {
    let (a, directory) = (Server::named("a"), Directory::new());
    if !database(&directory, "country.mmdb", 6) {
        return;
    }
    let with = |geoip: &Path, more: &str| {
        checked(&directory, &format!("geoip \"{}\"\n{}", geoip.display(), service(1, &a, more)))
    };
    let good = directory.file("country.mmdb");
    assert!(with(&good, "deny = country \"SE\"").0);
    let (valid, text) = with(&good, "deny = { country \"SE\", country \"XX\" }");
    assert!(!valid && text.contains("checked.lua:2: "), "{text}");
    assert!(text.contains("has no networks of country XX") && !text.contains("country SE"), "{text}");
    for code in ["S", "SWE", "S1", "", "Åland"] {
        let (valid, text) = with(&good, &format!("deny = country \"{code}\""));
        assert!(!valid && text.contains("is not a country code: give two letters"), "{code}: {text}");
    }
    let (valid, text) = with(&directory.file("nowhere.mmdb"), "deny = country \"SE\"");
    assert!(!valid && text.contains("checked.lua:1: ") && text.contains("nowhere.mmdb"), "{text}");
    let (valid, text) = checked(&directory, &service(1, &a, "deny = country \"SE\""));
    assert!(!valid && text.contains("write geoip \"GeoLite2-Country.mmdb\" above it"), "{text}");
    // Without a country the database is not needed.
    assert!(with(&good, "deny = \"127.0.0.1\"").0);
}
