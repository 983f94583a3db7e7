//! mergelogs, compared with Debian's program.

use super::{BOTH, Implementation, printed, program, read};
use crate::harness::{Directory, have};
use std::fs;

/// Noon of 9 January 2002.
const NOON: i64 = 1_010_577_600;

/// Returns a line of a web server's log, at a time in seconds after noon, in a zone given in minutes east of UTC.
fn web_at(seconds: i64, minutes_east: i64, request: &str, rest: &str) -> String {
    let local = 12 * 3600 + seconds + minutes_east * 60;
    let (hour, minute, second) = (local / 3600, local / 60 % 60, local % 60);
    let sign = if minutes_east < 0 { '-' } else { '+' };
    let (east, minutes) = (minutes_east.abs() / 60, minutes_east.abs() % 60);
    format!(
        "10.9.9.9 - - [09/Jan/2002:{hour:02}:{minute:02}:{second:02} {sign}{east:02}{minutes:02}] \"{request}\" {rest}\n"
    )
}

fn pen_at(seconds: i64, client: &str, server: &str, request: &str) -> String {
    format!("{client} {} {server} {request}\n", NOON + seconds)
}

/// Runs mergelogs over `pen`, `a` and `b` in a directory.
///
/// Debian's program parses the second timestamp of a run with a wrong daylight saving time, mostly an hour off.
/// Two lines of another server, a day before all others, are parsed first, so that the error does not affect
/// the compared lines.
fn merge(by: Implementation, directory: &Directory, zone: &str, arguments: &[&str]) -> String {
    let early = web_at(0, 0, "GET / HTTP/1.0", "early").replace("09/Jan", "08/Jan").repeat(2);
    directory.write("early", &early);
    let output = program(by, "mergelogs")
        .env("TZ", zone)
        .current_dir(directory.file("."))
        .args(arguments)
        .arg("early:early")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (early, others): (Vec<&str>, Vec<&str>) =
        text.split_inclusive('\n').partition(|line| line.starts_with("early "));
    assert_eq!(early.len(), 2, "{text}");
    others.concat()
}

fn merge_both(directory: &Directory, zone: &str, arguments: &[&str]) -> String {
    let [debian, evener] = BOTH.map(|by| merge(by, directory, zone, arguments));
    assert_eq!(debian, evener, "{zone} {arguments:?}");
    evener
}

const REQUESTS: [&str; 3] = ["GET / HTTP/1.0", "GET /a?b=c HTTP/1.1", "POST /form HTTP/1.1"];

/// Returns a generator of pseudo-random numbers.
fn random(seed: u64) -> impl FnMut(i64) -> i64 {
    let mut state = seed;
    move |bound| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        i64::try_from(state >> 33).unwrap() % bound
    }
}

/// Writes the logs of pen and of two web servers, with different clocks, lines out of order, and invalid lines.
fn logs(directory: &Directory, seed: u64) {
    let mut random = random(seed);
    let (mut pen, mut webs) = (String::new(), [String::new(), String::new()]);
    let mut now = 0;
    for number in 0..400 {
        now += random(40);
        let which = usize::try_from(random(2)).unwrap();
        let request = REQUESTS[usize::try_from(random(3)).unwrap()];
        let server = ["10.0.0.1", "10.0.0.2"][which];
        if random(10) > 0 {
            pen += &pen_at(now + random(20) - 10, &format!("10.1.{which}.{}", number % 250), server, request);
        }
        let rest = ["200 1", "404 2 \"-\" \"agent [x] 1.0\""][usize::try_from(random(2)).unwrap()];
        webs[which] += &web_at(now + random(9), random(5) * 30 - 60, request, rest);
        if random(30) == 0 {
            webs[which] += ["nonsense\n", "\n", "10.0.0.1 - - [x\n"][usize::try_from(random(3)).unwrap()];
            pen += ["\n", "nonsense\n", "a b c\n"][usize::try_from(random(3)).unwrap()];
        }
    }
    directory.write("pen", &pen);
    directory.write("a", &webs[0]);
    directory.write("b", &webs[1]);
}

