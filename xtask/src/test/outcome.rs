//! Parser of the output of libtest: finds the failed tests, and refuses the output of a run that did not end
//! normally.

use anyhow::{Context, bail};

/// Exit code of libtest when a test failed.
const FAILED: i32 = 101;

/// Result of a test binary that ran to its end.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Outcome {
    passed: usize,
    failed: Vec<String>,
}

impl Outcome {
    #[cfg(test)]
    pub(super) fn new(passed: usize, failed: &[&str]) -> Self {
        Self { passed, failed: failed.iter().map(|name| (*name).to_owned()).collect() }
    }

    /// Returns the names of the tests that failed.
    pub(super) fn failed(&self) -> &[String] {
        &self.failed
    }

    /// Returns true if exactly one test ran, and it passed.
    pub(super) fn is_one_success(&self) -> bool {
        self.passed == 1 && self.failed.is_empty()
    }
}

/// Parses the output of a test binary. `code` is its exit code, if it was not ended by a signal.
///
/// # Errors
///
/// The binary crashed, was killed, or printed no summary that agrees with its exit code.
pub(super) fn parse(output: &str, code: Option<i32>) -> anyhow::Result<Outcome> {
    let code = code.context("the test binary was ended by a signal")?;
    if code != 0 && code != FAILED {
        bail!("the test binary ended with exit code {code}");
    }
    // A test can print such a line itself; the last such line is libtest's.
    let (before, summary) =
        output.rsplit_once("\ntest result: ").context("the test binary ended without a result")?;
    let count = |what: &str| {
        let mut words = summary.split([' ', ';']).filter(|word| !word.is_empty());
        let mut previous = None;
        words.find_map(|word| match word == what {
            true => previous,
            false => {
                previous = word.parse::<usize>().ok();
                None
            }
        })
    };
    let passed = count("passed").context("the result does not tell how many tests passed")?;
    let count = count("failed").context("the result does not tell how many tests failed")?;
    let failed = names(before);
    if failed.len() != count || (count == 0) != (code == 0) {
        bail!("{count} tests failed, {} are named, and the exit code is {code}", failed.len());
    }
    Ok(Outcome { passed, failed })
}

/// Returns the names in the last list of failures, which libtest indents by four spaces.
fn names(output: &str) -> Vec<String> {
    let Some((_, list)) = output.rsplit_once("\nfailures:\n") else { return Vec::new() };
    list.lines().take_while(|line| line.starts_with("    ")).map(|line| line.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: &str = "\nrunning 2 tests\ntest a::b ... ok\ntest c ... ok\n\ntest result: ok. 2 passed; 0 failed; \
                          0 ignored; 0 measured; 635 filtered out; finished in 1.02s\n\n";
    const SOME_FAILED: &str = "
running 4 tests
test dns::late ... ok
test tcp::half_close ... FAILED
test udp::flows - should panic ... FAILED
test web ... ok

failures:

---- tcp::half_close stdout ----
it printed this:

failures:
    not::a::test

test result: FAILED. 7 passed; 7 failed

---- udp::flows stdout ----
note: test did not panic as expected

failures:
    tcp::half_close
    udp::flows

test result: FAILED. 2 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.00s
";

    /// Expects the number of passed tests and the names of the failed tests, or a part of the error.
    fn check(output: &str, code: Option<i32>, expected: Result<(usize, &[&str]), &str>) {
        match (parse(output, code), expected) {
            (Ok(outcome), Ok((passed, failed))) => assert_eq!(outcome, Outcome::new(passed, failed)),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (outcome, expected) => panic!("{outcome:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn the_failed_tests_are_read_from_the_last_list() {
        check(PASSED, Some(0), Ok((2, &[])));
        check(SOME_FAILED, Some(101), Ok((2, &["tcp::half_close", "udp::flows"])));
    }

    #[test]
    fn a_run_that_did_not_end_by_itself_is_an_error() {
        check(PASSED, None, Err("signal"));
        check(PASSED, Some(134), Err("exit code 134"));
        check("\nrunning 2 tests\ntest a::b ... ok\n", Some(101), Err("without a result"));
        check(PASSED, Some(101), Err("0 tests failed, 0 are named"));
        check(SOME_FAILED, Some(0), Err("exit code is 0"));
        check(&SOME_FAILED.replace("2 failed", "3 failed"), Some(101), Err("3 tests failed, 2 are named"));
    }
}
