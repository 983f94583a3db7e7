//! mergelogs, side by side with Debian's.

use super::{BOTH, By, printed, program, read};
use crate::harness::{Directory, have};
use std::fs;

/// Noon of 9 January 2002.
const NOON: i64 = 1_010_577_600;

/// A line of a web server's log, so many seconds after noon, with the time of a zone so many minutes east.
fn web_at(seconds: i64, minutes_east: i64, request: &str, rest: &str) -> String {
    let local = 12 * 3600 + seconds + minutes_east * 60;
    let (hour, minute, second) = (local / 3600, local / 60 % 60, local % 60);
    let sign = if minutes_east < 0 { '-' } else { '+' };
    let (east, over) = (minutes_east.abs() / 60, minutes_east.abs() % 60);
    format!(
        "10.9.9.9 - - [09/Jan/2002:{hour:02}:{minute:02}:{second:02} {sign}{east:02}{over:02}] \"{request}\" {rest}\n"
    )
}

fn pen_at(seconds: i64, client: &str, server: &str, request: &str) -> String {
    format!("{client} {} {server} {request}\n", NOON + seconds)
}

/// Runs mergelogs over `pen`, `a` and `b` in a directory.
///
/// Debian's reads the second time of a run with whatever it takes for daylight saving time, mostly an hour off. Two lines
/// of a server of their own, a day before all others, take that upon them.
fn merge(by: By, directory: &Directory, zone: &str, arguments: &[&str]) -> String {
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
    let [debian, ours] = BOTH.map(|by| merge(by, directory, zone, arguments));
    assert_eq!(debian, ours, "{zone} {arguments:?}");
    ours
}

const REQUESTS: [&str; 3] = ["GET / HTTP/1.0", "GET /a?b=c HTTP/1.1", "POST /form HTTP/1.1"];

/// Numbers that look like chance and are the same each time.
fn chance(seed: u64) -> impl FnMut(i64) -> i64 {
    let mut state = seed;
    move |bound| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        i64::try_from(state >> 33).unwrap() % bound
    }
}

/// The logs of pen and of two web servers, with clocks that differ, lines in some disorder, and some that are none.
fn logs(directory: &Directory, seed: u64) {
    let mut chance = chance(seed);
    let (mut pen, mut webs) = (String::new(), [String::new(), String::new()]);
    let mut now = 0;
    for number in 0..400 {
        now += chance(40);
        let which = usize::try_from(chance(2)).unwrap();
        let request = REQUESTS[usize::try_from(chance(3)).unwrap()];
        let server = ["10.0.0.1", "10.0.0.2"][which];
        if chance(10) > 0 {
            pen += &pen_at(now + chance(20) - 10, &format!("10.1.{which}.{}", number % 250), server, request);
        }
        let rest = ["200 1", "404 2 \"-\" \"agent [x] 1.0\""][usize::try_from(chance(2)).unwrap()];
        webs[which] += &web_at(now + chance(9), chance(5) * 30 - 60, request, rest);
        if chance(30) == 0 {
            webs[which] += ["nonsense\n", "\n", "10.0.0.1 - - [x\n"][usize::try_from(chance(3)).unwrap()];
            pen += ["\n", "nonsense\n", "a b c\n"][usize::try_from(chance(3)).unwrap()];
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
fn mergelogs_makes_up_for_the_zone_as_the_manual_says() {
    if !have("mergelogs") {
        return;
    }
    let directory = Directory::new();
    logs(&directory, 1);
    let finland = "EET-2EEST,M3.5.0/3,M10.5.0/4";
    let both = ["-ppen", "-j60", "10.0.0.1:a", "10.0.0.2:b"];
    let with = merge_both(&directory, finland, &[&both[..], &["-t", "7200"]].concat());
    assert_eq!(with, merge_both(&directory, "UTC", &both));
    assert_ne!(with, merge_both(&directory, finland, &both));
    // In summer, too, when pen's own is an hour off.
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
    let summer = merge(By::Us, &directory, finland, &[&both[..], &["-t", "7200"]].concat());
    assert_eq!(summer.replace("Jul", "Jan"), with);
}

#[test]
fn mergelogs_finds_the_client_of_a_request_that_pen_cut_and_keeps_long_lines() {
    let directory = Directory::new();
    let request = format!("GET /{} HTTP/1.0", "x".repeat(200));
    directory.write("pen", &pen_at(0, "10.1.1.1", "10.0.0.1", &request[..100]));
    directory.write("a", &web_at(0, 0, &request, &"r".repeat(5000)));
    let merged = merge(By::Us, &directory, "UTC", &["-ppen", "10.0.0.1:a"]);
    assert_eq!(merged, web_at(0, 0, &request, &"r".repeat(5000)).replace("10.9.9.9", "10.1.1.1"));
}

#[test]
fn mergelogs_takes_no_more_than_a_line_of_what_is_no_log() {
    let directory = Directory::new();
    let noise: Vec<u8> =
        (0..3_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(directory.file("noise"), &noise).unwrap();
    fs::write(directory.file("line"), vec![b'"'; 3_000_000]).unwrap();
    let good = web_at(0, 0, "GET /", "1");
    directory.write("a", &format!("\u{0}\n{good}[\n\"\n"));
    for pen in ["noise", "line", "a"] {
        let arguments = ["-p", pen, "10.0.0.1:a", "10.0.0.2:noise", "10.0.0.3:line"];
        let merged = merge(By::Us, &directory, "UTC", &arguments);
        assert_eq!(merged, good.replace("10.9.9.9", "10.0.0.1"));
    }
}