#[test]
fn mergelogs_writes_the_same_lines() {
    if !have("mergelogs") {
        return;
    }
    let both = ["10.0.0.1:a", "10.0.0.2:b"];
    for seed in 0..8 {
        let directory = Directory::new();
        logs(&directory, seed);
        for options in [
            &["-p", "pen"][..],
            &["-ppen", "-j30"],
            &["-cp", "pen"],
            &["-j0", "-p", "pen"],
            &["-t", "25", "-dppen"],
        ] {
            let merged = merge_both(&directory, "UTC", &[options, &both].concat());
            assert!(merged.lines().count() > 300, "seed {seed}: {merged}");
            assert!(merged.lines().any(|line| line.starts_with("10.1.")), "seed {seed}: {merged}");
        }
        merge_both(&directory, "UTC", &["-p", "pen", "10.0.0.2:b", "10.0.0.1:a", "10.0.0.3:a"]);
    }
}

#[test]
fn mergelogs_corrects_the_zone_by_an_option_as_in_the_manual() {
    if !have("mergelogs") {
        return;
    }
    let directory = Directory::new();
    logs(&directory, 1);
    let finland = "EET-2EEST,M3.5.0/3,M10.5.0/4";
    let both = ["-ppen", "-j60", "10.0.0.1:a", "10.0.0.2:b"];
    let corrected = merge_both(&directory, finland, &[&both[..], &["-t", "7200"]].concat());
    assert_eq!(corrected, merge_both(&directory, "UTC", &both));
    assert_ne!(corrected, merge_both(&directory, finland, &both));
    // Also in summer, when Debian's program is an hour off.
    for name in ["pen", "a", "b"] {
        let summer = read(&directory.file(name)).replace("Jan", "Jul");
        let time = |line: &str| {
            let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            if let Some(Ok(time)) = words.get(1).map(|word| word.parse::<i64>()) {
                words[1] = (time + 181 * 86_400).to_string();
            }
            words.join(" ") + "\n"
        };
        directory.write(name, &summer.lines().map(time).collect::<String>());
    }
    let summer = merge(Implementation::Evener, &directory, finland, &[&both[..], &["-t", "7200"]].concat());
    assert_eq!(summer.replace("Jul", "Jan"), corrected);
}

#[test]
fn mergelogs_finds_the_client_of_a_cut_request_and_writes_long_lines_whole() {
    let directory = Directory::new();
    let request = format!("GET /{} HTTP/1.0", "x".repeat(200));
    directory.write("pen", &pen_at(0, "10.1.1.1", "10.0.0.1", &request[..100]));
    directory.write("a", &web_at(0, 0, &request, &"r".repeat(5000)));
    let merged = merge(Implementation::Evener, &directory, "UTC", &["-ppen", "10.0.0.1:a"]);
    assert_eq!(merged, web_at(0, 0, &request, &"r".repeat(5000)).replace("10.9.9.9", "10.1.1.1"));
}

#[test]
fn mergelogs_ignores_files_that_are_not_logs() {
    let directory = Directory::new();
    let noise: Vec<u8> =
        (0..3_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(directory.file("noise"), &noise).unwrap();
    fs::write(directory.file("line"), vec![b'"'; 3_000_000]).unwrap();
    let good = web_at(0, 0, "GET /", "1");
    directory.write("a", &format!("\u{0}\n{good}[\n\"\n"));
    for pen in ["noise", "line", "a"] {
        let arguments = ["-p", pen, "10.0.0.1:a", "10.0.0.2:noise", "10.0.0.3:line"];
        let merged = merge(Implementation::Evener, &directory, "UTC", &arguments);
        assert_eq!(merged, good.replace("10.9.9.9", "10.0.0.1"));
    }
}
