//! `cargo xtask test`: builds the tests once, runs them part by part, runs each failed end-to-end test a second
//! time, and reports the duration of each part.

mod binaries;
mod outcome;

use crate::{deb, ipvs_vm, packages};
use anyhow::bail;
use binaries::Binary;
use outcome::Outcome;
use std::time::{Duration, Instant};

/// The end-to-end tests of the fast tier, by a part of their names. They need neither root nor an installed
/// program.
const FAST: &[&str] = &[
    "a_refused_connection_is_retried_on_the_next_server",
    "half_closed_connections_stay_open_in_both_directions",
    "the_one_liner_balances_round_robin",
    "flows_of_a_stopped_server_move_to_the_next_server",
    "the_one_liner_gives_each_client_a_flow",
    "one_server_connection_serves_many_requests_of_many_clients",
    "routes_match_the_host_and_the_longest_path",
    "many_clients_with_one_id",
    "a_tcp_service_terminates_tls_of_both_versions",
    "an_http_check_follows_status_and_body_by_rise_and_fall",
    "a_reload_keeps_connections_counters_verdicts_and_listeners",
    "an_invalid_file_changes_nothing_and_the_reason_is_reported",
    "check_lists_every_problem_with_its_line",
    "status_drain_ready_and_explain_reach_the_instance",
];

/// Maximum number of failed tests that get a second try. If more tests fail, a busy machine is not the reason.
const SECOND_TRIES_MAX: usize = 20;

/// The drivers that the whole end-to-end suite runs with; the first is the default.
const DRIVERS: [&str; 2] = ["epoll", "io_uring"];

/// The tests that a run includes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Tier {
    /// Every test, after the missing packages were installed
    Whole,
    /// Unit tests, the simulation and a few end-to-end tests; nothing is installed
    Fast,
}

/// Runs the tests of a tier whose names contain one of the filters, or all when there is no filter.
pub(crate) fn run(tier: Tier, filters: &[String]) -> anyhow::Result<()> {
    if tier == Tier::Whole {
        packages::install(false)?;
    }
    let (end_to_end, others): (Vec<Binary>, Vec<Binary>) =
        binaries::build()?.into_iter().partition(Binary::is_end_to_end);
    let [end_to_end] = &end_to_end[..] else { bail!("there are {} end-to-end binaries", end_to_end.len()) };
    let runs = runs(tier, filters, &end_to_end.list()?)?;
    let mut report = Report::default();
    let result = report
        .time("unit tests and simulation", |_| others.iter().try_for_each(|binary| binary.run(filters)))
        .and_then(|()| report.time("documentation tests", |_| binaries::run_documentation(filters)))
        .and_then(|()| match tier {
            Tier::Whole if filters.is_empty() => report
                .time("Debian package", |_| deb::test())
                .and_then(|()| report.time("IPVS in a virtual machine", |_| ipvs_vm::run_tests(&[]))),
            Tier::Whole | Tier::Fast => Ok(()),
        })
        .and_then(|()| runs.iter().try_for_each(|run| report.end_to_end(end_to_end, run)));
    report.print();
    result?;
    report.verdict()
}

/// A run of the end-to-end binary.
#[derive(Debug, Eq, PartialEq)]
struct Run {
    /// The driver; `None` leaves the choice to the environment or to the default
    driver: Option<&'static str>,
    arguments: Vec<String>,
}

/// Returns the runs of the end-to-end binary. `all` are the names of its tests.
fn runs(tier: Tier, filters: &[String], all: &[String]) -> anyhow::Result<Vec<Run>> {
    if let Some(lost) = FAST.iter().find(|part| !all.iter().any(|name| name.contains(**part))) {
        bail!("no end-to-end test is called `{lost}`: correct FAST in xtask/src/test.rs");
    }
    match tier {
        Tier::Fast => {
            let is_fast = |name: &String| FAST.iter().any(|part| name.contains(part));
            let is_wanted =
                |name: &String| filters.is_empty() || filters.iter().any(|part| name.contains(part));
            let tests: Vec<&String> = all.iter().filter(|name| is_fast(name) && is_wanted(name)).collect();
            let run = || Run {
                driver: None,
                arguments: ["--exact"]
                    .into_iter()
                    .chain(tests.iter().map(|name| &***name))
                    .map(str::to_owned)
                    .collect(),
            };
            Ok((!tests.is_empty()).then(run).into_iter().collect())
        }
        // A filtered run uses a single driver, because it is for a developer who works on some tests.
        Tier::Whole if !filters.is_empty() => Ok(vec![Run { driver: None, arguments: filters.to_vec() }]),
        Tier::Whole => Ok(DRIVERS.map(|driver| Run { driver: Some(driver), arguments: Vec::new() }).into()),
    }
}

/// Durations, second tries and failures of a run.
#[derive(Debug, Default)]
struct Report {
    took: Vec<(String, Duration)>,
    second_tries: Vec<String>,
    failed: Vec<String>,
}

impl Report {
    /// Runs a part of the tests and measures it.
    fn time<R>(&mut self, part: &str, run: impl FnOnce(&mut Self) -> R) -> R {
        println!("\n== {part}");
        let start = Instant::now();
        let result = run(self);
        self.took.push((part.to_owned(), start.elapsed()));
        result
    }

    /// Runs end-to-end tests, then each failed test once more, alone.
    fn end_to_end(&mut self, binary: &Binary, run: &Run) -> anyhow::Result<()> {
        let part = run.driver.map_or_else(|| "end to end".into(), |driver| format!("end to end, {driver}"));
        self.time(&part, |report| {
            let first = binary.run_for_outcome(run.driver, &run.arguments)?;
            report.try_again(&part, &first, |test| {
                let arguments = ["--exact".to_owned(), test.to_owned()];
                binary.run_for_outcome(run.driver, &arguments)
            })
        })
    }

    fn try_again(
        &mut self,
        part: &str,
        first: &Outcome,
        run: impl Fn(&str) -> anyhow::Result<Outcome>,
    ) -> anyhow::Result<()> {
        for test in first.failed() {
            let has_passed = first.failed().len() <= SECOND_TRIES_MAX && {
                println!("\nsecond try, alone: {test}");
                run(test)?.is_one_success()
            };
            let list = if has_passed { &mut self.second_tries } else { &mut self.failed };
            list.push(format!("{test} ({part})"));
        }
        Ok(())
    }

    fn print(&self) {
        println!();
        for (part, took) in &self.took {
            println!("{:>7.1} s  {part}", took.as_secs_f64());
        }
        let total: Duration = self.took.iter().map(|(_, took)| *took).sum();
        println!("{:>7.1} s  in all", total.as_secs_f64());
        if !self.second_tries.is_empty() {
            println!("needed a second try: {}", self.second_tries.join(", "));
        }
    }

    fn verdict(&self) -> anyhow::Result<()> {
        if !self.failed.is_empty() {
            bail!("failed: {}", self.failed.join(", "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: impl IntoIterator<Item = impl ToString>) -> Vec<String> {
        names.into_iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn each_tier_and_filter_chooses_its_end_to_end_tests() {
        let fast = names(FAST.iter().map(|part| format!("area::{part}")));
        let all = [&fast[..], &names(["area::another"])].concat();
        let check = |tier, filters: &[&str], expected: &[(Option<&'static str>, Vec<String>)]| {
            let expected: Vec<Run> =
                expected.iter().cloned().map(|(driver, arguments)| Run { driver, arguments }).collect();
            assert_eq!(runs(tier, &names(filters), &all).unwrap(), expected, "{tier:?} {filters:?}");
        };
        let exactly = |tests: &[String]| [&names(["--exact"])[..], tests].concat();
        check(Tier::Fast, &[], &[(None, exactly(&fast))]);
        check(Tier::Fast, &[FAST[1], "another"], &[(None, exactly(&fast[1..2]))]);
        check(Tier::Fast, &["another"], &[]);
        check(Tier::Whole, &["another", "b"], &[(None, names(["another", "b"]))]);
        check(Tier::Whole, &[], &[(Some("epoll"), vec![]), (Some("io_uring"), vec![])]);
        let error = runs(Tier::Whole, &[], &fast[1..]).unwrap_err().to_string();
        assert!(error.contains(FAST[0]), "{error}");
    }

    #[test]
    fn only_a_test_that_fails_twice_fails_the_run() {
        let second = |test: &str| match test {
            "unsteady" => Ok(Outcome::new(1, &[])),
            "crash" => bail!("the test binary was ended by a signal"),
            // A name that matches nothing runs no test, and proves nothing.
            "lost" => Ok(Outcome::default()),
            test => Ok(Outcome::new(0, &[test])),
        };
        let check = |tests: &[&str], expected: &str| {
            let mut report = Report::default();
            let result = report.try_again("x", &Outcome::new(9, tests), second);
            let verdict = result.and_then(|()| report.verdict());
            assert_eq!(
                verdict.map_or_else(|error| error.to_string(), |()| report.second_tries.join(", ")),
                expected
            );
        };
        check(&[], "");
        check(&["unsteady"], "unsteady (x)");
        check(&["unsteady", "broken"], "failed: broken (x)");
        check(&["lost"], "failed: lost (x)");
        check(&["crash"], "the test binary was ended by a signal");
        let many = vec!["unsteady"; SECOND_TRIES_MAX + 1];
        check(&many, &format!("failed: {}", vec!["unsteady (x)"; many.len()].join(", ")));
    }
}
